"""The memory of a tensor, as bytes."""

from __future__ import annotations

from typing import Any

import numpy as np

from .tensor_info import TensorInfo

__all__ = ["bytes_of"]


def bytes_of(tensor: Any) -> np.ndarray:
    """A view of the memory of a contiguous tensor on the host; it keeps the tensor alive.

    The view has bytes, because numpy has neither bfloat16 nor types of 4 bits.
    """
    nbytes = TensorInfo("", tuple(map(int, tensor.shape)), str(tensor.dtype)).nbytes
    return np.from_dlpack(tensor._create_view((nbytes,), "uint8"))
