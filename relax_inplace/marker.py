"""The op ``relax.lift_param``: the author of a model marks the values that are to be stored.

``R.lift_param(x)`` is ``x``. In a model with marks,
:func:`.transform.LiftInplaceTransformParams` lifts the marked values, and nothing else. Without
that pass, ``tvm.compile`` and ``tvm.relax.build`` remove the marks before any other pass runs
(:mod:`.ir.marks`), so the compiled code is that of the model without marks.

TVM's passes leave a mark where it is. It has no ``FLegalize``, so it becomes no kernel, and nothing
is fused across it. Its type inference is that of TVM's ``relax.builtin.stop_lift_params``, which
has the opposite meaning. For layouts and mixed precision it has the attributes of
``relax.negative``, another op of one tensor, so that both pass through it.
"""

from __future__ import annotations

import functools
from typing import Any

import tvm_ffi
from tvm import ir, relax

__all__ = ["OP_NAME", "is_mark", "lift_param", "mark", "register"]

OP_NAME = "relax.lift_param"
_LIKE = {
    "FInferType": "relax.builtin.stop_lift_params",
    "dist.FInferType": "relax.builtin.stop_lift_params",
    "FRelaxInferLayout": "relax.negative",
    "TMixedPrecisionPolicy": "relax.negative",
}


def lift_param(x: Any) -> Any:
    """Mark a value that is made from weights alone: it is to be stored.

    If the functions that share weights have marks, ``LiftInplaceTransformParams`` lifts the marked
    values, with the computations that lead to them. The functions compute the rest themselves. A
    weight that is marked itself is stored as it is. Without the pass the mark is the identity, and
    costs nothing: the compiled code does not have it.

    A mark has an effect only in a function that takes the weights, and only on a value that depends
    on weights alone. The pass warns of any other mark.

    Parameters
    ----------
    x : nn.Tensor or relax.Expr
        A tensor. In TVMScript the function is ``R.lift_param``.

    Returns
    -------
    nn.Tensor or relax.Call
        The same tensor, marked. Use this one.

    Examples
    --------
    >>> class Linear(nn.Module):
    ...     def forward(self, x: nn.Tensor):
    ...         w = relax_inplace.lift_param(nn.op.permute_dims(self.weight))
    ...         return nn.op.matmul(x, w)
    """
    from tvm.relax.frontend import nn

    if isinstance(x, nn.Tensor):
        return nn.op.wrap_nested(mark(x._expr), "lift_param")
    return mark(x)


def mark(x: Any) -> relax.Call:
    """A call to the op on an expression."""
    is_tensor = isinstance(x, relax.Expr) and (
        x.ty.is_missing() or isinstance(x.ty, (relax.TensorType, relax.AnyType))
    )
    if not is_tensor:
        raise TypeError(
            f"lift_param: expected a tensor (an nn.Tensor or a Relax expression), but got `{x}` "
            f"({type(x).__name__}); mark the tensors of a tuple one by one"
        )
    return relax.Call(the_op(), [x])


def is_mark(expr: Any) -> bool:
    """Whether an expression is ``R.lift_param``."""
    if type(expr) is not ir.Call:  # the classes of tvm-ffi are abstract: isinstance is slow
        return False
    return type(expr.op) is ir.Op and expr.op.same_as(the_op())


@functools.cache
def the_op() -> ir.Op:
    """The registered op; compare by identity, reading an Op's name is slow."""
    return ir.Op.get(OP_NAME)


def _lower(_builder: relax.BlockBuilder, call: relax.Call) -> relax.Call:
    """A copy of the register, for a pipeline that is run by hand to its end."""
    return relax.Call(relax.ExternFunc("vm.builtin.copy"), call.args, None, [call.ty], call.span)


def register() -> None:
    """Register the op with the compiler; again is harmless."""
    if OP_NAME in tvm_ffi.get_global_func("ir.ListOpNames")():
        return
    tvm_ffi.get_global_func("ir.RegisterOp")(
        OP_NAME, "Is its operand. Marks what LiftInplaceTransformParams stores."
    )
    op = the_op()
    op.add_argument("x", "Tensor", "What is to be stored, made from weights alone.")
    op.set_num_inputs(1)
    attrs = {name: ir.Op.get(like).get_attr(name) for name, like in _LIKE.items()}
    for name, value in {"FPurity": True, "FLowerBuiltin": _lower, **attrs}.items():
        ir.register_op_attr(OP_NAME, name, value)
