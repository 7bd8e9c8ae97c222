"""The mixed GEMM's operand: there and back, against numpy and against cutlass_preprocessors.cc."""

import hashlib

import numpy as np
import pytest
import references
from compiled import assert_bits, compiled, pattern, random_bits
from hypothesis import given
from hypothesis import strategies as st
from profiles import examples

from relax_inplace.layout import LayoutError, faster_transformer

# Of preprocess_weights (cutlass_fpA_intB_gemm's cutlass_preprocessors.cc), compiled and run on
# `pattern` of 128 x 192 codes: SHA-256 of the result.
CUTLASS = {
    (4, 70): "bda9e6a08db485f5",
    (4, 75): "b91fe0244a2c5947",
    (4, 80): "b91fe0244a2c5947",
    (4, 90): "b91fe0244a2c5947",
    (8, 70): "d3eb06b62a2c0b33",
    (8, 75): "2c5938091630a9fb",
    (8, 80): "2c5938091630a9fb",
    (8, 90): "2c5938091630a9fb",
}
FORMS = [(4, 70), (4, 80), (8, 70), (8, 80)]


def there(bits, arch):
    return lambda w: faster_transformer.to_mixed_gemm(w, arch=arch, bits=bits)


def back(bits, arch):
    return lambda w: faster_transformer.from_mixed_gemm(w, arch=arch, bits=bits)


def test_a_small_case():
    """Code of row k, in each column: k % 16 - 8, so that it is k % 16 with the bias."""
    codes = (np.arange(64) % 16 - 8).astype("int8") & 15
    weight = np.repeat((codes | codes << 4)[:, None], 32, axis=1)
    out = compiled(there(4, 80), (weight.shape, "int8"))(weight).view("uint8").ravel()
    # Rows 0 8 16 24, then 1 9 17 25, of column 0; then 2 10 18 26, 3 11 19 27.
    assert list(out[:8]) == [0x80, 0x80, 0x91, 0x91, 0xA2, 0xA2, 0xB3, 0xB3]

    weight = np.repeat((np.arange(64) - 128).astype("int8")[:, None], 64, axis=1)
    out = compiled(there(8, 80), (weight.shape, "int8"))(weight).view("uint8").ravel()
    assert list(out[:8]) == [0, 8, 1, 9, 2, 10, 3, 11]


def test_a_small_case_of_columns():
    """Code of column n, in each row: n % 16 - 8."""
    codes = (np.arange(64) % 16 - 8).astype("int8") & 15
    weight = np.repeat((codes[0::2] | codes[1::2] << 4)[None], 128, axis=0)
    out = compiled(there(4, 80), (weight.shape, "int8"))(weight).view("uint8").ravel()
    # 64 rows of a column are 32 bytes; four columns lie in a line of 128; then the next 64 rows.
    assert list(out[:256:32]) == [0x00, 0x11, 0x22, 0x33, 0x00, 0x11, 0x22, 0x33]
    assert out[256] == 0x44


@pytest.mark.parametrize("form", CUTLASS, ids=str)
def test_cutlass_makes_the_same_bytes(form):
    weight = pattern((128, 192 * form[0] // 8), "int8")
    out = compiled(there(*form), (weight.shape, "int8"))(weight)
    assert hashlib.sha256(out.tobytes()).hexdigest()[:16] == CUTLASS[form]


@examples(20)
@given(st.sampled_from(FORMS), st.integers(1, 3), st.integers(1, 3))
def test_static_sizes(form, height, width):
    bits, arch = form
    height, width = (height * 64, width * 64) if arch >= 75 else (height, width * 8)
    weight = random_bits(np.random.default_rng(width), (height, width * bits // 8), "int8")
    expected = references.mixed_gemm(weight, arch, bits)
    assert_bits(compiled(there(*form), (weight.shape, "int8"))(weight), expected)
    assert_bits(compiled(back(*form), (weight.shape, "int8"))(expected), weight)


@pytest.fixture(scope="module", params=FORMS, ids=str)
def symbolic(request):
    bits, arch = request.param
    shape = ("k * 64", f"n * {8 * bits}") if arch >= 75 else ("k", "n * 4")
    return bits, arch, *(compiled(way(bits, arch), (shape, "int8")) for way in (there, back))


@examples(12)
@given(height=st.integers(1, 4), width=st.integers(1, 4))
def test_symbolic_sizes(symbolic, height, width):
    bits, arch, to, back = symbolic
    shape = (height * 64, width * 8 * bits) if arch >= 75 else (height, width * 4)
    weight = random_bits(np.random.default_rng(width), shape, "int8")
    expected = references.mixed_gemm(weight, arch, bits)
    assert_bits(to(weight, k=height, n=width), expected)
    assert_bits(back(expected, k=height, n=width), weight)


@pytest.mark.parametrize(
    "layout, tensor, message",
    [
        (
            there(4, 80),
            ((96, 32), "int8"),
            "layout.faster_transformer.to_mixed_gemm: 96 rows given, expected a multiple of 64; pad "
            "the weight with rows of zeros",
        ),
        (
            there(8, 80),
            ((64, 96), "int8"),
            "layout.faster_transformer.to_mixed_gemm: 96 bytes in a row of int8 given, expected a "
            "multiple of 64; these are 8 bits of N columns; pad the weight to N a multiple of 64",
        ),
        (
            back(4, 70),
            ((64, 6), "int8"),
            "layout.faster_transformer.from_mixed_gemm: 6 bytes in a row of int4 given, expected a "
            "multiple of 4; pad the weight with columns of zeros",
        ),
        (
            there(4, 80),
            ((64, 32), "uint8"),
            "layout.faster_transformer.to_mixed_gemm: `codes` is uint8, expected int8 (K, N * 4 / "
            "8); layouts move bits and never convert numbers: give the tensor as it is stored",
        ),
        (
            there(4, 61),
            ((64, 32), "int8"),
            "layout.faster_transformer.to_mixed_gemm: arch=61 given, expected 70 to 109, ten times "
            "the compute capability; 80 is Ampere, 90 Hopper; the kernels are for no other",
        ),
        (
            there(3, 80),
            ((64, 32), "int8"),
            "layout.faster_transformer.to_mixed_gemm: bits=3 given, expected 4 or 8; these are what "
            "the GEMM reads",
        ),
    ],
)
def test_refusals(layout, tensor, message):
    with pytest.raises(LayoutError) as raised:
        compiled(layout, tensor)
    assert str(raised.value) == message
