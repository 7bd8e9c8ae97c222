"""plan_memory: what a person reads, why each weight is freed when it is, symbolic sizes."""

import dataclasses
import json
import textwrap

import pytest
from transforms import run_both
from tvm.script import from_source

from relax_inplace.analysis import UnsupportedTransformError, plan_memory
from relax_inplace.transform import InplaceTransformParams


def module(weights, lines, outputs, attrs=None, dataflow=False):
    """A transform of w0, w1, ..., which are tensors of the given shapes, or as written."""
    types = [w if w.startswith("R.") else f'R.Tensor({w}, "float32")' for w in weights]
    reads = [f"w{i} = params[{i}]" for i in range(len(weights))]
    if dataflow:
        lines = ["with R.dataflow():", *(f"    {line}" for line in lines)]
        lines.append(f"    R.output({', '.join(outputs)})")
    attrs = [f"R.func_attr({attrs})"] if attrs else []
    body = "\n".join([*attrs, *reads, *lines, f"return ({''.join(f'{o}, ' for o in outputs)})"])
    return from_source(
        f"""
@I.ir_module
class Module:
    @R.function
    def transform_params(params: R.Tuple({", ".join(types)})):
{textwrap.indent(body, " " * 8)}
"""
    )


def plan(*parts, attrs=None, dataflow=False, **options):
    mod = module(*parts, attrs=attrs, dataflow=dataflow)
    return plan_memory(mod["transform_params"], mod, **options)


ATTENTION = (
    ["(8, 4)", "(8, 4)", "(2, 4)"],
    ["qk = R.concat((w0, w1), axis=0)", "t = R.permute_dims(qk)", "n = R.exp(w1)"],
    ["t", "n"],
)


def test_printed():
    assert str(plan(*ATTENTION)) == textwrap.dedent(
        """\
        transform_params: peak 640, before 288, after 384, lower bound 384; order: exact

        step  computes  reads   writes  frees  before  worst  after
           1  qk        w0, w1  qk      w0        256    512    384
           2  t         qk      slot 0  qk        384    640    384
           3  n         w1      slot 1  w1        384    512    384

        slot  weight  bytes  freed after  because
           0  w0        128  step 1       qk reads it
           1  w1        128  step 3       n reads it last; read before by step 1 (qk)
           2  w2         32  start        nothing reads it
        """
    )


def test_json_holds_all_of_it():
    shown = plan(*ATTENTION)
    loaded = json.loads(shown.to_json())
    assert loaded["peak"] == shown.peak
    assert loaded["order"] == "exact"
    assert [step["name"] for step in loaded["steps"]] == [step.name for step in shown.steps]
    assert loaded["steps"][0]["reads"] == ["w0", "w1"]
    assert [weight["because"] for weight in loaded["weights"]] == [
        weight.because for weight in shown.weights
    ]


def test_json_of_symbolic_sizes_is_text():
    loaded = json.loads(plan(['("n", 4)'], ["a = R.exp(w0)"], ["a"]).to_json())
    assert loaded["peak"] == "32*n"
    assert loaded["weights"][0]["size"] == "16*n"


# -- why a weight is freed when it is -----------------------------------------------------------

REASONS = {
    "nothing reads it": (0, ["a = R.exp(w1)"], ["a"], {}),
    "a reads it": (1, ["a = R.exp(w0)"], ["a", "w1"], {}),
    "b reads it last; read before by step 1 (a)": (
        2,
        ["a = R.exp(w0)", "b = R.multiply(a, w0)"],
        ["b", "w1"],
        {},
    ),
    "b is the last to use a view of it": (
        3,  # the first is the shape
        ["a = R.memory.view(w0, R.shape([32]))", "b = R.exp(a)"],
        ["b", "w1"],
        {},
    ),
    "never: it is output 1": (None, ["a = R.exp(w1)"], ["a", "w0"], {}),
    "never: it holds output 0": (
        None,
        ["a = R.memory.view(w0, R.shape([32]))"],
        ["a", "w1"],
        {},
    ),
    "never: it is not among params": (None, ["a = R.exp(w0)"], ["w1", "a"], {"params": ["w1"]}),
}


@pytest.mark.parametrize("because", REASONS)
def test_reasons(because):
    moment, lines, outputs, options = REASONS[because]
    weight = plan(["(8, 4)", "(8, 4)"], lines, outputs, **options).weights[0]
    assert (weight.name, weight.freed_after, weight.because) == ("w0", moment, because)


def test_many_readers_are_not_all_listed():
    names = [f"a{i}" for i in range(9)]
    shown = plan(["(8, 4)"], [f"{name} = R.exp(w0)" for name in names], names)
    assert shown.weights[0].because.endswith("step 1 (a0), 2 (a1), 3 (a2), 5 more")


# -- sizes --------------------------------------------------------------------------------------

SYMBOLIC = (['("n", 4)', '("m", 4)'], ["a = R.exp(w0)", "b = R.exp(w1)"], ["a", "b"])


def test_symbolic_sizes_are_expressions():
    shown = plan(*SYMBOLIC)
    assert str(shown.before) == str(shown.lower_bound) == "16*n + 16*m"
    assert str(shown.peak) in ("max(32*n + 16*m, 16*n + 32*m)", "max(16*n + 32*m, 32*n + 16*m)")
    assert shown.order == "exact where symbolic dimensions are 1024"
    assert "16*n + 16*m" in str(shown)


def test_numbers_with_upper_bounds():
    bounds = {"n": 10, "m": 100}
    given = plan(*SYMBOLIC, tir_var_upper_bound=bounds)
    attribute = plan(*SYMBOLIC, attrs={"tir_var_upper_bound": bounds})
    # The pass knows the function's own bounds only: it is by them that steps are ordered.
    assert (given.order, attribute.order) == (
        "exact where symbolic dimensions are 1024",
        "exact",
    )
    assert dataclasses.replace(given, order="exact") == attribute
    assert (given.before, given.peak) == (1760, 1760 + 1600)
    assert str(plan(*SYMBOLIC, tir_var_upper_bound={"n": 10}).before) == "16*m + 160"


def test_a_shape_that_is_not_known():
    shown = plan(['R.Tensor("float32", ndim=2)'], ["a = R.exp(w0)"], ["a"])
    assert str(shown.before) == "|w0|"
    assert str(shown.after) == "|a|"


def test_kernels_of_a_fused_step():
    parts = (["(8, 4)"], ["a = R.exp(w0)", "b = R.sum(a, axis=1)", "c = R.exp(b)"], ["c"])
    peaks = {fused: plan(*parts, dataflow=True, fused=fused).peak for fused in (True, False, None)}
    assert peaks[True] < peaks[False] == peaks[None]


def test_nested_tuples():
    pair = 'R.Tuple(R.Tensor((8, 4), "float32"), R.Tensor((2, 4), "float32"))'
    shown = plan(["(4,)", pair], ["v = w1[1]", "a = R.exp(v)", "u = w1[0]"], ["w0", "(u, a)"])
    assert [(w.slot, w.size, w.freed_after) for w in shown.weights] == [
        ("0", 16, None),
        ("1.0", 128, None),
        ("1.1", 32, 1),
    ]


def test_nothing_to_do():
    shown = plan(["(8, 4)"], [], ["w0"])
    assert (shown.steps, shown.before, shown.peak, shown.after) == ([], 128, 128, 128)
    assert str(shown)
    assert json.loads(shown.to_json())["steps"] == []


def test_nothing_at_all():
    mod = from_source(
        """
@I.ir_module
class Module:
    @R.function
    def transform_params(params: R.Tuple()):
        return R.tuple()
"""
    )
    shown = plan_memory(mod["transform_params"], mod)
    assert (shown.peak, shown.weights) == (0, [])
    assert str(shown)


def test_of_a_branch_at_the_end_the_one_that_needs_more():
    mod = from_source(
        """
@I.ir_module
class Module:
    @R.function
    def transform_params(flag: R.Tensor((), "bool"), params: R.Tuple(R.Tensor((8, 4), "float32"))):
        R.func_attr({"num_input": 1})
        w = params[0]
        if flag:
            a = R.sum(w, axis=1)
            t = (a,)
            r = t
        else:
            b = R.exp(w)
            u = (b,)
            r = u
        return r
"""
    )
    shown = plan_memory(mod["transform_params"], mod)
    assert (shown.peak, [step.name for step in shown.steps]) == (256, ["b"])


def test_a_weight_that_is_left_out_is_held_to_the_end():
    """Two weights of 128 bytes, and what is made of each."""
    parts = ["(8, 4)", "(8, 4)"], ["a = R.exp(w1)", "b = R.exp(w0)"], ["a", "b"]
    assert plan(*parts).after == 2 * 128
    assert plan(*parts, params=["w0"]).after == 3 * 128


def test_the_result_of_a_branch_may_be_a_weight():
    """Then that is not freed: both are counted."""
    mod = from_source(
        """
@I.ir_module
class Module:
    @R.function
    def transform_params(
        c: R.Tensor((), "bool"),
        params: R.Tuple(R.Tensor((8, 4), "float32"), R.Tensor((8, 4), "float32")),
    ):
        R.func_attr({"num_input": 1})
        w0 = params[0]
        if c:
            same = w0
            b = same
        else:
            other = R.exp(w0)
            b = other
        a = R.permute_dims(b)
        d = R.exp(params[1])
        return (a, b, d)
"""
    )
    assert plan_memory(mod["transform_params"], mod).after == 4 * 128


def test_refused_as_the_pass_refuses():
    with pytest.raises(UnsupportedTransformError, match="it has no weight 'w7'"):
        plan(["(8, 4)"], ["a = R.exp(w0)"], ["a"], params=["w7"])


# -- what is planned is what happens --------------------------------------------------------------


@pytest.mark.parametrize("pipeline, fused", [("compile", False), ("cpu default", True)])
@pytest.mark.parametrize(
    "parts",
    [
        ATTENTION,
        SYMBOLIC,
        (["(8, 4)", "(2,)"], ["a = R.exp(w0)"], ["w1", "a"]),
        # While `a` is computed the tuple of the split is not held for one of its fields.
        (
            ["(8, 4)"],
            ["s = R.split(w0, 2)", "a = R.exp(w0)", "b = R.concat((s[1], s[1]))"],
            ["a", "b"],
        ),
    ],
)
def test_the_peak_is_what_is_measured(parts, pipeline, fused):
    mod = module(*parts)
    sizes = {"n": 5, "m": 7}
    shown = plan_memory(mod["transform_params"], mod, fused=fused, tir_var_upper_bound=sizes)
    run = run_both(mod, InplaceTransformParams()(mod), pipeline, sizes=sizes)
    assert run.peak == shown.peak
