"""What a tensor is before it exists: its name, shape and dtype."""

from __future__ import annotations

import dataclasses
import math

from tvm_ffi import dtype as ffi_dtype

__all__ = ["TensorType"]


@dataclasses.dataclass(frozen=True)
class TensorType:
    """A tensor that a file holds, or that a compiled module takes or makes.

    Attributes
    ----------
    name : str
    shape : tuple of int or str, or None
        A symbolic dimension is its name. None if the rank is not known, or it is no tensor.
    dtype : str or None
        As TVM spells it; None if it is not known, or it is no tensor.
    slot : str
        Its place in a module's tuple, such as ``3``, and ``0.3`` in a nested one; empty in a file.
    """

    name: str
    shape: tuple[int | str, ...] | None
    dtype: str | None
    slot: str = ""

    @property
    def nbytes(self) -> int | None:
        """Bytes in memory; None if they are not known."""
        if self.shape is None or self.dtype is None:
            return None
        lengths = [length for length in self.shape if isinstance(length, int)]
        if len(lengths) < len(self.shape):
            return None
        element = ffi_dtype(self.dtype)
        return -(-math.prod(lengths) * element.bits * element.lanes // 8)

    def __str__(self) -> str:
        """Such as ``float16[4, 8]``."""
        shape = "..." if self.shape is None else ", ".join(map(str, self.shape))
        return f"{self.dtype or '?'}[{shape}]"
