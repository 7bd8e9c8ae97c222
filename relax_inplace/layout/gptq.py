"""GPTQ checkpoints, 4 or 8 bits, to N x K groups as MLC-LLM packs codes.

``AutoGPTQ`` (``auto_gptq/nn_modules/qlinear/qlinear_cuda.py``, ``pack``) packs codes along K into
words, from the lowest bits on, in order, and zeros along N; both matrices are K x N.

=======  =========================================  ===============================================
         GPTQ, c = 32 / bits codes a word           N x K groups
=======  =========================================  ===============================================
codes    ``qweight`` (K / c, N) int32               (N, K / c) uint32: as q4f16_1's
zeros    ``qzeros`` (K / g, N / c) int32            (N / c, K / g) uint32, along N, in order
scales   ``scales`` (K / g, N)                      (N, K / g)
=======  =========================================  ===============================================

Here both are transpositions of words. Codes of 2 bits would be, too, but MLC has none; those of 3
bits lie across words, 32 in three, which MLC's do not, and its groups of them have another size.

- **Zeros** stay the bits that they are. What they mean is the checkpoint's: in the first format
  (``checkpoint_format: gptq``) one less than the zero point is stored, in ``gptq_v2`` the zero
  point (``convert_gptq_v1_to_v2_format``). The first cannot be turned into the second here: a
  stored 15 means 16, which four bits do not hold.
- **Order of activations** (``desc_act``): with it, ``g_idx`` gives each k a group of its own, and
  there are no groups along K. That is not a layout; ``g_idx`` has to be ``k // g``, which is for
  the caller to check.
"""

from __future__ import annotations

from tvm import relax

from ._argument import codes_in_word, require_equal, shape_of
from ._declaration import Declaration, call_declared
from ._kernel import of_known_type, takes_nn_tensors

__all__ = ["LAYOUTS", "from_groups", "to_groups"]

LAYOUTS = {"words": Declaration("K, N, b -> N, K, b")}  # those of scales, too

_WORDS = ("int32", "uint32")
_SCALES = ("float16", "bfloat16", "float32")
_NO_OTHERS = "MLC packs codes of 3 bits otherwise, and has none of 2: requantise the weight"
_TOGETHER = "give the three tensors of one weight, and its `bits`"


@takes_nn_tensors
def to_groups(
    qweight: relax.Expr, qzeros: relax.Expr, scales: relax.Expr, *, bits: int = 4
) -> tuple[relax.Expr, relax.Expr, relax.Expr]:
    """A weight of a checkpoint to N x K groups.

    Parameters
    ----------
    qweight : relax.Expr
        (K / c, N) int32 or uint32.
    qzeros : relax.Expr
        (K / g, N / c) int32 or uint32.
    scales : relax.Expr
        (K / g, N).
    bits : int
        Of a code: 4 or 8.

    Returns
    -------
    codes, zeros, scales : relax.Expr
        (N, K / c) uint32; (N / c, K / g) uint32; (N, K / g).
    """
    where = "gptq.to_groups"
    in_word = codes_in_word(where, bits, _NO_OTHERS)
    qweight, qzeros, scales = (of_known_type(where, x) for x in (qweight, qzeros, scales))
    axes = (f"K / {in_word}", "N"), ("K / g", f"N / {in_word}"), ("K / g", "N")
    _, height = shape_of(where, "qweight", qweight, _WORDS, axes[0])
    groups, zero_words = shape_of(where, "qzeros", qzeros, _WORDS, axes[1])
    scale_groups, scale_height = shape_of(where, "scales", scales, _SCALES, axes[2])
    because = f"{in_word} a word of qzeros"
    require_equal(where, "columns of qweight", height, zero_words * in_word, because, _TOGETHER)
    require_equal(where, "columns of scales", scale_height, height, "as qweight has", _TOGETHER)
    require_equal(where, "rows of scales", scale_groups, groups, "as qzeros has", _TOGETHER)
    return (
        _transposed(where, "gptq_codes_to_groups", qweight, "uint32"),
        _transposed(where, "gptq_zeros_to_groups", qzeros, "uint32"),
        relax.op.permute_dims(scales),
    )


@takes_nn_tensors
def from_groups(
    codes: relax.Expr, zeros: relax.Expr, scales: relax.Expr, *, bits: int = 4
) -> tuple[relax.Expr, relax.Expr, relax.Expr]:
    """A weight as a checkpoint has it: what :func:`to_groups` was given.

    Parameters
    ----------
    codes : relax.Expr
        (N, K / c) uint32.
    zeros : relax.Expr
        (N / c, K / g) uint32.
    scales : relax.Expr
        (N, K / g).
    bits : int
        Of a code: 4 or 8.

    Returns
    -------
    qweight, qzeros, scales : relax.Expr
        (K / c, N) int32; (K / g, N / c) int32; (K / g, N).
    """
    where = "gptq.from_groups"
    in_word = codes_in_word(where, bits, _NO_OTHERS)
    codes, zeros, scales = (of_known_type(where, x) for x in (codes, zeros, scales))
    axes = ("N", f"K / {in_word}"), (f"N / {in_word}", "K / g"), ("N", "K / g")
    height, _ = shape_of(where, "codes", codes, ("uint32",), axes[0])
    zero_words, groups = shape_of(where, "zeros", zeros, ("uint32",), axes[1])
    scale_height, scale_groups = shape_of(where, "scales", scales, _SCALES, axes[2])
    because = f"{in_word} a word of zeros"
    require_equal(where, "rows of codes", height, zero_words * in_word, because, _TOGETHER)
    require_equal(where, "rows of scales", scale_height, height, "as codes has", _TOGETHER)
    require_equal(where, "columns of scales", scale_groups, groups, "as zeros has", _TOGETHER)
    return (
        _transposed(where, "gptq_codes_from_groups", codes, "int32"),
        _transposed(where, "gptq_zeros_from_groups", zeros, "int32"),
        relax.op.permute_dims(scales),
    )


def _transposed(where: str, name: str, words: relax.Expr, dtype: str) -> relax.Expr:
    """The same bits, transposed."""
    if str(words.ty.dtype) == dtype:
        return relax.op.permute_dims(words)

    return call_declared(where, name, LAYOUTS["words"], words, dtype=dtype)
