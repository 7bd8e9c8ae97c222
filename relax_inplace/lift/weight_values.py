"""What functions compute from their weights alone, each value once.

Definition
----------
A *value* is a weight, or what a *computation* makes from values: a pure call or a ``match_cast``
whose operands are values and constants, whose symbolic dimensions the weights define, and which is
not random. Computations are equal if their operations, attributes, types and operands are, kernels
by their content, in one function or in several (value numbering); the first one stands for all.

Not a computation: what depends on an input, on an impure call or on a branch; a ``match_cast`` in a
branch, which may fail where the other one is taken; what is behind ``R.builtin.stop_lift_params``;
a call that overwrites an operand. And what may be written to (:mod:`.written_values`): the function
needs a new one each time. What is made from a weight that is written to is no computation either,
in any function.

A tuple is its fields: of values, or of what a call returns. A mark (``R.lift_param``) is what is
marked, and is taken out of the function once it has been read.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import tvm_ffi
from tvm import ir, relax, tirx
from tvm_ffi import structural

from ..ir import tuple_tree
from ..ir.byte_size import Size, size_of
from ..ir.effects import EffectTable
from ..ir.marks import has_marks, without_marks
from ..ir.tuple_tree import Path, subscripted, tree_of
from ..ir.updates import bindings_of
from ..marker import is_mark
from .earlier_transform import entering_weights, put_back, require_alike
from .shared_weights import LiftError, SharedWeights, WeightUser
from .written_values import Bound, bound_in, find_written

__all__ = ["Computation", "NumberedUser", "Value", "ValueGraph", "find_values", "is_stop", "leaves"]


@dataclasses.dataclass(eq=False)
class Value:
    """A tensor (or a shape or a number) that is a weight or made from weights alone.

    Attributes
    ----------
    var : relax.Var
        Its name in the transform.
    made_by : Computation or None
        None for a weight.
    path : tuple of int
        In the tuple of weights, or in the tuple that the computation returns; empty for all of it.
    """

    var: relax.Var
    made_by: Computation | None
    path: tuple[int, ...]

    @property
    def name(self) -> str:
        """Of the variable."""
        return str(self.var.name)

    @functools.cached_property
    def size(self) -> Size:
        """Bytes."""
        return size_of(self.var.ty, self.name)


# What a variable holds: a value, a constant, or a tuple of such.
Tree: TypeAlias = Value | relax.Expr | list["Tree"]


def is_stop(expr: relax.Expr) -> bool:
    """Whether it is ``R.builtin.stop_lift_params``."""
    return type(expr) is ir.Call and type(expr.op) is ir.Op and expr.op.name == _STOP


def leaves(tree: Tree) -> Iterator[Value]:
    """The values in it, in order."""
    return (leaf for leaf in tuple_tree.leaves(tree) if isinstance(leaf, Value))


@dataclasses.dataclass(eq=False)
class Computation:
    """A call, or a ``match_cast``, in the names of the transform.

    Attributes
    ----------
    binding : relax.Binding
        Its variable is that of its value, or of a tuple of them.
    operands : list of Value
    result : Tree
    needs_weight : bool
        Whether it depends on a weight at all.
    """

    binding: relax.Binding
    operands: list[Value]
    result: Tree = dataclasses.field(default_factory=list)
    needs_weight: bool = False

    @property
    def is_cast(self) -> bool:
        """Whether it is a ``match_cast``."""
        return isinstance(self.binding, relax.MatchCast)


@dataclasses.dataclass(eq=False)
class NumberedUser:
    """A function, and what its variables hold.

    Attributes
    ----------
    user : WeightUser
    bindings : list of Bound
        Those of the function and of its branches.
    holds : dict of relax.Var to Tree
        What is computed from weights alone.
    """

    user: WeightUser
    bindings: list[Bound]
    holds: dict[relax.Var, Tree]


@dataclasses.dataclass(eq=False)
class ValueGraph:
    """What the functions that share weights compute from them alone.

    Attributes
    ----------
    mod : tvm.ir.IRModule
    shared : SharedWeights
    weights : list of Tree
        The fields of the tuple.
    computations : list of Computation
        Operands first.
    users : list of NumberedUser
    dimensions : set of tirx.Var
        The symbolic dimensions that weights define, with those that casts of them do.
    tied : dict of Value to Value
        For a weight that is known to be equal to another one, that one.
    written : dict of Computation to str
        What could be lifted if nothing might write to it, and what does.
    kernels : dict of tvm.ir.GlobalVar to tvm.ir.GlobalVar
        For a function of the module that is called, the first that is equal to it: that is what
        the computations call.
    marked : set of Computation or None
        What marks say is to be stored, the results of; None if there are no marks.
    without_effect : list of str
        Marks that name nothing that could be stored, for a person.
    """

    mod: ir.IRModule
    shared: SharedWeights
    weights: list[Tree]
    computations: list[Computation]
    users: list[NumberedUser]
    dimensions: set[tirx.Var]
    tied: dict[Value, Value]
    written: dict[Computation, str] = dataclasses.field(default_factory=dict)
    kernels: dict[ir.GlobalVar, ir.GlobalVar] = dataclasses.field(default_factory=dict)
    marked: set[Computation] | None = None
    without_effect: list[str] = dataclasses.field(default_factory=list)


def find_values(
    mod: ir.IRModule, shared: SharedWeights, tied: Sequence[Sequence[str | int]] = ()
) -> ValueGraph:
    """Find what the functions compute from their weights alone.

    Parameters
    ----------
    mod : tvm.ir.IRModule
    shared : SharedWeights
    tied : sequence of sequences of str or int
        Weights, by name or index, that are known to be equal: the first stands for the others.

    Raises
    ------
    LiftError
        Tied weights have different types, or there is no such weight.
    """
    if shared.is_called:
        shared = _put_back(mod, shared)
    graph, fields = _graph(mod, shared, tied)
    numbering = _Numbering(graph)
    read = [(user, list(bound_in(user.function.body))) for user in shared.users]
    for user, bindings in read:
        numbering.note_changed(user, fields, bindings)
    graph.users += [numbering.number(user, fields, bindings) for user, bindings in read]
    numbering.note_marks_elsewhere()
    return graph


def _put_back(mod: ir.IRModule, shared: SharedWeights) -> SharedWeights:
    """The functions with what is done to their weights put back, if all of it may be lifted."""
    transform = entering_weights(mod, shared)
    if transform is not None:
        alone = SharedWeights([transform], transform.type, shared.entering, None, shared.entering)
        graph, fields = _graph(mod, alone, ())
        bindings = list(bound_in(transform.function.body))
        numbering = _Numbering(graph)
        numbering.note_changed(transform, fields, bindings)
        numbered = numbering.number(transform, fields, bindings)
        if numbered.user.function.body.body in numbered.holds:
            return put_back(shared, transform)
    require_alike(shared)
    return shared


def _graph(
    mod: ir.IRModule, shared: SharedWeights, tied: Sequence[Sequence[str | int]]
) -> tuple[ValueGraph, list[Tree]]:
    """The graph of weights alone, and the fields of the tuple, equal ones the same."""
    weights = [
        tree_of(ty, _weight(name), (index,))
        for index, (name, ty) in enumerate(zip(shared.names, shared.type.fields[:], strict=True))
    ]
    dimensions = set(relax.analysis.definable_tir_vars_in_type(shared.type)[:])
    fields = _tie(shared, weights, tied)
    same = {
        weight: other
        for weight, other in zip(leaves(weights), leaves(fields), strict=True)
        if weight is not other
    }
    return ValueGraph(mod, shared, weights, [], [], dimensions, same), fields


def _weight(name: str) -> Callable[[ir.Type, Path], Value]:
    def make(ty: ir.Type, path: Path) -> Value:
        return Value(relax.DataflowVar(subscripted(name, path[1:]), ty), None, path)

    return make


def _tie(
    shared: SharedWeights, weights: list[Tree], tied: Sequence[Sequence[str | int]]
) -> list[Tree]:
    """The fields of the tuple, equal ones the same."""
    positions = {name: index for index, name in enumerate(shared.names)}
    fields, types = list(weights), shared.type.fields[:]
    stands_for = list(range(len(weights)))
    for group in tied:
        indices = []
        for one in group:
            index = positions.get(one, one) if isinstance(one, str) else one
            if type(index) is not int or not 0 <= index < len(weights):
                raise LiftError.of(
                    functions=shared.listed,
                    reason=f"tied={list(group)!r}: there is no weight {one!r}; expected an index "
                    f"below {len(weights)}, or one of the names {_some(shared.names)}",
                )
            indices.append(index)
        first = min((stands_for[index] for index in indices), default=0)
        for index in indices:
            if not tvm_ffi.structural_equal(types[index], types[first], map_free_vars=False):
                raise LiftError.of(
                    functions=shared.listed,
                    reason=f"tied={list(group)!r}: `{shared.names[first]}` is {types[first]}, "
                    f"`{shared.names[index]}` is {types[index]}",
                )
            was = stands_for[index]
            stands_for = [first if one == was else one for one in stands_for]
    return [fields[index] for index in stands_for]


def _some(names: Sequence[str], shown: int = 8) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return f"{list(names[:shown])}{more}"


_STOP = "relax.builtin.stop_lift_params"
_RANDOM_OPS = ("relax.nn.dropout",)
_RANDOM_FUNCTIONS = ("tvm.contrib.random.", "runtime.contrib.curand.")
# What manages memory or makes nothing, and Python functions, known only when the module runs.
_NOT_LIFTED = (
    "relax.builtin.",
    "relax.memory.",
    "relax.vm.",
    "relax.call_py_func",
    "relax.null_value",
)
_CALLS = ("relax.call_dps_packed", "relax.call_pure_packed")


class _Numbering:
    """Gives equal computations of several functions one value."""

    def __init__(self, graph: ValueGraph):
        self.mod = graph.mod
        self.effects = EffectTable(graph.mod)
        self.graph = graph
        self.known: dict[structural.StructuralKey, Computation] = {}
        self.casts: dict[Value, list[Computation]] = {}
        self.content: dict[structural.StructuralKey, ir.GlobalVar] = {}
        self.is_liftable: dict[str, bool] = {}
        self.is_pure_function: dict[ir.GlobalVar, bool] = {}
        self.changed: set[Value] = set()  # weights that some function may write to

    def note_changed(self, user: WeightUser, fields: list[Tree], bindings: list[Bound]) -> None:
        """Note the weights that a function may write to."""
        weights = _weights_of(user, fields)
        for var, path in find_written(bindings, self.effects).params:
            tree = weights.get(var)
            for index in path:
                tree = tree[index] if isinstance(tree, list) else tree
            self.changed.update(leaves(tree) if tree is not None else ())

    def number(self, user: WeightUser, fields: list[Tree], bindings: list[Bound]) -> NumberedUser:
        while True:
            reader = _Reader(self, user, fields, bindings)
            if not reader.renamed:
                if reader.marks:
                    self._note_marks(user, reader)
                    user.function = without_marks(user.function)
                    bindings = list(bound_in(user.function.body))
                return NumberedUser(user, bindings, reader.holds)
            # An equal cast defines dimensions that have a name already.
            user.function = user.function.bind_symbolic_vars(reader.renamed)
            bindings = list(bound_in(user.function.body))

    def _note_marks(self, user: WeightUser, reader: _Reader) -> None:
        """Note what a function marks."""
        graph = self.graph
        graph.marked = set() if graph.marked is None else graph.marked
        for name, tree in reader.marks:
            made = [_stored_for(value) for value in leaves(tree)] if tree is not None else []
            if all(one is not None and not one.needs_weight for one in made):
                graph.without_effect.append(
                    f"`{name}` in `{user.name}`, which is not made from weights alone"
                )
            graph.marked.update(one for one in made if one is not None)

    def note_marks_elsewhere(self) -> None:
        """Note the marks in functions that these may call."""
        users = [user.gvar for user in self.graph.shared.users]
        for gvar, function in self.mod.functions_items():
            if (
                isinstance(function, relax.Function)
                and not (function.attrs and "global_symbol" in function.attrs)
                and not any(gvar.same_as(user) for user in users)
                and has_marks(function)
            ):
                self.graph.marked = set() if self.graph.marked is None else self.graph.marked
                self.graph.without_effect.append(
                    f"what is marked in `{gvar.name_hint}`, a function that is called: run "
                    "relax.transform.InlinePrivateFunctions() first"
                )

    def computation(self, call: ir.Call, operands: list[Value], name: str) -> Computation:
        key = structural.StructuralKey(call)
        known = self.known.get(key)
        if known is None:
            binding = relax.VarBinding(relax.DataflowVar(name, call.ty), call)
            known = self.known[key] = self._new(Computation(binding, operands))
        return known

    def cast(self, value: Value, ty: ir.Type, name: str) -> Computation:
        binding = relax.MatchCast(relax.DataflowVar(name, ty), value.var, ty)
        made = self._new(Computation(binding, [value]))
        self.casts.setdefault(value, []).append(made)
        self.graph.dimensions.update(relax.analysis.definable_tir_vars_in_type(ty)[:])
        return made

    def _new(self, made: Computation) -> Computation:
        made.needs_weight = any(
            value.made_by is None or value.made_by.needs_weight for value in made.operands
        )
        var = made.binding.var

        def result(ty: ir.Type, path: Path) -> Value:
            field = relax.DataflowVar("_".join([var.name, *map(str, path)]), ty) if path else var
            return Value(field, made, path)

        made.result = tree_of(var.ty, result)
        self.graph.computations.append(made)
        return made

    def function(self, gvar: ir.GlobalVar) -> ir.GlobalVar:
        """The first function that is the same but for its name."""
        first = self.graph.kernels.get(gvar)
        if first is None:
            content = self.mod[gvar]
            if content.attrs and "global_symbol" in content.attrs:
                content = content.without_attr("global_symbol")
            key = structural.StructuralKey(content)
            first = self.graph.kernels[gvar] = self.content.setdefault(key, gvar)
        return first

    def may_lift(self, call: ir.Call) -> bool:
        """Whether a call is pure, overwrites nothing and is not random, going by what it calls."""
        callee = call.op
        if type(callee) is ir.GlobalVar:
            return self._is_pure_function(callee)
        if type(callee) is not ir.Op:
            return False
        name = callee.name
        known = self.is_liftable.get(name)
        if known is None:
            known = self.is_liftable[name] = (
                bool(callee.get_attr("FPurity"))
                and name not in _RANDOM_OPS
                and not name.startswith(_NOT_LIFTED)
            )
        if not known:
            return False
        if name in _CALLS and str(call.args[0].global_symbol).startswith(_RANDOM_FUNCTIONS):
            return False
        return not self.effects.of(call).overwrites

    def _is_pure_function(self, gvar: ir.GlobalVar) -> bool:
        """Whether all that a function of the module does may be lifted."""
        known = self.is_pure_function.get(gvar)
        if known is None:
            self.is_pure_function[gvar] = False  # while it is looked at: a recursive one is not
            called = self.mod[gvar] if gvar in self.mod.functions else None
            known = self.is_pure_function[gvar] = (
                isinstance(called, relax.Function)
                and bool(called.is_pure)
                and not any(gvar.same_as(user.gvar) for user in self.graph.shared.users)
                and all(
                    self.may_lift(binding.value)
                    for binding in bindings_of(called)
                    if type(binding.value) is ir.Call
                )
            )
        return known


def _stored_for(value: Value) -> Computation | None:
    """What makes a value that is stored: a ``match_cast`` is its operand again."""
    while value.made_by is not None and value.made_by.is_cast:
        (value,) = value.made_by.operands
    return value.made_by


def _weights_of(user: WeightUser, fields: list[Tree]) -> dict[relax.Var, Tree]:
    """What the parameters of a function hold that are weights."""
    if user.is_bundled:
        return {user.weights[0]: fields}
    return dict(zip(user.weights, fields, strict=True))


class _Reader:
    """Reads a function."""

    def __init__(
        self,
        numbering: _Numbering,
        user: WeightUser,
        fields: list[Tree],
        bindings: list[Bound],
    ):
        self.numbering = numbering
        self.dimensions = numbering.graph.dimensions
        self.holds = _weights_of(user, fields)
        self.written = find_written(bindings, numbering.effects).by
        self.is_symbolic = bool(relax.analysis.defined_symbolic_vars(user.function)[:])
        self.renamed: dict[tirx.Var, tirx.Var] = {}
        self.marks: list[tuple[str, Tree | None]] = []
        for binding, var, value, is_in_branch in bindings:
            if type(binding) is not relax.MatchCast:
                tree = self._value(value, var)
            else:
                tree = None if is_in_branch else self._cast(binding)
            if tree is not None:
                self.holds[var] = tree

    def _cast(self, binding: relax.MatchCast) -> Tree | None:
        value = self._value(binding.value, binding.var)
        if not isinstance(value, Value) or value in self.numbering.changed:
            return None
        for made in self.numbering.casts.get(value, ()):
            cast = made.binding
            theirs, own = (relax.analysis.tir_vars_in_type(ty)[:] for ty in (cast.ty, binding.ty))
            renamed = dict(zip(own, theirs, strict=False))
            if tvm_ffi.structural_equal(cast.ty, binding.ty, map_free_vars=True) and all(
                new.same_as(old) or old not in self.dimensions for old, new in renamed.items()
            ):
                self.renamed.update(
                    {old: new for old, new in renamed.items() if not new.same_as(old)}
                )
                return made.result
        return self.numbering.cast(value, binding.ty, binding.var.name).result

    def _value(self, expr: relax.Expr, var: relax.Var) -> Tree | None:
        kind = type(expr)
        if kind is not ir.Call:
            return self._leaf(expr)
        if is_mark(expr):
            tree = self._leaf(expr.args[0])
            self.marks.append((var.name, tree))
            return tree
        made = self._call(expr, var)
        if made is not None and var in self.written:
            if made.needs_weight:
                self.numbering.graph.written.setdefault(made, self.written[var])
            return None
        return None if made is None else made.result

    def _leaf(self, expr: relax.Expr) -> Tree | None:
        kind = type(expr)
        if kind is ir.Var or kind is relax.DataflowVar:
            return self.holds.get(expr, expr if expr in self.dimensions else None)
        if kind is relax.TupleGetItem:
            source = self._leaf(expr.tuple_value)
            return source[expr.index] if isinstance(source, list) else None
        if kind is relax.Tuple:
            fields = []
            for field in expr.fields[:]:
                tree = self._leaf(field)
                if tree is None:
                    return None
                fields.append(tree)
            return fields
        if kind is relax.ShapeExpr or isinstance(expr.ty, ir.PrimType):
            return expr if self._is_defined(expr) else None
        return expr if isinstance(expr, (ir.Constant, ir.StringImm)) else None

    def _call(self, call: ir.Call, var: relax.Var) -> Computation | None:
        numbering = self.numbering
        if not numbering.may_lift(call):
            return None
        operands: list[Value] = []
        args: list[relax.Expr] = []
        for arg in call.args[:]:
            kind = type(arg)
            if kind is ir.GlobalVar:
                args.append(numbering.function(arg))
            elif kind is relax.ExternFunc:
                args.append(arg)
            else:
                tree = self._leaf(arg)
                if tree is None:
                    return None
                operands += leaves(tree)
                args.append(_expression(tree))
        if not numbering.changed.isdisjoint(operands):
            return None
        if self.is_symbolic and not (
            self._is_defined(call.ty) and all(self._is_defined(ty) for ty in call.ty_args[:])
        ):
            return None
        op = call.op if type(call.op) is ir.Op else numbering.function(call.op)
        copy = relax.Call(op, args, call.attrs, call.ty_args, ret_ty=call.ty)
        return numbering.computation(copy, operands, var.name)

    def _is_defined(self, given: ir.Type | relax.Expr) -> bool:
        """Whether all its symbolic dimensions are those of weights."""
        if isinstance(given, ir.Type):
            variables = relax.analysis.tir_vars_in_type(given)[:]
        elif isinstance(given, relax.ShapeExpr):
            variables = relax.analysis.tir_vars_in_type(given.ty)[:]
        else:
            variables = tirx.analysis.undefined_vars(given)
        return all(var in self.dimensions for var in variables)


def _expression(tree: Tree) -> relax.Expr:
    """In the names of the transform."""
    if isinstance(tree, Value):
        return tree.var
    if isinstance(tree, list):
        return relax.Tuple([_expression(field) for field in tree])
    return tree
