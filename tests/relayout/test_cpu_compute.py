"""Kernels that compute, over their input where they may: what they are, and every bit of them."""

import numpy as np
import pytest
import tvm
import tvm_ffi
from hypothesis import given
from inplace_kernels import (
    TARGET,
    assert_right,
    built,
    kernel_of,
    moves,
    numpy_dtype,
    random_array,
    run,
    te_kernel,
)
from profiles import examples
from tvm import relax, te, tirx
from tvm.relax import op
from tvm.script import from_source

from relax_inplace import layout
from relax_inplace.relayout import cpu_compute
from relax_inplace.relayout.cpu_compute import schedule_cpu_compute
from relax_inplace.relayout.description import Computed, Digit, Piece, Relayout
from relax_inplace.relayout.description_blocks import MOST_SCRATCH, find_blocks
from relax_inplace.relayout.host_move import schedule_host_move
from relax_inplace.relayout.read_description import read_relayouts


def scheduled_pairs(scheduled):
    return [list(pair) for pair in scheduled.attrs.get("relax_inplace.inplace", [])]


def test_elements_in_their_place():
    """Vectors; no scratch."""
    scheduled = schedule_cpu_compute(
        te_kernel(
            lambda a: te.compute((2, 8192), lambda i, j: a[i, j] * 3, "tripled"),
            ((2, 8192), "int32"),
        ),
        TARGET,
    )
    expected = from_source(
        """
@T.prim_func(s_tir=True)
def main(a0: T.Buffer((2, 8192), "int32"), tripled: T.Buffer((2, 8192), "int32")):
    with T.sblock("root"):
        a0_int32 = T.decl_buffer((T.int64(16384),), "int32", data=a0.data, layout=None)
        tripled_int32 = T.decl_buffer((T.int64(16384),), "int32", data=tripled.data, layout=None)
        for task in T.parallel(T.int64(2)):
            for vector in range(T.int64(512)):
                for lane in T.vectorized(T.int64(16)):
                    tripled_int32[task * T.int64(8192) + vector * T.int64(16) + lane] = (
                        a0_int32[task * T.int64(8192) + vector * T.int64(16) + lane] * 3
                    )
"""
    )
    assert scheduled_pairs(scheduled) == [[0, 1]]
    assert scheduled.attrs["tirx.noalias"] == 0 and scheduled.attrs["tirx.is_scheduled"] == 1
    body, wanted = (function.body.block.body for function in (scheduled, expected))
    assert tvm_ffi.structural_equal(body, wanted, map_free_vars=True)


def test_blocks_through_scratch():
    """A block is read before it is written; no choice and no division is left."""
    scheduled = schedule_cpu_compute(
        te_kernel(
            lambda a: te.compute(
                (4, 128),
                lambda i, j: te.if_then_else(
                    j < 64, a[i, j + 64], a[i, j // 8 * 8 - 64 + 7 - j % 8]
                ),
                "moved",
            ),
            ((4, 128), "uint8"),
        ),
        TARGET,
    )
    text = scheduled.script()
    assert "if_then_else" not in text and "//" not in text and "%" not in text
    assert "T.Div" not in text
    assert text.count("T.parallel") == 1 and "scratch = T.sblock_alloc_buffer" in text
    assert scheduled.attrs["tirx.noalias"] == 0 and scheduled.attrs["tirx.is_scheduled"] == 1


def number(value, dtype="float32"):
    return relax.const(value, dtype)


def slope(w, s):
    return op.astype(op.multiply(w, s), "int8")


def rope(w):
    """The halves of each row exchanged, and the sign of one turned."""

    def kernel(w):
        def element(i, j):
            return te.if_then_else(j < 48, -w[i, j + 48], w[i, j - 48])

        return te.compute(w.shape, element, "turned")

    return relax.BlockBuilder.current().call_te(kernel, w)


MATRIX = ((61, 131), "float32")
LARGE = ((200, 1001), "float32")  # several blocks of several phases

KERNELS = {
    "scale": (lambda w: op.multiply(w, number(2)), [MATRIX], {}),
    "scale, large": (lambda w: op.multiply(w, number(2)), [LARGE], {}),
    "scale, any size": (lambda w: op.multiply(w, number(2)), [(("n", "m"), "float32")], (61, 131)),
    "two": (lambda w, v: op.subtract(w, v), [MATRIX, MATRIX], {}),
    "bias": (lambda w, v: op.add(w, v), [MATRIX, ((131,), "float32")], {}),
    "scale of rows": (
        lambda w, v: op.multiply(w, v),
        [(("n", "m"), "float32"), (("n", 1), "float32")],
        (61, 131),
    ),
    "scale of groups": (
        lambda w, v: op.reshape(op.multiply(op.reshape(w, (61, 4, 32)), v), (61, 128)),
        [((61, 128), "float32"), ((61, 4, 1), "float32")],
        {},
    ),
    "half": (lambda w: op.astype(w, "float16"), [LARGE], {}),
    "half, any size": (lambda w: op.astype(w, "float16"), [(("n", "m"), "float32")], (200, 1001)),
    "half, none": (lambda w: op.astype(w, "float16"), [(("n", "m"), "float32")], (0, 5)),
    "half, small": (lambda w: op.astype(w, "float16"), [(("n", "m"), "float32")], (3, 5)),
    "bfloat16": (lambda w: op.astype(w, "bfloat16"), [LARGE], {}),
    "a quarter": (lambda w: op.astype(w, "int8"), [((200, 1001), "int32")], {}),
    "a quarter, scaled": (slope, [LARGE, ((200, 1), "float32")], {}),
    "float8": (lambda w: op.astype(w, "float8_e4m3fn"), [((61, 131), "float16")], {}),
    "same width": (lambda w: op.astype(w, "bfloat16"), [((61, 131), "float16")], {}),
    "narrower small matrices": (
        lambda w: op.astype(op.permute_dims(w, [0, 2, 1]), "float16"),
        [((3000, 8, 6), "float32")],
        {},
    ),
    "one number": (lambda w: op.expand_dims(w, 0), [((), "float16")], {}),
    "first columns": (lambda w: op.strided_slice(w, [1], [0], [100]), [MATRIX], {}),
    "small matrices": (lambda w: op.permute_dims(w, [0, 2, 1]), [(("n", 40, 35), "uint8")], (7, 0)),
    "bfloat16 moved": (lambda w: op.permute_dims(w, [0, 2, 1]), [((50, 24, 17), "bfloat16")], {}),
    "float8 moved": (lambda w: op.flip(w, 1), [((50, 65), "float8_e4m3fn")], {}),
    "bool moved": (lambda w: op.flip(w, 1), [((50, 65), "bool")], {}),
    "ggml 8x8": (lambda w: layout.ggml.interleave(w, rows=8, bytes=8), [((64, 36), "uint8")], {}),
    "ggml 4x4": (
        lambda w: layout.ggml.interleave(w, rows=4, bytes=4),
        [(("n * 4", 36), "uint8")],
        (5, 0),
    ),
    "ggml q8_0": (
        lambda w: layout.ggml.interleave(w, block="q8_0", rows=4, bytes=8),
        [((64, 68), "uint8")],
        {},
    ),
    "from ggml": (
        lambda w: layout.ggml.deinterleave(w, rows=8, bytes=8),
        [((8, 2, 144), "uint8")],
        {},
    ),
    "ggml q4_K": (
        lambda w: layout.ggml.interleave(w, block="q4_K", rows=8, bytes=8),
        [(("n * 8", 5 * 144), "uint8")],
        (6, 0),
    ),
    "from ggml q4_K": (
        lambda w: layout.ggml.deinterleave(w, block="q4_K", rows=8, bytes=4),
        [((6, 5, 8 * 144), "uint8")],
        {},
    ),
    "ggml q5_K": (
        lambda w: layout.ggml.interleave(w, block="q5_K", rows=8, bytes=4),
        [((48, 5 * 176), "uint8")],
        {},
    ),
    "to volta, int4": (
        lambda w: layout.faster_transformer.to_mixed_gemm(w, arch=70),
        [((70, 64), "int8")],
        {},
    ),
    "from volta, int4": (
        lambda w: layout.faster_transformer.from_mixed_gemm(w, arch=70),
        [((70, 64), "int8")],
        {},
    ),
    "from volta, int8": (
        lambda w: layout.faster_transformer.from_mixed_gemm(w, arch=70, bits=8),
        [((70, 64), "int8")],
        {},
    ),
    "half, columns scaled": (
        lambda w, s: op.astype(op.multiply(w, s), "float16"),
        [(("n", "m"), "float32"), (("m",), "float32")],
        (3, 40001),
    ),
    "half, rows scaled": (
        lambda w, s: op.astype(op.multiply(w, s), "float16"),
        [(("n", 333), "float32"), (("n", 1), "float32")],
        (250, 0),
    ),
    "half, of one number": (lambda w: op.astype(w, "float16"), [((), "float32")], {}),
    "of one number": (lambda w: op.multiply(w, number(2)), [((), "float32")], {}),
    "added to a transposed one": (
        lambda w, v: op.add(op.permute_dims(w), v),
        [((131, 61), "float32"), MATRIX],
        {},
    ),
    "added to one transposed in tiles": (
        lambda w, v: op.add(op.permute_dims(w), v),
        [((128, 64), "float32"), ((64, 128), "float32")],
        {},
    ),
    "some columns, scaled": (
        lambda w: op.multiply(op.strided_slice(w, [1], [2], [101]), number(2)),
        [((300, 131), "float32")],
        {},
    ),
    "choices by index": (lambda w: rope(w), [((61, 96), "float32")], {}),
    "triangle": (lambda w: op.triu(w, 2), [((61, 96), "float16")], {}),
    "triangle, any size": (lambda w: op.tril(w, 0), [(("n", "m"), "int8")], (40, 131)),
    "triangles of bfloat16": (lambda w: op.tril(w, -1), [((3, 20, 35), "bfloat16")], {}),
    "triangle of float8": (lambda w: op.tril(w, 1), [((20, 35), "float8_e4m3fn")], {}),
    "triangle, scaled": (
        lambda w: op.multiply(op.tril(w, 3), number(2)),
        [((61, 96), "float32")],
        {},
    ),
    "pack": (lambda w: layout.tiles.pack(w, 4, 8), [((64, 32), "float16")], {}),
    "unpack": (lambda w: layout.tiles.unpack(w, (64, 32)), [((16, 4, 4, 8), "bfloat16")], {}),
}


@pytest.mark.parametrize("name", KERNELS)
def test_numbers(name):
    """The same bits as the kernel that TVM leaves unscheduled."""
    function, tensors, sizes = KERNELS[name]
    sizes = dict(zip("nm", sizes, strict=True)) if sizes else {}
    kernel = kernel_of(function, *tensors)
    generator = np.random.default_rng(0)
    arrays = []
    for shape, dtype in tensors:
        real = [size if isinstance(size, int) else eval(size, {}, sizes) for size in shape]
        arrays.append(random_array(generator, real, dtype))
        if dtype == "bool":
            arrays[-1] = arrays[-1].view("uint8") % 2 == 1
    expected = run(built(kernel), kernel, arrays, sizes)
    assert_right(schedule_cpu_compute(kernel, TARGET), arrays, expected, sizes)


@pytest.mark.parametrize("name", ["ggml q4_K", "from ggml q4_K", "ggml q5_K"])
def test_fields_of_6_bits_are_computed_in_place(name):
    """Bytes are put together of parts of others: no runs of bytes move."""
    function, tensors, _ = KERNELS[name]
    kernel = kernel_of(function, *tensors)
    assert schedule_host_move(kernel, TARGET) is None
    assert scheduled_pairs(schedule_cpu_compute(kernel, TARGET)) == [[0, 1]]


def test_a_triangle_is_vectors_in_place():
    """Of bits: neither a comparison nor a NaN is computed for each."""
    scheduled = schedule_cpu_compute(kernel_of(op.triu, ((64, 96), "float16")), TARGET)
    assert scheduled_pairs(scheduled) == [[0, 1]]
    script = scheduled.script()
    assert "T.vectorized" in script and "if_then_else" not in script
    assert "T.Select(" in script and "T.float16" not in script


def backwards(function):
    """The kernel with the last block of each parallel loop first: any order has to be right."""

    def turned(loop):
        if loop.kind != tirx.ForKind.PARALLEL:
            return loop
        last = loop.extent - 1 - loop.loop_var
        body = tvm_ffi.structural_map(
            loop.body, (relax.Var, lambda var: last if var.same_as(loop.loop_var) else var)
        )
        return tirx.For(loop.loop_var, loop.min, loop.extent, tirx.ForKind.SERIAL, body)

    body = tvm_ffi.structural_map(function.body, (tirx.For, turned))
    return tirx.PrimFunc(function.params, body, function.ret_type, function.attrs)


ANY_ORDER = {
    "narrower": (lambda w: op.astype(w, "float16"), ("float32", (400, 1001))),
    "much narrower": (lambda w: op.astype(w, "int8"), ("int32", (400, 1001))),
    "narrower matrices": (
        lambda w: op.astype(op.permute_dims(w, [0, 2, 1]), "float16"),
        ("float32", (9000, 8, 6)),
    ),
    "some columns": (lambda w: op.strided_slice(w, [1], [0], [30]), ("float32", (2000, 40))),
    "matrices": (lambda w: op.permute_dims(w, [0, 2, 1]), ("float16", (900, 8, 6))),
}


@pytest.mark.parametrize("name", ANY_ORDER)
def test_parallel_blocks_in_any_order(name):
    function, (dtype, shape) = ANY_ORDER[name]
    kernel = kernel_of(function, (shape, dtype))
    array = random_array(np.random.default_rng(0), shape, dtype)
    expected = run(built(kernel), kernel, [array])
    assert_right(backwards(schedule_cpu_compute(kernel, TARGET)), [array], expected)


@pytest.mark.parametrize("rows", [202, 5002])
def test_a_last_block_that_is_not_whole(rows):
    """Rows in groups of 4 are turned round, 2 stay: the copy of these ends where the weight does."""

    def kernel(a):
        def element(i, j):
            return te.if_then_else(i < rows - 2, a[i // 4 * 4 + 3 - i % 4, j], a[i, j]) * 3

        return te.compute((rows, 100), element, "turned")

    kernel = te_kernel(kernel, ((rows, 100), "int32"))
    scheduled = schedule_cpu_compute(kernel, TARGET)
    assert scheduled_pairs(scheduled) == [[0, 1]]
    assert "T.min" in scheduled.script()
    array = random_array(np.random.default_rng(0), (rows, 100), "int32")
    assert_right(scheduled, [array], run(built(kernel), kernel, [array]))


def test_pieces_that_share_blocks_otherwise(monkeypatch):
    """Half of a row is of a piece for all rows, half of one for every second: as none is read."""
    x = tirx.Var("x", "int32")
    tripled = Computed(x * 3, (x,), 32)
    row, item = 256, 32

    def piece(rows, step, into, read, direction):
        digits = Digit(rows, row * step, (row * step,)), Digit(4, item, (item * direction,))
        return Piece(digits, into, ((0, read),), value=tripled)

    pieces = (
        piece(64, 1, 0, 3 * item, -1),
        piece(32, 2, 4 * item, 0, 1),  # what the first one has written over
        piece(32, 2, row + 4 * item, row + 4 * item, 1),
    )
    mixed = Relayout(1, pieces, ((0, 64 * row), (1, 64 * row)))
    monkeypatch.setattr(cpu_compute, "read_relayouts", lambda *_, **__: [mixed])
    kernel = te_kernel(lambda a: te.compute((64, 8), lambda i, j: a[i, j]), ((64, 8), "int32"))
    scheduled = schedule_cpu_compute(kernel, TARGET)
    assert find_blocks([mixed], MOST_SCRATCH) and scheduled_pairs(scheduled) == []
    array = random_array(np.random.default_rng(0), (64, 8), "int32")
    expected = array.copy()
    expected[:, :4] = array[:, 3::-1]
    expected[::2, 4:] = array[::2, :4]
    assert_right(scheduled, [array], [(expected * 3).tobytes()])


def test_either_input_but_not_any_of_both():
    """Only of one it has the copy, where blocks go through scratch."""
    kernel = te_kernel(
        lambda a, b: te.compute((20, 6), lambda i, j: a[i, 5 - j] + b[i, 5 - j]),
        *[((20, 6), "int32")] * 2,
    )
    scheduled = schedule_cpu_compute(kernel, TARGET)
    assert scheduled_pairs(scheduled) == [[0, 2]]
    arrays = [random_array(np.random.default_rng(i), (20, 6), "int32") for i in range(2)]
    assert_right(scheduled, arrays, run(built(kernel), kernel, arrays))


@pytest.mark.parametrize("dtype", ["int64", "float32", "int8", "float16", "bfloat16"])
@pytest.mark.parametrize(
    "chosen",
    [
        lambda a, b: tirx.Select(a < b, b, a),  # in the condition as numbers, chosen as bits
        lambda a, b: tirx.Select(a < b, tirx.Select(b < a * a, a, b), b),
        lambda a, b: tirx.Select(a < b, tirx.const(0, a.dtype), b),
        lambda a, b: tirx.Select(a < b, a + b, a),
        lambda a, b: tirx.if_then_else(a < b, b, a),
    ],
)
def test_what_numbers_choose(chosen, dtype):
    """The choice of ``R.where`` is by elements; what it chooses moves, or is computed."""
    kernel = te_kernel(
        lambda a, b: te.compute((20, 6), lambda i, j: chosen(a[i, j], b[i, j])),
        *[((20, 6), dtype)] * 2,
    )
    arrays = [random_array(np.random.default_rng(i), (20, 6), dtype) for i in range(2)]
    expected = run(built(kernel), kernel, arrays)
    scheduled = schedule_cpu_compute(kernel, TARGET)
    assert_right(kernel if scheduled is None else scheduled, arrays, expected)


def test_several_outputs():
    def make(a, b, c):
        return (
            te.compute((20, 6), lambda i, j: a[i, 5 - j] + c[i, 5 - j], "first"),
            te.compute((20, 6), lambda i, j: b[i, j] + c[j, 0], "second"),
            te.compute((6, 20), lambda i, j: c[j, i], "third"),
        )

    kernel = te_kernel(make, *[((20, 6), "int32")] * 3)
    scheduled = schedule_cpu_compute(kernel, TARGET)
    assert [list(pair) for pair in scheduled.attrs["relax_inplace.inplace"]] == [[0, 3], [1, 4]]
    arrays = [random_array(np.random.default_rng(i), (20, 6), "int32") for i in range(3)]
    assert_right(scheduled, arrays, run(built(kernel), kernel, arrays))


@pytest.mark.parametrize(
    ("function", "tensor"),
    [
        (lambda w: op.sum(w, 1), MATRIX),
        (lambda w: op.nn.softmax(w), MATRIX),
        (lambda w: op.permute_dims(op.exp(w)), MATRIX),  # may be another number in vectors
        (op.negative, ((0, 64), "float32")),
    ],
)
def test_others_are_left_alone(function, tensor):
    assert schedule_cpu_compute(kernel_of(function, tensor), TARGET) is None


def test_what_is_scheduled_is_left_alone():
    kernel = kernel_of(op.permute_dims, MATRIX)
    scheduled = schedule_cpu_compute(kernel, TARGET)
    assert schedule_cpu_compute(scheduled, TARGET) is None


def test_other_targets_are_left_alone():
    kernel = kernel_of(op.negative, MATRIX)
    assert schedule_cpu_compute(kernel, tvm.target.Target("cuda")) is None


def assert_as_described(drawn, bytes_of):
    """In place where the description says so; and numpy's bytes, there and elsewhere."""
    scheduled = schedule_cpu_compute(drawn.kernel, TARGET)
    blocks = find_blocks(read_relayouts(drawn.kernel, elements=True), MOST_SCRATCH)
    assert scheduled_pairs(scheduled) == [[one.input, one.output] for one in blocks]
    array = random_array(np.random.default_rng(0), drawn.shape, drawn.dtype)
    assert_right(scheduled, [array], [bytes_of(array.reshape(-1)).tobytes()])


@examples(25)
@given(moves(dtypes=("uint8", "float16", "bfloat16", "int64"), may_cast=False))
def test_any_moves(drawn):
    bits = f"u{numpy_dtype(drawn.dtype).itemsize}"
    assert_as_described(drawn, lambda flat: flat.view(bits)[drawn.sources])


@examples(25)
@given(moves(dtypes=("float32", "int64")))
def test_any_casts(drawn):
    assert_as_described(drawn, lambda flat: flat[drawn.sources].astype(drawn.made))
