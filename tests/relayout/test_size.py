"""Sizes that are ints or polynomials: their arithmetic, and what is proved of them."""

import pytest
import tvm
import tvm_ffi
from described import number
from hypothesis import given
from hypothesis import strategies as st
from tvm import relax, tirx

from relax_inplace.relayout.index import Restart, Sizes
from relax_inplace.relayout.size import (
    Polynomial,
    Unknown,
    divided,
    expression,
    is_at_least_zero,
    over,
    unknowns_in,
)
from relax_inplace.relayout.tir_forms import IndexReader

N, M = tirx.Var("n", "int64"), tirx.Var("m", "int64")
n, m = (Polynomial.of(Unknown("size", (var,))) for var in (N, M))
BELOW_8 = Polynomial.of(Unknown("%", (n, 8), 7))
values = st.fixed_dictionaries({"n": st.integers(0, 40), "m": st.integers(0, 40)})


@st.composite
def sizes(draw):
    size = draw(st.integers(-20, 20))
    for _ in range(draw(st.integers(0, 4))):
        factor = draw(st.sampled_from((1, n, m, n * m, n * n, BELOW_8, BELOW_8 * m)))
        size = size + factor * draw(st.integers(-20, 20))
    return size


@given(sizes(), sizes(), values)
def test_arithmetic(a, b, known):
    x, y = number(a, known), number(b, known)
    assert number(a + b, known) == x + y
    assert number(a - b, known) == x - y
    assert number(a * b, known) == x * y
    quotient, rest = divided(a, b) if b != 0 else (0, a)
    assert number(quotient, known) * y + number(rest, known) == x


@given(sizes(), sizes())
def test_a_product_is_divided_by_its_factors(a, b):
    if b != 0:
        assert over(a * b, b) == a


@given(sizes(), values)
def test_what_is_proved_holds(a, known):
    assert not is_at_least_zero(a) or number(a, known) >= 0
    positive = unknowns_in(a)
    if all(number(Polynomial.of(unknown), known) for unknown in positive):
        assert not is_at_least_zero(a, positive) or number(a, known) >= 0


def test_ends_settle_what_is_linear():
    assert is_at_least_zero(n * 7 - BELOW_8 * n)
    assert not is_at_least_zero(BELOW_8 * BELOW_8 - BELOW_8 * 7)


@given(sizes(), values)
def test_as_tir(a, known):
    """The same number."""
    at = tvm_ffi.structural_map(
        expression(a), (relax.Var, lambda var: tirx.const(known[var.name], "int64"))
    )
    assert int(tvm.sym.Analyzer().simplify(at)) == number(a, known)


def read(*exprs):
    known = Sizes()
    while True:
        try:
            return [IndexReader(known, {}).size(expr) for expr in exprs]
        except Restart:
            continue


ROUNDED = {
    "down": N // 16,
    "rest": N % 16,
    "up": tirx.ceildiv(N, 16),
    "down, of more": (N * 3 + 5) // 16,
    "twice": N // 16 // 4 + N % 64,
    "two": N // 16 * (M // 4) + (N + M) % 4,
    "least": tirx.min(N, 3) + tirx.max(M - 2, 0),
}


@pytest.mark.parametrize("name", ROUNDED)
def test_what_is_divided(name):
    (size,) = read(ROUNDED[name])
    for known in ({"n": n, "m": m} for n in range(70) for m in (0, 1, 2, 6)):
        at = tvm_ffi.structural_map(
            ROUNDED[name],
            (relax.Var, lambda var, known=known: tirx.const(known[var.name], "int64")),
        )
        assert int(tvm.sym.Analyzer().simplify(at)) == number(size, known)


def test_quotients_of_one_size_are_compared():
    down, up, rest, size = read(N // 16, tirx.ceildiv(N, 16), N % 16, N)
    assert size == down * 16 + rest
    assert is_at_least_zero(up - down)
    assert is_at_least_zero(down + 1 - up)
    assert (up - down) * rest == rest
    assert not is_at_least_zero(down - up)


def test_what_is_left_is_there_or_not():
    """A quotient is a sign where it is 0 with a rest, and 1 with any other."""
    left = Unknown("%", (n, 4), 3)
    rest = Polynomial.of(left)

    def sign_of(size, by):
        (quotient,) = unknowns_in(Sizes().floordiv(size, by))
        return quotient.sign_of

    assert sign_of(rest + 3, 4) == left
    assert sign_of(rest * 2 + 7, 8) == left
    assert sign_of(rest * 3 + 3, 4) is None  # 0, 1, 2, 3
    assert sign_of(rest + 2, 4) is None  # 0, 0, 1, 1
    assert sign_of(rest * rest + 8, 9) is None  # 0, 1, 1, 1, but it does not rise for sure


def test_a_rest_of_two_is_its_own_sign():
    """So that ``(n + 1) // 2`` is ``n // 2 + n % 2``: TVM writes a size as the one or the other."""
    left = Polynomial.of(Unknown("%", (n, 2), 1))
    assert Sizes().floordiv(left + 1, 2) == left
    assert left * left == left
    assert (left * n + 1) * left == left * n + left
    assert BELOW_8 * BELOW_8 != BELOW_8
