"""Indices and conditions of TIR as forms.

What is read is exact: an expression that is not known here is refused. Indices do not overflow:
TVM's own simplifier supposes it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from tvm import ir, relax, tirx

from .cutting import Cut, settle
from .index import Form, NoRelayout, Sizes, constant
from .size import Polynomial, Size, Unknown, is_at_least_zero
from .te_block import loads_in

__all__ = ["IndexReader", "choice_of"]

_CHOICES = {"prim.if_then_else", "tirx.if_then_else"}
_INTEGER = re.compile(r"(u?)int(\d+)")
_LIKELY = {"prim.likely", "tirx.likely"}


def choice_of(expr: ir.Expr) -> tuple[ir.Expr, ir.Expr, ir.Expr] | None:
    """Condition and sides, if an expression is a choice."""
    if isinstance(expr, tirx.Select):
        return expr.condition, expr.true_value, expr.false_value
    if isinstance(expr, ir.Call) and getattr(expr.op, "name", "") in _CHOICES:
        condition, if_true, if_false = expr.args[:]
        return condition, if_true, if_false
    return None


class IndexReader:
    """Reads integer expressions.

    Parameters
    ----------
    sizes : Sizes
    at : mapping
        The form of each index variable; all other variables are sizes.
    """

    def __init__(self, sizes: Sizes, at: Mapping[relax.Var, Form]) -> None:
        self.sizes = sizes
        self.at = at

    def size(self, expr: ir.Expr) -> Size:
        """An expression without indices."""
        form = self.form(expr)
        if form.terms:
            raise NoRelayout("has a size that depends on an index")
        return form.const

    def form(self, expr: ir.Expr) -> Form:
        """An index. Raises Cut where it has to be known how two numbers compare."""
        kind = type(expr)
        if kind is tirx.IntImm:
            return constant(int(expr.value))
        if isinstance(expr, relax.Var):
            return self._variable(expr)
        if kind is tirx.Cast:
            return self._cast(expr)
        if kind in (tirx.Add, tirx.Sub):
            return self.form(expr.a).plus(self.form(expr.b), 1 if kind is tirx.Add else -1)
        if kind is tirx.Mul:
            return self._product(self.form(expr.a), self.form(expr.b))
        if kind in (tirx.FloorDiv, tirx.FloorMod, tirx.Div, tirx.Mod):
            return self._division(expr)
        if kind in (tirx.Max, tirx.Min):
            return self._extreme(expr)
        choice = choice_of(expr)
        if choice is not None:
            return self.form(choice[1] if self.holds(choice[0]) else choice[2])
        if loads_in(expr):
            raise NoRelayout("has an index that is data")
        raise NoRelayout("has an index that is not read")

    def _variable(self, var: relax.Var) -> Form:
        known = self.at.get(var)
        if known is not None:
            return known
        if str(var.ty) != "int64":
            raise NoRelayout("has a size that is not int64")
        if self.sizes.variables is not None and var not in self.sizes.variables:
            raise NoRelayout("depends on a number that is no size")
        return constant(self.sizes.of(Unknown("size", (var,))))

    def _cast(self, expr: tirx.Cast) -> Form:
        form = self.form(expr.value)
        for dtype in (str(expr.value.ty), str(expr.ty)):
            if dtype in ("int32", "int64"):
                continue
            known = _INTEGER.fullmatch(dtype)
            if known is None:
                raise NoRelayout("has an index that is no integer")
            half = 1 << int(known[2]) - 1
            # Others may wrap around.
            if not self.sizes.is_within(form if known[1] else form.plus(constant(half)), 2 * half):
                raise NoRelayout("has an index that its dtype may not hold")
        return form

    @staticmethod
    def _product(one: Form, two: Form) -> Form:
        if one.terms and two.terms:
            raise NoRelayout("multiplies indices")
        return one.scaled(two.const) if one.terms else two.scaled(one.const)

    def _division(self, expr: ir.Expr) -> Form:
        if str(expr.ty).startswith("u"):
            raise NoRelayout("divides an index that may wrap around")
        form, by = self.form(expr.a), self.form(expr.b)
        if by.terms:
            raise NoRelayout("divides by an index")
        if isinstance(expr, (tirx.Div, tirx.Mod)):  # towards 0
            low, _ = self.sizes.bounds(form)
            if low is None or not self.sizes.is_at_least(low, 0):
                raise NoRelayout("divides what may be below 0")
        quotient = self.sizes.quotient(form, by.const)
        if isinstance(expr, (tirx.FloorDiv, tirx.Div)):
            return quotient
        return form.plus(quotient, -by.const)

    def _extreme(self, expr: ir.Expr) -> Form:
        one, two = self.form(expr.a), self.form(expr.b)
        sign = 1 if isinstance(expr, tirx.Max) else -1
        # The first is the result where this is not below 0.
        difference = one.plus(two, -1).scaled(sign)
        if difference.terms:
            return two if self._is_below_zero(difference) else one
        if self.sizes.is_at_least(difference.const, 0):
            return one
        if self.sizes.is_at_least(0, difference.const):
            return two
        if one.terms or two.terms:
            raise NoRelayout("has an index cut off at a size that is not known")
        return constant(self._extreme_of(expr, one.const, two.const))

    def _extreme_of(self, expr: ir.Expr, one: Size, two: Size) -> Size:
        enough = any if isinstance(expr, tirx.Max) else all
        if not enough(is_at_least_zero(size) for size in (one, two)):
            raise NoRelayout("has a size that may be below 0")
        known = [size for size in (one, two) if isinstance(size, int)]
        high = known[0] if known and isinstance(expr, tirx.Min) else None
        kind = "max" if isinstance(expr, tirx.Max) else "min"
        return Polynomial.of(Unknown(kind, (one, two), high))

    # -- conditions --------------------------------------------------------------------------------

    def holds(self, condition: ir.Expr) -> bool:
        """Whether a condition holds at all points of the box. Raises Cut where at some."""
        if isinstance(condition, tirx.IntImm):
            return bool(int(condition.value))
        if isinstance(condition, tirx.And):
            return self._holds_both(condition.a, condition.b, False)
        if isinstance(condition, tirx.Or):
            return self._holds_both(condition.a, condition.b, True)
        if isinstance(condition, tirx.Not):
            return not self.holds(condition.a)
        if isinstance(condition, ir.Call) and getattr(condition.op, "name", "") in _LIKELY:
            return self.holds(condition.args[0])
        kind = type(condition)
        if kind not in _COMPARISONS:
            raise NoRelayout("chooses by what is not a comparison of indices")
        if str(condition.a.ty) not in ("int32", "int64"):
            raise NoRelayout("chooses by what is no index")
        difference = self.form(condition.a).plus(self.form(condition.b), -1)
        return _COMPARISONS[kind](self, difference)

    def _holds_both(self, one: ir.Expr, two: ir.Expr, decisive: bool) -> bool:
        """And, of which one that does not hold decides; or, of which one that holds does."""
        try:
            if self.holds(one) is decisive:
                return decisive
        except Cut as cut:
            try:
                if self.holds(two) is decisive:
                    return decisive
            except Cut:
                raise cut from None  # where the first holds, there may be less to cut
            raise
        return self.holds(two)

    def _is_below_zero(self, form: Form) -> bool:
        low, high = self.sizes.bounds(form)
        if high is not None and self.sizes.is_at_least(-1, high):
            return True
        if low is not None and self.sizes.is_at_least(low, 0):
            return False
        raise Cut(settle(form, self.sizes))

    def _is_zero(self, form: Form) -> bool:
        return not self._is_below_zero(form) and self._is_below_zero(form.plus(constant(-1)))


_COMPARISONS = {
    tirx.LT: IndexReader._is_below_zero,
    tirx.LE: lambda reader, form: reader._is_below_zero(form.plus(constant(-1))),
    tirx.GT: lambda reader, form: reader._is_below_zero(form.scaled(-1)),
    tirx.GE: lambda reader, form: not reader._is_below_zero(form),
    tirx.EQ: IndexReader._is_zero,
    tirx.NE: lambda reader, form: not reader._is_zero(form),
}
