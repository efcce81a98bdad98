"""A study as a picture for print: the score of base, controls and baselines, by layer or of a single one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from hf_perturb.storage.pictures import STYLE, import_matplotlib, shortened, write_picture
from hf_perturb.studies.metrics import METRICS
from hf_perturb.studies.results import Results, Score
from hf_perturb.studies.words import Numbers

_NAME = "layers"
_WIDTH, _HEIGHT, _ROW = 7.0, 3.2, 0.17  # inches: the width of two columns of print, axes, and a line of text
_TITLE = 1.1 * STYLE["font.size"]
# told apart by marker and dash, so that a copy in black and white says as much, and by hues that all can tell apart
_BASE: dict[str, Any] = {"marker": "o", "ls": "-", "color": "black", "lw": 1.5}
_HUES = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
_MARKERS = ("s", "^", "D", "v", "P", "X", "<")
_DASHES = ((0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)))
_GREY = "0.35"
_GUESS, _BASELINE = (0, (1, 2)), (0, (6, 3))
_BAND, _FAINT, _MANY = 0.17, 0.09, 4  # how opaque bands are, and of how many networks there are too many for that
_STEPS, _TICKS = (1, 2, 5, 10, 20), 18  # layers between ticks, and most of these
_DEEP = 1.5  # how far below the best R² an axis goes: there is no worst one
_AWAY, _LINE = 12, 9.5  # points from the axes to a label, and from a label to the next


@dataclass(frozen=True)
class _Point:
    """A score with its interval, at a layer, or at those that folds chose."""

    layer: int | None
    value: float
    low: float
    high: float
    chosen: bool


def draw(results: Results, out: Path) -> None:
    """Write `layers.svg` and `layers.png`, each whole or not at all; what has their names is replaced.

    Several layers: score against layer. A single one: a row for each network.

    Args:
        results: what a study found.
        out: a folder that is there.

    Raises:
        CheckpointError: if matplotlib is not installed, or a file cannot be written.
    """
    for suffix in (".svg", ".png"):
        write_picture(out / f"{_NAME}{suffix}", lambda: _figure(results))


def _figure(results: Results) -> Any:
    return _by_layer(results) if len(results.layers) > 1 else _of_one_layer(results)


def _title(results: Results) -> str:
    about = results.about["data"]
    rows = "residues" if results.task.level == "residue" else "proteins"
    where = f", layer {results.layers[0]}" if len(results.layers) == 1 else ""
    names = f"{shortened(about['name'])}, {shortened(about['target'])}"
    return f"{names}: {METRICS[results.metric].title} on {results.base.n:,} test {rows}{where}"


def _styles(results: Results) -> dict[str, dict[str, Any]]:
    """Return how base and controls are drawn."""
    styles = {"base": _BASE}
    look = (("marker", _MARKERS), ("ls", _DASHES), ("color", _HUES))
    for i, group in enumerate(results.groups):
        styles[group] = {"lw": 1.0, **{name: choice[i % len(choice)] for name, choice in look}}
    return styles


def _label(results: Results, name: str) -> str:
    seeds = len(results.seeds_of(name))
    return shortened(name) if not seeds else f"{shortened(name)} ({seeds} seed{'s' if seeds > 1 else ''})"


def _others(results: Results) -> list[Score]:
    """Return the baselines, and what the base predicts without a probe."""
    return [*results.baselines, *(score for score in results.zero_shot if score.kind == "base")]


def _named(score: Score) -> str:
    """Name a baseline, or what a base predicts without a probe."""
    return score.network if score.kind == "baseline" else f"{score.probe}, no probe"


def _signed(number: str) -> str:
    """Write minus signs as axes do."""
    return number.replace("-", "\N{MINUS SIGN}")


def _empty() -> tuple[Any, Any]:
    figure = import_matplotlib().figure.Figure(layout="constrained")
    figure.get_layout_engine().set(w_pad=0.07, h_pad=0.06)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


# ---- score by layer


def _by_layer(results: Results) -> Any:
    styles, lines = _styles(results), _others(results)
    figure, axes = _empty()
    size = 4.0 if len(results.layers) <= 20 else 3.0
    curves = {name: _curve(results, name) for name in styles}
    for number, name in enumerate(styles):
        look = {**styles[name], "ms": size, "zorder": 4 + len(styles) - number}
        _draw_curve(axes, curves[name], look, _FAINT if len(styles) > _MANY and name != "base" else _BAND)
        _draw_best(axes, curves[name], look, _fold_place(results, (number + 0.5) / len(styles)))
    _scale(axes, results, [each for curve in curves.values() for each in curve], lines)
    for score in lines:
        dashes = _GUESS if score.network == "guess" else _BASELINE
        axes.axhline(score.value, color=_GREY, lw=0.8, ls=dashes, zorder=1)
    _ticks(axes, results, any(point.layer is None for curve in curves.values() for point in curve))
    rows = _legend(figure, results, styles, size)
    figure.set_size_inches(_WIDTH, _HEIGHT + _ROW * rows)
    _name_lines(figure, axes, results, lines)
    return figure


def _curve(results: Results, name: str) -> list[_Point]:
    """Return the scores of the base or a control by layer; where folds chose, what they chose comes last."""
    if name == "base":
        found = [score for score in results.of(name) if score.layer is not None or score.chosen]
        return [_Point(score.layer, score.value, score.low, score.high, score.chosen) for score in found]
    chosen = {score.layer for score in results.seeds_of(name)}
    places = (*results.layers, *([None] if None in chosen else []))
    contrasts = [each for layer in places if (each := results.contrast(name, layer)) is not None]
    return [_Point(each.layer, each.mean, each.low, each.high, each.layer in chosen) for each in contrasts]


def _fold_place(results: Results, share: float) -> float:
    """Return where, right of the layers, what folds chose is drawn; `share` tells networks apart."""
    first, last = results.layers[0], results.layers[-1]
    return last + (last - first) * (0.06 + 0.07 * share)


def _draw_curve(axes: Any, curve: Sequence[_Point], style: dict[str, Any], alpha: float) -> None:
    """Draw a line with its band."""
    line = [point for point in curve if point.layer is not None]
    layers = [point.layer for point in line]
    look = {"color": style["color"], "alpha": alpha, "lw": 0, "zorder": 2}
    axes.fill_between(layers, [point.low for point in line], [point.high for point in line], **look)
    axes.plot(layers, [point.value for point in line], **{**style, "mfc": "white", "mew": 0.8})


def _draw_best(axes: Any, curve: Sequence[_Point], style: dict[str, Any], place: float) -> None:
    """Fill the markers of what was chosen; what differs by fold has a place of its own."""
    for point in curve:
        if point.chosen:
            x = place if point.layer is None else point.layer
            if point.layer is None:
                axes.plot([x, x], [point.low, point.high], color=style["color"], lw=1.2, zorder=3)
            axes.plot(x, point.value, **{**style, "ms": 1.9 * style["ms"], "ls": "none", "mec": "white", "mew": 0.5})


def _scale(axes: Any, results: Results, points: Sequence[_Point], lines: Sequence[Score]) -> None:
    """Choose an axis on which all can be seen but an R² that is far too low, and say if a curve leaves it."""
    lows = [*(point.low for point in points), *(score.value for score in lines)]
    high = max([*(point.high for point in points), *(score.value for score in lines)])
    deepest = high - _DEEP if results.metric == "r2" else -math.inf
    low = min(value for value in [high, *lows] if value >= deepest)
    margin = 0.04 * (high - low or 1.0)
    axes.set_ylim(low - margin, high + margin)
    is_cut = any(point.low < low for point in points)
    said = f" (below {_signed(f'{low - margin:.2f}')}: not shown)" if is_cut else ""
    axes.set_ylabel(f"{METRICS[results.metric].title}{said}")


def _ticks(axes: Any, results: Results, by_fold: bool) -> None:
    layers = results.layers
    least = (layers[-1] - layers[0]) / _TICKS
    step = next((step for step in _STEPS if step >= least), _STEPS[-1])
    ticks: list[tuple[float, str]] = []
    for layer in layers:
        if not ticks or layer - ticks[-1][0] >= step:
            ticks.append((layer, str(layer)))
    if by_fold:
        ticks.append((_fold_place(results, 0.5), "best,\nby fold"))
    axes.set_xticks([at for at, _ in ticks], [name for _, name in ticks])
    edge = 0.02 * (layers[-1] - layers[0])
    axes.set_xlim(layers[0] - edge, edge + (_fold_place(results, 1) if by_fold else layers[-1]))
    axes.set_xlabel("representation (0: the embedding)")


def _legend(figure: Any, results: Results, styles: dict[str, dict[str, Any]], size: float) -> int:
    """Write title and legend above the axes, and return how many rows the legend has."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    names = [_label(results, name) for name in styles]
    handles: list[Any] = [
        Line2D([], [], **{**style, "ms": size, "mfc": "white", "mew": 0.8}, label=name)
        for name, style in zip(names, styles.values(), strict=True)
    ]
    handles.append(Line2D([], [], marker="o", ls="none", color=_GREY, ms=1.9 * size, label="best on validation"))
    handles.append(Patch(color="0.85", label="95% interval"))
    longest = max(map(len, names))
    rows = math.ceil(len(handles) / (4 if longest <= 24 else 3 if longest <= 36 else 2))
    columns = math.ceil(len(handles) / rows)
    place = {"loc": "outside upper left", "frameon": False, "handlelength": 3.2, "columnspacing": 1.5}
    title = {"title": _title(results), "title_fontsize": _TITLE, "alignment": "left"}
    legend = figure.legend(handles=handles, ncols=columns, **place, **title)
    for text in (legend.get_title(), *legend.get_texts()):
        text.set_parse_math(False)  # a dollar in a name is a dollar
    return rows


def _name_lines(figure: Any, axes: Any, results: Results, lines: Sequence[Score]) -> None:
    """Write the names of baselines right of their lines, apart from each other."""
    number = Numbers(results)
    figure.draw_without_rendering()  # how high the axes are is known when they are laid out
    height = axes.get_window_extent().height * 72 / figure.dpi
    bottom, top = axes.get_ylim()
    lines = sorted(lines, key=lambda score: score.value)
    shown = [max(score.value, bottom) for score in lines]
    at = [height * (value - bottom) / (top - bottom) for value in shown]
    leader = {"arrowstyle": "-", "lw": 0.5, "color": "0.5", "shrinkA": 1, "shrinkB": 0, "relpos": (0, 0.5)}
    for score, value, here, there in zip(lines, shown, at, _apart(at, _LINE, height), strict=True):
        axes.annotate(
            f"{_signed(number(score.value))}  {_named(score)}{' ↓' if value > score.value else ''}",
            xy=(1, value),
            xycoords=axes.get_yaxis_transform(),
            xytext=(_AWAY, there - here),
            textcoords="offset points",
            va="center",
            annotation_clip=False,
            arrowprops=leader,
        )


def _apart(wanted: Sequence[float], gap: float, top: float) -> list[float]:
    """Move ascending places as little as need be for a gap between each and the next, from 0 to `top`."""
    # with the gaps taken off, it is the ascending sequence that is nearest
    free, count = [place - gap * i for i, place in enumerate(wanted)], len(wanted)
    nearest = [max(min(fmean(free[i : j + 1]) for j in range(at, count)) for i in range(at + 1)) for at in range(count)]
    return [min(max(place, 0), top - gap * (count - 1)) + gap * i for i, place in enumerate(nearest)]


# ---- a single layer


def _of_one_layer(results: Results) -> Any:
    """Draw a row for each network: its score with its interval, those of the seeds of a control, and the numbers."""
    number, styles = Numbers(results), _styles(results)
    others = sorted(_others(results), key=lambda score: -score.value)
    grey = {"marker": "o", "color": _GREY, "ms": 4, "mfc": "white"}
    rows = [(_label(results, name), _curve(results, name)[-1], {**look, "ms": 5}) for name, look in styles.items()]
    rows += [(_named(each), _Point(None, each.value, each.low, each.high, False), grey) for each in others]
    figure, axes = _empty()
    figure.set_size_inches(_WIDTH, 0.85 + 1.4 * _ROW * len(rows))
    axes.spines["left"].set_visible(False)
    figure.suptitle(_title(results), x=0.01, ha="left", fontsize=_TITLE, parse_math=False)
    for row, (_, point, look) in enumerate(rows):
        axes.plot([point.low, point.high], [row, row], color=look["color"], lw=1.2)
        axes.plot(point.value, row, **{**look, "ls": "none"})
        said = _signed(f"{number(point.value)} {number.interval(point.low, point.high)}")
        axes.annotate(said, (1, row), (8, 0), axes.get_yaxis_transform(), "offset points", va="center")
    for row, group in enumerate(results.groups, 1):
        seeds = [score.value for score in results.seeds_of(group)]
        axes.plot(seeds, [row + 0.3] * len(seeds), marker=".", ms=3, mew=0, ls="none", color=styles[group]["color"])
    axes.axvline(results.guess, color=_GREY, lw=0.8, ls=_GUESS, zorder=1)
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows], parse_math=False)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"{METRICS[results.metric].title}, with 95% intervals and a dot for each seed")
    return figure
