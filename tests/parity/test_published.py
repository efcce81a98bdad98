"""Rules `"published"` give the bits that the study's procedure gives on the original modules."""

from __future__ import annotations

import copy

import pytest
import torch
from support.models import HEADS, model_class, small_model
from support.spec_table import copied, differing

import hf_perturb
from hf_perturb import Perturbation, PerturbationError, create_variant, verify_variant
from hf_perturb.cli import main
from hf_perturb.loading.perturb import network_of
from hf_perturb.perturbation import digest_of
from parity import study
from parity.originals import Pair, fair_esm, small_pair
from parity.sources import CONTACTS

NETWORKS = ("esm1", "esm1b", "carp", "carp_wide")
SEEDS = (42, 0, 12345)  # the study's own
PROCEDURES = {"reinit": study.reinit, "resample": study.resample}
both = pytest.mark.parametrize("method", PROCEDURES)
every_seed = pytest.mark.parametrize("seed", SEEDS)


@pytest.fixture(scope="module", params=NETWORKS)
def pair(request) -> Pair:
    return small_pair(request.param)


def studied(pair: Pair, method: str, seed: int) -> dict[str, torch.Tensor]:
    original = copy.deepcopy(pair.original)
    PROCEDURES[method](original, seed)
    return copied(original)


@both
@every_seed
def test_the_bits_are_those_of_the_study(pair, method, seed):
    expected = studied(pair, method, seed)
    assert len(differing(expected, copied(pair.original))) > 20
    model = pair.model().perturb({"method": method, "rules": "published", "seed": seed})
    assert not differing(expected, copied(model))


@both
def test_a_wrapped_original_becomes_what_the_study_had(pair, method):
    original = copy.deepcopy(pair.original)
    hf_perturb.wrap(original).perturb({"method": method, "rules": "published", "seed": 0})
    assert not differing(studied(pair, method, 0), copied(original))


@both
def test_the_tie_is_kept_and_the_embedding_changes_with_the_head(method):
    pair = small_pair("esm1b")
    model = pair.model()
    embedding, before = model.embed_tokens.weight, model.embed_tokens.weight.detach().clone()
    model.perturb({"method": method, "rules": "published"})
    assert model.lm_head.weight is model.embed_tokens.weight is embedding
    assert model.config.tie_word_embeddings is True
    assert not torch.equal(embedding, before)
    same_entries = torch.equal(embedding.flatten().sort().values, before.flatten().sort().values)
    assert same_entries == (method == "resample")


@pytest.mark.parametrize("name", ["esm1", "esm1b", "carp"])
@both
@every_seed
def test_a_model_without_the_language_head_has_the_same_trunk(name, method, seed):
    pair = small_pair(name)
    expected = studied(pair, method, seed)
    for head in HEADS:
        model = model_class(name, head)(copy.deepcopy(pair.config))
        model.load_state_dict(pair.original.state_dict(), strict=False)
        model = copied(model.perturb({"method": method, "rules": "published", "seed": seed}))
        trunk = [tensor for tensor in model if not tensor.startswith("classifier.")]
        assert len(trunk) > 30
        assert not differing({n: expected[n] for n in trunk}, {n: model[n] for n in trunk})


@pytest.mark.parametrize("name", ["esm1", "esm1b"])
@pytest.mark.parametrize("head", HEADS)
@both
def test_a_base_without_contact_head_has_what_the_study_had_beside_its_own(name, head, method, tmp_path):
    """Its class always has one, so all that comes later is drawn later: in memory, on disk and by a recipe."""
    pair, asked = small_pair(name), Perturbation(method, rules="published", seed=0)
    model = model_class(name, head)(type(pair.config)(**{**pair.config.to_dict(), "contact_head": False}))
    model.load_state_dict(pair.original.state_dict(), strict=False)
    model.save_pretrained(tmp_path / "base")
    record = create_variant(tmp_path / "base", tmp_path / "variant", asked)
    create_variant(tmp_path / "base", tmp_path / "recipe", asked, recipe=True)
    made, expected = copied(model.perturb(asked)), studied(pair, method, 0)
    lacking = {*CONTACTS} if head == "ForMaskedLM" else {*CONTACTS, *network_of(model).language_head}
    assert expected.keys() - made.keys() == lacking
    trunk = made.keys() & expected.keys()
    assert not differing({n: expected[n] for n in trunk}, {n: made[n] for n in trunk})
    assert record.digest == digest_of(model.state_dict())
    assert verify_variant(tmp_path / "variant", tmp_path / "base").ok
    assert verify_variant(tmp_path / "recipe").ok


@pytest.mark.parametrize(
    ("network", "changes", "named"),
    [
        ("esm2", {}, "an ESM-2"),
        ("esm1b", {"emb_layer_norm_before": False}, "ESM-1v.*emb_layer_norm_before"),
        ("esm1b", {"tie_word_embeddings": False}, "tie_word_embeddings"),
    ],
    ids=["esm2", "esm1v", "untied"],
)
@pytest.mark.parametrize("head", ["Model", "ForMaskedLM"])
def test_networks_that_the_document_does_not_have_are_refused(network, changes, named, head, tmp_path, capsys):
    model, asked = small_model(network, head, **changes), Perturbation("resample", rules="published")
    before, base, out = copied(model), tmp_path / "base", tmp_path / "out"
    model.save_pretrained(base)
    fasta = tmp_path / "proteins.fasta"
    fasta.write_text(">a\nMKT\n")
    config = type(model.config)(**{**model.config.to_dict(), "perturbation": asked})
    for attempt in (
        lambda: model.perturb(asked),
        lambda: type(model)(config),
        lambda: type(model).from_pretrained(base, perturbation=asked),
        lambda: create_variant(base, out, asked),
        lambda: create_variant(base, out, asked, recipe=True),
        lambda: hf_perturb.embed_variants(base, fasta, out, [asked]),
    ):
        with pytest.raises(PerturbationError, match=f"'published' for .*{named}.*'documented'.*CARP"):
            attempt()
    assert main(["create", str(base), str(out), "--method", "reinit", "--rules", "published"]) == 1
    assert "'documented'" in capsys.readouterr().err
    assert not out.exists()
    assert not differing(before, copied(model))
    assert model.config.perturbation is None


@both
def test_documented_and_published_differ_in_what_they_leave(method):
    """The differences that the contract lists, in ESM-1 and ESM-1b, and no others."""
    for name in ("esm1", "esm1b"):
        pair = small_pair(name)
        before = copied(pair.original)
        left = {}
        for rules in ("documented", "published"):
            after = copied(pair.model().perturb({"method": method, "rules": rules}))
            left[rules] = before.keys() - differing(before, after)
        more = left["published"] - left["documented"]
        if method == "resample":
            assert not more
            continue
        norms = {tensor for tensor in before if "layer_norm" in tensor}
        biases = {tensor for tensor in before if tensor.endswith((".bias_k", ".bias_v")) or tensor == "lm_head.bias"}
        assert more == norms | biases
        assert left["documented"] - left["published"] == ({"embed_tokens.weight"} if name == "esm1b" else set())


@both
def test_a_large_tensor_is_shuffled_and_drawn_alike(method):
    """Sizes at which torch might take another path: 1026 x 96 entries, and 384 x 96 in a layer."""
    torch.manual_seed(0)
    pair = fair_esm("roberta_large", embed_dim=96, layers=1)
    model = pair.model().perturb({"method": method, "rules": "published"})
    assert not differing(studied(pair, method, 42), copied(model))
