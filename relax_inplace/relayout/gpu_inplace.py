"""Kernels that write over their input, on CUDA.

Definition: for an output that may lie in the storage of an input, with elements or blocks of the
same size (:mod:`relax_inplace.relayout.inplace_kernel`), the kernel becomes

- where each element is computed from the one in its place: the flat schedule (:mod:`.gpu_flat`); a
  thread reads an element before it writes it;
- where blocks fit into shared memory: a thread block reads whole blocks into it, waits for all of
  its threads, and computes the blocks of the output from there.

No thread block needs what another one writes, so their order does not matter. Blocks that become
smaller are not done in place: they would have to be written in order, and thread blocks have none.

It is right whether the two buffers are the same memory or not. ``tirx.noalias`` is false; but
split_host_device.cc says of each device function that it is true, so its pointers are
``__restrict__``. That leaves the compiler free to move a read behind a write of other elements,
never behind the write that is computed from it: and an element is written once, from all reads of
it (flat), or after a barrier behind which nothing is read (blocks). Nor does it matter that it may
read by the cache that is not coherent: what it needs is what was there before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import tvm_ffi
from tvm import ir, relax, sym, tirx
from tvm.s_tir import SBlock, SBlockRealize, Schedule, ScheduleError
from tvm.s_tir.analysis import get_sblock_access_region
from tvm.s_tir.schedule import SBlockRV
from tvm.target import Target

from .box_proof import analyzer_of
from .description_blocks import INPLACE
from .gpu_flat import THREADS, divisor, lanes_of, schedule_flat, spread, write_groups
from .gpu_nest import bytes_of, nest_of
from .gpu_relayout import schedule_gpu_nest
from .gpu_tiles import fits, with_known_sizes
from .inlining import with_producers_inlined
from .inplace_kernel import Block, InplacePair, find_inplace_pairs
from .te_block import TEBlock, buffer_params, loads_in, te_blocks

__all__ = ["schedule_gpu_inplace"]

_SHARED = 48 * 1024  # bytes: what a block has on any GPU
_BANK = 4  # bytes: of a bank of shared memory
_MOST = 16 * 1024  # bytes that several blocks have together
_FULL = 4096  # bytes that a thread block moves at least, where there are so many


def schedule_gpu_inplace(function: tirx.PrimFunc, target: Target) -> tirx.PrimFunc | None:
    """The kernel, scheduled, so that outputs may lie in the storage of inputs.

    Parameters
    ----------
    function : tvm.tirx.PrimFunc
        Not scheduled.
    target : tvm.target.Target

    Returns
    -------
    tvm.tirx.PrimFunc or None
        With the attribute ``relax_inplace.inplace``: ``[[input, output], ...]``, indices into the
        parameters. None if no output may lie in the storage of an input, or if this is not CUDA.
    """
    if target.kind.name != "cuda":
        return None
    inlined = with_producers_inlined(function)
    pairs = "has intermediate buffers" if inlined is None else find_inplace_pairs(inlined)
    blocks = None if inlined is None else te_blocks(inlined)
    if isinstance(pairs, str) or not blocks or _mixes_index_types(inlined):
        return None
    own = [_chosen(inlined, block, pairs) for block in blocks]
    if not any(own):
        return None
    try:
        scheduled = _scheduled(inlined, blocks, own)
    except ScheduleError:
        return None
    if scheduled is None or not fits(scheduled):
        return None
    chosen = [[pair.input, pair.output] for each in own for pair in each]
    attrs = {INPLACE: chosen, "tirx.noalias": False, "tirx.is_scheduled": True}
    return with_known_sizes(scheduled).with_attr(attrs)


def _mixes_index_types(function: tirx.PrimFunc) -> bool:
    """Whether sizes are of several types: then so are the indices that are computed from them."""
    sizes = [size for buffer in buffer_params(function) for size in buffer.ty.shape[:]]
    return len({str(size.ty.dtype) for size in sizes}) > 1


def _chosen(
    function: tirx.PrimFunc, block: TEBlock, pairs: Sequence[InplacePair]
) -> list[InplacePair]:
    """Of the ways to write one output those that one kernel can allow."""
    own = [
        pair
        for pair in pairs
        if function.params[pair.output].same_as(block.buffer)
        and pair.bytes_read == pair.bytes_written <= _SHARED
    ]
    return [pair for pair in own if pair.same_position] or own[:1]


def _scheduled(
    function: tirx.PrimFunc, blocks: Sequence[TEBlock], own: Sequence[Sequence[InplacePair]]
) -> tirx.PrimFunc | None:
    staged = [bool(pairs) and not pairs[0].same_position for pairs in own]
    stages: list[relax.Var] = []
    nests: list[tirx.Stmt] = []
    for block, pairs, through_shared in zip(blocks, own, staged, strict=True):
        if through_shared:
            source = function.params[pairs[0].input]
            stage, read, write = _through_stage(block, source, pairs[0])
            stages.append(stage)
            nests += [read, write]
        else:
            nests.append(block.nest)
    body = tirx.SeqStmt(nests) if len(nests) > 1 else nests[0]
    root = SBlock([], [], [], "root", body, alloc_buffers=stages)
    function = tirx.PrimFunc(
        function.params, SBlockRealize([], True, root), function.ret_type, function.attrs
    )
    schedule = Schedule(function)
    places = iter(schedule.get_child_blocks(schedule.get_sblock("root")))
    for block, pairs, through_shared in zip(blocks, own, staged, strict=True):
        if through_shared:
            _schedule_stage(schedule, next(places), next(places), pairs[0], block.buffer)
            continue
        nest = nest_of(next(places), block)
        if nest is None:
            return None
        schedule = schedule_flat(schedule, nest) if pairs else schedule_gpu_nest(schedule, nest)
    return schedule.mod["main"]


# -- a block by way of shared memory -------------------------------------------------------------


def _through_stage(
    block: TEBlock, source: relax.Var, pair: InplacePair
) -> tuple[relax.Var, tirx.Stmt, tirx.Stmt]:
    """A buffer with a row for each block of the input, the nest that fills it, and its reader.

    Row t of the buffer is block t of the input, and block t of the output is computed from it.
    """
    dtype = block.buffer.ty.shape[0].ty.dtype
    output, given = block.buffer.ty.shape[:], source.ty.shape[:]
    counts = _counts(output, pair.written)
    total = sym.Analyzer().simplify(math.prod(counts, start=tirx.const(1, dtype)))
    inside = [tirx.const(pair.read.factor, dtype), *given[pair.read.axis + 1 :]]
    stage = tirx.decl_buffer(
        [total, *inside], source.ty.dtype, f"{source.name}_shared", scope="shared"
    )

    def axes(sizes: Sequence[ir.Expr], name: str) -> dict[relax.Var, ir.Expr]:
        return {tirx.Var(f"{name}{i}", dtype): size for i, size in enumerate((total, *sizes))}

    box = axes(inside, "r")
    here = _place(list(box), _counts(given, pair.read), pair.read)
    read = _nest(f"{source.name}_read", box, stage, list(box), tirx.BufferLoad(source, here))

    box = axes([tirx.const(pair.written.factor, dtype), *output[pair.written.axis + 1 :]], "w")
    here = _place(list(box), counts, pair.written)
    store = block.realize.block.body
    at = {
        index: place
        for index, place in zip(store.indices[:], here, strict=True)
        if isinstance(index, relax.Var)
    }
    value = tvm_ffi.structural_map(block.value, (relax.Var, lambda var: at.get(var, var)))
    row = next(iter(box))

    def from_stage(load: ir.TensorLoad) -> ir.Expr:
        if not load.source.same_as(source):
            return load
        along, *rest = load.indices[pair.read.axis :]
        return tirx.BufferLoad(stage, [row, tirx.floormod(along, pair.read.factor), *rest])

    value = tvm_ffi.structural_map(value, (ir.TensorLoad, from_stage), order="post")
    return stage, read, _nest(f"{block.buffer.name}_written", box, block.buffer, here, value)


def _counts(shape: Sequence[ir.Expr], block: Block) -> list[ir.Expr]:
    """How many blocks there are along each axis that a block does not span."""
    return [*shape[: block.axis], tirx.floordiv(shape[block.axis], block.factor)]


def _place(point: Sequence[relax.Var], counts: Sequence[ir.Expr], block: Block) -> list[ir.Expr]:
    """The indices of an element: from the number of its block, and where it is in that."""
    number, along, *rest = point
    outer: list[ir.Expr] = []
    for count in reversed(counts[1:]):
        outer.append(tirx.floormod(number, count))
        number = tirx.floordiv(number, count)
    places = [number, *reversed(outer)]
    return [*places[:-1], places[-1] * block.factor + along, *rest]


def _nest(
    name: str,
    box: dict[relax.Var, ir.Expr],
    buffer: relax.Var,
    indices: Sequence[ir.Expr],
    value: ir.Expr,
) -> tirx.Stmt:
    """Loops around a block that computes an element for each point of a box."""
    analyzer = analyzer_of(box)
    loops = []
    for index, extent in box.items():
        span = ir.Range.from_min_extent(tirx.const(0, index.ty.dtype), extent)
        loops.append((tirx.Var(f"{index.name}_loop", index.ty.dtype), span))
    axes = [
        tirx.IterVar(span, index, tirx.IterVar.DataPar)
        for index, (_, span) in zip(box, loops, strict=True)
    ]

    def simple(load: ir.TensorLoad) -> ir.Expr:
        return tirx.BufferLoad(load.source, [analyzer.simplify(i) for i in load.indices[:]])

    value = tvm_ffi.structural_map(value, (ir.TensorLoad, simple), order="post")
    body = tirx.BufferStore(buffer, value, [analyzer.simplify(index) for index in indices])
    buffers = {load.source for load in loads_in(value)} | {buffer}
    block = SBlock(axes, [], [], name, body)
    reads, writes, _ = get_sblock_access_region(block, {each: each for each in buffers})
    block = SBlock(axes, reads, writes, name, body)
    nest: tirx.Stmt = SBlockRealize([loop for loop, _ in loops], True, block)
    for loop, span in reversed(loops):
        nest = tirx.For(loop, span.min, span.extent, tirx.ForKind.SERIAL, nest)
    return nest


def _schedule_stage(
    schedule: Schedule, read: SBlockRV, write: SBlockRV, pair: InplacePair, buffer: relax.Var
) -> None:
    """Some blocks for a thread block: all are read before one is written."""
    number, *inside = schedule.get_loops(write)
    size = bytes_of(buffer)
    group = divisor(schedule.get(inside[-1]).extent, lanes_of(size))
    together, threads = _division(schedule.get(number).extent, pair, group)
    if pair.written.elements * together % (threads * group):
        group = 1
    grid, blocks = schedule.split(number, [None, together])
    schedule.bind(grid, "blockIdx.x")
    schedule.compute_at(read, grid, preserve_unit_loops=True)
    _, thread, lanes = spread(schedule, [blocks, *inside], [None, threads], group)
    write_groups(schedule, write, thread, lanes)
    box = schedule.get_loops(read)[1:]
    # One bank at once, in rows of an odd number of banks: a column lies in different ones.
    group = divisor(schedule.get(box[-1]).extent, max(1, _BANK // size))
    schedule.storage_align(read, 0, axis=len(box) - 2, factor=2 * group, offset=group)
    _, _, lanes = spread(schedule, box, [None, threads], group)
    schedule.vectorize(lanes)


def _division(count: ir.Expr, pair: InplacePair, group: int) -> tuple[int, int]:
    """How many blocks a thread block takes, and its threads: without a rest, if there is a way."""
    most = max(1, _MOST // pair.bytes_read)
    counts = [1]
    if isinstance(count, tirx.IntImm):
        counts = [n for n in range(1, most + 1) if int(count) % n == 0]
    enough = [n for n in counts if n * pair.bytes_read >= _FULL] or counts[-1:]
    for threads in (THREADS, THREADS // 2):
        for together in enough:
            if not pair.written.elements * together % (threads * group):
                return together, threads
    return enough[0], THREADS
