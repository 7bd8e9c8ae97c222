"""The blocks of bindings of a function that is being written.

``BlockBuilder`` infers the type of each binding that it emits; here one that is taken over keeps
its own.
"""

from __future__ import annotations

import dataclasses

from tvm import relax

__all__ = ["WrittenBlocks"]


@dataclasses.dataclass
class _Block:
    in_dataflow: bool
    bindings: list[relax.Binding] = dataclasses.field(default_factory=list)


class WrittenBlocks:
    """Bindings in order; those in a dataflow block that follow each other are in one."""

    def __init__(self) -> None:
        self.normalize = relax.BlockBuilder().normalize
        self._blocks: list[_Block] = []

    def append(self, binding: relax.Binding, in_dataflow: bool = False) -> None:
        """Add a binding."""
        self._block(in_dataflow).bindings.append(binding)

    def bind(self, name: str, value: relax.Expr, in_dataflow: bool = False) -> relax.Var:
        """Bind a new variable; in a dataflow block it may be seen in this block only."""
        value = self.normalize(value)
        var = (relax.DataflowVar if in_dataflow else relax.Var)(name, value.ty)
        self.append(relax.VarBinding(var, value), in_dataflow)
        return var

    def last(self) -> relax.Binding | None:
        """The last one, if it is in no dataflow block."""
        block = self._blocks[-1] if self._blocks else None
        return block.bindings[-1] if block and block.bindings and not block.in_dataflow else None

    def pop(self) -> None:
        """Take the last one back."""
        self._blocks[-1].bindings.pop()

    def finish(self, result: relax.Expr) -> relax.SeqExpr:
        """All of them, before what they compute."""
        blocks = [
            (relax.DataflowBlock if block.in_dataflow else relax.BindingBlock)(block.bindings)
            for block in self._blocks
        ]
        return relax.SeqExpr(blocks, result)

    def _block(self, in_dataflow: bool) -> _Block:
        if not self._blocks or self._blocks[-1].in_dataflow != in_dataflow:
            self._blocks.append(_Block(in_dataflow))
        return self._blocks[-1]
