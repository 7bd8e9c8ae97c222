"""The function that a transform becomes, before it stands in a module: its body and attributes."""

from __future__ import annotations

import dataclasses

import tvm
from tvm import ir, relax

from ..ir.byte_size import largest
from ..ir.updates import OVERWRITES, PLANNED_FOR, STREAMED, UPDATES_NOTHING, bindings_of
from ..op import is_update
from .branches import Branches
from .param_map_entry import Entry

__all__ = ["InplaceFunction", "choose"]

_DROPPED_ATTRS = ("num_input", "relax.force_pure")


@dataclasses.dataclass
class InplaceFunction:
    """What becomes a function of a module.

    Attributes
    ----------
    original : relax.Function
        Whose attributes it gets.
    params : list of relax.Var
        The leading ones, ``get_weight`` if it is streamed, and the tuple that is updated.
    body : relax.SeqExpr
    kernels : dict of tvm.ir.GlobalVar to tvm.tirx.PrimFunc
        What it calls and the module does not have yet.
    entry : dict
        What the parameter map says of it.
    overwrites : list of int
        The weights in whose memory it computes, counted through nested tuples.
    is_streamed : bool
    planned_for : str or None
        The kind of target that it has to be compiled for to need no more than is planned.
    """

    original: relax.Function
    params: list[relax.Var]
    body: relax.SeqExpr
    kernels: dict[ir.GlobalVar, ir.BaseFunc]
    entry: Entry
    overwrites: list[int]
    is_streamed: bool = False
    planned_for: str | None = None

    def functions(self, name: str) -> dict[ir.GlobalVar, ir.BaseFunc]:
        """It by that name, and its kernels."""
        return {ir.GlobalVar(name): self.function(name), **self.kernels}

    def function(self, name: str) -> relax.Function:
        """The function, with that global symbol."""
        attrs = {
            key: value
            for key, value in (self.original.attrs.items() if self.original.attrs else ())
            if key not in _DROPPED_ATTRS
        }
        attrs["global_symbol"] = name
        if self.is_streamed:
            attrs[STREAMED] = True
        elif self.overwrites:
            attrs[OVERWRITES] = self.overwrites
        if self.planned_for is not None:
            attrs[PLANNED_FOR] = self.planned_for
        if not any(is_update(binding.value) for binding in bindings_of(self.body)):
            attrs[UPDATES_NOTHING] = True
        builder = relax.BlockBuilder()
        result = relax.Function(
            self.params,
            builder.normalize(self.body),
            is_pure=False,
            attrs=tvm.ir.make_node("ir.DictAttrs", **attrs),
            span=self.original.span,
        )
        return builder.normalize(result)


def choose(
    branches: Branches, on_true: InplaceFunction, on_false: InplaceFunction
) -> InplaceFunction:
    """The function that runs one of two, by a condition."""
    # The branches have parameters of their own; those of the first become those of both.
    params = on_true.params
    other = on_false.function("on_false")
    bodies = [on_true.body, other.bind_params(dict(zip(other.params, params, strict=True))).body]
    given = branches.parameters(params)
    builder = relax.BlockBuilder()
    choice = builder.normalize(relax.If(branches.condition, *map(builder.normalize, bodies)))
    result = relax.Var("result", choice.ty)
    before = [*given, *branches.before, relax.VarBinding(result, choice)]
    return InplaceFunction(
        on_true.original,
        params,
        relax.SeqExpr([relax.BindingBlock(before)], result),
        {**on_true.kernels, **on_false.kernels},
        # Which steps run is known when they do.
        {
            **on_true.entry,
            "peak": largest([on_true.entry["peak"], on_false.entry["peak"]]),
            "steps": [],
        },
        sorted({*on_true.overwrites, *on_false.overwrites}),
        on_true.is_streamed,
        on_true.planned_for or on_false.planned_for,
    )
