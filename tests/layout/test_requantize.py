"""Requantising, which is no layout: bitwise as defined, and how far the numbers move."""

import ml_dtypes
import numpy as np
import pytest
import references
from compiled import assert_bits, compiled, kernels, random_bits
from hypothesis import given
from hypothesis import strategies as st
from profiles import examples

from relax_inplace.layout import LayoutError, faster_transformer, requantize

# Root mean square of the error over that of the numbers, 64 columns of K normal ones: what
# docs/layouts.md says. In the last, one number of each column is 20.
MEASURED = {
    # K, outliers: q4f16_1 | requantised, of q4f16_1 | of the weight | the weight, rounded once
    (1024, False): (0.0979, 0.1169, 0.1527, 0.1262),
    (4096, False): (0.0973, 0.1322, 0.1650, 0.1378),
    (16384, False): (0.0970, 0.1481, 0.1782, 0.1500),
    (4096, True): (0.1133, 0.6655, 0.6779, 0.6718),
}


def q4f16_1(weight):
    """As group_quantization.py quantises, in float32: N x K to codes and scales."""
    groups = weight.reshape(len(weight), -1, 32)
    scales = (np.abs(groups).max(axis=2) / 7).astype("float16")
    codes = np.rint(groups / scales.astype("float32")[:, :, None] + 7).clip(0, 14)
    codes = codes.reshape(weight.shape).astype("uint8")
    return references.packed(codes, 4, "uint32"), scales


def scales_like(generator, shape):
    """Positive, from subnormal to large, some of them 0."""
    scales = np.exp2(generator.integers(-24, 11, shape)) * generator.uniform(1, 2, shape)
    return (scales * (generator.random(shape) > 0.2)).astype("float16")


@pytest.fixture(scope="module")
def symbolic():
    return compiled(
        requantize.groups_to_columns, (("n * 2", "g * 4"), "uint32"), (("n * 2", "g"), "float16")
    )


@examples(60)
@given(pairs=st.integers(1, 12), groups=st.integers(1, 5), seed=st.integers(0, 99))
def test_symbolic_sizes(symbolic, pairs, groups, seed):
    generator = np.random.default_rng(seed)
    codes = random_bits(generator, (2 * pairs, 4 * groups), "uint32")
    scales = scales_like(generator, (2 * pairs, groups))
    out = symbolic(codes, scales, n=pairs, g=groups)
    for left, right in zip(out, references.requantized(codes, scales), strict=True):
        assert_bits(left, right)


def test_static_sizes_and_a_small_case():
    """A column of 14 and 7: the scale is 14 / 8, and 14 is cut to 7 times that. A column of zeros."""
    codes = np.full((2, 8), 0xEEEEEEEE, "uint32")  # 14 - 7
    scales = np.array([[2, 1], [0, 0]], "float16")
    shapes = (codes.shape, "uint32"), (scales.shape, "float16")
    packed, columns = compiled(requantize.groups_to_columns, *shapes)(codes, scales)
    assert list(columns) == [1.75, 0]
    assert list(packed[:, 0]) == [7] * 32 + [4] * 32
    assert len(kernels(requantize.groups_to_columns, *shapes)) == 2


def test_the_gemm_takes_it():
    def both(codes, scales):
        packed, columns = requantize.groups_to_columns(codes, scales)
        return faster_transformer.to_mixed_gemm(packed, arch=80), columns

    generator = np.random.default_rng(0)
    codes = random_bits(generator, (64, 8), "uint32")
    scales = scales_like(generator, (64, 2))
    out = compiled(both, (codes.shape, "uint32"), (scales.shape, "float16"))(codes, scales)
    packed, columns = references.requantized(codes, scales)
    assert_bits(out[0], references.mixed_gemm(packed, 80, 4))
    assert_bits(out[1], columns)


def rounded_once(weight):
    """With a scale per column, found in the weight itself."""
    scales = (np.abs(weight).max(axis=1, keepdims=True) / 8).astype("float16").astype("float32")
    return np.rint(weight / scales).clip(-8, 7) * scales


@pytest.mark.parametrize("case", MEASURED, ids=str)
def test_what_it_costs(symbolic, case):
    width, outliers = case
    weight = np.random.default_rng(0).standard_normal((64, width)).astype("float32")
    if outliers:
        weight[:, 0] = 20
    codes, scales = q4f16_1(weight)
    groups = references.numbers_of_groups(codes, scales)
    columns = references.numbers_of_columns(*symbolic(codes, scales, n=32, g=width // 32))
    pairs = (groups, weight), (columns, groups), (columns, weight), (rounded_once(weight), weight)
    errors = [np.sqrt(np.mean((left - right) ** 2) / np.mean(right**2)) for left, right in pairs]
    print(case, *(f"{error:.4f}" for error in errors))
    np.testing.assert_allclose(errors, MEASURED[case], atol=6e-5)


@pytest.mark.parametrize(
    "codes, scales, message",
    [
        (
            ((3, 4), "uint32"),
            ((3, 1), "float16"),
            "layout.requantize.groups_to_columns: 3 rows of codes given, expected a multiple of 2; "
            "two columns of K x N are one byte",
        ),
        (
            ((4, 4), "uint32"),
            ((4, 2), "float16"),
            "layout.requantize.groups_to_columns: 4 words along K given, expected 8 (2 groups of 4 "
            "words); give the codes and the scales of one weight",
        ),
        (
            ((4, 4), "uint32"),
            ((4, 1), "float32"),
            "layout.requantize.groups_to_columns: `scales` is float32, expected float16 (N, K / "
            "32); layouts move bits and never convert numbers: give the tensor as it is stored",
        ),
    ],
)
def test_refusals(codes, scales, message):
    with pytest.raises(LayoutError) as raised:
        compiled(requantize.groups_to_columns, codes, scales)
    assert str(raised.value) == message


# -- e4m3fn to e4m3fnuz ----------------------------------------------------------------------------


def normalized(weight, scales):
    """As normalize_e4m3fn_to_e4m3fnuz of vLLM's w8a8_utils.py."""
    bits = weight.view("int8").copy()
    bits[bits == -128] = 0
    return bits.view(ml_dtypes.float8_e4m3fnuz), scales * np.float32(2)


@pytest.mark.parametrize("symbolic", [False, True], ids=["static", "symbolic"])
def test_every_float8(symbolic):
    """The products are the same, but of -0, which is 0, and of NaN."""
    weight = np.arange(256, dtype="uint8").view(ml_dtypes.float8_e4m3fn).reshape(8, 32)
    scales = scales_like(np.random.default_rng(0), (8, 1)).astype("float32")
    sizes = {"n": 8, "k": 32} if symbolic else {}
    shapes = (("n", "k"), ("n", 1)) if symbolic else (weight.shape, scales.shape)
    convert = compiled(
        requantize.e4m3fn_to_e4m3fnuz, (shapes[0], "float8_e4m3fn"), (shapes[1], "float32")
    )
    out = convert(weight, scales, **sizes)
    for left, right in zip(out, normalized(weight, scales), strict=True):
        assert_bits(left, right)
    before, after = (w.astype("float32") * s for w, s in ((weight, scales), out))
    is_number = ~np.isnan(weight.astype("float32"))
    assert_bits(after[is_number], before[is_number] + np.float32(0))
    assert list(np.abs(out[0].astype("float32"))[~is_number]) == [240, 240]


@pytest.mark.parametrize(
    "weight, scales, message",
    [
        (
            ((8, 32), "uint8"),
            ((8, 1), "float32"),
            "layout.requantize.e4m3fn_to_e4m3fnuz: `weight` is uint8, expected float8_e4m3fn (..., "
            "...); layouts move bits and never convert numbers: give the tensor as it is stored",
        ),
        (
            ((8, 32), "float8_e4m3fn"),
            ((1,), "float16"),
            "layout.requantize.e4m3fn_to_e4m3fnuz: `scales` is float16, expected float32 (...); "
            "layouts move bits and never convert numbers: give the tensor as it is stored",
        ),
    ],
)
def test_refusals_of_float8(weight, scales, message):
    with pytest.raises(LayoutError) as raised:
        compiled(requantize.e4m3fn_to_e4m3fnuz, weight, scales)
    assert str(raised.value) == message
