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

import re
from pathlib import Path, PurePosixPath
from typing import Any

from .contained_path import contained_path
from .manifest import list_of, mark_in, read_manifest, size_of, text_of
from .regular_file import opened
from .source import Record, Source, SourceFile, element_count
from .source_error import refuse, shown
from .tensor_type import TensorType

__all__ = ["DTYPES", "MANIFESTS", "read_tensor_cache"]

MANIFESTS = ("tensor-cache.json", "ndarray-cache.json")  # its name now, and before TVM 0.22
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


def read_tensor_cache(manifest: Path) -> Source:
    """What a manifest and its files hold.

    Raises
    ------
    SourceError
        The manifest is not one, or the files are not what it says.
    """
    raw, document = read_manifest(manifest)
    where = shown(manifest)
    files: dict[str, SourceFile] = {}
    records: list[Record] = []
    for index, shard in enumerate(list_of(document, "records", where)):
        at = f"{where}, shard {index}"
        if not isinstance(shard, dict):
            refuse(at, f"{shown(shard)} given", "an object")
        file = _file(manifest, shard, at)
        # The same bytes for two shards could make a small file a large allocation.
        path = str(PurePosixPath(file.name))
        if path in files:
            refuse(at, f"the file {shown(file.name)} is given twice", "a file for each shard")
        files[path] = file
        records += _records(file, shard, at)
    mark = mark_in(document.get("metadata"), where)
    return Source.of(manifest, "tensor-cache", records, files.values(), mark, raw)


def _file(manifest: Path, shard: dict[str, Any], where: str) -> SourceFile:
    name = text_of(shard, "dataPath", where)
    if (form := text_of(shard, "format", where)) != "raw-shard":
        refuse(where, f"the format {shown(form)}", "'raw-shard'", "TVM knows no other")
    md5 = shard.get("md5sum")
    if md5 is not None and not (isinstance(md5, str) and re.fullmatch("[0-9a-fA-F]{32}", md5)):
        refuse(where, f"'md5sum' is {shown(md5)}", "32 hexadecimal digits")
    path = contained_path(manifest, name, where)
    with opened(path) as descriptor:
        file = SourceFile.of(path, name, descriptor, md5 and md5.lower())
    if file.nbytes != size_of(shard.get("nbytes"), "'nbytes'", where):
        refuse(
            where,
            f"the file {shown(name)} has {file.nbytes:,} bytes",
            f"{shard['nbytes']:,}",
            "download it again",
        )
    return file


def _records(file: SourceFile, shard: dict[str, Any], where: str) -> list[Record]:
    records = []
    for index, entry in enumerate(list_of(shard, "records", where)):
        at = f"{where}, record {index}"
        if not isinstance(entry, dict):
            refuse(at, f"{shown(entry)} given", "an object")
        records.append(_record(file, entry, at))
    records.sort(key=lambda record: (record.offset, record.nbytes))
    end = 0
    for record in records:
        if record.offset < end:
            refuse(
                f"{where}, record {shown(record.name)}",
                f"it begins at byte {record.offset:,}",
                f"one that does not overlap what ends at {end:,}",
            )
        end = record.offset + record.nbytes
    return records


def _record(file: SourceFile, entry: dict[str, Any], where: str) -> Record:
    name = text_of(entry, "name", where)
    where = f"{where} {shown(name)}"
    dtype = text_of(entry, "dtype", where)
    if dtype not in DTYPES:
        refuse(where, f"the dtype {shown(dtype)}", "one that TVM has tensors of")
    encoding = text_of(entry, "format", where)
    if encoding not in ("raw", "f32-to-bf16"):
        refuse(where, f"the format {shown(encoding)}", "'raw' or 'f32-to-bf16'")
    if dtype != "float32":
        encoding = "raw"
    sizes = list_of(entry, "shape", where)
    shape = tuple(size_of(size, "a size of 'shape'", where) for size in sizes)
    count = element_count(shape, where)
    nbytes = size_of(entry.get("nbytes"), "'nbytes'", where)
    stored = TensorType(name, (count,), "bfloat16" if encoding == "f32-to-bf16" else dtype).nbytes
    if nbytes != stored:
        refuse(
            where,
            f"{nbytes:,} bytes for {TensorType(name, shape, dtype)} stored as {encoding}",
            f"{stored:,}",
        )
    offset = size_of(entry.get("byteOffset"), "'byteOffset'", where)
    if offset + nbytes > file.nbytes:
        refuse(
            where,
            f"bytes {offset:,} to {offset + nbytes:,}",
            f"bytes of the file {shown(file.name)}, which has {file.nbytes:,}",
        )
    return Record(name, shape, dtype, file.path, offset, nbytes, encoding)
