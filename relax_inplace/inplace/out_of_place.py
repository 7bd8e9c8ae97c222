"""What the conversion of a plan takes where the originals stay: out of place.

Definition
----------
The originals, and the results: at the end both are there. What is an original and a result takes
its bytes once. So it is the least of any way that keeps the originals; temporaries come on top.
"""

from __future__ import annotations

from ..ir.byte_size import Size
from .memory_plan import MemoryPlan

__all__ = ["out_of_place_bytes"]


def out_of_place_bytes(plan: MemoryPlan) -> Size:
    """The bytes that are live at the end of the conversion if it keeps the originals.

    Parameters
    ----------
    plan : MemoryPlan

    Returns
    -------
    int or ByteSize
    """
    is_streamed = any(weight.loaded_by for weight in plan.weights)
    originals = sum((weight.size for weight in plan.weights), start=0)
    both = [
        weight.size
        for weight in plan.weights
        if weight.freed_after is None and (weight.loaded_by or not is_streamed)
    ]
    return originals + plan.after - sum(both, start=0)
