"""The storage of each new weight, for a person to read."""

from __future__ import annotations

import dataclasses
import json

import tvm
from tvm import ir

from ..ir.byte_size import LargestOf, Size
from ..ir.table import plain_size, shown
from ..ir.updates import REFERENCE, functions_that_update
from .build import prepared
from .donate_storage import find_donations
from .donation import Taken
from .pipeline import lower_without_donation

__all__ = ["PlannedStorage", "StoragePlan", "plan_storage"]


@dataclasses.dataclass
class PlannedStorage:
    """A new tensor of a function, and its storage.

    Attributes
    ----------
    tensor : str
        The slot that it is put into, such as ``slot 7``, or a temporary's name.
    size : int or ByteSize
        Its bytes.
    takes : str or None
        The earlier tensor whose storage it takes, such as ``slot 3``; None if it is allocated.
    in_place : bool
        Whether the kernel that makes it reads that tensor, and writes over it.
    """

    tensor: str
    size: Size
    takes: str | None
    in_place: bool

    def __str__(self) -> str:
        """A line, such as ``slot 7 -> storage of slot 3``."""
        if self.takes is None:
            return f"{self.tensor} -> allocated, {shown(self.size)} bytes"
        if self.in_place:
            return f"{self.tensor} -> in place of {self.takes}"
        return f"{self.tensor} -> storage of {self.takes}"


@dataclasses.dataclass
class StoragePlan:
    """The storage of each new tensor of a function.

    Attributes
    ----------
    function : str
        The name of the function.
    storages : list of PlannedStorage
        The new tensors, in the order of their first use.
    peak, peak_without : int, ByteSize, LargestOf or None
        The most live bytes at any time, and the same without donation; None if the function has
        branches, each of which is planned by itself.
    """

    function: str
    storages: list[PlannedStorage]
    peak: Size | LargestOf | None
    peak_without: Size | LargestOf | None

    def __str__(self) -> str:
        """The number of tensors of each kind, then a line for each tensor."""
        in_place = sum(one.in_place for one in self.storages)
        allocated = sum(one.takes is None for one in self.storages)
        head = (
            f"{self.function}: of {len(self.storages)} new tensors {allocated} are allocated, "
            f"{len(self.storages) - allocated - in_place} reuse a storage, {in_place} are "
            "written in place"
        )
        if self.peak is not None:
            head += f"; peak {shown(self.peak)}, without donation {shown(self.peak_without)}"
        return "\n".join([head, *map(str, self.storages)]) + "\n"

    def to_json(self) -> str:
        """All of it; sizes are numbers, or text where they are symbolic."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields["storages"] = [vars(one) for one in self.storages]
        return json.dumps(fields, default=plain_size, indent=1)


def plan_storage(
    mod: ir.IRModule,
    target: str | tvm.target.Target,
    function: str | None = None,
    fused: bool | None = None,
) -> StoragePlan:
    """Plan the storage of each new weight, as ``tvm.compile`` would.

    Parameters
    ----------
    mod : tvm.ir.IRModule
        A module after ``InplaceTransformParams``, as ``tvm.compile`` takes it.
    target : str or tvm.target.Target
        The target of the compilation.
    function : str, optional
        The name of a function that updates its tuple; by default the only such function.
    fused : bool, optional
        Whether the pipeline fuses operators. By default as TVM's default pipeline: for a GPU only.

    Returns
    -------
    StoragePlan
        The plan; ``print`` shows it. It holds if nothing outside refers to the weights. A weight
        with another reference keeps its storage, and another storage is allocated.

    Raises
    ------
    ValueError
        The module has no such function.
    """
    updating = functions_that_update(mod)
    names = sorted(g.name_hint for g in updating if REFERENCE not in (mod[g].attrs or {}))
    if function is None and len(names) == 1:
        function = names[0]
    if function is None or function not in names:
        raise ValueError(
            f"plan_storage: function={function!r}, but the functions of the module that update a "
            f"tuple are {names}"
        )
    target = tvm.target.Target(target)
    fuses = "gpu" in target.keys if fused is None else fused
    ours, _, _ = prepared(mod, updating)
    lowered = lower_without_donation(ours, target, fuses)
    with target:
        donations = find_donations(lowered, function)
    only = donations[0] if len(donations) == 1 else None
    return StoragePlan(
        function,
        [_planned(taken) for donation in donations for taken in donation.taken],
        None if only is None else only.peak,
        None if only is None else only.peak_before,
    )


def _planned(taken: Taken) -> PlannedStorage:
    name = taken.tensor.name if taken.slot is None else f"slot {taken.slot}"
    takes = None if taken.donor is None else taken.donor.name
    return PlannedStorage(name, taken.size, takes, taken.in_place)
