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
Abstract interpretation in binding order. A *reference* is an object with the update that had last
consumed it when the reference was made; it is stale when a later update has consumed the object
since. Where it is not known which of several objects a variable names (after ``R.If``, out of a
packed call), it has a reference to each, and an update consumes all: more is refused then than
need be, never less. A Relax function is analysed once, on objects that stand for its parameters;
a call replays what that found on the objects of the caller.

The form with a void type, which :mod:`~relax_inplace.lower.lower_update_chain` makes, leaves
the name valid but for the field that it replaces.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

from tvm import ir, relax

from ..errors import StructuredError
from ..op import is_statement, is_update

__all__ = ["OwnershipError", "check_ownership"]


class OwnershipError(StructuredError):
    """A tuple is used by a name that an update has consumed.

    Attributes
    ----------
    function : str
        The Relax function.
    variable : str
        What was used, such as ``params`` or ``params[2]``.
    used_by : str
        The later use.
    consumed_by : str
        The update that consumed it.
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
        Before lowering or after it.

    Raises
    ------
    OwnershipError
        Names the variable, the update that consumed it and the later use, with their places in
        the source where those are known.
    """
    functions = {
        gvar: function
        for gvar, function in mod.functions_items()
        if isinstance(function, relax.Function)
    }
    summaries = _Summaries(functions)
    for gvar in functions:
        summaries.of(gvar)


class _Object:
    """A tuple object. Its identity is all there is to it."""

    def __init__(self, fresh: bool = True):
        self.fresh = fresh  # made in this function, not reached from a parameter
        self.fields_at_entry: dict[int, _Object] = {}


@dataclasses.dataclass(frozen=True, eq=False)
class _Consumption:
    """An update, or a call that leads to one.

    Attributes
    ----------
    site : relax.Binding
        Where it stands. Text is made of it for an error only: printing IR is slow.
    has_result : bool
        Whether its variable is the name to use from there on.
    """

    site: relax.Binding
    has_result: bool

    @property
    def text(self) -> str:
        return _text(self.site)


@dataclasses.dataclass(frozen=True)
class _Reference:
    """What a value may name.

    Attributes
    ----------
    object : _Object
        The tuple.
    consumption : _Consumption or None
        What had last consumed it when the reference was made.
    is_updated_by_call : bool
        Whether the value is a closure, or holds one, that updates the tuple when it is called.
    """

    object: _Object
    consumption: _Consumption | None
    is_updated_by_call: bool = False


_References = frozenset  # of _Reference; empty for a tensor
_NOTHING: _References = frozenset()


class _State:
    """What has happened so far to the objects that the function can see."""

    def __init__(self) -> None:
        self.consumption: dict[_Object, _Consumption] = {}
        self.fields: dict[_Object, dict[int, _References]] = {}
        self.replaced: dict[_Object, dict[int, _Consumption]] = {}  # by statements

    def fork(self) -> _State:
        copy = _State()
        copy.consumption = dict(self.consumption)
        copy.fields = {key: dict(value) for key, value in self.fields.items()}
        copy.replaced = {key: dict(value) for key, value in self.replaced.items()}
        return copy

    def name(self, object: _Object) -> _Reference:
        """A reference that is valid now."""
        return _Reference(object, self.consumption.get(object))

    def is_stale(self, reference: _Reference) -> bool:
        return self.consumption.get(reference.object) is not reference.consumption

    def field(self, object: _Object, index: int) -> _References:
        known = self.fields.get(object, {}).get(index)
        if known is not None:
            return known
        nested = object.fields_at_entry.setdefault(index, _Object(object.fresh))
        return frozenset([_Reference(nested, None)])

    def known_fields(self, object: _Object) -> dict[int, _References]:
        known = {
            index: frozenset([_Reference(nested, None)])
            for index, nested in object.fields_at_entry.items()
        }
        known.update(self.fields.get(object, {}))
        return known

    def reachable(self, references: _References) -> set[_Object]:
        found: set[_Object] = set()
        pending = [reference.object for reference in references]
        while pending:
            object = pending.pop()
            if object not in found:
                found.add(object)
                for field in self.known_fields(object).values():
                    pending += [reference.object for reference in field]
        return found

    def join(self, branches: tuple[_State, _State], values: tuple[_References, _References]) -> Any:
        """Become what holds after either branch; the value of the branches, renamed to that."""
        left, right = branches
        entry = self.consumption
        joined = dict(entry)
        for object in {**left.consumption, **right.consumption}:
            mine = left.consumption.get(object)
            theirs = right.consumption.get(object)
            joined[object] = mine if mine is not entry.get(object) else theirs  # type: ignore

        def renamed(branch: _State, references: _References) -> _References:
            return frozenset(
                reference
                if branch.is_stale(reference)
                else dataclasses.replace(reference, consumption=joined.get(reference.object))
                for reference in references
            )

        fields: dict[_Object, dict[int, _References]] = {}
        for object in {**left.fields, **right.fields}:
            indices = {**left.fields.get(object, {}), **right.fields.get(object, {})}
            fields[object] = {
                index: renamed(left, left.field(object, index))
                | renamed(right, right.field(object, index))
                for index in indices
            }
        replaced = {key: dict(value) for key, value in left.replaced.items()}
        for object, by_index in right.replaced.items():
            replaced.setdefault(object, {}).update(by_index)
        self.consumption, self.fields, self.replaced = joined, fields, replaced
        return renamed(left, values[0]) | renamed(right, values[1])


@dataclasses.dataclass
class _Summary:
    """What a call does: the objects that stand for parameters, the end, the value returned."""

    parameters: list[_References]
    state: _State
    result: _References

    def consumed(self) -> dict[_Object, _Consumption]:
        """The caller's objects that the call consumes."""
        consumed = {
            object: by for object, fields in self.state.replaced.items() for by in fields.values()
        }
        consumed.update(self.state.consumption)
        return {object: by for object, by in consumed.items() if not object.fresh}


class _Summaries:
    """Every function of a module, each analysed once, callees first."""

    def __init__(self, functions: dict[ir.GlobalVar, relax.Function]):
        self._functions = functions
        self._summaries: dict[ir.GlobalVar, _Summary | None] = {}

    def of(self, gvar: ir.GlobalVar) -> _Summary | None:
        """None for a function outside the module, and for one that is being analysed: recursion."""
        if gvar not in self._functions:
            return None
        if gvar not in self._summaries:
            self._summaries[gvar] = None
            function = self._functions[gvar]
            analysis = _FunctionAnalysis(gvar.name_hint, self, _State(), {})
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
        state: _State,
        names: dict[relax.Var, _References],
    ):
        self.name = name
        self.summaries = summaries
        self.state = state
        self.names = names
        self.site: Any = None  # the binding that is being interpreted

    def _fork(self) -> _FunctionAnalysis:
        return _FunctionAnalysis(self.name, self.summaries, self.state.fork(), dict(self.names))

    def run(self, function: relax.Function) -> _Summary:
        parameters = []
        for param in function.params:
            references = _NOTHING
            if _may_be_tuple(param.ty):
                references = frozenset([self.state.name(_Object(fresh=False))])
                self.names[param] = references
            parameters.append(references)
        result = self._sequence(function.body)
        return _Summary(parameters, self.state, result)

    def _sequence(self, expr: relax.Expr) -> _References:
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

    def _value(self, var: relax.Var, value: relax.Expr) -> _References:
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

    def _use(self, expr: Any) -> _References:
        """Use a value as a whole."""
        if isinstance(expr, relax.Var):
            references = self.names.get(expr, _NOTHING)
            for reference in references:
                self._require_current(reference, (expr,), set())
            return references
        if isinstance(expr, relax.Tuple):
            fields = [self._use(field) for field in expr.fields[:]]
            object = _Object()
            self.state.fields[object] = {i: field for i, field in enumerate(fields) if field}
            return frozenset([self.state.name(object)])
        if isinstance(expr, relax.TupleGetItem):
            return self._read(expr)
        return _NOTHING

    def _references(self, expr: Any) -> _References:
        """What a value may name, without using it."""
        if isinstance(expr, relax.Var):
            return self.names.get(expr, _NOTHING)
        return self._use(expr)

    def _require_current(self, reference: _Reference, path: tuple, seen: set[_Object]) -> None:
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

    def _require_name(self, reference: _Reference, path: tuple) -> None:
        if self.state.is_stale(reference):
            self._fail(path, self.state.consumption[reference.object])

    def _fail(self, path: tuple, consumption: _Consumption) -> None:
        advice = "Read the field before the update"
        if consumption.has_result:
            advice += f", or use `{consumption.site.var.name}`"
        used_by = "the returned value" if self.site is None else _text(self.site)
        raise OwnershipError.of(
            function=self.name,
            variable="".join([str(path[0]), *(f"[{index}]" for index in path[1:])]),
            used_by=used_by,
            consumed_by=consumption.text,
            advice=advice + ".",
        )

    def _read(self, value: relax.TupleGetItem) -> _References:
        source = value.tuple_value
        result: set[_Reference] = set()
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

    def _update(self, var: relax.Var, call: ir.Call) -> _References:
        source, index, value = call.args[:]
        stored = self._use(value)
        references = self._references(source)
        for reference in references:
            self._require_name(reference, (source,))
        inside = self.state.reachable(stored)
        statement = is_statement(var)
        consumption = _Consumption(self.site, not statement)
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
            old = _NOTHING if len(references) == 1 else self.state.field(object, position)
            fields[position] = stored | old
            if statement:
                self.state.replaced.setdefault(object, {})[position] = consumption
            else:
                self.state.replaced.pop(object, None)
                self.state.consumption[object] = consumption
        if statement:
            return _NOTHING
        return frozenset(self.state.name(reference.object) for reference in references)

    def _branch(self, var: relax.Var, value: relax.If) -> _References:
        self._use(value.cond)
        site = self.site
        states, results = [], []
        for branch in (value.true_branch, value.false_branch):
            inner = self._fork()
            results.append(inner._sequence(branch))
            states.append(inner.state)
        self.site = site
        return self.state.join((states[0], states[1]), (results[0], results[1]))

    def _closure(self, function: relax.Function) -> _References:
        """A local function: its value names every tuple that it captures."""
        captured: set[_Reference] = set()
        for free in relax.analysis.free_vars(function):
            captured |= self.names.get(free, _NOTHING)
        inner = self._fork()
        inner.run(function)
        return frozenset(
            dataclasses.replace(reference, is_updated_by_call=True)
            if inner.state.is_stale(reference)
            else reference
            for reference in captured
        )

    def _call(self, var: relax.Var, call: ir.Call) -> _References:
        callee = call.op
        if callee in _kills():
            return _NOTHING
        operands = call.args[:]
        arguments = [self._use(operand) for operand in operands]
        involved: _References = self._use(callee).union(*arguments)
        called = frozenset(reference for reference in involved if reference.is_updated_by_call)
        summary = self.summaries.of(callee) if isinstance(callee, ir.GlobalVar) else None
        if summary is not None:
            result = self._replay(var, summary, arguments)
            self._consume(self.state.reachable(called), var)
            return result
        # Neither known nor analysed: the result may be, or hold, any of the tuples passed.
        recursion = isinstance(callee, ir.GlobalVar) and self.summaries.is_relax_function(callee)
        self._consume(self.state.reachable(involved if recursion else called), var)
        if not _may_be_tuple(var.ty):
            return _NOTHING
        # R.make_closure of a function that updates, say.
        updates = any(self.summaries.consumes(operand) for operand in operands)
        results = {
            dataclasses.replace(self.state.name(reference.object), is_updated_by_call=updates)
            for reference in involved
        }
        return frozenset(results | {self.state.name(_Object())})

    def _consume(self, objects: Iterable[_Object], var: relax.Var) -> None:
        consumption = _Consumption(self.site, _may_be_tuple(var.ty))
        for object in objects:
            self.state.consumption[object] = consumption

    def _replay(
        self, var: relax.Var, summary: _Summary, arguments: list[_References]
    ) -> _References:
        """Do to the caller's objects what the callee does to those that stand for them."""
        callee = summary.state
        here: dict[_Object, frozenset[_Object]] = {}
        pending: list[tuple[_Object, frozenset[_Object]]] = []
        for parameter, argument in zip(summary.parameters, arguments, strict=True):
            objects = frozenset(reference.object for reference in argument)
            pending += [(reference.object, objects) for reference in parameter]
        while pending:
            theirs, ours = pending.pop()
            here[theirs] = ours
            for index, nested in theirs.fields_at_entry.items():
                fields = set().union(*(self.state.field(object, index) for object in ours))
                pending.append((nested, frozenset(reference.object for reference in fields)))

        def translated(references: _References) -> _References:
            result: set[_Reference] = set()
            for reference in references:
                stale = callee.is_stale(reference)
                for object in objects_here(reference.object):
                    current = self.state.consumption.get(object)
                    consumption = reference.consumption if stale else current
                    result.add(_Reference(object, consumption, reference.is_updated_by_call))
            return frozenset(result)

        def objects_here(object: _Object) -> frozenset[_Object]:
            if object not in here:
                here[object] = frozenset([_Object()])
            return here[object]

        consumed = summary.consumed()
        for object, by in consumed.items():
            for other, ours in here.items():
                if other is not object and ours & here[object]:
                    raise OwnershipError.of(
                        function=self.name,
                        variable=", ".join(str(argument) for argument in self.site.value.args),
                        used_by=f"{_text(self.site)}, which passes one tuple twice",
                        consumed_by=by.text,
                        advice="Pass it once.",
                    )
        self._consume((ours for object in consumed for ours in objects_here(object)), var)
        for object, by_index in callee.fields.items():
            objects = objects_here(object)
            for mine in objects:
                for index, references in by_index.items():
                    # As in an update: the old field is gone if it is known which object it is in.
                    old = _NOTHING if len(objects) == 1 else self.state.field(mine, index)
                    self.state.fields.setdefault(mine, {})[index] = translated(references) | old
        return translated(summary.result)


@functools.cache
def _kills() -> frozenset[ir.Op]:
    """The ops that end a name and use nothing."""
    names = ("relax.vm.kill_object", "relax.memory.kill_tensor", "relax.memory.kill_storage")
    return frozenset(ir.Op.get(name) for name in names)


def _may_be_tuple(ty: ir.Type) -> bool:
    if isinstance(ty, relax.TensorType):  # most are; a class of tvm-ffi is slow to say no
        return False
    if isinstance(ty, relax.TupleType):
        return len(ty.fields) > 0
    return isinstance(ty, (relax.AnyType, relax.FuncType))


def _text(binding: Any) -> str:
    """A binding for an error message: its code in one line, and its place in the source."""
    value = binding.value
    if is_update(value):
        source, index, new = value.args[:]
        code = f"R.inplace_update_tuple({source}, {int(index.value)}, {new})"
    else:
        code = " ".join(
            line.strip() for line in str(value).splitlines() if not line.startswith("#")
        )
        code = code if len(code) <= 80 else code[:77] + "..."
    if not is_statement(binding.var):
        code = f"{binding.var.name} = {code}"
    for located in (value, binding, binding.var):
        span = located.span
        if isinstance(span, ir.Span):
            return f"`{code}` ({span.source_name.name}:{span.line}:{span.column})"
    return f"`{code}`"
