"""Schedule rules for the kernels of weight transforms, in the style of TVM's dlight.

A rule takes a kernel as LegalizeOps and FuseTIR leave it, and a target, and returns it scheduled,
with the same parameters and bitwise the same results; or None, if it is not for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tvm
from tvm import tirx

from .cpu_compute import schedule_cpu_compute
from .gpu_inplace import schedule_gpu_inplace
from .gpu_relayout import schedule_gpu_relayout
from .host_move import schedule_host_move

__all__ = ["Rule", "rules_for"]

Rule = Callable[[tirx.PrimFunc, tvm.target.Target], tirx.PrimFunc | None]


def rules_for(target: tvm.target.Target) -> Sequence[Rule]:
    """The rules for a target, the first that takes a kernel first; none for one that has no rules.

    What may lie in its input's memory comes first: it takes no other.
    """
    if target.kind.name == "cuda":
        return schedule_gpu_inplace, schedule_gpu_relayout
    if target.kind.name == "llvm":
        return schedule_host_move, schedule_cpu_compute
    return ()
