"""The kernels of transforms, compiled as libraries of their own.

Whether parameters may be the same memory (``tirx.noalias``) CodeGenLLVM asks of the function that
it has declared last, for all of a module (src/target/llvm/codegen_llvm.cc, ``is_restricted_`` in
``DeclareFunctionInternal``). So kernels for which it is the same are a library: those that may
write over their input would be compiled wrong beside others, and a model's kernels otherwise than
without transforms. TVM links compiled libraries by the module's attribute ``external_mods``.

A kernel that calls another one is compiled with it, as one that is not sure to be given distinct
memory unless both are.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import tvm
import tvm_ffi
from tvm import ir, relax, tirx

from ..ir.binding_rewriter import rewrite_bindings
from .pipeline import target_of

__all__ = ["with_kernel_libraries"]

_LIBRARIES = "external_mods"
_NO_ALIAS = "tirx.noalias"
_SYSTEM_PREFIX = "system_lib_prefix"

_Kernels = dict[ir.GlobalVar, tirx.PrimFunc]


def with_kernel_libraries(
    ours: ir.IRModule,
    target: tvm.target.Target | None,
    tir_pipeline: Any,
    exec_mode: str,
    system_lib: bool | None,
) -> ir.IRModule:
    """Compile the kernels of lowered transforms for a CPU; kernels for a GPU stay as they are.

    Parameters
    ----------
    ours : tvm.ir.IRModule
        Under names that nothing else in the executable has.
    target, tir_pipeline, exec_mode, system_lib
        As ``tvm.relax.build`` was given them.
    """
    if target_of(target).kind.name != "llvm":
        return ours
    kernels = {g: f for g, f in ours.functions_items() if isinstance(f, tirx.PrimFunc)}
    functions = {g: f for g, f in ours.functions_items() if g not in kernels}
    if exec_mode == "compiled":
        functions = {g: _calling_by_the_vm(f, kernels) for g, f in functions.items()}
    attrs = dict(ours.attrs or {})
    libraries = list(attrs.get(_LIBRARIES, ()))
    if _is_system_library(target, system_lib):
        attrs.setdefault(_SYSTEM_PREFIX, "")
    for group in _groups(kernels):
        libraries.append(tvm.tirx.build(ir.IRModule(group, attrs), target, tir_pipeline))
    after = ir.IRModule(functions, ours.attrs, ours.global_infos)
    return after.with_attr(_LIBRARIES, libraries) if libraries else after


def _groups(kernels: _Kernels) -> list[_Kernels]:
    """Those of distinct memory, and the others."""
    others = {gvar for gvar, kernel in kernels.items() if not _has_distinct_memory(kernel)}
    calls = {gvar: _called(kernel) & kernels.keys() for gvar, kernel in kernels.items()}
    grown = True
    while grown:
        together = {g for g, called in calls.items() if called & others}
        together = (together | others).union(*(calls[g] for g in others))
        grown = together != others
        others = together
    distinct = {g: f for g, f in kernels.items() if g not in others}
    shared = {g: f.with_attr(_NO_ALIAS, False) for g, f in kernels.items() if g in others}
    return [group for group in (distinct, shared) if group]


def _has_distinct_memory(kernel: tirx.PrimFunc) -> bool:
    return bool(kernel.attrs) and bool(kernel.attrs.get(_NO_ALIAS, False))


def _called(kernel: tirx.PrimFunc) -> set[ir.GlobalVar]:
    found: set[ir.GlobalVar] = set()
    tvm_ffi.structural_walk(kernel.body, (ir.GlobalVar, found.add))
    return found


def _is_system_library(target: tvm.target.Target | None, system_lib: bool | None) -> bool:
    """Whether functions register themselves: python/tvm/relax/vm_build.py, _vmlink."""
    if system_lib is not None or target is None:
        return bool(system_lib)
    host = target if target.host is None else target.host
    return "wasm" in host.attrs.get("mtriple", "")


def _calling_by_the_vm(
    function: relax.Function, kernels: Collection[ir.GlobalVar]
) -> relax.Function:
    """A function that has the VM call kernels, which it finds in every library.

    A compiled function calls others by symbols of its own library, or by names that it looks for
    in what that imports (EmitNormalCall in src/relax/backend/vm/codegen_vm_tir.cc).
    """

    def change(binding: relax.Binding) -> list[relax.Binding]:
        call = binding.value
        if type(call) is not ir.Call or call.op not in kernels:
            return [binding]
        kernel = relax.ExternFunc(call.op.name_hint)
        args = [_INVOKE_CLOSURE, relax.Tuple([kernel, *call.args])]
        call = relax.Call(_CALL_BUILTIN, args, None, [call.ty], call.span, ret_ty=call.ty)
        return [relax.VarBinding(binding.var, call, binding.span)]

    return rewrite_bindings(function, lambda _: change)


_CALL_BUILTIN = ir.Op.get("relax.call_builtin_with_ctx")
_INVOKE_CLOSURE = relax.ExternFunc("vm.builtin.invoke_closure")
