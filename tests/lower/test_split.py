"""A module in two and back: what goes where, names, attributes of both parts."""

import numpy as np
import pytest
import tvm
import tvm_ffi
from tvm import ir, relax
from tvm.relax.dpl import is_op, wildcard
from tvm.script import from_source
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from relax_inplace.ir.updates import functions_that_update
from relax_inplace.lower.split import beside, merge, split
from relax_inplace.transform import Pipeline


def parts(mod):
    """The names of the functions in ours and in the rest."""
    return tuple({gvar.name_hint for gvar in part.get_global_vars()} for part in halves(mod))


def halves(mod):
    return split(mod, functions_that_update(mod))


FOUR = 'R.Tensor((4,), "float32")'


def relax_functions(**bodies):
    """Functions of one tensor, ``name=(private, body)``; what is named ``convert*`` updates."""
    text = "@I.ir_module\nclass Module:"
    for name, (private, body) in bodies.items():
        updates = name.startswith("convert")
        params = f"params: R.Tuple({FOUR}, {FOUR})" if updates else f"x: {FOUR}"
        returned = f"R.Tuple({FOUR}, {FOUR})" if updates else FOUR
        text += f"""
    @R.function(private={private}, pure={not updates})
    def {name}({params}) -> {returned}:
        cls = Module
        {body}
"""
    return from_source(text)


UPDATE = "return R.inplace_update_tuple(params, 0, {})"

# -- what goes where ------------------------------------------------------------------------------


def test_what_both_reach_is_in_both():
    mod = relax_functions(
        shared=(True, "return R.add(x, x)"),
        main=(False, "return cls.shared(x)"),
        convert=(False, UPDATE.format("cls.shared(params[0])")),
    )
    assert parts(mod) == ({"convert", "shared"}, {"main", "shared"})


def test_what_only_transforms_reach_does_not_stay():
    mod = relax_functions(
        deeper=(True, "return R.add(x, x)"),
        helper=(True, "return cls.deeper(x)"),
        main=(False, "return R.add(x, x)"),
        convert=(False, UPDATE.format("cls.helper(params[0])")),
    )
    assert parts(mod) == ({"convert", "helper", "deeper"}, {"main"})


def test_but_what_is_public_does():
    mod = relax_functions(
        deeper=(True, "return R.add(x, x)"),
        helper=(False, "return cls.deeper(x)"),
        convert=(False, UPDATE.format("cls.helper(params[0])")),
    )
    assert parts(mod) == ({"convert", "helper", "deeper"}, {"helper", "deeper"})


def test_callers_go_with_what_they_call():
    mod = relax_functions(
        convert=(True, UPDATE.format("params[1]")),
        convert_caller=(False, "return cls.convert(params)"),
        unused=(True, "return R.add(x, x)"),
    )
    assert parts(mod) == ({"convert", "convert_caller"}, {"unused"})


def test_attributes_and_devices_are_of_both():
    mod = relax_functions(convert=(False, UPDATE.format("params[1]")))
    library = tvm.tirx.build(ir.IRModule(), "llvm")
    mod = mod.with_attr("external_mods", [library]).with_attr("system_lib_prefix", "p_")
    mod.update_global_info("vdevice", [I.vdevice("llvm")])
    ours, rest = halves(mod)
    assert "external_mods" not in ours.attrs and len(rest.attrs["external_mods"]) == 1
    assert ours.attrs["system_lib_prefix"] == rest.attrs["system_lib_prefix"] == "p_"
    assert len(ours.global_infos["vdevice"]) == len(rest.global_infos["vdevice"]) == 1


# -- names ----------------------------------------------------------------------------------------


@I.ir_module(check_well_formed=False)
class Lowered:
    """A kernel that calls a kernel, and a closure of a Relax function, as lowering leaves them."""

    @T.prim_func(private=True, s_tir=True)
    def inner(a: T.handle("float32")):
        T.evaluate(0)

    @T.prim_func(private=True, s_tir=True)
    def outer(a: T.handle):
        x = T.match_buffer(a, (4,))
        Lowered.inner(x.data)

    @R.function(private=True)
    def helper(x: R.Tensor((4,), "float32")) -> R.Tensor((4,), "float32"):
        return x

    @R.function
    def main(x: R.Tensor((4,), "float32")):
        cls = Lowered
        closure = R.make_closure(cls.helper, ())
        R.call_packed("f", closure, ty_args=(R.Tuple,))
        cls.outer(x)
        return cls.helper(x)


def test_what_kernels_and_closures_reach():
    ours, rest = split(Lowered, {Lowered.get_global_var("main")})
    assert {gvar.name_hint for gvar in ours.get_global_vars()} == {
        *("inner", "outer", "helper", "main")
    }
    assert not rest.functions


def test_what_both_have_gets_another_name_of_ours():
    rest = Lowered
    merged = merge(beside(rest.clone(), rest, set()), rest)
    assert {gvar.name_hint for gvar in merged.get_global_vars()} == {
        *("inner", "outer", "helper", "main"),
        *("inplace_inner", "inplace_outer", "inplace_helper", "inplace_main"),
    }
    for gvar, function in rest.functions_items():
        assert merged[gvar.name_hint].same_as(function)
        renamed = merged["inplace_" + gvar.name_hint]
        assert renamed.attrs["global_symbol"] == "inplace_" + gvar.name_hint
    # Of what has been renamed only such names are used, each one of the module's own.
    own = {gvar.name_hint: gvar for gvar in merged.get_global_vars()}
    for name in ("outer", "main"):
        used = []
        tvm_ffi.structural_walk(merged["inplace_" + name], (ir.GlobalVar, used.append))
        assert used
        for gvar in used:
            assert gvar.name_hint.startswith("inplace_") and gvar.same_as(own[gvar.name_hint])


def test_a_name_that_is_taken_is_not_taken_for_a_third():
    """``inplace_inner`` is there already."""
    rest = Lowered.clone()
    rest.update_func(ir.GlobalVar("inplace_inner"), Lowered["inner"])
    merged = merge(beside(Lowered.clone(), rest, set()), rest)
    assert len(merged.get_global_vars()) == 9
    assert merged["inplace_inner"].same_as(rest["inplace_inner"])


def test_what_updates_keeps_its_name():
    rest = Lowered.clone()
    del rest[rest.get_global_var("main")]
    merged = merge(beside(Lowered.clone(), rest, {"main"}), rest)
    assert "main" in {gvar.name_hint for gvar in merged.get_global_vars()}
    assert "inplace_main" not in {gvar.name_hint for gvar in merged.get_global_vars()}


def test_a_pipeline_that_makes_a_function_of_that_name():
    message = "function `main` updates a tuple in place, but the pipeline has made another function"
    with pytest.raises(ValueError, match=message):
        beside(Lowered.clone(), Lowered, {"main"})


def test_and_in_tvm_compile():
    mod = relax_functions(convert=(False, UPDATE.format("params[1]")))

    @tvm.transform.module_pass(opt_level=0)
    def pipeline(mod, _context):
        mod = relax.get_pipeline("default")(mod)
        name = ir.GlobalVar("convert")
        mod.update_func(name, tvm.tirx.PrimFunc([], tvm.tirx.Evaluate(0)))
        return mod

    with pytest.raises(ValueError, match="function `convert` updates a tuple in place, but"):
        tvm.compile(mod, "llvm", relax_pipeline=Pipeline(pipeline))


# -- what a lowered module has besides functions --------------------------------------------------


def test_attributes_of_both_parts_are_kept():
    first, second = (tvm.tirx.build(ir.IRModule(), "llvm") for _ in range(2))
    one, other = (tvm.runtime.tensor(np.full(2, value)) for value in (1, 2))
    rest = Lowered.with_attr("external_mods", [first]).with_attr(
        "const_name_to_constant", {"a": one}
    )
    ours = ir.IRModule(attrs={"external_mods": [second], "const_name_to_constant": {"b": other}})
    merged = merge(beside(ours, rest, set()), rest)
    libraries = zip(merged.attrs["external_mods"], (first, second), strict=True)
    assert all(library.same_as(given) for library, given in libraries)
    assert set(merged.attrs["const_name_to_constant"]) == {"a", "b"}
    alone = merge(beside(ours, Lowered, set()), Lowered)
    assert len(alone.attrs["external_mods"]) == len(alone.attrs["const_name_to_constant"]) == 1


# -- an accelerator -------------------------------------------------------------------------------


@T.prim_func(s_tir=True)
def sum_and_one(
    a: T.Buffer((4,), "float32"), b: T.Buffer((4,), "float32"), c: T.Buffer((4,), "float32")
):
    for i in range(4):
        c[i] = a[i] + b[i] + T.float32(1)


def compiled_by_tests(functions, _options, _constants):
    """A code generator, as RunCodegen calls it: it adds one to each sum.

    Two that have one name do not link.
    """
    names = [function.attrs["global_symbol"] for function in functions]
    kernels = {name: sum_and_one.with_attr("global_symbol", name) for name in names}
    return [tvm.tirx.build(ir.IRModule(kernels), "llvm")]


PARTITIONED = [
    relax.transform.FuseOpsByPattern(
        [("tests.add", is_op("relax.add")(wildcard(), wildcard()))], annotate_codegen=True
    ),
    relax.transform.RunCodegen(),
]


@pytest.fixture
def codegen():
    tvm_ffi.register_global_func("relax.ext.tests", compiled_by_tests, override=True)
    yield
    tvm_ffi.registry.remove_global_func("relax.ext.tests")


ADDS = f"""
@I.ir_module
class Module:
    @R.function
    def main(x: {FOUR}, y: {FOUR}):
        with R.dataflow():
            z = R.add(x, y)
            R.output(z)
        return z

    @R.function(pure=False)
    def convert(params: R.Tuple({FOUR}, {FOUR})):
        with R.dataflow():
            w = R.add(params[0], params[1])
            R.output(w)
        p0 = R.inplace_update_tuple(params, 0, w)
        return p0
"""


@pytest.mark.usefixtures("codegen")
@pytest.mark.parametrize("rest", [False, True], ids=["plain", "partitioned"])
@pytest.mark.parametrize("ours", [[], PARTITIONED, [tvm.transform.Sequential(PARTITIONED)]])
def test_both_parts_are_given_to_an_accelerator(rest, ours):
    default = relax.get_pipeline("default")
    pipeline = tvm.transform.Sequential([*PARTITIONED, default]) if rest else default
    pipeline = Pipeline(pipeline, transforms=ours)
    executable = tvm.compile(from_source(ADDS), "llvm", relax_pipeline=pipeline)
    vm = relax.VirtualMachine(executable, tvm.cpu())
    params = tvm_ffi.Array([tvm.runtime.tensor(np.arange(4, dtype="float32")) for _ in range(2)])
    assert vm["main"](*params).numpy().tolist() == [2 * i + rest for i in range(4)]
    vm["convert"](params)
    assert params[0].numpy().tolist() == [2 * i + bool(ours) for i in range(4)]
