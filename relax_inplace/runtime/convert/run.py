"""One run of a transform, which knows the state of each weight, also after a failure.

On a device a kernel runs after the call that launches it, and its error comes with a later call. So
the run waits for this thread's stream at each update. A slot counts as converted when its kernels
have finished, and an error belongs to the step that the message names. A failed device reports the
error from then on, and nothing on it can be read (CUDA: until the process ends). Then every slot on
it is lost, even a converted one.

Ctrl-C, or an error of the caller's ``progress``, stops a run after an update, and only where each
weight is whole: unchanged in its slot, or with all results made from it in place. So a stop loses
nothing. A failing kernel may lose a weight.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import tvm_ffi

from ...libinfo import load_library
from ..device import give_up_if_failed, wait_for_stream
from ..forget_locals import forget_locals
from ..memory import available_bytes
from ..params import Params
from ..provenance import mark_tensors
from ..slots import leaves_of
from ..transform import Transform
from .failure import failure
from .signals import HeldSignals

__all__ = ["ObservedRun"]

_OUT_OF_MEMORY = re.compile(
    r"bad_alloc|out of memory|out_of_memory|cannot allocate|failed to allocate|MemoryError", re.I
)


class ObservedRun:
    """Runs a transform on weights that nobody else can read, and follows its updates.

    Parameters
    ----------
    transform : Transform
        The transform.
    params : Params
        The weights, or the slots that a streamed transform fills. Afterwards they hold the result,
        in the given tuple or in a new one, without names.
    signals : HeldSignals
        Holds an exception that asks to stop, also one of the callables. If it comes after the last
        update, the run is complete.
    device : tvm.runtime.Device or None
        The device of the weights.
    updated : callable
        Called with (slot, bytes in, bytes out) after each update; bytes in are -1 for an emptied
        slot. The memory of the old field is not freed yet.
    freed : callable
        Called after the memory of an old field is freed.
    allocated : callable
        Called after a new tensor is allocated, in a module that was compiled with donation.
    """

    def __init__(
        self,
        transform: Transform,
        params: Params,
        signals: HeldSignals,
        device: Any,
        updated: Callable[[str, int, int], None],
        freed: Callable[[], None],
        allocated: Callable[[], object],
    ):
        self.transform = transform
        self.params = params
        self._signals = signals
        self._device = device
        self._updated = updated
        self._freed = freed
        self._allocated = allocated
        #: The number of new tensors, temporaries included, in the storage of an earlier tensor.
        self.reused = 0
        #: The number of those in storage of their own, by the reason (``cpp/storage.cc``).
        self.refused: Counter[str] = Counter()
        self._replaced: set[str] = set()
        self._emptied: set[str] = set()
        self._weights = self._weights_of(transform, params)

    def __call__(self, *inputs: Any) -> None:
        """Run the transform, with the arguments before the tuple.

        Raises
        ------
        TransformError, TransformInterrupted
            The run failed, or was interrupted.
        """
        load_library()
        run = tvm_ffi.get_global_func("relax_inplace.RunTransform")
        if self._signals.error is not None:  # nothing has changed yet
            raise self._signals.error
        self.params.partial = self.transform.name
        is_whole = False
        try:
            result = run(self._told, self.transform.function, *inputs, self.params._fields())
            wait_for_stream(self._device)  # for what comes after the last update
            self.params._hold(result)
            is_whole = True
        except BaseException as error:
            forget_locals(error)
            cause = self._signals.error or error
            device_error = give_up_if_failed(self._device, self.params._fields())
            if device_error is not None and isinstance(cause, KeyboardInterrupt):
                cause = device_error
            raise self._failure(cause, device_error is not None) from cause
        finally:
            # Restored weights are originals again: all of them, if the run is complete.
            is_restored = self.transform.restores is not None
            made = [
                value
                for slot, value in self._fields()
                if (is_whole and is_restored) or self._is_replaced(slot)
            ]
            mark_tensors(made, "" if is_restored else self.transform.name)

    def _told(self, slot: str | None, bytes_in: int, bytes_out: int, freed: bool | str) -> None:
        if isinstance(freed, str):  # for a new tensor: why it has storage of its own, or ""
            if freed:
                self.refused[freed] += 1
                self._allocated()
            else:
                self.reused += 1
            return
        try:
            if slot is None:
                self._freed()
            else:
                wait_for_stream(self._device)
                (self._replaced if bytes_in >= 0 else self._emptied).add(slot)
                self._updated(slot, bytes_in, bytes_out)
        except BaseException as error:
            # tvm-ffi would make a RuntimeError of a KeyboardInterrupt: what stops it is kept here.
            self._signals.hold(error)
        if self._signals.error is not None and slot is not None and self._may_stop():
            raise self._signals.error

    def _failure(self, cause: BaseException, is_device_lost: bool) -> BaseException:
        step = self._failed_step()
        said = self._memory_needed(cause, step)
        if is_device_lost:
            said += f"; nothing on {self._device} can be read any more: start the process again"
        left: dict[str, list[str]] = {"converted": [], "original": [], "lost": []}
        for name, slot in self._weights:
            kind, part = self._state(slot, is_device_lost)
            left[kind].append(f"{name}{part}")
        if not left["converted"] and not left["lost"]:
            self.params.partial = None
        return failure(
            self.transform,
            self.params,
            cause,
            **left,
            step=step,
            said=said,
            is_device_lost=is_device_lost,
        )

    def _weights_of(self, transform: Transform, params: Params) -> list[tuple[str, str]]:
        """Names and slots of the weights; for a streamed transform, of its results."""
        if transform.is_streamed and transform.params is not None:
            return [(one.name, one.slot) for one in transform.params]
        return list(zip(params.names, params._slots(), strict=True))

    def _may_stop(self) -> bool:
        """Whether a stop now loses no weight, and some weights are not converted yet."""
        states = {self._state(slot)[0] for _, slot in self._weights}
        return "lost" not in states and "original" in states

    def _state(self, slot: str, is_device_lost: bool = False) -> tuple[str, str]:
        """The state of the weight that was in a slot: converted, original or lost.

        With it, for a weight that is lost in part, a text that names the part.
        """
        has_values = {}
        if is_device_lost:
            has_values = {one: value is not None for one, value in self._fields()}
        is_gone = self._is_replaced(slot) or self._is_in(slot, self._emptied)
        if self.transform.is_streamed:  # an original is in its file
            is_there = self._is_replaced(slot) and has_values.get(slot, True)
            return ("converted" if is_there else "original"), ""
        if not is_gone:
            return ("original" if has_values.get(slot, True) else "lost"), ""
        made = self.transform.made.get(slot, (slot,))
        lost = [one for one in made if not self._is_replaced(one) or not has_values.get(one, True)]
        if not lost:
            return "converted", ""
        if len(lost) == len(made):
            return "lost", ""
        names = {one.slot: one.name for one in self.transform.params or ()}
        return "lost", f" (of it {', '.join(f'`{names.get(one, one)}`' for one in lost)})"

    def _is_replaced(self, slot: str) -> bool:
        """Whether a slot, or a tuple that it is in, has a new value."""
        return self._is_in(slot, self._replaced)

    def _is_in(self, slot: str, slots: set[str]) -> bool:
        parts = slot.split(".")
        return any(".".join(parts[: i + 1]) in slots for i in range(len(parts)))

    def _fields(self) -> list[tuple[str, Any]]:
        return leaves_of(self.params._fields())

    def _failed_step(self) -> int | None:
        """The step after the last one that was seen to finish.

        A step is seen by the slots that it replaces, or, if there are none, by those that it
        empties. A step with neither has finished if a later one has. A step that writes over its
        weight empties the slot before.
        """
        steps, last = self.transform.steps, 0
        for number, step in enumerate(steps, 1):
            seen = self._replaced if step.writes else self._replaced | self._emptied
            slots = step.writes or step.frees
            if slots and seen.issuperset(slots):
                last = number
        return None if not steps else min(last + 1, len(steps))

    def _memory_needed(self, cause: BaseException, step: int | None) -> str:
        """For a failed allocation, a text with the bytes that it needed and the free ones."""
        if not (isinstance(cause, MemoryError) or _OUT_OF_MEMORY.search(str(cause))):
            return ""
        parts = []
        if step is not None:
            planned = self.transform.steps[step - 1]
            if isinstance(planned.worst, int) and isinstance(planned.before, int):
                parts.append(f"the step needs {planned.worst - planned.before:,} bytes more")
        if self._device is not None:
            available = available_bytes(self._device)
            if available is not None:
                parts.append(f"{available:,} bytes are free")
        if isinstance(self.transform.peak, int):
            parts.append(f"the plan's peak is {self.transform.peak:,} bytes")
        return f" ({'; '.join(parts)})" if parts else ""
