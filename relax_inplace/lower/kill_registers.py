"""No register keeps anything alive after its last use.

It runs after the last pass that reads anything, and is the only one that kills. TVM's
``KillAfterLastUse`` runs before ``VMShapeLower``, which reads what it checks; it kills nothing that
follows a branch (src/relax/transform/kill_after_last_use.cc: KillInserter forgets the last uses of
a body when it leaves a body inside) nor what is never used; and it takes tuples for values
(``CanonicalizeBindings``).

Definition: every variable that may hold an object is killed after the binding that uses it last, in
the sequence that binds it, unless the sequence returns it.
"""

from __future__ import annotations

from tvm import ir, relax

from ..ir.binding_rewriter import Rewrite, rewrite_bindings
from ..op import VOID

__all__ = ["kill_registers"]

# What a register is filled with. A second name has one of its own, also of a parameter.
_FILLS = (ir.Call, relax.Tuple, relax.TupleGetItem, relax.If, relax.Var)
_NO_OBJECTS = (ir.PrimType, relax.ShapeType, relax.FuncType)


def kill_registers(function: relax.Function) -> relax.Function:
    """A lowered function that empties each register after its last use."""
    return rewrite_bindings(function, _killing)


def _killing(sequence: relax.SeqExpr) -> Rewrite:
    kill = ir.Op.get("relax.vm.kill_object")
    killed_after: dict[relax.Var, list[relax.Var]] = {}
    for var, user in _last_uses(sequence, kill).items():
        killed_after.setdefault(user, []).append(var)

    def rewrite(binding: relax.Binding) -> list[relax.Binding]:
        kills = [
            relax.VarBinding(relax.Var("_", VOID), relax.Call(kill, [var], ret_ty=VOID))
            for var in killed_after.get(binding.var, ())
        ]
        return [binding, *kills]

    return rewrite


def _last_uses(sequence: relax.SeqExpr, kill: ir.Op) -> dict[relax.Var, relax.Var]:
    """For each variable to kill, that of the binding that uses it last."""
    last_use: dict[relax.Var, relax.Var] = {}
    null = ir.Op.get("relax.null_value")
    for block in sequence.blocks[:]:
        for binding in block.bindings[:]:
            var, value = binding.var, binding.value
            kind = type(value)
            if kind is ir.Call and value.op.same_as(kill):
                last_use.pop(value.args[0], None)  # it is killed already
                continue
            for one in _used_by(value, kind):
                if one in last_use:
                    last_use[one] = var
            if kind not in _FILLS or (kind is ir.Call and value.op.same_as(null)):
                continue
            ty = var.ty
            if isinstance(ty, _NO_OBJECTS) or (isinstance(ty, relax.TupleType) and not ty.fields):
                continue
            last_use[var] = var
    for var in relax.analysis.free_vars(sequence.body)[:]:
        last_use.pop(var, None)
    return last_use


def _used_by(value: relax.Expr, kind: type) -> list[relax.Var]:
    if kind is ir.Call:
        args = value.args[:]
        if any(type(arg) is relax.Tuple for arg in args):
            return list(relax.analysis.free_vars(value)[:])
        return [arg for arg in args if type(arg) is relax.Var]  # what is called is not killed
    if kind is relax.TupleGetItem and type(value.tuple_value) is relax.Var:
        return [value.tuple_value]
    if kind is relax.Var:
        return [value]
    return list(relax.analysis.free_vars(value)[:])
