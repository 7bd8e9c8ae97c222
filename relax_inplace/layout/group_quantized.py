"""Group-quantised weights of MLC-LLM: N x K, as ``q4f16_1`` stores them, and K x N, as ``q4f16_0``.

``group_quantization.py`` quantises along K in groups that share a scale: ``w = (code - z) * scale``
with z = 3, 7, 127 for 3, 4, 8 bits. Codes lie in uint32 along K, the first in the lowest bits; 10,
8 or 4 of them fill a word (10 codes of 3 bits leave two empty), and a group fills its words.
The layouts differ by a transposition alone, of the words and of the scales
(``linear_weight_layout``); no bit moves within a word.

=======  ====================================  =====================================
         N x K (``_1``)                        K x N (``_0``)
=======  ====================================  =====================================
codes    (N, W) uint32, W = K / codes a word   (W, N) uint32
scales   (N, K / group)                        (K / group, N)
=======  ====================================  =====================================

MLC's table of quantisations (``quantization.py``) has groups of 40 with 3 bits and of 32 with 4; it
has no entry of 8 bits, which ``GroupQuantize`` allows: 32 is assumed here, and can be given.
"""

from __future__ import annotations

from tvm import ir, relax

from ._argument import require, require_equal, shape_of, text_of
from ._declaration import Declaration
from ._kernel import of_known_type, takes_nn_tensors

__all__ = ["LAYOUTS", "kn_to_nk", "nk_to_kn"]

LAYOUTS = {"codes and scales": Declaration("N, K, b -> K, N, b")}  # R.permute_dims is that

_GROUPS = {3: 40, 4: 32, 8: 32}  # codes in a group, by bits of a code
_SCALES = ("float16", "bfloat16", "float32")


@takes_nn_tensors
def nk_to_kn(
    codes: relax.Expr, scales: relax.Expr, *, bits: int = 4, group_size: int | None = None
) -> tuple[relax.Expr, relax.Expr]:
    """N x K to K x N: ``q4f16_1`` to ``q4f16_0``.

    Parameters
    ----------
    codes : relax.Expr
        (N, W) uint32.
    scales : relax.Expr
        (N, K / group_size).
    bits : int
        Of a code: 3, 4 or 8.
    group_size : int, optional
        Codes that share a scale: 40 of 3 bits, otherwise 32.

    Returns
    -------
    codes, scales : relax.Expr
        (W, N) uint32; (K / group_size, N). Each is one R.permute_dims.
    """
    where = "group_quantized.nk_to_kn"
    codes, scales = of_known_type(where, codes), of_known_type(where, scales)
    height, words = shape_of(where, "codes", codes, ("uint32",), ("N", "words"))
    scale_height, groups = shape_of(where, "scales", scales, _SCALES, ("N", "groups"))
    require_equal(where, "rows of scales", scale_height, height, "rows of codes", _TOGETHER)
    _require_words(where, words, groups, bits, group_size)
    return relax.op.permute_dims(codes), relax.op.permute_dims(scales)


@takes_nn_tensors
def kn_to_nk(
    codes: relax.Expr, scales: relax.Expr, *, bits: int = 4, group_size: int | None = None
) -> tuple[relax.Expr, relax.Expr]:
    """K x N to N x K: ``q4f16_0`` to ``q4f16_1``; what :func:`nk_to_kn` was given.

    Parameters
    ----------
    codes : relax.Expr
        (W, N) uint32.
    scales : relax.Expr
        (K / group_size, N).
    bits, group_size
        As for :func:`nk_to_kn`.

    Returns
    -------
    codes, scales : relax.Expr
        (N, W) uint32; (N, K / group_size).
    """
    where = "group_quantized.kn_to_nk"
    codes, scales = of_known_type(where, codes), of_known_type(where, scales)
    words, height = shape_of(where, "codes", codes, ("uint32",), ("words", "N"))
    groups, scale_height = shape_of(where, "scales", scales, _SCALES, ("groups", "N"))
    require_equal(where, "columns of scales", scale_height, height, "columns of codes", _TOGETHER)
    _require_words(where, words, groups, bits, group_size)
    return relax.op.permute_dims(codes), relax.op.permute_dims(scales)


_TOGETHER = "give the codes and the scales of one weight"


def _require_words(
    where: str, words: ir.Expr, groups: ir.Expr, bits: int, group_size: int | None
) -> None:
    """The words are those of the groups."""
    require(
        bits in _GROUPS,
        where,
        f"bits={bits!r} given",
        " or ".join(str(known) for known in _GROUPS),
        "other widths are not of this family",
    )
    size = _GROUPS[bits] if group_size is None else group_size
    in_word = 32 // bits
    require(
        size > 0 and size % in_word == 0,
        where,
        f"group_size={size} given",
        f"a multiple of {in_word}",
        f"a group fills whole words of {in_word} codes of {bits} bits",
    )
    require_equal(
        where,
        "words along K",
        words,
        groups * (size // in_word),
        f"{text_of(groups)} groups of {size // in_word} words",
        f"{_TOGETHER}, and its `bits` and `group_size`",
    )
