"""KillCheckedFields: a register that a tuple's field was checked in must not keep the field alive.

``VMShapeLower`` (src/relax/backend/vm/vm_shape_lower.cc, VisitType_ for TupleType) reads every
field of a tuple parameter into a register, to check its dtype, rank and shape at entry. It runs
after ``KillAfterLastUse``, so nothing empties those registers: each holds its weight until the
function returns, and an in-place transform needs two copies of the weights after all.

Definition: every variable that a tuple's field is read into, and that nothing kills, is killed
after its last use. All checks stay, and stay where they are: before the first update.
"""

from __future__ import annotations

import functools

import tvm
from tvm import ir, relax

from ..analysis.updates import functions_that_update
from ..op import VOID
from .binding_rewriter import Rewrite, rewrite_bindings

__all__ = ["KillCheckedFields"]


def KillCheckedFields() -> tvm.transform.Pass:  # noqa: N802  named as TVM names passes
    """Create the pass that frees what ``VMShapeLower`` read fields into, once they are checked.

    For a lowered module; touches only functions that update a tuple, and their callers. It runs
    by itself when a module that holds updates is compiled. A nested tuple's register outlives the
    reads of its fields.

    Returns
    -------
    tvm.transform.Pass
    """

    @tvm.transform.module_pass(opt_level=0, name="KillCheckedFields")
    def run(mod: ir.IRModule, _context: tvm.transform.PassContext) -> ir.IRModule:
        return kill_checked_fields(mod, functions_that_update(mod))

    return run


def kill_checked_fields(mod: ir.IRModule, updating: set[ir.GlobalVar]) -> ir.IRModule:
    """What the pass does."""
    if not updating:
        return mod
    mod = mod.clone()
    for gvar in updating:
        mod[gvar] = rewrite_bindings(mod[gvar], _killing)
    return mod


def _killing(sequence: relax.SeqExpr) -> Rewrite:
    kill = _kill()
    killed_after: dict[relax.Var, list[relax.Var]] = {}
    for var, user in _last_use_of_unkilled_reads(sequence).items():
        killed_after.setdefault(user, []).append(var)

    def rewrite(binding: relax.Binding) -> list[relax.Binding]:
        kills = [
            relax.VarBinding(relax.Var("_", VOID), relax.Call(kill, [var], ret_ty=VOID))
            for var in killed_after.get(binding.var, ())
        ]
        return [binding, *kills]

    return rewrite


def _last_use_of_unkilled_reads(sequence: relax.SeqExpr) -> dict[relax.Var, relax.Var]:
    """For each such read, the variable of the binding that uses it last."""
    last_use: dict[relax.Var, relax.Var] = {}
    for block in sequence.blocks[:]:
        for binding in block.bindings[:]:
            var, value = binding.var, binding.value
            if _is_kill(value):
                last_use.pop(value.args[0], None)
                continue
            for used in _used(value):
                if used in last_use:
                    last_use[used] = var
            if _is_read(value):
                last_use[var] = var
    for var in relax.analysis.free_vars(sequence.body):
        last_use.pop(var, None)
    return last_use


def _used(value: relax.Expr) -> list[relax.Expr]:
    if isinstance(value, relax.TupleGetItem):
        return [value.tuple_value]
    return relax.analysis.free_vars(value)[:]


def _is_kill(value: relax.Expr) -> bool:
    return isinstance(value, ir.Call) and value.op == _kill()


@functools.cache
def _kill() -> ir.Op:
    return ir.Op.get("relax.vm.kill_object")


def _is_read(value: relax.Expr) -> bool:
    if isinstance(value, relax.TupleGetItem):
        return True
    return (
        isinstance(value, ir.Call)
        and isinstance(value.op, relax.ExternFunc)
        and value.op.global_symbol == "vm.builtin.tuple_getitem"  # of a value of unknown type
    )
