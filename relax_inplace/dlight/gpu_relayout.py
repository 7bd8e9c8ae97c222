"""Relayout kernels on CUDA: whole memory sectors both ways, enough bytes in flight.

Definition: for each run of outputs that one thread block writes, a kernel *moves* the 32-byte sectors
that its reads touch, and the run itself; it *needs* the bytes that it reads and writes. Where it
moves at most 1.25 times what it needs (80% of the device copy), the *flat* schedule is chosen; else
the *tiled* one, if the kernel has tiles.

- **Flat**: consecutive threads take consecutive groups of outputs, up to 16 bytes each.
- **Tiled**: a thread block takes a box of outputs that spans 128 bytes along the output's contiguous
  axes and 128 bytes along the input's. It reads the box of inputs into shared memory, in the order
  of the input, and writes the outputs from there in the order of the output. A row of shared memory
  is padded to an odd number of accesses, so that a column lies in different banks.

Which axes are contiguous is seen from the addresses at a few sample points. They choose a schedule;
that it is right is TVM's part: only primitives of ``tvm.s_tir.Schedule`` are used, and ragged edges
and symbolic sizes become its predicates.

A kernel that is not made of independent elements, or that reads where its data says, is left to
TVM's dlight.
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
from tvm import ir, relax, sym, tirx
from tvm.s_tir import SBlock, Schedule, ScheduleError
from tvm.s_tir import transform as lowering
from tvm.s_tir.schedule import LoopRV, SBlockRV
from tvm.target import Target

from ..analysis.te_block import TEBlock, loads_in, te_blocks
from .inlining import with_producers_inlined

__all__ = ["schedule_gpu_relayout"]

_SECTOR = 32  # bytes: the least that the memory of a GPU is read and written in
_LINE = 128  # bytes: what a warp reads or writes best
_ACCESS = 16  # bytes: the widest access of one thread
_BANK = 4  # bytes: of a bank of shared memory
_WARP = 32
_THREADS = 256  # of a block
_SHARED = 48 * 1024  # bytes: what a block has on any GPU
_EXCESS = 1.25  # moved over needed: 80% of the device copy
_CACHE = 1.6  # what a warp moves in vain may stay in the cache of its multiprocessor: 2x is bearable
_REPEATS = 16  # at most so many outputs of one input, or elements of one thread, are kept together
_SIZE = 4096  # stands for a symbolic size where addresses are sampled
_PARTS = (0, 0.3, 0.5, 0.9)  # of the output, where they are
_TRIALS = 16
_GAIN = 0.9  # of what the flat schedule moves for what it needs; tiles cost something
_MOST = 2**31 - 1  # elements of an axis
_LOWER = tvm.transform.Sequential(  # as far as the sizes of shared memory are known
    [
        lowering.LowerInitBlock(),
        lowering.PlanAndUpdateBufferAllocationLocation(),
        lowering.ConvertBlocksToOpaque(),
        lowering.CompactBufferAllocation(),
    ]
)
_IF = ir.Op.get("prim.if_then_else")
_VECTORS = {"int8", "uint8", "int16", "uint16", "int32", "uint32", "float16", "float32"}


def schedule_gpu_relayout(function: tirx.PrimFunc, target: Target) -> tirx.PrimFunc | None:
    """Schedule a kernel whose elements are independent of each other for CUDA.

    Parameters
    ----------
    function : tvm.tirx.PrimFunc
        Unscheduled; one nest of loops for each output, once its producers are inlined.
    target : tvm.target.Target

    Returns
    -------
    tvm.tirx.PrimFunc or None
        With ``tirx.is_scheduled``; None if the kernel is not one for this rule.
    """
    if target.kind.name != "cuda":
        return None
    inlined = with_producers_inlined(function)
    if inlined is None:
        return None
    blocks = te_blocks(inlined)
    if not blocks:
        return None
    schedule = Schedule(inlined)
    places = schedule.get_child_blocks(schedule.get_sblock("root"))
    for place, block in zip(places, blocks, strict=True):
        nest = _nest_of(place, block)
        if nest is None:
            return None
        schedule = _tiled(schedule, nest) or _flat(schedule, nest)
    return _with_known_sizes(schedule.mod["main"]).with_attr("tirx.is_scheduled", True)


# -- what a kernel does --------------------------------------------------------------------------


@dataclasses.dataclass
class _Nest:
    """A block that writes each element of one buffer, and where it is in the schedule."""

    place: SBlockRV
    block: TEBlock
    loads: list[ir.TensorLoad]

    @property
    def output(self) -> relax.Var:
        return self.block.buffer

    @property
    def inputs(self) -> list[relax.Var]:
        return list(dict.fromkeys(load.source for load in self.loads))

    @property
    def sizes(self) -> list[int]:
        return [_number(extent) for extent in self.block.box.values()]

    @property
    def widest(self) -> int:
        """Bytes of the largest element."""
        return max(_bytes(buffer) for buffer in (self.output, *self.inputs))

    def loops(self, schedule: Schedule) -> list[LoopRV]:
        """One for each index, in the order of the output's axes."""
        realize = self.block.realize
        axes = [axis.var for axis in realize.block.iter_vars[:]]
        names = dict(zip(axes, realize.iter_values[:], strict=True))
        loops = {schedule.get(loop).loop_var: loop for loop in schedule.get_loops(self.place)}
        return [loops[names[index]] for index in self.block.box]


def _nest_of(place: SBlockRV, block: TEBlock) -> _Nest | None:
    """None if it reads where its data says, or has no elements that are moved in bytes."""
    nest = _Nest(place, block, loads_in(block.value))
    if any(loads_in(index) for load in nest.loads for index in load.indices[:]):
        return None
    buffers = (nest.output, *nest.inputs)
    if not block.box or 0 in nest.sizes or any(len(b.ty.strides) or not _bytes(b) for b in buffers):
        return None
    return nest


def _bytes(buffer: relax.Var) -> int:
    """Of an element; 0 if there are no vectors of it."""
    # Of bool, codegen_cuda.cc makes vectors of 16 bits an element.
    dtype = tvm_ffi.dtype(name := str(buffer.ty.dtype))
    return 0 if name == "bool" or dtype.lanes != 1 or dtype.bits % 8 else dtype.bits // 8


# -- where it reads and writes -------------------------------------------------------------------


class _Unknown(Exception):  # noqa: N818  never leaves this file
    """An address that is not computed here."""


_BINARY: dict[type, Any] = {
    tirx.Add: np.add,
    tirx.Sub: np.subtract,
    tirx.Mul: np.multiply,
    tirx.FloorDiv: np.floor_divide,
    tirx.FloorMod: np.mod,
    tirx.Min: np.minimum,
    tirx.Max: np.maximum,
}


def _value(expr: ir.Expr, at: Mapping[relax.Var, Any]) -> Any:
    if isinstance(expr, tirx.IntImm):
        return int(expr)
    if isinstance(expr, relax.Var):
        return at.get(expr, _SIZE)
    if isinstance(expr, tirx.Cast):
        return _value(expr.value, at)
    if type(expr) in _BINARY:
        with np.errstate(divide="ignore"):
            return _BINARY[type(expr)](_value(expr.a, at), _value(expr.b, at))
    raise _Unknown


def _number(size: ir.Expr) -> int:
    return int(_value(size, {}))


def _addresses(buffer: Any, indices: Sequence[ir.Expr], at: Mapping[relax.Var, Any]) -> Any:
    """In bytes, of the points that are given as an array for each index."""
    address: Any = 0
    for index, size in zip(indices, buffer.ty.shape, strict=True):
        address = address * _number(size) + _value(index, at)
    return np.asarray(address, "int64") * _bytes(buffer)


@dataclasses.dataclass
class _Traffic:
    """What one thread block moves and needs, in bytes."""

    moved: int = 0
    needed: int = 0

    def add(self, addresses: Any, width: int) -> None:
        """Add the accesses to one buffer."""
        self.needed += len(np.unique(addresses)) * width
        self.moved += len(np.unique(addresses // _SECTOR)) * _SECTOR

    @property
    def wasted(self) -> int:
        """Bytes that are moved in vain."""
        return self.moved - self.needed

    @property
    def excess(self) -> float:
        return self.moved / max(self.needed, 1)


def _traffic_of(
    nest: _Nest, runs: Sequence[Mapping[relax.Var, Any]]
) -> tuple[_Traffic, dict[relax.Var, _Traffic]]:
    """Of blocks that compute some runs of points: of all, and of each buffer that is read."""
    total, reads = _Traffic(), {buffer: _Traffic() for buffer in nest.inputs}
    for at in runs:
        total.add(_addresses(nest.output, list(nest.block.box), at), _bytes(nest.output))
        for buffer, traffic in reads.items():
            loads = [load for load in nest.loads if load.source.same_as(buffer)]
            addresses = [_addresses(buffer, load.indices, at) for load in loads]
            size = math.prod(_number(size) for size in buffer.ty.shape) * _bytes(buffer)
            # A load under a condition may have any address where that does not hold.
            read = np.clip(np.concatenate([a.ravel() for a in addresses]), 0, size - 1)
            traffic.add(read, _bytes(buffer))
    for traffic in reads.values():
        total.moved += traffic.moved
        total.needed += traffic.needed
    return total, reads


def _points(nest: _Nest, places: Any) -> dict[relax.Var, Any]:
    """Indices of the elements at given places of the output."""
    return dict(zip(nest.block.box, np.unravel_index(places, nest.sizes), strict=True))


def _flat_runs(nest: _Nest, length: int) -> list[dict[relax.Var, Any]]:
    total = math.prod(nest.sizes)
    starts = {int(total * part) // length * length for part in _PARTS}
    return [_points(nest, np.arange(s, min(s + length, total))) for s in sorted(starts)]


# -- flat ----------------------------------------------------------------------------------------


def _flat(schedule: Schedule, nest: _Nest) -> Schedule:
    """Consecutive threads take consecutive groups of outputs."""
    group = _flat_group(nest)
    # Threads that take single elements take several, a block's threads apart: all are in flight.
    repeats = 1 if group > 1 else max(1, min(_ACCESS // nest.widest, _REPEATS))
    grid, thread, lanes = _spread(schedule, nest.loops(schedule), _THREADS, group, repeats)
    schedule.bind(grid, "blockIdx.x")
    _read_groups(schedule, nest, thread, group)
    _write_groups(schedule, nest, thread, lanes)
    return schedule


def _flat_group(nest: _Nest) -> int:
    """How many outputs a thread takes: they are in one row, and fill an access."""
    return _divisor(nest.output.ty.shape[-1], max(1, _ACCESS // nest.widest))


def _divisor(size: ir.Expr, most: int) -> int:
    """The largest power of two, up to a given one, that divides a size whatever it is."""
    while most > 1 and not _divides(most, size):
        most //= 2
    return most


def _divides(factor: int, size: ir.Expr) -> bool:
    zero = tirx.const(0, size.ty.dtype)
    return sym.Analyzer().can_prove(tirx.EQ(tirx.floormod(size, factor), zero))


def _spread(
    schedule: Schedule, box: Sequence[LoopRV], threads: int, group: int, repeats: int = 1
) -> tuple[LoopRV, LoopRV, LoopRV]:
    """Give neighbouring groups of a box to neighbouring threads: what is left over, thread, lane."""
    # Not one fused loop: TVM does not see that the lanes of its groups are neighbours in a row.
    *rows, last = box
    part, lanes = schedule.split(last, [None, group])
    fused = schedule.fuse(*rows, part)
    rest, repeat, thread = schedule.split(fused, [None, repeats, threads])
    schedule.unroll(repeat)
    schedule.bind(thread, "threadIdx.x")
    return rest, thread, lanes


def _write_groups(schedule: Schedule, nest: _Nest, thread: LoopRV, lanes: LoopRV) -> None:
    """Let a thread write its group of outputs with one instruction."""
    if int(schedule.get(lanes).extent) == 1:
        return
    if _only_loads(nest.block.value):
        schedule.vectorize(lanes)
        return
    # What is no vector instruction is computed one by one, in registers.
    written = schedule.cache_write(nest.place, 0, "local")
    schedule.reverse_compute_at(written, thread, preserve_unit_loops=True)
    schedule.vectorize(schedule.get_loops(written)[-1])
    schedule.unroll(lanes)


def _read_groups(schedule: Schedule, nest: _Nest, thread: LoopRV, group: int) -> None:
    """Let a thread read with one instruction what it needs of a buffer, where that is a group."""
    if group == 1 or _only_loads(nest.block.value) or _chooses(nest.block.value):
        return
    *rest, last = nest.block.box
    analyzer = sym.Analyzer()
    for buffer in nest.inputs:
        first, *others = (load for load in nest.loads if load.source.same_as(buffer))
        *rows, column = first.indices
        start = analyzer.simplify(column - last)
        if any(last in tirx.analysis.undefined_vars(place) for place in (*rows, start)):
            continue
        same = all(tvm_ffi.structural_equal(first.indices, load.indices) for load in others)
        if same and _divides(group, start) and _divides(group, buffer.ty.shape[-1]):
            read = schedule.cache_read(nest.place, _place_of(schedule, nest, buffer), "local")
            schedule.compute_at(read, thread, preserve_unit_loops=True)
            schedule.vectorize(schedule.get_loops(read)[-1])


def _chooses(value: ir.Expr) -> bool:
    """Whether it may not read all that it names."""
    found: list[ir.Expr] = []

    def note(expr: ir.Expr) -> None:
        if isinstance(expr, tirx.Select) or expr.op.same_as(_IF):
            found.append(expr)

    tvm_ffi.structural_walk(value, ((tirx.Select, ir.Call), note))
    return bool(found)


def _place_of(schedule: Schedule, nest: _Nest, buffer: relax.Var) -> int:
    """Of a buffer among those that the block reads."""
    sources = [region.source for region in schedule.get(nest.place).reads[:]]
    return next(place for place, source in enumerate(sources) if source.same_as(buffer))


def _only_loads(value: ir.Expr) -> bool:
    """Whether an element is moved, or cast between types that CUDA has vectors of."""
    while isinstance(value, tirx.Cast) and {_kind(value), _kind(value.value)} <= _VECTORS:
        value = value.value
    return isinstance(value, ir.TensorLoad)


def _kind(value: ir.Expr) -> str:
    return str(value.ty.dtype)


# -- tiled ---------------------------------------------------------------------------------------


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
        sizes = [_number(size) for size in self.buffer.ty.shape[:]]
        pitches = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
        return np.array(pitches) @ self.steps


def _tiled(schedule: Schedule, nest: _Nest) -> Schedule | None:
    """Tiles through shared memory; None if there is no need of them, or there are none."""
    try:
        group = _flat_group(nest)
        flat, _ = _traffic_of(nest, _flat_runs(nest, _THREADS * group))
        warp, reads = _traffic_of(nest, _flat_runs(nest, _WARP * group))
        excess = max(flat.excess, warp.excess / _CACHE)
        digits = _digits_of(nest)
        if excess <= _EXCESS or digits is None:
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
        tiled, _ = _traffic_of(nest, _tile_runs(nest, digits))
    except _Unknown:
        return None
    if tiled.excess > _GAIN * excess:
        return None
    try:
        schedule = _with_tiles(schedule.copy(), nest, digits, staged)
    except ScheduleError:
        return None
    return schedule if schedule is not None and _fits(schedule.mod["main"]) else None


def _with_known_sizes(function: tirx.PrimFunc) -> tirx.PrimFunc:
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


def _fits(function: tirx.PrimFunc) -> bool:
    """Whether TVM finds a constant size for what a thread block shares, and there is room for it."""
    lowered = _LOWER(ir.IRModule({"main": _with_known_sizes(function)}))["main"]
    buffers: list[relax.Var] = []
    tvm_ffi.structural_walk(lowered, (SBlock, lambda block: buffers.extend(block.alloc_buffers)))
    total = 0
    for buffer in buffers:
        # The outermost stride covers the padding.
        sizes = [buffer.ty.shape[0], *(buffer.ty.strides[:1] or buffer.ty.shape[1:])]
        if not all(isinstance(size, tirx.IntImm) for size in sizes):
            return False
        total += math.prod(map(int, sizes)) * _bytes(buffer)
    return total <= _SHARED


def _digits_of(nest: _Nest) -> list[_Digit] | None:
    """The indices, cut where they are divided; None if that does not cut them evenly."""
    factors: dict[relax.Var, set[int]] = {index: {1} for index in nest.block.box}

    def note(division: Any) -> None:
        if division.a in factors and isinstance(division.b, tirx.IntImm):
            factors[division.a].add(int(division.b))

    for load in nest.loads:
        for place in load.indices:
            tvm_ffi.structural_walk(place, ((tirx.FloorDiv, tirx.FloorMod), note))
    digits = []
    for index, size in nest.block.box.items():
        scales = sorted(factors[index])
        cuts = itertools.pairwise(scales)
        if any(high % low for low, high in cuts) or not _divides(scales[-1], size):
            return None
        ends = [*scales[1:], _number(size)]
        own = [_Digit(index, low, high // low) for low, high in zip(scales, ends, strict=True)]
        digits += reversed(own)
    return digits


def _access_of(nest: _Nest, digits: Sequence[_Digit], buffer: relax.Var) -> _Access | None:
    """How a buffer is read; None if that is no sum of digits, or loads differ by more than a start."""
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
        values = [np.broadcast_to(_value(i, at), len(counts)) for i in load.indices[:]]
        moves = np.array(values).reshape(len(values), -1)
        start, moves = moves[:, 0], moves - moves[:, :1]
        steps = moves[:, 1 : 1 + len(digits)]
        if (steps @ counts.T != moves).any():
            return None
        accesses.append(_Access(buffer, start, steps))
    first, *others = accesses
    return first if all((first.steps == other.steps).all() for other in others) else None


def _choose_tile(nest: _Nest, digits: Sequence[_Digit], access: _Access) -> None:
    """Span a line along the output's contiguous digits, and one along the input's."""
    moving = [(abs(s), d) for s, d in zip(access.strides, digits, strict=True) if s]
    along_input = [digit for _, digit in sorted(moving, key=lambda pair: pair[0])]
    for lines in (1, 2, 4, 8):
        for order, buffer in ((digits[::-1], nest.output), (along_input, access.buffer)):
            room = lines * max(_WARP, _LINE // _bytes(buffer))
            for digit in order:
                part = min(digit.extent, room)
                digit.tile = max(digit.tile, part)
                room = -(-room // max(part, 1))
        if math.prod(digit.tile for digit in digits) * nest.widest >= _THREADS * _ACCESS:
            break
    # Outputs that are made from the same inputs are made while these are at hand.
    for stride, digit in zip(access.strides, digits, strict=True):
        if not stride and digit.extent <= _REPEATS:
            digit.tile = max(digit.extent, 1)


def _tile_runs(nest: _Nest, digits: Sequence[_Digit]) -> list[dict[relax.Var, Any]]:
    tiles = [digit.tile for digit in digits]
    inside = np.unravel_index(np.arange(math.prod(tiles)), tiles)
    runs = []
    for part in _PARTS:
        at = {index: np.zeros(len(inside[0]), "int64") for index in nest.block.box}
        exists = np.ones(len(inside[0]), bool)
        for digit, count in zip(digits, inside, strict=True):
            place = int(digit.extent * part) // digit.tile * digit.tile + count
            exists &= place < digit.extent
            at[digit.index] += place * digit.scale
        runs.append({index: places[exists] for index, places in at.items()})
    return runs


def _with_tiles(
    schedule: Schedule, nest: _Nest, digits: Sequence[_Digit], staged: Sequence[_Access]
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
    threads = max(_WARP, min(_THREADS, size // 4 // _WARP * _WARP))
    written = _output_group(nest, digits, staged[0])
    for access in staged:
        place = _place_of(schedule, nest, access.buffer)
        copy = schedule.cache_read(nest.place, place, "shared")
        schedule.compute_at(copy, grid, preserve_unit_loops=True)
        if not _read_into(schedule, copy, digits, access, threads, written):
            return None
    _, thread, lanes = _spread(schedule, inner, threads, written)
    _write_groups(schedule, nest, thread, lanes)
    return schedule


def _neighbours(digits: Sequence[_Digit], access: _Access) -> int:
    """How many neighbours of the output are neighbours in the input, too: a power of two."""
    last = next(i for i in reversed(range(len(digits))) if digits[i].tile > 1 or i == 0)
    step = access.steps[:, last]
    most = _ACCESS // _bytes(access.buffer)
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
    size = _bytes(access.buffer)
    # Such threads are `written` rows apart: that has to be an odd number of banks, or of groups.
    unit = max(_neighbours(digits, access), _BANK // (size * written), 1)
    for place in reversed(range(len(digits))):
        axes = np.flatnonzero(access.steps[:-1, place])
        if digits[place].tile > 1 and len(axes):
            schedule.storage_align(copy, 0, int(axes[-1]), factor=2 * unit, offset=unit)
            break
    group = _input_group(digits, access, int(lengths[-1]))
    _, thread, lanes = _spread(schedule, box, threads, group)
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
    most = max(_BANK // _bytes(access.buffer), _neighbours(digits, access))
    group = _divisor(access.buffer.ty.shape[-1], most)
    starts = [digit.tile * step for digit, step in zip(digits, access.steps[-1], strict=True)]
    return math.gcd(group, length, int(access.start[-1]), *map(int, starts))


def _output_group(nest: _Nest, digits: Sequence[_Digit], access: _Access) -> int:
    """How many outputs a thread writes at once."""
    most = max(_BANK // _bytes(nest.output), _neighbours(digits, access))
    group = _divisor(nest.output.ty.shape[-1], min(most, _ACCESS // _bytes(nest.output)))
    return math.gcd(group, digits[-1].tile, digits[-1].extent)
