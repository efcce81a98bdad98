"""A study in words: one line for the terminal, a table, and a paragraph to cite."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from hf_perturb.cards.templates import templates
from hf_perturb.studies.metrics import METRICS
from hf_perturb.studies.results import Contrast, Results, Score

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
# of a method: what its networks are called, and where what the probe finds in them is
_NETWORKS = {
    "reinit": ("re-initialised network{s}", "with weights drawn anew"),
    "resample": ("network{s} with shuffled weights", "with shuffled weights"),
    "gaussian": ("network{s} with weights from normal distributions", "with weights from normal distributions"),
}
_EMBEDDING = "representation 0"  # as a baseline
_FINE = 0.02  # how wide an interval is of which two decimals would leave nothing


def is_as_good(contrast: Contrast) -> bool:
    """Whether a base cannot be told from a control, or is worse."""
    return contrast.difference_low <= 0


def last_line(results: Results) -> str:
    """Return what was found, in a sentence that says no more than its numbers do."""
    number, base, baseline = Numbers(results), results.base, _strongest(results)
    first = (
        f"{_where(base)} {METRICS[results.metric].title} {number(base.value)} {number.interval(base.low, base.high)}"
    )
    best = [found for group in results.groups if (found := results.contrast(group)) is not None]
    shares = [found for found in best if found.share is not None]
    if base.low <= results.guess or (best and not shares):
        against = "worse than" if base.high < results.guess else "not told apart from"
        first += f", {against} guessing ({number(results.guess)})"
        first += "" if shares or not best else ", so that no share is given"
    parts = [_control(results, found, number) for found in best]
    if len(best) > 1 and shares:  # each with its own
        of = dict.fromkeys((found.group for found in shares), "of it")
        of[shares[0].group] = "of what the probe finds beyond guessing"
        ends = [f", {percent(found)} {of[found.group]}" if found.group in of else "" for found in best]
        parts = [f"{part}{end}" for part, end in zip(parts, ends, strict=True)]
    if baseline is not None:
        name = "the embedding" if baseline.network == _EMBEDDING else baseline.network
        less = "" if baseline.value < base.value else ", no less than the base"
        parts.append(f"{name} alone {number(baseline.value)}{less}")
    said = "; ".join([first, *parts])
    if len(best) == 1 and shares:
        said += f": {percent(best[0])} of what the probe finds beyond guessing is there {_left(results, best[0])}"
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

    def spread(self, mean: float, sd: float | None) -> str:
        """Write a mean over seeds, with how they differ if there are several."""
        return self(mean) if sd is None else f"{self(mean)} ± {self(sd)}"


def percent(contrast: Contrast) -> str:
    """Write the share that is there without what was learned, with its interval."""
    if contrast.share is None or contrast.share_low is None or contrast.share_high is None:
        return ""
    share, low, high = (round(100 * each) for each in (contrast.share, contrast.share_low, contrast.share_high))
    return f"{share}% [{low}, {high}]"


def _where(base: Score) -> str:
    if base.layer is None:
        return "The layers chosen fold by fold reach"
    return f"Layer {base.layer}{' (the embedding)' if base.layer == 0 else ''} reaches"


def _control(results: Results, contrast: Contrast, number: Numbers) -> str:
    """Say what the networks of one control reach."""
    method, rest = _parts(results, contrast.group)
    count = _NUMBERS[contrast.seeds] if contrast.seeds < len(_NUMBERS) else f"{contrast.seeds:,}"
    networks = _NETWORKS[method][0].format(s="" if contrast.seeds == 1 else "s")
    end = ""
    if is_as_good(contrast):
        end = ", better than the base" if contrast.difference_high < 0 else ", not told apart from the base"
    reached = number.spread(contrast.mean, contrast.sd)
    if contrast.sd is None:
        reached += f" {number.interval(contrast.low, contrast.high)}"
    where = " at the embedding" if _is_embedding(results, contrast) else ""
    return f"{count} {networks}{rest} {reached}{where}{end}"


def _is_embedding(results: Results, contrast: Contrast) -> bool:
    """Whether all seeds of a control are at their best where little or nothing of them was perturbed."""
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
    if _is_embedding(results, contrast):
        return "in the embedding"
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
    unprobed: dict[str, list[Score]] = {}
    for score in results.zero_shot:
        unprobed.setdefault(f"{score.group}, {score.probe}", []).append(score)
    for name, scores in unprobed.items():
        values = [score.value for score in scores]
        spread = number.spread(fmean(values), stdev(values) if values[1:] else None)
        rows.append(row(name, spread, "" if values[1:] else number.interval(scores[0].low, scores[0].high)))
    plain = results.baselines
    return [*rows, *(row(each.network, number(each.value), number.interval(each.low, each.high)) for each in plain)]


def methods(results: Results) -> str:
    """Return a paragraph to cite, in Markdown: what was done with which data, weights and versions."""
    facts: dict[str, Any] = {**results.about, "results": results, "task": results.task}
    facts["metrics"] = [METRICS[name].title for name in dict.fromkeys(score.metric for score in results.scores)]
    facts["title"], facts["words"] = METRICS[results.metric].title, last_line(results)
    return templates().get_template("study_methods.md").render(facts) + "\n"
