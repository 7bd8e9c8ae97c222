"""Kernels that write over their input, on CUDA.

Definition
----------
For an output that may be made in blocks of the same size as its input's
(:mod:`.description_blocks`), the kernel's nest is

- where a block fits into a group (:mod:`.gpu_nest`): flat; a thread reads a group before it writes
  it;
- where blocks fit into shared memory: a thread block reads whole blocks into it, waits for all of
  its threads, and makes the blocks of the output from there.

No thread block needs what another one writes, so their order does not matter. Blocks that become
smaller are not done in place: they would have to be written in order, and thread blocks have none.

It is right whether the two are the same memory or not: the kernel has one pointer.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.target import Target

from .description import Relayout
from .description_blocks import INPLACE, Blocks, find_blocks
from .gpu_nest import THREADS, Memory, Source, flat_nest, wide
from .gpu_relayout import described, flat_lanes, nest_of, units_of
from .gpu_tiles import SHARED, Staged
from .gpu_units import Part, Read
from .size import over

__all__ = ["schedule_gpu_inplace"]

_GROUP = 16  # bytes of a thread
_MOST = SHARED * 7 // 8  # bytes of a block: some are left out in shared memory
_FULL = 4096  # bytes that a thread block moves at least, where there are so many
_BANK = 32  # bits of a bank of shared memory


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
    found = described(function, target)
    if found is None:
        return None
    same = [
        blocks
        for blocks in find_blocks([relayout for relayout, _ in found], _MOST)
        if blocks.read == blocks.written
    ]
    memory = Memory(function, {p: n for each, _ in found for p, n in each.bits}, True)
    nests, pairs = [], []
    for relayout, parts in found:
        own = [blocks for blocks in same if blocks.output == relayout.output]
        made = _flat(memory, relayout, parts, own) or _staged(memory, relayout, parts, own)
        if made is None:
            nests.append(nest_of(memory, relayout, parts))
        else:
            nests.append(made[0])
            pairs += [[blocks.input, blocks.output] for blocks in made[1]]
    if not pairs:
        return None
    kernel = memory.kernel([relayout.output for relayout, _ in found], nests)
    return kernel.with_attr({INPLACE: pairs, "tirx.noalias": False})


_Nest = tuple[tirx.Stmt, list[Blocks]]


def _flat(memory: Memory, relayout: Relayout, parts: list[Part], own: list[Blocks]) -> _Nest | None:
    """A thread makes whole blocks: those that are in a group."""
    small = [blocks for blocks in own if blocks.written <= _GROUP]
    by = max(1, math.lcm(*(blocks.written for blocks in small)) * 8 // parts[0].bits)
    total = units_of(relayout, parts)
    lanes = flat_lanes(parts, total, by)
    if not small or lanes % by:
        return None
    span = THREADS * max(lanes, _GROUP * 8 // max(part.widest for part in parts))
    return flat_nest(memory, relayout.output, parts, total, lanes, span), small


def _staged(
    memory: Memory, relayout: Relayout, parts: list[Part], own: list[Blocks]
) -> _Nest | None:
    """A thread block makes whole blocks, by way of shared memory."""
    for blocks in own:
        reads = [read for part in parts for read in part.reads if read.param == blocks.input]
        word, unit = reads[0].bits, parts[0].bits
        if len({read.bits for read in reads}) > 1 or blocks.read * 8 % math.lcm(word, unit):
            continue
        together = -(-_FULL // blocks.read)
        count, span = (blocks.read * 8 // bits * together for bits in (word, unit))
        total = over(relayout.bits_of(blocks.input), word)
        assert total is not None
        whole = Staged(Read(blocks.input, word, 0, (1,)), (total,), (count,), max(1, _BANK // word))

        lanes = math.gcd(flat_lanes(parts, units_of(relayout, parts)), span, max(1, _BANK // unit))
        stage = functools.partial(_stage, memory, whole)
        nest = flat_nest(
            memory, relayout.output, parts, units_of(relayout, parts), lanes, span, stage
        )
        return nest, [blocks]
    return None


def _stage(
    memory: Memory, whole: Staged, number: Any
) -> tuple[list[tirx.Stmt], Callable[[Read], Source]]:
    """Read the blocks of a thread block, by its number; how words are found in them."""
    shared, start = whole.buffer(), wide(number) * whole.count

    def find(read: Read) -> Source:
        if read.param != whole.read.param:
            return memory.source(read)
        return dataclasses.replace(whole, read=read).numbered(shared, start)

    return [tirx.AllocBuffer(shared), whole.filled(memory, shared, [start], THREADS)], find
