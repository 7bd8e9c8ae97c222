"""The inverse of a transform: from what it has made of the weights, the weights again.

Definition
----------
``f(params) -> (o0, ..., om)`` is undone by ``g(o0, ..., om) -> (w0, ..., wn)`` if
``g(f(w)) == w``, bit by bit, for all ``w``. It is derived from the steps of ``f``, the last one
first. A value of ``f`` is *known* to ``g`` if

- it is an output, or a field of one; or
- a call reads it whose results are known, as far as they are needed, and that keeps every bit of it
  (:mod:`.op_inverse`).

Of several ways to a value the one of fewest steps is taken. A weight that is not known is not
restored, and there is a reason: nothing that is made from it is kept, or a step on the way to what
is kept has no inverse. Nor is a weight with a symbolic dimension that no output shows, or one of a
transform that ends with a branch, as nobody knows later which it was. A tensor that a call may
write to is not what it was before: nothing is known from it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, TypeAlias

import tvm_ffi
from tvm import ir, relax, sym

from ..errors import StructuredError
from ..inplace.branches import find_branches
from ..inplace.read_transform import read_transform
from ..inplace.steps import Kernel, Load
from ..inplace.transform_graph import Known, TransformGraph
from ..inplace.weights import Container, Weight, buffers_of
from ..ir.marks import without_marks
from ..ir.table import listed, table
from ..ir.tuple_tree import Path, leaves, slot_text, subscripted, tree_of, type_at
from .op_inverse import Undo, Undoing, operation

__all__ = ["Inverse", "InverseError", "RestoredWeight", "find_inverse"]


class InverseError(StructuredError):
    """Some weights of a transform cannot be restored.

    Attributes
    ----------
    function : str
        The name of the transform.
    count : str
        The number of these weights, and of all.
    reasons : str
        The first few, with the reasons.
    weights : dict of str to str
        All of these weights, with the reasons.
    """

    template = (
        "function `{function}` cannot be undone: {count} weights cannot be restored: {reasons}"
    )
    # TVM's C++ hands on the message alone: by it the last error is known again.
    _last: ClassVar[tuple[str, dict[str, str]]] = ("", {})

    def __init__(self, message: str):
        super().__init__(message)
        last, weights = InverseError._last
        self.weights = weights if last == message else {}

    @classmethod
    def listing(cls, function: str, weights: dict[str, str], count: int) -> StructuredError:
        """Make the error from the names of the weights and the reasons."""
        because: dict[str, list[str]] = {}
        for name, reason in weights.items():
            because.setdefault(reason, []).append(f"`{name}`")
        few = [f"{listed(names)} ({reason})" for reason, names in because.items()]
        fields = {
            "function": function,
            "count": f"{len(weights)} of {count}",
            "reasons": listed(few),
        }
        InverseError._last = (cls.template.format(**fields), weights)
        return cls.of(**fields)


@dataclasses.dataclass
class RestoredWeight:
    """A weight, and how it is restored, or why not.

    Attributes
    ----------
    name : str
    slot : str
        Its place in the tuple, such as ``0``, or ``0.3`` in a nested one.
    done : str or None
        What is done to the converted weights, such as ``permute_dims(params[0])``; None if it
        cannot be restored.
    because : str
        Then why not.
    """

    name: str
    slot: str
    done: str | None
    because: str = ""


# A tensor of the transform: a weight, or what a variable holds, or a field of that; or a constant.
_Tensor: TypeAlias = tuple[Weight | relax.Expr, Path]
_Tree: TypeAlias = _Tensor | list["_Tree"] | None

_NOT_KEPT = "nothing that is made from it is kept"


@dataclasses.dataclass
class _Way:
    """How a tensor is known: a field of the outputs, or what undoes a call."""

    steps: int
    path: Path = ()
    undo: Undo | None = None
    needs: Sequence[_Tensor] = ()


@dataclasses.dataclass
class Inverse:
    """The inverse of a transform: the computation that restores each weight.

    Attributes
    ----------
    graph : TransformGraph
        The transform.
    weights : list of RestoredWeight
        The weights in their order, through nested tuples.
    """

    graph: TransformGraph
    weights: list[RestoredWeight]
    _ways: dict[_Tensor, _Way]  # what is made from others comes after them
    _of: Mapping[Weight, Weight]  # equal ones
    _defined: set[relax.Var]  # symbolic dimensions

    def __str__(self) -> str:
        """A table of the weights."""
        return table(
            ["slot", "weight", "restored by"],
            [
                [w.slot, w.name, w.done if w.done is not None else f"not: {w.because}"]
                for w in self.weights
            ],
        )

    def require_complete(self) -> None:
        """Raise an InverseError if a weight cannot be restored."""
        lost = {weight.name: weight.because for weight in self.weights if weight.done is None}
        if lost:
            raise InverseError.listing(self.graph.name, lost, len(self.weights))

    def outputs(self) -> list[ir.Type]:
        """The types of what the transform returns, with the symbolic dimensions that they show."""
        return [
            _with_dimensions(_type_of(self.graph, output), self._defined)
            for output in self.graph.outputs
        ]

    def write(self, params: relax.Var) -> relax.Expr:
        """Make the tuple of weights, in the function that is being built.

        Parameters
        ----------
        params : relax.Var
            The tuple of what the transform returned.
        """
        builder = relax.BlockBuilder.current()
        wanted = [self._of.get(weight, weight) for weight in self.graph.root.weights()]
        needed: set[_Tensor] = {(weight, ()) for weight in wanted}
        for tensor in reversed(self._ways):
            if tensor in needed:
                needed.update(self._ways[tensor].needs)
        read: dict[tuple[int, ...], relax.Expr] = {(): params}
        made: dict[_Tensor, relax.Expr] = {}
        for tensor, way in self._ways.items():
            if tensor not in needed:
                continue
            if way.undo is None:
                for end in range(1, len(way.path) + 1):
                    path = way.path[:end]
                    if path not in read:
                        name = _name_of(tensor) if end == len(way.path) else ""
                        field = relax.TupleGetItem(read[path[:-1]], path[-1])
                        read[path] = builder.emit(field, name)
                made[tensor] = read[way.path]
            else:
                value = way.undo.make(*(made[need] for need in way.needs))
                name = _name_of(tensor)
                var = value if isinstance(value, relax.Var) else builder.emit(value, name)
                if not _agree(var.ty, _tensor_type(tensor)):
                    reason = f"its shape is restored as {var.ty}, and was {_tensor_type(tensor)}"
                    raise InverseError.listing(self.graph.name, {name: reason}, len(wanted))
                made[tensor] = var
        return relax.Tuple(self._tuple(self.graph.root, made))

    def _tuple(self, container: Container, made: Mapping[_Tensor, relax.Expr]) -> list[relax.Expr]:
        return [
            relax.Tuple(self._tuple(field, made))
            if isinstance(field, Container)
            else made[self._of.get(field, field), ()]
            for field in container.fields
        ]


def _agree(one: ir.Type, other: ir.Type) -> bool:
    """Whether two types of tensors are proved to be the same."""
    if tvm_ffi.structural_equal(one, other):
        return True
    if not all(
        isinstance(ty, relax.TensorType) and isinstance(ty.shape, relax.ShapeExpr)
        for ty in (one, other)
    ):
        return False
    sizes = one.shape.values[:], other.shape.values[:]
    analyzer = sym.Analyzer()
    return (
        str(one.dtype) == str(other.dtype)
        and len(sizes[0]) == len(sizes[1])
        and all(analyzer.can_prove_equal(*pair) for pair in zip(*sizes, strict=True))
    )


def find_inverse(
    name: str,
    function: relax.Function,
    mod: ir.IRModule | None = None,
    equal: Mapping[str, str] | None = None,
) -> Inverse:
    """Find the inverse of a transform.

    Parameters
    ----------
    name : str
        The name of the transform, for errors.
    function : relax.Function
        The transform, out of place.
    mod : tvm.ir.IRModule, optional
        The module of the transform, if that calls other functions.
    equal : dict of str to str, optional
        From slots of weights to the slots of weights that are known to be equal.

    Returns
    -------
    Inverse
        The inverse; ``print`` shows it.
    """
    return _Search(name, function, mod or ir.IRModule(), equal or {}).run()


class _Search:
    def __init__(
        self, name: str, function: relax.Function, mod: ir.IRModule, equal: Mapping[str, str]
    ):
        function = without_marks(function)
        self.graph = read_transform(name, function, mod)
        self.has_branches = find_branches(function, mod) is not None
        self.undoing = Undoing(mod)
        self.equal = equal
        self.found: dict[_Tensor, _Way] = {}
        self.reasons: dict[_Tensor, str] = {}
        self.written = {buffer for step in self.graph.steps for buffer in step.overwrites}
        given = [var.ty for var in self.graph.leading]
        given += [_type_of(self.graph, output) for output in self.graph.outputs]
        self.defined = set(relax.analysis.definable_tir_vars_in_type(relax.TupleType(given))[:])
        self.defined.update(self.graph.leading)

    def run(self) -> Inverse:
        if not self.has_branches:
            for index, output in enumerate(self.graph.outputs):
                self._keep(self._tree(output), (index,))
            for step in reversed(self.graph.steps):
                if not isinstance(step, Load):
                    for kernel in reversed(step.kernels):
                        self._undo(kernel)
        by_slot = {slot_text(w.path): w for w in self.graph.root.weights()}
        of = {by_slot[slot]: by_slot[other] for slot, other in self.equal.items()}
        weights = [self._restored(slot, w, of.get(w, w)) for slot, w in by_slot.items()]
        return Inverse(self.graph, weights, self.found, of, self.defined)

    def _restored(self, slot: str, weight: Weight, one: Weight) -> RestoredWeight:
        if (one, ()) in self.found:
            return RestoredWeight(weight.name, slot, self._done((one, ())))
        because = self.reasons.get((one, ()), _NOT_KEPT)
        if self.has_branches:
            because = "it depends on a condition what is made from it"
        return RestoredWeight(weight.name, slot, None, because)

    # -- what is known ----------------------------------------------------------------------------

    def _keep(self, tree: _Tree, path: tuple[int, ...]) -> None:
        """The outputs, and their fields, are known."""
        if isinstance(tree, list):
            for index, field in enumerate(tree):
                self._keep(field, (*path, index))
        elif tree is not None:
            self._offer(tree, _Way(0, path))

    def _offer(self, tensor: _Tensor, way: _Way) -> None:
        owner = tensor[0]
        layout = self.graph.layout(owner)
        if not self.written.isdisjoint(buffers_of(layout)):
            self.reasons.setdefault(tensor, "a call may write to what is made from it")
            return
        missing = [
            str(var.name)
            for var in relax.analysis.tir_vars_in_type(_tensor_type(tensor))[:]
            if var not in self.defined
        ]
        if missing:
            self.reasons.setdefault(
                tensor, f"its size `{missing[0]}` cannot be read off what is kept"
            )
            return
        known = self.found.get(tensor)
        if known is None or way.steps < known.steps:
            self.found.pop(tensor, None)  # comes after what it is made from
            self.found[tensor] = way

    def _undo(self, kernel: Kernel) -> None:
        binding = kernel.binding
        call = binding.value
        results = list(_leaves(_fields(binding.var)))
        if isinstance(binding, relax.MatchCast):
            operands = list(_leaves(self._tree(call)))
            undone: list[Undo | str] = [Undo("", lambda value: value)]
            if operands and not _agree(_tensor_type(operands[0]), binding.ty):
                undone = ["`match_cast` checks its sizes when it runs: they are not proved"]
            operands = operands[:1]
        elif isinstance(call, ir.Call):
            operands = [
                leaf
                for arg in call.args[:]
                for leaf in _leaves(self._tree(arg))
                if not isinstance(_tensor_type(leaf), ir.PrimType)
            ]
            if not operands:
                return
            types = [_tensor_type(tensor) for tensor in operands]
            undone = self.undoing.of(call, types, [_tensor_type(one) for one in results])
        else:
            operands = [(var, ()) for var in relax.analysis.free_vars(call)[:]]
            undone = ["it is used in a branch"] * len(operands)
        unknown = [tensor for tensor in results if tensor not in self.found]
        because = _NOT_KEPT
        if unknown:
            because = self.reasons.get(unknown[0], _NOT_KEPT)
            if because == _NOT_KEPT and len(unknown) < len(results):
                because = f"not all of what `{operation(call)}` makes of it is kept"
        steps = 1 + sum(self.found[tensor].steps for tensor in results if tensor in self.found)
        for operand, undo in zip(operands, undone, strict=True):
            if unknown:
                if because != _NOT_KEPT:
                    self.reasons.setdefault(operand, because)
            elif isinstance(undo, str):
                self.reasons.setdefault(operand, undo)
            else:
                self._offer(operand, _Way(steps, (), undo, results))

    # -- tensors ----------------------------------------------------------------------------------

    def _tree(self, known: Known) -> _Tree:
        """The tensors that a value is, through tuples."""
        if isinstance(known, Weight):
            return known, ()
        if isinstance(known, Container):
            return [self._tree(field) for field in known.fields]
        known = self.graph.resolve(known) if isinstance(known, relax.Expr) else known
        if not isinstance(known, relax.Expr):
            return self._tree(known)
        if isinstance(known, relax.Tuple):
            return [self._tree(field) for field in known.fields[:]]
        path: Path = ()
        while isinstance(known, relax.TupleGetItem):
            path = (int(known.index), *path)
            known = known.tuple_value
        # Inputs and constants, too: which operand of a call is which has to be right.
        is_value = isinstance(known, relax.Var) or isinstance(known.ty, relax.TensorType)
        return _fields(known, path) if is_value else None

    def _done(self, tensor: _Tensor, depth: int = 0) -> str:
        """How a tensor is made, as one expression."""
        way = self.found[tensor]
        if depth > _LONGEST:
            return "..."
        if way.undo is None:
            return subscripted(self.graph.params.name, way.path)
        inner = ", ".join(self._done(need, depth + 1) for need in way.needs)
        if not way.undo.done:
            return inner
        text = f"{way.undo.done}({inner})"
        return text if len(text) <= _LONGEST else f"{way.undo.done}(...)"


_LONGEST = 60


def _fields(owner: relax.Expr, path: Path = ()) -> _Tree:
    return tree_of(type_at(owner.ty, path), lambda _, path: (owner, path), path)


def _leaves(tree: _Tree) -> Iterator[_Tensor]:
    return (tensor for tensor in leaves(tree) if tensor is not None)


def _tensor_type(tensor: _Tensor) -> ir.Type:
    owner, path = tensor
    return type_at(owner.ty, path)


def _type_of(graph: TransformGraph, known: Known) -> ir.Type:
    if isinstance(known, relax.Expr) and not isinstance(known, relax.Tuple):
        return known.ty
    if isinstance(known, relax.Tuple):
        return relax.TupleType([_type_of(graph, graph.resolve(f)) for f in known.fields[:]])
    return known.ty


def _with_dimensions(ty: ir.Type, defined: set[relax.Var]) -> ir.Type:
    """The type, without shapes that depend on other dimensions."""
    if isinstance(ty, relax.TupleType):
        return relax.TupleType([_with_dimensions(field, defined) for field in ty.fields[:]])
    if set(relax.analysis.tir_vars_in_type(ty)[:]) <= defined:
        return ty
    if isinstance(ty, relax.ShapeType):
        return relax.ShapeType(ndim=ty.ndim)
    return relax.TensorType(None, ty.dtype, ty.vdevice, ty.ndim)


def _name_of(tensor: _Tensor) -> str:
    name = str(getattr(tensor[0], "name", ""))
    return name if name.isidentifier() else ""
