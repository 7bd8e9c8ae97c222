"""relax_inplace.relayout: moves of bytes and bits, compared with loops over numpy's views."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tvm
import tvm_ffi
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided
from profiles import examples
from tvm.script import tirx as T

from relax_inplace.libinfo import load_library

load_library()
relayout = tvm_ffi.get_global_func("relax_inplace.relayout")
relayout_scratch = tvm_ffi.get_global_func("relax_inplace.relayout_scratch")

MOST_SCRATCH = 4 << 20
UNITS = [1, 2, 3, 4, 8, 16]
NUM_THREADS = "RELAX_INPLACE_NUM_THREADS"


@dataclass(frozen=True)
class Piece:
    """Numbers are of units of so many bits; the pattern is 64 bits, as the runtime takes it."""

    element: int
    digits: tuple[tuple[int, int, int], ...]  # extent, into, read
    into: int = 0
    read: int = 0
    pattern: int = 0
    fills: bool = False
    unit: int = 8

    @property
    def numbers(self):
        flat = [self.element, self.read, self.into]
        flat = [number * self.unit for number in flat]
        flat += [self.pattern - (self.pattern >> 63 << 64), int(self.fills), len(self.digits)]
        for extent, into, read in self.digits:
            flat += [extent, into * self.unit, read * self.unit]
        return flat

    @property
    def arguments(self):
        return [1, *self.numbers]

    def reach(self, base, stride):
        """The first unit, and the one behind the last."""
        ends = [base, base]
        for digit in self.digits:
            ends[digit[stride] > 0] += digit[stride] * (digit[0] - 1)
        return ends[0], ends[1] + self.element

    def view(self, data, base, stride):
        shape = [digit[0] for digit in self.digits] + [self.element]
        strides = [digit[stride] for digit in self.digits] + [1]
        if 0 in shape:
            return np.empty(shape, np.uint8)
        return as_strided(data[base:], shape, strides)

    def apply(self, source, target):
        """Of bytes; of bits, if units are less than bytes."""
        if self.unit < 8:
            factor = self.unit
            whole = Piece(
                self.element * factor,
                tuple((e, i * factor, r * factor) for e, i, r in self.digits),
                self.into * factor,
                self.read * factor,
                unit=1,
            )
            bits = np.unpackbits(target, bitorder="little")
            given = np.unpackbits(source, bitorder="little")
            made = 0 if self.fills else whole.view(given, whole.read, 2)
            pattern = [self.pattern >> bit % 64 & 1 for bit in range(whole.element)]
            whole.view(bits, whole.into, 1)[...] = made ^ np.array(pattern, "uint8")
            target[...] = np.packbits(bits, bitorder="little")
            return
        pattern = np.resize(np.frombuffer(self.pattern.to_bytes(8, "little"), "u1"), self.element)
        made = 0 if self.fills else self.view(source, self.read, 2)
        self.view(target, self.into, 1)[...] = made ^ pattern


def numbers_of(pieces):
    return [len(pieces), *(number for piece in pieces for number in piece.numbers)]


def random_bytes(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, count, np.uint8)


def unaligned(data, offset):
    """A copy of it, so many bytes behind an address of 64."""
    room = np.empty(len(data) + 128, np.uint8)
    start = -room.ctypes.data % 64 + offset
    room[start : start + len(data)] = data
    return room[start : start + len(data)]


def check_out_of_place(piece, source, target_bytes, offsets=(0, 0)):
    pieces = piece if isinstance(piece, list) else [piece]
    expected = random_bytes(target_bytes, 1)
    target = unaligned(expected, offsets[1])
    source = unaligned(source, offsets[0])
    kept = source.copy()
    relayout(tvm_ffi.from_dlpack(source), tvm_ffi.from_dlpack(target), *numbers_of(pieces))
    for piece in pieces:
        piece.apply(source, expected)
    np.testing.assert_array_equal(target, expected)
    np.testing.assert_array_equal(source, kept)


def check_in_place(piece, data, offset=0):
    """Also with what lies around the bytes that the pieces permute."""
    pieces = piece if isinstance(piece, list) else [piece]
    around = 64
    room = unaligned(np.concatenate([data, random_bytes(2 * around, 2)]), offset)
    expected = room.copy()
    for piece in pieces:
        piece.apply(room[around:-around].copy(), expected[around:-around])
    inner = tvm_ffi.from_dlpack(room[around:-around])
    assert 0 <= relayout_scratch(*numbers_of(pieces)) <= MOST_SCRATCH
    relayout(inner, inner, *numbers_of(pieces))
    np.testing.assert_array_equal(room, expected)


def transposition(unit, m, n, batch=1):
    """(batch, m, n) -> (batch, n, m)."""
    size = m * n * unit
    return Piece(unit, ((batch, size, size), (n, m * unit, unit), (m, unit, n * unit)))


def permutation(element, extents, axes, flips=(), pattern=0, unit=8):
    """np.transpose of an array of these extents, with axes of the input flipped."""
    read = [element * int(np.prod(extents[i + 1 :])) for i in range(len(extents))]
    shape = [extents[axis] for axis in axes]
    into = [element * int(np.prod(shape[i + 1 :])) for i in range(len(shape))]
    base = sum(read[axis] * (extents[axis] - 1) for axis in flips)
    digits = tuple(
        (extents[axis], step, -read[axis] if axis in flips else read[axis])
        for axis, step in zip(axes, into, strict=True)
    )
    return Piece(element, digits, 0, base, pattern, unit=unit)


def bytes_of(piece):
    return piece.element * int(np.prod([digit[0] for digit in piece.digits])) * piece.unit // 8


EXTENTS = st.one_of(st.integers(1, 5), st.sampled_from([7, 8, 13, 16, 17, 31, 32, 64, 65, 100]))


@st.composite
def pattern_of(draw, bits):
    """Of elements of so many bits: a pattern that repeats after a power of two that divides them."""
    if draw(st.booleans()):
        return 0
    period = draw(st.sampled_from([p for p in (1, 2, 4, 8, 16, 32, 64) if bits % p == 0]))
    pattern = draw(st.integers(0, (1 << period) - 1))
    return sum(pattern << at for at in range(0, 64, period))


@st.composite
def any_piece(draw):
    """(piece, bytes of the source, bytes of the target); with gaps, repeats and flips."""
    unit = draw(st.sampled_from([8, 8, 4, 2, 1]))
    element = draw(st.sampled_from([*UNITS, 5, 6, 12, 32, 64, 100]))
    extents = draw(st.lists(EXTENTS, max_size=4))
    while element * int(np.prod(extents)) > 1 << 18:
        extents.pop()
    gaps = st.sampled_from([0, 0, 0, 1, 2, 16, 64])

    def steps(can_repeat):
        found, step = {}, element
        for i in draw(st.permutations(range(len(extents)))):
            step += draw(gaps)
            if can_repeat and draw(st.integers(0, 7)) == 0:
                found[i] = 0
                continue
            found[i] = step * (-1 if can_repeat and draw(st.integers(0, 5)) == 0 else 1)
            step *= extents[i]
        return found

    into, read = steps(False), steps(True)
    digits = tuple((extent, into[i], read[i]) for i, extent in enumerate(extents))
    first = draw(st.integers(0, 100)) - Piece(element, digits).reach(0, 2)[0]
    pattern, fills = draw(pattern_of(element * unit)), draw(st.integers(0, 7)) == 0
    piece = Piece(element, digits, draw(st.integers(0, 100)), first, pattern, fills, unit)
    more = draw(st.integers(0, 3))
    reached = piece.reach(first, 2)[1], piece.reach(piece.into, 1)[1]
    return piece, *(-(-end * unit // 8) + more for end in reached)


@st.composite
def any_permutation(draw, most=1 << 18):
    unit = draw(st.sampled_from([8, 8, 4, 2, 1]))
    element = draw(st.sampled_from([*UNITS, 12, 100]))
    extents = draw(st.lists(EXTENTS, max_size=5))
    while element * int(np.prod(extents)) > most:
        extents.pop()
    if element * int(np.prod(extents)) * unit % 8 != 0:
        extents = [*extents, 8]
    axes = draw(st.permutations(range(len(extents))))
    flips = [axis for axis in axes if draw(st.integers(0, 5)) == 0]
    return permutation(element, extents, axes, flips, draw(pattern_of(element * unit)), unit)


@examples(300)
@given(any_piece(), st.tuples(st.integers(0, 63), st.integers(0, 63)))
def test_any_piece_to_other_memory(made, offsets):
    piece, source_bytes, target_bytes = made
    check_out_of_place(piece, random_bytes(source_bytes), target_bytes, offsets)


@examples(200)
@given(any_permutation(), st.sampled_from([0, 0, 1, 4, 63]))
def test_any_permutation_in_place(piece, offset):
    check_in_place(piece, random_bytes(bytes_of(piece)), offset)


@examples(15)
@given(st.data())
def test_any_large_permutation_in_place(data):
    """Larger than the scratch: one extent is what is missing."""
    small = data.draw(any_permutation(1 << 16))
    extents = [digit[0] for digit in small.digits] + [0]
    least = (5 << 20) // bytes_of(small) + 1
    extents[-1] = least + data.draw(st.integers(0, 8))
    axes = data.draw(st.permutations(range(len(extents))))
    flips = [axis for axis in axes if data.draw(st.integers(0, 5)) == 0]
    piece = permutation(small.element, extents, axes, flips, small.pattern, small.unit)
    check_in_place(piece, random_bytes(bytes_of(piece)))


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("unit", UNITS)
def test_transpositions(monkeypatch, unit, threads):
    monkeypatch.setenv(NUM_THREADS, str(threads))
    for m, n in [(1, 900), (900, 1), (127, 129), (768, 1024 * 6 // unit), (2048 // unit, 2560)]:
        piece = transposition(unit, m, n)
        data = random_bytes(bytes_of(piece))
        check_out_of_place(piece, data, len(data))
        check_in_place(piece, data)


@pytest.mark.parametrize(
    "piece",
    {
        "beyond what is kept in caches": transposition(4, 2048, 2304),
        "rows of no whole lines": transposition(2, 3001, 3000),
        "prime": transposition(2, 1789, 1787),
        "prime units": transposition(7, 1009, 1013),
        "few long rows": transposition(2, 3, 1234577),
        "many short rows": transposition(2, 1234577, 3),
        "one prime": transposition(4, 50257, 32),
        "batched": transposition(2, 1024, 1280, 3),
        "batched primes": transposition(2, 1187, 1193, 2),
        "large units": transposition(5000, 40, 30),
        "tiles": permutation(1, [64, 32, 512, 8], [0, 2, 1, 3]),
        "tiles of columns": permutation(2, [64, 32, 128, 16], [2, 0, 3, 1]),
        "all axes in reverse": permutation(1, [48, 48, 48, 48], [3, 2, 1, 0]),
        "flipped and transposed": permutation(2, [1500, 1600], [1, 0], [0]),
        "flipped elements": permutation(1, [6 << 20], [0], [0]),
        "flipped blocks": permutation(1, [7, 1 << 20], [0, 1], [0]),
    }.items(),
    ids=lambda item: item[0],
)
def test_large_moves(piece):
    piece = piece[1]
    data = random_bytes(bytes_of(piece))
    check_out_of_place(piece, data, len(data))
    check_in_place(piece, data)


def test_copies_and_repeats():
    data = random_bytes(3 << 20)
    check_out_of_place(Piece(1, ((3 << 20, 1, 1),)), data, 3 << 20)
    check_out_of_place(Piece(3 << 20, ()), data, 3 << 20)
    check_out_of_place(Piece(1 << 20, ((4, 1 << 20, 0),)), data, 4 << 20)
    check_out_of_place(Piece(1, ((2, 1, 0), (1 << 20, 2, 1))), data, 2 << 20)
    check_in_place(Piece(1, ((3 << 20, 1, 1),)), data)


def test_no_elements():
    data = random_bytes(10)
    for piece in [Piece(1, ((0, 1, 1),)), Piece(4, ((5, 4, 4), (0, 1, 1), (9, 1 << 40, 1 << 40)))]:
        check_out_of_place(piece, data, 10)
        check_in_place(piece, data)
    nothing = tvm.runtime.empty((0, 4), "float32")
    relayout(nothing, nothing, *Piece(4, ((0, 4, 16), (4, 4, 4))).arguments)
    relayout(nothing, nothing, *Piece(0, ((3, 4, 4),)).arguments)


def test_parts_of_one_memory():
    """Source and target are views of one storage: what is reached does not overlap."""
    data = random_bytes(2000)
    expected = data.copy()
    piece = transposition(2, 20, 25)
    piece.apply(data[:1000], expected[1000:])
    tensor = tvm_ffi.from_dlpack(data)
    relayout(tensor, tensor, *Piece(piece.element, piece.digits, 1000, 0).arguments)
    np.testing.assert_array_equal(data, expected)


def test_part_of_a_tensor_in_place():
    data = random_bytes(1200)
    expected = data.copy()
    piece = transposition(2, 20, 25)
    piece.apply(data[100:1100], expected[100:1100])
    tensor = tvm_ffi.from_dlpack(data)
    relayout(tensor, tensor, *Piece(piece.element, piece.digits, 100, 100).arguments)
    np.testing.assert_array_equal(data, expected)


def test_called_by_a_kernel():
    @T.prim_func
    def transpose(a: T.handle, b: T.handle):
        m, n = T.int64(), T.int64()
        source = T.match_buffer(a, (m, n), "float32")
        target = T.match_buffer(b, (n, m), "float32")
        T.evaluate(
            T.call_packed(
                "relax_inplace.relayout",
                *(source, target, 1, T.int64(32), T.int64(0), T.int64(0), T.int64(0), 0, 2),
                *(n, m * T.int64(32), T.int64(32), m, T.int64(32), n * T.int64(32)),
            )
        )

    kernel = tvm.compile(transpose, target="llvm")
    data = random_bytes(4 * 100 * 70).view("float32").reshape(100, 70)
    source, target = tvm.runtime.tensor(data), tvm.runtime.empty((70, 100), "float32")
    kernel(source, target)
    np.testing.assert_array_equal(target.numpy().view("uint32"), data.T.view("uint32"))


def test_byte_offset_counts():
    storage = tvm.runtime.empty((300,), "uint8")
    data = random_bytes(300)
    storage.copyfrom(data)
    view = storage._create_view((10, 10), "uint16", 100)
    relayout(view, view, *transposition(2, 10, 10).arguments)
    expected = data.copy()
    transposition(2, 10, 10).apply(data[100:], expected[100:])
    np.testing.assert_array_equal(storage.numpy(), expected)


@pytest.mark.parametrize(
    "piece, error",
    [
        (Piece(-4, ((4, 4, 4),)), "elements of 0 bits or more"),
        (Piece(1, ((-1, 1, 1),)), "extents of 0 or more"),
        (Piece(1, ((5, -1, 1),)), "above 0"),
        (Piece(1, ((5, 0, 1),)), "above 0"),
        (Piece(1, ((101, 1, 1),)), "reach from bit 0 to 808"),
        (Piece(1, ((51, 1, 2),)), "of the source, but they reach from bit 0 to 808"),
        (Piece(1, ((51, 2, 1),)), "of the target, but they reach from bit 0 to 808"),
        (Piece(1, ((50, 1, -1),), 0, 48), "reach from bit -8 to 392"),
        (Piece(1, ((100, 1, 1),), 1, 0), "of the target, but they reach from bit 8 to 808"),
        (Piece(1, ((100, 1, 1),), 0, -1), "of the source, but they reach from bit -8 to 792"),
        (Piece(801, (), unit=1), "of the source, but they reach from bit 0 to 801"),
        (Piece(800, (), 1, unit=1), "of the target, but they reach from bit 1 to 801"),
        (Piece(1, ((101, 1, 0),), fills=True), "of the target, but they reach from bit 0 to 808"),
        (Piece(1, ((3, 1 << 62, 1),), unit=1), "larger than any memory"),
        (Piece(1, ((3, 1, -(1 << 62)), (2, 1, -(1 << 62))), unit=1), "larger than any memory"),
        (Piece(1, ((1 << 40, 1, 0), (1 << 40, 1, 0))), "larger than any memory"),
        (Piece((1 << 63) - 1, (), 5, 0, unit=1), "larger than any memory"),
        (Piece((1 << 63) - 8, (), unit=1), "larger than any memory"),
        (Piece(12, (), pattern=0x0123456789ABCDEF, unit=1), "periods of the pattern, which are 64"),
    ],
)
@pytest.mark.parametrize("in_place", [False, True])
def test_bad_pieces_are_refused(piece, error, in_place):
    source, target = random_bytes(100), random_bytes(100, 1)
    kept = source.copy(), target.copy()
    tensors = [tvm_ffi.from_dlpack(data) for data in (source, source if in_place else target)]
    with pytest.raises(ValueError, match=error):
        relayout(*tensors, *piece.arguments)
    np.testing.assert_array_equal((source, target), kept)


@pytest.mark.parametrize(
    "piece, error",
    [
        (Piece(1, ((10, 1, 0),)), "permutation"),
        (Piece(1, ((5, 2, 2),)), "permutation"),
        (Piece(1, ((10, 1, 10), (10, 10, 2))), "permutation"),
        (Piece(1, ((10, 1, 1),), 1, 0), "1 bytes behind"),
        (Piece(1, ((10, 1, 1),), 0, 1), "-1 bytes behind"),
    ],
)
def test_what_is_no_permutation_is_refused_in_place(piece, error):
    data = random_bytes(200)
    kept = data.copy()
    tensor = tvm_ffi.from_dlpack(data)
    with pytest.raises(ValueError, match=error):
        relayout(tensor, tensor, *piece.arguments)
    np.testing.assert_array_equal(data, kept)
    if piece.into == piece.read:
        with pytest.raises(ValueError, match=error):
            relayout_scratch(*piece.arguments)


def test_other_arguments_are_refused():
    tensor = tvm_ffi.from_dlpack(random_bytes(4))
    piece = Piece(1, ((2, 2, 1), (2, 1, 2))).arguments
    cut = [piece[:end] for end in range(len(piece))]
    for arguments in [[], [tensor], *([tensor, tensor, *numbers] for numbers in cut)]:
        with pytest.raises(TypeError, match=r"[Ee]xpected"):
            relayout(*arguments)
    for more in [[*piece, 1], [0, *piece[1:]], [-1], [2, *piece[1:]]]:
        with pytest.raises(TypeError, match="expected the description of"):
            relayout(tensor, tensor, *more)
    with pytest.raises(TypeError):
        relayout(tensor, None, *piece)
    with pytest.raises(TypeError):
        relayout(tensor, tensor, "1", *piece[1:])
    for digits in [-1, 1 << 62]:
        with pytest.raises(TypeError, match=r"[Ee]xpected"):
            relayout(tensor, tensor, 1, 8, 0, 0, 0, 0, digits)
    strided = tvm_ffi.from_dlpack(random_bytes(100)[::2])
    with pytest.raises(ValueError, match="contiguous source"):
        relayout(strided, tensor, *piece)
    with pytest.raises(ValueError, match="contiguous target"):
        relayout(tensor, strided, *piece)


@pytest.mark.parametrize("number", ["0", "-1", "two", "1.5", ""])
def test_what_is_no_number_of_threads_is_not_looked_at(monkeypatch, number):
    """An error would cost the weight that is being moved."""
    monkeypatch.setenv(NUM_THREADS, number)
    test_large_moves(("", transposition(2, 1024, 3072)))


def test_after_a_fork(monkeypatch):
    monkeypatch.setenv(NUM_THREADS, "4")
    test_large_moves(("", transposition(2, 1024, 3072)))
    child = os.fork()
    if child == 0:
        try:
            test_large_moves(("", transposition(2, 1024, 3072)))
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


def interleaved(n, rows, blocks, size=16):
    """Scales of 2 bytes, and codes with other signs, of so many rows: as GGML lays them out."""
    block = size + 2
    around = (n, rows * blocks * block, rows * blocks * block), (blocks, rows * block, block)
    scales = Piece(2, (*around, (rows, 2, blocks * block)))
    halves = (2, rows * size // 2, size // 2), (rows, size // 2, blocks * block)
    return [scales, Piece(size // 2, (*around, *halves), rows * 2, 2, 0x8888888888888888)]


BIT_MOVES = {
    "FasterTransformer int4": permutation(
        4, [6, 2, 4, 8, 96, 4], [4, 0, 5, 1, 3, 2], (), 0x8888888888888888, 1
    ),
    "Marlin int4": permutation(4, [12, 2, 12, 4, 2, 8, 4, 2], [0, 2, 5, 6, 3, 7, 4, 1], (), 0, 1),
    "AWQ": permutation(4, [300, 40, 4, 2], [1, 3, 2, 0], (), 0, 1),
    "nibbles in reverse": permutation(4, [64, 1000], [0, 1], [1], 0, 1),
    "nibbles of odd sizes": permutation(4, [1001, 1038], [1, 0], (), 0, 1),
    "bits": permutation(1, [1024, 3000], [1, 0], (), 0, 1),
    "pairs of bits, and a pattern": permutation(2, [400, 512], [1, 0], [0], (1 << 64) // 3, 1),
    "signs": Piece(1, ((5 << 20, 1, 1),), pattern=0x8080808080808080),
    "all bits": Piece(1 << 20, (), pattern=(1 << 64) - 1),
    "scales and codes": interleaved(5, 8, 128),
    "scales and codes of one block": interleaved(1, 4, 77, 32),
    "a block that is larger than the scratch": interleaved(1, 8, 30000),
    "two halves": [Piece(3000000, (), 0, 3000000), Piece(3000000, (), 3000000, 0)],
    "a third and the rest": [Piece(2000000, (), 4000000, 0), Piece(4000000, (), 0, 2000000)],
}


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("name", BIT_MOVES)
def test_moves_of_bits(monkeypatch, name, threads):
    monkeypatch.setenv(NUM_THREADS, str(threads))
    pieces = BIT_MOVES[name] if isinstance(BIT_MOVES[name], list) else [BIT_MOVES[name]]
    data = random_bytes(sum(map(bytes_of, pieces)))
    check_out_of_place(pieces, data, len(data))
    check_in_place(pieces, data)


def test_constants_beside_what_is_moved():
    """Tiles with a rim: nothing of a byte that both are in is lost."""
    data = random_bytes(33 * 50)
    rows = Piece(100, ((33, 128, 100),), unit=4)
    rim = Piece(28, ((33, 128, 0),), 100, 0, 0x3C003C003C003C00, True, unit=4)
    below = Piece(128, ((7, 128, 0),), 33 * 128, 0, 0, True, unit=4)
    check_out_of_place([rows, rim, below], data, 40 * 64)
    output = random_bytes(100)
    tensor = tvm_ffi.from_dlpack(output)
    relayout(tensor, tensor, *Piece(50, (), 25, 0, (1 << 64) - 1, True).arguments)
    expected = random_bytes(100)
    expected[25:75] = 255
    np.testing.assert_array_equal(output, expected)


@pytest.mark.parametrize(
    "pieces",
    [
        [Piece(50, (), 0, 0), Piece(50, (), 25, 50)],
        [Piece(50, (), 0, 0), Piece(50, (), 50, 50, fills=True)],
        [Piece(1, ((8, 2, 2), (5, 3, 3))), Piece(12, (), 29, 29)],
        [Piece(4, (), 0, 0, unit=1), Piece(5, (), 4, 4, unit=1)],
    ],
)
def test_pieces_that_are_no_permutation_are_refused_in_place(pieces):
    data = random_bytes(100)
    kept = data.copy()
    tensor = tvm_ffi.from_dlpack(data)
    with pytest.raises(ValueError, match="permutation"):
        relayout(tensor, tensor, *numbers_of(pieces))
    np.testing.assert_array_equal(data, kept)


WITHOUT_MEMORY = """
import resource
import test_relayout_builtin as tests

pieces = [tests.transposition(2, 1536, 2048)], tests.interleaved(1, 8, 60000)
given = [tests.random_bytes(sum(map(tests.bytes_of, some))) for some in pieces]
moved = [data.copy() for data in given]
tests.relayout_scratch(*tests.numbers_of(pieces[0]))
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (600 << 10), resource.RLIM_INFINITY))
for some, data in zip(pieces, moved):
    assert tests.relayout_scratch(*tests.numbers_of(some)) > 1 << 20
    tensor = tests.tvm_ffi.from_dlpack(data)
    tests.relayout(tensor, tensor, *tests.numbers_of(some))
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
for some, data, result in zip(pieces, given, moved):
    expected = data.copy()
    for piece in some:
        piece.apply(data, expected)
    assert (result == expected).all()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_without_memory_for_scratch(monkeypatch):
    """A weight is not lost for want of it: what there always is takes longer."""
    monkeypatch.setenv(NUM_THREADS, "1")
    subprocess.run([sys.executable, "-c", WITHOUT_MEMORY], cwd=Path(__file__).parent, check=True)


def available_memory():
    with open("/proc/meminfo") as file:
        (line,) = (line for line in file if line.startswith("MemAvailable"))
    return int(line.split()[1]) << 10


@pytest.mark.skipif(
    sys.platform != "linux" or available_memory() < 8 << 30, reason="8 GB of memory"
)
@pytest.mark.parametrize("bits, columns", [(16, 33000), (4, 65600)], ids=["bytes", "elements"])
def test_more_than_2_to_the_31(bits, columns):
    """Of the sizes that are compared, each place is computed: there is one memory."""
    rows = 32768 + 128
    size = rows * columns * bits // 8
    assert max(size, rows * columns) > 1 << 31 and (bits == 4 or size > 1 << 31)
    some = random_bytes(999_983)
    data = np.empty(size, "uint8")
    for start in range(0, size, len(some)):
        data[start : start + len(some)] = some[: size - start]
    piece = permutation(bits, [rows, columns], [1, 0], (), 0, 1)
    tensor = tvm_ffi.from_dlpack(data)
    relayout(tensor, tensor, *piece.arguments)
    for column in [0, 1, 12345, columns - 1]:
        at = np.arange(rows) * columns + column
        made = data[column * rows * bits // 8 : (column + 1) * rows * bits // 8]
        if bits == 16:
            expected = some[((at * 2)[:, None] + np.arange(2)) % len(some)]
        else:
            expected = some[at // 2 % len(some)] >> at % 2 * 4 & 15
            expected = expected[::2] | expected[1::2] << 4
        np.testing.assert_array_equal(made, expected.reshape(-1))
