"""The kernels of transforms are compiled by what they are given: distinct memory, or any."""

import pytest
import tvm
from tvm.script import from_source

from relax_inplace.lower.kernel_libraries import with_kernel_libraries

LLVM = tvm.target.Target("llvm")


def kernels(calls):
    """Kernels `a`, `b` and `c`, of which all but `b` say that they are given distinct memory."""

    def kernel(name):
        called = "".join(f"            Module.{other}(x, i)\n" for other in calls.get(name, ""))
        return f"""
    @T.prim_func(s_tir=True)
    def {name}(x: T.handle("float32"), n: T.int64):
        T.func_attr({{"global_symbol": "{name}", "tirx.noalias": {name != "b"}}})
        X = T.decl_buffer((4,), "float32", data=x)
        for i in T.serial(T.int64(4)):
            X[i] = X[i] + T.float32(1)
{called}"""

    source = "@I.ir_module\nclass Module:\n" + "".join(map(kernel, "abc"))
    return from_source(source)


@pytest.mark.parametrize(
    "calls, expected",
    [
        ({}, [{"a": True, "c": True}, {"b": False}]),
        ({"a": "c"}, [{"a": True, "c": True}, {"b": False}]),
        ({"a": "b"}, [{"c": True}, {"a": False, "b": False}]),
        ({"b": "a"}, [{"c": True}, {"a": False, "b": False}]),
        ({"c": "a", "a": "b"}, [{"a": False, "b": False, "c": False}]),
        ({"b": "a", "a": "c"}, [{"a": False, "b": False, "c": False}]),
        ({"b": "a", "c": "a"}, [{"a": False, "b": False, "c": False}]),
    ],
)
def test_a_library_for_each_kind_of_memory(calls, expected, monkeypatch):
    """A kernel is compiled with those that it calls, and that call it."""
    compiled = []
    library = tvm.tirx.build(kernels({}), LLVM)

    def build(mod, *_):
        names = {gvar.name_hint: bool(f.attrs["tirx.noalias"]) for gvar, f in mod.functions_items()}
        compiled.append(dict(sorted(names.items())))
        return library

    monkeypatch.setattr(tvm.tirx, "build", build)
    after = with_kernel_libraries(kernels(calls), LLVM, "default", "bytecode", None)
    assert compiled == expected
    assert len(after.attrs["external_mods"]) == len(expected)
    assert not after.functions


def test_libraries_that_are_there_stay():
    """What a pass has compiled for an accelerator."""
    library = tvm.tirx.build(kernels({}), LLVM)
    mod = kernels({}).with_attr("external_mods", [library])
    after = with_kernel_libraries(mod, LLVM, "default", "bytecode", None)
    assert after.attrs["external_mods"][0].same_as(library)
    assert len(after.attrs["external_mods"]) == 3
