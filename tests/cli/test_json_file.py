"""A module as JSON is data: what would act, or crash TVM, is refused, and all else is built."""

import copy
import json
import os
import tempfile
from pathlib import Path

import pytest
import tvm
from commands import TRANSFORM, module
from hypothesis import event, given
from hypothesis import strategies as st
from json_modules import as_json, in_a_copy
from profiles import examples
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T


@pytest.fixture
def build(tmp_path):
    """What `build` says of a module, as text or of TVM."""
    (tmp_path / "temporary").mkdir()

    def build(given):
        (tmp_path / "m.json").write_text(
            given if isinstance(given, str) else tvm.ir.save_json(given)
        )
        code, said = in_a_copy(tmp_path, "build", "m.json", "-o", "lib.so", "--quiet")
        assert list((tmp_path / "temporary").iterdir()) == []
        assert (tmp_path / "lib.so").is_file() == (code == 0)
        assert said.count("\n") == code
        return said.removeprefix("relax-inplace: error: m.json: ").rstrip("\n")

    return build


# -- what is no module ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "no JSON: Expecting property name enclosed in double quotes"),
        ("{}", "JSON, but not of tvm.ir.save_json"),
        ('{"nodes": 1}', "JSON, but not of tvm.ir.save_json"),
        ('{"a":' * 100_000, "nested too deeply"),
        ('{"nodes": [' + "[" * 100_000, "nested too deeply"),
        ('{"nodes": [], "root_index": 0}', "not as tvm.ir.save_json writes it: "),
        ('{"nodes": [1]}', "it holds a 1, which is no part of a model"),
        (tvm.ir.save_json(tvm.runtime.convert([1, 2])), "it holds a Array, not an IRModule"),
    ],
)
def test_no_module(build, text, reason):
    assert build(text).startswith(reason)


@pytest.mark.parametrize(("kind", "field"), [("relax.expr.VarBinding", "var"), ("ir.Call", "op")])
def test_what_crashes_tvm(build, kind, field):
    """A null where there is to be an object: it is loaded, and the first visitor follows it."""
    changed = json.loads(tvm.ir.save_json(module(TRANSFORM)))
    kinds = [node["type"] for node in changed["nodes"]]
    changed["nodes"][kinds.index(kind)]["data"][field] = kinds.index("None")
    assert build(json.dumps(changed)).startswith("not as tvm.ir.save_json writes it: TVM crashes")


# -- what would act while it is built -------------------------------------------------------------


def test_a_module_of_many_kinds_is_built(build):
    assert build(json.dumps(as_json())) == ""


def kernel(attributes=(), block=(), loop=(), key="pragma_unroll_explicit", value=1, name="abs"):
    @T.prim_func(s_tir=True)
    def kernel(a: T.Buffer((8,), "float32"), b: T.Buffer((8,), "float32")):
        T.func_attr(dict(attributes))
        for i in T.serial(8, annotations=dict(loop)):
            with T.sblock("copied"):
                vi = T.axis.spatial(8, i)
                T.sblock_attr(dict(block))
                with T.attr(0, key, value):
                    b[vi] = a[vi]
                T.evaluate(T.call_extern("int32", name, 1))

    return kernel


def user(function, attributes=()):
    builder = tvm.relax.BlockBuilder()
    x = tvm.relax.Var("x", R.Tensor((8,), "float32"))
    gvar = builder.add_func(function, "kernel")
    with builder.function("main", [x], attrs=dict(attributes)):
        out = R.Tensor((8,), "float32")
        builder.emit_func_output(builder.emit(tvm.relax.call_tir(gvar, (x,), out_ty=out)))
    return builder.get()


TEXT = 'module asm ".incbin \\22FILE\\22"\n'
SOURCE = 'abs(1);\n#include "FILE"\n'
HOSTILE = {
    "pragma of a block": kernel(block={"pragma_import_llvm": TEXT}),
    "pragma of a block, by path": kernel(block={"pragma_import_llvm": "FILE.ll"}),
    "pragma of a loop": kernel(loop={"pragma_import_c": SOURCE}),
    "pragma as a statement": kernel(key="pragma_import_llvm", value=TEXT),
    "pragma as a statement, by path": kernel(key="pragma_import_llvm", value="FILE.ll"),
    "pragma that is unknown": kernel(loop={"pragma_new": "FILE"}),
    "text in a list": kernel(block={"pragma_new": ["FILE"]}),
    "text in an object": kernel(block={"pragma_new": {"a": [{"b": "FILE"}]}}),
    "name of what is called": kernel(name=SOURCE),
    "name of what is called, in other letters of C": kernel(name="%:include <FILE> //"),
    "name of the function": kernel(attributes={"global_symbol": SOURCE}),
    "attribute of a kernel": kernel(attributes={"anything": "FILE"}),
    "text of a known attribute": kernel(block={"meta_schedule.tiling_structure": SOURCE}),
    "options of LLVM": kernel(
        attributes={"target": tvm.target.Target({"kind": "llvm", "cl-opt": ["-load=FILE"]})}
    ),
    "options of a host": kernel(
        attributes={
            "target": tvm.target.Target("cuda", host={"kind": "llvm", "cl-opt": ["-load=FILE"]})
        }
    ),
    "another target": kernel(attributes={"target": tvm.target.Target("c")}),
}
HOSTILE = {name: user(function) for name, function in HOSTILE.items()}
HOSTILE["code generator"] = user(kernel(), {"Codegen": "FILE"})
HOSTILE["prefix of symbols"] = user(kernel()).with_attr("system_lib_prefix", SOURCE)
HOSTILE["attribute of the module"] = user(kernel()).with_attr("anything", "FILE")


def _number():
    builder = tvm.relax.BlockBuilder()
    x = tvm.relax.Var("x", R.Tensor((8,), "float32"))
    with builder.function("main", [x]):
        builder.emit(tvm.tirx.call_extern("int64", SOURCE, 1))
        builder.emit_func_output(x)
    return builder.get()


HOSTILE["number of Relax"] = _number()


@I.ir_module
class OnADevice:
    I.module_global_infos({"vdevice": [I.vdevice({"kind": "llvm", "cl-opt": ["-load=FILE"]})]})

    @R.function
    def main(x: R.Tensor((8,), "float32")):
        return x


HOSTILE["options of a virtual device"] = OnADevice


@I.ir_module
class Named:
    @T.prim_func(s_tir=True)
    def kernel(a: T.Buffer((8,), "float32"), b: T.Buffer((8,), "float32")):
        for thread in T.thread_binding(8, thread="threadIdx.x"):
            for loop in range(1):
                with T.sblock("block"):
                    vi = T.axis.spatial(8, thread + loop)
                    b[vi] = a[vi]

    @R.function
    def main(x: R.Tensor((8,), "float32")):
        cls = Named
        return R.call_tir(cls.kernel, (x,), out_ty=R.Tensor((8,), "float32"))


for _name in ("a", "loop", "threadIdx.x", "global", "vi", "kernel"):
    _changed = json.loads(tvm.ir.save_json(Named))
    for _node in _changed["nodes"]:
        if _node.get("data") == _name:
            _node["data"] = f"{_name}{SOURCE}"
    HOSTILE[f"text after {_name}"] = json.dumps(_changed)


def _with_type(kind, data):
    """One more node, which the module's attributes have."""
    changed = json.loads(tvm.ir.save_json(user(kernel()).with_attr("mod_name", "MARK")))
    for node in changed["nodes"]:
        if node.get("data") == "MARK":
            node.update(type=kind, data=data)
    return json.dumps(changed)


HOSTILE["compiled module"] = _with_type("ffi.Module", "AAAA")
HOSTILE["function of TVM's"] = _with_type("ir.EnvFunc", "runtime.ModuleLoadFromFile")
HOSTILE["pass"] = _with_type("transform.PassInfo", {})
HOSTILE["two types"] = _with_type("ffi.Module", "AAAA").replace(
    '"type": "ffi.Module"', '"type": "ffi.String", "type": "ffi.Module"'
)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(build, name):
    said = build(HOSTILE[name])
    refused = (
        "text in the attribute",
        "which a code generator takes",
        "option ",
        "target of kind",
        "it holds",
    )
    assert any(one in said for one in (*refused, "TVM would call")), said


def test_text_that_nothing_interprets(build):
    """Names of weights, messages, and what is ours."""
    text = json.dumps(as_json()).replace('"data": "w"', '"data": "layers.0/w (\\"new\\")"')
    assert build(text) == ""
    mod = user(kernel(attributes={"relax_inplace.note": '{"a": "b"}'}))
    assert build(mod) == ""


# -- random changes -------------------------------------------------------------------------------

TEXTS = [TEXT, SOURCE, "FILE", "pragma_import_llvm", "pragma_import_c", "Codegen", "cl-opt", ""]


@st.composite
def changed(draw):
    """The module with some fields of its nodes replaced, their types, or texts."""
    whole = as_json()
    nodes = whole["nodes"]
    original = copy.deepcopy(nodes)
    references = st.integers(-1, len(nodes))
    for _ in range(draw(st.integers(1, 3))):
        node = draw(st.sampled_from(nodes))
        fields = node.get("data")
        change = draw(st.sampled_from(["field", "type", "node", "text"]))
        if change == "type":
            node["type"] = draw(st.sampled_from(original))["type"]
        elif change == "node":
            node.clear()
            node.update(copy.deepcopy(draw(st.sampled_from(original))))
        elif change == "text":
            node = draw(st.sampled_from([one for one in nodes if isinstance(one.get("data"), str)]))
            others = [one["data"] for one in original if isinstance(one.get("data"), str)]
            node["data"] = draw(st.sampled_from(others + TEXTS))
        elif isinstance(fields, dict) and fields:
            others = st.sampled_from([None, 10**9, -(2**63), 2**64, 1.5, True, "x", [], {}])
            fields[draw(st.sampled_from(sorted(fields)))] = draw(others | references)
        elif isinstance(fields, list) and fields:
            fields[draw(st.integers(0, len(fields) - 1))] = draw(references)
        elif isinstance(fields, (int, float)):
            node["data"] = draw(st.sampled_from([-1, 0, 1, 2, 7, 1 << 20, 1 << 40, 2**63 - 1, 0.5]))
    return json.dumps(whole)


@examples(40, fuzz=2000)
@given(changed(), st.sampled_from(["build", "build", "plan", "rewrite", "explain"]))
def test_random_changes(text, command):
    """Done, or refused in one line; nothing is read or written but what the command names."""
    with tempfile.TemporaryDirectory() as parent:
        folder, elsewhere = Path(parent, "folder"), Path(parent, "elsewhere")
        (folder / "temporary").mkdir(parents=True)
        elsewhere.mkdir()
        (elsewhere / "file").write_text("what nobody should see")
        (folder / "m.json").write_text(text.replace("FILE", str(elsewhere / "file")))
        output = {"build": ["-o", "lib.so"], "rewrite": ["-o", "new.json"]}.get(command, [])
        arguments = [command, "m.json", "--quiet", *output]
        code, said = in_a_copy(folder, *arguments)
        event(f"{command}: {code}")
        assert code in (0, 1)
        if code == 1:
            assert said.startswith("relax-inplace: error: ") and said.count("\n") == 1, said
        written = {one.name for one in folder.iterdir()} - {"m.json", "said", "temporary"}
        assert written == (set(output[1:]) if code == 0 else set())
        assert os.listdir(folder / "temporary") == []
        assert os.listdir(elsewhere) == ["file"]
        if (folder / "lib.so").exists():
            assert b"what nobody should see" not in (folder / "lib.so").read_bytes()
