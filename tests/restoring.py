"""Convert weights, restore them, and compare bit by bit."""

import ml_dtypes
import numpy as np
import tvm
import tvm_ffi
from pipelines import load
from transforms import assert_bitwise
from tvm import relax

from relax_inplace.transform import InplaceTransformParams


def random_bits(ty, sizes):
    """Of a type: any bits, so also NaN and infinity; the same in every call."""
    return _random_bits(ty, sizes, np.random.default_rng(0))


def _random_bits(ty, sizes, generator):
    if isinstance(ty, relax.TupleType):
        return [_random_bits(field, sizes, generator) for field in ty.fields]
    analyzer = tvm.sym.Analyzer()
    for dim in ty.shape.values:
        for var in tvm.tirx.analysis.undefined_vars(dim):
            analyzer.bind(var, tvm.tirx.const(sizes[var.name], "int64"))
    shape = [int(analyzer.simplify(dim)) for dim in ty.shape.values]
    dtype = np.dtype(getattr(ml_dtypes, str(ty.dtype), None) or str(ty.dtype))
    bits = generator.integers(0, 256, (*shape, dtype.itemsize), "uint8")
    return bits.view(dtype).reshape(shape)


def assert_restores(before, pipeline="compile", sizes=None, name="transform_params", inputs=()):
    """The weights come back; returns the module that did it, and what was in between."""
    after = InplaceTransformParams(restore=True)(before)
    relax.analysis.well_formed(after)
    types = [param.ty for param in before[name].params[len(inputs) :]]
    weights = random_bits(types[0] if len(types) == 1 else relax.TupleType(types), sizes or {})
    if not isinstance(weights, list):
        weights = [weights]
    return after, restored(after, weights, pipeline, name, inputs)


def restored(after, weights, pipeline="compile", name="transform_params", inputs=()):
    """The converted weights, as they were before they were restored to the given ones."""
    vm = load(after, pipeline)
    before, end = name.removesuffix("transform_params"), ""
    converted = vm[f"{before}inplace_transform_params{end}"](*inputs, passed(weights))
    seen = [_copy(field) for field in converted]
    back = vm[f"{before}inplace_restore_params{end}"](*inputs, converted)
    assert_bitwise(back, passed(weights))
    return seen


def passed(value):
    """As a compiled function takes it; bfloat16 has no DLPack of numpy."""
    if isinstance(value, list):
        return tvm_ffi.Array([passed(field) for field in value])
    return tvm.runtime.tensor(value)


def _copy(field):
    if hasattr(field, "numpy"):
        return field.numpy().copy()
    return [_copy(one) for one in field] if hasattr(field, "__len__") else field
