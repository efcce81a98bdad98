"""The figure of `scripts/benchmark scale`: time and peak memory against the size of the base's file.

Sides differ by fill and dash and variants by marker, so that it reads in black and white; the background is opaque, so
that it reads on a dark page.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

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
GUIDE = {"color": "0.35", "linewidth": 1.2, "linestyle": ":"}
MARKERS = {("reinit", None): "o", ("resample", None): "s", ("resample", "all"): "^"}
LABELS = {
    ("reinit", None): "reinit",
    ("resample", None): "resample (default axis)",
    ("resample", "all"): "resample --axis all",
}


def draw(data: dict[str, Any], path: Path) -> None:
    """Draw the figure.

    Args:
        data: as `scale` writes it.
        path: the file; its suffix is the format.
    """
    with pyplot.rc_context(STYLE):
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(8.2, 4.2))
        _panel(left, data, "best_seconds", 1.0)
        _panel(right, data, "peak_bytes", 1e9)
        _guide(left, data)
        left.set(title="Time of the whole process", ylabel="seconds")
        right.set(title="Peak memory of the whole process", ylabel="GB")
        sides, variants = _legend()
        place = {"loc": "lower center", "frameon": False, "columnspacing": 2.0}
        figure.legend(handles=sides, ncols=3, bbox_to_anchor=(0.5, 0.055), handlelength=3.4, **place)
        figure.legend(handles=variants, ncols=3, bbox_to_anchor=(0.5, 0.0), handlelength=1.0, **place)
        figure.tight_layout(rect=(0, 0.13, 1, 1), w_pad=2.5)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=160)
        pyplot.close(figure)


def _panel(axes: Axes, data: dict[str, Any], key: str, unit: float) -> None:
    """Draw a quantity of both sides against file size, both logarithmic."""
    for side, style in SIDES.items():
        for (method, axis), marker in MARKERS.items():
            points = [
                (size["bytes"] / 1e9, row[side][key] / unit)
                for size in data["sizes"]
                for row in size["rows"]
                if (row["method"], row["axis"]) == (method, axis) and row[side] is not None
            ]
            if points:
                axes.plot(*zip(*points, strict=True), marker=marker, markersize=5, linewidth=1.3, **style)
    axes.set(xscale="log", yscale="log", xlabel="size of the base's file")
    ticks = [size["bytes"] / 1e9 for size in data["sizes"]]
    axes.set_xticks(
        ticks, [f"{tick:.2g} GB\n({size['size']})" for tick, size in zip(ticks, data["sizes"], strict=True)]
    )
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(True, axis="y", which="major", color="0.88", linewidth=0.7)
    axes.set_axisbelow(True)


def _guide(axes: Axes, data: dict[str, Any]) -> None:
    """Draw a line of slope 1 that ends below the last of ours."""
    last = data["sizes"][-1]
    end, high = last["bytes"] / 1e9, 0.6 * min(row["ours"]["best_seconds"] for row in last["rows"])
    axes.plot([end / 8, end], [high / 8, high], **GUIDE)


def _legend() -> tuple[list[Line2D], list[Line2D]]:
    """Return the samples of the sides with the guide, and those of the variants."""
    sides = [
        Line2D([], [], linewidth=1.3, label=NAMES[side], marker="o", markersize=5, **style)
        for side, style in SIDES.items()
    ]
    variants = [
        Line2D(
            [], [], color="0.2", linestyle="none", marker=marker, markersize=5, markerfacecolor="0.7", label=LABELS[key]
        )
        for key, marker in MARKERS.items()
    ]
    guide = Line2D([], [], label="slope 1: in proportion to bytes", **GUIDE)
    return [*sides, guide], variants
