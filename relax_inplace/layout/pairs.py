"""Which layout a kernel was made by, and the one that undoes it.

A layout that moves bits within elements says in its kernels which it is, in the attribute
``relax_inplace.layout``: its name and its options, plain strings and numbers, which survive
TVMScript and JSON. It is believed only if the layout makes the same kernel today.

Layouts that move whole elements say nothing: their kernels can be read
(:mod:`relax_inplace.relayout.kernel_inverse`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import tvm_ffi
from tvm import relax, sym, tirx

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
    kernel: tirx.PrimFunc, name: str, operand: relax.TensorType, result: relax.TensorType
) -> Callable[[relax.Expr], relax.Expr] | str | None:
    """What undoes a layout's kernel; why nothing does; None if no layout has made it.

    Parameters
    ----------
    kernel : tvm.tirx.PrimFunc
    name : str
        Of the kernel.
    operand, result : relax.TensorType
        Of its call.

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
    made, restored = _built(there, options, operand), _built(back, options, result)
    if not made or not tvm_ffi.structural_equal(_bare(made[0]), _bare(kernel), map_free_vars=True):
        return f"`{name}` is not what `layout.{layout}` makes"
    if not restored or not _agree(restored[1], operand):
        return f"`{name}` makes what `layout.{layout}` is not proved to be undone from"
    return lambda value: back(value, **options)


def _plain(value: Any) -> str | int:
    return value if isinstance(value, (str, int)) else int(value)


def _built(
    layout: _Layout, options: dict[str, str | int], operand: relax.TensorType
) -> tuple[tirx.PrimFunc, relax.TensorType] | None:
    """The kernel of a layout, and the type of what it returns; None if it refuses the operand."""
    builder = relax.BlockBuilder()
    weight = relax.Var("weight", operand)
    with builder.function("layout", [weight]):
        try:
            made = builder.emit(layout(weight, **options))
        except LayoutError:
            made = weight
        builder.emit_func_output(made)
    kernels = [f for _, f in builder.get().functions_items() if isinstance(f, tirx.PrimFunc)]
    return (kernels[0], made.ty) if len(kernels) == 1 else None


def _agree(one: relax.TensorType, other: relax.TensorType) -> bool:
    sizes = one.shape.values[:], other.shape.values[:]
    analyzer = sym.Analyzer()
    return (
        str(one.dtype) == str(other.dtype)
        and len(sizes[0]) == len(sizes[1])
        and all(analyzer.can_prove_equal(*pair) for pair in zip(*sizes, strict=True))
    )


def _bare(kernel: tirx.PrimFunc) -> tirx.PrimFunc:
    """Without attributes: other passes add some."""
    for attr in kernel.attrs.keys() if kernel.attrs else ():
        kernel = kernel.without_attr(attr)
    return kernel
