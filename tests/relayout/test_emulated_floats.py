"""Kernels of bfloat16 and float8: TVM's lowering knows no vectors of their constants, nor of float8."""

import ml_dtypes
import numpy as np
import pytest
import tvm
from pipelines import load
from restoring import assert_restores, passed
from tvm import relax, te
from tvm.tirx import const, floormod

from relax_inplace import layout
from relax_inplace.relayout.emulated_floats import bits_of_constant, can_be_vector
from relax_inplace.transform import InplaceTransformParams

DTYPES = ["bfloat16", "float8_e4m3fn", "float8_e5m2"]


def chosen(condition, number=1.5):
    """The element where a condition holds, elsewhere a number."""

    def kernel(x):
        def element(i, j):
            return te.if_then_else(condition(i, j), x[i, j], const(number, x.dtype))

        return te.compute(x.shape, element, "chosen")

    return lambda builder, w: builder.emit_te(kernel, w)


def padded_transpose(builder, w):
    def kernel(x):
        def element(i, j):
            inside = te.all(i < x.shape[1], j < x.shape[0])
            return te.if_then_else(inside, x[j, i], const(-2.0, x.dtype))

        return te.compute((x.shape[1] + 5, x.shape[0] + 19), element, "padded")

    return builder.emit_te(kernel, w)


KERNELS = {
    "pad": lambda builder, w: relax.op.nn.pad(w, [0, 3, 0, 40]),
    "padded_transpose": padded_transpose,
    "relu": lambda builder, w: relax.op.nn.relu(w),
    "scale": lambda builder, w: relax.op.multiply(w, relax.const(2, str(w.ty.dtype))),
    "zeros": lambda builder, w: relax.op.zeros_like(w),
    "triu": lambda builder, w: relax.op.triu(w),
    "columns": chosen(lambda i, j: j < 8),
    "rows": chosen(lambda i, j: i < 8),
    "some_rows": chosen(lambda i, j: floormod(i * i, 7) < 3),
    "rounded": chosen(lambda i, j: j < 8, 0.1),
    "float32": lambda builder, w: relax.op.astype(w, "float32"),
    "float32_transposed": lambda builder, w: relax.op.astype(
        builder.emit(relax.op.permute_dims(w)), "float32"
    ),
}


def transform(dtype, shape, kernel):
    builder = relax.BlockBuilder()
    params = relax.Var("params", relax.TupleType([relax.TensorType(shape, dtype)]))
    with builder.function("transform_params", [params]):
        with builder.dataflow():
            result = builder.emit(kernel(builder, builder.emit(params[0])))
            out = builder.emit_output(relax.Tuple([result]))
        builder.emit_func_output(out)
    return builder.finalize()


@pytest.mark.parametrize("kernel", sorted(KERNELS))
@pytest.mark.parametrize("dtype", DTYPES)
def test_bitwise_as_out_of_place(dtype, kernel):
    shape = (33, 70)
    mod = transform(dtype, shape, KERNELS[kernel])
    numbers = np.random.default_rng(0).standard_normal(shape).astype(getattr(ml_dtypes, dtype))
    (expected,) = load(mod, "compile")["transform_params"](passed([numbers]))
    inplace = load(InplaceTransformParams()(mod), "cpu default")["inplace_transform_params"]
    (found,) = inplace(passed([numbers]))
    assert found.numpy().tobytes() == expected.numpy().tobytes()


@pytest.mark.parametrize(
    ("shape", "tile"), [((1, 1), (1, 3)), ((3, 5), (1, 8)), ((17, 40), (8, 16))]
)
def test_tiles_of_bfloat16_that_are_padded(shape, tile):
    mod = transform("bfloat16", shape, lambda builder, w: layout.tiles.pack(w, *tile))
    assert_restores(mod, "cpu default")


def test_bits():
    assert int(bits_of_constant(const(1.0, "bfloat16"))) == 0x3F80
    assert int(bits_of_constant(const(-2.0, "float8_e4m3fn"))) == 0xC0
    assert bits_of_constant(const(0.1, "bfloat16")) is None  # who rounds it is TVM
    assert bits_of_constant(const(1.0, "float16")) is None
    element = tvm.tirx.Var("x", "bfloat16")
    assert can_be_vector(element)
    assert can_be_vector(element + const(1, "bfloat16"))
    assert not can_be_vector(const(1, "bfloat16"))
    zero = const(0, "bfloat16")
    assert not can_be_vector(te.if_then_else(tvm.tirx.Var("b", "bool"), element, zero))
    small = tvm.tirx.Var("y", "float8_e5m2")
    assert can_be_vector(small)
    assert not can_be_vector(small.astype("float32"))
