"""Tensors in pages of their own: what is moved, who keeps its bytes, and what is given back."""

import resource
import sys
import threading

import numpy as np
import psutil
import pytest
import tvm
import tvm_ffi
from hypothesis import given
from hypothesis import strategies as st
from memory import SANITIZED, extra_mb, in_fresh_process, needs_clear_refs
from profiles import examples

from relax_inplace.libinfo import load_library
from relax_inplace.runtime.empty_tensor import empty
from relax_inplace.runtime.tensor_bytes import bytes_of

load_library()
donate = tvm_ffi.get_global_func("vm.builtin.donate_storage")
offer = tvm_ffi.get_global_func("vm.builtin.offer_pages")
relayout = tvm_ffi.get_global_func("relax_inplace.relayout")

MB = 1 << 20
PAGE = 4096
LEAST = 64 << 10  # bytes of what has pages of its own

only_linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="elsewhere all of it is copied"
)


def filled(count, seed=0, made=empty):
    """A tensor, and its bytes."""
    tensor = made((count,), "uint8", tvm.cpu())
    data = np.random.default_rng(seed).integers(1, 256, count, np.uint8)
    bytes_of(tensor)[...] = data
    return tensor, data


def move(source, target, count, read=0, into=0):
    relayout(source, target, 1, 8 * count, 8 * read, 8 * into, 0, 0, 0)


def is_moved(source, target, count, read=0, into=0):
    """The target has the bytes; True if the source has lost its own, False if it has them still."""
    before = bytes_of(source).copy()
    around = bytes_of(target).copy()
    move(source, target, count, read, into)
    around[into : into + count] = before[read : read + count]
    np.testing.assert_array_equal(bytes_of(target), around)
    after = bytes_of(source)
    if (after == before).all():
        return False
    first, last = -(-read // PAGE) * PAGE, (read + count) // PAGE * PAGE
    assert not after[first:last].any()
    before[first:last] = 0
    np.testing.assert_array_equal(after, before)
    return True


# -- what is moved -----------------------------------------------------------------------------------


@only_linux
@pytest.mark.parametrize("read", [0, 1, 4095, 4096, 2 * MB + 100])
@pytest.mark.parametrize("count", [LEAST, LEAST + PAGE - 1, 2 * MB, 3 * MB + 77])
@pytest.mark.parametrize("into", [0, 5 * PAGE, 2 * MB])
def test_spent_pages(read, count, into):
    """Places in a page agree: the ends are copied, and nothing around changes."""
    source, _ = filled(6 * MB)
    target, _ = filled(8 * MB, 1)
    offer(source)
    assert is_moved(source, target, count, read, into + read % PAGE)


@only_linux
def test_a_few_parts_of_one():
    source, data = filled(6 * MB)
    parts = [filled(2 * MB, seed)[0] for seed in range(3)]
    offer(source)
    assert all(is_moved(source, part, 2 * MB, i * 2 * MB) for i, part in enumerate(parts))
    del source
    np.testing.assert_array_equal(np.concatenate([bytes_of(part) for part in parts]), data)


@only_linux
def test_what_has_taken_a_storage():
    """The tensor in it is offered, and the storage is its own."""
    donor, _ = filled(4 * MB)
    source = donate(donor, None, tvm_ffi.Shape([3 * MB]), "uint8")
    offer(source)  # the donor is still there
    target, _ = filled(3 * MB, 1)
    assert not is_moved(source, target, 3 * MB)
    del donor
    offer(source)
    assert is_moved(source, target, 3 * MB)


@only_linux
def test_where_it_lies():
    """Large ones begin where a huge page can."""
    for count in (2 * MB, 2 * MB + 1, 7 * MB):
        assert empty((count,), "uint8", tvm.cpu()).data_ptr() % (2 * MB) == 0
    assert empty((LEAST,), "uint8", tvm.cpu()).data_ptr() % PAGE == 0


def test_shapes():
    for shape, dtype in [((), "float32"), ((0, 3), "int8"), ((7, 5 * PAGE), "int4")]:
        made = empty(shape, dtype, tvm.cpu())
        assert (made.shape, str(made.dtype), made.device) == (shape, dtype, tvm.cpu())
        assert made.is_contiguous()
    assert empty((MB,), "uint8", tvm.cpu(1)).device == tvm.cpu(1)


# -- what is copied ----------------------------------------------------------------------------------


def test_what_is_not_spent():
    source, target = filled(MB)[0], filled(MB, 1)[0]
    assert not is_moved(source, target, MB)


def test_what_something_else_refers_to():
    source, target = filled(MB)[0], filled(MB, 1)[0]
    tied = tvm_ffi.Array([source])
    offer(source)
    assert not is_moved(source, target, MB)
    del tied
    exported = np.from_dlpack(source)
    offer(source)
    assert not is_moved(source, target, MB)
    assert exported.any()


def test_a_view():
    whole, target = filled(2 * MB)[0], filled(MB, 1)[0]
    view = whole._create_view((MB,), "uint8", MB)
    offer(view)
    assert not is_moved(view, target, MB)
    del whole
    offer(view)
    assert not is_moved(view, target, MB)


@pytest.mark.parametrize("makers", [(tvm.runtime.empty, empty), (empty, tvm.runtime.empty)])
def test_what_lies_elsewhere(makers):
    source, target = filled(MB, 0, makers[0])[0], filled(MB, 1, makers[1])[0]
    offer(source)
    assert not is_moved(source, target, MB)


def test_places_that_do_not_agree():
    source, target = filled(2 * MB)[0], filled(2 * MB, 1)[0]
    offer(source)
    assert not is_moved(source, target, MB, 0, 64)
    assert not is_moved(source, target, MB, 64, PAGE)


def test_what_is_small():
    source, target = filled(MB)[0], filled(MB, 1)[0]
    offer(source)
    assert not is_moved(source, target, LEAST - 1)


def test_what_is_no_run():
    source, target = filled(MB)[0], filled(MB, 1)[0]
    before = bytes_of(source).copy()
    offer(source)
    half = MB // 2
    relayout(source, target, 1, 8, 0, 0, 0, 0, 2, half, 16, 8, 2, 8, 8 * half)
    np.testing.assert_array_equal(bytes_of(source), before)
    np.testing.assert_array_equal(bytes_of(target), before.reshape(2, half).T.reshape(-1))


ONES = 0x0101010101010101


@pytest.mark.parametrize(
    "bits, at, pattern, fills, expected",
    [
        (8 * MB, 0, -1, 0, lambda before, _: ~before),
        (8 * MB, 0, ONES, 1, lambda before, _: np.ones_like(before)),
        (
            8 * MB - 8,
            4,
            0,
            0,
            lambda before, there: np.concatenate(
                (
                    before[:1] & 0xF0 | there[:1] & 15,
                    before[1:-1],
                    before[-1:] & 15 | there[-1:] & 0xF0,
                )
            ),
        ),
    ],
    ids=["turned over", "constant", "within bytes"],
)
def test_what_is_more_than_a_move_of_bytes(bits, at, pattern, fills, expected):
    source, target = filled(MB)[0], filled(MB, 1)[0]
    before, there = bytes_of(source).copy(), bytes_of(target).copy()
    offer(source)
    relayout(source, target, 1, bits, at, at, pattern, fills, 0)
    np.testing.assert_array_equal(bytes_of(source), before)
    np.testing.assert_array_equal(bytes_of(target), expected(before, there))


def test_in_one_memory():
    one, data = filled(4 * MB)
    offer(one)
    move(one, one, MB, 0, 2 * MB)
    np.testing.assert_array_equal(bytes_of(one)[: 2 * MB], data[: 2 * MB])
    np.testing.assert_array_equal(bytes_of(one)[2 * MB : 3 * MB], data[:MB])


@only_linux
def test_a_storage_that_is_used_again():
    """It was offered to a kernel before: the new tensor in it is not spent, nor in one area."""
    donor, target = filled(2 * MB)[0], filled(2 * MB, 1)[0]
    offer(donor)
    assert is_moved(donor, target, MB)
    source = donate(donor, None, tvm_ffi.Shape([2 * MB]), "uint8")
    del donor
    bytes_of(source)[...] = 5
    assert not is_moved(source, target, 2 * MB)
    offer(source)
    assert not is_moved(source, target, 2 * MB)


@only_linux
def test_what_has_been_moved_into():
    """For the system it is several areas: it might move a part, and fail."""
    source, middle, target = (filled(2 * MB, seed)[0] for seed in range(3))
    offer(source)
    assert is_moved(source, middle, MB, 0, MB)
    offer(middle)
    assert not is_moved(middle, target, 2 * MB)


@pytest.mark.parametrize("given", [None, 3])
def test_no_tensor(given):
    with pytest.raises(TypeError, match=r"argument #0 .*offer_pages.* Expected `ffi.Tensor`"):
        offer(given)


# -- any sequence ------------------------------------------------------------------------------------

PLACES = st.sampled_from([0, 1, 64, PAGE, 3 * PAGE + 64, 40 * PAGE])
STEPS = st.tuples(
    st.sampled_from(["move", "move", "move", "offer", "drop", "tie", "donate"]),
    *(st.integers(0, 4) for _ in range(2)),
    *(PLACES for _ in range(2)),
    st.sampled_from([1, LEAST, LEAST + 100, 50 * PAGE]),
)


@examples(40)
@given(st.lists(STEPS, max_size=20))
def test_whoever_is_not_spent_keeps_its_bytes(steps):
    """A model in numpy's arrays; bytes that were moved from what is spent are of any value."""
    size = 100 * PAGE
    tensors, expected, known, ties = {}, {}, {}, {}
    spent = set()

    def make(i):
        tensors[i], expected[i] = filled(size, i)
        known[i] = np.ones(size, bool)
        spent.discard(i)
        ties.pop(i, None)

    for i in range(5):
        make(i)
    for action, i, j, read, into, count in steps:
        if action == "offer":
            offer(tensors[i])
            if i not in ties:
                spent.add(i)
        elif action == "tie":
            ties[i] = tvm_ffi.Array([tensors[i]])
        elif action == "drop":
            make(i)
        elif action == "donate" and i not in ties:
            tensors[i] = donate(tensors[i], None, tvm_ffi.Shape([size]), "uint8")
            spent.discard(i)
        elif action == "move" and i != j:
            move(tensors[i], tensors[j], count, read, into)
            expected[j][into : into + count] = expected[i][read : read + count]
            known[j][into : into + count] = known[i][read : read + count]
            if i in spent:
                known[i][read : read + count] = False
        for k, tensor in tensors.items():
            assert (bytes_of(tensor) == expected[k])[known[k]].all()


# -- threads -----------------------------------------------------------------------------------------


def test_threads():
    """Pages are made, moved and given back on all of them at once."""
    wrong = []

    def work(seed):
        for step in range(30):
            source, data = filled(MB + PAGE * (step % 5), seed + step)
            target = empty((len(data),), "uint8", tvm.cpu())
            offer(source)
            move(source, target, len(data))
            del source
            if (bytes_of(target) != data).any():
                wrong.append((seed, step))

    threads = [threading.Thread(target=work, args=(100 * i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# -- memory ------------------------------------------------------------------------------------------


def _resident_mb():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024


def _memory():
    filled(MB)
    before = _resident_mb()
    sources = [empty((size * MB,), "uint8", tvm.cpu()) for size in (32, 8, 8)]
    sources += [empty((LEAST,), "uint8", tvm.cpu()) for _ in range(64)]
    for number, source in enumerate(sources):
        bytes_of(source)[...] = number + 1
    figures = {"made": _resident_mb() - before}

    def concatenate():
        target, at = empty((48 * MB,), "uint8", tvm.cpu()), 0
        for source in sources[:3]:
            size = bytes_of(source).size
            offer(source)
            move(source, target, size, 0, at)
            at += size
        return target

    result = []
    figures["extra"] = extra_mb(lambda: result.append(concatenate()))
    del sources[:3]
    figures["moved"] = _resident_mb() - before
    assert [int(bytes_of(result[0])[at * MB]) for at in (0, 32, 40)] == [1, 2, 3]
    del sources[::2]
    figures["some freed"] = _resident_mb() - before
    sources.clear()
    result.clear()
    figures["all freed"] = _resident_mb() - before
    return figures


@needs_clear_refs
def test_memory():
    """glibc as it is: freed pages are the system's at once, holes or not."""
    found = in_fresh_process(_memory, with_defaults=True)
    expected = {"made": 52, "extra": 0, "moved": 52, "some freed": 50, "all freed": 0}
    assert found == {name: pytest.approx(mb, abs=1) for name, mb in expected.items()}


def _out_of_memory():
    tensor, _ = filled(MB)
    size = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (size + 64 * MB, size + 64 * MB))
    try:
        empty((128 * MB,), "uint8", tvm.cpu())
    except Exception as error:
        return type(error).__name__, bytes_of(tensor).any()


@only_linux
@pytest.mark.skipif(SANITIZED, reason="AddressSanitizer takes more address space than the limit")
def test_out_of_memory():
    """TVM says it, as it does without pages."""
    name, is_there = in_fresh_process(_out_of_memory)
    assert name in ("InternalError", "MemoryError", "RuntimeError") and is_there


def _too_many():
    """More than the system has areas for."""
    tensors = [empty((LEAST,), "uint8", tvm.cpu()) for _ in range(33_000)]
    bytes_of(tensors[-1])[...] = 7
    source, target = tensors[0], tensors[1]
    bytes_of(source)[...] = 5
    offer(source)
    without_areas = is_moved(source, target, LEAST)
    del tensors, source, target
    source, target = filled(MB)[0], filled(MB, 1)[0]
    offer(source)
    return without_areas, is_moved(source, target, MB)


@needs_clear_refs
def test_as_many_as_the_system_has_areas_for():
    """The others are TVM's; with no area left nothing is moved."""
    assert in_fresh_process(_too_many) == (False, True)
