"""Run a conversion with progress, and report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import tvm_ffi

from ..memory import available_bytes, trim_heap
from ..memory_sampler import MemorySampler
from ..params import Params
from ..progress import ProgressOption, progress_bar
from ..report import Report
from ..slots import leaves_of
from ..tensor_info import TensorInfo
from ..transform import Transform
from .held import HeldWeight
from .own import Ownership
from .run import ObservedRun

__all__ = ["convert", "require_memory", "resident_bytes"]

_SLACK = 1 << 20  # bytes resident above the weights, before the heap is trimmed


def convert(
    transform: Transform,
    ownership: Ownership,
    inputs: Sequence[Any],
    *,
    device: Any,
    progress: ProgressOption,
    doing: str,
    held: Sequence[HeldWeight] = (),
) -> Report:
    """Run a transform on weights, or on the slots that it fills, and report.

    Afterwards the weights are ``partial`` and have no names, until the caller sets them.
    """
    params = ownership.params
    types = params._types()
    before = resident_bytes(params)
    unread = resident_bytes(params, is_unread=True)
    is_filled = not transform.is_streamed
    total = _sum(types if is_filled else transform.params)
    names = _names_of_slots(transform, params)
    done = converted = emptied = 0
    grown = unread  # the others make room for what is made of them
    ahead = _read_ahead(transform)
    trim_heap()
    with MemorySampler(device) as memory, progress_bar(progress, total, doing) as bar:

        def updated(slot: str, bytes_in: int, bytes_out: int) -> None:
            nonlocal done, converted, grown, emptied
            memory.sample()
            new = max(0, bytes_in)
            converted += new
            grown += new - bytes_out
            moved = bytes_out if is_filled else new
            if bytes_in < 0:  # the bar moves when a new weight is in place
                emptied += moved
            else:
                bar.update(moved + emptied, names.get(slot, slot))
                done, emptied = done + moved + emptied, 0
            if not is_filled:
                freed()

        def freed() -> None:
            allowed = memory.before.host + max(0, grown) + ahead + _SLACK
            if memory.sample().host > allowed:
                trim_heap()

        start = time.perf_counter()
        run = ObservedRun(
            *(transform, params, ownership.signals, device),
            updated=updated,
            freed=freed,
            allocated=memory.sample,
        )
        run(*inputs)
        seconds = time.perf_counter() - start
        if done < total:  # weights that stay as they are
            try:
                bar.update(total - done, "")
            except BaseException as error:  # of the caller's callable: the run is whole
                ownership.signals.hold(error)
    trim_heap()
    memory.sample()
    return Report(
        transform.name,
        seconds,
        converted,
        before + unread if is_filled else _sum(transform.weights),
        before,
        resident_bytes(params),
        transform.peak + ahead if isinstance(transform.peak, int) else None,
        memory.samples,
        memory.peak,
        list(held),
        reused=run.reused,
        allocated=dict(run.refused),
    )


def resident_bytes(params: Params, *, is_unread: bool = False) -> int:
    """The bytes of the weights that have been read, or of those that have not.

    A tensor in two slots (tied weights) counts once.
    """
    unread = () if params._unread is None else params._unread.slots
    found = [
        (slot, one) for slot, one in leaves_of(params._fields()) if isinstance(one, tvm_ffi.Tensor)
    ]
    sizes: dict[int, int] = {}
    for (slot, tensor), one in zip(found, params._types(), strict=True):
        if (slot in unread) == is_unread:
            place = tensor.data_ptr()
            sizes[place] = max(sizes.get(place, 0), one.nbytes or 0)
    return sum(sizes.values())


def require_memory(transform: Transform, before: int, device: Any) -> None:
    """Refuse a conversion that does not fit by its plan, before anything changes.

    Raises
    ------
    MemoryError
        The device has less free memory than the plan needs.
    """
    if not isinstance(transform.peak, int) or device is None:
        return
    available = available_bytes(device)
    needed = transform.peak + _read_ahead(transform) - before
    if available is not None and needed > available:
        raise MemoryError(
            f"`{transform.name}` needs {needed:,} bytes beside the loaded weights "
            f"({transform.peak:,} by its plan), but {available:,} are free on {device}. No field "
            "has changed; compile it with memory_limit, or stream the weights"
        )


def _read_ahead(transform: Transform) -> int:
    """Bytes of the weight that is read in advance, which the plan does not count."""
    if not transform.is_streamed or len(transform.weights or ()) < 2:
        return 0
    return max(one.nbytes or 0 for one in transform.weights or ())


def _names_of_slots(transform: Transform, params: Params) -> dict[str, str]:
    if transform.params is not None:
        return {one.slot: one.name for one in transform.params}
    return dict(zip(params._slots(), params.names, strict=True))


def _sum(types: Sequence[TensorInfo] | None) -> int:
    return sum(one.nbytes or 0 for one in types or ())
