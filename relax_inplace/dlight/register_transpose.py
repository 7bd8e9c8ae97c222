"""A small square of elements, transposed in vector registers.

Definition
----------
Of n vectors of n lanes, n a power of two, each of log2(n) rounds makes n others: vectors ``i`` and
``i + n / 2``, interleaved, become ``2 * i`` (their lower halves) and ``2 * i + 1`` (their upper
ones). Then vector ``j`` has in lane ``i`` what vector ``i`` had in lane ``j``.

A round moves the highest bit of a vector's number to the lowest of the lane's, and the lane's highest
to the vector's lowest: after log2(n) rounds the numbers have changed places. An interleaving is one
instruction for vectors of 16 bytes: ``punpckl`` and ``punpckh`` on x86, ``zip1`` and ``zip2`` on
Arm.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import ir, tirx

__all__ = ["VECTOR_BYTES", "transpose_square"]

VECTOR_BYTES = (
    16  # SSE2's and NEON's; in wider ones instructions interleave 16 bytes at a time, too
)


def transpose_square(
    lanes: int,
    load: Callable[[int], ir.Expr],
    store: Callable[[int, ir.Expr], tirx.Stmt],
) -> tirx.Stmt:
    """Read a square row by row, and write it column by column.

    Parameters
    ----------
    lanes : int
        Rows, and elements of a row: a power of two.
    load : callable
        Row ``i``, as a vector of that many lanes.
    store : callable
        Writes column ``j``, a vector of that many lanes.
    """
    statements: list[tirx.Stmt] = []

    def named(name: str, value: ir.Expr) -> ir.Expr:
        # A name for each vector: an expression without any would be 4 ** log2(n) loads.
        var = tirx.Var(name, value.ty)
        statements.append(tirx.Bind(var, value))
        return var

    vectors = [named(f"row{i}", load(i)) for i in range(lanes)]
    half = lanes // 2
    low = [lane for i in range(half) for lane in (i, lanes + i)]
    high = [lane for i in range(half, lanes) for lane in (i, lanes + i)]
    for round_ in range(lanes.bit_length() - 1):
        vectors = [
            named(
                f"round{round_}_{2 * i + upper}",
                tirx.Shuffle([vectors[i], vectors[i + half]], side),
            )
            for i in range(half)
            for upper, side in enumerate((low, high))
        ]
    statements += [store(j, vector) for j, vector in enumerate(vectors)]
    return tirx.SeqStmt(statements)
