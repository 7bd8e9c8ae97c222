"""ScheduleRelayouts: which kernels are scheduled, and which are not; numbers."""

import re

import numpy as np
import pytest
import tvm
import tvm_ffi
from pipelines import LLVM
from restoring import assert_restores
from tvm import relax, tirx
from tvm.script import from_source
from tvm.script import ir as I
from tvm.script import relax as R

from relax_inplace import layout, runtime
from relax_inplace.lower.schedule_relayouts import ScheduleRelayouts
from relax_inplace.transform import InplaceTransformParams


@I.ir_module
class Model:
    """A transform, and a function that calls the same kernel."""

    @R.function
    def main(x: R.Tensor((64, 32), "float32")):
        with R.dataflow():
            y = R.permute_dims(x)
            R.output(y)
        return y

    @R.function
    def transform_params(
        params: R.Tuple(R.Tensor((64, 32), "float32"), R.Tensor((8, 8), "float32")),
    ):
        with R.dataflow():
            a = R.permute_dims(params[0])
            b = R.sum(params[1], axis=[1])
            out = (a, b)
            R.output(out)
        return out


CAST = """
@I.ir_module
class Module:
    @R.function
    def transform_params(params: R.Tuple(R.Tensor((64, 32), "float32"))):
        return (R.astype(params[0], "{}"),)
"""


def legalized(mod):
    return relax.transform.LegalizeOps()(InplaceTransformParams()(mod))


def scheduled(mod, target=LLVM):
    with target:
        return ScheduleRelayouts()(mod)


def kernels(mod):
    """By name, whether each has a schedule."""
    return {
        gvar.name_hint: bool(function.attrs.get("tirx.is_scheduled", False))
        for gvar, function in mod.functions_items()
        if isinstance(function, tirx.PrimFunc)
    }


def test_which_kernels_are_scheduled():
    before = legalized(Model)
    assert kernels(before) == {"transpose": False, "sum": False}
    assert kernels(scheduled(before)) == {"transpose": True, "sum": False}


def test_a_kernel_whose_result_another_one_reads():
    """TVM asks each kernel before the last one of a step whether it is a reshape: by its block."""
    builder = relax.BlockBuilder()
    params = relax.Var("params", relax.TupleType([relax.TensorType((3, 5), "float32")]))
    with builder.function("transform_params", [params]):
        with builder.dataflow():
            first = builder.emit(relax.op.flatten(builder.emit(layout.tiles.pack(params[0], 1, 8))))
            same = builder.emit(builder.emit(relax.op.permute_dims(first)))  # FuseOps stops here
            last = builder.emit(relax.op.flatten(builder.emit(relax.op.permute_dims(same))))
            out = builder.emit_output(relax.Tuple([last]))
        builder.emit_func_output(out)
    assert_restores(builder.finalize(), "cpu default")


def test_a_cast_that_llvm_leaves_undefined():
    """Of NaN to int8, say: a vector has other bits than an element."""
    for dtype, takes in (("int8", False), ("float16", True)):
        mod = from_source(CAST.format(dtype))
        assert kernels(scheduled(legalized(mod))) == {"cast": takes}


def test_again_changes_nothing():
    once = scheduled(legalized(Model))
    tvm.ir.assert_structural_equal(scheduled(once), once)


def test_a_target_without_rules():
    before = legalized(Model)
    tvm.ir.assert_structural_equal(scheduled(before, tvm.target.Target("c")), before)


# -- numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["bytecode", "compiled"])
def test_numbers(mode):
    mod = InplaceTransformParams()(Model)
    executable = relax.build(mod, "llvm", exec_mode=mode)
    vm = relax.VirtualMachine(executable, tvm.cpu())
    arrays = [np.arange(64 * 32, dtype="float32").reshape(64, 32), np.eye(8, dtype="float32")]
    weights = tvm_ffi.Array([tvm.runtime.tensor(array) for array in arrays])
    vm["inplace_transform_params"](weights)
    assert weights[0].numpy().tobytes() == arrays[0].T.tobytes()
    assert weights[1].numpy().tobytes() == arrays[1].sum(axis=1).tobytes()


def test_verified():
    """By kernels that have no schedule of ours."""
    mod = InplaceTransformParams(reference=True)(Model)
    vm = relax.VirtualMachine(tvm.compile(mod, "llvm"), tvm.cpu())
    arrays = [np.random.default_rng(0).random(shape, "float32") for shape in ((64, 32), (8, 8))]
    weights = runtime.Params([tvm.runtime.tensor(array) for array in arrays])
    assert runtime.transform_params(vm, weights, verify=True).report.verified


# -- kernels that write over their input -------------------------------------------------------

TWO = """
@I.ir_module
class Module:
    @R.function
    def main(x: R.Tensor((64, 32), "float32"), y: R.Tensor((64, 32), "float32")):
        return R.add(x, y)

    @R.function
    def transform_params(params: R.Tuple(R.Tensor((64, 32), "float32"), R.Tensor((64, 32), "float32"))):
        a = R.multiply(params[0], R.const(2.0, "float32"))
        b = R.permute_dims(params[1])
        return (a, b)
"""


@pytest.mark.parametrize("system_lib", [False, True])
@pytest.mark.parametrize("mode", ["bytecode", "compiled"])
def test_only_they_may_have_one_memory_for_two_parameters(mode, system_lib, tmp_path):
    """LLVM is told of every other kernel that its parameters are distinct."""
    mod = InplaceTransformParams()(from_source(TWO))
    executable = relax.build(mod, "llvm", exec_mode=mode, system_lib=system_lib)
    noalias = {}
    for library in executable.mod.imports:
        text = library.inspect_source("ll")
        assert ("@TVMFFIEnvModRegisterSystemLibSymbol(" in text) == system_lib
        for line in text.splitlines():
            name = re.match(r"define .*@__tvm_ffi_(\w+)\(", line)
            if name:
                noalias[name.group(1)] = "noalias" in line
    assert noalias["multiply"] is False
    assert noalias["add"] is True
    executable.export_library(str(tmp_path / "lib.so"))
    arrays = [np.random.default_rng(0).random((64, 32), "float32") for _ in range(2)]
    for library in (executable, tvm.runtime.load_module(str(tmp_path / "lib.so"))):
        vm = relax.VirtualMachine(library, tvm.cpu())
        weights = tvm_ffi.Array([tvm.runtime.tensor(array) for array in arrays])
        vm["inplace_transform_params"](weights)
        assert weights[0].numpy().tobytes() == (arrays[0] * 2).tobytes()
        assert weights[1].numpy().tobytes() == arrays[1].T.tobytes()
        total = vm["main"](*map(tvm.runtime.tensor, arrays))
        assert total.numpy().tobytes() == (arrays[0] + arrays[1]).tobytes()


COUNTED = """
@I.ir_module
class Module:
    @T.prim_func(private=True, s_tir=True)
    def plus_count(a: T.handle, count: T.int64, b: T.handle):
        n = T.int64()
        A = T.match_buffer(a, (n,), "float32")
        B = T.match_buffer(b, (n,), "float32")
        for i in range(n):
            with T.sblock("b"):
                vi = T.axis.spatial(n, i)
                B[vi] = A[vi] + T.Cast("float32", count)

    @R.function
    def transform_params(params: R.Tuple(R.Tensor(("n",), "float32"))):
        n = T.int64()
        cls = Module
        new = R.call_tir(cls.plus_count, (params[0], n), out_ty=R.Tensor((n,), "float32"))
        return (new,)
"""


@pytest.mark.parametrize("mode", ["bytecode", "compiled"])
def test_one_that_is_given_a_symbolic_size(mode):
    """Where it is called the number is known, and the kernel is in a library of its own."""
    mod = InplaceTransformParams()(from_source(COUNTED))
    executable = relax.build(mod, "llvm", exec_mode=mode)
    vm = relax.VirtualMachine(executable, tvm.cpu())
    weights = tvm_ffi.Array([tvm.runtime.tensor(np.arange(5, dtype="float32"))])
    vm["inplace_transform_params"](weights)
    assert weights[0].numpy().tolist() == [5, 6, 7, 8, 9]


FLIPPED = """
@I.ir_module
class Module:
    @R.function
    def transform_params(params: R.Tuple(R.Tensor((2, 3), "uint32"))):
        with R.dataflow():
            flat = R.reshape(WEIGHT, R.shape([6]))
            out = (R.flip(flat, axis=0),)
            R.output(out)
        return out
"""


@pytest.mark.parametrize(
    ("weight", "factor"), [("params[0]", 1), ('R.multiply(params[0], R.const(3, "uint32"))', 3)]
)
def test_a_division_of_negatives_is_not_made(weight, factor):
    """Inlined, the index is (5 - v) // 3 * 3 + (2 - v) % 3, which TVM lowers to 3 - v."""
    mod = InplaceTransformParams()(from_source(FLIPPED.replace("WEIGHT", weight)))
    fusing = relax.get_default_pipeline(LLVM)
    vm = relax.VirtualMachine(tvm.compile(mod, LLVM, relax_pipeline=fusing), tvm.cpu())
    array = np.arange(6, dtype="uint32").reshape(2, 3)
    weights = tvm_ffi.Array([tvm.runtime.tensor(array)])
    vm["inplace_transform_params"](weights)
    assert weights[0].numpy().tobytes() == (array.reshape(6)[::-1] * factor).tobytes()
