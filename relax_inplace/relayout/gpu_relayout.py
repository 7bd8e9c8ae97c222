"""Relayout kernels on CUDA, near the speed of a copy on the device.

Definition: a kernel whose elements are independent of each other is scheduled

- *flat* (:mod:`.gpu_flat`), where a thread block then moves at most 1.25 times the bytes that it
  needs (80% of the device copy; :mod:`.gpu_nest` says what is counted), and a warp at most twice
  (the rest is still in the cache of its multiprocessor);
- else *tiled* (:mod:`.gpu_tiles`), where there are tiles that move less.

A kernel that is not made of independent elements, or that reads where its data says, is left to
TVM's dlight. Only primitives of ``tvm.s_tir.Schedule`` are used: ragged edges and symbolic sizes
become its predicates.
"""

from __future__ import annotations

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.target import Target

from .gpu_flat import THREADS, WARP, flat_group, schedule_flat
from .gpu_nest import Nest, Unknown, flat_runs, nest_of, traffic_of
from .gpu_tiles import schedule_tiles, with_known_sizes
from .inlining import with_producers_inlined
from .te_block import te_blocks

__all__ = ["schedule_gpu_nest", "schedule_gpu_relayout"]

_EXCESS = 1.25  # moved over needed, of a thread block
_WARP_EXCESS = 2.0  # of a warp


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
    blocks = None if inlined is None else te_blocks(inlined)
    if not blocks:
        return None
    schedule = Schedule(inlined)
    places = schedule.get_child_blocks(schedule.get_sblock("root"))
    for place, block in zip(places, blocks, strict=True):
        nest = nest_of(place, block)
        if nest is None:
            return None
        schedule = schedule_gpu_nest(schedule, nest)
    return with_known_sizes(schedule.mod["main"]).with_attr("tirx.is_scheduled", True)


def schedule_gpu_nest(schedule: Schedule, nest: Nest) -> Schedule:
    """Schedule one of the nests of a kernel: flat, or in tiles. The schedule given is used up."""
    try:
        group = flat_group(nest)
        block, _ = traffic_of(nest, flat_runs(nest, THREADS * group))
        warp, reads = traffic_of(nest, flat_runs(nest, WARP * group))
    except Unknown:
        return schedule_flat(schedule, nest)
    excess = max(block.excess, warp.excess * _EXCESS / _WARP_EXCESS)
    tiled = schedule_tiles(schedule, nest, reads, excess) if excess > _EXCESS else None
    return schedule_flat(schedule, nest) if tiled is None else tiled
