"""Tiles: a matrix as a matrix of small matrices, each of them contiguous.

=============  ============================  ====================================
layout         there                         element ``w[i, j]`` is at
=============  ============================  ====================================
``pack``       N x K -> N/n x K/k x n x k    ``[i // n, j // k, i % n, j % k]``
``pack_vnni``  N x K -> K/v x N x v          ``[j // v, i, j % v]``
=============  ============================  ====================================

``pack`` is the blocked form of any tiled matrix product. ``pack_vnni`` is what an instruction reads
that multiplies v neighbours along K and adds the products: ``vpdpbusd`` and AMX's ``tdpbssd`` take
four int8 (``packed_B`` of ggml's ``ggml-cpu/amx/mmq.cpp``; TVM's ``dot_16x4_vnni``, of
``s_tir/tensor_intrin/x86.py``, has 16 columns as its operand ``B[16, 4]``), ``vdpbf16ps`` and
``tdpbf16ps`` two bfloat16 (Intel's manual: none of the sources above has them).
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import ir, relax, sym, tirx

from ._argument import require, require_equal, require_multiple, shape_of, text_of
from ._declaration import Declaration, call_declared
from ._kernel import of_known_type, takes_nn_tensors

__all__ = ["LAYOUTS", "pack", "pack_vnni", "unpack", "unpack_vnni"]


def _tiles(rows: int, columns: int) -> Declaration:
    return Declaration(f"N n:{rows}, K k:{columns}, b -> N, K, n, k, b")


LAYOUTS = {
    "tiles of 16 x 64": _tiles(16, 64),
    "neighbours of 8 bits": Declaration("N, K v:4 b:8 -> K, N, v b"),
    "neighbours of 16 bits": Declaration("N, K v:2 b:16 -> K, N, v b"),
}

_NEIGHBOURS = {"int8": 4, "uint8": 4, "bfloat16": 2, "float16": 2}


@takes_nn_tensors
def pack(weight: relax.Expr, rows: int, columns: int) -> relax.Expr:
    """Cut a matrix into tiles; the last ones are filled up with zeros.

    Parameters
    ----------
    weight : relax.Expr
        (N, K), of any dtype.
    rows, columns : int
        Of a tile: n and k.

    Returns
    -------
    relax.Expr
        (ceil(N / n), ceil(K / k), n, k): element ``[a, b, i, j]`` is
        ``weight[a * n + i, b * k + j]``.
    """
    where = "tiles.pack"
    _require_tile(where, rows, columns)
    weight = of_known_type(where, weight)
    shape_of(where, "weight", weight, (), ("N", "K"))

    name = f"pack_{rows}x{columns}_tiles"
    return call_declared(where, name, _tiles(rows, columns), weight, pads=True)


@takes_nn_tensors
def unpack(
    tiles: relax.Expr, shape: Sequence[ir.Expr | int] | relax.ShapeExpr | None = None
) -> relax.Expr:
    """Put tiles together again; what they were filled up with is left out.

    Parameters
    ----------
    tiles : relax.Expr
        (A, B, n, k), as :func:`pack` returns them; n and k are constants.
    shape : two sizes, optional
        (N, K) of the matrix, where it is not (A * n, B * k).

    Returns
    -------
    relax.Expr
        (N, K).
    """
    where = "tiles.unpack"
    tiles = of_known_type(where, tiles)
    down, across, rows, columns = shape_of(where, "tiles", tiles, (), ("A", "B", "n", "k"))
    require(
        isinstance(rows, tirx.IntImm) and isinstance(columns, tirx.IntImm),
        where,
        f"tiles of {text_of(rows)} x {text_of(columns)} given",
        "constants",
        "cast the tensor to the tiles it has with R.match_cast",
    )
    sizes = [down * rows, across * columns]
    if shape is not None:
        sizes = list(shape.values if isinstance(shape, relax.ShapeExpr) else shape)
        sizes = [tirx.const(size, "int64") if isinstance(size, int) else size for size in sizes]
        remedy = "give the `shape` that the matrix had when it was packed"
        require(len(sizes) == 2, where, f"a shape of {len(sizes)} sizes", "(N, K)", remedy)
        for what, count, size, length in (
            ("rows of tiles", down, sizes[0], rows),
            ("columns of tiles", across, sizes[1], columns),
        ):
            because = f"{text_of(size)} in tiles of {text_of(length)}"
            require_equal(where, what, count, tirx.ceildiv(size, length), because, remedy)

    name = f"unpack_{rows.value}x{columns.value}_tiles"
    layout = _tiles(rows.value, columns.value)
    end = None if shape is None else [sym.Analyzer().simplify(size) for size in sizes]
    return call_declared(where, name, layout, tiles, is_back=True, end=end)


@takes_nn_tensors
def pack_vnni(weight: relax.Expr) -> relax.Expr:
    """Neighbours along K next to each other, K before N: as VNNI and AMX multiply them.

    Parameters
    ----------
    weight : relax.Expr
        (N, K), int8 or uint8 with v = 4, bfloat16 or float16 with v = 2. K is a multiple of v.

    Returns
    -------
    relax.Expr
        (K / v, N, v): element ``[a, i, j]`` is ``weight[i, a * v + j]``.
    """
    where = "tiles.pack_vnni"
    weight = of_known_type(where, weight)
    _, width = shape_of(where, "weight", weight, tuple(_NEIGHBOURS), ("N", "K"))
    v = _NEIGHBOURS[str(weight.ty.dtype)]
    require_multiple(where, "columns", width, v, "pad the weight along K with zeros")

    return call_declared(where, f"pack_vnni_{v}", LAYOUTS[f"neighbours of {32 // v} bits"], weight)


@takes_nn_tensors
def unpack_vnni(weight: relax.Expr) -> relax.Expr:
    """What :func:`pack_vnni` was given.

    Parameters
    ----------
    weight : relax.Expr
        (K / v, N, v), of the same dtypes.

    Returns
    -------
    relax.Expr
        (N, K).
    """
    where = "tiles.unpack_vnni"
    weight = of_known_type(where, weight)
    sizes = shape_of(where, "weight", weight, tuple(_NEIGHBOURS), ("K/v", "N", "v"))
    v = _NEIGHBOURS[str(weight.ty.dtype)]
    because = f"neighbours of {weight.ty.dtype}"
    require_equal(where, "neighbours", sizes[2], v, because, "give what pack_vnni returned")

    layout = LAYOUTS[f"neighbours of {32 // v} bits"]
    return call_declared(where, f"unpack_vnni_{v}", layout, weight, is_back=True)


def _require_tile(where: str, rows: int, columns: int) -> None:
    require(
        isinstance(rows, int) and isinstance(columns, int) and rows > 0 and columns > 0,
        where,
        f"tiles of {rows} x {columns} given",
        "two numbers above 0",
        "give the rows and the columns of a tile",
    )
