"""Scales of NVFP4 and MXFP4 as block-scaled tensor cores read them: tiles of 128 x 4.

A weight of NVFP4 has a scale in a byte (float8_e4m3fn) for each 16 numbers along K, one of MXFP4
(float8_e8m0fnu) for each 32. cuBLAS ("1D block scaling factors layout") and CUTLASS read them in
tiles of 128 rows by 4 columns, 512 bytes: row ``32 a + c`` and column ``s`` of a tile are at
``16 c + 4 a + s``. ``swizzle_blockscale`` of vLLM and ``to_blocked`` of torchao make that, too, in
another shape. What does not fill a tile is filled up with zeros.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import ir, relax, sym, tirx

from ._argument import require, require_equal, shape_of, text_of
from ._declaration import Declaration, call_declared
from ._kernel import of_known_type, takes_nn_tensors

__all__ = ["LAYOUTS", "swizzle", "unswizzle"]

LAYOUTS = {"scales": Declaration("M a:4 c:32, K s:4, b:8 -> M, K, c, a s b")}
_SCALES = ("float8_e4m3fn", "float8_e8m0fnu", "uint8")


@takes_nn_tensors
def swizzle(scales: relax.Expr) -> relax.Expr:
    """Cut scales into tiles of 128 x 4; the last ones are filled up with zeros.

    Parameters
    ----------
    scales : relax.Expr
        (M, K) float8_e4m3fn, float8_e8m0fnu or uint8: a row for each output channel. (E, M, K) is
        the same for each of E experts.

    Returns
    -------
    relax.Expr
        (ceil(M / 128), ceil(K / 4), 32, 16), of experts (E, ...).
    """
    where = "block_scales.swizzle"
    scales = of_known_type(where, scales)
    each = ["E"] if scales.ty.ndim == 3 else []
    shape_of(where, "scales", scales, _SCALES, (*each, "M", "K"))
    layout = LAYOUTS["scales"].of_each("E") if each else LAYOUTS["scales"]
    return call_declared(where, "swizzle_scales", layout, scales, pads=True)


@takes_nn_tensors
def unswizzle(
    scales: relax.Expr, shape: Sequence[ir.Expr | int] | relax.ShapeExpr | None = None
) -> relax.Expr:
    """Scales as :func:`swizzle` was given them; what they were filled up with is left out.

    Parameters
    ----------
    scales : relax.Expr
        (A, B, 32, 16) or (E, A, B, 32, 16).
    shape : two sizes, optional
        (M, K), where it is not (A * 128, B * 4).

    Returns
    -------
    relax.Expr
        (M, K) or (E, M, K).
    """
    where = "block_scales.unswizzle"
    scales = of_known_type(where, scales)
    each = ["E"] if scales.ty.ndim == 5 else []
    sizes = shape_of(where, "scales", scales, _SCALES, (*each, "A", "B", "32", "16"))
    *experts, down, across, rows, columns = sizes
    remedy = "give what swizzle returned"
    require_equal(where, "rows of a tile", rows, 32, "of 128 x 4 scales", remedy)
    require_equal(where, "bytes in a row of a tile", columns, 16, "of 128 x 4 scales", remedy)
    layout = LAYOUTS["scales"].of_each("E") if each else LAYOUTS["scales"]
    if shape is None:
        return call_declared(where, "unswizzle_scales", layout, scales, is_back=True)
    end = list(shape.values if isinstance(shape, relax.ShapeExpr) else shape)
    remedy = "give the `shape` that the scales had"
    require(len(end) == 2, where, f"a shape of {len(end)} sizes", "(M, K)", remedy)
    end = [tirx.const(size, "int64") if isinstance(size, int) else size for size in end]
    for what, count, size, length in (
        ("rows of tiles", down, end[0], 128),
        ("columns of tiles", across, end[1], 4),
    ):
        because = f"{text_of(size)} in tiles of {length}"
        require_equal(where, what, count, tirx.ceildiv(size, length), because, remedy)
    end = [sym.Analyzer().simplify(size) for size in (*experts, *end)]
    return call_declared(where, "unswizzle_scales", layout, scales, is_back=True, end=end)
