"""Residues become vectors by the same few calls however many sequences there are, where a device is far away."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.embedding import draw
from support.far_device import FarDevice
from support.models import CONFIGS, small_model

from hf_perturb.embedding import pooling
from hf_perturb.embedding.batches import Unit, embed_batch
from hf_perturb.embedding.encoder import AlphabetEncoder
from hf_perturb.embedding.options import Choices
from hf_perturb.embedding.pooling import pool_rows
from hf_perturb.networks import inputs

LENGTHS = [5, 1, 127, 128, 129, 300, 2, 1000]
# without windows, with windows of which two see a residue, and with windows of which many do
LIMITS = [(None, 0), (40, 10), (40, 35)]


@pytest.fixture
def segments(monkeypatch):
    monkeypatch.setattr(pooling, "_has_segments", lambda device: True)


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_one_call_gives_what_a_call_for_each_sequence_gives(pool, monkeypatch):
    rows = torch.randn(sum(LENGTHS), 17, generator=torch.Generator().manual_seed(0)) + 3
    one_by_one = pool_rows(pool, rows, LENGTHS)
    monkeypatch.setattr(pooling, "_has_segments", lambda device: True)
    at_once = pool_rows(pool, rows, LENGTHS)
    torch.testing.assert_close(at_once, one_by_one, rtol=1e-6 if pool == "mean" else 0, atol=0)


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_the_vector_of_a_sequence_depends_on_no_other(pool, segments):
    rows = torch.randn(sum(LENGTHS), 17, generator=torch.Generator().manual_seed(0))
    together = pool_rows(pool, rows, LENGTHS)
    for vector, part in zip(together, rows.split(LENGTHS), strict=True):
        assert torch.equal(pool_rows(pool, part, [len(part)])[0], vector)
    rows[3] = torch.nan
    spoilt = pool_rows(pool, rows, LENGTHS)
    assert spoilt[0].isnan().all()
    assert torch.equal(spoilt[1:], together[1:])


def test_the_mean_of_a_long_sequence_is_as_exact(segments):
    rows = torch.randn(35_000, 8, generator=torch.Generator().manual_seed(0)) / 10 + 8.3
    torch.testing.assert_close(
        pool_rows("mean", rows, [len(rows)])[0].double(), rows.double().mean(0), rtol=1e-6, atol=0
    )


def units_of(sequences, choices):
    return [Unit(sequence, [row], choices.windows(len(sequence))) for row, sequence in enumerate(sequences)]


@pytest.mark.parametrize(("limit", "overlap"), LIMITS)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_large_batch_has_the_launches_of_a_small_one(name, limit, overlap, segments, monkeypatch):
    monkeypatch.setattr(inputs, "_asserts_later", lambda device: device.type == "lazy")
    model = small_model(name)
    encoder, pools = AlphabetEncoder(model.config), ("mean", "max", *["cls"][: name != "carp"])
    choices = Choices((0, 1, 3), pools, True, limit, "window", overlap)
    batches = [units_of(draw([20, 30, 25, 7] + [50] * (limit is not None)) * n, choices) for n in (1, 4)]
    expected = [embed_batch(model, units, encoder, choices, 10**6) for units in batches]
    counts = []
    with FarDevice() as far:
        far.send(model)
        for units, theirs in zip(batches, expected, strict=True):
            far.forget()
            ours = embed_batch(model, units, encoder, choices, 10**6)
            counts.append((dict(far.launches), dict(far.waits)))
            assert ours.keys() == theirs.keys()
            for column in ours:
                for mine, other in zip(ours[column], theirs[column], strict=True):
                    np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-5, err_msg=column)
    assert counts[0] == counts[1]
    # what is kept is fetched
    assert counts[0][1] == {"_to_copy": len(ours)}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("limit", "overlap"), LIMITS)
@pytest.mark.parametrize("name", CONFIGS)
def test_cuda_embeds_as_the_cpu_does(name, limit, overlap):
    model = small_model(name)
    encoder, pools = AlphabetEncoder(model.config), ("mean", "max", *["cls"][: name != "carp"])
    choices = Choices((0, 3), pools, True, limit, "window", overlap)
    units = units_of(draw([20, 30, 25, 1, 7] + [50] * (limit is not None)), choices)
    expected = embed_batch(model, units, encoder, choices, 10**6)
    ours = embed_batch(model.cuda(), units, encoder, choices, 10**6)
    for column, theirs in expected.items():
        for mine, other in zip(ours[column], theirs, strict=True):
            np.testing.assert_allclose(mine, other, rtol=0, atol=1e-3, err_msg=column)
