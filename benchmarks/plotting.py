"""The figure of `scripts/benchmark scale`: time and anonymous memory against the size of the base's file.

Sides differ by fill and dash and variants by marker, so that it reads in black and white; the background is opaque, so
that it reads on a dark page.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from benchmarking import MANY
from create_comparison import COPY, STUDY

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

STYLE = {
    "font.size": 9,
    "font.family": "sans-serif",
    "svg.fonttype": "path",  # the same on every machine
    "svg.hashsalt": "hf-perturb",  # and the same bytes every time
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}
SIDES = {
    "study": {"color": "#b2560d", "linestyle": (0, (4, 2)), "markerfacecolor": "white"},
    "ours": {"color": "#0b4f8a", "linestyle": "-", "markerfacecolor": "#0b4f8a"},
}
NAMES = {"study": "the study's procedure", "ours": "hf-perturb create"}
LIMIT = {"color": "0.25", "linewidth": 1.6, "linestyle": ":"}
# of each variant: its marker, and which run of each side it is; the study's procedure shuffles all entries of a tensor
VARIANTS = {
    "reinit": ("o", {"ours": "reinit", "study": STUDY["reinit"]}),
    "resample --axis embedding": ("s", {"ours": "resample --axis embedding"}),
    "resample --axis all": ("^", {"ours": "resample --axis all", "study": STUDY["resample"]}),
    "gaussian": ("D", {"ours": "gaussian"}),
}


def draw(data: dict[str, Any], path: Path, machine: str) -> None:
    """Draw the figure.

    Args:
        data: as `scale` writes it.
        path: the file; its suffix is the format.
        machine: what it was measured on.
    """
    sizes = [size for size in data["sizes"] if size["size"] != MANY]  # its tensors set it apart, not its bytes
    with pyplot.rc_context(STYLE):
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(8.2, 4.4))
        _panel(left, sizes, "best_seconds", 1.0)
        _panel(right, sizes, "anonymous_bytes", 1e9)
        left.plot(*_points(sizes, COPY, "best_seconds", 1.0), **LIMIT)
        left.set(title="Time of the whole process", ylabel="seconds")
        right.set(title="Peak of anonymous memory", ylabel="GB")
        figure.suptitle(machine, fontsize=8, color="0.3")
        sides, variants = _legend()
        place = {"loc": "lower center", "frameon": False, "columnspacing": 2.0}
        figure.legend(handles=sides, ncols=3, bbox_to_anchor=(0.5, 0.055), handlelength=3.4, **place)
        figure.legend(handles=variants, ncols=4, bbox_to_anchor=(0.5, 0.0), handlelength=1.0, **place)
        figure.tight_layout(rect=(0, 0.13, 1, 1), w_pad=2.5)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=160)
        pyplot.close(figure)


def _points(sizes: list[dict[str, Any]], run: str, key: str, unit: float) -> tuple[list[float], list[float]]:
    """Return sizes in GB and a quantity of a run, where it was measured."""
    found = [size for size in sizes if run in size["runs"]]
    return [size["bytes"] / 1e9 for size in found], [size["runs"][run][key] / unit for size in found]


def _panel(axes: Axes, sizes: list[dict[str, Any]], key: str, unit: float) -> None:
    """Draw a quantity of both sides against file size, both logarithmic."""
    for side, style in SIDES.items():
        for marker, runs in VARIANTS.values():
            if side in runs:
                points = _points(sizes, runs[side], key, unit)
                axes.plot(*points, marker=marker, markersize=5, linewidth=1.3, **style)
    axes.set(xscale="log", yscale="log", xlabel="size of the base's file")
    ticks = [size["bytes"] / 1e9 for size in sizes]
    axes.set_xticks(ticks, [f"{tick:.2g} GB\n({size['size']})" for tick, size in zip(ticks, sizes, strict=True)])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(True, axis="y", which="major", color="0.88", linewidth=0.7)
    axes.set_axisbelow(True)


def _legend() -> tuple[list[Line2D], list[Line2D]]:
    """Return the samples of the sides with the limit, and those of the variants."""
    sides = [
        Line2D([], [], linewidth=1.3, label=NAMES[side], marker="o", markersize=5, **style)
        for side, style in SIDES.items()
    ]
    plain = {"color": "0.2", "linestyle": "none", "markersize": 5, "markerfacecolor": "0.7"}
    variants = [Line2D([], [], marker=marker, label=name, **plain) for name, (marker, _) in VARIANTS.items()]
    return [*sides, Line2D([], [], label=f"{COPY} of the same file", **LIMIT)], variants
