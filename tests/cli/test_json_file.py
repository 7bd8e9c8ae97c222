"""A module as JSON: what is none is refused, though TVM would crash on it."""

import copy
import ctypes
import json
import signal

import pytest
import tvm
from commands import TRANSFORM, error
from hypothesis import given
from hypothesis import strategies as st
from profiles import examples

from relax_inplace.cli.json_file import read_json
from relax_inplace.cli.messages import Messages, RefusedError
from relax_inplace.cli.script_file import read_script

WRONG = "m.json: not as tvm.ir.save_json writes it: "


def module():
    return json.loads(tvm.ir.save_json(read_script(TRANSFORM, "m.py")))


def read(text):
    with Messages().tvm_speaks():
        return read_json(text, "m.json")


def test_read():
    assert [str(gvar.name_hint) for gvar in read(json.dumps(module())).get_global_vars()] == [
        "transform_params"
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "no JSON: Expecting property name enclosed in double quotes"),
        ("{}", "JSON, but not of tvm.ir.save_json"),
        ('{"nodes": 1}', "JSON, but not of tvm.ir.save_json"),
        ('{"a":' * 100_000, "nested too deeply"),
        ('{"nodes": [' + "[" * 100_000, "nested too deeply"),
        ('{"nodes": [], "root_index": 0}', "not as tvm.ir.save_json writes it: "),
    ],
)
def test_no_module(text, reason):
    with pytest.raises(RefusedError) as caught:
        read(text)
    assert str(caught.value).startswith(f"m.json: {reason}")


def test_another_object():
    with pytest.raises(RefusedError) as caught:
        read(tvm.ir.save_json(tvm.runtime.convert([1, 2])))
    assert str(caught.value) == "m.json: it holds a Array, not an IRModule"


@pytest.fixture
def handler_that_aborts():
    """Of SIGSEGV, as tvm-ffi's may do where the heap is damaged."""
    libc = ctypes.CDLL(None)
    libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p]
    stock = libc.signal(signal.SIGSEGV, ctypes.cast(libc.abort, ctypes.c_void_p))
    yield
    libc.signal(signal.SIGSEGV, stock)


@pytest.mark.parametrize(("kind", "field"), [("relax.expr.VarBinding", "var"), ("ir.Call", "op")])
@pytest.mark.usefixtures("handler_that_aborts")
def test_what_crashes_tvm(kind, field):
    """A null where there is to be an object: it is loaded, and the first visitor follows it."""
    changed = module()
    kinds = [node["type"] for node in changed["nodes"]]
    changed["nodes"][kinds.index(kind)]["data"][field] = kinds.index("None")
    with pytest.raises(RefusedError) as caught:
        read(json.dumps(changed))
    assert str(caught.value) == f"{WRONG}TVM crashes on it (SIGSEGV)"


ORIGINAL = module()


@st.composite
def changed(draw):
    """The module with one field of one node replaced, or its type."""
    nodes = copy.deepcopy(ORIGINAL["nodes"])
    references = st.integers(-1, len(nodes))
    node = draw(st.sampled_from(nodes))
    fields = node.get("data")
    if isinstance(fields, dict) and fields:
        others = st.sampled_from([None, 10**9, "x", []])
        fields[draw(st.sampled_from(sorted(fields)))] = draw(others | references)
    elif isinstance(fields, list) and fields:
        fields[draw(st.integers(0, len(fields) - 1))] = draw(references)
    else:
        node["type"] = draw(st.sampled_from(nodes))["type"]
    return json.dumps({**ORIGINAL, "nodes": nodes})


@examples(60)
@given(changed())
def test_random_changes_never_end_the_process(text):
    """Refused, or a module that passes take."""
    try:
        mod = read(text)
    except RefusedError as refused:
        assert str(refused).startswith("m.json: ")
    else:
        mod.script()


def test_line(tmp_path):
    (tmp_path / "m.json").write_text('{"nodes": []}')
    assert error("plan", tmp_path / "m.json").startswith(f"{tmp_path / 'm.json'}: not as tvm.ir.")
