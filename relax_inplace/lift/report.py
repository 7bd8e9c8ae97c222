"""What is lifted from a model, for a person to read, and where each weight went, for a program."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from tvm import ir

from ..inplace.memory_plan import FEW, MemoryPlan, plan_memory
from ..ir.byte_size import Size
from ..ir.names import unused
from ..ir.table import listed, plain_size, shown, table
from ..ir.tuple_tree import slot_text
from ..weight_names import GivenNames
from .plan import LiftPlan, plan_lift
from .selection import Reason, Rules, Selection
from .shared_weights import find_shared_weights
from .transform import write_transform
from .weight_values import Computation, Tree, Value, ValueGraph, find_values, leaves

__all__ = [
    "ChangeOfKind",
    "LeftComputation",
    "LiftReport",
    "LiftedWeight",
    "described",
    "explain_lift",
]


@dataclasses.dataclass
class LiftedWeight:
    """A weight, and one value that is made from it; or the weight itself.

    Attributes
    ----------
    name : str
    slot : str
        Its place in the tuple before, such as ``0``, or ``0.3`` in a nested one.
    done : str
        What is computed from it, such as ``permute_dims(concat(q, k))``; empty if it stays as it
        is, or goes.
    kind : str
        The same without what it is computed from, ``permute_dims(concat)``; or ``stays``, or
        ``nothing needs it``.
    new_slot : str or None
        Where that is in the tuple after; None if nothing needs the weight.
    new_name : str or None
        What is in that slot is called.
    before, after : int or ByteSize
        Bytes of the weight, and of what is in the slot.
    used_by : list of str
        The functions that read that slot.
    """

    name: str
    slot: str
    done: str
    kind: str
    new_slot: str | None
    new_name: str | None
    before: Size
    after: Size
    used_by: list[str]


@dataclasses.dataclass
class ChangeOfKind:
    """What is done to several weights, such as ``permute_dims(concat)``.

    Attributes
    ----------
    kind : str
        See :class:`LiftedWeight`.
    weights : int
        How many there are.
    before : int or ByteSize
        Their bytes.
    slots : int
        How many fields they become.
    after : int or ByteSize
        The bytes of these.
    """

    kind: str
    weights: int
    before: Size
    slots: int
    after: Size


@dataclasses.dataclass
class LeftComputation:
    """What the functions compute themselves though it could be lifted.

    Attributes
    ----------
    done : str
    because : str
    rule : str
        What decided so: such as ``max_resident=1.0``, or ``skip='relax.permute_dims'``.
    """

    done: str
    because: str
    rule: str


@dataclasses.dataclass
class LiftReport:
    """The values that are lifted from functions that share weights, and their new slots.

    Attributes
    ----------
    functions : list of str
        The names of the functions.
    weights : list of LiftedWeight
        The weights, in the order of the old tuple. A weight from which several values are made has
        an entry for each.
    left : list of LeftComputation
        The computations that stay in the functions, with the reason.
    unmatched : list of str
        The rules of ``only`` and ``skip`` that match nothing.
    before, after : int or ByteSize
        Bytes of the old and of the new tuple.
    steps : int
        The number of computations of the transform.
    dimensions : list of str
        The symbolic dimensions in an extra last field.
    names : list of str
        The names of the fields of the old tuple.
    new_names : list of str
        The names of the fields of the new tuple.
    plan : MemoryPlan or None
        The plan of the transform; ``explain_lift`` makes it.
    """

    functions: list[str]
    weights: list[LiftedWeight]
    left: list[LeftComputation]
    unmatched: list[str]
    before: Size
    after: Size
    steps: int
    dimensions: list[str]
    names: list[str]
    new_names: list[str]
    plan: MemoryPlan | None = None

    @property
    def listed(self) -> str:
        """The functions, for a person."""
        return ", ".join(f"`{name}`" for name in self.functions)

    @property
    def kinds(self) -> list[ChangeOfKind]:
        """What is done to the weights: that to most of them first, those that stay at the end."""
        rows: dict[str, list[LiftedWeight]] = {}
        for one in self.weights:
            rows.setdefault(one.kind, []).append(one)
        kinds = []
        for kind, of_kind in rows.items():
            weights = {one.slot: one.before for one in of_kind}
            slots = {one.new_slot: one.after for one in of_kind if one.new_slot is not None}
            before, after = (sum(sizes.values(), start=0) for sizes in (weights, slots))
            kinds.append(ChangeOfKind(kind, len(weights), before, len(slots), after))
        return sorted(kinds, key=lambda one: (one.kind == "stays", -one.weights))

    def __str__(self) -> str:
        """Tables of the weights and of what is left; of many a summary, and those that change."""
        return self.text()

    def text(self, every: bool = False) -> str:
        """As ``print`` shows it; ``every``: with a row for each weight, however many there are."""
        is_short = len(self.weights) <= FEW
        parts = [self.summary() if not is_short else self._head()]
        rows = [one for one in self.weights if is_short or every or one.kind != "stays"]
        if rows:
            parts.append(_table_of(rows))
        if self.dimensions:
            parts.append(f"slot {len(self.new_names) - 1} holds {', '.join(self.dimensions)}")
        if self.left and (is_short or every):
            rows_left = [[one.done, one.because] for one in self.left]
            parts.append(table(["not lifted", "because"], rows_left))
        if is_short:
            parts += self.unmatched
        return "\n\n".join(parts) + "\n"

    def summary(self) -> str:
        """How many weights there are, what is done to them, and what is left, and why."""
        rows = [
            [str(one.weights), shown(one.before), str(one.slots), shown(one.after), one.kind]
            for one in self.kinds[:_KINDS]
        ]
        parts = [
            self._head(),
            table(["weights", "bytes", "slots", "then", "what is done to them"], rows),
        ]
        if len(self.kinds) > _KINDS:
            parts[-1] += f"\nand {len(self.kinds) - _KINDS} more kinds"
        rules: dict[str, list[LeftComputation]] = {}
        for left in self.left:
            rules.setdefault(left.rule, []).append(left)
        if rules:
            parts.append(
                "\n".join(
                    f"not lifted, {rule}: {len(group)}, such as {group[0].done}"
                    + (f" ({group[0].because})" if rule not in group[0].because else "")
                    for rule, group in rules.items()
                )
            )
        return "\n\n".join(parts + self.unmatched)

    def _head(self) -> str:
        return (
            f"{', '.join(self.functions)}: weights {len(self.names)} -> {len(self.new_names)}, "
            f"bytes {shown(self.before)} -> {shown(self.after)}, steps {self.steps}"
        )

    def to_json(self) -> str:
        """All of it; sizes are numbers, or text where they are symbolic."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields["plan"] = None if self.plan is None else json.loads(self.plan.to_json())
        fields["weights"] = [vars(one) for one in self.weights]
        fields["kinds"] = [vars(one) for one in self.kinds]
        fields["left"] = [vars(one) for one in self.left]
        return json.dumps(fields, default=plain_size, indent=1)

    def param_map(self) -> dict[str, Any]:
        """What is in each slot after, for the parameter map.

        Its name, the weights it is made ``from`` and what is ``done`` to them (empty for a weight
        as it was).
        """
        said: dict[str, Any] = {}
        for one in self.weights:
            if one.new_slot is not None:
                new: dict[str, Any] = {"name": one.new_name, "from": [], "done": one.done}
                said.setdefault(one.new_slot, new)["from"].append(one.name)
        return said


_KINDS = 12  # that a summary names


def _table_of(weights: Sequence[LiftedWeight]) -> str:
    return table(
        ["slot", "weight", "what is done to it", "new slot", "bytes", "then", "used by"],
        [
            [
                one.slot,
                one.name,
                one.done or one.kind,
                "-" if one.new_slot is None else one.new_slot,
                shown(one.before),
                "-" if one.new_slot is None else shown(one.after),
                listed(one.used_by) or "-",
            ]
            for one in weights
        ],
    )


def explain_lift(
    mod: ir.IRModule,
    functions: str | Sequence[str] | None = None,
    *,
    params: str | None = None,
    names: GivenNames | None = None,
    tied: Sequence[Sequence[str | int]] = (),
    max_resident: int | float | None = 1.0,
    only: Rules = None,
    skip: Rules = None,
    memory_limit: int | float | None = None,
    lazy: bool = False,
) -> LiftReport:
    """Report what ``LiftInplaceTransformParams`` would lift from a module, and why not more.

    Parameters
    ----------
    mod : tvm.ir.IRModule
        The module, which stays as it is.
    functions, params, names, tied, max_resident, only, skip, memory_limit, lazy
        See :func:`relax_inplace.transform.LiftInplaceTransformParams`.

    Returns
    -------
    LiftReport
        The report; ``print`` shows it, and its ``plan``. For a module with several sets of weights,
        the report of the first function's set; ``functions`` selects another.

    Raises
    ------
    LiftError
        The functions do not share their weights, or nothing fits into ``max_resident``.
    """
    named = [functions] if isinstance(functions, str) else functions
    shared = find_shared_weights(mod, named, params, names)[0]
    lift = plan_lift(find_values(mod, shared, tied), max_resident, Selection.of(only, skip))
    report = described(lift)
    report.plan = plan_memory(
        write_transform(lift, mod),
        mod,
        names=lift.graph.shared.entering,
        memory_limit=memory_limit,
        lazy=lazy,
    )
    return report


def described(plan: LiftPlan) -> LiftReport:
    """What a plan says, in names and numbers."""
    graph, stored = plan.graph, list(plan.stored())
    weights = list(leaves(graph.weights))
    new_names = _new_names(plan, stored)
    slots = _paths(plan.slots)
    made_from: dict[Value, list[Value]] = {weight: [] for weight in weights}
    cones: dict[Computation, dict[Value, None]] = {}
    for made in graph.computations:
        cone: dict[Value, None] = {}
        for operand in made.operands:
            cone.update({operand: None} if operand.made_by is None else cones[operand.made_by])
        cones[made] = cone
    for one in stored:
        for weight in [one] if one.made_by is None else cones[one.made_by]:
            made_from[weight].append(one)

    rows = []
    texts = _Texts(graph)
    for weight in weights:
        values: list[Value | None] = [*made_from[graph.tied.get(weight, weight)]]
        for value in values or [None]:
            rows.append(
                LiftedWeight(
                    weight.name,
                    slot_text(weight.path),
                    "" if value is None or value.made_by is None else texts.done(value),
                    "nothing needs it" if value is None else texts.kind(value) or "stays",
                    None if value is None else slots[value],
                    None if value is None else new_names[value],
                    weight.size,
                    0 if value is None else value.size,
                    [] if value is None else sorted(plan.values.needed_by.get(value, ())),
                )
            )
    left = plan.values.left | {
        made: Reason("written", f"`{writer}` may write to it, so it is made anew each time")
        for made, writer in graph.written.items()
    }
    names = [new_names[value] for value in stored]
    if plan.dimensions:
        names.append(unused("dimensions", set(names)))
    return LiftReport(
        [numbered.user.name for numbered in graph.users],
        rows,
        [
            LeftComputation(texts.done_by[made], left[made].text, left[made].rule)
            for made in graph.computations
            if made in left
        ],
        list(plan.selected.unmatched.values()),
        sum((weight.size for weight in weights), start=0),
        sum((value.size for value in stored), start=0),
        len(plan.computations()),
        [str(var.name) for var in plan.dimensions],
        [weight.name for weight in weights],
        names,
    )


def _new_names(plan: LiftPlan, stored: list[Value]) -> dict[Value, str]:
    """A value has the name of the weight whose slot it is in, or one made from it."""
    in_slot_of = {value: weight for weight, value in plan.placed.items()}
    names = {
        value: value.name if value.made_by is None else in_slot_of[value].name
        for value in stored
        if value.made_by is None or value in in_slot_of
    }
    taken = set(names.values())
    for value in stored:
        if value not in names:
            assert value.made_by is not None
            name = names[value] = unused(plan.first_weight[value.made_by].name, taken)
            taken.add(name)
    return names


def _paths(slots: Tree) -> dict[Value, str]:
    paths: dict[Value, str] = {}

    def visit(tree: Tree, path: str) -> None:
        if isinstance(tree, list):
            for index, field in enumerate(tree):
                visit(field, f"{path}.{index}" if path else str(index))
        elif isinstance(tree, Value):
            paths[tree] = path

    visit(slots, "")
    return paths


_LONGEST = 60


class _Texts:
    """How values are computed, each as one expression; and that without what is computed from."""

    def __init__(self, graph: ValueGraph):
        self.done_by: dict[Computation, str] = {}
        self.kind_by: dict[Computation, str] = {}
        for made in graph.computations:
            operation = "match_cast" if made.is_cast else _operation(made.binding.value)
            done = f"{operation}({', '.join(map(self.done, made.operands))})"
            before = dict.fromkeys(filter(None, map(self.kind, made.operands)))
            kind = f"{operation}({', '.join(before)})" if before else operation
            short = f"{operation}(...)"
            self.done_by[made] = done if len(done) <= _LONGEST else short
            self.kind_by[made] = kind if len(kind) <= _LONGEST else short

    def done(self, value: Value) -> str:
        """Such as ``permute_dims(concat(q, k))``; the name of a weight."""
        if value.made_by is None:
            return value.name
        return f"{self.done_by[value.made_by]}{''.join(f'[{index}]' for index in value.path)}"

    def kind(self, value: Value) -> str:
        """Such as ``permute_dims(concat)``; nothing for a weight."""
        return "" if value.made_by is None else self.kind_by[value.made_by]


def _operation(call: ir.Call) -> str:
    """What a call is of, in short."""
    if isinstance(call.op, ir.GlobalVar):
        return str(call.op.name_hint)
    name = str(call.op.name).removeprefix("relax.")
    if name.startswith("call_"):
        callee = call.args[0]
        return str(callee.name_hint if isinstance(callee, ir.GlobalVar) else callee.global_symbol)
    return name
