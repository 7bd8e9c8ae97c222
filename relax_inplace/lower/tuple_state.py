"""The tuples that a function can see, and what has happened to them so far.

Definition
----------
A *reference* is a tuple object with the update that had last consumed it when the reference was
made; it is stale when a later update has consumed the object since. The fields of an object are
references, too. Where it is not known which of several objects a value is, it has a reference to
each.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeAlias

from tvm import ir, relax

from ..op import is_statement, is_update

__all__ = [
    "NOTHING",
    "Consumption",
    "Reference",
    "References",
    "State",
    "Summary",
    "TupleObject",
    "text_of",
]


class TupleObject:
    """A tuple object. Its identity is all there is to it."""

    def __init__(self, fresh: bool = True):
        self.fresh = fresh  # made in this function, not reached from a parameter
        self.fields_at_entry: dict[int, TupleObject] = {}


@dataclasses.dataclass(frozen=True, eq=False)
class Consumption:
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
        """It, with its place in the source."""
        return text_of(self.site)


@dataclasses.dataclass(frozen=True)
class Reference:
    """What a value may name.

    Attributes
    ----------
    object : TupleObject
        The tuple.
    consumption : Consumption or None
        What had last consumed it when the reference was made.
    is_updated_by_call : bool
        Whether the value is a closure, or holds one, that updates the tuple when it is called.
    """

    object: TupleObject
    consumption: Consumption | None
    is_updated_by_call: bool = False


References: TypeAlias = "frozenset[Reference]"  # empty for a tensor
NOTHING: References = frozenset()


class State:
    """What has happened so far to the objects that the function can see."""

    def __init__(self) -> None:
        self.consumption: dict[TupleObject, Consumption] = {}
        self.fields: dict[TupleObject, dict[int, References]] = {}
        self.replaced: dict[TupleObject, dict[int, Consumption]] = {}  # by statements

    def fork(self) -> State:
        """A state of its own, the same so far."""
        copy = State()
        copy.consumption = dict(self.consumption)
        copy.fields = {key: dict(value) for key, value in self.fields.items()}
        copy.replaced = {key: dict(value) for key, value in self.replaced.items()}
        return copy

    def name(self, object: TupleObject) -> Reference:
        """A reference that is valid now."""
        return Reference(object, self.consumption.get(object))

    def is_stale(self, reference: Reference) -> bool:
        """Whether the object has been consumed since the reference was made."""
        return self.consumption.get(reference.object) is not reference.consumption

    def field(self, object: TupleObject, index: int) -> References:
        """What a field may name; a tuple that stands for what was there at entry, if not known."""
        known = self.fields.get(object, {}).get(index)
        if known is not None:
            return known
        nested = object.fields_at_entry.setdefault(index, TupleObject(object.fresh))
        return frozenset([Reference(nested, None)])

    def known_fields(self, object: TupleObject) -> dict[int, References]:
        """The fields that have been read or written."""
        known = {
            index: frozenset([Reference(nested, None)])
            for index, nested in object.fields_at_entry.items()
        }
        known.update(self.fields.get(object, {}))
        return known

    def reachable(self, references: References) -> set[TupleObject]:
        """The objects, and those in their fields at any depth."""
        found: set[TupleObject] = set()
        pending = [reference.object for reference in references]
        while pending:
            object = pending.pop()
            if object not in found:
                found.add(object)
                for field in self.known_fields(object).values():
                    pending += [reference.object for reference in field]
        return found

    def join(self, branches: tuple[State, State], values: tuple[References, References]) -> Any:
        """Become what holds after either branch; the value of the branches, renamed to that."""
        left, right = branches
        entry = self.consumption
        joined = dict(entry)
        for object in {**left.consumption, **right.consumption}:
            mine = left.consumption.get(object)
            theirs = right.consumption.get(object)
            joined[object] = mine if mine is not entry.get(object) else theirs  # type: ignore

        def renamed(branch: State, references: References) -> References:
            return frozenset(
                reference
                if branch.is_stale(reference)
                else dataclasses.replace(reference, consumption=joined.get(reference.object))
                for reference in references
            )

        fields: dict[TupleObject, dict[int, References]] = {}
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
class Summary:
    """What a function does: the objects that stand for parameters, the end, the value returned."""

    parameters: list[References]
    state: State
    result: References

    def consumed(self) -> dict[TupleObject, Consumption]:
        """The caller's objects that the call consumes."""
        consumed = {
            object: by for object, fields in self.state.replaced.items() for by in fields.values()
        }
        consumed.update(self.state.consumption)
        return {object: by for object, by in consumed.items() if not object.fresh}


def text_of(binding: Any) -> str:
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
