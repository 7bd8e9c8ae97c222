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
from .reading import CheckpointReader
from .stored_tensor import StoredTensor

__all__ = ["require_equal", "require_equal_tensors"]

_EXPECTED = "the same numbers: the module was made with tied=, and takes one for the other"
_REMEDY = "make it without tied=, or give the weights that it was made for"


def require_equal(checkpoint: Checkpoint, groups: Sequence[Sequence[StoredTensor]]) -> None:
    """Compare tied weights in their files, bit by bit, before memory is taken for one."""
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
    if (first.shape, first.dtype, first.cut) != (other.shape, other.dtype, other.cut):
        return False
    if (first.file, first.offset, first.encoding) == (other.file, other.offset, other.encoding):
        return True
    with (
        CheckpointReader(checkpoint, tvm.cpu()) as one,
        CheckpointReader(checkpoint, tvm.cpu()) as two,
    ):
        parts = zip(one.parts(first.name), two.parts(other.name), strict=True)
        return all(np.array_equal(part, other_part) for part, other_part in parts)
