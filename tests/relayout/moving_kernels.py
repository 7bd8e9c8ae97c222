"""Kernels that move: every moving operator, every layout of the catalogue, static and symbolic.

Of each the function, its tensors, where a shape may say ``"n"`` or ``"n * 8"``, and sizes by name.
"""

import itertools

import numpy as np
from tvm import relax, tirx

from relax_inplace import layout
from relax_inplace.layout._declaration import call_declared

op = relax.op
SIZES = {"n": 3, "k": 5, "m": 2}
HALF = "float16"
MATRIX = ((12, 10), HALF)
WORDS, BYTES = ((12, 10), "int32"), ((12, 10), "uint8")


def map_of(function):
    return tirx.IndexMap.from_func(function, index_dtype="int64")


def constant(value, dtype):
    return relax.const(np.array(value, dtype))


def rolled(x):
    return op.concat([op.strided_slice(x, [0], [5], [12]), op.strided_slice(x, [0], [0], [5])], 0)


def awq_codes_to_groups(words):
    """Of `awq.to_groups` the first result."""
    line = layout.awq.LAYOUTS["codes"]
    return call_declared("awq", "awq_codes_to_groups", line, words, dtype="uint32")


def awq_codes_from_groups(words):
    """Of `awq.from_groups` the first result."""
    line = layout.awq.LAYOUTS["codes"]
    return call_declared("awq", "awq_codes_from_groups", line, words, dtype="int32", is_back=True)


OPERATORS = {
    "reshape": (lambda x: op.reshape(x, (8, 15)), [MATRIX]),
    "reshape, an axis in two": (lambda x: op.reshape(x, (4, 3, 10)), [MATRIX]),
    "reshape, no axis in common": (lambda x: op.reshape(x, (21, 20)), [((12, 35), HALF)]),
    "flatten": (lambda x: op.reshape(x, (120,)), [MATRIX]),
    "flip rows": (lambda x: op.flip(x, 0), [MATRIX]),
    "flip columns": (lambda x: op.flip(x, 1), [MATRIX]),
    "strided_slice": (
        lambda x: op.strided_slice(x, [0, 1], [2, 1], [12, 9], [3, 2]),
        [MATRIX],
    ),
    "strided_slice backwards": (lambda x: op.strided_slice(x, [0], [11], [1], [-2]), [MATRIX]),
    "split rows": (lambda x: op.split(x, 3, 0), [MATRIX]),
    "split columns": (lambda x: op.split(x, [4], 1), [MATRIX]),
    "concat rows": (lambda x, y: op.concat([x, y], 0), [MATRIX, ((5, 10), HALF)]),
    "concat columns": (
        lambda x, y, z: op.concat([x, y, z], 1),
        [MATRIX, ((12, 3), HALF), ((12, 2), HALF)],
    ),
    "stack": (lambda x, y: op.stack([x, y], 0), [MATRIX, MATRIX]),
    "pad": (lambda x: op.nn.pad(x, (1, 2, 0, 3)), [MATRIX]),
    "pad with 1": (lambda x: op.nn.pad(x, (1, 2, 0, 3), pad_value=1.0), [MATRIX]),
    "layout_transform": (
        lambda x: op.layout_transform(x, map_of(lambda i, j: (i // 4, j // 5, i % 4, j % 5))),
        [MATRIX],
    ),
    "layout_transform, a rim": (
        lambda x: op.layout_transform(
            x, map_of(lambda i, j: (i // 5, j // 4, i % 5, j % 4)), pad_value=0.0
        ),
        [MATRIX],
    ),
    "layout_transform, a rim of 2": (
        lambda x: op.layout_transform(x, map_of(lambda i: (i // 8, i % 8)), pad_value=2.0),
        [((23,), HALF)],
    ),
    "expand_dims": (lambda x: op.expand_dims(x, 1), [MATRIX]),
    "squeeze": (lambda x: op.squeeze(x, [1]), [((12, 1, 10), HALF)]),
    "broadcast_to": (lambda x: op.broadcast_to(x, (12, 10)), [((1, 10), HALF)]),
    "repeat rows": (lambda x: op.repeat(x, 2, 0), [MATRIX]),
    "repeat columns": (lambda x: op.repeat(x, 3, 1), [MATRIX]),
    "tile": (lambda x: op.tile(x, (2, 3)), [MATRIX]),
    "roll": (rolled, [MATRIX]),
    "bitwise_not": (op.bitwise_not, [BYTES]),
    "bitwise_xor": (lambda x: op.bitwise_xor(x, constant(0x88, "uint8")), [BYTES]),
    "to a wider unsigned": (lambda x: op.astype(x, "int32"), [BYTES]),
    "to a narrower": (lambda x: op.astype(x, "int8"), [WORDS]),
    "any size: transpose": (op.permute_dims, [(("n", "k"), HALF)]),
    "any size: permute_dims": (
        lambda x: op.permute_dims(x, [2, 0, 1, 3]),
        [(("n", "k", 4, 3), HALF)],
    ),
    "any size: flip": (lambda x: op.flip(x, 1), [(("n", "k"), HALF)]),
    "any size: split": (lambda x: op.split(x, 2, 0), [(("n * 2", "k"), HALF)]),
    "any size: concat rows": (
        lambda x, y: op.concat([x, y], 0),
        [(("n", "k"), HALF), (("n", "k"), HALF)],
    ),
    "any size: concat columns": (
        lambda x, y: op.concat([x, y], 1),
        [(("n", "k"), HALF), (("n", 3), HALF)],
    ),
    "any size: pad": (lambda x: op.nn.pad(x, (1, 2, 0, 3)), [(("n", "k"), HALF)]),
    "any size: repeat": (lambda x: op.repeat(x, 3, 1), [(("n", "k"), HALF)]),
    "any size: broadcast": (
        lambda x, y: op.broadcast_to(x, y.ty.shape),
        [((1, "k"), HALF), (("n", "k"), HALF)],
    ),
    "any size: slice": (
        lambda x: op.strided_slice(x, [0], [1], [x.ty.shape.values[0]]),
        [(("n", "k"), HALF)],
    ),
    "any size: flatten": (
        lambda x: op.reshape(x, (x.ty.shape.values[0] * x.ty.shape.values[1],)),
        [(("n", "k"), HALF)],
    ),
    "any size: reshape, axes merged": (
        lambda x: op.reshape(x, (x.ty.shape.values[0], x.ty.shape.values[1] * 4)),
        [(("n", "k", 4), HALF)],
    ),
    "any size: reshape, other axes merged": (
        lambda x, y: op.reshape(x, (y.ty.shape.values[0], y.ty.shape.values[1] * 4)),
        [(("n * 4", "k"), HALF), (("n", "k"), HALF)],
    ),
    "any size: reshape, an axis in two": (
        lambda x, y: op.reshape(x, (y.ty.shape.values[0], y.ty.shape.values[1], 2)),
        [(("n", "k * 2"), HALF), (("n", "k"), HALF)],
    ),
} | {
    f"permute_dims {axes}": (
        lambda x, axes=axes: op.permute_dims(x, list(axes)),
        [((6, 5, 4, 3)[: len(axes)], HALF)],
    )
    for rank in (2, 3, 4)
    for axes in itertools.permutations(range(rank))
}

COMPUTED = {
    "half to float": (lambda x: op.astype(x, "float32"), [MATRIX]),
    "float to half": (lambda x: op.astype(x, "float16"), [((12, 10), "float32")]),
    "to a wider signed": (lambda x: op.astype(x, "int32"), [((12, 10), "int8")]),
    "scale": (lambda x: op.multiply(x, constant(2, HALF)), [MATRIX]),
    "scale and transpose": (
        lambda x: op.permute_dims(op.multiply(x, constant(2, HALF))),
        [MATRIX],
    ),
    "add": (op.add, [MATRIX, ((1, 10), HALF)]),
    "any size: half to float": (lambda x: op.astype(x, "float32"), [(("n", "k"), HALF)]),
}


def _rim(s):
    """Tiles of a matrix that does not fill them, and the matrix."""
    counts = (s(4, "( n + 15 ) // 16"), s(2, "( k + 63 ) // 64"))
    return [((*counts, 16, 64), HALF), ((s(50, "n"), s(100, "k")), HALF)]


def _layouts(symbolic):
    """The catalogue: name, function, tensors."""

    def s(number, text):
        return text if symbolic else number

    quantized, ggml = layout.group_quantized, layout.ggml
    transformer, tiles = layout.faster_transformer, layout.tiles
    for bits, words in ((3, 4), (4, 4), (8, 8)):
        n, k, groups = s(7, "n"), s(3 * words, f"k * {words}"), s(3, "k")
        for way, flip in ((quantized.nk_to_kn, 1), (quantized.kn_to_nk, -1)):
            tensors = [((n, k)[::flip], "uint32"), ((n, groups)[::flip], HALF)]
            yield f"{way.__name__} {bits}", (lambda *x, w=way, b=bits: w(*x, bits=b)), tensors
    for block, size, rows, count in (
        ("q4_0", 18, 4, 4),
        ("q4_0", 18, 4, 8),
        ("q4_0", 18, 8, 8),
        ("q8_0", 34, 4, 4),
        ("q8_0", 34, 4, 8),
        ("mxfp4", 17, 8, 8),
        ("q4_K", 144, 8, 8),
        ("q6_K", 210, 8, 4),
    ):
        said = {"block": block, "rows": rows, "bytes": count}
        name = f"{block} {rows}x{count}"
        there = ((s(3 * rows, f"n * {rows}"), s(5 * size, f"k * {size}")), "uint8")
        back = ((s(3, "n"), s(5, "k"), rows * size), "uint8")
        yield f"interleave {name}", (lambda x, a=said: ggml.interleave(x, **a)), [there]
        yield f"deinterleave {name}", (lambda x, a=said: ggml.deinterleave(x, **a)), [back]
    for arch, bits in itertools.product((70, 80, 90), (4, 8)):
        shape = (s(192, "k * 64"), s(16 * bits, f"n * {8 * bits}"))
        shape = shape if arch >= 75 else (s(7, "k"), s(8, "n * 4"))
        for way in (transformer.to_mixed_gemm, transformer.from_mixed_gemm):
            function = lambda x, w=way, a=arch, b=bits: w(x, arch=a, bits=b)  # noqa: E731
            yield f"{way.__name__} sm{arch} int{bits}", function, [(shape, "int8")]
    for bits in (4, 8):
        words = 32 // bits
        n, k = s(128, "n * 64"), s(3, "k")
        codes = (k, s(128 * 16 // words, f"n * {64 * 16 // words}"))
        for way, shape in (
            (layout.marlin.from_gptq, (s(48 // words, f"k * {16 // words}"), n)),
            (layout.marlin.to_gptq, codes),
        ):
            function = lambda *x, w=way, b=bits: w(*x, bits=b)  # noqa: E731
            yield f"marlin {way.__name__} {bits}", function, [(shape, "int32"), ((3, n), HALF)]
        zeros = (3, s(128 // words, f"n * {64 // words}"))
        for way, shape in (
            (layout.marlin.from_awq, (s(48, "k * 16"), zeros[1])),
            (layout.marlin.to_awq, codes),
        ):
            function = lambda *x, w=way, b=bits: w(*x, bits=b)  # noqa: E731
            tensors = [(shape, "int32"), (zeros, "int32"), ((3, n), HALF)]
            yield f"marlin {way.__name__} {bits}", function, tensors
    scales = ((s(256, "n * 128"), s(8, "k * 4")), "uint8")
    yield "swizzle", layout.block_scales.swizzle, [scales]
    yield "unswizzle", layout.block_scales.unswizzle, [((s(2, "n"), s(3, "k"), 32, 16), "uint8")]
    for way in (layout.gate_up.interleave, layout.gate_up.deinterleave):
        function = lambda x, w=way: w(x, group=8)  # noqa: E731
        yield f"{way.__name__} gate, up", function, [((s(48, "n * 16"), s(5, "k")), HALF)]
    packed = lambda x: tiles.pack(x, 16, 64)  # noqa: E731
    yield "pack", packed, [((s(48, "n * 16"), s(128, "k * 64")), HALF)]
    yield "unpack, a rim", (lambda x, y: tiles.unpack(x, y.ty.shape)), _rim(s)
    yield "unpack", tiles.unpack, [((s(3, "n"), s(2, "k"), 16, 64), HALF)]
    yield "pack, a rim", packed, [((s(50, "n"), s(100, "k")), HALF)]
    for dtype, v in (("int8", 4), (HALF, 2)):
        yield f"pack_vnni {v}", tiles.pack_vnni, [((s(5, "n"), s(6 * v, f"k * {v}")), dtype)]
        yield f"unpack_vnni {v}", tiles.unpack_vnni, [((s(6, "k"), s(5, "n"), v), dtype)]
    n, groups = s(2, "n"), s(3, "m")
    to_groups = [((s(24, "k * 8"), n), "int32"), ((groups, n), "int32")]
    from_groups = [((s(16, "n * 8"), s(3, "k")), "uint32"), ((n, groups), "uint32")]
    yield "awq to", layout.awq.to_groups, [*to_groups, ((groups, s(16, "n * 8")), HALF)]
    yield "awq from", layout.awq.from_groups, [*from_groups, ((s(16, "n * 8"), groups), HALF)]
    for bits in (4, 8):
        w = 32 // bits
        wide = s(2 * w, f"n * {w}")
        to_groups = [((s(3, "k"), wide), "int32"), ((groups, n), "int32")]
        from_groups = [((wide, s(3, "k")), "uint32"), ((n, groups), "uint32")]
        for way, tensors, scales in (
            (layout.gptq.to_groups, to_groups, (groups, wide)),
            (layout.gptq.from_groups, from_groups, (wide, groups)),
        ):
            function = lambda *x, f=way, b=bits: f(*x, bits=b)  # noqa: E731
            yield f"gptq {way.__name__} {bits}", function, [*tensors, (scales, HALF)]


LAYOUTS = {
    f"{'any size: ' if symbolic else ''}{name}": (function, tensors)
    for symbolic in (False, True)
    for name, function, tensors in _layouts(symbolic)
}
