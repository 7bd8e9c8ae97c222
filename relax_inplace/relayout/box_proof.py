"""What holds at every point of a box of indices, for all sizes from 0 on: proved by TVM's analyzer.

A *box* gives each index its extent; the index is 0 or more, and below it. All else that is not
known is a size. What is not proved does not count as true.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

from tvm import ir, relax, sym, tirx

__all__ = ["analyzer_of", "equal", "holds_everywhere"]


def holds_everywhere(
    goals: Sequence[ir.Expr],
    box: Mapping[relax.Var, ir.Expr],
    conditions: Sequence[ir.Expr] = (),
) -> bool:
    """Whether all goals hold at all points of a box where the conditions do."""
    analyzer = sym.Analyzer()
    unknown = {
        var
        for expr in (*goals, *box.values(), *conditions)
        for var in tirx.analysis.undefined_vars(expr)
        if var not in box
    }
    with contextlib.ExitStack() as scopes:
        for var in unknown:
            scopes.enter_context(analyzer.constraint_scope(var >= 0))
        for var, extent in box.items():
            extent = analyzer.simplify(extent)
            if isinstance(extent, tirx.IntImm):
                analyzer.bind(var, _range(var, extent))
            else:
                # As constraints: a range of symbolic extent is not used as one
                # (const_int_bound.cc).
                scopes.enter_context(analyzer.constraint_scope(var >= 0))
                scopes.enter_context(analyzer.constraint_scope(var < extent))
        for condition in conditions:
            scopes.enter_context(analyzer.constraint_scope(analyzer.simplify(condition)))
        return all(analyzer.can_prove(goal, sym.ProofStrength.SYMBOLIC_BOUND) for goal in goals)


def equal(one: ir.Expr, other: ir.Expr) -> ir.Expr:
    """``one == other`` as a goal. Their dtypes may differ; those of ``tirx.EQ`` may not."""
    return (one == other).asobject()


def analyzer_of(box: Mapping[relax.Var, ir.Expr]) -> sym.Analyzer:
    """What simplifies expressions of the indices of a box."""
    analyzer = sym.Analyzer()
    for var, extent in box.items():
        analyzer.bind(var, _range(var, extent))
    return analyzer


def _range(var: relax.Var, extent: ir.Expr) -> ir.Range:
    return ir.Range.from_min_extent(tirx.const(0, var.ty.dtype), extent)
