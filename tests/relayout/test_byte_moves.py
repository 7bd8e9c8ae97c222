"""What the runtime can carry out: moves of whole bytes."""

import numpy as np
import pytest
from described import apply, number, places
from hypothesis import given
from inplace_kernels import kernels_of, moves, random_array
from moving_kernels import COMPUTED, LAYOUTS, OPERATORS, SIZES
from profiles import examples
from tvm import relax

from relax_inplace import layout
from relax_inplace.relayout.byte_moves import ByteDigit, ByteMove, byte_moves, is_bijection, is_move
from relax_inplace.relayout.inlining import with_producers_inlined
from relax_inplace.relayout.read_description import read_relayouts


def carried_out(moves, arrays, count, sizes):
    """The bytes of an output of so many."""
    out = np.zeros(count, "uint8")
    for move in moves:
        width = number(move.width, sizes)
        extents = [number(digit.extent, sizes) for digit in move.digits]
        into, read = (
            places(number(base, sizes), [number(step, sizes) for step in steps], extents)
            for base, steps in (
                (move.into, [digit.into for digit in move.digits]),
                (move.read, [digit.read for digit in move.digits]),
            )
        )
        run = np.arange(width)
        made = np.zeros((len(into), width), "uint8")
        if move.source is not None:
            made = arrays[move.source][read[:, None] + run]
        if move.pattern:
            assert width % len(move.pattern) == 0
            made = made ^ np.resize(np.frombuffer(move.pattern, "uint8"), width)
        out[into[:, None] + run] = made
    return out


def relayouts(name):
    function, tensors = {**OPERATORS, **LAYOUTS}[name]
    for kernel in kernels_of(function, *tensors):
        yield from read_relayouts(with_producers_inlined(kernel))


BITS = ("int4", "q4_K", "awq", "gptq", "kn_to_nk", "nk_to_kn")


@pytest.mark.parametrize("name", {**OPERATORS, **LAYOUTS})
def test_as_the_description_says(name):
    sizes = {"n": 50, "k": 100} if "rim" in name else SIZES
    for relayout in relayouts(name):
        assert is_move(relayout)
        found = byte_moves(relayout)
        if found is None:
            assert any(word in name for word in BITS)
            continue
        generator = np.random.default_rng(0)
        given = {
            param: generator.integers(0, 256, number(size, sizes) // 8, "uint8")
            for param, size in relayout.bits
        }
        count = len(given.pop(relayout.output))
        expected = apply(relayout, {p: data.tobytes() for p, data in given.items()}, {}, sizes)
        assert carried_out(found, given, count, sizes).tobytes() == expected


@examples(100)
@given(moves(may_cast=False))
def test_any_moves(drawn):
    (relayout,) = read_relayouts(drawn.kernel)
    given = random_array(np.random.default_rng(0), drawn.shape, drawn.dtype).reshape(-1)
    expected = given[drawn.sources].tobytes()
    moved = carried_out(byte_moves(relayout), {0: given.view("uint8")}, len(expected), {})
    assert moved.tobytes() == expected


def described(function, *tensors):
    (kernel,) = kernels_of(function, *tensors)
    (relayout,) = read_relayouts(kernel)
    return relayout


def test_a_transpose_is_one_move():
    relayout = described(relax.op.permute_dims, ((12, 10), "float16"))
    assert is_bijection(relayout)
    digits = ByteDigit(10, 24, 2), ByteDigit(12, 2, 20)
    assert byte_moves(relayout) == [ByteMove(2, digits, 0, 0, 0, b"")]


def test_blocks_with_a_head_are_two_moves():
    """GGML's: scales, and codes of which the sign is turned over."""
    relayout = described(lambda x: layout.ggml.interleave(x, rows=8, bytes=8), ((24, 90), "uint8"))
    assert is_bijection(relayout)
    assert [(m.width, m.pattern) for m in byte_moves(relayout)] == [(2, b""), (8, b"\x88")]


def test_nibbles_are_no_whole_bytes():
    to_gemm = layout.faster_transformer.to_mixed_gemm
    relayout = described(lambda x: to_gemm(x, arch=80, bits=4), ((192, 64), "int8"))
    assert is_bijection(relayout)
    assert byte_moves(relayout) is None


def test_a_constant_is_repeated():
    padded = lambda x: relax.op.nn.pad(x, (0, 0, 0, 3), pad_value=1.0)  # noqa: E731
    move, fill = byte_moves(described(padded, ((4, 5), "float16")))
    assert move == ByteMove(10, (ByteDigit(4, 16, 10),), 0, 0, 0, b"")
    assert fill == ByteMove(6, (ByteDigit(4, 16, 0),), 10, None, 0, b"\x00\x3c")


@pytest.mark.parametrize("name", COMPUTED)
def test_what_computes_is_no_move(name):
    function, tensors = COMPUTED[name]
    for kernel in kernels_of(function, *tensors):
        for relayout in read_relayouts(with_producers_inlined(kernel)):
            assert not is_move(relayout)
            assert byte_moves(relayout) is None
            assert not is_bijection(relayout)
