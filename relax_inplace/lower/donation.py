"""Which allocation of a lowered function takes the storage of which spent tensor.

Definition
----------
The storage of a spent tensor (:mod:`.tensor_trace`) can be taken by an allocation that comes later
(*donated*), or, if the kernel that reads it last may write over what it reads
(``relax_inplace.inplace``, an attribute of the kernel), by that kernel's own result (*in place*).

What is decided, in this order:

1. A result lies in place where it may: that takes no memory at all.
2. Any other allocation takes the storage of a tensor of the same size; or, if there is none and
   what is not needed of it can be given back, of a larger one.

Let the peak be the most that is live at any time with 1 alone: spare storages fill it up, and never
go beyond (:mod:`.spare_storage`), whichever branches are taken. So it is never above what it was
without donation, and layers of equal sizes rotate through one spare storage: after the first of
each size nothing is allocated.

The pages of a spent tensor can also be moved to the result of the kernel that reads it last, where
that only moves runs of it (``relax_inplace.of_pages``): they are *offered*. No plan counts on it.

What is decided here is what the compiled function asks for. Whether a storage is really nobody
else's is known when it runs: ``vm.builtin.donate_storage`` counts references, and allocates if it
is not.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections import defaultdict
from collections.abc import Mapping

from tvm import relax

from ..ir.byte_size import LargestOf, Size, covers, largest
from .spare_storage import Moment, take_spare
from .tensor_trace import Chance, Place, Tensor, TensorTrace

__all__ = ["Donation", "Offered", "Spent", "Taken", "find_donation", "is_small"]

_LEAST = 1 << 16  # bytes: below, what is moved or given back is hardly a page


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
    donor: Spent | None
    emptied: list[Place]
    in_place: bool
    shrinks: bool
    size: Size


@dataclasses.dataclass(eq=False)
class Offered:
    """A tensor whose pages the kernel that reads it last may move.

    Attributes
    ----------
    register : relax.Var
        In which the kernel is given it.
    by : relax.Var
        Of the binding that calls the kernel.
    emptied : list of Place
        The slots that hold it, and are empty while the kernel runs.
    """

    register: relax.Var
    by: relax.Var
    emptied: list[Place]


@dataclasses.dataclass
class Donation:
    """What is decided for one sequence of bindings.

    Attributes
    ----------
    taken : list of Taken
        In the order in which they are used first.
    dropped : list of Spent
        What is spent and taken by nothing.
    offered : list of Offered
    peak_before, peak : int, ByteSize or LargestOf
        The most that is live at any time, without donation and with it.
    """

    taken: list[Taken]
    dropped: list[Spent]
    offered: list[Offered]
    peak_before: Size | LargestOf
    peak: Size | LargestOf


def find_donation(trace: TensorTrace, shrinks: bool) -> Donation:
    """Decide for a sequence of bindings: a function's body, or a branch of it.

    Parameters
    ----------
    trace : TensorTrace
        Of the sequence.
    shrinks : bool
        Whether what is not needed of a storage can be given back: on a host.
    """
    return _Decision(trace).made(shrinks)


class _Decision:
    def __init__(self, trace: TensorTrace):
        self.trace = trace
        # What is not sure to be allocated leaves less room for spare storages, and is no peak.
        self.unsure = {t: t.at_most for t in trace.tensors if t.at_most is not None}
        self.sizes = {t: t.size for t in trace.tensors if t.size is not None} | self.unsure
        self.start: Size = sum((s for t, s in self.sizes.items() if t.born < 0), start=0)
        # What happens to known memory, by position: allocations right before their first use.
        events: dict[int, Moment[Tensor]] = defaultdict(Moment)
        for tensor in self.sizes:
            if tensor.born >= 0:
                at = tensor.used_first if tensor.is_allocated else tensor.born
                events[tensor.born if at is None else at].allocated.append(tensor)
            if tensor.spent is not None:
                events[tensor.spent].spent.append(tensor)
        self.moments = [events[at] for at in sorted(events)]
        self.in_place: dict[Tensor, Chance] = {}  # by the result
        # What lies in place, and what it lies in: see take_spare.
        self.rises: dict[Tensor, Size] = {}
        self.falls: dict[Tensor, Size] = {}

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
        return Donation(taken, dropped, self._offered(), before, peak)

    def _offered(self) -> list[Offered]:
        return [
            Offered(chance.register, self.trace.vars[chance.at], chance.places)
            for chance in self.trace.chances
            if chance.result is None
            and not is_small(self.sizes.get(chance.donor))
            and self._may_be_emptied(chance)
        ]

    def _decide_in_place(self) -> None:
        for chance in self.trace.chances:
            donor, result = chance.donor, chance.result
            if (
                result is not None
                and donor not in self.falls
                and result not in self.rises
                and self._may_be_emptied(chance)
                and donor in self.sizes
                and result in self.sizes
                and covers(self.sizes[donor], self.sizes[result])
            ):
                self.in_place[result] = chance
                self.rises[result] = 0
                self.falls[donor] = self.sizes[donor] - self.sizes[result]

    def _may_be_emptied(self, chance: Chance) -> bool:
        """Whether the donor is spent with the kernel, and nothing reads slots that hold it then."""
        donor = chance.donor
        if donor.used_last != chance.at or donor.spent is None or donor.is_hidden:
            return False
        if not chance.places:
            return True
        unseen = self.trace.reads_unseen
        at = bisect.bisect_right(unseen, chance.at)
        is_read = at < len(unseen) and unseen[at] < donor.spent
        return not is_read and not donor.may_live_on

    def _peak(self) -> Size | LargestOf:
        """The most that is live at any time, with what lies in place so far."""
        live = self.start
        lives: list[Size] = [live]
        for moment in self.moments:
            for tensor in moment.allocated:
                if tensor not in self.unsure:
                    live = live + self.rises.get(tensor, self.sizes[tensor])
            lives.append(live)
            for tensor in moment.spent:
                if tensor not in self.unsure:
                    live = live - self.falls.get(tensor, self.sizes[tensor])
        return largest(lives)

    def _taken(self, tensor: Tensor, donors: Mapping[Tensor, Tensor]) -> Taken:
        chance, donor = self.in_place.get(tensor), donors.get(tensor)
        assert tensor.used_first is not None
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
            spent,
            emptied,
            chance is not None,
            spent is not None and spent.size != self.sizes[tensor],
            self.sizes[tensor],
        )

    def _spent(self, tensor: Tensor) -> Spent:
        assert tensor.spent is not None
        at = self.trace.vars[tensor.spent]
        return Spent(tensor.name, tensor.registers[-1], at, self.sizes[tensor])


def is_small(size: Size | None) -> bool:
    """Whether its pages are hardly worth it: a size that is not known may be large."""
    return isinstance(size, int) and size < _LEAST


def _moves(tensor: Tensor) -> bool:
    """Whether an allocation can be replaced: it is the function's own."""
    return tensor.is_allocated and tensor.used_first is not None


def _stays(tensor: Tensor) -> bool:
    """Whether what is spent can be kept: a register holds it, and nothing that is not seen.

    What no kernel reads has but the register of VMShapeLower's checks: held on, it would count as
    a reference from outside when ``vm.builtin.check_memory_limit`` looks for these.
    """
    return tensor.is_read and bool(tensor.registers) and not tensor.is_hidden
