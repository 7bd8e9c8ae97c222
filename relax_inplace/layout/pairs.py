"""Which layout a kernel was made by, and the one that undoes it.

A layout that moves bits within elements says in its kernels which it is, in the attribute
``relax_inplace.layout``: its name and its options, plain strings and numbers, which survive
TVMScript and JSON. It is believed only if the layout makes the same kernel today.

Layouts that move whole elements say nothing: their kernels can be read
(:mod:`relax_inplace.analysis.kernel_inverse`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import tvm_ffi
from tvm import relax, tirx

from . import awq, faster_transformer, ggml
from ._argument import LayoutError
from ._kernel import LAYOUT, LOSES, NAME

__all__ = ["undo_layout"]

_Layout: TypeAlias = Callable[..., Any]


def _both_ways(*pairs: tuple[str, _Layout, str, _Layout]) -> dict[str, tuple[_Layout, _Layout]]:
    ways = {}
    for there, layout, back, inverse in pairs:
        ways[there], ways[back] = (layout, inverse), (inverse, layout)
    return ways


# For each name in the attribute the layout, and what undoes it; both take the options.
_PAIRS = _both_ways(
    ("ggml.interleave", ggml.interleave, "ggml.deinterleave", ggml.deinterleave),
    (
        "faster_transformer.to_mixed_gemm",
        faster_transformer.to_mixed_gemm,
        "faster_transformer.from_mixed_gemm",
        faster_transformer.from_mixed_gemm,
    ),
    ("awq.codes_to_groups", awq.codes_to_groups, "awq.codes_from_groups", awq.codes_from_groups),
    ("awq.zeros_to_groups", awq.zeros_to_groups, "awq.zeros_from_groups", awq.zeros_from_groups),
)


def undo_layout(
    kernel: tirx.PrimFunc, name: str, operand: relax.TensorType
) -> Callable[[relax.Expr], relax.Expr] | str | None:
    """What undoes a layout's kernel; why nothing does; None if no layout has made it.

    Parameters
    ----------
    kernel : tvm.tirx.PrimFunc
    name : str
        Of the kernel.
    operand : relax.TensorType
        What it is called with.

    Returns
    -------
    callable, str or None
        The callable makes the expression, where a ``relax.BlockBuilder`` is active.
    """
    said = kernel.attrs.get(LAYOUT) if kernel.attrs else None
    if said is None:
        return None
    options = {str(key): _plain(value) for key, value in said.items()}
    if LOSES in options:
        return str(options[LOSES])
    layout = str(options.pop(NAME))
    if layout not in _PAIRS:
        return f"`{name}` was made by `layout.{layout}`, which is not known here"
    there, back = _PAIRS[layout]
    if not _makes(there, options, operand, kernel):
        return f"`{name}` is not what `layout.{layout}` makes"
    return lambda value: back(value, **options)


def _plain(value: Any) -> str | int:
    return value if isinstance(value, (str, int)) else int(value)


def _makes(
    layout: _Layout, options: dict[str, str | int], operand: relax.TensorType, kernel: tirx.PrimFunc
) -> bool:
    """Whether that is the kernel of a layout."""
    builder = relax.BlockBuilder()
    weight = relax.Var("weight", operand)
    with builder.function("make", [weight]):
        try:
            made = layout(weight, **options)
        except LayoutError:
            made = weight
        builder.emit_func_output(builder.emit(made))
    kernels = [f for _, f in builder.get().functions_items() if isinstance(f, tirx.PrimFunc)]
    return len(kernels) == 1 and bool(
        tvm_ffi.structural_equal(_bare(kernels[0]), _bare(kernel), map_free_vars=True)
    )


def _bare(kernel: tirx.PrimFunc) -> tirx.PrimFunc:
    """Without attributes: other passes add some."""
    for attr in kernel.attrs.keys() if kernel.attrs else ():
        kernel = kernel.without_attr(attr)
    return kernel
