"""Tensors whose bytes stay in their file until the runtime moves them: read once, right, or an error."""

import errno
import os
import resource

import numpy as np
import pytest
import tvm_ffi
from hypothesis import assume, given
from hypothesis import strategies as st
from profiles import examples

from relax_inplace.libinfo import load_library
from relax_inplace.runtime.empty_tensor import empty
from relax_inplace.runtime.tensor_bytes import bytes_of

load_library()
relayout = tvm_ffi.get_global_func("relax_inplace.relayout")
read_file = tvm_ffi.get_global_func("relax_inplace.ReadFile")
read_later = tvm_ffi.get_global_func("relax_inplace.ReadLater")

CPU = tvm_ffi.device("cpu", 0)
OFFSET = 77  # of the weight in its file


def unread_tensor(data, path):
    path.write_bytes(bytes(OFFSET) + data.tobytes())
    tensor = empty((data.size,), "uint8", CPU)
    descriptor = os.open(path, os.O_RDONLY)
    assert read_later(tensor, descriptor, OFFSET, "the weight")
    os.close(descriptor)
    return tensor


@pytest.fixture
def unread(tmp_path):
    """Makes an unread tensor of random bytes, and says which."""

    def make(nbytes, seed=0):
        data = np.random.default_rng(seed).integers(0, 256, nbytes, "uint8")
        path = tmp_path / f"weight{seed}"
        return unread_tensor(data, path), data, path

    return make


def transposition(rows, columns, bits, pattern=0):
    digits = (columns, rows * bits, bits), (rows, bits, columns * bits)
    return (1, bits, 0, 0, pattern, 0, 2, *(number for digit in digits for number in digit))


def transposed(data, rows, columns, bits):
    if bits >= 8:
        return data.reshape(rows, columns, bits // 8).transpose(1, 0, 2).reshape(-1)
    nibbles = np.stack([data & 15, data >> 4], 1).reshape(rows, columns).T.reshape(-1)
    return nibbles[0::2] | nibbles[1::2] << 4


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize(
    "rows, columns, bits",
    [
        (512, 384, 32),
        (511, 389, 16),  # no slab ends with a line
        (64, 30_000, 16),  # a few rows are a slab
        (30_000, 64, 8),
        (600, 802, 4),
        (1001, 40_000, 4),  # rows of the output begin within bytes: read at once
        (3, 700_001, 8),  # a row is longer than a line's slab
        (2, 4_000_000, 8),  # a row is longer than any slab: read at once
        (333, 1001, 8),
        (12, 2, 8 * (256 << 10)),  # runs that are read to where they belong
        (2, 3, 8 * 300_001),
    ],
)
def test_a_transposition_from_a_file(unread, rows, columns, bits, in_place):
    source, data, _ = unread(rows * columns * bits // 8)
    target = source if in_place else empty(source.shape, "uint8", CPU)
    relayout(source, target, *transposition(rows, columns, bits))
    assert np.array_equal(bytes_of(target), transposed(data, rows, columns, bits))
    # It is read once: from now on it is any memory.
    relayout(target, target, *transposition(columns, rows, bits))
    assert np.array_equal(bytes_of(target), data)


# Sizes of axes: of models, next to them, primes.
SIZES = [2, 3, 8, 16, 31, 32, 64, 127, 128, 257, 512, 1000, 1001, 1024, 4096]


@examples(60)
@given(
    st.lists(st.sampled_from(SIZES), min_size=1, max_size=4),
    st.sampled_from([4, 8, 16, 24, 32, 64, 4096, 8 * 2560, 8 * 262_143, 8 << 18, 8 << 19]),
    st.randoms(use_true_random=False),
)
def test_any_permutation_from_a_file(tmp_path_factory, sizes, bits, random):
    nbytes = int(np.prod(sizes, dtype="int64")) * bits // 8
    assume(65_536 <= nbytes <= 48 << 20 and (bits != 4 or np.prod(sizes) % 2 == 0))
    order = random.sample(range(len(sizes)), len(sizes))
    data = np.random.default_rng(random.randrange(1 << 32)).integers(0, 256, nbytes, "uint8")
    units = np.stack([data & 15, data >> 4], 1) if bits == 4 else data
    units = units.reshape(*sizes, max(bits // 8, 1))
    expected = units.transpose(*order, len(sizes)).reshape(-1)
    if bits == 4:
        expected = expected[0::2] | expected[1::2] << 4
    digits, into = [], bits
    for axis in reversed(order):
        digits = [sizes[axis], into, bits * int(np.prod(sizes[axis + 1 :], dtype="int64")), *digits]
        into *= sizes[axis]
    path = tmp_path_factory.mktemp("any") / "weight"
    source = unread_tensor(data, path)
    path.unlink()  # of many
    target = source if random.random() < 0.5 else empty(source.shape, "uint8", CPU)
    relayout(source, target, 1, bits, 0, 0, 0, 0, len(sizes), *digits)
    assert np.array_equal(bytes_of(target), expected)


def test_signs_are_flipped_on_the_way(unread):
    source, data, _ = unread(512 * 384)
    relayout(source, source, *transposition(512, 384, 8, 0x8080808080808080 - (1 << 64)))
    assert np.array_equal(bytes_of(source), transposed(data, 512, 384, 8) ^ 0x80)


def test_runs_go_where_they_belong(unread):
    """Three weights in one, the second in two parts: what lies between is not touched."""
    target = empty((1 << 21,), "uint8", CPU)
    expected = bytes_of(target)
    expected[:] = 1
    expected = expected.copy()
    for seed, (size, into) in enumerate([(1 << 19, 0), (300_000, 1 << 20), (70_000, 700_000)]):
        source, data, _ = unread(size, seed)
        relayout(source, target, 1, 8 * size, 0, 8 * into, 0, 0, 0)
        expected[into : into + size] = data
    source, data, _ = unread(200_000, 3)
    relayout(source, target, 1, 800_000, 0, 8 * 1_400_000, 0, 0, 1, 2, 1_600_000, 800_000)
    expected[1_400_000:1_500_000], expected[1_600_000:1_700_000] = np.split(data, 2)
    assert np.array_equal(bytes_of(target), expected)


def test_columns_between_others(unread):
    """A target of which a move writes every second byte: no page is cleared."""
    source, data, _ = unread(400 * 1000)
    target = empty((2 * 400 * 1000,), "uint8", CPU)
    bytes_of(target)[:] = 7
    relayout(source, target, 1, 8, 0, 0, 0, 0, 2, 1000, 16 * 400, 8, 400, 16, 8000)
    assert np.array_equal(bytes_of(target)[0::2], transposed(data, 400, 1000, 8))
    assert np.all(bytes_of(target)[1::2] == 7)


UNIT = 200_000  # bytes: runs that would go where they belong

# What is moved of nine units: pieces, and the unit of the input for each of the output.
READ_FIRST = {
    "flipped": (
        [(8, 8 * (9 * UNIT - 1), 0, 0, 0, 1, 9 * UNIT, 8, -8)],
        None,
    ),
    "in two pieces": (
        [(8 * 4 * UNIT, 0, 8 * 5 * UNIT, 0, 0, 0), (8 * 5 * UNIT, 8 * 4 * UNIT, 0, 0, 0, 0)],
        [4, 5, 6, 7, 8, 0, 1, 2, 3],
    ),
    "its middle": ([(8 * 3 * UNIT, 8 * 3 * UNIT, 0, 0, 0, 0)], [3, 4, 5]),
    "its beginning": ([(8 * 3 * UNIT, 0, 0, 0, 0, 0)], [0, 1, 2]),
    "every second": ([(8 * UNIT, 0, 0, 0, 0, 1, 5, 8 * UNIT, 16 * UNIT)], [0, 2, 4, 6, 8]),
    "some more than once": (
        [(8 * UNIT, 0, 0, 0, 0, 2, 3, 24 * UNIT, 16 * UNIT, 3, 8 * UNIT, 16 * UNIT)],
        [0, 2, 4, 2, 4, 6, 4, 6, 8],
    ),
}


@pytest.mark.parametrize("what", READ_FIRST)
def test_what_no_slabs_do_is_read_first(unread, what):
    pieces, units = READ_FIRST[what]
    source, data, _ = unread(9 * UNIT)
    target = empty((9 * UNIT,), "uint8", CPU)
    relayout(source, target, len(pieces), *(number for piece in pieces for number in piece))
    expected = data[::-1] if units is None else data.reshape(9, UNIT)[units].reshape(-1)
    assert np.array_equal(bytes_of(target)[: expected.size], expected)
    assert np.array_equal(bytes_of(source), data)


def test_a_view_of_an_unread_tensor_is_another_memory(unread):
    source, data, _ = unread(512 * 512)
    view = source._create_view((256 * 512,), "uint8", 512)
    other = empty(view.shape, "uint8", CPU)
    relayout(view, other, 1, 8 * 256 * 512, 0, 0, 0, 0, 0)  # no module does so
    assert not read_later(view, 0, 0, "a view")
    relayout(source, source, *transposition(512, 512, 8))
    assert np.array_equal(bytes_of(source), transposed(data, 512, 512, 8))


# -- files that are not what they were ------------------------------------------------------------


def cut(path, bytes_left):
    os.truncate(path, OFFSET + bytes_left)


@pytest.mark.parametrize("left", [0, 1, 131_072, 262_143])
@pytest.mark.parametrize("piece", ["transposed", "as it is", "flipped"])
def test_a_file_that_was_cut(unread, left, piece):
    source, _, path = unread(512 * 512)
    cut(path, left)
    numbers = {
        "transposed": transposition(512, 512, 8),
        "as it is": (1, 8 * 512 * 512, 0, 0, 0, 0, 0),
        "flipped": (1, 8, 8 * (512 * 512 - 1), 0, 0, 0, 1, 512 * 512, 8, -8),
    }[piece]
    target = empty(source.shape, "uint8", CPU)
    with pytest.raises(RuntimeError, match="the weight: the file ends too early, expected to read"):
        relayout(source, target, *numbers)


def test_a_file_that_was_written(unread):
    source, data, path = unread(512 * 512)
    path.write_bytes(bytes(OFFSET) + data.tobytes())
    os.utime(path, ns=(0, 0))
    with pytest.raises(RuntimeError, match="the weight: the file has changed while it was read"):
        relayout(source, source, *transposition(512, 512, 8))


def test_a_file_that_has_grown(unread):
    source, _, path = unread(512 * 512)
    times = os.stat(path)
    with open(path, "ab") as file:
        file.write(b"more")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(RuntimeError, match="the weight: the file has changed while it was read"):
        relayout(source, source, *transposition(512, 512, 8))


def test_a_file_that_was_replaced_is_read_as_it_was(unread, tmp_path):
    source, data, path = unread(512 * 512)
    (tmp_path / "other").write_bytes(b"other")
    os.replace(tmp_path / "other", path)
    relayout(source, source, *transposition(512, 512, 8))
    assert np.array_equal(bytes_of(source), transposed(data, 512, 512, 8))


def test_what_is_dropped_unread_closes_its_file(unread):
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    if before is None:
        pytest.skip("the system does not say which files are open")
    tensor, *_ = unread(100_000)
    assert len(os.listdir("/proc/self/fd")) == before + 1
    del tensor
    assert len(os.listdir("/proc/self/fd")) == before


# -- arguments ------------------------------------------------------------------------------------


def test_small_tensors_are_read_now(tmp_path):
    (tmp_path / "weight").write_bytes(b"abcd")
    descriptor = os.open(tmp_path / "weight", os.O_RDONLY)
    tensor = empty((4,), "uint8", CPU)
    assert not read_later(tensor, descriptor, 0, "the weight")
    assert read_file(tensor, descriptor, 0) == 0
    assert bytes_of(tensor).tobytes() == b"abcd"
    assert read_file(tensor, descriptor, 1) == -1  # the file ends
    os.close(descriptor)


@pytest.mark.parametrize("descriptor, offset", [(-1, 0), (1 << 40, 0), (0, -1), (0, 1 << 62)])
def test_no_file(descriptor, offset):
    tensor = empty((100_000,), "uint8", CPU)
    for call in (
        lambda: read_file(tensor, descriptor, offset),
        lambda: read_later(tensor, descriptor, offset, "the weight"),
    ):
        with pytest.raises(ValueError, match="expected the descriptor of an open file"):
            call()


def test_memory_with_gaps():
    tensor = tvm_ffi.from_dlpack(np.zeros((400, 400), "uint8")[:, ::2])
    for call in (lambda: read_file(tensor, 0, 0), lambda: read_later(tensor, 0, 0, "the weight")):
        with pytest.raises(ValueError, match="expected a contiguous tensor on the host"):
            call()


def test_a_descriptor_that_is_closed():
    tensor = empty((100_000,), "uint8", CPU)
    assert read_file(tensor, 9_999, 0) == errno.EBADF
    assert not read_later(tensor, 9_999, 0, "the weight")


def test_no_more_files_may_be_open(tmp_path):
    """A descriptor is duplicated for as long as a weight is in its file."""
    (tmp_path / "weight").write_bytes(bytes(100_000))
    tensor = empty((100_000,), "uint8", CPU)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open(tmp_path / "weight", "rb") as file:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1, limits[1]))
        try:
            assert not read_later(tensor, file.fileno(), 0, "the weight")
            assert read_file(tensor, file.fileno(), 0) == errno.EMFILE
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
