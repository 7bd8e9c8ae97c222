"""The processor that ``build`` compiles for if the target names none: this machine's.

Definition: x86-64-v3 without FMA, if the system says that its processors have all of x86-64-v3;
elsewhere TVM's generic target. Generic x86-64 has no instructions for float16 and half the vectors:
casts take twenty times as long. What comes after v3 makes no cast faster.

Without FMA, because TVM lets LLVM make one rounding of a product and a sum where there is one
instruction for both (AllowFPOpFusion in src/target/llvm/llvm_instance.cc). So a library computes
the bits that the generic one does, but for float16's signalling NaNs, which the processor makes
quiet.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

__all__ = ["of_this_machine"]

_CPUINFO = Path("/proc/cpuinfo")  # what the processor has and the system lets processes use
_V2 = {"ssse3", "sse4_1", "sse4_2", "popcnt", "cx16", "lahf_lm"}  # as Linux names them
_V3 = _V2 | {"movbe", "xsave", "avx", "avx2", "f16c", "fma", "bmi1", "bmi2", "abm"}


def of_this_machine() -> dict[str, Any]:
    """A target for TVM."""
    if platform.machine() == "x86_64" and _flags() >= _V3:
        return {"kind": "llvm", "mcpu": "x86-64-v3", "mattr": ["-fma"]}
    return {"kind": "llvm"}


def _flags() -> frozenset[str]:
    """The flags of the first processor."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    return next((frozenset(one.split()) for one in lines if one.startswith("flags")), frozenset())
