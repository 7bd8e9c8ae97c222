"""Packed elements: moved bit by bit, refused where a kernel would read or make them."""

import ctypes
import subprocess
import sys

import numpy as np
import pytest
import tvm
import tvm_ffi
from tvm import relax, te
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from relax_inplace.analysis import UnsupportedTransformError, plan_memory
from relax_inplace.ir.byte_size import size_of
from relax_inplace.ir.whole_bytes import packed_computation, require_whole_bytes
from relax_inplace.transform import InplaceTransformParams, LiftInplaceTransformParams

PACKED = [
    "int4", "uint4", "int2", "uint2", "int1", "uint1", "uint3", "int6", "int12", "int24", "int48",
    "float4_e2m1fn", "float6_e2m3fn", "float6_e3m2fn",
    "int4x2", "int4x8", "uint1x8", "float4_e2m1fnx2",
]  # fmt: skip
WHOLE = [
    "int8", "uint8", "bool", "int16", "float16", "bfloat16", "float32", "float64", "int128",
    "float8_e4m3fn", "float8_e5m2", "int8x3", "float16x2", "float32x5",
]  # fmt: skip


def bits_of(dtype):
    parsed = tvm_ffi.dtype(dtype)
    return parsed.bits * parsed.lanes


def packed_bytes(count, dtype):
    return (count * bits_of(dtype) + 7) // 8


# -- the facts ------------------------------------------------------------------------------


def bytes_written(dtype, count=16):
    """How far a kernel that writes ``count`` elements gets. There is room for more."""
    a = te.placeholder((count,), dtype, name="a")
    b = te.compute((count,), lambda i: a[i], name="b")
    kernel = tvm.compile(te.create_prim_func([a, b]), "llvm")
    source, result = np.full(1024, 255, "uint8"), np.zeros(1024, "uint8")
    kernel(*(tvm_ffi.from_dlpack(x)._create_view([count], dtype=dtype) for x in (source, result)))
    return int(np.nonzero(result)[0].max()) + 1


@pytest.mark.parametrize("dtype", PACKED)
def test_kernels_write_beyond_packed_memory(dtype):
    assert bytes_written(dtype) > packed_bytes(16, dtype)


@pytest.mark.parametrize("dtype", WHOLE)
def test_kernels_write_whole_bytes_where_they_are(dtype):
    assert bytes_written(dtype) == packed_bytes(16, dtype)


# -- moved ----------------------------------------------------------------------------------


def moving(dtype):
    """Two weights change places; of one there are rows, their copy, and all of it as bytes."""
    row = packed_bytes(16, dtype)
    params = relax.Var(
        "params",
        relax.TupleType(
            [
                relax.TensorType((4, 16), dtype),
                relax.TupleType([relax.TensorType((5, 3), dtype)]),
            ]
        ),
    )
    builder = relax.BlockBuilder()
    with builder.function("transform_params", [params]):
        rows = builder.emit(relax.TupleGetItem(params, 0))
        other = builder.emit(relax.TupleGetItem(relax.TupleGetItem(params, 1), 0))
        two = builder.emit(relax.op.memory.view(rows, (2, 16), None, relax.prim_value(row)))
        copied = builder.emit(relax.op.memory.ensure_zero_offset(two))
        as_bytes = builder.emit(relax.op.memory.view(rows, (4, row), "uint8"))
        computed = builder.emit(relax.op.permute_dims(as_bytes))
        result = builder.emit(relax.Tuple([other, relax.Tuple([copied, computed]), rows]))
        builder.emit_func_output(result)
    return builder.get()


def move(dtype):
    """Run it, and out of place, in this process."""
    row = packed_bytes(16, dtype)
    before = moving(dtype)
    after = InplaceTransformParams()(before)
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (4, row), dtype="uint8")
    other = rng.integers(0, 256, packed_bytes(15, dtype), dtype="uint8")
    right = [other, rows[1:3], np.ascontiguousarray(rows.T), rows]
    for mod, name in ((before, "transform_params"), (after, "inplace_transform_params")):
        require_whole_bytes(mod[name], mod)
        function = relax.VirtualMachine(tvm.compile(mod, "llvm"), tvm.cpu())[name]
        weights = []
        for bits, shape in ((rows, (4, 16)), (other, (5, 3))):
            weights.append(tvm.runtime.empty(shape, dtype))
            ctypes.memmove(weights[-1].data_ptr(), bits.ctypes.data, bits.nbytes)
        params = tvm_ffi.Array([weights[0], tvm_ffi.Array([weights[1]])])
        del weights
        result = function(params)
        fields = [result[0], result[1][0], result[1][1], result[2]]
        assert fields[0].shape == (5, 3) and str(fields[0].dtype) == dtype
        for field, bits in zip(fields, right, strict=True):
            found = ctypes.string_at(field.data_ptr(), bits.nbytes)
            assert found == bits.tobytes(), (name, dtype)


def test_packed_elements_are_moved():
    # In a process of its own: what is wrong here corrupts the heap.
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == PACKED


def test_an_update_moves_them():
    @I.ir_module
    class Module:
        @R.function(pure=False)
        def main(params: R.Tuple(R.Tensor((4, 6), "int4"), R.Tensor((6,), "uint4"))):
            a = params[0]
            b = params[1]
            p = R.inplace_update_tuple(params, 0, b)
            shape = R.shape_of(a)
            p1 = R.inplace_update_tuple(p, 1, R.call_pure_packed("f", a, shape, ty_args=R.Any))
            return p1

    require_whole_bytes(Module["main"], Module)


def relayout(dtype):
    params = relax.Var("params", relax.TupleType([relax.TensorType((4, 6), dtype)]))
    builder = relax.BlockBuilder()
    with builder.function("transform_params", [params]):
        new = builder.emit(relax.op.permute_dims(builder.emit(relax.TupleGetItem(params, 0))))
        builder.emit_func_output(builder.emit(relax.Tuple([new])))
    mod = builder.get()
    return packed_computation(mod["transform_params"], mod)


@pytest.mark.parametrize("dtype", WHOLE)
def test_whole_bytes_may_be_computed_with(dtype):
    assert relayout(dtype) is None


# -- computed -------------------------------------------------------------------------------

WHY = (
    ", of {}: memory holds such elements packed, but kernels take whole bytes for each; pass the "
    "tensor on as it is, or view it as uint8 by R.memory.view and compute with that"
)


@I.ir_module
class Refused:
    @T.prim_func(s_tir=True)
    def kernel(a: T.Buffer((4, 6), "int4"), b: T.Buffer((4, 6), "int8")):
        for i, j in T.grid(4, 6):
            with T.sblock("b"):
                vi, vj = T.axis.remap("SS", [i, j])
                b[vi, vj] = T.Cast("int8", a[vi, vj])

    @R.function
    def relayout_transform_params(
        params: R.Tuple(R.Tensor((4, 6), "int8"), R.Tensor((4, 6), "int4")),
    ):
        w = params[1]
        new = R.permute_dims(w)
        return (new, params[0])

    @R.function
    def cast_transform_params(
        params: R.Tuple(R.Tuple(R.Tensor((4, 6), "uint4x8")), R.Tensor((4, 6), "int8")),
    ):
        inner = params[0]
        again = inner
        new = R.reshape(again[0], (24,))
        return (new,)

    @R.function
    def make_transform_params(params: R.Tuple(R.Tensor((4, 6), "float16"))):
        new = R.astype(params[0], "float4_e2m1fn")
        return (new,)

    @R.function
    def concat_transform_params(w: R.Tensor((4, 6), "float6_e2m3fn")):
        new = R.concat((w, w), axis=0)
        return (new,)

    @R.function
    def call_tir_transform_params(params: R.Tuple(R.Tensor((4, 6), "int4"))):
        cls = Refused
        new = R.call_tir(cls.kernel, (params[0],), out_ty=R.Tensor((4, 6), "int8"))
        return (new,)

    @R.function
    def packed_transform_params(params: R.Tuple(R.Tensor((4, 6), "int4"))):
        new = R.call_dps_packed("f", (params[0],), out_ty=R.Tensor((6, 4), "int4"))
        return (new,)

    @R.function
    def view_transform_params(params: R.Tuple(R.Tensor((4, 6), "uint8"))):
        view = R.memory.view(params[0], R.shape([4, 6]), R.dtype("int4"))
        new = R.permute_dims(view)
        return (new,)

    @R.function
    def branch_transform_params(c: R.Tensor((), "bool"), params: R.Tuple(R.Tensor((4,), "int2"))):
        R.func_attr({"num_input": 1})
        if c:  # noqa: SIM108  TVMScript has no other
            new = R.add(params[0], params[0])
        else:
            new = params[0]
        return (new,)

    @R.function
    def callee(x: R.Tensor((4, 6), "int12")):
        y = R.add(x, x)
        return y

    @R.function
    def call_transform_params(params: R.Tuple(R.Tensor((4, 6), "int12"))):
        cls = Refused
        new = cls.callee(params[0])
        return (new,)


@pytest.mark.parametrize("dtype", PACKED)
def test_no_packed_elements_may_be_computed_with(dtype):
    assert relayout(dtype) == "R.permute_dims computes with `params`[0]" + WHY.format(dtype)


COMPUTED = {
    "relayout": ("R.permute_dims computes with `params`[1]", "int4"),
    "cast": ("R.reshape computes with `params`[0][0]", "uint4x8"),
    "make": ("R.astype makes `new`", "float4_e2m1fn"),
    "concat": ("R.concat computes with `w`", "float6_e2m3fn"),
    "call_tir": ("`kernel` computes with `params`[0]", "int4"),
    "packed": ("R.call_dps_packed of `f` makes `new`", "int4"),
    "view": ("R.permute_dims computes with `view`", "int4"),
    "branch": ("R.add computes with `params`[0]", "int2"),
    "call": ("R.add computes with `x` in `callee`", "int12"),
}


def parse(name):
    gvars = {Refused.get_global_var(f"{name}_transform_params")}
    gvars.update(gvar for gvar in Refused.get_global_vars() if "transform" not in gvar.name_hint)
    return tvm.IRModule({gvar: Refused[gvar] for gvar in gvars})


@pytest.mark.parametrize("name", COMPUTED)
def test_computing_is_refused(name):
    mod = parse(name)
    function = mod[f"{name}_transform_params"]
    what, dtype = COMPUTED[name]
    reason = what + WHY.format(dtype)
    with pytest.raises(UnsupportedTransformError) as error:
        InplaceTransformParams()(mod)
    assert error.value.reason == reason
    with pytest.raises(UnsupportedTransformError) as error:
        plan_memory(function, mod)
    assert error.value.reason == reason
    with pytest.raises(UnsupportedTransformError) as error:
        InplaceTransformParams(restore=True)(mod)
    assert error.value.reason == reason
    with pytest.raises(ValueError) as raised:
        require_whole_bytes(function, mod)
    assert str(raised.value) == f"function `{name}_transform_params`: {reason}"


def test_a_cast_says_that_elements_are_packed():
    """Of what a packed function returns nothing else is known."""

    @I.ir_module
    class Module:
        @R.function
        def transform_params(params: R.Tuple(R.Tensor((4,), "float32"))):
            given = R.call_pure_packed("f", params[0], ty_args=R.Any)
            w = R.match_cast(given, R.Tensor((4, 6), "int4"))
            new = R.astype(w, "int8")
            return (new,)

    reason = packed_computation(Module["transform_params"], Module)
    assert reason == "R.astype computes with `given`" + WHY.format("int4")


def test_a_kernel_that_is_called():
    """As it is after LegalizeOps and VMShapeLower: with what it writes to."""
    w = relax.Var("w", relax.TensorType((4, 6), "int4"))
    out = relax.Var("out", relax.TensorType((4, 6), "int8"))
    builder = relax.BlockBuilder(tvm.IRModule({"kernel": Refused["kernel"]}))
    with builder.function("main", [w, out], {"global_symbol": "main"}, pure=False):
        kernel = builder.get().get_global_var("kernel")
        builder.emit(relax.Call(kernel, [w, out], ret_ty=relax.TupleType([])))
        builder.emit_func_output(out)
    mod = builder.get()
    reason = packed_computation(mod["main"], mod)
    assert reason == "`kernel` computes with `w`" + WHY.format("int4")


def test_a_weight_of_an_update_is_named():
    @I.ir_module
    class Module:
        @R.function(pure=False)
        def main(params: R.Tuple(R.Tensor((4,), "int4"), R.Tensor((4,), "int8"))):
            p = R.inplace_update_tuple(params, 1, params[0])
            p1 = R.inplace_update_tuple(p, 0, p[1])
            new = R.add(p1[1], p1[1])
            p2 = R.inplace_update_tuple(p1, 0, new)
            return p2

    with pytest.raises(
        ValueError, match=r"function `main`: R\.add computes with `params`\[0\], of"
    ):
        require_whole_bytes(Module["main"], Module)


@pytest.mark.parametrize(
    "place", ["returned", "field", "tuple", "branch", "local function", "operand"]
)
def test_a_packed_constant_is_refused(place):
    params = relax.Var("params", relax.TupleType([relax.TensorType((4,), "float32")]))
    constant = relax.const(tvm.runtime.empty((4,), "uint4"))
    condition = relax.Var("condition", relax.TensorType((), "bool"))
    builder = relax.BlockBuilder()
    with builder.function("transform_params", [condition, params], attrs={"num_input": 1}):
        if place == "operand":
            new = builder.emit(relax.op.astype(constant, "float32"))
        elif place == "branch":
            branches = (relax.SeqExpr([], builder.normalize(constant)) for _ in range(2))
            new = builder.emit(relax.If(condition, *branches))
        elif place == "local function":
            local = relax.Function([], relax.SeqExpr([], builder.normalize(constant)), constant.ty)
            new = builder.emit(relax.Call(builder.emit(local), []))
        elif place == "tuple":
            new = builder.emit(relax.TupleGetItem(builder.emit(relax.Tuple([constant])), 0))
        else:
            new = builder.emit(constant) if place == "field" else constant
        builder.emit_func_output(relax.Tuple([new]))
    mod = builder.get()
    text = "it has a constant of uint4: .*; make it a weight"
    with pytest.raises(UnsupportedTransformError, match=text):
        InplaceTransformParams()(mod)


@pytest.mark.filterwarnings("ignore:.*the transformed weights of `main` take 96 bytes")
def test_a_lifted_transform_is_refused():
    @I.ir_module
    class Model:
        @R.function
        def main(x: R.Tensor((4, 6), "float32"), w: R.Tensor((6, 4), "int4")):
            R.func_attr({"num_input": 1})
            with R.dataflow():
                t = R.permute_dims(w)
                f = R.astype(t, "float32")
                y = R.add(x, f)
                R.output(y)
            return y

    with pytest.raises(
        UnsupportedTransformError, match=r"R\.permute_dims computes with `params`\[0\], of int4"
    ):
        LiftInplaceTransformParams()(Model)


# -- sizes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*PACKED, *WHOLE])
@pytest.mark.parametrize("shape", [(), (1,), (5, 3), (4, 16), (0, 3)])
def test_sizes_are_those_of_memory(dtype, shape):
    count = int(np.prod(shape, dtype=int))
    assert size_of(relax.TensorType(shape, dtype)) == packed_bytes(count, dtype)


def test_sizes_with_symbols_are_bounds():
    n = tvm.tirx.Var("n", "int64")
    assert str(size_of(relax.TensorType((n, 64), "int4"))) == "32*n"
    assert str(size_of(relax.TensorType((n, 5), "int4"))) == "3*n"
    assert str(size_of(relax.TensorType((n,), "float6_e2m3fn"))) == "n"


if __name__ == "__main__":
    for one in PACKED:
        move(one)
        print(one, flush=True)
