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
    are_rows,
    ceil,
    copied,
    group,
    lanes_of,
    local,
    loop,
    place,
    sequence,
    threads,
    unravel,
    wide,
)
from .gpu_units import Part, Read
from .size import Size, expression, nominal, over

__all__ = ["LINE", "SHARED", "Staged", "tile_nest", "tile_of"]

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
    def order(self) -> list[int]:
        """The digits, as they lie in the input, innermost first; rows as in the output."""
        steps, run, length = self.read.steps, [], 1
        found = [i for i, step in enumerate(steps) if step != 0 and self.tile[i] > 1]
        for i in sorted(found, key=lambda i: abs(nominal(steps[i]))):
            if steps[i] in (length, -length):
                run.append(i)
                length *= self.tile[i]
        return run + [i for i in reversed(found) if i not in run]

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
        if not self.order or self.read.steps[self.order[0]] != 1:
            return 1
        inner, lanes = self.order[0], max(1, _BANK // self.read.bits)
        steps = [step for i, step in enumerate(self.read.steps) if i != inner]
        sizes = [self.read.base, self.extents[inner], self.tile[inner], *steps]
        while any(over(size, lanes) is None for size in sizes):
            lanes //= 2
        return lanes


def within(
    done: tirx.Stmt, extents: Sequence[Size], tile: Sequence[int], digits: Sequence[Any]
) -> tirx.Stmt:
    """Done where digits are below their extents, where tiles may go beyond."""
    for extent, size, digit in zip(extents, tile, digits, strict=True):
        if over(extent, size) is None:
            done = tirx.IfThenElse(digit < expression(extent), done, None)
    return done


def tile_of(part: Part, read: Read) -> tuple[int, ...]:
    """How many values of each digit a thread block takes."""
    extents = [nominal(extent) for extent in part.extents]
    inside = [i for i, step in enumerate(read.steps) if step != 0]
    inside.sort(key=lambda i: abs(nominal(read.steps[i])))
    tile = [1] * len(extents)
    for lines in (1, 2, 4, 8):
        for order, bits in ((range(len(extents))[::-1], part.bits), (inside, read.bits)):
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


def tile_nest(
    memory: Memory, output: int, part: Part, tile: Sequence[int], reads: Sequence[Read]
) -> tirx.Stmt | None:
    """Thread blocks move tiles; None if shared memory has no room for them.

    Parameters
    ----------
    memory : Memory
    output : int
    part : Part
        All of the output.
    tile : sequence of int
    reads : sequence of Read
        Those that go through shared memory.
    """
    lanes = lanes_of([part], lambda n: are_rows([part], n) and tile[-1] % n == 0)
    staged = {}
    for read in reads:
        is_row = read.steps[-1] == 1 and all(
            over(step, lanes) is not None for step in read.steps[:-1]
        )
        gap = lanes if is_row else max(1, _BANK // (lanes * part.bits))
        staged[read] = Staged(read, part.extents, tuple(tile), gap)
    if sum(each.bytes for each in staged.values()) > SHARED:
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
