"""Steps that only serve to compute one value, and how they run as one step of slices.

Definition
----------
The *cone* of a step is that step, and each step that runs before steps of the cone only, and is no
output. It runs as one step of ``n`` slices: each slice of an operand is copied, goes through the
operators of the cone, and is written into the new tensor. That is the whole new tensor, and the
temporaries of one slice. The slice of an operand stays from the first step of the cone that reads
it to the last.

What runs after a cone runs after its last step, and all of a cone runs before that one. So in any
order of the steps, cones that share none may take the places of their last ones, several at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from ..ir.kernels import Kernels
from .slicing import Slicing, find_slicing
from .steps import Kernel, Load, Step
from .transform_graph import TransformGraph

__all__ = ["Cones", "SlicedStep"]


@dataclasses.dataclass(eq=False)
class SlicedStep(Step):
    """A cone that runs slice by slice: one kernel, to those who plan.

    Attributes
    ----------
    slicing : Slicing
    rows : int
        Of each slice but the last, which may have fewer.
    """

    slicing: Slicing = dataclasses.field(kw_only=True)
    rows: int = dataclasses.field(kw_only=True)

    @staticmethod
    def of(slicing: Slicing, most_rows: int) -> SlicedStep:
        """The step that computes a value in as few slices as have at most so many rows; in two."""
        slices = max(2, -(-slicing.length // most_rows))
        rows = -(-slicing.length // slices)
        cone, last = set(slicing.steps), slicing.steps[-1].kernels[-1]
        own = {buffer for step in cone for kernel in step.kernels for buffer in kernel.allocates}
        uses = {buffer for step in cone for kernel in step.kernels for buffer in kernel.uses} - own
        kernel = Kernel(last.binding, uses, last.allocates, rows * slicing.bytes_of_row)
        sliced = SlicedStep([kernel], slicing=slicing, rows=rows)
        for step in slicing.steps:
            sliced.reads.update(step.reads)
            sliced.operands.update(dict.fromkeys(o for o in step.operands if o not in cone))
            sliced.after.update(dict.fromkeys(o for o in step.after if o not in cone))
        return sliced

    @property
    def cone(self) -> list[Step]:
        """The steps in whose place it runs, in order."""
        return self.slicing.steps

    @property
    def name(self) -> str:
        """With the number of slices."""
        return f"{super().name} in {-(-self.slicing.length // self.rows)} slices"


class Cones:
    """The cones of steps that run in a given order.

    Parameters
    ----------
    graph : TransformGraph
    kernels : Kernels
    order : iterable of Step
        Steps of a cone run in it. What is not in it is in no cone.
    """

    def __init__(self, graph: TransformGraph, kernels: Kernels, order: Iterable[Step]):
        self._graph = graph
        self._kernels = kernels
        self._position = {step: number for number, step in enumerate(order)}
        self._later: dict[Step, list[Step]] = {}
        for step in graph.steps:
            for other in step.after:
                self._later.setdefault(other, []).append(step)
        self._outputs = {step for output in graph.outputs for step in graph.needs(output)[0]}

    def slicings(self, step: Step) -> list[Slicing]:
        """The ways to run a step slice by slice: alone, with what it is used for, and so on."""
        found = []
        current = step
        while True:
            cone = self._cone(current)
            slicing = find_slicing(self._graph, cone, self._kernels) if step in cone else None
            if slicing is not None:
                found.append(slicing)
            later = self._later.get(current, [])
            if len(later) != 1 or current in self._outputs:
                return found
            (current,) = later

    def _cone(self, last: Step) -> list[Step]:
        """The steps of a cone, in order; none if the last one cannot be split."""
        if not self._may_be_split(last):
            return []
        cone = {last}
        pending = [last]
        while pending:
            for step in pending.pop().after:
                if (
                    step not in cone
                    and step not in self._outputs
                    and self._may_be_split(step)
                    and all(other in cone for other in self._later[step])
                ):
                    cone.add(step)
                    pending.append(step)
        return sorted(cone, key=self._position.__getitem__)

    def _may_be_split(self, step: Step) -> bool:
        is_whole = isinstance(step, Load) or step.is_impure or step.runs_first
        return step in self._position and not is_whole
