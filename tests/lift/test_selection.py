"""only= and skip=: what is lifted, what is left and by which rule; the warnings."""

import textwrap
import warnings

import pytest
import tvm
from models import run_model
from tvm import relax
from tvm.relax.frontend import nn
from tvm.script import from_source
from tvm.script import ir as I
from tvm.script import relax as R

from relax_inplace import layout
from relax_inplace.analysis import explain_lift
from relax_inplace.lift.transpositions import FusionWarning
from relax_inplace.transform import LiftInplaceTransformParams

PARAM_MAP = "relax_inplace.param_map"


def lifted(mod, **options):
    """What is lifted; that it computes the same is tested."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", FusionWarning)
        after = LiftInplaceTransformParams(**options)(mod)
    relax.analysis.well_formed(after)
    run_model(mod, after)
    return after


@I.ir_module
class Model:
    """Two layers, with weights that are stored N x K, and a router."""

    @R.function
    def prefill(
        x: R.Tensor((3, 8), "float32"),
        layer_0: R.Tensor((8, 8), "float32"),
        layer_1: R.Tensor((8, 8), "float32"),
        router: R.Tensor((4, 8), "float32"),
    ):
        R.func_attr({"num_input": 1})
        t_0 = R.permute_dims(layer_0)
        n_1 = R.negative(layer_1)
        t_1 = R.permute_dims(n_1)
        e_1 = R.exp(t_1)
        t_r = R.permute_dims(router)
        y = R.matmul(x, t_0)
        z = R.matmul(y, e_1)
        return R.matmul(z, t_r)

    @R.function
    def decode(
        x: R.Tensor((1, 8), "float32"),
        layer_0: R.Tensor((8, 8), "float32"),
        layer_1: R.Tensor((8, 8), "float32"),
        router: R.Tensor((4, 8), "float32"),
    ):
        R.func_attr({"num_input": 1})
        t_0 = R.permute_dims(layer_0)
        return R.matmul(x, t_0)


@I.ir_module
class WithoutPermuteDims:
    @R.function
    def prefill(
        x: R.Tensor((3, 8), "float32"),
        params: R.Tuple(
            R.Tensor((8, 8), "float32"), R.Tensor((8, 8), "float32"), R.Tensor((4, 8), "float32")
        ),
    ) -> R.Tensor((3, 4), "float32"):
        R.func_attr({"num_input": 1})
        layer_0 = params[0]
        router = params[2]
        t_0 = R.permute_dims(layer_0)
        n_1 = params[1]
        t_1 = R.permute_dims(n_1)
        e_1 = R.exp(t_1)
        t_r = R.permute_dims(router)
        y = R.matmul(x, t_0)
        z = R.matmul(y, e_1)
        gv = R.matmul(z, t_r)
        return gv

    @R.function
    def decode(
        x: R.Tensor((1, 8), "float32"),
        params: R.Tuple(
            R.Tensor((8, 8), "float32"), R.Tensor((8, 8), "float32"), R.Tensor((4, 8), "float32")
        ),
    ) -> R.Tensor((1, 8), "float32"):
        R.func_attr({"num_input": 1})
        layer_0 = params[0]
        t_0 = R.permute_dims(layer_0)
        gv = R.matmul(x, t_0)
        return gv

    @R.function(pure=False)
    def inplace_transform_params(
        params: R.Tuple(
            R.Tensor((8, 8), "float32"), R.Tensor((8, 8), "float32"), R.Tensor((4, 8), "float32")
        ),
    ):
        layer_1 = params[1]
        n_1 = R.negative(layer_1)
        p0 = R.inplace_update_tuple(params, 1, n_1)
        return p0


def done(mod, **options):
    """What is stored, by slot."""
    report = explain_lift(mod, **options)
    return [one.done or one.kind for one in report.weights], {
        left.done: left.because for left in report.left
    }


def test_an_operator_is_left_and_what_is_made_from_it():
    """What comes before it is lifted."""
    after = lifted(Model, skip="relax.permute_dims")
    tvm.ir.assert_structural_equal(after.without_attr(PARAM_MAP), WithoutPermuteDims)
    rule = "skip='relax.permute_dims'"
    assert done(Model, skip="relax.permute_dims") == (
        ["stays", "negative(layer_1)", "stays"],
        {
            "permute_dims(layer_0)": rule,
            "permute_dims(negative(layer_1))": rule,
            "exp(permute_dims(negative(layer_1)))": f"it is made from what {rule} leaves",
            "permute_dims(router)": rule,
        },
    )


@pytest.mark.parametrize(
    ("options", "stored", "rules"),
    [
        (
            {"skip": "router"},
            ["permute_dims(layer_0)", "exp(permute_dims(negative(layer_1)))", "stays"],
            {"skip='router'"},
        ),
        (
            {"skip": ["exp", "layer_*"]},
            ["stays", "stays", "permute_dims(router)"],
            {"skip='layer_*'", "skip='exp'"},
        ),
        (
            {"only": "layer_1"},
            ["stays", "exp(permute_dims(negative(layer_1)))", "stays"],
            {"only"},
        ),
        (
            {"only": "relax.permute_dims"},
            ["permute_dims(layer_0)", "permute_dims(negative(layer_1))", "permute_dims(router)"],
            {"only"},
        ),
        (
            {"only": "permute_dims", "skip": "router"},
            ["permute_dims(layer_0)", "permute_dims(negative(layer_1))", "stays"],
            {"only", "skip='router'"},
        ),
        (
            {"only": ["router", "relax.neg*"]},
            ["stays", "negative(layer_1)", "permute_dims(router)"],
            {"only"},
        ),
        (
            {"skip": lambda call: int(call.args[0].ty.shape[0]) == 4},
            ["permute_dims(layer_0)", "exp(permute_dims(negative(layer_1)))", "stays"],
            {"skip=<lambda>"},
        ),
        (
            {"only": lambda call: call.op.name == "relax.exp"},
            ["stays", "exp(permute_dims(negative(layer_1)))", "stays"],
            {"only"},
        ),
    ],
)
def test_rules(options, stored, rules):
    assert done(Model, **options)[0] == stored
    assert {left.rule for left in explain_lift(Model, **options).left} == rules
    lifted(Model, **options)


def test_a_weight_with_others():
    """skip= leaves what is made from it, too; only= what is made from others, too."""
    body = """
@I.ir_module
class Module:
    @R.function
    def main(x: R.Tensor((1, 8), "float32"), q: R.Tensor((8, 4), "float32"), k: R.Tensor((8, 4), "float32")):
        R.func_attr({"num_input": 1})
        qk = R.concat((q, k), axis=1)
        both = R.permute_dims(qk)
        alone = R.permute_dims(k)
        return (R.matmul(x, both), R.matmul(alone, R.permute_dims(x)))
"""
    mod = from_source(body)
    stored, left = done(mod, only="k", max_resident=None)
    assert stored == ["stays", "stays", "permute_dims(k)"]
    assert left == dict.fromkeys(
        ["concat(q, k)", "permute_dims(concat(q, k))"], "only='k' does not ask for it"
    )
    stored, left = done(mod, skip="q", max_resident=None)
    assert stored == ["stays", "stays", "permute_dims(k)"]
    assert list(left) == ["concat(q, k)", "permute_dims(concat(q, k))"]
    lifted(mod, skip="q", max_resident=None)


def test_a_tied_weight_has_the_names_of_both():
    tied = [("layer_0", "layer_1")]
    both = done(Model, only=["layer_0", "layer_1"], tied=tied)
    assert both != done(Model, only=[], tied=tied)
    assert done(Model, only="layer_0", tied=tied)[0] == both[0]
    assert done(Model, only="layer_1", tied=tied)[0] == both[0]


@I.ir_module
class WithConstants:
    @R.function
    def main(x: R.Tensor((8,), "float32"), w: R.Tensor((8,), "float32")):
        R.func_attr({"num_input": 1})
        constant = R.full((8,), R.const(2, "float32"), dtype="float32")
        n = R.negative(w)
        y = R.add(x, constant)
        return R.add(y, n)


def test_what_is_made_from_no_weight_is_not_said_to_be_left():
    assert done(WithConstants, only=[]) == (
        ["stays"],
        {"negative(w)": "only=[] does not ask for it"},
    )


def test_a_name_that_looks_like_a_pattern():
    body = """
@I.ir_module
class Module:
    @R.function
    def main(x: R.Tensor((4,), "float32"), params: R.Tuple(R.Tensor((4,), "float32"), R.Tensor((4,), "float32"))):
        a = R.exp(params[0])
        b = R.exp(params[1])
        return (R.add(x, a), R.add(x, b))
"""
    assert done(from_source(body), skip="params[1]")[0] == ["exp(params[0])", "stays"]


class Kernels(nn.Module):
    def __init__(self):
        self.tiles = nn.Parameter((16, 32), "float32")
        self.plain = nn.Parameter((16, 32), "float32")

    def main(self, x: nn.Tensor):
        tiles = layout.tiles.pack(self.tiles, 4, 8)
        plain = nn.tensor_expr_op(lambda w: tvm.topi.transpose(w), "turned", [self.plain])
        return x + nn.op.sum(tiles) + nn.op.sum(plain)


@pytest.mark.parametrize(
    ("options", "stored"),
    [
        ({}, ["sum(pack_4x8_tiles(tiles))", "sum(turned(plain))"]),
        ({"skip": "tiles.pack"}, ["stays", "sum(turned(plain))"]),
        ({"skip": "pack_*"}, ["stays", "sum(turned(plain))"]),
        ({"skip": "turned"}, ["sum(pack_4x8_tiles(tiles))", "stays"]),
        ({"only": ["tiles.*", "turned"]}, ["pack_4x8_tiles(tiles)", "turned(plain)"]),
    ],
)
def test_kernels_and_layouts(options, stored):
    spec = {
        "x": nn.spec.Tensor([1], "float32"),
        "$": {"param_mode": "packed", "effect_mode": "none"},
    }
    mod, _ = Kernels().export_tvm({"main": spec})
    assert done(mod, **options)[0] == stored
    lifted(mod, **options)


def test_equal_kernels_have_all_their_names():
    """They are one value, which any of the names means."""
    kernel = """
    @T.prim_func(private=True, s_tir=True)
    def {}(a: T.Buffer((4,), "float32"), b: T.Buffer((4,), "float32")):
        for i in range(4):
            with T.sblock("b"):
                v = T.axis.spatial(4, i)
                b[v] = a[v] + T.float32(1)
"""
    function = """
    @R.function
    def {}(x: R.Tensor((4,), "float32"), params: R.Tuple(R.Tensor((4,), "float32"))):
        a = R.call_tir(Module.{}, (params[0],), out_ty=R.Tensor((4,), "float32"))
        return R.add(x, a)
"""
    text = "@I.ir_module\nclass Module:"
    text += kernel.format("one") + kernel.format("other")
    text += function.format("first", "one") + function.format("second", "other")
    mod = from_source(text)
    assert done(mod)[0] == ["one(params[0])"]
    for name in ("one", "other"):
        assert done(mod, skip=name)[0] == ["stays"]


def test_nothing_selected_is_the_module_itself():
    assert LiftInplaceTransformParams(skip="*")(Model).same_as(Model)
    assert LiftInplaceTransformParams(only=[])(Model).same_as(Model)
    assert done(Model, only=[])[0] == ["stays"] * 3


def test_nothing_to_lift_is_the_module_itself():
    """No library is needed, no function added, and a weight that nothing needs stays."""
    body = """
@I.ir_module
class Module:
    @R.function
    def main(x: R.Tensor((4,), "float32"), w: R.Tensor((4,), "float32"), unused: R.Tensor((4,), "float32")):
        R.func_attr({"num_input": 1})
        return R.multiply(x, w)
"""
    mod = from_source(body)
    assert lifted(mod).same_as(mod)
    report = explain_lift(mod)
    assert (report.after, report.steps, report.names) == (32, 0, report.new_names)
    tied = lifted(mod, tied=[("w", "unused")])
    assert len(tied["main"].params[1].ty.fields) == 1


def test_budget_of_what_is_selected():
    """A value that both functions need in two forms: within the weights, or with the rule's reason."""
    body = """
@I.ir_module
class Module:
    @R.function
    def main(x: R.Tensor((1, 4), "float32"), params: R.Tuple(R.Tensor((8, 4), "int8"))):
        codes = params[0]
        t = R.permute_dims(codes)
        wide = R.astype(t, "float32")
        large = R.exp(wide)
        return R.matmul(x, large)
"""
    mod = from_source(body)
    report = explain_lift(mod, skip="relax.exp")
    assert [one.done for one in report.weights] == ["permute_dims(codes)"]
    assert {left.done.split("(")[0]: left.rule for left in report.left} == {
        "astype": "max_resident=1.0",
        "exp": "skip='relax.exp'",
    }
    lifted(mod, skip="relax.exp")


# -- warnings --------------------------------------------------------------------------------------


def warned(mod, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        LiftInplaceTransformParams(**options)(mod)
    return [str(one.message) for one in caught]


def test_transpositions_that_only_matmul_reads():
    """Not that of layer_1, which exp reads."""
    (text,) = warned(Model)
    assert text == (
        "LiftInplaceTransformParams: the transpositions are lifted of 2 weights (layer_0, router) "
        "that only matmul reads. A pipeline that fuses the two (FuseTransposeMatmul, as MLC-LLM's "
        "does) finds them no more, and its kernels can be many times slower: for such a pipeline, "
        "leave them, with skip='relax.permute_dims'. only='*' lifts them without this warning"
    )
    assert warned(Model, skip="relax.permute_dims") == []
    assert warned(Model, only="*") == []


@pytest.mark.parametrize(
    "uses",
    [
        "y = R.matmul(t, x)",
        "u = R.matmul(x, t)\ny = R.add(u, R.sum(t))",
        "y = (R.matmul(x, t), t)",
        "y = R.matmul(x, R.permute_dims(w, [0, 1]))",
    ],
)
def test_transpositions_that_nothing_fuses(uses):
    text = f"""
@I.ir_module
class Module:
    @R.function
    def main(x: R.Tensor((4, 4), "float32"), w: R.Tensor((4, 4), "float32")):
        R.func_attr({{"num_input": 1}})
        t = R.permute_dims(w)
{textwrap.indent(uses, " " * 8)}
        return y
"""
    assert warned(from_source(text)) == []


def test_a_transposition_in_a_branch():
    text = """
@I.ir_module
class Module:
    @R.function
    def main(flag: R.Tensor((), "bool"), x: R.Tensor((4, 4), "float32"), w: R.Tensor((4, 4), "float32")):
        R.func_attr({"num_input": 2})
        if flag:
            t = R.permute_dims(w)
            y = R.matmul(x, t)
        else:
            y = R.exp(x)
        return y
"""
    assert len(warned(from_source(text))) == 1
    assert warned(from_source(text.replace("y = R.matmul(x, t)", "y = R.permute_dims(w)"))) == []


def test_a_transposition_that_a_left_computation_reads():
    text = """
@I.ir_module
class Module:
    @R.function
    def main(x: R.Tensor((4, 4), "float32"), w: R.Tensor((4, 4), "float32")):
        R.func_attr({"num_input": 1})
        t = R.permute_dims(w)
        e = R.exp(t)
        return (R.matmul(x, t), R.matmul(x, e))
"""
    mod = from_source(text)
    assert warned(mod, skip="relax.exp") == []
    assert len(warned(from_source(text.replace(", R.matmul(x, e)", ",")))) == 1


def test_names_that_mean_nothing():
    assert warned(Model, only="layer") == [
        "LiftInplaceTransformParams: only='layer' names no weight, nor an operator, kernel or "
        "layout that is applied to weights; did you mean 'layer_1'?"
    ]
    assert "skip='relax.permute_dim' names" in warned(Model, skip=["relax.permute_dim", "*"])[0]
    # What TVM knows is no mistake: not all models have it.
    assert warned(Model, skip=["relax.nn.conv2d", "permute_dims"]) == []
    report = explain_lift(Model, only="layer")
    assert report.unmatched[0].startswith("only='layer' names")
    assert report.unmatched[0] in str(report)


@pytest.mark.parametrize("wrong", [3, [None], ["a", 3]])
def test_what_is_no_rule(wrong):
    with pytest.raises(TypeError, match="is no rule; expected the name of a weight"):
        LiftInplaceTransformParams(skip=wrong)


# -- the report of a large model ---------------------------------------------------------------------


def large():
    types = ", ".join(["R.Tensor((4, 4), 'float32')"] * 20)
    lines = ["y0 = x"]
    for i in range(20):
        if i % 2:
            lines.append(f"y{i + 1} = R.add(y{i}, params[{i}])")
        else:
            lines.append(f"t{i} = R.permute_dims(params[{i}])")
            lines.append(f"y{i + 1} = R.matmul(y{i}, t{i})")
    body = textwrap.indent("\n".join([*lines, "return y20"]), " " * 8)
    return from_source(f"""
@I.ir_module
class Module:
    @R.function
    def main(x: R.Tensor((4, 4), "float32"), params: R.Tuple({types})):
{body}
""")


def test_summary():
    report = explain_lift(
        large(), skip=["params[0]", lambda call: call.args[0].name == "params[2]"]
    )
    text = str(report)
    assert text.startswith(
        textwrap.dedent(
            """\
            main: weights 20 -> 20, bytes 1,280 -> 1,280, steps 8

            weights  bytes  slots  then  what is done to them
                  8    512      8   512  permute_dims
                 12    768     12   768  stays

            not lifted, skip='params[0]': 1, such as permute_dims(params[0])
            not lifted, skip=<lambda>: 1, such as permute_dims(params[2])

            slot  weight"""
        )
    )
    assert text.count("permute_dims(params[") == 2 + 8
    assert "params[19]" not in text
    assert "params[19]" in report.text(every=True)
    assert report.text(every=True).count("stays") == 1 + 12
    assert "params[19]" not in str(report.plan)
    assert "params[19]" in report.plan.text(every=True)
    assert str(report.plan).endswith("and 12 more of 20 weights, which stay as they are\n")
