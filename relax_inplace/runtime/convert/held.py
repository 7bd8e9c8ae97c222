"""Who else refers to the weights: what cannot be freed, and why."""

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
    """Weights cannot be freed, as something else refers to them; raised if that is asked for.

    Attributes
    ----------
    held : str
        How many, and the first of them: slot, name, bytes, and by what.
    """

    template = "{held}. Nothing has changed; let go of them, or convert without strict"


@dataclasses.dataclass(frozen=True)
class HeldWeight:
    """A weight that something else refers to: its memory stays when its slot is replaced.

    Attributes
    ----------
    slot : str
    name : str
    nbytes : int
    by : str
        What refers to it, as far as can be told.
    """

    slot: str
    name: str
    nbytes: int
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
        No Python variable may refer to its tensors.
    names : sequence of str
        One for each.
    tied : container of str
        Slots that may hold one tensor: the transform takes one for the other, and frees the rest.

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
