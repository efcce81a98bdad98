"""The figure of `scripts/probe`: scores against layers, for a base and its controls.

Kinds differ by colour, dash and marker, so that it reads in black and white; the range over seeds is shaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from plotting import STYLE

KINDS = {
    "pretrained": {"color": "#0b4f8a", "linestyle": "-", "marker": "o"},
    "random init": {"color": "#b2560d", "linestyle": (0, (4, 2)), "marker": "s"},
    "stat transfer": {"color": "#4d7326", "linestyle": (0, (1, 1.2)), "marker": "^"},
}
PANELS = {
    # title, what is counted, what guessing gives, where the axis begins
    "accuracy": ("Bacterium or eukaryote?", "balanced accuracy", 0.5, 0.45),
    "r2": ("Hydrophobic share (sanity task)", "$R^2$", 0.0, -0.05),
}


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the figure.

    Args:
        rows: as `probe_all` returns them.
        path: the file; its suffix is the format.
    """
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(1, len(PANELS), figsize=(8.2, 3.6))
        for panel, score in zip(axes, PANELS, strict=True):
            _panel(panel, rows, score)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, ncols=4, loc="lower center", frameon=False, handlelength=3.2)
        figure.tight_layout(rect=(0, 0.09, 1, 1), w_pad=2.5)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=160)
        pyplot.close(figure)


def _panel(axes: Axes, rows: list[dict[str, Any]], score: str) -> None:
    title, label, chance, bottom = PANELS[score]
    layers = sorted({row["layer"] for row in rows})
    for kind, style in KINDS.items():
        scores = np.array([[r[score] for r in rows if (r["kind"], r["layer"]) == (kind, layer)] for layer in layers])
        axes.plot(layers, scores.mean(1), label=kind, markersize=4, linewidth=1.3, **style)
        axes.fill_between(layers, scores.min(1), scores.max(1), color=style["color"], alpha=0.18, linewidth=0)
    axes.axhline(chance, color="0.35", linewidth=1, linestyle=":", label="chance")
    axes.set(title=title, ylabel=label, xlabel="representation (0: embedding)", ylim=(bottom, 1.02))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(True, axis="y", color="0.88", linewidth=0.7)
    axes.set_axisbelow(True)
