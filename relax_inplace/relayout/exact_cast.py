"""Casts that lose nothing, and what undoes them.

Definition
----------
A cast is exact if it maps no two values, bit by bit, to the same one. These are known to be, for
each value and on each target:

- an integer to an integer of as many bits, or more: the low bits stay;
- an integer to a float whose significand holds it;
- bfloat16 to float32: TVM appends 16 zero bits (src/tirx/transform/unsupported_dtype_legalize.cc).
  They are cut off again as bits: a cast back may change the payload of a NaN.

float16 to float32 is not: of the 65,536 values 1,022 change on the way there and back, as hardware
makes a signalling NaN a quiet one, and then two are one. Nor is float32 to float64.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from tvm import ir, tirx

__all__ = ["cast_back", "is_bit_cast", "lossy"]

_SIGNIFICAND = {"bfloat16": 8, "float16": 11, "float32": 24, "float64": 53}  # bits
_INTEGER = re.compile(r"(u?)int(8|16|32|64)")


def cast_back(source: str, target: str) -> Callable[[ir.Expr], ir.Expr] | None:
    """What undoes the cast of a number, in a kernel; None if it is not exact."""
    if source == target:
        return lambda value: value
    if is_bit_cast(source, target):
        return _cut_to_bfloat16
    integer = _INTEGER.fullmatch(source)
    if integer is None:
        return None
    bits = int(integer[2])
    wider = _INTEGER.fullmatch(target)
    # The lowest signed integer is a power of two: it takes no bit more than the highest.
    needed = bits if integer[1] else bits - 1
    is_exact = int(wider[2]) >= bits if wider else _SIGNIFICAND.get(target, 0) >= needed
    return (lambda value: value.astype(source)) if is_exact else None


def is_bit_cast(source: str, target: str) -> bool:
    """Whether the bits have to be taken back, not the number."""
    return (source, target) == ("bfloat16", "float32")


def lossy(source: str, target: str) -> str:
    """Why a cast cannot be undone."""
    if (source, target) in (("float16", "float32"), ("float16", "float64"), ("float32", "float64")):
        return f"`astype` of {source} to {target} makes signalling NaNs quiet"
    return f"`astype` of {source} to {target} loses bits"


def _cut_to_bfloat16(value: ir.Expr) -> ir.Expr:
    word = tirx.reinterpret("uint32", value) >> tirx.const(16, "uint32")
    return tirx.reinterpret("bfloat16", word.astype("uint16"))
