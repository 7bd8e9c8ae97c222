"""What a function may write to: the operands of its calls, and what these share memory with.

Definition
----------
A call that works in place writes to an operand. A call that is not pure may, but for those of
``R.print`` and ``R.assert_op``. An operand shares its memory with what it is another name, a field,
a cast or a view of. What an operator computes is new memory, unless the operator is known to be a
view, or to hand on what it is given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

from tvm import ir, relax, tirx

from ..ir.updates import bindings_of

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


def find_written(bindings: list[Bound], mod: ir.IRModule) -> WrittenValues:
    """Find what bindings of a function may write to."""
    written = WrittenValues()
    definitions: dict[relax.Var, relax.Expr] | None = None
    for _, _, value, _ in bindings:
        writer = _writer(value, mod)
        if writer is not None:
            if definitions is None:
                definitions = {bound.var: bound.value for bound in bindings}
            operands = relax.analysis.free_vars(value)[:]
            _trace([(var, ()) for var in operands], writer, definitions, mod, written)
    return written


def _trace(
    pending: list[tuple[relax.Expr, tuple[int, ...]]],
    writer: str,
    definitions: dict[relax.Var, relax.Expr],
    mod: ir.IRModule,
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
            if _shares_memory(expr, mod):
                pending += [(var, ()) for var in relax.analysis.free_vars(expr)[:]]
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


_VIEWS = (
    "relax.reshape",
    "relax.flatten",
    "relax.expand_dims",
    "relax.squeeze",
    "relax.to_vdevice",
    "relax.hint_on_device",
    "relax.call_pure_packed",
    "relax.call_tir_inplace",
    "relax.call_inplace_packed",
    "relax.call_builtin_with_ctx",
    "relax.call_py_func",
)
_VIEW_ROOMS = ("relax.memory.", "relax.vm.", "relax.builtin.", "relax.invoke_")


def _shares_memory(call: ir.Call, mod: ir.IRModule) -> bool:
    """Whether what a call returns may lie in the memory of an operand."""
    if type(call.op) is not ir.Op:
        return True
    name = call.op.name
    if name == "relax.call_tir":  # RewriteDataflowReshape makes such a kernel a view
        kernel = mod[call.args[0]]
        return isinstance(kernel, tirx.PrimFunc) and relax.analysis.has_reshape_pattern(kernel)
    return name in _VIEWS or name.startswith(_VIEW_ROOMS)


def _writer(
    value: relax.Expr, mod: ir.IRModule, calling: frozenset[ir.GlobalVar] = frozenset()
) -> str | None:
    """What an expression calls that may write to an operand."""
    kind = type(value)
    if kind is relax.Function:
        inner = (_writer(binding.value, mod, calling) for binding in bindings_of(value))
        return next((writer for writer in inner if writer is not None), None)
    if kind is not ir.Call:
        return None
    callee = value.op
    if type(callee) is ir.GlobalVar and callee in mod.functions and callee not in calling:
        # TVM takes call_tir_inplace for pure, and so a function that writes to a parameter.
        writer = _writer(mod[callee], mod, calling | {callee})
        if writer is not None:
            return writer
    if type(callee) is not ir.Op:
        if not relax.analysis.contains_impure_call(value):
            return None
        return str(getattr(callee, "global_symbol", None) or callee)
    name = callee.name
    if name in ("relax.call_tir_inplace", "relax.call_inplace_packed"):
        return name.removeprefix("relax.")
    if callee.get_attr("FPurity") or name in ("relax.print", "relax.assert_op"):
        return None
    return name.removeprefix("relax.")
