"""Samples of this process's resident memory, and of a device's used memory, while a block runs.

On the host a thread reads the resident memory every few milliseconds. It may miss a peak between
two reads. Linux keeps the highest figure itself (VmHWM), which is used if it has risen. On a device
the driver gives the free memory (CUDA: cudaMemGetInfo), which includes the use of others. It is
also read at each allocation, and before memory is freed, so that no peak of the weights is missed.
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
    """Memory at a moment."""

    #: Since the start.
    seconds: float
    #: Bytes resident on the host.
    host: int
    #: Bytes used on the device; None if the weights are on the host, or the driver does not say.
    device: int | None


class MemorySampler:
    """Samples memory while the block runs; ``before`` is the first sample.

    The thread has a list of its own, without a lock: in a child of a fork the thread does not run,
    and the child would wait for the lock for ever.

    Parameters
    ----------
    device : tvm.runtime.Device, optional
        The device to sample beside the host.
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
        """All samples in the order of time; the last one is of the end of the block."""
        return sorted([*self._asked_for, *self._by_time], key=lambda one: one.seconds)

    @property
    def peak(self) -> Sample:
        """The highest figures; the time is that of the host's."""
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
