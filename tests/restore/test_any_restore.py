"""Random chains of steps that keep every bit: what they make is restored, bit by bit."""

import numpy as np
import tvm
import tvm_ffi
from hypothesis import given, note
from hypothesis import strategies as st
from pipelines import PIPELINES
from profiles import examples
from restoring import assert_restores
from tvm import relax, te

from relax_inplace import layout
from relax_inplace.analysis import find_inverse

DTYPES = [
    *["int8", "uint8", "int32", "uint32"],
    *["float16", "bfloat16", "float32", "float8_e4m3fn"],
]
WIDER = {
    "int8": ["int8", "int16", "int32", "uint8", "float16", "bfloat16", "float32"],
    "uint8": ["int8", "int16", "uint32", "float16", "bfloat16", "float32", "float64"],
    "int32": ["int64", "uint32", "float64"],
    "uint32": ["int32", "uint64", "float64"],
    "bfloat16": ["float32", "bfloat16"],
}
SIZES = {"n": 3}


class _Chain:
    """Values, each of which is used once: by a step, or as an output."""

    def __init__(self, draw, builder, values, n):
        self.draw, self.builder, self.values, self.n = draw, builder, values, n

    def pick(self, options):
        return self.draw(st.sampled_from(options))

    def step(self):
        value = self.values.pop(self.draw(st.integers(0, len(self.values) - 1)))
        kinds = ["permute", "flip", "expand", "squeeze", "flatten", "stack", "kernel"]
        kinds += ["reshape", "split", "concat"] if self.is_static(value) else ["concat"]
        if str(value.ty.dtype) in WIDER:
            kinds.append("cast")
        if "int" in str(value.ty.dtype):
            kinds += ["not", "xor"]
        if len(self.shape(value)) == 2:
            kinds += ["tiles", "scatter"]
            if self.is_static(value):
                kinds.append("pad")
                if "float8" not in str(value.ty.dtype):  # test_restore.py: test_float8_padding
                    kinds.append("transform")
        if not self.shape(value):
            kinds = ["expand", "flatten", "stack"]
        result = getattr(self, self.pick(kinds))(value)
        for one in result if isinstance(result, list) else [result]:
            self.values.append(self.builder.emit(one))

    def shape(self, value):
        return list(value.ty.shape.values)

    def is_static(self, value):
        return all(isinstance(dim, tvm.tirx.IntImm) for dim in self.shape(value))

    def alike(self, value):
        """Others of the same type, at most two."""
        others = [o for o in self.values if tvm_ffi.structural_equal(o.ty, value.ty)]
        chosen = others[: self.draw(st.integers(0, 2))]
        self.values = [o for o in self.values if not any(o.same_as(c) for c in chosen)]
        return [value, *chosen]

    def axis(self, rank):
        return self.draw(st.integers(-rank, rank - 1))

    def permute(self, value):
        rank = len(self.shape(value))
        axes = self.draw(st.none() | st.permutations(range(rank)))
        return relax.op.permute_dims(value, axes)

    def flip(self, value):
        return relax.op.flip(value, self.axis(len(self.shape(value))))

    def expand(self, value):
        return relax.op.expand_dims(value, self.axis(len(self.shape(value)) + 1))

    def squeeze(self, value):
        ones = [i for i, d in enumerate(self.shape(value)) if isinstance(d, tvm.tirx.IntImm)]
        ones = [i for i in ones if int(self.shape(value)[i]) == 1]
        return relax.op.squeeze(value, self.pick(ones)) if ones else value

    def flatten(self, value):
        return relax.op.flatten(value)

    def reshape(self, value):
        total = int(np.prod([int(d) for d in self.shape(value)]))
        factor = self.pick([f for f in range(1, total + 1) if total % f == 0])
        return relax.op.reshape(value, (factor, total // factor))

    def stack(self, value):
        return relax.op.stack(self.alike(value), self.axis(len(self.shape(value)) + 1))

    def concat(self, value):
        return relax.op.concat(self.alike(value), self.axis(len(self.shape(value))))

    def split(self, value):
        axis = self.axis(len(self.shape(value)))
        length = int(self.shape(value)[axis])
        cuts = sorted(self.draw(st.sets(st.integers(1, length), max_size=2)) - {length})
        if not cuts:
            return value
        both = self.builder.emit(relax.op.split(value, cuts, axis))
        return [relax.TupleGetItem(both, i) for i in range(len(cuts) + 1)]

    def cast(self, value):
        return relax.op.astype(value, self.pick(WIDER[str(value.ty.dtype)]))

    def xor(self, value):
        dtype = str(value.ty.dtype)
        return relax.op.bitwise_xor(value, relax.const(self.draw(st.integers(0, 100)), dtype))

    def tiles(self, value):
        return layout.tiles.pack(value, self.draw(st.integers(1, 3)), self.draw(st.integers(1, 3)))

    def pad(self, value):
        width = [self.draw(st.integers(0, 2)) for _ in range(4)]
        return relax.op.nn.pad(value, width)

    def transform(self, value):
        blocks = self.draw(st.integers(1, 3))
        return relax.op.layout_transform(
            value, lambda i, j: (j // blocks, i, j % blocks), pad_value=0
        )

    def kernel(self, value):
        """Transposed, flipped, and its bits."""
        flips = "int" in str(value.ty.dtype)

        def kernel(x):
            def element(*at):
                moved = (x.shape[0] - 1 - at[-1], *at[:-1])
                return ~x[moved] if flips else x[moved]

            return te.compute((*x.shape[1:], x.shape[0]), element, "moved")

        return self.builder.call_te(kernel, value)

    def scatter(self, value):
        """Of which rows first: B[j % 2, j // 2, i] = A[i, j]."""

        def kernel(x):
            height, width = x.shape
            return te.compute(
                (2, (width + 1) // 2, height),
                lambda a, b, i: te.if_then_else(
                    b * 2 + a < width, x[i, b * 2 + a], te.const(0, x.dtype)
                ),
                "even_first",
            )

        return self.builder.call_te(kernel, value)


setattr(_Chain, "not", lambda self, value: relax.op.bitwise_not(value))


def chain(draw):
    n = tvm.tirx.Var("n", "int64")
    types = []
    for _ in range(draw(st.integers(1, 3))):
        shape = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
        if draw(st.integers(0, 3)) == 0:
            shape[0] = n
        types.append(relax.TensorType(shape, draw(st.sampled_from(DTYPES))))
    if draw(st.booleans()):
        types.append(types[0])
    count = len(types)
    types.append(relax.TensorType([n], "int8"))  # which stays as it is, and shows n
    builder = relax.BlockBuilder()
    params = relax.Var("params", relax.TupleType(types))
    with builder.function("transform_params", [params]):
        with builder.dataflow():
            values = [builder.emit(params[i]) for i in range(count)]
            steps = _Chain(draw, builder, values, n)
            for _ in range(draw(st.integers(1, 6))):
                steps.step()
            out = builder.emit_output(relax.Tuple([*steps.values, builder.emit(params[count])]))
        builder.emit_func_output(out)
    return builder.finalize()


@examples(40, fuzz=1000)
@given(st.data(), st.sampled_from(sorted(PIPELINES)))
def test_any_restore(data, pipeline):
    before = chain(data.draw)
    note(f"{pipeline}\n{before}")
    note(str(find_inverse("transform_params", before["transform_params"], before)))
    assert_restores(before, pipeline, SIZES)
