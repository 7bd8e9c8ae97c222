"""KillCheckedFields: no register keeps a field or a tensor alive after its last use.

``VMShapeLower`` (src/relax/backend/vm/vm_shape_lower.cc, VisitType_ for TupleType) reads every
field of a tuple parameter into a register, to check its dtype, rank and shape at entry. It runs
after ``KillAfterLastUse``, so nothing empties those registers: each holds its weight until the
function returns, and an in-place transform needs two copies of the weights after all.

``KillAfterLastUse`` itself (src/relax/transform/kill_after_last_use.cc) kills nothing in what
follows a branch: KillInserter forgets the last uses of a body when it leaves a body inside.

Definition: every variable that a tuple's field is read into, that memory is allocated for, or that
a call returns a tensor in, and that nothing kills, is killed after its last use. All checks stay,
and stay where they are: before the first update.
"""

from __future__ import annotations

import tvm
from tvm import ir, relax

from ..analysis.updates import functions_that_update
from ..op import VOID
from .binding_rewriter import Rewrite, rewrite_bindings

__all__ = ["KillCheckedFields"]

_KILL = "relax.vm.kill_object"
_ALLOCATIONS = ("relax.vm.alloc_storage", "relax.vm.alloc_tensor")


def KillCheckedFields() -> tvm.transform.Pass:  # noqa: N802  named as TVM names passes
    """Create the pass that empties the registers that TVM leaves full, once they are not needed.

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
    kill = ir.Op.get(_KILL)
    killed_after: dict[relax.Var, list[relax.Var]] = {}
    for var, user in _last_use_of_unkilled(sequence).items():
        killed_after.setdefault(user, []).append(var)

    def rewrite(binding: relax.Binding) -> list[relax.Binding]:
        kills = [
            relax.VarBinding(relax.Var("_", VOID), relax.Call(kill, [var], ret_ty=VOID))
            for var in killed_after.get(binding.var, ())
        ]
        return [binding, *kills]

    return rewrite


def _last_use_of_unkilled(sequence: relax.SeqExpr) -> dict[relax.Var, relax.Var]:
    """For each such variable, that of the binding that uses it last."""
    last_use: dict[relax.Var, relax.Var] = {}
    kill = ir.Op.get(_KILL)
    allocations = {ir.Op.get(name) for name in _ALLOCATIONS}
    for block in sequence.blocks[:]:
        for binding in block.bindings[:]:
            value = binding.value
            used = relax.analysis.free_vars(value)[:]
            if isinstance(value, ir.Call) and value.op == kill:
                last_use.pop(used[0], None)
                continue
            for var in used:
                if var in last_use:
                    last_use[var] = binding.var
            if _fills_register(binding, allocations):
                last_use[binding.var] = binding.var
    for var in relax.analysis.free_vars(sequence.body):
        last_use.pop(var, None)
    return last_use


def _fills_register(binding: relax.Binding, allocations: set[ir.Op]) -> bool:
    value = binding.value
    if not isinstance(value, ir.Call):
        return isinstance(value, relax.TupleGetItem)
    if isinstance(value.op, ir.Op):
        return value.op in allocations
    if isinstance(binding.var.ty, relax.TensorType):
        return True
    return (
        isinstance(value.op, relax.ExternFunc)
        and value.op.global_symbol == "vm.builtin.tuple_getitem"  # of a value of unknown type
    )
