"""Kernels of functions of expressions, as TVM's pipeline makes them before it schedules."""

import ml_dtypes
import numpy as np
import tvm
import tvm_ffi
from tvm import relax, tirx

TARGETS = {
    "plain": {"kind": "llvm"},
    "host": {"kind": "llvm", "mcpu": tvm.target.codegen.llvm_get_system_cpu()},
}


def symbol(name):
    return tirx.Var(name, "int64")


def kernels_of(function, *tensors):
    """The kernels of a function of tensors (shape, dtype), fused."""
    builder = relax.BlockBuilder()
    params = [relax.Var(f"x{i}", relax.TensorType(*tensor)) for i, tensor in enumerate(tensors)]
    with builder.function("main", params):
        with builder.dataflow():
            out = builder.emit_output(builder.emit(function(*params)))
        builder.emit_func_output(out)
    passes = [
        relax.transform.LegalizeOps(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
    ]
    mod = tvm.transform.Sequential(passes)(builder.finalize())
    return [kernel for kernel in mod.functions.values() if isinstance(kernel, tirx.PrimFunc)]


def compile_kernel(kernel, target="host"):
    """A function of input arrays, and shapes and dtypes of outputs, that returns arrays."""
    mod = tvm.IRModule({"main": kernel.with_attr("global_symbol", "main")})
    main = tvm.compile(mod, TARGETS[target])["main"]

    def call(inputs, outputs):
        results = [tvm.runtime.tensor(np.zeros(shape, numpy_dtype(d))) for shape, d in outputs]
        main(*(tvm.runtime.tensor(np.ascontiguousarray(array)) for array in inputs), *results)
        return [result.numpy() for result in results]

    return call


def run_kernel(kernel, inputs, outputs, target="host"):
    return compile_kernel(kernel, target)(inputs, outputs)


def tensors_of(kernel, sizes):
    """Shapes and dtypes of a kernel's parameters, given sizes by name."""

    def number(extent):
        known = tvm_ffi.structural_map(
            extent, (relax.Var, lambda var: tirx.const(sizes[var.name], "int64")), order="post"
        )
        return int(tvm.sym.Analyzer().simplify(known))

    types = [param.ty for param in kernel.params]
    return [([number(extent) for extent in ty.shape], str(ty.dtype)) for ty in types]


def numpy_dtype(name):
    return np.dtype(getattr(ml_dtypes, name, name))


def random_elements(generator, shape, dtype):
    """Any bits, so also NaN and infinity; of bool, its two values."""
    if dtype == "bool":
        return generator.integers(0, 2, shape).astype(bool)
    dtype = numpy_dtype(dtype)
    return generator.integers(0, 256, (*shape, dtype.itemsize), "uint8").view(dtype).reshape(shape)


def assert_same_bits(left, right):
    right = np.ascontiguousarray(right)
    assert (left.shape, left.dtype) == (right.shape, right.dtype)
    assert left.tobytes() == right.tobytes()
