"""Write the tables of rules and scopes in docs/ and the cards of the documented bases, or check that they are current.

The tables come from `hf_perturb/perturbation`, the cards also from the catalogue and `model_cards/published.md`.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from pathlib import Path

from hf_perturb.cards.card import origin_of, render
from hf_perturb.checkpoints.catalog import CATALOG, Entry
from hf_perturb.perturbation import Perturbation
from hf_perturb.perturbation.rules import FAMILIES, default_axis
from hf_perturb.perturbation.scopes import PARTS, SPANS
from hf_perturb.variants.blueprint import plan_for

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
CARDS = ROOT / "model_cards"
TITLES = {"fair_esm": "ESM (`fair_esm`)", "carp": "CARP (`carp`)"}


def table(family: str) -> str:
    """Return the table of a family."""
    lines = [
        f"## {TITLES[family]}, default axis `{default_axis(family)}`",
        "",
        "| tensors | reinit | resample | reinit, `published` | source |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in FAMILIES[family].rows:
        published = "the same" if row.published == "same" else row.action("reinit", "published")
        actions = f"{row.summary('reinit')} | {row.summary('resample')} | {published}"
        lines.append(f"| `{row.pattern}` | {actions} | {row.source} |")
    return "\n".join(lines)


def deviations(name: str) -> str:
    """Return the table of how widely reinit draws in a network of the catalogue, and Transformers' own ESM does."""
    network = CATALOG[name].network()
    found: dict[str, list[str]] = {}
    for step in plan_for(network, Perturbation("reinit")).steps:
        if (bound := dict(step.arguments).get("bound")) is not None:
            text = f"{float(bound) / math.sqrt(3):.3f}"
            if text not in (texts := found.setdefault(network.table().row(step.name).pattern, [])):
                texts.append(text)
    lines = ["| tensors | here | Transformers |", "| --- | --- | --- |"]
    for pattern, texts in found.items():
        lines.append(f"| `{pattern}` | {', '.join(texts)} | {'0' if pattern.endswith('bias') else '0.020'} |")
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


def published_card(entry: Entry) -> str:
    """Return the card of a checkpoint of the catalogue, which nobody needs to have for that."""
    network, family = entry.network(), entry.family
    shapes, ties = network.shapes, network.tied
    plans = {rules: plan_for(network, Perturbation("reinit", rules=rules)) for rules in FAMILIES[family].rules}
    rows = []
    for row in FAMILIES[family].rows:
        if named := sum(map(row.names, shapes)):
            tied_to = next((name for name, source in ties.items() if row.names(source)), None)
            rows.append({"rule": row, "named": named, "head": tied_to})
    return render(
        "published.md",
        network,
        origin_of(network, entry.name, None),
        entry=entry,
        sizes={key: value for key, value in entry.sizes.items() if key != "model_version"},
        tokens=network.sizes.vocab_size,
        longest=network.max_tokens,
        rows=rows,
        counts={rules: len(plan.steps) for rules, plan in plans.items()},
        total=len(shapes),
        axis=default_axis(family),
        tied=bool(ties),
    )


def fill(text: str, name: str, tables: str) -> str:
    """Return the text of a page with tables between the two markers of their name."""
    begin, end = f"<!-- {name}: written by scripts/render.py -->", f"<!-- end of {name} -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"the marker {begin} is missing")
    return pattern.sub(lambda _: f"{begin}\n\n{tables}\n\n{end}", text)


def table_pages() -> dict[Path, str]:
    """Return the pages of docs/ that hold tables, with the tables of the day."""
    rules, controls = DOCS / "rules.md", DOCS / "controls.md"
    filled = fill(rules.read_text(encoding="utf-8"), "rules", "\n\n".join(table(family) for family in FAMILIES))
    filled = fill(filled, "deviations", deviations("esm2_t6_8M_UR50D"))
    return {rules: filled, controls: fill(controls.read_text(encoding="utf-8"), "scopes", scopes())}


def pages() -> dict[Path, str]:
    """Return every file that this script writes, with its text of the day."""
    documented = {CARDS / f"{name}.md": published_card(entry) for name, entry in CATALOG.items() if entry.documented}
    return {**table_pages(), **documented}


def main() -> int:
    """Parse the command line; with --check, exit 1 if a file is not current."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, fail if a file is not current")
    options = parser.parse_args()
    stale = 0
    for path, text in pages().items():
        if options.check and (not path.exists() or path.read_text(encoding="utf-8") != text):
            print(f"{path.relative_to(ROOT)} is not current; run scripts/render.py", file=sys.stderr)
            stale = 1
        elif not options.check:
            path.write_text(text, encoding="utf-8")
    return stale


if __name__ == "__main__":
    sys.exit(main())
