"""Which operators run slice by slice, and along which axes of what they read."""

import dataclasses

import pytest
from tvm import te
from tvm.script import from_source

from relax_inplace.inplace import slicing
from relax_inplace.inplace.cones import Cones
from relax_inplace.inplace.memory_limit import _ways
from relax_inplace.inplace.read_transform import read_transform
from relax_inplace.inplace.slicing import find_slicing
from relax_inplace.ir.kernels import Kernels

KERNELS = """
    @T.prim_func(private=True, s_tir=True)
    def double(A: T.Buffer((8, 6), "float32"), B: T.Buffer((8, 6), "float32")):
        for i0, i1 in T.grid(8, 6):
            with T.sblock("block"):
                v0, v1 = T.axis.remap("SS", [i0, i1])
                B[v0, v1] = A[v0, v1] * T.float32(2)
"""


def module(steps, result="t", w="(8, 6)", v="(8, 6)", dtype="float32"):
    """A transform of the weights w and v; the last of its lines computes t."""
    body = "\n        ".join(steps)
    return from_source(
        f"""
@I.ir_module
class Module:
{KERNELS}
    @R.function
    def transform_params(params: R.Tuple(R.Tensor({w}, "{dtype}"), R.Tensor({v}, "float32"))):
        w = params[0]
        v = params[1]
        {body}
        return ({result},)
"""
    )


def axes_of(steps, **options):
    """The axis along which each value is sliced where all steps run slice by slice, or None."""
    mod = module(steps, **options)
    graph = read_transform("f", mod["transform_params"], mod)
    found = find_slicing(graph, graph.steps, Kernels(mod))
    if found is None:
        return None
    return {getattr(value, "name", None): axis for value, axis in found.axes.items()}


# -- one operator ------------------------------------------------------------------------------

SLICED = {
    "R.exp(a)": 0,
    "R.add(a, v)": 0,
    "R.add(a, R.const([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]))": 0,
    "R.multiply(a, R.const(2.0))": 0,
    'R.astype(a, "float16")': 0,
    "R.clip(a, 0, 1)": 0,
    "R.where(R.less(a, v), a, v)": 0,
    "R.permute_dims(a)": 1,
    "R.nn.softmax(a, axis=-1)": 0,
    "R.sum(a, axis=1)": 0,
    "R.sum(a, axis=0)": 1,
    "R.max(a, axis=[1], keepdims=True)": 0,
    "R.sum(R.permute_dims(a), axis=1)": 1,
    "R.flip(a, axis=1)": 0,
    "R.concat((a, v), axis=1)": 0,
    "R.take(a, R.const([0, 2]), axis=1)": 0,
    'R.take(v, R.astype(a, "int32"), axis=0)': 0,
    "R.tile(a, (1, 2))": 0,
    "R.strided_slice(a, axes=[1], begin=[1], end=[4])": 0,
    "R.expand_dims(a, axis=1)": 0,
    "R.repeat(a, 2, axis=1)": 0,
    "R.nn.pad(a, (0, 0, 1, 1))": 0,
}

WHOLE = [
    "R.nn.softmax(a, axis=0)",
    "R.sum(a)",
    "R.cumsum(a, axis=0)",
    "R.cumsum(a, axis=1)",  # a kernel of one block for the whole tensor
    "R.flip(a, axis=0)",
    "R.tril(a)",
    "R.triu(a)",
    "R.add(a, R.const([[1.0], [2.0], [3.0], [4.0], [5.0], [6.0], [7.0], [8.0]]))",
    "R.add(a, R.permute_dims(R.reshape(a, (6, 8))))",  # two axes of one value
    "R.concat((a, v), axis=0)",
    "R.take(a, R.const([0, 2]), axis=0)",
    "R.reshape(a, (6, 8))",
    "R.reshape(a, (8, 2, 3))",  # it names the shape
    "R.broadcast_to(R.expand_dims(a, 0), (2, 8, 6))",
    "R.repeat(a, 2, axis=0)",
    "R.tile(a, (2, 1))",
    "R.strided_slice(a, axes=[0], begin=[1], end=[4])",
    "R.strided_slice(a, axes=[0], begin=[0], end=[8], strides=[2])",
    "R.nn.pad(a, (1, 1, 0, 0))",
    "R.argsort(a, axis=1)",
    "R.sort(a, axis=1)",
    "R.matmul(R.permute_dims(v), a)",  # the second factor is needed as a whole, and computed
    'R.call_tir(Module.double, (a,), out_ty=R.Tensor((8, 6), "float32"))',
    'R.call_dps_packed("tests.negate", (a,), out_ty=R.Tensor((8, 6), "float32"))',
    "R.split(a, 2, axis=1)[0]",
    "R.zeros_like(a)",
    "R.strided_slice(a, axes=[0], begin=[0], end=[4])",  # of another length
    "R.broadcast_to(a, (8, 6))",  # of a slice it would be as long
    "R.squeeze(R.expand_dims(a, axis=1))",  # of one row it is another axis, too
]


@pytest.mark.parametrize("code", SLICED)
def test_sliced(code):
    axes = axes_of(["a = R.exp(w)", f"t = {code}"])
    assert axes is not None
    assert axes["w"] == SLICED[code]


@pytest.mark.parametrize("code", WHOLE)
def test_whole(code):
    assert axes_of(["a = R.exp(w)", f"t = {code}"]) is None


# -- a weight that is read as a whole ----------------------------------------------------------


def test_a_second_factor_is_read_as_a_whole():
    axes = axes_of(["a = R.exp(w)", "t = R.matmul(a, v)"], v="(6, 8)")
    assert axes["w"] == 0
    assert "v" not in axes


def test_a_row_is_read_as_a_whole():
    assert "v" not in axes_of(["a = R.exp(w)", "t = R.add(a, v)"], v="(6,)")
    assert "v" not in axes_of(["a = R.exp(w)", "t = R.add(a, v)"], v="(1, 6)")


def test_a_column_is_sliced():
    assert axes_of(["a = R.exp(w)", "t = R.add(a, v)"], v="(8, 1)")["v"] == 0


def test_a_weight_that_is_read_along_two_axes():
    steps = ["a = R.exp(w)", "b = R.permute_dims(w)", "t = R.add(a, b)"]
    assert axes_of(steps, w="(8, 8)") is None


def test_a_weight_that_is_read_whole_and_sliced():
    steps = ["a = R.exp(w)", "t = R.matmul(a, w)"]
    assert axes_of(steps, w="(8, 8)") is None


# -- each check by itself ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "options"),
    [
        (["a = R.exp(w)", "b = R.permute_dims(w)", "t = R.add(a, b)"], {"w": "(8, 8)"}),
        (["a = R.exp(w)", "t = R.matmul(a, w)"], {"w": "(8, 8)"}),
        (["a = R.matmul(v, w)", "t = R.add(a, w)"], {"w": "(8, 8)", "v": "(8, 8)"}),
        (["a = R.exp(w)", f"t = R.add(a, R.const({[[1.0]] * 8}))"], {}),
        (["a = R.exp(w)", "b = R.permute_dims(v)", "t = R.matmul(a, b)"], {}),
    ],
    ids=["along two axes", "whole, then sliced", "sliced, then whole", "a constant", "computed"],
)
def test_what_no_type_shows(steps, options, monkeypatch):
    """Type inference need not compare the sizes of operands: these are refused without it."""
    monkeypatch.setattr(slicing, "_calls_of_slices", lambda *_: {slicing: None})
    monkeypatch.setattr(slicing, "_are_same_kernels", lambda *_: True)
    assert axes_of(["a = R.exp(w)", "t = R.negative(a)"]) is not None
    assert axes_of(steps, **options) is None


def test_a_kernel_that_computes_with_the_length(monkeypatch):
    """A slice of it is not what it is of a slice, though each row is made of the one there."""

    def of_length(self, call, known=Kernels.of):
        found = known(self, call)
        if found.name != "tir_tanh":
            return found

        def kernel(x):
            length = te.const(1, "float32") * x.shape[0].astype("float32")
            return te.compute(x.shape, lambda *at: x[at] / length, "mean")

        x = te.placeholder(call.ty.shape.values, "float32", "x")
        return dataclasses.replace(found, kernel=te.create_prim_func([x, kernel(x)]))

    assert axes_of(["a = R.exp(w)", "t = R.tanh(a)"]) is not None
    monkeypatch.setattr(Kernels, "of", of_length)
    assert axes_of(["a = R.exp(w)", "t = R.negative(a)"]) is not None
    assert axes_of(["a = R.exp(w)", "t = R.tanh(a)"]) is None


# -- shapes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["(1, 6)", "()", '("n", 6)', "(0, 6)"])
def test_nothing_to_slice(shape):
    assert axes_of(["a = R.exp(w)", "t = R.negative(a)"], w=shape) is None


@pytest.mark.parametrize("shape", ["(2,)", "(5,)", "(2, 3, 4, 5)"])
def test_any_rank(shape):
    assert set(axes_of(["a = R.exp(w)", "t = R.negative(a)"], w=shape).values()) == {0}


# -- cones -------------------------------------------------------------------------------------


def ways(steps, name, **options):
    """The values that each way to split the step that computes ``name`` covers."""
    mod = module(steps, **options)
    graph = read_transform("f", mod["transform_params"], mod)
    (step,) = [step for step in graph.steps if step.name == name]
    return [
        [kernel.binding.var.name for kernel in found.operands]
        for found in Cones(graph, Kernels(mod), graph.steps).slicings(step)
    ]


def test_a_step_alone_or_with_what_it_is_used_for():
    steps = ["a = R.exp(w)", "b = R.negative(a)", "t = R.sum(b, axis=1)"]
    assert ways(steps, "b") == [["a", "b"], ["a", "b", "t"]]
    assert ways(steps, "a") == [["a", "b"], ["a", "b", "t"]]  # one operator has no temporaries


def test_a_step_is_split_in_one_way_at_a_time():
    """What is in a cone of the one, or has it in a cone, waits for what becomes of that."""
    mod = module(
        ["a = R.exp(w)", "b = R.negative(a)", "c = R.tanh(b)", "d = R.exp(b)", "t = R.add(c, d)"]
    )
    graph = read_transform("f", mod["transform_params"], mod)
    cones = Cones(graph, Kernels(mod), graph.steps)
    a, b, _, _, t = graph.steps
    for first, ways in ((b, [["a", "b"]]), (t, [["a", "b", "c", "d", "t"]])):
        (slicings,) = _ways(cones, [first, a, b, t])
        assert [[step.name for step in slicing.steps] for slicing in slicings] == ways


def test_a_cone_ends_where_a_value_is_needed_twice():
    steps = [
        "a = R.exp(w)",
        "b = R.negative(a)",
        "c = R.tanh(b)",
        "t = R.add(c, b)",
        "u = R.exp(b)",
    ]
    assert ways(steps, "b", result="t, u") == [["a", "b"]]
    assert ways(steps, "c", result="t, u") == [["c", "t"]]


def test_an_output_is_in_no_cone():
    steps = ["a = R.exp(w)", "b = R.negative(a)", "t = R.tanh(b)"]
    assert ways(steps, "t", result="t, b") == []
    assert ways(steps, "b", result="t, b") == [["a", "b"]]


def test_what_is_made_of_no_slice_is_not_as_long_as_one():
    steps = ["a = R.exp(w)", "f = R.full(R.shape([8, 6]), v)", "t = R.add(a, f)"]
    assert axes_of(steps, v="()") is None


def test_a_field_of_what_a_step_makes(monkeypatch):
    """It has no name of its own by which it could be read in slices."""
    monkeypatch.setattr(slicing, "_calls_of_slices", lambda *_: {slicing: None})
    monkeypatch.setattr(slicing, "_are_same_kernels", lambda *_: True)
    steps = ["s = R.split(w, 2, axis=1)", "a = R.exp(s[0])", "t = R.negative(a)", "u = s[1]"]
    assert ways(steps, "t", result="t, u") == []


def test_an_impure_step_is_in_no_cone():
    mod = from_source(
        """
@I.ir_module
class Module:
    @R.function(pure=False)
    def transform_params(params: R.Tuple(R.Tensor((8, 6), "float32"))):
        x = R.call_packed("tests.note", params[0], ty_args=R.Tensor((8, 6), "float32"))
        a = R.exp(x)
        t = R.negative(a)
        return (t,)
"""
    )
    graph = read_transform("f", mod["transform_params"], mod)
    (found,) = Cones(graph, Kernels(mod), graph.steps).slicings(graph.steps[-1])
    assert [step.name for step in found.steps] == ["a", "t"]


def test_a_step_that_has_to_run_between_those_of_a_cone():
    """An impure call keeps its place among the steps that touch what it is given: a is whole."""
    mod = from_source(
        """
@I.ir_module
class Module:
    @R.function(pure=False)
    def transform_params(params: R.Tuple(R.Tensor((8, 6), "float32"))):
        w = params[0]
        a = R.exp(w)
        R.call_packed("tests.note", w, ty_args=R.Tuple())
        b = R.negative(w)
        t = R.add(a, b)
        return (t,)
"""
    )
    graph = read_transform("f", mod["transform_params"], mod)
    (found,) = Cones(graph, Kernels(mod), graph.steps).slicings(graph.steps[-1])
    assert [step.name for step in found.steps] == ["b", "t"]
