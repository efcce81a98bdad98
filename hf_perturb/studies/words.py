"""A study in words: one line for the terminal, a table, and a paragraph to cite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from hf_perturb.cards.templates import templates
from hf_perturb.studies.metrics import METRICS
from hf_perturb.studies.results import Contrast, Results, Score

MANY = 6  # controls that are told apart one by one, in words and by bands; of more, the extremes are named
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
# of a method: what its networks are called, and where what the probe finds in them is
_NETWORKS = {
    "reinit": ("re-initialised network{s}", "with weights drawn anew"),
    "resample": ("network{s} with shuffled weights", "with shuffled weights"),
    "gaussian": ("network{s} with weights from normal distributions", "with weights from normal distributions"),
}
_EMBEDDING = "representation 0"  # as a baseline
_FINE = 0.02  # how wide an interval is of which two decimals would leave nothing
_LEVEL = 0.05  # of p, corrected, from which on two networks are not told apart
_MOST = 999  # percent; a larger share says no more than that it is large
_BEYOND_GUESSING = "of what the probe finds beyond guessing"


def last_line(results: Results) -> str:
    """Return what was found, in a sentence that says no more than its numbers do.

    A control is better than its base, or not told apart from it, by Holm's p at 0.05 and the sign of the difference.
    Baselines have no p: they are told apart from the base where the two intervals of 95% have nothing in common.
    """
    number, base, baseline = Numbers(results), results.base, _strongest(results)
    reached = f"{number(base.value)} {number.interval(base.low, base.high)}"
    best = [found for group in results.groups if (found := results.contrast(group)) is not None]
    first = f"{_where(base)} {METRICS[results.metric].title} {reached}{_beside_guessing(results, best, number)}"
    parts = [first, *_controls(results, best, number)]
    if baseline is not None:
        parts.append(f"{baseline.network} alone {number(baseline.value)}{_beside_base(baseline, base)}")
    said = "; ".join(parts)
    if len(best) == 1 and best[0].share is not None:
        said += f": {percent(best[0])} {_BEYOND_GUESSING} is there {_left(results, best[0])}"
    return f"{said}."


class Numbers:
    """Writes scores with as many decimals as the interval of the base asks for."""

    def __init__(self, results: Results):
        self.decimals = 2 if results.base.high - results.base.low >= _FINE else 3

    def __call__(self, value: float) -> str:
        """Write a score."""
        # nothing is a minus zero
        return f"{round(value, self.decimals) + 0.0:.{self.decimals}f}"

    def interval(self, low: float, high: float) -> str:
        """Write an interval."""
        return f"[{self(low)}, {self(high)}]"

    def ends(self, low: float | None, high: float | None) -> str:
        """Write an interval, if there is one."""
        return "" if low is None or high is None else self.interval(low, high)

    def spread(self, mean: float, sd: float | None) -> str:
        """Write a mean over seeds, with how they differ if there are several."""
        return self(mean) if sd is None else f"{self(mean)} ± {self(sd)}"


def percent(contrast: Contrast) -> str:
    """Write the share that is there without what was learned, with its interval."""
    if contrast.share is None or contrast.share_low is None or contrast.share_high is None:
        return ""
    share, low, high = map(_rounded, (contrast.share, contrast.share_low, contrast.share_high))
    return f"{share}% [{low}, {high}]"


def _rounded(share: float) -> str:
    """Write a share in percent, without the sign."""
    if abs(100 * share) >= _MOST + 0.5:  # an end may be infinite
        return f">{_MOST}" if share > 0 else f"<-{_MOST}"
    return f"{round(100 * share)}"


@dataclass(frozen=True)
class Unprobed:
    """What the base, or the seeds of a control, predict without a probe.

    Args:
        group: `base`, or the name of the control.
        probe: what is in place of one.
        metric: by which it is scored.
        values: of each seed.
        low: where the interval of a single network begins; `None` of several.
        high: where it ends.
    """

    group: str
    probe: str
    metric: str
    values: tuple[float, ...]
    low: float | None
    high: float | None

    @property
    def name(self) -> str:
        """What it is called beside what was probed."""
        return f"{self.group}, {self.probe}"

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return fmean(self.values)

    @property
    def sd(self) -> float | None:
        """How the seeds differ, if there are several."""
        return stdev(self.values) if self.values[1:] else None


def unprobed(results: Results) -> list[Unprobed]:
    """Return what was predicted without a probe, the base first, whatever the metric."""
    groups: dict[tuple[str, str, str], list[Score]] = {}
    for score in results.scores:
        if score.kind != "baseline" and score.layer is None and not score.chosen:
            groups.setdefault((score.group, score.probe, score.metric), []).append(score)
    return [
        Unprobed(
            *name,
            tuple(each.value for each in found),
            *((found[0].low, found[0].high) if len(found) == 1 else (None, None)),
        )
        for name, found in groups.items()
    ]


def _where(base: Score) -> str:
    if base.layer is None:
        return "The layers chosen fold by fold reach"
    return f"Layer {base.layer}{' (the embedding)' if base.layer == 0 else ''} reaches"


def _beside_guessing(results: Results, best: Sequence[Contrast], number: Numbers) -> str:
    """Say where the base is not above guessing: where there is no share, or, without controls, by its interval."""
    base, others = results.base, [found for found in best if not found.is_base]
    if any(found.share is not None for found in others) or (not others and base.low > results.guess):
        return ""
    against = "worse than" if base.high < results.guess else "not told apart from"
    return f", {against} guessing ({number(results.guess)})" + (", so that no share is given" if best else "")


def _beside_base(baseline: Score, base: Score) -> str:
    """Say where a baseline is not below the base, as far as the intervals of both tell."""
    if baseline.high < base.low:
        return ""
    return ", better than the base" if baseline.low > base.high else ", not told apart from the base by their intervals"


def _controls(results: Results, best: Sequence[Contrast], number: Numbers) -> list[str]:
    """Say what each control reaches; of many, what the highest and the lowest do."""
    ordered = sorted(best, key=lambda found: found.mean, reverse=True)
    named = [ordered[0], ordered[-1]] if len(best) > MANY else best
    parts = [_control(results, found, number) for found in named]
    if len(best) > 1:  # each with its own share
        of = _BEYOND_GUESSING
        for place, found in enumerate(named):
            if found.share is not None:
                parts[place] += f", {percent(found)} {of}"
                of = "of it"
    if len(best) > MANY:
        return [f"of {len(best):,} controls the highest: {parts[0]}", f"the lowest: {parts[1]}"]
    return parts


def _control(results: Results, contrast: Contrast, number: Numbers) -> str:
    """Say what the networks of one control reach."""
    method, rest = _parts(results, contrast.group)
    count = _NUMBERS[contrast.seeds] if contrast.seeds < len(_NUMBERS) else f"{contrast.seeds:,}"
    networks = _NETWORKS[method][0].format(s="" if contrast.seeds == 1 else "s")
    end = ""
    if contrast.is_base:
        end = ", as they leave this representation as it is" if contrast.seeds > 1 else ", as it leaves this as it is"
    elif contrast.p_holm >= _LEVEL:
        end = ", not told apart from the base"
    elif contrast.difference < 0:
        end = ", better than the base"
    reached = number.spread(contrast.mean, contrast.sd)
    if contrast.sd is None:
        reached += f" {number.interval(contrast.low, contrast.high)}"
    where = " at representation 0" if _is_first(results, contrast) else ""
    return f"{count} {networks}{rest} {reached}{where}{end}"


def _is_first(results: Results, contrast: Contrast) -> bool:
    """Whether all seeds of a control are at their best where no block came before."""
    return results.layers != (0,) and {score.layer for score in results.seeds_of(contrast.group)} == {0}


def _parts(results: Results, group: str) -> tuple[str, str]:
    """Return the method of a control, and what else its name says."""
    method = results.seeds_of(group)[0].method or group
    rest = group.removeprefix(method).strip("-")
    return method, f" ({rest})" if rest else ""


def _strongest(results: Results) -> Score | None:
    """Return the best of the baselines that learn something of the sequences."""
    nothing = {"guess", "shuffled labels"} | ({_EMBEDDING} if results.base.layer == 0 else set())
    found = [score for score in results.baselines if score.network not in nothing]
    return max(found, key=lambda score: score.value, default=None)


def _left(results: Results, contrast: Contrast) -> str:
    method, rest = _parts(results, contrast.group)
    if _is_first(results, contrast):  # how much of it was perturbed depends on the network
        return "at representation 0"
    # what keeps layers, or draws by trained statistics, is not without training
    scoped = any(score.scope for score in results.seeds_of(contrast.group))
    where = "without training" if method == "reinit" and not scoped else _NETWORKS[method][1]
    return f"{where}{rest}"


def summary_table(results: Results) -> list[dict[str, str]]:
    """Return a row for each network at its best layer, as the terminal shows it."""
    number, metric = Numbers(results), METRICS[results.metric].title

    def row(name: str, score: str, interval: str = "", layers: Sequence[int | None] = ()) -> dict[str, str]:
        known = sorted({layer for layer in layers if layer is not None})
        which = f"{known[0]}" if len(known) == 1 else f"{known[0]}-{known[-1]}" if known else ""
        which = "by fold" if None in layers else which
        cells = {"network": name, "layer": which, metric: score, "95%": interval}
        return {**cells, "base less it": "", "p (Holm)": "", "share": ""}

    base = results.base
    rows = [row("base", number(base.value), number.interval(base.low, base.high), [base.layer])]
    for group in results.groups:
        if (found := results.contrast(group)) is None:
            continue
        layers = [score.layer for score in results.seeds_of(group)]
        cells = row(group, number.spread(found.mean, found.sd), number.interval(found.low, found.high), layers)
        difference = f"{number(found.difference)} {number.interval(found.difference_low, found.difference_high)}"
        rows.append({**cells, "base less it": difference, "p (Holm)": f"{found.p_holm:.2g}", "share": percent(found)})
    for each in unprobed(results):
        if each.metric == results.metric:
            rows.append(row(each.name, number.spread(each.mean, each.sd), number.ends(each.low, each.high)))
    plain = results.baselines
    return [*rows, *(row(each.network, number(each.value), number.interval(each.low, each.high)) for each in plain)]


def methods(results: Results) -> str:
    """Return a paragraph to cite, in Markdown: what was done with which data, weights and versions."""
    facts: dict[str, Any] = {**results.about, "results": results, "task": results.task}
    facts["metrics"] = [METRICS[name].title for name in dict.fromkeys(score.metric for score in results.scores)]
    facts["title"], facts["words"] = METRICS[results.metric].title, last_line(results)
    facts["unprobed"] = [(each, METRICS[each.metric].title) for each in unprobed(results)]
    facts["number"] = Numbers(results)
    return templates().get_template("study_methods.md").render(facts) + "\n"
