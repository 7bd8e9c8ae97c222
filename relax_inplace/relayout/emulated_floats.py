"""Floats that TVM computes with by means of others, since LLVM's CPUs do not have them.

bfloat16 becomes float32 and back; float8 is taken apart by integers
(``src/tirx/transform/unsupported_dtype_legalize.cc``). Neither goes as far as all vectors: one of
bfloat16 constants stays what it is, and is stored as integers, which is an error of types; and what
float8 becomes has conditions, which vectors cannot have. Elements that are only moved are no
problem.
"""

from __future__ import annotations

from collections.abc import Iterator

import ml_dtypes
import numpy as np
import tvm_ffi
from tvm import ir, relax, tirx

__all__ = ["bits_of_constant", "can_be_vector"]

_CHOICES = {"prim.if_then_else", "tirx.if_then_else"}


def bits_of_constant(value: ir.Expr) -> ir.Expr | None:
    """An emulated constant as an unsigned integer; None if it is none, or is not exact."""
    dtype = str(value.ty)
    if not isinstance(value, tirx.FloatImm) or not _is_emulated(dtype):
        return None
    numpy_dtype = getattr(ml_dtypes, dtype, None)
    if numpy_dtype is None:
        return None
    element = np.array(value.value, numpy_dtype)
    if float(element) != value.value:  # nor is a NaN equal to itself
        return None
    width = 8 * element.itemsize
    return tirx.const(int(element.view(f"uint{width}")), f"uint{width}")


def can_be_vector(value: ir.Expr) -> bool:
    """Whether TVM can lower a vector of elements that are computed so."""
    if isinstance(value, (ir.TensorLoad, relax.Var)):
        return True
    if any(isinstance(one, tirx.FloatImm) and _is_emulated(str(one.ty)) for one in _chosen(value)):
        return False
    small: list[ir.Expr] = []

    def visit(one: ir.Expr) -> None:
        if _is_emulated(str(getattr(one, "ty", ""))) and str(one.ty) != "bfloat16":
            small.append(one)

    tvm_ffi.structural_walk(value, (ir.Expr, visit))
    return not small


def _chosen(value: ir.Expr) -> Iterator[ir.Expr]:
    """What the value may be, by its conditions."""
    if isinstance(value, tirx.Select):
        branches = [value.true_value, value.false_value]
    elif isinstance(value, ir.Call) and getattr(value.op, "name", "") in _CHOICES:
        branches = list(value.args[1:])
    else:
        yield value
        return
    for branch in branches:
        yield from _chosen(branch)


def _is_emulated(dtype: str) -> bool:
    return dtype == "bfloat16" or dtype.startswith(("float8", "float6", "float4"))
