"""The symbolic dimensions of a streamed transform: its steps run after the loads that define them.

Definition
----------
A load defines the dimensions that its weight's type shows by themselves, once those that stand in
expressions of it are known. A step needs the dimensions of its types and values; those that are not
known when the function is called are defined by a load before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tvm import relax

from .steps import Load, Step
from .transform_graph import TransformGraph, UnsupportedTransformError, in_order

__all__ = ["with_dimensions_defined"]


def with_dimensions_defined(
    graph: TransformGraph, steps: list[Step], loads: list[Load], given: set[relax.Var]
) -> list[Step]:
    """The steps and loads, each after a load that defines the symbolic dimensions it needs.

    Parameters
    ----------
    graph : TransformGraph
    steps, loads : list
        What has to run.
    given : set of relax.Var
        The dimensions that are known when the function is called.
    """
    # Of two that define a dimension, rather one that is needed anyway.
    in_turn = dict.fromkeys([*loads, *graph.loads.values()])
    defined_by = _definitions(graph, in_turn, given)
    graph._defined_by.update(defined_by)
    if defined_by:
        for output in graph.outputs:
            loads += [step for step in graph.needs(output)[0] if isinstance(step, Load)]
        loads += _definitions_first(in_order(graph, [*steps, *loads]), defined_by)
    return in_order(graph, [*steps, *loads])


def _definitions(
    graph: TransformGraph, loads: Iterable[Load], given: set[relax.Var]
) -> dict[relax.Var, Load]:
    """For each symbolic dimension a load that defines it."""
    defined_by: dict[relax.Var, Load] = {}
    waiting = {load: set(relax.analysis.tir_vars_in_type(load.weight.ty)[:]) for load in loads}
    waiting = {load: symbols for load, symbols in waiting.items() if symbols}
    while waiting:
        ready = []
        for load, symbols in waiting.items():
            own = set(relax.analysis.definable_tir_vars_in_type(load.weight.ty)[:])
            if all(v in own or v in given or v in defined_by for v in symbols):
                ready.append(load)
                for var in own - given:
                    defined_by.setdefault(var, load)
        if not ready:
            names = ", ".join(f"`{load.weight.name}`" for load in waiting)
            raise UnsupportedTransformError.of(
                function=graph.name,
                reason=f"lazy=True: the weights {names} are loaded one by one, but the symbolic "
                "dimensions of each have to be known before it is; pass them as inputs",
            )
        for load in ready:
            del waiting[load]
    return defined_by


def _definitions_first(steps: list[Step], defined_by: Mapping[relax.Var, Load]) -> list[Load]:
    """Let each step run after a load that defines its symbolic dimensions; these loads."""
    known: dict[Step, set[relax.Var]] = {}  # what is defined when a step has run
    added: dict[Load, None] = {}

    def visit(step: Step) -> None:
        known[step] = set().union(*(known[other] for other in step.after))
        for var in _symbols(step):
            load = defined_by.get(var)
            if load is not None and load is not step and var not in known[step]:
                if load not in known:
                    added[load] = None
                    visit(load)
                step.after[load] = None
                known[step] |= known[load]
        if isinstance(step, Load):
            known[step].update(relax.analysis.definable_tir_vars_in_type(step.weight.ty)[:])

    for step in steps:
        if step not in known:
            visit(step)
    return list(added)


def _symbols(step: Step) -> set[relax.Var]:
    """The symbolic dimensions that have to be known where a step runs."""
    if isinstance(step, Load):
        ty = step.weight.ty
        own = set(relax.analysis.definable_tir_vars_in_type(ty)[:])
        return set(relax.analysis.tir_vars_in_type(ty)[:]) - own
    symbols: set[relax.Var] = set()
    for kernel in step.kernels:
        symbols.update(relax.analysis.free_symbolic_vars(kernel.binding.value)[:])
        symbols.update(relax.analysis.tir_vars_in_type(kernel.binding.var.ty)[:])
    return symbols
