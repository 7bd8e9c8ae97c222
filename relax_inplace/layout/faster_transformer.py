"""FasterTransformer's mixed GEMM: int4 and int8 weights, float16 activations, a scale per column.

The kernels (fpA_intB) read weights that ``cutlass_preprocessors.cc`` has prepared. Its input is row
major, K x N, signed: int8, or two int4 in an int8, the lower column in the lower bits. TVM calls it
as ``cutlass.ft_preprocess_weight`` (``src/runtime/extra/contrib/cutlass/weight_preprocess.cc``),
from the copy in tlc-pack/cutlass_fpA_intB_gemm, which is what is followed here. A word is 32 bits:
8 codes of 4 bits, or 4 of 8. Step by step:

1. **Rows** (``permute_B_rows_for_mixed_gemm``). In each block of 32 rows (int4) or 16 (int8), so
   that ldmatrix leaves each thread of a tensor core the codes it multiplies. int4: 0 1 8 9 16 17 24
   25, 2 3 10 11 18 19 26 27, and so on; int8: 0 1 8 9, 2 3 10 11, and so on.
2. **Transpose** (``subbyte_transpose``). Column major: a word is 8 or 4 neighbours along K.
3. **Columns** (``interleave_column_major_tensor``). Of 4 columns (int4) or 2 (int8): 64 rows of the
   first, 64 of the second, and so on: 128 bytes, a cache line.
4. **Bias and order** (``add_bias_and_interleave_quantized_tensor_inplace``). 8 or 128 is added, so
   codes are unsigned; in a word, the even codes come first, then the odd ones.

======================  ==========================================
compute capability      steps
======================  ==========================================
7.0, 7.2 (Volta)        4
7.5 to 8.9              1, 2, 3, 4
9.0 to 10.9             1, 2, 3, 4, in the layout of 8.0
======================  ==========================================

(``getLayoutDetailsForTransform``, ``mixed_gemm_B_layout.h``.) TensorRT-LLM's file of the same name
leaves step 4 out on 9.0, for kernels of its own, which are not served here.
"""

from __future__ import annotations

import functools
import operator
from typing import Any

from tvm import ir, relax, te, tirx

from ._argument import require, require_multiple, shape_of
from ._kernel import NAME, call_kernel, of_known_type, takes_nn_tensors

__all__ = ["from_mixed_gemm", "to_mixed_gemm"]

_TILE = 64  # rows of a column that stay together: ThreadblockK
_LINE = 128  # bytes in which the tiles of interleaved columns lie


@takes_nn_tensors
def to_mixed_gemm(codes: relax.Expr, *, arch: int = 80, bits: int = 4) -> relax.Expr:
    """Row-major signed codes to what the kernels of a GPU architecture read.

    Parameters
    ----------
    codes : relax.Expr
        (K, N * bits / 8) int8. K and N are multiples of 64; before 7.5, K is any, and N one of 8
        (int4) or 4 (int8).
    arch : int
        Ten times the compute capability: 70 to 109.
    bits : int
        Of a code: 4 or 8.

    Returns
    -------
    relax.Expr
        (K, N * bits / 8) int8: the shape of the operand, as TVM's packed function returns it. From
        7.5 on, the bytes are those of (N / c, K / 64, c, 64 codes), c = 16 / bits.

    Notes
    -----
    A scale per column, (N,), stays as it is.
    """
    where = "faster_transformer.to_mixed_gemm"
    codes = _checked(where, codes, arch, bits)
    in_word, in_byte = 32 // bits, 8 // bits

    def kernel(codes: te.Tensor) -> te.Tensor:
        height, width = codes.shape

        def byte(i: Any, j: Any) -> ir.Expr:
            if arch < 75:
                places = _order(in_word, in_byte, j % 4)
                columns = [j // 4 * in_word + place for place in places]
                return _biased_byte([_code(codes, i, column, bits) for column in columns], bits)
            at = i * width + j
            column, word, rest = _place(at, height, bits)
            rows = [
                _row(word * in_word + place, in_word) for place in _order(in_word, in_byte, rest)
            ]
            return _biased_byte([_code(codes, row, column, bits) for row in rows], bits)

        return te.compute((height, width), byte, "mixed_gemm")

    said: dict[str, str | int] = {NAME: where, "arch": arch, "bits": bits}
    name = f"to_mixed_gemm_int{bits}_sm{arch}"
    return call_kernel(where, name, kernel, codes, layout=said)


@takes_nn_tensors
def from_mixed_gemm(codes: relax.Expr, *, arch: int = 80, bits: int = 4) -> relax.Expr:
    """Row-major signed codes again: what :func:`to_mixed_gemm` was given.

    Parameters
    ----------
    codes : relax.Expr
        (K, N * bits / 8) int8.
    arch, bits
        As they were given to :func:`to_mixed_gemm`.

    Returns
    -------
    relax.Expr
        (K, N * bits / 8) int8.
    """
    where = "faster_transformer.from_mixed_gemm"
    codes = _checked(where, codes, arch, bits)
    in_word, in_byte = 32 // bits, 8 // bits

    def kernel(codes: te.Tensor) -> te.Tensor:
        height, width = codes.shape

        def code(i: Any, column: Any) -> ir.Expr:
            if arch < 75:
                place = column // in_word * in_word + _place_in_word(column % in_word, in_word)
                return _code(codes, i, place, bits)
            row = _permuted_row(i, in_word)
            place = row // in_word * in_word + _place_in_word(row % in_word, in_word)
            at = _byte(place // in_byte, column, height, bits)
            return _bits_of(codes[at // width, at % width], place % in_byte, bits)

        def byte(i: Any, j: Any) -> ir.Expr:
            return _biased_byte([code(i, j * in_byte + p) for p in range(in_byte)], bits)

        return te.compute((height, width), byte, "row_major")

    said: dict[str, str | int] = {NAME: where, "arch": arch, "bits": bits}
    name = f"from_mixed_gemm_int{bits}_sm{arch}"
    return call_kernel(where, name, kernel, codes, layout=said)


def _checked(where: str, codes: relax.Expr, arch: int, bits: int) -> relax.Expr:
    require(
        bits in (4, 8), where, f"bits={bits!r} given", "4 or 8", "these are what the GEMM reads"
    )
    require(
        isinstance(arch, int) and 70 <= arch < 110,
        where,
        f"arch={arch!r} given",
        "70 to 109, ten times the compute capability",
        "80 is Ampere, 90 Hopper; the kernels are for no other",
    )
    codes = of_known_type(where, codes)
    height, width = shape_of(where, "codes", codes, ("int8",), ("K", f"N * {bits} / 8"))
    if arch < 75:
        remedy = "pad the weight with columns of zeros"
        require_multiple(where, f"bytes in a row of int{bits}", width, 4, remedy)
        return codes
    require_multiple(where, "rows", height, _TILE, "pad the weight with rows of zeros")
    remedy = f"these are {bits} bits of N columns; pad the weight to N a multiple of {_TILE}"
    require_multiple(where, f"bytes in a row of int{bits}", width, _TILE * bits // 8, remedy)
    return codes


# -- codes in bytes ---------------------------------------------------------------------------


def _code(codes: te.Tensor, row: Any, column: Any, bits: int) -> ir.Expr:
    """The code of a row and a column of row-major codes."""
    in_byte = 8 // bits
    return _bits_of(codes[row, column // in_byte], column % in_byte, bits)


def _bits_of(byte: ir.Expr, place: Any, bits: int) -> ir.Expr:
    unsigned = byte.astype("uint8")
    if bits == 8:
        return unsigned
    shift = (place * bits).astype("uint8") if isinstance(place, ir.Expr) else place * bits
    return (unsigned >> shift) & tirx.const((1 << bits) - 1, "uint8")


def _biased_byte(codes: list[ir.Expr], bits: int) -> ir.Expr:
    """A byte of codes, half of the range added to each: that is to flip their highest bits."""
    shifted = [
        code << tirx.const(bits * place, "uint8") if place else code
        for place, code in enumerate(codes)
    ]
    flip = 0x88 if bits == 4 else 0x80
    byte = functools.reduce(operator.or_, shifted) ^ tirx.const(flip, "uint8")
    return byte.astype("int8")


# -- places in a word: even codes first -------------------------------------------------------


def _order(in_word: int, in_byte: int, byte: Any) -> list[Any]:
    """Which codes of a word, in their first order, lie in one of its bytes."""
    half = in_word // 2
    first = byte * in_byte
    return [first % half * 2 + first // half + 2 * place for place in range(in_byte)]


def _place_in_word(code: Any, in_word: int) -> Any:
    """Where a code of a word lies: the inverse of :func:`_order`."""
    return code // 2 + code % 2 * (in_word // 2)


# -- rows -------------------------------------------------------------------------------------


def _row(at: Any, in_word: int) -> Any:
    """Which row comes to be at a place, by step 1."""
    block = 4 * in_word
    place = at % block
    return at // block * block + place % in_word // 2 * 8 + place % 2 + place // in_word * 2


def _permuted_row(row: Any, in_word: int) -> Any:
    """Where a row comes to be: the inverse of :func:`_row`."""
    block = 4 * in_word
    place = row % block
    return row // block * block + place % 8 // 2 * in_word + place // 8 * 2 + place % 2


# -- columns ----------------------------------------------------------------------------------


def _place(at: Any, height: Any, bits: int) -> tuple[Any, Any, Any]:
    """The column of a byte of interleaved columns; its word there; its place in the word."""
    columns, tile = 16 // bits, _TILE * bits // 8  # interleaved columns; bytes of one in a line
    group = height // _TILE * _LINE  # bytes of interleaved columns
    line, rest = at % group // _LINE, at % _LINE
    column = at // group * columns + rest // tile
    return column, (line * tile + rest % tile) // 4, rest % 4


def _byte(byte: Any, column: Any, height: Any, bits: int) -> Any:
    """Where a byte of a column is: the inverse of :func:`_place`."""
    columns, tile = 16 // bits, _TILE * bits // 8
    group = height // _TILE * _LINE
    line = byte // tile * _LINE + column % columns * tile
    return column // columns * group + line + byte % tile
