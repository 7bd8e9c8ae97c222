"""What changes numbers, and so is no layout: the mixed GEMM's codes, and another float8.

**Groups to columns.** A weight of q4f16_1 (:mod:`.group_quantized`) has a scale for each 32 numbers
along K; the mixed GEMM (:mod:`.faster_transformer`) has one for each output channel, and signed
codes. So the numbers are computed, a scale is found for them, and they are rounded to it.

With c the codes and s the scales of q4f16_1::

    w[k, n]  = (c[k, n] - 7) * s[k / 32, n]                       float32, exact
    scale[n] = float16(max over k of |w[k, n]| / 8)
    code     = round(w[k, n] / scale[n]), halves to even, from -8 to 7

The scale is that of FasterTransformer's ``symmetric_quantize`` (``cutlass_preprocessors.cc``): the
largest number over 8, which is cut to 7 if it is positive. MLC-LLM's ``ft_quantization.py`` divides
by 7: nothing is cut, but the steps are wider, and the error of normal numbers is larger.

What it costs is in docs/layouts.md: measured by ``tests/layout/test_requantize.py``.

**e4m3fn to e4m3fnuz**, the float8 of AMD's MI300: the bits stay, each is half the number, and
scales are doubled (``normalize_e4m3fn_to_e4m3fnuz`` of vLLM's ``w8a8_utils.py``). The product of
number and scale is the same, but

- -0 (0x80), which would be NaN, becomes 0;
- NaN (0x7f, 0xff) becomes 240 or -240: a weight has none;
- a scale above half of what float32 holds becomes infinity.
"""

from __future__ import annotations

from typing import Any

from tvm import ir, relax, te, tirx

from ._argument import require_equal, require_multiple, shape_of, text_of
from ._kernel import call_kernel, of_known_type, takes_nn_tensors

__all__ = ["e4m3fn_to_e4m3fnuz", "groups_to_columns"]

_GROUP = 32
_IN_WORD = 8
_HALF = 8  # of the range: codes are -8 to 7
_ZERO = 7  # the code of 0 in q4f16_1


@takes_nn_tensors
def groups_to_columns(codes: relax.Expr, scales: relax.Expr) -> tuple[relax.Expr, relax.Expr]:
    """Groups of q4f16_1 to int4 with a scale per column, rounded again.

    Parameters
    ----------
    codes : relax.Expr
        (N, K / 8) uint32.
    scales : relax.Expr
        (N, K / 32) float16. N is even.

    Returns
    -------
    codes, scales : relax.Expr
        (K, N / 2) int8, row major, the even column in the lower bits: what
        :func:`.faster_transformer.to_mixed_gemm` takes; (N,) float16.
    """
    where = "requantize.groups_to_columns"
    codes, scales = of_known_type(where, codes), of_known_type(where, scales)
    height, words = shape_of(where, "codes", codes, ("uint32",), ("N", "K / 8"))
    scale_height, groups = shape_of(where, "scales", scales, ("float16",), ("N", "K / 32"))
    together = "give the codes and the scales of one weight"
    require_equal(where, "rows of scales", scale_height, height, "rows of codes", together)
    expected = groups * (_GROUP // _IN_WORD)
    require_equal(
        where, "words along K", words, expected, f"{text_of(groups)} groups of 4 words", together
    )
    require_multiple(where, "rows of codes", height, 2, "two columns of K x N are one byte")

    def scales_kernel(codes: te.Tensor, scales: te.Tensor) -> te.Tensor:
        height, words = codes.shape
        k = te.reduce_axis((0, words * _IN_WORD), "k")
        largest = te.compute(
            (height,), lambda n: te.max(te.abs(_number(codes, scales, k, n)), k), "largest"
        )
        return te.compute(
            (height,),
            lambda n: (largest[n] / tirx.const(_HALF, "float32")).astype("float16"),
            "scales",
        )

    def codes_kernel(codes: te.Tensor, scales: te.Tensor, columns: te.Tensor) -> te.Tensor:
        height, words = codes.shape

        def code(k: Any, n: Any) -> ir.Expr:
            scale = columns[n].astype("float32")
            # Not te.round: TVM rounds halves to even with it on CPUs, and away from 0 on CUDA.
            rounded = tirx.nearbyint(_number(codes, scales, k, n) / scale)
            low, high = tirx.const(-_HALF, "float32"), tirx.const(_HALF - 1, "float32")
            cut = tirx.min(tirx.max(rounded, low), high)
            # A column of zeros has the scale 0.
            some = te.if_then_else(scale > 0, cut, tirx.const(0, "float32"))
            return some.astype("int8").astype("uint8") & tirx.const(15, "uint8")

        def byte(k: Any, j: Any) -> ir.Expr:
            return (code(k, 2 * j) | code(k, 2 * j + 1) << tirx.const(4, "uint8")).astype("int8")

        return te.compute((words * _IN_WORD, height // 2), byte, "codes")

    columns = call_kernel(where, "column_scales", scales_kernel, codes, scales)
    columns = of_known_type(where, columns)
    name = "requantize_to_columns"
    requantized = call_kernel(where, name, codes_kernel, codes, scales, columns)
    return requantized, columns


def _number(codes: te.Tensor, scales: te.Tensor, k: Any, n: Any) -> ir.Expr:
    shift = (k % _IN_WORD * 4).astype("uint32")
    code = (codes[n, k // _IN_WORD] >> shift & tirx.const(15, "uint32")).astype("float32")
    return (code - tirx.const(_ZERO, "float32")) * scales[n, k // _GROUP].astype("float32")


@takes_nn_tensors
def e4m3fn_to_e4m3fnuz(weight: relax.Expr, scales: relax.Expr) -> tuple[relax.Expr, relax.Expr]:
    """Float8 of half the number, and twice the scales: what MI300 multiplies.

    Parameters
    ----------
    weight : relax.Expr
        float8_e4m3fn, of any known shape.
    scales : relax.Expr
        float32, of any known shape: what the numbers are multiplied by.

    Returns
    -------
    weight, scales : relax.Expr
        float8_e4m3fnuz and float32, of the same shapes.
    """
    where = "requantize.e4m3fn_to_e4m3fnuz"
    weight, scales = of_known_type(where, weight), of_known_type(where, scales)
    for name, tensor, dtype in (("weight", weight, "float8_e4m3fn"), ("scales", scales, "float32")):
        shape_of(where, name, tensor, (dtype,), ["..."] * max(tensor.ty.ndim, 0))

    def number(given: te.Tensor) -> te.Tensor:
        def element(*at: Any) -> ir.Expr:
            bits = tirx.reinterpret("uint8", given(*at))
            zero = tirx.const(0, "uint8")
            kept = tirx.Select(bits == tirx.const(0x80, "uint8"), zero, bits)
            return tirx.reinterpret("float8_e4m3fnuz", kept)

        return te.compute(given.shape, element, "halved")

    def scale(given: te.Tensor) -> te.Tensor:
        two = tirx.const(2, "float32")
        return te.compute(given.shape, lambda *at: given(*at) * two, "doubled")

    return (
        call_kernel(where, "e4m3fn_to_e4m3fnuz", number, weight),
        call_kernel(where, "doubled_scales", scale, scales),
    )
