"""CheckContiguous: the arguments' strides are checked before the first field changes.

``VMShapeLower`` checks every argument's dtype, rank and shape at entry. Strides and ``byte_offset``
are checked by the kernels (src/tirx/transform/tvm_ffi_binder.cc): by the time that the last field
turns out not to be contiguous, the others have been replaced.

Definition: a function that updates a tuple begins with a call to ``vm.builtin.check_contiguous``
on all its parameters.
"""

from __future__ import annotations

import tvm
from tvm import ir, relax

from ..analysis.updates import functions_that_update
from ..op import VOID
from .binding_rewriter import with_blocks, with_body

__all__ = ["CheckContiguous"]

_BUILTIN = "vm.builtin.check_contiguous"


def CheckContiguous() -> tvm.transform.Pass:  # noqa: N802  named as TVM names passes
    """Create the pass that checks strides at entry.

    For a lowered module; touches only functions that update a tuple, and their callers. It runs
    by itself when a module that holds updates is compiled.

    Returns
    -------
    tvm.transform.Pass
    """

    @tvm.transform.module_pass(opt_level=0, name="CheckContiguous")
    def run(mod: ir.IRModule, _context: tvm.transform.PassContext) -> ir.IRModule:
        return check_contiguous(mod, functions_that_update(mod))

    return run


def check_contiguous(mod: ir.IRModule, updating: set[ir.GlobalVar]) -> ir.IRModule:
    """What the pass does."""
    if not updating:
        return mod
    mod = mod.clone()
    for gvar in updating:
        mod[gvar] = _with_check(mod[gvar], gvar.name_hint)
    return mod


def _with_check(function: relax.Function, name: str) -> relax.Function:
    operands: list[relax.Expr] = [ir.StringImm(name)]
    for param in function.params:
        operands += [ir.StringImm(param.name), param]
    call = relax.Call(relax.ExternFunc(_BUILTIN), operands, None, [VOID], ret_ty=VOID)
    check = relax.BindingBlock([relax.VarBinding(relax.Var("_", VOID), call)])
    return with_body(function, with_blocks(function.body, [check, *function.body.blocks[:]]))
