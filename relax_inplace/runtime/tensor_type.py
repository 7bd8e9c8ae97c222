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
    shape : tuple of int or str
        A symbolic dimension is its name.
    dtype : str
        As TVM spells it.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str

    @property
    def nbytes(self) -> int | None:
        """Bytes in memory; None if a dimension is symbolic."""
        lengths = [length for length in self.shape if isinstance(length, int)]
        if len(lengths) < len(self.shape):
            return None
        element = ffi_dtype(self.dtype)
        return -(-math.prod(lengths) * element.bits * element.lanes // 8)

    def __str__(self) -> str:
        """Such as ``float16[4, 8]``."""
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"
