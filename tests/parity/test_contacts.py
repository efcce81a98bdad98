"""Contact maps of a FASTA are those that fair-esm's `predict_contacts` gives each protein alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.embedding import write_fasta

import hf_perturb
from parity.original_files import original_data, write_original
from parity.originals import FAIR_ESM, TOLERANCE, draw_sequences, small_pair


@pytest.mark.parametrize("name", [name for name in FAIR_ESM if name != "esm1v"])
def test_maps_are_those_of_the_original(name, tmp_path):
    pair, sequences = small_pair(name), draw_sequences((40, 1, 13, 57))
    path = write_original(tmp_path, name, original_data(pair))
    hf_perturb.contacts(path, write_fasta(tmp_path / "proteins.fasta", sequences), tmp_path / "maps")
    found = dict(hf_perturb.read_contacts(tmp_path / "maps" / "base"))
    for number, sequence in enumerate(sequences):
        with torch.no_grad():
            theirs = pair.original.predict_contacts(pair.tokenize([sequence]))[0].numpy()
        assert len(sequence) < 40 or theirs.std() > 0.05
        np.testing.assert_allclose(found[f"s{number}"], theirs, rtol=0, atol=TOLERANCE.absolute)


def test_esm1v_has_no_head(tmp_path):
    path = write_original(tmp_path, "esm1v", original_data(small_pair("esm1v")))
    with pytest.raises(hf_perturb.UnsupportedModuleError, match="without a contact head, as ESM-1v"):
        hf_perturb.contacts(path, tmp_path / "any.fasta", tmp_path / "maps")
