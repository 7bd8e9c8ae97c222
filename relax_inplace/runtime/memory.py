"""The free and used memory of a device, if it says; and the heap of the C library.

glibc takes blocks below a threshold from its heap; the threshold rises up to 32 MB as blocks are
freed. The heap keeps the holes of freed blocks, so a freed weight stays resident until another one
takes its hole. The tensors of this package do not lie there (:mod:`.empty_tensor`). Those of numpy
and others may.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import tvm_ffi

from .device import is_host

__all__ = ["available_bytes", "trim_heap", "used_bytes"]

_CGROUPS = Path("/sys/fs/cgroup")


def available_bytes(device: Any) -> int | None:
    """Bytes that are free on a device; None if it does not say.

    On the host, the lesser of the machine's free memory and the rest of this process's cgroup.

    Parameters
    ----------
    device : tvm.runtime.Device
    """
    if is_host(device):
        machine = psutil.virtual_memory().available
        left = _left_in_cgroups(Path("/proc/self/cgroup"), _CGROUPS)
        return machine if left is None else min(machine, left)
    _make_current(device)
    available = device.available_global_memory
    return None if available is None else int(available)


def used_bytes(device: Any) -> int | None:
    """Bytes that are used on a device that is not the host; None if it does not say."""
    total, available = _total_bytes(device), available_bytes(device)
    return None if total is None or available is None else total - available


@functools.cache  # slow to ask for
def _total_bytes(device: Any) -> int | None:
    total = device.total_global_memory
    return None if total is None else int(total)


def _make_current(device: Any) -> None:
    """Make a device current in this thread: TVM asks CUDA for the memory of the current one."""
    set_device = tvm_ffi.get_global_func("__tvm_set_device", allow_missing=True)
    if set_device is not None:
        set_device(device.dlpack_device_type(), device.index)


def _left_in_cgroups(membership: Path, mount: Path) -> int | None:
    """The least rest of this process's cgroup and of those that contain it."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None
    left = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            root, names = mount, ("memory.max", "memory.current", "")
        elif "memory" in controllers.split(","):  # version 1
            root = mount / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
        else:
            continue
        group = root / path.lstrip("/")
        # In a container the path is the host's, and only the root of the mount can be read.
        for folder in [group, *group.parents]:
            if folder.is_relative_to(root) and (bytes_left := _left(folder, *names)) is not None:
                left.append(bytes_left)
    return min(left, default=None)


def _left(folder: Path, limit: str, usage: str, prefix: str) -> int | None:
    try:
        allowed = (folder / limit).read_text().strip()
        used = int((folder / usage).read_text())
        statistics = (folder / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):
        return None
    if allowed == "max":
        return None
    pages = dict(line.split() for line in statistics)
    # Pages of files: reading weights fills the cgroup with them, and the kernel gives them up.
    cached = sum(int(pages.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
    return max(0, int(allowed) - max(0, used - cached))


def trim_heap() -> None:
    """Give free pages of the heap back to the system, if the C library can."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
