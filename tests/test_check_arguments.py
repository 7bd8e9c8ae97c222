"""The check of all arguments, called directly: every rule, good and bad, against a reference."""

import json
import re

import numpy as np
import pytest
import tvm
import tvm_ffi
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from relax_inplace.libinfo import BUILTINS

check = tvm_ffi.get_global_func(BUILTINS)


def tensor(*shape, dtype="float32"):
    return tvm.runtime.empty(shape, dtype)


def tensor_type(*shape, dtype="float32", device=None):
    return {
        "kind": "tensor",
        "dtype": dtype,
        "ndim": len(shape),
        "shape": list(shape),
        "device": device,
    }


def ranked(ndim, dtype=None):
    return {"kind": "tensor", "dtype": dtype, "ndim": ndim, "shape": None, "device": None}


def shape_type(*values):
    return {"kind": "shape", "values": list(values), "ndim": len(values)}


ANY = {"kind": "any"}
CALLABLE = {"kind": "callable"}


def slots(size):
    return {"kind": "slots", "size": size}


def prim(dtype, size=None):
    return {"kind": "prim", "dtype": dtype, "size": size}


def spec_of(types, sizes=0, overwrites=(), updates=True):
    params = [{"name": name, "type": ty} for name, ty in types.items()]
    return {
        "sizes": sizes,
        "updates": updates,
        "params": params,
        "overwrites": list(overwrites),
    }


def call(types, *args, **given):
    """The sizes that the arguments define."""
    return tuple(check("main", json.dumps(spec_of(types, **given)), *args))


def said(types, *args, error=ValueError, **given):
    """What is wrong, without what every error says."""
    with pytest.raises(error) as raised:
        call(types, *args, **given)
    assert raised.type is error
    first, *others = str(raised.value).splitlines()
    assert first.startswith("function `main` ")
    assert first.endswith(". No field has changed")
    return [first.removeprefix("function `main` ").removesuffix(". No field has changed"), *others]


def one(ty, value, **given):
    """What is wrong with one argument."""
    (text,) = said({"x": ty}, value, **given)
    return text


# -- kinds ----------------------------------------------------------------------------------


GOOD = {
    "tensor": (tensor_type(2, 3), lambda: tensor(2, 3)),
    "no dtype": (tensor_type(2, dtype=None), lambda: tensor(2, dtype="int8")),
    "rank": (ranked(2, "uint8"), lambda: tensor(4, 5, dtype="uint8")),
    "any tensor": (ranked(-1), lambda: tensor(1, 2, 3)),
    "scalar": (tensor_type(dtype="bool"), lambda: tensor(dtype="bool")),
    "no bytes": (tensor_type(0, 3), lambda: tensor(0, 3)),
    "packed": (tensor_type(3, 5, dtype="int4"), lambda: tensor(3, 5, dtype="int4")),
    "lanes": (tensor_type(3, dtype="float32x4"), lambda: tensor(3, dtype="float32x4")),
    "unknown size": (tensor_type(2, None), lambda: tensor(2, 9)),
    "device": (tensor_type(2, device=[1, 0]), lambda: tensor(2)),
    "row view": (tensor_type(3), lambda: tvm_ffi.from_dlpack(np.zeros((4, 3), "float32")[2])),
    "shape": (shape_type(2, None), lambda: tvm_ffi.Shape([2, 7])),
    "shape rank": ({"kind": "shape", "values": None, "ndim": 2}, lambda: tvm_ffi.Shape([2, 7])),
    "any shape": ({"kind": "shape", "values": None, "ndim": -1}, lambda: tvm_ffi.Shape([])),
    "int": (prim("int64"), lambda: 3),
    "int32": (prim("int32"), lambda: -3),
    "uint": (prim("uint8"), lambda: 3),
    "bool": (prim("bool"), lambda: True),
    "float": (prim("float32"), lambda: 2.5),
    "float by int": (prim("float16"), lambda: 2),
    "function": (CALLABLE, lambda: tvm_ffi.convert(lambda x: x)),
    "slots": (slots(3), lambda: tvm_ffi.Array([None, "old", tensor(1)])),
    "any": (ANY, lambda: tvm_ffi.from_dlpack(np.zeros((5, 3), "float32").T)),
    "any None": (ANY, lambda: None),
    "empty": ([], lambda: tvm_ffi.Array([])),
    "nested": (
        [tensor_type(2), [prim("int64"), [tensor_type(3)]], []],
        lambda: tvm_ffi.Array([tensor(2), (1, (tensor(3),)), ()]),
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_good(name):
    ty, make = GOOD[name]
    assert call({"x": ty}, make()) == ()


def test_a_closure_of_the_virtual_machine_is_callable():
    @I.ir_module
    class Module:
        @R.function
        def main(x: R.Tensor((2,), "float32")) -> R.Any:
            @R.function
            def inner(y: R.Tensor((2,), "float32")) -> R.Tensor((2,), "float32"):
                return R.add(x, y)

            return inner

    executable = tvm.compile(relax.transform.LambdaLift()(Module), "llvm")
    closure = relax.VirtualMachine(executable, tvm.cpu())["main"](tensor(2))
    assert not isinstance(closure, tvm_ffi.Function)
    assert call({"f": CALLABLE}, closure) == ()


BAD = {
    "None": (tensor_type(2, 3), None, "to be a Tensor of shape (2, 3) and dtype float32, but got `None`"),
    "number": (tensor_type(2, dtype=None), 3, "to be a Tensor of shape (2,), but got `int`"),
    "no rank": (ranked(-1), 3.5, "to be a Tensor, but got `float`"),
    "rank": (ranked(2, "int8"), "a", "to be a Tensor of 2 dimensions and dtype int8, but got `ffi.SmallStr`"),
    "dtype only": (ranked(-1, "int8"), None, "to be a Tensor of dtype int8, but got `None`"),
    "tuple": (tensor_type(2), (), "to be a Tensor of shape (2,) and dtype float32, but got `ffi.Array`"),
    "a tensor": ([ANY, ANY], tensor(2), "to be a tuple of 2 fields, but got `ffi.Tensor`"),
    "no tuple": ([], None, "to be a tuple of 0 fields, but got `None`"),
    "shape": (shape_type(2, None), 2, "to be the Shape (2, ?), but got `int`"),
    "shape None": ({"kind": "shape", "values": None, "ndim": 2}, None, "to be a Shape, but got `None`"),
    "int": (prim("int64"), 2.5, "to be a number of dtype int64, but got `float`"),
    "int None": (prim("int64"), None, "to be a number of dtype int64, but got `None`"),
    "float": (prim("float32"), tensor(1), "to be a number of dtype float32, but got `ffi.Tensor`"),
    "bool": (prim("bool"), 1.0, "to be a number of dtype bool, but got `float`"),
    "callable": (CALLABLE, None, "to be callable, but got `None`"),
    "called": (CALLABLE, tensor(1), "to be callable, but got `ffi.Tensor`"),
    "slots": (
        slots(2),
        None,
        "to be a tuple to fill, of 2 slots, but got `None`; pass tvm_ffi.Array([None] * 2)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_another_kind(name):
    ty, value, text = BAD[name]
    assert one(ty, value, error=TypeError) == f"expects `x` {text}"


WRONG = {
    "dtype": (tensor_type(2), tensor(2, dtype="float16"), "to have dtype float32, but got float16"),
    "dtype bits": (ranked(1, "uint8"), tensor(2, dtype="int8"), "to have dtype uint8, but got int8"),
    "lanes": (ranked(1, "int4x2"), tensor(2, dtype="int4"), "to have dtype int4x2, but got int4"),
    "rank": (tensor_type(2, None), tensor(2), "to have 2 dimensions, (2, ?), but got (2,)"),
    "rank only": (ranked(3), tensor(2, 2), "to have 3 dimensions, but got (2, 2)"),
    "scalar": (tensor_type(), tensor(1), "to have 0 dimensions, (), but got (1,)"),
    "size": (tensor_type(2, 3, None), tensor(2, 4, 5), "to have shape (2, 3, ?), but got (2, 4, 5)"),
    "device": (tensor_type(2, device=[2, 1]), tensor(2), "to be on cuda:1, but got one on cpu:0"),
    "no name": (tensor_type(2, device=[99, 0]), tensor(2), "to be on device type 99:0, but got one on cpu:0"),
    "shape": (shape_type(2, 3), tvm_ffi.Shape([2, 4]), "to have shape (2, 3), but got (2, 4)"),
    "shape rank": (shape_type(2), tvm_ffi.Shape([]), "to have 1 dimensions, (2,), but got ()"),
    "too few": ([ANY, ANY], (1,), "to be a tuple of 2 fields, but got one of 1"),
    "too many": ([], (1, 2), "to be a tuple of 0 fields, but got one of 2"),
    "slots": (slots(2), (1,), "to be a tuple to fill, with a slot for each of its 2 outputs, but got one of 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_value(name):
    ty, value, text = WRONG[name]
    assert one(ty, value) == f"expects `x` {text}"


def test_a_nested_field_is_named():
    types = {"params": [ANY, [tensor_type(2), [tensor_type(3)]]], "k": prim("int64")}
    params = tvm_ffi.Array([None, (tensor(2), (None,))])
    (text,) = said(types, params, 1, error=TypeError)
    assert text.startswith("expects `params`[1][1][0] to be a Tensor")


def test_views():
    base = tvm.runtime.tensor(np.zeros((6, 5), "float32"))
    strided = tvm_ffi.from_dlpack(np.zeros((5, 3), "float32").T)
    offset = base._create_view([3, 5], relative_byte_offset=20)
    assert offset.shape == (3, 5)
    text = (
        "updates its argument in place: `x`[0] is not contiguous from the first byte of its data "
    )
    copy = "; copy it before the call"
    assert one([tensor_type(3, 5)], (strided,)) == (
        f"{text}(shape (3, 5), strides (1, 3), byte_offset 0){copy}"
    )
    assert one([tensor_type(3, 5)], (offset,)) == (
        f"{text}(shape (3, 5), strides (5, 1), byte_offset 20){copy}"
    )
    assert call({"x": [tensor_type(3, 5)]}, (base._create_view([3, 5]),)) == ()


# -- sizes ----------------------------------------------------------------------------------


def test_a_number_defines_a_size():
    types = {"n": prim("int64", [0]), "x": tensor_type([0], [1])}
    assert call(types, 4, tensor(4, 5), sizes=2) == (4, 5)
    assert said(types, 3, tensor(4, 5), sizes=2) == [
        "expects `x` to have shape (3, 5), where 3 is `n`, but got (4, 5)"
    ]
    types = dict(reversed(types.items()))
    assert said(types, tensor(4, 5), 3, sizes=2) == [
        "expects `n` to be 4, which is dimension 0 of `x`, but got 3"
    ]


def test_what_updates_nothing_may_be_given_a_tuple_twice():
    one = tvm_ffi.Array([tensor(2)])
    types = {"x": [tensor_type(2)], "y": [tensor_type(2)]}
    assert call(types, one, one, updates=False) == ()
    assert "one tuple twice" in said(types, one, one)[0]


def test_sizes_that_the_first_dimension_defines():
    types = {
        "params": [tensor_type([1], 2), shape_type([2], [1]), tensor_type([2], [0], None)],
        "y": tensor_type([2]),
    }
    good = (tensor(3, 2), tvm_ffi.Shape([7, 3]), tensor(7, 9, 4))
    assert call(types, good, tensor(7), sizes=3) == (9, 3, 7)
    (text,) = said(types, good, tensor(8), sizes=3)
    assert text == (
        "expects `y` to have shape (7,), where 7 is dimension 0 of `params`[1], but got (8,)"
    )
    bad = (tensor(3, 2), tvm_ffi.Shape([7, 4]), tensor(7, 9, 4))
    (text,) = said(types, bad, tensor(7), sizes=3)
    assert text == (
        "expects `params`[1] to have shape (7, 3), where 3 is dimension 0 of `params`[0], "
        "but got (7, 4)"
    )


def test_a_tensor_that_contradicts_itself():
    assert said({"x": tensor_type([0], [0])}, tensor(3, 4), sizes=1) == [
        "expects `x` to have shape (3, 3), where 3 is dimension 0 of `x`, but got (3, 4)"
    ]
    assert call({"x": tensor_type([0], [0])}, tensor(3, 3), sizes=1) == (3,)


def test_an_unknown_size_is_a_question_mark():
    assert said({"x": tensor_type([0], 2)}, None, sizes=1, error=TypeError) == [
        "expects `x` to be a Tensor of shape (?, 2) and dtype float32, but got `None`"
    ]


# -- one thing in two places ----------------------------------------------------------------


def test_a_tuple_in_two_slots():
    inner = tvm_ffi.Array([tensor(2)])
    ty = [tensor_type(2)]
    (text,) = said({"params": [ty, ty]}, tvm_ffi.Array([inner, inner]))
    assert text == (
        "is given one tuple twice, as `params`[0] and as `params`[1], where an update of one "
        "would change the other; pass a copy as one of them"
    )
    (text,) = said({"params": [ty], "other": ty}, tvm_ffi.Array([inner]), inner)
    assert "as `params`[0] and as `other`" in text
    (text,) = said({"params": ty, "slots": slots(1)}, inner, inner)
    assert "as `params` and as `slots`" in text
    (text,) = said({"any": ANY, "params": ty}, inner, inner)
    assert "as `any` and as `params`" in text
    (text,) = said({"params": ty, "any": ANY}, inner, inner)
    assert "as `params` and as `any`" in text
    assert call({"one": ANY, "other": ANY}, inner, inner) == ()
    again = tvm_ffi.Array([inner[0]])
    assert call({"params": [ty, ty]}, tvm_ffi.Array([inner, again])) == ()


def test_an_empty_tuple_is_no_place():
    empty = tvm_ffi.Array([])
    assert call({"params": [[], []]}, tvm_ffi.Array([empty, empty])) == ()


@pytest.mark.parametrize("b", [None, (1,), "twice"])
def test_leaves_are_counted_where_a_tuple_is_wrong(b):
    a, x = tvm_ffi.Array([1, 2]), tensor(2)
    types = {"a": [ANY, ANY], "b": [ANY, [ANY]], "c": [tensor_type(2), tensor_type(2)]}
    error = TypeError if b is None else ValueError
    args = (a, a if b == "twice" else b, tvm_ffi.Array([x, x]))
    lines = said(types, *args, error=error, overwrites=[5])
    assert len(lines) == 3
    assert lines[2].startswith("  it overwrites the data of `c`[1], which `c`[0] holds too")


def test_a_tensor_in_two_slots():
    x, y = tensor(4), tensor(4)
    types = {"params": [prim("int64"), [tensor_type(4), tensor_type(4)]], "z": tensor_type(4)}
    params = tvm_ffi.Array([1, (x, y)])
    assert call(types, params, x) == ()
    assert call(types, params, x, overwrites=[2]) == ()
    assert call(types, params, x, overwrites=[0]) == ()  # no tensor
    text = "overwrites the data of `params`[1][0], which `z` holds too; pass a copy of one of them"
    assert said(types, params, x, overwrites=[1]) == [text]
    text = "overwrites the data of `z`, which `params`[1][0] holds too; pass a copy of one of them"
    assert said(types, params, x, overwrites=[3]) == [text]
    assert len(said(types, params, x, overwrites=[1, 3])) == 1  # one pair, one thing


def test_tensors_that_share_bytes():
    host = np.zeros((4, 4), "float32")
    whole = tvm_ffi.from_dlpack(host)
    rows = [tvm_ffi.from_dlpack(host[i : i + 1]) for i in range(4)]
    row = tensor_type(1, 4)
    types = {"rows": [row] * 4, "whole": tensor_type(4, 4)}
    assert call({"rows": [row] * 4}, rows, overwrites=range(4)) == ()
    for leaf in range(4):
        assert said(types, rows, whole, overwrites=[leaf]) == [
            f"overwrites the data of `rows`[{leaf}], which `whole` holds too; "
            "pass a copy of one of them"
        ]
    (text,) = said(types, rows, whole, overwrites=[4])
    assert text.startswith("overwrites the data of `whole`, which `rows`[0] holds too")
    assert said(types, rows, whole, overwrites=range(5))[0].endswith("4 things are wrong")


# -- all at once ----------------------------------------------------------------------------


def test_all_that_is_wrong_is_said_at_once():
    types = {"params": [tensor_type(2), tensor_type(3), prim("int64")], "f": CALLABLE}
    params = tvm_ffi.Array([tensor(2, dtype="int8"), tensor(4), 1])
    assert said(types, params, tvm_ffi.convert(len)) == [
        "cannot use its arguments: 2 things are wrong",
        "  it expects `params`[0] to have dtype float32, but got int8",
        "  it expects `params`[1] to have shape (3,), but got (4,)",
    ]
    lines = said(types, params, None, error=TypeError)  # one of another kind
    assert lines[0] == "cannot use its arguments: 3 things are wrong"
    assert lines[-1] == "  it expects `f` to be callable, but got `None`"


@pytest.mark.parametrize("count", [8, 9, 20])
def test_no_more_than_eight_are_listed(count):
    lines = said({"params": [tensor_type(1)] * count}, (None,) * count, error=TypeError)
    assert lines[0] == f"cannot use its arguments: {count} things are wrong"
    more = [f"  and {count - 8} more"] if count > 8 else []
    assert [line.split(" to be ")[0] for line in lines[1:]] == [
        *(f"  it expects `params`[{i}]" for i in range(8)),
        *more,
    ]


# -- malformed types ------------------------------------------------------------------------


X = tensor_type(2)
MALFORMED = {
    "no JSON": ("{", "no JSON"),
    "nothing": ("", "no JSON"),
    "a list": ([], "is `ffi.Array`"),
    "no sizes": ({"updates": True, "params": [], "overwrites": []}, 'there is no "sizes"'),
    "no params": ({"sizes": 0, "updates": True, "overwrites": []}, 'there is no "params"'),
    "no updates": (
        {"sizes": 0, "params": [{"name": "x", "type": X}], "overwrites": []},
        'there is no "updates"',
    ),
    "many sizes": (spec_of({"x": X}, sizes=10**15), f"cannot be {10**15} sizes"),
    "sizes below zero": (spec_of({"x": X}, sizes=-1), "cannot be -1 sizes"),
    "too many": (spec_of({"x": X, "y": X}), "of 2 arguments, but there are 1"),
    "too few": (spec_of({}), "of 0 arguments, but there are 1"),
    "no type": ({**spec_of({}), "params": [{"name": "x"}]}, 'there is no "type"'),
    "no name": ({**spec_of({}), "params": [{"type": X}]}, 'there is no "name"'),
    "a number": (spec_of({"x": 3}), "a type is `int`"),
    "null": (spec_of({"x": None}), "a type is `None`"),
    "kind": (spec_of({"x": {"kind": "table"}}), 'there is no kind "table"'),
    "no kind": (spec_of({"x": {}}), 'there is no "kind"'),
    "kind null": (spec_of({"x": {"kind": None}}), "kind is `None`"),
    "dtype": (spec_of({"x": {**X, "dtype": 3}}), "dtype is `int`"),
    "no ndim": (spec_of({"x": {"kind": "tensor", "dtype": None, "shape": None}}), '"ndim"'),
    "a size": (spec_of({"x": tensor_type("a")}), "a dimension is"),
    "no such size": (spec_of({"x": tensor_type([0])}), "a size that there is not"),
    "size below zero": (spec_of({"x": tensor_type([-1])}, sizes=1), "a size that there is not"),
    "sizes": (spec_of({"x": tensor_type([0, 0])}, sizes=1), "a size that there is not"),
    "undefined": (spec_of({"x": X}, sizes=1), "no dimension defines the size 0"),
    "device": (spec_of({"x": {**X, "device": [1]}}), "a device has"),
    "leaf": (spec_of({"x": X}, overwrites=[1]), "there is no leaf 1"),
    "leaf below zero": (spec_of({"x": X}, overwrites=[-1]), "there is no leaf -1"),
    "leaf null": (spec_of({"x": X}, overwrites=[None]), "overwrites is `None`"),
    "deep": (f'{{"sizes": {"[" * 10**6}{"]" * 10**6}}}', "nested more than 1000 deep"),
    "deep, quoted": ('{"a\\"[": ' + "[" * 2000, "nested more than 1000 deep"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_types(name):
    spec, text = MALFORMED[name]
    spec = spec if isinstance(spec, str) else json.dumps(spec)
    with pytest.raises(RuntimeError, match=re.escape(text)) as raised:
        check("main", spec, tensor(2))
    assert "malformed types of arguments" in str(raised.value)


def test_brackets_in_a_name_are_not_depth():
    name = "[" * 2000
    assert call({name: X}, tensor(2)) == ()
    assert said({name: X}, tensor(3))[0].startswith(f"expects `{name}` to have shape")


@pytest.mark.parametrize("args", [(), ("main",), (1, "{}"), ("main", 1)])
def test_what_comes_first_is_checked(args):
    with pytest.raises(TypeError):
        check(*args)


def test_an_unknown_dtype():
    with pytest.raises(ValueError, match="nonsense"):
        call({"x": tensor_type(2, dtype="nonsense")}, tensor(2))


# -- at random ------------------------------------------------------------------------------

SIZES = 3
DIMS = st.one_of(st.integers(1, 3), st.integers(0, SIZES - 1).map(lambda i: [i]), st.none())
DTYPES = ("float32", "int8", "uint8", "float16", "bool", "float64")


def types_of_leaves():
    dims = st.lists(DIMS, max_size=3)
    tensors = st.builds(
        lambda dims, dtype, kind: {
            "kind": "tensor",
            "dtype": dtype,
            "ndim": -1 if kind == "nothing" else len(dims),
            "shape": dims if kind == "shape" else None,
            "device": [1, 0] if kind == "rank" else None,
        },
        dims,
        st.sampled_from((*DTYPES, None)),
        st.sampled_from(("shape", "shape", "shape", "rank", "nothing")),
    )
    shapes = dims.map(lambda dims: shape_type(*dims))
    return st.one_of(
        tensors,
        tensors,
        shapes,
        st.sampled_from(("int64", "float32", "bool")).map(prim),
        st.sampled_from((CALLABLE, ANY, slots(2))),
    )


TYPES = st.recursive(types_of_leaves(), lambda inner: st.lists(inner, max_size=4), max_leaves=8)


WAYS = [*["again"] * 8, "size", "strides", "dtype", "rank", "fields", "kind"]


@st.composite
def values(draw, ty, sizes, made):
    """A value of a type; now and then another one, or one that has been made before."""
    wrong = draw(st.sampled_from([None] * 20 + WAYS))
    if wrong == "kind":
        return draw(st.sampled_from([None, 3, 2.5, "a", True, tvm_ffi.Shape([1]), tensor(2)]))
    kind = "tuple" if isinstance(ty, list) else ty["kind"]
    alike = [value for other, value in made if other == kind]
    if wrong == "again" and alike:
        return draw(st.sampled_from(alike))
    if isinstance(ty, list):
        count = max(len(ty) + (draw(st.sampled_from((-1, 1))) if wrong == "fields" else 0), 0)
        types = [*ty, ANY][:count]
        value = tvm_ffi.Array([draw(values(one, sizes, made)) for one in types])
    elif ty["kind"] in ("tensor", "shape"):
        dims = ty["shape"] if ty["kind"] == "tensor" else ty["values"]
        if dims is None:
            dims = [None] * (ty["ndim"] if ty["ndim"] >= 0 else draw(st.integers(0, 2)))
        shape = [
            sizes[dim[0]] if isinstance(dim, list) else dim or draw(st.integers(0, 3))
            for dim in dims
        ]
        if wrong == "rank":
            shape = [*shape, 2]
        if wrong == "size" and shape:
            shape[draw(st.integers(0, len(shape) - 1))] += 1
        if ty["kind"] == "shape":
            return tvm_ffi.Shape(shape)
        dtype = ty["dtype"] or draw(st.sampled_from(DTYPES))
        if wrong == "dtype":
            dtype = draw(st.sampled_from(DTYPES))
        array = np.zeros(shape, dtype)
        if wrong == "strides":
            array = np.zeros(shape[::-1], dtype).T
        value = tvm_ffi.from_dlpack(array) if dtype != "bool" else tensor(*shape, dtype=dtype)
    elif ty["kind"] == "prim":
        return {"int64": 3, "float32": 1.5, "bool": True}[ty["dtype"]]
    elif ty["kind"] == "callable":
        return tvm_ffi.convert(len)
    elif ty["kind"] == "slots":
        value = tvm_ffi.Array([None] * (3 if wrong == "fields" else 2))
    else:
        return draw(st.sampled_from([None, 1, tvm_ffi.Array([2])]))
    made.append((kind, value))
    return value


class Reference:
    """The same check, of its definition: places, and what is wrong at each, in any order."""

    def __init__(self):
        self.sizes = {}
        self.wrong = []  # (kind, path)
        self.leaves = []  # (path, tensor or None)
        self.tuples = []

    def leaf_types(self, ty):
        return sum(map(self.leaf_types, ty)) if isinstance(ty, list) else 1

    def check_sizes(self, dims, ndim, given, path):
        rank = ndim if dims is None else len(dims)
        if rank not in (-1, len(given)):
            self.wrong.append(("dimensions", path))
            return
        agree = True
        for dim, size in zip(dims or (), given, strict=False):
            expected = self.sizes.setdefault(dim[0], size) if isinstance(dim, list) else dim
            agree &= expected is None or expected == size
        if not agree:
            self.wrong.append(("shape", path))

    def is_new(self, value, path, is_updated):
        if len(value) == 0:
            return True
        for other, may_be_updated in self.tuples:
            if other.same_as(value) and (is_updated or may_be_updated):
                self.wrong.append(("twice", path))
                return False
        if not any(other.same_as(value) for other, _ in self.tuples):
            self.tuples.append((value, is_updated))
        return True

    def check(self, ty, value, path):
        is_tuple = isinstance(value, tvm_ffi.Array)
        if isinstance(ty, list):
            if not is_tuple:
                self.wrong.append(("kind", path))
            elif len(value) != len(ty):
                self.wrong.append(("fields", path))
            elif self.is_new(value, path, True):
                for i, (field, one) in enumerate(zip(ty, value, strict=True)):
                    self.check(field, one, f"{path}[{i}]")
                return
            self.leaves += [(path, None)] * self.leaf_types(ty)
            return
        self.leaves.append((path, None))
        kind = ty["kind"]
        if kind == "any":
            if is_tuple:
                self.is_new(value, path, False)
        elif kind == "slots":
            if not is_tuple:
                self.wrong.append(("kind", path))
            elif len(value) != ty["size"]:
                self.wrong.append(("fields", path))
            else:
                self.is_new(value, path, True)
        elif kind == "callable":
            if not isinstance(value, tvm_ffi.Function):
                self.wrong.append(("kind", path))
        elif kind == "prim":
            right = {"int64": (int, bool), "float32": (int, bool, float), "bool": (int, bool)}
            if not isinstance(value, right[ty["dtype"]]):
                self.wrong.append(("kind", path))
        elif kind == "shape":
            if isinstance(value, tvm_ffi.Shape):
                self.check_sizes(ty["values"], ty["ndim"], tuple(value), path)
            else:
                self.wrong.append(("kind", path))
        elif not isinstance(value, tvm_ffi.Tensor):
            self.wrong.append(("kind", path))
        else:
            if ty["dtype"] not in (None, str(value.dtype)):
                self.wrong.append(("dtype", path))
            self.check_sizes(ty["shape"], ty["ndim"], tuple(value.shape), path)
            if not value.is_contiguous():
                self.wrong.append(("contiguous", path))
            elif np.prod(value.shape, dtype=int):
                self.leaves[-1] = (path, value)

    def check_overwrites(self, overwrites):
        pairs = set()
        for leaf in overwrites:
            _path, tensor = self.leaves[leaf]
            others = [
                i
                for i, (_, other) in enumerate(self.leaves)
                if i != leaf and tensor is not None and other is not None
                and other.data_ptr() == tensor.data_ptr()
            ]  # fmt: skip
            if others:
                pairs.add(frozenset((leaf, others[0])))
        self.wrong += [("overwrites", self.leaves[min(pair)][0]) for pair in pairs]


WORDS = {
    "kind": r" to be .*, but got `",
    "fields": r"slots?.*, but got one of \d|to be a tuple of .*, but got one of \d",
    "dimensions": r" dimensions.*, but got \(",
    "shape": r" to have shape ",
    "dtype": r" to have dtype ",
    "contiguous": r" is not contiguous ",
    "twice": r"is given one tuple twice",
    "overwrites": r"overwrites the data of ",
}


@settings(max_examples=3 * settings().max_examples, derandomize=True)
@given(st.data(), st.lists(TYPES, min_size=1, max_size=3))
def test_any_arguments(data, types):
    sizes = data.draw(st.lists(st.integers(1, 3), min_size=SIZES, max_size=SIZES))
    made = []
    args = [data.draw(values(ty, sizes, made)) for ty in types]
    names = {f"p{i}": ty for i, ty in enumerate(types)}
    reference = Reference()
    for (name, ty), arg in zip(names.items(), args, strict=True):
        reference.check(ty, arg, f"`{name}`")
    overwrites = data.draw(
        st.lists(st.integers(0, len(reference.leaves) - 1), unique=True)
        if reference.leaves
        else st.just([])
    )
    reference.check_overwrites(overwrites)

    # Sizes that no dimension has are asked of a shape, so that all are defined.
    missing = [i for i in range(SIZES) if i not in reference.sizes]
    names["defined"] = shape_type(*([i] for i in missing))
    args.append(tvm_ffi.Shape([5] * len(missing)))
    given_ = {"sizes": SIZES, "overwrites": overwrites}
    if not reference.wrong:
        expected = [reference.sizes.get(i, 5) for i in range(SIZES)]
        assert call(names, *args, **given_) == tuple(expected)
        return
    is_kind = any(kind == "kind" for kind, _ in reference.wrong)
    first, *others = said(names, *args, error=TypeError if is_kind else ValueError, **given_)
    if len(reference.wrong) == 1:
        lines = [first]
    else:
        assert first == f"cannot use its arguments: {len(reference.wrong)} things are wrong"
        lines = others[:8]
        assert len(lines) == min(len(reference.wrong), 8)
    left = list(reference.wrong)
    for line in lines:
        found = [w for w in left if w[1] in line and re.search(WORDS[w[0]], line)]
        assert found, (line, left)
        left.remove(found[0])


@settings(derandomize=True)
@given(st.data(), st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4)), max_size=8))
def test_any_overlap(data, ranges):
    host = np.zeros(16, "int8")
    fields = [tvm_ffi.from_dlpack(host[begin : begin + size]) for begin, size in ranges]
    leaves = st.integers(0, max(len(ranges) - 1, 0))
    overwrites = data.draw(st.lists(leaves, unique=True)) if ranges else []

    def overlap(i, j):
        (a, n), (b, m) = ranges[i], ranges[j]
        return i != j and max(a, b) < min(a + n, b + m)

    seen_by_others = {i for i in overwrites if any(overlap(i, j) for j in range(len(ranges)))}
    types = {"x": [tensor_type(size, dtype="int8") for _, size in ranges]}
    if not seen_by_others:
        assert call(types, fields, overwrites=overwrites) == ()
        return
    lines = said(types, fields, overwrites=overwrites)
    pairs = [tuple(map(int, re.findall(r"`x`\[(\d)\]", line))) for line in lines]
    pairs = [pair for pair in pairs if pair]
    assert len({frozenset(pair) for pair in pairs}) == len(pairs)
    assert all(overlap(i, j) and i in overwrites for i, j in pairs)
    assert seen_by_others <= {i for pair in pairs for i in pair}
