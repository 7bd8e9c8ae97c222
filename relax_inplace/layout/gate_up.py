"""Gate and up: two halves of rows, or rows of both in turn.

A fused layer of SwiGLU has the rows of two matrices in one: first all of one, then all of the
other. Kernels that multiply both and combine them want groups of rows of both next to each other:

- TensorRT-LLM: ``interleave_linear_and_gate`` (``_torch/modules/fused_moe/quantization.py``),
  groups of 64;
- DeepGEMM: ``_interleave_l1_weights`` (``deep_gemm/mega``), groups of 8.

Whatever belongs to a row goes with it: codes, and scales with a row for each.
"""

from __future__ import annotations

from tvm import relax

from ._argument import require, require_multiple, shape_of
from ._declaration import Declaration, call_declared
from ._kernel import of_known_type, takes_nn_tensors

__all__ = ["LAYOUTS", "deinterleave", "interleave"]


def _layout(group: int) -> Declaration:
    return Declaration(f"h:2 N g:{group}, K, b -> N h g, K, b")


LAYOUTS = {"groups of 64": _layout(64), "groups of 8": _layout(8)}


@takes_nn_tensors
def interleave(weight: relax.Expr, *, group: int) -> relax.Expr:
    """Two halves of rows to groups of rows of both.

    Parameters
    ----------
    weight : relax.Expr
        (2 N, K) of any dtype, or (E, 2 N, K) of E experts. N is a multiple of ``group``.
    group : int
        Rows that stay together: 64 for TensorRT-LLM, 8 for DeepGEMM.

    Returns
    -------
    relax.Expr
        The same shape: of the first half ``group`` rows, as many of the second, and so on.
    """
    return _moved("gate_up.interleave", weight, group, False)


@takes_nn_tensors
def deinterleave(weight: relax.Expr, *, group: int) -> relax.Expr:
    """Two halves of rows again: what :func:`interleave` was given.

    Parameters
    ----------
    weight : relax.Expr
        (2 N, K) or (E, 2 N, K).
    group : int
        As it was given to :func:`interleave`.

    Returns
    -------
    relax.Expr
        The same shape.
    """
    return _moved("gate_up.deinterleave", weight, group, True)


def _moved(where: str, weight: relax.Expr, group: int, is_back: bool) -> relax.Expr:
    require(
        isinstance(group, int) and group > 0,
        where,
        f"group={group!r} given",
        "a number above 0",
        "64 is TensorRT-LLM's, 8 is DeepGEMM's",
    )
    weight = of_known_type(where, weight)
    each = ["E"] if weight.ty.ndim == 3 else []
    *_, height, _ = shape_of(where, "weight", weight, (), (*each, "2 N", "K"))
    remedy = "both halves have to be whole groups: pad each with rows of zeros"
    require_multiple(where, "rows", height, 2 * group, remedy)
    layout = _layout(group).of_each("E") if each else _layout(group)
    name = f"{where.rpartition('.')[2]}_{group}_rows_of_gate_up"
    return call_declared(where, name, layout, weight, is_back=is_back)
