"""What a kernel moves, read off its TIR: carried out by numpy, it is bitwise what LLVM computes."""

import numpy as np
import pytest
import tvm
import tvm_ffi
from described import apply
from hypothesis import given
from hypothesis import strategies as st
from inplace_kernels import built, kernels_of, moves, numpy_dtype, random_array, run, te_kernel
from moving_kernels import COMPUTED, LAYOUTS, OPERATORS, SIZES
from profiles import examples
from tvm import relax, te, tirx
from tvm.script import from_source

from relax_inplace import layout
from relax_inplace.relayout.description import NUMBER, Digit, Piece
from relax_inplace.relayout.inlining import with_producers_inlined
from relax_inplace.relayout.read_description import read_relayouts


def tensors_of(kernel, sizes):
    """Number, shape and dtype of each tensor parameter."""
    analyzer = tvm.sym.Analyzer()

    def known(var):
        return tirx.const(sizes[var.name], "int64")

    def size(expr):
        return int(analyzer.simplify(tvm_ffi.structural_map(expr, (relax.Var, known))))

    return {
        at: ([size(extent) for extent in param.ty.shape], str(param.ty.dtype))
        for at, param in enumerate(kernel.params)
        if isinstance(param.ty, tirx.BufferType)
    }


def assert_described(kernel, *all_sizes, is_sane=False, elements=False):
    """Each output is bitwise what its description says, with each of the sizes."""
    kernel = with_producers_inlined(kernel)
    found = read_relayouts(kernel, elements=elements)
    assert not isinstance(found, str), found
    outputs = [relayout.output for relayout in found]
    function = built(kernel)
    for sizes in all_sizes:
        tensors = tensors_of(kernel, sizes)
        generator = np.random.default_rng(0)
        arrays = {}
        for at, (shape, dtype) in tensors.items():
            if at not in outputs:
                arrays[at] = random_array(generator, shape, dtype)
                if is_sane and "float" in dtype:
                    arrays[at] = generator.standard_normal(shape, "float32").astype(dtype)
        made = run(function, kernel, arrays.values(), sizes)
        given = {at: array.tobytes() for at, array in arrays.items()}
        for relayout, expected in zip(found, made, strict=True):
            assert apply(relayout, given, sizes) == expected
    return found


# -- what is read ----------------------------------------------------------------------------------


def sizes_for(name):
    """Some, and the smallest, that a kernel takes."""
    if not name.startswith("any size: "):
        return [{}]
    if "rim" in name:
        return [{"n": 50, "k": 100}, {"n": 48, "k": 100}, {"n": 1, "k": 64}]
    return [SIZES, {"n": 1, "k": 1, "m": 1}, {"n": 2, "k": 0, "m": 0}]


@pytest.mark.parametrize("name", {**OPERATORS, **LAYOUTS})
def test_moves_as_llvm_does(name):
    """One description for all sizes, so also for 1 and for none."""
    function, tensors = {**OPERATORS, **LAYOUTS}[name]
    for kernel in kernels_of(function, *tensors):
        for relayout in assert_described(kernel, *sizes_for(name)):
            assert all(piece.value is None for piece in relayout.pieces)


@pytest.mark.parametrize("name", COMPUTED)
def test_computes_as_llvm_does(name):
    function, tensors = COMPUTED[name]
    for kernel in kernels_of(function, *tensors):
        for relayout in assert_described(kernel, *sizes_for(name), is_sane=True):
            assert any(piece.value is not None for piece in relayout.pieces)


@examples(60)
@given(moves())
def test_any_moves(drawn):
    found = read_relayouts(drawn.kernel)
    assert not isinstance(found, str), found
    (relayout,) = found
    given = random_array(np.random.default_rng(0), drawn.shape, drawn.dtype)
    expected = given.reshape(-1)[drawn.sources].astype(numpy_dtype(drawn.made))
    made = apply(relayout, {0: given.tobytes()})
    if any(piece.value is not None for piece in relayout.pieces):
        np.testing.assert_array_equal(np.frombuffer(made, expected.dtype), expected)
    else:
        assert made == expected.tobytes()


@st.composite
def any_kernels(draw):
    """Elements from any places: sums of indices, divided; bits of them, and choices by index."""
    shape = draw(st.lists(st.sampled_from((2, 3, 4, 6, 8, 9, 12, 20)), min_size=1, max_size=3))
    dtype = draw(st.sampled_from(("uint8", "int16", "uint32")))
    small = st.sampled_from((1, 1, 2, 3, 4, 8))

    def constant(*numbers):
        return tirx.const(draw(st.sampled_from(numbers)), dtype)

    def index(at):
        found = sum(
            (draw(small) * var for var in at if draw(st.booleans())), draw(st.integers(0, 5))
        )
        for _ in range(draw(st.integers(0, 2))):
            by = draw(st.sampled_from((2, 3, 4, 6, 8, 16)))
            found = found // by if draw(st.booleans()) else found % by
        return found

    def element(given, at):
        return given[sum(draw(small) * index(at) for _ in range(2)) % tirx.const(512, "int64")]

    def kernel(given):
        def value(*at):
            found = element(given, at)
            for _ in range(draw(st.integers(0, 3))):
                kind = draw(st.integers(0, 5))
                if kind == 0:
                    found = found >> constant(1, 3, 4)
                elif kind == 1:
                    found = found & constant(15, 0x66, 127)
                elif kind == 2:
                    found = found << constant(1, 4)
                elif kind == 3:
                    found = found ^ constant(1, 0x55)
                elif kind == 4:
                    other = element(given, at) << constant(4)
                    found = found & constant(15) | other & constant(0x70)
                else:
                    bound = draw(st.sampled_from((1, 2, 5)))
                    one = (
                        at[0] * draw(small) + at[-1] < bound
                        if draw(st.booleans())
                        else at[-1] >= bound
                    )
                    found = te.if_then_else(one, found, constant(0, 3))
            return found

        return te.compute(shape, value, "made")

    return te_kernel(kernel, ((512,), dtype)), dtype


@examples(40, fuzz=3000)
@given(any_kernels())
def test_what_is_read_is_right(drawn):
    """Most of these are no boxes of digits; what is described is described as it is."""
    kernel, dtype = drawn
    found = read_relayouts(kernel)
    if isinstance(found, str):
        return
    given = random_array(np.random.default_rng(0), (512,), dtype)
    (expected,) = run(built(kernel), kernel, [given])
    assert apply(found[0], {0: given.tobytes()}) == expected


# -- what is refused -------------------------------------------------------------------------------

HEAD = """
@T.prim_func(private=True, s_tir=True)
def kernel({params}):
    {body}
"""
STATIC = 'A: T.Buffer((8, 6), "int16"), B: T.Buffer((8, 6), "int16")'
DATA = 'A: T.Buffer((8,), "int64"), B: T.Buffer((8,), "int64")'

NOT_ONCE = "is not proved to write each element once"

REFUSED = {
    "twice": (STATIC, "for i, j, t in T.grid(8, 6, 2): B[i, j] = A[i, j]", NOT_ONCE),
    "some twice": (STATIC, "for i, j in T.grid(8, 6): B[i, j // 2] = A[i, j]", NOT_ONCE),
    "two loops for one place": (
        STATIC,
        """for i, j in T.grid(8, 6): B[i, j] = A[i, j]
    for i, j in T.grid(2, 6): B[i, j] = A[i, j]""",
        NOT_ONCE,
    ),
    "a gap": (STATIC, "for i, j in T.grid(8, 5): B[i, j] = A[i, j]", NOT_ONCE),
    "a gap in between": (STATIC, "for i, j in T.grid(8, 3): B[i, j * 2] = A[i, j]", NOT_ONCE),
    "a condition": (
        STATIC,
        """for i, j in T.grid(8, 6):
        if i + j > 0: B[i, j] = A[i, j]""",
        NOT_ONCE,
    ),
    "beyond the end": (STATIC, "for i, j in T.grid(9, 6): B[i, j] = A[i % 8, j]", NOT_ONCE),
    "read at places that data give": (
        DATA,
        "for i in range(8): B[i] = A[A[i]]",
        "has an index that is data",
    ),
    "written to places that data give": (
        DATA,
        "for i in range(8): B[A[i]] = A[i]",
        "has an index that is data",
    ),
    "a condition that is data": (
        DATA,
        """for i in range(8):
        if A[i] > 0: B[i] = A[i]""",
        "has an index that is data",
    ),
    "what it has written": (
        DATA,
        """for i in range(8): B[i] = A[i]
    for i in range(8): B[i] = B[7 - i]""",
        NOT_ONCE,
    ),
    "its own output": (DATA, "for i in range(8): B[i] = B[7 - i]", "reads what it writes"),
    "an index in a value": (
        DATA,
        "for i in range(8): B[i] = A[i] * i",
        "computes new numbers, with an index",
    ),
    "a square": (
        DATA,
        "for i in range(8): B[i * i % 8] = A[i]",
        "multiplies indices",
    ),
    "a diagonal": (
        STATIC,
        "for i, j in T.grid(8, 6): B[i, j] = A[i, (i + j) // 5]",
        "divides a sum of indices that do not follow each other",
    ),
    "strides": (
        'A: T.Buffer((8,), "int8"), B: T.Buffer((4,), "int8", strides=(2,))',
        "for i in range(4): B[i] = A[i]",
        "has a buffer that is not row-major elements of whole bytes",
    ),
    "elements that share a byte": (
        'A: T.Buffer((8,), "int4"), B: T.Buffer((8,), "int4")',
        "for i in range(8): B[i] = A[7 - i]",
        "has a buffer that is not row-major elements of whole bytes",
    ),
    "a shift by more bits than there are": (
        'A: T.Buffer((8,), "uint8"), B: T.Buffer((8,), "uint8")',
        'for i in range(8): B[i] = (A[i] >> T.Cast("uint8", i)) & T.uint8(3)',
        "shifts by more bits than there are",
    ),
    "a shift by less than 0": (
        'A: T.Buffer((4,), "uint8"), B: T.Buffer((4,), "uint8")',
        'for i in range(4): B[i] = (A[i] >> T.Cast("uint8", i - 1)) & T.uint8(1)',
        "shifts by more bits than there are",
    ),
    "an index that wraps around": (
        'A: T.Buffer((512,), "int8"), B: T.Buffer((512,), "int8")',
        'for i in range(512): B[i] = A[T.Cast("int64", T.Cast("uint8", i))]',
        "has an index that its dtype may not hold",
    ),
    "an index that wraps around below 0": (
        'A: T.Buffer((256,), "int8"), B: T.Buffer((256,), "int8")',
        'for i in range(256): B[i] = A[T.Cast("int64", T.Cast("uint8", i - 4))]',
        "has an index that its dtype may not hold",
    ),
    "an unsigned comparison": (
        DATA,
        """for i in range(8):
        if T.Cast("uint32", i) - T.uint32(4) < T.uint32(9): B[i] = A[i]""",
        "chooses by what is no index",
    ),
    "a division towards 0 of what may be below": (
        DATA,
        "for i in range(8): B[i] = A[T.truncdiv(i - 4, 4) + 1]",
        "divides what may be below 0",
    ),
    "a divisor below 0": (
        DATA,
        "for i in range(8): B[i] = A[T.floordiv(i, -4) + 2]",
        "divides by a number that may be below 1",
    ),
    "a number that may be below 0": (
        'A: T.Buffer((8,), "int8"), B: T.Buffer((8,), "int8"), s: T.int64',
        "for i in range(8): B[i] = A[(i + s) % 8]",
        "depends on a number that is no size",
    ),
    "a loop of no length": (
        "a: T.handle, b: T.handle, c: T.handle, n: T.int64, m: T.int64",
        """A = T.match_buffer(a, (n,), "int8")
    B = T.match_buffer(b, (m,), "int8")
    C = T.match_buffer(c, (m,), "int8")
    for i in range(n): C[i] = A[i]
    for i in range(m - n): C[n + i] = B[i]""",
        "has a loop whose length may be below 0",
    ),
    "a border beyond the end": (
        "a: T.handle, b: T.handle, n: T.int64, m: T.int64",
        """A = T.match_buffer(a, (m,), "int8")
    B = T.match_buffer(b, (n,), "int8")
    for i in range(n): B[i] = T.if_then_else(i < m, A[i], T.int8(0))""",
        "is cut at a size that may be beyond the end",
    ),
    "threads": (
        DATA,
        """for i in T.thread_binding(8, "threadIdx.x"): B[i] = A[i]""",
        "is scheduled already",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    params, body, reason = REFUSED[name]
    assert read_relayouts(from_source(HEAD.format(params=params, body=body))) == reason


def test_a_sum_is_refused():
    (kernel,) = kernels_of(lambda x: relax.op.sum(x, axis=1), ((8, 6), "float32"))
    assert read_relayouts(kernel) == "has intermediate buffers, or sums up"


def test_a_diagonal_is_no_boxes():
    (kernel,) = kernels_of(lambda x: relax.op.tril(x, 0), ((12, 10), "float16"))
    assert read_relayouts(kernel) == "chooses by an index in a way that is not read"


LOOPS = {
    "no blocks": "for i, j in T.grid(8, 6): B[i, j] = A[7 - i, j]",
    "two loops": """for i in range(5):
        for j in range(6): B[i, j] = A[7 - i, j]
    for j in range(6):
        for i in range(5, 8): B[i, j] = A[7 - i, j]""",
    "a scattered store": "for i, j in T.grid(8, 6): B[7 - i, j] = A[i, j]",
    "one loop": "for i in range(48): B[i // 6, i % 6] = A[7 - i // 6, i % 6]",
    "a condition": """for i, j in T.grid(10, 6):
        if i < 8: B[i, j] = A[7 - i, j]""",
    "either side": """for i, j in T.grid(8, 6):
        if i < 3: B[i, j] = A[7 - i, j]
        else: B[i, j] = A[7 - i, j]""",
}


@pytest.mark.parametrize("name", LOOPS)
def test_any_loops_around_stores(name):
    """These are one kernel."""
    kernel = from_source(HEAD.format(params=STATIC, body=LOOPS[name]))
    (relayout,) = read_relayouts(kernel)
    given = np.arange(48, dtype="int16").reshape(8, 6)
    assert apply(relayout, {0: given.tobytes()}) == given[::-1].tobytes()


# -- whole elements --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", {**OPERATORS, **LAYOUTS})
def test_as_whole_elements(name):
    """What moves, too, is an expression of elements, and of numbers by which these are shifted."""
    function, tensors = {**OPERATORS, **LAYOUTS}[name]
    sizes = {"n": 50, "k": 100} if "rim" in name else SIZES
    for kernel in kernels_of(function, *tensors):
        found = assert_described(kernel, sizes, elements=True)
        assert all(piece.value is not None for relayout in found for piece in relayout.pieces)


def test_a_side_that_is_not_taken_cuts_nothing():
    """Below 16, neither of the other conditions counts: that of the remainder would make pieces."""

    def chosen(x):
        def element(i):
            inner = te.if_then_else((i + 4) % 12 < 8, x[i], x[i + 1])
            return te.if_then_else(i < 16, x[i + 2], inner)

        return te.compute((16,), element)

    (relayout,) = read_relayouts(te_kernel(chosen, ((18,), "int8")), elements=True)
    (piece,) = relayout.pieces
    assert piece.digits == (Digit(16, 8, (8,)),)
    assert piece.inputs == ((0, 16),)


@pytest.mark.parametrize(
    ("function", "tensor"),
    [
        (lambda x: relax.op.tril(x, 0), ((12, 10), "float16")),
        (lambda x: relax.op.triu(x, -3), ((12, 10), "float32")),
        (lambda x: relax.op.triu(x, 1), (("n", "k"), "int8")),
        (lambda x: relax.op.permute_dims(relax.op.tril(x, 1), (0, 2, 1)), ((2, 6, 9), "int16")),
    ],
)
def test_at_a_diagonal_a_number_chooses(function, tensor):
    """Bits, whatever they are; rows that are whole, or empty, are boxes."""
    for kernel in kernels_of(function, tensor):
        found = assert_described(kernel, {"n": 7, "k": 11}, {"n": 1, "k": 4}, elements=True)
        (relayout,) = found
        assert all(str(piece.value.value.ty).startswith("uint") for piece in relayout.pieces)
        assert any(NUMBER in dict(piece.inputs) for piece in relayout.pieces)


CHOSEN = 'A: T.Buffer((8, 8), "int32"), B: T.Buffer((8, 8), "int32")'
NOT_SAFE = {
    "beyond the end": "T.if_then_else(i < j, A[i + 8 - j, j], 0)",
    "before the beginning": "T.if_then_else(i < j, 0, A[i - j, j])",
    "divided by what may be 0": "T.if_then_else(i < j, T.truncdiv(7, A[i, j]), 0)",
    "a call": "T.if_then_else(i < j, T.call_pure_extern('int32', 'f', A[i, j]), 0)",
}


@pytest.mark.parametrize("name", NOT_SAFE)
def test_what_may_not_be_computed_where_it_is_not_taken(name):
    body = f"for i, j in T.grid(8, 8): B[i, j] = {NOT_SAFE[name]}"
    kernel = from_source(HEAD.format(params=CHOSEN, body=body))
    assert read_relayouts(kernel, elements=True) == "chooses by an index in a way that is not read"


def test_numbers_are_digits_of_an_input():
    def nibbles(a):
        def element(i, j):
            by = (j % 2 * 4 + 1).astype("uint8")
            return (a[i, j // 2] >> by).astype("int32") + j.astype("int32")

        return te.compute((5, 12), element)

    (relayout,) = assert_described(te_kernel(nibbles, ((5, 6), "uint8")), {}, elements=True)
    (piece,) = relayout.pieces
    assert piece.inputs == ((0, 0), (NUMBER, 1), (NUMBER, 0))
    assert [digit.extent for digit in piece.digits] == [5, 6, 2]
    assert [digit.read for digit in piece.digits] == [(48, 0, 0), (8, 0, 2), (0, 4, 1)]
    assert relayout.inputs == (0,)


# -- what it looks like ----------------------------------------------------------------------------


def described(function, *tensors):
    (kernel,) = kernels_of(function, *tensors)
    (relayout,) = read_relayouts(kernel)
    return relayout.pieces


def test_a_transpose():
    (piece,) = described(relax.op.permute_dims, ((12, 10), "float16"))
    digits = Digit(10, 192, (16,)), Digit(12, 16, (160,)), Digit(16, 1, (1,))
    assert piece == Piece(digits, 0, ((0, 0),))


def test_what_keeps_its_place_is_one_run():
    (piece,) = described(lambda x: relax.op.reshape(x, (21, 20)), ((12, 35), "float16"))
    assert piece == Piece((Digit(12 * 35 * 16, 1, (1,)),), 0, ((0, 0),))


def test_a_transpose_of_any_size():
    (piece,) = described(relax.op.permute_dims, (("n", "m"), "float16"))
    outer, inner, bits = piece.digits
    n, m = inner.extent, outer.extent
    assert [str(size) for size in (n, m)] == ["n", "m"]
    assert (outer.into, inner.into) == (n * 16, 16)
    assert (outer.read, inner.read, bits) == ((16,), (m * 16,), Digit(16, 1, (1,)))


def test_nibbles():
    """Of FasterTransformer's column a code is a digit, and so is the order of eight."""
    to_gemm = layout.faster_transformer.to_mixed_gemm
    pieces = described(lambda x: to_gemm(x, arch=80, bits=4), ((192, 64), "int8"))
    assert {(piece.digits[-1], piece.flip) for piece in pieces} == {(Digit(4, 1, (1,)), 8)}
    assert len(pieces) == 1


def test_a_flip_is_a_pattern_of_a_byte():
    flipped = relax.const(np.array(0x8888, "uint16"))
    pieces = described(lambda x: relax.op.bitwise_xor(x, flipped), ((6, 4), "uint16"))
    assert pieces == (Piece((Digit(48, 8, (8,)), Digit(8, 1, (1,))), 0, ((0, 0),), flip=0x88),)


def test_a_pad_is_a_constant_piece():
    pieces = described(lambda x: relax.op.nn.pad(x, (0, 1), pad_value=1.0), ((7,), "float16"))
    assert pieces == (
        Piece((Digit(7 * 16, 1, (1,)),), 0, ((0, 0),)),
        Piece((Digit(16, 1),), 7 * 16, (), fill=0x3C00),
    )


# -- any size --------------------------------------------------------------------------------------


@st.composite
def moves_of_any_size(draw):
    """As `moves`, of digits whose number is known at run time: a kernel, and its indices of sizes."""
    names = {"n": tirx.Var("n", "int64"), "k": tirx.Var("k", "int64")}
    digits = draw(st.lists(st.sampled_from((2, 3, 4, "n", "k")), min_size=2, max_size=4))
    order = draw(st.permutations(range(len(digits))))
    backwards = [draw(st.booleans()) for _ in digits]
    cuts = [draw(st.booleans()) for _ in digits], [draw(st.booleans()) for _ in digits]

    def merged(sizes, at):
        shape = [tirx.const(1, "int64")]
        for size, cut in zip(sizes, at, strict=True):
            shape = [*shape, size] if cut else [*shape[:-1], shape[-1] * size]
        return shape

    extents = [names[d] if d in names else tirx.const(d, "int64") for d in digits]
    made = [extents[place] for place in order]
    given_shape, made_shape = merged(extents, cuts[0]), merged(made, cuts[1])

    def element(given, at):
        flat = at[0]
        for size, index in zip(made_shape[1:], at[1:], strict=True):
            flat = flat * size + index
        found = {}
        for place in reversed(order):
            digit, flat = flat % extents[place], flat // extents[place]
            found[place] = extents[place] - 1 - digit if backwards[place] else digit
        place = found[0]
        for at_digit in range(1, len(digits)):
            place = place * extents[at_digit] + found[at_digit]
        indices = []
        for size in reversed(given_shape):
            indices.insert(0, place % size)
            place = place // size
        return given(*indices)

    given = te.placeholder(given_shape, "int16", "given")
    result = te.compute(made_shape, lambda *at: element(given, at), "made")
    kernel = te.create_prim_func([given, result, *names.values()])

    def expected(array, sizes):
        shape = [sizes.get(digit, digit) for digit in digits]
        axes = [slice(None, None, -1) if turned else slice(None) for turned in backwards]
        return array.reshape(shape)[tuple(axes)].transpose(order)

    return kernel, lambda sizes: np.prod([sizes.get(d, d) for d in digits]), expected


@examples(60, fuzz=20000)
@given(moves_of_any_size())
def test_any_moves_of_any_size(drawn):
    kernel, count, expected = drawn
    found = read_relayouts(kernel)
    assert not isinstance(found, str), found
    for sizes in ({"n": 3, "k": 5}, {"n": 1, "k": 1}, {"n": 4, "k": 0}, {"n": 6, "k": 2}):
        array = np.arange(count(sizes), dtype="int16")
        made = apply(found[0], {0: array.tobytes()}, sizes)
        assert made == expected(array, sizes).tobytes()
