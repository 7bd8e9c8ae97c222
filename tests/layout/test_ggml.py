"""GGML's interleaved blocks: there and back, against numpy and against ggml's own bytes."""

import hashlib

import numpy as np
import pytest
import references
from compiled import assert_bits, compiled, pattern, random_bits
from hypothesis import given
from hypothesis import strategies as st
from profiles import examples

from relax_inplace.layout import LayoutError, ggml

# Of make_block_q4_0x4, make_block_q4_Kx8 and so on (llama.cpp's ggml-cpu/repack.cpp), compiled and run
# on `pattern` of 16 rows of 5 blocks: SHA-256 of the result. KleidiAI's
# kai_run_rhs_pack_nxk_qsi4c32pscalef16_qsu4c32s16s0 makes the bytes of q4_0 4x4, 4x8 and 8x8, too.
GGML = {
    ("q4_0", 4, 4): "a34fdcbcad8dfbe9",
    ("q4_0", 4, 8): "b1c5e95bd0524165",
    ("q4_0", 8, 8): "7af126e580d66ed6",
    ("q4_0", 16, 1): "661cff7ee800479e",
    ("q8_0", 4, 4): "a6526b72e9e4432f",
    ("q8_0", 4, 8): "dd2319fe9dc06ccf",
    ("q8_0", 16, 1): "a23279fd17f3e93e",
    ("iq4_nl", 4, 4): "caaaedcfc779f97f",
    ("iq4_nl", 8, 8): "f1a6e93e495b8811",
    ("iq4_nl", 16, 1): "cadcd0b229a5354c",
    ("mxfp4", 4, 4): "f17eef006607316b",
    ("mxfp4", 8, 8): "9feefcd38551ac67",
    ("q4_K", 8, 4): "3c39b9ceacd9d810",
    ("q4_K", 8, 8): "9ecd1f161ec014ef",
    ("q5_K", 8, 4): "bed113cdb926e7b3",
    ("q5_K", 8, 8): "98dd130867cdf42a",
    ("q6_K", 8, 4): "ba334a463222c2c1",
    ("q6_K", 8, 8): "0f9add3ba585203d",
}
BLOCK_BYTES = {
    "q4_0": 18,
    "q8_0": 34,
    "iq4_nl": 18,
    "mxfp4": 17,
    "q4_K": 144,
    "q5_K": 176,
    "q6_K": 210,
}


def there(block, rows, chunk):
    return lambda w: ggml.interleave(w, block=block, rows=rows, bytes=chunk)


def back(block, rows, chunk):
    return lambda w: ggml.deinterleave(w, block=block, rows=rows, bytes=chunk)


def test_a_small_case():
    """Four rows of one block: bytes 16 r to 16 r + 15 of row r, its scale (200 + r, 210 + r)."""
    rows = [[200 + r, 210 + r, *range(16 * r, 16 * r + 16)] for r in range(4)]
    out = compiled(there("q4_0", 4, 8), ((4, 18), "uint8"))(np.array(rows, "uint8")).ravel()
    assert list(out[:8]) == [200, 210, 201, 211, 202, 212, 203, 213]
    codes = [
        *(0x88, 0x89, 0x8A, 0x8B, 0x8C, 0x8D, 0x8E, 0x8F),  # row 0: bytes 0x00 to 0x07
        *(0x98, 0x99, 0x9A, 0x9B, 0x9C, 0x9D, 0x9E, 0x9F),  # row 1: 0x10 to 0x17
        *(0xA8, 0xA9, 0xAA, 0xAB, 0xAC, 0xAD, 0xAE, 0xAF),
        *(0xB8, 0xB9, 0xBA, 0xBB, 0xBC, 0xBD, 0xBE, 0xBF),
        *(0x80, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87),  # row 0: 0x08 to 0x0f
    ]
    assert list(out[8:48]) == codes


def test_the_flip_makes_twos_complement():
    """Code c stands for c - 8."""
    row = np.array([[0, 0, *range(16)]] * 4, "uint8")
    out = compiled(there("q4_0", 4, 4), (row.shape, "uint8"))(row)[0, 0, 8:]
    low = (out & 15).astype("int8")
    assert sorted(set(np.where(low < 8, low, low - 16))) == [code - 8 for code in range(16)]


@pytest.mark.parametrize("form", GGML, ids=str)
def test_ggml_makes_the_same_bytes(form):
    weight = pattern((16, 5 * BLOCK_BYTES[form[0]]), "uint8")
    out = compiled(there(*form), (weight.shape, "uint8"))(weight)
    assert_bits(compiled(back(*form), (out.shape, "uint8"))(out), weight)
    assert hashlib.sha256(out.tobytes()).hexdigest()[:16] == GGML[form]


PLAIN = [form for form in GGML if not form[0].endswith("_K")]  # whole bytes of codes and scales


@examples(20)
@given(st.sampled_from(PLAIN), st.integers(1, 3), st.integers(1, 4))
def test_static_sizes(form, groups, blocks):
    shape = groups * form[1], blocks * BLOCK_BYTES[form[0]]
    weight = random_bits(np.random.default_rng(blocks), shape, "uint8")
    expected = references.interleaved(weight, *form, BLOCK_BYTES[form[0]])
    assert_bits(compiled(there(*form), (weight.shape, "uint8"))(weight), expected)
    assert_bits(compiled(back(*form), (expected.shape, "uint8"))(expected), weight)


def test_scales_of_6_bits():
    """Scale of sub-block i and row r: (8 i + r) % 64; its minimum is 63 less that."""
    rows = np.zeros((8, 144), "uint8")
    values = (8 * np.arange(8)[:, None] + np.arange(8)) % 64  # sub-block, row

    def packed(scales):
        """Of 8 scales and their minima, as get_scale_min_k4 of ggml-quants.c unpacks them."""
        out = np.zeros(12, "uint8")
        for i in range(4):
            s, m, high, high_m = scales[i], 63 - scales[i], scales[i + 4], 63 - scales[i + 4]
            out[i] = s | high >> 4 << 6
            out[i + 4] = m | high_m >> 4 << 6
            out[i + 8] = high & 15 | (high_m & 15) << 4
        return out

    for r in range(8):
        rows[r, 4:16] = packed(values[:, r])
    out = compiled(there("q4_K", 8, 8), (rows.shape, "uint8"))(rows)[0, 0, 32:128].reshape(8, 12)
    assert_bits(out, np.stack([packed(values[i]) for i in range(8)]))


@pytest.fixture(scope="module", params=[*PLAIN[:4], ("q4_K", 8, 8), ("q6_K", 8, 4)], ids=str)
def symbolic(request):
    block, rows, _ = form = request.param
    size = BLOCK_BYTES[block]
    shapes = ("n", "b", rows * size), (f"n * {rows}", f"b * {size}")
    return form, *(
        [compiled(way(*form), ((*experts, *shape), "uint8")) for experts in ((), ("e",))]
        for way, shape in zip((back, there), shapes, strict=True)
    )


@examples(15)
@given(groups=st.integers(1, 4), blocks=st.integers(1, 4), experts=st.integers(1, 3))
def test_symbolic_sizes(symbolic, groups, blocks, experts):
    """Also of each expert."""
    form, deinterleave, interleave = symbolic
    sizes = {"n": groups, "b": blocks}
    shape = (experts, groups * form[1], blocks * BLOCK_BYTES[form[0]])
    weight = random_bits(np.random.default_rng(groups), shape, "uint8")
    each = compiled(there(*form), (shape[1:], "uint8")) if groups == blocks == 1 else None
    made = interleave[1](weight, e=experts, **sizes)
    for expert in range(experts):
        assert_bits(interleave[0](weight[expert], **sizes), made[expert])
        if each is not None:
            assert_bits(each(weight[expert]), made[expert])
        if form in PLAIN:
            expected = references.interleaved(weight[expert], *form, BLOCK_BYTES[form[0]])
            assert_bits(made[expert], expected)
    assert_bits(deinterleave[1](made, e=experts, **sizes), weight)
    assert_bits(deinterleave[0](made[0], **sizes), weight[0])


@pytest.mark.parametrize(
    "layout, tensor, message",
    [
        (
            ggml.interleave,
            ((30, 36), "uint8"),
            "layout.ggml.interleave: 30 rows given, expected a multiple of 4; ggml leaves such a "
            "weight as it is: do so, too, or pad it with rows of zeros",
        ),
        (
            ggml.interleave,
            ((32, 34), "uint8"),
            "layout.ggml.interleave: 34 bytes in a row of q4_0 given, expected a multiple of 18; "
            "give whole rows as they are in a GGUF file: K / 32 blocks of 18 bytes",
        ),
        (
            ggml.interleave,
            (("n", 36), "uint8"),
            "layout.ggml.interleave: n rows given, expected a multiple of 4; write that size as "
            "`m * 4`, or let R.match_cast check it when the function runs: `(n) // 4 * 4`",
        ),
        (
            ggml.interleave,
            ((32, 36), "int8"),
            "layout.ggml.interleave: `weight` is int8, expected uint8 (N, bytes of a row); layouts "
            "move bits and never convert numbers: give the tensor as it is stored",
        ),
        (
            there("q8_0", 8, 8),
            ((32, 34), "uint8"),
            "layout.ggml.interleave: 8 rows by 8 bytes of q8_0 given, expected 4 by 4 or 4 by 8 or 16 "
            "by 1; choose what ggml's kernels read",
        ),
        (
            there("q3_K", 8, 8),
            ((32, 110), "uint8"),
            "layout.ggml.interleave: block='q3_K' given, expected 'q4_0' or 'q8_0' or 'iq4_nl' or "
            "'mxfp4' or 'q4_K' or 'q5_K' or 'q6_K'; other blocks have no layout here",
        ),
        (
            there("q4_K", 8, 8),
            ((32, 160), "uint8"),
            "layout.ggml.interleave: 160 bytes in a row of q4_K given, expected a multiple of 144; "
            "give whole rows as they are in a GGUF file: K / 256 blocks of 144 bytes",
        ),
        (
            back("q4_0", 8, 8),
            ((4, 2, 72), "uint8"),
            "layout.ggml.deinterleave: 72 bytes in a block given, expected 144 (8 rows of 18); give "
            "what interleave returned, with the same `block` and `rows`",
        ),
    ],
)
def test_refusals(layout, tensor, message):
    with pytest.raises(LayoutError) as raised:
        compiled(layout, tensor)
    assert str(raised.value) == message
