"""`hf-perturb score`: what it prints, and how it fails."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("pyarrow")

from pyarrow import parquet
from support.embedding import write_carp

from hf_perturb.cli import main

WILDTYPE = "MKTAYIAKQRQISFVKSHFSRQ"


@pytest.fixture
def base(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dms.csv").write_text("mutant,DMS_score\nK25A,1\nT26G,0\nK25A:T26G,2\n")
    return str(write_carp(tmp_path / "base"))


def test_score_says_how_a_base_and_its_controls_rank(base, capsys):
    assert main(["score", base, WILDTYPE]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "scores.parquet: 418 mutants, 1 network"
    words = ["score", base, WILDTYPE, "--mutants", "dms.csv", "--offset", "24", "--out", "out.parquet"]
    assert main([*words, "--method", "reinit", "--seed", "0-1"]) == 0
    header, *rows, last = capsys.readouterr().out.splitlines()
    assert header.split() == ["network", "spearman", "masked", "spearman", "wildtype", "digest"]
    assert [row.split()[0] for row in rows] == ["base", "reinit-seed0", "reinit-seed1"]
    assert last == "out.parquet: 3 mutants, 3 networks"
    assert parquet.read_table("out.parquet").num_rows == 9
    assert main([*words, "--force", "--json", "--marginal", "wildtype", "--measured", "DMS_score"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["mutants"], said["measured"], said["path"]) == (3, "DMS_score", "out.parquet")
    assert [*said["networks"][0]["spearman"]] == ["wildtype"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([WILDTYPE, "--mutants", "dms.csv"], 1, "with offset 24 all rows fit (--offset)"),
        (["no.fasta"], 1, "'no.fasta', which is no file and no sequence"),
        ([WILDTYPE, "--mutants", "none.csv"], 1, "none.csv does not exist"),
        ([WILDTYPE, "--seed", "1"], 2, "argument --seed: needs --method"),
        ([WILDTYPE, "--method", "reinit", "--seed", "x"], 2, "seeds: got 'x'"),
        ([WILDTYPE, "--out", "dms.csv", "--force"], 1, "dms.csv holds no scores"),
    ],
)
def test_what_is_wrong_is_one_line(base, capsys, words, code, said):
    if code == 2:
        with pytest.raises(SystemExit, match="2"):
            main(["score", base, *words])
    else:
        assert main(["score", base, *words]) == code
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
