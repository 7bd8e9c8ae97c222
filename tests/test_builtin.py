"""vm.builtin.inplace_update_tuple, against a list, and in a process that holds tvm_ffi only."""

import gc
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tvm
import tvm_ffi
from hypothesis import given
from hypothesis import strategies as st

import relax_inplace

update = tvm_ffi.get_global_func("vm.builtin.inplace_update_tuple")

FIELDS = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.none(),
    st.text(),
    st.floats(allow_nan=False),
    st.lists(st.integers(0, 9)).map(tuple),
)


def as_python(value):
    return tuple(map(as_python, value)) if isinstance(value, tvm_ffi.Array) else value


@given(
    st.lists(FIELDS, min_size=1, max_size=8),
    st.lists(st.tuples(st.integers(-20, 20), FIELDS), max_size=10),
)
def test_behaves_as_a_list(fields, updates):
    array, model = tvm_ffi.Array(fields), list(fields)
    for index, value in updates:
        if 0 <= index < len(model):
            assert update(array, index, value).same_as(array)
            model[index] = value
        else:
            with pytest.raises(IndexError, match=rf"index {index} .* {len(model)} fields"):
                update(array, index, value)
        assert as_python(array) == tuple(model)


@pytest.mark.parametrize(
    "tuple", [1, None, "params", {"a": 1}, tvm_ffi.Shape([1, 2]), tvm_ffi.List([1])]
)
def test_refuses_what_is_no_tuple(tuple):
    with pytest.raises(TypeError, match=r"argument #0 .* Expected `ffi.Array` but got"):
        update(tuple, 0, 1)


@pytest.mark.parametrize("index", [1.0, "0", None, tvm_ffi.Array([0])])
def test_refuses_an_index_that_is_no_integer(index):
    array = tvm_ffi.Array([1, 2])
    with pytest.raises(TypeError, match=r"argument #1 .* Expected `int` but got"):
        update(array, index, 3)
    assert list(array) == [1, 2]


def test_a_tuple_cannot_hold_itself():
    inner = tvm_ffi.Array([1])
    array = tvm_ffi.Array([inner, None])
    for fields, value in ((array, array), (inner, array), (inner, (None, (2, (array,))))):
        with pytest.raises(ValueError, match=r"new field 0 is .* a tuple cannot hold itself"):
            update(fields, 0, value)
    assert as_python(array) == ((1,), None)


def test_a_tuple_may_hold_another_twice():
    value = tvm_ffi.Array([])
    for _ in range(100):  # 2^100 paths
        value = tvm_ffi.Array([value, value])
    array = tvm_ffi.Array([None])
    assert update(array, 0, value)[0].same_as(value)


def test_an_empty_tuple_has_no_index():
    with pytest.raises(IndexError, match=r"index 0 .* 0 fields"):
        update(tvm_ffi.Array([]), 0, 1)


def test_frees_the_old_field_at_once():
    freed = []

    def tracked(name):  # a tensor whose memory says when it goes
        class Memory(np.ndarray):
            def __del__(self):
                freed.append(name)

        return tvm_ffi.from_dlpack(np.zeros(4, "float32").view(Memory))

    array = tvm_ffi.Array([tracked("old")])
    gc.collect()
    assert freed == []
    update(array, 0, tracked("new"))
    gc.collect()
    assert freed == ["old"]


def test_needs_tvm_ffi_only():
    program = """
        import sys, tvm_ffi
        import relax_inplace.libinfo
        relax_inplace.libinfo.load_library()
        update = tvm_ffi.get_global_func("vm.builtin.inplace_update_tuple")
        array = tvm_ffi.Array([1, 2])
        assert update(array, 1, 7).same_as(array) and list(array) == [1, 7]
        assert "tvm" not in sys.modules
        with open("/proc/self/maps") as maps:
            assert "libtvm_compiler" not in maps.read()
    """
    subprocess.run([sys.executable, "-I", "-c", textwrap.dedent(program)], check=True)


def test_a_second_copy_of_the_library_is_harmless(tmp_path):
    copy = tmp_path / "copy.so"
    with open(relax_inplace.libinfo.find_library(), "rb") as library:
        copy.write_bytes(library.read())
    program = f"""
        import ctypes, tvm_ffi
        tvm_ffi.load_module({str(copy)!r})
        import relax_inplace, tvm
        from tvm.script import relax as R
        R.inplace_update_tuple
        tvm_ffi.load_module(relax_inplace.libinfo.find_library())
        ctypes.CDLL({str(copy)!r})
        assert list(tvm_ffi.get_global_func("vm.builtin.inplace_update_tuple")(
            tvm_ffi.Array([1]), 0, 2)) == [2]
    """
    subprocess.run([sys.executable, "-I", "-c", textwrap.dedent(program)], check=True)


def test_the_library_is_not_unloaded():
    """Its functions stay in tvm-ffi's registry."""
    program = """
        import _ctypes, tvm_ffi, relax_inplace.libinfo
        library = relax_inplace.libinfo.load_library()
        for _ in range(3):
            _ctypes.dlclose(library._handle)
        update = tvm_ffi.get_global_func("vm.builtin.inplace_update_tuple")
        assert list(update(tvm_ffi.Array([1]), 0, 2)) == [2]
    """
    subprocess.run([sys.executable, "-I", "-c", textwrap.dedent(program)], check=True)


def test_the_builtin_is_what_tvm_finds():
    assert tvm.get_global_func("vm.builtin.inplace_update_tuple") is not None
