"""relax_inplace.relayout: moves of whole bytes, compared with the same loops over numpy's views."""

import os
from dataclasses import dataclass

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
    element: int
    digits: tuple[tuple[int, int, int], ...]  # extent, into, read
    into: int = 0
    read: int = 0

    @property
    def arguments(self):
        flat = [number for digit in self.digits for number in digit]
        return [self.element, self.read, self.into, len(self.digits), *flat]

    def reach(self, base, stride):
        """The first byte, and the one behind the last."""
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
        self.view(target, self.into, 1)[...] = self.view(source, self.read, 2)


def random_bytes(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, count, np.uint8)


def unaligned(data, offset):
    """A copy of it, so many bytes behind an address of 64."""
    room = np.empty(len(data) + 128, np.uint8)
    start = -room.ctypes.data % 64 + offset
    room[start : start + len(data)] = data
    return room[start : start + len(data)]


def check_out_of_place(piece, source, target_bytes, offsets=(0, 0)):
    expected = random_bytes(target_bytes, 1)
    target = unaligned(expected, offsets[1])
    source = unaligned(source, offsets[0])
    kept = source.copy()
    relayout(tvm_ffi.from_dlpack(source), tvm_ffi.from_dlpack(target), *piece.arguments)
    piece.apply(source, expected)
    np.testing.assert_array_equal(target, expected)
    np.testing.assert_array_equal(source, kept)


def check_in_place(piece, data, offset=0):
    """Also with what lies around the bytes that the piece permutes."""
    around = 64
    room = unaligned(np.concatenate([data, random_bytes(2 * around, 2)]), offset)
    expected = room.copy()
    piece.apply(room[around:-around].copy(), expected[around:-around])
    inner = tvm_ffi.from_dlpack(room[around:-around])
    assert 0 <= relayout_scratch(*piece.arguments) <= MOST_SCRATCH
    relayout(inner, inner, *piece.arguments)
    np.testing.assert_array_equal(room, expected)


def transposition(unit, m, n, batch=1):
    """(batch, m, n) -> (batch, n, m)."""
    size = m * n * unit
    return Piece(unit, ((batch, size, size), (n, m * unit, unit), (m, unit, n * unit)))


def permutation(element, extents, axes, flips=()):
    """np.transpose of an array of these extents, with axes of the input flipped."""
    read = [element * int(np.prod(extents[i + 1 :])) for i in range(len(extents))]
    shape = [extents[axis] for axis in axes]
    into = [element * int(np.prod(shape[i + 1 :])) for i in range(len(shape))]
    base = sum(read[axis] * (extents[axis] - 1) for axis in flips)
    digits = tuple(
        (extents[axis], step, -read[axis] if axis in flips else read[axis])
        for axis, step in zip(axes, into, strict=True)
    )
    return Piece(element, digits, 0, base)


def bytes_of(piece):
    return piece.element * int(np.prod([digit[0] for digit in piece.digits]))


EXTENTS = st.one_of(st.integers(1, 5), st.sampled_from([7, 8, 13, 16, 17, 31, 32, 64, 65, 100]))


@st.composite
def any_piece(draw):
    """(piece, bytes of the source, bytes of the target); with gaps, repeats and flips."""
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
    piece = Piece(element, digits, draw(st.integers(0, 100)), first)
    more = draw(st.integers(0, 3))
    return piece, piece.reach(first, 2)[1] + more, piece.reach(piece.into, 1)[1] + more


@st.composite
def any_permutation(draw, most=1 << 18):
    element = draw(st.sampled_from([*UNITS, 12, 100]))
    extents = draw(st.lists(EXTENTS, max_size=5))
    while element * int(np.prod(extents)) > most:
        extents.pop()
    axes = draw(st.permutations(range(len(extents))))
    flips = [axis for axis in axes if draw(st.integers(0, 5)) == 0]
    return permutation(element, extents, axes, flips)


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
    piece = permutation(small.element, extents, axes, flips)
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
                *(source, target, T.int64(4), T.int64(0), T.int64(0), 2),
                *(n, m * T.int64(4), T.int64(4), m, T.int64(4), n * T.int64(4)),
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
        (Piece(-4, ((4, 4, 4),)), "elements of 0 bytes or more"),
        (Piece(1, ((-1, 1, 1),)), "extents of 0 or more"),
        (Piece(1, ((5, -1, 1),)), "above 0"),
        (Piece(1, ((5, 0, 1),)), "above 0"),
        (Piece(1, ((101, 1, 1),)), "reaches from byte 0 to 101"),
        (Piece(1, ((51, 1, 2),)), "of the source, but it reaches from byte 0 to 101"),
        (Piece(1, ((51, 2, 1),)), "of the target, but it reaches from byte 0 to 101"),
        (Piece(1, ((50, 1, -1),), 0, 48), "reaches from byte -1 to 49"),
        (Piece(1, ((100, 1, 1),), 1, 0), "of the target, but it reaches from byte 1 to 101"),
        (Piece(1, ((100, 1, 1),), 0, -1), "of the source, but it reaches from byte -1 to 99"),
        (Piece(1, ((3, 1 << 62, 1),)), "larger than any memory"),
        (Piece(1, ((3, 1, -(1 << 62)), (2, 1, -(1 << 62)))), "larger than any memory"),
        (Piece(1, ((1 << 40, 1, 0), (1 << 40, 1, 0))), "larger than any memory"),
        (Piece((1 << 63) - 1, (), 5, 0), "larger than any memory"),
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
    for arguments in [[], [tensor], [tensor, tensor, 1, 0, 0], [tensor, tensor, *piece[:-1]]]:
        with pytest.raises(TypeError, match="expected"):
            relayout(*arguments)
    with pytest.raises(TypeError):
        relayout(tensor, None, *piece)
    with pytest.raises(TypeError):
        relayout(tensor, tensor, "1", *piece[1:])
    for digits in [-1, 1 << 62]:
        with pytest.raises(TypeError, match="3 numbers for each"):
            relayout(tensor, tensor, 1, 0, 0, digits)
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


@pytest.mark.skipif("LARGE_RELAYOUT" not in os.environ, reason="set LARGE_RELAYOUT: 7 GB, a minute")
@pytest.mark.parametrize("columns", [65536 + 64, 65537])
def test_more_than_2_to_the_31_elements(columns):
    piece = transposition(1, 33000, columns)
    data = random_bytes(bytes_of(piece))
    kept = tvm_ffi.from_dlpack(data.copy())
    tensor = tvm_ffi.from_dlpack(data)
    relayout(tensor, tensor, *piece.arguments)
    for row in [0, 1, 12345, columns - 1]:
        np.testing.assert_array_equal(
            data[row * 33000 : (row + 1) * 33000], np.from_dlpack(kept)[row::columns]
        )
    relayout(kept, tensor, *piece.arguments)
    np.testing.assert_array_equal(data[-33000:], np.from_dlpack(kept)[columns - 1 :: columns])
