"""What holds each tensor of a lowered function, from one binding to the next.

A tensor is held by registers, and by slots of the tuples that are parameters or nested in these. It
is *spent* when nothing in the function holds it any more. It is *hidden* from where something may
hold it that is not seen: a function that is not known, or a tuple that went to one.

Slots of a nested tuple are followed in the body of a function, as long as it is where it was at the
start: then it stands nowhere else (cpp/checks.cc). It may come to be in other tuples, too,
and live on when its slot is replaced. What is read then, and from tuples that are made here, is not
seen to be read from a slot.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from tvm import ir, relax, tirx

from ..ir.byte_size import LargestOf, Size, largest, size_of, tensors_in
from ..ir.effects import EffectTable
from ..ir.tuple_objects import GET_ITEM, MAKE_TUPLE
from ..op import BUILTIN, is_statement
from ..relayout.description_blocks import INPLACE
from ..relayout.host_move import MOVED_ONCE, OF_PAGES
from .shape_heap import MAKE_SHAPE, MATCH_SHAPE, ShapeHeap

__all__ = ["ALLOC_STORAGE", "ALLOC_TENSOR", "KILL", "Chance", "Place", "Tensor", "TensorTrace"]

ALLOC_STORAGE = "relax.vm.alloc_storage"
ALLOC_TENSOR = "relax.vm.alloc_tensor"
KILL = "relax.vm.kill_object"

Place = tuple[relax.Var, tuple[int, ...]]  # a slot: of which parameter, and where in it


@dataclasses.dataclass(eq=False)
class Tensor:
    """A piece of memory, from where it is allocated, or found, to where nothing holds it.

    Attributes
    ----------
    name : str
        ``slot 3`` of an original weight, else the variable's.
    size : int, ByteSize or None
        Bytes, where they are known.
    at_most : int, ByteSize or None
        Bytes, of what is not sure to be allocated: in a branch.
    registers : list of relax.Var
        That hold the tensor itself, not a view of it.
    holders : Counter of (relax.Var or Place)
        The registers and slots that hold it, at the end of the trace.
    born : int
        The binding that allocates it, or asks for it; -1 if it was there.
    used_first, used_last : int
        The bindings that use it first and last.
    spent : int or None
        The binding after which nothing holds it.
    slot : str or None
        Where it is put, such as ``7``.
    is_allocated : bool
        Whether the function has allocated it, alone in its storage.
    is_read : bool
        Whether a kernel reads or writes it.
    weight : str or None
        Of a weight: its slot in the last parameter, or by what a streamed function asks for it.
    moves : list of bool
        For each call that may read its elements: whether it is a kernel that moves it, by one call
        of the runtime (``relax_inplace.moved_once``).
    is_hidden : bool
    may_live_on : bool
        Whether it was spent with a nested tuple, which may be in other tuples, too.
    """

    name: str
    size: Size | None
    registers: list[relax.Var]
    at_most: Size | None = None
    holders: Counter[Any] = dataclasses.field(default_factory=Counter)
    born: int = -1
    used_first: int | None = None
    used_last: int = -1
    spent: int | None = None
    slot: str | None = None
    is_allocated: bool = False
    is_read: bool = False
    weight: str | None = None
    moves: list[bool] = dataclasses.field(default_factory=list)
    is_hidden: bool = False
    may_live_on: bool = False


@dataclasses.dataclass
class Chance:
    """A kernel whose result may lie in what it reads, or take its pages, if that is spent there.

    Attributes
    ----------
    at : int
        The binding that calls it.
    donor : Tensor
    result : Tensor or None
        None if it takes pages.
    register : relax.Var
        In which the kernel is given the donor; it alone holds it, besides slots.
    places : list of Place
        The slots that hold it.
    """

    at: int
    donor: Tensor
    register: relax.Var
    result: Tensor | None
    places: list[Place]


class TensorTrace:
    """What happens to the tensors of one sequence of bindings: a function's body, or a branch.

    Parameters
    ----------
    sequence : relax.SeqExpr
        Lowered, every register killed.
    params : sequence of relax.Var
        Of the function.
    types : sequence of ir.Type
        Of the parameters, before their tuples became objects; none for a branch.
    mod : tvm.ir.IRModule
        Where the kernels are.

    Attributes
    ----------
    tensors : list of Tensor
    vars : list of relax.Var
        Of the bindings, by position.
    chances : list of Chance
    reads_unseen : list of int
        The bindings that may read a slot that they are not seen to read.
    """

    def __init__(
        self,
        sequence: relax.SeqExpr,
        params: Sequence[relax.Var],
        types: Sequence[ir.Type],
        mod: ir.IRModule,
    ):
        self.mod = mod
        self.tensors: list[Tensor] = []
        self.vars: list[relax.Var] = []
        self.chances: list[Chance] = []
        self.reads_unseen: list[int] = []
        self._held: dict[relax.Var, list[Tensor]] = {}
        self._fields: dict[relax.Var, list[list[Tensor]]] = {}  # of a tuple that is made here
        self._slots: dict[Place, list[Tensor]] = {}
        self._seen: dict[relax.Var, list[Tensor]] = defaultdict(list)  # in slots of a parameter
        self._inside: dict[Place, set[Place]] = defaultdict(set)  # slots in a nested tuple's slot
        self._nested: set[Place] = set()  # nested tuples that are where they were at the start
        self._places: dict[relax.Var, Place] = {param: (param, ()) for param in params}
        self._storages: Counter[relax.Var] = Counter()  # how many tensors are in each
        self._scopes: dict[relax.Var, str] = {}
        self._asks_unseen = False  # whether weights may be asked for that are not seen
        self._shapes: dict[relax.Var, list[ir.PrimExpr] | None] = {}
        self._heap = ShapeHeap(sequence)
        self._effects = EffectTable(mod)
        self._weights = params[-1] if params else None
        self._at = -1
        self._on_op = {  # no bound methods: that would be a cycle, with all tensors in it
            ir.Op.get(ALLOC_STORAGE): TensorTrace._alloc_storage,
            ir.Op.get(ALLOC_TENSOR): TensorTrace._alloc_tensor,
            ir.Op.get(KILL): TensorTrace._kill,
            ir.Op.get("relax.null_value"): lambda _trace, _var, _call: None,
        }
        for param, ty in zip(params, types, strict=False):
            if isinstance(ty, relax.TupleType):
                self._found((param, ()), ty)
        self._run(sequence)

    def _found(self, place: Place, ty: ir.Type) -> None:
        """What a slot holds at the start, as its type says."""
        if isinstance(ty, relax.TupleType):
            if place[1]:
                self._nested.add(place)
            for index, field in enumerate(ty.fields[:]):
                self._found((place[0], (*place[1], index)), field)
        elif isinstance(ty, relax.TensorType):
            self._first(place, ty)

    def _first(self, place: Place, ty: ir.Type) -> None:
        """A slot holds a tensor of its own at the start."""
        tensor = Tensor(f"slot {_text(place)}", _known(ty), [])
        tensor.holders[place] += 1
        if place[0].same_as(self._weights):
            tensor.weight = _text(place)
        self.tensors.append(tensor)
        self._fill(place, [tensor])

    def _run(self, sequence: relax.SeqExpr) -> None:
        alloc_tensor = ir.Op.get(ALLOC_TENSOR)
        for block in sequence.blocks[:]:
            for binding in block.bindings[:]:
                value = binding.value
                if type(value) is ir.Call and value.op.same_as(alloc_tensor):
                    self._storages[value.args[0]] += 1
        for block in sequence.blocks[:]:
            for binding in block.bindings[:]:
                self._at += 1
                self.vars.append(binding.var)
                self._binding(binding.var, binding.value)
        for var in relax.analysis.free_vars(sequence.body)[:]:
            for tensor in self._held.get(var, ()):
                tensor.holders[var] += 1  # held on by the caller

    def _binding(self, var: relax.Var, value: relax.Expr) -> None:
        kind = type(value)  # the classes of tvm-ffi are abstract base classes: isinstance is slow
        if kind is relax.TupleGetItem:
            self._read(var, value.tuple_value, value.index)
        elif kind is relax.Var:
            if value in self._places:
                self._places[var] = self._places[value]
            if value in self._fields:
                self._fields[var] = self._fields[value]
            self._hold(var, self._held.get(value, ()))
            self._name(var, self._held.get(value, ()))
        elif kind is ir.Call:
            self._call(var, value)
        elif kind is relax.Tuple:
            self._made(var, value.fields[:])
        else:
            self._unknown(var, value)
            if kind is relax.If:
                self._branches(var, value)

    def _name(self, var: relax.Var, tensors: Sequence[Tensor]) -> None:
        """A second register of a tensor: of a streamed weight, the first that has its type."""
        if len(tensors) == 1 and isinstance(var.ty, relax.TensorType):
            (tensor,) = tensors
            if tensor.size is None and not tensor.is_hidden:  # else it may be one that is counted
                tensor.size = _known(var.ty)
            tensor.registers.append(var)

    def _call(self, var: relax.Var, call: relax.Call) -> None:
        op = call.op
        kind = type(op)
        if kind is ir.GlobalVar and isinstance(self.mod.functions.get(op), tirx.PrimFunc):
            self._kernel(call)
        elif kind is ir.Op:
            if op in self._on_op:
                self._on_op[op](self, var, call)
            else:
                self._by_effects(var, call)
        elif kind is relax.ExternFunc:
            self._builtin(var, call, op.global_symbol)
        elif kind is relax.Var:  # a function that is a parameter: it yields a weight
            self._use(call.args[:])
            tensor = self._new(var, _known(var.ty), var.name)
            if len(call.args) == 1 and isinstance(call.args[0], tirx.IntImm):
                tensor.weight = str(int(call.args[0].value))
            else:
                self._asks_unseen = True
        else:
            self._unknown(var, call)

    def _builtin(self, var: relax.Var, call: relax.Call, name: str) -> None:
        args = call.args[:]
        if name == BUILTIN:
            self._update(var, *args)
        elif name == MAKE_SHAPE:
            self._shapes[var] = self._heap.shape(call)
        elif name == GET_ITEM:
            self._read(var, args[0], args[1].value)
        elif name == MAKE_TUPLE:
            self._made(var, args)
        else:
            if name == MATCH_SHAPE:
                self._heap.match(call)
            self._by_effects(var, call)

    def _by_effects(self, var: relax.Var, call: relax.Call) -> None:
        effects = self._effects.of(call)
        if effects.keeps or effects.overwrites or (effects.aliases and effects.allocates):
            self._unknown(var, call)
            return
        self._use(call.args[:])
        for arg in () if effects.looks_only else call.args[:]:
            for tensor in self._held.get(arg, ()):
                tensor.moves.append(False)
        for operand in effects.aliases:
            self._hold(var, self._held.get(operand, ()))

    def _made(self, var: relax.Var, fields: Sequence[relax.Expr]) -> None:
        self._asks_unseen |= any(map(_is_function, fields))
        self._fields[var] = [list(self._held.get(field, ())) for field in fields]
        for held in self._fields[var]:
            self._hold(var, held)

    def _unknown(self, var: relax.Var, value: relax.Expr) -> None:
        """What may keep what it is given, and may hold what it returns."""
        self.reads_unseen.append(self._at)
        for used in relax.analysis.free_vars(value)[:]:
            self._asks_unseen |= _is_function(used)
            for tensor in self._held.get(used, ()):
                self._used(tensor)
                tensor.is_hidden = True
            if used in self._places:
                root, _ = self._places[used]
                for tensor in self._seen.pop(root, ()):
                    places = (holder for holder in tensor.holders if isinstance(holder, tuple))
                    tensor.is_hidden |= any(place[0].same_as(root) for place in places)
        if not is_statement(var):
            self._new(var, None, var.name).is_hidden = True

    def _branches(self, var: relax.Var, value: relax.If) -> None:
        """What a branch allocates is live with all that is live here.

        Its result may be allocated in it, and a register of the branch holds that to the end.
        """
        most = largest(
            TensorTrace(branch, (), (), self.mod).most_live()
            for branch in (value.true_branch, value.false_branch)
        )
        sizes = most.sizes if isinstance(most, LargestOf) else [most]
        results = (_known(ty) for ty in tensors_in(var.ty))
        held = sum((size for size in results if size is not None), start=0)
        at = self._at
        self.tensors.append(Tensor("", None, [], sum(sizes, start=0), born=at, spent=at))
        self.tensors.append(Tensor("", None, [], held, born=at + 1))

    def moved_weights(self) -> list[str]:
        """The weights that one move reads, and nothing else ever: of a streamed function those that
        it asks for once.
        """
        times = Counter(tensor.weight for tensor in self.tensors)
        return [
            tensor.weight
            for tensor in self.tensors
            if tensor.weight is not None
            and not (self.reads_unseen if tensor.born < 0 else self._asks_unseen)
            and times[tensor.weight] == 1
            and tensor.moves == [True]
            and tensor.spent is not None
            and not tensor.is_hidden
            and not tensor.may_live_on
        ]

    def most_live(self) -> Size | LargestOf:
        """No more is live at any time, but for what was there."""
        change: dict[int, list[Size]] = defaultdict(list)
        for tensor in self.tensors:
            size = tensor.at_most if tensor.size is None else tensor.size
            if size is not None and tensor.born >= 0:
                change[2 * tensor.born].append(size)
                if tensor.spent is not None:
                    change[2 * tensor.spent + 1].append(0 - size)
        lives = itertools.accumulate(sum(change[at], start=0) for at in sorted(change))
        return largest([0, *lives])

    def _new(self, var: relax.Var, size: Size | None, name: str) -> Tensor:
        tensor = Tensor(name, size, [var], born=self._at)
        self.tensors.append(tensor)
        self._hold(var, [tensor])
        return tensor

    def _alloc_storage(self, var: relax.Var, call: relax.Call) -> None:
        self._scopes[var] = call.args[3].value

    def _alloc_tensor(self, var: relax.Var, call: relax.Call) -> None:
        storage, _offset, shape, dtype = call.args[:4]
        # A storage of several tensors was planned by a pass that somebody ran by hand.
        is_alone = self._storages[storage] == 1 and self._scopes.get(storage) == "global"
        dims = self._shapes.get(shape) if isinstance(shape, relax.Var) else shape.values[:]
        size = None if dims is None else size_of(relax.TensorType(dims, str(dtype.value)))
        tensor = self._new(var, size, var.name)
        tensor.is_allocated = is_alone
        tensor.is_hidden = not is_alone

    def _kernel(self, call: relax.Call) -> None:
        args = call.args[:]
        if len(args) == 1 and args[0] not in self._held:
            self._heap.compute(self.mod[call.op])  # the one argument is the shape heap
        self._use(args)
        attrs = self.mod[call.op].attrs
        moved = list(map(int, attrs[MOVED_ONCE])) if attrs and MOVED_ONCE in attrs else []
        for at, arg in enumerate(args):
            for tensor in self._held.get(arg, ()):
                tensor.is_read = True
                tensor.moves.append(at in moved and arg in tensor.registers)
        for given, result in attrs[INPLACE] if attrs and INPLACE in attrs else ():
            results = self._held.get(args[int(result)], ())
            if len(results) == 1 and results[0].is_allocated and results[0].used_first == self._at:
                self._chance(args, int(given), results[0])  # and not there already
        for given in attrs[OF_PAGES] if attrs and OF_PAGES in attrs else ():
            self._chance(args, int(given), None)

    def _chance(self, args: Sequence[relax.Expr], given: int, new: Tensor | None) -> None:
        register = args[given]
        donors = self._held.get(register, ())
        if len(donors) != 1 or sum(register.same_as(arg) for arg in args) != 1:
            return
        (donor,) = donors
        if register not in donor.registers:
            return  # a view
        if any(isinstance(h, relax.Var) and not h.same_as(register) for h in donor.holders):
            return
        places = [holder for holder in donor.holders if isinstance(holder, tuple)]
        self.chances.append(Chance(self._at, donor, register, new, places))

    def _use(self, args: Sequence[relax.Expr]) -> None:
        for arg in args:
            for tensor in self._held.get(arg, ()):
                self._used(tensor)

    def _used(self, tensor: Tensor) -> None:
        if tensor.used_first is None:
            tensor.used_first = self._at
        tensor.used_last = self._at

    def _followed(self, source: relax.Expr) -> Place | None:
        """The slot of a tuple, if it is a parameter, or nested in one and where it was."""
        place = self._places.get(source)
        if place is None:
            return None
        root, path = place
        within = (path[:length] for length in range(1, len(path) + 1))
        return place if all((root, one) in self._nested for one in within) else None

    def _read(self, var: relax.Var, source: relax.Expr, index: int) -> None:
        outer = self._followed(source)
        if outer is None and source in self._fields:
            self._hold(var, self._fields[source][index])
            return
        if outer is None:
            self.reads_unseen.append(self._at)
            self._hold(var, self._held.get(source, ()))
            return
        root, path = outer
        place = (root, (*path, index))
        if place in self._nested:
            self._places[var] = place
            return
        if isinstance(var.ty, relax.AnyType) and place not in self._slots:
            return
        if place not in self._slots:
            self._first(place, var.ty)
        tensors = self._slots[place]
        self._hold(var, tensors)
        self._name(var, tensors)

    def _update(
        self, var: relax.Var, source: relax.Expr, index: relax.Expr, value: relax.Expr
    ) -> None:
        new = list(self._held.get(value, ()))
        outer = self._followed(source)
        if outer is None:
            self._hold(source, new)
            if source in self._fields:
                old, self._fields[source][index.value] = self._fields[source][index.value], new
                for tensor in old:
                    self._held[source].remove(tensor)
                self._release(old, source)
            return
        root, path = outer
        place = (root, (*path, index.value))
        if self._followed(value) == place:
            return  # a nested tuple, put back
        for tensor in new:
            tensor.holders[place] += 1
            self._used(tensor)
            if tensor.slot is None:
                tensor.slot = _text(place)
        self._release(self._slots.pop(place, ()), place)
        self._nested.discard(place)
        for inner in self._inside.pop(place, ()):
            tensors = self._slots.pop(inner, ())
            for tensor in tensors:
                tensor.may_live_on = True
            self._release(tensors, inner)
        self._fill(place, new)

    def _fill(self, place: Place, tensors: list[Tensor]) -> None:
        self._slots[place] = tensors
        root, path = place
        self._seen[root] += tensors
        for length in range(1, len(path)):
            self._inside[root, path[:length]].add(place)

    def _kill(self, _var: relax.Var, call: relax.Call) -> None:
        killed = call.args[0]
        self._release(self._held.pop(killed, ()), killed)

    def _hold(self, var: relax.Var, tensors: Iterable[Tensor]) -> None:
        for tensor in list(tensors):
            self._held.setdefault(var, []).append(tensor)
            tensor.holders[var] += 1
            tensor.used_last = self._at

    def _release(self, tensors: Iterable[Tensor], holder: relax.Var | Place) -> None:
        for tensor in tensors:
            others = tensor.holders.pop(holder) - 1
            if others:
                tensor.holders[holder] = others
            if not tensor.holders:
                tensor.spent = self._at


def _known(ty: ir.Type) -> Size | None:
    """The bytes of a tensor, where its type says so."""
    if not isinstance(ty, relax.TensorType) or ty.dtype is None:
        return None
    return size_of(ty) if isinstance(ty.shape, relax.ShapeExpr) else None


def _is_function(value: relax.Expr) -> bool:
    return type(value) is relax.Var and type(value.ty) is relax.FuncType


def _text(place: Place) -> str:
    return ".".join(map(str, place[1]))
