"""Small blocks of elements, transposed in vector registers.

Definition
----------
Of n vectors, n a power of two, a *round* makes n others: vectors ``i`` and ``i + n / 2``,
interleaved, become ``2 * i`` (their lower halves) and ``2 * i + 1`` (their upper ones).

Number the elements by vector and then by lane: a round turns these numbers left by one bit. So
log2(n) rounds make the columns of n rows contiguous; of n vectors of n lanes, they transpose a
square; and log2(lanes) rounds undo what makes n vectors contiguous column by column. An
interleaving is one instruction for vectors of 16 bytes: ``punpckl`` and ``punpckh`` on x86,
``zip1`` and ``zip2`` on Arm.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import ir, tirx

__all__ = ["VECTOR_BYTES", "transpose_block"]

VECTOR_BYTES = 16  # SSE2's and NEON's; AVX2 interleaves 16 bytes at a time, too


def transpose_block(
    count: int,
    lanes: int,
    bits: int,
    load: Callable[[int], ir.Expr],
    store: Callable[[int, ir.Expr], tirx.Stmt],
) -> tirx.Stmt:
    """Read vectors, turn the numbers of their elements left, write vectors.

    Parameters
    ----------
    count, lanes : int
        Of the vectors: powers of two.
    bits : int
        By how many bits: the rounds.
    load : callable
        Vector ``i``, of that many lanes.
    store : callable
        Writes vector ``i`` of as many lanes.
    """
    statements: list[tirx.Stmt] = []

    def named(name: str, value: ir.Expr) -> ir.Expr:
        # Each vector is used twice: an expression without names would grow with each round.
        var = tirx.Var(name, value.ty)
        statements.append(tirx.Bind(var, value))
        return var

    half = lanes // 2
    low = [lane for i in range(half) for lane in (i, lanes + i)]
    high = [lane for i in range(half, lanes) for lane in (i, lanes + i)]
    vectors = [named(f"given{i}", load(i)) for i in range(count)]
    for round_ in range(bits):
        pairs = list(zip(vectors[: count // 2], vectors[count // 2 :], strict=True))
        vectors = [
            named(f"round{round_}_{2 * i + upper}", tirx.Shuffle(list(pair), side))
            for i, pair in enumerate(pairs)
            for upper, side in enumerate((low, high))
        ]
    statements += [store(i, vector) for i, vector in enumerate(vectors)]
    return tirx.SeqStmt(statements)
