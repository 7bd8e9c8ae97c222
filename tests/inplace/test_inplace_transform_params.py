"""InplaceTransformParams: before and after, then both are run; every refusal."""

import textwrap

import numpy as np
import pytest
import tvm
import tvm_ffi
from measured_peaks import ORDERS, extra_weights, temporaries_of_two_sizes
from memory import in_fresh_process, needs_clear_refs
from pipelines import PIPELINES, load
from transforms import NOTES, run_both
from tvm import relax
from tvm.script import from_source
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from relax_inplace.analysis import UnsupportedTransformError, plan_memory
from relax_inplace.ir.updates import bindings_of
from relax_inplace.op import is_statement, is_update
from relax_inplace.transform import InplaceTransformParams


def rewritten(mod, **options):
    after = InplaceTransformParams(**options)(mod)
    relax.analysis.well_formed(after)
    return after


@I.ir_module
class ShapeOfACast:
    """The shape is an output that no step computes, but a cast defines."""

    @R.function
    def transform_params(params: R.Tuple(R.Tensor("float32", ndim=2), R.Tensor((2,), "float32"))):
        n = T.int64()
        m = T.int64()
        w = R.match_cast(params[0], R.Tensor((n, m), "float32"))
        t = R.permute_dims(w)
        return (R.shape([n, m]), t)


def test_a_shape_that_a_cast_defines():
    run_both(ShapeOfACast, rewritten(ShapeOfACast))


# -- before, after --------------------------------------------------------------------------


@I.ir_module
class OneToOne:
    @R.function
    def transform_params(
        params: R.Tuple(R.Tensor((4, 8), "float32"), R.Tensor((6, 8), "float32")),
    ):
        w0 = params[0]
        w1 = params[1]
        a = R.permute_dims(w0)
        b = R.permute_dims(w1)
        return (a, b)


@I.ir_module
class OneToOneAfter:
    @R.function(pure=False)
    def inplace_transform_params(
        params: R.Tuple(R.Tensor((4, 8), "float32"), R.Tensor((6, 8), "float32")),
    ):
        w0 = params[0]
        a = R.permute_dims(w0)
        p0 = R.inplace_update_tuple(params, 0, a)
        w1 = p0[1]
        b = R.permute_dims(w1)
        p1 = R.inplace_update_tuple(p0, 1, b)
        return p1


@I.ir_module
class BreadthFirst:
    """All first steps, then all second steps: run in that order, every weight is there twice."""

    @R.function
    def transform_params(
        params: R.Tuple(R.Tensor((4, 8), "float32"), R.Tensor((6, 8), "float32")),
    ):
        with R.dataflow():
            w0 = params[0]
            w1 = params[1]
            a0 = R.permute_dims(w0)
            a1 = R.permute_dims(w1)
            b0 = R.exp(a0)
            b1 = R.exp(a1)
            out = (b0, b1)
            R.output(out)
        return out


@I.ir_module
class BreadthFirstAfter:
    """The two operations fuse: a weight is emptied before them, for pipelines that do not fuse."""

    @R.function(pure=False)
    def inplace_transform_params(
        params: R.Tuple(R.Tensor((4, 8), "float32"), R.Tensor((6, 8), "float32")),
    ):
        w0 = params[0]
        nothing = R.null_value()
        p0 = R.inplace_update_tuple(params, 0, nothing)
        with R.dataflow():
            a0 = R.permute_dims(w0)
            b0 = R.exp(a0)
            R.output(b0)
        p1 = R.inplace_update_tuple(p0, 0, b0)
        w1 = p1[1]
        p2 = R.inplace_update_tuple(p1, 1, nothing)
        with R.dataflow():
            a1 = R.permute_dims(w1)
            b1 = R.exp(a1)
            R.output(b1)
        p3 = R.inplace_update_tuple(p2, 1, b1)
        return p3


@I.ir_module
class Swap:
    @R.function
    def transform_params(
        params: R.Tuple(R.Tensor((4, 8), "float32"), R.Tensor((6, 8), "float32")),
    ):
        with R.dataflow():
            w0 = params[0]
            w1 = params[1]
            out = (w1, w0)
            R.output(out)
        return out


@I.ir_module
class SwapAfter:
    @R.function(pure=False)
    def inplace_transform_params(
        params: R.Tuple(R.Tensor((4, 8), "float32"), R.Tensor((6, 8), "float32")),
    ):
        w1 = params[1]
        w0 = params[0]
        p0 = R.inplace_update_tuple(params, 0, w1)
        p1 = R.inplace_update_tuple(p0, 1, w0)
        return p1


@I.ir_module
class Shared:
    """Outputs from several weights, a step that two outputs need, one field left as it is."""

    @R.function
    def transform_params(
        params: R.Tuple(
            R.Tensor((4, 4), "float32"), R.Tensor((4, 4), "float32"), R.Tensor((4, 4), "float32")
        ),
    ):
        with R.dataflow():
            w0 = params[0]
            w2 = params[2]
            s = R.add(w0, w2)
            a = R.permute_dims(s)
            b = R.multiply(s, w0)
            unused = R.exp(w2)
            w1 = params[1]
            out = (a, w1, b)
            R.output(out)
        return out


@I.ir_module
class SharedAfter:
    """Field 2 is spent first; b before a, as field 0 is then spent when s still is needed."""

    @R.function(pure=False)
    def inplace_transform_params(
        params: R.Tuple(
            R.Tensor((4, 4), "float32"), R.Tensor((4, 4), "float32"), R.Tensor((4, 4), "float32")
        ),
    ):
        w0 = params[0]
        w2 = params[2]
        s = R.add(w0, w2)
        nothing = R.null_value()
        p0 = R.inplace_update_tuple(params, 2, nothing)
        w0_1 = p0[0]
        b = R.multiply(s, w0_1)
        p1 = R.inplace_update_tuple(p0, 0, nothing)
        p2 = R.inplace_update_tuple(p1, 2, b)
        a = R.permute_dims(s)
        p3 = R.inplace_update_tuple(p2, 0, a)
        return p3


@I.ir_module
class Separate:
    """Weights as parameters of their own, after one input."""

    @R.function
    def main_transform_params(
        rank: R.Prim("int64"), w: R.Tensor((4, 8), "float32"), v: R.Tensor((6,), "float32")
    ):
        R.func_attr({"num_input": 1, "relax.force_pure": True})
        with R.dataflow():
            a = R.permute_dims(w)
            out = (a, v)
            R.output(out)
        return out


@I.ir_module
class SeparateAfter:
    @R.function(pure=False)
    def main_inplace_transform_params(
        rank: R.Prim("int64"),
        params: R.Tuple(R.Tensor((4, 8), "float32"), R.Tensor((6,), "float32")),
    ):
        w = params[0]
        a = R.permute_dims(w)
        p0 = R.inplace_update_tuple(params, 0, a)
        return p0


@I.ir_module
class Fewer:
    """Field 1 is in no output, field 0 goes into two: the result is a tuple of its own."""

    @R.function
    def transform_params(
        params: R.Tuple(
            R.Tensor((4, 8), "float32"), R.Tensor((6,), "float32"), R.Tensor((2, 2), "float32")
        ),
    ):
        w0 = params[0]
        w2 = params[2]
        both = R.split(w0, 2)
        a = both[0]
        b = R.exp(w2)
        return (b, a)


@I.ir_module
class FewerAfter:
    @R.function(pure=False)
    def inplace_transform_params(
        params: R.Tuple(
            R.Tensor((4, 8), "float32"), R.Tensor((6,), "float32"), R.Tensor((2, 2), "float32")
        ),
    ):
        nothing = R.null_value()
        p0 = R.inplace_update_tuple(params, 1, nothing)
        w2 = p0[2]
        b = R.exp(w2)
        p1 = R.inplace_update_tuple(p0, 2, nothing)
        w0 = p1[0]
        both = R.split(w0, 2)
        a = both[0]
        p2 = R.inplace_update_tuple(p1, 0, b)
        p3 = R.inplace_update_tuple(p2, 1, a)
        new_params = (b, a)
        return new_params


@I.ir_module
class Split:
    """One weight into two: more fields out than in."""

    @R.function
    def transform_params(params: R.Tuple(R.Tensor((4, 8), "float32"))):
        qk = params[0]
        q = R.strided_slice(qk, axes=[0], begin=[0], end=[2])
        k = R.strided_slice(qk, axes=[0], begin=[2], end=[4])
        return (q, k)


@I.ir_module
class SplitAfter:
    @R.function(pure=False)
    def inplace_transform_params(params: R.Tuple(R.Tensor((4, 8), "float32"))):
        qk = params[0]
        q = R.strided_slice(qk, axes=[0], begin=[0], end=[2])
        qk_1 = params[0]
        k = R.strided_slice(qk_1, axes=[0], begin=[2], end=[4])
        p0 = R.inplace_update_tuple(params, 0, q)
        new_params = (q, k)
        return new_params


@I.ir_module
class Concat:
    """Two weights into one."""

    @R.function
    def transform_params(params: R.Tuple(R.Tensor((4, 8), "float32"), R.Tensor((4, 8), "float32"))):
        q = params[0]
        k = params[1]
        qk = R.concat((q, k))
        return (qk,)


@I.ir_module
class ConcatAfter:
    @R.function(pure=False)
    def inplace_transform_params(
        params: R.Tuple(R.Tensor((4, 8), "float32"), R.Tensor((4, 8), "float32")),
    ):
        q = params[0]
        k = params[1]
        qk = R.concat((q, k))
        p0 = R.inplace_update_tuple(params, 0, qk)
        nothing = R.null_value()
        p1 = R.inplace_update_tuple(p0, 1, nothing)
        new_params = (qk,)
        return new_params


@I.ir_module
class Nested:
    """A tuple in the tuple, one in the result."""

    @R.function
    def transform_params(
        params: R.Tuple(
            R.Tuple(R.Tensor((4, 8), "float32"), R.Tensor((3,), "float32")),
            R.Tensor((6, 8), "float32"),
        ),
    ):
        layer = params[0]
        w = layer[0]
        scale = layer[1]
        v = params[1]
        a = R.permute_dims(w)
        b = R.permute_dims(v)
        return ((a, b), scale)


@I.ir_module
class NestedAfter:
    @R.function(pure=False)
    def inplace_transform_params(
        params: R.Tuple(
            R.Tuple(R.Tensor((4, 8), "float32"), R.Tensor((3,), "float32")),
            R.Tensor((6, 8), "float32"),
        ),
    ):
        layer = params[0]
        w = layer[0]
        a = R.permute_dims(w)
        nothing = R.null_value()
        l0 = R.inplace_update_tuple(layer, 0, nothing)
        v = params[1]
        b = R.permute_dims(v)
        p0 = R.inplace_update_tuple(params, 1, nothing)
        both = (a, b)
        scale = l0[1]
        p1 = R.inplace_update_tuple(p0, 0, both)
        p2 = R.inplace_update_tuple(p1, 1, scale)
        return p2


@I.ir_module
class Excluded:
    """With params=["w0"]: field 1 is read, and stays."""

    @R.function
    def transform_params(params: R.Tuple(R.Tensor((4, 8), "float32"), R.Tensor((4, 8), "float32"))):
        w0 = params[0]
        w1 = params[1]
        a = R.add(w0, w1)
        return (a, w1)


@I.ir_module
class ExcludedAfter:
    @R.function(pure=False)
    def inplace_transform_params(
        params: R.Tuple(R.Tensor((4, 8), "float32"), R.Tensor((4, 8), "float32")),
    ):
        w0 = params[0]
        w1 = params[1]
        a = R.add(w0, w1)
        p0 = R.inplace_update_tuple(params, 0, a)
        return p0


@I.ir_module
class Impure:
    """Calls with an effect keep their order, and what they are given."""

    @R.function(pure=False)
    def transform_params(params: R.Tuple(R.Tensor((4,), "float32"), R.Tensor((4,), "float32"))):
        w0 = params[0]
        w1 = params[1]
        b = R.exp(w1)
        R.call_packed("tests.note", b, ty_args=R.Tuple())
        a = R.exp(w0)
        R.call_packed("tests.note", w0, ty_args=R.Tuple())
        return (a, b)


@I.ir_module
class ImpureAfter:
    @R.function(pure=False)
    def inplace_transform_params(
        params: R.Tuple(R.Tensor((4,), "float32"), R.Tensor((4,), "float32")),
    ):
        R.func_attr({"relax_inplace.overwrites": [0]})
        w1 = params[1]
        b = R.exp(w1)
        p0 = R.inplace_update_tuple(params, 1, b)
        R.call_packed("tests.note", b, ty_args=R.Tuple())
        w0 = p0[0]
        a = R.exp(w0)
        w0_1 = p0[0]
        R.call_packed("tests.note", w0_1, ty_args=R.Tuple())
        p1 = R.inplace_update_tuple(p0, 0, a)
        return p1


@I.ir_module
class Consumed:
    """What LiftTransformParams makes with consume_params: its resets go, the pass has its own."""

    @R.function
    def transform_params(params: R.Tuple(R.Tensor((4, 8), "float32"))):
        w0 = params[0]
        R.call_pure_packed(
            "vm.builtin.tuple_reset_item", params, R.prim_value(0), ty_args=R.Tuple()
        )
        a = R.permute_dims(w0)
        return (a,)


@I.ir_module
class ConsumedAfter:
    @R.function(pure=False)
    def inplace_transform_params(params: R.Tuple(R.Tensor((4, 8), "float32"))):
        w0 = params[0]
        a = R.permute_dims(w0)
        p0 = R.inplace_update_tuple(params, 0, a)
        return p0


@I.ir_module
class Calls:
    """Private functions: their steps are steps of the transform."""

    @R.function(private=True)
    def transposed(w: R.Tensor((4, 8), "float32")) -> R.Tensor((8, 4), "float32"):
        t = R.permute_dims(w)
        return t

    @R.function(private=True)
    def layer(ws: R.Tuple(R.Tensor((4, 8), "float32"), R.Tensor((4, 8), "float32"))) -> R.Tuple(
        R.Tensor((8, 4), "float32"), R.Tensor((8, 4), "float32")
    ):
        cls = Calls
        w = ws[0]
        v = ws[1]
        a: R.Tensor((8, 4), "float32") = cls.transposed(w)
        b: R.Tensor((8, 4), "float32") = cls.transposed(v)
        return (a, b)

    @R.function
    def transform_params(
        params: R.Tuple(R.Tensor((4, 8), "float32"), R.Tensor((4, 8), "float32")),
    ) -> R.Tuple(R.Tensor((8, 4), "float32"), R.Tensor((8, 4), "float32")):
        cls = Calls
        both: R.Tuple(R.Tensor((8, 4), "float32"), R.Tensor((8, 4), "float32")) = cls.layer(params)
        return both


@I.ir_module
class CallsAfter:
    @R.function(pure=False)
    def inplace_transform_params(
        params: R.Tuple(R.Tensor((4, 8), "float32"), R.Tensor((4, 8), "float32")),
    ):
        w = params[0]
        a = R.permute_dims(w)
        p0 = R.inplace_update_tuple(params, 0, a)
        v = p0[1]
        b = R.permute_dims(v)
        p1 = R.inplace_update_tuple(p0, 1, b)
        return p1


@I.ir_module
class ShapeFirst:
    """As LiftTransformParams does it where a symbolic size is needed later."""

    @R.function
    def transform_params(params: R.Tuple(R.Tensor(("n", 4), "float32"))):
        n = T.int64()
        w0 = params[0]
        a = R.reshape(w0, (n * 4,))
        return (R.shape([n]), a)


@I.ir_module
class ShapeFirstAfter:
    @R.function(pure=False)
    def inplace_transform_params(params: R.Tuple(R.Tensor(("n", 4), "float32"))):
        n = T.int64()
        shape = R.shape([n])
        w0 = params[0]
        a = R.reshape(w0, (n * 4,))
        p0 = R.inplace_update_tuple(params, 0, shape)
        new_params = (shape, a)
        return new_params


@I.ir_module
class Branch:
    """Each branch is a transform."""

    @R.function
    def transform_params(
        transpose: R.Tensor((), "bool"), params: R.Tuple(R.Tensor((4, 4), "float32"))
    ):
        R.func_attr({"num_input": 1})
        w0 = params[0]
        e = R.exp(w0)
        if transpose:
            a = R.permute_dims(e)
            r = (a,)
        else:
            r = (w0,)
        return r


@I.ir_module
class BranchAfter:
    @R.function(pure=False)
    def inplace_transform_params(
        transpose: R.Tensor((), "bool"), params: R.Tuple(R.Tensor((4, 4), "float32"))
    ):
        condition = transpose
        if condition:
            w0 = params[0]
            e = R.exp(w0)
            nothing = R.null_value()
            p0 = R.inplace_update_tuple(params, 0, nothing)
            a = R.permute_dims(e)
            p1 = R.inplace_update_tuple(p0, 0, a)
            r = p1
        else:
            r = params
        return r


@I.ir_module
class BranchInTheMiddle:
    """It reads fields of the weights, of a nested tuple, and of a tuple that a step makes."""

    @R.function
    def transform_params(
        c: R.Tensor((), "bool"),
        params: R.Tuple(
            R.Tensor((4, 4), "float32"),
            R.Tuple(R.Tensor((4, 4), "float32"), R.Tensor((4, 4), "float32")),
        ),
    ):
        R.func_attr({"num_input": 1})
        a = R.exp(params[0])
        if c:
            pair = params[1]
            d = R.negative(pair[1])
            b = d
        else:
            e = R.add(params[1][0], a)
            b = e
        return (a, (b, params[1][0]))


@I.ir_module
class BranchInTheMiddleAfter:
    @R.function(pure=False)
    def inplace_transform_params(
        c: R.Tensor((), "bool"),
        params: R.Tuple(
            R.Tensor((4, 4), "float32"),
            R.Tuple(R.Tensor((4, 4), "float32"), R.Tensor((4, 4), "float32")),
        ),
    ):
        w0 = params[0]
        a = R.exp(w0)
        p0 = R.inplace_update_tuple(params, 0, a)
        pair = p0[1]
        w2 = pair[1]
        w1 = pair[0]
        if c:
            d = R.negative(w2)
            b = d
        else:
            e = R.add(w1, a)
            b = e
        nothing = R.null_value()
        pair1 = R.inplace_update_tuple(pair, 1, nothing)
        moved = pair1[0]
        both = (b, moved)
        p1 = R.inplace_update_tuple(p0, 1, both)
        return p1


BEFORE_AND_AFTER = [
    (OneToOne, OneToOneAfter),
    (BreadthFirst, BreadthFirstAfter),
    (Swap, SwapAfter),
    (Shared, SharedAfter),
    (Fewer, FewerAfter),
    (Split, SplitAfter),
    (Concat, ConcatAfter),
    (Nested, NestedAfter),
    (Excluded, ExcludedAfter),
    (Impure, ImpureAfter),
    (Consumed, ConsumedAfter),
    (Calls, CallsAfter),
    (ShapeFirst, ShapeFirstAfter),
    (Branch, BranchAfter),
    (BranchInTheMiddle, BranchInTheMiddleAfter),
]


@pytest.mark.parametrize(
    ("before", "after"), BEFORE_AND_AFTER, ids=lambda mod: mod.__name__ if mod else ""
)
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_before_and_after(before, after, pipeline):
    options = {"params": ["w0"]} if before is Excluded else {}
    got = rewritten(before, **options)
    tvm.ir.assert_structural_equal(
        got["inplace_transform_params"], after["inplace_transform_params"], map_free_vars=True
    )
    NOTES.clear()
    run = run_both(before, got, pipeline)
    half = len(NOTES) // 2
    assert NOTES[:half] == NOTES[half:]
    fields = len(before["transform_params"].params[-1].ty.fields)
    if len(run.result) == fields:
        assert run.result.same_as(run.argument)


def test_two_outputs_that_are_one_tuple_are_one():
    @I.ir_module
    class Module:
        @R.function
        def transform_params(
            params: R.Tuple(R.Tensor((4, 8), "float32"), R.Tensor((4, 8), "float32")),
        ):
            a = R.exp(params[0])
            pair = (a, params[1])
            return (pair, pair)

    result = run_both(Module, rewritten(Module)).result
    assert result[0].same_as(result[1])


@pytest.mark.parametrize("pipeline", ["compile", "cpu default"])
def test_another_step_reads_what_a_fused_one_computes(pipeline):
    """That is no variable of the dataflow block in which the fused ones are."""

    @I.ir_module
    class Module:
        @R.function
        def transform_params(
            params: R.Tuple(R.Tensor((4, 8), "float32"), R.Tensor((4, 8), "float32")),
        ):
            w0 = params[0]
            w1 = params[1]
            with R.dataflow():
                a = R.exp(w0)
                b = R.permute_dims(a)
                c = R.matmul(w1, b)
                R.output(c)
            return (c, w1)

    after = rewritten(Module)
    names = [var.name for var in relax.analysis.all_vars(after["inplace_transform_params"])]
    assert {"a", "b", "c"} <= set(names)
    run_both(Module, after, pipeline)


@pytest.mark.parametrize("pipeline", ["compile", "cpu default"])
@pytest.mark.parametrize("outputs", ["a, b", "b, a", "w1, a", "b, w1", "a, w1", "(w1, a), b"])
def test_a_weight_that_is_left_out_stays_in_its_slot(outputs, pipeline):
    """Whatever is computed from it, and wherever that goes."""
    source = f"""
@I.ir_module
class Module:
    @R.function
    def transform_params(params: R.Tuple(R.Tensor((4, 4), "float32"), R.Tensor((4, 4), "float32"))):
        with R.dataflow():
            w0 = params[0]
            w1 = params[1]
            a = R.exp(w0)
            c = R.exp(w1)
            b = R.permute_dims(c)
            out = ({outputs})
            R.output(out)
        return out
"""
    before = from_source(source)
    after = InplaceTransformParams(params=["w0"])(before)
    arrays = [np.random.default_rng(0).random((4, 4), "float32") for _ in range(2)]
    first, second = (tvm.runtime.tensor(array) for array in arrays)
    expected = load(before, pipeline)["transform_params"](tvm_ffi.Array([first, second]))
    params = tvm_ffi.Array([first, second])
    result = load(after, pipeline)["inplace_transform_params"](params)
    for one, other in zip(flat(expected), flat(result), strict=True):
        assert one.numpy().tobytes() == other.numpy().tobytes()
    assert params[1].same_as(second)
    assert second.numpy().tobytes() == arrays[1].tobytes()


def flat(value):
    """The tensors in a tuple."""
    if not isinstance(value, tvm_ffi.Array):
        return [value]
    return [leaf for field in value for leaf in flat(field)]


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_separate_weights_are_bundled(pipeline):
    after = rewritten(Separate)
    tvm.ir.assert_structural_equal(after.without_attr("relax_inplace.param_map"), SeparateAfter)
    run_both(Separate, after, pipeline, "main_transform_params")


# -- other forms, run only ------------------------------------------------------------------

PARAMS = 'params: R.Tuple(R.Tensor((4, 4), "float32"), R.Tensor((4, 4), "float32"), R.Tensor((4, 4), "float32"))'
FORMS = {
    "identity": "return params",
    "every output its own": "return (params[0], params[1], params[2])",
    "all weights as one output": "return (params, R.exp(params[0]), params[1])",
    "rotation": "return (params[2], params[0], params[1])",
    "one value three times": """
        a = R.exp(params[1])
        return (a, a, a)
    """,
    "one weight three times": "return (params[1], params[1], params[1])",
    "constants": """
        c = R.const([[1.0, 2.0]])
        z = R.zeros((2, 2), "float32")
        return (c, z, R.const(3))
    """,
    "an output made from several": """
        a = R.add(params[0], params[1])
        b = R.add(a, params[2])
        c = R.subtract(params[0], b)
        return (c, a, b)
    """,
    "outputs in the opposite order": """
        c = R.exp(params[2])
        b = R.exp(params[1])
        a = R.exp(params[0])
        return (a, b, c)
    """,
    "a weight read late": """
        a = R.exp(params[1])
        b = R.exp(params[2])
        c = R.exp(params[0])
        return (a, b, c)
    """,
    "several dataflow blocks": """
        with R.dataflow():
            a = R.exp(params[0])
            s = R.add(a, params[1])
            R.output(a, s)
        t = R.permute_dims(s)
        with R.dataflow():
            lv = R.multiply(s, t)
            b = R.exp(lv)
            R.output(b)
        return (b, a, t)
    """,
    "second names": """
        p = params
        w = p[0]
        v = w
        a = R.exp(v)
        b = a
        return (b, v, p[1])
    """,
    "a call with several results": """
        t = R.split(params[0], 2, axis=1)
        a = t[1]
        return (a, t[0], params[0])
    """,
    "the results of one call": "return R.split(R.concat((params[0], params[1], params[2])), 3)",
    "nested tuples out": """
        a = R.exp(params[0])
        return ((a, params[1]), params[0], (R.const(1.0), (a,)))
    """,
    "shape and prim outputs": "return (R.shape([2, 3]), params[0], R.prim_value(5))",
    "a match_cast": """
        k = T.int64()
        m = R.match_cast(params[2], R.Tensor((k, 4), "float32"))
        a = R.reshape(m, (k * 4,))
        b = R.reshape(R.exp(a), (4, k))
        return (b, m, params[0])
    """,
    "a branch": """
        c = R.const(True, "bool")
        w = params[0]
        s = R.exp(params[1])
        if c:
            a = R.add(w, s)
            r = a
        else:
            b = R.subtract(w, s)
            r = b
        return (r, s, w)
    """,
    "two branches on one weight": """
        c = R.const(False, "bool")
        w = params[0]
        s = R.exp(params[1])
        if c:
            r = w
        else:
            r = s
        if c:
            q = s
        else:
            q = w
        return (r, params[2], q)
    """,
    "branches that read fields": """
        c = R.const(True, "bool")
        a = R.exp(params[0])
        if c:
            if c:
                d = R.negative(params[1])
                b = d
            else:
                d = R.exp(params[2])
                b = d
            e = b
        else:
            f = R.concat((params[1], params[2]))
            g = R.split(f, 2)
            e = g[1]
        return (a, e, R.permute_dims(params[2]))
    """,
    "a branch that returns a field": """
        c = R.const(False, "bool")
        a = R.exp(params[0])
        if c:
            r = params[2]
        else:
            second = params
            w = second[1]
            r = w
        b = R.add(a, params[2])
        return (b, r, a)
    """,
    "a branch that casts a field": """
        c = R.const(False, "bool")
        a = R.exp(params[0])
        if c:
            m = R.match_cast(params[1], R.Tensor((4, 4), "float32"))
            r = m
        else:
            r = a
        b = R.add(a, params[2])
        return (b, r, a)
    """,
    "a branch that returns all weights": """
        c = R.const(True, "bool")
        a = R.exp(params[0])
        if c:
            r = params
        else:
            s = (params[2], a, params[0])
            r = s
        b = R.add(r[0], a)
        return (b, r[1], r[2])
    """,
    "a branch that reads fields of what a step makes": """
        c = R.const(True, "bool")
        t = R.split(params[0], 2)
        if c:
            d = R.exp(t[0])
            b = d
        else:
            d = R.negative(t[0])
            b = d
        return (b, R.exp(t[1]), params[1])
    """,
    "a local function": """
        w = params[0]
        @R.function
        def inner(y: R.Tensor((4, 4), "float32")) -> R.Tensor((4, 4), "float32"):
            z = R.add(y, w)
            return z
        a = inner(params[1])
        b = inner(params[0])
        return (a, b, w)
    """,
    "a fused step that begins before one that it needs": """
        w = params[0]
        with R.dataflow():
            a = R.add(w, w)
            e = R.exp(w)
            b = R.add(e, a)
            unused = R.tanh(e)
            R.output(b)
        return (b, params[1], b)
    """,
    "what is dead fuses with nothing": """
        w = params[0]
        with R.dataflow():
            a = R.exp(w)
            b = R.subtract(a, a)
            unused = R.multiply(a, a)
            R.output(b)
        return (b, params[1], params[2])
    """,
    "packed functions": """
        a = R.call_pure_packed("vm.builtin.copy", params[0], ty_args=R.Tensor((4, 4), "float32"))
        b = R.call_dps_packed("tests.negate", (params[1],), out_ty=R.Tensor((4, 4), "float32"))
        return (b, a, params[1])
    """,
}


def form(name):
    return transform(FORMS[name])


def transform(body):
    body = textwrap.indent(textwrap.dedent(body), " " * 8)
    return from_source(
        f"@I.ir_module\nclass Module:\n    @R.function\n    def transform_params({PARAMS}):\n{body}"
    )


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("name", FORMS)
def test_form(name, pipeline):
    before = form(name)
    lifted = relax.transform.LambdaLift() if name == "a local function" else (lambda mod: mod)
    run = run_both(lifted(before), lifted(rewritten(before)), pipeline)
    assert run.result.same_as(run.argument) == (len(run.result) == 3)


def test_a_branch_captures_what_it_uses():
    """A weight that is read inside of a branch is freed as if it were read outside."""
    before = BranchInTheMiddle
    planned = plan_memory(before["transform_params"], mod=before)
    assert [step.name for step in planned.steps] == ["a", "b"]
    assert [weight.freed_after for weight in planned.weights] == [1, None, 2]
    assert run_both(before, rewritten(before)).peak == planned.peak


@pytest.mark.parametrize("lazy", [False, True])
def test_a_local_function_that_reads_a_field(lazy):
    """In no pipeline that fuses: of a lifted one that takes a tuple these make nothing."""
    lifted = relax.transform.LambdaLift()
    before = transform("""
        a = R.exp(params[0])
        @R.function
        def inner(y: R.Tensor((4, 4), "float32")) -> R.Tensor((4, 4), "float32"):
            second = params
            z = R.add(y, second[1])
            return z
        b = inner(a)
        d = inner(params[2])
        return (a, b, d)
    """)
    after = rewritten(before, lazy=lazy)
    captured = [
        relax.analysis.free_vars(one.value)[:]
        for one in bindings_of(after["inplace_transform_params"])
        if type(one.value) is relax.Function
    ]
    assert [[var.ty for var in each] for each in captured] == [
        [relax.TensorType((4, 4), "float32")]
    ]
    run = run_both(lifted(before), lifted(after), streamed=lazy)
    assert run.result.same_as(run.argument)


@pytest.mark.parametrize("name", FORMS)
def test_form_streamed(name):
    before = form(name)
    lifted = relax.transform.LambdaLift() if name == "a local function" else (lambda mod: mod)
    run_both(lifted(before), lifted(rewritten(before, lazy=True)), streamed=True)


@I.ir_module
class Overwritten:
    """What overwrites a tensor is needed if the tensor is, though nobody reads its result."""

    @T.prim_func(private=True, s_tir=True)
    def double(a: T.Buffer((4, 4), "float32")):
        for i, j in T.grid(4, 4):
            with T.sblock("double"):
                vi, vj = T.axis.remap("SS", [i, j])
                a[vi, vj] = a[vi, vj] * T.float32(2)

    @R.function
    def transform_params(params: R.Tuple(R.Tensor((4, 4), "float32"))):
        cls = Overwritten
        a = R.negative(params[0])
        both = (params[0], a)
        doubled = R.call_tir_inplace(
            cls.double, (a,), inplace_indices=[0], out_ty=R.Tensor((4, 4), "float32")
        )
        return (both[1],)


def test_what_overwrites_an_output():
    run_both(Overwritten, rewritten(Overwritten))


@I.ir_module
class Symbolic:
    @R.function
    def transform_params(
        params: R.Tuple(R.Tensor(("n", "m"), "float16"), R.Tensor(("m",), "int8")),
    ):
        n = T.int64()
        m = T.int64()
        with R.dataflow():
            w0 = params[0]
            w1 = params[1]
            a = R.reshape(R.permute_dims(w0), (m * n,))
            b = R.add(w1, w1)
            out = (a, b)
            R.output(out)
        return out


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_symbolic_shapes(pipeline):
    run_both(Symbolic, rewritten(Symbolic), pipeline)


@I.ir_module
class Several:
    @R.function
    def transform_params(params: R.Tuple(R.Tensor((4, 8), "float32"))):
        a = R.permute_dims(params[0])
        return (a,)

    @R.function(private=True)
    def draft_transform_params(params: R.Tuple(R.Tensor((4, 8), "float32"))):
        a = R.exp(params[0])
        return (a,)

    @R.function
    def convert(params: R.Tuple(R.Tensor((4, 8), "float32"))):
        a = R.negative(params[0])
        return (a,)

    @R.function
    def main(x: R.Tensor((4, 8), "float32")) -> R.Tensor((4, 8), "float32"):
        return x


def names(mod):
    return {gvar.name_hint for gvar in mod.get_global_vars()}


def test_which_functions():
    assert names(rewritten(Several)) == {
        "inplace_transform_params",
        "draft_inplace_transform_params",
        "convert",
        "main",
    }
    assert names(rewritten(Several, functions=["convert", "transform_params"])) == {
        "inplace_transform_params",
        "draft_transform_params",
        "inplace_convert",
        "main",
    }
    assert names(rewritten(Several, functions="convert")) >= {"inplace_convert"}
    after = rewritten(Several)
    assert after["main"].same_as(Several["main"]) and after["convert"].same_as(Several["convert"])


def test_again_changes_nothing():
    once = rewritten(Several)
    assert rewritten(once).same_as(once)


@pytest.mark.parametrize("functions", ["transform_params", ["convert", "transform_params"]])
def test_again_by_name_changes_nothing(functions):
    once = rewritten(Several, functions=functions)
    assert rewritten(once, functions=functions).same_as(once)


def test_what_is_rewritten_already():
    once = rewritten(OneToOne)
    name = "inplace_transform_params"
    assert rewritten(once, functions=name).same_as(once)
    with pytest.raises(UnsupportedTransformError, match="`p0` updates a tuple in place already"):
        plan_memory(once[name])


def test_a_private_function_becomes_public():
    after = rewritten(Several)["draft_inplace_transform_params"]
    assert after.attrs["global_symbol"] == "draft_inplace_transform_params"
    kept = relax.transform.DeadCodeElimination()(rewritten(Several))
    assert "draft_inplace_transform_params" in names(kept)


def test_attributes():
    function = OneToOne["transform_params"].with_attr("num_input", 0).with_attr("tag", "kept")
    mod = tvm.IRModule({"transform_params": function}, attrs={"system_lib_prefix": "x"})
    after = rewritten(mod)
    assert dict(after["inplace_transform_params"].attrs) == {
        "global_symbol": "inplace_transform_params",
        "tag": "kept",
    }
    assert after.attrs["system_lib_prefix"] == "x"


@pytest.mark.parametrize("shared", [False, True])
def test_what_lift_transform_params_makes(shared):
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 8), "float32"))
    ws = [relax.Var(f"w{i}", relax.TensorType((8, 8), "float32")) for i in range(3)]
    with builder.function("main", [x, *ws], attrs={"num_input": 1}):
        with builder.dataflow():
            h = x
            for w in ws:
                h = builder.emit(relax.op.matmul(h, builder.emit(relax.op.permute_dims(w))))
            out = builder.emit_output(h)
        builder.emit_func_output(out)
    lifted = relax.transform.LiftTransformParams(shared_transform=shared)(builder.get())
    name = "transform_params" if shared else "main_transform_params"
    run_both(lifted, rewritten(lifted), name=name)


# -- memory ---------------------------------------------------------------------------------


@needs_clear_refs
@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("breadth_first", [False, True])
def test_one_to_one_holds_one_temporary(pipeline, breadth_first):
    assert in_fresh_process(extra_weights, pipeline, "straight", breadth_first, True) <= 1.06


@needs_clear_refs
@pytest.mark.parametrize("order", ORDERS)
def test_one_to_one_holds_one_temporary_wherever_it_goes(order):
    assert in_fresh_process(extra_weights, "compile", order, False, True) <= 1.06


@needs_clear_refs
def test_the_measurement_sees_a_second_copy():
    assert in_fresh_process(extra_weights, "compile", "straight", True, False) > 3.5


@needs_clear_refs
@pytest.mark.parametrize("pipeline", sorted(set(PIPELINES) - {"passes first"}))
def test_temporaries_do_not_stay(pipeline):
    """Not "passes first", which makes one kernel of four operations, with their results inside."""
    assert in_fresh_process(temporaries_of_two_sizes, pipeline) <= 18


# -- many weights -----------------------------------------------------------------------------


def many(count):
    ty = relax.TensorType((2, 3), "float32")
    params = relax.Var("params", relax.TupleType([ty] * count))
    builder = relax.BlockBuilder()
    with builder.function("transform_params", [params]):
        with builder.dataflow():
            fields = [builder.emit(relax.TupleGetItem(params, i)) for i in range(count)]
            new = [builder.emit(relax.op.permute_dims(field)) for field in fields]
            out = builder.emit_output(relax.Tuple(new))
        builder.emit_func_output(out)
    return builder.get()


def updates_in(mod):
    (block,) = mod["inplace_transform_params"].body.blocks
    return [b for b in block.bindings if is_update(b.value)]


def test_a_long_chain_is_written_as_statements():
    """The types of a chain take memory with the square of its length: 1.6 GB for 10,000."""
    short, long = updates_in(rewritten(many(8))), updates_in(rewritten(many(1000)))
    assert not any(is_statement(update.var) for update in short)
    assert all(is_statement(update.var) for update in long[:-1])
    assert len(long[-1].var.ty.fields) == 1000
    run_both(many(1000), rewritten(many(1000)))


# -- refusals -------------------------------------------------------------------------------

REFUSED = {
    "no weights": ("", "return (R.const(1.0),)", "takes no weights"),
    "no tuple out": (
        "params: R.Tuple(R.Tensor((4,), 'float32'))",
        "return params[0]",
        "returns no tuple",
    ),
    "recursion": (
        "params: R.Tuple(R.Tensor((4,), 'float32'))",
        """
        a: R.Tuple(R.Tensor((4,), "float32")) = Module.transform_params(params)
        return a
        """,
        "the binding of `a` is recursive: transform_params -> transform_params",
    ),
    "a cast of the whole tuple": (
        "params: R.Tuple(R.Tensor((4,), 'float32'))",
        """
        p = R.match_cast(params, R.Tuple(R.Tensor((4,), "float32")))
        return (p[0],)
        """,
        "the binding of `p` casts the tuple of weights as a whole",
    ),
}
LEADING = "x: R.Tensor((4,), 'float32'), params: R.Tuple(R.Tensor((4,), 'float32'))"
NOT_ITS_OWN = {
    "overwriting an input": (
        """
        a = R.call_inplace_packed("f", x, inplace_indices=[0], ty_args=R.Tensor((4,), "float32"))
        return (a,)
        """,
        "overwrites `x`, which is not to be modified",
    ),
    "a view of an input": (
        """
        a = R.memory.view(x, R.shape([2, 2]))
        return (a,)
        """,
        "output 0, `a`, lies in the buffer of `x`",
    ),
}


def refused(function):
    return from_source(f"@I.ir_module\nclass Module:\n{function}")


@pytest.mark.parametrize("name", NOT_ITS_OWN)
def test_what_is_not_its_own_is_refused(name):
    body, reason = NOT_ITS_OWN[name]
    body = textwrap.indent(textwrap.dedent(body), " " * 8)
    mod = refused(
        f"    @R.function\n    def transform_params({LEADING}):\n"
        f"        R.func_attr({{'num_input': 1}})\n{body}"
    )
    with pytest.raises(UnsupportedTransformError, match=reason):
        InplaceTransformParams()(mod)


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    parameters, body, reason = REFUSED[name]
    body = textwrap.indent(textwrap.dedent(body), " " * 8)
    returns = ' -> R.Tuple(R.Tensor((4,), "float32"))' if name == "recursion" else ""
    mod = refused(f"    @R.function\n    def transform_params({parameters}){returns}:\n{body}")
    with pytest.raises(UnsupportedTransformError, match=reason) as error:
        InplaceTransformParams()(mod)
    assert error.value.function == "transform_params"
    assert "\n" not in str(error.value)


def test_refused_when_another_function_calls_it():
    @I.ir_module
    class Called:
        @R.function
        def transform_params(
            params: R.Tuple(R.Tensor((4,), "float32")),
        ) -> R.Tuple(R.Tensor((4,), "float32")):
            a = R.exp(params[0])
            return (a,)

        @R.function
        def main(params: R.Tuple(R.Tensor((4,), "float32"))) -> R.Tensor((4,), "float32"):
            cls = Called
            new = cls.transform_params(params)
            a = new[0]
            return a

    with pytest.raises(UnsupportedTransformError, match="`main` calls it"):
        InplaceTransformParams()(Called)


def test_a_transform_that_another_one_calls():
    @I.ir_module
    class Chained:
        @R.function
        def transform_params(
            params: R.Tuple(R.Tensor((4,), "float32")),
        ) -> R.Tuple(R.Tensor((4,), "float32")):
            a = R.exp(params[0])
            return (a,)

        @R.function
        def draft_transform_params(
            params: R.Tuple(R.Tensor((4,), "float32")),
        ) -> R.Tuple(R.Tensor((4,), "float32")):
            cls = Chained
            new: R.Tuple(R.Tensor((4,), "float32")) = cls.transform_params(params)
            a = R.negative(new[0])
            return (a,)

    after = rewritten(Chained)
    assert names(after) == {"inplace_transform_params", "draft_inplace_transform_params"}
    for name in ("transform_params", "draft_transform_params"):
        run_both(Chained, after, name=name)


def test_not_strict_leaves_a_function_as_it_was():
    mod = tvm.IRModule(
        {
            "transform_params": OneToOne["transform_params"],
            "main_transform_params": Several["main"].with_attr(
                "global_symbol", "main_transform_params"
            ),
        }
    )
    reason = "`main_transform_params` cannot be .* returns no tuple.*; it stays as it was"
    with pytest.warns(UserWarning, match=reason):
        after = rewritten(mod, strict=False)
    assert names(after) == {"inplace_transform_params", "main_transform_params"}
    assert after["main_transform_params"].same_as(mod["main_transform_params"])


@pytest.mark.parametrize("params", [["w7"], [3], [-4], [True], ["w0", 1.5]])
def test_params_that_are_not_there(params):
    reason = "transform_params. cannot be .* it has no weight .* indices below 3, or names among"
    with pytest.raises(UnsupportedTransformError, match=reason):
        InplaceTransformParams(params=params)(Shared)


def test_refused_when_the_name_is_taken():
    both = tvm.IRModule(
        {
            "transform_params": OneToOne["transform_params"],
            "inplace_transform_params": OneToOneAfter["inplace_transform_params"],
        }
    )
    with pytest.raises(UnsupportedTransformError, match="has a `inplace_transform_params` already"):
        InplaceTransformParams()(both)


def test_a_function_that_is_not_there():
    with pytest.raises(ValueError, match=r"no Relax function `foo`; it has \['transform_params'\]"):
        InplaceTransformParams(functions="foo")(OneToOne)


def test_a_refusal_leaves_the_module_as_it_was():
    mod = tvm.IRModule(
        {
            "a_transform_params": OneToOne["transform_params"].with_attr(
                "global_symbol", "a_transform_params"
            ),
            "b_transform_params": Several["main"].with_attr("global_symbol", "b_transform_params"),
        }
    )
    copy = mod.clone()
    with pytest.raises(UnsupportedTransformError):
        InplaceTransformParams()(mod)
    tvm.ir.assert_structural_equal(mod, copy)
