"""Which functions of a module update a tuple in place, themselves or through what they call."""

from __future__ import annotations

from collections.abc import Iterator

from tvm import ir, relax

from ..op import is_update

__all__ = ["bindings_of", "functions_that_update"]


def bindings_of(expr: relax.Expr) -> Iterator[relax.Binding]:
    """Every binding in a function, at any depth of branches and local functions."""
    pending = [expr]
    while pending:
        expr = pending.pop()
        if isinstance(expr, relax.Function):
            pending.append(expr.body)
        elif isinstance(expr, relax.If):
            pending += [expr.true_branch, expr.false_branch]
        elif isinstance(expr, relax.SeqExpr):
            for block in expr.blocks:
                for binding in block.bindings:
                    yield binding
                    value = binding.value
                    if isinstance(value, (relax.Function, relax.If, relax.SeqExpr)):
                        pending.append(value)


def functions_that_update(mod: ir.IRModule) -> set[ir.GlobalVar]:
    """The Relax functions that hold an update, or refer to a function that does.

    A caller belongs to them because it is as able as the callee to keep an original alive.

    Parameters
    ----------
    mod : tvm.ir.IRModule
        Before lowering or after it.

    Returns
    -------
    set of tvm.ir.GlobalVar
        Empty for a module that has nothing to do with this package.
    """
    updating: list[ir.GlobalVar] = []
    callers: dict[ir.GlobalVar, set[ir.GlobalVar]] = {}
    for gvar, function in mod.functions_items():
        if not isinstance(function, relax.Function):
            continue
        holds_update = False
        for binding in bindings_of(function):
            value = binding.value
            if not isinstance(value, ir.Call):
                continue
            holds_update = holds_update or is_update(value)
            for operand in (value.op, *value.args):
                if isinstance(operand, ir.GlobalVar):
                    callers.setdefault(operand, set()).add(gvar)
        if holds_update:
            updating.append(gvar)
    found: set[ir.GlobalVar] = set()
    while updating:
        gvar = updating.pop()
        if gvar not in found:
            found.add(gvar)
            updating.extend(callers.get(gvar, ()))
    return found
