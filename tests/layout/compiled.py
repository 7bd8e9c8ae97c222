"""A layout as a function on numpy arrays: compiled once, by TVM's own pipeline."""

import ml_dtypes
import numpy as np
import tvm
import tvm_ffi
from tvm import relax


def types_of(*tensors):
    """Types of (shape, dtype); a shape may name symbolic dimensions, ``"n"``, and say ``"n * 4"``."""
    symbols = {}

    def size(text):
        if isinstance(text, int):
            return text
        names = {name: symbol(name) for name in text.replace("*", " ").split() if name.isalpha()}
        return eval(text, {}, names)

    def symbol(name):
        return symbols.setdefault(name, tvm.tirx.Var(name, "int64"))

    return [relax.TensorType([size(s) for s in shape], dtype) for shape, dtype in tensors]


def module_of(function, types):
    """The module whose ``main`` is that function of expressions.

    Sizes such as ``n * 4`` are in types of weights only if ``n`` is known: ``main`` takes their
    factors first, as a shape.
    """
    builder = relax.BlockBuilder()
    params = [relax.Var(f"x{i}", ty) for i, ty in enumerate(types)]
    symbols = []
    for ty in types:
        for size in ty.shape.values:
            for symbol in tvm.tirx.analysis.undefined_vars(size):
                if not any(symbol.same_as(known) for known in symbols):
                    symbols.append(symbol)
    sizes = relax.Var("sizes", relax.ShapeType(symbols))
    with builder.function("main", [sizes, *params]):
        with builder.dataflow():
            result = function(*params)
            fields = result if isinstance(result, tuple) else (result,)
            out = builder.emit_output(relax.Tuple([builder.emit(field) for field in fields]))
        builder.emit_func_output(out)
    return builder.finalize(), [symbol.name for symbol in symbols]


def compiled(function, *tensors):
    """Compile a function of expressions; returns a function of arrays, and of sizes by name."""
    mod, symbols = module_of(function, types_of(*tensors))
    vm = relax.VirtualMachine(tvm.compile(mod, "llvm"), tvm.cpu())

    def call(*arrays, **sizes):
        shape = tvm_ffi.Shape([sizes[name] for name in symbols])
        out = vm["main"](shape, *(tvm.runtime.tensor(np.ascontiguousarray(a)) for a in arrays))
        out = [field.numpy() for field in out]
        return out[0] if len(out) == 1 else out

    return call


def kernels(function, *tensors):
    """The kernels that are called, and how TVM's pattern analysis calls them."""
    mod, _ = module_of(function, types_of(*tensors))
    mod = tvm.transform.Sequential(
        [relax.transform.LegalizeOps(), relax.transform.AnnotateTIROpPattern()]
    )(mod)
    values = [b.value for block in mod["main"].body.blocks for b in block.bindings]
    called = [value.args[0] for value in values if isinstance(value, tvm.ir.Call)]
    return [(gvar.name_hint, int(mod[gvar].attrs["op_pattern"])) for gvar in called]


def assert_bits(left, right):
    """Same shape, dtype and bits: a NaN is equal to itself."""
    assert (left.shape, left.dtype) == (right.shape, right.dtype)
    assert left.tobytes() == np.ascontiguousarray(right).tobytes()


def random_bits(generator, shape, dtype):
    """Any bits, so also NaN and infinity."""
    dtype = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    data = generator.integers(0, 256, (*shape, dtype.itemsize), "uint8")
    return data.view(dtype).reshape(shape)


def pattern(shape, dtype):
    """Bytes that anyone can make again."""
    at = np.arange(np.prod(shape) * np.dtype(dtype).itemsize)
    return ((at * 37 + (at >> 8) * 11) % 256).astype("uint8").view(dtype).reshape(shape)
