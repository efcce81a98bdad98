"""Reinit: every tensor follows its row of the contract, and everything else stays as it was to the bit.

Distributions are those of `spec_table.distribution`, from the formulas in torch's documentation. Seeds are fixed, so
the statistical tests give the same numbers every time.
"""

from __future__ import annotations

import pytest
import scipy.stats
import torch
from support.models import HEADS, model_class, small_model
from support.spec_table import copied, differing, distribution, rule, shapes_of

import hf_perturb
from hf_perturb import Perturbation


def larger_model(network: str):
    """Return a network with tensors of up to 150 000 entries, every weight away from what an initialiser gives."""
    if network == "carp":
        config = hf_perturb.CarpConfig(hidden_size=192, num_hidden_layers=2, slim=False)
    else:
        version = {"esm1": "ESM-1", "esm1b": "ESM-1b", "esm2": "ESM-2"}[network]
        sizes = {"hidden_size": 192, "num_hidden_layers": 2, "num_attention_heads": 12, "intermediate_size": 768}
        config = hf_perturb.FairEsmConfig(model_version=version, **sizes)
    model = model_class(network)(config)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(7)
    return model


def check_values(name: str, values: torch.Tensor, kind: str, parameter: float) -> None:
    values = values.double().flatten()
    if kind == "constant":
        assert values.eq(parameter).all(), name
        return
    assert values.unique().numel() > 0.98 * values.numel(), f"{name}: values repeat"
    if kind == "uniform":
        # float32 may round the bound itself up
        assert values.abs().max() <= parameter * (1 + 1e-6), name
        if values.numel() > 5000:
            assert values.max() > 0.99 * parameter, name
            assert values.min() < -0.99 * parameter, name
        law = scipy.stats.uniform(-parameter, 2 * parameter)
    else:
        law = scipy.stats.norm(0, parameter)
    method = "exact" if values.numel() < 500 else "asymp"
    p_value = scipy.stats.kstest(values.numpy(), law.cdf, method=method).pvalue
    # some hundred tests in this file: the smallest p-value of honest draws is near 1e-3
    assert p_value > 1e-5, f"{name}: p = {p_value} for {kind} {parameter}"


@pytest.mark.parametrize(("size", "seed"), [(small_model, 0), (small_model, 12345), (larger_model, 42)])
def test_every_tensor_follows_its_row(network, size, seed):
    model = size(network)
    family, shapes, before = model.config.model_type, shapes_of(model), copied(model)
    parameters = dict(model.named_parameters())
    model.perturb({"method": "reinit", "seed": seed})
    after = model.state_dict()
    drawn = {name for name in shapes if rule(family, name) is not None}
    assert differing(before, after) == drawn
    for name in drawn:
        values = after[name]
        if name == "embed_positions.weight":
            assert values[1].eq(0).all()
            values = torch.cat([values[:1], values[2:]])
        check_values(name, values, *distribution(family, name, shapes))
    # in place: an optimiser that holds the parameters still does
    assert all(model.get_parameter(name) is parameter for name, parameter in parameters.items())


def test_draws_know_nothing_of_each_other(network):
    """Tensors of the same law, laid end to end, are not correlated: each has a generator of its own."""
    model = larger_model(network).perturb("reinit")
    shapes = shapes_of(model)
    by_shape: dict[tuple[int, ...], list[torch.Tensor]] = {}
    for name, tensor in model.state_dict().items():
        if tensor.numel() > 100 and tensor.std() > 0 and rule(model.config.model_type, name) is not None:
            by_shape.setdefault(shapes[name], []).append(tensor.double().flatten())
    assert max(map(len, by_shape.values())) >= 3
    for tensors in by_shape.values():
        if len(tensors) > 1:
            correlation = torch.corrcoef(torch.stack(tensors)).fill_diagonal_(0).abs().max()
            assert correlation < 5 / tensors[0].numel() ** 0.5


def test_only_the_padding_row_of_the_positions_is_zero():
    model = small_model("esm1b").perturb("reinit")
    weight = model.embed_positions.weight
    assert weight.eq(0).all(dim=1).nonzero().flatten().tolist() == [1] == [model.config.pad_token_id]
    published = small_model("esm1b").perturb({"method": "reinit", "rules": "published"}).embed_positions.weight
    assert not published.eq(0).any()


@pytest.mark.parametrize("method", ["reinit", "resample"])
@pytest.mark.parametrize("include", [[], ["lm_head.weight"], ["lm_head.w*", "layers.0.*"]])
def test_the_tied_head_gets_a_weight_of_its_own(method, include):
    model = small_model("esm1b")
    embedding, before = model.embed_tokens.weight, model.embed_tokens.weight.detach().clone()
    assert model.lm_head.weight is embedding
    model.perturb({"method": method, "include": include})
    assert model.embed_tokens.weight is embedding
    assert torch.equal(embedding, before)
    assert model.lm_head.weight.data_ptr() != embedding.data_ptr()
    assert not torch.equal(model.lm_head.weight, embedding)
    assert isinstance(model.lm_head.weight, torch.nn.Parameter)
    assert model.config.tie_word_embeddings is False
    assert not model.all_tied_weights_keys  # what Transformers goes by when it spreads a model over devices
    model.tie_weights()  # Transformers calls it at every turn; it must not tie them again
    assert model.lm_head.weight.data_ptr() != embedding.data_ptr()
    assert len({id(p) for p in model.parameters()}) == len(dict(model.named_parameters()))
    with torch.no_grad():
        embedding.add_(1)
    assert torch.equal(model.embed_tokens.weight, before + 1)
    assert not torch.equal(model.lm_head.weight, before + 1)


@pytest.mark.parametrize("method", ["reinit", "resample"])
@pytest.mark.parametrize("globs", [{"exclude": ["lm_head.weight"]}, {"exclude": ["lm_*"]}, {"include": ["layers.*"]}])
def test_the_tie_is_kept_where_the_head_is_not_perturbed(method, globs):
    model = small_model("esm1b")
    before = copied(model)
    model.perturb({"method": method, **globs})
    assert model.lm_head.weight is model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, before["lm_head.weight"])
    assert model.config.tie_word_embeddings is True
    assert "layers.0.fc1.weight" in differing(before, copied(model))


@pytest.mark.parametrize("trainable", [True, False])
def test_an_untied_head_trains_as_the_tied_one_did(trainable):
    model = small_model("esm1b").requires_grad_(trainable).perturb("reinit")
    assert model.lm_head.weight.requires_grad is trainable
    assert all(p.requires_grad is trainable and p.grad_fn is None for p in model.parameters())


@pytest.mark.parametrize("rules", ["documented", "published"])
@pytest.mark.parametrize("method", ["reinit", "resample"])
def test_global_random_state_is_neither_read_nor_changed(network, method, rules):
    results = []
    for seed in (1, 2):
        model = small_model(network)
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        model.perturb({"method": method, "rules": rules})
        assert torch.equal(torch.get_rng_state(), state)
        results.append(copied(model))
    assert not differing(*results)


def test_heads_of_a_downstream_task_are_kept(network, head):
    model = small_model(network, head)
    before = copied(model)
    model.perturb(Perturbation("reinit"))
    kept = {name for name in before if rule(model.config.model_type, name) is None}
    assert kept == before.keys() - differing(before, copied(model))
    assert any(name.startswith("classifier.") for name in kept) == (HEADS.index(head) > 1)
