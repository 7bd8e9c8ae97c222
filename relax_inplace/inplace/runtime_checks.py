"""What an in-place function checks when it runs: its memory limit, and each weight that it loads.

Both are builtins of cpp/, given what is known when the function is compiled.
"""

from __future__ import annotations

from tvm import ir, relax

from ..ir.byte_size import ByteSize, LargestOf
from ..op import VOID
from .schedule import Schedule
from .steps import Load
from .transform_graph import UnsupportedTransformError
from .written_blocks import WrittenBlocks

__all__ = ["check_limit", "weight_check"]

_CHECK_LIMIT = "vm.builtin.check_memory_limit"
_CHECK_WEIGHT = "vm.builtin.check_weight"
_NUMBER_WEIGHT = "vm.builtin.number_weight"


def check_limit(
    blocks: WrittenBlocks, schedule: Schedule, limit: int, defined: set[relax.Var]
) -> None:
    """Begin a function with a check of its memory limit.

    Parameters
    ----------
    blocks : WrittenBlocks
        Of the function, empty.
    schedule : Schedule
    limit : int
        Bytes.
    defined : set of relax.Var
        The symbolic dimensions that are known then.
    """
    graph, peak = schedule.graph, schedule.peak()
    otherwise = schedule.peak(in_place=False)
    weights: relax.Expr = graph.params
    if graph.get_weight is not None:
        if isinstance(peak, int):
            return  # the plan is what happens, whatever the caller holds
        _require_known(graph.name, limit, peak, defined)
        weights = blocks.bind("nothing", relax.op.null_value())
    freed = set(schedule.freed_first).union(*schedule.frees)
    kept = [
        index for index, weight in enumerate(graph.root.weights()) if weight.buffer not in freed
    ]
    operands = [
        ir.StringImm(graph.name),
        relax.prim_value(limit),
        *(
            relax.prim_value(size.expr() if isinstance(size, (ByteSize, LargestOf)) else size)
            for size in (peak, otherwise)
        ),
        relax.ShapeExpr(kept),
        weights,
    ]
    call = relax.Call(relax.ExternFunc(_CHECK_LIMIT), operands, None, [VOID], ret_ty=VOID)
    blocks.append(relax.VarBinding(relax.Var("_", VOID), call))


def _require_known(
    name: str, limit: int, peak: ByteSize | LargestOf, defined: set[relax.Var]
) -> None:
    """Refuse a peak that is not known before the first weight is loaded."""
    if not set(relax.analysis.free_vars(peak.expr())[:]) <= defined:
        raise UnsupportedTransformError.of(
            function=name,
            reason=f"lazy=True: whether its peak, {peak} bytes, is within memory_limit={limit} "
            "is known only when weights have been loaded; give the function the attribute "
            "tir_var_upper_bound, or an input of those shapes",
        )


def weight_check(
    load: Load, given: relax.Var, function: str, defined: set[relax.Var], ret_ty: ir.Type
) -> relax.Call:
    """A check that what was given is the weight; of its sizes, those that are defined by now."""
    ty = load.weight.ty
    dtype, shape = "", relax.prim_value(-1)
    if isinstance(ty, ir.PrimType):
        dtype = str(ty.dtype)
    elif isinstance(ty, relax.TensorType):
        dtype = "" if ty.dtype is None else str(ty.dtype)
        if isinstance(ty.shape, relax.ShapeExpr):
            shape = relax.ShapeExpr(
                [
                    dim if set(relax.analysis.free_vars(dim)[:]) <= defined else -1
                    for dim in ty.shape.values[:]
                ]
            )
        elif ty.ndim >= 0:
            shape = relax.ShapeExpr([-1] * ty.ndim)
    operands = [
        ir.StringImm(function),
        relax.prim_value(load.index),
        ir.StringImm(load.weight.name),
        given,
        ir.StringImm(dtype),
        shape,
    ]
    builtin = _CHECK_WEIGHT if ret_ty is VOID else _NUMBER_WEIGHT
    return relax.Call(relax.ExternFunc(builtin), operands, None, [ret_ty], ret_ty=ret_ty)
