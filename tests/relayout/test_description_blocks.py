"""In which blocks an output may be computed over an input; and why others may not be."""

import numpy as np
import pytest
from described import apply, number
from hypothesis import given
from inplace_kernels import kernel_of, kernels_of, moves, numpy_dtype, te_kernel
from moving_kernels import LAYOUTS, OPERATORS, SIZES
from profiles import examples
from tvm import relax, te, tirx

from relax_inplace.relayout.description import Computed, Digit, Piece, Relayout
from relax_inplace.relayout.description_blocks import MOST_SCRATCH, Blocks, find_blocks, in_blocks
from relax_inplace.relayout.inlining import with_producers_inlined
from relax_inplace.relayout.read_description import read_relayouts

op = relax.op
MATRIX = ((64, 48), "float32")


def read(kernel, elements=True):
    return read_relayouts(with_producers_inlined(kernel), elements=elements)


def found(kernel):
    """(input, output, bytes read, bytes written) of each pair."""
    blocks = find_blocks(read(kernel), MOST_SCRATCH)
    return [(one.input, one.output, one.read, one.written) for one in blocks]


def in_place(relayout, blocks, data, sizes):
    """The output over its input: block after block, each from a copy of the one there."""
    memory = np.frombuffer(data, "uint8").copy()
    count = number(relayout.bits_of(relayout.output), sizes) // 8
    for at in range(-(-count // blocks.written)):
        here = memory.copy()
        if at * blocks.read > 0:
            here[: at * blocks.read] = 0xAA  # nothing before, and nothing behind is read
        here[(at + 1) * blocks.read :] = 0x55
        made = np.frombuffer(apply(relayout, {blocks.input: here.tobytes()}, sizes), "uint8")
        part = slice(at * blocks.written, (at + 1) * blocks.written)
        memory[: len(made)][part] = made[part]
    return memory[:count].tobytes()


# -- verdicts --------------------------------------------------------------------------------------

# The bytes of a block of the input, and of one of the output.
_STAYS = (1, 1)
_MOVING = (
    {
        "reshape": _STAYS,
        "reshape, an axis in two": _STAYS,
        "reshape, no axis in common": _STAYS,
        "flatten": _STAYS,
        "flip columns": (20, 20),
        "strided_slice": (60, 8),
        "layout_transform": (80, 80),
        "expand_dims": _STAYS,
        "squeeze": _STAYS,
        "bitwise_not": _STAYS,
        "bitwise_xor": _STAYS,
        "to a narrower": (4, 1),
        "any size: flatten": _STAYS,
        "any size: reshape, axes merged": _STAYS,
        "any size: reshape, other axes merged": _STAYS,
        "any size: reshape, an axis in two": _STAYS,
        "permute_dims (0, 1)": _STAYS,
        "permute_dims (0, 1, 2)": _STAYS,
        "permute_dims (0, 2, 1)": (40, 40),
        "permute_dims (0, 1, 2, 3)": _STAYS,
        "permute_dims (0, 1, 3, 2)": (24, 24),
        "permute_dims (0, 2, 1, 3)": (120, 120),
        "permute_dims (0, 2, 3, 1)": (120, 120),
        "permute_dims (0, 3, 1, 2)": (120, 120),
        "permute_dims (0, 3, 2, 1)": (120, 120),
        "pack": (4096, 4096),
        "unpack": (4096, 4096),
        "unpack, a rim": (4096, 3200),
        "swizzle": (1024, 1024),
        "unswizzle": (1536, 1536),
    }
    | {
        f"{way}interleave {kind}": (size, size)
        for way in ("", "de")
        for kind, size in {
            "q4_0 4x4": 360,
            "q4_0 4x8": 360,
            "q4_0 8x8": 720,
            "q8_0 4x4": 680,
            "q8_0 4x8": 680,
            "mxfp4 8x8": 680,
            "q4_K 8x8": 5760,
            "q6_K 8x4": 8400,
        }.items()
    }
    | {
        f"{size}{way}_mixed_gemm sm70 int{bits}": (4, 4)
        for size in ("", "any size: ")
        for way in ("to", "from")
        for bits in (4, 8)
    }
)


# Of codes, scales and zeros, whose kernels are in another order there and back.
_MARLIN = {
    f"{size}marlin {way} {bits}": sizes[1:] if size else sizes
    for size in ("", "any size: ")
    for way, bits, sizes in (
        *((way, 4, (1024, 128)) for way in ("from_gptq", "to_gptq")),
        *((way, 8, (2048, 128)) for way in ("from_gptq", "to_gptq")),
        *((way, 4, (1024, 128, 32)) for way in ("from_awq", "to_awq")),
        *((way, 8, (2048, 128, 64)) for way in ("from_awq", "to_awq")),
    )
}


@pytest.mark.parametrize("name", {**OPERATORS, **LAYOUTS})
def test_moves(name):
    """And carried out so, the output is what it is elsewhere."""
    function, tensors = {**OPERATORS, **LAYOUTS}[name]
    all_found = []
    for kernel in kernels_of(function, *tensors):
        relayouts = read(kernel, elements=False)
        blocks = find_blocks(relayouts, MOST_SCRATCH)
        found = [(one.read, one.written) for one in blocks]
        if name in _MARLIN:
            all_found += found
        else:
            assert found == ([_MOVING[name]] if name in _MOVING else [])
        for one in blocks:
            (relayout,) = relayouts
            sizes = {"n": 50, "k": 100} if "rim" in name else SIZES
            data = np.random.default_rng(0).bytes(number(relayout.bits_of(one.input), sizes) // 8)
            expected = apply(relayout, {one.input: data}, sizes)
            assert in_place(relayout, one, data, sizes) == expected
    assert sorted(all_found) == sorted((size, size) for size in _MARLIN.get(name, ()))


@examples(100)
@given(moves())
def test_what_is_found_is_so(drawn):
    """Blocks are claimed where each is computed from the one there, and left out nowhere."""
    before, after = numpy_dtype(drawn.dtype).itemsize, numpy_dtype(drawn.made).itemsize
    places, given_ = np.arange(len(drawn.sources)), int(np.prod(drawn.shape))

    def is_local(written, read):
        return bool((places // written == drawn.sources // read).all())

    blocks = find_blocks(read(drawn.kernel), MOST_SCRATCH)
    if given_ * before < len(places) * after:
        assert not blocks
    elif blocks:
        (one,) = blocks
        assert one.read >= one.written
        assert is_local(one.written // after, one.read // before)
    else:
        # Nor is there another one, of which the output has several.
        smaller = [
            (written, read)
            for written in range(1, len(places))
            if len(places) % written == 0
            for read in range(-(-written * after // before), given_ + 1)
            if is_local(written, read)
        ]
        assert not smaller
    if drawn.dtype == drawn.made:
        (relayout,) = read(drawn.kernel, elements=False)
        for one in find_blocks([relayout], MOST_SCRATCH):
            data = np.random.default_rng(0).bytes(number(relayout.bits_of(0), {}) // 8)
            assert in_place(relayout, one, data, {}) == apply(relayout, {0: data})


def constant(value, dtype="float32"):
    return relax.const(value, dtype)


IN_PLACE = {
    "scale": (lambda w: op.multiply(w, constant(2)), [MATRIX], [(0, 1, 4, 4)]),
    "sizes that are not known": (op.negative, [(("n", "m"), "float32")], [(0, 1, 4, 4)]),
    "one number": (op.negative, [((), "float32")], [(0, 1, 4, 4)]),
    "same width": (
        lambda w: op.astype(w, "bfloat16"),
        [((64, 48), "float16")],
        [(0, 1, 2, 2)],
    ),
    "narrower": (lambda w: op.astype(w, "float16"), [(("n", "m"), "float32")], [(0, 1, 4, 2)]),
    "first rows": (lambda w: op.strided_slice(w, [0], [0], [10]), [MATRIX], [(0, 1, 4, 4)]),
    "two": (op.add, [MATRIX, MATRIX], [(0, 2, 4, 4), (1, 2, 4, 4)]),
    "with a scale": (op.divide, [MATRIX, ((64, 1), "float32")], [(0, 2, 4, 4)]),
    "with rows of another": (
        lambda w, v: op.add(op.flip(v, 0), w),
        [MATRIX, MATRIX],
        [(1, 2, 4, 4)],
    ),
    "first columns": (
        lambda w: op.strided_slice(w, [1], [0], [32]),
        [MATRIX],
        [(0, 1, 192, 128)],
    ),
    "rows of any number": (lambda w: op.flip(w, 1), [(("n", 64), "float32")], [(0, 1, 256, 256)]),
    "small matrices": (
        lambda w: op.permute_dims(w, [0, 2, 1]),
        [(("n", 8, 6), "float32")],
        [(0, 1, 192, 192)],
    ),
    "groups of rows": (
        lambda w: op.reshape(op.permute_dims(op.reshape(w, (8, 2, 4, 48)), [0, 2, 1, 3]), (64, 48)),
        [MATRIX],
        [(0, 1, 1536, 1536)],
    ),
    "small matrices, narrower": (
        lambda w: op.astype(op.permute_dims(w, [0, 2, 1]), "int8"),
        [((5, 8, 6), "int32")],
        [(0, 1, 192, 48)],
    ),
    "none": (op.negative, [((0, 48), "float32")], []),
    "other rows": (lambda w: op.flip(w, 0), [MATRIX], []),
    "last rows": (lambda w: op.strided_slice(w, [0], [32], [64]), [MATRIX], []),
    "one row": (lambda w: op.flip(w, 1), [((1, 64), "float32")], []),  # not the whole
    "of two outputs": (lambda w: op.split(w, 2, 0), [MATRIX], []),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place(name):
    function, tensors, expected = IN_PLACE[name]
    assert found(kernel_of(function, *tensors)) == expected


LARGER = "makes larger elements, or more of them"
NO_BLOCKS = "has no blocks of up to 262144 bytes that are computed from those there"


@pytest.mark.parametrize(
    ("function", "tensor", "reason"),
    [
        (lambda w: op.astype(w, "float32"), ((64, 48), "float16"), LARGER),
        (lambda w: op.repeat(w, 2, 0), MATRIX, LARGER),
        (lambda w: op.nn.pad(w, (0, 4, 0, 0)), MATRIX, LARGER),
        (lambda w: op.broadcast_to(w, (64, 48)), ((1, 48), "float32"), LARGER),
        (op.permute_dims, MATRIX, NO_BLOCKS),
        (op.permute_dims, (("n", "m"), "float32"), NO_BLOCKS),
    ],
)
def test_why_not(function, tensor, reason):
    (relayout,) = read(kernel_of(function, tensor))
    assert in_blocks(relayout, 0, MOST_SCRATCH) == reason


def test_blocks_are_at_most_what_scratch_holds():
    (relayout,) = read(kernel_of(lambda w: op.flip(w, 1), MATRIX))
    assert in_blocks(relayout, 0, 192) == Blocks(0, 1, 192, 192)
    assert isinstance(in_blocks(relayout, 0, 191), str)


def test_what_a_small_block_is_computed_from_fits_too():
    def first_columns_backwards(a):
        return te.compute((4, 8), lambda i, j: a[i, 7 - j])

    columns = MOST_SCRATCH
    kernel = te_kernel(first_columns_backwards, ((4, columns), "int8"))
    assert found(kernel) == [(0, 1, columns, 8)]
    assert found(te_kernel(first_columns_backwards, ((4, columns + 1), "int8"))) == []


def test_wider_elements_of_some():
    """The result is smaller than the weight, but not each of its elements."""

    def kernel(a):
        return te.compute((8,), lambda i: a[i].astype("int32"))

    assert found(te_kernel(kernel, ((36,), "int8"))) == []


def test_a_choice_is_a_condition():
    # Read where it is chosen alone: each side is of the block there.
    def kernel(a):
        def element(i, j):
            return te.if_then_else(j < 3, a[i, j + 3], a[i, j - 3])

        return te.compute((4, 6), element)

    assert found(te_kernel(kernel, ((4, 6), "int32"))) == [(0, 1, 24, 24)]

    def over_the_edge(a):
        def element(i, j):
            return te.if_then_else(i < 3, a[i + 1, j], a[i - 3, j])

        return te.compute((4, 6), element)

    assert found(te_kernel(over_the_edge, ((4, 6), "int32"))) == []


def test_one_element_from_elsewhere():
    """All others are read where they are written."""

    def kernel(a):
        def element(i, j):
            return te.if_then_else(tirx.all(i == 63, j == 47), a[0, 0], a[i, j])

        return te.compute((64, 48), element)

    (relayout,) = read(te_kernel(kernel, MATRIX))
    assert in_blocks(relayout, 0, MOST_SCRATCH) == NO_BLOCKS


def test_same_indices_in_other_shapes():
    """``a[1, j]`` has another number than the element at (1, j)."""

    def first_columns(a):
        return te.compute((1000, 4), lambda i, j: te.if_then_else(i < 2, a[i, j], 0))

    assert found(te_kernel(first_columns, ((1000, 8), "int32"))) == [(0, 1, 32, 16)]


def test_a_choice_by_data_is_none():
    def by_data(a, chosen):
        def element(i, j):
            return te.if_then_else(chosen[i, j] > 0, a[3 - i, j], a[i, j])

        return te.compute((4, 6), element)

    assert found(te_kernel(by_data, *[((4, 6), "int32")] * 2)) == [(1, 2, 4, 4)]

    def by_other_rows(a):
        return te.compute((4, 6), lambda i, j: te.if_then_else(a[3 - i, j] > 0, a[i, j], 0))

    assert found(te_kernel(by_other_rows, ((4, 6), "int32"))) == []


def test_sizes_that_blocks_do_not_divide():
    """Rows are swapped in groups of 4; in a last one of 2 they stay."""
    n = te.var("n", "int64")

    def kernel(a):
        def element(i, j):
            return te.if_then_else(i < 4 * n, a[i // 4 * 4 + 3 - i % 4, j], a[i, j])

        return te.compute((4 * n + 2, 6), element)

    assert found(te_kernel(kernel, ((4 * n + 2, 6), "int32"))) == [(0, 1, 96, 96)]


def test_each_output_over_its_own_input():
    def kernel(a, b):
        return (
            te.compute((4, 6), lambda i, j: a[i, 5 - j], "first"),
            te.compute((4, 6), lambda i, j: b[i, j] + b[i, j], "second"),
        )

    assert found(te_kernel(kernel, *[((4, 6), "int32")] * 2)) == [(0, 2, 24, 24), (1, 3, 4, 4)]

    def shared(a, b):
        return (
            te.compute((4, 6), lambda i, j: a[i, j] + b[i, j], "first"),
            te.compute((4, 6), lambda i, j: b[i, j] + b[i, j], "second"),
        )

    assert found(te_kernel(shared, *[((4, 6), "int32")] * 2)) == [(0, 2, 4, 4)]


def test_what_is_read_stays_in_a_block():
    def rows(step):
        digits = Digit(6, 24, (32,)), Digit(3, 8, (step,)), Digit(8, 1, (1,))
        return Relayout(1, (Piece(digits, 0, ((0, 0),)),), ((0, 6 * 4 * 8), (1, 6 * 3 * 8)))

    assert in_blocks(rows(8), 0, MOST_SCRATCH) == Blocks(0, 1, 4, 3)
    assert isinstance(in_blocks(rows(16), 0, MOST_SCRATCH), str)  # goes on in the next one


def test_all_bits_of_an_element_are_read():
    def every_second(base):
        x = tirx.Var("x", "int16")
        computed = Computed(x * 2, (x,), 16)
        piece = Piece((Digit(6, 16, (32,)),), 0, ((0, base),), value=computed)
        return Relayout(1, (piece,), ((0, 6 * 32), (1, 6 * 16)))

    assert in_blocks(every_second(16), 0, MOST_SCRATCH) == Blocks(0, 1, 4, 2)
    assert isinstance(in_blocks(every_second(24), 0, MOST_SCRATCH), str)


def test_a_neighbour_is_outside():
    def shifted(a):
        return te.compute((15,), lambda i: a[i + 1])

    assert found(te_kernel(shifted, ((16,), "int8"))) == []
