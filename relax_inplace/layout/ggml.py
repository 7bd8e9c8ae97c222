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

from collections.abc import Iterator

from tvm import ir, relax

from ._argument import require, require_equal, require_multiple, shape_of
from ._declaration import Declaration, call_declared
from ._kernel import of_known_type, takes_nn_tensors

__all__ = ["LAYOUTS", "deinterleave", "interleave"]

_BYTES = {"q4_0": 18, "q8_0": 34}  # of a block


def _plain(rows: int, bytes: int, codes: int, flip: str) -> str:
    """A scale of 16 bits, then the codes: so many bytes."""
    size = 16 + 8 * codes
    return f"""
        A r:{rows}, B @{size}+0 d:16 -> A, B, @{rows * size}+0 r d
        A r, B @{size}+16 c:{codes // bytes} t:{bytes} b:8
            -> A, B, @{rows * size}+{rows * 16} c r t b {flip}"""


def _layouts() -> Iterator[tuple[str, str]]:
    """Those that repack.cpp has, by block, rows and bytes."""
    for rows, bytes in ((4, 4), (4, 8), (8, 8)):
        yield f"q4_0 {rows}x{bytes}", _plain(rows, bytes, 16, "^0x88")
    for rows, bytes in ((4, 4), (4, 8)):
        yield f"q8_0 {rows}x{bytes}", _plain(rows, bytes, 32, "")


LAYOUTS = {name: Declaration(text) for name, text in _layouts()}


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
    layout = _layout(where, block, rows, bytes)
    weight = of_known_type(where, weight)
    height, width = shape_of(where, "weight", weight, ("uint8",), ("N", "bytes of a row"))
    _require_rows(where, height, rows)
    remedy = f"give whole rows as they are in a GGUF file: K / 32 blocks of {_BYTES[block]} bytes"
    require_multiple(where, f"bytes in a row of {block}", width, _BYTES[block], remedy)

    name = f"interleave_{block}_{rows}x{bytes}"
    return call_declared(where, name, layout, weight)


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
    layout = _layout(where, block, rows, bytes)
    weight = of_known_type(where, weight)
    axes = ("N / rows", "K / 32", "bytes of a block")
    *_, size = shape_of(where, "weight", weight, ("uint8",), axes)
    because = f"{rows} rows of {_BYTES[block]}"
    remedy = "give what interleave returned, with the same `block` and `rows`"
    require_equal(where, "bytes in a block", size, rows * _BYTES[block], because, remedy)

    name = f"deinterleave_{block}_{rows}x{bytes}"
    return call_declared(where, name, layout, weight, is_back=True)


def _layout(where: str, block: str, rows: int, bytes: int) -> Declaration:
    require(
        block in _BYTES,
        where,
        f"block={block!r} given",
        " or ".join(repr(known) for known in _BYTES),
        "other blocks have no layout here",
    )
    known = [name.removeprefix(f"{block} ") for name in LAYOUTS if name.startswith(f"{block} ")]
    require(
        f"{rows}x{bytes}" in known,
        where,
        f"{rows} rows by {bytes} bytes of {block} given",
        " or ".join(name.replace("x", " by ") for name in known),
        "choose what ggml's kernels read",
    )
    return LAYOUTS[f"{block} {rows}x{bytes}"]


def _require_rows(where: str, height: ir.Expr, rows: int) -> None:
    remedy = "ggml leaves such a weight as it is: do so, too, or pad it with rows of zeros"
    require_multiple(where, "rows", height, rows, remedy)
