"""A study as a picture for print: the score of base, controls and baselines, by layer or of a single one."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from hf_perturb.storage.pictures import STYLE, import_matplotlib, shortened, write_picture
from hf_perturb.studies.metrics import METRICS
from hf_perturb.studies.results import Results, Score
from hf_perturb.studies.words import MANY, Numbers, unprobed

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
_BAND, _FAINT, _SEVERAL = 0.17, 0.09, 4  # how opaque bands are, and of how many networks there are too many for that
_STEPS, _TICKS = (1, 2, 5, 10, 20), 18  # layers between ticks, and most of these
_MOST = 1.0  # of every metric
_ROUNDING = 1e-9
_DEEP = 1.5  # how far below the best R² an axis goes: there is no worst one
_COLUMNS, _LETTERS, _BRIEF = 5, 85, 18  # most: columns of a legend, letters of a line of a title and beside a line
_AWAY, _LINE = 12, 9.5  # points from the axes to a label, and from a label to the next


@dataclass(frozen=True)
class _Point:
    """A score with its interval, at a layer, or at those that folds chose."""

    layer: int | None
    value: float
    low: float
    high: float
    chosen: bool


@dataclass(frozen=True)
class _Other:
    """A score of no layer: a baseline, or what base or controls predict without a probe."""

    name: str
    value: float
    low: float | None
    high: float | None
    network: str | None = None  # whose it is: `base`, or the name of a control


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
    title = f"{names}: {METRICS[results.metric].title} on {results.base.n:,} test {rows}{where}"
    return textwrap.fill(title, _LETTERS, break_on_hyphens=False)


def _styles(results: Results) -> dict[str, dict[str, Any]]:
    """Return how base and controls are drawn."""
    styles = {"base": _BASE}
    look = (("marker", _MARKERS), ("ls", _DASHES), ("color", _HUES))
    for i, group in enumerate(results.groups):
        styles[group] = {"lw": 1.0, **{name: choice[i % len(choice)] for name, choice in look}}
    return styles


def _label(results: Results, name: str) -> str:
    seeds = results.seeds_of(name)
    if len({*map(shortened, results.groups)}) == len(results.groups):  # what is left out may be all that differs
        name = shortened(name)
    if not seeds:
        return name
    return f"{name} ({f'{len(seeds)} seeds' if len(seeds) > 1 else f'seed {seeds[0].seed}'})"


def _others(results: Results) -> list[_Other]:
    """Return the baselines, and what is predicted without a probe; of many controls, by the base alone."""
    shown = {"base", *(results.groups if len(results.groups) <= MANY else ())}
    found = [_Other(score.network, score.value, score.low, score.high) for score in results.baselines]
    for each in unprobed(results):
        if each.metric == results.metric and each.group in shown:
            group = each.group if len(each.group) <= _BRIEF else f"{each.group[:9]}…{each.group[-8:]}"
            found.append(_Other(f"{group}, {each.probe}", each.mean, each.low, each.high, each.group))
    return found


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
    by_fold = any(score.layer is None for name in styles for score in _chosen(results, name))
    curves = {name: _curve(results, name, by_fold) for name in styles}
    banded = [name for name in styles if name == "base" or len(results.groups) <= MANY]
    for name in styles.keys() - banded:
        curves[name] = [replace(point, low=point.value, high=point.value) for point in curves[name]]
    _scale(axes, results, [each for curve in curves.values() for each in curve], lines)
    for number, (name, curve) in enumerate(curves.items()):
        look = {**styles[name], "ms": size, "zorder": 4 + len(styles) - number}
        if name in banded:
            _draw_band(axes, curve, look, _FAINT if len(styles) > _SEVERAL and name != "base" else _BAND)
        _draw_curve(axes, curve, look)
        _draw_best(axes, curve, look, _fold_place(results, (number + 0.5) / len(styles)))
    for line in lines:
        axes.axhline(line.value, color=_GREY, lw=0.8, ls=_GUESS if line.name == "guess" else _BASELINE, zorder=1)
        if line.network is not None:
            look = {**styles[line.network], "ms": size, "mfc": "white", "mew": 0.8, "clip_on": False}
            axes.plot(1, line.value, **look, transform=axes.get_yaxis_transform())
    _ticks(axes, results, by_fold)
    rows = _legend(figure, results, styles, size)
    figure.set_size_inches(_WIDTH, _HEIGHT + _ROW * rows)
    _name_lines(figure, axes, results, lines)
    return figure


def _chosen(results: Results, name: str) -> Sequence[Score]:
    """Return what base or seeds of a control reach at what was best for each on validation rows."""
    return [results.base] if name == "base" else results.seeds_of(name)


def _curve(results: Results, name: str, by_fold: bool) -> list[_Point]:
    """Return the scores of the base or a control by layer; last, if folds chose, those at what they chose."""
    chosen = {score.layer for score in _chosen(results, name)}
    if name == "base":
        found = [score for score in results.of(name) if score.layer is not None]
        points = [_Point(score.layer, score.value, score.low, score.high, score.chosen) for score in found]
        best = results.base
        return [*points, *([_Point(None, best.value, best.low, best.high, True)] if by_fold else [])]
    places = (*results.layers, *([None] if by_fold else []))
    contrasts = [each for layer in places if (each := results.contrast(name, layer)) is not None]
    return [
        _Point(each.layer, each.mean, each.low, each.high, each.layer is None or each.layer in chosen)
        for each in contrasts
    ]


def _fold_place(results: Results, share: float) -> float:
    """Return where, right of the layers, what folds chose is drawn; `share` tells networks apart."""
    first, last = results.layers[0], results.layers[-1]
    return last + (last - first) * (0.06 + 0.07 * share)


def _draw_band(axes: Any, curve: Sequence[_Point], style: dict[str, Any], alpha: float) -> None:
    line = [point for point in curve if point.layer is not None]
    look = {"color": style["color"], "alpha": alpha, "lw": 0, "zorder": 2}
    lows, highs = [point.low for point in line], [point.high for point in line]
    axes.fill_between([point.layer for point in line], lows, highs, **look)


def _draw_curve(axes: Any, curve: Sequence[_Point], style: dict[str, Any]) -> None:
    line = [point for point in curve if point.layer is not None]
    values = [point.value for point in line]
    axes.plot([point.layer for point in line], values, **{**style, "mfc": "white", "mew": 0.8}, **_whole(axes, values))


def _draw_best(axes: Any, curve: Sequence[_Point], style: dict[str, Any], place: float) -> None:
    """Fill the markers of what was chosen; what differs by fold has a place of its own."""
    for point in curve:
        if point.chosen:
            x = place if point.layer is None else point.layer
            if point.layer is None:
                axes.plot([x, x], [point.low, point.high], color=style["color"], lw=1.2, zorder=3)
            look = {**style, "ms": 1.9 * style["ms"], "ls": "none", "mec": "white", "mew": 0.5}
            axes.plot(x, point.value, **look, **_whole(axes, [point.value]))


def _whole(axes: Any, values: Sequence[float]) -> dict[str, bool]:
    """Let markers at the end of an axis stand out of it, unless there are some beyond it."""
    return {"clip_on": _is_below(axes, min(values))}


def _is_below(axes: Any, value: float) -> bool:
    """Whether a score is below an axis, by more than rounding: a Spearman may be a little less than -1."""
    return bool(value < axes.get_ylim()[0] - _ROUNDING)


def _scale(axes: Any, results: Results, points: Sequence[_Point], lines: Sequence[_Other]) -> None:
    """Choose an axis on which all can be seen but an R² that is far too low, and say if a curve leaves it."""
    least = METRICS[results.metric].least
    ends = [*(each for point in points for each in (point.low, point.high)), *(line.value for line in lines)]
    ends = [min(max(end, least), _MOST) for end in ends]
    high = max(ends)
    low = min(end for end in ends if results.metric != "r2" or end >= high - _DEEP)
    margin = 0.04 * (high - low or 1.0)
    bottom, top = max(low - margin, least), min(high + margin, _MOST)
    axes.set_ylim(bottom, top)
    is_cut = any(max(point.low, least) < bottom for point in points)
    said = f" (below {_signed(f'{bottom:.2f}')}: not shown)" if is_cut else ""
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
    axes.set_xlabel("representation" + (" (0: the embedding)" if 0 in layers else ""))


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
    of = " of the base" if len(results.groups) > MANY else ""
    handles.append(Patch(color="0.85", label=f"95% interval{of}"))
    place = {"loc": "outside upper left", "frameon": False, "handlelength": 3.2, "columnspacing": 1.5}
    title = {"title": _title(results), "title_fontsize": _TITLE, "alignment": "left"}
    figure.set_size_inches(_WIDTH, _HEIGHT)
    for most in range(min(_COLUMNS, len(handles)), 0, -1):
        rows = math.ceil(len(handles) / most)
        legend = figure.legend(handles=handles, ncols=math.ceil(len(handles) / rows), **place, **title)
        for text in (legend.get_title(), *legend.get_texts()):
            text.set_parse_math(False)  # a dollar in a name is a dollar
        if legend.get_window_extent().width <= figure.bbox.width or most == 1:
            break
        legend.remove()
    return rows + _title(results).count("\n")


def _name_lines(figure: Any, axes: Any, results: Results, lines: Sequence[_Other]) -> None:
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
            f"{_signed(number(score.value))}  {score.name}{' ↓' if _is_below(axes, score.value) else ''}",
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
    grey = {"marker": "o", "color": _GREY, "ms": 4, "mfc": "white"}
    rows: list[tuple[str, _Point | _Other, dict[str, Any]]] = [
        (_label(results, name), _curve(results, name, by_fold=False)[-1], {**look, "ms": 5})
        for name, look in styles.items()
    ]
    for other in sorted(_others(results), key=lambda other: -other.value):
        look = grey if other.network is None else {**styles[other.network], "ms": 4, "mfc": "white"}
        rows.append((other.name, other, look))
    figure, axes = _empty()
    figure.set_size_inches(_WIDTH, 0.85 + 1.4 * _ROW * len(rows) + _ROW * _title(results).count("\n"))
    axes.spines["left"].set_visible(False)
    figure.suptitle(_title(results), x=0.01, ha="left", fontsize=_TITLE, parse_math=False)
    for row, (_, point, look) in enumerate(rows):
        said = number(point.value)
        if point.low is not None and point.high is not None:
            axes.plot([point.low, point.high], [row, row], color=look["color"], lw=1.2)
            said += f" {number.interval(point.low, point.high)}"
        axes.plot(point.value, row, **{**look, "ls": "none"}, clip_on=False)
        axes.annotate(_signed(said), (1, row), (8, 0), axes.get_yaxis_transform(), "offset points", va="center")
    for row, group in enumerate(results.groups, 1):
        seeds = [score.value for score in results.seeds_of(group)]
        axes.plot(seeds, [row + 0.3] * len(seeds), marker=".", ms=3, mew=0, ls="none", color=styles[group]["color"])
    axes.axvline(results.guess, color=_GREY, lw=0.8, ls=_GUESS, zorder=1)
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows], parse_math=False)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    low, high = axes.get_xlim()
    axes.set_xlim(max(low, METRICS[results.metric].least), min(high, _MOST))
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"{METRICS[results.metric].title}, with 95% intervals and a dot for each seed")
    return figure
