"""Relayout kernels on CUDA, near the speed of a copy on the device.

Definition
----------
A kernel that has a description (:mod:`.read_description`) is a nest for each output

- *tiled* (:mod:`.gpu_tiles`), if it is of one part, less than 128 bytes of words lie side by side
  for neighbouring units (sectors of 32 bytes may be 1.25 times that), and they do in a tile;
- else *flat* (:mod:`.gpu_nest`).

Any other kernel is left to TVM's dlight.
"""

from __future__ import annotations

from tvm import tirx
from tvm.target import Target

from .description import Relayout
from .gpu_nest import THREADS, Memory, even, flat_nest, most_lanes, row_of
from .gpu_tiles import LINE, tile_nest
from .gpu_units import Part, Read, in_units
from .inlining import with_producers_inlined
from .read_description import read_relayouts
from .size import Size, nominal, over

__all__ = ["described", "flat_lanes", "nest_of", "schedule_gpu_relayout", "units_of"]

_WORD = 32
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
    relayouts = "" if kernel is None else read_relayouts(kernel, numbers=True)
    if isinstance(relayouts, str):
        return None
    found = [(relayout, parts) for relayout in relayouts if (parts := in_units(relayout))]
    return found if len(found) == len(relayouts) else None


def nest_of(memory: Memory, relayout: Relayout, parts: list[Part]) -> tirx.Stmt:
    """The nest of an output that is other memory than its inputs."""
    apart = [read for read in parts[0].reads if _row(parts[0], read) * read.bits < LINE]
    if len(parts) == 1 and apart:
        nest = tile_nest(memory, relayout.output, parts[0], apart)
        if nest is not None:
            return nest
    total = units_of(relayout, parts)
    lanes = flat_lanes(parts, total)
    span = THREADS * max(lanes, _GROUP // max(part.widest for part in parts))
    return flat_nest(memory, relayout.output, parts, total, lanes, span)


def units_of(relayout: Relayout, parts: list[Part]) -> Size:
    """Of the output."""
    total = over(relayout.bits_of(relayout.output), parts[0].bits)
    assert total is not None
    return total


def flat_lanes(parts: list[Part], total: Size, by: int = 1) -> int:
    """Units of a group: of a row, if these are 4 bytes; a multiple of `by`, if there is one."""
    whole = even([total], most_lanes(parts))
    row = min(row_of(part, whole) for part in parts)
    return row if row * parts[0].bits >= _WORD and row % by == 0 else whole


def _row(part: Part, read: Read) -> int:
    """Words that lie side by side for neighbouring units; many, if all do."""
    row: Size = 1
    for step, extent in zip(reversed(read.steps), reversed(part.extents), strict=True):
        if step in (row, -row):
            row = row * extent
        elif step != 0:
            return nominal(row)
    return LINE
