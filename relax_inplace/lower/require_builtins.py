"""RequireBuiltins: a module that meets a runtime without our builtins says which library to load.

A virtual machine looks up all functions that its module calls before it runs any, and names the
first that it does not find (src/runtime/vm/vm.cc, ``InitFuncPool``); a compiled function
(``exec_mode="compiled"``) looks each up when it gets there.

Definition: a function that updates a tuple begins with a call of the function
``relax_inplace.libinfo.BUILTINS``, whose name is the message. It takes nothing and does nothing. So
the message comes before any other builtin is missed, and before the first field changes.
"""

from __future__ import annotations

import tvm
from tvm import ir, relax

from ..ir.binding_rewriter import with_blocks, with_body
from ..ir.updates import functions_that_update
from ..libinfo import BUILTINS
from ..op import VOID

__all__ = ["RequireBuiltins", "require_builtins"]


def RequireBuiltins() -> tvm.transform.Pass:  # noqa: N802  named as TVM names passes
    """Create the pass that makes a module say which library it needs.

    For a lowered module; touches only functions that update a tuple, and their callers. It runs
    by itself when a module that holds updates is compiled.

    Returns
    -------
    tvm.transform.Pass
    """

    @tvm.transform.module_pass(opt_level=0, name="RequireBuiltins")
    def run(mod: ir.IRModule, _context: tvm.transform.PassContext) -> ir.IRModule:
        return require_builtins(mod, functions_that_update(mod))

    return run


def require_builtins(mod: ir.IRModule, updating: set[ir.GlobalVar]) -> ir.IRModule:
    """What the pass does."""
    if not updating:
        return mod
    mod = mod.clone()
    for gvar in updating:
        mod[gvar] = _with_call(mod[gvar])
    return mod


def _with_call(function: relax.Function) -> relax.Function:
    call = relax.Call(relax.ExternFunc(BUILTINS), [], None, [VOID], ret_ty=VOID)
    block = relax.BindingBlock([relax.VarBinding(relax.Var("_", VOID), call)])
    return with_body(function, with_blocks(function.body, [block, *function.body.blocks[:]]))
