"""GGML's row-interleaved blocks, as the CPU kernels of llama.cpp read them.

A row of K numbers is K / 32 blocks, or K / 256 of ``q4_K``, ``q5_K`` and ``q6_K``. In a GGUF file,
and in ``ggml-common.h``, a block is

- ``q4_0``: a float16 scale ``d``, then 16 bytes; byte j has number j in its low four bits and
  number 16 + j in its high ones; a number is ``d * (code - 8)``;
- ``iq4_nl``: the same bytes, the codes of a table of numbers;
- ``q8_0``: a float16 scale ``d``, then 32 int8; a number is ``d * code``;
- ``mxfp4``: an exponent in a byte, then 16 bytes as of ``q4_0``;
- ``q4_K``: two float16, 12 bytes of 8 scales and 8 minima of 6 bits, 128 bytes of codes;
- ``q5_K``: two float16, these 12 bytes, 32 bytes of high bits, 128 bytes of codes;
- ``q6_K``: 128 bytes of low bits, 64 bytes of high bits, 16 int8 scales, a float16.

Interleaved (``make_block_q4_0x4`` and so on of ``ggml-cpu/repack.cpp``; ``repack.h``), the blocks
of R rows at the same place along K are one block: the scales of all rows, then the codes in chunks
of ``bytes``, the first chunk of each row, the second of each row, and so on. Codes of ``q4_0`` have
the highest bit of each nibble flipped (xor 0x88): a nibble is then the two's complement of
``code - 8``. Of ``q4_K`` and ``q5_K`` the scales of 6 bits of 8 rows are packed as those of 8
sub-blocks were: each has 4 bits in one byte and 2 in another one, or all in one.

The tensors are bytes, as in the file: scales are moved, never read.
"""

from __future__ import annotations

from collections.abc import Iterator

from tvm import ir, relax

from ._argument import require, require_equal, require_multiple, shape_of
from ._declaration import Declaration, call_declared
from ._kernel import of_known_type, takes_nn_tensors

__all__ = ["LAYOUTS", "deinterleave", "interleave"]

# Of a block its bytes, and how many numbers it holds.
_BLOCKS = {
    "q4_0": (18, 32),
    "q8_0": (34, 32),
    "iq4_nl": (18, 32),
    "mxfp4": (17, 32),
    "q4_K": (144, 256),
    "q5_K": (176, 256),
    "q6_K": (210, 256),
}


def _plain(rows: int, bytes: int, scale: int, codes: int, flip: str = "") -> str:
    """A scale of so many bits, then the codes: so many bytes."""
    size = scale + 8 * codes
    return f"""
        A r:{rows}, B @{size}+0 d:{scale} -> A, B, @{rows * size}+0 r d
        A r, B @{size}+{scale} c:{codes // bytes} t:{bytes} b:8
            -> A, B, @{rows * size}+{rows * scale} c r t b {flip}"""


# Scale k of 6 bits, or its low 4 q and its high 2 p, of x: scale or minimum; of sub-blocks i, or
# 4 + i; of rows j, or 4 + j.
_SIX_BITS = """
    A 0/2 j:4, B @{size}+32 x:2 i:4 @8+0 k:6 -> A, B, @{whole}+256 0/2 i @96+0 x j @8+0 k
    A 1/2 j, B @{size}+32 x i @8+0 q:4 -> A, B, @{whole}+256 0/2 i @96+64 j x q
    A 1/2 j, B @{size}+32 x i @8+4 p:2 -> A, B, @{whole}+256 0/2 i @96+0 x j @8+6 p
    A 0/2 j, B @{size}+96 i x q -> A, B, @{whole}+256 1/2 i @96+0 x j @8+0 q
    A 0/2 j, B @{size}+32 x i @8+6 p -> A, B, @{whole}+256 1/2 i @96+0 x j @8+4 p
    A 1/2 j, B @{size}+96 i x q -> A, B, @{whole}+256 1/2 i @96+64 j x q
    A 1/2 j, B @{size}+32 x i @8+6 p -> A, B, @{whole}+256 1/2 i @96+0 x j @8+6 p"""


def _q4_k(bytes: int) -> str:
    return f"""
    A r:8, B @1152+0 f:2 d:16 -> A, B, @9216+0 f r d{_SIX_BITS.format(size=1152, whole=9216)}
    A r, B @1152+128 c:{128 // bytes} t:{bytes} b:8 -> A, B, @9216+1024 c r t b"""


def _q5_k(bytes: int) -> str:
    return f"""
    A r:8, B @1408+0 f:2 d:16 -> A, B, @11264+0 f r d{_SIX_BITS.format(size=1408, whole=11264)}
    A r, B @1408+128 h:{32 // bytes} t:{bytes} b:8 -> A, B, @11264+1024 h r t b
    A r, B @1408+384 c:{128 // bytes} t b -> A, B, @11264+3072 c r t b"""


def _q6_k(bytes: int) -> str:
    return f"""
    A r:8, B @1680+1664 d:16 -> A, B, @13440+0 r d
    A r, B @1680+1536 s:16 b:8 -> A, B, @13440+128 s r b
    A r, B @1680+0 c:{128 // bytes} t:{bytes} b -> A, B, @13440+1152 c r t b
    A r, B @1680+1024 h:{64 // bytes} t b -> A, B, @13440+9344 h r t b"""


def _layouts() -> Iterator[tuple[str, str]]:
    """Those that repack.cpp has, by block, rows and bytes."""
    for rows, bytes in ((4, 4), (4, 8), (8, 8), (16, 1)):
        yield f"q4_0 {rows}x{bytes}", _plain(rows, bytes, 16, 16, "^0x88")
    for rows, bytes in ((4, 4), (4, 8), (16, 1)):
        yield f"q8_0 {rows}x{bytes}", _plain(rows, bytes, 16, 32)
    for rows, bytes in ((4, 4), (8, 8), (16, 1)):
        yield f"iq4_nl {rows}x{bytes}", _plain(rows, bytes, 16, 16)
    for rows, bytes in ((4, 4), (8, 8)):
        yield f"mxfp4 {rows}x{bytes}", _plain(rows, bytes, 8, 16)
    for block, text in (("q4_K", _q4_k), ("q5_K", _q5_k), ("q6_K", _q6_k)):
        for bytes in (4, 8):
            yield f"{block} 8x{bytes}", text(bytes)


LAYOUTS = {name: Declaration(text) for name, text in _layouts()}


@takes_nn_tensors
def interleave(
    weight: relax.Expr, *, block: str = "q4_0", rows: int = 4, bytes: int = 4
) -> relax.Expr:
    """Interleave the blocks of several rows: ``Q4_0_4x8`` is ``rows=4, bytes=8``.

    Parameters
    ----------
    weight : relax.Expr
        (N, K / c * S) uint8: rows of blocks of c numbers in S bytes, 32 in 18 of q4_0. N is a
        multiple of ``rows``. (E, N, K / c * S) is the same for each of E experts.
    block : str
        ``"q4_0"``, ``"q8_0"``, ``"iq4_nl"``, ``"mxfp4"``, ``"q4_K"``, ``"q5_K"`` or ``"q6_K"``.
    rows, bytes : int
        4 rows by 4 bytes, 8 by 8, and so on: the keys of ``LAYOUTS``, which are what
        ``repack.cpp`` has.

    Returns
    -------
    relax.Expr
        (N / rows, K / c, rows * S) uint8: an array of ``block_q4_0x4`` and so on; of experts
        (E, N / rows, K / c, rows * S).
    """
    where = "ggml.interleave"
    layout = _layout(where, block, rows, bytes)
    weight = of_known_type(where, weight)
    each = ["E"] if weight.ty.ndim == 3 else []
    *_, height, width = shape_of(
        where, "weight", weight, ("uint8",), (*each, "N", "bytes of a row")
    )
    _require_rows(where, height, rows)
    size, count = _BLOCKS[block]
    remedy = f"give whole rows as they are in a GGUF file: K / {count} blocks of {size} bytes"
    require_multiple(where, f"bytes in a row of {block}", width, size, remedy)
    for axis in each:
        layout = layout.of_each(axis)
    return call_declared(where, f"interleave_{block}_{rows}x{bytes}_blocks", layout, weight)


@takes_nn_tensors
def deinterleave(
    weight: relax.Expr, *, block: str = "q4_0", rows: int = 4, bytes: int = 4
) -> relax.Expr:
    """Rows of blocks again: what :func:`interleave` was given.

    Parameters
    ----------
    weight : relax.Expr
        (N / rows, K / c, rows * S) uint8, or (E, N / rows, K / c, rows * S).
    block, rows, bytes
        As they were given to :func:`interleave`.

    Returns
    -------
    relax.Expr
        (N, K / c * S) uint8, or (E, N, K / c * S).
    """
    where = "ggml.deinterleave"
    layout = _layout(where, block, rows, bytes)
    weight = of_known_type(where, weight)
    each = ["E"] if weight.ty.ndim == 4 else []
    count = _BLOCKS[block][1]
    axes = (*each, "N / rows", f"K / {count}", "bytes of a block")
    *_, size = shape_of(where, "weight", weight, ("uint8",), axes)
    one = _BLOCKS[block][0]
    because = f"{rows} rows of {one}"
    remedy = "give what interleave returned, with the same `block` and `rows`"
    require_equal(where, "bytes in a block", size, rows * one, because, remedy)
    for axis in each:
        layout = layout.of_each(axis)
    name = f"deinterleave_{block}_{rows}x{bytes}_blocks"
    return call_declared(where, name, layout, weight, is_back=True)


def _layout(where: str, block: str, rows: int, bytes: int) -> Declaration:
    require(
        block in _BLOCKS,
        where,
        f"block={block!r} given",
        " or ".join(repr(known) for known in _BLOCKS),
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
