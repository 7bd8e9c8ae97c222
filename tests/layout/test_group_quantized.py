"""q4f16_1 and q4f16_0, and their relatives: there and back, against MLC-LLM's definition."""

import numpy as np
import pytest
import references
from compiled import assert_bits, compiled, random_bits
from hypothesis import given
from hypothesis import strategies as st
from profiles import examples

from relax_inplace.layout import LayoutError, group_quantized

WORDS_OF_GROUP = {3: 4, 4: 4, 8: 8}


def there(bits, group_size=None):
    return lambda c, s: group_quantized.nk_to_kn(c, s, bits=bits, group_size=group_size)


def back(bits, group_size=None):
    return lambda c, s: group_quantized.kn_to_nk(c, s, bits=bits, group_size=group_size)


def test_the_numbers_are_the_same():
    """Those of K x N, computed along its own axis."""
    generator = np.random.default_rng(0)
    codes = random_bits(generator, (6, 8), "uint32")
    scales = generator.standard_normal((6, 2)).astype("float16")
    out = compiled(there(4), (codes.shape, "uint32"), (scales.shape, "float16"))(codes, scales)
    numbers = np.empty((64, 6), "float32")
    for k in range(64):
        code = out[0][k // 8] >> np.uint32(4 * (k % 8)) & np.uint32(15)
        numbers[k] = (code.astype("float32") - 7) * out[1][k // 32].astype("float32")
    assert_bits(numbers, references.numbers_of_groups(codes, scales).T)


@examples(20)
@given(
    st.sampled_from([3, 4, 8]),
    st.sampled_from(["float16", "bfloat16", "float32"]),
    st.integers(1, 9),
    st.integers(1, 4),
)
def test_static_sizes(bits, dtype, height, groups):
    generator = np.random.default_rng(height)
    codes = random_bits(generator, (height, groups * WORDS_OF_GROUP[bits]), "uint32")
    scales = random_bits(generator, (height, groups), dtype)
    out = compiled(there(bits), (codes.shape, "uint32"), (scales.shape, dtype))(codes, scales)
    assert_bits(out[0], codes.T)
    assert_bits(out[1], scales.T)
    again = compiled(back(bits), (out[0].shape, "uint32"), (out[1].shape, dtype))(*out)
    assert_bits(again[0], codes)
    assert_bits(again[1], scales)


@pytest.fixture(scope="module", params=[3, 4, 8])
def symbolic(request):
    words = WORDS_OF_GROUP[request.param]
    return (
        words,
        compiled(there(request.param), (("n", f"g * {words}"), "uint32"), (("n", "g"), "float16")),
        compiled(back(request.param), ((f"g * {words}", "n"), "uint32"), (("g", "n"), "float16")),
    )


@examples(25)
@given(height=st.integers(1, 20), groups=st.integers(1, 6))
def test_symbolic_sizes(symbolic, height, groups):
    words, to, back = symbolic
    generator = np.random.default_rng(height)
    codes = random_bits(generator, (height, groups * words), "uint32")
    scales = random_bits(generator, (height, groups), "float16")
    out = to(codes, scales, n=height, g=groups)
    assert_bits(out[0], codes.T)
    assert_bits(out[1], scales.T)
    again = back(*out, n=height, g=groups)
    assert_bits(again[0], codes)
    assert_bits(again[1], scales)


@pytest.mark.parametrize(
    "layout, codes, scales, message",
    [
        (
            there(4),
            ((8, 12), "uint32"),
            ((8, 2), "float16"),
            "layout.group_quantized.nk_to_kn: 12 words along K given, expected 8 (2 groups of 4 "
            "words); give the codes and the scales of one weight, and its `bits` and `group_size`",
        ),
        (
            back(8),
            (("4 * g", "n"), "uint32"),
            (("g", "n"), "float16"),
            "layout.group_quantized.kn_to_nk: 4 * g words along K given, expected g * 8 (g groups "
            "of 8 words); give the codes and the scales of one weight, and its `bits` and "
            "`group_size`; TVM has to be able to prove it: write that size as `g * 8`",
        ),
        (
            there(4),
            ((8, 8), "uint32"),
            ((6, 2), "float16"),
            "layout.group_quantized.nk_to_kn: 6 rows of scales given, expected 8 (rows of codes); "
            "give the codes and the scales of one weight",
        ),
        (
            there(4),
            ((8, 8), "int32"),
            ((8, 2), "float16"),
            "layout.group_quantized.nk_to_kn: `codes` is int32, expected uint32 (N, words); layouts "
            "move bits and never convert numbers: give the tensor as it is stored",
        ),
        (
            there(2),
            ((8, 8), "uint32"),
            ((8, 2), "float16"),
            "layout.group_quantized.nk_to_kn: bits=2 given, expected 3 or 4 or 8; other widths are "
            "not of this family",
        ),
        (
            there(3, 32),
            ((8, 8), "uint32"),
            ((8, 2), "float16"),
            "layout.group_quantized.nk_to_kn: group_size=32 given, expected a multiple of 10; a "
            "group fills whole words of 10 codes of 3 bits",
        ),
    ],
)
def test_refusals(layout, codes, scales, message):
    with pytest.raises(LayoutError) as raised:
        compiled(layout, codes, scales)
    assert str(raised.value) == message
