"""Marks (`R.lift_param`): what a model's author says is stored is lifted, and nothing else.

Without the pass a model with marks is compiled to the same code as without them.
"""

import random
import warnings

import numpy as np
import pytest
import tvm
import tvm_ffi
from hypothesis import assume, given
from hypothesis import strategies as st
from models import as_model, models, run_model
from pipelines import PIPELINES, load
from transforms import assert_bitwise, run_both
from tvm import relax
from tvm.relax.frontend import nn
from tvm.script import from_source
from tvm.script import ir as I
from tvm.script import relax as R

from relax_inplace import layout, lift_param
from relax_inplace.analysis import LiftError, explain_lift, find_inverse, plan_memory
from relax_inplace.ir.marks import has_marks, without_marks_in
from relax_inplace.transform import InplaceTransformParams, LiftInplaceTransformParams

PARAM_MAP = "relax_inplace.param_map"


def lifted(mod, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        after = LiftInplaceTransformParams(**options)(mod)
    relax.analysis.well_formed(after)
    return after


# -- before and after -----------------------------------------------------------------------------


@I.ir_module
class Model:
    @R.function
    def prefill(
        x: R.Tensor((3, 8), "float32"),
        params: R.Tuple(R.Tensor((4, 8), "float32"), R.Tensor((8, 8), "float32")),
    ):
        w = R.lift_param(R.permute_dims(params[0]))
        v = R.permute_dims(params[1])
        return R.matmul(R.matmul(x, v), w)

    @R.function
    def decode(
        x: R.Tensor((1, 8), "float32"),
        params: R.Tuple(R.Tensor((4, 8), "float32"), R.Tensor((8, 8), "float32")),
    ):
        with R.dataflow():
            v = R.permute_dims(params[1])
            w = R.permute_dims(params[0])
            s = R.negative(w)
            y = R.matmul(R.matmul(x, v), s)
            R.output(y)
        return y


@I.ir_module
class ModelAfter:
    @R.function
    def prefill(
        x: R.Tensor((3, 8), "float32"),
        params: R.Tuple(R.Tensor((8, 4), "float32"), R.Tensor((8, 8), "float32")),
    ) -> R.Tensor((3, 4), "float32"):
        w = params[0]
        v0 = params[1]
        v = R.permute_dims(v0)
        y = R.matmul(x, v)
        return R.matmul(y, w)

    @R.function
    def decode(
        x: R.Tensor((1, 8), "float32"),
        params: R.Tuple(R.Tensor((8, 4), "float32"), R.Tensor((8, 8), "float32")),
    ) -> R.Tensor((1, 4), "float32"):
        with R.dataflow():
            v0 = params[1]
            v = R.permute_dims(v0)
            w = params[0]
            s = R.negative(w)
            u = R.matmul(x, v)
            y = R.matmul(u, s)
            R.output(y)
        return y

    @R.function(pure=False)
    def inplace_transform_params(
        params: R.Tuple(R.Tensor((4, 8), "float32"), R.Tensor((8, 8), "float32")),
    ):
        w0 = params[0]
        w = R.permute_dims(w0)
        p0 = R.inplace_update_tuple(params, 0, w)
        return p0


def test_only_what_is_marked_is_lifted():
    """In every function that computes it: one that has no mark reads it, too."""
    after = lifted(Model)
    tvm.ir.assert_structural_equal(after.without_attr(PARAM_MAP), ModelAfter)
    run_model(Model, after)


def test_all_is_lifted_without_marks():
    after = LiftInplaceTransformParams()(without_marks_in(Model))
    assert "permute_dims" not in after["decode"].script()


def test_the_report_names_what_is_left():
    report = explain_lift(Model)
    assert [one.done for one in report.weights] == ["permute_dims(params[0])", ""]
    left = {one.done: one.because for one in report.left}
    assert "permute_dims(params[1])" in left
    assert "R.lift_param" in left["permute_dims(params[1])"]


def test_once_more_changes_nothing():
    after = lifted(Model)
    tvm.ir.assert_structural_equal(lifted(after), after)


def model(body, weights="R.Tensor((4, 8), 'float32'), R.Tensor((8, 8), 'float32')"):
    lines = "\n        ".join(body.strip().splitlines())
    return from_source(
        f"""
@I.ir_module
class Module:
    @R.function
    def main(x: R.Tensor((1, 8), "float32"), params: R.Tuple({weights})):
        {lines}
"""
    )


def stored(mod, **options):
    return [one.done for one in explain_lift(mod, **options).weights]


@pytest.mark.parametrize(
    ("body", "done"),
    [
        # What leads to a mark is computed with it; what is made from it is not.
        (
            "w = R.lift_param(R.permute_dims(R.multiply(params[0], R.const(3.0))))\n"
            "return R.matmul(x, R.multiply(w, R.const(2.0)))",
            ["permute_dims(multiply(params[0]))", ""],
        ),
        # A weight itself: it is stored as it is, and so are all others.
        ("w = R.permute_dims(R.lift_param(params[0]))\nreturn R.matmul(x, w)", ["", ""]),
        # A mark of a mark, of a second name, of a field, of a cast.
        (
            "a = R.permute_dims(params[0])\nb = R.lift_param(R.lift_param(a))\n"
            "return R.matmul(x, b)",
            ["permute_dims(params[0])", ""],
        ),
        # A field: the call makes all of them.
        (
            "s = R.split(R.permute_dims(params[1]), 2, axis=1)\nb = R.lift_param(s[1])\n"
            "return R.add(R.matmul(x, s[0]), R.matmul(x, b))",
            ["split(permute_dims(params[1]))[0]", "split(permute_dims(params[1]))[1]"],
        ),
        (
            "a = R.permute_dims(params[0])\nb = R.match_cast(a, R.Tensor((8, 4), 'float32'))\n"
            "return R.matmul(x, R.lift_param(b))",
            ["permute_dims(params[0])", ""],
        ),
    ],
)
def test_what_a_mark_means(body, done):
    mod = model(body)
    made = [one.done for one in explain_lift(mod, max_resident=None).weights if one.done]
    assert made == [one for one in done if one]
    after = lifted(mod, max_resident=None)
    if made:
        assert not has_marks(after["main"])
        run_model(mod, after)
    else:
        assert after.same_as(mod)


@pytest.mark.parametrize(
    "body",
    [
        "w = R.lift_param(R.add(x, x))\nreturn R.matmul(w, R.permute_dims(params[0]))",
        "w = R.lift_param(R.ones((4, 4), 'float32'))\n"
        "return R.matmul(R.matmul(x, R.permute_dims(params[0])), w)",
    ],
)
def test_a_mark_without_effect_is_named(body):
    """And nothing is lifted, for there are marks."""
    mod = model(body)
    with pytest.warns(
        UserWarning, match="no effect on `w` in `main`, which is not made from weights"
    ) as noted:
        after = LiftInplaceTransformParams()(mod)
    assert len(noted) == 1
    assert "permute_dims" in after["main"].script()


def test_a_mark_in_a_function_that_is_called_is_named():
    """Nothing is lifted: the author says what is, but this is not where the weights are."""

    @I.ir_module
    class Calls:
        @R.function(private=True)
        def linear(x: R.Tensor((1, 8), "float32"), w: R.Tensor((4, 8), "float32")) -> R.Tensor(
            (1, 4), "float32"
        ):
            t = R.lift_param(R.permute_dims(w))
            return R.matmul(x, t)

        @R.function
        def main(x: R.Tensor((1, 8), "float32"), params: R.Tuple(R.Tensor((4, 8), "float32"))):
            cls = Calls
            return cls.linear(x, params[0])

    with pytest.warns(UserWarning, match="no effect on what is marked in `linear`.*Inline"):
        assert LiftInplaceTransformParams()(Calls).same_as(Calls)
    after = lifted(relax.transform.InlinePrivateFunctions()(Calls))
    run_model(Calls, after)
    assert list(map(int, after["main"].params[1].ty.fields[0].shape.values)) == [8, 4]


GROWS = """
w = R.lift_param(R.astype(params[0], "float64"))
return R.add(R.sum(w, axis=1), R.sum(R.astype(R.permute_dims(params[1]), "float64")))
"""


def test_the_budget_holds_for_marks_and_says_so():
    mod = model(GROWS)
    with pytest.warns(
        UserWarning, match=r"no effect on `.*`: storing it would take .*max_resident"
    ):
        assert LiftInplaceTransformParams()(mod).same_as(mod)
    run_model(mod, lifted(mod, max_resident=None))


def test_what_the_caller_says_counts_more_than_marks():
    only = lifted(Model, only="params[[]1]")
    assert [one.done for one in explain_lift(Model, only="params[[]1]").weights] == [
        "",
        "permute_dims(params[1])",
    ]
    run_model(Model, only)
    assert not has_marks(only["prefill"])
    assert lifted(Model, skip="relax.permute_dims").same_as(Model)  # no warning: it was asked for


@given(drawn=models(), seed=st.integers(0, 2**32 - 1))
def test_any_model_with_marks_anywhere(drawn, seed):
    """Lifted or not, it computes what it computes without marks; and not more is lifted."""
    before = as_model(drawn)
    marked = with_marks(before, random.Random(seed))
    tvm.ir.assert_structural_equal(without_marks_in(marked), before)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            after = LiftInplaceTransformParams(max_resident=None)(marked)
            everything = explain_lift(before, max_resident=None, only="*")
        except LiftError:
            assume(False)
    assert explain_lift(marked, max_resident=None).steps <= everything.steps
    if not after.same_as(marked):
        run_model(before, after)


def with_marks(mod, generator):
    """Some variables of a module are marked, and what follows uses the mark."""
    mod = mod.clone()
    for gvar, function in mod.functions_items():
        if isinstance(function, relax.Function):
            mod[gvar] = _Marker(generator).visit_expr(function)
    return mod


@relax.expr_functor.mutator
class _Marker(relax.PyExprMutator):
    def __init__(self, generator):
        super().__init__()
        self.generator = generator

    def visit_call_(self, call):
        call = self.visit_expr_post_order(call)
        if isinstance(call.ty, relax.TensorType) and self.generator.random() < 0.3:
            return lift_param(self.builder_.emit(call))
        return call


# -- without the pass -----------------------------------------------------------------------------


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_without_the_pass_the_numbers_are_the_same(pipeline):
    generator = np.random.default_rng(0)
    x = generator.standard_normal((1, 8)).astype("float32")
    params = [generator.standard_normal(s).astype("float32") for s in [(4, 8), (8, 8)]]
    given = [
        tvm.runtime.tensor(x),
        tvm_ffi.Array([tvm.runtime.tensor(one) for one in params]),
    ]
    for name in ("prefill", "decode"):
        if name == "prefill":
            given[0] = tvm.runtime.tensor(np.repeat(x, 3, axis=0))
        else:
            given[0] = tvm.runtime.tensor(x)
        results = [load(mod, pipeline)[name](*given) for mod in (Model, without_marks_in(Model))]
        assert_bitwise(*results)


def by_hand(mod):
    """TVM's pipeline to its end, as no build does it."""
    t = relax.transform
    passes = [
        t.LegalizeOps(),
        t.AnnotateTIROpPattern(),
        t.FuseOps(),
        t.FuseTIR(),
        t.RewriteDataflowReshape(),
        t.ToNonDataflow(),
        t.RemovePurityChecking(),
        t.CallTIRRewrite(),
        t.StaticPlanBlockMemory(),
        t.LowerAllocTensor(),
        t.KillAfterLastUse(),
        t.LowerRuntimeBuiltin(),
        t.ComputePrimValue(),
        t.VMShapeLower(),
        t.AttachGlobalSymbol(),
    ]
    return tvm.transform.Sequential(passes)(mod)


def test_a_pipeline_that_is_run_by_hand_to_its_end():
    """There a mark is another register of the same tensor, whose memory nothing takes before."""
    mod = model(
        "a = R.multiply(params[1], R.const(2.0))\nm = R.lift_param(a)\n"
        "b = R.permute_dims(R.multiply(params[1], R.const(3.0)))\n"
        "c = R.permute_dims(R.add(b, R.const(3.0)))\n"
        "return R.add(R.matmul(x, m), R.matmul(x, c))"
    )
    executable = relax.build(by_hand(mod), "llvm", relax_pipeline=None)
    vm = relax.VirtualMachine(executable, tvm.cpu())
    generator = np.random.default_rng(0)
    weights = [generator.standard_normal(s).astype("float32") for s in [(4, 8), (8, 8)]]
    given = [
        tvm.runtime.tensor(generator.standard_normal((1, 8)).astype("float32")),
        tvm_ffi.Array([tvm.runtime.tensor(one) for one in weights]),
    ]
    assert_bitwise(vm["main"](*given), load(without_marks_in(mod))["main"](*given))


# -- through TVM's passes -------------------------------------------------------------------------

T = relax.transform
LOWERED = [T.LegalizeOps(), T.AnnotateTIROpPattern(), T.FuseOps(), T.FuseTIR()]
ORDERS = {
    "legalized": LOWERED[:1],
    "folded": [T.LegalizeOps(), T.AnnotateTIROpPattern(), T.FoldConstant()],
    "grouped": LOWERED[:3],
    "fused": LOWERED,
    "canonical": [
        T.CanonicalizeBindings(),
        T.EliminateCommonSubexpr(),
        T.DeadCodeElimination(),
        T.ToNonDataflow(),
        T.ConvertToDataflow(),
    ],
    # MLC-LLM's first phases.
    "MLC-LLM's": [T.FuseTransposeMatmul(), *LOWERED, T.DeadCodeElimination()],
    "mixed precision": [T.ToMixedPrecision()],
}


@pytest.mark.parametrize("order", ORDERS)
def test_what_is_marked_is_lifted_after_tvms_passes(order):
    before = tvm.transform.Sequential(ORDERS[order])(Exported)
    assert has_marks(before["decode"])
    after = lifted(before)
    made = [one.done for one in explain_lift(before).weights]
    assert [bool(one) for one in made] == [True, False]
    weights = [np.random.default_rng(i).standard_normal(s).astype("float32") for i, s in SHAPES]
    x = tvm.runtime.tensor(np.ones((1, 8), "float32"))
    expected = load(before)["decode"](x, tensors(weights))
    vm = load(after)
    assert_bitwise(vm["decode"](x, vm["inplace_transform_params"](tensors(weights))), expected)


def tensors(weights):
    return tvm_ffi.Array([tvm.runtime.tensor(one) for one in weights])


class Decoder(nn.Module):
    """`first` is stored transposed; `second` stays, so that its transposition can be fused."""

    def __init__(self):
        self.first = nn.Parameter((4, 8), "float32")
        self.second = nn.Linear(8, 8, bias=False, dtype="float32")

    def decode(self, x: nn.Tensor):
        w = lift_param(nn.op.permute_dims(self.first))
        return nn.op.matmul(self.second(x), w)


SPEC = {
    "decode": {
        "x": nn.spec.Tensor([1, 8], "float32"),
        "$": {"param_mode": "packed", "effect_mode": "none"},
    }
}
SHAPES = [(0, (4, 8)), (1, (8, 8))]
Exported, _ = Decoder().export_tvm(SPEC)


def test_a_mark_survives_export_printing_parsing_and_json():
    assert "R.lift_param(" in Exported.script()
    for again in (
        from_source(Exported.script(show_meta=True)),
        tvm.ir.load_json(tvm.ir.save_json(Exported)),
    ):
        tvm.ir.assert_structural_equal(again, Exported)
        assert [one.done for one in explain_lift(again).weights] == [
            "permute_dims(first)",
            "",
        ]


def test_the_unmarked_transposition_is_where_tvm_fuses_it():
    fused = T.FuseTransposeMatmul()(lifted(Exported))
    assert sum("NT_matmul" in gvar.name_hint for gvar in fused.get_global_vars()) == 1


def test_convert_layout_goes_through_a_mark():
    @I.ir_module
    class Convolution:
        @R.function
        def main(x: R.Tensor((1, 4, 8, 8), "float32"), w: R.Tensor((6, 4, 3, 3), "float32")):
            R.func_attr({"num_input": 1})
            with R.dataflow():
                m = R.lift_param(R.flip(w, axis=2))
                y = R.nn.conv2d(x, m)
                R.output(y)
            return y

    passes = relax.transform.ConvertLayout({"relax.nn.conv2d": ["NHWC", "OHWI"]})
    converted = passes(Convolution)
    assert has_marks(converted["main"])
    run_model(converted, lifted(converted))


# -- transforms that have marks -------------------------------------------------------------------


def test_tvms_own_lift_first():
    """Its transform has the mark, which has done its work."""
    spec = {"decode": {**SPEC["decode"], "$": {"param_mode": "plain", "effect_mode": "none"}}}
    given = T.LiftTransformParams(shared_transform=True)(Decoder().export_tvm(spec)[0])
    assert has_marks(given["transform_params"])
    after = LiftInplaceTransformParams()(given)
    assert not any(
        has_marks(f) for _, f in after.functions_items() if isinstance(f, relax.Function)
    )
    load(after)


@I.ir_module
class Transform:
    @R.function(private=True)
    def twice(w: R.Tensor((4, 8), "float32")) -> R.Tensor((4, 8), "float32"):
        m = R.lift_param(R.add(w, w))
        return m

    @R.function
    def transform_params(params: R.Tuple(R.Tensor((4, 8), "float32"), R.Tensor((4,), "float32"))):
        cls = Transform
        a = cls.twice(params[0])
        b = R.lift_param(R.permute_dims(a))
        c = params[1]
        return (b, R.lift_param(c))


@I.ir_module
class TransformWithout:
    @R.function(private=True)
    def twice(w: R.Tensor((4, 8), "float32")) -> R.Tensor((4, 8), "float32"):
        m = R.add(w, w)
        return m

    @R.function
    def transform_params(params: R.Tuple(R.Tensor((4, 8), "float32"), R.Tensor((4,), "float32"))):
        cls = TransformWithout
        a = cls.twice(params[0])
        b = R.permute_dims(a)
        c = params[1]
        return (b, c)


@pytest.mark.parametrize("options", [{}, {"lazy": True}, {"memory_limit": 300}])
def test_a_transform_with_marks(options):
    """Planned, and written, as without."""
    after, expected = (
        InplaceTransformParams(**options)(mod)["inplace_transform_params"]
        for mod in (Transform, TransformWithout)
    )
    tvm.ir.assert_structural_equal(after, expected)
    plans = [str(plan_memory(m["transform_params"], m)) for m in (Transform, TransformWithout)]
    assert plans[0] == plans[1]
    inverses = [
        str(find_inverse("transform_params", m["transform_params"], m))
        for m in (Transform, TransformWithout)
    ]
    assert inverses[0] == inverses[1]


def test_a_transform_with_marks_runs():
    run_both(Transform, InplaceTransformParams()(Transform))


# -- what cannot be marked ------------------------------------------------------------------------


@pytest.mark.parametrize("given", [(1, 2), "w", None, relax.ShapeExpr([2])])
def test_what_is_no_tensor_is_refused(given):
    with pytest.raises(TypeError, match="lift_param: expected a tensor"):
        lift_param(given)


def test_layouts_in_a_model_are_stored():
    @I.ir_module
    class Packed:
        @R.function
        def main(
            x: R.Tensor((1, 64), "float32"),
            params: R.Tuple(R.Tensor((32, 64), "float32"), R.Tensor((32, 32), "float32")),
        ):
            tiles = R.lift_param(layout.tiles.pack(params[0], 16, 32))
            w = layout.tiles.unpack(tiles)
            return R.matmul(R.matmul(x, R.permute_dims(w)), R.permute_dims(params[1]))

    after = lifted(Packed)
    assert list(map(int, after["main"].params[1].ty.fields[0].shape.values)) == [2, 2, 16, 32]
    run_model(Packed, after)
