"""The steps of a transform: what runs as one kernel after fusion."""

from __future__ import annotations

import dataclasses

from tvm import relax

from ..ir.byte_size import Size
from .weights import Buffer, Weight

__all__ = ["Kernel", "Load", "Step"]


@dataclasses.dataclass(eq=False)
class Kernel:
    """One binding of a step: what runs as one kernel where TVM does not fuse.

    Attributes
    ----------
    binding : relax.Binding
        Its variable and value, in names of the function.
    uses : set of Buffer
        What its operands lie in.
    allocates : list of Buffer
        What its result lies in.
    scratch : int or ByteSize
        Bytes that it holds while it runs, besides its operands and its result.
    over : dict of Buffer to (list of Buffer)
        Of what it allocates, what may lie in the memory of an operand that it reads last: of which.
    """

    binding: relax.Binding
    uses: set[Buffer]
    allocates: list[Buffer]
    scratch: Size = 0
    over: dict[Buffer, list[Buffer]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(eq=False)
class Step:
    """What runs as one kernel after fusion.

    Attributes
    ----------
    kernels : list of Kernel
        One, or several that TVM fuses.
    is_fused : bool
        Whether it stands in a dataflow block, for TVM to fuse.
    operands : dict of Step to None
        The steps whose results it reads, in order.
    after : dict of Step to None
        The steps that run before it: its operands, and those it may not overtake.
    reads : dict of Weight to None
        The weights that it reads, in order.
    overwrites : set of Buffer
        The memory that it may write to, of what was there before it.
    is_impure : bool
    runs_first : bool
        Whether types of later steps may depend on it.
    """

    kernels: list[Kernel]
    is_fused: bool = False
    operands: dict[Step, None] = dataclasses.field(default_factory=dict)
    after: dict[Step, None] = dataclasses.field(default_factory=dict)
    reads: dict[Weight, None] = dataclasses.field(default_factory=dict)
    overwrites: set[Buffer] = dataclasses.field(default_factory=set)
    is_impure: bool = False
    runs_first: bool = False

    @property
    def name(self) -> str:
        """The variable it computes last."""
        return str(self.kernels[-1].binding.var.name)

    def uses(self) -> set[Buffer]:
        """The buffers that it reads and has not allocated."""
        own = {buffer for kernel in self.kernels for buffer in kernel.allocates}
        return {buffer for kernel in self.kernels for buffer in kernel.uses} - own


@dataclasses.dataclass(eq=False)
class Load(Step):
    """The call that yields a weight of a streamed transform.

    Attributes
    ----------
    weight : Weight
    index : int
        What the call is given: the weight's position, counted through nested tuples.
    """

    weight: Weight = dataclasses.field(kw_only=True)
    index: int = dataclasses.field(kw_only=True)

    @staticmethod
    def of(weight: Weight, index: int, get_weight: relax.Var) -> Load:
        """The step that loads a weight."""
        call = relax.Call(get_weight, [relax.prim_value(index)], ret_ty=relax.AnyType())
        kernel = Kernel(relax.VarBinding(relax.Var(weight.name, call.ty), call), set(), [])
        kernel.allocates.append(weight.buffer)
        # A type may depend on a number; it has no bytes, so that nothing is lost.
        return Load([kernel], runs_first=weight.buffer.size == 0, weight=weight, index=index)

    @property
    def name(self) -> str:
        """Of a step that computes nothing."""
        return f"load {self.weight.name}"
