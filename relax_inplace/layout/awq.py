"""AWQ checkpoints (4 bits, K x N, in their GEMM's order) to N x K groups, as MLC-LLM packs codes.

``AutoAWQ`` (``awq/modules/linear/gemm.py``, ``WQLinear_GEMM``) packs eight columns into a word;
from the lowest bits on, these are columns 0, 2, 4, 6, 1, 3, 5, 7. A number is
``(code - zero) * scale``. MLC-LLM loads these tensors as they are, and undoes the order in each
kernel (``awq_quantization.py``, ``convert_uint_to_float(ft_reorder=True)``).

=======  ================================  =======================================================
         AWQ                               N x K groups
=======  ================================  =======================================================
codes    ``qweight`` (K, N / 8) int32      (N, K / 8) uint32, along K, in order: as q4f16_1's
zeros    ``qzeros`` (K / g, N / 8) int32   (N / 8, K / g) uint32, along N, in order
scales   ``scales`` (K / g, N)             (N, K / g)
=======  ================================  =======================================================

The zeros of rows 8a to 8a + 7 are one word: K / g need not be a multiple of 8. uint32 and int32 are
the same bits; ``qweight`` and ``qzeros`` may be given as either.
"""

from __future__ import annotations

from typing import Any

from tvm import ir, relax, te

from ._argument import require_equal, require_multiple, shape_of
from ._kernel import NAME, call_kernel, of_known_type, takes_nn_tensors
from ._words import code_of, word_of

__all__ = ["from_groups", "to_groups"]

_BITS = 4
_IN_WORD = 8
_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)  # of the codes of a word, from the lowest bits on
_WORDS = ("int32", "uint32")
_SCALES = ("float16", "bfloat16", "float32")
_TOGETHER = "give the three tensors of one weight"


@takes_nn_tensors
def to_groups(
    qweight: relax.Expr, qzeros: relax.Expr, scales: relax.Expr
) -> tuple[relax.Expr, relax.Expr, relax.Expr]:
    """A weight of a checkpoint to N x K groups.

    Parameters
    ----------
    qweight : relax.Expr
        (K, N / 8) int32 or uint32. K is a multiple of 8.
    qzeros : relax.Expr
        (K / g, N / 8) int32 or uint32.
    scales : relax.Expr
        (K / g, N).

    Returns
    -------
    codes, zeros, scales : relax.Expr
        (N, K / 8) uint32; (N / 8, K / g) uint32; (N, K / g).
    """
    where = "awq.to_groups"
    qweight, qzeros, scales = (of_known_type(where, x) for x in (qweight, qzeros, scales))
    _, words = shape_of(where, "qweight", qweight, _WORDS, ("K", "N / 8"))
    groups, zero_words = shape_of(where, "qzeros", qzeros, _WORDS, ("K / g", "N / 8"))
    scale_groups, height = shape_of(where, "scales", scales, _SCALES, ("K / g", "N"))
    require_equal(where, "words in a row of qzeros", zero_words, words, "as qweight has", _TOGETHER)
    require_equal(where, "columns of scales", height, words * _IN_WORD, "8 a word", _TOGETHER)
    require_equal(where, "rows of scales", scale_groups, groups, "as qzeros has", _TOGETHER)

    return (
        codes_to_groups(qweight, str(qweight.ty.dtype)),
        zeros_to_groups(qzeros, str(qzeros.ty.dtype)),
        relax.op.permute_dims(scales),
    )


@takes_nn_tensors
def from_groups(
    codes: relax.Expr, zeros: relax.Expr, scales: relax.Expr
) -> tuple[relax.Expr, relax.Expr, relax.Expr]:
    """A weight as a checkpoint has it: what :func:`to_groups` was given.

    Parameters
    ----------
    codes : relax.Expr
        (N, K / 8) uint32. N is a multiple of 8.
    zeros : relax.Expr
        (N / 8, K / g) uint32.
    scales : relax.Expr
        (N, K / g).

    Returns
    -------
    qweight, qzeros, scales : relax.Expr
        (K, N / 8) int32; (K / g, N / 8) int32; (K / g, N).
    """
    where = "awq.from_groups"
    codes, zeros, scales = (of_known_type(where, x) for x in (codes, zeros, scales))
    height, _ = shape_of(where, "codes", codes, ("uint32",), ("N", "K / 8"))
    zero_words, groups = shape_of(where, "zeros", zeros, ("uint32",), ("N / 8", "K / g"))
    scale_height, scale_groups = shape_of(where, "scales", scales, _SCALES, ("N", "K / g"))
    expected = zero_words * _IN_WORD
    require_equal(where, "rows of codes", height, expected, "8 a word of zeros", _TOGETHER)
    require_equal(where, "rows of scales", scale_height, height, "as codes has", _TOGETHER)
    require_equal(where, "columns of scales", scale_groups, groups, "as zeros has", _TOGETHER)

    return (
        codes_from_groups(codes, "int32"),
        zeros_from_groups(zeros, "int32"),
        relax.op.permute_dims(scales),
    )


# -- each tensor by itself: of a checkpoint's words, the dtype ------------------------------------


def codes_to_groups(qweight: relax.Expr, dtype: str) -> relax.Expr:
    """(K, N / 8) words of a checkpoint to (N, K / 8) uint32."""
    where = "awq.to_groups"
    width, _ = shape_of(where, "qweight", qweight, (dtype,), ("K", "N / 8"))
    require_multiple(where, "rows of qweight", width, _IN_WORD, "K has to fill words of 8 codes")

    def kernel(qweight: te.Tensor) -> te.Tensor:
        width, words = qweight.shape

        def word(n: Any, a: Any) -> ir.Expr:
            place = _place(n % _IN_WORD)
            rows = [a * _IN_WORD + i for i in range(_IN_WORD)]
            return word_of([code_of(qweight[k, n // _IN_WORD], place, _BITS) for k in rows], _BITS)

        return te.compute((words * _IN_WORD, width // _IN_WORD), word, "codes")

    said = {NAME: "awq.codes_to_groups", "dtype": dtype}
    return call_kernel(where, "awq_codes_to_groups", kernel, qweight, layout=said)


def codes_from_groups(codes: relax.Expr, dtype: str) -> relax.Expr:
    """(N, K / 8) uint32 to (K, N / 8) words of a checkpoint."""
    where = "awq.from_groups"
    height, _ = shape_of(where, "codes", codes, ("uint32",), ("N", "K / 8"))
    require_multiple(where, "rows of codes", height, _IN_WORD, "N has to fill words of 8 codes")

    def kernel(codes: te.Tensor) -> te.Tensor:
        height, words = codes.shape

        def word(k: Any, a: Any) -> ir.Expr:
            rows = [a * _IN_WORD + column for column in _COLUMNS]
            codes_of_rows = [code_of(codes[n, k // _IN_WORD], k % _IN_WORD, _BITS) for n in rows]
            return word_of(codes_of_rows, _BITS).astype(dtype)

        return te.compute((words * _IN_WORD, height // _IN_WORD), word, "qweight")

    said = {NAME: "awq.codes_from_groups", "dtype": dtype}
    return call_kernel(where, "awq_codes_from_groups", kernel, codes, layout=said)


def zeros_to_groups(qzeros: relax.Expr, dtype: str) -> relax.Expr:
    """(K / g, N / 8) words of a checkpoint to (N / 8, K / g) uint32."""
    where = "awq.to_groups"
    shape_of(where, "qzeros", qzeros, (dtype,), ("K / g", "N / 8"))

    def kernel(qzeros: te.Tensor) -> te.Tensor:
        groups, words = qzeros.shape

        def word(a: Any, g: Any) -> ir.Expr:
            places = [_place(column) for column in range(_IN_WORD)]
            return word_of([code_of(qzeros[g, a], place, _BITS) for place in places], _BITS)

        return te.compute((words, groups), word, "zeros")

    said = {NAME: "awq.zeros_to_groups", "dtype": dtype}
    return call_kernel(where, "awq_zeros_to_groups", kernel, qzeros, layout=said)


def zeros_from_groups(zeros: relax.Expr, dtype: str) -> relax.Expr:
    """(N / 8, K / g) uint32 to (K / g, N / 8) words of a checkpoint."""
    where = "awq.from_groups"
    shape_of(where, "zeros", zeros, ("uint32",), ("N / 8", "K / g"))

    def kernel(zeros: te.Tensor) -> te.Tensor:
        words, groups = zeros.shape

        def word(g: Any, a: Any) -> ir.Expr:
            codes_of_rows = [code_of(zeros[a, g], column, _BITS) for column in _COLUMNS]
            return word_of(codes_of_rows, _BITS).astype(dtype)

        return te.compute((groups, words), word, "qzeros")

    said = {NAME: "awq.zeros_from_groups", "dtype": dtype}
    return call_kernel(where, "awq_zeros_from_groups", kernel, zeros, layout=said)


def _place(column: Any) -> Any:
    """Where a column is in a word: the inverse of ``_COLUMNS``."""
    return column // 2 + column % 2 * (_IN_WORD // 2)
