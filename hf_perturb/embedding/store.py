"""A folder of embeddings: shards of Parquet that are whole or absent, and a manifest that tells what they are.

The first of the processes goes `with store_lock(out)`, `open_store`, and `finish` at the end; the others make a `Store`
of the same manifest. Who writes which of `missing()` is settled before the first `write`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_perturb.embedding.checking import check_columns, check_nulls, check_plan
from hf_perturb.embedding.columns import arrow, is_whole, write_columns
from hf_perturb.embedding.manifest import Manifest, Schema, Shard, canonical, read_manifest, write_manifest
from hf_perturb.embedding.placing import MANIFEST, foreign_names, names_in, placed, refuse_file, store_lock
from hf_perturb.errors import EmbeddingsError, FolderExistsError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Schema", "Shard", "Store", "open_store", "refuse_foreign", "store_lock"]


class Store:
    """A folder of embeddings that is being written.

    Args:
        out: the folder.
        manifest: what is in it, or is to be.
    """

    def __init__(self, out: Path, manifest: Manifest):
        self.out = out
        self.manifest = manifest

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return self.manifest.complete

    def path(self, shard: Shard) -> Path:
        """Name the file of a shard."""
        return self.out / self.manifest.shards[shard.number].file

    def missing(self) -> list[Shard]:
        """List the shards that are to be written: those without a whole file of this very run; only footers are read.

        Raises:
            EmbeddingsError: if pyarrow is not installed.
        """
        return [shard for shard in self.manifest.shards if not is_whole(self.path(shard), self.manifest, shard)]

    def write(self, shard: Shard, columns: Mapping[str, Any], nulls: NDArray[np.bool_] | None = None) -> None:
        """Write a shard, whole or not at all; what is there by its name is replaced.

        Args:
            shard: one of the plan.
            columns: by name, those of the schema. `id`: list of str; `length` and the further integers: int32
                `(records,)`; a vector a record: float32 `(records, width)`; a vector a residue: for each record
                float32 `(length, width)`, or `(embedded, width)` if that is a column.
            nulls: `(records,)`, which records have no vectors; by default those of length 0.

        Raises:
            EmbeddingsError: if the columns are not those of the schema, the disk is full, or nothing can be written.
        """
        own = self.manifest.shards[shard.number]
        check_columns(self.manifest.schema, own, columns)
        mask = columns["length"] == 0 if nulls is None else nulls
        check_nulls(self.manifest.schema, own, mask)
        with placed(self.path(own)) as file:
            write_columns(file, self.manifest, own, columns, mask)

    def finish(self, report: Mapping[str, Any]) -> None:
        """Declare the folder complete.

        Args:
            report: what the run has to say, as JSON.

        Raises:
            EmbeddingsError: if a shard is missing, or there is one that the plan does not name.
        """
        if missing := self.missing():
            raise EmbeddingsError(
                f"{self.out} is not complete: {missing[0].file} and {len(missing) - 1} more of "
                f"{len(self.manifest.shards)} shards are missing or damaged; run the same command again to continue"
            )
        if others := sorted({*names_in(self.out)} - {shard.file for shard in self.manifest.shards}):
            raise EmbeddingsError(
                f"{self.out} holds {others[0]}, a shard of another run; remove it, and run this again"
            )
        shards = tuple(replace(shard, bytes=self.path(shard).stat().st_size) for shard in self.manifest.shards)
        self.manifest = replace(self.manifest, complete=True, report=dict(report), shards=shards)
        write_manifest(self.out, self.manifest)


def open_store(
    out: Path,
    inputs: Mapping[str, Any],
    described: Mapping[str, Any],
    shards: Sequence[Shard],
    schema: Schema,
    force: bool = False,
) -> Store:
    """Begin a folder of embeddings, or continue with one. Within `store_lock`, which makes the folder.

    Args:
        out: the folder.
        inputs: what decides the embeddings, as JSON: with shards of other inputs, none is continued with.
        described: what is only said of them, as JSON.
        shards: the plan, in order.
        schema: the columns.
        force: remove other embeddings; what is in the folder and not ours stays.

    Raises:
        FolderExistsError: if there is something in the folder and no manifest of ours.
        EmbeddingsError: if the folder is of other inputs, or damaged, or cannot be written.
    """
    arrow()
    check_plan(shards)
    # as they are read back
    as_read = (json.loads(canonical(dict(inputs))), json.loads(json.dumps(dict(described))))
    wanted = Manifest(*as_read, schema, tuple(shards))
    refuse_foreign(out)
    store = Store(out, wanted)
    if (out / MANIFEST).exists():
        found = read_manifest(out)
        said = found.differences(wanted)
        if said and names_in(out) and not force:
            raise EmbeddingsError(
                f"{out} holds other embeddings: {'; '.join(said)}; choose another folder, or replace them with --force"
            )
        # the manifest goes last: who is killed here leaves a folder that is still ours
        for name in names_in(out) if said else ():
            (out / name).unlink()
        if not said and found.complete and not Store(out, found).missing():
            return Store(out, found)
    write_manifest(out, wanted)
    return store


def refuse_foreign(out: Path) -> None:
    """Refuse a folder with something in it and no manifest of ours, before any work is done; not there is fine.

    Raises:
        FolderExistsError: naming what is there.
        EmbeddingsError: if the manifest is damaged, or of a newer release.
    """
    if not out.exists():
        return
    refuse_file(out)
    names = foreign_names(out)
    if MANIFEST in names:
        read_manifest(out)
    elif names:
        raise FolderExistsError(
            f"{out} holds {names[0]} and is no folder of embeddings, so nothing in it is replaced; choose another"
        )
