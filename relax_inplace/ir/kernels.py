"""The kernel that an operator becomes."""

from __future__ import annotations

import dataclasses

import tvm
from tvm import ir, relax, tirx
from tvm_ffi import StructuralKey

__all__ = ["LAYOUT", "Kernels", "LegalizedCall"]

LAYOUT = "relax_inplace.layout"  # an attribute of a kernel: the layout that it is of


@dataclasses.dataclass
class LegalizedCall:
    """A call as a kernel.

    Attributes
    ----------
    kernel : tvm.tirx.PrimFunc
        With the pattern that fusion looks at.
    operands : list of (int or None)
        What its first parameters are, as indices into the free variables of the call; None for
        what is no variable.
    name : str
        That TVM gives it.
    ty : tvm.ir.Type
        Of what the kernel computes: TVM may make a tuple of it.
    """

    kernel: tirx.PrimFunc
    operands: list[int | None]
    name: str
    ty: ir.Type


class Kernels:
    """The kernels of calls, as ``LegalizeOps`` makes them.

    An operator of given attributes and operand types is legalised once.

    Parameters
    ----------
    mod : tvm.ir.IRModule
        Where the kernels are that ``call_tir`` names.
    """

    def __init__(self, mod: ir.IRModule):
        self.mod = mod
        self._known: dict[object, LegalizedCall | None] = {}
        self._given: dict[tirx.PrimFunc, tirx.PrimFunc] = {}  # those of the module

    def of(self, value: relax.Expr) -> LegalizedCall | None:
        """The kernel of a call; None if it is no operator, or becomes no kernel or several."""
        if not isinstance(value, ir.Call) or not isinstance(value.op, ir.Op):
            return None
        variables = relax.analysis.free_vars(value)[:]
        if value.op == ir.Op.get("relax.call_tir"):
            kernel = self._annotated(self.mod[value.args[0]])
            positions = _positions(value.args[1], variables)
            return LegalizedCall(kernel, positions, value.args[0].name_hint, value.ty)
        position = {var: index for index, var in enumerate(variables)}
        key = (
            value.op,
            StructuralKey(value.attrs),
            tuple(_key_of(arg, position) for arg in value.args[:]),
        )
        if key not in self._known:
            self._known[key] = _legalized(value, variables)
        return self._known[key]

    def _annotated(self, kernel: tirx.PrimFunc) -> tirx.PrimFunc:
        known = self._given.get(kernel)
        if known is None:
            mod = ir.IRModule({"kernel": kernel.with_attr("global_symbol", "kernel")})
            known = relax.transform.AnnotateTIROpPattern()(mod)["kernel"]
            self._given[kernel] = known
        return known


def _legalized(call: ir.Call, variables: list[relax.Var]) -> LegalizedCall | None:
    params = [var for var in variables if not isinstance(var.ty, ir.PrimType)]
    result = relax.Var("result", call.ty)
    block = relax.BindingBlock([relax.VarBinding(result, call)])
    function = relax.Function(params, relax.SeqExpr([block], result), call.ty)
    passes = [relax.transform.LegalizeOps(), relax.transform.AnnotateTIROpPattern()]
    try:
        mod = tvm.transform.Sequential(passes)(
            ir.IRModule({"main": function.with_attr("global_symbol", "main")})
        )
    except Exception:  # TVM cannot lower it; who compiles it with an own meaning may
        return None
    calls = [
        binding.value
        for block in mod["main"].body.blocks[:]
        for binding in block.bindings[:]
        if isinstance(binding.value, ir.Call)
    ]
    if len(calls) != 1 or calls[0].op != ir.Op.get("relax.call_tir"):
        return None
    renamed = dict(zip(mod["main"].params[:], params, strict=True))
    original = [renamed.get(var, var) for var in _fields(calls[0].args[1])]
    positions = [variables.index(var) if var in variables else None for var in original]
    gvar = calls[0].args[0]
    return LegalizedCall(mod[gvar], positions, gvar.name_hint, calls[0].ty)


def _positions(operands: relax.Expr, variables: list[relax.Var]) -> list[int | None]:
    return [variables.index(var) if var in variables else None for var in _fields(operands)]


def _fields(operands: relax.Expr) -> list[relax.Expr]:
    return list(operands.fields[:]) if isinstance(operands, relax.Tuple) else [operands]


def _key_of(arg: relax.Expr, position: dict[relax.Var, int]) -> object:
    if isinstance(arg, relax.Var):
        return position.get(arg), StructuralKey(arg.ty)
    if isinstance(arg, relax.Tuple):
        return tuple(_key_of(field, position) for field in arg.fields[:])
    return StructuralKey(arg)
