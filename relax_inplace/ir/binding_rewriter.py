"""A function rewritten binding by binding, at every depth of branches and local functions.

TVM's own way, a ``PyExprMutator``, normalises each binding by itself and builds each block anew.
Here a binding that stays as it is stays the same object: linear in the bindings, and cheap.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import ir, relax

__all__ = ["Rewrite", "rewrite_bindings", "with_blocks", "with_body"]

# What becomes of a binding: bindings in its place, in the same block.
Rewrite = Callable[[relax.Binding], list[relax.Binding]]


def rewrite_bindings(
    function: relax.Function, rewrite_of: Callable[[relax.SeqExpr], Rewrite]
) -> relax.Function:
    """Replace each binding of a function by what a ``Rewrite`` makes of it.

    Parameters
    ----------
    function : relax.Function
        In normal form.
    rewrite_of : callable
        Called for the body of the function, of each branch and of each local function, before its
        bindings are visited. Branches and local functions inside have been rewritten when the
        ``Rewrite`` gets the binding that holds them.

    Returns
    -------
    relax.Function
        In normal form.
    """
    return with_body(function, _sequence(function.body, rewrite_of))


def with_body(function: relax.Function, body: relax.SeqExpr) -> relax.Function:
    """The function with another body, in normal form, of the same type."""
    return relax.Function(
        function.params, body, function.ret_ty, function.is_pure, function.attrs, function.span
    )


def with_blocks(sequence: relax.SeqExpr, blocks: list[relax.BindingBlock]) -> relax.SeqExpr:
    """The sequence with other blocks, in normal form, before the same result.

    So its type is the same. ``BlockBuilder.normalize`` would visit every binding to find out.
    """
    return _of_type(relax.SeqExpr(blocks, sequence.body, sequence.span), sequence.ty)


def _of_type(expr: relax.Expr, ty: ir.Type) -> relax.Expr:
    relax.expr._update_type(expr, ty)
    return expr


def _sequence(
    sequence: relax.SeqExpr, rewrite_of: Callable[[relax.SeqExpr], Rewrite]
) -> relax.SeqExpr:
    rewrite = rewrite_of(sequence)
    blocks = []
    for block in sequence.blocks[:]:
        bindings: list[relax.Binding] = []
        for binding in block.bindings[:]:
            value = binding.value
            if type(value) is relax.If:  # isinstance is slow to say no
                branches = (
                    _sequence(branch, rewrite_of)
                    for branch in (value.true_branch, value.false_branch)
                )
                inner = _of_type(relax.If(value.cond, *branches, span=value.span), value.ty)
                binding = relax.VarBinding(binding.var, inner)
            elif type(value) is relax.Function:
                binding = relax.VarBinding(binding.var, rewrite_bindings(value, rewrite_of))
            bindings += rewrite(binding)
        kind = relax.DataflowBlock if isinstance(block, relax.DataflowBlock) else relax.BindingBlock
        blocks.append(kind(bindings, block.span))
    return with_blocks(sequence, blocks)
