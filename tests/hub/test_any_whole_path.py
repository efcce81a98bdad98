"""The whole way of a control of ProtBERT and ProtT5: made, verified, pushed, loaded, piped, and embedded."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("pyarrow")

import torch
import transformers
from support.any_encoders import write_encoder
from support.hub_client import quiet_uploads
from support.pushing import REPO
from transformers import AutoTokenizer, pipeline

import hf_perturb
from hf_perturb.cli import main

pytestmark = [quiet_uploads, pytest.mark.usefixtures("naps")]
PROTEINS = {"one": "MKTAYIAKQRQISFVKSHFSRQ", "two": "MENDELAAVLGK"}
# the class that is stored, and what it is for
TASKS = {"bert-lm": ("BertForMaskedLM", "fill-mask"), "t5-encoder": ("T5EncoderModel", "feature-extraction")}


@pytest.mark.parametrize("name", TASKS)
def test_a_control_goes_the_whole_way(name, push, tmp_path):
    base, out = write_encoder(tmp_path / "base", name), tmp_path / "control"
    assert main(["create", str(base), str(out), "--method", "reinit", "--seed", "7"]) == 0
    assert main(["verify", str(out), "--base", str(base)]) == 0
    for file in base.iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            assert (out / file.name).read_bytes() == file.read_bytes(), file.name
    push(out)

    cls, task = TASKS[name]
    control = hf_perturb.from_pretrained(REPO, auto_class=cls, verify=True)
    assert control.config.perturbation["seed"] == 7
    stock = getattr(transformers, cls).from_pretrained(REPO).eval()
    assert all(torch.equal(x, stock.state_dict()[key]) for key, x in control.state_dict().items())
    tokenizer = AutoTokenizer.from_pretrained(REPO)
    spaced = {key: " ".join(sequence) for key, sequence in PROTEINS.items()}
    run = pipeline(task, model=stock, tokenizer=tokenizer)
    assert run(spaced["one"].replace("Y", tokenizer.mask_token or "Y"))

    (tmp_path / "proteins.fasta").write_text("".join(f">{key}\n{sequence}\n" for key, sequence in PROTEINS.items()))
    assert main(["embed", REPO, str(tmp_path / "proteins.fasta"), str(tmp_path / "embedded")]) == 0
    ids, found = hf_perturb.read_embeddings(tmp_path / "embedded")
    assert ids == [*PROTEINS]
    for row, sequence in zip(found, spaced.values(), strict=True):
        given = tokenizer(sequence, return_tensors="pt", return_special_tokens_mask=True)
        residues = ~given.pop("special_tokens_mask").bool()[0]
        assert int(residues.sum()) == len(sequence.replace(" ", ""))
        with torch.no_grad():
            hidden = stock(**given, output_hidden_states=True).hidden_states[-1][0]
        np.testing.assert_allclose(row, hidden[residues].mean(0).numpy(), rtol=1e-5, atol=1e-6)


def test_a_class_with_a_decoder_is_refused_for_an_encoder_alone(tmp_path):
    """Transformers would draw the decoder at random, and say it in a table."""
    base = write_encoder(tmp_path / "base", "t5-encoder")
    hf_perturb.create_variant(base, tmp_path / "out", "resample")
    with pytest.raises(hf_perturb.CheckpointError, match="auto_class='T5EncoderModel' loads all that there is"):
        hf_perturb.from_pretrained(tmp_path / "out")
