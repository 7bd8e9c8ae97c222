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

# Of make_block_q4_0x4, make_block_q4_0x8 and make_block_q8_0x4 (ggml-cpu/repack.cpp), compiled and
# run on `pattern` of 16 rows of 5 blocks: SHA-256 of the result.
GGML = {
    ("q4_0", 4, 4): "a34fdcbcad8dfbe9",
    ("q4_0", 4, 8): "b1c5e95bd0524165",
    ("q4_0", 8, 8): "7af126e580d66ed6",
    ("q8_0", 4, 4): "a6526b72e9e4432f",
    ("q8_0", 4, 8): "dd2319fe9dc06ccf",
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
    weight = pattern((16, 5 * references.BLOCK_BYTES[form[0]]), "uint8")
    out = compiled(there(*form), (weight.shape, "uint8"))(weight)
    assert hashlib.sha256(out.tobytes()).hexdigest()[:16] == GGML[form]


@examples(20)
@given(st.sampled_from(list(GGML)), st.integers(1, 3), st.integers(1, 4))
def test_static_sizes(form, groups, blocks):
    weight = random_bits(
        np.random.default_rng(blocks),
        (groups * form[1], blocks * references.BLOCK_BYTES[form[0]]),
        "uint8",
    )
    expected = references.interleaved(weight, *form)
    assert_bits(compiled(there(*form), (weight.shape, "uint8"))(weight), expected)
    assert_bits(compiled(back(*form), (expected.shape, "uint8"))(expected), weight)


@pytest.fixture(scope="module", params=GGML, ids=str)
def symbolic(request):
    block, rows, _ = form = request.param
    size = references.BLOCK_BYTES[block]
    return (
        form,
        compiled(there(*form), ((f"n * {rows}", f"b * {size}"), "uint8")),
        compiled(back(*form), (("n", "b", rows * size), "uint8")),
    )


@examples(15)
@given(groups=st.integers(1, 6), blocks=st.integers(1, 6))
def test_symbolic_sizes(symbolic, groups, blocks):
    form, interleave, deinterleave = symbolic
    size = references.BLOCK_BYTES[form[0]]
    weight = random_bits(np.random.default_rng(groups), (groups * form[1], blocks * size), "uint8")
    expected = references.interleaved(weight, *form)
    assert_bits(interleave(weight, n=groups, b=blocks), expected)
    assert_bits(deinterleave(expected, n=groups, b=blocks), weight)


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
            "layout.ggml.interleave: 8 rows by 8 bytes of q8_0 given, expected 4 by 4 or 4 by 8; "
            "choose what ggml's kernels read",
        ),
        (
            there("q4_K", 4, 4),
            ((32, 144), "uint8"),
            "layout.ggml.interleave: block='q4_K' given, expected 'q4_0' or 'q8_0'; other blocks "
            "have no layout here",
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
