"""AWQ's and GPTQ's tensors: there and back, against numpy."""

import numpy as np
import pytest
import references
from compiled import assert_bits, compiled, random_bits
from hypothesis import given
from hypothesis import strategies as st
from profiles import examples

from relax_inplace.layout import LayoutError, awq, gptq


def of_gptq(bits):
    return (
        lambda *tensors: gptq.to_groups(*tensors, bits=bits),
        lambda *tensors: gptq.from_groups(*tensors, bits=bits),
    )


# Bits, the two ways, and the shapes of a K x N weight with groups of g.
FORMATS = {
    "awq": (4, awq.to_groups, awq.from_groups),
    "gptq 4": (4, *of_gptq(4)),
    "gptq 8": (8, *of_gptq(8)),
}


def shapes(name, k, n, groups):
    per = 32 // FORMATS[name][0]
    qweight = (k, n // per) if name == "awq" else (k // per, n)
    return [qweight, (groups, n // per), (groups, n)]


def expected(name, tensors):
    if name == "awq":
        return references.awq_groups(*tensors)
    return references.gptq_groups(*tensors, FORMATS[name][0])


def test_a_small_case_of_awq():
    """Code of row k and column n: (k + 2 n) % 16."""
    codes = (np.arange(8)[:, None] + 2 * np.arange(8)) % 16
    words = np.zeros((8, 1), "uint32")
    for place, column in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):  # AutoAWQ's order_map
        words[:, 0] |= (codes[:, column] << (4 * place)).astype("uint32")
    assert words[0, 0] == 0xEA62C840
    tensors = words.view("int32"), words[:1].view("int32"), np.arange(8, dtype="float16")[None]
    out = compiled(awq.to_groups, *((t.shape, str(t.dtype)) for t in tensors))(*tensors)
    rows = [0x76543210, 0x98765432, 0xBA987654, 0xDCBA9876, 0xFEDCBA98, 0x10FEDCBA]
    assert list(out[0][:6, 0]) == rows
    assert list(out[1][0]) == [0xECA86420]
    assert_bits(out[2], np.arange(8, dtype="float16")[:, None])


def test_a_small_case_of_gptq():
    """Code of row k and column n: (k + n) % 16; zeros stay what they are."""
    words = np.array([[0x76543210, 0x87654321]], "uint32")
    words = np.repeat(words, 4, axis=1)
    zeros = np.array([[0x7F012345]], "uint32")
    tensors = words.view("int32"), zeros.view("int32"), np.ones((1, 8), "float16")
    out = compiled(gptq.to_groups, *((t.shape, str(t.dtype)) for t in tensors))(*tensors)
    assert list(out[0][:, 0]) == [0x76543210] * 4 + [0x87654321] * 4
    assert list(out[1][0]) == [0x7F012345]


@examples(20)
@given(
    st.sampled_from(list(FORMATS)),
    st.sampled_from(["int32", "uint32"]),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 3),
)
def test_static_sizes(name, dtype, words, columns, groups):
    _, to, back = FORMATS[name]
    generator = np.random.default_rng(words)
    dtypes = (dtype, dtype, "float16")
    sizes = shapes(name, 8 * words * groups, 8 * columns, groups)
    tensors = [random_bits(generator, s, d) for s, d in zip(sizes, dtypes, strict=True)]
    out = compiled(to, *zip(sizes, dtypes, strict=True))(*tensors)
    for left, right in zip(out, expected(name, tensors), strict=True):
        assert_bits(left, right)
    again = compiled(back, *((t.shape, str(t.dtype)) for t in out))(*out)
    for left, right in zip(again, tensors, strict=True):
        assert_bits(left, right.view("int32") if right.dtype == "uint32" else right)


@pytest.fixture(scope="module", params=FORMATS)
def symbolic(request):
    per = 32 // FORMATS[request.param][0]
    _, to, back = FORMATS[request.param]
    if request.param == "awq":
        qweight, codes = ("k * 8", "n"), ("n * 8", "k")
    else:
        qweight, codes = ("k", f"n * {per}"), (f"n * {per}", "k")
    stored = (qweight, "int32"), (("g", "n"), "int32"), (("g", f"n * {per}"), "float16")
    groups = (codes, "uint32"), (("n", "g"), "uint32"), ((f"n * {per}", "g"), "float16")
    return request.param, per, compiled(to, *stored), compiled(back, *groups)


@examples(25)
@given(words=st.integers(1, 6), columns=st.integers(1, 4), groups=st.integers(1, 4))
def test_symbolic_sizes(symbolic, words, columns, groups):
    name, per, to, back = symbolic
    generator = np.random.default_rng(words)
    sizes = shapes(name, per * words * groups, per * columns, groups)
    dtypes = ("int32", "int32", "float16")
    tensors = [random_bits(generator, s, d) for s, d in zip(sizes, dtypes, strict=True)]
    symbols = {"k": words * groups, "n": columns, "g": groups}
    out = to(*tensors, **symbols)
    for left, right in zip(out, expected(name, tensors), strict=True):
        assert_bits(left, right)
    for left, right in zip(back(*out, **symbols), tensors, strict=True):
        assert_bits(left, right)


@pytest.mark.parametrize(
    "layout, qweight, qzeros, scales, message",
    [
        (
            awq.to_groups,
            ((12, 2), "int32"),
            ((1, 2), "int32"),
            ((1, 16), "float16"),
            "layout.awq.to_groups: 12 rows of qweight given, expected a multiple of 8; K has to "
            "fill words of 8 codes",
        ),
        (
            awq.to_groups,
            ((16, 2), "int32"),
            ((2, 2), "int32"),
            ((2, 8), "float16"),
            "layout.awq.to_groups: 8 columns of scales given, expected 16 (8 a word); give the "
            "three tensors of one weight",
        ),
        (
            awq.from_groups,
            ((16, 2), "uint32"),
            ((3, 2), "uint32"),
            ((16, 2), "float16"),
            "layout.awq.from_groups: 16 rows of codes given, expected 24 (8 a word of zeros); give "
            "the three tensors of one weight",
        ),
        (
            gptq.to_groups,
            ((2, 16), "int32"),
            ((2, 4), "int32"),
            ((2, 16), "float16"),
            "layout.gptq.to_groups: 16 columns of qweight given, expected 32 (8 a word of qzeros); "
            "give the three tensors of one weight, and its `bits`",
        ),
        (
            of_gptq(3)[0],
            ((3, 32), "int32"),
            ((1, 3), "int32"),
            ((1, 32), "float16"),
            "layout.gptq.to_groups: bits=3 given, expected 4 or 8; MLC packs codes of 3 bits "
            "otherwise, and has none of 2: requantise the weight",
        ),
        (
            gptq.from_groups,
            ((16, 2), "int32"),
            ((2, 2), "uint32"),
            ((16, 2), "float16"),
            "layout.gptq.from_groups: `codes` is int32, expected uint32 (N, K / 8); layouts move "
            "bits and never convert numbers: give the tensor as it is stored",
        ),
    ],
)
def test_refusals(layout, qweight, qzeros, scales, message):
    with pytest.raises(LayoutError) as raised:
        compiled(layout, qweight, qzeros, scales)
    assert str(raised.value) == message
