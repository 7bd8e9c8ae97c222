"""A transform that is two, of which a condition chooses one.

Definition
----------
Where a function returns what an ``R.If`` returns, each branch is a transform by itself: what the
function does before it, as far as the branch needs it, and the branch. Each is planned and
rewritten by itself, so that the originals are freed inside the branch. What the condition needs
runs before, and is in no plan. An ``R.If`` anywhere else is a step like any other.

Of a streamed transform the condition may need inputs only: a weight would be asked for twice.
"""

from __future__ import annotations

import dataclasses

from tvm import ir, relax

from ..ir.effects import EffectTable
from .transform_graph import UnsupportedTransformError, number_of_inputs

__all__ = ["Branches", "find_branches"]


@dataclasses.dataclass
class Branches:
    """The parts of a function that ends with a branch.

    Attributes
    ----------
    function : relax.Function
        The whole.
    condition : relax.Expr
    before : list of relax.Binding
        What the condition needs.
    on_true, on_false : relax.Function
        The branches as functions of the same parameters, with variables of their own.
    """

    function: relax.Function
    condition: relax.Expr
    before: list[relax.Binding]
    on_true: relax.Function
    on_false: relax.Function

    def require_streamable(self, name: str) -> None:
        """Refuse a condition that reads a weight."""
        params = self.function.params[:]
        weights = params[number_of_inputs(self.function) :]
        read = [param.name for param in weights if param in self._used()]
        if read:
            raise UnsupportedTransformError.of(
                function=name,
                reason=f"lazy=True: the condition of its branch reads `{read[0]}`, so that a "
                "weight would be asked for twice; make what it needs an input",
            )

    def _used(self) -> set[relax.Var]:
        """What the condition, and what runs before it, is made from."""
        used = {var for b in self.before for var in relax.analysis.free_vars(b.value)[:]}
        used.update(relax.analysis.free_vars(self.condition)[:])
        return used

    def parameters(self, params: list[relax.Var]) -> list[relax.Binding]:
        """What ``before`` uses of the function's parameters, in terms of the leading ones and a
        tuple of the others.
        """
        *leading, weights = params
        used = self._used()
        bindings = []
        for position, param in enumerate(self.function.params[:]):
            if param not in used:
                continue
            if position < len(leading):
                value: relax.Expr = leading[position]
            elif isinstance(param.ty, relax.TupleType) and len(self.function.params) == len(params):
                value = weights
            else:
                value = relax.TupleGetItem(weights, position - len(leading))
            bindings.append(relax.VarBinding(param, value))
        return bindings


def find_branches(function: relax.Function, mod: ir.IRModule | None = None) -> Branches | None:
    """Take a function apart that ends with a branch.

    None for any other, for an impure one, and for one that may overwrite something before it: the
    condition may need what was there before, or after.

    Parameters
    ----------
    function : relax.Function
    mod : tvm.ir.IRModule, optional
        Where the functions and kernels that it calls are.
    """
    bindings = [binding for block in function.body.blocks[:] for binding in block.bindings[:]]
    value_of = {binding.var: binding for binding in bindings}
    result = function.body.body
    while (
        isinstance(result, relax.Var)
        and result in value_of
        and isinstance(value_of[result].value, relax.Var)
    ):
        result = value_of[result].value
    binding = value_of.get(result)
    if binding is None or not isinstance(binding.value, relax.If):
        return None
    branch = binding.value
    if not function.is_pure or not isinstance(branch.ty, relax.TupleType):
        return None  # what is impure before the branch would run twice
    effects = EffectTable(mod or ir.IRModule())
    for other in bindings:
        if type(other.value) is relax.Function:
            effects.local[other.var] = other.value
        elif other is not binding and effects.of(other.value).overwrites:
            return None
    condition = branch.cond
    return Branches(
        function,
        condition,
        _needed_for(condition, bindings),
        _as_function(function, branch.true_branch, branch),
        _as_function(function, branch.false_branch, branch),
    )


def _needed_for(expr: relax.Expr, bindings: list[relax.Binding]) -> list[relax.Binding]:
    wanted = set(relax.analysis.free_vars(expr)[:])
    needed = []
    for binding in reversed(bindings):
        if binding.var in wanted:
            needed.append(binding)
            wanted.update(relax.analysis.free_vars(binding.value)[:])
    return needed[::-1]


def _as_function(
    function: relax.Function, branch: relax.SeqExpr, whole: relax.If
) -> relax.Function:
    blocks: list[relax.BindingBlock] = []
    for block in function.body.blocks[:]:
        bindings = block.bindings[:]
        if any(binding.value.same_as(whole) for binding in bindings):
            position = [binding.value.same_as(whole) for binding in bindings].index(True)
            blocks.append(relax.BindingBlock(bindings[:position]))  # no branch in a dataflow block
            break
        blocks.append(block)
    body = relax.SeqExpr([*blocks, *branch.blocks[:]], branch.body)
    result = relax.Function(
        function.params, body, branch.ty, function.is_pure, function.attrs, function.span
    )
    return relax.utils.copy_with_new_vars(result)
