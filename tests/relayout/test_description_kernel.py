"""The kernel of a description: LLVM computes what it says, and it is read again as what it was."""

import math

import numpy as np
import pytest
from described import apply, number
from hypothesis import given
from hypothesis import strategies as st
from inplace_kernels import built, kernels_of, moves, run
from layout.compiled import random_bits
from moving_kernels import LAYOUTS, OPERATORS, SIZES
from profiles import examples
from tvm import relax, tirx

from relax_inplace.relayout.description import Digit, Piece, Relayout, normal
from relax_inplace.relayout.description_inverse import inverse
from relax_inplace.relayout.description_kernel import kernel_of
from relax_inplace.relayout.inlining import with_producers_inlined
from relax_inplace.relayout.read_description import read_relayouts
from relax_inplace.relayout.size import Polynomial, Unknown, expression

WAYS = ("interleave", "deinterleave")
# The same, in other pieces: constants of a rim, and what is next to one, are cut elsewhere; so are
# bits that begin and end at other elements than their neighbours.
CUT_ELSEWHERE = (
    "layout_transform, a rim",
    "layout_transform, a rim of 2",
    "any size: pack, a rim",
    *(f"{size}{way} q4_K 8x8" for size in ("", "any size: ") for way in WAYS),
)


BOTH_WAYS = "reads forwards and backwards across an axis"


def kernel_like(kernel, relayout):
    """That of a description in the variables of this kernel."""
    used = [*relayout.inputs, relayout.output]
    types = {at: kernel.params[at].ty for at in used}
    shapes = {at: ty.shape[:] for at, ty in types.items()}
    return kernel_of(relayout, shapes, {at: str(ty.dtype) for at, ty in types.items()})


def text(relayout):
    """A description with its parameters in order, and variables by name: a new kernel's are new."""
    order = [*relayout.inputs, relayout.output]
    return [
        (
            piece.flip,
            piece.fill,
            repr(piece.into),
            [(order.index(param), repr(base)) for param, base in piece.inputs],
            [(repr(d.extent), repr(d.into), *map(repr, d.read)) for d in piece.digits],
        )
        for piece in relayout.pieces
    ]


def assert_same_bytes(one, other, sizes):
    """Whatever the inputs are."""
    generator = np.random.default_rng(0)
    counts = [number(one.bits_of(param), sizes) // 8 for param in one.inputs]
    data = [generator.bytes(count) for count in counts]
    first, second = (
        apply(relayout, dict(zip(relayout.inputs, data, strict=True)), sizes)
        for relayout in (one, other)
    )
    assert first == second


@pytest.mark.parametrize("name", {**OPERATORS, **LAYOUTS})
def test_read_again(name):
    """Each description of the corpus, and what undoes it."""
    function, tensors = {**OPERATORS, **LAYOUTS}[name]
    for kernel in map(with_producers_inlined, kernels_of(function, *tensors)):
        for relayout in read_relayouts(kernel):
            for described in (relayout, inverse(relayout)):
                if isinstance(described, str):
                    continue
                made = kernel_like(kernel, described)
                assert not isinstance(made, str), made
                (again,) = read_relayouts(made)
                if name in CUT_ELSEWHERE:
                    sizes = {"n": 50, "k": 100} if "rim" in name else SIZES
                    assert_same_bytes(again, described, sizes)
                else:
                    assert text(again) == text(described)


# -- what LLVM computes ----------------------------------------------------------------------------


def assert_computed(relayout, *tensors):
    """By LLVM, of random bits; the tensors are those of its parameters."""
    shapes, dtypes = (dict(enumerate(values)) for values in zip(*tensors, strict=True))
    kernel = kernel_of(relayout, shapes, dtypes)
    assert not isinstance(kernel, str), kernel
    generator = np.random.default_rng(0)
    arrays = [random_bits(generator, shapes[at], dtypes[at]) for at in relayout.inputs]
    data = {at: array.tobytes() for at, array in zip(relayout.inputs, arrays, strict=True)}
    (made,) = run(built(kernel), kernel, arrays)
    assert made == apply(relayout, data)
    return kernel


@examples(30)
@given(moves(may_cast=False))
def test_any_moves(drawn):
    (relayout,) = read_relayouts(drawn.kernel)
    made = kernel_like(drawn.kernel, relayout)
    if made == BOTH_WAYS:
        return
    (again,) = read_relayouts(made)
    assert_same_bytes(again, relayout, {})


@st.composite
def bit_moves(draw):
    """Bits in another order, some of them falling, some turned over; of any integers."""
    extents = draw(st.lists(st.sampled_from((2, 2, 3, 4, 8)), min_size=1, max_size=3))
    extents.append(draw(st.sampled_from((1, 2, 3, 4, 8))))
    count = math.prod(extents)
    widths = draw(st.sampled_from(((8, 8), (8, 32), (32, 8), (16, 64), (32, 32), (64, 8))))
    whole = math.lcm(*widths)
    extents.insert(0, whole // math.gcd(count, whole))
    count = math.prod(extents)
    order = draw(st.permutations(range(len(extents))))
    into, step = [0] * len(extents), 1
    for at in reversed(order):
        into[at], step = step, step * extents[at]
    digits, base, step = [], 0, 1
    for at in reversed(range(len(extents))):
        falls = draw(st.booleans()) and draw(st.booleans())
        base += step * (extents[at] - 1) if falls else 0
        digits.insert(0, Digit(extents[at], into[at], (-step if falls else step,)))
        step *= extents[at]
    digits.sort(key=lambda digit: -digit.into)
    flip = draw(st.integers(0, (1 << digits[-1].extent) - 1)) if draw(st.booleans()) else 0
    pieces = normal([Piece(tuple(digits), 0, ((0, base),), flip)])
    shapes = [[count // width] for width in widths]
    for shape in shapes:
        for size in (2, 3):
            if shape[0] % size == 0 and draw(st.booleans()):
                shape[:1] = [size, shape[0] // size]
    dtypes = [f"{draw(st.sampled_from(('int', 'uint')))}{width}" for width in widths]
    return Relayout(1, pieces, ((0, count), (1, count))), *zip(shapes, dtypes, strict=True)


@examples(15, fuzz=1000)
@given(bit_moves())
def test_any_bits(drawn):
    relayout, *tensors = drawn
    shapes, dtypes = (dict(enumerate(values)) for values in zip(*tensors, strict=True))
    if kernel_of(relayout, shapes, dtypes) == BOTH_WAYS:
        return
    kernel = assert_computed(relayout, *tensors)
    again = read_relayouts(kernel)
    if not isinstance(again, str):
        assert_same_bytes(again[0], relayout, {})


def words(*codes):
    """Codes of 12 bits, each a piece of its own, from one place to another one."""
    return [Piece((Digit(12, 1, (1,)),), to * 12, ((0, there * 12),)) for to, there in codes]


def a_piece(*digits, into=0, read=0, flip=0):
    """Of extents, and bits to the next in output and input."""
    moved = (Digit(extent, to, (by,)) for extent, to, by in digits)
    return Piece(tuple(moved), into, ((0, read),), flip)


def filled(pattern, *digits, into=0):
    return Piece(tuple(Digit(*digit) for digit in digits), into, (), fill=pattern)


# Pieces, input and output.
BITS = {
    "codes across bytes": (words((0, 1), (1, 0), (2, 3), (3, 2)), ((6,), "uint8"), ((6,), "uint8")),
    "codes across words": (
        words(*((i, 7 - i) for i in range(8))),
        ((2, 3), "uint16"),
        ((3,), "uint32"),
    ),
    "nibbles the other way round": (
        [a_piece((12, 4, -4), (4, 1, 1), read=44)],
        ((6,), "uint8"),
        ((6,), "uint8"),
    ),
    "bits the other way round": ([a_piece((32, 1, -1), read=31)], ((4,), "uint8"), ((2,), "int16")),
    "a sign": (
        [a_piece((4, 16, 16), (16, 1, 1), flip=0x8000)],
        ((2, 2), "float16"),
        ((4,), "float16"),
    ),
    "a sign, of bytes": (
        [a_piece((4, 16, 16), (16, 1, 1), flip=0x8000)],
        ((8,), "uint8"),
        ((4,), "bfloat16"),
    ),
    "a sign of a number": (
        [a_piece((4, 16, 16), (16, 1, 1), flip=0x8000)],
        ((4,), "uint16"),
        ((4,), "int16"),
    ),
    "ones in front": (
        [filled(0x3F800000, (2, 32), (32, 1)), a_piece((64, 1, 1), into=64)],
        ((2,), "float32"),
        ((4,), "float32"),
    ),
    "a constant nibble": (
        [a_piece((4, 8, 4), (4, 1, 1), flip=8), filled(5, (4, 8), (4, 1), into=4)],
        ((2,), "uint8"),
        ((4,), "int8"),
    ),
    "other nibbles of some bytes": (
        [
            a_piece((8, 8, 8), (4, 1, 1)),
            a_piece((4, 16, 16), (4, 1, 1), into=4, read=12),
            a_piece((4, 16, 16), (4, 1, 1), into=12, read=4),
        ],
        ((8,), "uint8"),
        ((8,), "uint8"),
    ),
    "from the second nibble on": (
        [a_piece((15, 4, 4), (4, 1, 1), read=4), filled(0, (4, 1), into=60)],
        ((8,), "uint8"),
        ((2, 4), "uint8"),
    ),
    "backwards, in other axes": (
        [a_piece((90, 8, -8), (8, 1, 1), read=712)],
        ((8, 12), "int8"),
        ((90,), "int8"),
    ),
    "from across the end of rows": (
        [a_piece((4, 32, 48), (32, 1, 1), read=32)],
        ((5, 6), "int8"),
        ((4, 4), "int8"),
    ),
    "across the end of rows": (
        [
            a_piece((5, 40, 32), (32, 1, 1), into=24),
            filled(0xFFFFFF, (24, 1)),
            filled(0, (4, 40), (8, 1), into=56),
            filled(0, (8, 1), into=216),
        ],
        ((5, 4), "int8"),
        ((7, 4), "int8"),
    ),
}


@pytest.mark.parametrize("name", BITS)
def test_bits(name):
    pieces, *tensors = BITS[name]
    bits = [8 * random_bits(np.random.default_rng(0), *tensor).nbytes for tensor in tensors]
    assert_computed(Relayout(1, normal(pieces), tuple(enumerate(bits))), *tensors)


# -- what has none ---------------------------------------------------------------------------------


def relayout_of(*pieces, bits=64):
    return Relayout(1, normal(pieces), ((0, bits), (1, bits)))


REFUSED = {
    BOTH_WAYS: (
        relayout_of(a_piece((3, 40, 40), (5, 8, -8), (8, 1, 1), read=32), bits=120),
        ((5, 3), (3, 5)),
        ("int8", "int8"),
    ),
    "writes to places that do not follow each other": (
        relayout_of(a_piece((3, 16, 16), (2, 24, 24), (8, 1, 1))),
        ((8,), (8,)),
        ("int8", "int8"),
    ),
    "moves too many bits by themselves": (
        relayout_of(a_piece((64, 41, 1), (41, 1, 64)), bits=64 * 41),
        ((41,), (41,)),
        ("int64", "int64"),
    ),
    "changes bits of what is true or false": (
        relayout_of(a_piece((8, 8, 8), (8, 1, 1), flip=1)),
        ((8,), (8,)),
        ("bool", "bool"),
    ),
    "has elements that are not whole bytes": (
        relayout_of(a_piece((64, 1, 1))),
        ((16,), (16,)),
        ("int4", "int4"),
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refused(reason):
    relayout, shapes, dtypes = REFUSED[reason]
    assert kernel_of(relayout, dict(enumerate(shapes)), dict(enumerate(dtypes))) == reason


def test_what_computes():
    (kernel,) = kernels_of(lambda x: relax.op.astype(x, "float32"), ((2, 3), "float16"))
    (relayout,) = read_relayouts(kernel)
    assert kernel_like(kernel, relayout) == "computes new numbers"


def test_a_size_that_may_be_0():
    """Rows of m bytes behind n: where there are some, m may still be 0."""
    n, m = (Polynomial.of(Unknown("size", (tirx.Var(name, "int64"),))) for name in "nm")
    pieces = (
        a_piece((n, 8, 8), (8, 1, 1)),
        a_piece((3, 8 * m, 8), (m, 8, 24), (8, 1, 1), into=8 * n, read=8 * n),
    )
    count = n + 3 * m
    relayout = Relayout(1, pieces, ((0, 8 * count), (1, 8 * count)))
    shapes = {at: [expression(count)] for at in range(2)}
    assert kernel_of(relayout, shapes, {0: "int8", 1: "int8"}) == (
        "divides by a size that may be 0"
    )


CROSSING = {  # what is read: two axes are one, and divided again
    "from across the end of rows": "given[(v_i1 + (4)) // (6) + v_i0, (v_i1 + (4)) % (6)]",
    # Not (89 - i) % 12: TVM 0.27 may leave out what is in front of such an index.
    "backwards, in other axes": "given[(7) - (v_i0 + (6)) // (12), (11) - (v_i0 + (6)) % (12)]",
}


@pytest.mark.parametrize("name", CROSSING)
def test_what_crosses_an_axis(name):
    pieces, *tensors = BITS[name]
    bits = [8 * random_bits(np.random.default_rng(0), *tensor).nbytes for tensor in tensors]
    relayout = Relayout(1, normal(pieces), tuple(enumerate(bits)))
    shapes, dtypes = (dict(enumerate(values)) for values in zip(*tensors, strict=True))
    made = kernel_of(relayout, shapes, dtypes).script().replace("T.int64", "")
    assert made.endswith(f"= {CROSSING[name]}")


def test_indices_stay_in_their_axes():
    """What compiles fast, and what schedules read: no index is of several axes."""
    function, tensors = LAYOUTS["any size: pack, a rim"]
    (kernel,) = kernels_of(function, *tensors)
    (relayout,) = read_relayouts(kernel)
    made = kernel_like(kernel, inverse(relayout)).script().replace("T.int64", "")
    assert made.endswith("= given[v_i0 // (16), v_i1 // (64), v_i0 % (16), v_i1 % (64)]")
