"""What the headers of files of weights say: names, types, shapes and places of tensors, and the record of them all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_perturb.checkpoints.shapes import Shape, listed
from hf_perturb.checkpoints.tensors import BITS, OpenFile, Region, Tensor, elements_of
from hf_perturb.errors import CheckpointError

if TYPE_CHECKING:
    from hf_perturb.perturbation.spec import Perturbation

_LARGEST_HEADER = 100_000_000  # bytes, as the safetensors library has it


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str] | None]:
    """Open a file of tensors and read what it says of them.

    Args:
        path: a safetensors file, or a state_dict that torch saved.

    Returns:
        The tensors by their stored names, and the metadata of a safetensors header, if there is any.

    Raises:
        CheckpointError: if it is damaged or something else.
    """
    if path.suffix == ".safetensors":
        return _read_header(OpenFile(path))
    # only who opens such a file pays for torch
    from hf_perturb.checkpoints.of_torch import check_state, unpickle

    state = unpickle(path)
    check_state(path, state)
    return {name: Tensor.of(tensor) for name, tensor in state.items()}, None


def read_files(files: Sequence[Path]) -> tuple[dict[str, Tensor], dict[str, dict[str, str] | None]]:
    """Read the headers of files of weights: their tensors, and the metadata of those that are safetensors."""
    tensors: dict[str, Tensor] = {}
    headers: dict[str, dict[str, str] | None] = {}
    for file in files:
        found, metadata = read_tensors(file)
        if twice := found.keys() & tensors.keys():
            raise CheckpointError(f"{file} and a file before it both have {listed(sorted(twice))}")
        tensors.update(found)
        if file.suffix == ".safetensors":
            headers[file.name] = metadata
    return tensors, headers


def _read_header(file: OpenFile) -> tuple[dict[str, Tensor], dict[str, str] | None]:
    """Read the header of a safetensors file, and hold it against the file.

    Source: the README of huggingface/safetensors; what the library refuses is refused (tested).
    """
    try:
        size = _header_size(file)
        raw = bytearray(size)
        file.read_into(memoryview(raw), 8)
        header = json.loads(raw.decode(), object_pairs_hook=_each_once)
        if not isinstance(header, dict):
            raise ValueError("its header is no object")
        "".join(header).encode()  # half a letter is none
        metadata = header.pop("__metadata__", None)
        if metadata is not None and not _is_of_text(metadata):
            raise ValueError("its metadata are not text")
        found = {name: _entry(file, 8 + size, entry) for name, entry in header.items()}
        stated = _stated(metadata or {}, found)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file.path} is damaged, or no safetensors file: {error}") from error
    end = 8 + size
    for region in sorted((region for _, _, region in found.values()), key=lambda region: (region.begin, region.size)):
        if region.begin != end:
            raise CheckpointError(f"{file.path} is damaged: its tensors do not follow each other without holes")
        end += region.size
    if end != file.size:
        raise CheckpointError(f"{file.path} is damaged: its header tells of {end:,} bytes, it has {file.size:,}")
    return {name: Tensor(*entry, stated.get(name)) for name, entry in found.items()}, metadata


def header_metadata(record: Perturbation | None, lines: Mapping[str, str], whole: str | None) -> dict[str, str]:
    """Return what the header of a safetensors file says of its weights beside their names, types and shapes.

    Args:
        record: what was done to them, `None` for nothing.
        lines: what `Tensor.digest` returns of each tensor in the file, by the name that it is stored by.
        whole: the digest of all tensors that are written together, which a file of another save has not; `None` where
            they are not told of, being no plain tensors.
    """
    said = {"format": "pt", "perturbation": json.dumps(None if record is None else record.to_dict())}
    if whole is None:
        return said
    digests = {name: line.rpartition(" ")[2] for name, line in lines.items()}
    return {**said, "digests": json.dumps(digests), "digest": whole}


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; raise if a name comes twice, because the later value would hide the first."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("it says something twice")
    return found


def _is_of_text(metadata: Any) -> bool:
    return isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())


def _stated(metadata: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    """Return the digest of the bytes of each tensor that a header states beside a record, nothing where it has none."""
    stated = json.loads(metadata.get("digests", "{}"))
    if not _is_of_text(stated):
        raise ValueError("its digests are not text")
    return dict(stated) if stated.keys() == {*names} else {}


def _header_size(file: OpenFile) -> int:
    if file.size < 8:
        raise ValueError("it has no header")
    length = bytearray(8)
    file.read_into(memoryview(length), 0)
    size = int.from_bytes(length, "little")
    if size > min(_LARGEST_HEADER, file.size - 8):
        raise ValueError(f"its header is to have {size:,} bytes")
    return size


def _entry(file: OpenFile, first: int, entry: Any) -> tuple[str, Shape, Region]:
    said = [entry.get(key) for key in ("dtype", "shape", "data_offsets")] if isinstance(entry, dict) else []
    match said:
        case [str(dtype), [*shape], [begin, end]] if len(entry) == 3 and dtype in BITS:
            pass
        case _:
            raise ValueError(f"it has a tensor that is no such thing: {str(entry)[:200]}")
    for number in (*shape, begin, end):
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 2**63:
            raise ValueError(f"it has a tensor of which {str(number)[:50]} is no size")
    if elements_of(tuple(shape)) * BITS[dtype] != (end - begin) * 8:
        raise ValueError(f"it has a tensor of {dtype} {shape} in {end - begin} bytes")
    return dtype, tuple(shape), Region(file, first + begin, end - begin)
