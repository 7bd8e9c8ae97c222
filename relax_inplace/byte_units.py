"""Sizes and speeds for a person: bytes in the unit that fits them, of 10^3, 10^6 or 10^9."""

from __future__ import annotations

import dataclasses

__all__ = ["Unit", "in_units", "speed_in_units"]


@dataclasses.dataclass(frozen=True)
class Unit:
    """So many bytes, their name, and from which size on it is used."""

    bytes: int
    name: str
    least: int

    @classmethod
    def for_size(cls, size: float) -> Unit:
        """The largest unit in which a size is still told from one that is a little larger."""
        return next(one for one in _UNITS if size >= one.least)

    def of(self, size: float) -> str:
        """A size in this unit, in three digits or more."""
        value = size / self.bytes
        digits = 0 if value >= 100 or self.bytes == 1 else 1 if value >= 10 else 2
        return f"{value:,.{digits}f} {self.name}"


_UNITS = [
    Unit(10**9, "GB", 10**10),
    Unit(10**6, "MB", 10**6),
    Unit(10**3, "kB", 10**4),
    Unit(1, "bytes", 0),
]


def in_units(size: float) -> str:
    """A size as ``83.9 MB``, ``6,144 bytes``."""
    return Unit.for_size(size).of(size)


def speed_in_units(size: float, seconds: float) -> str:
    """Bytes by time as ``4.05 GB/s``."""
    speed = size / seconds if seconds else 0.0
    unit = next(one for one in _UNITS if speed >= one.bytes or one.bytes == 1)
    return f"{unit.of(speed)}/s"
