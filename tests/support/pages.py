"""The pages that people read, and what is fenced in them."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
#: What is read from the front page on, without the cards.
PAGES = [README, *sorted(ROOT.glob("docs/*.md")), ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "CHANGELOG.md"]


def snippets(page: Path) -> list[tuple[str, str]]:
    """Return (language, text) of every fenced block of a page, in order."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def shown_outputs(page: Path) -> list[tuple[str, str]]:
    """Return (code, output) of every Python block that is followed by what it prints."""
    pairs = pairwise(snippets(page))
    return [(code, text) for (language, code), (after, text) in pairs if (language, after) == ("python", "text")]
