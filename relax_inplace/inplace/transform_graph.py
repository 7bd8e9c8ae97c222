"""A ``transform_params`` function as a graph: what each of its outputs is computed from.

Definition
----------
The *weights* are the tensors in what follows the ``num_input`` leading parameters: the fields of a
tuple, at any depth, or parameters of their own, of which the in-place function gets one tuple.

A *step* is what runs as one kernel after fusion: a binding that computes something, or several in
a dataflow block that TVM's ``FuseOps`` makes one (:mod:`.fusion`). Reads of fields, tuples and
second names are none. A call to another Relax function is the steps of that function.

Steps may run in any order in which

- operands come first;
- impure calls keep their order among each other;
- what may overwrite memory keeps its order towards what touches it (:mod:`.memory_order`);
- what types may depend on (``match_cast``, prim values) runs first of all.

A pure step that no output needs does not run.

A *streamed* transform is not given its weights: it calls for each. Such a *load* is a step, which
allocates the weight's buffer and uses nothing; a weight that nothing needs has none. Loads go
before what reads their weights, and define its symbolic dimensions: a step with one that is defined
neither by a leading parameter nor by what it depends on also runs after a load that defines it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, TypeAlias

from tvm import ir, relax

from ..errors import StructuredError
from ..ir.resolve import resolve
from .steps import Kernel, Load, Step
from .weights import Buffer, Container, Layout, Weight, buffers_of

__all__ = [
    "RESTORE",
    "TRANSFORM",
    "Buffer",
    "Container",
    "Kernel",
    "Known",
    "Layout",
    "Load",
    "Step",
    "TransformGraph",
    "UnsupportedTransformError",
    "Weight",
    "buffers_of",
    "in_order",
    "number_of_inputs",
    "overwritten_weights",
    "parts_of",
]

TRANSFORM = "transform_params"  # what the name of such a function ends in
RESTORE = "restore_params"  # and that of the one that undoes it


class UnsupportedTransformError(StructuredError):
    """A function cannot be rewritten to update its weights in place.

    Attributes
    ----------
    function : str
        The function's name.
    reason : str
        The reason, and its place in the function.
    """

    template = "function `{function}` cannot be transformed in place: {reason}"


# The value of a variable: a field of the weights, or an expression of others.
Known: TypeAlias = Container | Weight | relax.Expr


@dataclasses.dataclass
class TransformGraph:
    """The steps of a transform, with their operands and results.

    Attributes
    ----------
    name : str
        The function's name.
    function : relax.Function
        The function.
    leading : list of relax.Var
        The ``num_input`` parameters before the weights.
    params : relax.Var
        The tuple that the new function updates: the function's own tuple of weights, or one that
        its separate weights are bundled into. For a streamed transform, it has a slot for each
        output.
    root : Container
        The weights.
    slots : Container
        The fields of ``params``: ``root``, or unknown fields for a streamed transform.
    get_weight : relax.Var or None
        The function that returns the weights of a streamed transform.
    loads : dict of Weight to Load
        The loads of a streamed transform.
    steps : list of Step
        The steps in the function's order, without those that need not run.
    outputs : list
        The fields of the tuple that it returns: weights, tuples of weights, or expressions.
    """

    name: str
    function: relax.Function
    leading: list[relax.Var]
    params: relax.Var
    root: Container
    slots: Container
    get_weight: relax.Var | None = None
    loads: dict[Weight, Load] = dataclasses.field(default_factory=dict)
    steps: list[Step] = dataclasses.field(default_factory=list)
    outputs: list[Known] = dataclasses.field(default_factory=list)
    _known: dict[relax.Var, Known] = dataclasses.field(default_factory=dict)
    _layout: dict[relax.Var, Layout] = dataclasses.field(default_factory=dict)
    _step_of: dict[relax.Var, Step] = dataclasses.field(default_factory=dict)
    _defined_by: dict[relax.Var, Step] = dataclasses.field(default_factory=dict)  # dimensions

    @property
    def parameters(self) -> list[relax.Var]:
        """Of the new function."""
        given = [] if self.get_weight is None else [self.get_weight]
        return [*self.leading, *given, self.params]

    def resolve(self, expr: relax.Expr) -> Known:
        """What an expression is, through second names, tuples and reads of fields."""
        return resolve(expr, self._known.get)

    def step_of(self, var: relax.Var) -> Step | None:
        """The step that computes a variable."""
        return self._step_of.get(var)

    def layout(self, known: Known) -> Layout:
        """The buffers that a value lies in."""
        value: Any = self.resolve(known)
        kind = type(value)  # the classes of tvm-ffi are abstract base classes: isinstance is slow
        if kind is Weight:
            return frozenset([value.buffer])
        if kind is Container or kind is relax.Tuple:
            return [self.layout(field) for field in value.fields[:]]
        if kind is relax.TupleGetItem:
            source = self.layout(value.tuple_value)
            return source[value.index] if isinstance(source, list) else source
        if kind is relax.Var or kind is relax.DataflowVar:
            return self._layout.get(value, frozenset())
        return frozenset()

    def needs(self, known: Known) -> tuple[dict[Step, None], dict[Weight, None]]:
        """The steps and the weights that an expression reads by itself."""
        steps: dict[Step, None] = {}
        weights: dict[Weight, None] = {}
        self._needs(known, steps, weights)
        return steps, weights

    def variables(self, known: Known) -> Iterator[relax.Var]:
        """The variables of steps that an expression reads by itself."""
        if isinstance(known, relax.Expr):
            known = self.resolve(known)
        if isinstance(known, relax.Var):
            if known in self._step_of:
                yield known
        elif isinstance(known, relax.Expr):
            for part in parts_of(known):
                yield from self.variables(part)

    def _needs(self, known: Known, steps: dict[Step, None], weights: dict[Weight, None]) -> None:
        value: Any = self.resolve(known)
        kind = type(value)
        if kind is Weight:
            weights[value] = None
            if value in self.loads:
                steps[self.loads[value]] = None
        elif kind is Container:
            for weight in value.weights():
                self._needs(weight, steps, weights)
        elif kind is relax.Var or kind is relax.DataflowVar:
            step = self._step_of.get(value) or self._defined_by.get(value)
            if step is not None:
                steps[step] = None
        elif kind is relax.ShapeExpr or ir.is_prim_expr(value):
            if self._defined_by:
                for var in relax.analysis.free_vars(value)[:]:
                    self._needs(var, steps, weights)
        else:
            for part in parts_of(value):
                self._needs(part, steps, weights)


def in_order(graph: TransformGraph, steps: list[Step]) -> list[Step]:
    """As they are, but for a fused step that begins before another one that it needs."""
    ordered: dict[Step, None] = {}
    begun: set[Step] = set()
    for first in steps:
        pending = [first]
        while pending:
            step = pending[-1]
            before = [other for other in step.after if other not in ordered]
            if not before:
                ordered[pending.pop()] = None
            elif step in begun:
                raise UnsupportedTransformError.of(
                    function=graph.name,
                    reason=f"TVM fuses the kernels of `{step.name}`, some of which run before and "
                    f"some after `{before[0].name}`, as one of these overwrites what another one "
                    "reads; end the dataflow block in between",
                )
            else:
                begun.add(step)
                pending += before[::-1]
    return list(ordered)


def overwritten_weights(graph: TransformGraph) -> list[int]:
    """The weights that the steps may overwrite in memory, by their position in nested tuples.

    Where one of them is the same tensor as another weight, what is read there depends on the order
    of the steps.
    """
    overwritten: set[Buffer] = set().union(*(step.overwrites for step in graph.steps))
    return [i for i, weight in enumerate(graph.root.weights()) if weight.buffer in overwritten]


def number_of_inputs(function: relax.Function) -> int:
    """How many parameters of a transform come before its weights."""
    attrs = function.attrs
    return int(attrs["num_input"]) if attrs and "num_input" in attrs else 0


def parts_of(expr: relax.Expr) -> Iterator[relax.Expr]:
    """What an expression is made from: variables, tuples, reads of fields."""
    if isinstance(expr, ir.Call):
        for arg in expr.args[:]:
            if isinstance(arg, (relax.Var, relax.Tuple, relax.TupleGetItem, ir.Call)):
                yield arg
        if isinstance(expr.op, relax.Var):
            yield expr.op
    elif isinstance(expr, relax.Tuple):
        yield from expr.fields[:]
    elif isinstance(expr, relax.TupleGetItem):
        yield expr.tuple_value
    elif isinstance(expr, (relax.If, relax.Function, relax.SeqExpr)):
        yield from relax.analysis.free_vars(expr)[:]
