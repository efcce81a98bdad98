"""safetensors files of a layout that is known before their content, filled in any order by several threads.

The format is eight bytes that count the header, the header as JSON, and the tensors without holes; the library that
reads it can only write what it holds whole. Source: the format's own README (huggingface/safetensors).
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Protocol

from huggingface_hub import split_state_dict_into_shards_factory

from hf_perturb.checkpoints.headers import header_metadata
from hf_perturb.checkpoints.shapes import Shape
from hf_perturb.checkpoints.tensors import Region, bytes_of
from hf_perturb.perturbation import Perturbation
from hf_perturb.perturbation.digest import NO_DIGEST, digest_of_lines

MAX_SHARD_SIZE = "50GB"  # Transformers' own
_LARGE, _CACHED = 1 << 20, 1 << 29  # bytes of a tensor, and of the page cache
_INDEX = "model.safetensors.index.json"


class Written(Protocol):
    """What can be written: a tensor of a checkpoint, or one that is made while it is written."""

    @property
    def region(self) -> Region | None:
        """Where the bytes are in a file, if they are."""

    def chunks(self) -> Iterator[memoryview]:
        """Return the bytes; a chunk is good until the next one."""


class Shards:
    """`model.safetensors`, or shards and their index, as `save_pretrained` names and cuts them; to be closed.

    Args:
        folder: an existing folder.
        tensors: the type (`F32`) and shape of each, in the order of the network.
        record: what was done to them, for the header of each file; `finish` may give another digest.
    """

    def __init__(self, folder: Path, tensors: Mapping[str, tuple[str, Shape]], record: Perturbation | None):
        self.folder = folder
        self._sent = 0  # bytes since the page cache was emptied
        self._sizes = {name: bytes_of(dtype, shape) for name, (dtype, shape) in tensors.items()}
        self._split = split_state_dict_into_shards_factory(
            self._sizes,
            get_storage_size=lambda size: size,
            filename_pattern="model{suffix}.safetensors",
            max_shard_size=MAX_SHARD_SIZE,
        )
        self._headers: dict[int, dict[str, Any]] = {}  # by the descriptor of the file
        self._places: dict[str, tuple[int, int]] = {}  # descriptor and first byte of each tensor
        with ExitStack() as files:
            for file, names in self._split.filename_to_tensors.items():
                opened = files.enter_context((folder / file).open("xb", buffering=0))
                self._lay_out(opened.fileno(), {name: tensors[name] for name in names}, record)
            self.close = files.pop_all().close

    def _lay_out(self, file: int, tensors: Mapping[str, tuple[str, Shape]], record: Perturbation | None) -> None:
        header: dict[str, Any] = {
            "__metadata__": header_metadata(record, dict.fromkeys(tensors, NO_DIGEST[-64:]), NO_DIGEST)
        }
        end = 0
        # wide types first, so that every tensor begins at a multiple of its own width
        for name in sorted(tensors, key=lambda name: (-bytes_of(tensors[name][0], (1,)), name)):
            begin, end = end, end + self._sizes[name]
            dtype, shape = tensors[name]
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
        self._headers[file] = header
        first = len(_encode(header))
        _reserve(file, first + end)
        for name in tensors:
            self._places[name] = (file, first + header[name]["data_offsets"][0])

    def write(self, name: str, tensor: Written) -> None:
        """Write a tensor; one that is in another file is copied by the kernel."""
        file, offset = self._places[name]
        region = tensor.region
        done = 0 if region is None else _copy_in_kernel(file, region, offset)
        # made here, or another kernel, or two file systems that cannot
        rest = tensor.chunks() if region is None else region.part(done, region.size - done).chunks()
        for chunk in rest:
            _write(file, chunk, offset + done)
            done += len(chunk)
        if self._sizes[name] >= _LARGE and hasattr(os, "posix_fadvise"):
            self._sent += self._sizes[name]
            # sent to the disk while the next tensor is made, so that nothing is left to wait for at the end; now and
            # then all that is there leaves the page cache, of which new pages cost more than a tensor's draw
            whole, self._sent = self._sent > _CACHED, self._sent % _CACHED
            with suppress(OSError):  # only advice
                os.posix_fadvise(file, *((0, 0) if whole else (offset, done)), os.POSIX_FADV_DONTNEED)

    def finish(self, record: Perturbation | None, lines: Mapping[str, str]) -> None:
        """Write the headers and the index.

        Args:
            record: what was done to the tensors.
            lines: what `tensor_digest` returns of each.
        """
        whole = digest_of_lines(lines)
        for file, header in self._headers.items():
            before = len(_encode(header))
            told = {name: lines[name] for name in header if name != "__metadata__"}
            header["__metadata__"] = header_metadata(record, told, whole)
            encoded = _encode(header)
            if len(encoded) != before:
                raise ValueError("metadata of another length would move the tensors")
            _write(file, memoryview(encoded), 0)
        if self._split.is_sharded:
            files = dict(sorted(self._split.tensor_to_filename.items()))
            index = {"metadata": self._split.metadata, "weight_map": files}
            (self.folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _encode(header: Mapping[str, Any]) -> bytes:
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _reserve(file: int, size: int) -> None:
    """Give a file its size: a full disk shows at once, and writing in any order is three times as fast."""
    if size and hasattr(os, "posix_fallocate"):
        try:
            return os.posix_fallocate(file, 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
    return os.truncate(file, size)


def _write(file: int, data: memoryview, offset: int) -> None:
    while len(data):
        done = os.pwrite(file, data, offset)
        data, offset = data[done:], offset + done


def _copy_in_kernel(target: int, region: Region, offset: int) -> int:
    """Copy as much as the kernel will, and return how many bytes those are."""
    done, source = 0, region.file.descriptor
    if hasattr(os, "copy_file_range"):
        with suppress(OSError):
            while done < region.size:
                copied = os.copy_file_range(source, target, region.size - done, region.begin + done, offset + done)
                if not copied:
                    break
                done += copied
    return done
