"""Contact maps of one protein as a picture: base and controls side by side, in one scale of greys."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_perturb.storage.pictures import import_matplotlib, write_picture

_ACROSS = 4  # maps in a row
_PANEL = 2.4  # inches a map
_STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)  # residues between ticks
_TICKS = 5
_LETTERS = 30  # of a name in a line


def draw_maps(path: Path, name: str, maps: Mapping[str, NDArray[np.float32]]) -> None:
    """Draw the maps of a protein and write the picture whole or not at all; one of that name is replaced.

    Args:
        path: of a `.png`.
        name: what the protein is called.
        maps: probabilities of contact, `(length, length)`, by the name of the network.

    Raises:
        CheckpointError: if it cannot be written.
    """
    write_picture(path, lambda: _figure(name, maps))


def _figure(name: str, maps: Mapping[str, NDArray[np.float32]]) -> Any:
    columns = min(len(maps), _ACROSS)
    rows = math.ceil(len(maps) / columns)
    size = _PANEL * columns + 0.9, _PANEL * rows + 0.5
    figure = import_matplotlib().figure.Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel in panels[len(maps) :]:
        panel.set_axis_off()
    for number, (panel, (network, contacts)) in enumerate(zip(panels, maps.items(), strict=False)):
        length = len(contacts)
        end = length + 0.5
        # 0 to 1 in all of them, so that a map of a control may be compared with that of the base
        shown = panel.imshow(contacts, cmap="Greys", vmin=0, vmax=1, extent=(0.5, end, end, 0.5)) if length else None
        ticks = _ticks(length)
        panel.set_xticks(ticks)
        panel.set_yticks(ticks)
        panel.set_title(textwrap.fill(network, _LETTERS), parse_math=False)
        if number + columns >= len(maps):
            panel.set_xlabel("residue")
        if number % columns == 0:
            panel.set_ylabel("residue")
    if shown is not None:
        figure.colorbar(shown, ax=[*panels], label="probability of contact", shrink=0.8 if rows == 1 else 0.5)
    title = name if len(name) <= _LETTERS * columns else f"{name[: _LETTERS * columns]}…"
    figure.suptitle(f"{title} ({length:,} residues)", parse_math=False)
    return figure


def _ticks(length: int) -> list[int]:
    """Return the residues that an axis names: the first, and round numbers."""
    step = next((step for step in _STEPS if length <= step * _TICKS), _STEPS[-1])
    return [1, *(number for number in range(step, length + 1, step) if number > 1)] if length else []
