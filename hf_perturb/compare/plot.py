"""A comparison of two checkpoints as a picture for print: distances per layer, and histograms of the weights."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_perturb.compare.compare import Comparison, Row, Side, likeness_of
from hf_perturb.compare.statistics import Histogram
from hf_perturb.storage.pictures import STYLE, import_matplotlib, shortened, write_picture

_SIZE = (7.0, 3.2)  # inches, the width of two columns of print
# told apart by marker, filling and line, so that a copy in black and white says as much; the smaller lie on the larger
_KINDS: dict[str, dict[str, Any]] = {
    "norm": {"label": "layer norms", "marker": "^", "ls": ":", "color": "0.5", "ms": 6, "mfc": "white"},
    "bias": {"label": "biases", "marker": "s", "ls": "--", "color": "0.35", "ms": 4.5, "mfc": "white"},
    "weight": {"label": "weights", "marker": "o", "ls": "-", "color": "black", "ms": 2.5},
}
_LEGEND = {"frameon": False, "loc": "lower left", "bbox_to_anchor": (0, 1), "borderpad": 0, "borderaxespad": 0.5}
_UNRELATED = math.sqrt(2)
_STRETCH = 20  # how many times the smallest distance the largest may be on a linear axis
_PAD, _LINE = 32, 9.7  # points between a title and its axes, for a legend of two lines, and for each more of them
_STEPS = (1, 2, 5, 10, 20)  # layers between ticks
_BEFORE = ("embed_tokens", "embed_positions", "emb_layer_norm_before", "model.embedder")  # the layers
_ROOM, _LINES = 2.2, 6  # inches and lines for what a legend says of a checkpoint


def plot_comparison(comparison: Comparison, path: str | Path) -> None:
    """Draw a comparison and write it whole or not at all; a picture of that name is replaced.

    Left: how far the tensors of every layer that changed are from A, in its standard deviations, weights, biases and
    layer norms apart; `in` is what comes before the layers, `out` what comes after. Right: histograms of the weights of
    both networks.

    Args:
        comparison: what `compare_checkpoints` returns.
        path: of a `.png`, `.pdf` or `.svg`.

    Raises:
        CheckpointError: as `check_picture` does, or if the file cannot be written.
    """
    write_picture(Path(path), lambda: _figure(comparison))


def _figure(comparison: Comparison) -> Any:
    # a Figure of its own has no window and leaves pyplot's alone
    names = [_legend("A", comparison.a), _legend("B", comparison.b)]
    # taller by what a long legend needs, so that the axes are those of a short one
    longer = _LINE * sum(name.count("\n") for name in names)
    size = _SIZE[0], _SIZE[1] + longer / 72
    figure = import_matplotlib().figure.Figure(figsize=size, layout="constrained")
    figure.get_layout_engine().set(wspace=0.06)
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    _draw_distances(left, comparison)
    _draw_histograms(right, comparison, names)
    left.set_title("Distance by layer", loc="left", pad=_PAD)
    right.set_title("Histogram of parameters", loc="left", pad=_PAD + longer)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_distances(axes: Any, comparison: Comparison) -> None:
    layers = sorted({row.layer for row in comparison.tensors if row.layer is not None}) or [0]
    gap = max(1.0, len(layers) / 16)
    outside = {"in": layers[0] - gap, "out": layers[-1] + gap}
    found = _distances(comparison)
    axes.axhline(_UNRELATED, color="0.75", linewidth=2, zorder=1, label=r"$\sqrt{2}$: unrelated, same spread")
    for kind, style in _KINDS.items():
        size = style["ms"] * (1 if len(layers) <= 40 else 0.75)
        # markers at zero lie half outside
        look = {**style, "ms": size, "lw": 0.8, "clip_on": False, "zorder": 3}
        axes.plot(layers, [found.get((layer, kind), math.nan) for layer in layers], **look)
        heights = [found.get((place, kind), math.nan) for place in outside]
        axes.plot(list(outside.values()), heights, **{**look, "ls": "none", "label": None})
    _scale(axes, [value for value in found.values() if value > 0])
    step = next((step for step in _STEPS if len(layers) <= 8 * step), _STEPS[-1])
    axes.set_xticks([outside["in"], *layers[::step], outside["out"]], ["in", *map(str, layers[::step]), "out"])
    axes.set(xlabel="layer", ylabel=r"distance: rms$(B-A)\;/\;$std$(A)$")
    line, *kinds = axes.get_legend_handles_labels()[0]
    axes.legend(handles=[*reversed(kinds), line], ncols=2, columnspacing=1.5, **_LEGEND)


def _scale(axes: Any, some: list[float]) -> None:
    """Choose an axis on which the largest distance, the smallest and none at all can be seen."""
    largest = max([*some, _UNRELATED])
    if some and largest > _STRETCH * min(some):
        smallest = 10.0 ** math.floor(math.log10(min(some)))
        axes.set_yscale("symlog", linthresh=smallest)
        axes.set_ylim(0, 2 * largest)
    else:
        axes.set_ylim(0, 1.1 * largest)


def _distances(comparison: Comparison) -> dict[tuple[Any, str], float]:
    """Return the distance by place (`in`, a layer, `out`) and kind of tensor, where it is a number."""
    places: dict[tuple[Any, str], list[Row]] = {}
    is_before = True
    for row in comparison.tensors:
        is_before = is_before and row.layer is None
        if row.only_in is None and row.kind in _KINDS:
            outside = "in" if is_before or row.name.startswith(_BEFORE) else "out"
            places.setdefault((outside if row.layer is None else row.layer, row.kind), []).append(row)
    found = {key: likeness_of(rows).distance for key, rows in places.items()}
    return {key: distance for key, distance in found.items() if math.isfinite(distance)}


def _draw_histograms(axes: Any, comparison: Comparison, names: Sequence[str]) -> None:
    histogram = comparison.histogram
    filled = axes.stairs(histogram.a, histogram.edges, fill=True, color="0.75")
    outline = axes.stairs(histogram.b, histogram.edges, color="black", linewidth=0.8)
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.5)
    axes.margins(x=0.02)
    axes.xaxis.set_major_formatter("{x:g}")  # a factor of its own would lie on the label
    axes.set_xlabel("parameter" + _beyond(histogram))
    axes.set(ylabel=f"parameters per bin of {histogram.edges[1] - histogram.edges[0]:.2g}")
    legend = axes.legend([filled, outline], names, **_LEGEND)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a dollar in a name is a dollar


def _beyond(histogram: Histogram) -> str:
    """Return what an axis hides, for its label."""
    sides = (("A", histogram.beyond_a, histogram.a), ("B", histogram.beyond_b, histogram.b))
    shares = [f"{side} {100 * beyond / (beyond + sum(shown)):.1g} %" for side, beyond, shown in sides if beyond]
    return f" (beyond: {', '.join(shares)})" if shares else ""


def _legend(letter: str, side: Side) -> str:
    """Return what a legend says of a checkpoint, in lines that it has room for."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=STYLE["font.size"])
    text = f"{letter}: {side}".replace(side.name, shortened(side.name), 1)

    def fits(line: str) -> bool:
        return text_to_path.get_text_width_height_descent(line, font, ismath=False)[0] <= 72 * _ROOM

    choices = (textwrap.wrap(text, letters, max_lines=_LINES, placeholder=" …") for letters in range(80, 8, -1))
    return "\n".join(next(lines for lines in choices if all(map(fits, lines))))
