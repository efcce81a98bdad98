"""Two checkpoints of any Transformers model compared: layers by their stacks, a stock ESM by either set of rules."""

from __future__ import annotations

import pytest
from support.any_folders import stored

from hf_perturb import compare_checkpoints, compare_variants, create_variant, create_variants
from hf_perturb.compare.plot import plot_comparison
from hf_perturb.errors import CheckpointError


def changed(comparison) -> dict[str, int]:
    return {group.name: group.changed_tensors for group in comparison.layers}


@pytest.mark.parametrize(
    ("kind", "scope", "layer", "outside"),
    [
        ("bert", "top:1", "layers.1", {"embeddings", "cls"}),
        ("gpt2", "top:1", "layers.1", {"wte", "wpe", "ln_f"}),
        ("t5", "decoder.top:1", "decoder.layers.1", {"shared", "encoder.final_layer_norm", "decoder.final_layer_norm"}),
        ("qwen3_moe", "layers:1-1", "layers.1", {"embed_tokens", "norm", "lm_head"}),
    ],
)
def test_a_row_is_a_layer_of_a_stack_or_a_module_outside(kind, scope, layer, outside, tmp_path):
    base, out = tmp_path / "base", tmp_path / "out"
    stored(kind, base)
    create_variant(base, out, {"method": "resample", "scope": [scope]})
    found = compare_checkpoints(base, out)
    assert {name for name, count in changed(found).items() if count} == {layer}
    assert {group.name for group in found.layers if group.layer is None} == outside
    assert {row.layer for row in found.tensors if row.changed} == {int(layer.rpartition(".")[2])}
    assert compare_variants(base, tmp_path)[out].to_dict() == found.to_dict()


def test_a_network_without_layers_is_drawn(tmp_path):
    from transformers import ResNetConfig, ResNetModel

    pytest.importorskip("matplotlib")
    model = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic"))
    model.save_pretrained(tmp_path / "base")
    found = compare_checkpoints(tmp_path / "base", tmp_path / "base")
    kinds = {row.name.rpartition(".")[2]: row.kind for row in found.tensors}
    assert kinds["running_mean"] == kinds["num_batches_tracked"] == "buffer"
    plot_comparison(found, tmp_path / "out.png")
    assert (tmp_path / "out.png").stat().st_size


def test_a_stock_esm_is_compared_as_what_its_variant_is(tmp_path):
    base = tmp_path / "base"
    stored("esm2", base)
    wanted = {tmp_path / rules: {"method": "resample", "rules": rules} for rules in ("documented", "transformers")}
    for out, asked in wanted.items():
        create_variants(base, {out: asked})
    assert changed(compare_checkpoints(base, tmp_path / "documented"))["layers.0"]
    assert changed(compare_checkpoints(tmp_path / "transformers", base))["layers.0"]
    with pytest.raises(CheckpointError, match=r"is a fair_esm, .* a esm"):
        compare_checkpoints(*wanted)
