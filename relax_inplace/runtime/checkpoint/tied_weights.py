"""Weights that a module takes for one: where there are several, they have to be equal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tvm

from ..shown import shown
from ..tensor_bytes import bytes_of
from ..tensor_copy import on_host
from .checkpoint import Checkpoint
from .error import refuse
from .files import opened, read_into
from .reading import CheckpointReader
from .stored_tensor import StoredTensor

__all__ = ["require_equal", "require_equal_tensors"]

_CHUNK = 1 << 20
_EXPECTED = "the same numbers: the module was made with tied=, and takes one for the other"
_REMEDY = "make it without tied=, or give the weights that it was made for"


def require_equal(checkpoint: Checkpoint, groups: Sequence[Sequence[StoredTensor]]) -> None:
    """Compare tied weights in their files, bit by bit, before memory is taken for one.

    Raises
    ------
    CheckpointError
        Two differ.
    """
    for first, *others in groups:
        for other in others:
            if not _is_same(checkpoint, first, other):
                _refuse(shown(checkpoint.path), first.name, other.name)


def require_equal_tensors(where: str, tensors: Sequence[tuple[str, Any]]) -> None:
    """Compare tied weights that are loaded, given with their names."""
    (name, first), *others = tensors
    for other_name, other in others:
        if not first.same_as(other) and not np.array_equal(
            bytes_of(on_host(first)), bytes_of(on_host(other))
        ):
            _refuse(where, name, other_name)


def _refuse(where: str, first: str, other: str) -> None:
    refuse(where, f"{shown(first)} and {shown(other)} differ", _EXPECTED, _REMEDY)


def _is_same(checkpoint: Checkpoint, first: StoredTensor, other: StoredTensor) -> bool:
    if (first.shape, first.dtype) != (other.shape, other.dtype):
        return False
    if first.encoding != other.encoding:
        with CheckpointReader(checkpoint, tvm.cpu()) as reader:
            one, two = (bytes_of(reader.read(record.name)) for record in (first, other))
            return bool(np.array_equal(one, two))
    if (first.file, first.offset) == (other.file, other.offset):
        return True
    files = {file.path: file for file in checkpoint.files}
    parts = [np.empty(min(_CHUNK, first.stored_nbytes), "uint8") for _ in range(2)]
    with opened(first.file) as one_file, opened(other.file) as other_file:
        for record, descriptor in ((first, one_file), (other, other_file)):
            files[record.file].check_unchanged(descriptor)
        for start in range(0, first.stored_nbytes, _CHUNK):
            parts = [part[: first.stored_nbytes - start] for part in parts]
            for record, descriptor, part in (
                (first, one_file, parts[0]),
                (other, other_file, parts[1]),
            ):
                where = f"{shown(record.file)}, {shown(record.name)}"
                read_into(descriptor, part, record.offset + start, where)
            if not np.array_equal(parts[0], parts[1]):
                return False
    return True
