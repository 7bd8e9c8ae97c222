"""What overwrites memory keeps its order: each way to make a view, with each way to overwrite it."""

import re
import textwrap

import numpy as np
import pytest
import tvm
import tvm_ffi
from tvm import relax
from tvm.script import from_source

from relax_inplace.analysis import UnsupportedTransformError
from relax_inplace.inplace.read_transform import read_transform
from relax_inplace.inplace.transform_graph import overwritten_weights
from relax_inplace.transform import InplaceTransformParams

F32 = 'R.Tensor((4, 4), "float32")'
PACKED = f"ty_args={F32}"


@tvm_ffi.register_global_func("tests.double", override=True)
def double(tensor):
    tensor.copyfrom(tensor.numpy() * 2)


@tvm_ffi.register_global_func("tests.doubled", override=True)
def doubled(tensor):
    double(tensor)
    return tensor


tvm_ffi.register_global_func("tests.same", lambda tensor: tensor, override=True)
tvm_ffi.register_global_func("tests.twice", lambda one: tvm_ffi.Array([one, one]), override=True)

FUNCTIONS = f"""
@T.prim_func(private=True, s_tir=True)
def double(a: T.Buffer((4, 4), "float32")):
    for i, j in T.grid(4, 4):
        with T.sblock("double"):
            vi, vj = T.axis.remap("SS", [i, j])
            a[vi, vj] = a[vi, vj] * T.float32(2)

@T.prim_func(private=True, s_tir=True)
def double_and_copy(a: T.Buffer((4, 4), "float32"), b: T.Buffer((4, 4), "float32")):
    for i, j in T.grid(4, 4):
        with T.sblock("double"):
            vi, vj = T.axis.remap("SS", [i, j])
            a[vi, vj] = a[vi, vj] * T.float32(2)
            b[vi, vj] = a[vi, vj]

@R.function(private=True)
def view(x: {F32}) -> {F32}:
    v = R.memory.view(x, R.shape([4, 4]))
    return v

@R.function(private=True)
def view_in_tuple(x: {F32}) -> R.Tuple({F32}, {F32}):
    n = R.negative(x)
    v = R.memory.ensure_zero_offset(x)
    return (n, v)

@R.function(private=True)
def overwrite(x: {F32}) -> {F32}:
    v = R.memory.view(x, R.shape([4, 4]))
    y = R.call_tir_inplace(Module.double, (v,), inplace_indices=[0], out_ty={F32})
    return y
"""

# How v is made of x, a weight.
VIEWS = {
    "itself": "v = x",
    "view": "v = R.memory.view(x, R.shape([4, 4]))",
    "ensure_zero_offset": "v = R.memory.ensure_zero_offset(x)",
    "nested": """
        u = R.memory.view(x, R.shape([16]))
        v = R.memory.ensure_zero_offset(R.memory.view(u, R.shape([4, 4])))
    """,
    "cast": f"v = R.match_cast(x, {F32})",
    "tuple": """
        pair = (R.memory.ensure_zero_offset(x), x)
        again = (pair, x)
        inner = again[0]
        v = inner[0]
    """,
    "function": f"v: {F32} = Module.view(x)",
    "tuple of a function": f"""
        made: R.Tuple({F32}, {F32}) = Module.view_in_tuple(x)
        v = made[1]
    """,
    "branch": f"""
        if c:
            one = R.memory.view(x, R.shape([4, 4]))
            v: {F32} = one
        else:
            other = R.negative(x)
            v: {F32} = other
    """,
    "packed": f'v = R.call_pure_packed("tests.same", x, {PACKED})',
    "tuple of a packed function": f"""
        made = R.call_pure_packed("tests.twice", x, ty_args=R.Tuple({F32}, {F32}))
        v = made[1]
    """,
    "known packed": f'v = R.call_pure_packed("vm.builtin.copy", x, {PACKED})',
    "in place": f"v = R.call_tir_inplace(Module.double, (x,), inplace_indices=[0], out_ty={F32})",
}

# How v is overwritten. What is computed from it goes into a.
OVERWRITERS = {
    "call_tir_inplace": "a = R.call_tir_inplace(Module.double, (v,), inplace_indices=[0], "
    f"out_ty={F32})",
    "call_inplace_packed": f'a = R.call_inplace_packed("tests.doubled", v, inplace_indices=[0], '
    f"{PACKED})",
    "a kernel's input": f"a = R.call_tir(Module.double_and_copy, (v,), out_ty={F32})",
    "function": f"a: {F32} = Module.overwrite(v)",
    "branch": f"""
        if c:
            y = R.call_tir_inplace(Module.double, (v,), inplace_indices=[0], out_ty={F32})
            a: {F32} = y
        else:
            z = R.negative(v)
            a: {F32} = z
    """,
    "packed": """
        R.call_packed("tests.double", v, ty_args=R.Tuple())
        a = R.negative(v)
    """,
}

READ = "b = R.permute_dims(x)"


VARIABLE = re.compile(r"(?<![\w.\"])([xvabuyz]|pair|again|inner|made|one|other)(?![\w.\"(])")


def body_of(*parts, mark=""):
    """Statements, with the variables of each case told apart by a mark."""
    text = "\n".join(textwrap.dedent(part).strip() for part in parts)
    return VARIABLE.sub(rf"\1{mark}", text)


def module(body, outputs, count, pure=True):
    weights = ", ".join([F32] * count)
    source = f"""
@I.ir_module
class Module:
{textwrap.indent(FUNCTIONS, "    ")}
    @R.function(pure={pure})
    def transform_params(c: R.Tensor((), "bool"), params: R.Tuple({weights})):
        R.func_attr({{"num_input": 1}})
{textwrap.indent(body, " " * 8)}
        return {f"({outputs})" if outputs else "out"}
"""
    return from_source(source)


def run(mod, name, count):
    weights = np.arange(16 * count, dtype="float32").reshape(count, 4, 4) + 1
    params = tvm_ffi.Array([tvm.runtime.tensor(weight) for weight in weights])
    yes = tvm.runtime.tensor(np.array(True))
    vm = relax.VirtualMachine(tvm.compile(mod, "llvm"), tvm.cpu())
    return [out.numpy() for out in vm[name](yes, params)]


@pytest.mark.parametrize("read", ["before", "after"])
@pytest.mark.parametrize("overwriter", OVERWRITERS)
def test_each_view_with_each_overwriter(overwriter, read):
    """The output that would come first is computed last: it has to wait, or not to be overtaken."""
    overwrite = OVERWRITERS[overwriter]
    parts, outputs = [], []
    for index, view in enumerate(VIEWS.values()):
        order = [READ, view, overwrite] if read == "before" else [view, overwrite, READ]
        mark = f"_{index}"
        parts.append(f"x{mark} = params[{index}]\n" + body_of(*order, mark=mark))
        outputs += [f"a{mark}", f"b{mark}"] if read == "before" else [f"b{mark}", f"a{mark}"]
    mod = module("\n".join(parts), ", ".join(outputs), len(VIEWS), overwriter != "packed")
    expected = run(mod, "transform_params", len(VIEWS))
    got = run(InplaceTransformParams()(mod), "inplace_transform_params", len(VIEWS))
    for name, one, other in zip(outputs, expected, got, strict=True):
        assert np.array_equal(one, other), (name, list(VIEWS)[int(name.split("_")[1])])
    graph = read_transform("f", mod["transform_params"], mod)
    assert overwritten_weights(graph) == list(range(len(VIEWS)))


def single(*parts, outputs="b, a", **options):
    return module("\n".join(["x = params[0]", body_of(*parts)]), outputs, 2, **options)


RESHAPES = {
    "reshape": "v = R.reshape(x, (4, 4))",
    "two reshapes": "u = R.reshape(x, (16,))\nv = R.reshape(u, (4, 4))",
    "unit axis": "u = R.reshape(x, (4, 1, 4))\nv = R.squeeze(u, [1])",
}


@pytest.mark.parametrize("reshape", RESHAPES)
@pytest.mark.parametrize("overwriter", [name for name in OVERWRITERS if name != "packed"])
def test_a_view_or_a_copy_as_the_pipeline_decides_is_refused(reshape, overwriter):
    made = RESHAPES[reshape]
    mod = single(made, OVERWRITERS[overwriter], READ)
    with pytest.raises(UnsupportedTransformError, match=r"`b = .* touches `x` after `.* = "):
        InplaceTransformParams()(mod)
    # So is reading the copy, or the view, once the weight is overwritten.
    mod = single(made, "w = v\nv = x", OVERWRITERS[overwriter], "b = R.permute_dims(w)")
    with pytest.raises(UnsupportedTransformError, match=r"touches `[uv]`"):
        InplaceTransformParams()(mod)
    # An output is touched at the end.
    mod = single(made, OVERWRITERS[overwriter], outputs="x, a")
    with pytest.raises(UnsupportedTransformError, match="output 0 touches `x`"):
        InplaceTransformParams()(mod)
    # Read before, it is the same either way.
    mod = single(READ, made, OVERWRITERS[overwriter], outputs="a, b")
    expected = run(mod, "transform_params", 2)
    got = run(InplaceTransformParams()(mod), "inplace_transform_params", 2)
    assert all(map(np.array_equal, expected, got))


@pytest.mark.parametrize("view", [name for name in (*VIEWS, *RESHAPES) if name != "in place"])
def test_a_view_of_what_is_not_to_be_modified_is_not_overwritten(view):
    mod = single({**VIEWS, **RESHAPES}[view], OVERWRITERS["call_tir_inplace"], READ)
    with pytest.raises(UnsupportedTransformError, match="overwrites `x`, which is not to be"):
        InplaceTransformParams(params=[1])(mod)


def test_which_weights_are_overwritten():
    """By their position, counted through nested tuples; a step that does not run counts for none."""
    source = f"""
@I.ir_module
class Module:
{textwrap.indent(FUNCTIONS, "    ")}
    @R.function
    def transform_params(params: R.Tuple({F32}, R.Tuple({F32}, {F32}), {F32})):
        inner = params[1]
        v = R.memory.ensure_zero_offset(inner[1])
        a = R.call_tir_inplace(Module.double, (v,), inplace_indices=[0], out_ty={F32})
        b = R.permute_dims(params[0])
        n = R.negative(b)
        unused = R.call_tir_inplace(Module.double, (n,), inplace_indices=[0], out_ty={F32})
        return (a, b)
"""
    mod = from_source(source)
    assert overwritten_weights(read_transform("f", mod["transform_params"], mod)) == [2]


def test_what_tvm_fuses_around_an_overwrite_is_refused():
    """FuseOps moves the kernel that reads the weight past the call that overwrites it."""
    overwrite = OVERWRITERS["call_tir_inplace"].replace("(v,)", "(x,)")
    body = textwrap.indent(f"s = R.exp(x)\n{overwrite}\nb = R.add(s, a)\nR.output(b)", "    ")
    mod = module(f"x = params[0]\nwith R.dataflow():\n{body}", "b, x", 1)
    with pytest.raises(UnsupportedTransformError, match="TVM fuses the kernels of `b`"):
        InplaceTransformParams()(mod)
    run(InplaceTransformParams()(relax.transform.ToNonDataflow()(mod)), INPLACE, 1)


INPLACE = "inplace_transform_params"


@pytest.mark.parametrize("overwriter", [name for name in OVERWRITERS if name != "packed"])
def test_a_branch_whose_condition_reads_what_is_overwritten(overwriter):
    """It is a step like any other then: it is not known before."""
    body = f"""
x = params[0]
second = params[1]
v = R.memory.view(x, R.shape([4, 4]))
{textwrap.dedent(OVERWRITERS[overwriter]).strip()}
low = R.min(x)
is_low = R.less(low, R.const(1.5, "float32"))
if is_low:
    one = (a, R.negative(second))
    out: R.Tuple({F32}, {F32}) = one
else:
    other = (a, R.exp(second))
    out: R.Tuple({F32}, {F32}) = other
"""
    mod = module(body, "", 2)
    expected = run(mod, "transform_params", 2)
    got = run(InplaceTransformParams()(mod), INPLACE, 2)
    assert all(map(np.array_equal, expected, got))


def test_what_a_packed_function_keeps_it_may_overwrite_later():
    kept = []
    tvm_ffi.register_global_func("tests.keep", kept.append, override=True)
    tvm_ffi.register_global_func("tests.double_kept", lambda: double(kept[-1]), override=True)
    body = """
        R.call_packed("tests.keep", x, ty_args=R.Tuple())
        R.call_packed("tests.double_kept", ty_args=R.Tuple())
        b = R.permute_dims(x)
        a = R.negative(params[1])
    """
    mod = single(body, outputs="a, b", pure=False)
    expected = run(mod, "transform_params", 2)
    got = run(InplaceTransformParams()(mod), "inplace_transform_params", 2)
    assert all(map(np.array_equal, expected, got))
    graph = read_transform("f", mod["transform_params"], mod)
    after = {step.name: {s.name for s in step.after} for step in graph.steps}
    assert len(after["b"]) == 1  # the call that doubles


def test_what_is_given_in_a_tuple_is_read():
    """Before it is overwritten, or after."""
    overwrite = OVERWRITERS["call_tir_inplace"].replace("(v,)", "(x,)")
    read = "b = R.concat((x, x), axis=0)"
    for order, outputs in (([overwrite, read], "b, a"), ([read, overwrite], "a, b")):
        mod = single(*order, outputs=outputs)
        expected = run(mod, "transform_params", 2)
        got = run(InplaceTransformParams()(mod), INPLACE, 2)
        assert all(map(np.array_equal, expected, got))


def test_two_that_overwrite_one_weight_keep_their_order():
    """Neither reads what the other one returns."""
    mod = single(
        f"a = R.call_tir_inplace(Module.double, (x,), inplace_indices=[0], out_ty={F32})",
        "v = R.memory.view(x, R.shape([4, 4]))",
        f"b = R.call_tir_inplace(Module.double, (v,), inplace_indices=[0], out_ty={F32})",
    )
    graph = read_transform("f", mod["transform_params"], mod)
    after = {step.name: {s.name for s in step.after} for step in graph.steps}
    assert "a" in after["b"]
    assert "b" not in after["a"]


def test_impure_calls_keep_their_order():
    """Also such as overwrite nothing."""
    prints = ['R.print(params[1], format="{}")', 'R.print(x, format="{}")']
    mod = single(*prints, "a = R.negative(x)", "b = R.negative(x)", pure=False)
    graph = read_transform("f", mod["transform_params"], mod)
    first, second = [step for step in graph.steps if step.is_impure]
    assert first in second.after


def test_what_a_packed_function_keeps_another_one_may_return():
    """Overwritten under that name, the weight holds other bits, too."""
    kept = []
    tvm_ffi.register_global_func("tests.keep", kept.append, override=True)
    tvm_ffi.register_global_func("tests.kept", lambda: kept[-1], override=True)
    body = f"""
        R.call_packed("tests.keep", x, ty_args=R.Tuple())
        v = R.call_packed("tests.kept", {PACKED})
        a = R.call_tir_inplace(Module.double, (v,), inplace_indices=[0], out_ty={F32})
        b = R.permute_dims(x)
    """
    mod = single(body, outputs="b, a", pure=False)
    expected = run(mod, "transform_params", 2)
    got = run(InplaceTransformParams()(mod), INPLACE, 2)
    assert all(map(np.array_equal, expected, got))
    graph = read_transform("f", mod["transform_params"], mod)
    after = {step.name: {s.name for s in step.after} for step in graph.steps}
    assert "a" in after["b"]
