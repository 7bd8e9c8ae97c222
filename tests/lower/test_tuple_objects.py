"""Tuples as objects: TVMScript before and after, rule by rule; then numbers."""

import textwrap

import numpy as np
import pytest
import tvm
import tvm_ffi
from pipelines import PIPELINES, load
from tvm import relax
from tvm.script import from_source
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from relax_inplace import inplace_update_tuple
from relax_inplace.ir.binding_rewriter import with_blocks, with_body
from relax_inplace.ir.updates import functions_that_update
from relax_inplace.lower.entry_check import is_entry_check
from relax_inplace.lower.tuple_objects import PARAM_TYPES, tuples_as_objects

FOUR = 'R.Tensor((4,), "float32")'
PAIR = f"R.Tuple({FOUR}, {FOUR})"
NESTED = f"R.Tuple({FOUR}, {PAIR})"
SHORT = {
    "READ": 'R.call_pure_packed("vm.builtin.tuple_getitem"',
    "MAKE": 'R.call_pure_packed("vm.builtin.make_tuple"',
    "OBJECT": "ty_args=R.Any",
    "FOUR": FOUR,
}


def module(body, nested=NESTED, pair=PAIR):
    text = f"""
@I.ir_module
class Module:
    @R.function(private=True)
    def same(p: {pair}) -> {pair}:
        return p

    @R.function(pure=False)
    def main(params: {nested}, x: FOUR, c: R.Tensor((), "bool")):
        cls = Module
{textwrap.indent(textwrap.dedent(body), " " * 8)}
"""
    for short, long in SHORT.items():
        text = text.replace(short, long)
    return from_source(text.replace("        cls = Module\n", "") if "cls." not in text else text)


def comparable(mod):
    """Without the check of arguments, and what types were: both have tests of their own."""
    for gvar, function in mod.functions_items():
        blocks = [
            type(block)([one for one in block.bindings if not is_entry_check(one)])
            for block in function.body.blocks
        ]
        blocks = [block for block in blocks if block.bindings]
        function = with_body(function, with_blocks(function.body, blocks))
        mod[gvar] = function.without_attr(PARAM_TYPES).without_attr("global_symbol")
    return relax.transform.Normalize()(mod)


def converted(mod):
    updating = {gvar.name_hint for gvar in functions_that_update(mod)}
    return tuples_as_objects(mod, mod.get_global_vars(), updating)


# What follows for a body, and its type: `nested` is (tensor, (tensor, tensor)).
RULES = {
    "a field is read with its type": (
        """
        w = params[0]
        p0 = R.inplace_update_tuple(params, 0, w)
        return p0
        """,
        """
        w = READ, params, 0, ty_args=FOUR)
        R.inplace_update_tuple(params, 0, w, ty_args=(R.Tuple,))
        return params
        """,
    ),
    "a nested tuple is an object, too": (
        """
        inner = params[1]
        i0 = R.inplace_update_tuple(inner, 0, x)
        p0 = R.inplace_update_tuple(params, 1, i0)
        return p0
        """,
        """
        inner = READ, params, 1, OBJECT)
        R.inplace_update_tuple(inner, 0, x, ty_args=(R.Tuple,))
        R.inplace_update_tuple(params, 1, inner, ty_args=(R.Tuple,))
        return params
        """,
    ),
    "second names go": (
        """
        q = params
        inner = q[1]
        again = inner
        i0 = R.inplace_update_tuple(again, 0, x)
        p0 = R.inplace_update_tuple(q, 1, i0)
        return p0
        """,
        """
        inner = READ, params, 1, OBJECT)
        R.inplace_update_tuple(inner, 0, x, ty_args=(R.Tuple,))
        R.inplace_update_tuple(params, 1, inner, ty_args=(R.Tuple,))
        return params
        """,
    ),
    "what is made here and returned is an object": (
        """
        w = params[0]
        p0 = R.inplace_update_tuple(params, 0, x)
        made = (w, (x, w))
        return (p0, made)
        """,
        """
        w = READ, params, 0, ty_args=FOUR)
        R.inplace_update_tuple(params, 0, x, ty_args=(R.Tuple,))
        inner = MAKE, x, w, OBJECT)
        made = MAKE, w, inner, OBJECT)
        both = MAKE, params, made, OBJECT)
        return both
        """,
    ),
    "a copy, field by field, is another object": (
        """
        inner = params[1]
        a = inner[0]
        b = inner[1]
        copy = (a, b)
        c0 = R.inplace_update_tuple(copy, 0, x)
        p0 = R.inplace_update_tuple(params, 0, c0)
        return p0
        """,
        """
        inner = READ, params, 1, OBJECT)
        a = READ, inner, 0, ty_args=FOUR)
        b = READ, inner, 1, ty_args=FOUR)
        copy = MAKE, a, b, OBJECT)
        R.inplace_update_tuple(copy, 0, x, ty_args=(R.Tuple,))
        R.inplace_update_tuple(params, 0, copy, ty_args=(R.Tuple,))
        return params
        """,
    ),
    "a tuple that only operators take stays a value": (
        """
        inner = params[1]
        a = inner[0]
        both = (a, x)
        y = R.concat(both)
        p0 = R.inplace_update_tuple(params, 0, y)
        return p0
        """,
        """
        inner = READ, params, 1, OBJECT)
        a = READ, inner, 0, ty_args=FOUR)
        both = (a, x)
        y = R.concat(both)
        R.inplace_update_tuple(params, 0, y, ty_args=(R.Tuple,))
        return params
        """,
    ),
    "an operator takes the fields of an object": (
        """
        inner = params[1]
        y = R.concat(inner)
        p0 = R.inplace_update_tuple(params, 0, y)
        return p0
        """,
        """
        inner = READ, params, 1, OBJECT)
        field = READ, inner, 0, ty_args=FOUR)
        other = READ, inner, 1, ty_args=FOUR)
        y = R.concat((field, other))
        R.inplace_update_tuple(params, 0, y, ty_args=(R.Tuple,))
        return params
        """,
    ),
    "an operator's tuple is a value where it is read": (
        """
        s = R.split(x, 2)
        a = s[0]
        p0 = R.inplace_update_tuple(params, 0, a)
        return p0
        """,
        """
        s = R.split(x, 2)
        a = s[0]
        R.inplace_update_tuple(params, 0, a, ty_args=(R.Tuple,))
        return params
        """,
    ),
    "and an object is made of it where it is stored": (
        """
        s = R.split(x, 2)
        p0 = R.inplace_update_tuple(params, 0, s)
        a = s[0]
        return (p0, a)
        """,
        """
        s = R.split(x, 2)
        left = s[0]
        right = s[1]
        stored = MAKE, left, right, OBJECT)
        R.inplace_update_tuple(params, 0, stored, ty_args=(R.Tuple,))
        a = s[0]
        both = MAKE, params, a, OBJECT)
        return both
        """,
    ),
    "a cast of a tuple checks, and names nothing new": (
        """
        n = T.int64()
        inner = params[1]
        cast = R.match_cast(inner, R.Tuple(R.Tensor((n,), "float32"), FOUR))
        w = cast[0]
        p0 = R.inplace_update_tuple(params, 0, w)
        return p0
        """,
        """
        n = T.int64()
        inner = READ, params, 1, OBJECT)
        cast = R.match_cast(inner, R.Tuple(R.Tensor((n,), "float32"), FOUR))
        w = READ, inner, 0, ty_args=R.Tensor((n,), "float32"))
        R.inplace_update_tuple(params, 0, w, ty_args=(R.Tuple,))
        return params
        """,
    ),
    "a function of the module takes and returns objects": (
        """
        inner = params[1]
        q = cls.same(inner)
        w = q[0]
        r = cls.same((w, x))
        p0 = R.inplace_update_tuple(params, 1, r)
        return p0
        """,
        """
        inner = READ, params, 1, OBJECT)
        q = cls.same(inner)
        w = READ, q, 0, ty_args=FOUR)
        made = MAKE, w, x, OBJECT)
        r = cls.same(made)
        R.inplace_update_tuple(params, 1, r, ty_args=(R.Tuple,))
        return params
        """,
    ),
    "so does a packed function": (
        """
        inner = params[1]
        q = R.call_packed("packed", inner, (x, x), ty_args=R.Tuple(FOUR, FOUR))
        w = q[0]
        r = R.call_pure_packed("packed", q, ty_args=FOUR)
        p0 = R.inplace_update_tuple(params, 0, r)
        return p0
        """,
        """
        inner = READ, params, 1, OBJECT)
        made = MAKE, x, x, OBJECT)
        q = R.call_packed("packed", inner, made, OBJECT)
        w = READ, q, 0, ty_args=FOUR)
        r = R.call_pure_packed("packed", q, ty_args=FOUR)
        R.inplace_update_tuple(params, 0, r, ty_args=(R.Tuple,))
        return params
        """,
    ),
    "a branch has an object": (
        """
        if c:
            p0 = R.inplace_update_tuple(params, 0, x)
            q = p0
        else:
            w = params[0]
            y = R.add(w, x)
            p0 = R.inplace_update_tuple(params, 0, y)
            q = p0
        r = R.inplace_update_tuple(q, 1, x)
        return r
        """,
        """
        if c:
            R.inplace_update_tuple(params, 0, x, ty_args=(R.Tuple,))
            q = params
        else:
            w = READ, params, 0, ty_args=FOUR)
            y = R.add(w, x)
            R.inplace_update_tuple(params, 0, y, ty_args=(R.Tuple,))
            q = params
        R.inplace_update_tuple(q, 1, x, ty_args=(R.Tuple,))
        return q
        """,
    ),
    "nothing, the empty tuple, is none": (
        """
        p0 = R.inplace_update_tuple(params, 0, ())
        e = p0[0]
        p1 = R.inplace_update_tuple(p0, 1, e)
        return p1
        """,
        """
        R.inplace_update_tuple(params, 0, (), ty_args=(R.Tuple,))
        e = READ, params, 0, ty_args=R.Tuple())
        R.inplace_update_tuple(params, 1, e, ty_args=(R.Tuple,))
        return params
        """,
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_rule(name):
    before, after = RULES[name]
    after = comparable(module(after, "R.Any", "R.Any"))
    tvm.ir.assert_structural_equal(comparable(converted(module(before))), after)


def test_functions_that_are_not_converted_stay():
    """FuseOps makes kernels of them, which take values."""
    mod = module("p0 = R.inplace_update_tuple(params, 0, x)\nreturn p0")
    after = tuples_as_objects(mod, [mod.get_global_var("main")], {"main"})
    assert after["same"].same_as(mod["same"])


# -- numbers --------------------------------------------------------------------------------------


def tensor(value, count=4):
    return tvm.runtime.tensor(np.full(count, value, "float32"))


def nested(*values):
    """A tuple of tensors full of one value each, and of such tuples."""
    return tvm_ffi.Array([nested(*v) if isinstance(v, tuple) else tensor(v) for v in values])


def seen(value):
    """The first element of each tensor, as nested lists."""
    if isinstance(value, tvm_ffi.Array):
        return [seen(field) for field in value]
    return value if value is None else float(value.numpy().ravel()[0])


tvm_ffi.register_global_func("tests.swapped", lambda p: tvm_ffi.Array([p[1], p[0]]), override=True)
tvm_ffi.register_global_func("tests.first", lambda p: p[0], override=True)

# With nested = (1, (2, 3)) and x = 10: the body, what is returned, what the caller's tuple holds.
NUMBERS = {
    "the old fields stay the old fields": (
        """
        inner = params[1]
        a = inner[0]
        y = R.add(x, x)
        i0 = R.inplace_update_tuple(inner, 0, y)
        b = i0[1]
        old = (a, b)
        p0 = R.inplace_update_tuple(params, 1, i0)
        return (old, p0)
        """,
        [[2, 3], [1, [20, 3]]],
        [1, [20, 3]],
    ),
    "a copy, updated": (
        """
        inner = params[1]
        copy = (inner[0], inner[1])
        c0 = R.inplace_update_tuple(copy, 0, x)
        y = R.add(inner[0], x)
        p0 = R.inplace_update_tuple(params, 0, y)
        return (c0, p0)
        """,
        [[10, 3], [12, [2, 3]]],
        [12, [2, 3]],
    ),
    "a copy of a copy": (
        """
        inner = params[1]
        a = inner[0]
        t = (a, x)
        copy = (t[0], inner[1])
        c0 = R.inplace_update_tuple(copy, 1, x)
        p0 = R.inplace_update_tuple(params, 1, c0)
        return p0
        """,
        [1, [2, 10]],
        [1, [2, 10]],
    ),
    "a cast of a field, and of a tuple": (
        """
        n = T.int64()
        w = R.match_cast(params[0], R.Tensor((n,), "float32"))
        inner = R.match_cast(params[1], R.Tuple(R.Tensor((n,), "float32"), R.Tensor(ndim=1)))
        y = R.add(w, inner[0])
        p0 = R.inplace_update_tuple(params, 0, y)
        return p0
        """,
        [3, [2, 3]],
        [3, [2, 3]],
    ),
    "concat before an update, and after it": (
        """
        c = R.concat(params[1])
        p0 = R.inplace_update_tuple(params, 0, c)
        i0 = R.inplace_update_tuple(p0[1], 0, c)
        d = R.concat(i0)
        p1 = R.inplace_update_tuple(p0, 1, d)
        return p1
        """,
        [2, 2],
        [2, 2],
    ),
    "split: a value, an object, and both": (
        """
        s = R.split(x, 2)
        a = s[0]
        p0 = R.inplace_update_tuple(params, 0, s)
        c = R.concat(s)
        m = R.match_cast(s, R.Tuple(R.Tensor((2,), "float32"), R.Tensor((2,), "float32")))
        y = R.concat((m[1], a))
        p1 = R.inplace_update_tuple(p0, 1, (c, y))
        return (p1, m)
        """,
        [[[10, 10], [10, 10]], [10, 10]],
        [[10, 10], [10, 10]],
    ),
    "a packed function takes a tuple, and returns one": (
        """
        q = R.call_packed("tests.swapped", params[1], ty_args=R.Tuple(FOUR, FOUR))
        a = q[0]
        b = R.call_pure_packed("tests.first", q, ty_args=FOUR)
        c = R.call_pure_packed("tests.first", (x, a), ty_args=FOUR)
        y = R.add(b, c)
        p0 = R.inplace_update_tuple(params, 0, y)
        return p0
        """,
        [13, [2, 3]],
        [13, [2, 3]],
    ),
    "a helper of the module": (
        """
        q = cls.same(params[1])
        q0 = R.inplace_update_tuple(q, 0, x)
        r = cls.same((params[0], x))
        p0 = R.inplace_update_tuple(params, 0, r)
        p1 = R.inplace_update_tuple(p0, 1, q0)
        return p1
        """,
        [[1, 10], [10, 3]],
        [[1, 10], [10, 3]],
    ),
    "a branch of tuples": (
        """
        if c:
            w = R.add(params[0], x)
            p0 = R.inplace_update_tuple(params, 0, w)
            q = (p0, w)
        else:
            w = R.multiply(params[0], x)
            p0 = R.inplace_update_tuple(params, 0, w)
            q = (p0, w)
        r = q[0]
        y = R.add(q[1], x)
        p1 = R.inplace_update_tuple(r, 1, y)
        return p1
        """,
        [11, 21],
        [11, 21],
    ),
    "nothing, the empty tuple": (
        """
        p0 = R.inplace_update_tuple(params, 0, ())
        e = p0[0]
        p1 = R.inplace_update_tuple(p0, 1, (e, x))
        return p1
        """,
        [[], [[], 10]],
        [[], [[], 10]],
    ),
    "a local function that captures a tuple, and takes one": (
        """
        @R.function
        def read(y: FOUR, q: R.Tuple(FOUR, FOUR)) -> R.Tuple(FOUR, FOUR):
            a = R.add(params[0], y)
            b = R.add(a, q[0])
            return (b, a)
        z = read(x, params[1])
        y = z[0]
        w = z[1]
        p0 = R.inplace_update_tuple(params, 0, y)
        p1 = R.inplace_update_tuple(p0, 1, w)
        return p1
        """,
        [13, 11],
        [13, 11],
    ),
}


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers(name, pipeline):
    body, returned, left = NUMBERS[name]
    if pipeline == "passes first" and "cls." in body:
        pytest.skip("FuseTIR by hand gives a private helper a parameter for each field")
    mod = module(body)
    if "@R.function" in body and pipeline != "passes first":  # TVM's pipelines do not do it
        mod = relax.transform.LambdaLift()(mod)
    params = nested(1, (2, 3))
    main = load(mod, pipeline)["main"]
    result = main(params, tensor(10), tvm.runtime.tensor(np.array(True)))
    assert seen(result) == returned
    assert seen(params) == left


SEVERAL = """
@I.ir_module
class Module:
    @T.prim_func(private=True, s_tir=True)
    def two(a: T.Buffer((4,), "float32"), b: T.Buffer((4,), "float32"), c: T.Buffer((4,), "float32")):
        for i in range(4):
            with T.sblock("b"):
                vi = T.axis.spatial(4, i)
                b[vi] = a[vi] + T.float32(1)
                c[vi] = a[vi] + T.float32(2)

    @R.function(pure=False)
    def main(params: R.Tuple(FOUR, R.Tuple(FOUR, FOUR))):
        cls = Module
        s = R.call_tir(cls.two, (params[0],), out_ty=[FOUR, FOUR])
        p0 = R.inplace_update_tuple(params, 1, s)
        p1 = R.inplace_update_tuple(p0, 0, s[1])
        return p1
"""


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_kernel_of_several_results(pipeline):
    params = nested(1, (2, 3))
    load(from_source(SEVERAL.replace("FOUR", FOUR)), pipeline)["main"](params)
    assert seen(params) == [3, [2, 3]]


OVERWRITTEN = """
@I.ir_module
class Module:
    @T.prim_func(private=True, s_tir=True)
    def twice(a: T.Buffer((4,), "float32")):
        for i in range(4):
            with T.sblock("b"):
                vi = T.axis.spatial(4, i)
                a[vi] = a[vi] * T.float32(2)

    @R.function(pure=False)
    def main(params: R.Tuple(FOUR, FOUR)):
        cls = Module
        w = params[0]
        unused = R.call_tir_inplace(cls.twice, (w,), inplace_indices=[0], out_ty=[FOUR])
        y = R.add(params[1], R.const(1.0))
        p0 = R.inplace_update_tuple(params, 1, y)
        return p0
"""


@pytest.mark.parametrize("pipeline", ["compile", "cpu default", "compiled mode", "own pipeline"])
def test_what_overwrites_a_tensor_runs_if_nobody_reads_its_result(pipeline):
    """FuseTIR deletes it, where it is run by hand, too."""
    params = nested(1, 2)
    load(from_source(OVERWRITTEN.replace("FOUR", FOUR)), pipeline)["main"](params)
    assert seen(params) == [2, 3]


HELPER = """
@I.ir_module
class Module:
    @R.function(private=PRIVATE)
    def helper(p: R.Tuple(FOUR, FOUR), q: R.Tuple(FOUR, FOUR)) -> R.Tuple(FOUR, R.Tuple(FOUR, FOUR)):
        return (R.add(p[0], q[1]), (q[1], p[1]))

    @R.function(pure=False)
    def main(params: R.Tuple(FOUR, FOUR)):
        cls = Module
        r = cls.helper(params, params)
        p0 = R.inplace_update_tuple(params, 0, r[0])
        p1 = R.inplace_update_tuple(p0, 1, r[1])
        return p1
"""


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("private", [False, True])
def test_a_helper_is_given_one_tuple_twice(pipeline, private):
    params = nested(1, 2)
    mod = from_source(HELPER.replace("FOUR", FOUR).replace("PRIVATE", str(private)))
    load(mod, pipeline)["main"](params)
    assert seen(params) == [3, [2, 2]]
    if not private:
        vm = load(mod, pipeline)
        assert seen(vm["helper"](nested(1, 2), nested(3, 4))) == [5, [4, 2]]


# -- sizes ----------------------------------------------------------------------------------------


@I.ir_module
class Sizes:
    """n and m are defined by fields only, k by a prim value, j by a tensor."""

    @R.function(pure=False)
    def main(
        params: R.Tuple(
            R.Tensor(("n",), "float32"),
            R.Tensor(("n * 2",), "float32"),
            R.Tuple(R.Tensor(("m", "n"), "float32")),
        ),
        s: R.Shape(["k"]),
        x: R.Tensor(("j", "m"), "float32"),
    ):
        n, m, k, j = T.int64(), T.int64(), T.int64(), T.int64()
        w = R.reshape(params[1], R.shape([2, n]))
        p0 = R.inplace_update_tuple(params, 0, w)
        y = R.reshape(p0[2][0], R.shape([m * n]))
        p1 = R.inplace_update_tuple(p0, 2, y)
        z = R.full(R.shape([k, j, n + 1]), R.const(7.0), "float32")
        p2 = R.inplace_update_tuple(p1, 1, z)
        return p2


def ramp(*shape):
    return tvm.runtime.tensor(np.arange(np.prod(shape), dtype="float32").reshape(shape))


# FuseOps by hand fails at a call_tir that is given nothing but a shape.
LOWERED_BY_COMPILE = [name for name in PIPELINES if name != "passes first"]


@pytest.mark.parametrize("pipeline", LOWERED_BY_COMPILE)
def test_sizes_that_fields_define(pipeline):
    main = load(Sizes, pipeline)["main"]
    params = tvm_ffi.Array([ramp(3), ramp(6), tvm_ffi.Array([ramp(5, 3)])])
    main(params, tvm_ffi.Shape([4]), ramp(2, 5))
    np.testing.assert_array_equal(params[0].numpy(), np.arange(6, dtype="float32").reshape(2, 3))
    np.testing.assert_array_equal(params[2].numpy(), np.arange(15, dtype="float32"))
    np.testing.assert_array_equal(params[1].numpy(), np.full((4, 2, 4), 7, "float32"))


@pytest.mark.parametrize("pipeline", LOWERED_BY_COMPILE)
def test_an_expression_of_sizes_is_checked(pipeline):
    main = load(Sizes, pipeline)["main"]
    params = tvm_ffi.Array([ramp(3), ramp(7), tvm_ffi.Array([ramp(5, 3)])])
    before = list(params)
    with pytest.raises((ValueError, RuntimeError), match="7"):
        main(params, tvm_ffi.Shape([4]), ramp(2, 5))
    assert all(now.same_as(then) for now, then in zip(params, before, strict=True))


def of_a_number():
    k = tvm.tirx.Var("k", "int64")
    ty = relax.TupleType([relax.TensorType((k, 2), "float32"), relax.TensorType((4,), "float32")])
    params = relax.Var("params", ty)
    builder = relax.BlockBuilder()
    with builder.function("main", [params, k], pure=False):
        w = builder.emit(relax.op.permute_dims(builder.emit(relax.TupleGetItem(params, 0))))
        builder.emit_func_output(builder.emit(inplace_update_tuple(params, 0, w)))
    return builder.get()


def test_a_size_that_a_number_defines():
    main = load(of_a_number())["main"]
    params = tvm_ffi.Array([ramp(3, 2), ramp(4)])
    with pytest.raises((ValueError, RuntimeError), match="No field has changed"):
        main(params, 4)
    main(params, 3)
    assert params[0].shape == (2, 3)
