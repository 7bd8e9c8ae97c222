"""Small squares of elements, transposed in vector registers.

Definition
----------
Of n vectors, n a power of two, a *round* makes n others: vectors ``i`` and ``i + n / 2``,
interleaved, become ``2 * i`` (their lower halves) and ``2 * i + 1`` (their upper ones).

Number the elements by vector and then by lane: a round turns these numbers left by one bit. So
log2(n) rounds transpose n vectors of n lanes. An interleaving is one instruction for vectors of 16
bytes: ``punpckl`` and ``punpckh`` on x86, ``zip1`` and ``zip2`` on Arm.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import ir, tirx

__all__ = ["VECTOR_BYTES", "transpose_square"]

VECTOR_BYTES = 16  # SSE2's and NEON's; AVX2 interleaves 16 bytes at a time, too


def transpose_square(
    side: int,
    load: Callable[[int], ir.Expr],
    store: Callable[[int, ir.Expr], tirx.Stmt],
) -> tirx.Stmt:
    """Read vectors, transpose them, write vectors.

    Parameters
    ----------
    side : int
        How many vectors, of as many lanes: a power of two.
    load : callable
        Vector ``i``.
    store : callable
        Writes vector ``i``.
    """
    statements: list[tirx.Stmt] = []

    def named(name: str, value: ir.Expr) -> ir.Expr:
        # Each vector is used twice: an expression without names would grow with each round.
        var = tirx.Var(name, value.ty)
        statements.append(tirx.Bind(var, value))
        return var

    half = side // 2
    low = [lane for i in range(half) for lane in (i, side + i)]
    high = [lane for i in range(half, side) for lane in (i, side + i)]
    vectors = [named(f"given{i}", load(i)) for i in range(side)]
    for round_ in range(side.bit_length() - 1):
        pairs = list(zip(vectors[:half], vectors[half:], strict=True))
        vectors = [
            named(f"round{round_}_{2 * i + upper}", tirx.Shuffle(list(pair), chosen))
            for i, pair in enumerate(pairs)
            for upper, chosen in enumerate((low, high))
        ]
    statements += [store(i, vector) for i, vector in enumerate(vectors)]
    return tirx.SeqStmt(statements)
