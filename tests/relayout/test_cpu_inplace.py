"""Kernels that write over their input: what they are, and that their numbers are right."""

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
from relax_inplace.relayout.cpu_inplace import schedule_cpu_inplace


def test_elements_in_their_place():
    """Vectors; no scratch; what is behind the last whole block comes last."""
    scheduled = schedule_cpu_inplace(
        te_kernel(
            lambda a: te.compute((2, 8200), lambda i, j: a[i, j] * 3, "tripled"),
            ((2, 8200), "int32"),
        ),
        TARGET,
    )
    expected = from_source(
        """
@T.prim_func(s_tir=True)
def main(a0: T.Buffer((2, 8200), "int32"), tripled: T.Buffer((2, 8200), "int32")):
    with T.sblock("root"):
        a0_flat = T.decl_buffer((16400,), "int32", data=a0.data, layout=None)
        tripled_flat = T.decl_buffer((16400,), "int32", data=tripled.data, layout=None)
        for block in T.parallel(1):
            for i in range(1024):
                for lane in T.vectorized(16):
                    tripled_flat[block * 16384 + i * 16 + lane] = a0_flat[block * 16384 + i * 16 + lane] * 3
        for lane in T.vectorized(16):
            tripled_flat[lane + 16384] = a0_flat[lane + 16384] * 3
"""
    )
    assert [list(pair) for pair in scheduled.attrs["relax_inplace.inplace"]] == [[0, 1]]
    assert tvm_ffi.structural_equal(_body(scheduled), _body(expected), map_free_vars=True)


def test_blocks_through_scratch():
    """A block is read before it is written; no choice and no division is left."""
    scheduled = schedule_cpu_inplace(
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
    assert text.count("T.parallel") == 1 and "scratch = T.sblock_alloc_buffer" in text
    assert scheduled.attrs["tirx.noalias"] == 0 and scheduled.attrs["tirx.is_scheduled"] == 1


def _body(function):
    return function.body.block.body


def number(value, dtype="float32"):
    return relax.const(value, dtype)


def slope(w, s):
    return op.astype(op.multiply(w, s), "int8")


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
    assert_right(schedule_cpu_inplace(kernel, TARGET), arrays, expected, sizes)


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
    assert_right(backwards(schedule_cpu_inplace(kernel, TARGET)), [array], expected)


def test_several_outputs():
    def make(a, b, c):
        return (
            te.compute((20, 6), lambda i, j: a[i, 5 - j] + c[i, 5 - j], "first"),
            te.compute((20, 6), lambda i, j: b[i, j] + c[j, 0], "second"),
            te.compute((6, 20), lambda i, j: c[j, i], "third"),
        )

    kernel = te_kernel(make, *[((20, 6), "int32")] * 3)
    scheduled = schedule_cpu_inplace(kernel, TARGET)
    assert [list(pair) for pair in scheduled.attrs["relax_inplace.inplace"]] == [[0, 3], [1, 4]]
    arrays = [random_array(np.random.default_rng(i), (20, 6), "int32") for i in range(3)]
    assert_right(scheduled, arrays, run(built(kernel), kernel, arrays))


@pytest.mark.parametrize(
    "function, tensor",
    [
        (op.permute_dims, ((61, 131), "float32")),
        (lambda w: op.astype(w, "float32"), ((61, 131), "float16")),
        (lambda w: op.sum(w, 1), ((61, 131), "float32")),
        (lambda w: op.nn.softmax(w), ((61, 131), "float32")),
    ],
)
def test_others_are_left_alone(function, tensor):
    assert schedule_cpu_inplace(kernel_of(function, tensor), TARGET) is None


def test_other_targets_are_left_alone():
    kernel = kernel_of(op.negative, MATRIX)
    assert schedule_cpu_inplace(kernel, tvm.target.Target("cuda")) is None


@examples(25)
@given(moves(dtypes=("uint8", "float16", "bfloat16", "int64"), may_cast=False))
def test_any_moves(drawn):
    """Whatever is found to be in place has numpy's bytes, in place and not."""
    scheduled = schedule_cpu_inplace(drawn.kernel, TARGET)
    if scheduled is not None:
        array = random_array(np.random.default_rng(0), drawn.shape, drawn.dtype)
        bits = array.reshape(-1).view(f"u{numpy_dtype(drawn.dtype).itemsize}")
        assert_right(scheduled, [array], [bits[drawn.sources].tobytes()])


@examples(15)
@given(moves(dtypes=("float32", "int64")))
def test_any_casts(drawn):
    scheduled = schedule_cpu_inplace(drawn.kernel, TARGET)
    if scheduled is not None:
        array = random_array(np.random.default_rng(0), drawn.shape, drawn.dtype)
        made = array.reshape(-1)[drawn.sources].astype(drawn.made)
        assert_right(scheduled, [array], [made.tobytes()])
