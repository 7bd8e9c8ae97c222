"""The name, shape and dtype of a tensor, before it exists."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping

from tvm_ffi import dtype as ffi_dtype

__all__ = ["Difference", "TensorInfo", "differences", "dimensions_of"]


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """A tensor that a file holds, or that a compiled module takes or makes.

    Attributes
    ----------
    name : str
        Its name.
    shape : tuple of int or str, or None
        Its shape; a symbolic dimension is its name. None if the rank is not known, or the value is
        not a tensor.
    dtype : str or None
        Its dtype, as TVM spells it. None if it is not known, or the value is not a tensor.
    slot : str
        Its slot in a module's tuple, such as ``3``, and ``0.3`` in a nested one; empty in a file.
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
        """Text such as ``float16[4, 8]``."""
        shape = "..." if self.shape is None else ", ".join(map(str, self.shape))
        return f"{self.dtype or '?'}[{shape}]"


@dataclasses.dataclass(frozen=True)
class Difference:
    """A tensor that has another type than the wanted one."""

    name: str
    given: TensorInfo
    wanted: TensorInfo
    #: The known values of its symbolic dimensions, as text.
    where: str = ""

    @property
    def is_of_dtype(self) -> bool:
        """Whether the dtype alone differs."""
        return self.given.dtype != self.wanted.dtype and self.given.shape == self.wanted.shape

    def __str__(self) -> str:
        """For a person."""
        return f"{self.name!r} is {self.given}, expected {self.wanted}{self.where}"


def differences(given: Mapping[str, TensorInfo], wanted: Iterable[TensorInfo]) -> list[Difference]:
    """The tensors, given by name, that have another type than the wanted one.

    The first tensor with a symbolic dimension sets its value. A wanted type without a dtype stands
    for any tensor, or for a value that is not a tensor.
    """
    sizes: dict[str, int | str] = {}
    wrong = []
    for one in wanted:
        if one.name not in given or one.dtype is None:
            continue
        is_same, where = _is_same(given[one.name], one, sizes)
        if not is_same:
            wrong.append(Difference(one.name, given[one.name], one, where))
    return wrong


def dimensions_of(given: Mapping[str, TensorInfo], wanted: Iterable[TensorInfo]) -> dict[str, int]:
    """The values of symbolic dimensions, from tensors of the wanted types."""
    found: dict[str, int] = {}
    for one in wanted:
        if one.name in given and one.shape is not None:
            for length, size in zip(given[one.name].shape or (), one.shape, strict=True):
                if isinstance(size, str) and size.isidentifier():
                    found.setdefault(size, int(length))
    return found


def _is_same(
    given: TensorInfo, wanted: TensorInfo, sizes: dict[str, int | str]
) -> tuple[bool, str]:
    """Whether the types are the same, and the known values of the symbolic dimensions, as text."""
    if given.dtype != wanted.dtype:
        return False, ""
    if wanted.shape is None or given.shape is None:
        return True, ""
    if len(given.shape) != len(wanted.shape):
        return False, ""
    is_same, known = True, []
    for length, expected in zip(given.shape, wanted.shape, strict=True):
        if isinstance(expected, str):
            if not expected.isidentifier():  # an expression of dimensions: TVM checks it
                continue
            expected_length = sizes.setdefault(expected, length)
            known.append(f"{expected} = {expected_length}")
        else:
            expected_length = expected
        is_same = is_same and length == expected_length
    return is_same, f" with {', '.join(known)}" if known else ""
