"""Lifted transpositions that only matrix products read.

TVM's ``FuseTransposeMatmul`` (python/tvm/relax/transform/fuse_transpose_matmul.py), which MLC-LLM
runs, makes one kernel of ``matmul(x, permute_dims(w))``, for which dlight has a schedule. Once the
transposition is lifted it finds none, and what it would have made is not there.
"""

from __future__ import annotations

from collections.abc import Iterator

from tvm import ir, relax

from ..ir.table import listed
from .plan import LiftPlan
from .weight_values import Computation, NumberedUser, Value, leaves

__all__ = ["transposed_for_matmul", "warning_of"]


def warning_of(plan: LiftPlan) -> str | None:
    """What to say of a plan that lifts such, if nobody has asked for it."""
    weights = transposed_for_matmul(plan) if plan.selected.is_all_asked_for else []
    if not weights:
        return None
    count = "a weight" if len(weights) == 1 else f"{len(weights)} weights"
    return (
        f"LiftInplaceTransformParams: the transpositions are lifted of {count} "
        f"({listed(weights)}) that only matmul reads. A pipeline that fuses the two "
        "(FuseTransposeMatmul, as MLC-LLM's does) finds them no more, and its kernels can be many "
        "times slower: for such a pipeline, leave them, with skip='relax.permute_dims'. only='*' "
        "lifts them without this warning"
    )


def transposed_for_matmul(plan: LiftPlan) -> list[str]:
    """The weights that are stored transposed, and read by nothing but ``matmul`` on its right."""
    transposed = {
        value
        for value in plan.values.needed_by
        if value.made_by is not None and _is_transposition(value.made_by)
    }
    others: set[Value] = set()
    for numbered in plan.graph.users if transposed else ():
        others.update(_read_by_others(plan, numbered))
    return [
        plan.first_weight[value.made_by].name
        for value in plan.values.needed_by
        if value in transposed and value not in others and value.made_by is not None
    ]


def _is_transposition(made: Computation) -> bool:
    """Whether FuseTransposeMatmul would take it: of the last two axes."""
    call = made.binding.value
    if made.is_cast or not isinstance(call.op, ir.Op) or call.op.name != "relax.permute_dims":
        return False
    rank = call.args[0].ty.ndim
    if call.attrs.axes is None:
        return bool(rank == 2)
    axes = [int(axis) % rank for axis in call.attrs.axes] if rank > 1 else []
    return bool(axes) and axes == [*range(rank - 2), rank - 1, rank - 2]


def _read_by_others(plan: LiftPlan, numbered: NumberedUser) -> Iterator[Value]:
    """The values that a function uses otherwise than on the right of a ``matmul``."""
    holds, bound = numbered.holds, plan.bound_after(numbered)
    used = list(relax.analysis.free_vars(numbered.user.function.body.body)[:])
    for _, var, value, _ in numbered.bindings:
        if var in holds:
            kept = bound.get(var)
            if type(kept) is ir.Call:
                used += relax.analysis.free_vars(kept)[:]
        elif type(value) is ir.Call and type(value.op) is ir.Op and value.op.name == _MATMUL:
            used += relax.analysis.free_vars(value.args[0])[:]
        else:
            used += relax.analysis.free_vars(value)[:]
    for var in used:
        if var in holds:
            yield from leaves(holds[var])


_MATMUL = "relax.matmul"
