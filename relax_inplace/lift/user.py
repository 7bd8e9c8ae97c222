"""A function that takes weights, once it reads what is stored of what it computes from them.

What is not made from weights alone stays as it is. A variable that holds a stored value is read
from the tuple of weights; one that holds another value is computed as before, by what it takes to
do so; the others go.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import ir, relax

from ..ir.resolve import resolve
from .shared_weights import LiftError, WeightUser
from .weight_values import NumberedUser, Tree, Value, ValueGraph

__all__ = ["bound_after", "called_user"]

_NAMES = (ir.Var, relax.DataflowVar, relax.Tuple, relax.TupleGetItem)


def bound_after(
    numbered: NumberedUser, graph: ValueGraph, is_stored: Callable[[Value], bool]
) -> dict[relax.Var, relax.Expr | None]:
    """What the variables are bound to that hold what weights alone make, and are still used.

    None for one that is read from the tuple.
    """
    function, holds = numbered.user.function, numbered.holds
    names = {
        var: value
        for binding, var, value, _ in numbered.bindings
        if type(binding) is relax.VarBinding and type(value) in _NAMES and var in holds
    }

    def not_handed_out(var: relax.Var) -> relax.Expr | None:
        """Not past what a dataflow block hands out: its own variables are not seen outside."""
        value = names.get(var)
        return None if value is None or _is_handed_out(var, value) else value

    bound: dict[relax.Var, relax.Expr | None] = {}
    used = set(_used_by(numbered, function.body.body, graph))
    for binding, var, value, _ in reversed(numbered.bindings):
        if var not in holds:
            used.update(_used_by(numbered, value, graph))
        elif var in used:
            if _is_whole(holds[var], is_stored):
                bound[var] = None
            else:
                is_cast = type(binding) is relax.MatchCast
                kept = value if is_cast else resolve(value, not_handed_out)
                used.update(relax.analysis.free_vars(kept)[:])
                bound[var] = kept
    bound.update((var, None) for var in numbered.user.weights if var in used)
    return bound


def _is_handed_out(var: relax.Var, value: relax.Expr) -> bool:
    return type(var) is ir.Var and any(
        type(used) is relax.DataflowVar for used in relax.analysis.free_vars(value)[:]
    )


def _is_whole(tree: Tree, is_stored: Callable[[Value], bool]) -> bool:
    """Whether all of it is in the tuple of weights."""
    if isinstance(tree, list):
        return all(_is_whole(field, is_stored) for field in tree)
    return isinstance(tree, Value) and is_stored(tree)


def called_user(value: relax.Expr, numbered: NumberedUser, graph: ValueGraph) -> WeightUser | None:
    """The function that is called, if it shares the weights and is handed them as they are.

    Raises
    ------
    LiftError
        It is handed other weights.
    """
    if type(value) is not ir.Call or type(value.op) is not ir.GlobalVar:
        return None
    called = next((user for user in graph.shared.users if value.op.same_as(user.gvar)), None)
    if called is None:
        return None
    args = value.args[called.position : called.position + len(called.weights)]
    handed = [numbered.holds.get(arg) for arg in args]
    own: list[Tree] = [numbered.holds[weight] for weight in numbered.user.weights]
    if numbered.user.is_bundled and not called.is_bundled:
        own = list(own[0])  # type: ignore[arg-type]
    if len(handed) != len(own) or any(one is not two for one, two in zip(handed, own, strict=True)):
        raise LiftError.of(
            functions=graph.shared.listed,
            reason=f"`{numbered.user.name}` calls `{called.name}` with other weights than its own",
        )
    return called


def _used_by(numbered: NumberedUser, value: relax.Expr, graph: ValueGraph) -> list[relax.Var]:
    """The variables that an expression uses itself, not in the bindings that are inside it."""
    if type(value) is relax.If:
        parts = [value.cond, value.true_branch.body, value.false_branch.body]
    else:
        called = called_user(value, numbered, graph)
        if called is None:
            return relax.analysis.free_vars(value)[:]
        first, last = called.position, called.position + len(called.weights)
        parts = [*value.args[:first], *value.args[last:]]
    return [var for part in parts for var in relax.analysis.free_vars(part)[:]]
