"""A study in words: the numbers of the run, in sentences that say no more than they do."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from support.study_results import BINARY, CLASSES, SIX, contrast, results, score, with_zero_shot

from hf_perturb.cli.output import print_table
from hf_perturb.studies.words import last_line, methods, summary_table

ALONE = {"composition": 0.35, "length": 0.11, "shuffled labels": 0.5}


def test_the_last_line_is_that_of_the_run():
    assert last_line(results(33, simple=ALONE)) == (
        "Layer 24 reaches Spearman 0.61 [0.57, 0.65]; five re-initialised networks 0.38 ± 0.02; composition alone 0.35:"
        " 62% [54, 70] of what the probe finds beyond guessing is there without training."
    )


@pytest.mark.parametrize(
    ("group", "seeds", "networks", "there"),
    [
        ("reinit", 1, "one re-initialised network 0.38 [0.33, 0.43]", "without training"),
        ("reinit", 13, "13 re-initialised networks 0.38 ± 0.02", "without training"),
        ("reinit-top4", 3, "three re-initialised networks (top4) 0.38 ± 0.02", "with weights drawn anew (top4)"),
        ("resample", 1, "one network with shuffled weights 0.38 [0.33, 0.43]", "with shuffled weights"),
        ("resample-all", 2, "two networks with shuffled weights (all) 0.38 ± 0.02", "with shuffled weights (all)"),
        ("gaussian", 2, "two networks with weights from normal distributions 0.38", "with weights from normal dist"),
    ],
)
def test_a_control_is_called_what_it_is(group, seeds, networks, there):
    said = last_line(results(5, (group,), seeds, simple={}))
    assert f"; {networks}" in said
    assert f"62% [54, 70] of what the probe finds beyond guessing is there {there}" in said
    # what keeps trained weights, or their statistics, is not without training
    assert ("without training" in said) == (group == "reinit")


def test_each_of_several_controls_has_its_own_share():
    said = last_line(results(5, ("reinit", "resample-all-top4"), 3, simple=ALONE))
    assert said.endswith(
        "three re-initialised networks 0.38 ± 0.02, 62% [54, 70] of what the probe finds beyond guessing; three"
        " networks with shuffled weights (all-top4) 0.34 ± 0.02, 56% [48, 64] of it; composition alone 0.35."
    )


def test_without_a_share_it_says_why():
    said = last_line(results(5, SIX, base=0.02, control=0.01))
    assert "Spearman 0.02 [-0.02, 0.06], not told apart from guessing (0.00), so that no share is given;" in said
    assert "%" not in said
    worse = last_line(results(5, base=-0.2, control=0.01))
    assert "Spearman -0.20 [-0.24, -0.16], worse than guessing (0.00), so that no share" in worse


def test_a_representation_that_a_control_leaves_as_it_is_is_no_finding():
    made = results(3, ("reinit-top1",), 2)
    kept = {"difference": 0.0, "difference_low": 0.0, "difference_high": 0.0, "p_holm": 1.0, "sd": 0.0}
    kept |= {"mean": 0.61, "share": None, "share_low": None, "share_high": None, "withheld": "it is as it is"}
    said = last_line(replace(made, contrasts=tuple(replace(each, **kept) for each in made.contrasts)))
    assert "0.61 ± 0.00, as they leave this representation as it is" in said
    assert "%" not in said
    assert "guessing" not in said


def test_a_share_that_one_control_lacks_is_left_out_of_its_part_alone():
    made = results(5, ("resample", "reinit"), 2)
    lacks = {"share": None, "share_low": None, "share_high": None, "withheld": "it is not known"}
    some = tuple(replace(each, **lacks) if each.group == "resample" else each for each in made.contrasts)
    said = last_line(replace(made, contrasts=some))
    assert "shuffled weights 0.38 ± 0.02; two re-initialised networks 0.34 ± 0.02, 56% [48, 64] of what the" in said


@pytest.mark.parametrize(
    ("control", "p", "end"),
    [
        (0.52, 0.05, ", not told apart from the base"),
        (0.4, 0.59, ", not told apart from the base"),
        (0.6, 0.049, ", better than the base"),
        (0.4, 0.049, ""),
    ],
)
def test_a_control_is_told_apart_from_the_base_by_its_corrected_p(control, p, end):
    made = results(5, base=0.5, control=control, simple={})
    said = last_line(replace(made, contrasts=tuple(replace(each, p_holm=p) for each in made.contrasts)))
    share = round(control / 0.5 * 100)
    assert f"{control:.2f} ± 0.02{end}: {share}% [{share - 8}, {share + 8}] of what" in said


@pytest.mark.parametrize(
    ("simple", "end"),
    [
        ({"length": 0.36, "composition": 0.35}, "; length alone 0.36:"),
        ({"representation 0": 0.36, "composition": 0.35}, "; representation 0 alone 0.36:"),
        ({"composition": 0.7}, "; composition alone 0.70, better than the base:"),
        ({"composition": 0.68}, "; composition alone 0.68, not told apart from the base by their intervals:"),
        ({"composition": 0.54}, "; composition alone 0.54, not told apart from the base by their intervals:"),
        ({"composition": 0.52}, "; composition alone 0.52:"),
        ({"shuffled labels": 0.5}, "networks 0.38 ± 0.02:"),
        ({}, "networks 0.38 ± 0.02:"),
    ],
)
def test_the_strongest_simple_baseline_is_named(simple, end):
    assert end in last_line(results(5, simple=simple))


def test_the_embedding_is_not_held_against_itself():
    said = last_line(results(1, simple={"representation 0": 0.61, "length": 0.1}))
    assert said.startswith("Layer 0 (the embedding) reaches")
    assert "; length alone 0.10:" in said


def test_a_control_that_is_best_where_nothing_came_before_is_said():
    made = results(5, simple=ALONE)
    chosen = tuple(replace(each, chosen=each.layer == (3 if each.kind == "base" else 0)) for each in made.scores)
    assert last_line(replace(made, scores=chosen)).endswith(
        "networks 0.38 ± 0.02 at representation 0; composition alone 0.35:"
        " 62% [54, 70] of what the probe finds beyond guessing is there at representation 0."
    )


def test_of_many_controls_it_names_the_extremes():
    many = tuple(f"resample-all-top{depth}" for depth in range(1, 8))
    said = last_line(results(5, many, 3, simple=ALONE))
    assert said == (
        "Layer 3 reaches Spearman 0.61 [0.57, 0.65]; of 7 controls the highest: three networks with shuffled weights"
        " (all-top1) 0.38 ± 0.02, 62% [54, 70] of what the probe finds beyond guessing; the lowest: three networks with"
        " shuffled weights (all-top7) 0.14 ± 0.02, 23% [15, 31] of it; composition alone 0.35."
    )
    assert "of 6 controls" not in last_line(results(5, many[:6], 3, simple=ALONE))
    assert "(all-top5) 0.22 ± 0.02, 36%" in last_line(results(5, many[:6], 3, simple=ALONE))


@pytest.mark.parametrize(
    ("low", "share", "high", "said"),
    [
        (0.22, 1.17, 28.27, "117% [22, >999]"),
        (-12.0, 0.5, 9.994, "50% [<-999, 999]"),
        (0.5, 9.996, 9.996, ">999% [50, >999]"),
    ],
)
def test_a_share_that_says_nothing_is_cut_in_words_and_table(low, share, high, said):
    made = results(5)
    wide = {"share": share, "share_low": low, "share_high": high}
    made = replace(made, contrasts=tuple(replace(each, **wide) for each in made.contrasts))
    assert f": {said} of what the probe finds" in last_line(made)
    assert summary_table(made)[1]["share"] == said


def test_of_folds_it_names_no_layer():
    assert last_line(results(5, by_fold=True)).startswith("The layers chosen fold by fold reach Spearman 0.61 [")


def test_of_a_narrow_interval_it_gives_another_decimal():
    made = results(5, task=BINARY, metric="auroc", base=0.987, control=0.9, guess=0.5, simple={})
    narrow = tuple(replace(each, low=each.value - 0.002, high=each.value + 0.002) for each in made.scores)
    assert "Layer 3 reaches AUROC 0.987 [0.985, 0.989]; five" in last_line(replace(made, scores=narrow))


def test_without_controls_it_is_of_the_base_alone():
    assert last_line(results(5, (), simple=ALONE)) == (
        "Layer 3 reaches Spearman 0.61 [0.57, 0.65]; composition alone 0.35."
    )


def test_nothing_is_minus_zero():
    assert "-0.00" not in last_line(results(5, base=0.5, control=-0.001))


# ---- the table


def test_the_table_has_a_row_for_each_network_and_baseline(capsys):
    rows = summary_table(results(17, ("reinit", "resample-all-top4"), 3))
    assert [row["network"] for row in rows[:4]] == ["base", "reinit", "resample-all-top4", "guess"]
    assert rows[1] == {
        "network": "reinit",
        "layer": "1",
        "Spearman": "0.38 ± 0.02",
        "95%": "[0.33, 0.43]",
        "base less it": "0.23 [0.19, 0.27]",
        "p (Holm)": "0.008",
        "share": "62% [54, 70]",
    }
    print_table(rows)
    assert len(capsys.readouterr().out.splitlines()) == 1 + 3 + 6


def test_the_table_names_the_layers_that_seeds_chose():
    made = results(5, seeds=2)
    other = [score("reinit-seed2", 0.3, 4, chosen=True), contrast("reinit", 0.3, base=0.6, guess=0, seeds=3)]
    rows = summary_table(replace(made, scores=(*made.scores, other[0]), contrasts=(other[1],)))
    assert rows[1]["layer"] == "1-4"
    assert summary_table(results(5, by_fold=True))[0]["layer"] == "by fold"


def test_the_table_says_what_scored_without_a_probe():
    made = with_zero_shot(results(3, ("reinit",), 2), base=0.45, reinit=0.02)
    rows = {row["network"]: row for row in summary_table(made)}
    found = rows["base, masked marginals"]
    assert (found["Spearman"], found["95%"], found["layer"]) == ("0.45", "[0.41, 0.49]", "")
    assert (rows["reinit, masked marginals"]["Spearman"], rows["base"]["Spearman"]) == ("0.03 ± 0.01", "0.61")


# ---- the paragraph


def test_methods_say_what_one_needs_to_do_it_again():
    made = replace(results(5, SIX, 3), warnings=("the test set is small",), notes=("3 rows were left out",))
    said = methods(made)
    for part in (
        *("`demo` (sha256:base)", "hf_perturb 0.1.0", "`two_vs_rest.csv` (sha256:abc)", "train", "1,899 proteins"),
        *("`reinit` (weights drawn anew, rules `documented`; seeds 0-2);", "scope `top:4`; seeds 0-2)."),
        *(
            "layer (0-4; 0 is the embedding), a ridge probe",
            "strength of its penalty (of 4, from 100000 to 0.1) and the layer were",
            "2,000 bootstrap",
            "Holm",
        ),
        *("- 3 rows were left out\n", "- the test set is small\n", "| `gaussian-seed2` | sha256:gaussian-seed2 |"),
        *(f"**Result.** {last_line(made)}", "scikit-learn 1.5.0.", "of 1,745 test proteins", "the validation rows"),
    ):
        assert part.lower() in said.lower(), part
    assert not re.search(r"\n{3}|  | \n| [,.;:]|None|\{", said)


def test_methods_of_residues_and_folds():
    made = results(5, ("reinit",), 1, task=CLASSES, metric="mcc", by_fold=True)
    made.about["split"] |= {"name": "kfold:5", "folds": 5, "inner": 5, "clusters": 120}
    said = methods(made)
    for part in (
        *("Each of 5 folds (`kfold:5`", "5 inner folds", "clusters of similar sequences", "test clusters"),
        *("17,450 residues", "MCC", "seed 0)"),
    ):
        assert part in said, part
    assert "validation rows" not in said


def test_methods_say_what_was_predicted_without_a_probe_whatever_the_metric():
    made = with_zero_shot(results(3, ("reinit", "resample"), 2), base=0.45, reinit=0.02)
    by_r2 = results(3, ("reinit", "resample"), 2, metric="r2")
    for each in (made, replace(by_r2, scores=(*by_r2.scores, *(one for one in made.scores if "masked" in one.probe)))):
        said = methods(each)
        assert "Masked marginals were scored on the same test rows with no probe" in said
        assert "Spearman: base 0.45 [0.41, 0.49], `reinit` 0.03 ± 0.01, `resample` 0.11 ± 0.01.\n" in said
        assert not re.search(r"\n{3}|  | \n| [,.;:]|None|\{", said)
    assert "Masked marginals" not in methods(results(3))


def test_methods_explain_what_is_there_alone():
    one, several = methods(results(1, seeds=1)), methods(results(5, seeds=2))
    assert "seed 0)." in one
    assert "±" not in one
    assert "penalty (of 4, from 100000 to 0.1) was chosen by" in one
    assert "± is the standard deviation over these." in several
    made = results(5)
    made.about["options"]["probe"] = "knn"
    said = methods(made)
    assert "a k-nearest-neighbours probe was fitted" in said
    assert "The number of neighbours (of 4, from" in said
    assert "penalty" not in said


def test_methods_without_controls():
    said = methods(results(5, ()))
    assert "none.\n" in said
    assert "Holm" not in said


def test_a_name_with_markdown_in_it_is_a_name():
    made = results(5)
    made.about["data"]["name"] = "a`b|c.csv"
    assert "a&#96;b&#124;c.csv" in methods(made)
