"""Which storage each new weight takes, for a person to read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from ..ir.byte_size import LargestOf, Size
from ..ir.table import plain_size, shown
from .donation import Donation, Taken

__all__ = ["PlannedStorage", "StoragePlan", "describe_donation"]


@dataclasses.dataclass
class PlannedStorage:
    """A tensor that a function makes, and the storage it lies in.

    Attributes
    ----------
    tensor : str
        ``slot 7``, where it is put, or a temporary's name.
    size : int or ByteSize
        Bytes.
    takes : str or None
        The spent tensor whose storage it takes, such as ``slot 3``; None if it is allocated.
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
    """Which storage each tensor takes that a function makes.

    Attributes
    ----------
    function : str
    storages : list of PlannedStorage
        In the order in which they are used first.
    peak, peak_without : int, ByteSize, LargestOf or None
        The most that is live at any time, and if nothing were donated; None if the function has
        branches, which are planned each by itself.
    """

    function: str
    storages: list[PlannedStorage]
    peak: Size | LargestOf | None
    peak_without: Size | LargestOf | None

    def __str__(self) -> str:
        """A line for each tensor, after how many there are of each kind."""
        in_place = sum(one.in_place for one in self.storages)
        allocated = sum(one.takes is None for one in self.storages)
        head = (
            f"{self.function}: of {len(self.storages)} new tensors {allocated} are allocated, "
            f"{len(self.storages) - allocated - in_place} take a spent storage, {in_place} are "
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


def describe_donation(function: str, donations: Sequence[Donation]) -> StoragePlan:
    """Of what was decided for a function's body, and for its branches."""
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
