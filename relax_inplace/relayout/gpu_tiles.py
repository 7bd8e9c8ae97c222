"""The tiled schedule: a thread block moves a box of elements through shared memory.

Definition: a *tile* is a box of outputs that spans 128 bytes along the output's contiguous axes and
128 bytes along the input's. A thread block reads the inputs of a tile into shared memory, in the
order of the input, and writes the outputs from there, in the order of the output: both by whole
sectors. A row of shared memory is padded to an odd number of banks, so that neighbours in a column
lie in different ones.

Axes are cut where an index is divided, and the pieces, *digits*, are what has strides: those of a
blocked layout, too.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import ir, relax, tirx
from tvm.s_tir import SBlock, Schedule, ScheduleError
from tvm.s_tir import transform as lowering
from tvm.s_tir.schedule import LoopRV, SBlockRV

from .gpu_flat import (
    THREADS,
    WARP,
    divides,
    divisor,
    lanes_of,
    only_loads,
    place_of,
    spread,
    write_groups,
)
from .gpu_nest import PARTS, Nest, Traffic, Unknown, bytes_of, number_of, traffic_of, value_of

__all__ = ["fits", "schedule_tiles", "with_known_sizes"]

_LINE = 128  # bytes: what a warp reads or writes best
_BANK = 4  # bytes: of a bank of shared memory
_SHARED = 48 * 1024  # bytes: what a block has on any GPU
_FULL = 4096  # bytes that a thread block moves at least, where there are so many
_REPEATS = 16  # at most so many outputs of one input, or groups of one thread, are kept together
_EXCESS = 1.25  # moved over needed: an input of less is read where it is
_GAIN = 0.9  # tiles that save less are not worth their barrier
_TRIALS = 16
_MOST = 2**31 - 1  # elements of an axis
_LOWER = tvm.transform.Sequential(  # as far as the sizes of shared memory are known
    [
        lowering.LowerInitBlock(),
        lowering.PlanAndUpdateBufferAllocationLocation(),
        lowering.ConvertBlocksToOpaque(),
        lowering.CompactBufferAllocation(),
    ]
)


def schedule_tiles(
    schedule: Schedule, nest: Nest, reads: Mapping[relax.Var, Traffic], excess: float
) -> Schedule | None:
    """Tiles through shared memory; None if there are none, or they move hardly less.

    Parameters
    ----------
    schedule : Schedule
        It is left as it was.
    nest : Nest
    reads : mapping of relax.Var to Traffic
        What the flat schedule moves of each input.
    excess : float
        What it moves of all for each byte that it needs.
    """
    try:
        digits = _digits_of(nest)
        if digits is None:
            return None
        found = [
            _access_of(nest, digits, buffer)
            for buffer in sorted(reads, key=lambda buffer: reads[buffer].wasted, reverse=True)
            if reads[buffer].excess > _EXCESS
        ]
        if not found or found[0] is None:
            return None
        staged = [access for access in found if access is not None]
        _choose_tile(nest, digits, staged[0])
        tiled, _ = traffic_of(nest, _tile_runs(nest, digits))
    except Unknown:
        return None
    if tiled.excess > _GAIN * excess:
        return None
    try:
        tiles = _with_tiles(schedule.copy(), nest, digits, staged)
    except ScheduleError:
        return None
    return tiles if tiles is not None and fits(tiles.mod["main"]) else None


def with_known_sizes(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Its shared memory has constant sizes.

    compact_buffer_region.cc makes a buffer as large as what is used of it, 32 x 33, say; but of one
    of n x m, min(n, 32) x min(m, 33), which is no constant.
    """
    old: list[relax.Var] = []
    tvm_ffi.structural_walk(function.body, (SBlock, lambda block: old.extend(block.alloc_buffers)))
    new = {}
    for buffer in old:
        sizes = [
            size if isinstance(size, tirx.IntImm) else tirx.const(_MOST, size.ty.dtype)
            for size in buffer.ty.shape[:]
        ]
        scope = buffer.ty.storage_scope
        new[buffer] = tirx.decl_buffer(sizes, buffer.ty.dtype, buffer.name, scope=scope)
    return tvm_ffi.structural_map(
        function, (relax.Var, lambda var: new.get(var, var)), order="post"
    )


def fits(function: tirx.PrimFunc) -> bool:
    """Whether what a thread block shares has a constant size, and there is room for it."""
    lowered = _LOWER(ir.IRModule({"main": with_known_sizes(function)}))["main"]
    buffers: list[relax.Var] = []
    tvm_ffi.structural_walk(lowered, (SBlock, lambda block: buffers.extend(block.alloc_buffers)))
    total = 0
    for buffer in buffers:
        # The outermost stride covers the padding.
        sizes = [buffer.ty.shape[0], *(buffer.ty.strides[:1] or buffer.ty.shape[1:])]
        if not all(isinstance(size, tirx.IntImm) for size in sizes):
            return False
        total += math.prod(map(int, sizes)) * bytes_of(buffer)
    return total <= _SHARED


@dataclasses.dataclass
class _Digit:
    """A loop of the tiled schedule: an index of the block, or a digit of it.

    ``scale`` is what a step counts for in the index; ``tile``, how many a thread block takes.
    """

    index: relax.Var
    scale: int
    extent: int
    tile: int = 1


@dataclasses.dataclass
class _Access:
    """A buffer that is read where a sum of digits says.

    ``steps`` has a row for each axis, and in it what each digit counts for; ``start`` is where the
    first output reads.
    """

    buffer: relax.Var
    start: Any
    steps: Any

    @property
    def strides(self) -> Any:
        """In elements, for each digit."""
        sizes = [number_of(size) for size in self.buffer.ty.shape[:]]
        pitches = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
        return np.array(pitches) @ self.steps


def _digits_of(nest: Nest) -> list[_Digit] | None:
    """The indices, cut where they are divided; None if that does not cut them evenly."""
    factors: dict[relax.Var, set[int]] = {index: {1} for index in nest.block.box}

    # Row 0 is the origin, then each index takes a step from there.
    steps = {index: np.eye(1 + len(factors))[1 + i] for i, index in enumerate(factors)}
    steps = {index: step.astype("int64") for index, step in steps.items()}

    def note(division: Any) -> None:
        if not isinstance(division.b, tirx.IntImm):
            return
        values = np.broadcast_to(value_of(division.a, steps), 1 + len(factors))
        for index, step in zip(factors, values[1:] - values[0], strict=True):
            factor, rest = divmod(int(division.b), int(step)) if step > 0 else (1, 0)
            if not rest and factor < nest.size_of(index):
                factors[index].add(factor)

    for load in nest.loads:
        for place in load.indices:
            tvm_ffi.structural_walk(place, ((tirx.FloorDiv, tirx.FloorMod), note))
    digits: list[_Digit] = []
    for index, size in nest.block.box.items():
        scales = sorted(factors[index])
        cuts = itertools.pairwise(scales)
        if any(high % low for low, high in cuts) or not divides(scales[-1], size):
            return None
        ends = [*scales[1:], number_of(size)]
        own = [_Digit(index, low, high // low) for low, high in zip(scales, ends, strict=True)]
        digits += reversed(own)
    return digits


def _access_of(nest: Nest, digits: Sequence[_Digit], buffer: relax.Var) -> _Access | None:
    """How a buffer is read; None if that is no sum of digits, or loads have several steps.

    None for a single number, which has no index.
    """
    if not buffer.ty.shape[:]:
        return None
    # A row is a point: the origin, a step of each digit, and some that try the sum.
    counts = np.zeros((1 + len(digits) + _TRIALS, len(digits)), "int64")
    random = np.random.default_rng(0)
    for place, digit in enumerate(digits):
        counts[1 + place, place] = digit.extent > 1
        counts[1 + len(digits) :, place] = random.integers(0, max(digit.extent, 1), _TRIALS)
    at = {index: np.zeros(len(counts), "int64") for index in nest.block.box}
    for digit, count in zip(digits, counts.T, strict=True):
        at[digit.index] += count * digit.scale
    accesses = []
    for load in nest.loads:
        if not load.source.same_as(buffer):
            continue
        values = [np.broadcast_to(value_of(i, at), len(counts)) for i in load.indices[:]]
        moves = np.array(values).reshape(len(values), -1)
        start, moves = moves[:, 0], moves - moves[:, :1]
        steps = moves[:, 1 : 1 + len(digits)]
        if (steps @ counts.T != moves).any():
            return None
        accesses.append(_Access(buffer, start, steps))
    first, *others = accesses
    return first if all((first.steps == other.steps).all() for other in others) else None


def _choose_tile(nest: Nest, digits: Sequence[_Digit], access: _Access) -> None:
    """Span a line along the output's contiguous digits, and one along the input's."""
    moving = [(abs(s), d) for s, d in zip(access.strides, digits, strict=True) if s]
    along_input = [digit for _, digit in sorted(moving, key=lambda pair: pair[0])]
    for lines in (1, 2, 4, 8):
        for order, buffer in ((digits[::-1], nest.output), (along_input, access.buffer)):
            room = lines * max(WARP, _LINE // bytes_of(buffer))
            for digit in order:
                part = min(digit.extent, room)
                digit.tile = max(digit.tile, part)
                room = -(-room // max(part, 1))
        if math.prod(digit.tile for digit in digits) * nest.widest >= _FULL:
            break
    # Outputs that are made from the same inputs are made while these are at hand.
    for stride, digit in zip(access.strides, digits, strict=True):
        if not stride and digit.extent <= _REPEATS:
            digit.tile = max(digit.extent, 1)


def _tile_runs(nest: Nest, digits: Sequence[_Digit]) -> list[dict[relax.Var, Any]]:
    tiles = [digit.tile for digit in digits]
    inside = np.unravel_index(np.arange(math.prod(tiles)), tiles)
    runs = []
    for part in PARTS:
        at = {index: np.zeros(len(inside[0]), "int64") for index in nest.block.box}
        exists = np.ones(len(inside[0]), bool)
        for digit, count in zip(digits, inside, strict=True):
            place = int(digit.extent * part) // digit.tile * digit.tile + count
            exists &= place < digit.extent
            at[digit.index] += place * digit.scale
        runs.append({index: places[exists] for index, places in at.items()})
    return runs


def _with_tiles(
    schedule: Schedule, nest: Nest, digits: Sequence[_Digit], staged: Sequence[_Access]
) -> Schedule | None:
    loops: list[LoopRV] = []
    for index, loop in zip(nest.block.box, nest.loops(schedule), strict=True):
        own = [digit.extent for digit in digits if digit.index.same_as(index)]
        loops += schedule.split(loop, [None, *own[1:]])
    cut = [schedule.split(lp, [None, d.tile]) for lp, d in zip(loops, digits, strict=True)]
    outer, inner = [list(side) for side in zip(*cut, strict=True)]
    schedule.reorder(*outer, *inner)
    grid = _bind_grid(schedule, outer)
    size = math.prod(digit.tile for digit in digits)
    threads = max(WARP, min(THREADS, size // 4 // WARP * WARP))
    written = _output_group(nest, digits, staged[0])
    even = all(digit.extent % digit.tile == 0 for digit in digits) and not size % (
        threads * written
    )
    if not even and not only_loads(nest.block.value):
        written = 1
    for access in staged:
        place = place_of(schedule, nest, access.buffer)
        copy = schedule.cache_read(nest.place, place, "shared")
        schedule.compute_at(copy, grid, preserve_unit_loops=True)
        if not _read_into(schedule, copy, digits, access, threads, written):
            return None
    repeat, thread, lanes = spread(schedule, inner, [None, threads], written)
    _unroll(schedule, repeat)
    write_groups(schedule, nest.place, thread, lanes)
    return schedule


def _neighbours(digits: Sequence[_Digit], access: _Access) -> int:
    """How many neighbours of the output are neighbours in the input, too: a power of two."""
    last = next(i for i in reversed(range(len(digits))) if digits[i].tile > 1 or i == 0)
    step = access.steps[:, last]
    most = lanes_of(bytes_of(access.buffer))
    if step[-1] != 1 or step[:-1].any():
        return 1
    return math.gcd(digits[last].tile, most)


def _bind_grid(schedule: Schedule, outer: Sequence[LoopRV]) -> LoopRV:
    """Give each tile to a thread block: the innermost loop of these."""
    *rows, columns = outer
    if isinstance(schedule.get(columns).extent, tirx.IntImm) or not rows:
        grid = schedule.fuse(*outer)
        schedule.bind(grid, "blockIdx.x")
        return grid
    # To divide by a symbolic size would take longer than to copy a tile. CUDA has at most 65,535
    # blocks along y: two million elements of an axis.
    schedule.bind(schedule.fuse(*rows), "blockIdx.x")
    schedule.bind(columns, "blockIdx.y")
    return columns


def _unroll(schedule: Schedule, repeat: LoopRV) -> None:
    """Let all repeats of a thread be in flight at once."""
    if int(schedule.get(repeat).extent) <= _REPEATS:
        schedule.unroll(repeat)


def _read_into(
    schedule: Schedule,
    copy: SBlockRV,
    digits: Sequence[_Digit],
    access: _Access,
    threads: int,
    written: int,
) -> bool:
    """Read a box into shared memory, where threads that write neighbours use different banks."""
    box = schedule.get_loops(copy)[-len(access.steps) :]
    lengths = [schedule.get(loop).extent for loop in box]
    if not all(isinstance(length, tirx.IntImm) for length in lengths):
        return False
    size = bytes_of(access.buffer)
    # Such threads are `written` rows apart: that has to be an odd number of banks, or of groups.
    unit = max(_neighbours(digits, access), _BANK // (size * written), 1)
    for place in reversed(range(len(digits))):
        axes = np.flatnonzero(access.steps[:-1, place])
        if digits[place].tile > 1 and len(axes):
            schedule.storage_align(copy, 0, int(axes[-1]), factor=2 * unit, offset=unit)
            break
    group = _input_group(digits, access, int(lengths[-1]))
    repeat, thread, lanes = spread(schedule, box, [None, threads], group)
    _unroll(schedule, repeat)
    if group == 1:
        return True
    if unit % group == 0:
        schedule.vectorize(lanes)
        return True
    # The rows are not aligned: codegen_c.cc checks that of a vector it loads, not of one it stores.
    read = schedule.cache_read(copy, 0, "local")
    schedule.compute_at(read, thread, preserve_unit_loops=True)
    schedule.vectorize(schedule.get_loops(read)[-1])
    schedule.unroll(lanes)
    return True


def _input_group(digits: Sequence[_Digit], access: _Access, length: int) -> int:
    """How many inputs a thread reads at once: they are in one row, and aligned."""
    most = max(_BANK // bytes_of(access.buffer), _neighbours(digits, access))
    group = divisor(access.buffer.ty.shape[-1], most)
    starts = [digit.tile * step for digit, step in zip(digits, access.steps[-1], strict=True)]
    return math.gcd(group, length, int(access.start[-1]), *map(int, starts))


def _output_group(nest: Nest, digits: Sequence[_Digit], access: _Access) -> int:
    """How many outputs a thread writes at once."""
    most = max(_BANK // bytes_of(nest.output), _neighbours(digits, access))
    group = divisor(nest.output.ty.shape[-1], min(most, lanes_of(bytes_of(nest.output))))
    return math.gcd(group, digits[-1].tile, digits[-1].extent)
