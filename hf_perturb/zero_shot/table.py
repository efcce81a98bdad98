"""Scores of mutants as a table: what is said of a run, and one Parquet file, whole or not there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from hf_perturb.embedding.store import arrow
from hf_perturb.errors import FolderExistsError, ModelInputError
from hf_perturb.storage.folders import nothing_written, scratch_folder, sync
from hf_perturb.zero_shot.mutants import Mutants

FORMAT = "hf_perturb scores/1"
_ABOUT = "hf_perturb"  # the key under which a file says what was done
_ROWS = 131_072  # that are written at a time


@dataclass(frozen=True)
class NetworkScores:
    """What is said of one network.

    Args:
        network: `base`, or what the folder of a variant is called.
        digest: of its weights.
        perturbation: what was done to them, as JSON; `None` of a base.
        spearman: by marginal, the rank correlation with what was measured, over wild types its mean; `None` where it is
            not defined, as of scores that are all the same.
        by_wildtype: the same by marginal and wild type, where there are several.
    """

    network: str
    digest: str | None
    perturbation: dict[str, Any] | None
    spearman: dict[str, float | None] = field(default_factory=dict)
    by_wildtype: dict[str, dict[str, float | None]] = field(default_factory=dict)


@dataclass(frozen=True)
class Scores:
    """What `score` found.

    Args:
        path: the file, `None` if there is none.
        mutants: how many were scored.
        networks: what is said of each, the base first.
        measured: the column of what was measured, if there is one.
        notes: what is to be known of the sequences.
    """

    path: Path | None
    mutants: int
    networks: tuple[NetworkScores, ...]
    measured: str | None
    notes: tuple[str, ...]
    _file: Any = field(repr=False, compare=False)

    @property
    def table(self) -> Any:
        """The rows, one a mutant and network, as a `pyarrow.Table`, of which `to_pandas()` makes a data frame."""
        return arrow()[1].read_table(self._file)

    def to_dict(self) -> dict[str, Any]:
        """Return what is said of the run as JSON has it."""
        return {
            "path": None if self.path is None else str(self.path),
            "mutants": self.mutants,
            "measured": self.measured,
            "networks": [asdict(each) for each in self.networks],
            "notes": list(self.notes),
        }

    def rows(self) -> list[dict[str, str]]:
        """Return a row a network, as people read it."""
        return [
            {
                "network": each.network,
                **{f"spearman {name}": _shown(value) for name, value in each.spearman.items()},
                "digest": str(each.digest),
            }
            for each in self.networks
        ]


def _shown(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


class Writer:
    """Rows of scores to Parquet, some at a time.

    Args:
        file: where to.
        marginals: which there are.
        measured: whether something was.
    """

    def __init__(self, file: Any, marginals: tuple[str, ...], measured: bool):
        pa, parquet = arrow()
        text, number = pa.string(), pa.float64()
        kinds = {"mutant": text, "id": text, "network": text, "method": text, "seed": pa.int64(), "digest": text}
        kinds |= {f"{name}_marginal": number for name in marginals}
        kinds |= {"measured": number} if measured else {}
        self._schema = pa.schema([pa.field(name, kind) for name, kind in kinds.items()])
        self._writer = parquet.ParquetWriter(file, self._schema, compression="zstd", write_page_checksum=True)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()  # while the file is open, even if it will be thrown away

    def add(
        self,
        network: NetworkScores,
        id_: str,
        mutants: Mutants,
        scores: Mapping[str, NDArray[np.float64]],
    ) -> None:
        """Write the scores of the mutants of one wild type by one network."""
        pa, _ = arrow()
        done = network.perturbation or {}
        same = {"id": id_, "network": network.network, "method": done.get("method"), "seed": done.get("seed")}
        same["digest"] = network.digest
        for first in range(0, len(mutants), _ROWS):
            rows = slice(first, first + _ROWS)
            names = list(mutants.names[rows])
            columns: dict[str, Any] = {"mutant": names, **{key: [value] * len(names) for key, value in same.items()}}
            columns |= {f"{name}_marginal": values[rows] for name, values in scores.items()}
            if mutants.measured is not None:
                columns["measured"] = pa.array(mutants.measured[rows], from_pandas=True)  # NaN is nothing
            self._writer.write_table(pa.table(columns, schema=self._schema))

    def say(self, about: Mapping[str, Any]) -> None:
        """Add what is said of the run, as JSON."""
        self._writer.add_key_value_metadata({_ABOUT: json.dumps({"format": FORMAT, **about})})


def read_about(path: Path) -> dict[str, Any] | None:
    """Return what a file of scores says of itself, `None` for any other."""
    pa, parquet = arrow()
    try:
        with parquet.ParquetFile(path) as file:
            said = (file.metadata.metadata or {}).get(_ABOUT.encode())
        about = json.loads(said or "null")
    except (OSError, ValueError, pa.ArrowException):
        return None
    return about if isinstance(about, dict) and str(about.get("format")).startswith("hf_perturb scores/") else None


def refuse_other(out: Path, force: bool) -> None:
    """Raise if there is something that is not to be replaced.

    Raises:
        FolderExistsError: naming it.
    """
    if not os.path.lexists(out):
        return
    if not force:
        raise FolderExistsError(f"{out} exists already; choose another file, or replace it with --force (force=True)")
    if out.is_symlink() or not out.is_file() or read_about(out) is None:
        raise FolderExistsError(f"{out} holds no scores, so --force does not replace it; choose another file")


@contextmanager
def placed(out: Path, force: bool) -> Iterator[BinaryIO]:
    """Give a file that becomes `out` when the block ends well, and is gone when it does not.

    Raises:
        CheckpointError: if it cannot be written, or something is there that is not to be replaced.
    """
    refuse_other(out, force)
    with nothing_written(out), scratch_folder(out) as scratch:
        fresh = scratch / out.name
        with fresh.open("xb") as file:
            yield file
        sync(fresh)
        refuse_other(out, force)
        os.replace(fresh, out)


def spearman(scores: NDArray[np.float64], measured: NDArray[np.float64]) -> float | None:
    """Return the rank correlation over what was measured, `None` where there is none.

    Raises:
        ModelInputError: if scipy is not installed.
    """
    try:
        from scipy.stats import spearmanr
    except ImportError as error:
        raise ModelInputError(
            f"measured: a rank correlation needs scipy ({error}): pip install 'hf-perturb[study]'"
        ) from error
    there = np.isfinite(measured)
    if there.sum() < 2 or np.ptp(scores[there]) == 0 or np.ptp(measured[there]) == 0:
        return None
    return float(spearmanr(scores[there], measured[there]).statistic)
