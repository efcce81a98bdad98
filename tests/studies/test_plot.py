"""Pictures of a study: what matters is in them, where it belongs, and no text lies on another."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import combinations
from xml.etree import ElementTree

import pytest
from support.study_results import BINARY, CLASSES, SIX, results, with_zero_shot

from hf_perturb.storage import pictures
from hf_perturb.studies import plot as plots
from hf_perturb.studies.metrics import METRICS
from hf_perturb.studies.plot import draw

matplotlib = pytest.importorskip("matplotlib")
from matplotlib.text import Text  # noqa: E402

LONG = ("reinit-transformers-layers3-7-attention-also-embeddings-head", "resample-all-top4", "gaussian-published")
SAME = {"length": 0.35, "composition": 0.35, "one-hot": 0.35, "representation 0": 0.351, "shuffled labels": 0.0}
MINUS = "\N{MINUS SIGN}"
LOW = {"length": -0.3, "composition": -0.2, "one-hot": -0.201}


CASCADE = tuple(f"resample-all-top{depth}" for depth in range(1, 17))


def named_at_length(made):
    made.about["data"] |= {"name": "variants_of_the_protein_" * 3, "target": "measured_fitness_" * 4}
    return made


def sparse():
    made, at = results(4, ("reinit", "resample"), 2, by_fold=True), {None: None, 0: 0, 1: 30, 2: 31, 3: 32}
    moved = {
        name: tuple(replace(each, layer=at[each.layer]) for each in getattr(made, name))
        for name in ("scores", "contrasts")
    }
    return replace(made, **moved)


CASES = {
    "layers far apart": sparse,
    "one": lambda: results(1),
    "one, long": lambda: results(1, LONG, 1),
    "17": lambda: results(17),
    "33, six controls": lambda: results(33, SIX),
    "nine controls": lambda: results(49, (*SIX, "gaussian-top2", "gaussian-top3", "reinit-top2"), 2),
    "long": lambda: results(17, LONG, 1),
    "folds": lambda: results(17, ("reinit", "resample"), by_fold=True),
    "folds, one": lambda: results(1, by_fold=True),
    "residues": lambda: results(17, task=CLASSES, metric="mcc"),
    "binary": lambda: results(17, task=BINARY, metric="auroc", base=0.93, guess=0.5, control=0.8),
    "negative": lambda: results(5, base=0.02, control=-0.1, simple=LOW),
    "coinciding": lambda: results(17, simple=SAME),
    "no controls": lambda: results(17, (), simple={}),
    "far too low": lambda: results(17, metric="r2", control=-4.0, simple={"one-hot": -7.3, "length": 0.1}),
    "all the same": lambda: results(3, (), base=0.3, guess=0.3, simple={}),
    "unprobed": lambda: with_zero_shot(results(17), base=0.61),
    "unprobed, six controls": lambda: with_zero_shot(results(17, SIX, 2)),
    "unprobed, long": lambda: with_zero_shot(results(17, LONG, 1)),
    "unprobed, one": lambda: with_zero_shot(results(1, LONG, 2)),
    "cascade": lambda: named_at_length(results(9, CASCADE, 3)),
    "cascade, folds": lambda: results(9, CASCADE, 3, by_fold=True),
    "cascade, one": lambda: named_at_length(with_zero_shot(results(1, CASCADE, 3))),
    "cascade, long": lambda: results(5, tuple(f"{LONG[0]}-and-{name}" for name in "abcdefgh"), 2),
}


@pytest.fixture(params=CASES, scope="module")
def case(request):
    """A figure that is laid out, with the results that it shows."""
    made = CASES[request.param]()
    with matplotlib.rc_context(pictures.STYLE):
        figure = plots._figure(made)
        figure.draw_without_rendering()
        yield made, figure


def texts_of(figure):
    axes = figure.axes[0]
    # ticks beyond the ends of an axis are not drawn
    beyond = {
        label
        for axis, (low, high) in ((axes.xaxis, sorted(axes.get_xlim())), (axes.yaxis, sorted(axes.get_ylim())))
        for tick, label in zip(axis.get_majorticklocs(), axis.get_ticklabels(), strict=True)
        if not low <= tick <= high
    }
    found = {text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()} - beyond
    # of an annotation the text alone, without the line that leads to it
    return {text: Text.get_window_extent(text) for text in found}


def said_in(folder, made, monkeypatch):
    monkeypatch.setitem(pictures.STYLE, "svg.fonttype", "none")
    draw(made, folder)
    root = ElementTree.parse(folder / "layers.svg").getroot()
    return [" ".join("".join(text.itertext()).split()) for text in root.iter("{http://www.w3.org/2000/svg}text")]


def test_no_text_lies_on_another_or_outside(case):
    _, figure = case
    texts = texts_of(figure)
    for one, other in combinations(texts, 2):
        apart = texts[one].padded(-0.5)
        assert not apart.overlaps(texts[other]), (one.get_text(), other.get_text())
    edge = figure.bbox.padded(1)
    for text, box in texts.items():
        assert edge.containsx(box.x0), text.get_text()
        assert edge.containsx(box.x1), text.get_text()
        assert edge.containsy(box.y0), text.get_text()
        assert edge.containsy(box.y1), text.get_text()


def test_axes_keep_most_of_the_picture(case):
    _, figure = case
    axes, whole = figure.axes[0].get_window_extent(), figure.bbox
    assert axes.width > 0.35 * whole.width
    assert axes.height > min(0.55 * whole.height, 2.1 * figure.dpi)


def test_networks_differ_by_marker_dash_or_both(case):
    made, _ = case
    styles = plots._styles(made)
    assert len({(style["marker"], style["ls"]) for style in styles.values()}) == len(styles)
    assert list(styles) == ["base", *made.groups]


def test_curves_are_the_scores_with_what_was_chosen_marked():
    made = results(17, ("reinit", "resample"), 3)
    with matplotlib.rc_context(pictures.STYLE):
        axes = plots._figure(made).axes[0]
    styles = plots._styles(made)
    for name, chosen in (("base", 12), ("reinit", 1), ("resample", 1)):
        lines = [line for line in axes.lines if line.get_marker() == styles[name]["marker"]]
        curve, mark = lines
        expected = [score.value for score in made.of("base") if score.layer is not None]
        if name != "base":
            expected = [made.contrast(name, layer).mean for layer in made.layers]
        assert list(curve.get_xdata()) == list(range(17))
        assert list(curve.get_ydata()) == expected
        assert curve.get_markerfacecolor() == "white"
        assert (list(mark.get_xdata()), list(mark.get_ydata())) == ([chosen], [expected[chosen]])
        assert mark.get_markerfacecolor() == styles[name]["color"]
    bands = [band.get_datalim(axes.transData) for band in axes.collections]
    for band, each in zip(bands, (made.of("base"), made.contrasts[:17], made.contrasts[18:35]), strict=True):
        assert (band.y0, band.y1) == (min(one.low for one in each), max(one.high for one in each))
    dashed = [line.get_ydata()[0] for line in axes.lines if line.get_marker() == "None"]
    assert sorted(dashed) == sorted(score.value for score in made.baselines)


def axes_of(made):
    with matplotlib.rc_context(pictures.STYLE):
        return plots._figure(made).axes[0]


def agreed(made, group):
    """Results in which the folds of one network all chose the second layer."""
    mine = [each for each in made.scores if each.group == group]
    moved = {each: replace(each, chosen=each.layer == 1) for each in mine if each.layer is not None}
    return replace(
        made, scores=tuple(moved.get(each, each) for each in made.scores if each in moved or each not in mine)
    )


@pytest.mark.parametrize("group", [None, "base", "reinit"])
def test_what_folds_chose_is_right_of_the_layers_around_its_tick(group):
    made = results(17, ("reinit", "resample"), 3, by_fold=True)
    made = made if group is None else agreed(made, group)
    axes = axes_of(made)
    marks = [line for line in axes.lines if len(line.get_xdata()) == 1 and line.get_xdata()[0] > 16]
    means = [made.contrast(name).mean for name in made.groups]
    assert [mark.get_ydata()[0] for mark in marks] == pytest.approx([made.base.value, *means])
    places = [mark.get_xdata()[0] for mark in marks]
    assert max(places) < axes.get_xlim()[1]
    assert axes.get_xticklabels()[-1].get_text() == "best,\nby fold"
    assert axes.get_xticks()[-1] == pytest.approx((places[0] + places[-1]) / 2)
    # where they all agree, the layer is marked too
    filled = [line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 1 and line.get_xdata()[0] <= 16]
    assert filled == ([] if group is None else [1])


@pytest.mark.parametrize("controls", [6, 7])
def test_more_than_six_controls_are_lines_without_bands(controls):
    made = results(5, CASCADE[:controls], 2, by_fold=True)
    axes = axes_of(made)
    curves = [line for line in axes.lines if len(line.get_xdata()) == 5]
    assert len(curves) == 1 + controls
    assert len(axes.collections) == (1 + controls if controls == 6 else 1)
    legend = [text.get_text() for text in axes.figure.legends[0].get_texts()]
    assert legend[-1] == ("95% interval" if controls == 6 else "95% interval of the base")
    bars = [line.get_ydata() for line in axes.lines if len(line.get_xdata()) == 2 and line.get_xdata()[0] > 4]
    assert sum(low < high for low, high in bars) == (1 + controls if controls == 6 else 1)


@pytest.mark.parametrize(
    ("metric", "base", "ends"),
    [
        ("spearman", 0.99, (-1, 1)),
        ("auroc", 0.99, (0, 1)),
        ("ndcg", 0.99, (0, 1)),
        ("mcc", 0.99, (-1, 1)),
        ("r2", 0.99, (None, 1)),
    ],
)
@pytest.mark.parametrize("layers", [1, 5])
def test_an_axis_ends_where_the_metric_does(metric, base, ends, layers):
    made = results(layers, metric=metric, base=base, control=0.01, simple={})
    wide = tuple(replace(each, low=each.mean - 2, high=each.mean + 2) for each in made.contrasts)
    axes = axes_of(replace(made, contrasts=wide))
    low, high = axes.get_xlim() if layers == 1 else axes.get_ylim()
    assert high == ends[1]
    assert low == ends[0] if ends[0] is not None else low < 0
    if layers > 1:
        assert axes.get_ylabel() == METRICS[metric].title if metric != "r2" else "below" in axes.get_ylabel()


def test_a_score_at_the_end_of_an_axis_is_not_below_it():
    axes = axes_of(results(5, base=0.9, simple={"length": -1 - 1e-15}))
    assert axes.get_ylim()[0] == -1
    assert f"{MINUS}1.00  length" in [text.get_text() for text in axes.texts]


def test_masked_marginals_are_shown_with_whose_they_are():
    made = with_zero_shot(results(5, ("reinit", "resample"), 2), base=0.45, reinit=0.02, resample=0.2)
    axes = axes_of(made)
    named = [text.get_text() for text in axes.texts]
    for text in ("0.45  base, masked marginals", "0.03  reinit, masked marginals", "0.21  resample, masked marginals"):
        assert text in named
    marks = [line for line in axes.lines if list(line.get_xdata()) == [1] and not line.get_clip_on()]
    styles = plots._styles(made)
    found = [line for line in marks if line.get_transform() == axes.get_yaxis_transform()]
    assert [line.get_marker() for line in found] == [styles[name]["marker"] for name in ("base", "reinit", "resample")]
    many = axes_of(with_zero_shot(results(5, CASCADE, 1), base=0.45))
    assert [text.get_text() for text in many.texts if "masked" in text.get_text()] == ["0.45  base, masked marginals"]


def test_names_that_differ_in_the_middle_are_told_apart():
    names = tuple(f"reinit-transformers-layers3-{depth}-attention-also-embeddings" for depth in (4, 5))
    legend = axes_of(results(5, names, 2)).figure.legends[0]
    assert [text.get_text() for text in legend.get_texts()][1:3] == [f"{name} (2 seeds)" for name in names]


def test_labels_of_baselines_are_beside_their_lines():
    with matplotlib.rc_context(pictures.STYLE):
        figure = plots._figure(CASES["17"]())
        figure.draw_without_rendering()
    axes = figure.axes[0]
    for text, box in texts_of(figure).items():
        if text in axes.texts:
            at = axes.transData.transform((0, float(text.get_text().split()[0])))[1]
            assert abs((box.y0 + box.y1) / 2 - at) < 1.5 * box.height
            assert box.x0 > axes.get_window_extent().x1


def test_labels_move_as_little_as_need_be():
    assert plots._apart([0, 50, 90], 10, 100) == [0, 50, 90]
    assert plots._apart([50, 50, 50], 10, 100) == pytest.approx([40, 50, 60])
    assert plots._apart([0, 0, 98, 99], 10, 100) == pytest.approx([0, 10, 90, 100])
    assert plots._apart([], 10, 100) == []


def test_a_r2_that_no_axis_can_show_is_said():
    with matplotlib.rc_context(pictures.STYLE):
        axes = plots._figure(CASES["far too low"]()).axes[0]
    assert axes.get_ylim()[0] > -1
    assert re.fullmatch(rf"R² \(below {MINUS}0\.\d\d: not shown\)", axes.get_ylabel())
    assert f"{MINUS}7.30  one-hot ↓" in [text.get_text() for text in axes.texts]


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_the_same_results_give_the_same_bytes_and_replace_what_was_there(tmp_path, suffix):
    written = []
    for _ in range(2):
        draw(results(3), tmp_path)
        written.append((tmp_path / f"layers.{suffix}").read_bytes())
    assert written[0] == written[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["layers.png", "layers.svg"]


def test_a_picture_says_what_it_shows(tmp_path, monkeypatch):
    made = results(17, ("reinit", "resample-all-top4"), 3)
    made.about["data"]["name"] = "two $of$ them.csv"
    said = said_in(tmp_path, made, monkeypatch)
    for text in (
        *("two $of$ them.csv, target: Spearman on 1,745 test proteins", "base", "reinit (3 seeds)", "95% interval"),
        *(
            "resample-all-top4 (3 seeds)",
            "best on validation",
            "0.35 composition",
            "0.00 guess",
            "0.36 representation 0",
        ),
        *("Spearman", "representation (0: the embedding)", "16"),
    ):
        assert text in said, text


def test_a_picture_of_one_layer_has_a_row_for_each_network(tmp_path, monkeypatch):
    made = results(1, ("reinit", "resample-all-top4"), 1, task=CLASSES, metric="mcc", simple={"length": -0.3})
    said = said_in(tmp_path, made, monkeypatch)
    for text in (
        *("two_vs_rest.csv, target: MCC on 1,745 test residues, layer 0", "base", "0.61 [0.57, 0.65]"),
        *("reinit (seed 0)", "0.38 [0.33, 0.43]", "length", "-0.30 [-0.34, -0.26]".replace("-", MINUS), "guess"),
    ):
        assert text in said, text
