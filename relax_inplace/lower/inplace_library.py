"""Kernels that write over their input, compiled as a library of their own.

Whether parameters may be the same memory (``tirx.noalias``) CodeGenLLVM asks of the function that
it has declared last, for all of a module (src/target/llvm/codegen_llvm.cc, ``is_restricted_`` in
``DeclareFunctionInternal``). Taken for distinct these kernels would be compiled wrong, and all
others slower if they were not. TVM links compiled libraries by the module's attribute
``external_mods``.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import tvm
from tvm import ir, relax

from ..ir.binding_rewriter import rewrite_bindings
from ..relayout.inplace_kernel import INPLACE
from .pipeline import target_of

__all__ = ["with_inplace_library"]

_LIBRARIES = "external_mods"
_SYSTEM_PREFIX = "system_lib_prefix"


def with_inplace_library(
    mod: ir.IRModule,
    target: tvm.target.Target | None,
    tir_pipeline: Any,
    exec_mode: str,
    system_lib: bool | None,
) -> ir.IRModule:
    """Compile those kernels of a lowered module.

    Parameters
    ----------
    mod : tvm.ir.IRModule
    target, tir_pipeline, exec_mode, system_lib
        As ``tvm.relax.build`` was given them.
    """
    inplace = {g: f for g, f in mod.functions_items() if INPLACE in (f.attrs or {})}
    if not inplace or target_of(target).kind.name != "llvm":
        return mod
    functions = {g: f for g, f in mod.functions_items() if g not in inplace}
    if exec_mode == "compiled":
        for gvar, function in functions.items():
            if isinstance(function, relax.Function):
                functions[gvar] = _calling_by_the_vm(function, inplace)
    kernels = ir.IRModule(inplace, mod.attrs)
    if _is_system_library(target, system_lib) and _SYSTEM_PREFIX not in (mod.attrs or {}):
        kernels = kernels.with_attr(_SYSTEM_PREFIX, "")
    library = tvm.tirx.build(kernels, target, tir_pipeline)
    libraries = [*(mod.attrs or {}).get(_LIBRARIES, ()), library]
    return ir.IRModule(functions, mod.attrs, mod.global_infos).with_attr(_LIBRARIES, libraries)


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

    def named(expr: relax.Expr) -> relax.Expr:
        return relax.ExternFunc(expr.name_hint) if expr in kernels else expr

    def change(binding: relax.Binding) -> list[relax.Binding]:
        call = binding.value
        if not isinstance(call, ir.Call):
            return [binding]
        if call.op in kernels:
            args = [_INVOKE_CLOSURE, relax.Tuple([named(call.op), *call.args])]
            call = relax.Call(_CALL_BUILTIN, args, None, [call.ty], call.span, ret_ty=call.ty)
        elif call.op.same_as(_CALL_TIR_DYN) and call.args[0] in kernels:
            args = [named(call.args[0]), *call.args[1:]]
            call = relax.Call(call.op, args, call.attrs, call.ty_args, call.span, ret_ty=call.ty)
        else:
            return [binding]
        return [relax.VarBinding(binding.var, call, binding.span)]

    return rewrite_bindings(function, lambda _: change)


_CALL_BUILTIN = ir.Op.get("relax.call_builtin_with_ctx")
_CALL_TIR_DYN = ir.Op.get("relax.vm.call_tir_dyn")
_INVOKE_CLOSURE = relax.ExternFunc("vm.builtin.invoke_closure")
