"""Peak resident memory, measured in a fresh process: what an earlier test left is not in it."""

import gc
import multiprocessing
import os
import sys

import pytest

# AddressSanitizer keeps what is freed for a while, and ends a process that is out of memory.
SANITIZED = "asan" in os.environ.get("LD_PRELOAD", "")

needs_clear_refs = pytest.mark.skipif(
    SANITIZED
    or not sys.platform.startswith("linux")
    or not os.access("/proc/self/clear_refs", os.W_OK),
    reason="peak memory is read from /proc/self/status and reset by /proc/self/clear_refs: Linux, "
    "and no sanitizer",
)


def _status_mb(key):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(key)) / 1024


def extra_mb(call):
    """Peak resident memory of a call above what was resident before it, in MB."""
    gc.collect()
    with open("/proc/self/clear_refs", "w") as refs:
        refs.write("5")  # resets VmHWM
    before = _status_mb("VmRSS")
    call()
    return _status_mb("VmHWM") - before


def in_fresh_process(function, *args, with_defaults=False):
    """Run a function of a test module there.

    glibc raises its mmap threshold as large blocks are freed, and keeps what is below it; a fixed
    threshold makes resident memory show the tensors. ``with_defaults``: what a user sees.
    """
    if not with_defaults:
        os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    try:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.apply(function, args)
    finally:
        os.environ.pop("MALLOC_MMAP_THRESHOLD_", None)
