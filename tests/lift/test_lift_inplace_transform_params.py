"""LiftInplaceTransformParams: before and after, then both are run; what is lifted and what is not."""

import json
import re
import textwrap
import warnings

import numpy as np
import pytest
import tvm
import tvm_ffi
from models import run_model
from pipelines import PIPELINES, load
from transforms import argument, assert_bitwise, passed
from tvm import relax
from tvm.script import from_source
from tvm.script import ir as I
from tvm.script import relax as R

from relax_inplace.analysis import LiftError, MemoryLimitError, explain_lift
from relax_inplace.transform import InplaceTransformParams, LiftInplaceTransformParams

PARAM_MAP = "relax_inplace.param_map"


def lifted(mod, max_resident=None, **options):
    """All that can be lifted, by default."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transpositions that matmul reads
        after = LiftInplaceTransformParams(max_resident=max_resident, **options)(mod)
    relax.analysis.well_formed(after)
    return after


def module(functions, others=""):
    """A module of functions of x and the weights: a name, types, a body; attributes in the body."""
    text = ""
    for name, (params, body) in functions.items():
        text += f"@R.function\ndef {name}({params}):\n{textwrap.indent(body.strip(), '    ')}\n"
    return from_source(f"@I.ir_module\nclass Module:\n{textwrap.indent(others + text, '    ')}")


def tuple_of(*shapes, dtype="float32"):
    return f"params: R.Tuple({', '.join(f'R.Tensor({s}, {dtype!r})' for s in shapes)})"


def names_in(mod):
    return {gvar.name_hint for gvar in mod.get_global_vars()}


def without_map(mod):
    return mod.without_attr(PARAM_MAP)


def steps(mod, name="inplace_transform_params"):
    """What a function computes, by the names of the operations; nothing if there is none."""
    found: list[str] = []
    if name not in names_in(mod):
        return found
    for block in mod[name].body.blocks:
        for binding in block.bindings:
            value = binding.value
            if isinstance(value, tvm.ir.Call):
                operation = value.op.name.removeprefix("relax.")
                if operation == "call_tir":
                    operation = value.args[0].name_hint
                if operation not in ("inplace_update_tuple", "null_value"):
                    found.append(operation)
    return found


def reads(mod, name):
    """The fields of the tuple that a function reads."""
    return sorted(map(int, re.findall(r"= params\[(\d+)\]", mod[name].script(show_meta=False))))


# -- the plain form -----------------------------------------------------------------------------


@I.ir_module
class Model:
    @R.function
    def prefill(
        x: R.Tensor((3, 8), "float32"),
        params: R.Tuple(R.Tensor((4, 8), "float32"), R.Tensor((4,), "float32")),
    ):
        w = R.permute_dims(params[0])
        y = R.matmul(x, w)
        z = R.add(y, params[1])
        return z

    @R.function
    def decode(
        x: R.Tensor((1, 8), "float32"),
        params: R.Tuple(R.Tensor((4, 8), "float32"), R.Tensor((4,), "float32")),
    ):
        with R.dataflow():
            w0 = params[0]
            w = R.permute_dims(w0)
            y = R.matmul(x, w)
            R.output(y)
        return y


@I.ir_module
class ModelAfter:
    @R.function
    def prefill(
        x: R.Tensor((3, 8), "float32"),
        params: R.Tuple(R.Tensor((8, 4), "float32"), R.Tensor((4,), "float32")),
    ) -> R.Tensor((3, 4), "float32"):
        w = params[0]
        y = R.matmul(x, w)
        b = params[1]
        z = R.add(y, b)
        return z

    @R.function
    def decode(
        x: R.Tensor((1, 8), "float32"),
        params: R.Tuple(R.Tensor((8, 4), "float32"), R.Tensor((4,), "float32")),
    ) -> R.Tensor((1, 4), "float32"):
        with R.dataflow():
            w = params[0]
            y = R.matmul(x, w)
            R.output(y)
        return y

    @R.function(pure=False)
    def inplace_transform_params(
        params: R.Tuple(R.Tensor((4, 8), "float32"), R.Tensor((4,), "float32")),
    ):
        w0 = params[0]
        w = R.permute_dims(w0)
        p0 = R.inplace_update_tuple(params, 0, w)
        return p0


def test_plain_form():
    tvm.ir.assert_structural_equal(without_map(lifted(Model)), ModelAfter)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_plain_form_computes_the_same(pipeline):
    after = lifted(Model)
    weights = argument(Model["decode"].params[1].ty, span=3)
    converted = run_model(Model, after, pipeline, weights=weights)
    assert np.array_equal(converted[0].numpy(), weights[0].T)


def test_tuple_handed_in_is_converted():
    """As many fields as before: the object is the one that was handed in."""
    vm = load(lifted(Model))
    params = passed([np.ones((4, 8), "float32"), np.ones(4, "float32")])
    assert vm["inplace_transform_params"](params).same_as(params)


def test_module_is_not_changed():
    before = Model.script()
    lifted(Model)
    assert Model.script() == before


def test_lifted_twice_stays():
    once = lifted(Model)
    tvm.ir.assert_structural_equal(lifted(once), once)


def test_more_to_lift_after_it():
    once = lifted(Model)
    once["decode"] = Model["decode"].with_attr("global_symbol", "decode")
    with pytest.raises(LiftError, match="do not share their weights"):
        lifted(once)


# -- where the weights are ----------------------------------------------------------------------


SEPARATE = """
R.func_attr({"num_input": 1})
with R.dataflow():
    t = R.permute_dims(w)
    y = R.matmul(x, t)
    z = R.add(y, b)
    R.output(z)
return z
"""
SEPARATE_PARAMS = (
    'x: R.Tensor((2, 8), "float32"), w: R.Tensor((4, 8), "float32"), b: R.Tensor((4,), "float32")'
)


def test_separate_parameters_become_a_tuple():
    before = module({"main": (SEPARATE_PARAMS, SEPARATE)})
    after = lifted(before)
    assert [var.name for var in after["main"].params] == ["x", "params"]
    assert after["main"].attrs["num_input"] == 1
    run_model(before, after)


def test_separate_and_bundled_share():
    other = ("x: R.Tensor((2, 8), 'float32'), " + tuple_of("(4, 8)", "(4,)"), "return params[1]")
    before = module({"main": (SEPARATE_PARAMS, SEPARATE), "bias": other})
    after = lifted(before)
    assert len(after["bias"].params[1].ty.fields) == 2
    run_model(before, after)


def test_tuple_parameter_by_name():
    body = "t = R.permute_dims(weights[0])\ny = R.matmul(x, t)\nz = R.add(y, cache[0])\nreturn z"
    params = (
        'x: R.Tensor((2, 8), "float32"), weights: R.Tuple(R.Tensor((4, 8), "float32")), '
        'cache: R.Tuple(R.Tensor((2, 4), "float32"))'
    )
    after = lifted(module({"main": (params, body)}), params="weights")
    assert [var.name for var in after["main"].params] == ["x", "weights", "cache"]
    assert steps(after) == ["permute_dims"]


def test_only_named_functions():
    other = ("p: R.Tuple(R.Tensor((2,), 'float32'))", "return p[0]")
    body = "t = R.permute_dims(params[0])\nreturn t"
    before = module({"main": (tuple_of("(4, 8)"), body), "other": other})
    with pytest.raises(LiftError, match=r"`main` and `other`.*name those that do"):
        lifted(before)
    after = lifted(before, functions="main")
    assert after["other"].same_as(before["other"])
    run_model(before, after, only=["main"])


def test_nested_tuples():
    params = (
        'x: R.Tensor((2, 8), "float32"), params: R.Tuple(R.Tuple(R.Tensor((4, 8), "float32"), '
        'R.Tensor((4,), "float32")), R.Tuple(R.Tensor((3,), "float32")), R.Tensor((4,), "float32"))'
    )
    body = """
t = params[0]
w = R.permute_dims(t[0])
y = R.matmul(x, w)
z = R.add(y, t[1])
v = R.multiply(z, params[2])
return v
"""
    before = module({"main": (params, body)})
    after = lifted(before)
    fields = after["main"].params[1].ty.fields
    assert [type(field).__name__ for field in fields] == ["TupleType", "TensorType"]
    assert [list(map(int, f.shape.values)) for f in fields[0].fields] == [[8, 4], [4]]
    run_model(before, after)


def test_whole_tuple_is_used():
    body = "both = (params, x)\nt = R.permute_dims(params[0])\nreturn (both, t)"
    params = 'x: R.Tensor((2,), "float32"), ' + tuple_of("(4, 8)", "(4,)")
    before = module({"main": (params, body)})
    after = lifted(before)
    assert len(after["main"].params[1].ty.fields) == 3  # both weights, and what is made of one
    run_model(before, after)


def test_one_function_calls_another():
    callee = ("x: R.Tensor((2, 8), 'float32'), " + tuple_of("(4, 8)"),)
    body = "t = R.permute_dims(params[0])\ny = R.matmul(x, t)\nreturn y"
    caller = "y: R.Tensor((2, 4), 'float32') = Module.inner(x, params)\nz = R.exp(y)\nreturn z"
    before = module({"inner": (*callee, body), "outer": (*callee, caller)})
    after = lifted(before)
    run_model(before, after)


# -- union, equal computations, tied weights -----------------------------------------------------


WIDE = "x: R.Tensor((2, 8), 'float32'), "


def test_each_function_wants_its_own_layout():
    """K x N in one, N x K in the other: both from one tuple."""
    weights = tuple_of("(4, 8)", "(4, 8)")
    both = "s = R.exp(params[1])\nu = R.sum(s)\n"
    before = module(
        {
            "prefill": (
                WIDE + weights,
                both + "t = R.permute_dims(params[0])\nreturn (R.matmul(x, t), u)",
            ),
            "decode": (
                WIDE + weights,
                both + "y = R.matmul(params[0], R.permute_dims(x))\nreturn R.add(y, u)",
            ),
        }
    )
    after = lifted(before)
    assert sorted(steps(after)) == ["exp", "permute_dims", "sum"]
    assert str(explain_lift(before, max_resident=None)) == textwrap.dedent(
        """\
        decode, prefill: weights 2 -> 3, bytes 256 -> 260, steps 3

        slot  weight     what is done to it       new slot  bytes  then  used by
           0  params[0]  stays                           0    128   128  decode
           0  params[0]  permute_dims(params[0])         2    128   128  prefill
           1  params[1]  sum(exp(params[1]))             1    128     4  decode, prefill
        """
    )
    run_model(before, after)


def test_a_value_of_one_function_only_is_lifted():
    weights = tuple_of("(4, 8)", "(4, 8)")
    before = module(
        {
            "first": (WIDE + weights, "t = R.permute_dims(params[0])\nreturn R.matmul(x, t)"),
            "second": (WIDE + weights, "t = R.permute_dims(params[1])\nreturn R.matmul(x, t)"),
        }
    )
    after = lifted(before)
    assert (reads(after, "first"), reads(after, "second")) == ([0], [1])
    run_model(before, after)


def twenty(kernels=False):
    """Twenty weights, transformed in three functions."""
    weights = tuple_of(*["(4, 8)"] * 20)
    functions, others = {}, ""
    for name in ("prefill", "decode", "verify"):
        if kernels:
            others += f"""\
@T.prim_func(private=True, s_tir=True)
def {name}_swap(A: T.Buffer((4, 8), "float32"), B: T.Buffer((8, 4), "float32")):
    for i, j in T.grid(8, 4):
        with T.sblock("swap"):
            v, w = T.axis.remap("SS", [i, j])
            B[v, w] = A[w, v]
"""
        body = ""
        for i in range(20):
            call = (
                f'R.call_tir(Module.{name}_swap, (w{i},), out_ty=R.Tensor((8, 4), "float32"))'
                if kernels
                else f"R.permute_dims(w{i})"
            )
            body += f"w{i} = params[{i}]\nt{i} = {call}\ny{i} = R.matmul(x, t{i})\n"
        body += f"return ({', '.join(f'y{i}' for i in range(20))})"
        functions[name] = (WIDE + weights, body)
    return module(functions, others)


@pytest.mark.parametrize("kernels", [False, True])
def test_twenty_transforms_in_three_functions_are_twenty_steps(kernels):
    before = twenty(kernels)
    after = lifted(before)
    assert len(steps(after)) == explain_lift(before).steps == 20
    assert len(after["decode"].params[1].ty.fields) == 20
    run_model(before, after)


def test_equal_computations_of_one_function_are_one():
    body = "t = R.permute_dims(params[0])\nu = R.permute_dims(params[0])\nreturn (R.matmul(x, t), R.matmul(x, u))"
    before = module({"main": (WIDE + tuple_of("(4, 8)"), body)})
    after = lifted(before)
    assert steps(after) == ["permute_dims"]
    run_model(before, after)


TIED = """
embed = params[0]
lm_head = params[1]
t = R.permute_dims(lm_head)
u = R.permute_dims(embed)
return (R.matmul(x, t), R.matmul(x, u))
"""


@pytest.mark.parametrize("tied", [[("embed", "lm_head")], [(0, 1)], [("lm_head", 0)]])
def test_tied_weights_are_one(tied):
    before = module({"main": (WIDE + tuple_of("(4, 8)", "(4, 8)"), TIED)})
    assert len(lifted(before)["main"].params[1].ty.fields) == 2
    after = lifted(before, tied=tied)
    assert steps(after) == ["permute_dims"]
    assert len(after["main"].params[1].ty.fields) == 1
    same = argument(before["main"].params[1].ty.fields[0], span=3)
    run_model(before, after, weights=[same, same])


def test_tied_weights_by_given_names():
    before = module({"main": (WIDE + tuple_of("(4, 8)", "(4, 8)"), TIED)})
    options = {
        "names": ["embed.weight", "lm_head.weight"],
        "tied": [("embed.weight", "lm_head.weight")],
    }
    after = lifted(before, **options)
    entry = json.loads(after.attrs[PARAM_MAP])["inplace_transform_params"]
    assert entry["peak"] == 2 * 128  # the one that nothing reads is freed first
    assert [one["name"] for one in entry["weights"]] == ["embed.weight", "lm_head.weight"]
    assert entry["params"] == [
        {
            "name": "embed.weight",
            "slot": "0",
            "shape": [8, 4],
            "dtype": "float32",
            "from": ["embed.weight", "lm_head.weight"],
            "done": "permute_dims(embed.weight)",
        }
    ]


def test_tied_weights_must_agree():
    before = module({"main": (WIDE + tuple_of("(4, 8)", "(4, 9)"), "return params[0]")})
    with pytest.raises(LiftError, match=r"tied=.*`params\[0\]` is R.Tensor\(\(4, 8\).*\(4, 9\)"):
        lifted(before, tied=[(0, 1)])
    with pytest.raises(LiftError, match="there is no weight 'head'; expected an index below 2"):
        lifted(before, tied=[(0, "head")])


# -- places ---------------------------------------------------------------------------------------


def test_places():
    """The first weight's slot, if nothing needs it; else a new one; what is not needed goes."""
    body = """
q, k, v, dead = params[0], params[1], params[2], params[3]
qkv = R.concat((q, k, v))
halves = R.split(v, 2)
y = R.add(x, k)
a = R.multiply(y, halves[1])
return (qkv, halves[0], a)
"""
    body = body.replace(
        "q, k, v, dead = params[0], params[1], params[2], params[3]",
        "q = params[0]\nk = params[1]\nv = params[2]",
    )
    params = 'x: R.Tensor((2,), "float32"), ' + tuple_of("(2,)", "(2,)", "(4,)", "(9,)")
    before = module({"main": (params, body)})
    report = explain_lift(before)
    assert [(w.name, w.done, w.new_slot) for w in report.weights] == [
        ("q", "concat(q, k, v)", "0"),
        ("k", "concat(q, k, v)", "0"),
        ("k", "", "1"),
        ("v", "concat(q, k, v)", "0"),
        ("v", "split(v)[0]", "2"),
        ("v", "split(v)[1]", "3"),
        ("params[3]", "", None),
    ]
    assert report.new_names == ["q", "k", "v", "v.1"]
    after = lifted(before)
    assert len(after["main"].params[1].ty.fields) == 4
    run_model(before, after)


def test_map_is_kept_by_compilation():
    after = lifted(Model)
    w0 = {"name": "w0", "slot": "0", "dtype": "float32"}
    other = {"name": "params[1]", "slot": "1", "shape": [4], "dtype": "float32"}
    entry = json.loads(after.attrs[PARAM_MAP])["inplace_transform_params"]
    assert re.fullmatch("[0-9a-f]{16}", entry.pop("layout"))
    expected = {
        "restores": None,
        "reference": None,
        "streamed": False,
        "loads": [],
        "target": None,
        "tied": [],
        "peak": 2 * 128 + 16,
        "weights": [{**w0, "shape": [4, 8]}, other],
        "params": [
            {**w0, "shape": [8, 4], "from": ["w0"], "done": "permute_dims(w0)"},
            {**other, "from": ["params[1]"], "done": ""},
        ],
        "steps": [
            {
                "computes": "w",
                "writes": ["0"],
                "frees": ["0"],
                "before": 128 + 16,
                "worst": 2 * 128 + 16,
            }
        ],
    }
    assert entry == expected
    for pipeline in ("compile", "cpu default", "compiled mode"):
        kept = json.loads(load(after, pipeline)["inplace_param_map"]())["inplace_transform_params"]
        del kept["layout"]
        assert '"kind":"llvm"' in kept.pop("target")
        assert {**kept, "target": None} == {**expected, "moved": [0]}


# -- what is lifted, and what is not --------------------------------------------------------------


def lifts(
    body, weights=("(4, 8)",), x='x: R.Tensor((4, 8), "float32"), ', others="", run=True, **options
):
    before = module({"main": (x + tuple_of(*weights), body)}, others)
    after = lifted(before, **options)
    if run:
        run_model(before, after)
    return steps(after), after


def test_not_what_depends_on_an_input():
    assert lifts("a = R.add(params[0], x)\nb = R.exp(params[0])\nreturn (a, b)")[0] == ["exp"]


def test_not_what_needs_no_weight():
    done, after = lifts(
        "z = R.zeros((4, 8), 'float32')\na = R.add(z, x)\nb = R.exp(params[0])\nreturn (a, b)"
    )
    assert done == ["exp"]
    assert "R.zeros" in after["main"].script()


def test_what_needs_no_weight_is_lifted_along():
    done, after = lifts(
        "z = R.full((4, 8), R.const(2.0), 'float32')\na = R.add(params[0], z)\nreturn R.add(a, x)"
    )
    assert done == ["full", "add"]
    assert "R.full" not in after["main"].script()


def test_not_what_is_random():
    body = "a = R.nn.dropout(params[0])\nb = a[0]\nc = R.exp(params[0])\nreturn (b, c)"
    done, after = lifts(body, run=False)
    assert done == ["exp"]
    assert "dropout" in after["main"].script()


RANDOM_FUNCTIONS = ["tvm.contrib.random.uniform", "runtime.contrib.curand.RandomFill"]


@pytest.mark.parametrize("name", RANDOM_FUNCTIONS)
def test_not_what_a_random_function_makes(name):
    call = f'R.call_dps_packed("{name}", ({{}},), out_ty=R.Tensor((4, 8), "float32"))'
    assert lifts(f"a = {call.format('params[0]')}\nreturn a", run=False)[0] == []
    others = f"""\
@R.function(private=True)
def noise(w: R.Tensor((4, 8), "float32")) -> R.Tensor((4, 8), "float32"):
    y = {call.format("w")}
    return y
"""
    body = "a: R.Tensor((4, 8), 'float32') = Module.noise(params[0])\nreturn a"
    assert lifts(body, others=others, run=False)[0] == []


def test_not_what_is_made_from_a_weight_that_a_callee_overwrites():
    """TVM takes call_tir_inplace, and so this function, for pure."""
    others = (
        OVERWRITES
        + """\
@R.function(private=True)
def overwrite(w: R.Tensor((8, 4), "float32")) -> R.Tensor((8, 4), "float32"):
    y = R.call_tir_inplace(Module.double, (w,), inplace_indices=[0], out_ty=R.Tensor((8, 4), "float32"))
    return y
"""
    )
    body = """
a: R.Tensor((8, 4), "float32") = Module.overwrite(params[0])
b = R.negative(params[0])
c = R.negative(params[1])
return (a, b, c)
"""
    assert lifts(body, ("(8, 4)", "(8, 4)"), others=others, run=False)[0] == ["negative"]


def test_not_what_is_made_from_a_weight_that_a_kernel_stores_into():
    """TVM takes call_tir for pure, whatever its kernel does."""
    others = """\
@T.prim_func(private=True, s_tir=True)
def fill(a: T.Buffer((8, 4), "float32"), b: T.Buffer((8, 4), "float32")):
    for i, j in T.grid(8, 4):
        with T.sblock("fill"):
            vi, vj = T.axis.remap("SS", [i, j])
            b[vi, vj] = a[vi, vj]
            a[vi, vj] = T.float32(0)
"""
    body = """
a = R.call_tir(Module.fill, (params[0],), out_ty=R.Tensor((8, 4), "float32"))
b = R.negative(params[0])
c = R.negative(params[1])
return (a, b, c)
"""
    assert lifts(body, ("(8, 4)", "(8, 4)"), others=others, run=False)[0] == ["negative"]


@pytest.mark.parametrize(
    "view",
    [
        "R.memory.ensure_zero_offset(params[0])",
        "R.permute_dims(R.reshape(params[0], (8, 1, 4)), [0, 2, 1])",
    ],
)
def test_not_what_is_made_from_a_weight_of_which_a_view_is_overwritten(view):
    body = f"""
v = {view}
w = R.memory.view(v, R.shape([8, 4]))
a = R.call_tir_inplace(Module.double, (w,), inplace_indices=[0], out_ty=R.Tensor((8, 4), "float32"))
b = R.negative(params[0])
c = R.negative(params[1])
return (a, b, c)
"""
    assert lifts(body, ("(8, 4)", "(8, 4)"), others=OVERWRITES, run=False)[0] == ["negative"]


def test_not_behind_stop_lift_params():
    body = "t = R.permute_dims(params[0])\ns = R.builtin.stop_lift_params(t)\ne = R.negative(s)\nreturn e"
    before = module({"main": (tuple_of("(4, 8)"), body)})
    after = lifted(before)
    assert steps(after) == ["permute_dims"]
    assert "stop_lift" not in after.script()
    converted = load(after)["inplace_transform_params"](passed([np.ones((4, 8), "float32")]))
    result = load(after)["main"](converted).numpy()
    assert np.array_equal(result, np.full((8, 4), -1))


def test_stop_is_removed_where_nothing_is_lifted():
    other = ("x: R.Tensor((2,), 'float32')", "s = R.builtin.stop_lift_params(x)\nreturn s")
    body = "t = R.permute_dims(params[0])\nreturn t"
    after = lifted(module({"main": (tuple_of("(4, 8)"), body), "other": other}))
    assert "stop_lift" not in after.script()


def test_inside_branches():
    """Stock TVM crashes on what is before: temporaries in both branches share one storage."""
    body = """
if flag:
    t = R.permute_dims(params[0])
    y = R.add(x, t)
else:
    u = R.permute_dims(params[0])
    v = R.negative(u)
    y = R.multiply(x, v)
return y
"""
    params = 'flag: R.Tensor((), "bool"), x: R.Tensor((8, 4), "float32"), ' + tuple_of("(4, 8)")
    after = lifted(module({"main": (params, body)}))
    assert steps(after) == ["permute_dims", "negative"]
    vm, w = load(after), argument(relax.TensorType((4, 8), "float32"))
    converted, x = vm["inplace_transform_params"](passed([w])), np.full((8, 4), 3, "float32")
    for flag, expected in ((True, x + w.T), (False, x * -w.T)):
        result = vm["main"](passed(np.array(flag)), passed(x), converted)
        assert np.array_equal(result.numpy(), expected)


def test_inside_dataflow_blocks_and_between():
    body = """
with R.dataflow():
    a = R.exp(params[0])
    b = R.add(a, x)
    R.output(a, b)
c = R.permute_dims(a)
with R.dataflow():
    d = R.negative(c)
    R.output(d)
return (b, d)
"""
    assert lifts(body)[0] == ["exp", "permute_dims", "negative"]


def test_what_a_local_function_captures():
    body = """
t = R.exp(params[0])
@R.function
def inner(y: R.Tensor((4, 8), "float32")) -> R.Tensor((4, 8), "float32"):
    z = R.add(y, t)
    return z
r: R.Tensor((4, 8), "float32") = inner(x)
return r
"""
    before = module({"main": ('x: R.Tensor((4, 8), "float32"), ' + tuple_of("(4, 8)"), body)})
    after = lifted(before)
    assert steps(after) == ["exp"]
    run_model(before, after, "passes first")  # the others lift no local functions


def test_a_pure_function_of_weights():
    others = """\
@R.function(private=True)
def double(w: R.Tensor((4, 8), "float32")) -> R.Tensor((4, 8), "float32"):
    y = R.add(w, w)
    return y
"""
    done, after = lifts(
        "t: R.Tensor((4, 8), 'float32') = Module.double(params[0])\nreturn R.add(x, t)",
        others=others,
    )
    assert done == ["add"]  # inlined by the in-place rewrite
    assert "double" not in after["main"].script()


def test_packed_functions_that_are_pure():
    body = """
a = R.call_dps_packed("tests.negate", (params[0],), out_ty=R.Tensor((4, 8), "float32"))
b = R.call_pure_packed("vm.builtin.copy", a, ty_args=R.Tensor((4, 8), "float32"))
return R.add(x, b)
"""
    assert lifts(body)[0] == ["call_dps_packed", "call_pure_packed"]


def test_a_number_is_not_stored():
    body = """
n = R.call_pure_packed("vm.builtin.copy", R.prim_value(3), ty_args=R.Prim("int64"))
t = R.exp(params[0])
return (R.add(x, t), n)
"""
    assert lifts(body, run=False)[0] == ["exp"]


OVERWRITES = """\
@T.prim_func(private=True, s_tir=True)
def double(A: T.Buffer((8, 4), "float32")):
    for i, j in T.grid(8, 4):
        with T.sblock("block"):
            v, w = T.axis.remap("SS", [i, j])
            A[v, w] = A[v, w] * T.float32(2)
"""


def test_what_is_overwritten_is_made_anew_each_time():
    """Stored, it would be doubled at each call."""
    body = """
t = R.permute_dims(params[0])
r = R.reshape(t, (8, 4))
d = R.call_tir_inplace(Module.double, (r,), inplace_indices=[0], out_ty=R.Tensor((8, 4), "float32"))
e = R.exp(params[0])
return (d, e)
"""
    before = module({"main": (tuple_of("(4, 8)"), body)}, OVERWRITES)
    after = lifted(before)
    assert steps(after) == ["exp"]
    weights = [argument(before["main"].params[0].ty.fields[0], span=3)]
    vm = load(after)
    converted = vm["inplace_transform_params"](passed(weights))
    for _ in range(3):
        doubled, _ = vm["main"](converted)
        assert np.array_equal(doubled.numpy(), 2 * weights[0].T)


def test_what_an_impure_call_may_write_to_is_made_anew():
    body = "t = R.permute_dims(params[0])\n_ = R.call_packed('tests.clear', t, ty_args=R.Tuple())\nreturn t"
    source = f"""
@I.ir_module
class Module:
    @R.function(pure=False)
    def main({tuple_of("(4, 8)")}):
{textwrap.indent(body, " " * 8)}
"""
    tvm_ffi.register_global_func(
        "tests.clear", lambda t: t.copyfrom(np.zeros(t.shape, "float32")), override=True
    )
    before = from_source(source)
    after = lifted(before)
    assert steps(after) == []
    assert [(left.done, left.because) for left in explain_lift(before).left] == [
        ("permute_dims(params[0])", "`tests.clear` may write to it, so it is made anew each time")
    ]


@pytest.mark.parametrize("view", ["params[0]", "R.reshape(params[0], (8, 4))"])
def test_what_is_made_from_a_weight_that_is_written_to(view):
    """In no function: the other one sees what this one has written."""
    body = f"w = {view}\n_ = R.call_packed('tests.clear', w, ty_args=R.Tuple())\nreturn w"
    source = f"""
@I.ir_module
class Module:
    @R.function
    def reads({tuple_of("(4, 8)", "(4, 8)")}):
        e = R.negative(params[0])
        f = R.negative(params[1])
        return (e, f)
    @R.function(pure=False)
    def writes({tuple_of("(4, 8)", "(4, 8)")}):
{textwrap.indent(body, " " * 8)}
"""
    tvm_ffi.register_global_func(
        "tests.clear", lambda t: t.copyfrom(np.zeros(t.shape, "float32")), override=True
    )
    before = from_source(source)
    after = lifted(before)
    assert steps(after) == ["negative"]
    assert reads(after, "reads") == [0, 1]
    weights = argument(before["reads"].params[0].ty, span=3)
    old, new = load(before), load(after)
    originals, converted = passed(weights), new["inplace_transform_params"](passed(weights))
    for name in ("reads", "writes", "reads"):
        assert_bitwise(new[name](converted), old[name](originals))


def test_a_cast_in_a_branch_is_not_lifted():
    """It fails where the branch is not taken."""
    body = """
if flag:
    w = R.match_cast(params[0], R.Tensor((4, 8), "float32"))
    t = R.permute_dims(w)
    y = R.add(x, t)
else:
    y = R.exp(x)
return y
"""
    params = (
        'flag: R.Tensor((), "bool"), x: R.Tensor((8, 4), "float32"), '
        'params: R.Tuple(R.Tensor("float32", ndim=2))'
    )
    before = module({"main": (params, body)})
    after = lifted(before)
    assert steps(after) == []
    vm, x = load(after), np.zeros((8, 4), "float32")
    weights = passed([np.ones((3, 3), "float32")])
    result = vm["main"](passed(np.array(False)), passed(x), weights)
    assert np.array_equal(result.numpy(), np.ones((8, 4)))


# -- symbolic sizes -------------------------------------------------------------------------------


def symbolic(n, m):
    body = "t = R.permute_dims(params[0])\nreturn R.matmul(x, t)"
    return (f'x: R.Tensor((2, "{m}"), "float32"), ' + tuple_of(f'("{n}", "{m}")'), body)


def test_symbolic_sizes_agree_up_to_names():
    before = module({"prefill": symbolic("n", "m"), "decode": symbolic("rows", "columns")})
    after = lifted(before)
    assert steps(after) == ["permute_dims"]
    run_model(before, after, sizes={"n": 5, "m": 7, "rows": 5, "columns": 7})


def test_bounds_of_sizes_are_kept():
    """A factor of the weights' bytes is a number, and the budget counts with it."""
    params, body = symbolic("n", "m")
    body = 'R.func_attr({"tir_var_upper_bound": {"n": 4, "m": 8}})\n' + body
    before = module({"decode": (params, body), "prefill": symbolic("rows", "columns")})
    after = lifted(before, memory_limit=2.0)
    run_model(before, after, sizes={"n": 4, "m": 8, "rows": 4, "columns": 8})
    with pytest.raises(MemoryLimitError, match="the least that would do is 256 bytes"):
        lifted(before, memory_limit=1.0)


def test_a_size_that_only_inputs_define_is_not_lifted():
    body = "z = R.broadcast_to(params[0], (b, 8))\nreturn R.add(z, x)"
    params = 'x: R.Tensor(("b", 8), "float32"), ' + tuple_of("(1, 8)")
    before = module({"main": (params, "b = T.int64()\n" + body)})
    after = lifted(before)
    assert steps(after) == []
    run_model(before, after, sizes={"b": 3})


def test_a_size_that_can_no_longer_be_read_off_is_stored():
    """Of (n * 4,), n is no dimension: the last field holds it."""
    body = """
n = T.int64()
r = R.reshape(params[0], (n * 4,))
z = R.zeros((n,), "float32")
return (R.exp(r), R.add(z, x), r)
"""
    params = 'x: R.Tensor((1,), "float32"), ' + tuple_of('("n", 4)')
    before = module({"main": (params, body)})
    after = lifted(before)
    assert isinstance(after["main"].params[1].ty.fields[-1], relax.ShapeType)
    assert explain_lift(before).dimensions == ["n"]
    run_model(before, after, sizes={"n": 5})


@pytest.mark.parametrize("pipeline", ["compile", "cpu default", "compiled mode"])
def test_match_cast_is_lifted(pipeline):
    """Both functions name the sizes they find; they are the same ones."""
    body = """
{n} = T.int64()
{m} = T.int64()
w = R.match_cast(params[0], R.Tensor(({n}, {m}), "float32"))
t = R.permute_dims(w)
z = R.zeros(({m}, {n}), "float32")
return R.add(R.add(z, x), t)
"""
    params = 'x: R.Tensor((1,), "float32"), params: R.Tuple(R.Tensor("float32", ndim=2))'
    before = module(
        {
            "first": (params, body.format(n="n", m="m")),
            "second": (params, body.format(n="a", m="b")),
        }
    )
    after = lifted(before)
    assert steps(after) == ["permute_dims"]
    run_model(before, after, pipeline)


@pytest.mark.parametrize("lazy", [False, True])
def test_a_size_of_a_cast_is_stored(lazy):
    body = """
n = T.int64()
w = R.match_cast(params[0], R.Tensor((n, 4), "float32"))
r = R.exp(R.reshape(w, (n * 4,)))
z = R.zeros((n,), "float32")
return (r, R.add(z, x))
"""
    params = 'x: R.Tensor((1,), "float32"), params: R.Tuple(R.Tensor("float32", ndim=2))'
    before = module({"main": (params, body)})
    after = lifted(before, lazy=lazy)
    assert explain_lift(before).dimensions == ["n"]
    run_model(before, after, weights=[np.ones((5, 4), "float32")], lazy=lazy)


# -- the budget -----------------------------------------------------------------------------------


QUANTIZED = """
codes = params[0]
scales = params[1]
codes_kn = R.permute_dims(codes)
scales_kn = R.permute_dims(scales)
wide = R.astype(codes_kn, "float16")
repeated = R.repeat(scales_kn, 8, axis=0)
w = R.multiply(wide, repeated)
y = R.matmul(x, w)
return y
"""
QUANTIZED_PARAMS = (
    'x: R.Tensor((1, 32), "float16"), '
    'params: R.Tuple(R.Tensor((16, 32), "int8"), R.Tensor((16, 4), "float16"))'
)


def test_dequantisation_is_left_within_the_budget():
    before = module({"decode": (QUANTIZED_PARAMS, QUANTIZED)})
    assert len(steps(lifted(before, max_resident=None))) == 5
    after = LiftInplaceTransformParams()(before)
    assert steps(after) == ["permute_dims", "permute_dims"]
    run_model(before, after)
    report = explain_lift(before)
    assert report.after == report.before == 640
    assert {left.done.split("(")[0] for left in report.left} == {"multiply", "astype", "repeat"}
    assert all("max_resident=1.0" in left.because for left in report.left)


def test_budget_in_bytes_between():
    """Two weights to dequantise, room for one: the one that saves more for each byte is lifted."""
    weights = 'params: R.Tuple(R.Tensor((16, 32), "int8"), R.Tensor((16, 32), "int8"))'
    body = """
a = R.astype(params[0], "float16")
b = R.astype(params[1], "float16")
c = R.exp(b)
d = R.exp(c)
return (R.add(x, a), R.add(x, d))
"""
    before = module({"main": ('x: R.Tensor((1, 32), "float16"), ' + weights, body)})
    after = lifted(before, max_resident=512 + 1024)
    assert steps(after) == ["astype", "exp", "exp"]
    run_model(before, after)
    whole = lifted(before, max_resident=2 * 1024)
    assert sorted(steps(whole)) == ["astype", "astype", "exp", "exp"]
    with pytest.raises(LiftError, match="they need take 1,024 bytes"):
        lifted(before, max_resident=1023)


def test_budget_below_the_weights():
    before = module({"decode": (QUANTIZED_PARAMS, QUANTIZED)})
    with pytest.raises(LiftError, match=r"max_resident=0.5 is 320 bytes, but .* take 640 bytes"):
        lifted(before, max_resident=0.5)


@pytest.mark.parametrize("wrong", [0, -1, True, "2GB", float("nan"), float("inf")])
def test_budget_must_be_a_number(wrong):
    with pytest.raises(ValueError, match="expected bytes"):
        lifted(Model, max_resident=wrong)


def test_memory_limit_is_handed_on():
    with pytest.raises(MemoryLimitError):
        lifted(Model, memory_limit=100)


# -- with TVM's own ---------------------------------------------------------------------------------


def separate(name, factor=1):
    return (
        SEPARATE_PARAMS.replace("(2, 8)", f"({factor}, 8)"),
        SEPARATE,
    )


@pytest.mark.parametrize("shared", [True, False])
def test_after_lift_transform_params(shared):
    before = module({"main": separate("main")})
    theirs = relax.transform.LiftTransformParams(shared_transform=shared)(before)
    after = lifted(theirs)
    name = "inplace_transform_params" if shared else "main_inplace_transform_params"
    assert name in names_in(after)
    assert steps(after, name) == ["permute_dims"]
    run_model(before, after, transform=name)


def test_what_tvm_left_is_lifted_after_it():
    """TVM lifts what both have; the transform of the one weight and the other come together."""
    body = SEPARATE.replace("R.add(y, b)", "R.add(y, e)").replace(
        "    y =", "    e = R.exp(b)\n    y ="
    )
    before = module({"first": (SEPARATE_PARAMS, SEPARATE), "second": (SEPARATE_PARAMS, body)})
    theirs = relax.transform.LiftTransformParams(shared_transform=True)(before)
    after = lifted(theirs)
    assert sorted(steps(after)) == ["exp", "permute_dims"]
    assert "transform_params" not in names_in(after)
    run_model(before, after)


def test_each_with_a_transform_of_its_own():
    before = module({"first": separate("first"), "second": separate("second", 3)})
    theirs = relax.transform.LiftTransformParams()(before)
    after = lifted(theirs)
    for name in ("first", "second"):
        run_model(before, after, transform=f"{name}_inplace_transform_params", only=[name])
    assert len(json.loads(after.attrs[PARAM_MAP])) == 2


def test_symbolic_after_lift_transform_params():
    params = 'x: R.Tensor((2, "m"), "float32"), w: R.Tensor(("n", "m"), "float32")'
    body = 'R.func_attr({"num_input": 1})\nwith R.dataflow():\n    t = R.permute_dims(w)\n    y = R.matmul(x, t)\n    R.output(y)\nreturn y'
    before = module({"main": (params, body)})
    after = lifted(relax.transform.LiftTransformParams()(before))
    run_model(before, after, transform="main_inplace_transform_params")


def test_symbolic_and_more_to_lift_after_lift_transform_params():
    """TVM lifts from dataflow blocks only."""
    params = 'x: R.Tensor((2, "m"), "float32"), w: R.Tensor(("n", "m"), "float32")'
    body = """
R.func_attr({"num_input": 1})
with R.dataflow():
    t = R.permute_dims(w)
    R.output(t)
e = R.exp(t)
y = R.matmul(x, e)
return y
"""
    before = module({"first": (params, body), "second": (params, body)})
    after = lifted(relax.transform.LiftTransformParams()(before))
    for name in ("first", "second"):
        transform = f"{name}_inplace_transform_params"
        assert steps(after, transform) == ["permute_dims", "exp"]
        run_model(before, after, transform=transform, only=[name])


def test_a_private_function_with_another_tuple():
    others = """\
@R.function(private=True)
def first(pair: R.Tuple(R.Tensor((2, 4), "float32"), R.Tensor((2, 4), "float32"))) -> R.Tensor((2, 4), "float32"):
    y = pair[0]
    return y
"""
    body = """
t = R.permute_dims(params[0])
y = R.matmul(x, t)
z: R.Tensor((2, 4), "float32") = Module.first((y, y))
return z
"""
    before = module({"main": (WIDE + tuple_of("(4, 8)"), body)}, others)
    after = lifted(before)
    assert steps(after) == ["permute_dims"]
    run_model(before, after)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_streamed(pipeline):
    """The transform asks for each original; the functions are the same."""
    after = lifted(Model, lazy=True)
    assert [var.name for var in after["inplace_transform_params"].params] == [
        "get_weight",
        "params",
    ]
    run_model(Model, after, pipeline, lazy=True)


def test_same_as_lifting_and_rewriting_by_hand():
    """For one function it is LiftTransformParams, then InplaceTransformParams."""
    before = module({"main": separate("main")})
    theirs = relax.transform.LiftTransformParams(shared_transform=True)(before)
    by_hand = InplaceTransformParams()(theirs)
    assert steps(lifted(before)) == steps(by_hand)


# -- bad input ----------------------------------------------------------------------------------------


def test_types_must_agree():
    before = module(
        {
            "prefill": (WIDE + tuple_of("(4, 8)", "(4,)"), "return params[0]"),
            "decode": (WIDE + tuple_of("(4, 8)", "(5,)"), "return params[0]"),
        }
    )
    expected = (
        r"`decode` and `prefill` cannot be lifted: they do not share their weights: `params\[1\]`, "
        r"weight 1, is R.Tensor\(\(5,\), dtype=\"float32\"\) in `decode` and "
        r"R.Tensor\(\(4,\), dtype=\"float32\"\) in `prefill`"
    )
    with pytest.raises(LiftError, match=expected):
        lifted(before)


def test_numbers_of_weights_must_agree():
    before = module(
        {
            "prefill": (WIDE + tuple_of("(4, 8)"), "return params[0]"),
            "decode": (WIDE + tuple_of("(4, 8)", "(5,)"), "return params[0]"),
        }
    )
    with pytest.raises(LiftError, match="`decode` has 2, `prefill` 1"):
        lifted(before)


def test_no_weights():
    before = module({"main": ("x: R.Tensor((2,), 'float32')", "return x")})
    with pytest.raises(LiftError, match="none of its functions has weights"):
        lifted(before)
    with pytest.raises(LiftError, match="`main` cannot be lifted: it has no weights"):
        lifted(before, functions=["main"])
    with pytest.raises(ValueError, match=r"no Relax function `mian`; it has \['main'\]"):
        lifted(before, functions=["mian"])


def test_called_by_another():
    callee = (WIDE + tuple_of("(4, 8)"), "t = R.permute_dims(params[0])\nreturn R.matmul(x, t)")
    caller = (
        "y: R.Tensor((2, 8), 'float32'), w: R.Tensor((4, 8), 'float32')",
        "z: R.Tensor((2, 4), 'float32') = Module.inner(y, (w,))\nreturn z",
    )
    before = module({"inner": callee, "outer": caller})
    with pytest.raises(LiftError, match="`outer` calls `inner`, whose weights"):
        lifted(before)


def test_called_with_other_weights():
    callee = (WIDE + tuple_of("(4, 8)"), "t = R.permute_dims(params[0])\nreturn R.matmul(x, t)")
    caller = (
        WIDE + tuple_of("(4, 8)"),
        "e = R.exp(params[0])\nz: R.Tensor((2, 4), 'float32') = Module.inner(x, (e,))\nreturn z",
    )
    before = module({"inner": callee, "outer": caller})
    with pytest.raises(LiftError, match="`outer` calls `inner` with other weights than its own"):
        lifted(before)


@pytest.mark.parametrize("names", [["a"], ["a", "a"], ["a", "b", "c"]])
def test_names_must_fit(names):
    before = module({"main": (WIDE + tuple_of("(4, 8)", "(4, 8)"), "return params[0]")})
    with pytest.raises(ValueError, match="for 2 weights of `main`; expected one for each"):
        lifted(before, names=names)


def test_error_is_structured():
    before = module({"main": ("x: R.Tensor((2,), 'float32')", "return x")})
    with pytest.raises(LiftError) as raised:
        lifted(before, functions=["main"])
    assert raised.value.functions == "`main`"
    assert raised.value.reason.startswith("it has no weights")
