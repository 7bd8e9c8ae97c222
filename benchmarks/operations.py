"""What can be done to weights: each operation in Relax, and in numpy, torch and jax alike.

Definition: an operation makes one tensor, or a tuple of them, of one or several. ``relax`` takes
and returns expressions; ``arrays(xp, ...)`` takes and returns arrays of the library ``xp``, which
is numpy, torch or jax.numpy, in the few lines that one would write. It may return a view: to make
that contiguous is the caller's part.

Nothing is imported but what is given: a process that measures numpy needs no TVM.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

__all__ = ["OPERATIONS", "Operation"]


@dataclasses.dataclass(frozen=True)
class Operation:
    """The same bits, in Relax and in a library of arrays.

    Attributes
    ----------
    relax, arrays : callable
    is_view : bool
        Whether what `arrays` returns is contiguous, and still the weight's memory: then nothing is
        converted that could be measured, and the weight cannot be freed.
    """

    relax: Callable[..., Any]
    arrays: Callable[..., Any]
    is_view: bool = False


# -- the last two dimensions, exchanged ------------------------------------------------------------


def _transpose_relax(weight: Any) -> Any:
    from tvm import relax

    *leading, rows, columns = range(len(weight.ty.shape.values))
    return relax.op.permute_dims(weight, [*leading, columns, rows])


def _transpose_arrays(xp: Any, weight: Any) -> Any:
    return xp.swapaxes(weight, -1, -2)


# -- rows of several weights, one after the other --------------------------------------------------


def _concat_relax(*weights: Any) -> Any:
    from tvm import relax

    return relax.op.concat(weights, axis=0)


def _concat_arrays(xp: Any, *weights: Any) -> Any:
    return xp.concatenate(weights)


# -- rows of one weight, as several ----------------------------------------------------------------


def _split_points(rows: int) -> list[int]:
    """Of Q, K and V: four sixths, and a sixth each."""
    return [rows * 4 // 6, rows * 5 // 6]


def _split_relax(weight: Any) -> Any:
    from tvm import relax

    return relax.op.split(weight, _split_points(int(weight.ty.shape.values[0])), axis=0)


def _split_arrays(xp: Any, weight: Any) -> Any:
    first, second = _split_points(weight.shape[0])
    return weight[:first], weight[first:second], weight[second:]


# -- tiles of 16 rows and 32 columns ---------------------------------------------------------------

_TILE = (16, 32)


def _tiles_relax(weight: Any) -> Any:
    from relax_inplace import layout

    return layout.tiles.pack(weight, *_TILE)


def _tiles_arrays(xp: Any, weight: Any) -> Any:
    (height, width), (rows, columns) = weight.shape, _TILE
    tiles = xp.reshape(weight, (height // rows, rows, width // columns, columns))
    return xp.swapaxes(tiles, 1, 2)


# -- AWQ's codes (K x N, eight columns a word in an order of its own) to N x K ---------------------


def _awq_relax(qweight: Any) -> Any:
    from relax_inplace.layout._declaration import call_declared
    from relax_inplace.layout.awq import LAYOUTS

    return call_declared("awq", "awq_codes_to_groups", LAYOUTS["codes"], qweight, dtype="uint32")


def _awq_arrays(xp: Any, qweight: Any) -> Any:
    height, words = qweight.shape
    pairs = qweight.view(xp.uint8)
    codes = xp.reshape(xp.stack([pairs & 15, pairs >> 4], axis=-1), (height, words, 2, 4))
    matrix = xp.reshape(xp.swapaxes(codes, 2, 3), (height, words * 8))
    packed = xp.swapaxes(matrix[0::2] | matrix[1::2] << 4, 0, 1)
    return xp.reshape(xp.reshape(packed, (-1,)).view(xp.uint32), (words * 8, height // 8))


# -- GPTQ's codes (K x N, eight rows a word) to Marlin's tiles of 16 x 64 --------------------------


def _marlin_relax(qweight: Any) -> Any:
    from relax_inplace.layout._declaration import call_declared
    from relax_inplace.layout.marlin import LAYOUTS

    return call_declared("marlin", "marlin_from_gptq_4", LAYOUTS["GPTQ, 4 bits"], qweight)


def _marlin_arrays(xp: Any, qweight: Any) -> Any:
    height, width = qweight.shape
    pairs = xp.reshape(qweight, (-1,)).view(xp.uint8)
    codes = xp.stack([pairs & 15, pairs >> 4], axis=-1)
    codes = xp.reshape(codes, (height // 2, 2, width // 64, 4, 2, 8, 4, 2))
    for one, other in ((1, 2), (2, 5), (3, 6), (4, 6), (5, 7)):
        codes = xp.swapaxes(codes, one, other)
    packed = codes[..., 0] | codes[..., 1] << 4
    return xp.reshape(xp.reshape(packed, (-1,)).view(xp.int32), (height // 2, width * 2))


# -- arithmetic ------------------------------------------------------------------------------------

_FACTOR = 0.0883883461356163  # 1 / sqrt(128), of a query: its product is rounded


def _scale_relax(weight: Any) -> Any:
    from tvm import relax

    return relax.op.multiply(weight, relax.const(_FACTOR, weight.ty.dtype))


def _scale_arrays(xp: Any, weight: Any) -> Any:
    weight *= _FACTOR  # in place, where an array can be changed
    return weight


def _to_float16_relax(weight: Any) -> Any:
    from tvm import relax

    return relax.op.astype(weight, "float16")


def _to_float16_arrays(xp: Any, weight: Any) -> Any:
    return weight.to(xp.float16) if hasattr(weight, "to") else weight.astype(xp.float16)


# -- GGML's Q4_0, 8 rows in chunks of 8 bytes: what llama.cpp's AVX2 kernels read ------------------

_BLOCK = 18  # bytes: a float16 scale, 32 codes


def _interleave_relax(weight: Any) -> Any:
    from relax_inplace import layout

    return layout.ggml.interleave(weight, block="q4_0", rows=8, bytes=8)


def _interleave_arrays(xp: Any, weight: Any) -> Any:
    height, blocks = weight.shape[0] // 8, weight.shape[1] // _BLOCK
    rows = xp.swapaxes(xp.reshape(weight, (height, 8, blocks, _BLOCK)), 1, 2)
    scales = xp.reshape(rows[..., :2], (height, blocks, 16))
    codes = xp.reshape(rows[..., 2:] ^ 0x88, (height, blocks, 8, 2, 8))
    codes = xp.reshape(xp.swapaxes(codes, 2, 3), (height, blocks, 128))
    return xp.concatenate([scales, codes], axis=-1)


# -- FasterTransformer's mixed GEMM of int4 and int8, on Ampere ------------------------------------

_ROWS_8 = [first + 2 * i for i in range(4) for first in (0, 1, 8, 9)]


def _mixed_gemm_8_relax(codes: Any) -> Any:
    from relax_inplace import layout

    return layout.faster_transformer.to_mixed_gemm(codes, arch=80, bits=8)


def _mixed_gemm_8_arrays(xp: Any, codes: Any) -> Any:
    height, width = codes.shape
    matrix = xp.reshape(codes.view(xp.uint8), (-1, 16, width))[:, _ROWS_8]
    matrix = xp.swapaxes(xp.reshape(matrix, (height, width)), 0, 1)
    matrix = xp.reshape(matrix, (width // 2, 2, height // 64, 64))
    words = xp.reshape(xp.swapaxes(matrix, 1, 2), (-1, 4))
    words = xp.concatenate([words[:, 0::2], words[:, 1::2]], axis=-1) ^ 0x80
    return xp.reshape(words, tuple(codes.shape)).view(xp.int8)


_ROWS = [first + 2 * i for i in range(4) for first in (0, 1, 8, 9, 16, 17, 24, 25)]


def _mixed_gemm_relax(codes: Any) -> Any:
    from relax_inplace import layout

    return layout.faster_transformer.to_mixed_gemm(codes, arch=80, bits=4)


def _mixed_gemm_arrays(xp: Any, codes: Any) -> Any:
    height, width = codes.shape[0], codes.shape[1] * 2
    pairs = codes.view(xp.uint8)
    matrix = xp.reshape(xp.stack([pairs & 15, pairs >> 4], axis=-1), (height, width))
    matrix = xp.reshape(xp.reshape(matrix, (-1, 32, width))[:, _ROWS], (height, width))
    matrix = xp.reshape(xp.swapaxes(matrix, 0, 1), (width // 4, 4, height // 64, 64))
    words = xp.reshape(xp.swapaxes(matrix, 1, 2), (-1, 8))
    words = xp.concatenate([words[:, 0::2], words[:, 1::2]], axis=-1) ^ 8
    packed = words[:, 0::2] | words[:, 1::2] << 4
    return xp.reshape(packed, tuple(codes.shape)).view(xp.int8)


OPERATIONS = {
    "transpose": Operation(_transpose_relax, _transpose_arrays),
    "concat": Operation(_concat_relax, _concat_arrays),
    "split": Operation(_split_relax, _split_arrays, is_view=True),
    "tiles": Operation(_tiles_relax, _tiles_arrays),
    "awq": Operation(_awq_relax, _awq_arrays),
    "marlin": Operation(_marlin_relax, _marlin_arrays),
    "scale": Operation(_scale_relax, _scale_arrays),
    "to_float16": Operation(_to_float16_relax, _to_float16_arrays),
    "interleave": Operation(_interleave_relax, _interleave_arrays),
    "mixed_gemm": Operation(_mixed_gemm_relax, _mixed_gemm_arrays),
    "mixed_gemm_8": Operation(_mixed_gemm_8_relax, _mixed_gemm_8_arrays),
}
