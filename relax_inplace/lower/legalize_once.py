"""LegalizeOnce: equal operators of a transform become one kernel in one step.

``LegalizeOps`` makes the kernel of each call anew, though a model has the same operator of the same
types for every layer: two fifths of TVM's time for a long transform. What is not of static sizes
alone, on the one device of the target, is left to it.
"""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm import ir, relax, tirx

from ..ir.binding_rewriter import rewrite_bindings
from ..ir.kernels import Kernels

__all__ = ["LegalizeOnce"]


def LegalizeOnce() -> tvm.transform.Pass:  # noqa: N802  named as TVM names passes
    """Create the pass, to run right before ``LegalizeOps``."""

    @tvm.transform.module_pass(opt_level=0, name="LegalizeOnce")
    def run(mod: ir.IRModule, _context: tvm.transform.PassContext) -> ir.IRModule:
        kernels, builder = Kernels(mod), relax.BlockBuilder(mod)
        names: dict[tirx.PrimFunc, ir.GlobalVar] = {}

        def rewrite(binding: relax.Binding) -> list[relax.Binding]:
            call = binding.value
            if not _is_static_operator(call):
                return [binding]
            legalized = kernels.of(call)
            if legalized is None or None in legalized.operands:
                return [binding]
            if not tvm_ffi.structural_equal(legalized.ty, call.ty):
                return [binding]
            kernel = legalized.kernel
            if kernel not in names:
                names[kernel] = builder.add_func(kernel, legalized.name)
            given = relax.analysis.free_vars(call)[:]
            operands = relax.Tuple([given[index] for index in legalized.operands])
            args = [names[kernel], operands]
            called = relax.Call(_CALL_TIR, args, None, [call.ty], call.span, ret_ty=call.ty)
            return [relax.VarBinding(binding.var, called, binding.span)]

        functions = {
            gvar: rewrite_bindings(function, lambda _: rewrite)
            for gvar, function in mod.functions_items()
            if isinstance(function, relax.Function)
        }
        after = builder.get()
        for gvar, function in functions.items():
            after[gvar] = function
        return after

    return run


def _is_static_operator(call: relax.Expr) -> bool:
    """Whether it is an operator, of tensors of static sizes, without a device of their own."""
    if type(call) is not ir.Call or type(call.op) is not ir.Op or call.op.same_as(_CALL_TIR):
        return False
    operands = call.args[:]
    return bool(operands) and all(_is_static(expr.ty) for expr in (call, *operands))


def _is_static(ty: ir.Type) -> bool:
    if type(ty) is relax.TupleType:
        return all(map(_is_static, ty.fields[:]))
    return (
        type(ty) is relax.TensorType
        and ty.vdevice is None
        and type(ty.shape) is relax.ShapeExpr
        and all(type(size) is tirx.IntImm for size in ty.shape.values[:])
    )


_CALL_TIR = ir.Op.get("relax.call_tir")
