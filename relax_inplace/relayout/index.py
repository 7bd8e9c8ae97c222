"""Indices as sums of digits and of quotients of such sums.

Definition
----------
A *digit* is a number from 0 to below its extent. A *form* is ``const + sum(a * x)``, where an x is
a digit or a *quotient*, a form divided by a size, rounded down. A rest is no x of its own:
``f % c`` is ``f - c * (f // c)``. So ``c * (f // c) + f % c`` is ``f`` by addition alone, and
``f % (n * c) % c`` is ``f % c``.

:func:`floordiv` makes no quotient where it can be seen that none is needed. What is left says which
digit has to be two: see :mod:`.cutting`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Collection, Iterable, Mapping
from typing import TypeAlias

from tvm import relax

from .size import (
    Polynomial,
    Size,
    Unknown,
    divided,
    evaluate,
    factors_in,
    is_at_least_zero,
    nominal,
    over,
    terms_of,
    unknowns_in,
)

__all__ = ["Counter", "Form", "NoRelayout", "Quotient", "Restart", "Sizes", "constant"]


class NoRelayout(Exception):  # noqa: N818  why a kernel is none: it never leaves this package
    """Why a kernel is not read."""


class Restart(Exception):  # noqa: N818  it never leaves this package
    """An unknown is now thought of as a quotient and a rest: what was read with it is void."""


class Counter:
    """A digit: equal to itself only.

    Attributes
    ----------
    extent : Size
    is_zero : bool
        Whether it has one value, or none.
    """

    __slots__ = ("extent", "is_zero")

    def __init__(self, extent: Size) -> None:
        self.extent = extent
        self.is_zero = is_at_least_zero(1 - extent)


@dataclasses.dataclass(frozen=True)
class Quotient:
    """``form // divisor``, where it is not a form itself."""

    form: Form
    divisor: Size

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.form, self.divisor))

    def __hash__(self) -> int:
        return self._hash


_Term: TypeAlias = Counter | Quotient


class Form:
    """``const + sum(a * x)``: see the definition."""

    __slots__ = ("_hash", "const", "terms")

    def __init__(self, terms: Mapping[_Term, Size], const: Size) -> None:
        self.terms = terms
        self.const = const
        self._hash: int | None = None

    def plus(self, other: Form, times: Size = 1) -> Form:
        """The sum of this and of `times` the other."""
        terms = dict(self.terms)
        for term, a in other.terms.items():
            both = terms.get(term, 0) + a * times
            if both == 0:
                del terms[term]
            else:
                terms[term] = both
        return Form(terms, self.const + other.const * times)

    def scaled(self, by: Size) -> Form:
        """So many times the form."""
        return constant(0).plus(self, by) if by != 0 else constant(0)

    @property
    def quotients(self) -> list[Quotient]:
        """The quotients among its terms."""
        return [term for term in self.terms if isinstance(term, Quotient)]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Form) and self.const == other.const and self.terms == other.terms

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash((frozenset(self.terms.items()), self.const))
        return self._hash


def _is_sign_of(r: Unknown, rest: Polynomial, by: int) -> bool:
    """Whether ``rest // by`` is 0 where r is, and 1 otherwise: a sum of r and a constant rises."""
    if r.high is None or not terms_of(rest).keys() <= terms_of(Polynomial.of(r) + 1).keys():
        return False
    quotients = [divided(evaluate(rest, {r: value}), by)[0] for value in (0, 1, r.high)]
    return quotients == [0, 1, 1]


def constant(size: Size) -> Form:
    """A form without digits."""
    return Form({}, size)


class Sizes:
    """What is known of sizes while a kernel is read.

    Parameters
    ----------
    variables : collection of relax.Var, optional
        Those that are sizes, and so 0 or more: all, if it is not given.

    Attributes
    ----------
    variables : collection of relax.Var or None
    positive : set of Unknown
        Those that are 1 or more, where there is anything to do.
    """

    def __init__(self, variables: Collection[relax.Var] | None = None) -> None:
        self.variables = variables
        self._divided: dict[Unknown, Size] = {}
        self.positive: set[Unknown] = set()
        self._known: dict[tuple[Form, Size], Form] = {}

    def of(self, unknown: Unknown) -> Size:
        """An unknown, as it is thought of by now."""
        size: Size = Polynomial.of(unknown)
        while unknowns_in(size) & self._divided.keys():
            size = evaluate(size, self._divided)
        return size

    def is_at_least(self, size: Size, other: Size) -> bool:
        """Whether it is proved that a size is not less than another one."""
        return is_at_least_zero(size - other, self.positive)

    def floordiv(self, size: Size, by: Size) -> Size:
        """The quotient of two sizes. Raises Restart where it takes another unknown to say it."""
        quotient, rest = divided(size, by)
        if rest == 0 or (isinstance(rest, int) and isinstance(by, int)):
            return quotient
        if self.is_at_least(rest, 0) and self.is_at_least(by - 1, rest):
            return quotient
        if not isinstance(by, int) or not isinstance(rest, Polynomial):
            raise NoRelayout("divides by a size that need not divide what is there")
        low = high = 0
        for monomial, number in rest.terms.items():
            most = 1
            for unknown, power in monomial:
                if unknown.high is None:
                    if len(monomial) > 1 or power > 1:
                        raise NoRelayout("divides a product of sizes")
                    self._divide(unknown, by // math.gcd(by, number))
                most *= (unknown.high or 0) ** power
            low += min(number * most, number if not monomial else 0)
            high += max(number * most, number if not monomial else 0)
        return quotient + self._small(rest, by, low // by, high // by)

    def _divide(self, unknown: Unknown, by: int) -> None:
        size = Polynomial.of(unknown)
        q, r = Unknown("//", (size, by)), Unknown("%", (size, by), by - 1)
        self._divided[unknown] = Polynomial.of(q) * by + Polynomial.of(r)
        raise Restart

    @staticmethod
    def _small(rest: Polynomial, by: int, low: int, high: int) -> Size:
        if low == high:
            return low
        (r, *others) = unknowns_in(rest)
        is_sign = not others and _is_sign_of(r, rest, by)
        if is_sign and r.high == 1:
            return Polynomial.of(r)  # it is its own sign
        shift = low  # an unknown is 0 or more
        small = rest - shift * by
        return shift + Polynomial.of(Unknown("//", (small, by), high - low, r if is_sign else None))

    def suppose(self, extents: Iterable[Size]) -> None:
        """From here on, what is proved is of a box that has points."""
        self._known = {}
        self.positive = factors_in(extents)

    # -- of forms ----------------------------------------------------------------------------------

    def bounds(self, form: Form) -> tuple[Size | None, Size | None]:
        """The least and the greatest value that a form may have; None if unknown."""
        low: Size | None = form.const
        high: Size | None = form.const
        terms = form.terms
        for quotient in form.quotients:
            a = over(-terms[quotient], quotient.divisor)
            if a is None:
                continue
            # a * (f % c): f goes with its quotient.
            less = form.plus(Form({quotient: 1}, 0), -terms[quotient]).plus(quotient.form, -a)
            if len(less.terms) < len(terms) - len(quotient.form.terms):
                return _sum(self.bounds(less), self._reach(a, 0, quotient.divisor - 1))
        for term, a in terms.items():
            if isinstance(term, Counter):
                if term.is_zero:
                    continue
                least, most = self._reach(a, 0, term.extent - 1)
            else:
                least, most = self._reach(a, *self._bounds_of(term))
            low, high = _sum((low, high), (least, most))
        return low, high

    def _bounds_of(self, quotient: Quotient) -> tuple[Size | None, Size | None]:
        ends = []
        for end in self.bounds(quotient.form):
            exact = isinstance(end, int) and isinstance(quotient.divisor, int)
            ends.append(end // quotient.divisor if exact else None)  # type: ignore[operator]
        low = self.bounds(quotient.form)[0]
        if ends[0] is None and low is not None and self.is_at_least(low, 0):
            ends[0] = 0
        return ends[0], ends[1]

    def _reach(
        self, a: Size, low: Size | None, high: Size | None
    ) -> tuple[Size | None, Size | None]:
        if self.is_at_least(a, 0):
            return None if low is None else low * a, None if high is None else high * a
        if self.is_at_least(0, a):
            return None if high is None else high * a, None if low is None else low * a
        return None, None

    def is_within(self, form: Form, size: Size) -> bool:
        """Whether a form is 0 or more, and below a size, wherever its digits are."""
        low, high = self.bounds(form)
        if low is None or high is None:
            return False
        return self.is_at_least(low, 0) and self.is_at_least(size - 1, high)

    def quotient(self, form: Form, by: Size) -> Form:
        """``form // by``, of no more quotients than are needed."""
        if by == 1:
            return form
        if by == 0 or not is_at_least_zero(by):  # a size that is 0 is not divided by
            raise NoRelayout("divides by a number that may be below 1")
        key = form, by
        if key not in self._known:
            self._known[key] = self._quotient(form, by)
        return self._known[key]

    def _quotient(self, form: Form, by: Size) -> Form:
        whole, rest = Form({}, 0), {}
        for term, a in form.terms.items():
            q = over(a, by)
            if q is None:
                if not (isinstance(term, Counter) and term.is_zero):
                    rest[term] = a
            else:
                whole.terms[term] = q  # type: ignore[index]
        if not rest:
            return whole.plus(constant(self.floordiv(form.const, by)))
        q, left = self._from_least(Form(rest, form.const), by)
        whole = whole.plus(constant(q))
        return whole if self.is_within(left, by) else whole.plus(self._reduced(left, by))

    def _from_least(self, form: Form, by: Size) -> tuple[Size, Form]:
        """A number of `by`, and what is left of the form, of which the least value is below it."""
        low, _ = self.bounds(form)
        q, _ = divided(form.const if low is None else low, by)
        return q, form.plus(constant(-q * by))

    def _reduced(self, form: Form, by: Size) -> Form:
        """``(g * f + t) // (g * c)`` is ``f // c``, where t is below g."""
        terms = sorted(form.terms.items(), key=lambda term: abs(nominal(term[1])))
        for count in reversed(range(len(terms))):
            g = functools.reduce(_common, (a for _, a in terms[count:]), by)
            if g == 1:
                continue
            more, tail = self._from_least(Form(dict(terms[:count]), form.const), g)
            if self.is_within(tail, g):
                head = {term: _exact(a, g) for term, a in terms[count:]}
                form, by = Form(head, more), _exact(by, g)
                break
        if by == 1:
            return form
        if len(form.terms) == 1:
            ((term, a),) = form.terms.items()
            if isinstance(term, Quotient) and a == 1:
                inner = term.form.plus(constant(form.const * term.divisor))
                return self.quotient(inner, term.divisor * by)
        return Form({Quotient(form, by): 1}, 0)

    def replaced(self, form: Form, at: Mapping[Counter, Form]) -> Form:
        """The form with others in the place of digits."""
        total = constant(form.const)
        for term, a in form.terms.items():
            if isinstance(term, Quotient):
                total = total.plus(self.quotient(self.replaced(term.form, at), term.divisor), a)
            else:
                total = total.plus(at[term] if term in at else Form({term: 1}, 0), a)
        return total


def _sum(
    one: tuple[Size | None, Size | None], two: tuple[Size | None, Size | None]
) -> tuple[Size | None, Size | None]:
    low = None if one[0] is None or two[0] is None else one[0] + two[0]
    return low, None if one[1] is None or two[1] is None else one[1] + two[1]


def _common(one: Size, two: Size) -> Size:
    """A size above 0 that divides both: of ints, and of products, the greatest."""
    if isinstance(one, int) and isinstance(two, int):
        return math.gcd(one, two)
    for size, other in ((one, two), (two, one)):
        if isinstance(size, Polynomial) and len(size.terms) > 1 and over(other, size) is not None:
            return size if nominal(size) > 0 else -size
    terms = [*terms_of(one).items(), *terms_of(two).items()]
    product: Size = math.gcd(*(number for _, number in terms))
    for unknown in unknowns_in(one) & unknowns_in(two):
        for _ in range(min(dict(monomial).get(unknown, 0) for monomial, _ in terms)):
            product = Polynomial.of(unknown) * product
    return product


def _exact(size: Size, by: Size) -> Size:
    quotient = over(size, by)
    assert quotient is not None
    return quotient
