"""Other references to the weights, which keep them from being freed."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Sequence
from typing import Any

import tvm_ffi

from ...errors import StructuredError
from ...libinfo import load_library
from ..slots import leaf_at, leaves_of
from ..tensor_info import TensorInfo

__all__ = ["HeldWeight", "HeldWeightsError", "find_held"]


class HeldWeightsError(StructuredError):
    """Something else refers to weights, so that they cannot be freed; raised with ``strict``.

    Attributes
    ----------
    held : str
        The first of these weights: slot, name, bytes and holder; and the number of the others.
    """

    template = "{held}. Nothing has changed; let go of them, or convert without strict"


@dataclasses.dataclass(frozen=True)
class HeldWeight:
    """A weight that something else refers to: its memory stays when its slot is replaced."""

    slot: str
    name: str
    nbytes: int
    #: The holder, as far as it is known.
    by: str

    def __str__(self) -> str:
        return f"slot {self.slot} `{self.name}` ({self.nbytes:,} bytes) is held by {self.by}"


def find_held(
    fields: tvm_ffi.Array, names: Sequence[str], tied: Container[str] = ()
) -> list[HeldWeight]:
    """Look for other owners of the tensors in a tuple.

    Parameters
    ----------
    fields : tvm_ffi.Array
        The tuple. No Python variable may refer to its tensors.
    names : sequence of str
        A name for each tensor.
    tied : container of str
        Slots that may hold the same tensor: the transform reads one of them, and frees the rest.

    Returns
    -------
    list of HeldWeight
    """
    load_library()
    references = tvm_ffi.get_global_func("relax_inplace.OutsideReferences")(fields)
    outside, first = list(references[0]), list(references[1])
    slots = [slot for slot, _ in leaves_of(fields)]
    held = []
    for leaf, (slot, name) in enumerate(zip(slots, names, strict=True)):
        if outside[leaf] <= 0 and (first[leaf] == leaf or slot in tied):
            continue
        tensor = leaf_at(fields, slot)
        if first[leaf] != leaf:
            by = f"slot {slots[first[leaf]]}, which holds the same tensor"
        elif _is_in_cache(tensor, name):
            by = "TVM's tensor cache (vm.builtin.tensor_cache.clear empties it)"
        else:
            by = "something outside: a variable, a container, or an array that shares its memory"
        held.append(HeldWeight(slot, name, _nbytes(tensor), by))
    return held


def _nbytes(tensor: Any) -> int:
    return TensorInfo("", tuple(map(int, tensor.shape)), str(tensor.dtype)).nbytes or 0


def _is_in_cache(tensor: Any, name: str) -> bool:
    get = tvm_ffi.get_global_func("vm.builtin.tensor_cache.get", allow_missing=True)
    cached = None if get is None else get(name)
    return cached is not None and bool(cached.same_as(tensor))
