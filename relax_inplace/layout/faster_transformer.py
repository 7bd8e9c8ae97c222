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

from tvm import relax

from ._argument import require, require_multiple, shape_of
from ._declaration import Declaration, call_declared
from ._kernel import of_known_type, takes_nn_tensors

__all__ = ["LAYOUTS", "from_mixed_gemm", "to_mixed_gemm"]

# Rows of a block of 32 or 16 are 8 c + a for a below 2, and so on; codes of a word, 2 c + z.
LAYOUTS = {
    "int4": Declaration("K h:2 c:4 a:8, N g:4 b:4 -> N K g h a c b ^0x8"),
    "int8": Declaration("K h:4 c:2 a:8, N g:2 b:8 -> N K g h a c b ^0x80"),
    "int4, Volta": Declaration("K, N c:4 z:2 b:4 -> K, N z c b ^0x8"),
    "int8, Volta": Declaration("K, N c:2 z:2 b:8 -> K, N z c b ^0x80"),
}

_TILE = 64  # rows of a column that stay together: ThreadblockK


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
    name = f"to_int{bits}_sm{arch}_mixed_gemm"
    return call_declared(where, name, _layout(arch, bits), codes, keeps_shape=True)


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
    name = f"from_int{bits}_sm{arch}_mixed_gemm"
    layout = _layout(arch, bits)
    return call_declared(where, name, layout, codes, is_back=True, keeps_shape=True)


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


def _layout(arch: int, bits: int) -> Declaration:
    return LAYOUTS[f"int{bits}" if arch >= 75 else f"int{bits}, Volta"]
