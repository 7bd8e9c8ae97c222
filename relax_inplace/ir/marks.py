"""``R.lift_param`` taken out of functions, as if it had never been there.

What is marked takes the place of the mark: so no second name is left that a pass, which looks for
an operator and its operand, would have to look through. It takes the name of the mark where it has
none but the one that TVM gave it, as it would have without the mark; and where a dataflow block
hands out the mark, and what is marked is seen in the block alone.
"""

from __future__ import annotations

import operator

from tvm import ir, relax

from ..marker import is_mark
from ..weight_names import is_made_up
from .updates import bindings_of

__all__ = ["has_marks", "without_marks", "without_marks_in"]


def has_marks(function: relax.Function) -> bool:
    """Whether a function has one, at any depth of branches and local functions."""
    return any(is_mark(binding.value) for binding in bindings_of(function))


def without_marks_in(mod: ir.IRModule) -> ir.IRModule:
    """A module without marks; the same object if it has none."""
    marked = [
        gvar
        for gvar, function in mod.functions_items()
        if isinstance(function, relax.Function) and has_marks(function)
    ]
    if not marked:
        return mod
    mod = mod.clone()
    for gvar in marked:
        mod[gvar] = without_marks(mod[gvar])
    return mod


def without_marks(function: relax.Function) -> relax.Function:
    """A function without marks, in normal form; the same object if it has none.

    Variables that are left are the same objects.
    """
    if not has_marks(function):
        return function
    return _Remover(function).function(function)


class _Remover:
    def __init__(self, function: relax.Function):
        self.names: dict[relax.Var, relax.Expr] = {}  # what stands for a variable
        self.renamed: set[relax.Var] = set()  # what is bound by the name of its mark
        bound: set[relax.Var] = set()
        for binding in bindings_of(function):
            var, value = binding.var, binding.value
            if not is_mark(value):
                bound.add(var)
                continue
            marked = self.expr(value.args[0])
            if marked in bound and _takes_name(marked, var):
                bound.add(var)
                self.names[marked] = var
                self.renamed.add(marked)
            else:
                self.names[var] = marked

    def function(self, function: relax.Function) -> relax.Function:
        return relax.Function(
            function.params,
            self.sequence(function.body),
            function.ret_ty,
            function.is_pure,
            function.attrs,
            function.span,
        )

    def sequence(self, sequence: relax.SeqExpr) -> relax.SeqExpr:
        blocks = []
        for block in sequence.blocks[:]:
            bindings = [self.binding(one) for one in block.bindings[:] if not is_mark(one.value)]
            if bindings:
                is_dataflow = isinstance(block, relax.DataflowBlock)
                kind = relax.DataflowBlock if is_dataflow else relax.BindingBlock
                blocks.append(kind(bindings, block.span))
        return self._like(relax.SeqExpr(blocks, self.expr(sequence.body), sequence.span), sequence)

    def binding(self, binding: relax.Binding) -> relax.Binding:
        var, value = binding.var, binding.value
        new = self.expr(value)
        new_var = self.expr(var) if var in self.renamed else var
        if new is value and new_var is var:
            return binding
        if isinstance(binding, relax.MatchCast):
            return relax.MatchCast(new_var, new, binding.ty, binding.span)
        return relax.VarBinding(new_var, new, binding.span)

    def expr(self, expr: relax.Expr) -> relax.Expr:
        """The expression in the names that are left; the same object if they are its own."""
        kind = type(expr)  # the classes of tvm-ffi are abstract: isinstance is slow
        if kind is relax.DataflowVar or kind is ir.Var:
            while expr in self.names:
                expr = self.names[expr]
            return expr
        if kind is ir.Call:
            given = [expr.op, *expr.args[:]]  # tvm-ffi makes a new object each time it is asked
            new = [self.expr(arg) for arg in given]
            if all(map(operator.is_, given, new)):
                return expr
            ty_args = expr.ty_args
            return relax.Call(new[0], new[1:], expr.attrs, ty_args, expr.span, ret_ty=expr.ty)
        if kind is relax.Tuple:
            fields = expr.fields[:]
            new = [self.expr(field) for field in fields]
            if all(map(operator.is_, fields, new)):
                return expr
            return self._like(relax.Tuple(new, expr.span), expr)
        if kind is relax.TupleGetItem:
            given = expr.tuple_value
            source = self.expr(given)
            if source is given:
                return expr
            return self._like(relax.TupleGetItem(source, expr.index, expr.span), expr)
        if kind is relax.If:
            branches = [self.sequence(one) for one in (expr.true_branch, expr.false_branch)]
            return self._like(relax.If(self.expr(expr.cond), *branches, span=expr.span), expr)
        if kind is relax.Function:
            return self.function(expr)
        return expr

    @staticmethod
    def _like(new: relax.Expr, old: relax.Expr) -> relax.Expr:
        if new.ty.is_missing() and not old.ty.is_missing():
            relax.expr._update_type(new, old.ty)
        return new


def _takes_name(marked: relax.Var, mark: relax.Var) -> bool:
    """Whether a variable is to have the name of its mark: see above."""
    if type(mark) is ir.Var:
        return type(marked) is relax.DataflowVar or (_is_made_up(marked) and not _is_made_up(mark))
    return type(marked) is relax.DataflowVar and _is_made_up(marked) and not _is_made_up(mark)


def _is_made_up(var: relax.Var) -> bool:
    return is_made_up(str(var.name))
