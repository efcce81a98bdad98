"""Write the README's tables of rules and scopes from `hf_perturb/perturbation`, or check that they are current."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from hf_perturb.perturbation.rules import FAMILIES, Initialiser, Row, default_axis
from hf_perturb.perturbation.scopes import PARTS, SPANS

README = Path(__file__).parent.parent / "README.md"
TITLES = {"fair_esm": "ESM (`fair_esm`)", "carp": "CARP (`carp`)"}


def cell(initialiser: Initialiser | str | None, row: Row) -> str:
    """Return how a table names an initialiser."""
    if isinstance(initialiser, str):
        return cell(row.reinit, row)
    return "keep" if initialiser is None else initialiser.text


def table(family: str) -> str:
    """Return the table of a family."""
    lines = [
        f"#### {TITLES[family]}, default axis `{default_axis(family)}`",
        "",
        "| tensors | reinit | resample | reinit, `published` | source |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in FAMILIES[family]:
        shuffled = "shuffle" if row.resample else "keep"
        published = cell(row.published, row) if row.published != "same" else "the same"
        lines.append(f"| `{row.pattern}` | {cell(row.reinit, row)} | {shuffled} | {published} | {row.source} |")
    return "\n".join(lines)


def scopes() -> str:
    """Return the table of the scopes."""
    lines = ["| scope | network | perturbed | tensors after `layers.N.` | source |", "| --- | --- | --- | --- | --- |"]
    for span in SPANS.values():
        letters = span.form.partition(":")[2]
        text = span.text.format(first=letters[0], last=letters[-1])
        lines.append(f"| `{span.form}` | all | {text} | all | {span.source} |")
    for family, parts in PARTS.items():
        for part in parts:
            tensors = f"all but `{part.pattern}`" if part.keeps else f"`{part.pattern}`"
            lines.append(f"| `{part.name}` | `{family}` | {part.text} | {tensors} | {part.source} |")
    return "\n".join(lines)


def fill(text: str, name: str, tables: str) -> str:
    """Return a text with tables between the two markers of their name."""
    begin, end = f"<!-- {name}: written by scripts/render.py -->", f"<!-- end of {name} -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"{README.name}: the marker {begin} is missing")
    return pattern.sub(lambda _: f"{begin}\n\n{tables}\n\n{end}", text)


def render(text: str) -> str:
    """Return the README with the tables of the day."""
    return fill(fill(text, "rules", "\n\n".join(table(family) for family in FAMILIES)), "scopes", scopes())


def main() -> int:
    """Parse the command line; with --check, exit 1 if the README is not current."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, fail if the tables are not current")
    options = parser.parse_args()
    old = README.read_text(encoding="utf-8")
    new = render(old)
    if options.check and new != old:
        print("README.md: the tables are not current; run scripts/render.py", file=sys.stderr)
        return 1
    if not options.check:
        README.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
