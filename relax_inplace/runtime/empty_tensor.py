"""Tensors whose memory goes back to the system when they are freed.

Definition: on a Linux host, a tensor of 64 KB or more lies in pages of its own (cpp/pages.h), in
huge ones if it is large and the system has them. Any other tensor is allocated by TVM. A heap may
keep freed memory; these pages go back at once. A transform may also move them to another tensor
instead of copying.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tvm_ffi

from ..libinfo import load_library

__all__ = ["empty"]


def empty(shape: Sequence[int], dtype: str, device: Any) -> Any:
    """A new tensor with any content."""
    load_library()
    allocate = tvm_ffi.get_global_func("relax_inplace.AllocateTensor")
    return allocate(tvm_ffi.Shape(shape), tvm_ffi.dtype(dtype), device)
