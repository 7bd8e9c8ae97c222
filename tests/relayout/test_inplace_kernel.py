"""Which kernels may write over their input, in which blocks; and why others may not."""

import numpy as np
import pytest
from hypothesis import given
from inplace_kernels import kernel_of, kernels_of, moves, numpy_dtype, te_kernel
from tvm import relax, te, tirx
from tvm.relax import op
from tvm.script import from_source

from relax_inplace import layout
from relax_inplace.relayout.inlining import with_producers_inlined
from relax_inplace.relayout.inplace_kernel import MOST_SCRATCH, find_inplace_pairs


def found(kernel):
    """(input, output, elements read, elements written) of each pair; or the reason."""
    pairs = find_inplace_pairs(with_producers_inlined(kernel))
    if isinstance(pairs, str):
        return pairs
    return [(p.input, p.output, p.read.elements, p.written.elements) for p in pairs]


def number(value, dtype="float32"):
    return relax.const(value, dtype)


SAME = [(0, 1, 1, 1)]
MATRIX = ((64, 48), "float32")

IN_PLACE = {
    "scale": (lambda w: op.multiply(w, number(2)), [MATRIX], SAME),
    "sizes that are not known": (lambda w: op.negative(w), [(("n", "m"), "float32")], SAME),
    "bits": (lambda w: op.bitwise_xor(w, number(136, "uint8")), [((64, 48), "uint8")], SAME),
    "same width": (lambda w: op.astype(w, "bfloat16"), [((64, 48), "float16")], SAME),
    "narrower": (lambda w: op.astype(w, "float16"), [(("n", "m"), "float32")], SAME),
    "another shape": (lambda w: op.reshape(w, (6, 8, 64)), [MATRIX], SAME),
    "first rows": (lambda w: op.strided_slice(w, [0], [0], [10]), [MATRIX], SAME),
    "two": (lambda w, v: op.add(w, v), [MATRIX, MATRIX], [(0, 2, 1, 1), (1, 2, 1, 1)]),
    "with a scale": (lambda w, s: op.divide(w, s), [MATRIX, ((64, 1), "float32")], [(0, 2, 1, 1)]),
    "first columns": (lambda w: op.strided_slice(w, [1], [0], [32]), [MATRIX], [(0, 1, 48, 32)]),
    "backwards": (lambda w: op.flip(w, 1), [MATRIX], [(0, 1, 48, 48)]),
    "small matrices": (
        lambda w: op.permute_dims(w, [0, 2, 1]),
        [(("n", 8, 6), "float32")],
        [(0, 1, 48, 48)],
    ),
    "groups of rows": (
        lambda w: op.reshape(op.permute_dims(op.reshape(w, (8, 2, 4, 48)), [0, 2, 1, 3]), (64, 48)),
        [MATRIX],
        [(0, 1, 384, 384)],
    ),
    "small matrices, narrower": (
        lambda w: op.astype(op.permute_dims(w, [0, 2, 1]), "int8"),
        [((5, 8, 6), "int32")],
        [(0, 1, 48, 48)],
    ),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place(name):
    function, tensors, expected = IN_PLACE[name]
    assert found(kernel_of(function, *tensors)) == expected


NO_BLOCKS = "has no blocks of up to 256 KB that are computed from those there"

TOO_LARGE = "makes larger elements, or more of them"

NOT_IN_PLACE = {
    "wider": (lambda w: op.astype(w, "float32"), [((64, 48), "float16")], TOO_LARGE),
    "more": (lambda w: op.nn.pad(w, (0, 4, 0, 0)), [MATRIX], TOO_LARGE),
    "two in one": (lambda w, v: op.concat([w, v], 0), [MATRIX, MATRIX], TOO_LARGE),
    "none": (op.negative, [((0, 48), "float32")], "makes no elements"),
    "transpose": (op.permute_dims, [MATRIX], NO_BLOCKS),
    "of no size": (op.permute_dims, [(("n", "m"), "float32")], NO_BLOCKS),
    "other rows": (lambda w: op.flip(w, 0), [MATRIX], NO_BLOCKS),
    "last rows": (lambda w: op.strided_slice(w, [0], [32], [64]), [MATRIX], NO_BLOCKS),
    "one for all": (lambda w: op.broadcast_to(w, (64, 48)), [((1, 48), "float32")], TOO_LARGE),
    "by index": (
        lambda w, i: op.take(w, i, 0),
        [MATRIX, ((64,), "int32")],
        "reads its input at places that data give",
    ),
    "of two outputs": (
        lambda w: (lambda parts: (parts[0], parts[1]))(op.split(w, 2, 0)),
        [MATRIX],
        "computes two outputs from one input",
    ),
}


@pytest.mark.parametrize("name", NOT_IN_PLACE)
def test_not_in_place(name):
    function, tensors, reason = NOT_IN_PLACE[name]
    assert found(kernel_of(function, *tensors)) == reason


def test_blocks_are_at_most_what_scratch_holds():
    rows = MOST_SCRATCH // 4
    assert found(kernel_of(lambda w: op.flip(w, 1), ((4, rows), "float32"))) == [(0, 1, rows, rows)]
    assert found(kernel_of(lambda w: op.flip(w, 1), ((4, rows + 1), "float32"))) == NO_BLOCKS


def test_what_a_small_block_is_computed_from_fits_too():
    def first_columns_backwards(a):
        return te.compute((4, 8), lambda i, j: a[i, 7 - j])

    columns = MOST_SCRATCH
    kernel = te_kernel(first_columns_backwards, ((4, columns), "int8"))
    assert found(kernel) == [(0, 1, columns, 8)]
    kernel = te_kernel(first_columns_backwards, ((4, columns + 1), "int8"))
    assert found(kernel) == NO_BLOCKS


def test_a_block_is_not_the_whole():
    assert found(kernel_of(lambda w: op.flip(w, 1), ((1, 64), "float32"))) == NO_BLOCKS
    assert found(kernel_of(lambda w: op.flip(w, 1), (("n", 64), "float32"))) == [(0, 1, 64, 64)]


def test_wider_elements_of_some():
    """The result is smaller than the weight, but not each of its elements."""

    def kernel(a):
        return te.compute((8,), lambda i: a[i].astype("int32"))

    assert found(te_kernel(kernel, ((36,), "int8"))) == NO_BLOCKS


def test_what_reads_nothing_has_no_input():
    assert found(te_kernel(lambda: te.compute((4,), lambda i: i))) == "reads no tensor"


def test_sums_are_not_in_place():
    (kernel,) = kernels_of(lambda w: op.sum(w, axis=1), MATRIX)
    assert "independent elements" in find_inplace_pairs(kernel)


def test_a_choice_is_a_condition():
    # Read where it is chosen alone: each side is of the block there.
    def kernel(a):
        def element(i, j):
            return te.if_then_else(j < 3, a[i, j + 3], a[i, j - 3])

        return te.compute((4, 6), element)

    assert found(te_kernel(kernel, ((4, 6), "int32"))) == [(0, 1, 6, 6)]

    def over_the_edge(a):
        def element(i, j):
            return te.if_then_else(i < 3, a[i + 1, j], a[i - 3, j])

        return te.compute((4, 6), element)

    assert found(te_kernel(over_the_edge, ((4, 6), "int32"))) == NO_BLOCKS


def test_one_element_from_elsewhere():
    """Random points do not find it; the proof does."""
    a = te.placeholder((64, 48), "float32")
    last = te.compute(
        (64, 48), lambda i, j: te.if_then_else(tirx.all(i == 63, j == 47), a[0, 0], a[i, j])
    )
    assert "no blocks" in find_inplace_pairs(te.create_prim_func([a, last]))


def test_same_indices_in_other_shapes():
    """Random points do not find that ``a[1, j]`` has another number than the element at (1, j)."""

    def first_columns(a):
        return te.compute((1000, 4), lambda i, j: te.if_then_else(i < 2, a[i, j], 0))

    assert found(te_kernel(first_columns, ((1000, 8), "int32"))) == [(0, 1, 8, 4)]


def test_a_choice_by_data_is_none():
    def by_data(a, chosen):
        def element(i, j):
            return te.if_then_else(chosen[i, j] > 0, a[3 - i, j], a[i, j])

        return te.compute((4, 6), element)

    assert found(te_kernel(by_data, *[((4, 6), "int32")] * 2)) == [(1, 2, 1, 1)]

    def by_other_rows(a):
        return te.compute((4, 6), lambda i, j: te.if_then_else(a[3 - i, j] > 0, a[i, j], 0))

    assert found(te_kernel(by_other_rows, ((4, 6), "int32"))) == NO_BLOCKS


def test_sizes_that_blocks_do_not_divide():
    """Rows are swapped in groups of 4, but for a last one of 2."""
    n = te.var("n", "int64")

    def kernel(a):
        def element(i, j):
            return te.if_then_else(i < 4 * n, a[i // 4 * 4 + 3 - i % 4, j], a[i, j])

        return te.compute((4 * n + 2, 6), element)

    assert found(te_kernel(kernel, ((4 * n + 2, 6), "int32"))) == NO_BLOCKS


KERNEL = """
@T.prim_func(private=True, s_tir=True)
def kernel(A: T.Buffer((8, 6), "DTYPE"STRIDES), B: T.Buffer((8, 6), "DTYPE")):
"""
NEST = """
    for i, j in T.grid(8, 6):
        with T.sblock("block"):
            v, w = T.axis.remap("SS", [i, j])
            B[v, w] = A[v, w]
"""


@pytest.mark.parametrize(
    ("dtype", "strides", "nests", "reason"),
    [
        ("int32", ", strides=(1, 8)", NEST, "has a buffer that is not row-major elements of whole"),
        ("int4", "", NEST, "has a buffer that is not row-major elements of whole bytes"),
        ("int32", "", NEST + NEST, "has intermediate buffers"),
    ],
)
def test_other_kernels(dtype, strides, nests, reason):
    kernel = from_source(KERNEL.replace("DTYPE", dtype).replace("STRIDES", strides) + nests)
    assert find_inplace_pairs(kernel).startswith(reason)


def test_each_output_over_its_own_input():
    def kernel(a, b):
        return (
            te.compute((4, 6), lambda i, j: a[i, 5 - j], "first"),
            te.compute((4, 6), lambda i, j: b[i, j] + b[i, j], "second"),
        )

    assert found(te_kernel(kernel, ((4, 6), "int32"), ((4, 6), "int32"))) == [
        (1, 3, 1, 1),
        (0, 2, 6, 6),
    ]

    def shared(a, b):
        return (
            te.compute((4, 6), lambda i, j: a[i, j] + b[i, j], "first"),
            te.compute((4, 6), lambda i, j: b[i, j] + b[i, j], "second"),
        )

    assert found(te_kernel(shared, ((4, 6), "int32"), ((4, 6), "int32"))) == [(0, 2, 1, 1)]


LAYOUTS = {
    "ggml 8x8": (lambda w: layout.ggml.interleave(w, rows=8, bytes=8), ((64, 36), "uint8"), 288),
    "ggml 4x4": (lambda w: layout.ggml.interleave(w, rows=4, bytes=4), ((64, 36), "uint8"), 144),
    "ggml 4x8": (
        lambda w: layout.ggml.interleave(w, block="q8_0", rows=4, bytes=8),
        (("n * 4", 68), "uint8"),
        272,
    ),
    "from ggml": (
        lambda w: layout.ggml.deinterleave(w, rows=8, bytes=8),
        ((8, 2, 144), "uint8"),
        288,
    ),
    "pack": (lambda w: layout.tiles.pack(w, 4, 8), ((64, 32), "float16"), 128),
    "unpack": (lambda w: layout.tiles.unpack(w, (64, 32)), ((16, 4, 4, 8), "float16"), 128),
    "pack with a rim": (lambda w: layout.tiles.pack(w, 4, 8), ((64, 30), "float16"), None),
    "vnni": (lambda w: layout.tiles.pack_vnni(w), ((64, 32), "int8"), None),
    "mixed gemm": (
        lambda w: layout.faster_transformer.to_mixed_gemm(w, bits=4, arch=80),
        ((128, 64), "int8"),
        None,
    ),
    "from mixed gemm": (
        lambda w: layout.faster_transformer.from_mixed_gemm(w, bits=4, arch=80),
        ((128, 64), "int8"),
        None,
    ),
    "awq": (lambda w: layout.awq.codes_to_groups(w, "int32"), ((64, 8), "int32"), None),
    "from awq": (lambda w: layout.awq.codes_from_groups(w, "int32"), ((64, 8), "uint32"), None),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(name):
    function, tensor, elements = LAYOUTS[name]
    kernel = kernel_of(function, tensor)
    result = found(kernel)
    if elements is None:
        assert isinstance(result, str)
    else:
        assert result == [(0, len(kernel.params) - 1, elements, elements)]


@given(moves())
def test_what_is_found_is_so(drawn):
    """Blocks are claimed only where each is computed from the one there, of at least its size."""
    before, after = numpy_dtype(drawn.dtype).itemsize, numpy_dtype(drawn.made).itemsize
    pairs = find_inplace_pairs(drawn.kernel)
    places, size = np.arange(len(drawn.sources)), int(np.prod(drawn.shape))

    def is_local(written, read):
        return bool((places // written == drawn.sources // read).all())

    if isinstance(pairs, str):
        # None of the same size is left out that is cut along the first axis.
        rows = int(drawn.kernel.params[1].ty.shape[0])
        if before >= after and len(places) == size and rows > 1 and size % rows == 0:
            length = size // rows
            first = drawn.shape[0]
            if (size // first) % length == 0 or length % (size // first) == 0:
                assert not is_local(length, length)
        return
    (pair,) = pairs
    assert (pair.bytes_read, pair.bytes_written) == (
        pair.read.elements * before,
        pair.written.elements * after,
    )
    assert pair.bytes_read >= pair.bytes_written and size * before >= len(places) * after
    assert is_local(pair.written.elements, pair.read.elements)
    assert pair.same_position or pair.written.elements < len(places) or len(places) == 1
