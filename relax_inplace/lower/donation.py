"""Which allocation of a lowered function takes the storage of which spent tensor.

Definition
----------
A tensor is *spent* when nothing in the function holds it any more: no register, no slot of a tuple
that it updates. Its storage can be taken by an allocation that comes later (*donated*), or, if the
kernel that reads it last may write over what it reads (``relax_inplace.inplace``, an attribute of
the kernel), by that kernel's own result (*in place*).

What is decided, in this order:

1. A result lies in place where it may: that takes no memory at all.
2. Any other allocation takes the storage of a tensor of the same size; or, if there is none and
   what is not needed of it can be given back, of a larger one.

Let the peak be the most that is live at any time with 1 alone: spare storages fill it up, and never
go beyond (:mod:`.spare_storage`). So it is never above what it was without donation, and layers of
equal sizes rotate through one spare storage: after the first of each size nothing is allocated.

What is decided here is what the compiled function asks for. Whether a storage is really nobody
else's is known when it runs: ``vm.builtin.donate_storage`` counts references, and allocates if it
is not.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tvm import ir, relax, tirx

from ..ir.byte_size import LargestOf, Size, covers, largest, size_of
from ..op import BUILTIN, is_statement
from ..relayout.inplace_kernel import INPLACE
from .shape_heap import MAKE_SHAPE, MATCH_SHAPE, ShapeHeap
from .spare_storage import Moment, take_spare

__all__ = ["Donation", "Place", "Spent", "Taken", "find_donation"]

ALLOC_STORAGE = "relax.vm.alloc_storage"
ALLOC_TENSOR = "relax.vm.alloc_tensor"
KILL = "relax.vm.kill_object"
# Their result is their first argument's memory: R.reshape and R.memory.view, lowered.
VIEWS = frozenset({"vm.builtin.reshape", "runtime.TVMTensorCreateView"})
_GET_ITEM = "vm.builtin.tuple_getitem"
_LOOKS_ONLY = ("vm.builtin.check_", "vm.builtin.match_", "vm.builtin.shape_of")

Place = tuple[relax.Var, tuple[int, ...]]  # a slot: of which parameter, and where in it


@dataclasses.dataclass(eq=False)
class Spent:
    """A tensor that nothing holds any more, and the register that could hold it on.

    Attributes
    ----------
    name : str
        ``slot 3`` of an original weight, else the variable's.
    register : relax.Var
        The last one that it was read into, or was allocated in.
    at : relax.Var
        Of the binding after which nothing holds it.
    size : int or ByteSize
        Bytes.
    """

    name: str
    register: relax.Var
    at: relax.Var
    size: Size


@dataclasses.dataclass(eq=False)
class Taken:
    """An allocation.

    Attributes
    ----------
    tensor : relax.Var
    slot : str or None
        Where it is put, such as ``7``; None for a temporary.
    by : relax.Var
        Of the binding that uses it first.
    beside : relax.Var
        A tensor that this uses, too: on the same device.
    donor : Spent or None
        Whose storage it takes; None if it has to be allocated.
    emptied : list of Place
        In place: the slots that hold the donor, and are empty while the kernel runs.
    in_place : bool
    shrinks : bool
        Whether it is smaller than the storage.
    size : int or ByteSize
        Bytes.
    """

    tensor: relax.Var
    slot: str | None
    by: relax.Var
    beside: relax.Var
    donor: Spent | None
    emptied: list[Place]
    in_place: bool
    shrinks: bool
    size: Size


@dataclasses.dataclass
class Donation:
    """What is decided for one sequence of bindings.

    Attributes
    ----------
    taken : list of Taken
        In the order in which they are used first.
    dropped : list of Spent
        What is spent and taken by nothing.
    peak_before, peak : int, ByteSize or LargestOf
        The most that is live at any time, without donation and with it.
    """

    taken: list[Taken]
    dropped: list[Spent]
    peak_before: Size | LargestOf
    peak: Size | LargestOf


def find_donation(
    sequence: relax.SeqExpr, params: Sequence[relax.Var], mod: ir.IRModule, shrinks: bool
) -> Donation:
    """Decide for a sequence of bindings: a function's body, or a branch of it.

    Parameters
    ----------
    sequence : relax.SeqExpr
        Lowered; a storage for each tensor, every register killed (``FreeTemporaries``).
    params : sequence of relax.Var
        Of the function.
    mod : tvm.ir.IRModule
        Where the kernels are.
    shrinks : bool
        Whether what is not needed of a storage can be given back: on a host.
    """
    trace = _Trace(params, mod)
    trace.run(sequence)
    return _Decision(trace).made(shrinks)


# -- what happens, binding by binding -------------------------------------------------------


@dataclasses.dataclass(eq=False)
class _Tensor:
    """A piece of memory, from where it is allocated, or found, to where nothing holds it."""

    name: str
    size: Size | None  # None: not known
    registers: list[relax.Var]  # that hold the tensor itself, not a view
    holders: Counter[Any] = dataclasses.field(default_factory=Counter)  # registers and slots
    born: int = -1  # the binding that allocates it, or asks for it; -1: it was there
    used_first: int | None = None
    used_last: int = -1
    spent: int | None = None
    slot: str | None = None  # where it is put
    is_allocated: bool = False  # by the function itself
    is_read: bool = False  # by a kernel; else its register is one that checks it, at entry
    is_hidden: bool = False  # something that is not seen may hold it
    beside: relax.Var | None = None


@dataclasses.dataclass
class _Chance:
    """A kernel whose result may lie in what it reads, if that is spent there."""

    at: int
    donor: _Tensor
    register: relax.Var
    result: _Tensor
    places: list[Place]


class _Trace:
    def __init__(self, params: Sequence[relax.Var], mod: ir.IRModule):
        self.params = set(params)
        self.mod = mod
        self.tensors: list[_Tensor] = []
        self.vars: list[relax.Var] = []  # of the bindings, by position
        self.chances: list[_Chance] = []
        self._held: dict[relax.Var, list[_Tensor]] = {}
        self._slots: dict[Place, list[_Tensor]] = {}
        self._inside: dict[Place, set[Place]] = defaultdict(set)  # slots in a nested tuple's slot
        self._places: dict[relax.Var, Place] = {param: (param, ()) for param in params}
        self._shapes: dict[relax.Var, list[ir.PrimExpr] | None] = {}
        self._heap = ShapeHeap()
        self._at = -1
        self._on_op = {
            ir.Op.get(ALLOC_STORAGE): self._ignore,
            ir.Op.get(ALLOC_TENSOR): self._alloc_tensor,
            ir.Op.get(KILL): self._kill,
        }

    def run(self, sequence: relax.SeqExpr) -> None:
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
            self._hold(var, self._held.get(value, ()))
            self._name(var, self._held.get(value, ()))
        elif isinstance(value, ir.Call):
            self._call(var, value)
        elif kind is relax.Tuple:
            for field in value.fields[:]:
                self._hold(var, self._held.get(field, ()))
        else:
            self._unknown(var, value)

    def _name(self, var: relax.Var, tensors: Sequence[_Tensor]) -> None:
        """A second register of a tensor: of a streamed weight, the first that has its type."""
        if len(tensors) == 1 and isinstance(var.ty, relax.TensorType):
            (tensor,) = tensors
            if tensor.size is None:
                tensor.size = _known(var)
            tensor.registers.append(var)

    def _call(self, var: relax.Var, call: relax.Call) -> None:
        op = call.op
        kind = type(op)
        if kind is ir.GlobalVar and isinstance(self.mod.functions.get(op), tirx.PrimFunc):
            self._kernel(call)
        elif kind is ir.Op:
            if op in self._on_op:
                self._on_op[op](var, call)
            else:
                self._unknown(var, call)
        elif kind is relax.ExternFunc:
            name = op.global_symbol
            if name == BUILTIN:
                self._update(var, call)
            elif name == MAKE_SHAPE:
                self._shapes[var] = self._heap.shape(call)
            elif name == _GET_ITEM:
                self._read(var, call.args[0], call.args[1].value)
            elif name in VIEWS:
                self._use(call.args[:1])
                self._hold(var, self._held.get(call.args[0], ()))
            elif name.startswith(_LOOKS_ONLY):
                self._use(call.args[:])
                if name == MATCH_SHAPE:
                    self._heap.match(call)
            else:
                self._unknown(var, call)
        elif kind is relax.Var:  # a function that is a parameter: it yields a weight
            self._use(call.args[:])
            self._new(var, _known(var), var.name)
        else:
            self._unknown(var, call)

    def _ignore(self, _var: relax.Var, _call: relax.Call) -> None:
        pass

    def _unknown(self, var: relax.Var, value: relax.Expr) -> None:
        """What may keep what it is given, and may hold what it returns."""
        for used in relax.analysis.free_vars(value)[:]:
            for tensor in self._held.get(used, ()):
                self._used(tensor)
                tensor.is_hidden = True
            if used in self._places:
                root, _ = self._places[used]
                for place, tensors in self._slots.items():
                    if place[0].same_as(root):
                        for tensor in tensors:
                            tensor.is_hidden = True
        if not is_statement(var):
            self._new(var, None, var.name).is_hidden = True

    def _new(self, var: relax.Var, size: Size | None, name: str) -> _Tensor:
        tensor = _Tensor(name, size, [var], born=self._at)
        self.tensors.append(tensor)
        self._hold(var, [tensor])
        return tensor

    def _alloc_tensor(self, var: relax.Var, call: relax.Call) -> None:
        tensor = self._new(var, self._size_of(call), var.name)
        tensor.is_allocated = True

    def _size_of(self, alloc_tensor: relax.Call) -> Size | None:
        """Its bytes: a symbolic shape comes from the shape heap."""
        shape, dtype = alloc_tensor.args[2:4]
        dims = self._shapes.get(shape) if isinstance(shape, relax.Var) else shape.values[:]
        return None if dims is None else size_of(relax.TensorType(dims, str(dtype.value)))

    def _kernel(self, call: relax.Call) -> None:
        args = call.args[:]
        if len(args) == 1 and args[0] not in self._held:
            self._heap.compute(self.mod[call.op])  # the one argument is the shape heap
        self._use(args)
        for arg in args:
            for tensor in self._held.get(arg, ()):
                tensor.is_read = True
        attrs = self.mod[call.op].attrs
        for given, result in attrs[INPLACE] if attrs and INPLACE in attrs else ():
            self._chance(args, int(given), int(result))

    def _chance(self, args: Sequence[relax.Expr], given: int, result: int) -> None:
        register, out = args[given], args[result]
        donors, results = self._held.get(register, ()), self._held.get(out, ())
        if len(donors) != 1 or len(results) != 1 or sum(register.same_as(arg) for arg in args) != 1:
            return
        (donor,), (new,) = donors, results
        if register not in donor.registers or not new.is_allocated or new.used_first != self._at:
            return  # a view, or a result that is there already
        if any(isinstance(h, relax.Var) and not h.same_as(register) for h in donor.holders):
            return
        places = [holder for holder in donor.holders if isinstance(holder, tuple)]
        self.chances.append(_Chance(self._at, donor, register, new, places))

    def _use(self, args: Sequence[relax.Expr]) -> None:
        beside = None
        for arg in args:
            for tensor in self._held.get(arg, ()):
                if tensor.used_first is None and tensor.is_allocated:
                    continue
                if beside is None and isinstance(arg.ty, relax.TensorType):
                    beside = arg
        for arg in args:
            for tensor in self._held.get(arg, ()):
                if tensor.used_first is None:
                    tensor.beside = beside
                self._used(tensor)

    def _used(self, tensor: _Tensor) -> None:
        if tensor.used_first is None:
            tensor.used_first = self._at
        tensor.used_last = self._at

    def _read(self, var: relax.Var, source: relax.Expr, index: int) -> None:
        if source not in self._places:  # a field of a tuple that was made here, or returned
            self._hold(var, self._held.get(source, ()))
            return
        root, path = self._places[source]
        place = (root, (*path, index))
        if isinstance(var.ty, relax.TupleType):
            self._places[var] = place
            return
        if place not in self._slots:
            tensor = _Tensor(f"slot {_text(place)}", _known(var), [])
            tensor.holders[place] += 1
            self.tensors.append(tensor)
            self._fill(place, [tensor])
        tensors = self._slots[place]
        self._hold(var, tensors)
        self._name(var, tensors)

    def _update(self, var: relax.Var, call: relax.Call) -> None:
        source, index, value = call.args[:]
        if not is_statement(var) and source in self._places:
            self._places[var] = self._places[source]
        new = list(self._held.get(value, ()))
        if source not in self._places:  # a tuple that was made here, or returned
            holder = source
            if not is_statement(var):
                self._hold(var, self._held.get(source, ()))
                holder = var
            self._hold(holder, new)
            return
        root, path = self._places[source]
        place = (root, (*path, index.value))
        for tensor in new:
            tensor.holders[place] += 1
            self._used(tensor)
            if tensor.slot is None:
                tensor.slot = _text(place)
        for held in (place, *self._inside.pop(place, ())):
            self._release(self._slots.pop(held, ()), held)
        self._fill(place, new)

    def _fill(self, place: Place, tensors: list[_Tensor]) -> None:
        self._slots[place] = tensors
        root, path = place
        for length in range(1, len(path)):
            self._inside[root, path[:length]].add(place)

    def _kill(self, _var: relax.Var, call: relax.Call) -> None:
        self._release(self._held.pop(call.args[0], ()), call.args[0])

    def _hold(self, var: relax.Var, tensors: Iterable[_Tensor]) -> None:
        for tensor in list(tensors):
            self._held.setdefault(var, []).append(tensor)
            tensor.holders[var] += 1
            tensor.used_last = self._at

    def _release(self, tensors: Iterable[_Tensor], holder: relax.Var | Place) -> None:
        for tensor in tensors:
            tensor.holders[holder] -= 1
            if not tensor.holders[holder]:
                del tensor.holders[holder]
            if not tensor.holders:
                tensor.spent = self._at


def _known(var: relax.Var) -> Size | None:
    """The bytes of a tensor, where its type says so."""
    ty = var.ty
    if not isinstance(ty, relax.TensorType) or ty.dtype is None:
        return None
    return size_of(ty) if isinstance(ty.shape, relax.ShapeExpr) else None


def _text(place: Place) -> str:
    return ".".join(map(str, place[1]))


# -- who takes what -------------------------------------------------------------------------


class _Decision:
    def __init__(self, trace: _Trace):
        self.trace = trace
        self.sizes = {t: t.size for t in trace.tensors if t.size is not None}
        self.start: Size = sum((s for t, s in self.sizes.items() if t.born < 0), start=0)
        # What happens to known memory, by position: allocations right before their first use.
        events: dict[int, Moment[_Tensor]] = defaultdict(Moment)
        for tensor in self.sizes:
            if tensor.born >= 0:
                at = tensor.used_first if tensor.is_allocated else tensor.born
                events[tensor.born if at is None else at].allocated.append(tensor)
            if tensor.spent is not None:
                events[tensor.spent].spent.append(tensor)
        self.moments = [events[at] for at in sorted(events)]
        self.in_place: dict[_Tensor, _Chance] = {}  # by the result
        # What lies in place, and what it lies in: see take_spare.
        self.rises: dict[_Tensor, Size] = {}
        self.falls: dict[_Tensor, Size] = {}

    def made(self, shrinks: bool) -> Donation:
        before = self._peak()
        self._decide_in_place()
        peak = self._peak()
        for moment in self.moments:
            moment.takes = {t for t in moment.allocated if _moves(t) and t not in self.rises}
            moment.leaves = {t for t in moment.spent if _stays(t) and t not in self.falls}
        donors = take_spare(
            self.moments, self.sizes, self.start, peak, self.rises, self.falls, shrinks
        )
        taken = [
            self._taken(tensor, donors)
            for moment in self.moments
            for tensor in moment.allocated
            if _moves(tensor)
        ]
        gone = {*donors.values(), *self.falls}
        dropped = [
            self._spent(tensor)
            for moment in self.moments
            for tensor in moment.spent
            if _stays(tensor) and tensor not in gone
        ]
        return Donation(taken, dropped, before, peak)

    def _decide_in_place(self) -> None:
        for chance in self.trace.chances:
            donor, result = chance.donor, chance.result
            if (
                donor not in self.falls
                and result not in self.rises
                and donor.used_last == chance.at
                and donor.spent is not None
                and not donor.is_hidden
                and donor in self.sizes
                and result in self.sizes
                and covers(self.sizes[donor], self.sizes[result])
            ):
                self.in_place[result] = chance
                self.rises[result] = 0
                self.falls[donor] = self.sizes[donor] - self.sizes[result]

    def _peak(self) -> Size | LargestOf:
        """The most that is live at any time, with what lies in place so far."""
        live = self.start
        lives: list[Size] = [live]
        for moment in self.moments:
            for tensor in moment.allocated:
                live = live + self.rises.get(tensor, self.sizes[tensor])
            lives.append(live)
            for tensor in moment.spent:
                live = live - self.falls.get(tensor, self.sizes[tensor])
        return largest(lives)

    def _taken(self, tensor: _Tensor, donors: Mapping[_Tensor, _Tensor]) -> Taken:
        chance, donor = self.in_place.get(tensor), donors.get(tensor)
        assert tensor.used_first is not None and tensor.beside is not None
        spent, emptied = None, []
        if chance is not None:
            spent = dataclasses.replace(self._spent(chance.donor), register=chance.register)
            emptied = chance.places
        elif donor is not None:
            spent = self._spent(donor)
        return Taken(
            tensor.registers[0],
            tensor.slot,
            self.trace.vars[tensor.used_first],
            tensor.beside,
            spent,
            emptied,
            chance is not None,
            spent is not None and spent.size != self.sizes[tensor],
            self.sizes[tensor],
        )

    def _spent(self, tensor: _Tensor) -> Spent:
        assert tensor.spent is not None
        at = self.trace.vars[tensor.spent]
        return Spent(tensor.name, tensor.registers[-1], at, self.sizes[tensor])


def _moves(tensor: _Tensor) -> bool:
    """Whether an allocation can be replaced: it is the function's own, and its device is known."""
    return tensor.is_allocated and tensor.used_first is not None and tensor.beside is not None


def _stays(tensor: _Tensor) -> bool:
    """Whether what is spent can be kept: a register holds it, and nothing that is not seen.

    What no kernel reads has but the register of VMShapeLower's checks: held on, it would count as
    a reference from outside when ``vm.builtin.check_memory_limit`` looks for these.
    """
    return tensor.is_read and bool(tensor.registers) and not tensor.is_hidden
