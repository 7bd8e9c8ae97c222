"""What a function may write to: the operands of its calls, and what these share memory with.

Definition
----------
A call writes to what it may overwrite (:mod:`relax_inplace.ir.effects`), and so to all that shares
its memory: what it is another name, a field or a cast of, and what the call that made it may alias.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

from tvm import ir, relax

from ..ir.effects import EffectTable

__all__ = ["Bound", "WrittenValues", "bound_in", "find_written"]


class Bound(NamedTuple):
    """A binding, read once: tvm-ffi makes a new object of each attribute each time."""

    binding: relax.Binding
    var: relax.Var
    value: relax.Expr
    is_in_branch: bool


def bound_in(body: relax.SeqExpr, is_in_branch: bool = False) -> Iterator[Bound]:
    """The bindings of a sequence and of the branches in it: everything after what it uses."""
    for block in body.blocks[:]:
        for binding in block.bindings[:]:
            value = binding.value
            if type(value) is relax.If:
                yield from bound_in(value.true_branch, True)
                yield from bound_in(value.false_branch, True)
            yield Bound(binding, binding.var, value, is_in_branch)


@dataclasses.dataclass
class WrittenValues:
    """What a function may write to.

    Attributes
    ----------
    by : dict of relax.Var to str
        The variables, and the call that does.
    params : list of (relax.Var, tuple of int)
        The parameters, or fields of them, by their indices.
    """

    by: dict[relax.Var, str] = dataclasses.field(default_factory=dict)
    params: list[tuple[relax.Var, tuple[int, ...]]] = dataclasses.field(default_factory=list)


def find_written(bindings: list[Bound], effects: EffectTable) -> WrittenValues:
    """Find what bindings of a function may write to."""
    written = WrittenValues()
    definitions: dict[relax.Var, relax.Expr] | None = None
    for _, var, value, _ in bindings:
        kind = type(value)
        if kind is relax.Function:
            effects.local[var] = value
        if kind is not ir.Call:  # a branch's bindings are among these
            continue
        overwrites = effects.of(value).overwrites
        if overwrites:
            if definitions is None:
                definitions = {bound.var: bound.value for bound in bindings}
            pending: list[tuple[relax.Expr, tuple[int, ...]]] = [(o, ()) for o in overwrites]
            _trace(pending, _called(value), definitions, effects, written)
    return written


def _called(call: ir.Call) -> str:
    """What is called, for a report."""
    callee = call.op
    if type(callee) is ir.Op:
        return str(callee.name).removeprefix("relax.")
    return str(getattr(callee, "global_symbol", None) or callee)


def _trace(
    pending: list[tuple[relax.Expr, tuple[int, ...]]],
    writer: str,
    definitions: dict[relax.Var, relax.Expr],
    effects: EffectTable,
    written: WrittenValues,
) -> None:
    """Note fields of expressions, by their indices, and all that they share memory with."""
    while pending:
        expr, path = pending.pop()
        kind = type(expr)
        if kind is relax.TupleGetItem:
            pending.append((expr.tuple_value, (int(expr.index), *path)))
        elif kind is relax.Tuple:
            fields = expr.fields[:]
            pending += [(fields[path[0]], path[1:])] if path else [(field, ()) for field in fields]
        elif kind is relax.If:
            pending += [(expr.true_branch.body, path), (expr.false_branch.body, path)]
        elif kind is ir.Call:
            pending += [(operand, ()) for operand in effects.shares(expr)]
        elif kind is ir.Var or kind is relax.DataflowVar:
            if expr not in definitions:
                written.params.append((expr, path))
                continue
            value = definitions[expr]
            is_call = type(value) is ir.Call
            if is_call and expr in written.by:
                continue
            if is_call or not path:
                written.by.setdefault(expr, writer)
            pending.append((value, path))
