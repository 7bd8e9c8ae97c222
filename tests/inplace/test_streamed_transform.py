"""InplaceTransformParams(lazy=True): before and after, then both are run; what it is given; memory."""

import numpy as np
import pytest
import tvm
import tvm_ffi
from memory import extra_mb, in_fresh_process, needs_clear_refs
from pipelines import PIPELINES, load
from transforms import run_both
from tvm import relax
from tvm.script import from_source
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from relax_inplace.analysis import (
    MemoryLimitError,
    UnsupportedTransformError,
    plan_memory,
)
from relax_inplace.inplace.read_transform import read_transform
from relax_inplace.inplace.schedule import plan_graph
from relax_inplace.transform import InplaceTransformParams


def streamed(mod, **options):
    after = InplaceTransformParams(lazy=True, **options)(mod)
    relax.analysis.well_formed(after)
    return after


def plan(mod, **options):
    return plan_memory(mod["transform_params"], mod, lazy=True, **options)


# -- before, after --------------------------------------------------------------------------


@I.ir_module
class OneToOne:
    @R.function
    def transform_params(
        params: R.Tuple(R.Tensor((4, 8), "float32"), R.Tensor((6, 8), "float16")),
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
        get_weight: R.Callable([R.Prim("int64")], R.Any, purity=False),
        params: R.Tuple(R.Any, R.Any),
    ):
        R.func_attr({"relax_inplace.streamed": True})
        w0_given = get_weight(R.prim_value(0))
        R.call_packed(
            "vm.builtin.check_weight",
            R.str("inplace_transform_params"),
            0,
            R.str("w0"),
            w0_given,
            R.str("float32"),
            R.shape([4, 8]),
            ty_args=(R.Tuple,),
        )
        w0 = R.match_cast(w0_given, R.Tensor((4, 8), "float32"))
        a = R.permute_dims(w0)
        p0 = R.inplace_update_tuple(params, 0, a)
        w1_given = get_weight(R.prim_value(1))
        R.call_packed(
            "vm.builtin.check_weight",
            R.str("inplace_transform_params"),
            1,
            R.str("w1"),
            w1_given,
            R.str("float16"),
            R.shape([6, 8]),
            ty_args=(R.Tuple,),
        )
        w1 = R.match_cast(w1_given, R.Tensor((6, 8), "float16"))
        b = R.permute_dims(w1)
        p1 = R.inplace_update_tuple(p0, 1, b)
        return p1


@I.ir_module
class Shared:
    """A weight that two steps read, one that is an output, one that nothing reads; an input."""

    @R.function
    def main_transform_params(
        x: R.Tensor((4, 4), "float32"),
        w: R.Tensor((4, 4), "float32"),
        v: R.Tensor((2,), "float32"),
        unused: R.Tensor((2,), "float32"),
    ):
        R.func_attr({"num_input": 1, "relax.force_pure": True})
        with R.dataflow():
            a = R.add(x, w)
            b = R.permute_dims(w)
            c = R.negative(b)
            out = (a, v, c)
            R.output(out)
        return out


@I.ir_module
class SharedAfter:
    @R.function(pure=False)
    def main_inplace_transform_params(
        x: R.Tensor((4, 4), "float32"),
        get_weight: R.Callable([R.Prim("int64")], R.Any, purity=False),
        params: R.Tuple(R.Any, R.Any, R.Any),
    ):
        R.func_attr({"relax_inplace.streamed": True})
        w_given = get_weight(R.prim_value(0))
        R.call_packed(
            "vm.builtin.check_weight",
            R.str("main_inplace_transform_params"),
            0,
            R.str("w"),
            w_given,
            R.str("float32"),
            R.shape([4, 4]),
            ty_args=(R.Tuple,),
        )
        w = R.match_cast(w_given, R.Tensor((4, 4), "float32"))
        a = R.add(x, w)
        p0 = R.inplace_update_tuple(params, 0, a)
        with R.dataflow():
            b = R.permute_dims(w)
            c = R.negative(b)
            R.output(c)
        p2 = R.inplace_update_tuple(p0, 2, c)
        v_given = get_weight(R.prim_value(1))
        R.call_packed(
            "vm.builtin.check_weight",
            R.str("main_inplace_transform_params"),
            1,
            R.str("v"),
            v_given,
            R.str("float32"),
            R.shape([2]),
            ty_args=(R.Tuple,),
        )
        v = R.match_cast(v_given, R.Tensor((2,), "float32"))
        p1 = R.inplace_update_tuple(p2, 1, v)
        return p1


@I.ir_module
class Nested:
    """Weights are counted through nested tuples."""

    @R.function
    def transform_params(
        params: R.Tuple(
            R.Tuple(R.Tensor((2,), "float32"), R.Tensor((3,), "float32")),
            R.Tensor((4,), "float32"),
        ),
    ):
        t = params[0]
        w = t[1]
        a = R.exp(w)
        v = params[1]
        return (a, (v, a), t)


@I.ir_module
class Symbolic:
    """`m` of `a` is defined by `w2`, which nothing else waits for; `v` is not needed otherwise."""

    @R.function
    def transform_params(
        params: R.Tuple(
            R.Tensor(("n", "m"), "float16"),
            R.Tensor(("m",), "int8"),
            R.Tensor(("k",), "int8"),
            R.Tensor(("n * 2",), "int8"),
        ),
    ):
        n = T.int64()
        m = T.int64()
        k = T.int64()
        w0 = params[0]
        w1 = params[1]
        a = R.reshape(R.permute_dims(w0), (m * n,))
        b = R.full((m, k), R.const(1, "int8"), "int8")
        c = R.add(params[3], params[3])
        return (a, b, c, w1, R.shape([n, k]))


@I.ir_module
class Branch:
    """Each branch is a transform, and asks for what it needs."""

    @R.function
    def transform_params(
        transpose: R.Tensor((), "bool"),
        params: R.Tuple(R.Tensor((4, "n"), "float32"), R.Tensor((2,), "float32")),
    ):
        R.func_attr({"num_input": 1})
        n = T.int64()
        w0 = params[0]
        e = R.exp(w0)
        if transpose:
            a = R.permute_dims(e)
            s = R.reshape(a, (n * 4,))
            r = (s,)
        else:
            b = R.reshape(w0, (n * 4,))
            r = (b,)
        return r


@I.ir_module
class AfterBranch:
    """What follows a branch in the function: TVM's KillAfterLastUse kills nothing there."""

    @R.function
    def transform_params(
        flag: R.Tensor((), "bool"),
        x: R.Tensor((64, 64), "float32"),
        params: R.Tuple(R.Tensor((64, 64), "float32"), R.Tensor((64, 64), "float32")),
    ):
        R.func_attr({"num_input": 2})
        if flag:
            a = R.exp(x)
            r = a
        else:
            b = R.negative(x)
            r = b
        c = R.add(r, params[0])
        d = R.add(r, params[1])
        return (c, d)


@pytest.mark.parametrize(
    ("before", "after"),
    [(OneToOne, OneToOneAfter), (Shared, SharedAfter)],
    ids=lambda mod: mod.__name__,
)
def test_before_and_after(before, after):
    got = streamed(before).without_attr("relax_inplace.param_map")
    tvm.ir.assert_structural_equal(got, after, map_free_vars=True)


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize(
    "before", [OneToOne, Shared, Nested, Symbolic, Branch], ids=lambda mod: mod.__name__
)
def test_same_bits(before, pipeline):
    (gvar,) = before.get_global_vars()
    run_both(before, streamed(before), pipeline, gvar.name_hint, streamed=True)


def asked(mod, name="transform_params"):
    return run_both(mod, streamed(mod), name=name, streamed=True).asked


def test_each_weight_once_and_none_that_nothing_needs():
    assert asked(Shared, "main_transform_params") == [0, 1]
    assert sorted(asked(Nested)) == [0, 1, 2]
    assert sorted(asked(Symbolic)) == [0, 1, 2, 3]
    assert asked(Branch) == [0]
    assert plan(Nested).weights[0].slot == "0.0"


def test_weights_that_are_only_moved_may_be_in_their_files():
    run = run_both(OneToOne, streamed(OneToOne), streamed=True)
    assert run.left == [0, 1]


def test_a_shape_may_need_a_weight_that_nothing_reads():
    (weight,) = [weight for weight in plan(Symbolic).weights if weight.name == "params[2]"]
    assert weight.because == "its shape is needed"
    assert weight.loaded_by == weight.freed_after
    assert "k" not in {weight.name for weight in plan(OneToOne).weights}


def test_symbolic_sizes_do_not_hold_an_order_up():
    """Whichever weight comes first defines `n`: the largest pair may come first."""
    mod = from_source(
        """
@I.ir_module
class Module:
    @R.function
    def transform_params(params: R.Tuple(R.Tensor(("n", 2), "float32"), R.Tensor(("n", 8), "float32"))):
        n = T.int64()
        a = R.permute_dims(params[0])
        b = R.permute_dims(params[1])
        return (a, b)
"""
    )
    run = run_both(mod, streamed(mod), streamed=True)
    assert run.asked == [1, 0]
    assert run.peak == 2 * 8 * 5 * 4  # not one more with the other


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_nothing_stays_after_a_branch(pipeline):
    run = run_both(AfterBranch, streamed(AfterBranch), pipeline, streamed=True)
    assert run.peak == 4 * 64 * 64 * 4  # both results, an original, and what the branch results in


# -- order ----------------------------------------------------------------------------------


def test_plan():
    assert str(plan(OneToOne)) == (
        """\
transform_params: peak 320, before 0, after 224, lower bound 224; order: exact

step  computes  reads  writes  frees  before  worst  after
   1  load w0          w0                  0    128    128
   2  a         w0     slot 0  w0        128    256    128
   3  load w1          w1                128    224    224
   4  b         w1     slot 1  w1        224    320    224

slot  weight  bytes  loaded by  freed after  because
   0  w0        128  step 1     step 2       a reads it
   1  w1         96  step 3     step 4       b reads it
"""
    )


def concat(count):
    """One step that reads many weights: to search all sets of them would take for ever."""
    ty = relax.TensorType((2, 3), "float32")
    params = relax.Var("params", relax.TupleType([ty] * count))
    builder = relax.BlockBuilder()
    with builder.function("transform_params", [params]):
        fields = [builder.emit(relax.TupleGetItem(params, i)) for i in range(count)]
        new = builder.emit(relax.op.concat(fields))
        builder.emit_func_output(builder.emit(relax.Tuple([new, builder.emit(relax.op.exp(new))])))
    return builder.get()


def test_many_weights_of_one_step_are_ordered_exactly():
    shown = plan(concat(64))
    assert shown.order == "exact"
    assert shown.peak == 2 * 64 * 24
    assert [step.name.split()[0] for step in shown.steps] == ["load"] * 64 + ["gv64", "gv65"]


def test_a_weight_is_loaded_right_before_its_first_reader():
    graph = read_transform("f", Shared["main_transform_params"], lazy=True)
    schedule = plan_graph(graph)
    names = [step.name for step in schedule.steps]
    assert names == ["load w", "a", "c", "load v"]
    assert schedule.problem.live_at_start == 0


# -- what it is given -----------------------------------------------------------------------

X = np.arange(32, dtype="float32").reshape(4, 8)
Y = np.arange(48, dtype="float16").reshape(6, 8)


def call(get_weight, params, mode="bytecode"):
    executable = relax.build(streamed(OneToOne), "llvm", exec_mode=mode)
    vm = relax.VirtualMachine(executable, tvm.cpu())
    return vm["inplace_transform_params"](get_weight, params)


def good(index):
    return tvm.runtime.tensor([X, Y][index])


WRONG = {
    "None": (lambda: None, TypeError, "but get_weight returned `None`"),
    "a number": (lambda: 3, TypeError, "but get_weight returned `int`"),
    "shape": (
        lambda: tvm.runtime.tensor(Y.T.copy()),
        ValueError,
        r"but get_weight returned one of \(8, 6\), float16",
    ),
    "rank": (
        lambda: tvm.runtime.tensor(Y[0]),
        ValueError,
        r"but get_weight returned one of \(8,\), float16",
    ),
    "dtype": (
        lambda: tvm.runtime.tensor(Y.astype("int32")),
        ValueError,
        r"but get_weight returned one of \(6, 8\), int32",
    ),
    "strides": (
        lambda: tvm_ffi.from_dlpack(np.zeros((6, 16), "float16")[:, ::2]),
        ValueError,
        r"but get_weight returned one that is not contiguous .* strides \(16, 2\), byte_offset 0\); copy it",
    ),
}


@pytest.mark.parametrize("mode", ["bytecode", "compiled"])
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_weight_is_named(name, mode):
    make, error, text = WRONG[name]
    text = (
        r"function `inplace_transform_params` asked for weight 1, `w1`, a tensor of \(6, 8\), "
        f"float16, {text}"
    )
    params = tvm_ffi.Array(["old", "old"])
    with pytest.raises(error, match=text):
        call(lambda index: make() if index == 1 else good(0), params, mode)
    # What was finished stays, what was not is as it was.
    np.testing.assert_array_equal(params[0].numpy(), X.T)
    assert params[1] == "old"


def test_a_wrong_symbolic_size_is_named():
    mod = from_source(
        """
@I.ir_module
class Module:
    @R.function
    def transform_params(params: R.Tuple(R.Tensor(("n", 2), "float32"), R.Tensor(("n",), "float32"))):
        n = T.int64()
        w0 = params[0]
        w1 = params[1]
        return (R.permute_dims(w0), R.exp(w1))
"""
    )
    function = load(streamed(mod))["inplace_transform_params"]
    weights = [np.zeros((3, 2), "float32"), np.zeros(4, "float32")]
    with pytest.raises(
        ValueError, match=r"weight 1, `w1`, a tensor of \(3,\), float32, but .* \(4,\)"
    ):
        function(lambda index: tvm.runtime.tensor(weights[index]), tvm_ffi.Array([None, None]))


@I.ir_module
class NoTensors:
    @R.function
    def transform_params(
        params: R.Tuple(
            R.Tensor((4,), "float32"), R.Prim("int64"), R.Shape(["n", 3]), R.Any, R.Prim("bool")
        ),
    ):
        n = T.int64()
        a = R.full((n,), R.const(1.0), "float32")
        w = R.match_cast(params[3], R.Tensor((3, 4), "float32"))
        b = R.add(w, params[0])
        k = params[1]
        return (a, b, params[2], params[3], k)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_weights_that_are_no_tensors(pipeline):
    run = run_both(NoTensors, streamed(NoTensors), pipeline, streamed=True)
    assert sorted(run.asked) == [0, 1, 2, 3]


def test_a_number_of_another_kind():
    function = load(streamed(NoTensors))["inplace_transform_params"]
    given = tvm.runtime.tensor(np.zeros((3, 4), "float32"))
    weights = [tvm.runtime.tensor(X[0, :4].copy()), 1.5, tvm_ffi.Shape([2, 3]), given]
    text = "for weight 1, `k`, a number of int64, but get_weight returned `float`"
    with pytest.raises(TypeError, match=text):
        function(weights.__getitem__, tvm_ffi.Array([None] * 5))


TUPLES = {
    "too short": (
        lambda: tvm_ffi.Array([None]),
        ValueError,
        "each of its 2 outputs, but got one of 1",
    ),
    "too long": (lambda: tvm_ffi.Array([None] * 3), ValueError, "but got one of 3"),
    "None": (
        lambda: None,
        TypeError,
        "expects `params` to be a tuple to fill, of 2 slots, but got `None`",
    ),
    "a tensor": (lambda: good(0), TypeError, "of 2 slots, but got `ffi.Tensor`"),
}


@pytest.mark.parametrize("name", TUPLES)
def test_a_wrong_tuple_is_refused_before_anything_is_loaded(name):
    make, error, text = TUPLES[name]
    with pytest.raises(error, match=text):
        call(pytest.fail, make())


def test_a_callable_that_is_none():
    with pytest.raises(TypeError, match="expects `get_weight` to be callable, but got `None`"):
        call(None, tvm_ffi.Array([None, None]))


@pytest.mark.parametrize("mode", ["bytecode", "compiled"])
def test_an_error_of_the_callable_reaches_the_caller(mode):
    def get_weight(index):
        if index == 1:
            raise KeyError("weight 1 is lost")
        return good(index)

    params = tvm_ffi.Array(["old", "old"])
    with pytest.raises(KeyError, match="weight 1 is lost"):
        call(get_weight, params, mode)
    np.testing.assert_array_equal(params[0].numpy(), X.T)
    assert params[1] == "old"


def test_whatever_is_in_the_tuple_is_replaced():
    strided = tvm_ffi.from_dlpack(np.zeros((6, 16), "float16")[:, ::2])
    params = tvm_ffi.Array([strided, "text"])
    result = call(good, params)
    assert result.same_as(params)
    np.testing.assert_array_equal(params[1].numpy(), Y.T)


def test_a_list_to_fill_is_copied_into_a_tuple():
    result = call(good, [None, None])
    np.testing.assert_array_equal(result[0].numpy(), X.T)


def test_a_function_of_the_virtual_machine_may_yield_the_weights():
    @I.ir_module
    class Maker:
        @R.function(pure=False)
        def make(index: R.Prim("int64")) -> R.Tensor((4, 8), "float32"):
            made = R.full((4, 8), R.const(2.0), "float32")
            return made

    before = from_source(
        """
@I.ir_module
class Module:
    @R.function
    def transform_params(params: R.Tuple(R.Tensor((4, 8), "float32"), R.Tensor((4, 8), "float32"))):
        return (R.exp(params[0]), R.exp(params[1]))
"""
    )
    function = load(streamed(before))["inplace_transform_params"]
    make = load(Maker)["make"]
    assert isinstance(make, tvm_ffi.Function)
    for get_weight in (make, tvm_ffi.convert(lambda index: make(index))):
        params = function(get_weight, tvm_ffi.Array([None, None]))
        for field in params:
            np.testing.assert_allclose(field.numpy(), np.exp(2), rtol=1e-6)


def test_a_closure_of_the_virtual_machine_may_yield_the_weights():
    mod = from_source(
        """
@I.ir_module
class Module:
    @R.function(pure=False)
    def make(index: R.Prim("int64")) -> R.Any:
        made = R.full((4, 8), R.const(2.0), "float32")
        return made

    @R.function
    def transform_params(params: R.Tuple(R.Tensor((4, 8), "float32"))):
        return (R.exp(params[0]),)

    @R.function(pure=False)
    def main(params: R.Tuple(R.Any)) -> R.Any:
        closure = R.make_closure(Module.make, R.tuple())
        result = R.call_packed("tests.call", closure, params, ty_args=R.Any)
        return result
"""
    )

    @tvm_ffi.register_global_func("tests.call", override=True)
    def _call(closure, params):
        return vm["inplace_transform_params"](closure, params)

    vm = load(streamed(mod))
    params = vm["main"](tvm_ffi.Array([None]))
    np.testing.assert_allclose(params[0].numpy(), np.exp(2), rtol=1e-6)


# -- options --------------------------------------------------------------------------------


def test_params_make_no_sense():
    with pytest.raises(
        ValueError, match=r"params=\[0\] .* with lazy=True .* is the function's own"
    ):
        InplaceTransformParams(params=[0], lazy=True)


def wide():
    """Eight temporaries at once."""
    names = ["exp", "tanh", "sqrt", "negative", "sin", "cos", "abs", "sigmoid"]
    lines = "\n        ".join(f"{name} = R.{name}(w0)" for name in names)
    return from_source(
        f"""
@I.ir_module
class Module:
    @R.function
    def transform_params(params: R.Tuple(R.Tensor((64, 16), "float32"), R.Tensor((64, 16), "float32"))):
        w0 = params[0]
        {lines}
        all = R.concat(({", ".join(names)}), axis=1)
        t = R.max(all, axis=1, keepdims=True)
        a = R.add(w0, t)
        b = R.multiply(params[1], w0)
        return (a, b)
"""
    )


@pytest.mark.parametrize("pipeline", ["compile", "cpu default", "compiled mode"])
def test_memory_limit(pipeline):
    mod, size = wide(), 64 * 16 * 4
    assert plan(mod).peak > 16 * size
    limit = 2 * size + size * 5 // 4
    after = streamed(mod, memory_limit=limit)
    assert "_read_slice_" in str(after)
    run = run_both(mod, after, pipeline, streamed=True)
    assert size * 2 <= run.peak <= limit
    planned = plan(mod, memory_limit=limit, fused=pipeline == "cpu default")
    assert run.peak == planned.peak
    assert plan(mod, memory_limit=limit / (2 * size)).peak <= limit  # a factor of the weights


def test_what_does_not_fit_is_refused():
    with pytest.raises(
        MemoryLimitError,
        match=r"memory_limit=300 bytes: .* 320 bytes, 1.429 times the weights, for step `b`; raise the limit$",
    ):
        streamed(OneToOne, memory_limit=300)


SIZED = """
@I.ir_module
class Module:
    @R.function
    def transform_params({leading}params: R.Tuple(R.Tensor(("n", 8), "float32"))):
        R.func_attr({attrs})
        n = T.int64()
        return (R.permute_dims(params[0]),)
"""


def test_a_limit_on_sizes_that_weights_bring():
    mod = from_source(SIZED.format(leading="", attrs={"num_input": 0}))
    with pytest.raises(
        UnsupportedTransformError, match=r"its peak, 64\*n bytes, is within .*=1000"
    ):
        streamed(mod, memory_limit=1000)
    bounded = SIZED.format(leading="", attrs={"tir_var_upper_bound": {"n": 8}})
    assert run_both(
        from_source(bounded), streamed(from_source(bounded), memory_limit=512), streamed=True
    )


def test_a_limit_on_sizes_that_an_input_brings():
    mod = from_source(SIZED.format(leading='s: R.Shape(["n"]), ', attrs={"num_input": 1}))
    after = streamed(mod, memory_limit=320)
    run_both(mod, after, sizes={"n": 5}, streamed=True)
    function = load(after)["inplace_transform_params"]
    with pytest.raises(ValueError, match=r"would need 384 bytes: .* Its memory_limit is 320"):
        function(tvm_ffi.Shape([6]), pytest.fail, tvm_ffi.Array([None]))


def test_a_condition_that_reads_a_weight_is_refused():
    mod = from_source(
        """
@I.ir_module
class Module:
    @R.function
    def transform_params(params: R.Tuple(R.Tensor((), "bool"), R.Tensor((4,), "float32"))):
        c = params[0]
        w = params[1]
        if c:
            a = (R.exp(w),)
            r = a
        else:
            b = (R.negative(w),)
            r = b
        return r
"""
    )
    for refuse in (streamed, plan):
        with pytest.raises(
            UnsupportedTransformError, match="condition of its branch reads `params`"
        ):
            refuse(mod)
    with pytest.warns(UserWarning, match="it stays as it was"):
        assert streamed(mod, strict=False).same_as(mod)


def test_dimensions_that_define_each_other_are_refused():
    mod = from_source(
        """
@I.ir_module
class Module:
    @R.function
    def transform_params(
        params: R.Tuple(R.Tensor(("n", "m * 2"), "float32"), R.Tensor(("m", "n * 2"), "float32")),
    ):
        n = T.int64()
        m = T.int64()
        w = params[0]
        v = params[1]
        return (R.exp(w), R.exp(v))
"""
    )
    with pytest.raises(
        UnsupportedTransformError, match="the weights `w`, `v` are loaded one by one"
    ):
        streamed(mod)


def test_nothing_to_fill():
    mod = from_source(
        """
@I.ir_module
class Module:
    @R.function
    def transform_params(params: R.Tuple(R.Tensor((4,), "float32"))):
        return (R.const(1.0),)
"""
    )
    assert run_both(mod, streamed(mod), streamed=True).asked == []


def test_again_changes_nothing():
    once = streamed(OneToOne)
    assert streamed(once).same_as(once)
    assert streamed(once, functions="transform_params").same_as(once)


# -- many weights, and large ones -----------------------------------------------------------


def transposes(count, side):
    ty = relax.TensorType((side, side), "float32")
    params = relax.Var("params", relax.TupleType([ty] * count))
    builder = relax.BlockBuilder()
    with builder.function("transform_params", [params], attrs={"num_input": 0}):
        with builder.dataflow():
            fields = [builder.emit(relax.TupleGetItem(params, i)) for i in range(count)]
            new = [builder.emit(relax.op.permute_dims(field)) for field in fields]
            out = builder.emit_output(relax.Tuple(new))
        builder.emit_func_output(out)
    return builder.get()


def test_a_long_chain_is_written_as_statements():
    mod = transposes(1100, 2)
    run = run_both(mod, streamed(mod), streamed=True)
    assert run.asked == list(range(1100))


def peak_of_stream(pipeline, count, side):
    """(extra MB, how many fields are right) of weights that are made when they are asked for."""
    function = load(streamed(transposes(count, side)), pipeline)["inplace_transform_params"]
    rows = np.arange(side, dtype="float32")
    own = {
        "weight": tvm.runtime.tensor(np.zeros((side, side), "float32"))
    }  # numpy's own, and TVM's
    del own["weight"]

    def get_weight(index):
        weight = tvm.runtime.empty((side, side), "float32")
        view = np.from_dlpack(weight)
        np.add(rows[:, None], (rows * 2 + index)[None, :], out=view)
        return weight

    params = tvm_ffi.Array([None] * count)
    extra = extra_mb(lambda: function(get_weight, params))
    right = sum(
        np.array_equal(params[i].numpy(), np.add.outer(rows * 2 + i, rows)) for i in range(count)
    )
    return extra, right


@needs_clear_refs
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_the_peak_is_the_converted_weights_and_one_original(pipeline, count=4, side=1500):
    extra, right = in_fresh_process(peak_of_stream, pipeline, count, side)
    assert right == count
    mb = side * side * 4 / 2**20
    # The last original and its result, which is one of the converted, are the temporary.
    assert extra <= count * mb + mb + 8
