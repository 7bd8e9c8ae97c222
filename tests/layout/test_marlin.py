"""Marlin's tensors: there and back, against vLLM's own code, and code by code."""

import hashlib

import numpy as np
import pytest
from compiled import assert_bits, compiled, pattern, random_bits
from hypothesis import given
from hypothesis import strategies as st
from profiles import examples

from relax_inplace.layout import LayoutError, marlin

# Of gptq_marlin_repack_kernel and awq_marlin_repack_kernel (vLLM's csrc/quantization/marlin),
# run thread by thread, and of marlin_permute_scales and awq_to_marlin_zero_points
# (marlin_utils.py), on `pattern`s of a weight of 48 x 128 in 3 groups, and in 1: SHA-256.
VLLM = {
    ("gptq", 4): "e957f5f9808a4f10",
    ("gptq", 8): "7499a42894e6a9ee",
    ("awq", 4): "c43e011f02387f4a",
    ("awq", 8): "f02e83866a383908",
}
ZEROS = {4: "b1f94df7259be3cf", 8: "8ee2740fcdb4d1a7"}
SCALES = {3: "aef56474ad035079", 1: "2794a7a173624b26"}


def ways(kind, bits):
    there, back = {
        "gptq": (marlin.from_gptq, marlin.to_gptq),
        "awq": (marlin.from_awq, marlin.to_awq),
    }[kind]
    return (lambda *x: there(*x, bits=bits)), (lambda *x: back(*x, bits=bits))


def tensors(kind, bits, k, n, groups, make):
    per = 32 // bits
    shape = (k // per, n) if kind == "gptq" else (k, n // per)
    words = [make(shape, "int32")]
    if kind == "awq":
        words.append(make((groups, n // per), "int32"))
    return [*words, make((groups, n), "float16")]


def shaped(arrays):
    return [(array.shape, str(array.dtype)) for array in arrays]


def digest(array):
    return hashlib.sha256(array.tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("groups", SCALES)
@pytest.mark.parametrize("form", VLLM, ids=str)
def test_vllm_makes_the_same_bytes(form, groups):
    there, back = ways(*form)
    given = tensors(*form, 48, 128, groups, pattern)
    codes, *zeros, scales = out = compiled(there, *shaped(given))(*given)
    assert digest(codes) == VLLM[form]
    assert digest(scales) == SCALES[groups]
    if zeros and groups == 3:
        assert digest(zeros[0]) == ZEROS[form[1]]
    for left, right in zip(compiled(back, *shaped(out))(*out), given, strict=True):
        assert_bits(left, right)


@pytest.mark.parametrize("kind", ["gptq", "awq"])
def test_a_small_case(kind):
    """Code of row k and column n: (k + n) % 16. The first word is of rows 0, 1, 8, 9."""
    codes = (np.arange(16)[:, None] + np.arange(64)) % 16
    if kind == "awq":
        order = [0, 2, 4, 6, 1, 3, 5, 7]
        parts = codes.reshape(16, 8, 8)[:, :, order]
    else:
        parts = codes.reshape(2, 8, 64).transpose(0, 2, 1)
    words = sum(parts[..., i].astype("uint32") << np.uint32(4 * i) for i in range(8))
    given = [words.view("int32"), np.zeros((1, 8), "int32"), np.zeros((1, 64), "float16")]
    given = given if kind == "awq" else given[::2]
    out = compiled(ways(kind, 4)[0], *shaped(given))(*given)[0].view("uint32")
    # Columns 0 and 8, of each row: rows 0, 8 of both, then rows 1, 9 of both.
    assert out[0, 0] == 0x19910880
    assert out[0, 1] == 0x19910880  # columns 16 and 24
    assert out[0, 4] == 0x3BB32AA2  # rows 2, 10, 3, 11


@pytest.fixture(scope="module", params=VLLM, ids=str)
def symbolic(request):
    kind, bits = request.param
    per = 32 // bits
    there, back = ways(kind, bits)
    scales = (3, "n * 64"), "float16"
    zeros = [((3, f"n * {64 // per}"), "int32")] if kind == "awq" else []
    qweight = (f"k * {16 // per}", "n * 64") if kind == "gptq" else ("k * 16", f"n * {64 // per}")
    codes = ("k", f"n * {64 * 16 // per}"), "int32"
    return (
        request.param,
        compiled(there, (qweight, "int32"), *zeros, scales),
        compiled(back, codes, *zeros, scales),
    )


@examples(8)
@given(height=st.integers(1, 4), width=st.integers(1, 3))
def test_symbolic_sizes(symbolic, height, width):
    """A tile is what it is by itself, wherever it is."""
    form, to, back = symbolic
    generator = np.random.default_rng(height)

    def make(shape, dtype):
        return random_bits(generator, shape, dtype)

    given = tensors(*form, 16 * height, 64 * width, 3, make)
    out = to(*given, k=height, n=width)
    again = back(*out, k=height, n=width)
    for left, right in zip(again, given, strict=True):
        assert_bits(left, right)
    one = tensors(*form, 16, 64, 3, make)
    rows, columns = one[0].shape
    one[0][...] = given[0][-rows:, -columns:]
    tile = to(*one, k=1, n=1)[0]
    assert_bits(out[0][-1:, -tile.shape[1] :], tile)


@pytest.mark.parametrize(
    "layout, given, message",
    [
        (
            ways("gptq", 4)[0],
            [((3, 64), "int32"), ((1, 64), "float16")],
            "layout.marlin.from_gptq: 3 rows of qweight given, expected a multiple of 2; Marlin has "
            "tiles of 16 x 64: keep such a weight as it is",
        ),
        (
            ways("gptq", 4)[0],
            [((2, 96), "int32"), ((1, 96), "float16")],
            "layout.marlin.from_gptq: 96 columns of qweight given, expected a multiple of 64; "
            "Marlin has tiles of 16 x 64: keep such a weight as it is",
        ),
        (
            ways("gptq", 4)[0],
            [((2, 64), "int32"), (("g", 64), "float16")],
            "layout.marlin.from_gptq: g groups given, expected a constant; the scales of one group "
            "are in another order than those of several",
        ),
        (
            ways("gptq", 3)[0],
            [((2, 64), "int32"), ((1, 64), "float16")],
            "layout.marlin.from_gptq: bits=3 given, expected 4 or 8; Marlin has no other codes",
        ),
        (
            ways("awq", 4)[0],
            [((16, 8), "int32"), ((2, 8), "int32"), ((1, 64), "float16")],
            "layout.marlin.from_awq: 1 rows of scales given, expected 2 (as many as the zeros); "
            "give the tensors of one weight, and its `bits`",
        ),
        (
            ways("awq", 8)[1],
            [((1, 128), "int32"), ((1, 8), "int32"), ((1, 64), "float16")],
            "layout.marlin.to_awq: 128 words in a row of codes given, expected a multiple of 256; "
            "give what was returned, with the same `bits`",
        ),
        (
            ways("gptq", 4)[1],
            [((1, 256), "int32"), ((1, 64), "float16")],
            "layout.marlin.to_gptq: 256 words in a row of codes given, expected 128 (2 words a "
            "column); give the tensors of one weight, and its `bits`",
        ),
    ],
)
def test_refusals(layout, given, message):
    with pytest.raises(LayoutError) as raised:
        compiled(layout, *given)
    assert str(raised.value) == message
