"""Which allocation of a lowered function takes the storage of which spent tensor.

Definition
----------
A tensor is *spent* when nothing in the function holds it any more: no register, no slot of a tuple
that it updates. Its storage can be taken by an allocation that comes later (*donated*), or, if the
kernel that reads it last may write over what it reads (``relax_inplace.inplace``, an attribute of
the kernel), by that kernel's own result (*in place*).

What is decided, in this order:

1. A result lies in place where it may: that takes no memory at all.
2. Any other allocation takes the storage of the tensor of the same size that was spent last.

Until it is taken a spent storage is *spare*: it stays allocated. Let the peak be the most that is
live at any time with 1 alone. A spare storage is kept as long as what is live, all spare ones and
the allocation at hand stay within that peak, and there is an allocation of its size to come. So the
peak is never above what it was without donation, and layers of equal sizes rotate through one spare
storage: after the first of each size nothing is allocated.

What is decided here is what the compiled function asks for. Whether a storage is really nobody
else's is known when it runs: ``vm.builtin.donate_storage`` counts references, and allocates if it
is not. A larger storage is not taken (but by a smaller result in place, which gives the rest back):
a weight would keep what it does not need for as long as it is loaded.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from tvm import ir, relax, tirx

from ..op import BUILTIN, is_statement
from .byte_size import LargestOf, Size, covers, largest, size_of

__all__ = ["INPLACE", "Donation", "Place", "Spent", "Taken", "find_donation"]

INPLACE = "relax_inplace.inplace"  # of a kernel: [input, output], parameters that may be one memory

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
    """

    tensor: relax.Var
    slot: str | None
    by: relax.Var
    beside: relax.Var
    donor: Spent | None
    emptied: list[Place]
    in_place: bool
    shrinks: bool


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
    sequence: relax.SeqExpr, params: Sequence[relax.Var], mod: ir.IRModule
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
    """
    trace = _Trace(params, mod)
    trace.run(sequence)
    return _Decision(trace).made()


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
            elif name == _GET_ITEM:
                self._read(var, call.args[0], call.args[1].value)
            elif name in VIEWS:
                self._use(call.args[:1])
                self._hold(var, self._held.get(call.args[0], ()))
            elif name.startswith(_LOOKS_ONLY):
                self._use(call.args[:])
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
            root, _ = self._places.get(used, (None, ()))
            for place in [place for place in self._slots if place[0] is root]:
                for tensor in self._slots[place]:
                    tensor.is_hidden = True
        if not is_statement(var):
            self._new(var, None, var.name).is_hidden = True

    def _new(self, var: relax.Var, size: Size | None, name: str) -> _Tensor:
        tensor = _Tensor(name, size, [var], born=self._at)
        self.tensors.append(tensor)
        self._hold(var, [tensor])
        return tensor

    def _alloc_tensor(self, var: relax.Var, call: relax.Call) -> None:
        tensor = self._new(var, _known(var), var.name)
        tensor.is_allocated = True

    def _kernel(self, call: relax.Call) -> None:
        args = call.args[:]
        self._use(args)
        attrs = self.mod[call.op].attrs
        for given, result in attrs[INPLACE] if attrs and INPLACE in attrs else ():
            self._chance(args, int(given), int(result))

    def _chance(self, args: Sequence[relax.Expr], given: int, result: int) -> None:
        register, out = args[given], args[result]
        donors, results = self._held.get(register, ()), self._held.get(out, ())
        if len(donors) != 1 or len(results) != 1 or args.count(register) != 1:
            return
        (donor,), (new,) = donors, results
        if register not in donor.registers or not new.is_allocated or new.used_first != self._at:
            return  # a view, or a result that is there already
        if any(isinstance(h, relax.Var) and h is not register for h in donor.holders):
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
        if source not in self._places:  # a tuple of unknown origin
            for tensor in new:
                tensor.is_hidden = True
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
        for tensor in tensors:
            self._held.setdefault(var, []).append(tensor)
            tensor.holders[var] += 1

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
        known = [tensor for tensor in trace.tensors if tensor.size is not None]
        self.start: Size = sum((t.size for t in known if t.born < 0), start=0)  # type: ignore
        # What happens to known memory, in order: allocations right before their first use.
        self.events: dict[int, tuple[list[_Tensor], list[_Tensor]]] = defaultdict(lambda: ([], []))
        for tensor in known:
            if tensor.born >= 0:
                at = tensor.used_first if tensor.is_allocated else tensor.born
                self.events[tensor.born if at is None else at][0].append(tensor)
            if tensor.spent is not None:
                self.events[tensor.spent][1].append(tensor)
        self.moments = sorted(self.events)
        self.in_place: dict[_Tensor, _Chance] = {}  # by the result
        self.donors: dict[_Tensor, _Tensor] = {}  # by the allocation

    def made(self) -> Donation:
        before = self._peak()
        self._decide_in_place()
        peak = self._peak()
        self._decide_donors(peak)
        taken = [self._taken(t) for at in self.moments for t in self.events[at][0] if _moves(t)]
        gone = {*self.donors.values(), *(chance.donor for chance in self.in_place.values())}
        dropped = [
            self._spent(tensor)
            for tensor in self.trace.tensors
            if tensor not in gone
            and tensor.registers
            and tensor.spent is not None
            and tensor.size is not None
            and not tensor.is_hidden
        ]
        return Donation(taken, dropped, before, peak)

    def _decide_in_place(self) -> None:
        donors: set[_Tensor] = set()
        for chance in self.trace.chances:
            donor, result = chance.donor, chance.result
            if (
                donor not in donors
                and result not in self.in_place
                and donor.used_last == chance.at
                and donor.spent is not None
                and not donor.is_hidden
                and donor.size is not None
                and result.size is not None
                and covers(donor.size, result.size)
            ):
                self.in_place[result] = chance
                donors.add(donor)

    def _decide_donors(self, peak: Size | LargestOf) -> None:
        waiting = Counter(
            tensor.size
            for at in self.moments
            for tensor in self.events[at][0]
            if _moves(tensor) and tensor not in self.in_place
        )
        result_in = {chance.donor: result for result, chance in self.in_place.items()}
        spare: dict[Size | None, list[_Tensor]] = defaultdict(list)
        count = 0
        held: Size = 0
        live = self.start
        for at in self.moments:
            allocated, spent = self.events[at]
            for tensor in allocated:
                size = tensor.size
                assert size is not None
                if tensor in self.in_place:
                    continue
                if _moves(tensor):
                    waiting[size] -= 1
                    if spare[size]:
                        self.donors[tensor] = spare[size].pop()
                        count -= 1
                        held = held - size
                        live = live + size
                        continue
                live = live + size
                while count and not covers(peak, live + held):
                    dropped = self._least_wanted(spare, waiting)
                    count -= 1
                    held = held - dropped
            for tensor in spent:
                size = tensor.size
                assert size is not None
                live = live - size
                if tensor in result_in:
                    live = live + result_in[tensor].size
                    continue
                if (
                    tensor.registers
                    and not tensor.is_hidden
                    and waiting[size] > len(spare[size])
                    and covers(peak, live + held + size)
                ):
                    spare[size].append(tensor)
                    count += 1
                    held = held + size

    def _least_wanted(
        self, spare: dict[Size | None, list[_Tensor]], waiting: Counter[Size | None]
    ) -> Size:
        """Free the spare storage of the size that fewest allocations to come ask for; its size."""
        size = min((s for s, kept in spare.items() if kept), key=lambda s: waiting[s])
        spare[size].pop(0)
        assert size is not None
        return size

    def _peak(self) -> Size | LargestOf:
        """The most that is live at any time, with what lies in place so far."""
        donor_of = {result: chance.donor for result, chance in self.in_place.items()}
        result_in = {donor: result for result, donor in donor_of.items()}
        live = self.start
        sizes: list[Size] = [live]
        for at in self.moments:
            allocated, spent = self.events[at]
            for tensor in allocated:
                if tensor not in donor_of:
                    live = live + tensor.size
                    sizes.append(live)
            for tensor in spent:
                live = live - tensor.size
                if tensor in result_in:
                    live = live + result_in[tensor].size
        return largest(sizes)

    def _taken(self, tensor: _Tensor) -> Taken:
        chance, donor = self.in_place.get(tensor), self.donors.get(tensor)
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
            chance is not None and chance.donor.size != tensor.size,
        )

    def _spent(self, tensor: _Tensor) -> Spent:
        assert tensor.spent is not None and tensor.size is not None
        at = self.trace.vars[tensor.spent]
        return Spent(tensor.name, tensor.registers[-1], at, tensor.size)


def _moves(tensor: _Tensor) -> bool:
    """Whether an allocation can be replaced: it is the function's own, and its device is known."""
    return tensor.is_allocated and tensor.used_first is not None and tensor.beside is not None
