"""Relayout kernels on CUDA, near the speed of a copy on the device.

Definition
----------
A kernel that has a description (:mod:`.read_description`) is a nest for each output

- *tiled* (:mod:`.gpu_tiles`), if it is of one part, flat it would read words that lie apart, and by
  way of shared memory it reads longer runs;
- else *flat* (:mod:`.gpu_nest`).

Words lie *apart* if less than 128 bytes are side by side of what a thread block reads, or 32 of
what a warp does: by sectors of 32 bytes, 1.25 times as much is moved then, or twice by a warp (the
rest is still in the cache of its multiprocessor). Any other kernel is left to TVM's dlight.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx
from tvm.target import Target

from .description import Relayout
from .gpu_nest import THREADS, Memory, are_rows, flat_nest, lanes_of
from .gpu_tiles import LINE, tile_nest, tile_of
from .gpu_units import Part, Read, parts_of
from .inlining import with_producers_inlined
from .read_description import read_relayouts
from .size import Size, nominal, over

__all__ = ["described", "flat_lanes", "nest_of", "schedule_gpu_relayout", "units_of"]

_SECTOR = 256  # bits: the least that is read
_WORD = 32
_WARP = 32
_NEAR = 1.25  # steps of so many times what is there are as good as side by side
_GROUP = 128  # bits of a thread


def schedule_gpu_relayout(function: tirx.PrimFunc, target: Target) -> tirx.PrimFunc | None:
    """Schedule a kernel that has a description for CUDA.

    Parameters
    ----------
    function : tvm.tirx.PrimFunc
        Not scheduled: as LegalizeOps or FuseTIR leave it.
    target : tvm.target.Target

    Returns
    -------
    tvm.tirx.PrimFunc or None
        With ``tirx.is_scheduled``; None if the kernel is not one for this rule.
    """
    found = described(function, target)
    if found is None:
        return None
    memory = Memory(function, {p: n for each, _ in found for p, n in each.bits}, False)
    nests = [nest_of(memory, relayout, parts) for relayout, parts in found]
    return memory.kernel([relayout.output for relayout, _ in found], nests)


def described(function: tirx.PrimFunc, target: Target) -> list[tuple[Relayout, list[Part]]] | None:
    """What a CUDA kernel does for each output; None if that is not known, or nothing."""
    if target.kind.name != "cuda":
        return None
    kernel = with_producers_inlined(function)
    relayouts = "has intermediate buffers" if kernel is None else read_relayouts(kernel)
    if isinstance(relayouts, str):
        return None
    found = [(relayout, parts) for relayout in relayouts if (parts := parts_of(relayout))]
    return found if len(found) == len(relayouts) else None


def nest_of(memory: Memory, relayout: Relayout, parts: list[Part]) -> tirx.Stmt:
    """The nest of an output that is other memory than its inputs."""
    part, output = parts[0], relayout.output
    runs = {} if len(parts) > 1 else {read: _flat_run(part, read) for read in part.reads}
    apart = [read for read, run in runs.items() if run < LINE]
    if apart:
        tile = tile_of(part, min(apart, key=lambda read: runs[read]))
        nest = tile_nest(memory, output, part, tile, apart)
        if nest is not None and any(_side_by_side(read, tile) > runs[read] for read in apart):
            return nest
    total = units_of(relayout, parts)
    lanes = flat_lanes(parts, total)
    widest = max(max(part.bits, *(read.bits for read in part.reads), 8) for part in parts)
    span = THREADS * lanes * max(1, _GROUP // (lanes * widest))
    return flat_nest(memory, output, parts, total, lanes, span)


def units_of(relayout: Relayout, parts: list[Part]) -> Size:
    """Of the output."""
    total = over(relayout.bits_of(relayout.output), parts[0].bits)
    assert total is not None
    return total


def flat_lanes(parts: list[Part], total: Size, by: int = 1) -> int:
    """Units of a group, a multiple of `by` if there is one: a row's, if these are 4 bytes."""

    def fits(lanes: int) -> bool:
        return over(total, lanes) is not None and lanes % by == 0

    rows = lanes_of(parts, lambda lanes: fits(lanes) and are_rows(parts, lanes))
    return rows if rows * parts[0].bits >= _WORD else lanes_of(parts, fits)


def _flat_run(part: Part, read: Read) -> int:
    """Bits that lie side by side of what a thread block reads, flat; or 4 times those of a warp."""
    block, warp = (_run(part, read, count) for count in (THREADS, _WARP))
    return min(block, warp * LINE // _SECTOR)


def _run(part: Part, read: Read, threads: int) -> int:
    room = threads * lanes_of([part], lambda _: True)
    counts: list[int] = []
    for extent in reversed(part.extents):
        counts.insert(0, max(1, min(nominal(extent), room)))
        room = -(-room // counts[0])
    return _side_by_side(read, counts)


def _side_by_side(read: Read, counts: Sequence[int]) -> int:
    """Bits in a run of a box; as many as matter if it is one run."""
    run, is_one = 1, True
    digits = [(abs(nominal(s)), n) for s, n in zip(read.steps, counts, strict=True) if n > 1]
    for step, count in sorted(digits):
        if 0 < step <= _NEAR * run and is_one:
            run += step * (count - 1)
        elif step:
            is_one = False
    return max(run * read.bits, LINE) if is_one else run * read.bits
