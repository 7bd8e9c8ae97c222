"""Who owns a tuple: an update consumes the name it is given.

Definition
----------
A variable of tuple type names a tuple *object*. Several variables may name one object: by
``q = params``, by ``R.match_cast``, by reading a nested tuple twice, through a closure or a call.
``R.inplace_update_tuple(t, i, v)`` consumes the object that ``t`` names: from there on, every name
that it had is *stale* and only the result names it. A program is in order if

1. no stale name is used: read, updated, passed, stored or returned;
2. no tuple is used as a whole while one of its fields is a nested tuple that was consumed and not
   put back: the type that the outer name promises for that field is no longer true;
3. no tuple is stored into itself.

Replacing a field ends the wait of 2 for that field. Variables that fields were read into before
the update are not names of the tuple and stay valid.

A stale name would not crash. It reads the new field under the old type: wrong numbers where the
shapes agree. So each violation is a compile-time error.

Analysis
--------
Abstract interpretation in binding order (:mod:`.tuple_state`). Where it is not known which of
several objects a variable names (after ``R.If``, out of a packed call), it has a reference to each,
and an update consumes all: more is refused then than need be, never less. A Relax function is
analysed once, on objects that stand for its parameters; a call replays what that found on the
objects of the caller.

The form with a void type leaves the name valid but for the field that it replaces.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from tvm import ir, relax

from ..errors import StructuredError
from ..ir.effects import EffectTable, is_kill
from ..ir.tuple_tree import subscripted
from ..op import is_statement, is_update
from .tuple_state import (
    NOTHING,
    Consumption,
    Reference,
    References,
    State,
    Summary,
    TupleObject,
    text_of,
)

__all__ = ["OwnershipError", "check_ownership"]


class OwnershipError(StructuredError):
    """A tuple is used by a name that an update has consumed.

    Attributes
    ----------
    function : str
        The name of the Relax function.
    variable : str
        The consumed name, such as ``params`` or ``params[2]``.
    used_by : str
        The later use.
    consumed_by : str
        The update that consumed the name.
    advice : str
        What to do.
    """

    template = (
        "in function `{function}`: `{variable}` is used by {used_by}, after {consumed_by} consumed "
        "it. {advice}"
    )


def check_ownership(mod: ir.IRModule) -> None:
    """Check that no tuple is used by a name that an update has consumed.

    Parameters
    ----------
    mod : tvm.ir.IRModule
        A module, before or after lowering.

    Raises
    ------
    OwnershipError
        A consumed name is used. The error names the variable, the update and the later use, with
        their places in the source if they are known.
    """
    functions = {
        gvar: function
        for gvar, function in mod.functions_items()
        if isinstance(function, relax.Function)
    }
    summaries = _Summaries(functions, EffectTable(mod))
    for gvar in functions:
        summaries.of(gvar)


class _Summaries:
    """Every function of a module, each analysed once, callees first."""

    def __init__(self, functions: dict[ir.GlobalVar, relax.Function], effects: EffectTable):
        self.effects = effects
        self._functions = functions
        self._summaries: dict[ir.GlobalVar, Summary | None] = {}

    def of(self, gvar: ir.GlobalVar) -> Summary | None:
        """None for a function outside the module, and for one that is being analysed: recursion."""
        if gvar not in self._functions:
            return None
        if gvar not in self._summaries:
            self._summaries[gvar] = None
            function = self._functions[gvar]
            analysis = _FunctionAnalysis(gvar.name_hint, self, State(), {})
            self._summaries[gvar] = analysis.run(function)
        return self._summaries[gvar]

    def is_relax_function(self, gvar: ir.GlobalVar) -> bool:
        return gvar in self._functions

    def consumes(self, gvar: Any) -> bool:
        if not isinstance(gvar, ir.GlobalVar):
            return False
        summary = self.of(gvar)
        if summary is None:
            return self.is_relax_function(gvar)  # recursion: assume the worst
        return bool(summary.consumed())


class _FunctionAnalysis:
    """One function, or one local function of it, interpreted in binding order."""

    def __init__(
        self,
        name: str,
        summaries: _Summaries,
        state: State,
        names: dict[relax.Var, References],
    ):
        self.name = name
        self.summaries = summaries
        self.state = state
        self.names = names
        self.site: Any = None  # the binding that is being interpreted

    def _fork(self) -> _FunctionAnalysis:
        return _FunctionAnalysis(self.name, self.summaries, self.state.fork(), dict(self.names))

    def run(self, function: relax.Function) -> Summary:
        parameters = []
        for param in function.params:
            references = NOTHING
            if _may_be_tuple(param.ty):
                references = frozenset([self.state.name(TupleObject(fresh=False))])
                self.names[param] = references
            parameters.append(references)
        result = self._sequence(function.body)
        return Summary(parameters, self.state, result)

    def _sequence(self, expr: relax.Expr) -> References:
        if not isinstance(expr, relax.SeqExpr):
            return self._use(expr)
        for block in expr.blocks[:]:
            for binding in block.bindings[:]:
                self.site = binding
                references = self._value(binding.var, binding.value)
                if references:
                    self.names[binding.var] = references
        self.site = None
        return self._use(expr.body)

    def _value(self, var: relax.Var, value: relax.Expr) -> References:
        """What a binding's variable may name afterwards."""
        if is_update(value):
            return self._update(var, value)
        if isinstance(value, ir.Call):
            return self._call(var, value)
        if isinstance(value, relax.TupleGetItem):
            return self._read(value)
        if isinstance(value, relax.If):
            return self._branch(var, value)
        if isinstance(value, relax.Function):
            return self._closure(value)
        if isinstance(value, relax.SeqExpr):
            return self._sequence(value)
        return self._use(value)

    # -- uses -------------------------------------------------------------------------------

    def _use(self, expr: Any) -> References:
        """Use a value as a whole."""
        if isinstance(expr, relax.Var):
            references = self.names.get(expr, NOTHING)
            for reference in references:
                self._require_current(reference, (expr,), set())
            return references
        if isinstance(expr, relax.Tuple):
            fields = [self._use(field) for field in expr.fields[:]]
            object = TupleObject()
            self.state.fields[object] = {i: field for i, field in enumerate(fields) if field}
            return frozenset([self.state.name(object)])
        if isinstance(expr, relax.TupleGetItem):
            return self._read(expr)
        return NOTHING

    def _references(self, expr: Any) -> References:
        """What a value may name, without using it."""
        if isinstance(expr, relax.Var):
            return self.names.get(expr, NOTHING)
        return self._use(expr)

    def _require_current(self, reference: Reference, path: tuple, seen: set[TupleObject]) -> None:
        self._require_name(reference, path)
        object = reference.object
        if object in seen:
            return
        seen.add(object)
        for index, by in self.state.replaced.get(object, {}).items():
            self._fail((*path, index), by)
        for index, field in self.state.known_fields(object).items():
            for nested in field:
                self._require_current(nested, (*path, index), seen)

    def _require_name(self, reference: Reference, path: tuple) -> None:
        if self.state.is_stale(reference):
            self._fail(path, self.state.consumption[reference.object])

    def _fail(self, path: tuple, consumption: Consumption) -> None:
        advice = "Read the field before the update"
        if consumption.has_result:
            advice += f", or use `{consumption.site.var.name}`"
        used_by = "the returned value" if self.site is None else text_of(self.site)
        raise OwnershipError.of(
            function=self.name,
            variable=subscripted(str(path[0]), path[1:]),
            used_by=used_by,
            consumed_by=consumption.text,
            advice=advice + ".",
        )

    def _read(self, value: relax.TupleGetItem) -> References:
        source = value.tuple_value
        result: set[Reference] = set()
        for reference in self._references(source):
            self._require_name(reference, (source,))
            path = (source, value.index)
            by = self.state.replaced.get(reference.object, {}).get(value.index)
            if by is not None:
                self._fail(path, by)
            if _may_be_tuple(value.ty):
                field = self.state.field(reference.object, value.index)
                for nested in field:
                    self._require_name(nested, path)
                result |= field
        return frozenset(result)

    # -- what changes a tuple ---------------------------------------------------------------

    def _update(self, var: relax.Var, call: ir.Call) -> References:
        source, index, value = call.args[:]
        stored = self._use(value)
        references = self._references(source)
        for reference in references:
            self._require_name(reference, (source,))
        inside = self.state.reachable(stored)
        statement = is_statement(var)
        consumption = Consumption(self.site, not statement)
        for reference in references:
            object = reference.object
            if object in inside:
                raise OwnershipError.of(
                    function=self.name,
                    variable=str(value),
                    used_by="the same update, as the value it stores",
                    consumed_by=consumption.text,
                    advice="A tuple cannot be a field of itself.",
                )
            fields = self.state.fields.setdefault(object, {})
            position = int(index.value)
            # Which object it is must be known to say that the old field is gone.
            old = NOTHING if len(references) == 1 else self.state.field(object, position)
            fields[position] = stored | old
            if statement:
                self.state.replaced.setdefault(object, {})[position] = consumption
            else:
                self.state.replaced.pop(object, None)
                self.state.consumption[object] = consumption
        if statement:
            return NOTHING
        return frozenset(self.state.name(reference.object) for reference in references)

    def _branch(self, var: relax.Var, value: relax.If) -> References:
        self._use(value.cond)
        site = self.site
        states, results = [], []
        for branch in (value.true_branch, value.false_branch):
            inner = self._fork()
            results.append(inner._sequence(branch))
            states.append(inner.state)
        self.site = site
        return self.state.join((states[0], states[1]), (results[0], results[1]))

    def _closure(self, function: relax.Function) -> References:
        """A local function: its value names every tuple that it captures."""
        captured: set[Reference] = set()
        for free in relax.analysis.free_vars(function):
            captured |= self.names.get(free, NOTHING)
        inner = self._fork()
        inner.run(function)
        return frozenset(
            dataclasses.replace(reference, is_updated_by_call=True)
            if inner.state.is_stale(reference)
            else reference
            for reference in captured
        )

    def _call(self, var: relax.Var, call: ir.Call) -> References:
        callee = call.op
        if is_kill(call):
            return NOTHING
        operands = call.args[:]
        arguments = [self._use(operand) for operand in operands]
        involved: References = self._use(callee).union(*arguments)
        called = frozenset(reference for reference in involved if reference.is_updated_by_call)
        summary = self.summaries.of(callee) if isinstance(callee, ir.GlobalVar) else None
        if summary is not None:
            result = self._replay(var, summary, arguments)
            self._consume(self.state.reachable(called), var)
            return result
        # Not analysed: the result may be, or hold, any of the tuples passed.
        recursion = isinstance(callee, ir.GlobalVar) and self.summaries.is_relax_function(callee)
        self._consume(self.state.reachable(involved if recursion else called), var)
        if not _may_be_tuple(var.ty):
            return NOTHING
        if not recursion and not self.summaries.effects.of(call).aliases:
            involved = NOTHING
        # R.make_closure of a function that updates, say.
        updates = any(self.summaries.consumes(operand) for operand in operands)
        results = {
            dataclasses.replace(self.state.name(reference.object), is_updated_by_call=updates)
            for reference in involved
        }
        return frozenset(results | {self.state.name(TupleObject())})

    def _consume(self, objects: Iterable[TupleObject], var: relax.Var) -> None:
        consumption = Consumption(self.site, _may_be_tuple(var.ty))
        for object in objects:
            self.state.consumption[object] = consumption

    def _replay(self, var: relax.Var, summary: Summary, arguments: list[References]) -> References:
        """Do to the caller's objects what the callee does to those that stand for them."""
        callee = summary.state
        here: dict[TupleObject, frozenset[TupleObject]] = {}
        pending: list[tuple[TupleObject, frozenset[TupleObject]]] = []
        for parameter, argument in zip(summary.parameters, arguments, strict=True):
            objects = frozenset(reference.object for reference in argument)
            pending += [(reference.object, objects) for reference in parameter]
        while pending:
            theirs, ours = pending.pop()
            here[theirs] = ours
            for index, nested in theirs.fields_at_entry.items():
                fields = set().union(*(self.state.field(object, index) for object in ours))
                pending.append((nested, frozenset(reference.object for reference in fields)))

        def translated(references: References) -> References:
            result: set[Reference] = set()
            for reference in references:
                stale = callee.is_stale(reference)
                for object in objects_here(reference.object):
                    current = self.state.consumption.get(object)
                    consumption = reference.consumption if stale else current
                    result.add(Reference(object, consumption, reference.is_updated_by_call))
            return frozenset(result)

        def objects_here(object: TupleObject) -> frozenset[TupleObject]:
            if object not in here:
                here[object] = frozenset([TupleObject()])
            return here[object]

        consumed = summary.consumed()
        for object, by in consumed.items():
            for other, ours in here.items():
                if other is not object and ours & here[object]:
                    raise OwnershipError.of(
                        function=self.name,
                        variable=", ".join(str(argument) for argument in self.site.value.args),
                        used_by=f"{text_of(self.site)}, which passes one tuple twice",
                        consumed_by=by.text,
                        advice="Pass it once.",
                    )
        self._consume((ours for object in consumed for ours in objects_here(object)), var)
        for object, by_index in callee.fields.items():
            objects = objects_here(object)
            for mine in objects:
                for index, references in by_index.items():
                    # As in an update: the old field is gone if it is known which object it is in.
                    old = NOTHING if len(objects) == 1 else self.state.field(mine, index)
                    self.state.fields.setdefault(mine, {})[index] = translated(references) | old
        return translated(summary.result)


def _may_be_tuple(ty: ir.Type) -> bool:
    if isinstance(ty, relax.TensorType):  # most are; a class of tvm-ffi is slow to say no
        return False
    if isinstance(ty, relax.TupleType):
        return len(ty.fields) > 0
    return isinstance(ty, (relax.AnyType, relax.FuncType))
