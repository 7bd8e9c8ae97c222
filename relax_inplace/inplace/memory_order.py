"""Which steps keep their order, because one may overwrite memory that the other one touches.

Definition
----------
The *memory* of a value is all that it may lie in: the buffers that it was allocated in, and the
memory of what the call that made it may alias (:mod:`relax_inplace.ir.effects`). A step *touches*
the memory of its operands, and may *overwrite* some of it. Two steps of which one overwrites what
the other one touches keep their order.

What a call that the table does not know has kept, any such call may overwrite or return: it is all
one memory.

A result that is a view of an operand in a dataflow block and a copy elsewhere is neither here. If
one of the two is overwritten, the other one holds other bits in one of the cases only: what touches
it later is refused. What a packed function may overwrite keeps its order, and is not refused: most
overwrite nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tvm import relax

from ..ir.effects import EffectTable
from .steps import Kernel, Step
from .transform_graph import Known, TransformGraph, UnsupportedTransformError
from .weights import Buffer, buffers_of

__all__ = ["MemoryOrder", "one_line"]


class MemoryOrder:
    """The order of the steps that touch one memory, as they are read.

    Parameters
    ----------
    graph : TransformGraph
    effects : EffectTable

    Attributes
    ----------
    touched : dict of Step to set of Buffer
        The memory that each step touches.
    """

    def __init__(self, graph: TransformGraph, effects: EffectTable):
        self.graph = graph
        self.effects = effects
        self.touched: dict[Step, set[Buffer]] = {}
        self._memory: dict[relax.Var, frozenset[Buffer]] = {}  # where it is not the layout
        self._last_writer: dict[Buffer, Step] = {}
        self._touching: dict[Buffer, list[Step]] = {}  # since then
        self._kept: set[Buffer] = set()
        self._elsewhere = Buffer("what packed functions keep", 0)
        self._copies: dict[Buffer, list[Kernel]] = {}  # kernels, by what they read and make
        self._unsettled: dict[Buffer, str] = {}  # copies or views of what has been overwritten

    def memory(self, known: Known) -> frozenset[Buffer]:
        """All that a value may lie in."""
        owner = self.graph.resolve(known) if isinstance(known, relax.Expr) else known
        if isinstance(owner, relax.Tuple):
            return frozenset().union(*map(self.memory, owner.fields[:]))
        while isinstance(owner, relax.TupleGetItem):
            owner = owner.tuple_value
        found = self._memory.get(owner) if isinstance(owner, relax.Var) else None
        return frozenset(buffers_of(self.graph.layout(known))) if found is None else found

    def read(self, step: Step, kernel: Kernel, operands: Iterable[relax.Expr]) -> None:
        """Order a kernel, the last one so far of a step, after the steps before it.

        Parameters
        ----------
        step : Step
        kernel : Kernel
            The layout of its result is known.
        operands : iterable of relax.Expr
        """
        var, value = kernel.binding.var, kernel.binding.value
        effects = self.effects.of(value)
        touched = self._memory_of(operands)
        if not self._kept.isdisjoint(touched):
            touched.add(self._elsewhere)
        overwritten = self._memory_of(effects.overwrites)
        aliased = self._memory_of(effects.aliases)
        if not effects.is_known:
            self._kept |= self._memory_of(effects.keeps)
            overwritten.add(self._elsewhere)
            aliased.add(self._elsewhere)
        if self._unsettled:
            self.require_settled(touched, f"`{var.name} = {one_line(value)}`")
        copies = self._copies_of(overwritten)
        overwritten |= copies
        if copies and effects.is_known:
            self._unsettled.update(dict.fromkeys(copies, f"`{var.name} = {one_line(value)}`"))
        self._order(step, touched, overwritten)
        self.touched.setdefault(step, set()).update(touched)
        step.overwrites |= overwritten
        if effects.is_kernel:
            self._note(kernel, touched)
        elif aliased:
            self._memory[var] = frozenset(aliased.union(buffers_of(self.graph.layout(var))))

    def require_settled(self, touched: Iterable[Buffer], by: str) -> None:
        """Refuse what touches memory that holds other bits if a reshape has been a view."""
        for buffer in touched:
            if buffer in self._unsettled:
                raise UnsupportedTransformError.of(
                    function=self.graph.name,
                    reason=f"{by} touches `{buffer.name}` after {self._unsettled[buffer]} has "
                    "overwritten what is a view of it if it is made in a dataflow block, and a "
                    "copy elsewhere; make the view by R.memory.view, or touch it before",
                )

    def _memory_of(self, values: Iterable[relax.Expr]) -> set[Buffer]:
        return set().union(*map(self.memory, values))

    def _order(self, step: Step, touched: set[Buffer], overwritten: set[Buffer]) -> None:
        for buffer in touched | overwritten:
            touching = self._touching.setdefault(buffer, [])
            writer = self._last_writer.get(buffer)
            before = [] if writer is None else [writer]
            if buffer in overwritten:
                before += touching
                self._last_writer[buffer] = step
                touching.clear()
            else:
                touching.append(step)
            step.after.update((other, None) for other in before if other is not step)

    def _note(self, kernel: Kernel, touched: set[Buffer]) -> None:
        """Note what may turn out to be a view when something is overwritten."""
        var = kernel.binding.var
        made = frozenset(buffers_of(self.graph.layout(var)))
        if not made.isdisjoint(touched):  # one that TVM fuses, or makes a view
            made = self._memory[var] = frozenset([Buffer(var.name, 0)])
        for buffer in made | touched:
            self._copies.setdefault(buffer, []).append(kernel)

    def _copies_of(self, buffers: set[Buffer]) -> set[Buffer]:
        """The memory of what is a copy of these in one case, and a view in the other."""
        found = set(buffers)
        pending = list(buffers)
        while pending:
            buffer = pending.pop()
            views = []
            for kernel in self._copies.get(buffer, ()):
                operand = self.effects.view_if_lowered_so(kernel.binding.value)
                if operand is not None:
                    views.append(kernel)
                    both = self.memory(kernel.binding.var) | self.memory(operand)
                    pending += both - found
                    found |= both
            self._copies[buffer] = views
        return found - buffers


def one_line(expr: Any) -> str:
    """An expression for an error message."""
    text = " ".join(line.strip() for line in str(expr).splitlines() if not line.startswith("#"))
    return text if len(text) <= 80 else text[:77] + "..."
