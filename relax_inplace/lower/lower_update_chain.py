"""LowerUpdateChain: updates that are threaded through names become statements on one name.

A chain of n updates has a tuple type of n fields in each of its n bindings, and every pass pays
for all of them: compile time grows with the square of the number of weights. So the chain

    p0 = R.inplace_update_tuple(params, 0, w0)   # n fields
    w1 = R.permute_dims(p0[1])
    p1 = R.inplace_update_tuple(p0, 1, w1)       # n fields
    return p1

becomes, before the first pass of TVM's pipeline sees it,

    R.inplace_update_tuple(params, 0, w0, ty_args=(R.Tuple,))
    w1 = R.permute_dims(params[1])
    p1 = R.inplace_update_tuple(params, 1, w1, ty_args=(R.Tuple(...),))
    return p1

Definition: the result of an update that is only read from, or updated again, gets no name. Its
update is a statement, of void type. A read of a field that such a statement replaced is the value
that replaced it; a read of any other is a read of the name that the chain began with. An update
whose result is used as a whole keeps its name, and says its type.

Right because the chain is linear, which is checked first, and because the updates are impure: no
pass moves or drops them, and a read can only be moved to where an equal one stands already.
"""

from __future__ import annotations

import tvm
from tvm import ir, relax

from ..ir.binding_rewriter import Rewrite, rewrite_bindings
from ..ir.updates import bindings_of
from ..op import VOID, the_op
from .ownership import check_ownership

__all__ = ["LowerUpdateChain"]


def LowerUpdateChain() -> tvm.transform.Pass:  # noqa: N802  named as TVM names passes
    """Create the pass that turns chains of updates into statements on one tuple.

    It runs by itself when a module that holds updates is compiled.

    Returns
    -------
    tvm.transform.Pass
        Raises :class:`~relax_inplace.analysis.OwnershipError` if a chain is not linear.
    """

    @tvm.transform.module_pass(opt_level=0, name="LowerUpdateChain")
    def run(mod: ir.IRModule, _context: tvm.transform.PassContext) -> ir.IRModule:
        check_ownership(mod)
        return lower_update_chain(mod)

    return run


def lower_update_chain(mod: ir.IRModule) -> ir.IRModule:
    """What the pass does to chains that are known to be linear."""
    with_updates = {
        gvar: function
        for gvar, function in mod.functions_items()
        if isinstance(function, relax.Function)
        and any(_is_chained(binding.value) for binding in bindings_of(function))
    }
    if not with_updates:
        return mod
    mod = mod.clone()
    for gvar, function in with_updates.items():
        mod[gvar] = rewrite_bindings(function, _lowering)
    return mod


def _is_chained(value: relax.Expr) -> bool:
    return isinstance(value, ir.Call) and value.op.same_as(the_op()) and len(value.ty_args) == 0


def _lowering(sequence: relax.SeqExpr) -> Rewrite:
    builder = relax.BlockBuilder()
    used_whole = _used_whole(sequence)
    # For the nameless result of an update: the name its chain began with, and what was replaced.
    nameless: dict[relax.Var, tuple[relax.Expr, dict[int, relax.Expr]]] = {}

    def lowered(binding: relax.Binding) -> list[relax.Binding]:
        var, value = binding.var, binding.value
        if _is_chained(value):
            source, index, new = value.args[:]
            root, replaced = nameless.get(source, (source, {}))
            if var in used_whole or not isinstance(root, relax.Var):
                if source not in nameless:
                    return [binding]
                return [relax.VarBinding(var, update(value, root, var.ty))]
            replaced[int(index.value)] = new
            nameless[var] = (root, replaced)
            return [relax.VarBinding(relax.Var("_", VOID), update(value, root, VOID))]
        if isinstance(value, relax.TupleGetItem) and value.tuple_value in nameless:
            root, replaced = nameless[value.tuple_value]
            read = replaced.get(value.index)
            if read is None:
                read = builder.normalize(relax.TupleGetItem(root, value.index, value.span))
            if isinstance(binding, relax.MatchCast):
                return [relax.MatchCast(var, read, binding.ty)]
            return [relax.VarBinding(var, read)]
        return [binding]

    def update(call: ir.Call, root: relax.Var, ty: ir.Type) -> relax.Expr:
        return builder.normalize(
            relax.Call(call.op, [root, *call.args[1:]], call.attrs, [ty], call.span)
        )

    return lowered


def _used_whole(sequence: relax.SeqExpr) -> set[relax.Var]:
    """The variables used otherwise than to read a field of them or to update them."""
    used: set[relax.Var] = set(relax.analysis.free_vars(sequence.body))
    for block in sequence.blocks[:]:
        for binding in block.bindings[:]:
            value = binding.value
            if isinstance(value, relax.TupleGetItem) and isinstance(value.tuple_value, relax.Var):
                continue
            if _is_chained(value):
                value = value.args[2]
            used.update(relax.analysis.free_vars(value)[:])
    return used
