"""GGML's row-interleaved blocks: Q4_0 and Q8_0, as the CPU kernels of llama.cpp read them.

A row of K numbers is K / 32 blocks. In a GGUF file, and in ``ggml-common.h``, a block is

- ``q4_0``: 18 bytes: a float16 scale ``d``, then 16 bytes; byte j has number j in its low four bits
  and number 16 + j in its high ones; a number is ``d * (code - 8)``;
- ``q8_0``: 34 bytes: a float16 scale ``d``, then 32 int8; a number is ``d * code``.

Interleaved (``make_block_q4_0x4``, ``make_block_q4_0x8``, ``make_block_q8_0x4`` of
``ggml-cpu/repack.cpp``; ``block<K, N>`` of ``repack.h``), the blocks of R rows at the same place
along K are one block: the R scales, then the codes in chunks of ``bytes``, the first chunk of each
row, the second of each row, and so on. Codes of ``q4_0`` have the highest bit of each nibble
flipped (xor 0x88): a nibble is then the two's complement of ``code - 8``.

The tensors are bytes, as in the file: scales are moved, never read.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from tvm import ir, relax, te, tirx

from ._argument import require, require_equal, require_multiple, shape_of
from ._kernel import NAME, call_kernel, of_known_type, takes_nn_tensors

__all__ = ["deinterleave", "interleave"]

_SCALE = 2  # bytes of a float16


@dataclasses.dataclass(frozen=True)
class _Block:
    codes: int  # bytes
    flip: int  # xor of each byte of codes
    interleavings: tuple[tuple[int, int], ...]  # rows and bytes, as repack.cpp has them

    @property
    def size(self) -> int:
        return _SCALE + self.codes


_BLOCKS = {
    "q4_0": _Block(16, 0x88, ((4, 4), (4, 8), (8, 8))),
    "q8_0": _Block(32, 0, ((4, 4), (4, 8))),
}


@takes_nn_tensors
def interleave(
    weight: relax.Expr, *, block: str = "q4_0", rows: int = 4, bytes: int = 4
) -> relax.Expr:
    """Interleave the blocks of several rows: ``Q4_0_4x8`` is ``rows=4, bytes=8``.

    Parameters
    ----------
    weight : relax.Expr
        (N, K / 32 * S) uint8: rows of blocks of S bytes, 18 for q4_0, 34 for q8_0. N is a multiple
        of ``rows``.
    block : str
        ``"q4_0"`` or ``"q8_0"``.
    rows, bytes : int
        4 rows by 4 or 8 bytes; of q4_0, 8 rows by 8 bytes, too.

    Returns
    -------
    relax.Expr
        (N / rows, K / 32, rows * S) uint8: an array of ``block_q4_0x4``, ``block_q4_0x8`` or
        ``block_q8_0x4``.
    """
    where = "ggml.interleave"
    form = _block(where, block, rows, bytes)
    weight = of_known_type(where, weight)
    height, width = shape_of(where, "weight", weight, ("uint8",), ("N", "bytes of a row"))
    _require_rows(where, height, rows)
    remedy = f"give whole rows as they are in a GGUF file: K / 32 blocks of {form.size} bytes"
    require_multiple(where, f"bytes in a row of {block}", width, form.size, remedy)

    def kernel(weight: te.Tensor) -> te.Tensor:
        height, width = weight.shape

        def byte(a: Any, b: Any, at: Any) -> ir.Expr:
            code = at - rows * _SCALE
            chunk = code // bytes
            row = a * rows + chunk % rows
            source = b * form.size + _SCALE + chunk // rows * bytes + code % bytes
            return te.if_then_else(
                at < rows * _SCALE,
                weight[a * rows + at // _SCALE, b * form.size + at % _SCALE],
                weight[row, source] ^ tirx.const(form.flip, "uint8"),
            )

        shape = (height // rows, width // form.size, rows * form.size)
        return te.compute(shape, byte, "interleaved")

    said: dict[str, str | int] = {NAME: where, "block": block, "rows": rows, "bytes": bytes}
    return call_kernel(where, f"interleave_{block}_{rows}x{bytes}", kernel, weight, layout=said)


@takes_nn_tensors
def deinterleave(
    weight: relax.Expr, *, block: str = "q4_0", rows: int = 4, bytes: int = 4
) -> relax.Expr:
    """Rows of blocks again: what :func:`interleave` was given.

    Parameters
    ----------
    weight : relax.Expr
        (N / rows, K / 32, rows * S) uint8.
    block, rows, bytes
        As they were given to :func:`interleave`.

    Returns
    -------
    relax.Expr
        (N, K / 32 * S) uint8.
    """
    where = "ggml.deinterleave"
    form = _block(where, block, rows, bytes)
    weight = of_known_type(where, weight)
    axes = ("N / rows", "K / 32", "bytes of a block")
    *_, size = shape_of(where, "weight", weight, ("uint8",), axes)
    because = f"{rows} rows of {form.size}"
    remedy = "give what interleave returned, with the same `block` and `rows`"
    require_equal(where, "bytes in a block", size, rows * form.size, because, remedy)

    def kernel(weight: te.Tensor) -> te.Tensor:
        height, width, _ = weight.shape

        def byte(i: Any, j: Any) -> ir.Expr:
            a, row, b, at = i // rows, i % rows, j // form.size, j % form.size
            code = at - _SCALE
            chunk = code // bytes * rows + row
            source = rows * _SCALE + chunk * bytes + code % bytes
            return te.if_then_else(
                at < _SCALE,
                weight[a, b, row * _SCALE + at],
                weight[a, b, source] ^ tirx.const(form.flip, "uint8"),
            )

        return te.compute((height * rows, width * form.size), byte, "rows")

    said: dict[str, str | int] = {NAME: where, "block": block, "rows": rows, "bytes": bytes}
    return call_kernel(where, f"deinterleave_{block}_{rows}x{bytes}", kernel, weight, layout=said)


def _block(where: str, name: str, rows: int, bytes: int) -> _Block:
    require(
        name in _BLOCKS,
        where,
        f"block={name!r} given",
        " or ".join(repr(known) for known in _BLOCKS),
        "other blocks have no layout here",
    )
    form = _BLOCKS[name]
    require(
        (rows, bytes) in form.interleavings,
        where,
        f"{rows} rows by {bytes} bytes of {name} given",
        " or ".join(f"{r} by {b}" for r, b in form.interleavings),
        "choose what ggml's kernels read",
    )
    return form


def _require_rows(where: str, height: ir.Expr, rows: int) -> None:
    remedy = "ggml leaves such a weight as it is: do so, too, or pad it with rows of zeros"
    require_multiple(where, "rows", height, rows, remedy)
