"""What can be done to weights: each operation in Relax, and in numpy, torch and jax alike.

Definition: an operation makes one tensor of one or several. ``relax`` takes and returns
expressions; ``arrays(xp, ...)`` takes and returns arrays of the library ``xp``, which is numpy,
torch or jax.numpy, in the few lines that one would write. It may return a view: to make that
contiguous is the caller's part.

Nothing is imported but what is given: a process that measures numpy needs no TVM.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

__all__ = ["OPERATIONS", "Operation"]


@dataclasses.dataclass(frozen=True)
class Operation:
    """The same bits, in Relax and in a library of arrays."""

    relax: Callable[..., Any]
    arrays: Callable[..., Any]


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


# -- FasterTransformer's mixed GEMM of int4, on Ampere ---------------------------------------------

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
    "scale": Operation(_scale_relax, _scale_arrays),
    "to_float16": Operation(_to_float16_relax, _to_float16_arrays),
    "interleave": Operation(_interleave_relax, _interleave_arrays),
    "mixed_gemm": Operation(_mixed_gemm_relax, _mixed_gemm_arrays),
}
