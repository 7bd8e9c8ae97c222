"""What the runtime carries out: moves of bits, in runs of bytes."""

import numpy as np
import pytest
import tvm_ffi
from described import apply, number
from hypothesis import given
from inplace_kernels import kernels_of, moves, random_array
from moving_kernels import COMPUTED, LAYOUTS, OPERATORS, SIZES
from profiles import examples
from tvm import relax

from relax_inplace import layout
from relax_inplace.libinfo import load_library
from relax_inplace.relayout.description import Digit, Piece, Relayout
from relax_inplace.relayout.inlining import with_producers_inlined
from relax_inplace.relayout.moves import Call, calls_of, is_bijection, is_nested
from relax_inplace.relayout.read_description import read_relayouts

load_library()
run = tvm_ffi.get_global_func("relax_inplace.relayout")


def carried_out(calls, arrays, output, sizes):
    """What the runtime writes over an output, of these bytes."""
    output = tvm_ffi.from_dlpack(output.copy())
    for call in calls:
        source = output if call.source is None else tvm_ffi.from_dlpack(arrays[call.source])
        run(source, output, *(number(size, sizes) for size in call.numbers))
    return np.from_dlpack(output)


def relayouts(name):
    function, tensors = {**OPERATORS, **LAYOUTS}[name]
    for kernel in kernels_of(function, *tensors):
        yield from read_relayouts(with_producers_inlined(kernel))


# Constants beside each of many numbers; fields of 6 bits.
OTHERS = (
    "to a wider unsigned",
    "layout_transform, a rim",
    *(f"{size}{way}interleave q4_K 8x8" for size in ("", "any size: ") for way in ("", "de")),
)


@pytest.mark.parametrize("name", {**OPERATORS, **LAYOUTS})
def test_as_the_description_says(name):
    sizes = {"n": 50, "k": 100} if "rim" in name else SIZES
    others = []
    for relayout in relayouts(name):
        assert all(piece.value is None for piece in relayout.pieces)
        calls = calls_of(relayout)
        if calls is None:
            others.append(name)
            continue
        generator = np.random.default_rng(0)
        given = {
            param: generator.integers(0, 256, number(size, sizes) // 8, "uint8")
            for param, size in relayout.bits
        }
        output = given.pop(relayout.output)
        expected = apply(relayout, {p: data.tobytes() for p, data in given.items()}, sizes)
        assert carried_out(calls, given, output, sizes).tobytes() == expected
        if is_bijection(relayout):
            assert is_nested(relayout)
            (data,) = given.values()
            memory = tvm_ffi.from_dlpack(data)
            (call,) = calls
            run(memory, memory, *(number(size, sizes) for size in call.numbers))
            assert data.tobytes() == expected
    assert bool(others) == (name in OTHERS)


@examples(100)
@given(moves(may_cast=False))
def test_any_moves(drawn):
    (relayout,) = read_relayouts(drawn.kernel)
    given = random_array(np.random.default_rng(0), drawn.shape, drawn.dtype).reshape(-1)
    expected = given[drawn.sources]
    output = np.zeros(expected.nbytes, "uint8")
    moved = carried_out(calls_of(relayout), {0: given.view("uint8")}, output, {})
    assert moved.tobytes() == expected.tobytes()


def described(function, *tensors):
    (kernel,) = kernels_of(function, *tensors)
    (relayout,) = read_relayouts(kernel)
    return relayout


def test_a_transpose_is_one_piece():
    relayout = described(relax.op.permute_dims, ((12, 10), "float16"))
    assert is_bijection(relayout) and is_nested(relayout)
    # How many pieces; bits of an element, where the first is read and written, no pattern, two
    # digits: how often, how far it is written and read.
    piece = 16, 0, 0, 0, 0, 2, *(10, 192, 16), *(12, 16, 160)
    assert calls_of(relayout) == [Call(0, (1, *piece))]


def signed(word):
    return word - (word >> 63 << 64)


def test_blocks_with_a_head_are_two_pieces():
    """GGML's: scales, and codes of which the sign is turned over."""
    relayout = described(lambda x: layout.ggml.interleave(x, rows=8, bytes=8), ((24, 90), "uint8"))
    assert is_bijection(relayout) and is_nested(relayout)
    (call,) = calls_of(relayout)
    scales, codes = call.numbers[1:16], call.numbers[16:]
    assert call.numbers[0] == 2
    assert scales == (16, 0, 0, 0, 0, 3, *(3, 5760, 5760), *(5, 1152, 144), *(8, 16, 720))
    assert codes[:6] == (8, 16, 128, signed(0x8888888888888888), 0, 5)


def test_nibbles_that_change_their_order_in_bytes():
    to_gemm = layout.faster_transformer.to_mixed_gemm
    relayout = described(lambda x: to_gemm(x, arch=80, bits=4), ((192, 64), "int8"))
    assert is_bijection(relayout)
    (call,) = calls_of(relayout)
    assert call.numbers[:6] == (1, 4, 0, 0, signed(0x8888888888888888), 0)


def test_a_constant_is_a_piece_that_reads_nothing():
    padded = lambda x: relax.op.nn.pad(x, (0, 0, 0, 3), pad_value=1.0)  # noqa: E731
    (call,) = calls_of(described(padded, ((4, 20), "float16")))
    move = 320, 0, 0, 0, 0, 1, *(4, 368, 320)
    fill = 16, 0, 320, 0x3C003C003C003C00, 1, 2, *(4, 368, 0), *(3, 16, 0)
    assert call == Call(0, (2, *move, *fill))


def test_a_pattern_of_no_power_of_two_is_cut():
    """Of 24 bits: 16 and 8."""
    run = Digit(24, 1, (1,))
    piece = Piece((Digit(5, 24, (24,)), run), 0, ((0, 0),), flip=0xABCDEF)
    (call,) = calls_of(Relayout(1, (piece,), ((0, 120), (1, 120))))
    low, high = signed(0xCDEFCDEFCDEFCDEF), signed(0xABABABABABABABAB)
    assert call.numbers == (
        *(2, 16, 0, 0, low, 0, 1, 5, 24, 24),
        *(8, 16, 16, high, 0, 1, 5, 24, 24),
    )


def piece_of(*digits, into=0, read=0, **more):
    digits = tuple(Digit(extent, into, (read,)) for extent, into, read in digits)
    return Piece(digits, into, ((0, read),), **more)


@pytest.mark.parametrize(
    "piece",
    {
        "nibbles that become bytes": piece_of((6, 8, 4), (4, 1, 1)),
        "nibbles of bytes": piece_of((6, 4, 8), (4, 1, 1)),
        "from the middle of a byte": piece_of((64, 1, 1), read=4),
        "to the middle of a byte": piece_of((64, 1, 1), into=4),
        "rows of half bytes": piece_of((3, 12, 12), (12, 1, 1)),
        "zeros beside bytes": Piece((Digit(6, 32), Digit(24, 1)), 8, (), fill=0),
    }.items(),
    ids=lambda item: item[0],
)
def test_what_is_in_no_runs_of_bytes(piece):
    assert calls_of(Relayout(1, (piece[1],), ((0, 4096), (1, 4096)))) is None


def test_digits_that_are_not_nested():
    """Of each digit's values some lie between those of the other."""
    pieces = piece_of((3, 16, 16), (2, 24, 24), (8, 1, 1)), piece_of((8, 1, 1), into=8, read=8)
    assert not is_nested(Relayout(1, pieces, ((0, 64), (1, 64))))


@pytest.mark.parametrize("name", COMPUTED)
def test_what_computes_is_no_move(name):
    function, tensors = COMPUTED[name]
    for kernel in kernels_of(function, *tensors):
        for relayout in read_relayouts(with_producers_inlined(kernel)):
            assert calls_of(relayout) is None
            assert not is_bijection(relayout)


def test_runs_of_bytes_that_begin_within_bytes():
    """Eight bits of every twelve."""
    run = Digit(8, 1, (1,))
    for into, read in ((8, 12), (12, 8)):
        piece = Piece((Digit(6, into, (read,)), run), 0, ((0, 0),))
        assert calls_of(Relayout(1, (piece,), ((0, 72), (1, 72)))) is None
