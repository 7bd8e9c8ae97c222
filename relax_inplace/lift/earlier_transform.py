"""Puts a transform that was lifted before back into the functions that take what it makes.

Definition
----------
``f(x, *made)``, whose weights come from ``transform_params(params) -> made`` (as TVM's
``LiftTransformParams`` leaves them), becomes ``f'(x, params)``, which computes ``made`` itself. So
the weights are those that enter the module, under the names that they have there, and all that is
done to them is looked at together: with functions that take them as they are, too.

Only what may be lifted again is put back. A transform that is random, impure or branches, or that
takes other inputs, stays as it is: the new one calls it, and its weights have the names that it
gives them.
"""

from __future__ import annotations

import dataclasses

from tvm import ir, relax

from ..ir.binding_rewriter import rewrite_bindings
from ..ir.effects import is_call_to
from .shared_weights import LiftError, SharedWeights, WeightUser, user_of

__all__ = ["entering_weights", "put_back", "require_alike"]

_RESET = "vm.builtin.tuple_reset_item"  # what LiftTransformParams' consume_params leaves


def entering_weights(mod: ir.IRModule, shared: SharedWeights) -> WeightUser | None:
    """The transform as a function of the weights that enter the module.

    None if it takes something else, too.
    """
    gvar = shared.transform
    assert gvar is not None
    user = user_of(gvar, _without_resets(mod[gvar]))
    return None if user is None or user.position else user


def put_back(shared: SharedWeights, transform: WeightUser) -> SharedWeights:
    """The same functions, as users of what the transform takes."""
    users = [_with(user, transform) for user in shared.served] + shared.raw
    users.sort(key=lambda user: user.name)
    return dataclasses.replace(
        shared, users=users, type=transform.type, names=shared.entering, is_called=False
    )


def require_alike(shared: SharedWeights) -> None:
    """Refuse functions of which some take what a transform makes that cannot be put back."""
    if shared.raw:
        assert shared.transform is not None
        raise LiftError.of(
            functions=shared.listed,
            reason=f"`{shared.served[0].name}` takes what `{shared.transform.name_hint}` makes, "
            f"`{shared.raw[0].name}` the weights as they are; name those of one kind with "
            "functions=[...]",
        )


def _with(user: WeightUser, transform: WeightUser) -> WeightUser:
    """The user, computing itself what the transform would have made."""
    copy = relax.utils.copy_with_new_vars(transform.function)
    # Dimensions of the weights have the names that all share.
    types = [relax.TupleType([var.ty for var in one.params]) for one in (copy, transform.function)]
    own, theirs = (relax.analysis.tir_vars_in_type(ty)[:] for ty in types)
    renamed = {new: old for new, old in zip(own, theirs, strict=True) if not new.same_as(old)}
    if renamed:
        copy = copy.bind_symbolic_vars(renamed)
    first: list[relax.Binding] = []
    if transform.is_bundled:
        bundle = relax.Var(user.tuple_name, copy.params[0].ty)
        first.append(relax.VarBinding(copy.params[0], bundle))
    else:
        bundle = relax.Var(user.tuple_name, relax.TupleType([var.ty for var in copy.params]))
        first += [
            relax.VarBinding(var, relax.TupleGetItem(bundle, index))
            for index, var in enumerate(copy.params)
        ]
    made = copy.body.body
    last: list[relax.Binding] = []
    if user.is_bundled:
        last.append(relax.VarBinding(user.weights[0], made))
    else:
        out = relax.Var("made", made.ty)
        last.append(relax.VarBinding(out, made))
        last += [
            relax.VarBinding(var, relax.TupleGetItem(out, index))
            for index, var in enumerate(user.weights)
        ]
    function, inputs = user.function, user.inputs
    blocks = [
        relax.BindingBlock(first),
        *copy.body.blocks,
        relax.BindingBlock(last),
        *function.body.blocks,
    ]
    inlined = relax.Function(
        [*inputs[: user.position], bundle, *inputs[user.position :]],
        relax.BlockBuilder().normalize(relax.SeqExpr(blocks, function.body.body)),
        function.ret_ty,
        function.is_pure,
        function.attrs,
        function.span,
    )
    return WeightUser(user.gvar, inlined, user.position, True)


def _without_resets(function: relax.Function) -> relax.Function:
    """Without what empties slots of the weights; the new transform does it where it may."""
    if not any(_is_reset(b.value) for block in function.body.blocks for b in block.bindings):
        return function

    def rewrite(binding: relax.Binding) -> list[relax.Binding]:
        return [] if _is_reset(binding.value) else [binding]

    return rewrite_bindings(function, lambda sequence: rewrite)


def _is_reset(value: relax.Expr) -> bool:
    if type(value) is not ir.Call:
        return False
    callee = value.args[0] if is_call_to(value, "relax.call_pure_packed") else value.op
    return isinstance(callee, relax.ExternFunc) and callee.global_symbol == _RESET
