"""Pictures of comparisons: real files, written whole, in which what matters can be seen."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from xml.etree import ElementTree

import pytest
from safetensors.torch import load_file, save_file
from support.models import small_model

import hf_perturb
from hf_perturb.compare import plot as plots
from hf_perturb.compare.compare import Side, compare_checkpoints
from hf_perturb.compare.plot import plot_comparison
from hf_perturb.perturbation import Perturbation
from hf_perturb.storage import pictures
from hf_perturb.storage.pictures import check_picture
from hf_perturb.variants.create import create_variant

needs_matplotlib = pytest.mark.skipif(find_spec("matplotlib") is None, reason="matplotlib is an extra")
SUFFIXES = (".png", ".pdf", ".svg")


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    folder = tmp_path_factory.mktemp("variants")
    create_variant("demo", folder / "my-control", {"method": "reinit", "include": ["model.embedder.layers.1?.*"]})
    return compare_checkpoints("demo", folder / "my-control")


def edited(folder, network, edit, **config):
    """Compare a small network with itself after an edit of its tensors."""
    for name in ("a", "b"):
        small_model(network, **config).save_pretrained(folder / name)
    tensors = load_file(folder / "b" / "model.safetensors")
    for name, tensor in tensors.items():
        edit(name, tensor)
    save_file(tensors, folder / "b" / "model.safetensors", {"format": "pt"})
    return compare_checkpoints(folder / "a", folder / "b")


def series(comparison):
    """Return the heights of every line of the left panel by label and place."""
    left, right = plots._figure(comparison).axes
    found = {}
    for kind, style in plots._KINDS.items():
        lines = [line for line in left.lines if line.get_marker() == style["marker"]]
        found[kind] = {x: y for line in lines for x, y in zip(*line.get_data(), strict=True)}
    return left, right, found


@needs_matplotlib
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_picture_is_a_picture_and_the_same_every_time(comparison, tmp_path, suffix):
    one, other = tmp_path / f"one{suffix}", tmp_path / f"OTHER{suffix.upper()}"
    plot_comparison(comparison, one)
    plot_comparison(comparison, str(other))
    data = one.read_bytes()
    assert data == other.read_bytes()
    if suffix == ".png":
        assert data.startswith(b"\x89PNG")
        width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
        assert (width, height) == (1400, 640 + int(plots._LINE / 72 * 200)), "7 x 3.2 inches at 200 dots, and a line"
    elif suffix == ".pdf":
        assert data.startswith(b"%PDF")
        assert data.rstrip().endswith(b"%%EOF")
    else:
        assert ElementTree.fromstring(data).tag.endswith("svg")
    assert sorted(os.listdir(tmp_path)) == sorted([one.name, other.name])


@needs_matplotlib
def test_a_picture_says_what_it_shows(comparison, tmp_path, monkeypatch):
    monkeypatch.setitem(pictures.STYLE, "svg.fonttype", "none")
    plot_comparison(comparison, tmp_path / "out.svg")
    text = (tmp_path / "out.svg").read_text(encoding="utf-8")
    for said in (
        "A: demo<",
        "B: my-control, reinit (seed 42, include<",
        "model.embedder.layers.1?.*)<",
        "weights<",
        "biases<",
        "layer norms<",
        "layer<",
        "in<",
    ):
        assert f">{said}" in text, said
    # exponents, and the sign of a root, are the only smaller letters
    assert {float(size) for size in re.findall(r"font-size: ([\d.]+)px", text) if float(size) > 5.6} == {8.0, 9.6}


@needs_matplotlib
def test_what_did_not_change_is_at_zero_and_within_the_axes(comparison):
    left, _, found = series(comparison)
    assert left.get_ylim()[0] <= 0
    changed = set(range(10, 16))
    for kind, heights in found.items():
        assert {x for x, y in heights.items() if y > 0} == changed, kind
        assert {x for x, y in heights.items() if y == 0} >= set(range(10)), kind
    assert all(not line.get_clip_on() for line in left.lines if line.get_marker() != "None")
    weight = found["weight"][12]
    parts = [row.statistics for row in comparison.tensors if row.layer == 12 and row.kind == "weight"]
    squares, spreads = sum(part.squares for part in parts), sum(part.a.deviations for part in parts)
    assert weight == pytest.approx(math.sqrt(squares / spreads))


@needs_matplotlib
@pytest.mark.parametrize("network", ["esm1", "esm1b", "esm2", "carp"])
def test_what_comes_before_the_layers_is_left_of_them(tmp_path, network):
    def edit(name, tensor):
        if "embed_tokens" in name or "embed_positions.weight" in name or "embedder.embedder" in name:
            tensor.mul_(2)

    _, _, found = series(edited(tmp_path, network, edit))
    places = sorted(found["weight"])
    assert found["weight"][places[0]] > 0
    assert {found["weight"][place] for place in places[1:-1]} == {0}
    # the head of ESM-1b and ESM-2 is the embedding, which counts as that
    assert found["weight"][places[-1]] == 0


@needs_matplotlib
def test_histograms_are_those_of_the_comparison(comparison):
    _, right, _ = series(comparison)
    a, b = (patch.get_data() for patch in right.patches)
    for drawn, counts in ((a, comparison.histogram.a), (b, comparison.histogram.b)):
        assert tuple(drawn.values) == counts
        assert tuple(drawn.edges) == comparison.histogram.edges
    assert right.get_yscale() == "log"
    assert (right.patches[0].get_fill(), right.patches[1].get_fill()) == (True, False)


@needs_matplotlib
def test_ticks_of_tiny_weights_say_all_of_it(tmp_path):
    edited(tmp_path, "esm2", lambda name, tensor: tensor.mul_(1e-6))
    tiny = compare_checkpoints(tmp_path / "b", tmp_path / "b")
    figure = plots._figure(tiny)
    figure.draw_without_rendering()
    axis = figure.axes[1].xaxis
    assert axis.get_offset_text().get_text() == ""
    labels = [float(label.get_text().replace("\N{MINUS SIGN}", "-")) for label in axis.get_ticklabels()]
    assert 0 < max(labels) < 1e-4
    assert len({*labels}) == len(labels) > 2


@needs_matplotlib
def test_small_and_large_distances_share_an_axis(tmp_path):
    def edit(name, tensor):
        tensor.mul_(1 + 1e-6 if name.startswith("layers.0") else 1 if name.startswith("layers.1") else 1000)

    left, _, found = series(edited(tmp_path, "esm2", edit))
    assert left.get_yscale() == "symlog"
    transform, (bottom, top) = left.transData.transform, left.get_ylim()
    zero, small, large = (transform((0, found["weight"][layer]))[1] for layer in (1, 0, 2))
    low, high = (transform((0, y))[1] for y in (bottom, top))
    assert low <= zero < small - 5 < large - 50 < high


@needs_matplotlib
@pytest.mark.parametrize(("network", "layers"), [("esm1", 1), ("esm1b", 2), ("esm2", 33), ("carp", 56)])
def test_any_number_of_layers(tmp_path, network, layers):
    comparison = edited(tmp_path, network, lambda name, tensor: tensor.mul_(2), num_hidden_layers=layers)
    left, _, found = series(comparison)
    assert {*range(layers)} < set(found["weight"])
    ticks = [label.get_text() for label in left.get_xticklabels()]
    assert (ticks[0], ticks[1], ticks[-1]) == ("in", "0", "out")
    assert min(3, layers + 2) <= len(ticks) <= 10
    assert list(left.get_xticks()) == sorted(left.get_xticks())
    plot_comparison(comparison, tmp_path / "out.png")


@needs_matplotlib
@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, 3e38])
@pytest.mark.parametrize("turned", [False, True])
def test_weights_that_no_axis_can_show(tmp_path, value, turned):
    def edit(name, tensor):
        tensor.fill_(value)

    edited(tmp_path, "esm2", edit)
    sides = ("b", "a") if turned else ("a", "b")
    comparison = compare_checkpoints(*(tmp_path / side for side in sides))
    plot_comparison(comparison, tmp_path / "out.png")
    _, _, found = series(comparison)
    if turned and value == 0:
        assert all(math.isnan(y) for y in found["weight"].values()), "no distance relative to zero"


@needs_matplotlib
def test_any_name_of_a_folder(tmp_path):
    name = "_$x_{ $ " + "模" + "very_long_" * 8 + "the_end"
    small_model("esm2").save_pretrained(tmp_path / name)
    comparison = compare_checkpoints(tmp_path / name, tmp_path / name)
    for suffix in SUFFIXES:
        plot_comparison(comparison, tmp_path / f"out{suffix}")
    with pytest.warns(UserWarning, match="Glyph"):  # which the file is written without
        label = plots._figure(comparison).axes[1].get_legend().get_texts()[0].get_text()
    assert label.split()[:4] == ["A:", "_$x_{", "$", "模very_long_v…ng_very_long_the_end"]


@needs_matplotlib
@pytest.mark.parametrize("name", ["my-control", "c_gaussian-also-embeddings-also-head", "W" * 200])
@pytest.mark.parametrize(
    "asked",
    [
        {"method": "reinit"},
        {"method": "gaussian", "also": ["embeddings", "head"]},
        {"method": "resample", "axis": "rows", "scope": ["top:4", "attention"], "include": ["layers.*" * 20] * 2},
    ],
)
def test_a_legend_says_what_tells_controls_apart_and_fits(comparison, name, asked):
    """The axes stay where they are under a short one, and nothing is outside of the picture."""
    named = replace(comparison, b=Side(name, None, Perturbation.parse(asked)))
    import matplotlib

    with matplotlib.rc_context(pictures.STYLE):
        figure, short = plots._figure(named), plots._figure(replace(comparison, b=comparison.a))
        for each in (figure, short):
            each.draw_without_rendering()
    legend = figure.axes[1].get_legend()
    said = " ".join(legend.get_texts()[1].get_text().split())
    parts = {"also": "also embeddings and head)", "axis": "(seed 42, axis rows, scope attention and top:4,"}
    assert all(parts.get(key, "(seed 42") in said for key in asked), said
    box = figure.bbox.padded(-1)
    for artist in (legend, *figure.axes, *(axes.title for axes in figure.axes)):
        assert box.containsx(artist.get_window_extent().x1), artist
        assert box.containsy(artist.get_window_extent().y1), artist
    for axes, other in zip(figure.axes, short.axes, strict=True):
        here, there = axes.get_window_extent(), other.get_window_extent()
        assert (here.width, here.height) == pytest.approx((there.width, there.height), rel=0.02)
    assert not legend.get_window_extent().overlaps(figure.axes[1].title.get_window_extent())
    assert not legend.get_window_extent().overlaps(figure.axes[0].get_legend().get_window_extent())


@needs_matplotlib
def test_a_style_of_ones_own_and_pyplot_are_left_alone(tmp_path):
    code = (
        "import sys, matplotlib; from hf_perturb.compare.compare import compare_checkpoints;"
        "from hf_perturb.compare.plot import plot_comparison;"
        "matplotlib.rcParams['text.usetex'] = True; matplotlib.rcParams['legend.fontsize'] = 3;"
        "before = matplotlib.rcParams.copy();"
        "plot_comparison(compare_checkpoints('demo', 'demo'), sys.argv[1]);"
        "after = matplotlib.rcParams.copy();"
        "assert 'matplotlib.pyplot' not in sys.modules;"
        "assert before == after;"
        "matplotlib.rcdefaults(); plot_comparison(compare_checkpoints('demo', 'demo'), sys.argv[2])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "one.png"), str(tmp_path / "other.png")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "other.png").read_bytes()


def test_only_a_picture_needs_matplotlib():
    code = "import sys, hf_perturb.compare.plot as p; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_matplotlib_the_error_says_what_to_install(comparison, tmp_path, monkeypatch):
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    for refuse in (lambda path: check_picture(path), lambda path: plot_comparison(comparison, path)):
        with pytest.raises(hf_perturb.CheckpointError, match=r"needs matplotlib: pip install 'hf-perturb\[plot\]'"):
            refuse(tmp_path / "out.png")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("out.jpg", r"ends in '\.jpg'; allowed: \.png, \.pdf, \.svg"),
        ("out", r"ends in ''; allowed: \.png"),
        ("no/out.png", r"there is no folder .*no; make it first"),
        ("taken.png", r"taken\.png is a folder"),
    ],
)
def test_a_picture_that_cannot_be_is_refused_at_once(comparison, tmp_path, name, message):
    (tmp_path / "taken.png").mkdir()
    for refuse in (lambda path: check_picture(path), lambda path: plot_comparison(comparison, path)):
        with pytest.raises(hf_perturb.CheckpointError, match=message):
            refuse(tmp_path / name)
    assert os.listdir(tmp_path) == ["taken.png"]


@needs_matplotlib
def test_a_failure_keeps_the_old_picture_and_leaves_nothing(comparison, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    (tmp_path / "out.png").write_bytes(b"old")

    def half(self, file, **options):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(hf_perturb.CheckpointError, match=r"out\.png: nothing was written, because .*No space left"):
        plot_comparison(comparison, tmp_path / "out.png")
    assert os.listdir(tmp_path) == ["out.png"]
    assert (tmp_path / "out.png").read_bytes() == b"old"
    monkeypatch.undo()
    plot_comparison(comparison, tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
