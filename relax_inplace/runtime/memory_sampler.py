"""Resident memory of this process and used memory of a device, while something runs.

On the host a thread reads what is resident every few milliseconds. It may miss a peak between two
reads; Linux keeps the highest figure itself (VmHWM), which counts wherever it has risen. Of a
device the driver says how much is free (CUDA: cudaMemGetInfo): what others use on it is in the
figures. It is asked at each allocation and before each memory is freed, too, so that no peak of the
weights is missed.
"""

from __future__ import annotations

import dataclasses
import sys
import threading
import time
from typing import Any

import psutil

from .device import is_host
from .memory import used_bytes

__all__ = ["MemorySampler", "Sample"]

_INTERVAL = 0.002  # seconds between the first samples
_MOST = 4096  # samples; then every second one goes, and the interval doubles


@dataclasses.dataclass(frozen=True)
class Sample:
    """Memory at a moment.

    Attributes
    ----------
    seconds : float
        Since the start.
    host : int
        Bytes resident.
    device : int or None
        Bytes used; None on a host, or if the driver does not say.
    """

    seconds: float
    host: int
    device: int | None


class MemorySampler:
    """Samples memory while the block runs.

    The thread has a list of its own, so that there is no lock: a child of a fork, where the thread
    does not run, would wait for it for ever.

    Parameters
    ----------
    device : tvm.runtime.Device, optional

    Attributes
    ----------
    before : Sample
        Of the beginning.
    """

    def __init__(self, device: Any = None):
        self._process = psutil.Process()
        self._device = None if device is None or is_host(device) else device
        self._asked_for: list[Sample] = []
        self._by_time: list[Sample] = []

    def __enter__(self) -> MemorySampler:
        self._highest_before = _highest_resident()
        self._start = time.perf_counter()
        self.before = self.sample()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="MemorySampler", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stop.set()
        self._thread.join()
        self.sample()

    def sample(self) -> Sample:
        """Take one now."""
        self._asked_for.append(self._sampled())
        return self._asked_for[-1]

    @property
    def samples(self) -> list[Sample]:
        """All of them in the order of time; the last is from the end of the block."""
        return sorted([*self._asked_for, *self._by_time], key=lambda one: one.seconds)

    @property
    def peak(self) -> Sample:
        """The highest figures; its time is that of the host's."""
        samples = self.samples
        highest = max(samples, key=lambda one: one.host)
        devices = [one.device for one in samples if one.device is not None]
        after = _highest_resident()
        host = highest.host
        if self._highest_before is not None and after is not None and after > self._highest_before:
            host = max(host, after)
        return Sample(highest.seconds, host, max(devices) if devices else None)

    def _run(self) -> None:
        interval = _INTERVAL
        while not self._stop.wait(interval):
            self._by_time.append(self._sampled())
            if len(self._by_time) > _MOST:
                self._by_time = self._by_time[::2]
                interval *= 2

    def _sampled(self) -> Sample:
        seconds = time.perf_counter() - self._start
        return Sample(seconds, int(self._process.memory_info().rss), self._used())

    def _used(self) -> int | None:
        if self._device is None:
            return None
        try:
            return used_bytes(self._device)
        except Exception:  # it has failed: whoever waits for it says so
            return None


def _highest_resident() -> int | None:
    """VmHWM in bytes; None where there is none."""
    if not sys.platform.startswith("linux"):
        return None
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None
