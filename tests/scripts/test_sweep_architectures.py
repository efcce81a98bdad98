"""The table of docs/models.md: which architectures are complete, which are not, and why."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import CONFIG_MAPPING

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "sweep_architectures.py"


def test_architectures_are_sorted_by_what_can_be_drawn():
    words = [sys.executable, SCRIPT, "bert", "clip", "detr", "clip_text_model", "align_text_model"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    cells = [re.split(r" *\| *", line)[1:4] for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    rows = {kind: (number, names) for kind, number, names in cells}
    assert rows["complete"] == ("2", "`bert`, `clip_text_model`")
    assert rows["complete, some tensors as the constructor sets them"] == ("1", "`clip`")
    assert rows["not built here"] == ("1", "`detr` (needs timm)")
    assert rows["parts of others, without an Auto class"] == ("1", "")


@pytest.mark.parametrize("name", ["bert", "t5", "gpt2", "esm", "esmc", "clip", "wav2vec2"])
def test_the_page_tells_of_the_architectures_that_are_proven(name):
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    table = page.partition("<!-- architectures")[2].partition("<!-- end of architectures")[0]
    assert f"`{name}`" in table
    assert name in CONFIG_MAPPING
