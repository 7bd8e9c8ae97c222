"""TVM's tensor cache, in which MLC-LLM ships weights: a manifest, and files it names.

    {"metadata": {...},
     "records": [{"dataPath": "params_shard_0.bin", "format": "raw-shard", "nbytes": 96,
                  "md5sum": "...",
                  "records": [{"name": "w0", "shape": [4, 8], "dtype": "float16",
                               "format": "f32-to-bf16", "nbytes": 64, "byteOffset": 0}, ...]}]}

TVM's own reader is `src/runtime/vm/tensor_cache_support.cc`, its writer
`python/tvm/contrib/tvmjs.py`. The writer puts records back to back, unaligned, and stamps
`f32-to-bf16` on every one of them, int8 too; it means something for float32 alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import msgspec

from ..progress import ProgressBar
from ..provenance import MARK, Provenance
from ..shown import shown
from .checkpoint import Checkpoint
from .error import refuse
from .files import contained_path, opened
from .folder_update import FolderUpdate
from .manifest import Size, mark_in, read_manifest
from .manifest_names import TENSOR_CACHE
from .shard import Weight, write_shard
from .stored_tensor import CheckpointFile, StoredTensor

__all__ = ["DTYPES", "read_tensor_cache", "write_tensor_cache"]

DTYPES = frozenset(
    [
        *("bool", "int4", "int8", "int16", "int32", "int64"),
        *("uint4", "uint8", "uint16", "uint32", "uint64"),
        *("float16", "float32", "float64", "bfloat16"),
        *("float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e4m3fn", "float8_e4m3fnuz"),
        *("float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
        *("float6_e2m3fn", "float6_e3m2fn", "float4_e2m1fn"),
    ]
)


class _Record(msgspec.Struct):
    name: str
    shape: tuple[Size, ...]
    dtype: str
    format: str
    nbytes: Size
    begin: Size = msgspec.field(name="byteOffset")


class _Shard(msgspec.Struct):
    path: str = msgspec.field(name="dataPath")
    format: str
    nbytes: Size
    records: list[_Record]
    md5: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-fA-F]{32}\Z")] | None = msgspec.field(
        name="md5sum", default=None
    )


class _Manifest(msgspec.Struct):
    records: list[_Shard]
    metadata: Any = None


def read_tensor_cache(path: Path) -> Checkpoint:
    """What a manifest and its files hold."""
    raw, manifest = read_manifest(path, _Manifest)
    where = shown(path)
    files: dict[str, CheckpointFile] = {}
    records: list[StoredTensor] = []
    for index, shard in enumerate(manifest.records):
        at = f"{where}, shard {index}"
        file = _file(path, shard, at)
        # The same bytes for two shards could make a small file a large allocation.
        if files.setdefault(str(PurePosixPath(file.name)), file) is not file:
            refuse(at, f"the file {shown(file.name)} is given twice", "a file for each shard")
        records += _in_order(_tensors(file, shard, at), at)
    provenance = mark_in(manifest.metadata, where)
    return Checkpoint.of(path, "tensor-cache", records, files.values(), provenance, raw)


def _file(manifest: Path, shard: _Shard, where: str) -> CheckpointFile:
    if shard.format != "raw-shard":
        refuse(where, f"the format {shown(shard.format)}", "'raw-shard'", "TVM knows no other")
    path = contained_path(manifest, shard.path, where)
    with opened(path) as descriptor:
        file = CheckpointFile.of(path, shard.path, descriptor, shard.md5 and shard.md5.lower())
    if file.nbytes != shard.nbytes:
        refuse(
            where,
            f"the file {shown(file.name)} has {file.nbytes:,} bytes",
            f"{shard.nbytes:,}",
            "download it again",
        )
    return file


def _tensors(file: CheckpointFile, shard: _Shard, where: str) -> Iterator[StoredTensor]:
    for index, one in enumerate(shard.records):
        at = f"{where}, record {index} {shown(one.name)}"
        if one.dtype not in DTYPES:
            refuse(at, f"the dtype {shown(one.dtype)}", "one that TVM has tensors of")
        if one.format not in ("raw", "f32-to-bf16"):
            refuse(at, f"the format {shown(one.format)}", "'raw' or 'f32-to-bf16'")
        encoding = one.format if one.dtype == "float32" else "raw"
        yield file.tensor(one.name, one.shape, one.dtype, one.begin, one.nbytes, at, encoding)


def _in_order(records: Iterable[StoredTensor], where: str) -> list[StoredTensor]:
    """The tensors of one file as they lie in it; none overlaps another."""
    found = sorted(records, key=lambda record: (record.offset, record.stored_nbytes))
    end = 0
    for record in found:
        if record.offset < end:
            refuse(
                f"{where}, {shown(record.name)}",
                f"it begins at byte {record.offset:,}",
                f"one that does not overlap what ends at {end:,}",
            )
        end = record.offset + record.stored_nbytes
    return found


def write_tensor_cache(
    update: FolderUpdate,
    shards: list[list[Weight]],
    provenance: Provenance | None,
    bar: ProgressBar,
) -> None:
    """Write weights and their manifest into a folder."""
    written = []
    for index, shard in enumerate(shards):
        name = f"params_shard_{update.token}_{index}.bin"
        md5 = hashlib.md5(usedforsecurity=False)
        write_shard(update.new_file(name), b"", shard, bar, md5)
        records, offset = [], 0
        for one in shard:
            records.append(_Record(one.name, one.shape, one.dtype, "raw", one.nbytes, offset))
            offset += one.nbytes
        written.append(_Shard(name, "raw-shard", offset, records, md5.hexdigest()))
    metadata = {} if provenance is None else {MARK: provenance.to_json()}
    update.commit(TENSOR_CACHE, _Manifest(written, metadata))
