"""A study as files: a row a score, a row a layer, a paragraph to cite, and everything as JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hf_perturb.embedding.store import arrow
from hf_perturb.errors import CheckpointError
from hf_perturb.storage.folders import nothing_written, replaced_file
from hf_perturb.studies.results import Results
from hf_perturb.studies.words import last_line, methods

SCORES, SUMMARY, METHODS, REPORT = "scores.parquet", "summary.csv", "methods.md", "report.json"
_FORMAT = 1
# of `scores.parquet`: what a column is, and whether a row may be without it
_COLUMNS = {
    "network": ("string", False),
    "method": ("string", True),
    "rules": ("string", True),
    "scope": ("string", True),
    "seed": ("int64", True),
    "digest": ("string", True),
    "layer": ("int32", True),
    "probe": ("string", False),
    "strength": ("float64", True),
    "split": ("string", False),
    "metric": ("string", False),
    "value": ("float64", False),
    "low": ("float64", False),
    "high": ("float64", False),
    "n": ("int64", False),
    "kind": ("string", False),
    "group": ("string", False),
    "axis": ("string", True),
    "chosen": ("bool_", False),
    "validation": ("float64", True),
}
# of `summary.csv`: what it says of a control
_CONTRAST = (
    *("mean", "sd", "low", "high", "difference", "difference_low", "difference_high", "p", "p_holm"),
    *("share", "share_low", "share_high", "withheld"),
)
_DEGENERACY = {"cosine": "cosine", "participation": "participation", "length": "explained_by_length"}


def write_tables(results: Results, out: Path) -> None:
    """Write `scores.parquet`, `summary.csv`, `methods.md` and, last, `report.json`, each whole or not at all.

    What has these names is replaced.

    Args:
        results: what a study found.
        out: a folder that is there.

    Raises:
        CheckpointError: if a file cannot be written, or a number is none.
        EmbeddingsError: if pyarrow is not installed.
    """
    texts = {SUMMARY: _summary(results), METHODS: methods(results), REPORT: _report(results)}
    with nothing_written(out / SCORES), replaced_file(out / SCORES) as file:
        arrow()[1].write_table(_scores(results), file, compression="zstd")
    for name, text in texts.items():
        with nothing_written(out / name), replaced_file(out / name) as file:
            file.write(text.encode())


def read_report(path: str | Path) -> Results:
    """Read a `report.json` again.

    Args:
        path: of the file, or of the folder that holds it.

    Raises:
        CheckpointError: if it is none, or of a newer release.
    """
    path = Path(path)
    path = path / REPORT if path.is_dir() else path
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        if given["format"] != _FORMAT:
            raise CheckpointError(f"{path}: got format {given['format']}; allowed: {_FORMAT}; install a newer release")
        return Results.from_dict(given)
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is no report of a study: {type(error).__name__}: {error}") from error


def report_of(results: Results) -> dict[str, Any]:
    """Return everything as JSON, the last line in words with it."""
    return {"format": _FORMAT, "words": last_line(results), **results.to_dict()}


def _report(results: Results) -> str:
    try:
        text = json.dumps(report_of(results), indent=1, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise CheckpointError(f"{REPORT}: a number of the study is NaN or infinite: {error}") from error
    return text + "\n"


def _scores(results: Results) -> Any:
    pa, _ = arrow()
    fields = [pa.field(name, getattr(pa, kind)(), null) for name, (kind, null) in _COLUMNS.items()]
    return pa.Table.from_pylist([asdict(score) for score in results.scores], pa.schema(fields))


def _summary(results: Results) -> str:
    """Return a row for each layer, and one for each network at its own best; what is not there is left empty."""
    file = io.StringIO()
    rows = list(_rows(results))
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _rows(results: Results) -> Iterator[dict[str, Any]]:
    degeneracy = {each.layer: each for each in results.degeneracy if each.network == "base"}
    by_layer = {score.layer: score for score in results.of("base") if score.layer is not None}
    chosen = [score for score in results.scores if score.chosen and score.metric == results.metric]
    for layer in (*results.layers, None):
        base = results.base if layer is None else by_layer[layer]
        row: dict[str, Any] = {"layer": "best" if layer is None else layer, "metric": results.metric}
        row["chosen_by"] = " ".join(score.network for score in chosen if layer is not None and score.layer == layer)
        row |= {"base": base.value, "base_low": base.low, "base_high": base.high}
        for group in results.groups:
            found = results.contrast(group, layer)
            row |= {f"{group}_{name}": None if found is None else getattr(found, name) for name in _CONTRAST}
        # the same in every row, so that each has all that its layer is compared with
        for score in results.baselines:
            name = score.network.replace(" ", "_")
            row |= {name: score.value, f"{name}_low": score.low, f"{name}_high": score.high}
        same = degeneracy.get(base.layer) if base.layer is not None else None
        yield row | {
            f"base_{said}": None if same is None else getattr(same, name) for name, said in _DEGENERACY.items()
        }
