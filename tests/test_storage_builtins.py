"""vm.builtin.donate_storage, shrink_storage and release_storage: whoever else sees a storage keeps its bytes."""

import ctypes
import itertools
import sys
import threading

import numpy as np
import pytest
import tvm
import tvm_ffi
from hypothesis import given
from hypothesis import strategies as st
from memory import extra_mb, in_fresh_process, needs_clear_refs
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from relax_inplace.libinfo import load_library
from relax_inplace.runtime.tensor_bytes import bytes_of

load_library()
donate = tvm_ffi.get_global_func("vm.builtin.donate_storage")
shrink = tvm_ffi.get_global_func("vm.builtin.shrink_storage")
release = tvm_ffi.get_global_func("vm.builtin.release_storage")
observe = tvm_ffi.get_global_func("relax_inplace.ObserveUpdates")

CPU = tvm.cpu()
BESIDE = tvm.runtime.empty((1,), "uint8", CPU)
PAGE = 4096
GIVES_BACK = sys.platform.startswith("linux")

TAKEN = ""
FIRST = "first of its size"
HELD = "something else refers to it"
NOT_TVMS = "a view or memory that TVM does not own"
ELSEWHERE = "on another device"
TOO_SMALL = "too small"


def tensor(shape, dtype="uint8", fill=7):
    made = tvm.runtime.empty(shape, dtype, CPU)
    bytes_of(made)[...] = fill
    return made


def told(donor, shape, dtype="uint8", beside=BESIDE):
    """(the new tensor, what an observer is told of it)."""
    seen, made = [], []
    observe(
        lambda *what: seen.append(what),
        lambda _: made.append(donate(donor, beside, tvm_ffi.Shape(shape), dtype)),
        tvm_ffi.Array([0]),
    )
    assert len(seen) == 1
    return made[0], seen[0]


def why_not(donor, shape, dtype="uint8", beside=BESIDE):
    made, (_, _, _, why) = told(donor, shape, dtype, beside)
    assert (made.data_ptr() == donor.data_ptr()) == (why == TAKEN)
    return why


# -- What is taken ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "before, after",
    [
        (((4, 8), "float32"), ((8, 4), "float32")),
        (((4, 8), "float32"), ((4, 16), "float16")),
        (((4, 8), "float32"), ((2, 3), "int8")),
        (((3,), "uint8"), ((), "uint8")),
        (((), "float32"), ((2, 2), "uint8")),
        (((9,), "uint8"), ((18,), "int4")),
        (((9,), "int4"), ((5,), "uint8")),
        (((8,), "bool"), ((1,), "int64")),
        (((6,), "bfloat16"), ((3, 4), "float8_e4m3fn")),
        (((0, 4), "float32"), ((7, 0), "int8")),
        (((4,), "float32"), ((0,), "float32")),
        (((100_000,), "uint8"), ((3,), "uint8")),
        (((8,), "float32x4"), ((128,), "uint8")),
    ],
)
def test_a_spent_tensor_becomes_a_new_one(before, after):
    donor = tensor(*before)
    made, what = told(donor, *after)
    assert made.data_ptr() == donor.data_ptr()
    assert (made.shape, str(made.dtype)) == after
    assert made.device == CPU
    assert made.is_contiguous()
    new = bytes_of(made)
    assert what == (None, new.size, 0, TAKEN)
    if new.size <= bytes_of(donor).size:
        assert (new == 7).all()  # the kernel that makes it may read the old one
    address = donor.data_ptr()
    del donor
    new[...] = 5  # it keeps the memory
    assert made.data_ptr() == address
    assert (bytes_of(made) == 5).all()


def test_strides_are_those_of_a_compact_tensor():
    made, _ = told(tensor((24,)), (2, 3, 4))
    assert made.strides == (12, 4, 1)
    np.testing.assert_array_equal(np.from_dlpack(made), np.full((2, 3, 4), 7))


@pytest.mark.parametrize(
    "before, after",
    [
        (((8,), "uint8"), ((9,), "uint8")),
        (((9,), "int4"), ((6,), "uint8")),
        (((0,), "float32"), ((), "uint8")),
        (((8,), "float16"), ((5,), "float32")),
    ],
)
def test_a_storage_that_is_too_small(before, after):
    assert why_not(tensor(*before), *after) == TOO_SMALL


@pytest.mark.parametrize("shape, dtype", [((3, 4), "float16"), ((), "int8"), ((5, 0), "int4")])
def test_without_a_spent_one(shape, dtype):
    made, what = told(None, shape, dtype)
    assert (made.shape, str(made.dtype), made.device) == (shape, dtype, CPU)
    assert what == (None, bytes_of(made).size, 0, FIRST)


def test_nobody_need_listen():
    donor = tensor((8,))
    address = donor.data_ptr()
    assert donate(donor, donor, [8], "uint8").data_ptr() == address


# -- What is not -----------------------------------------------------------------------------------


def test_a_second_reference():
    donor = tensor((8,))
    tied = tvm_ffi.Array([donor])
    assert why_not(donor, (8,)) == HELD
    del tied
    assert why_not(donor, (8,)) == TAKEN


def test_a_weak_reference():
    donor = tensor((8,))
    # TVMFFIObject begins with its counts: weak ones are in the upper half.
    weak = ctypes.c_uint32.from_address(donor.__chandle__() + 4)
    weak.value += 1
    assert why_not(donor, (8,)) == HELD
    weak.value -= 1
    assert why_not(donor, (8,)) == TAKEN


def test_an_export():
    donor = tensor((8,))
    exported = np.from_dlpack(donor)
    assert why_not(donor, (8,)) == HELD
    assert (exported == 7).all()


def test_an_import():
    array = np.full(256, 7, "uint8")
    start = -array.ctypes.data % 64
    donor = tvm_ffi.from_dlpack(array[start : start + 128])
    assert why_not(donor, (128,)) == NOT_TVMS
    release(donor)
    assert (array == 7).all()


def test_a_view_and_what_it_views():
    donor = tensor((128,))
    view = donor._create_view((64,), "uint8")
    assert why_not(donor, (128,)) == HELD
    assert why_not(view, (64,)) == NOT_TVMS
    del donor
    assert why_not(view, (64,)) == NOT_TVMS
    assert (bytes_of(view) == 7).all()


def test_an_import_of_an_export():
    donor = tvm_ffi.from_dlpack(np.from_dlpack(tensor((128,))))
    assert why_not(donor, (128,)) == NOT_TVMS


def test_another_device():
    there = tvm.runtime.empty((8,), "uint8", tvm.cpu(1))
    made, (*_, why) = told(tensor((8,)), (8,), beside=there)
    assert why == ELSEWHERE
    assert made.device == tvm.cpu(1)
    assert why_not(there, (8,), beside=there) == TAKEN


def test_a_tensor_of_the_virtual_machines_allocator():
    """Its storage may hold others, and is held by the plan of a function."""

    @I.ir_module
    class Module:
        @R.function
        def main(x: R.Tensor((64,), "uint8")):
            return R.add(x, x)

    vm = relax.VirtualMachine(tvm.compile(Module, "llvm"), CPU)
    assert why_not(vm["main"](tensor((64,))), (64,)) == NOT_TVMS


def test_the_same_donor_twice():
    donor = tensor((8,))
    first, _ = told(donor, (8,))
    assert why_not(donor, (8,)) == HELD
    assert why_not(first, (8,)) == HELD  # by the donor, which is still there
    del donor
    assert why_not(first, (8,)) == TAKEN


@pytest.mark.parametrize(
    "error, match, donor, beside, shape, dtype",
    [
        (TypeError, "argument #0 .*ffi.Tensor.* but got `int`", 3, BESIDE, [1], "uint8"),
        (TypeError, "argument #1 .*ffi.Tensor.* but got `int`", None, 3, [1], "uint8"),
        (TypeError, "argument #2 .* Expected `ffi.Shape`", None, BESIDE, 3, "uint8"),
        (TypeError, "argument #3 .* Expected `DataType`", None, BESIDE, [1], 3),
        (ValueError, r"of shape \[2, -1\]", None, BESIDE, [2, -1], "uint8"),
        (ValueError, r"of shape \[0, -1\]", None, BESIDE, [0, -1], "uint8"),
        (ValueError, "larger than any memory", None, BESIDE, [2**40, 2**40], "uint8"),
        (ValueError, "larger than any memory", None, BESIDE, [2**62], "float32"),
        (ValueError, "no tensor can be of shape .* and dtype", None, BESIDE, [1], ""),
    ],
)
def test_refused(error, match, donor, beside, shape, dtype):
    with pytest.raises(error, match=match):
        donate(donor, beside, shape, dtype)


@pytest.mark.parametrize("builtin", [shrink, release])
def test_no_tensor(builtin):
    with pytest.raises(TypeError, match=r"argument #0 .* Expected `ffi.Tensor` but got `None`"):
        builtin(None)


def test_beside_nothing_is_on_the_host():
    made = donate(None, None, [3], "uint8")
    assert made.device == tvm.cpu() and made.shape == (3,)


def test_an_empty_tensor_of_a_huge_shape():
    made, _ = told(None, (2**40, 0, 2**40))
    assert bytes_of(made).size == 0


# -- shrink_storage, release_storage -----------------------------------------------------------------


def test_shrinking_keeps_what_the_tensor_holds():
    donor = tensor((10 * PAGE,))
    made, _ = told(donor, (3 * PAGE + 1,))
    shrink(made)  # the donor is still there
    assert (bytes_of(donor) == 7).all()
    del donor
    kept = tvm_ffi.Array([made])  # sees no more than the tensor does
    shrink(made)
    shrink(made)
    assert (bytes_of(made) == 7).all()
    del kept
    grown, (*_, why) = told(made, (10 * PAGE,))
    assert why == TAKEN
    rest = bytes_of(grown)
    assert (rest[: 3 * PAGE + 1] == 7).all()
    assert not GIVES_BACK or (rest[5 * PAGE : 9 * PAGE] == 0).all()


def test_only_a_tensor_in_a_larger_storage_is_shrunk():
    for one in (tensor((5 * PAGE,)), tensor((5 * PAGE,))._create_view((PAGE,), "uint8")):
        shrink(one)
        assert (bytes_of(one) == 7).all()


def test_releasing_what_something_else_sees():
    spent = tensor((5 * PAGE,))
    tied = tvm_ffi.Array([spent])
    release(spent)
    assert (bytes_of(spent) == 7).all()
    del tied
    made, _ = told(spent, (5 * PAGE,))
    release(made)
    release(spent)
    assert (bytes_of(made) == 7).all()
    del spent
    release(made)
    assert not GIVES_BACK or (bytes_of(made)[PAGE : 4 * PAGE] == 0).all()


def _resident_mb():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024


def _memory_of_donations():
    size = 32 << 20
    told(tensor((PAGE,)), (PAGE,))  # what is made once
    figures = {"before": _resident_mb()}
    one, _ = told(None, (size,))
    bytes_of(one)[...] = 1
    figures["fresh"] = _resident_mb()

    def chain():
        nonlocal one
        for number in range(40):
            one = donate(one, BESIDE, [size - number], "uint8")
            bytes_of(one)[...] = number

    figures["of a chain"] = extra_mb(chain)
    one = donate(one, BESIDE, [size // 4], "uint8")
    shrink(one)
    figures["shrunk"] = _resident_mb()
    one = donate(one, BESIDE, [size], "uint8")
    bytes_of(one)[...] = 1
    figures["grown"] = _resident_mb()
    release(one)
    figures["released"] = _resident_mb()
    bytes_of(one)[...] = 1
    del one
    figures["after"] = _resident_mb()
    return figures


@needs_clear_refs
def test_memory():
    found = in_fresh_process(_memory_of_donations)
    before = found.pop("before")
    assert found.pop("of a chain") < 1
    expected = {"fresh": 32, "shrunk": 8, "grown": 32, "released": 0, "after": 0}
    above = {name: found[name] - before for name in expected}
    assert above == {name: pytest.approx(mb, abs=2) for name, mb in expected.items()}


# -- Any sequence ------------------------------------------------------------------------------------

SIZES = st.sampled_from([0, 1, 64, 100, PAGE, PAGE + 1, 5 * PAGE, 20_000])
ACTIONS = st.one_of(
    st.tuples(st.just("allocate"), SIZES),
    st.tuples(st.sampled_from(["import", "donate", "donate and keep"]), SIZES),
    st.tuples(st.sampled_from(["tie", "export", "view", "drop", "shrink", "release"]), SIZES),
)


class _Holder:
    """Someone who sees a storage: by a tensor, a tuple or an array of numpy's."""

    def __init__(self, value, storage, content, is_tvms):
        self.value, self.storage, self.is_tvms = value, storage, is_tvms
        self.content = content  # None: spent

    @property
    def bytes(self):
        if isinstance(self.value, np.ndarray):
            return self.value
        return bytes_of(self.value[0] if isinstance(self.value, tvm_ffi.Array) else self.value)


class _Model:
    """Who sees which storage, and what its bytes are to be."""

    def __init__(self):
        self.holders, self.capacity = [], {}
        self._storages, self._fills = itertools.count(), itertools.count(1)

    def written(self, value, storage, size, is_tvms=True):
        content = np.full(size, next(self._fills) % 251, "uint8")
        holder = _Holder(value, storage, content, is_tvms)
        holder.bytes[...] = content
        self.holders.append(holder)

    def storage_of(self, size):
        storage = next(self._storages)
        self.capacity[storage] = size
        return storage

    def act(self, action, size, which):
        tensors = [one for one in self.holders if isinstance(one.value, tvm_ffi.Tensor)]
        if action == "allocate":
            self.written(tensor((size,)), self.storage_of(size), size)
        elif action == "import":
            array, storage = np.empty(size, "uint8"), self.storage_of(size)
            self.written(tvm_ffi.from_dlpack(array), storage, size, is_tvms=False)
            self.holders.append(_Holder(array, storage, self.holders[-1].content, False))
        elif tensors:
            self.act_on(tensors[which % len(tensors)], action, size)

    def act_on(self, one, action, size):
        if action == "drop":
            self.holders.remove(one)
        elif action == "tie":
            value = tvm_ffi.Array([one.value])
            self.holders.append(_Holder(value, one.storage, one.content, False))
        elif action == "export":
            self.holders.append(_Holder(one.bytes, one.storage, one.content, False))
        elif action == "view":
            count = min(size, one.bytes.size)
            view = one.value._create_view((count,), "uint8")
            content = None if one.content is None else one.content[:count]
            self.holders.append(_Holder(view, one.storage, content, False))
        elif action == "shrink":
            shrink(one.value)
        elif action == "release":
            release(one.value)
            self.holders.remove(one)
        else:
            self.donate(one, size, is_kept=action == "donate and keep")

    def donate(self, one, size, is_kept):
        seers = sum(other.storage == one.storage for other in self.holders)
        made, (*_, why) = told(one.value, (size,))
        if not one.is_tvms:
            assert why == NOT_TVMS
        elif seers > 1:
            assert why == HELD
        else:
            assert why == (TAKEN if size <= self.capacity[one.storage] else TOO_SMALL)
        one.content = None
        if not is_kept:
            self.holders.remove(one)
        self.written(made, one.storage if why == TAKEN else self.storage_of(size), size)


@given(st.lists(st.tuples(ACTIONS, st.integers(0, 9)), max_size=30))
def test_whoever_sees_a_storage_keeps_its_bytes(steps):
    model = _Model()
    for (action, size), which in steps:
        model.act(action, size, which)
        for holder in model.holders:
            if holder.content is not None:
                np.testing.assert_array_equal(holder.bytes, holder.content)


# -- Threads ----------------------------------------------------------------------------------------


def test_threads():
    shared = tvm_ffi.Array([tensor((PAGE,))])
    failures, ready = [], threading.Barrier(4)

    def work(number):
        try:
            ready.wait()
            own = tensor((2 * PAGE,), fill=number)
            address = own.data_ptr()
            for turn in range(100):
                seen = shared[0]
                assert why_not(seen, (PAGE,)) == HELD
                own = donate(own, BESIDE, [2 * PAGE - turn], "uint8")
                bytes_of(own)[...] = number
                assert own.data_ptr() == address
            assert (bytes_of(own) == number).all()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert failures == []
    assert (bytes_of(shared[0]) == 7).all()


# -- In the virtual machine ---------------------------------------------------------------------------


def test_a_lowered_function():
    @I.ir_module
    class Module:
        @R.function(pure=False)
        def main(w: R.Tensor(("n", 8), "float32"), tied: R.Tensor((16,), "int8")):
            n = T.int64()
            a = R.call_packed(
                "vm.builtin.donate_storage",
                R.null_value(),
                w,
                R.shape([n, 8]),
                R.dtype("float32"),
                ty_args=R.Tensor((n, 8), "float32"),
            )
            b = R.call_packed(
                "vm.builtin.donate_storage",
                a,
                w,
                R.shape([8, n]),
                R.dtype("float16"),
                ty_args=R.Tensor((8, n), "float16"),
            )
            c = R.call_packed(
                "vm.builtin.donate_storage",
                b,
                a,
                R.shape([2]),
                R.dtype("int4"),
                ty_args=R.Tensor((2,), "int4"),
            )
            _ = R.call_packed("vm.builtin.shrink_storage", b, ty_args=R.Any)
            d = R.call_packed(
                "vm.builtin.donate_storage",
                tied,
                w,
                R.shape([16]),
                R.dtype("int8"),
                ty_args=R.Tensor((16,), "int8"),
            )
            return R.tuple(b, c, d)

    vm = relax.VirtualMachine(tvm.compile(Module, "llvm"), CPU)
    w, tied = tensor((5, 8), "float32"), tensor((16,), "int8")
    seen, results = [], []

    def run(given):
        results.append(vm["main"](w, given[0]))

    observe(lambda *what: seen.append(what), run, tvm_ffi.Array([tied]))
    assert [one[1:] for one in seen] == [
        (160, 0, FIRST),
        (80, 0, TAKEN),
        (1, 0, HELD),
        (16, 0, HELD),
    ]
    b, c, d = results[0]
    assert [(one.shape, str(one.dtype)) for one in (b, c, d)] == [
        ((8, 5), "float16"),
        ((2,), "int4"),
        ((16,), "int8"),
    ]
    assert (bytes_of(tied) == 7).all()
    assert len({one.data_ptr() for one in (b, c, d, tied, w)}) == 5
