"""CheckContiguous: the arguments' strides are checked before the first field changes.

``VMShapeLower`` checks every argument's dtype, rank and shape at entry. Strides and ``byte_offset``
are checked by the kernels (src/tirx/transform/tvm_ffi_binder.cc): by the time that the last field
turns out not to be contiguous, the others have been replaced.

Definition: a function that updates a tuple begins with a call to ``vm.builtin.check_contiguous``
on all its parameters. A streamed one fills a tuple, whatever is in it: that there is one, with a
slot for each output, ``vm.builtin.check_streamed`` checks. Its weights are checked as they come.
"""

from __future__ import annotations

import tvm
from tvm import ir, relax

from ..ir.binding_rewriter import with_blocks, with_body
from ..ir.updates import STREAMED, functions_that_update
from ..op import VOID

__all__ = ["CheckContiguous"]

_CONTIGUOUS = "vm.builtin.check_contiguous"
_STREAMED = "vm.builtin.check_streamed"


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
    params = list(function.params[:])
    checks = []
    if function.attrs and STREAMED in function.attrs:
        *params, get_weight, slots = params
        size = relax.prim_value(len(slots.ty.fields))
        checks.append(_check(_STREAMED, [ir.StringImm(name), get_weight, slots, size]))
    operands: list[relax.Expr] = [ir.StringImm(name)]
    for param in params:
        operands += [ir.StringImm(param.name), param]
    checks.append(_check(_CONTIGUOUS, operands))
    block = relax.BindingBlock(checks)
    return with_body(function, with_blocks(function.body, [block, *function.body.blocks[:]]))


def _check(builtin: str, operands: list[relax.Expr]) -> relax.Binding:
    call = relax.Call(relax.ExternFunc(builtin), operands, None, [VOID], ret_ty=VOID)
    return relax.VarBinding(relax.Var("_", VOID), call)
