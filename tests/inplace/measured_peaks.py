"""What is measured in a fresh process, which imports this alone: no module that is read first."""

import numpy as np
import tvm
import tvm_ffi
from memory import extra_mb
from pipelines import load
from tvm import relax

from relax_inplace.transform import InplaceTransformParams

ORDERS = {
    "straight": lambda n: range(n),
    "reversed": lambda n: [n - 1 - i for i in range(n)],
    "rotated": lambda n: [(i + 1) % n for i in range(n)],
    "in pairs": lambda n: [i ^ 1 for i in range(n)],
}


def one_to_one(count, side, order, breadth_first):
    """Output i is made from weight order[i]."""
    ty = relax.TensorType((side, side), "float32")
    params = relax.Var("params", relax.TupleType([ty] * count))
    builder = relax.BlockBuilder()
    with builder.function("transform_params", [params], attrs={"num_input": 0}):
        with builder.dataflow():
            reads = range(count) if breadth_first else reversed(range(count))
            weights = {i: builder.emit(relax.TupleGetItem(params, i)) for i in reads}
            new = {i: builder.emit(relax.op.permute_dims(weights[i])) for i in weights}
            out = builder.emit_output(relax.Tuple([new[i] for i in ORDERS[order](count)]))
        builder.emit_func_output(out)
    return builder.get()


def extra_weights(pipeline, order, breadth_first, inplace, count=4, side=1500):
    mod = one_to_one(count, side, order, breadth_first)
    if inplace:
        mod = InplaceTransformParams()(mod)
    function = load(mod, pipeline)["inplace_transform_params" if inplace else "transform_params"]
    params = tvm_ffi.Array(
        # Of no zeros: Linux takes huge pages of zeros back (shrink_underused), and a peak is less.
        [tvm.runtime.tensor(np.full((side, side), i + 1, "float32")) for i in range(count)]
    )
    return extra_mb(lambda: function(params)) / (side * side * 4 / 2**20)


def temporaries_of_two_sizes(pipeline):
    """Weights of 16 and 4 MB in turn, four operations each, which TVM does not fuse here."""
    sides = (2048, 1024, 2048, 1024)
    fields = [relax.TensorType((side, side), "float32") for side in sides]
    params = relax.Var("params", relax.TupleType(fields))
    builder = relax.BlockBuilder()
    with builder.function("transform_params", [params]):
        outputs = []
        for index in range(len(sides)):
            value = builder.emit(relax.TupleGetItem(params, index))
            for op in (relax.op.permute_dims, relax.op.exp, relax.op.permute_dims, relax.op.sqrt):
                value = builder.emit(op(value))
            outputs.append(value)
        builder.emit_func_output(builder.emit(relax.Tuple(outputs)))
    after = InplaceTransformParams()(builder.get())
    function = load(after, pipeline)["inplace_transform_params"]
    tensors = [tvm.runtime.tensor(np.zeros((side, side), "float32")) for side in sides]
    weights = tvm_ffi.Array(tensors)
    del tensors
    return extra_mb(lambda: function(weights))
