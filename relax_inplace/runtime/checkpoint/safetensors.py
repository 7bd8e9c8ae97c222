"""Hugging Face's safetensors: a file, or several and an index that says which weight is where.

A file begins with the length of its header, in eight bytes; the weights follow the header without a
hole and without an overlap. Of a file that the index names, what it takes from it counts: the file
may be shared, or an older one.

    {"__metadata__": {...}, "w0": {"dtype": "F16", "shape": [4, 8], "data_offsets": [0, 64]}, ...}
    {"metadata": {...}, "weight_map": {"w0": "model-00001-of-00002.safetensors", ...}}
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
import numpy as np
import tvm_ffi

from ..progress import ProgressBar
from ..provenance import MARK, Provenance
from ..shown import shown
from .checkpoint import Checkpoint
from .error import refuse
from .files import contained_path, opened, read_into
from .folder_update import FolderUpdate
from .manifest import Size, converted, mark_in, parse_object, read_manifest
from .manifest_names import INDEX
from .shard import Weight, write_shard
from .stored_tensor import CheckpointFile, StoredTensor

__all__ = ["DTYPES", "read_safetensors", "read_safetensors_index", "write_safetensors"]

DTYPES = {  # Hugging Face's names of TVM's. TVM has no complex numbers, and packs F4 the other way
    "BOOL": "bool",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}
_LARGEST_HEADER = 100_000_000  # Hugging Face's own limit


class _Entry(msgspec.Struct):
    dtype: str
    shape: tuple[Size, ...]
    data_offsets: tuple[Size, Size]


class _Index(msgspec.Struct):
    weight_map: dict[str, str]
    metadata: Any = None


def read_safetensors(path: Path) -> Checkpoint:
    """What one file holds."""
    real = Path(os.path.realpath(path))
    file, records, metadata = _read_file(real, path.name, shown(path))
    provenance = mark_in(metadata, shown(path))
    return Checkpoint.of(path, "safetensors", records, [file], provenance, ties=metadata)


def read_safetensors_index(path: Path) -> Checkpoint:
    """What an index takes from its files."""
    raw, index = read_manifest(path, _Index)
    where = shown(path)
    placed: dict[str, set[str]] = {}  # the weights that the index says are in a file
    for name, file_name in index.weight_map.items():
        placed.setdefault(str(PurePosixPath(file_name)) if file_name else "", set()).add(name)
    files: list[CheckpointFile] = []
    records: list[StoredTensor] = []
    marks = {mark_in(index.metadata, where)}
    ties: dict[str, str] = {}
    for name, weights in placed.items():
        at = f"{where}, file {shown(name)}"
        file, found, metadata = _read_file(contained_path(path, name, at), name, at, weights)
        files.append(file)
        records += found
        marks.add(mark_in(metadata, at))
        ties.update(metadata)
    marks.discard(None)
    if len(marks) > 1:
        refuse(where, "files converted in different ways", "one mark of converted weights")
    provenance = marks.pop() if marks else None
    return Checkpoint.of(path, "safetensors", records, files, provenance, raw, ties)


def _read_file(
    path: Path, name: str, where: str, wanted: Collection[str] | None = None
) -> tuple[CheckpointFile, list[StoredTensor], dict[str, str]]:
    """A file, what is wanted of it, and its metadata.

    In that, `save_model` of safetensors.torch names what it leaves out, and which weight it is.
    """
    with opened(path) as descriptor:
        header = _header(descriptor, where)
        file = CheckpointFile.of(path, name, descriptor, header=header)
    document = parse_object(header, where)
    metadata = converted(document.pop("__metadata__", None), dict[str, str] | None, where) or {}
    if missing := sorted(set(wanted or ()) - set(document)):
        some = ", ".join(map(shown, missing[:3]))
        refuse(where, f"the file lacks {len(missing)} weights ({some})", "what the index says")
    entries = {
        name: converted(entry, _Entry, f"{where}, {shown(name)}")
        for name, entry in document.items()
    }
    records = []
    begin = end = 8 + len(header)
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        at = f"{where}, {shown(name)}"
        first, last = (begin + offset for offset in entry.data_offsets)
        if first != end or last < first:
            refuse(
                at, f"bytes {first:,} to {last:,}", f"those from {end:,} on: no hole, no overlap"
            )
        end = last
        if wanted is None or name in wanted:
            dtype = DTYPES.get(entry.dtype)
            if dtype is None:
                expected = "one that TVM has tensors of"
                refuse(at, f"the dtype {shown(entry.dtype)}", expected, "store it as another")
            records.append(file.tensor(name, entry.shape, dtype, first, last - first, at))
    if end != file.nbytes:
        refuse(where, f"{file.nbytes:,} bytes", f"{end:,}, as its header says")
    return file, records, metadata


def _header(descriptor: int, where: str) -> bytes:
    size = os.fstat(descriptor).st_size
    if size < 8:
        refuse(where, f"{size} bytes", "a safetensors file, which has 8 at least")
    length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
    if length > min(size - 8, _LARGEST_HEADER):
        refuse(
            where,
            f"a header of {length:,} bytes",
            f"at most {min(size - 8, _LARGEST_HEADER):,} in a file of {size:,}",
        )
    header = np.empty(length, "uint8")
    read_into(descriptor, header, 8, where)
    return header.tobytes()


def write_safetensors(
    update: FolderUpdate,
    shards: list[list[Weight]],
    provenance: Provenance | None,
    bar: ProgressBar,
) -> None:
    """Write weights and their index into a folder."""
    # Hugging Face's libraries refuse a file that does not say "pt", "tf", "flax" or "mlx".
    metadata = {"format": "pt"} | ({} if provenance is None else {MARK: provenance.to_json()})
    names = {dtype: name for name, dtype in DTYPES.items()}
    weight_map = {}
    total = 0
    for index, shard in enumerate(shards):
        file = f"model-{update.token}-{index + 1:05}-of-{len(shards):05}.safetensors"
        # Large elements first: then each weight is aligned to its own.
        shard.sort(key=lambda one: -tvm_ffi.dtype(one.dtype).bits)
        header: dict[str, Any] = {"__metadata__": metadata}
        offset = 0
        for one in shard:
            end = offset + one.nbytes
            header[one.name] = _Entry(names[one.dtype], one.shape, (offset, end))
            weight_map[one.name] = file
            offset = end
        text = msgspec.json.encode(header)
        text += b" " * (-len(text) % 8)
        write_shard(update.new_file(file), len(text).to_bytes(8, "little") + text, shard, bar)
        total += offset
    update.commit(INDEX, _Index(weight_map, {"total_size": total} | metadata))
