"""InplaceTransformParams: before and after, then both are run; every refusal."""

import textwrap

import numpy as np
import pytest
import tvm
import tvm_ffi
from hypothesis import given
from hypothesis import strategies as st
from memory import extra_mb, in_fresh_process, needs_clear_refs
from pipelines import PIPELINES, load
from tvm import relax
from tvm.script import from_source
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from relax_inplace.analysis import UnsupportedTransformError
from relax_inplace.transform import InplaceTransformParams

RANDOM = np.random.default_rng(0)


def rewritten(mod, **options):
    after = InplaceTransformParams(**options)(mod)
    relax.analysis.well_formed(after)
    return after


def argument(ty, sizes):
    """A random argument of a type; `sizes` gives the symbolic dimensions."""
    if isinstance(ty, relax.TupleType):
        return tvm_ffi.Array([argument(field, sizes) for field in ty.fields])
    if isinstance(ty, tvm.ir.PrimType):
        return 3
    shape = [sizes[d.name] if isinstance(d, tvm.tirx.Var) else int(d) for d in ty.shape.values]
    return tvm.runtime.tensor(RANDOM.integers(-100, 100, shape).astype(ty.dtype.dtype))


def copied(value):
    if isinstance(value, tvm_ffi.Array):
        return tvm_ffi.Array([copied(field) for field in value])
    return tvm.runtime.tensor(value.numpy().copy()) if hasattr(value, "numpy") else value


def assert_bitwise(left, right):
    if isinstance(right, tvm_ffi.Array):
        assert len(left) == len(right)
        for a, b in zip(left, right, strict=True):
            assert_bitwise(a, b)
    elif hasattr(right, "numpy"):
        assert (left.shape, left.dtype) == (right.shape, right.dtype)
        assert left.numpy().tobytes() == right.numpy().tobytes()
    else:
        assert left == right


def run_both(before, after, pipeline="compile", name="transform_params", sizes=None):
    """Run before out of place and after in place on equal arguments; compare bit by bit."""
    function = before[name]
    new_name = name.replace("transform_params", "inplace_transform_params")
    args = [argument(param.ty, sizes or {"n": 5, "m": 7}) for param in function.params]
    expected = load(before, pipeline)[name](*[copied(arg) for arg in args])
    taken = [copied(arg) for arg in args]
    leading = int(function.attrs["num_input"]) if "num_input" in function.attrs else 0
    if not isinstance(taken[-1], tvm_ffi.Array):  # separate weights: the new function takes a tuple
        taken = [*taken[:leading], tvm_ffi.Array(taken[leading:])]
    result = load(after, pipeline)[new_name](*taken)
    assert result.same_as(taken[-1])
    assert_bitwise(result, expected)


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
    @R.function(pure=False)
    def inplace_transform_params(
        params: R.Tuple(R.Tensor((4, 8), "float32"), R.Tensor((6, 8), "float32")),
    ):
        with R.dataflow():
            w0 = params[0]
            a0 = R.permute_dims(w0)
            b0 = R.exp(a0)
            R.output(b0)
        p0 = R.inplace_update_tuple(params, 0, b0)
        with R.dataflow():
            w1 = p0[1]
            a1 = R.permute_dims(w1)
            b1 = R.exp(a1)
            R.output(b1)
        p1 = R.inplace_update_tuple(p0, 1, b1)
        return p1


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
    """Field 2 is spent at once, and empty until its turn."""

    @R.function(pure=False)
    def inplace_transform_params(
        params: R.Tuple(
            R.Tensor((4, 4), "float32"), R.Tensor((4, 4), "float32"), R.Tensor((4, 4), "float32")
        ),
    ):
        with R.dataflow():
            w0 = params[0]
            w2 = params[2]
            s = R.add(w0, w2)
            a = R.permute_dims(s)
            R.output(s, a)
        w0_1 = params[0]
        p0 = R.inplace_update_tuple(params, 0, a)
        gv = R.null_value()
        p2 = R.inplace_update_tuple(p0, 2, gv)
        with R.dataflow():
            b = R.multiply(s, w0_1)
            R.output(b)
        p2_1 = R.inplace_update_tuple(p2, 2, b)
        return p2_1


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
        with R.dataflow():
            w0 = params[0]
            a = R.permute_dims(w0)
            R.output(a)
        p0 = R.inplace_update_tuple(params, 0, a)
        return p0


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (OneToOne, OneToOneAfter),
        (BreadthFirst, BreadthFirstAfter),
        (Swap, SwapAfter),
        (Shared, SharedAfter),
    ],
    ids=lambda mod: mod.__name__,
)
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_before_and_after(before, after, pipeline):
    tvm.ir.assert_structural_equal(rewritten(before), after)
    run_both(before, rewritten(before), pipeline)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_separate_weights_are_bundled(pipeline):
    after = rewritten(Separate)
    tvm.ir.assert_structural_equal(after, SeparateAfter)
    run_both(Separate, after, pipeline, "main_transform_params")


# -- other forms, run only ------------------------------------------------------------------

PARAMS = 'params: R.Tuple(R.Tensor((4, 4), "float32"), R.Tensor((4, 4), "float32"), R.Tensor((4, 4), "float32"))'
FORMS = {
    "identity": "return params",
    "every output its own": "return (params[0], params[1], params[2])",
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
    "packed functions": """
        a = R.call_pure_packed("vm.builtin.copy", params[0], ty_args=R.Tensor((4, 4), "float32"))
        b = R.call_dps_packed("tests.negate", (params[1],), out_ty=R.Tensor((4, 4), "float32"))
        return (b, a, params[1])
    """,
}


@tvm_ffi.register_global_func("tests.negate", override=True)
def _negate(source, target):
    target.copyfrom(-source.numpy())


def form(name):
    body = textwrap.indent(textwrap.dedent(FORMS[name]), " " * 8)
    return from_source(
        f"@I.ir_module\nclass Module:\n    @R.function\n    def transform_params({PARAMS}):\n{body}"
    )


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("name", FORMS)
def test_form(name, pipeline):
    before = form(name)
    lifted = relax.transform.LambdaLift() if name == "a local function" else (lambda mod: mod)
    run_both(lifted(before), lifted(rewritten(before)), pipeline)


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
class Nested:
    @R.function
    def transform_params(
        params: R.Tuple(
            R.Tuple(R.Tensor((4, 8), "float32"), R.Tensor((3,), "float32")),
            R.Tensor((6, 8), "float32"),
        ),
    ):
        inner = params[0]
        a = R.permute_dims(inner[0])
        b = R.exp(inner[1])
        c = R.permute_dims(params[1])
        return ((a, b, inner), c)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_nested_tuples(pipeline):
    run_both(Nested, rewritten(Nested), pipeline)


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


# -- any transform of as many outputs as inputs ---------------------------------------------

SIDE = 3
UNARY = [relax.op.exp, relax.op.negative, relax.op.permute_dims]
BINARY = [relax.op.add, relax.op.multiply, relax.op.subtract]


@st.composite
def transforms(draw):
    n = draw(st.integers(1, 5))
    ty = relax.TensorType((SIDE, SIDE), "float32")
    params = relax.Var("params", relax.TupleType([ty] * n))
    builder = relax.BlockBuilder()
    with builder.function("transform_params", [params]):
        values = []

        def block():
            reads = draw(st.permutations(range(n)))
            values.extend(builder.emit(relax.TupleGetItem(params, i)) for i in reads)
            for _ in range(draw(st.integers(0, 6))):
                pick = st.sampled_from(values)
                if draw(st.booleans()):
                    value = draw(st.sampled_from(UNARY))(draw(pick))
                else:
                    value = draw(st.sampled_from(BINARY))(draw(pick), draw(pick))
                values.append(builder.emit(value))
            return [draw(st.sampled_from(values)) for _ in range(n)]

        if draw(st.booleans()):
            with builder.dataflow():
                out = builder.emit_output(relax.Tuple(block()))
        else:
            out = builder.emit(relax.Tuple(block()))
        builder.emit_func_output(out)
    return builder.get()


@given(transforms(), st.sampled_from(sorted(PIPELINES)))
def test_any_transform(before, pipeline):
    run_both(before, rewritten(before), pipeline)


# -- memory ---------------------------------------------------------------------------------


ORDERS = {
    "straight": lambda n: range(n),
    "reversed": lambda n: [n - 1 - i for i in range(n)],
    "rotated": lambda n: [(i + 1) % n for i in range(n)],
    "in pairs": lambda n: [i ^ 1 for i in range(n)],
}


def one_to_one(count, side, order, breadth_first):
    """Output i is made from weight order[i]."""
    ty = relax.TensorType((side, side), "float32")
    params = relax.Var("params", relax.TupleType([ty] * count))
    builder = relax.BlockBuilder()
    with builder.function("transform_params", [params], attrs={"num_input": 0}):
        with builder.dataflow():
            reads = range(count) if breadth_first else reversed(range(count))
            weights = {i: builder.emit(relax.TupleGetItem(params, i)) for i in reads}
            new = {i: builder.emit(relax.op.permute_dims(weights[i])) for i in weights}
            out = builder.emit_output(relax.Tuple([new[i] for i in ORDERS[order](count)]))
        builder.emit_func_output(out)
    return builder.get()


def extra_weights(pipeline, order, breadth_first, inplace, count=6, side=2048):
    mod = one_to_one(count, side, order, breadth_first)
    if inplace:
        mod = InplaceTransformParams()(mod)
    function = load(mod, pipeline)["inplace_transform_params" if inplace else "transform_params"]
    params = tvm_ffi.Array(
        [tvm.runtime.tensor(np.full((side, side), i, "float32")) for i in range(count)]
    )
    return extra_mb(lambda: function(params)) / (side * side * 4 / 2**20)


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
    assert in_fresh_process(extra_weights, "compile", "straight", True, False) > 5.5


# -- refusals -------------------------------------------------------------------------------

REFUSED = {
    "impure": (
        "params: R.Tuple(R.Tensor((4,), 'float32'))",
        """
        u = R.print(format="converting")
        return (params[0],)
        """,
        "impure",
    ),
    "no weights": ("", "return (R.const(1.0),)", "takes no weights"),
    "no tuple out": (
        "params: R.Tuple(R.Tensor((4,), 'float32'))",
        "return params[0]",
        "returns no tuple",
    ),
    "fewer outputs": (
        "params: R.Tuple(R.Tensor((4,), 'float32'), R.Tensor((4,), 'float32'))",
        "return (params[0],)",
        "returns 1 fields for 2 weights",
    ),
    "the tuple as a whole": (
        "params: R.Tuple(R.Tensor((4,), 'float32'))",
        """
        a = R.call_pure_packed("f", params, ty_args=R.Tensor((4,), "float32"))
        return (a,)
        """,
        "the binding of `a` uses the tuple of weights `params` as a whole",
    ),
    "the tuple inside the result": (
        "params: R.Tuple(R.Tensor((4,), 'float32'))",
        "return ((params,),)",
        "uses the tuple of weights `params` as a whole",
    ),
    "overwriting an operand": (
        "params: R.Tuple(R.Tensor((4,), 'float32'))",
        """
        a = R.call_inplace_packed(
            "f", params[0], inplace_indices=[0], ty_args=R.Tensor((4,), "float32")
        )
        return (a,)
        """,
        "the binding of `a` overwrites its operand",
    ),
    "tensors and a tuple": (
        "a: R.Tensor((4,), 'float32'), params: R.Tuple(R.Tensor((4,), 'float32'))",
        "return (a, params[0])",
        "expected one tuple of weights, or tensors only",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    parameters, body, reason = REFUSED[name]
    head = "@R.function(pure=False)" if name == "impure" else "@R.function"
    body = textwrap.indent(textwrap.dedent(body), " " * 8)
    mod = from_source(
        f"@I.ir_module\nclass Module:\n    {head}\n    def transform_params({parameters}):\n{body}"
    )
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
