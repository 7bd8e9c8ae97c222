"""The flat schedule: consecutive threads take consecutive groups of outputs.

Definition: a *group* is as many elements of one row as a thread writes with one instruction. A
thread takes several groups, together 16 bytes of the widest buffer, so that enough bytes are in
flight: 2,048 threads of a multiprocessor with 16 bytes each are 32 KB, more than an H200 needs (4.8
TB/s and 600 ns, in 132 multiprocessors: 22 KB); with an element each of 4 bytes or less, as
dlight's Fallback has it, they are 8 KB or less.

What is moved, or cast between types that CUDA has vectors of, is a vector instruction. Anything
else is computed element by element in registers, between vectors that are read and written.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import tvm_ffi
from tvm import ir, relax, sym, tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from .gpu_nest import Nest

__all__ = [
    "THREADS",
    "WARP",
    "divides",
    "divisor",
    "flat_group",
    "lanes_of",
    "only_loads",
    "place_of",
    "schedule_flat",
    "spread",
    "write_groups",
]

THREADS = 256  # of a block
WARP = 32

_ACCESS = 16  # bytes: the widest access of one thread
_LANES = 4  # codegen_cuda.cc has longer vectors of some types, but cannot make these of scalars
_IF = ir.Op.get("prim.if_then_else")
_VECTORS = {"int8", "uint8", "int16", "uint16", "int32", "uint32", "float16", "float32"}


def schedule_flat(schedule: Schedule, nest: Nest) -> Schedule:
    """Consecutive threads take consecutive groups of outputs. The schedule given is used up."""
    group = flat_group(nest)
    # A thread takes several groups, a block's threads apart: all are in flight at once.
    threads, repeats = THREADS, max(1, _ACCESS // (nest.widest * group))
    if group > 1 and not only_loads(nest.block.value):
        count = math.prod(nest.output.ty.shape[:], start=tirx.const(1, _index_type(nest)))
        even = divisor(tirx.floordiv(count, group), threads * repeats)
        if even < WARP:
            group, repeats = 1, repeats * group
        else:
            threads, repeats = min(threads, even), max(1, even // threads)
    lengths = [None, repeats, threads]
    grid, thread, lanes = spread(schedule, nest.loops(schedule), lengths, group)
    schedule.bind(grid, "blockIdx.x")
    _read_groups(schedule, nest, thread, group)
    write_groups(schedule, nest.place, thread, lanes)
    return schedule


def _index_type(nest: Nest) -> ir.PrimType:
    return nest.output.ty.shape[0].ty.dtype


def flat_group(nest: Nest) -> int:
    """How many outputs a thread takes: they are in one row, and fill an access."""
    return divisor(nest.output.ty.shape[-1], lanes_of(nest.widest))


def lanes_of(size: int) -> int:
    """The most elements of a size that one instruction reads or writes."""
    return max(1, min(_LANES, _ACCESS // size))


def divisor(size: ir.Expr, most: int) -> int:
    """The largest power of two, up to a given one, that divides a size whatever it is."""
    while most > 1 and not divides(most, size):
        most //= 2
    return most


def divides(factor: int, size: ir.Expr) -> bool:
    """Whether a number is sure to divide a size."""
    zero = tirx.const(0, size.ty.dtype)
    return sym.Analyzer().can_prove(tirx.EQ(tirx.floormod(size, factor), zero))


def spread(
    schedule: Schedule, box: Sequence[LoopRV], lengths: Sequence[int | None], group: int
) -> tuple[LoopRV, LoopRV, LoopRV]:
    """Give neighbouring groups of a box to neighbouring threads: outermost loop, thread, lane."""
    # Not one fused loop: TVM does not see that the lanes of its groups are neighbours in a row.
    *rows, last = box
    part, lanes = schedule.split(last, [None, group])
    outermost, *repeats, thread = schedule.split(schedule.fuse(*rows, part), lengths)
    for repeat in repeats:
        schedule.unroll(repeat)
    schedule.bind(thread, "threadIdx.x")
    return outermost, thread, lanes


def write_groups(schedule: Schedule, place: SBlockRV, thread: LoopRV, lanes: LoopRV) -> None:
    """Let a thread write its group of outputs with one instruction, where that can be done.

    Parameters
    ----------
    schedule : Schedule
    place : SBlockRV
        The block that computes the outputs.
    thread, lanes : LoopRV
        Its two innermost loops. What is computed in registers should have no predicate in them.
    """
    if int(schedule.get(lanes).extent) == 1:
        return
    predicate = schedule.get(lanes).body.predicate
    if only_loads(schedule.get(place).body.value):
        schedule.vectorize(lanes)
        return
    schedule.unroll(lanes)
    # The block that cache_write makes has not the predicate of this one: it would write what has
    # not been computed, and behind the end of the buffer.
    if isinstance(predicate, tirx.IntImm) and int(predicate):
        # What is no vector instruction is computed one by one, in registers.
        written = schedule.cache_write(place, 0, "local")
        schedule.reverse_compute_at(written, thread, preserve_unit_loops=True)
        schedule.vectorize(schedule.get_loops(written)[-1])


def _read_groups(schedule: Schedule, nest: Nest, thread: LoopRV, group: int) -> None:
    """Let a thread read with one instruction what it needs of a buffer, where that is a group."""
    if group == 1 or only_loads(nest.block.value) or _chooses(nest.block.value):
        return
    *_, last = nest.block.box
    analyzer = sym.Analyzer()
    for buffer in nest.inputs:
        first, *others = (load for load in nest.loads if load.source.same_as(buffer))
        *rows, column = first.indices
        start = analyzer.simplify(column - last)
        if any(last in tirx.analysis.undefined_vars(place) for place in (*rows, start)):
            continue
        same = all(tvm_ffi.structural_equal(first.indices, load.indices) for load in others)
        if same and divides(group, start) and divides(group, buffer.ty.shape[-1]):
            read = schedule.cache_read(nest.place, place_of(schedule, nest, buffer), "local")
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


def place_of(schedule: Schedule, nest: Nest, buffer: relax.Var) -> int:
    """Of a buffer among those that the block reads."""
    sources = [region.source for region in schedule.get(nest.place).reads[:]]
    return next(place for place, source in enumerate(sources) if source.same_as(buffer))


def only_loads(value: ir.Expr) -> bool:
    """Whether an element is moved, or cast between types that CUDA has vectors of."""
    while isinstance(value, tirx.Cast) and {_kind(value), _kind(value.value)} <= _VECTORS:
        value = value.value
    return isinstance(value, ir.TensorLoad)


def _kind(value: ir.Expr) -> str:
    return str(value.ty.dtype)
