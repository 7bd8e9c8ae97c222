"""What a hand-written function checks at entry: what is checked and said, and that nothing changed."""

import json

import numpy as np
import pytest
import tvm
import tvm_ffi
from pipelines import load
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from relax_inplace.lower.entry_check import entry_check, is_entry_check
from relax_inplace.lower.pipeline import checks_first


def ramp(*shape, dtype="float32"):
    return tvm.runtime.tensor(np.arange(np.prod(shape)).reshape(shape).astype(dtype))


def array(*values):
    return tvm_ffi.Array(list(values))


@I.ir_module
class Module:
    @R.function(pure=False)
    def convert(
        params: R.Tuple(
            R.Tensor(("n", 4), "float32"),
            R.Tuple(R.Tensor(("n",), "float32"), R.Tensor(("n * 2",), "int8")),
            R.Tensor(ndim=2),
            R.Shape(["m"]),
            R.Any,
        ),
        x: R.Tensor(("m",), "float32"),
    ):
        w = R.permute_dims(params[0])
        p0 = R.inplace_update_tuple(params, 0, w)
        return p0

    @R.function(pure=False)
    def caller(
        params: R.Tuple(
            R.Tensor(("n", 4), "float32"),
            R.Tuple(R.Tensor(("n",), "float32"), R.Tensor(("n * 2",), "int8")),
            R.Tensor(ndim=2),
            R.Shape(["m"]),
            R.Any,
        ),
        x: R.Tensor(("m",), "float32"),
    ):
        cls = Module
        q = cls.convert(params, x)
        return q

    @R.function
    def looks(
        p: R.Tuple(R.Tensor(("n",), "float32"), R.Tensor(("n",), "float32")),
        q: R.Tuple(R.Tensor(("n",), "float32"), R.Tensor(("n",), "float32")),
    ):
        return R.add(p[0], q[1])

    @R.function(pure=False)
    def two(
        p: R.Tuple(R.Tensor(("n",), "float32"), R.Tensor(("n",), "float32")),
        q: R.Tuple(R.Tensor(("n",), "float32"), R.Tensor(("n",), "float32")),
    ):
        cls = Module
        y = cls.looks(q, q)
        p0 = R.inplace_update_tuple(p, 0, y)
        return p0


@pytest.fixture(scope="module")
def vm():
    return load(Module)


def right():
    nested = array(ramp(3), ramp(6, dtype="int8"))
    return [array(ramp(3, 4), nested, ramp(2, 2), tvm_ffi.Shape([5]), None), ramp(5)]


# -- the call -------------------------------------------------------------------------------------


def spec_of(name, updates=True):
    function = Module[name]
    bindings = entry_check(function, name, function.params, updates)
    if not bindings:
        return None, []
    assert is_entry_check(bindings[0]) == updates
    args = bindings[0].value.args[-2 - len(function.params) :]
    assert args[0].value == name and all(
        a.same_as(b) for a, b in zip(args[2:], function.params, strict=True)
    )
    return json.loads(args[1].value), bindings


def test_what_it_is_told():
    spec, bindings = spec_of("convert")
    assert spec["sizes"] == 2 and spec["updates"] and spec["overwrites"] == []
    params, x = spec["params"]
    tensor = {"kind": "tensor", "dtype": "float32", "device": None}
    assert params == {
        "name": "params",
        "type": [
            {**tensor, "ndim": 2, "shape": [[0], 4]},
            [
                {**tensor, "ndim": 1, "shape": [[0]]},
                {**tensor, "dtype": "int8", "ndim": 1, "shape": [None]},
            ],
            {**tensor, "dtype": None, "ndim": 2, "shape": None},
            {"kind": "shape", "ndim": 1, "values": [[1]]},
            {"kind": "any"},
        ],
    }
    assert x == {"name": "x", "type": {**tensor, "ndim": 1, "shape": [[1]]}}
    # The sizes get their names; a field of whose size there is an expression is matched later.
    assert [type(one).__name__ for one in bindings] == [
        *("VarBinding", "MatchCast", "VarBinding", "VarBinding", "MatchCast")
    ]


def test_what_updates_nothing_asks_for_sizes_only():
    spec, bindings = spec_of("looks", updates=False)
    assert not spec["updates"] and len(bindings) == 2

    @I.ir_module
    class Static:
        @R.function
        def main(p: R.Tuple(R.Tensor((4,), "float32")), x: R.Tensor(("n",), "float32")):
            return p[0]

    main = Static["main"]
    assert entry_check(main, "main", main.params, updates=False) == []
    assert len(entry_check(main, "main", main.params, updates=True)) == 1


def test_a_number_is_a_size():
    k = tvm.tirx.Var("k", "int64")
    ty = relax.TupleType([relax.TensorType((4,), "float32")])
    params = [k, relax.Var("params", ty), relax.Var("x", relax.TensorType((k * 2,), "float32"))]
    function = relax.Function(params, relax.SeqExpr([], params[1]), ty)
    (check,) = entry_check(function, "main", params, updates=True)
    spec = json.loads(check.value.args[1].value)
    assert spec["sizes"] == 1
    assert spec["params"][0]["type"] == {"kind": "prim", "dtype": "int64", "size": [0]}
    assert spec["params"][2]["type"]["shape"] == [None]


def test_it_comes_first():
    """VMShapeLower has put its own checks before."""
    call = relax.call_pure_packed("f", ty_args=[relax.AnyType()])
    other = relax.VarBinding(relax.Var("other", relax.AnyType()), call)
    function = Module["two"]
    check, *rest = entry_check(function, "two", function.params, True)
    body = relax.SeqExpr([relax.BindingBlock([other, check, *rest])], function.params[0])
    body = relax.BlockBuilder().normalize(body)
    after = checks_first(relax.Function(function.params, body, is_pure=False))
    (block,) = after.body.blocks
    assert is_entry_check(block.bindings[0]) and block.bindings[1].same_as(other)
    assert len(block.bindings) == 2 + len(rest)
    assert checks_first(Module["looks"]).same_as(Module["looks"])


# -- what is wrong --------------------------------------------------------------------------------


def strided():
    return tvm_ffi.from_dlpack(np.zeros((4, 3), "float32").T)


# Where, what is given there, and what is said.
WRONG = {
    "dtype": ((0,), lambda: ramp(3, 4, dtype="float64"), "`params`[0] to have dtype float32"),
    "rank": ((0,), lambda: ramp(12), r"`params`[0] to have 2 dimensions"),
    "size": ((0,), lambda: ramp(3, 5), "`params`[0] to have shape (3, 4), but got (3, 5)"),
    "None": ((0,), lambda: None, "`params`[0] to be a Tensor of shape (?, 4)"),
    "None, nested": ((1, 0), lambda: None, "`params`[1][0] to be a Tensor of shape (3,)"),
    "None, of any shape": ((2,), lambda: None, "`params`[2] to be a Tensor of 2 dimensions"),
    "strides": ((0,), strided, "`params`[0] is not contiguous"),
    "symbol": ((1, 0), lambda: ramp(4), "where 3 is dimension 0 of `params`[0], but got (4,)"),
    "no tuple": ((1,), lambda: ramp(3), "`params`[1] to be a tuple of 2 fields"),
    "no shape": ((3,), lambda: ramp(3), "`params`[3] to be the Shape (?,)"),
    "expression": ((1, 1), lambda: ramp(7, dtype="int8"), "7"),
}


def put(params, path, value):
    """The tuple with another field: a new one, as a caller would make it."""
    if not path:
        return value
    index, *inner = path
    return array(*(put(f, inner, value) if i == index else f for i, f in enumerate(params)))


@pytest.mark.parametrize("function", ["convert", "caller"])
@pytest.mark.parametrize("kind", WRONG)
def test_wrong(vm, function, kind):
    path, value, message = WRONG[kind]
    params, x = right()
    params = put(params, path, value())
    before = list(params)
    with pytest.raises((ValueError, TypeError, RuntimeError)) as error:
        vm[function](params, x)
    assert message in str(error.value)
    if kind != "expression":
        assert f"function `{function}` " in str(error.value)
        assert "No field has changed" in str(error.value)
    for now, then in zip(params, before, strict=True):
        assert now.same_as(then) if isinstance(now, tvm_ffi.Object) else now == then


@pytest.mark.parametrize("function", ["convert", "caller"])
def test_right(vm, function):
    params, x = right()
    vm[function](params, x)
    assert params[0].shape == (4, 3)


def test_all_at_once(vm):
    params, _ = right()
    params = array(ramp(3, 4, dtype="float64"), params[1], None, params[3], None)
    with pytest.raises(TypeError) as error:
        vm["convert"](params, None)
    lines = str(error.value).splitlines()
    assert "3 things are wrong. No field has changed" in lines[0]
    assert [line.split()[2] for line in lines[1:4]] == ["`params`[0]", "`params`[2]", "`x`"]


def test_the_length_of_a_tuple(vm):
    params, x = right()
    for count in (0, 4, 6):
        given = array(*[*params, None][:count])
        with pytest.raises(ValueError, match=f"a tuple of 5 fields, but got one of {count}"):
            vm["convert"](given, x)


# -- one thing in two places ----------------------------------------------------------------------


def test_one_tuple_in_two_parameters(vm):
    pair = array(ramp(3), ramp(3))
    with pytest.raises(ValueError, match="given one tuple twice, as `p` and as `q`"):
        vm["two"](pair, pair)
    assert pair[0].numpy().tolist() == [0, 1, 2]


def test_one_tuple_in_two_fields(vm):
    params, x = right()
    with pytest.raises(ValueError, match=r"given one tuple twice, as `params`\[1\] and as"):
        vm["convert"](put(params, (4,), params[1]), x)


def test_what_updates_nothing_may_be_given_one_twice(vm):
    """As `two` gives it, too."""
    pair, other = array(ramp(3), ramp(3)), array(ramp(3), ramp(3))
    assert vm["looks"](pair, pair).numpy().tolist() == [0, 2, 4]
    vm["two"](pair, other)
    assert pair[0].numpy().tolist() == [0, 2, 4]


def test_one_tensor_in_two_fields_is_fine(vm):
    """Nothing writes over it."""
    same = ramp(3)
    pair = array(same, same)
    vm["two"](pair, array(same, same))
    assert pair[0].numpy().tolist() == [0, 2, 4]
    assert pair[1].numpy().tolist() == [0, 1, 2]
