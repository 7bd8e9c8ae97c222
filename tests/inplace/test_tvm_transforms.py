"""Every shape of transform in TVM's own tests, in place: the same bits, and the peak as planned.

The tests are those of tests/python/relax in TVM's sources, the modules here are our own. "stock
fails" is a transform that stock TVM does not compile out of place, "stock refuses" one that its own
pass refuses to make; both are asserted.

| TVM's test | here |
| --- | --- |
| test_transform_lift_transform_params.py | |
| test_basic, consume_params on and off | one kernel |
| test_tuple | tuples of a weight: one weight, two outputs |
| test_condition | a branch |
| test_multiple_functions | several models: a transform each |
| test_share_identical_transform_across_multiple_functions, | |
| test_share_transforms_with_different_binding_order | agreeing models |
| test_incompatible_{weights,shape,dtype}_in_shared_transform_raises_error | stock refuses |
| test_share_transform_..._has_intersection_of_transforms, | |
| test_share_transform_across_specified_functions | partly agreeing models |
| test_share_transforms_resulting_in_identical_functions | identical models |
| test_share_transform_with_unused_parameter | an unused weight |
| test_share_transform_with_no_shared_preprocessing (xfail) | nothing shared: TVM lifts nothing |
| test_stop_lifting | stop_lift_params |
| test_symbolic_var_1, test_symbolic_var_2 | no weights; no weights, a kernel |
| test_symbolic_var_from_shape | a shape; lazy: a shape, handed on |
| test_symbolic_var_in_param_shape | symbolic weights |
| test_symbolic_var_defined_in_params_but_used_in_weights (xfail) | stock fails |
| test_only_lift_when_variable_uses_constants | a constant tensor |
| test_lift_transform_is_idempotent | low rank, once and twice |
| test_lift_transform_when_one_already_exists | a transform exists |
| test_lift_transform_with_primitive_param_used_by_model_tensor | stock fails: a number, lifted |
| test_transform_lazy_transform_params.py | |
| test_lazy_transform_params | lazy: a kernel and a move |
| test_get_item_only, test_extra_{get,set}_item_params | lazy: a kernel and an op |
| test_extra_set_item_params_with_const_output | lazy: constants |
| test_lazy_transform_params_with_symbolic_vars | lazy: a shape |
| test_param_shape_symbolic | lazy: a symbolic kernel |
| test_output_with_use_site | lazy: an output is used |
| test_output | lazy: a symbolic op |
| test_duplicate_outputs | lazy: duplicates |
| test_params_without_tuple, test_get_item_callback, | |
| test_set_output_callback_of_param | separate weights |
| test_params_without_tuple_with_symbolic_var | a weight of any type |
| test_get_item_callback_dynamic_shape | separate symbolic weights |
| test_set_output_callback | an output made from another |
| test_set_output_callback_num_input | an input first |
| test_set_output_callback_with_duplicate_output | one output twice |
| test_set_output_callback_with_inline_const | constants among outputs |
| test_set_output_callback_with_non_tuple_output | refused: it returns no tuple |
| test_transform_bundle_model_params.py: models, here as transforms | |
| test_basic, test_variable_names, test_bundled_param_name | a chain |
| test_no_model_params | inputs only |
| test_dataflow | a chain in dataflow |
| test_nested_function_preserves_outer_rewrite_context | a function inside |
| test_bundled_tensor_preserves_retained_shape_dependency | stock fails: a shape variable |
| test_primitive_model_param_is_materialized_outside_if_branches | a number and a branch; bundled: stock fails |
| test_primitive_model_param_remains_linked_to_dependent_tensor | stock fails: a number and a weight |
| elsewhere | |
| test_frontend_nn_exporter.py | concatenated weights |
| test_transform_split_layout_rewrite_preproc.py | a packed weight |
| test_transform_canonicalize_bindings.py | second names of a tuple |
| test_transform_rewrite_cuda_graph.py, test_backend_transform_shape_lower.py | hands on |
| disco/test_callback.py | a function that loads |
| test_vm_multi_device.py | two devices; a hint |
"""

import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tvm
import tvm_ffi
from pipelines import IS_FUSED, load
from transforms import NUMBER, SIZES, assert_bitwise, check_slots, run_both
from tvm import relax
from tvm.script import from_source
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from relax_inplace.analysis import UnsupportedTransformError, plan_memory
from relax_inplace.transform import InplaceTransformParams

NAME = "transform_params"
BUNDLE = relax.transform.BundleModelParams()
PREPACK = relax.transform.SplitLayoutRewritePreproc()
LAMBDA_LIFT = relax.transform.LambdaLift()


def lifted(mod, shared_transform=False, consume_params=False):
    config = {"relax.lift_transform_params.consume_params": consume_params}
    with tvm.transform.PassContext(config=config):
        return relax.transform.LiftTransformParams(shared_transform=shared_transform)(mod)


# -- LiftTransformParams ----------------------------------------------------------------------


@I.ir_module(s_tir=True)
class OneKernel:
    @T.prim_func(s_tir=True)
    def swap_axes(a: T.Buffer((2, 5, 3), "float32"), out: T.Buffer((5, 2, 3), "float32")):
        for i, j, k in T.grid(5, 2, 3):
            with T.sblock("swap"):
                x, y, z = T.axis.remap("SSS", [i, j, k])
                out[x, y, z] = a[y, x, z]

    @R.function
    def main(
        x: R.Tensor((5, 2, 3), "float32"),
        w1: R.Tensor((2, 5, 3), "float32"),
        w2: R.Tensor((4, 2, 3), "float32"),
    ):
        R.func_attr({"num_input": 1})
        cls = OneKernel
        with R.dataflow():
            w1_t = R.call_tir(cls.swap_axes, w1, R.Tensor((5, 2, 3), "float32"))
            y = R.multiply(x, w1_t)
            out = R.concat((y, w2), axis=0)
            R.output(out)
        return out


@I.ir_module
class TuplesOfAWeight:
    @R.function
    def main(x: R.Tensor((3, 6), "float32"), w: R.Tensor((6, 6), "float32")):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            inner = (w,)
            outer = (inner, inner)
            again = outer[1]
            v = again[0]
            y = R.matmul(R.matmul(x, v), w)
            R.output(y)
        return y


@I.ir_module
class ABranch:
    """LiftTransformParams lifts no branch: the transform hands every weight on, a bool too."""

    @R.function
    def main(
        x: R.Tensor((3, 6), "float32"),
        a: R.Tensor((6, 2), "float32"),
        b: R.Tensor((6, 2), "float32"),
        which: R.Tensor((), "bool"),
    ):
        R.func_attr({"num_input": 1})
        if which:  # noqa: SIM108  TVMScript has no such expression
            w = b
        else:
            w = a
        y = R.matmul(x, w)
        return y


@I.ir_module
class SeveralModels:
    @R.function
    def encode(x: R.Tensor((2, 8), "float32"), w: R.Tensor((8, 4), "float32")):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            scaled = R.multiply(w, R.const(0.5, "float32"))
            y = R.matmul(x, scaled)
            R.output(y)
        return y

    @R.function
    def decode(x: R.Tensor((2, 8), "float32"), w: R.Tensor((4, 8), "float32")):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            w_t = R.permute_dims(w)
            y = R.matmul(x, w_t)
            R.output(y)
        return y

    @R.function
    def without_weights(x: R.Tensor((2, 8), "float32"), w: R.Tensor((4, 8), "float32")):
        with R.dataflow():
            w_t = R.permute_dims(w)
            y = R.matmul(x, w_t)
            R.output(y)
        return y


def of_two_weights(private="", **bodies):
    """A module of functions of an input and two weights, each 4 x 4; a body ends in ``y``."""
    ty = 'R.Tensor((4, 4), "float32")'
    parts = ["@I.ir_module", "class Module:", textwrap.indent(private, "    ")]
    for name, body in bodies.items():
        parts += [
            "    @R.function",
            f"    def {name}(x: {ty}, w1: {ty}, w2: {ty}):",
            '        R.func_attr({"num_input": 1})',
            "        with R.dataflow():",
            *(f"            {line.strip()}" for line in body.strip().splitlines()),
            "            R.output(y)",
            "        return y",
        ]
    return from_source("\n".join(parts))


# Both compute the same two values, in another order.
AGREEING_MODELS = of_two_weights(
    decode="""
        b = R.exp(w2)
        a = R.permute_dims(w1)
        y = R.subtract(R.matmul(x, a), R.matmul(x, b))
    """,
    encode="""
        a = R.permute_dims(w1)
        b = R.exp(w2)
        y = R.add(R.matmul(x, a), R.matmul(x, b))
    """,
)

# `decode` hides what it does with w2 in a function; `embed` uses w1 only, and as it is.
PARTLY_AGREEING_MODELS = of_two_weights(
    private="""
@R.function(private=True)
def negative_matmul(
    x: R.Tensor((4, 4), "float32"), w: R.Tensor((4, 4), "float32")
) -> R.Tensor((4, 4), "float32"):
    with R.dataflow():
        y = R.matmul(x, R.negative(w))
        R.output(y)
    return y
""",
    encode="""
        y1 = R.matmul(x, R.negative(w1))
        y2 = R.matmul(x, R.negative(w2))
        y = R.add(y1, y2)
    """,
    decode="""
        y1 = R.matmul(x, R.negative(w1))
        y2 = Module.negative_matmul(x, w2)
        y = R.subtract(y1, y2)
    """,
    embed="y = Module.negative_matmul(x, w1)",
)

UNUSED_WEIGHT = of_two_weights(
    encode="y = R.matmul(R.matmul(x, R.exp(w1)), R.exp(w2))", embed="y = R.matmul(x, R.exp(w1))"
)

NOTHING_SHARED = of_two_weights(
    left="y = R.matmul(x, R.exp(w2))", right="y = R.matmul(x, R.exp(w1))"
)


@I.ir_module
class IdenticalModels:
    @R.function
    def decode(x: R.Tensor((4, 4), "float32"), w: R.Tensor((4, 4), "float32")):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            y = R.matmul(x, R.permute_dims(w))
            R.output(y)
        return y

    @R.function
    def encode(x: R.Tensor((4, 4), "float32"), w: R.Tensor((4, 4), "float32")):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            y = R.matmul(x, R.permute_dims(w))
            R.output(y)
        return y


@I.ir_module
class StopLifting:
    @R.function
    def main(x: R.Tensor((3, 6), "float32"), w: R.Tensor((2, 6), "float32")):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            w_t = R.permute_dims(w)
            stopped = R.builtin.stop_lift_params(w_t)
            y = R.matmul(x, R.exp(stopped))
            R.output(y)
        return y


@I.ir_module
class NoWeights:
    @R.function
    def main(size: R.Shape(["n"])):
        R.func_attr({"num_input": 1})
        n = T.int64()
        with R.dataflow():
            unused = R.zeros((n, 2), "float32")
            R.output()
        return size


@I.ir_module(s_tir=True)
class NoWeightsAndAKernel:
    @T.prim_func(s_tir=True)
    def fill(out: T.handle):
        n = T.int64()
        filled = T.match_buffer(out, (n, 2), "float32")
        for i, j in T.grid(n, 2):
            with T.sblock("fill"):
                vi, vj = T.axis.remap("SS", [i, j])
                filled[vi, vj] = T.float32(3)

    @R.function
    def main(size: R.Shape(["n"])):
        R.func_attr({"num_input": 1})
        n = T.int64()
        cls = NoWeightsAndAKernel
        with R.dataflow():
            unused = R.call_tir(cls.fill, R.tuple(), out_ty=R.Tensor((n, 2), "float32"))
            R.output()
        return size


@I.ir_module(s_tir=True)
class AShapeAmongTheWeights:
    """The kernel takes a number that only a shape parameter defines."""

    @R.function
    def main(
        x: R.Tensor((6,), "int32"),
        w: R.Tensor((9, 6), "int32"),
        at: R.Shape(["row"]),
    ):
        R.func_attr({"num_input": 1})
        row = T.int64()
        cls = AShapeAmongTheWeights
        with R.dataflow():
            picked = R.call_tir(cls.pick, [w, row], out_ty=R.Tensor((6,), "int32"))
            y = R.add(x, picked)
            R.output(y)
        return y

    @T.prim_func(private=True, s_tir=True)
    def pick(a: T.Buffer((9, 6), "int32"), row: T.int64, out: T.Buffer((6,), "int32")):
        for i in range(6):
            with T.sblock("pick"):
                vi = T.axis.remap("S", [i])
                out[vi] = a[row, vi]


@I.ir_module
class SymbolicWeights:
    @R.function
    def main(
        x: R.Tensor((4, "b"), "float32"),
        w1: R.Tensor(("n", 4), "float32"),
        w2: R.Tensor(("n", 4), "float32"),
    ):
        R.func_attr({"num_input": 1})
        b = T.int64()
        n = T.int64()
        with R.dataflow():
            unused = R.zeros((b, b), "float32")
            w3 = R.multiply(w1, R.const(3, "float32"))
            y = R.add(R.matmul(w3, x), R.matmul(w2, x))
            R.output(y)
        return y


@I.ir_module
class SymbolsOfTheInput:
    """The weight's dimension is a product of symbols that only the input defines."""

    @R.function
    def main(x: R.Tensor(("n", "m"), "float32"), w: R.Tensor(("n * m",), "float32")):
        R.func_attr({"num_input": 1})
        n = T.int64()
        m = T.int64()
        with R.dataflow():
            w1 = R.exp(w)
            w2 = R.reshape(w1, (n, m))
            y = R.multiply(x, w2)
            R.output(y)
        return y


@I.ir_module
class AConstantTensor:
    @R.function
    def main(x: R.Tensor((8,), "int32"), w: R.Tensor((8,), "int32")):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            two = R.full((8,), R.const(2, "int32"), "int32")
            y = R.multiply(R.add(x, two), R.add(w, two))
            R.output(y)
        return y


@I.ir_module
class LowRank:
    """Weights with a symbolic rank. Outside a dataflow block nothing is lifted."""

    @R.function
    def main(
        x: R.Tensor(("b", 8), "float32"),
        base: R.Tensor((8, 6), "float32"),
        left: R.Tensor((8, "n"), "float32"),
        right: R.Tensor(("n", 6), "float32"),
    ):
        R.func_attr({"num_input": 1})
        folded = R.subtract(base, R.matmul(left, right))
        y = R.matmul(x, folded)
        return y


@I.ir_module
class LowRankInDataflow:
    @R.function
    def main(
        x: R.Tensor(("b", 8), "float32"),
        base: R.Tensor((8, 6), "float32"),
        left: R.Tensor((8, "n"), "float32"),
        right: R.Tensor(("n", 6), "float32"),
    ):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            folded = R.subtract(base, R.matmul(left, right))
            y = R.matmul(x, folded)
            R.output(y)
        return y


@I.ir_module
class TransformExists:
    """`main_transform_params` is there already: the lift composes the two."""

    @R.function
    def main(
        x: R.Tensor((2, 6), "float32"),
        a: R.Tensor((6, 4), "float32"),
        b: R.Tensor((6, 4), "float32"),
    ):
        R.func_attr({"num_input": 1})
        y = R.matmul(x, R.add(a, b))
        return y

    @R.function
    def main_transform_params(
        given: R.Tuple(R.Tensor((4, 6), "float32"), R.Tensor((6, 4), "float32")),
    ):
        R.func_attr({"num_input": 0})
        a = R.permute_dims(given[0])
        b = given[1]
        return (a, b)


@I.ir_module
class PrimAmongTheWeights:
    """A number that is a weight, and the length of another one."""

    @R.function
    def main(
        x: R.Tensor(dtype="float32", ndim=1),
        length: R.Prim("int64"),
        w: R.Tensor(("length",), "float32"),
    ):
        R.func_attr({"num_input": 1})
        w2 = R.exp(w)
        y = R.subtract(x, w2)
        return y


@I.ir_module
class ConcatenatedWeights:
    @R.function
    def forward(
        x: R.Tensor(("b", 6), "float16"),
        gate: R.Tensor((4, 6), "float16"),
        up: R.Tensor((4, 6), "float16"),
        down: R.Tensor((6, 4), "float16"),
    ):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            both = R.permute_dims(R.concat((gate, up), axis=0))
            h = R.split(R.matmul(x, both), 2, axis=-1)
            y = R.matmul(R.multiply(h[0], h[1]), R.permute_dims(down))
            R.output(y)
        return y


@I.ir_module(s_tir=True)
class PackedWeights:
    """SplitLayoutRewritePreproc makes a kernel of the part that packs the weight."""

    @T.prim_func(private=True, s_tir=True)
    def add_packed(
        a: T.Buffer((8, 8), "float32"),
        w: T.Buffer((8, 8), "float32"),
        out: T.Buffer((8, 8), "float32"),
    ):
        T.func_attr({"layout_free_buffers": [1]})
        packed = T.sblock_alloc_buffer((2, 8, 4))
        for i, j in T.grid(8, 8):
            with T.sblock("pack"):
                x, y = T.axis.remap("SS", [i, j])
                T.sblock_attr({"meta_schedule.layout_rewrite_preproc": True})
                packed[x // 4, y, x % 4] = w[x, y]
        for i, j in T.grid(8, 8):
            with T.sblock("add"):
                x, y = T.axis.remap("SS", [i, j])
                out[x, y] = a[x, y] + packed[x // 4, y, x % 4]

    @R.function
    def forward(x: R.Tensor((8, 8), "float32"), w: R.Tensor((8, 8), "float32")):
        R.func_attr({"num_input": 1})
        cls = PackedWeights
        with R.dataflow():
            y = R.call_tir(cls.add_packed, (x, w), out_ty=R.Tensor((8, 8), "float32"))
            R.output(y)
        return y


# -- LazyTransformParams, LazyGetInput, LazySetOutput -------------------------------------------


@I.ir_module(s_tir=True)
class LazySwap:
    @T.prim_func(s_tir=True)
    def swap_axes(a: T.Buffer((2, 5, 3), "float32"), out: T.Buffer((5, 2, 3), "float32")):
        for i, j, k in T.grid(5, 2, 3):
            with T.sblock("swap"):
                x, y, z = T.axis.remap("SSS", [i, j, k])
                out[x, y, z] = a[y, x, z]

    @R.function
    def main_transform_params(
        params: R.Tuple(R.Tensor((2, 5, 3), "float32"), R.Tensor((4, 7), "float32")),
    ) -> R.Tuple(R.Tensor((4, 7), "float32"), R.Tensor((5, 2, 3), "float32")):
        R.func_attr({"relax.force_pure": True})
        cls = LazySwap
        kept = params[1]
        w = params[0]
        w_t = R.call_tir(cls.swap_axes, (w,), out_ty=R.Tensor((5, 2, 3), "float32"))
        out = (kept, w_t)
        return out


@I.ir_module(s_tir=True)
class LazyKernelAndOp:
    # TVM's FuseTIR refuses a buffer of int32 dimensions where an op follows that has int64 ones.
    @T.prim_func(s_tir=True)
    def swap_axes(
        a: T.Buffer((T.int64(2), T.int64(5), T.int64(3)), "float32"),
        out: T.Buffer((T.int64(5), T.int64(2), T.int64(3)), "float32"),
    ):
        for i, j, k in T.grid(T.int64(5), T.int64(2), T.int64(3)):
            with T.sblock("swap"):
                x, y, z = T.axis.remap("SSS", [i, j, k])
                out[x, y, z] = a[y, x, z]

    @R.function
    def main_transform_params(
        params: R.Tuple(R.Tensor((2, 5, 3), "float32"), R.Tensor((4, 7), "float32")),
    ) -> R.Tuple(R.Tensor((4, 7), "float32"), R.Tensor((5, 2, 3), "float32")):
        R.func_attr({"relax.force_pure": True})
        cls = LazyKernelAndOp
        kept = params[1]
        w = params[0]
        w_t = R.call_tir(cls.swap_axes, (w,), out_ty=R.Tensor((5, 2, 3), "float32"))
        scaled = R.multiply(w_t, R.const(2, "float32"))
        out = (kept, scaled)
        return out


@I.ir_module
class LazyConstants:
    @R.function
    def main_transform_params(params: R.Tuple()):
        R.func_attr({"relax.force_pure": True})
        out = (R.const([5.0, 6.0], "float32"), R.const([[7.0]], "float32"))
        return out


@I.ir_module(s_tir=True)
class LazyShape:
    @R.function
    def main_transform_params(
        params: R.Tuple(R.Tensor((9, 6), "float32"), R.Shape(["row"])),
    ):
        R.func_attr({"relax.force_pure": True})
        row = T.int64()
        cls = LazyShape
        w = params[0]
        picked = R.call_tir(cls.pick, (w, row), out_ty=R.Tensor((6,), "float32"))
        out = (picked,)
        return out

    @T.prim_func(private=True, s_tir=True)
    def pick(a: T.Buffer((9, 6), "float32"), row: T.int64, out: T.Buffer((6,), "float32")):
        for i in range(6):
            with T.sblock("pick"):
                vi = T.axis.remap("S", [i])
                out[vi] = a[row, vi]


@I.ir_module
class ShapeOutput:
    """LiftTransformParams hands a shape on this way."""

    @R.function
    def main_transform_params(
        params: R.Tuple(R.Tensor((6,), "float32"), R.Shape(["row"])),
    ):
        R.func_attr({"num_input": 0})
        row = T.int64()
        with R.dataflow():
            w = params[0]
            a = R.exp(w)
            out = (R.shape([row]), a)
            R.output(out)
        return out


@I.ir_module(s_tir=True)
class LazySymbolicKernel:
    @T.prim_func(s_tir=True)
    def swap_axes(given: T.handle, made: T.handle):
        n = T.int64()
        a = T.match_buffer(given, (3, n, 2), "float32")
        out = T.match_buffer(made, (n, 3, 2), "float32")
        for i, j, k in T.grid(n, 3, 2):
            with T.sblock("swap"):
                x, y, z = T.axis.remap("SSS", [i, j, k])
                out[x, y, z] = a[y, x, z]

    @R.function
    def main_transform_params(
        params: R.Tuple(R.Tensor((3, "n", 2), "float32"), R.Tensor((4, 7), "float32")),
    ) -> R.Tuple(R.Tensor((4, 7), "float32"), R.Tensor(("n", 3, 2), "float32")):
        n = T.int64()
        R.func_attr({"relax.force_pure": True})
        cls = LazySymbolicKernel
        kept = params[1]
        w = params[0]
        w_t = R.call_tir(cls.swap_axes, (w,), out_ty=R.Tensor((n, 3, 2), "float32"))
        out = (kept, w_t)
        return out


@I.ir_module
class LazySymbolicOp:
    @R.function
    def transform_params(
        params: R.Tuple(R.Tensor((3, "n", 2), "float32"), R.Tensor((4, 7), "float32")),
    ) -> R.Tuple(R.Tensor(("n", 3, 2), "float32"), R.Tensor((4, 7), "float32")):
        R.func_attr({"relax.force_pure": True})
        a = params[0]
        b = params[1]
        a_t = R.permute_dims(a, [1, 0, 2])
        out = (a_t, b)
        return out


@I.ir_module(s_tir=True)
class LazyOutputIsUsed:
    @T.prim_func(s_tir=True)
    def double(x: T.Buffer((), "float32"), y: T.Buffer((), "float32")):
        with T.sblock("double"):
            y[()] = x[()] * T.float32(2)

    @R.function
    def main_transform_params(params: R.Tuple(R.Tensor((), "float32"))):
        R.func_attr({"relax.force_pure": True})
        cls = LazyOutputIsUsed
        w = params[0]
        a = R.call_tir(cls.double, (w,), out_ty=R.Tensor((), "float32"))
        b = R.call_tir(cls.double, (a,), out_ty=R.Tensor((), "float32"))
        out = (a, b)
        return out


@I.ir_module
class LazyDuplicates:
    @R.function
    def main_transform_params(
        params: R.Tuple(R.Tensor((8,), "int32"), R.Tensor((8,), "int32")),
    ):
        R.func_attr({"relax.force_pure": True})
        w0 = params[0]
        w1 = params[1]
        a = R.multiply(w0, R.const(3, "int32"))
        b = R.subtract(w1, R.const(4, "int32"))
        out = (b, a, b)
        return out


@I.ir_module
class SeparateWeights:
    @R.function
    def transform_params(a: R.Tensor((4, 6), "float32"), b: R.Tensor((4, 6), "float32")):
        c = R.exp(a)
        d = R.subtract(c, b)
        return (d, b)


@I.ir_module
class AnyWeight:
    @R.function
    def transform_params(a: R.Any):
        return (a,)


@I.ir_module
class SeparateSymbolicWeights:
    @R.function
    def transform_params(
        a: R.Tensor(("n", "m"), "float32"), b: R.Tensor(("n", "m"), "float32")
    ) -> R.Tuple(R.Tensor(("n", "m"), "float32"), R.Tensor(("n", "m"), "float32")):
        c = R.exp(a)
        d = R.subtract(c, b)
        return (d, b)


@I.ir_module
class OutputMadeFromAnOutput:
    @R.function
    def transform_params(a: R.Tensor((4, 6), "float32"), b: R.Tensor((4, 6), "float32")):
        c = R.exp(a)
        d = R.subtract(c, b)
        return (d, c)


@I.ir_module
class AnInputFirst:
    @R.function
    def transform_params(a: R.Tensor((4, 6), "float32"), b: R.Tensor((4, 6), "float32")):
        R.func_attr({"num_input": 1})
        c = R.exp(a)
        d = R.subtract(c, b)
        return (d, b)


@I.ir_module
class OneOutputTwice:
    @R.function
    def transform_params(a: R.Tensor((4, 6), "float32"), b: R.Tensor((4, 6), "float32")):
        c = R.exp(a)
        d = R.subtract(c, b)
        return (d, d)


@I.ir_module
class ConstantsAmongOutputs:
    @R.function
    def transform_params(a: R.Tensor((4, 6), "float32"), b: R.Tensor((4, 6), "float32")):
        c = R.exp(a)
        d = R.subtract(c, b)
        return (c, d, R.prim_value(7), R.const(2.5, "float16"))


@I.ir_module
class NoTupleOut:
    @R.function
    def transform_params(a: R.Tensor((4, 6), "float32"), b: R.Tensor((4, 6), "float32")):
        c = R.exp(a)
        d = R.subtract(c, b)
        return d


# -- BundleModelParams --------------------------------------------------------------------------


@I.ir_module
class Chain:
    @R.function
    def main_transform_params(
        x: R.Tensor((6,), "float32"), a: R.Tensor((6,), "float32"), b: R.Tensor((6,), "float32")
    ):
        R.func_attr({"num_input": 1})
        h = x
        h = R.multiply(h, a)
        h = R.subtract(h, b)
        return (h, a)


@I.ir_module
class ChainInDataflow:
    @R.function
    def main_transform_params(
        x: R.Tensor((6,), "float32"), a: R.Tensor((6,), "float32"), b: R.Tensor((6,), "float32")
    ):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            h = x
            h = R.multiply(h, a)
            h = R.subtract(h, b)
            out = (h,)
            R.output(out)
        return out


@I.ir_module
class InputsOnly:
    @R.function
    def main_transform_params(x: R.Tensor((6,), "float32"), y: R.Tensor((6,), "float32")):
        R.func_attr({"num_input": 2})
        h = R.multiply(x, y)
        return (h,)


@I.ir_module
class AFunctionInside:
    @R.function
    def main_transform_params(x: R.Tensor((6,), "float32"), w: R.Tensor((6,), "float32")):
        R.func_attr({"num_input": 1})

        @R.function
        def inner(y: R.Tensor((6,), "float32"), v: R.Tensor((6,), "float32")) -> R.Tensor(
            (6,), "float32"
        ):
            R.func_attr({"num_input": 1})
            return R.multiply(y, v)

        h = R.subtract(x, w)
        return (h,)


@I.ir_module
class NumberAndBranch:
    @R.function
    def main_transform_params(
        which: R.Tensor((), "bool"),
        length: R.Prim("int64"),
        w: R.Tensor(("length",), "float32"),
    ):
        R.func_attr({"num_input": 1})
        if which:  # noqa: SIM108
            h = R.exp(w)
        else:
            h = R.negative(w)
        return (h,)


@I.ir_module
class NumberAndWeight:
    @R.function
    def main_transform_params(
        x: R.Tensor(dtype="float32", ndim=1),
        length: R.Prim("int64"),
        w: R.Tensor(("length",), "float32"),
    ):
        R.func_attr({"num_input": 1})
        h = R.subtract(x, w)
        return (h,)


def shape_variable():
    """A weight whose shape is a parameter before it."""
    x = relax.Var("x", relax.TensorType(dtype="float32", ndim=1))
    shape = relax.Var("shape", relax.ShapeType(ndim=1))
    weight = relax.Var("w", relax.TensorType(shape, "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main_transform_params", [x, shape, weight], attrs={"num_input": 2}):
        with builder.dataflow():
            h = builder.emit(relax.op.subtract(x, weight))
            out = builder.emit_output(relax.Tuple([h]))
        builder.emit_func_output(out)
    return builder.get()


# -- others that use transforms -----------------------------------------------------------------


@I.ir_module
class SecondNamesOfATuple:
    @R.function
    def transform_params(a: R.Tensor(("n", 6), "float16"), b: R.Tensor((8, 6), "float16")):
        with R.dataflow():
            c = b
            both: R.Tuple(R.Tensor(dtype="float16", ndim=2), R.Tensor((8, 6), "float16")) = (a, c)
            out = both
            R.output(out)
        return out


@I.ir_module
class HandsOn:
    @R.function
    def main_transform_params(
        params: R.Tuple(R.Tensor((4, 6), "float16"), R.Tensor((6,), "float16")),
    ):
        R.func_attr({"relax.force_pure": True})
        a = params[0]
        b = params[1]
        out = (a, b)
        return out


@I.ir_module
class NoOutputs:
    @R.function
    def transform_params(params: R.Tuple(R.Tensor((4, 6), "float32"), R.Tensor((6,), "float32"))):
        a = R.exp(params[0])
        return R.tuple()


@I.ir_module(s_tir=True)
class LoadsItself:
    """Its weights come from a function that it is given."""

    @R.function
    def transform_params(rank: R.Prim("int64"), fetch: R.Callable([R.Any, R.Prim("int64")], R.Any)):
        cls = LoadsItself
        a = fetch(R.str("a"), R.prim_value(0))
        a = R.match_cast(a, R.Tensor((4, 6), "int32"))
        a = R.call_tir(cls.half, (a, rank), out_ty=R.Tensor((2, 6), "int32"))
        return (a,)

    @T.prim_func(private=True, s_tir=True)
    def half(a: T.Buffer((4, 6), "int32"), rank: T.int64, out: T.Buffer((2, 6), "int32")):
        for i, j in T.grid(2, 6):
            with T.sblock("half"):
                x, y = T.axis.remap("SS", [i, j])
                out[x, y] = a[rank * 2 + x, y]


CASES = {
    "one kernel": lambda: lifted(OneKernel),
    "one kernel, consume_params": lambda: lifted(OneKernel, consume_params=True),
    "one kernel, consume_params, then dead code": lambda: relax.transform.DeadCodeElimination()(
        lifted(OneKernel, consume_params=True)
    ),
    "one kernel, lifted and bundled": lambda: BUNDLE(lifted(OneKernel)),
    "one kernel, consume_params, bundled": lambda: BUNDLE(lifted(OneKernel, consume_params=True)),
    "agreeing models, lifted and bundled": lambda: BUNDLE(lifted(AGREEING_MODELS, True)),
    "tuples of a weight": lambda: lifted(TuplesOfAWeight),
    "tuples of a weight, consume_params": lambda: lifted(TuplesOfAWeight, consume_params=True),
    "a branch": lambda: lifted(ABranch),
    "several models": lambda: lifted(SeveralModels),
    "several models, consume_params": lambda: lifted(SeveralModels, consume_params=True),
    "agreeing models": lambda: lifted(AGREEING_MODELS, True),
    "agreeing models, consume_params": lambda: lifted(AGREEING_MODELS, True, True),
    "identical models": lambda: lifted(IdenticalModels, True),
    "partly agreeing models": lambda: lifted(PARTLY_AGREEING_MODELS, ["encode", "decode"]),
    "models that do not agree": lambda: lifted(PARTLY_AGREEING_MODELS, True),
    "an unused weight": lambda: lifted(UNUSED_WEIGHT, True),
    "nothing shared": lambda: lifted(NOTHING_SHARED, True),
    "stop_lift_params": lambda: lifted(StopLifting),
    "no weights": lambda: lifted(NoWeights),
    "no weights, a kernel": lambda: lifted(NoWeightsAndAKernel),
    "a shape": lambda: lifted(AShapeAmongTheWeights),
    "a shape, consume_params": lambda: lifted(AShapeAmongTheWeights, consume_params=True),
    "symbolic weights": lambda: lifted(SymbolicWeights),
    "symbolic weights, shared": lambda: lifted(SymbolicWeights, True),
    "symbolic weights, consume_params": lambda: lifted(SymbolicWeights, consume_params=True),
    "a constant tensor": lambda: lifted(AConstantTensor),
    "low rank": lambda: lifted(LowRank),
    "low rank, shared": lambda: lifted(LowRank, True),
    "low rank, twice": lambda: lifted(lifted(LowRank)),
    "low rank, in dataflow": lambda: lifted(LowRankInDataflow),
    "low rank, in dataflow, shared": lambda: lifted(LowRankInDataflow, True),
    "low rank, in dataflow, twice": lambda: lifted(lifted(LowRankInDataflow)),
    "a transform exists": lambda: lifted(TransformExists),
    "concatenated weights": lambda: lifted(ConcatenatedWeights, True),
    "a packed weight": lambda: lifted(PREPACK(PackedWeights)),
    "lazy: a kernel and a move": lambda: LazySwap,
    "lazy: a kernel and an op": lambda: LazyKernelAndOp,
    "lazy: constants": lambda: LazyConstants,
    "lazy: a shape": lambda: LazyShape,
    "lazy: a shape, handed on": lambda: ShapeOutput,
    "lazy: a symbolic kernel": lambda: LazySymbolicKernel,
    "lazy: a symbolic op": lambda: LazySymbolicOp,
    "lazy: an output is used": lambda: LazyOutputIsUsed,
    "lazy: duplicates": lambda: LazyDuplicates,
    "separate weights": lambda: SeparateWeights,
    "separate weights, bundled": lambda: BUNDLE(SeparateWeights),
    "a weight of any type": lambda: AnyWeight,
    "separate symbolic weights": lambda: SeparateSymbolicWeights,
    "separate symbolic weights, bundled": lambda: BUNDLE(SeparateSymbolicWeights),
    "an output made from another": lambda: OutputMadeFromAnOutput,
    "an input first": lambda: AnInputFirst,
    "an input first, bundled": lambda: BUNDLE(AnInputFirst),
    "one output twice": lambda: OneOutputTwice,
    "constants among outputs": lambda: ConstantsAmongOutputs,
    "a chain": lambda: Chain,
    "a chain, bundled": lambda: BUNDLE(Chain),
    "a chain, bundled by name": lambda: relax.transform.BundleModelParams("weights")(Chain),
    "a chain in dataflow": lambda: ChainInDataflow,
    "a chain in dataflow, bundled": lambda: BUNDLE(ChainInDataflow),
    "inputs only, bundled": lambda: BUNDLE(InputsOnly),
    "a function inside": lambda: LAMBDA_LIFT(AFunctionInside),
    "a function inside, bundled": lambda: LAMBDA_LIFT(BUNDLE(AFunctionInside)),
    "a number and a branch": lambda: NumberAndBranch,
    "second names of a tuple": lambda: SecondNamesOfATuple,
    "hands on": lambda: HandsOn,
    "no outputs": lambda: NoOutputs,
}


def only_transforms(mod):
    """Without the models, of which some do not compile."""
    functions = {
        gvar: function
        for gvar, function in mod.functions_items()
        if not isinstance(function, relax.Function)
        or gvar.name_hint.endswith(NAME)
        or "global_symbol" not in function.attrs  # private
    }
    return tvm.IRModule(functions, attrs=mod.attrs, global_infos=mod.global_infos)


def transforms_of(mod):
    return [gvar for gvar in mod.get_global_vars() if gvar.name_hint.endswith(NAME)]


@pytest.mark.parametrize("pipeline", ["compile", "cpu default", "passes first"])
@pytest.mark.parametrize("name", CASES)
def test_in_place(name, pipeline):
    before = only_transforms(CASES[name]())
    after = InplaceTransformParams()(before)
    relax.analysis.well_formed(after)
    for gvar in transforms_of(before):
        run = run_both(before, after, pipeline, gvar.name_hint)
        check_slots(run)
        if IS_FUSED[pipeline] is not None and name != "a weight of any type":
            plan = plan_memory(
                before[gvar],
                before,
                fused=IS_FUSED[pipeline],
                tir_var_upper_bound={**SIZES, "length": NUMBER},
            )
            assert run.peak == plan.peak


def test_several_transforms_in_one_module():
    after = InplaceTransformParams()(lifted(SeveralModels))
    assert {gvar.name_hint for gvar in transforms_of(after)} == {
        "decode_inplace_transform_params",
        "encode_inplace_transform_params",
    }
    assert InplaceTransformParams()(after).same_as(after)


@pytest.mark.parametrize("consume_params", [False, True])
def test_private_transforms(consume_params):
    public = only_transforms(lifted(SeveralModels, consume_params=consume_params))
    private = tvm.IRModule(
        {gvar: public[gvar].without_attr("global_symbol") for gvar in transforms_of(public)}
    )
    after = InplaceTransformParams()(private)
    for gvar in transforms_of(public):
        check_slots(run_both(public, after, name=gvar.name_hint))


@pytest.mark.parametrize("consume_params", [False, True])
@pytest.mark.parametrize(
    ("model", "shared", "outputs"),
    [
        (OneKernel, False, [(2, 5, 3), (4, 2, 3)]),
        (PARTLY_AGREEING_MODELS, ["encode", "decode"], [(4, 4), (4, 4)]),
        (ConcatenatedWeights, True, [(4, 6), (4, 6), (6, 4)]),
    ],
)
def test_the_bundled_model_takes_the_result(model, shared, outputs, consume_params):
    """Lifted, then bundled: the tuple that the transform returns is the model's argument.

    BundleModelParams bundles what the transform takes once more: its `num_input` is 0.
    """
    before = BUNDLE(lifted(model, shared, consume_params))
    after = InplaceTransformParams()(before)
    (transform,) = (gvar.name_hint for gvar in transforms_of(before))
    random = np.random.default_rng(0)
    dtype = "float16" if model is ConcatenatedWeights else "float32"
    weights = [random.random(shape).astype(dtype) for shape in outputs]
    original, inplace = load(before), load(after)

    def passed():
        return tvm_ffi.Array([tvm_ffi.Array([tvm.runtime.tensor(w) for w in weights])])

    new = original[transform](passed())
    own = inplace[transform.replace(NAME, "inplace_" + NAME)](passed())
    name = "main" if model is OneKernel else "encode" if shared is not True else "forward"
    shape = {"main": (5, 2, 3), "encode": (4, 4), "forward": (3, 6)}[name]
    x = tvm.runtime.tensor(random.random(shape).astype(dtype))
    assert_bitwise(inplace[name](x, own), original[name](x, new))


# -- a function that loads the weights ------------------------------------------------------------


def test_a_function_that_loads():
    fetch = tvm_ffi.convert(
        lambda name, index: tvm.runtime.tensor(np.arange(24, dtype="int32").reshape(4, 6))
    )
    after = InplaceTransformParams()(LoadsItself)
    expected = load(LoadsItself)[NAME](1, fetch)
    taken = tvm_ffi.Array([1, fetch])
    assert_bitwise(load(after)["inplace_transform_params"](taken), expected)
    assert taken[1] is None


# -- devices ------------------------------------------------------------------------------------


@I.ir_module
class TwoDevices:
    I.module_global_infos({"vdevice": [I.vdevice("llvm", 0), I.vdevice("llvm", 1)]})

    @R.function
    def transform_params(
        params: R.Tuple(
            R.Tensor((4, 6), "float32", "llvm:0"),
            R.Tensor((4, 6), "float32", "llvm:1"),
            R.Tensor((5,), "float32"),
        ),
    ):
        with R.dataflow():
            a = R.exp(params[0])
            b = R.permute_dims(params[1])
            moved: R.Tensor((4, 6), "float32", "llvm:1") = R.to_vdevice(a, "llvm:1")
            c = R.add(moved, params[1])
            out = (b, c, params[2], a)
            R.output(out)
        return out


@I.ir_module
class Hint:
    I.module_global_infos({"vdevice": [I.vdevice("llvm", 0), I.vdevice("llvm", 1)]})

    @R.function
    def transform_params(
        a: R.Tensor((4, 6), "float32"),
        b: R.Tensor((6, 3), "float32"),
        c: R.Tensor((4, 3), "float32"),
    ):
        with R.dataflow():
            ab = R.matmul(a, b)
            hinted = R.hint_on_device(ab, tvm.cpu(0))
            moved: R.Tensor((4, 3), "float32", "llvm:1") = R.to_vdevice(hinted, "llvm:1")
            d = R.add(moved, c)
            out = (d,)
            R.output(out)
        return out


REALIZE = relax.transform.RealizeVDevice()


@pytest.mark.parametrize("order", ["in place first", "devices first"])
@pytest.mark.parametrize(
    ("mod", "weights"),
    [
        (TwoDevices, [(0, (4, 6)), (1, (4, 6)), (0, (5,))]),
        (Hint, [(0, (4, 6)), (0, (6, 3)), (1, (4, 3))]),
    ],
    ids=["two devices", "a hint"],
)
def test_two_devices(mod, weights, order):
    realized = REALIZE(mod)
    before = mod if order == "in place first" else realized
    after = REALIZE(InplaceTransformParams()(before))
    random = np.random.default_rng(0)
    arrays = [random.random(shape).astype("float32") for _, shape in weights]

    def passed():
        given = zip(arrays, weights, strict=True)
        return tvm_ffi.Array([tvm.runtime.tensor(w, tvm.cpu(device)) for w, (device, _) in given])

    def loaded(mod):
        # For several devices tvm.compile takes no target, and the user legalizes.
        executable = tvm.compile(relax.transform.LegalizeOps()(mod))
        return relax.VirtualMachine(executable, [tvm.cpu(0), tvm.cpu(1)])

    args = [passed()] if mod is TwoDevices else passed()
    expected = loaded(realized)[NAME](*args)
    taken = passed()
    result = loaded(after)["inplace_transform_params"](taken)
    assert_bitwise(result, expected)
    assert [tensor.device for tensor in result] == [tensor.device for tensor in expected]
    for field in taken:
        assert field is None or any(field.same_as(tensor) for tensor in result)


# -- what stock TVM does not do -------------------------------------------------------------------


FAILS = {
    "symbols of the input": lambda: lifted(SymbolsOfTheInput),
    "a number and a weight": lambda: NumberAndWeight,
}
CRASHES = {
    "a number, lifted": lambda: lifted(PrimAmongTheWeights),
    "a number and a branch, bundled": lambda: BUNDLE(NumberAndBranch),
    "a number and a weight, bundled": lambda: BUNDLE(NumberAndWeight),
    "a shape variable": shape_variable,
    "a shape variable, bundled": lambda: BUNDLE(shape_variable()),
}


@pytest.mark.parametrize("name", FAILS)
def test_stock_fails(name):
    with pytest.raises(tvm.error.InternalError, match=r"is not computed|cannot emit"):
        load(only_transforms(FAILS[name]()))


COMPILE = """
import signal, sys, tvm
signal.signal(signal.SIGSEGV, signal.SIG_DFL)  # TVM's own handler takes a while
tvm.compile(tvm.ir.load_json(sys.stdin.read()), "llvm")
"""


def test_stock_crashes():
    """In processes of their own, where relax_inplace is not even imported."""
    processes = []
    for make in CRASHES.values():
        process = subprocess.Popen([sys.executable, "-c", COMPILE], stdin=subprocess.PIPE)
        process.stdin.write(tvm.ir.save_json(only_transforms(make())).encode())
        process.stdin.close()
        processes.append(process)
    assert {process.wait() for process in processes} == {-signal.SIGSEGV}


MATRIX = relax.TensorType((4, 4), "float32")


@pytest.mark.parametrize(
    "others",
    [
        [MATRIX, MATRIX],
        [relax.TensorType((4, 8), "float32")],
        [relax.TensorType((4, 4), "float16")],
    ],
    ids=["count", "shape", "dtype"],
)
def test_stock_refuses_to_share(others):
    builder = relax.BlockBuilder()
    for name, types in (("decode", [MATRIX]), ("encode", others)):
        weights = [relax.Var(f"w{i}", ty) for i, ty in enumerate(types)]
        x = relax.Var("x", MATRIX)
        with builder.function(name, [x, *weights], attrs={"num_input": 1}):
            with builder.dataflow():
                new = [builder.emit(relax.op.exp(weight)) for weight in weights]
                out = builder.emit_output(relax.Tuple([x, *new]))
            builder.emit_func_output(out)
    with pytest.raises(RuntimeError):
        lifted(builder.get(), True)


def test_refused():
    with pytest.raises(UnsupportedTransformError, match="returns no tuple"):
        InplaceTransformParams()(NoTupleOut)
    with pytest.raises(UnsupportedTransformError, match="takes no weights"):
        InplaceTransformParams()(InputsOnly)
