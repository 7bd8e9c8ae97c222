"""Where the digits of a box have to be cut, so that indices become sums of digits.

Definition
----------
A *change* puts other digits in the place of some: all points of a box are those of its changes,
each of one. There are four:

- a digit is *split* into two, ``d = f * o + i``, where f divides its extent;
- two are *joined* to one, ``w = e * o + i``, of which they are the quotient and the rest;
- a digit is *turned*, ``d = e - 1 - t``;
- a box is *cut* along a digit into two boxes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

from .index import Counter, Form, NoRelayout, Quotient, Sizes, constant
from .size import Size, is_at_least_zero, nominal, over

__all__ = ["Change", "Cut", "changed_box", "new_digit", "resolve", "settle"]


@dataclasses.dataclass
class Change:
    """Forms in the place of digits, and the digits that are new in them."""

    at: dict[Counter, Form]
    new: list[Counter]


class Cut(Exception):  # noqa: N818  it never leaves this package
    """The box has to be changed before an expression can be read."""

    def __init__(self, changes: Sequence[Change]) -> None:
        super().__init__()
        self.changes = changes


def new_digit(extent: Size) -> tuple[Form, list[Counter]]:
    """A digit as a form; one of extent 1 is 0."""
    if extent == 1:
        return constant(0), []
    digit = Counter(extent)
    return Form({digit: 1}, 0), [digit]


def resolve(forms: Iterable[Form], sizes: Sizes) -> list[Change]:
    """What has to be changed, so that less of a quotient is left; nothing if there is none.

    Raises NoRelayout. The quotient of the fewest digits comes first: of what it is made of, others
    are made, too.
    """
    found = list(_innermost(forms))
    return _resolved(min(found, key=lambda one: len(one.form.terms)), sizes) if found else []


def _innermost(forms: Iterable[Form]) -> Iterator[Quotient]:
    for form in forms:
        for quotient in form.quotients:
            if quotient.form.quotients:
                yield from _innermost([quotient.form])
            else:
                yield quotient


def _resolved(quotient: Quotient, sizes: Sizes) -> list[Change]:
    form, divisor = quotient.form, quotient.divisor
    terms = [(term, a) for term, a in form.terms.items() if isinstance(term, Counter)]
    if len(terms) == 1:
        ((digit, a),) = terms
        if a == -1:
            return [_turned(digit)]
        if a != 1:
            raise NoRelayout("divides a multiple of an index")
        return _aligned(digit, form.const, divisor, sizes)
    factors = []
    for digit, a in terms:
        factor = over(divisor, -a if sizes.is_at_least(0, a) else a)
        if factor is not None and 1 < nominal(factor) < nominal(digit.extent):
            factors.append((digit, factor))
    for digit, factor in factors:
        outer = over(digit.extent, factor)
        if outer is not None:
            return [_split(digit, outer, factor)]
    for outer_digit, a in terms:
        for inner_digit, b in terms:
            if inner_digit is not outer_digit and a == b * inner_digit.extent:
                return [_joined(outer_digit, inner_digit, sizes)]
            if inner_digit is not outer_digit and a == -b * inner_digit.extent:
                return [_turned(inner_digit)]  # to be joined then
    for digit, factor in factors:
        return _cut_at(digit, sizes.floordiv(digit.extent, factor) * factor)
    raise NoRelayout("divides a sum of indices that do not follow each other")


def _aligned(digit: Counter, start: Size, divisor: Size, sizes: Sizes) -> list[Change]:
    """Of ``(digit + start) // divisor``: whole numbers of the divisor, and what is around them."""
    rest = start - sizes.floordiv(start, divisor) * divisor
    if rest != 0:
        return _cut_at(digit, _least(divisor - rest, digit.extent))
    outer = over(digit.extent, divisor)
    if outer is not None:
        return [_split(digit, outer, divisor)]
    return _cut_at(digit, sizes.floordiv(digit.extent, divisor) * divisor)


def _least(border: Size, extent: Size) -> Size:
    if isinstance(border, int) and isinstance(extent, int):
        return min(border, extent)
    return border


def settle(form: Form, sizes: Sizes) -> list[Change]:
    """What has to be changed, so that ``form < 0`` becomes known. Raises NoRelayout."""
    changes = resolve([form], sizes)
    if changes:
        return changes
    terms = [(d, a) for d, a in form.terms.items() if isinstance(d, Counter) and not d.is_zero]
    if not terms:
        raise NoRelayout("chooses by a size that is not known")
    digit, a = max(terms, key=lambda term: abs(nominal(term[1])))
    if sizes.is_at_least(0, a):
        return [_turned(digit)]
    low, high = sizes.bounds(form.plus(Form({digit: 1}, 0), -a))
    for end in (high, low):
        if end is None:
            continue
        border = sizes.floordiv(-end - 1, a) + 1
        if is_at_least_zero(-border) or is_at_least_zero(border - digit.extent):
            continue
        return _cut_at(digit, border)
    raise NoRelayout("chooses by an index in a way that is not read")


# -- the four changes ------------------------------------------------------------------------------


def _split(digit: Counter, outer: Size, inner: Size) -> Change:
    high, new = new_digit(outer)
    low, more = new_digit(inner)
    return Change({digit: low.plus(high, inner)}, new + more)


def _joined(outer: Counter, inner: Counter, sizes: Sizes) -> Change:
    whole, new = new_digit(outer.extent * inner.extent)
    high = sizes.quotient(whole, inner.extent)
    return Change({outer: high, inner: whole.plus(high, -inner.extent)}, new)


def _turned(digit: Counter) -> Change:
    form, new = new_digit(digit.extent)
    return Change({digit: constant(digit.extent - 1).plus(form, -1)}, new)


def _cut_at(digit: Counter, border: Size) -> list[Change]:
    # Also of a box without points: nothing is supposed here.
    if not is_at_least_zero(border) or not is_at_least_zero(digit.extent - border):
        raise NoRelayout("is cut at a size that may be beyond the end")
    changes = []
    for extent, start in ((border, 0), (digit.extent - border, border)):
        if extent != 0:
            form, new = new_digit(extent)
            changes.append(Change({digit: form.plus(constant(start))}, new))
    if any(change.new and change.new[0].extent == digit.extent for change in changes):
        raise NoRelayout("is cut where nothing changes")
    return changes


def changed_box(box: Iterable[Counter], change: Change) -> list[Counter]:
    """The digits of a box after a change."""
    return [digit for digit in box if digit not in change.at] + change.new
