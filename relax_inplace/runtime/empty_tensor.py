"""Tensors whose memory the system has back when they are freed.

Definition: on a Linux host, a tensor of 64 KB or more lies in pages of its own (cpp/pages.h),
in huge ones if it is large and the system has them. Of a heap, what is freed may stay resident. A
transform may move these pages to another tensor instead of copying them. Any other tensor is one of
TVM's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tvm_ffi

from ..libinfo import load_library

__all__ = ["empty"]


def empty(shape: Sequence[int], dtype: str, device: Any) -> Any:
    """A tensor of any content, which nothing else refers to."""
    load_library()
    allocate = tvm_ffi.get_global_func("relax_inplace.AllocateTensor")
    return allocate(tvm_ffi.Shape(shape), tvm_ffi.dtype(dtype), device)
