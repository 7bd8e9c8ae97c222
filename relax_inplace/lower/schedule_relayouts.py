"""ScheduleRelayouts: the kernels of weight transforms, at the speed of memory.

Definition: a kernel that is called by functions that update a tuple is replaced by what the first
rule makes of it that takes it (:mod:`relax_inplace.relayout`); the others stay as they are, and so
does every other function: a kernel that one of them calls, too, is scheduled as a copy.

A kernel that casts floats to integers is given to no rule: what becomes of a number that does not
fit, LLVM leaves undefined, and it is not the same in vectors as it is element by element.

A kernel without a schedule runs on one core, element by element (on a CPU; for a GPU TVM has rules
of its own, which schedule what is left).
"""

from __future__ import annotations

import contextlib

import tvm
import tvm_ffi
from tvm import ir, relax, sym, tirx
from tvm.s_tir import SBlock

from ..ir.binding_rewriter import Rewrite, rewrite_bindings
from ..ir.updates import bindings_of
from ..relayout import rules_for
from .donate_storage import donating

__all__ = ["ScheduleRelayouts"]


def ScheduleRelayouts() -> tvm.transform.Pass:  # noqa: N802  named as TVM names passes
    """Create the pass that schedules the kernels of functions that update a tuple.

    For a module whose operators are kernels (after ``FuseTIR``) and are called by ``R.call_tir``
    still. The target is the current one. Not touched are kernels that have a schedule already, and
    those of what a conversion is compared with (``reference=True`` of ``InplaceTransformParams``).

    Returns
    -------
    tvm.transform.Pass
    """

    @tvm.transform.module_pass(opt_level=0, name="ScheduleRelayouts")
    def run(mod: ir.IRModule, _context: tvm.transform.PassContext) -> ir.IRModule:
        return _scheduled(mod, tvm.target.Target.current(allow_none=False))

    return run


def _scheduled(mod: ir.IRModule, target: tvm.target.Target) -> ir.IRModule:
    updating = donating(mod)
    if not updating:
        return mod
    called = {kernel for gvar in updating for kernel in _kernels_of(mod[gvar])}
    shared = {
        kernel
        for gvar, function in mod.functions_items()
        if isinstance(function, relax.Function) and gvar not in updating
        for kernel in relax.analysis.all_global_vars(function)
    }
    after = mod.clone()
    copies: dict[ir.GlobalVar, ir.GlobalVar] = {}
    names = {gvar.name_hint for gvar in mod.get_global_vars()}
    for kernel in sorted(called, key=lambda gvar: gvar.name_hint):
        function = mod.functions.get(kernel)
        if not isinstance(function, tirx.PrimFunc) or _is_scheduled(function):
            continue
        if _casts_to_integer(function):
            continue
        scheduled = _first(function, target)
        if scheduled is None:
            continue
        if kernel in shared:
            name = _unused(f"{kernel.name_hint}_relayout", names)
            copy = copies[kernel] = ir.GlobalVar(name)
            relax.expr._update_type(copy, kernel.ty)
            if scheduled.attrs and "global_symbol" in scheduled.attrs:
                scheduled = scheduled.with_attr("global_symbol", name)
            after[copy] = scheduled
        else:
            after.update_func(kernel, scheduled)
    if copies:
        for gvar in updating:
            after.update_func(gvar, rewrite_bindings(mod[gvar], lambda _: _calling(copies)))
    return after


def _first(function: tirx.PrimFunc, target: tvm.target.Target) -> tirx.PrimFunc | None:
    for rule in rules_for(target):
        scheduled = rule(function, target)
        if scheduled is not None:
            return None if _may_divide_negatives(scheduled) else scheduled
    return None


def _may_divide_negatives(function: tirx.PrimFunc) -> bool:
    """Whether a number that is rounded down by a division is not sure to be positive.

    TVM lowers such divisions wrong: ``(5 - v) // 3 * 3 + (2 - v) % 3``, for v below 6, comes out as
    3 - v (src/tirx/transform/lower_intrin.cc). Producers that are inlined may make one.
    """
    analyzer = sym.Analyzer()
    divided: list[ir.Expr] = []

    def loop(one: tirx.For) -> None:
        analyzer.bind(one.loop_var, ir.Range.from_min_extent(one.min, one.extent))

    def block(one: SBlock) -> None:
        for axis in one.iter_vars[:]:
            analyzer.bind(axis.var, axis.dom)

    def divide(one: ir.Expr) -> None:
        divided.append(one.a)

    kinds = [(tirx.For, loop), (SBlock, block), ((tirx.FloorDiv, tirx.FloorMod), divide)]
    tvm_ffi.structural_walk(function.body, kinds)
    if not divided:
        return False
    with contextlib.ExitStack() as scopes:
        for param in function.params[:]:
            for size in getattr(param.ty, "shape", ()):
                for var in tirx.analysis.undefined_vars(size):
                    scopes.enter_context(analyzer.constraint_scope(var >= 0))
        return not all(analyzer.can_prove(number >= 0) for number in divided)


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


def _kernels_of(function: relax.Function) -> set[ir.GlobalVar]:
    call_tir = ir.Op.get("relax.call_tir")
    return {
        binding.value.args[0]
        for binding in bindings_of(function)
        if isinstance(binding.value, ir.Call) and binding.value.op == call_tir
    }


def _calling(copies: dict[ir.GlobalVar, ir.GlobalVar]) -> Rewrite:
    call_tir = ir.Op.get("relax.call_tir")

    def rewrite(binding: relax.Binding) -> list[relax.Binding]:
        value = binding.value
        if not (isinstance(value, ir.Call) and value.op == call_tir and value.args[0] in copies):
            return [binding]
        kernel, *others = value.args[:]
        call = relax.Call(
            value.op,
            [copies[kernel], *others],
            value.attrs,
            value.ty_args,
            value.span,
            ret_ty=value.ty,
        )
        return [relax.VarBinding(binding.var, call, binding.span)]

    return rewrite


def _unused(name: str, taken: set[str]) -> str:
    number, found = 0, name
    while found in taken:
        number += 1
        found = f"{name}_{number}"
    taken.add(found)
    return found
