"""Which results of a transform's steps may lie in the memory of what they read.

Definition
----------
For a target, a kernel becomes what lowering makes of it (``scheduled`` of
:mod:`..lower.schedule_relayouts`, the same function), and that says which result may be written
over which operand. It is one here if that operand is a weight in the tuple itself, or what another
kernel has made, as a whole: no view of it, and in no other operand. Not a weight that is loaded:
whoever loads it may have memory that cannot be taken over, which no check can tell before.

Whether the operand is read last there depends on the order (:mod:`.step_order`). Where that is so,
lowering has the result in its memory (:mod:`..lower.donation`).
"""

from __future__ import annotations

import tvm
from tvm import ir, relax, tirx

from ..ir.byte_size import covers
from ..ir.kernels import Kernels
from ..lower.schedule_relayouts import scheduled
from ..relayout.description_blocks import INPLACE
from .steps import Kernel
from .transform_graph import TransformGraph
from .weights import Buffer, Weight, buffers_of

__all__ = ["MovesInPlace", "target_to_plan_for"]


def target_to_plan_for(
    target: str | tvm.target.Target | None, mod: ir.IRModule | None
) -> tvm.target.Target | None:
    """The target that is given, or else the current one; None if there are others beside it."""
    if mod is not None and mod.global_infos.get("vdevice"):
        return None
    if target is None:
        return tvm.target.Target.current(allow_none=True)
    return tvm.target.Target(target)


class MovesInPlace:
    """Finds them, kernel by kernel, in the order of the function.

    Parameters
    ----------
    graph : TransformGraph
        Of which the layouts of what was read so far are known.
    kernels : Kernels
    target : tvm.target.Target or None
        None finds none.
    """

    def __init__(self, graph: TransformGraph, kernels: Kernels, target: tvm.target.Target | None):
        self._graph = graph
        self._kernels = kernels
        self._target = target
        self._made: dict[relax.Var, Buffer] = {}  # what lies in a buffer of its own, as a whole
        self._pairs: dict[tirx.PrimFunc, list[tuple[int, int]]] = {}

    def read(self, kernel: Kernel) -> None:
        """Say of a kernel what may lie in what: its ``over``."""
        if self._target is None or len(kernel.allocates) != 1:
            return
        var, value = kernel.binding.var, kernel.binding.value
        (result,) = kernel.allocates
        legalized = self._kernels.of(value)
        if legalized is None or self._graph.layout(var) != {result}:
            return
        self._made[var] = result
        operands = legalized.operands
        variables = relax.analysis.free_vars(value)[:]
        for given, output in self._in_place(legalized.kernel):
            position = operands[given] if given < len(operands) else None
            if output != len(operands) or position is None or operands.count(position) > 1:
                continue
            donor = self._whole(variables[position])
            if donor is None or not covers(donor.size, result.size):
                continue
            if self._is_alone(donor, variables):
                kernel.over.setdefault(result, []).append(donor)

    def _in_place(self, kernel: tirx.PrimFunc) -> list[tuple[int, int]]:
        """Parameters of a kernel, an input and an output that may lie in its memory."""
        known = self._pairs.get(kernel)
        if known is None:
            assert self._target is not None
            with self._target:
                new = scheduled(kernel, self._target)
            attrs = {} if new is None or new.attrs is None else new.attrs
            pairs = attrs.get(INPLACE, ())
            known = self._pairs[kernel] = [(int(given), int(output)) for given, output in pairs]
        return known

    def _whole(self, var: relax.Var) -> Buffer | None:
        """The buffer that a variable stands for, not for a part or a view of it."""
        known = self._graph.resolve(var)
        if isinstance(known, Weight):
            is_free = known.is_modifiable and not known.is_streamed
            return known.buffer if is_free and known.container.parent is None else None
        return self._made.get(known) if isinstance(known, relax.Var) else None

    def _is_alone(self, donor: Buffer, variables: list[relax.Var]) -> bool:
        """Whether one operand lies in it."""
        if len(variables) == 1:
            return True
        layouts = (buffers_of(self._graph.layout(var)) for var in variables)
        return sum(donor in buffers for buffers in layouts) == 1
