"""Marlin: GPTQ and AWQ checkpoints, 4 or 8 bits, as vLLM's mixed GEMM reads them.

``gptq_marlin_repack`` and ``awq_marlin_repack`` (vLLM's ``csrc/quantization/marlin``) cut a weight
of K x N into tiles of 16 x 64, and give each thread q + 4 c of a warp w the codes that it
multiplies on a tensor core: of rows 2 q, 2 q + 1, and 8 more; of columns 16 w + c, and 8 more. In a
word, these come in the order that the conversion to float16 wants. Scales and zeros are put in the
order of the threads (``marlin_permute_scales``, ``awq_to_marlin_zero_points`` of
``marlin_utils.py``): scales of one group for all of K otherwise than those of several.

=======  ==========================  ===============================  =============================
         GPTQ, c = 32 / bits         AWQ                              Marlin
=======  ==========================  ===============================  =============================
codes    (K / c, N) int32            (K, N / c) int32                 (K / 16, 16 N / c) int32
zeros    none: codes are signed      (K / g, N / c) int32             (K / g, N / c) int32
scales   (K / g, N)                  (K / g, N)                       (K / g, N)
=======  ==========================  ===============================  =============================

Not here: an order of activations (``desc_act``), which sorts rows; activations of 8 bits, for which
the order is another one; GPTQ's zeros, which vLLM's Marlin does not read.
"""

from __future__ import annotations

from tvm import ir, relax, tirx

from ._argument import codes_in_word, require, require_equal, require_multiple, shape_of, text_of
from ._declaration import Declaration, call_declared
from ._kernel import of_known_type, takes_nn_tensors

__all__ = ["LAYOUTS", "from_awq", "from_gptq", "to_awq", "to_gptq"]

LAYOUTS = {
    name: Declaration(text)
    for name, text in {
        "GPTQ, 4 bits": "K r:2, N w:4 h:2 c:8, q:4 o:2 b:4 -> K, N c q w, o h r b",
        "GPTQ, 8 bits": "K r:2 q:2, N w:4 h:2 c:8, s:2 o:2 b:8 -> K, N c q s w h, o r b",
        "AWQ, 4 bits": "K r:2 q:4 o:2, N w:4 h:2, e:2 c:4 b:4 -> K, N c e q w, o h r b",
        "AWQ, 8 bits": "K r:2 q:4 o:2, N w:4 h:2 g:2, e:2 c:2 b:8 -> K, N g c e q w h, o r b",
        "zeros of AWQ, 4 bits": "G, N j:4 f:2, e:2 c:4 b:4 -> G, N c e, f j b",
        "zeros of AWQ, 8 bits": "G, N k:2 j:2 f:2 g:2, e:2 c:2 b:8 -> G, N g c e k, f j b",
        "scales of groups": "G, N j:8 i:8, b -> G, N i j, b",
        "scales of columns": "G, N x:4 i:4 z:2, b -> G, N i x z, b",
    }.items()
}
_SCALES = ("float16", "bfloat16")
_NO_OTHERS = "Marlin has no other codes"
_TOGETHER = "give the tensors of one weight, and its `bits`"


@takes_nn_tensors
def from_gptq(
    qweight: relax.Expr, scales: relax.Expr, *, bits: int = 4
) -> tuple[relax.Expr, relax.Expr]:
    """A weight of a GPTQ checkpoint to Marlin's.

    Parameters
    ----------
    qweight : relax.Expr
        (K / c, N) int32, c = 32 / bits. K is a multiple of 16, and N of 64.
    scales : relax.Expr
        (K / g, N) float16 or bfloat16; K / g is a constant.
    bits : int
        Of a code: 4 or 8.

    Returns
    -------
    codes, scales : relax.Expr
        (K / 16, 16 N / c) int32; (K / g, N).
    """
    where = "marlin.from_gptq"
    in_word = codes_in_word(where, bits, _NO_OTHERS)
    qweight, scales = of_known_type(where, qweight), of_known_type(where, scales)
    height, width = shape_of(where, "qweight", qweight, ("int32",), (f"K / {in_word}", "N"))
    groups, columns = shape_of(where, "scales", scales, _SCALES, ("K / g", "N"))
    remedy = "Marlin has tiles of 16 x 64: keep such a weight as it is"
    require_multiple(where, "rows of qweight", height, 16 // in_word, remedy)
    require_multiple(where, "columns of qweight", width, 64, remedy)
    require_equal(where, "columns of scales", columns, width, "as qweight has", _TOGETHER)
    order = _order(where, groups)
    codes = LAYOUTS[f"GPTQ, {bits} bits"]
    return (
        call_declared(where, f"marlin_from_gptq_{bits}", codes, qweight),
        call_declared(where, "marlin_scales", order, scales),
    )


@takes_nn_tensors
def to_gptq(
    codes: relax.Expr, scales: relax.Expr, *, bits: int = 4
) -> tuple[relax.Expr, relax.Expr]:
    """A weight as a GPTQ checkpoint has it: what :func:`from_gptq` was given.

    Parameters
    ----------
    codes : relax.Expr
        (K / 16, 16 N / c) int32.
    scales : relax.Expr
        (K / g, N).
    bits : int
        Of a code: 4 or 8.

    Returns
    -------
    qweight, scales : relax.Expr
        (K / c, N) int32; (K / g, N).
    """
    where = "marlin.to_gptq"
    in_word = codes_in_word(where, bits, _NO_OTHERS)
    codes, scales = of_known_type(where, codes), of_known_type(where, scales)
    order = _require_marlin(where, codes, scales, in_word)
    layout = LAYOUTS[f"GPTQ, {bits} bits"]
    return (
        call_declared(where, f"marlin_to_gptq_{bits}", layout, codes, is_back=True),
        call_declared(where, "gptq_scales", order, scales, is_back=True),
    )


@takes_nn_tensors
def from_awq(
    qweight: relax.Expr, qzeros: relax.Expr, scales: relax.Expr, *, bits: int = 4
) -> tuple[relax.Expr, relax.Expr, relax.Expr]:
    """A weight of an AWQ checkpoint to Marlin's.

    Parameters
    ----------
    qweight : relax.Expr
        (K, N / c) int32, c = 32 / bits. K is a multiple of 16, and N of 64.
    qzeros : relax.Expr
        (K / g, N / c) int32; K / g is a constant.
    scales : relax.Expr
        (K / g, N) float16 or bfloat16.
    bits : int
        Of a code: 4 or 8.

    Returns
    -------
    codes, zeros, scales : relax.Expr
        (K / 16, 16 N / c) int32; (K / g, N / c) int32; (K / g, N).
    """
    where = "marlin.from_awq"
    in_word = codes_in_word(where, bits, _NO_OTHERS)
    qweight, qzeros, scales = (of_known_type(where, x) for x in (qweight, qzeros, scales))
    words = f"N / {in_word}"
    height, width = shape_of(where, "qweight", qweight, ("int32",), ("K", words))
    groups, zero_words = shape_of(where, "qzeros", qzeros, ("int32",), ("K / g", words))
    remedy = "Marlin has tiles of 16 x 64: keep such a weight as it is"
    require_multiple(where, "rows of qweight", height, 16, remedy)
    require_multiple(where, "words in a row of qweight", width, 64 // in_word, remedy)
    require_equal(where, "words in a row of qzeros", zero_words, width, "as qweight has", _TOGETHER)
    order = _require_scales(where, scales, groups, width * in_word)
    codes, zeros = LAYOUTS[f"AWQ, {bits} bits"], LAYOUTS[f"zeros of AWQ, {bits} bits"]
    return (
        call_declared(where, f"marlin_from_awq_{bits}", codes, qweight),
        call_declared(where, f"marlin_zeros_{bits}", zeros, qzeros),
        call_declared(where, "marlin_scales", order, scales),
    )


@takes_nn_tensors
def to_awq(
    codes: relax.Expr, zeros: relax.Expr, scales: relax.Expr, *, bits: int = 4
) -> tuple[relax.Expr, relax.Expr, relax.Expr]:
    """A weight as an AWQ checkpoint has it: what :func:`from_awq` was given.

    Parameters
    ----------
    codes : relax.Expr
        (K / 16, 16 N / c) int32.
    zeros : relax.Expr
        (K / g, N / c) int32.
    scales : relax.Expr
        (K / g, N).
    bits : int
        Of a code: 4 or 8.

    Returns
    -------
    qweight, qzeros, scales : relax.Expr
        (K, N / c) int32; (K / g, N / c) int32; (K / g, N).
    """
    where = "marlin.to_awq"
    in_word = codes_in_word(where, bits, _NO_OTHERS)
    codes, zeros, scales = (of_known_type(where, x) for x in (codes, zeros, scales))
    order = _require_marlin(where, codes, scales, in_word)
    groups, words = shape_of(where, "zeros", zeros, ("int32",), ("K / g", f"N / {in_word}"))
    _require_scales(where, scales, groups, words * in_word)
    layout, of_zeros = LAYOUTS[f"AWQ, {bits} bits"], LAYOUTS[f"zeros of AWQ, {bits} bits"]
    return (
        call_declared(where, f"marlin_to_awq_{bits}", layout, codes, is_back=True),
        call_declared(where, f"awq_zeros_{bits}", of_zeros, zeros, is_back=True),
        call_declared(where, "awq_scales", order, scales, is_back=True),
    )


def _require_marlin(where: str, codes: relax.Expr, scales: relax.Expr, in_word: int) -> Declaration:
    """Codes and scales are those of one weight."""
    axes = ("K / 16", f"{16 // in_word} N")
    _, width = shape_of(where, "codes", codes, ("int32",), axes)
    groups, columns = shape_of(where, "scales", scales, _SCALES, ("K / g", "N"))
    remedy = "give what was returned, with the same `bits`"
    require_multiple(where, "words in a row of codes", width, 64 * 16 // in_word, remedy)
    because = f"{16 // in_word} words a column"
    require_equal(
        where, "words in a row of codes", width, columns * (16 // in_word), because, _TOGETHER
    )
    return _order(where, groups)


def _require_scales(
    where: str, scales: relax.Expr, groups: ir.Expr, columns: ir.Expr
) -> Declaration:
    own, height = shape_of(where, "scales", scales, _SCALES, ("K / g", "N"))
    require_equal(where, "columns of scales", height, columns, "as many as the codes", _TOGETHER)
    require_equal(where, "rows of scales", own, groups, "as many as the zeros", _TOGETHER)
    return _order(where, groups)


def _order(where: str, groups: ir.Expr) -> Declaration:
    """Of the scales of so many groups."""
    require(
        isinstance(groups, tirx.IntImm),
        where,
        f"{text_of(groups)} groups given",
        "a constant",
        "the scales of one group are in another order than those of several",
    )
    return LAYOUTS["scales of columns" if groups == 1 else "scales of groups"]
