"""Which computations are lifted: those that are asked for, and not to be left.

Definition
----------
A *rule* is a name or a predicate on a call. A name, which may be a pattern (``fnmatch``), is that
of a weight, an operator (``relax.permute_dims``, or without ``relax.``), a kernel or packed
function, or a layout (``tiles.pack``).

``skip`` *leaves* the computations that are of such an operator, kernel or layout, or are made from
such a weight, or of whose call the predicate is true; and all that is made from what it leaves.
What comes before may be lifted, and is then what the functions read.

``only`` *asks for* the computations that are of such an operator, kernel or layout, or are made
from such weights and no others, or of whose call the predicate is true. What leads to one is
computed with it; what is made from it is left, if that is not asked for. Without ``only`` those are
asked for that the model marks (``R.lift_param``); without marks, all.
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

from tvm import ir, relax

from ..ir.kernels import LAYOUT
from .weight_values import Computation, Value, ValueGraph, leaves

__all__ = ["Reason", "Rule", "Rules", "Selected", "Selection", "select"]

Rule: TypeAlias = str | Callable[[ir.Call], bool]
Rules: TypeAlias = Rule | Sequence[Rule] | None


@dataclasses.dataclass(frozen=True)
class Selection:
    """What a caller wants to be lifted.

    Attributes
    ----------
    only : tuple of Rule or None
        None asks for everything.
    skip : tuple of Rule
    """

    only: tuple[Rule, ...] | None = None
    skip: tuple[Rule, ...] = ()

    @classmethod
    def of(cls, only: Rules = None, skip: Rules = None) -> Selection:
        """From what a caller gives. Raises TypeError for what is no rule."""
        return cls(None if only is None else _rules("only", only), _rules("skip", skip))


def _rules(parameter: str, given: Rules) -> tuple[Rule, ...]:
    if given is None:
        return ()
    rules: tuple[Rule, ...]
    if isinstance(given, str):
        rules = (given,)
    elif isinstance(given, Sequence):
        rules = tuple(given)
    else:
        rules = (given,)
    for rule in rules:
        if not isinstance(rule, str) and not callable(rule):
            raise TypeError(
                f"{parameter}={given!r}: {rule!r} is no rule; expected the name of a weight, an "
                "operator, a kernel or a layout, a pattern of such names, or a function that says "
                "of a call whether it is meant"
            )
    return rules


class Reason(NamedTuple):
    """Why a computation is not lifted: the rule, and a sentence for a person."""

    rule: str
    text: str


@dataclasses.dataclass(frozen=True)
class Selected:
    """What a selection means for the values of some functions.

    Attributes
    ----------
    left : dict of Computation to Reason
        What may not be stored, and why.
    unmatched : dict of str to str
        For a rule that names nothing that there is, a sentence that says so.
    is_all_asked_for : bool
        Whether nobody says what to lift.
    is_by_marks : bool
        Whether the model does, and the caller does not.
    """

    left: dict[Computation, Reason]
    unmatched: dict[str, str]
    is_all_asked_for: bool
    is_by_marks: bool


_MARKS = Reason("R.lift_param", "R.lift_param marks others")


def select(graph: ValueGraph, selection: Selection) -> Selected:
    """Say which computations are not to be lifted, and by which rule."""
    names = _Names(graph)
    skip = [_Matcher("skip", rule, names) for rule in selection.skip]
    only = [_Matcher("only", rule, names) for rule in selection.only or ()]
    left = _skipped(graph, skip)
    asked_for = graph.marked if selection.only is None else _asked_for(graph, only)
    if asked_for is not None:
        reason = _MARKS
        if selection.only is not None:
            asked = ", ".join(one.text for one in only[:3]) + (", ..." if len(only) > 3 else "")
            reason = Reason("only", f"{asked or 'only=[]'} does not ask for it")
        for made in graph.computations:
            if made not in asked_for:
                left.setdefault(made, reason)
    left = {
        made: reason
        for made, reason in left.items()
        if made.needs_weight and not made.is_cast  # those are never stored
    }
    unmatched = {one.text: one.named_nothing() for one in (*only, *skip) if not one.is_known()}
    is_by_marks = selection.only is None and graph.marked is not None
    return Selected(left, unmatched, asked_for is None, is_by_marks)


def _asked_for(graph: ValueGraph, only: list[_Matcher]) -> set[Computation]:
    asked_for, of_such_weights = set(), set()
    for made in graph.computations:
        weights = [value for value in made.operands if _needs_weight(value)]
        is_of_such = bool(weights) and all(
            value.made_by in of_such_weights
            if value.made_by is not None
            else any(one.is_weight(value) for one in only)
            for value in weights
        )
        if is_of_such:
            of_such_weights.add(made)
        if is_of_such or any(one.is_call(made) for one in only):
            asked_for.add(made)
    return asked_for


def _needs_weight(value: Value) -> bool:
    return value.made_by is None or value.made_by.needs_weight


def _skipped(graph: ValueGraph, skip: list[_Matcher]) -> dict[Computation, Reason]:
    left: dict[Computation, Reason] = {}
    for made in graph.computations if skip else ():
        if not made.needs_weight:
            continue
        for one in skip:
            if one.is_call(made) or any(map(one.is_weight, made.operands)):
                left[made] = Reason(one.text, one.text)
                break
        else:
            for value in made.operands:
                if value.made_by in left:
                    rule = left[value.made_by].rule
                    left[made] = Reason(rule, f"it is made from what {rule} leaves")
                    break
    return left


class _Names:
    """What the weights and the calls of a graph are called."""

    def __init__(self, graph: ValueGraph):
        self.graph = graph

    @functools.cached_property
    def weights(self) -> dict[Value, list[str]]:
        """Of each weight, and of those that it stands for."""
        names: dict[Value, list[str]] = {}
        for weight in leaves(self.graph.weights):
            names.setdefault(self.graph.tied.get(weight, weight), []).append(weight.name)
        return names

    @functools.cached_property
    def kernels(self) -> dict[ir.GlobalVar, list[str]]:
        """Of each function that is called, of those that are equal to it, and of their layouts."""
        names: dict[ir.GlobalVar, list[str]] = {}
        for gvar, first in self.graph.kernels.items():
            found = names.setdefault(first, [])
            found.append(str(gvar.name_hint))
            attrs = self.graph.mod[gvar].attrs
            if attrs and LAYOUT in attrs:
                found.append(str(attrs[LAYOUT]))
        return names

    @functools.cached_property
    def calls(self) -> dict[Computation, tuple[str, ...]]:
        """Of what each call is of."""
        known: dict[str, tuple[str, ...]] = {}
        return {
            made: tuple(self._of_call(made.binding.value, known))
            for made in self.graph.computations
            if not made.is_cast
        }

    def _of_call(self, call: ir.Call, known: dict[str, tuple[str, ...]]) -> Iterator[str]:
        if type(call.op) is ir.GlobalVar:
            yield from self.kernels[call.op]
            return
        name = str(call.op.name)
        yield from known.setdefault(name, (name, name.removeprefix("relax.")))
        if name.startswith("relax.call_"):
            callee = call.args[0]
            if type(callee) is ir.GlobalVar:
                yield from self.kernels[callee]
            elif isinstance(callee, relax.ExternFunc):
                yield str(callee.global_symbol)

    def all(self) -> set[str]:
        """Of weights, operators, kernels and layouts."""
        every = {name for names in self.weights.values() for name in names}
        return every.union(*self.calls.values())


class _Matcher:
    """A rule, and what it matches."""

    def __init__(self, parameter: str, rule: Rule, names: _Names):
        self.rule = rule
        self.names = names
        self.text = f"{parameter}={rule!r}"
        if not isinstance(rule, str):
            self.text = f"{parameter}={getattr(rule, '__name__', type(rule).__name__)}"
        self.known: dict[str, bool] = {}

    def is_name(self, name: str) -> bool:
        """Whether a name is meant. ``params[3]`` is a name, though it looks like a pattern."""
        if not isinstance(self.rule, str):
            return False
        known = self.known.get(name)
        if known is None:
            known = name == self.rule or fnmatch.fnmatchcase(name, self.rule)
            self.known[name] = known
        return known

    def is_weight(self, value: Value) -> bool:
        """Whether a value is a weight that is meant."""
        return value.made_by is None and any(map(self.is_name, self.names.weights[value]))

    def is_call(self, made: Computation) -> bool:
        """Whether the call itself is meant; a ``match_cast`` is none."""
        if made.is_cast:
            return False
        if isinstance(self.rule, str):
            return any(map(self.is_name, self.names.calls[made]))
        return bool(self.rule(made.binding.value))

    def is_known(self) -> bool:
        """Whether there is what it names, in the functions or among TVM's operators."""
        if not isinstance(self.rule, str) or any(map(self.is_name, self.names.all())):
            return True
        return bool({self.rule, f"relax.{self.rule}"}.intersection(ir.Op.list_op_names()))

    def named_nothing(self) -> str:
        """Say so, and what has a similar name."""
        assert isinstance(self.rule, str)
        similar = difflib.get_close_matches(self.rule, sorted(self.names.all()), 1)
        return (
            f"{self.text} names no weight, nor an operator, kernel or layout that is applied to "
            "weights" + (f"; did you mean {similar[0]!r}?" if similar else "")
        )
