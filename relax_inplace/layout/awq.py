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

from tvm import relax

from ._argument import require_equal, require_multiple, shape_of
from ._declaration import Declaration, call_declared
from ._kernel import of_known_type, takes_nn_tensors

__all__ = ["LAYOUTS", "from_groups", "to_groups"]

# A column of eight is 2 c + e: in a word, e is the outer digit.
LAYOUTS = {
    "codes": Declaration("K k:8, N, e:2 c:4 b:4 -> N c e, K, k b"),
    "zeros": Declaration("G, N, e:2 c:4 b:4 -> N, G, c e b"),
    "scales": Declaration("G, N, b -> N, G, b"),
}

_IN_WORD = 8
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
    width, words = shape_of(where, "qweight", qweight, _WORDS, ("K", "N / 8"))
    groups, zero_words = shape_of(where, "qzeros", qzeros, _WORDS, ("K / g", "N / 8"))
    scale_groups, height = shape_of(where, "scales", scales, _SCALES, ("K / g", "N"))
    require_equal(where, "words in a row of qzeros", zero_words, words, "as qweight has", _TOGETHER)
    require_equal(where, "columns of scales", height, words * _IN_WORD, "8 a word", _TOGETHER)
    require_equal(where, "rows of scales", scale_groups, groups, "as qzeros has", _TOGETHER)

    require_multiple(where, "rows of qweight", width, _IN_WORD, "K has to fill words of 8 codes")
    codes, zeros = (LAYOUTS[name] for name in ("codes", "zeros"))
    return (
        call_declared(where, "awq_codes_to_groups", codes, qweight, dtype="uint32"),
        call_declared(where, "awq_zeros_to_groups", zeros, qzeros, dtype="uint32"),
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

    require_multiple(where, "rows of codes", height, _IN_WORD, "N has to fill words of 8 codes")

    def back(name: str, words: relax.Expr) -> relax.Expr:
        kernel = f"awq_{name}_from_groups"
        return call_declared(where, kernel, LAYOUTS[name], words, dtype="int32", is_back=True)

    return back("codes", codes), back("zeros", zeros), relax.op.permute_dims(scales)
