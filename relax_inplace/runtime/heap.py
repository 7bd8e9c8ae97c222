"""Memory that the C library has been given back, and keeps.

glibc serves blocks below a threshold, which rises up to 32 MB as blocks are freed, from its heap,
and keeps the holes that they leave: a freed weight stays resident until one that fits is allocated.
What this package allocates is not there (:mod:`.empty_tensor`); what numpy and others did may be.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

__all__ = ["trim_heap"]


def trim_heap() -> None:
    """Give free pages of the heap back to the system, where the C library can."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
