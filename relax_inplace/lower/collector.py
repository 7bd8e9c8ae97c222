"""Python's cyclic garbage collector stands still while functions that update are compiled.

TVM's objects are counted, and in no cycles. But passes in Python make several for
each binding, and the collector walks over all that are alive again and again as their number grows:
it took 13 % of the time to compile 500 weights, and 15 % of that for 3,000.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

__all__ = ["paused_collector"]


@contextlib.contextmanager
def paused_collector() -> Iterator[None]:
    """Switch the collector off, and on again if it was on."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
