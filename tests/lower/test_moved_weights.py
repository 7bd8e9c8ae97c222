"""Which weights a transform may be given unread: those that one move reads, and nothing else."""

import json

import pytest
import tvm
import tvm_ffi
from tvm import ir, relax
from tvm.script import from_source

from relax_inplace.ir.binding_rewriter import rewrite_bindings, with_body
from relax_inplace.transform import InplaceTransformParams


def moved(
    body,
    types="R.Tensor((8, 6), 'float32'), R.Tensor((8, 6), 'float32')",
    after_asking=None,
    lazy=True,
):
    """What the parameter map of a transform of two weights says; bindings are added to it by hand."""
    source = f"""
@I.ir_module
class Module:
    @R.function
    def transform_params(params: R.Tuple({types})):
        a = params[0]
        b = params[1]
""" + "".join(f"        {line}\n" for line in body.strip().splitlines())
    mod = InplaceTransformParams(lazy=lazy)(from_source(source))
    if after_asking is not None:
        function = mod["inplace_transform_params"]
        get_weight = function.params[0]

        def rewrite(binding):
            asks = isinstance(binding.value, relax.Call) and binding.value.op.same_as(get_weight)
            return [binding, *(after_asking(get_weight) if asks else [])]

        mod["inplace_transform_params"] = rewrite_bindings(function, lambda _: rewrite)
    vm = relax.VirtualMachine(tvm.compile(mod, "llvm"), tvm.cpu())
    return json.loads(vm["inplace_param_map"]())["inplace_transform_params"].get("moved", [])


@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize(
    "body, expected",
    [
        ("x = R.permute_dims(a)\ny = R.permute_dims(b)\nreturn (x, y)", [0, 1]),
        ("x = R.concat((a, b))\nreturn (x,)", [0, 1]),
        ("x = R.reshape(R.permute_dims(a), (4, 12))\nreturn (x, b)", [0]),
        # Computed with.
        ("x = R.add(a, a)\ny = R.permute_dims(b)\nreturn (x, y)", [1]),
        ("x = R.astype(a, 'float16')\nreturn (x, b)", []),
        # Left as it is, or in a tuple.
        ("return (a, b)", []),
        ("x = R.permute_dims(b)\nreturn ((a, x), a)", [1]),
        ("x = R.permute_dims(a)\nreturn (a, x)", []),
        # Read by two kernels, or by two calls.
        ("x = R.permute_dims(a)\ny = R.flip(a, 0)\nreturn (x, y, b)", []),
        ("x = R.concat((a, a))\nreturn (x, b)", []),
        ("x = R.permute_dims(a)\ny = R.sum(a)\nreturn (x, y, b)", []),
        ("x = R.split(a, 2)\nreturn (x[0], x[1], b)", []),
        ("x = R.add(R.permute_dims(R.permute_dims(a)), R.flip(a, 0))\nreturn (x, b)", []),
        # What a move has made may be read by anything.
        ("x = R.exp(R.permute_dims(a))\nreturn (x, b)", [0]),
        ("x = R.permute_dims(R.reshape(a, (6, 8)))\nreturn (x, b)", [0]),
    ],
)
def test_moved(body, expected, lazy):
    assert moved(body, lazy=lazy) == expected


@pytest.mark.parametrize("lazy", [True, False])
def test_symbolic_sizes(lazy):
    types = "R.Tensor(('n', 6), 'float32'), R.Tensor((8, 6), 'float32')"
    assert moved("x = R.permute_dims(a)\nreturn (x, b)", types, lazy=lazy) == [0]


@pytest.mark.parametrize("lazy", [True, False])
def test_weights_in_a_nested_tuple(lazy):
    """They are counted through nested tuples."""
    types = "R.Tuple(R.Tensor((8, 6), 'float32'), R.Tensor((8, 6), 'float32')), R.Tensor((8, 6), 'float32')"
    body = "x = R.permute_dims(a[1])\ny = R.permute_dims(b)\nreturn (x, y, a[0])"
    assert moved(body, types, lazy=lazy) == [1, 2]


@pytest.mark.parametrize("lazy", [True, False])
def test_in_a_branch_it_may_not_be_asked_for(lazy):
    body = """
c = R.const(True, "bool")
if c:
    x = R.permute_dims(a)
    y = x
else:
    x = R.permute_dims(R.add(a, a))
    y = x
return (y, b)
"""
    assert 0 not in moved(body, lazy=lazy)


def asked(get_weight, index=0):
    """A weight, asked for once more."""
    call = relax.Call(get_weight, [relax.prim_value(index)], ret_ty=relax.AnyType())
    return relax.VarBinding(relax.Var("again", call.ty), call)


def through_another_name(get_weight):
    also = relax.VarBinding(relax.Var("also", get_weight.ty), get_weight)
    return [also, asked(also.var)]


def in_a_branch(get_weight):
    branches = []
    for index in (0, 1):
        again = asked(get_weight, index)
        branches.append(relax.SeqExpr([relax.BindingBlock([again])], again.var))
    chosen = relax.If(relax.const(True, "bool"), *branches)
    return [relax.VarBinding(relax.Var("chosen", relax.AnyType()), chosen)]


def in_a_tuple(get_weight):
    held = relax.Tuple([get_weight])
    return [relax.VarBinding(relax.Var("held", held.ty), held)]


def by_a_variable(get_weight):
    number = relax.VarBinding(relax.Var("number", ir.PrimType("int64")), relax.prim_value(0))
    call = relax.Call(get_weight, [number.var], ret_ty=relax.AnyType())
    return [number, relax.VarBinding(relax.Var("again", call.ty), call)]


BOTH = "x = R.permute_dims(a)\ny = R.permute_dims(b)\nreturn (x, y)"


@pytest.mark.parametrize("how", [lambda get_weight: [asked(get_weight)], through_another_name])
def test_a_weight_that_is_asked_for_more_than_once(how):
    """It may be read where it is moved, and computed with elsewhere."""
    assert moved(BOTH, after_asking=how) == [1]


@pytest.mark.parametrize("how", [in_a_branch, in_a_tuple, by_a_variable])
def test_what_is_asked_for_out_of_sight(how):
    assert moved(BOTH, after_asking=how) == []


@pytest.mark.parametrize("lazy", [True, False])
def test_without_donation_there_are_none(lazy):
    with tvm.transform.PassContext(opt_level=3, disabled_pass=["DonateStorage"]):
        assert moved(BOTH, lazy=lazy) == []


@tvm_ffi.register_global_func("tests.look", override=True)
def _look(_tuple):
    pass


def test_what_an_unknown_call_may_have_read():
    """It is given the tuple: any slot may be read."""
    mod = InplaceTransformParams()(
        from_source("""
@I.ir_module
class Module:
    @R.function
    def transform_params(params: R.Tuple(R.Tensor((8, 6), 'float32'))):
        x = R.permute_dims(params[0])
        return (x,)
""")
    )
    function = mod["inplace_transform_params"]
    params = function.params[0]
    look = relax.Call(relax.ExternFunc("tests.look"), [params], ret_ty=relax.AnyType())
    first = relax.VarBinding(relax.Var("seen", look.ty), look)
    blocks = [relax.BindingBlock([first]), *function.body.blocks]
    for extra, expected in (([], [0]), (blocks, [])):
        changed = mod.clone()
        if extra:
            changed["inplace_transform_params"] = with_body(
                function, relax.SeqExpr(extra, function.body.body)
            )
        vm = relax.VirtualMachine(tvm.compile(changed, "llvm"), tvm.cpu())
        entry = json.loads(vm["inplace_param_map"]())["inplace_transform_params"]
        assert entry.get("moved", []) == expected
