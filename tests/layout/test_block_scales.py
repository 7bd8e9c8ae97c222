"""Tiles of scales: there and back, against vLLM's and torchao's definition."""

import hashlib

import ml_dtypes
import numpy as np
import pytest
from compiled import assert_bits, compiled, pattern, random_bits
from hypothesis import given
from hypothesis import strategies as st
from profiles import examples
from tvm import relax

from relax_inplace.layout import LayoutError, block_scales

# Of swizzle_blockscale (vLLM's quantization utilities; to_blocked of torchao makes the same bytes)
# on `pattern`: SHA-256. The second has a rim.
VLLM = {(256, 8): "314b51696af04d35", (200, 6): "fecd0b0140ce4f54"}


@pytest.mark.parametrize("shape", VLLM, ids=str)
def test_vllm_makes_the_same_bytes(shape):
    out = compiled(block_scales.swizzle, (shape, "uint8"))(pattern(shape, "uint8"))
    assert hashlib.sha256(out.tobytes()).hexdigest()[:16] == VLLM[shape]


def place(row, column):
    """In a tile: as cuBLAS documents it."""
    return row % 32 * 16 + row // 32 * 4 + column


@examples(10)
@given(
    st.integers(1, 300),
    st.integers(1, 9),
    st.sampled_from(["uint8", "float8_e4m3fn", "float8_e8m0fnu"]),
)
def test_static_sizes(height, width, dtype):
    bits = random_bits(np.random.default_rng(height), (height, width), "uint8")
    scales = bits.view(dtype) if dtype == "uint8" else bits.view(getattr(ml_dtypes, dtype))
    out = compiled(block_scales.swizzle, (scales.shape, dtype))(scales)
    down, across = -(-height // 128), -(-width // 4)
    assert out.shape == (down, across, 32, 16)
    expected = np.zeros((down, across, 512), "uint8")
    for row in range(height):
        for column in range(width):
            tile = expected[row // 128, column // 4]
            tile[place(row % 128, column % 4)] = bits[row, column]
    assert out.tobytes() == expected.tobytes()
    back = compiled(
        lambda x: block_scales.unswizzle(x, relax.ShapeExpr((height, width))), (out.shape, dtype)
    )
    assert_bits(back(out), scales)


@pytest.fixture(scope="module", params=[(), ("e",)], ids=str)
def symbolic(request):
    def both(scales):
        out = block_scales.swizzle(scales)
        *_, height, width = scales.ty.shape.values
        return out, block_scales.unswizzle(out, (height, width)), block_scales.unswizzle(out)

    return request.param, compiled(both, ((*request.param, "n", "k"), "uint8"))


@examples(15)
@given(height=st.integers(1, 300), width=st.integers(1, 9))
def test_symbolic_sizes(symbolic, height, width):
    experts, both = symbolic
    sizes = {"n": height, "k": width} | dict.fromkeys(experts, 2)
    shape = (*(2 for _ in experts), height, width)
    scales = random_bits(np.random.default_rng(width), shape, "uint8")
    out, back, whole = both(scales, **sizes)
    assert_bits(back, scales)
    filled = np.zeros((*shape[:-2], -(-height // 128) * 128, -(-width // 4) * 4), "uint8")
    filled[..., :height, :width] = scales
    assert_bits(whole, filled)
    tiles = filled.reshape(*filled.shape[:-2], -1, 4, 32, filled.shape[-1] // 4, 4)
    expected = np.moveaxis(tiles, (-5, -2, -3, -4, -1), (-5, -4, -3, -2, -1))
    assert_bits(out, expected.reshape(*expected.shape[:-2], 16))


@pytest.mark.parametrize(
    "layout, tensor, message",
    [
        (
            block_scales.swizzle,
            ((128, 4), "float16"),
            "layout.block_scales.swizzle: `scales` is float16, expected "
            "float8_e4m3fn/float8_e8m0fnu/uint8 (M, K); layouts move bits and never convert "
            "numbers: give the tensor as it is stored",
        ),
        (
            block_scales.unswizzle,
            ((2, 1, 16, 32), "uint8"),
            "layout.block_scales.unswizzle: 16 rows of a tile given, expected 32 (of 128 x 4 "
            "scales); give what swizzle returned",
        ),
        (
            lambda x: block_scales.unswizzle(x, (300, 4)),
            ((2, 1, 32, 16), "uint8"),
            "layout.block_scales.unswizzle: 2 rows of tiles given, expected 3 (300 in tiles of "
            "128); give the `shape` that the scales had",
        ),
        (
            lambda x: block_scales.unswizzle(x, (300,)),
            ((2, 1, 32, 16), "uint8"),
            "layout.block_scales.unswizzle: a shape of 1 sizes, expected (M, K); give the `shape` "
            "that the scales had",
        ),
    ],
)
def test_refusals(layout, tensor, message):
    with pytest.raises(LayoutError) as raised:
        compiled(layout, tensor)
    assert str(raised.value) == message
