"""InplaceTransformParams: a function that returns new weights becomes one that replaces the old.

Definition
----------
``f(params) -> (o0, ..., on)`` becomes ``g(params)``, which for each ``i`` in turn computes what
``oi`` still needs, then replaces field ``i``. Every field is read before it is replaced. So each
``oi`` is computed by the operations of ``f`` from the fields of ``f``, and what ``g`` leaves in the
tuple is bitwise what ``f`` returns:

- a field that ``f`` returns in its own place is not touched;
- a step that several outputs need runs for the first of them, once;
- a field that is needed after its replacement (two weights that swap places) is read just before
  it, and lives as long as the variable;
- a field that is not needed any more, but whose turn to be replaced is still to come, is emptied.

A step runs no earlier than the first output that needs it, so that a transform of one weight to
one holds one temporary at a time, whatever the order in which ``f`` computes. Steps that stood in
a dataflow block stand in one again: TVM fuses there. Updates stand between the blocks.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

import tvm
from tvm import ir, relax

from ..analysis.transform_graph import Step, TransformGraph, UnsupportedTransformError
from ..op import inplace_update_tuple

__all__ = ["InplaceTransformParams"]

_SUFFIX = "transform_params"
_PREFIX = "inplace_"


def InplaceTransformParams(  # noqa: N802  named as TVM names passes
    functions: str | Sequence[str] | None = None,
) -> tvm.transform.Pass:
    """Create the pass that makes weight transforms work in place.

    Each Relax function ``*transform_params(params) -> tuple`` becomes
    ``*inplace_transform_params(params)``, which replaces the fields of ``params`` one by one by
    what the function returned. The caller of the compiled function hands its tuple over. Other
    functions stay as they are.

    Parameters
    ----------
    functions : str or sequence of str, optional
        The functions to rewrite, by name. By default those whose name ends in
        ``transform_params``; one that is rewritten already stays as it is. Another name gets the
        prefix ``inplace_``.

    Returns
    -------
    tvm.transform.Pass
        Raises :class:`~relax_inplace.analysis.UnsupportedTransformError`, and then has changed
        nothing, for a function that is impure or overwrites an operand, takes no tuple and no
        tensors, returns no tuple or one of another length, uses the tuple of weights as a whole,
        or is called by another function of the module.

    Notes
    -----
    The weights are the parameters after the first ``num_input`` (an attribute of the function, as
    ``LiftTransformParams`` leaves it): one tuple, or tensors, which are bundled into one. The
    result has neither that attribute, since every field is to be checked before the first one is
    replaced, nor ``relax.force_pure``, since it is impure. It is public, also where the function
    was private: no function of the module calls it, so ``DeadCodeElimination`` would remove it,
    and ``FuseTIR`` would give it a parameter for each field, whose memory nobody could free.
    """
    names = [functions] if isinstance(functions, str) else functions

    @tvm.transform.module_pass(opt_level=0, name="InplaceTransformParams")
    def run(mod: ir.IRModule, _context: tvm.transform.PassContext) -> ir.IRModule:
        return _rewrite_module(mod, names)

    return run


def _rewrite_module(mod: ir.IRModule, names: Sequence[str] | None) -> ir.IRModule:
    rewritten: dict[ir.GlobalVar, tuple[str, relax.Function]] = {}
    taken = {gvar.name_hint for gvar in mod.get_global_vars()}
    for gvar in _selected(mod, names):
        name = gvar.name_hint
        new_name = _inplace_name(name)
        if new_name in taken:
            raise UnsupportedTransformError.of(
                function=name, reason=f"the module has a `{new_name}` already"
            )
        taken.add(new_name)
        rewritten[gvar] = (new_name, _rewrite_function(name, mod[gvar], new_name))
    if not rewritten:
        return mod
    _require_uncalled(mod, set(rewritten))
    kept = {gvar: function for gvar, function in mod.functions_items() if gvar not in rewritten}
    for new_name, function in rewritten.values():
        kept[ir.GlobalVar(new_name)] = function
    return ir.IRModule(kept, attrs=mod.attrs, global_infos=mod.global_infos)


def _selected(mod: ir.IRModule, names: Sequence[str] | None) -> list[ir.GlobalVar]:
    relax_functions = {
        gvar.name_hint: gvar
        for gvar, function in mod.functions_items()
        if isinstance(function, relax.Function)
    }
    if names is None:
        names = sorted(
            name
            for name in relax_functions
            if name.endswith(_SUFFIX) and not name.endswith(_PREFIX + _SUFFIX)
        )
    for name in names:
        if name not in relax_functions:
            raise ValueError(
                f"InplaceTransformParams: functions={list(names)}, but the module has no Relax "
                f"function `{name}`; it has {sorted(relax_functions)}"
            )
    return [relax_functions[name] for name in dict.fromkeys(names)]


def _inplace_name(name: str) -> str:
    if name.endswith(_SUFFIX):
        return name[: -len(_SUFFIX)] + _PREFIX + _SUFFIX
    return _PREFIX + name


def _require_uncalled(mod: ir.IRModule, rewritten: set[ir.GlobalVar]) -> None:
    for gvar, function in mod.functions_items():
        if isinstance(function, relax.Function):
            for called in relax.analysis.all_global_vars(function):
                if called in rewritten:
                    raise UnsupportedTransformError.of(
                        function=called.name_hint,
                        reason=f"`{gvar.name_hint}` calls it, and expects new weights from it",
                    )


def _rewrite_function(name: str, function: relax.Function, new_name: str) -> relax.Function:
    graph = TransformGraph.build(name, function)
    outputs, fields = len(graph.outputs), len(graph.weights.ty.fields)
    if outputs != fields:
        raise UnsupportedTransformError.of(
            function=name,
            reason=f"it returns {outputs} fields for {fields} weights; expected as many",
        )
    body = _Emitter(graph, _schedule(graph)).emit()
    attrs = {
        key: value
        for key, value in (function.attrs.items() if function.attrs else ())
        if key not in ("num_input", "relax.force_pure")
    }
    attrs["global_symbol"] = new_name
    builder = relax.BlockBuilder()
    result = relax.Function(
        [*graph.leading, graph.weights],
        builder.normalize(body),
        is_pure=False,
        attrs=tvm.ir.make_node("ir.DictAttrs", **attrs),
        span=function.span,
    )
    return builder.normalize(result)


def _schedule(graph: TransformGraph) -> list[list[Step]]:
    """For each output the steps that run for it, in the order of the function.

    The first list is of what runs before any: checks, and what later types depend on.
    """
    position = {step: index for index, step in enumerate(graph.steps)}
    done: set[Step] = set()

    def not_yet_done(roots: Sequence[Step]) -> list[Step]:
        found: list[Step] = []
        pending = list(roots)
        while pending:
            step = pending.pop()
            if step not in done:
                done.add(step)
                found.append(step)
                pending += step.operands
        return sorted(found, key=position.__getitem__)

    schedule = [not_yet_done([step for step in graph.steps if step.runs_first])]
    return schedule + [not_yet_done(steps) for steps, _ in graph.output_needs]


@dataclasses.dataclass
class _Run:
    """Consecutive bindings of one kind: a block of the function that is being made."""

    in_dataflow: bool
    bindings: list[relax.Binding]
    weights: dict[int, relax.Var]  # read here
    bound: set[relax.Var]  # old names that are bound again, here only


class _Emitter:
    """Writes the function that the schedule describes."""

    def __init__(self, graph: TransformGraph, schedule: list[list[Step]]):
        self.graph = graph
        self.schedule = schedule
        self.builder = relax.BlockBuilder()
        self.current = graph.weights  # the name of the tuple
        self.runs: list[_Run] = []
        self.saved: dict[int, relax.Var] = {}  # weights that were read before they were replaced
        self.renamed: dict[relax.Var, relax.Var] = {}
        self.bound: set[relax.Var] = set()  # old names that are bound again, for branches
        self.escaping = self._escaping()
        self.last_turn = self._last_turn_of_weights()
        self.spent = self._spent_before_replaced()

    def _escaping(self) -> set[relax.Var]:
        """Variables of dataflow blocks that another block of the new function will read."""
        block_of: dict[Step, tuple[int, int]] = {}
        for turn, steps in enumerate(self.schedule):
            run = 0
            for before, step in zip([None, *steps], steps):  # noqa: B905  one shorter
                run += before is not None and before.in_dataflow != step.in_dataflow
                block_of[step] = (turn, run)
        escaping = {
            operand.binding.var
            for step, block in block_of.items()
            for operand in step.operands
            if block_of[operand] != block
        }
        for steps, _ in self.graph.output_needs:
            escaping |= {step.binding.var for step in steps}
        return escaping

    def _last_turn_of_weights(self) -> dict[int, int]:
        """For each weight the turn (1 + the output's index) that reads it last."""
        last: dict[int, int] = {}
        for turn, steps in enumerate(self.schedule):
            for step in steps:
                last.update(dict.fromkeys(step.reads, turn))
            if turn > 0:
                last.update(dict.fromkeys(self.graph.output_needs[turn - 1][1], turn))
                own = self.graph.weight_of(self.graph.outputs[turn - 1])
                if own is not None:
                    last[own] = turn
        return last

    def _spent_before_replaced(self) -> dict[int, list[int]]:
        """For each turn the weights that nothing reads after it, but that are replaced later.

        Not those that an output is: they stay.
        """
        kept = {weight for _, weights in self.graph.output_needs for weight in weights}
        for output in self.graph.outputs:
            own = self.graph.weight_of(output)
            if own is not None:
                kept.add(own)
        spent: dict[int, list[int]] = collections.defaultdict(list)
        for weight, turn in self.last_turn.items():
            if turn <= weight and weight not in kept:
                spent[turn].append(weight)
        return spent

    def emit(self) -> relax.SeqExpr:
        for turn, steps in enumerate(self.schedule):
            for step in steps:
                self._step(step)
            if turn > 0:
                self._output(turn - 1)
            for weight in self.spent[turn]:
                self._empty(weight)
        blocks = [
            (relax.DataflowBlock if run.in_dataflow else relax.BindingBlock)(run.bindings)
            for run in self.runs
        ]
        return relax.SeqExpr(blocks, self.current)

    def _run(self, in_dataflow: bool) -> _Run:
        if not self.runs or self.runs[-1].in_dataflow != in_dataflow:
            self.runs.append(_Run(in_dataflow, [], {}, set()))
        return self.runs[-1]

    def _bind(self, var: relax.Var, value: relax.Expr, in_dataflow: bool) -> None:
        binding = relax.VarBinding(var, self.builder.normalize(value))
        self._run(in_dataflow).bindings.append(binding)

    def _step(self, step: Step) -> None:
        binding, old = step.binding, step.binding.var
        value = self._substituted(binding.value, step.in_dataflow)
        var = old
        if isinstance(old, relax.DataflowVar) and old in self.escaping:
            var = self.renamed[old] = relax.Var(old.name, old.ty, old.span)
        if isinstance(binding, relax.MatchCast):
            new = relax.MatchCast(var, self.builder.normalize(value), binding.ty)
            self._run(step.in_dataflow).bindings.append(new)
        else:
            self._bind(var, value, step.in_dataflow)

    def _output(self, index: int) -> None:
        output = self.graph.resolve(self.graph.outputs[index])
        if self.graph.weight_of(output) == index:
            return
        value = self._substituted(output, in_dataflow=False)
        if not _is_leaf(value):
            var = relax.Var("gv", self.builder.normalize(value).ty)
            self._bind(var, value, in_dataflow=False)
            value = var
        if self.last_turn.get(index, 0) > index + 1:
            self.saved[index] = self._read(index, in_dataflow=False)
        self._replace(index, value)

    def _empty(self, weight: int) -> None:
        nothing = relax.Var("gv", relax.AnyType())
        self._bind(nothing, relax.op.null_value(), in_dataflow=False)
        self._replace(weight, nothing)

    def _replace(self, field: int, value: relax.Expr) -> None:
        call = self.builder.normalize(inplace_update_tuple(self.current, field, value))
        replaced = relax.Var(f"p{field}", call.ty)
        self._bind(replaced, call, in_dataflow=False)
        self.current = replaced

    def _read(self, weight: int, in_dataflow: bool) -> relax.Var:
        """A variable that holds a weight as it came, in the block that is being written."""
        if weight in self.saved:
            return self.saved[weight]
        run = self._run(in_dataflow)
        if weight not in run.weights:
            value = self.builder.normalize(relax.TupleGetItem(self.current, weight))
            kind = relax.DataflowVar if in_dataflow else relax.Var
            run.weights[weight] = kind(f"{self.graph.weights.name}_{weight}", value.ty)
            self._bind(run.weights[weight], value, in_dataflow)
        return run.weights[weight]

    def _substituted(self, expr: relax.Expr, in_dataflow: bool) -> relax.Expr:
        """An expression of the old function in the terms of the new one."""
        weight = self.graph.weight_of(expr)
        if weight is not None:
            return self._read(weight, in_dataflow)
        expr = self.graph.resolve(expr)
        if isinstance(expr, relax.Var):
            return self.renamed.get(expr, expr)
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([self._substituted(field, in_dataflow) for field in expr.fields])
        if isinstance(expr, relax.TupleGetItem):
            source = self._substituted(expr.tuple_value, in_dataflow)
            return relax.TupleGetItem(source, expr.index, expr.span)
        if isinstance(expr, ir.Call):
            args = [self._substituted(arg, in_dataflow) for arg in expr.args]
            op = self._substituted(expr.op, in_dataflow)
            if op is expr.op and all(new is old for new, old in zip(args, expr.args, strict=True)):
                return expr
            return relax.Call(op, args, expr.attrs, expr.ty_args, expr.span)
        if isinstance(expr, (relax.If, relax.Function)):
            # Bind what changed its name to the old one, instead of looking for it inside: once, or
            # once in each block for a variable that ends with it.
            for var in relax.analysis.free_vars(expr)[:]:
                is_local = isinstance(var, relax.DataflowVar)
                bound = self._run(in_dataflow).bound if is_local else self.bound
                if var in bound:
                    continue
                new = self._substituted(var, in_dataflow)
                if not new.same_as(var):
                    self._bind(var, new, in_dataflow)
                    bound.add(var)
        return expr


def _is_leaf(expr: relax.Expr) -> bool:
    return not isinstance(expr, (ir.Call, relax.TupleGetItem, relax.If, relax.Function))
