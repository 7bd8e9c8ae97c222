"""The tiled nest: a thread block moves a box of units through shared memory.

Definition
----------
A *tile* is a box of so many values of each digit that 128 bytes lie side by side in the output, and
128 in the input, as far as there are so many. A thread block reads the words of a tile into shared
memory, in the order of the input, and makes its units from there, in the order of the output: both
by whole sectors. Shared memory has some words more after each 128 bytes, so that what lies in a
column is in different banks.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

from tvm import relax, tirx

from .gpu_nest import (
    THREADS,
    Memory,
    Source,
    ceil,
    copied,
    even,
    group,
    local,
    loop,
    most_lanes,
    place,
    row_of,
    sequence,
    threads,
    unravel,
    wide,
    within,
)
from .gpu_units import Part, Read
from .size import Size, nominal

__all__ = ["LINE", "SHARED", "Staged", "tile_nest"]

LINE = 1024  # bits: what a warp reads or writes best
SHARED = 48 * 1024  # bytes that a thread block has on any GPU
_BANK = 32  # bits
_WARP = 32
_FULL = 4096 * 8  # bits that a thread block moves at least, where there are so many
_REPEATS = 16  # at most so many units of one word are made together


@dataclasses.dataclass(frozen=True)
class Staged:
    """Words of a box that are in shared memory.

    Attributes
    ----------
    read : Read
    extents : tuple of Size
        Of the digits.
    tile : tuple of int
        How many values of each are in the box.
    gap : int
        Words that are left out after each 128 bytes.
    """

    read: Read
    extents: tuple[Size, ...]
    tile: tuple[int, ...]
    gap: int

    @functools.cached_property
    def row(self) -> list[int]:
        """The digits whose values lie side by side in the input, innermost first."""
        row, length = [], 1
        for i in _by_step(self.read):
            if self.tile[i] > 1 and self.read.steps[i] in (length, -length):
                row.append(i)
                length *= self.tile[i]
        return row

    @functools.cached_property
    def order(self) -> list[int]:
        """Those, and the others, as in the output."""
        others = [i for i in _by_step(self.read) if self.tile[i] > 1 and i not in self.row]
        return self.row + sorted(others, reverse=True)

    @property
    def count(self) -> int:
        """Words."""
        return math.prod(self.tile[i] for i in self.order)

    @property
    def bytes(self) -> int:
        """Of shared memory."""
        return (self._index(self.count - 1) + 1) * self.read.bits // 8

    def _index(self, number: Any) -> Any:
        line = LINE // self.read.bits
        if isinstance(number, int):
            return number + number // line * self.gap
        return number + tirx.truncdiv(number, tirx.const(line, str(number.ty))) * self.gap

    def buffer(self) -> relax.Var:
        """Shared memory."""
        bits = self.read.bits
        return tirx.decl_buffer((self.bytes * 8 // bits,), f"uint{bits}", "shared", scope="shared")

    def numbered(self, buffer: relax.Var, start: Any) -> Source:
        """Where a read of the same words is found, of a box that begins at a word."""

        def at(digits: Sequence[Any]) -> Any:
            return self._index(place(self.read.base, self.read.steps, digits) - start)

        return Source(buffer, at, 1)

    def source(self, buffer: relax.Var, origins: Sequence[Any]) -> Source:
        """Where the read is found, of a box that begins at some digits."""

        def at(digits: Sequence[Any]) -> Any:
            total, way = tirx.const(0, "int64"), 1
            for i in self.order:
                total = total + (digits[i] - origins[i]) * way
                way *= self.tile[i]
            return self._index(total)

        inner = self.order[0] if self.order else -1
        row = math.gcd(self.tile[inner], self.gap)
        is_row = inner == len(self.tile) - 1 and self.read.steps[-1] == 1
        return Source(buffer, at, row if is_row else 1)

    def filled(
        self, memory: Memory, buffer: relax.Var, origins: Sequence[Any], most: int
    ) -> tirx.Stmt:
        """Read the box, by so many threads."""
        order, lanes = self.order, self._lanes()
        sizes = [self.tile[i] for i in reversed(order)]
        sizes = [*sizes[:-1], sizes[-1] // lanes] if sizes else []
        dtype = f"uint{self.read.bits}"

        def one(number: Any) -> tirx.Stmt:
            at = dict(zip(reversed(order), unravel(number, sizes), strict=True))
            if order:
                at[order[0]] = at[order[0]] * lanes
            digits = [o + wide(at[i]) if i in at else o for i, o in enumerate(origins)]
            found, zero = local(dtype, lanes, "found"), tirx.const(0, "int32")
            start = place(self.read.base, self.read.steps, digits)
            done = sequence(
                tirx.AllocBuffer(found),
                copied(lanes, found, zero, memory.view(self.read.param, dtype), start),
                loop(
                    lanes,
                    lambda lane: tirx.BufferStore(
                        buffer, found[lane], [self._index(number * lanes + lane)]
                    ),
                ),
            )
            return within(done, self.extents, self.tile, digits)

        return threads(self.count // lanes, one, most)

    def _lanes(self) -> int:
        """Words of a bank that lie side by side, and are all in the box or not."""
        steps, inner = self.read.steps, self.order[0] if self.order else -1
        if not self.row or steps[inner] != 1:
            return 1
        sizes = [self.read.base, self.extents[inner], self.tile[inner]]
        sizes += [step for i, step in enumerate(steps) if i != inner]
        return even(sizes, max(1, _BANK // self.read.bits))


def _by_step(read: Read) -> list[int]:
    """The digits that words differ by, innermost first."""
    digits = [i for i, step in enumerate(read.steps) if step != 0]
    return sorted(digits, key=lambda i: abs(nominal(read.steps[i])))


def _tile_of(part: Part, read: Read) -> tuple[int, ...]:
    """How many values of each digit a thread block takes."""
    extents = [nominal(extent) for extent in part.extents]
    tile = [1] * len(extents)
    for lines in (1, 2, 4, 8):
        for order, bits in ((range(len(extents))[::-1], part.bits), (_by_step(read), read.bits)):
            room = lines * max(_WARP, LINE // bits)
            for i in order:
                taken = min(extents[i], room)
                tile[i] = max(tile[i], taken)
                room = -(-room // max(taken, 1))
        if math.prod(tile) * max(part.bits, read.bits) >= _FULL:
            break
    for i, step in enumerate(read.steps):
        if step == 0 and extents[i] <= _REPEATS:
            tile[i] = extents[i]
    return tuple(tile)


def tile_nest(memory: Memory, output: int, part: Part, reads: Sequence[Read]) -> tirx.Stmt | None:
    """Thread blocks move tiles, some reads by way of shared memory.

    None if these have no rows there, or no room.
    """
    tile = _tile_of(part, reads[0])
    lanes = even([tile[-1]], row_of(part, most_lanes([part])))
    staged = {}
    for read in reads:
        is_row = read.steps[-1] == 1 and even(read.steps[:-1], lanes) == lanes
        gap = lanes if is_row else max(1, _BANK // (lanes * part.bits))
        staged[read] = Staged(read, part.extents, tile, gap)
    fits = sum(each.bytes for each in staged.values()) <= SHARED
    if not fits or not any(each.row for each in staged.values()):
        return None
    groups = math.prod(tile) // lanes
    most = min(THREADS, -(-groups // _WARP) * _WARP)

    def inside(point: list[Any]) -> tirx.Stmt:
        origins = [wide(number) * size for number, size in zip(point, tile, strict=True)]
        buffers = {read: each.buffer() for read, each in staged.items()}
        before: list[tirx.Stmt] = []
        for read, each in staged.items():
            before += [
                tirx.AllocBuffer(buffers[read]),
                each.filled(memory, buffers[read], origins, most),
            ]

        def find(read: Read) -> Source:
            each = staged.get(read)
            return memory.source(read) if each is None else each.source(buffers[read], origins)

        def one(number: Any) -> tirx.Stmt:
            *rows, last = unravel(number, [*tile[:-1], tile[-1] // lanes])
            inner = zip(origins, [*rows, last * lanes], strict=True)
            digits = [origin + wide(digit) for origin, digit in inner]
            made, zero = local(part.dtype, lanes, "made"), tirx.const(0, "int32")
            make = group(
                part, digits, lanes, find, lambda at, unit: tirx.BufferStore(made, unit, [at])
            )
            there = place(part.into, part.steps, digits)
            write = copied(lanes, memory.view(output, part.dtype), there, made, zero)
            return within(sequence(tirx.AllocBuffer(made), make, write), part.extents, tile, digits)

        return sequence(*before, threads(groups, one, most))

    return memory.nest([ceil(n, size) for n, size in zip(part.extents, tile, strict=True)], inside)
