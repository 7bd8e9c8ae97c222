"""What a call does to the memory of what it is given: one table, asked by every stage.

Definition
----------
The *operands* of an expression are the values that it is given, through tuples. Of these, one may

- be *overwritten*: its memory may hold other bits afterwards;
- be *aliased*: the result may be it, hold it, or lie in its memory;
- be *kept*: something may hold on to it that outlives the call and is not its result.

All the others are read, if the call does not merely look at what they are. The result may be memory
that the call *allocates*. A tuple has memory, too: its slots.

What the table does not know may do all of that to all that it is given. What TVM takes for pure
overwrites nothing, unless the table says so: ``call_tir_inplace`` is pure to TVM. An operator that
becomes kernels computes new memory.

A kernel that moves no element (``reshape``, or a ``permute_dims`` of an axis of length 1) is a case
of its own: in a dataflow block TVM makes its result a view of the operand, elsewhere a copy
(src/relax/transform/rewrite_dataflow_reshape.cc). See :meth:`EffectTable.view_if_lowered_so`.

What a function of the module does is read off its body, and what a kernel overwrites off its.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from tvm import ir, relax, tirx

from .byte_size import size_of
from .effect_rows import (
    LOOKS,
    Effects,
    is_call_to,
    is_kill,
    is_var,
    kernel_operands,
    leaves,
    of_packed,
    operands,
    rule_of,
    unknown,
)
from .kernel_writes import written_parameters
from .kernels import Kernels

__all__ = ["EffectTable", "Effects", "is_call_to", "is_kill", "operands"]


class EffectTable:
    """What the expressions of a module do.

    Parameters
    ----------
    mod : tvm.ir.IRModule
        Where the functions and kernels are that they call.
    """

    def __init__(self, mod: ir.IRModule):
        self.mod = mod
        self.kernels = Kernels(mod)
        self.local: dict[relax.Var, relax.Function] = {}  # the functions that variables stand for
        self._written: dict[tirx.PrimFunc, list[int]] = {}
        self._moves_nothing: dict[tirx.PrimFunc, bool] = {}
        self._summaries: dict[ir.GlobalVar, _Summary | None] = {}
        self._branches: dict[relax.If, Effects] = {}

    def of(self, expr: relax.Expr) -> Effects:
        """What an expression does.

        Parameters
        ----------
        expr : relax.Expr
            What a variable may be bound to.
        """
        kind = type(expr)
        if kind is ir.Call:
            callee = expr.op
            kind = type(callee)
            if kind is ir.Op:
                rule = rule_of(callee)
                return rule if isinstance(rule, Effects) else rule(expr, self._stored_inputs)
            if kind is ir.GlobalVar:
                return self._function(expr, callee)
            if kind is relax.ExternFunc:
                return of_packed(callee, expr.args[:], is_pure=False)
            function = self.local.pop(callee, None)  # while it is looked at: it may call itself
            if function is None:
                return unknown(operands(expr))
            effects = _Summary.of(function, self).at(function, expr.args[:])
            self.local[callee] = function
            return effects
        if kind is relax.If:
            known = self._branches.get(expr)
            if known is None:
                branches = [_Summary.of(b, self) for b in (expr.true_branch, expr.false_branch)]
                known = self._branches[expr] = _either(branches)
            return known
        if kind is ir.Constant:
            return LOOKS
        # A name, a field, a tuple, a local function, which does nothing before it is called.
        return Effects(aliases=operands(expr), allocates=False)

    def view_if_lowered_so(self, expr: relax.Expr) -> relax.Expr | None:
        """The operand that the result is a view of in a dataflow block, and a copy of elsewhere."""
        if type(expr) is not ir.Call or not self.of(expr).is_kernel:
            return None
        given = [operand for operand in operands(expr) if type(operand.ty) is relax.TensorType]
        if len(given) != 1 or type(expr.ty) is not relax.TensorType:
            return None
        (operand,), target = given, expr.ty
        if operand.ty.dtype != target.dtype:
            return None
        sizes = size_of(operand.ty), size_of(target)
        if all(type(size) is int for size in sizes) and sizes[0] != sizes[1]:
            return None
        if is_call_to(expr, "relax.call_tir"):
            kernel = self.mod[expr.args[0]]
        else:
            legalized = self.kernels.of(expr)
            if legalized is None:  # several kernels: not looked into
                return operand
            kernel = legalized.kernel
        return operand if self.moves_nothing(kernel) else None

    def shares(self, expr: relax.Expr) -> Sequence[relax.Expr]:
        """The operands that the result may share memory with, however it is lowered."""
        view = self.view_if_lowered_so(expr)
        return self.of(expr).aliases if view is None else [view]

    def moves_nothing(self, kernel: tirx.PrimFunc) -> bool:
        """Whether each element that a kernel writes is the one in the same place."""
        known = self._moves_nothing.get(kernel)
        if known is None:
            known = bool(relax.analysis.has_reshape_pattern(kernel))
            self._moves_nothing[kernel] = known
        return known

    # -- what is called -----------------------------------------------------------------------

    def _function(self, call: ir.Call, callee: ir.GlobalVar) -> Effects:
        function = self.mod[callee] if callee in self.mod.functions else None
        if type(function) is tirx.PrimFunc:  # lowered: it is given its results
            args = call.args[:]
            written = [args[index] for index in self._stores(function) if index < len(args)]
            return Effects(overwrites=written, allocates=False)
        if type(function) is not relax.Function:
            return unknown(operands(call))
        if callee not in self._summaries:
            self._summaries[callee] = None  # while it is looked at: of recursion nothing is known
            self._summaries[callee] = _Summary.of(function, self)
        summary = self._summaries[callee]
        return unknown(operands(call)) if summary is None else summary.at(function, call.args[:])

    def _stores(self, kernel: tirx.PrimFunc) -> list[int]:
        known = self._written.get(kernel)
        if known is None:
            known = self._written[kernel] = written_parameters(kernel)
        return known

    def _stored_inputs(self, call: ir.Call) -> list[relax.Expr]:
        """The operands of a call_tir, or of its like, that the kernel overwrites."""
        gvar = call.args[0]
        kernel = self.mod[gvar] if gvar in self.mod.functions else None
        given = kernel_operands(call)
        if type(kernel) is not tirx.PrimFunc:
            return given
        return [given[index] for index in self._stores(kernel) if index < len(given)]


# -- functions of the module ----------------------------------------------------------------------


@dataclasses.dataclass
class _Summary:
    """What a body does to the variables that are given to it: parameters, and what it captures."""

    overwrites: set[relax.Var]
    aliases: set[relax.Var]
    keeps: set[relax.Var]
    allocates: bool
    is_known: bool

    @staticmethod
    def of(body: relax.Expr, table: EffectTable) -> _Summary:
        """Read off a body: what its calls do, traced back to what it is given."""
        sequence = body.body if type(body) is relax.Function else body
        bound: dict[relax.Var, relax.Expr] = {}
        done: list[Effects] = []
        for block in sequence.blocks[:]:
            for binding in block.bindings[:]:
                var, value = binding.var, binding.value
                bound[var] = value
                if type(value) is relax.Function:
                    table.local[var] = value
                done.append(table.of(value))

        def given(exprs: Iterable[relax.Expr]) -> set[relax.Var]:
            found: dict[relax.Var, None] = {}
            pending = list(exprs)
            while pending:
                expr = pending.pop()
                for var in [expr] if is_var(expr) else relax.analysis.free_vars(expr)[:]:
                    if var not in found:
                        found[var] = None
                        pending += table.shares(bound[var]) if var in bound else ()
            return {var for var in found if var not in bound}

        result = sequence.body
        return _Summary(
            given(operand for effects in done for operand in effects.overwrites),
            given([result]),
            given(operand for effects in done for operand in effects.keeps),
            not (is_var(result) and result not in bound),
            all(effects.is_known for effects in done),
        )

    def at(self, function: relax.Function, args: Sequence[relax.Expr]) -> Effects:
        """What a call does."""
        arg_of = dict(zip(function.params[:], args, strict=True))

        def here(variables: set[relax.Var]) -> list[relax.Expr]:
            return [leaf for var in variables for leaf in leaves(arg_of.get(var, var))]

        return Effects(
            here(self.overwrites),
            here(self.aliases),
            here(self.keeps),
            self.allocates,
            is_known=self.is_known,
        )


def _either(branches: Sequence[_Summary]) -> Effects:
    return Effects(
        list(set().union(*(branch.overwrites for branch in branches))),
        list(set().union(*(branch.aliases for branch in branches))),
        list(set().union(*(branch.keeps for branch in branches))),
        is_known=all(branch.is_known for branch in branches),
    )
