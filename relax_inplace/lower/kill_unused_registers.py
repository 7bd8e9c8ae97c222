"""KillUnusedRegisters: no register keeps a field or a tensor alive after its last use.

``VMShapeLower`` (src/relax/backend/vm/vm_shape_lower.cc, VisitType_ for TupleType) reads every
field of a tuple parameter into a register, to check its dtype, rank and shape at entry. It runs
after ``KillAfterLastUse``, so nothing empties those registers: each holds its weight until the
function returns, and an in-place transform needs two copies of the weights after all.

``KillAfterLastUse`` itself (src/relax/transform/kill_after_last_use.cc) kills nothing in what
follows a branch: KillInserter forgets the last uses of a body when it leaves a body inside. Nor
does it kill what is never used, such as the tuple of the results of a kernel that writes several.

Definition: every variable that a tuple's field is read into, that is bound to a tuple, that memory
is allocated for, that a call returns a tensor in (or, of a function that is a parameter, anything),
or that is a second name of a tensor, and that nothing kills, is killed after its last use. All
checks stay, and stay where they are: before the first update.
"""

from __future__ import annotations

import functools

import tvm
import tvm_ffi
from tvm import ir, relax

from ..ir.binding_rewriter import Rewrite, rewrite_bindings
from ..ir.updates import functions_that_update
from ..op import VOID

__all__ = ["KillUnusedRegisters"]

_KILL = "relax.vm.kill_object"
_ALLOCATIONS = ("relax.vm.alloc_storage", "relax.vm.alloc_tensor")


def KillUnusedRegisters() -> tvm.transform.Pass:  # noqa: N802  named as TVM names passes
    """Create the pass that empties the registers that TVM leaves full, once they are not needed.

    For a lowered module; touches only functions that update a tuple, and their callers. It runs
    by itself when a module that holds updates is compiled. A nested tuple's register outlives the
    reads of its fields.

    Returns
    -------
    tvm.transform.Pass
    """

    @tvm.transform.module_pass(opt_level=0, name="KillUnusedRegisters")
    def run(mod: ir.IRModule, _context: tvm.transform.PassContext) -> ir.IRModule:
        return kill_unused_registers(mod, functions_that_update(mod))

    return run


def kill_unused_registers(mod: ir.IRModule, updating: set[ir.GlobalVar]) -> ir.IRModule:
    """What the pass does."""
    if not updating:
        return mod
    mod = mod.clone()
    for gvar in updating:
        mod[gvar] = rewrite_bindings(mod[gvar], _killing)
    return mod


def _killing(sequence: relax.SeqExpr) -> Rewrite:
    kill = ir.Op.get(_KILL)
    allocations = [ir.Op.get(name) for name in _ALLOCATIONS]
    returned = set(relax.analysis.free_vars(sequence.body)[:])
    killed_after: dict[relax.Var, list[relax.Var]] = {}
    for var, last_user in _unkilled()(sequence.blocks, kill, allocations).items():
        if var not in returned:
            killed_after.setdefault(last_user, []).append(var)

    def rewrite(binding: relax.Binding) -> list[relax.Binding]:
        kills = [
            relax.VarBinding(relax.Var("_", VOID), relax.Call(kill, [var], ret_ty=VOID))
            for var in killed_after.get(binding.var, ())
        ]
        return [binding, *kills]

    return rewrite


@functools.cache
def _unkilled() -> tvm_ffi.Function:
    return tvm_ffi.get_global_func("relax_inplace.UnkilledRegisters")
