"""A module that TVM's LiftTransformParams has been through: the same weights, under their names."""

import json
import warnings

import numpy as np
import pytest
import tvm
from models import run_model
from pipelines import load
from transforms import passed
from tvm import relax
from tvm.script import from_source
from tvm.script import ir as I
from tvm.script import relax as R

from relax_inplace.analysis import LiftError, explain_lift
from relax_inplace.transform import LiftInplaceTransformParams

PARAM_MAP = "relax_inplace.param_map"


@I.ir_module
class Model:
    @R.function
    def main(
        x: R.Tensor((2, 8), "float32"),
        up: R.Tensor((8, 8), "float32"),
        down: R.Tensor((8, 8), "float32"),
    ):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            up = R.permute_dims(up)
            h = R.matmul(x, up)
            y = R.matmul(h, down)
            R.output(y)
        return y


@I.ir_module
class ModelAfter:
    @R.function
    def main(
        x: R.Tensor((2, 8), "float32"),
        params: R.Tuple(R.Tensor((8, 8), "float32"), R.Tensor((8, 8), "float32")),
    ) -> R.Tensor((2, 8), "float32"):
        R.func_attr({"num_input": 1})
        down = params[1]
        up = params[0]
        with R.dataflow():
            h = R.matmul(x, up)
            y = R.matmul(h, down)
            R.output(y)
        return y

    @R.function(pure=False)
    def inplace_transform_params(
        params: R.Tuple(R.Tensor((8, 8), "float32"), R.Tensor((8, 8), "float32")),
    ) -> R.Tuple(R.Tensor((8, 8), "float32"), R.Tensor((8, 8), "float32")):
        up = params[0]
        up_t = R.permute_dims(up)
        new = R.inplace_update_tuple(params, 0, up_t)
        return new


def lifted(mod, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        after = LiftInplaceTransformParams(**options)(mod)
    relax.analysis.well_formed(after)
    return after


def entry(mod, name="inplace_transform_params"):
    return json.loads(mod.attrs[PARAM_MAP])[name]


def names(mod, name="inplace_transform_params"):
    return [one["name"] for one in entry(mod, name)["weights"]]


def theirs(mod, shared, consume=False):
    config = {"relax.lift_transform_params.consume_params": consume}
    with tvm.transform.PassContext(config=config):
        return relax.transform.LiftTransformParams(shared_transform=shared)(mod)


@pytest.mark.parametrize("consume", [False, True])
@pytest.mark.parametrize("shared", [False, True, ["main"]])
def test_equal_shapes_are_not_swapped(shared, consume):
    """TVM's tuple is (down, up), the model's (up, down)."""
    after = lifted(theirs(Model, shared, consume))
    transform = "inplace_transform_params" if shared else "main_inplace_transform_params"
    assert names(after, transform) == ["up", "down"]
    assert [(one["name"], one["done"]) for one in entry(after, transform)["params"]] == [
        ("up", "permute_dims(up)"),
        ("down", ""),
    ]
    run_model(Model, after, transform=transform)


def test_before_and_after():
    after = lifted(theirs(Model, True)).without_attr(PARAM_MAP)
    tvm.ir.assert_structural_equal(after, ModelAfter)


def test_explained():
    assert [
        (one.name, one.done, one.new_slot)
        for one in explain_lift(theirs(Model, True), names=["u", "d"]).weights
    ] == [("u", "permute_dims(u)", "0"), ("d", "", "1")]


MODULE = """
@I.ir_module
class Module:
{functions}
"""
FUNCTION = """
    @R.function
    def {name}(x: R.Tensor((2, 8), "float32"), {weights}):
        R.func_attr({{"num_input": 1}})
        with R.dataflow():
{body}
            R.output(y)
        return y
"""
WEIGHTS = ", ".join(f'{name}: R.Tensor((8, 8), "float32")' for name in ("q", "k", "v"))


def module(others="", **bodies):
    functions = others
    for name, body in bodies.items():
        lines = "\n".join(f"            {line}" for line in body.strip().splitlines())
        functions += FUNCTION.format(name=name, weights=WEIGHTS, body=lines)
    return from_source(MODULE.format(functions=functions))


MERGED = """
qk = R.concat((q, k), axis=1)
y = R.matmul(R.matmul(x, qk), R.concat((v, v)))
"""


@pytest.mark.parametrize("shared", [False, True])
def test_counts_may_differ(shared):
    """Three weights become two, of which TVM's own transform makes one."""
    before = module(main=MERGED)
    after = lifted(theirs(before, shared))
    transform = "inplace_transform_params" if shared else "main_inplace_transform_params"
    assert names(after, transform) == ["q", "k", "v"]
    assert [one["from"] for one in entry(after, transform)["params"]] == [["q", "k"], ["v"]]
    run_model(before, after, transform=transform)


def test_functions_that_tvm_left_alone_share_what_enters():
    """`second` takes (q, k, v) as they are, `main` what TVM's transform makes of them."""
    body = "y = R.matmul(R.matmul(x, q), R.permute_dims(R.matmul(k, v)))"
    before = module(main=body, second="y = R.matmul(R.matmul(x, R.permute_dims(k)), q)")
    mixed = theirs(before, ["main"])
    after = lifted(mixed)
    assert names(after) == ["q", "k", "v"]
    run_model(before, after)


def test_equal_types_are_told_by_their_names():
    """TVM's transform makes three weights of three, all of one shape."""
    body = "y = R.matmul(R.matmul(R.matmul(x, q), R.permute_dims(k)), v)"
    before = module(main=body, second="y = R.matmul(R.matmul(R.matmul(x, v), q), k)")
    after = lifted(theirs(before, ["main"]))
    run_model(before, after)


RANDOM = """
    @R.function
    def transform_params(params: R.Tuple(R.Tensor((8, 8), "float32"), R.Tensor((8, 8), "float32"))):
        R.func_attr({"num_input": 0})
        with R.dataflow():
            first = params[0]
            second = params[1]
            noise = R.call_pure_packed("tvm.contrib.random.uniform_like", second, ty_args=R.Tensor((8, 8), "float32"))
            made = (second, noise, first)
            R.output(made)
        return made
"""


def test_what_cannot_be_put_back_is_called():
    """Its own kernels run in the new transform, once, and the weights have the names it gives them."""
    mod = module(RANDOM, main="y = R.matmul(R.matmul(R.matmul(x, R.permute_dims(q)), k), v)")
    after = lifted(mod)
    assert names(after) == ["first", "second"]
    assert entry(after)["params"][0]["from"] == ["second"]
    assert "uniform_like" not in after["main"].script()
    assert "uniform_like" in after["inplace_transform_params"].script()
    assert explain_lift(mod).plan.peak > 0
    assert names(lifted(mod, names={"first": "a"})) == ["a", "second"]


def test_what_cannot_be_put_back_and_functions_that_take_weights_as_they_are():
    two = WEIGHTS.rpartition(", v")[0]
    other = FUNCTION.format(
        name="other", weights=two, body="            y = R.matmul(R.matmul(x, q), k)"
    )
    mod = module(RANDOM + other, main="y = R.matmul(R.matmul(R.matmul(x, q), k), v)")
    with pytest.raises(LiftError, match="`main` takes what `transform_params` makes, `other` the"):
        lifted(mod)


@pytest.mark.parametrize("made", ["R.multiply(w, scale)", "R.negative(w)"])
def test_a_transform_of_other_inputs_is_called(made):
    """Put back, it would need them in the function that takes what it makes."""
    mod = from_source(
        """
@I.ir_module
class Module:
    @R.function
    def main(x: R.Tensor((2, 8), "float32"), made: R.Tuple(R.Tensor((8, 8), "float32"))):
        R.func_attr({"num_input": 1})
        w = made[0]
        t = R.permute_dims(w)
        y = R.matmul(x, t)
        return y

    @R.function
    def transform_params(scale: R.Tensor((), "float32"), w: R.Tensor((8, 8), "float32")):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            a = MADE
            out = (a,)
            R.output(out)
        return out
""".replace("MADE", made)
    )
    after = lifted(mod)
    assert [len(one.params) for _, one in after.functions_items()] == [2, 2]
    vm = load(after)
    x, scale, w = (
        np.random.default_rng(0).random(s).astype("float32") for s in ((2, 8), (), (8, 8))
    )
    params = passed([w])
    vm["inplace_transform_params"](tvm.runtime.tensor(scale), params)
    stored = (w * scale if "scale" in made else -w).T
    assert np.array_equal(params[0].numpy(), stored)
    np.testing.assert_allclose(
        vm["main"](tvm.runtime.tensor(x), params).numpy(), x @ stored, rtol=1e-5
    )


def test_a_budget_counts_what_enters():
    """What would make the weights larger stays in the function, also if TVM had lifted it."""
    before = from_source("""
@I.ir_module
class Module:
    @R.function
    def main(x: R.Tensor((2, 8), "float32"), up: R.Tensor((8, 8), "float32"), down: R.Tensor((8, 8), "float16")):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            d = R.astype(down, "float32")
            h = R.matmul(x, R.permute_dims(up))
            y = R.matmul(h, d)
            R.output(y)
        return y
""")
    without_budget = lifted(theirs(before, True), max_resident=None)
    types = [one["dtype"] for one in entry(without_budget)["params"]]
    assert types == ["float32", "float32"]
    after = lifted(theirs(before, True), max_resident=1.0)
    assert [one["dtype"] for one in entry(after)["params"]] == ["float32", "float16"]
    run_model(before, after)


def test_dimensions_are_those_of_what_enters():
    text = """
@I.ir_module
class Module:
    @R.function
    def main(x: R.Tensor((2, "m"), "float32"), w: R.Tensor(("n", "m"), "float32"), b: R.Tensor(("n",), "float32")):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            t = R.permute_dims(w)
            z = R.matmul(x, t)
            y = R.add(z, b)
            R.output(y)
        return y
"""
    before = from_source(text)
    after = lifted(theirs(before, True))
    assert names(after) == ["w", "b"]
    run_model(before, after)
    after = lifted(theirs(before, False))
    assert names(after, "main_inplace_transform_params") == ["w", "b"]


def test_streamed_and_restored():
    after = lifted(theirs(Model, True), restore=True)
    vm = load(after)
    originals = [np.random.default_rng(i).random((8, 8)).astype("float32") for i in range(2)]
    params = passed(originals)
    vm["inplace_restore_params"](vm["inplace_transform_params"](params))
    for one, original in zip(params, originals, strict=True):
        assert np.array_equal(one.numpy(), original)
    run_model(Model, lifted(theirs(Model, True), lazy=True), lazy=True)
