"""One run of a transform: what became of each slot, and what went wrong.

On a device a kernel runs after the call that asked for it, and its error comes with a later one. So
at each update the device is waited for (this thread's stream): a slot counts as converted when its
kernels are done, and an error belongs to the step that is named. A device that has failed reports
so from then on, and nothing on it can be read (CUDA: until the process ends): every slot on it is
lost, whatever was done before.
"""

from __future__ import annotations

import contextlib
import re
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import tvm_ffi

from ..libinfo import load_library
from .available_memory import available_bytes
from .failed_device import give_up_if_failed, wait_for_stream
from .forget_locals import forget_locals
from .params import Params, leaves_of
from .transform import Transform

__all__ = ["ObservedRun", "TransformError", "TransformInterrupted"]

_OUT_OF_MEMORY = re.compile(
    r"bad_alloc|out of memory|out_of_memory|cannot allocate|failed to allocate|MemoryError", re.I
)


class _Failure:
    """What a failed conversion left.

    Attributes
    ----------
    transform : str
        The function's name.
    step : int or None
        The one that failed, counted from 1: the first that is not seen to be done. None if the
        module does not say what the steps are.
    steps : int or None
        How many there are.
    computes : str
        What that step computes; empty if it is not known.
    converted, original, lost : list of str
        Names of weights: whose slots hold the new one, or None because all that is made of them is
        in other slots; whose slots hold the old one; and whose slots hold None else.
    is_device_lost : bool
        The device has failed: nothing on it can be read any more, nor freed.
    params : Params
        The weights as they are now.
    """

    transform: str
    step: int | None
    steps: int | None
    computes: str
    converted: list[str]
    original: list[str]
    lost: list[str]
    is_device_lost: bool
    params: Params


class TransformError(RuntimeError, _Failure):
    """A conversion has failed. Its cause is the exception that it was raised from."""


class TransformInterrupted(KeyboardInterrupt, _Failure):
    """A conversion was interrupted by Ctrl-C."""


class ObservedRun:
    """Runs a transform on weights that nobody else can read meanwhile, and follows its updates.

    Parameters
    ----------
    transform : Transform
    params : Params
        The weights, or the slots that a streamed transform fills.
    is_filled : bool
        Whether the slots hold weights.
    device : tvm.runtime.Device or None
        Where the weights are.
    updated : callable
        Is called with (slot, bytes in, bytes out) after each update; -1 bytes in for an emptied
        slot. The memory of the old field has not been freed yet.
    freed : callable
        Is called when it has been.
    allocated : callable
        Is called when a new tensor has been allocated, by a module that was compiled with donation.

    Attributes
    ----------
    reused : int
        New tensors, temporaries among them, that took a spent one's storage.
    refused : collections.Counter of str
        Those that did not, by the reason (``cpp/storage.cc``).
    """

    def __init__(
        self,
        transform: Transform,
        params: Params,
        is_filled: bool,
        device: Any,
        updated: Callable[[str, int, int], None],
        freed: Callable[[], None],
        allocated: Callable[[], object],
    ):
        self.transform = transform
        self.params = params
        self._device = device
        self._updated = updated
        self._freed = freed
        self._allocated = allocated
        self.reused = 0
        self.refused: Counter[str] = Counter()
        self._converted: set[str] = set()
        self._emptied: set[str] = set()
        self._stopped_by: BaseException | None = None
        self._interrupted = threading.Event()
        self._is_filled = is_filled

    def __call__(self, *inputs: Any) -> Any:
        """Run it; what comes before the tuple is given.

        Returns
        -------
        tvm_ffi.Array
            The tuple of the weights, or a new one.

        Raises
        ------
        TransformError, TransformInterrupted
        """
        load_library()
        run = tvm_ffi.get_global_func("relax_inplace.RunTransform")
        try:
            with _ctrl_c_noted(self._interrupted):
                result = run(self._told, self.transform.function, *inputs, self.params._fields())
                wait_for_stream(self._device)  # for what comes after the last update
            if self._stopped_by is not None:  # after the last update
                raise self._stopped_by
            if self._interrupted.is_set():
                raise KeyboardInterrupt
            return result
        except BaseException as error:
            forget_locals(error)
            cause = self._stopped_by or error
            device_error = give_up_if_failed(self._device, self.params._fields())
            if device_error is not None and isinstance(cause, KeyboardInterrupt):
                cause = device_error
            raise self._failure(cause, device_error is not None) from cause

    def _told(self, slot: str | None, bytes_in: int, bytes_out: int, freed: bool | str) -> None:
        if isinstance(freed, str):  # of a new tensor: why it took no spent one's storage
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
                (self._converted if bytes_in >= 0 else self._emptied).add(slot)
                self._updated(slot, bytes_in, bytes_out)
            if self._interrupted.is_set():
                raise KeyboardInterrupt
        except BaseException as error:
            # tvm-ffi would make a RuntimeError of a KeyboardInterrupt: what stops it is kept here.
            self._stopped_by = self._stopped_by or error
        # A weight whose slot has been emptied would be lost: it stops when a new one is in place.
        if self._stopped_by is not None and slot is not None and bytes_in >= 0:
            raise self._stopped_by

    def _failure(self, cause: BaseException, is_device_lost: bool) -> BaseException:
        is_interrupt = isinstance(cause, KeyboardInterrupt)
        failure: Any
        state: dict[str, list[str]] = {"converted": [], "original": [], "lost": []}
        for name, slot, value in self._slots():
            is_gone = is_device_lost and (value is None or not self._is_filled)
            if (self._is_converted(slot) or self._is_elsewhere(slot)) and not is_gone:
                state["converted"].append(name)
            elif value is not None or not self._is_filled:  # in its slot, or in its file
                state["original"].append(name)
            else:
                state["lost"].append(name)
        if not state["converted"] and not state["lost"]:
            self.params.broken_by = None
        step = self._failed_step()
        steps = self.transform.steps
        where = f"`{self.transform.name}`"
        if step is not None:
            where += f", step {step} of {len(steps)} (`{steps[step - 1].computes}`)"
        said = "interrupted" if is_interrupt else _one_line(cause)
        said += self._memory_needed(cause, step)
        if is_device_lost:
            said += f"; nothing on {self._device} can be read any more: start the process again"
        left = "; ".join(
            f"{what}: {_listed(state[what])}" for what in ("converted", "original", "lost")
        )
        message = f"{where}: {said}. {left}"
        failure = TransformInterrupted(message) if is_interrupt else TransformError(message)
        failure.transform = self.transform.name
        failure.step, failure.steps = step, len(steps) or None
        failure.computes = "" if step is None else steps[step - 1].computes
        failure.converted, failure.original = state["converted"], state["original"]
        failure.lost, failure.params = state["lost"], self.params
        failure.is_device_lost = is_device_lost
        return failure

    def _is_converted(self, slot: str) -> bool:
        """Whether a new value is there, or in a tuple that it is in."""
        parts = slot.split(".")
        return any(".".join(parts[: i + 1]) in self._converted for i in range(len(parts)))

    def _is_elsewhere(self, slot: str) -> bool:
        """Whether it was emptied, and all that is made of its weight is in place."""
        made = self.transform.made.get(slot)
        return made is not None and slot in self._emptied and all(map(self._is_converted, made))

    def _slots(self) -> list[tuple[str, str, Any]]:
        """The names, places and values of the slots: those that it fills, if it is streamed."""
        if not self._is_filled and self.transform.params is not None:
            return [(one.name, one.slot, None) for one in self.transform.params]
        leaves = leaves_of(self.params._fields())
        return [
            (name, slot, value)
            for name, (slot, value) in zip(self.params.names, leaves, strict=True)
        ]

    def _failed_step(self) -> int | None:
        """The one after the last that has been seen to be done.

        A step is seen by the slots that are replaced after it, or emptied if there are none: a step
        without any is taken for done if a later one is. What writes over its weight has emptied
        the slot before.
        """
        steps, last = self.transform.steps, 0
        for number, step in enumerate(steps, 1):
            seen = self._converted if step.writes else self._converted | self._emptied
            slots = step.writes or step.frees
            if slots and seen.issuperset(slots):
                last = number
        return None if not steps else min(last + 1, len(steps))

    def _memory_needed(self, cause: BaseException, step: int | None) -> str:
        """Of an allocation that failed: how much it was, and how much there was."""
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


@contextlib.contextmanager
def _ctrl_c_noted(interrupted: threading.Event) -> Iterator[None]:
    """Ctrl-C sets the event, and interrupts only after the block: not between two of its lines.

    In the main thread, and where the handler is Python's own.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _listed(names: list[str]) -> str:
    if not names:
        return "none"
    more = f", {len(names) - 4} more" if len(names) > 4 else ""
    return f"{len(names)} ({', '.join(names[:4])}{more})"
