"""Sizes that are known, as ints, and those that are not, as polynomials of what is unknown.

Definition
----------
An *unknown* is a whole number of 0 or more that is known when a kernel runs: a variable of its
shapes, or what it leaves divided by a number. A *size* is an int, or a polynomial of unknowns with
whole coefficients. Two polynomials are one number, whatever the unknowns are, only if they are
equal, as what is 0 or 1 has no powers: so sizes are compared, hashed, and divided without a prover.

A variable ``n`` that is divided by 16 becomes ``16 * q + r``: unknowns ``q = n // 16`` and
``r = n % 16``. So ``n // 16``, ``n % 16`` and ``ceildiv(n, 16)`` are polynomials, too.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeAlias

from tvm import ir, relax, tirx

__all__ = [
    "Polynomial",
    "Size",
    "Unknown",
    "divided",
    "evaluate",
    "expression",
    "factors_in",
    "is_at_least_zero",
    "nominal",
    "over",
    "terms_of",
    "unknowns_in",
]

_NOMINAL = 10007  # an unknown of no bound is thought to be so large, where an order is guessed
_MOST_STEPS = 16  # of a division


@dataclasses.dataclass(frozen=True)
class Unknown:
    """A number that is known at run time.

    Attributes
    ----------
    kind : str
        ``size``: a variable; ``//``, ``%``, ``max``, ``min``: of ``args``.
    args : tuple
    high : int or None
        Its bound; None if there is none.
    sign_of : Unknown or None
        What this is 0 with, and 1 otherwise: ``(r + 15) // 16`` of an r below 16.
    """

    kind: str
    args: tuple[Any, ...]
    high: int | None = None
    sign_of: Unknown | None = None

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.kind, self.args))

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def name(self) -> str:
        """What it is, as text: also an order that is the same in each run."""
        if self.kind == "size":
            return str(self.variable.name)
        return f"{self.kind}({', '.join(map(repr, self.args))})"

    @property
    def variable(self) -> relax.Var:
        """Of kind ``size``: the variable."""
        return self.args[0]


# A product of unknowns: each with its power.
_Monomial: TypeAlias = frozenset[tuple[Unknown, int]]
_ONE: _Monomial = frozenset()


class Polynomial:
    """A size that is not known: see the definition. Sums and products of sizes are sizes."""

    __slots__ = ("_hash", "terms")

    def __init__(self, terms: Mapping[_Monomial, int]) -> None:
        self.terms = terms
        self._hash = hash(frozenset(terms.items()))

    @staticmethod
    def of(unknown: Unknown) -> Polynomial:
        """The unknown itself."""
        return Polynomial({frozenset({(unknown, 1)}): 1})

    def __add__(self, other: Size) -> Size:
        terms = dict(self.terms)
        for monomial, number in terms_of(other).items():
            terms[monomial] = terms.get(monomial, 0) + number
        return _size(terms)

    def __mul__(self, other: Size) -> Size:
        terms: dict[_Monomial, int] = {}
        for one, a in self.terms.items():
            for two, b in terms_of(other).items():
                both = _product(one, two)
                terms[both] = terms.get(both, 0) + a * b
        return _size(terms)

    def __neg__(self) -> Size:
        return Polynomial({monomial: -number for monomial, number in self.terms.items()})

    def __sub__(self, other: Size) -> Size:
        return self + -other

    def __rsub__(self, other: int) -> Size:
        return -self + other

    __radd__ = __add__
    __rmul__ = __mul__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Polynomial) and self.terms == other.terms

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        products = []
        for monomial, number in self.terms.items():
            names = sorted(unknown.name for unknown, power in monomial for _ in range(power))
            products.append("*".join(names if number == 1 and names else [str(number), *names]))
        return " + ".join(sorted(products))


Size: TypeAlias = int | Polynomial


def terms_of(size: Size) -> Mapping[_Monomial, int]:
    """The products of unknowns that a size is the sum of, and how often each is in it."""
    return size.terms if isinstance(size, Polynomial) else {_ONE: size}


def _size(terms: Mapping[_Monomial, int]) -> Size:
    terms = {monomial: number for monomial, number in terms.items() if number}
    if not terms:
        return 0
    return terms[_ONE] if len(terms) == 1 and _ONE in terms else Polynomial(terms)


def _product(one: _Monomial, two: _Monomial) -> _Monomial:
    if not one or not two:
        return one or two
    powers = dict(one)
    for unknown, power in two:
        powers[unknown] = powers.get(unknown, 0) + power
    for unknown in list(powers):
        if unknown.high == 1:
            powers[unknown] = 1
        if unknown.sign_of in powers:
            del powers[unknown]
    return frozenset(powers.items())


# -- what is asked of sizes ------------------------------------------------------------------------


def unknowns_in(size: Size) -> set[Unknown]:
    """The unknowns of a size."""
    return {unknown for monomial in terms_of(size) for unknown, _ in monomial}


def factors_in(sizes: Iterable[Size]) -> set[Unknown]:
    """The unknowns that are 1 or more if all these sizes are: those of products."""
    products = [s for s in sizes if isinstance(s, Polynomial) and len(s.terms) == 1]
    return {unknown for product in products for unknown in unknowns_in(product)}


def evaluate(size: Size, values: Mapping[Unknown, Size]) -> Size:
    """The size where unknowns have these values; others stay."""
    if isinstance(size, int) or not unknowns_in(size) & values.keys():
        return size
    total: Size = 0
    for monomial, number in size.terms.items():
        product: Size = number
        for unknown, power in monomial:
            value = values.get(unknown)
            value = Polynomial.of(unknown) if value is None else value
            for _ in range(power):
                product = product * value
        total = total + product
    return total


def is_at_least_zero(size: Size, positive: Collection[Unknown] = ()) -> bool:
    """Whether a size is proved to be 0 or more; `positive` are unknowns that are 1 or more."""
    if isinstance(size, int):
        return size >= 0
    if all(number >= 0 for number in size.terms.values()):
        return True
    values: dict[Unknown, Size] = {}
    for unknown in unknowns_in(size):
        low = 1 if unknown in positive else 0
        if unknown.high is not None and _is_linear_in(size, unknown):
            ends = (low, unknown.high)
            return all(is_at_least_zero(evaluate(size, {unknown: end}), positive) for end in ends)
        if low:
            values[unknown] = Polynomial.of(unknown) + low
    return all(number >= 0 for number in terms_of(evaluate(size, values)).values())


def _is_linear_in(size: Polynomial, unknown: Unknown) -> bool:
    return all(power == 1 for term in size.terms for other, power in term if other == unknown)


def nominal(size: Size) -> int:
    """The size where unknowns are large: to guess an order. Nothing may rest on it."""
    if isinstance(size, int):
        return size
    known = {u: _NOMINAL if u.high is None else max(u.high, 1) for u in unknowns_in(size)}
    number = evaluate(size, known)
    assert isinstance(number, int)
    return number


def divided(size: Size, by: Size) -> tuple[Size, Size]:
    """A quotient q and a rest r: ``size == q * by + r``. Of ints, ``0 <= r < by``."""
    return _divided(size, by, True)


def _divided(size: Size, by: Size, stay: bool) -> tuple[Size, Size]:
    """The same; where the rest is to `stay` 0 or more, as far as nominal sizes say."""
    if isinstance(size, int) and isinstance(by, int):
        return divmod(size, by)
    quotient: Size = 0
    if isinstance(by, int):
        parts = {monomial: number // by for monomial, number in terms_of(size).items()}
        quotient = _size(parts)
        return quotient, size - quotient * by
    lead = max(by.terms, key=_order)
    rest: Size = size
    for _ in range(_MOST_STEPS):
        for monomial, number in sorted(terms_of(rest).items(), key=_order_of_term, reverse=True):
            less = _without(monomial, lead)
            if less is not None and number % by.terms[lead] == 0:
                part = _size({less: number // by.terms[lead]})
                left = rest - part * by
                if stay and nominal(left) < 0:
                    continue
                quotient, rest = quotient + part, left
                break
        else:
            break
    return quotient, rest


def over(size: Size, by: Size) -> Size | None:
    """The quotient, where the division leaves nothing."""
    if by == 0:
        return None
    quotient, rest = _divided(size, by, False)
    return quotient if rest == 0 else None


def _order(monomial: _Monomial) -> tuple[int, list[tuple[str, int]]]:
    powers = sorted((unknown.name, power) for unknown, power in monomial)
    return sum(power for _, power in powers), powers


def _order_of_term(term: tuple[_Monomial, int]) -> tuple[int, list[tuple[str, int]]]:
    return _order(term[0])


def _without(monomial: _Monomial, factor: _Monomial) -> _Monomial | None:
    powers = dict(monomial)
    for unknown, power in factor:
        left = powers.pop(unknown, 0) - power
        if left < 0:
            return None
        if left:
            powers[unknown] = left
    return frozenset(powers.items())


# -- as TIR ----------------------------------------------------------------------------------------


def expression(size: Size) -> ir.Expr:
    """A size as TIR, of int64."""
    if isinstance(size, int):
        return tirx.const(size, "int64")
    products = []
    for monomial, number in size.terms.items():
        factors = [_tir(unknown) for unknown, power in monomial for _ in range(power)]
        factors.sort(key=str)
        if abs(number) != 1 or not factors:
            factors.append(tirx.const(abs(number), "int64"))
        product = functools.reduce(lambda a, b: a * b, factors)
        products.append((number < 0, str(product), product))
    products.sort(key=lambda entry: entry[:2])
    negative, _, total = products[0]
    total = -total if negative else total
    for negative, _, product in products[1:]:
        total = total - product if negative else total + product
    return total


def _tir(unknown: Unknown) -> ir.Expr:
    if unknown.kind == "size":
        return unknown.variable
    make = {"//": tirx.floordiv, "%": tirx.floormod, "max": tirx.max, "min": tirx.min}
    return make[unknown.kind](*(expression(arg) for arg in unknown.args))
