"""Hugging Face's safetensors: a file, or several and an index that says which weight is where.

The header is read and checked by Hugging Face's own reader, which warrants that the weights lie in
the file without a hole and without an overlap. So their offsets follow from their sizes. The bytes
are read by ours: it fills the memory of TVM's tensor.

    {"metadata": {...}, "weight_map": {"w0": "model-00001-of-00002.safetensors", ...}}
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

import numpy as np
from safetensors import SafetensorError, safe_open

from .contained_path import contained_path
from .manifest import mark_in, object_in, parse_object, read_manifest
from .mark import Mark
from .regular_file import opened, read_into
from .source import Record, Source, SourceFile, element_count
from .source_error import refuse, shown, system_text
from .tensor_type import TensorType

__all__ = ["DTYPES", "INDEX", "SINGLE", "read_safetensors", "read_safetensors_index"]

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
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


def read_safetensors(path: Path) -> Source:
    """What one file holds.

    Raises
    ------
    SourceError
        It is not a safetensors file, or holds what TVM cannot.
    """
    file, records, mark, ties = _read_file(Path(os.path.realpath(path)), path.name, shown(path))
    return Source.of(path, "safetensors", records, [file], mark, ties=ties)


def read_safetensors_index(index: Path) -> Source:
    """What an index and its files hold.

    Raises
    ------
    SourceError
        One of them is damaged, or they do not agree.
    """
    raw, document = read_manifest(index)
    where = shown(index)
    placed: dict[str, set[str]] = {}  # the weights that the index says are in a file
    for name, file in object_in(document, "weight_map", where).items():
        if not isinstance(file, str):
            refuse(f"{where}, {shown(name)}", f"{shown(file)} given", "the name of a file")
        placed.setdefault(str(PurePosixPath(file)) if file else "", set()).add(name)
    files: list[SourceFile] = []
    records: list[Record] = []
    marks = {mark_in(document.get("metadata"), where)}
    ties: dict[str, str] = {}
    for name, weights in placed.items():
        at = f"{where}, file {shown(name)}"
        file, found, mark, tied = _read_file(contained_path(index, name, at), name, at)
        here = {record.name: record for record in found}
        if missing := weights - set(here):
            refuse(at, f"the file lacks {_some(missing)}", "what 'weight_map' says")
        files.append(file)
        # What it holds besides is none of this model's: a file may be shared, or be an older one.
        records += [here[name] for name in here if name in weights]
        marks.add(mark)
        ties.update(tied)
    marks.discard(None)
    if len(marks) > 1:
        refuse(where, "files converted in different ways", "one mark of converted weights")
    mark = marks.pop() if marks else None
    return Source.of(index, "safetensors", records, files, mark, raw, ties)


def _read_file(
    path: Path, name: str, where: str
) -> tuple[SourceFile, list[Record], Mark | None, dict[str, str]]:
    with opened(path) as descriptor:
        header = _header(descriptor, where)
        file = SourceFile.of(path, name, descriptor, header=header)
        try:
            with safe_open(path, "np", backend="pread") as checked:
                slices = [(key, checked.get_slice(key)) for key in checked.offset_keys()]
                stored = [(key, one.get_dtype(), tuple(one.get_shape())) for key, one in slices]
                metadata = checked.metadata()
        except (SafetensorError, OSError) as error:
            refuse(where, system_text(error), "a safetensors file", because=error)
    parse_object(header, where)  # Hugging Face's reader takes the last of two with the same name
    records = []
    offset = 8 + len(header)
    for key, stored_dtype, shape in stored:
        at = f"{where}, {shown(key)}"
        dtype = DTYPES.get(stored_dtype)
        if dtype is None:
            refuse(
                at,
                f"the dtype {shown(stored_dtype)}",
                "one that TVM has tensors of",
                "store it as another",
            )
        nbytes = TensorType(key, (element_count(shape, at),), dtype).nbytes or 0
        records.append(Record(key, shape, dtype, path, offset, nbytes))
        offset += nbytes
    if offset != file.nbytes:
        refuse(where, f"{file.nbytes:,} bytes", f"{offset:,}, as its header says")
    # `save_model` of safetensors.torch names what it leaves out, and which weight it is.
    return file, records, mark_in(metadata, where), dict(metadata or {})


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


def _some(names: set[str]) -> str:
    shortened = ", ".join(map(shown, sorted(names)[:3]))
    return f"{len(names)} weights ({shortened})"
