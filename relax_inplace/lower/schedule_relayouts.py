"""ScheduleRelayouts: the kernels of weight transforms, at the speed of memory.

Definition: each kernel is replaced by what the first rule makes of it that takes it
(:mod:`relax_inplace.relayout`); the others stay as they are.

A kernel that casts floats to integers is given to no rule: what becomes of a number that does not
fit, LLVM leaves undefined, and it is not the same in vectors as it is element by element.

A kernel without a schedule runs on one core, element by element (on a CPU; for a GPU TVM has rules
of its own, which schedule what is left).
"""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm import ir, relax, tirx

from ..ir.updates import bindings_of
from ..relayout import rules_for

__all__ = ["ScheduleRelayouts", "scheduled"]


def ScheduleRelayouts() -> tvm.transform.Pass:  # noqa: N802  named as TVM names passes
    """Create the pass, for the current target.

    For a module whose operators are kernels (after ``LegalizeOps``, or ``FuseTIR``) and are called
    by ``R.call_tir`` still. A kernel that has a schedule already is not touched.
    """

    @tvm.transform.module_pass(opt_level=0, name="ScheduleRelayouts")
    def run(mod: ir.IRModule, _context: tvm.transform.PassContext) -> ir.IRModule:
        target = tvm.target.Target.current(allow_none=False)
        after = mod.clone()
        for gvar in _called_kernels(mod):
            kernel = mod.functions.get(gvar)
            new = scheduled(kernel, target) if isinstance(kernel, tirx.PrimFunc) else None
            if new is not None:
                after.update_func(gvar, new)
        return after

    return run


def scheduled(kernel: tirx.PrimFunc, target: tvm.target.Target) -> tirx.PrimFunc | None:
    """What a kernel becomes; None if it stays as it is."""
    if _is_scheduled(kernel) or _casts_to_integer(kernel):
        return None
    return _first(kernel, target)


def _called_kernels(mod: ir.IRModule) -> list[ir.GlobalVar]:
    call_tir = ir.Op.get("relax.call_tir")
    called = {
        binding.value.args[0]
        for _, function in mod.functions_items()
        if isinstance(function, relax.Function)
        for binding in bindings_of(function)
        if type(binding.value) is ir.Call and binding.value.op == call_tir
    }
    return sorted(called, key=lambda gvar: gvar.name_hint)


def _first(function: tirx.PrimFunc, target: tvm.target.Target) -> tirx.PrimFunc | None:
    for rule in rules_for(target):
        scheduled = rule(function, target)
        if scheduled is not None:
            return scheduled
    return None


def _is_scheduled(function: tirx.PrimFunc) -> bool:
    return bool(function.attrs) and bool(function.attrs.get("tirx.is_scheduled", False))


def _casts_to_integer(function: tirx.PrimFunc) -> bool:
    """Whether a float is made an integer."""
    found = []

    def visit(cast: tirx.Cast) -> None:
        if "float" in str(cast.value.ty) and "int" in str(cast.ty):
            found.append(cast)

    tvm_ffi.structural_walk(function.body, (tirx.Cast, visit))
    return bool(found)
