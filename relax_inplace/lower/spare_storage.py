"""Which spent storage an allocation takes, so that least is allocated and the peak is not raised.

Definition
----------
Storages are allocated and spent, in a known order. A spent one may be *spare*: it stays allocated
until an allocation takes it, of the same size; or of a smaller one, where what is not needed of a
storage can be given back, and no allocation of its own size is left for it. It stays as long as
what is live, all spare storages and the allocation at hand are within a given peak; where room is
wanted, the one whose size is asked for least goes. Of one size the one that was spent last is taken
first: it is most likely still in a cache.

So the largest storages should be spent first: each size then begins with one of the size before it,
and one storage is allocated in all.
"""

from __future__ import annotations

import bisect
import dataclasses
import heapq
import operator
from collections import Counter, deque
from collections.abc import Hashable, Mapping, Sequence
from itertools import chain
from typing import Generic, TypeVar

from ..ir.byte_size import ByteSize, LargestOf, Size, covers

__all__ = ["Moment", "take_spare"]

_Storage = TypeVar("_Storage")


@dataclasses.dataclass
class Moment(Generic[_Storage]):
    """What is allocated at once, and what is spent after it.

    Attributes
    ----------
    allocated : list
    spent : list
    takes, leaves : set
        Of these, what may take a spare storage, and what may be one.
    """

    allocated: list[_Storage] = dataclasses.field(default_factory=list)
    spent: list[_Storage] = dataclasses.field(default_factory=list)
    takes: set[_Storage] = dataclasses.field(default_factory=set)
    leaves: set[_Storage] = dataclasses.field(default_factory=set)


def take_spare(
    moments: Sequence[Moment[_Storage]],
    sizes: Mapping[_Storage, Size],
    start: Size,
    peak: Size | LargestOf,
    rises: Mapping[_Storage, Size],
    falls: Mapping[_Storage, Size],
    shrinks: bool,
) -> dict[_Storage, _Storage]:
    """Decide which allocation takes the storage of what.

    Parameters
    ----------
    moments : sequence of Moment
        In order.
    sizes : mapping
        Bytes of each.
    start : int or ByteSize
        Bytes that are live before the first moment.
    peak : int, ByteSize or LargestOf
        Bytes that spare storages may fill up to.
    rises, falls : mapping
        By how many bytes an allocation raises what is live, and what is spent lowers it, where
        that is not its size.
    shrinks : bool
        Whether what is not needed of a storage can be given back.

    Returns
    -------
    dict
        From what is allocated to what was spent. What is not in it is allocated anew.
    """
    spare: _Spare[_Storage] = _Spare(
        Counter(sizes[one] for moment in moments for one in moment.allocated if one in moment.takes)
    )
    taken: dict[_Storage, _Storage] = {}
    live = start
    for moment in moments:
        for one in moment.allocated:
            size = sizes[one]
            live = live + rises.get(one, size)
            if one in moment.takes:
                found = spare.taken_for(size, shrinks)
                if found is not None:
                    taken[one] = found
        while spare.count and not covers(peak, live + spare.bytes):
            spare.drop()
        for one in moment.spent:
            size = sizes[one]
            live = live - falls.get(one, size)
            if (
                one in moment.leaves
                and spare.is_wanted(size, shrinks)
                and covers(peak, live + spare.bytes + size)
            ):
                spare.add(one, size)
    return taken


@dataclasses.dataclass(eq=False)
class _OfSize(Generic[_Storage]):
    """The spare storages of one size.

    Attributes
    ----------
    size : int or ByteSize
    line : list of _OfSize
        Those of its line of which more is spare than is asked for, in order of size.
    waiting : int
        How many allocations of the size are to come.
    place : int
        Among sizes as they are first seen: of equals, the first is taken. -1 before.
    storages : deque
        As they were spent.
    is_surplus : bool
        Whether there are more than are asked for.
    multiple : int
        Of what the sizes of its line are multiples of.
    """

    size: Size
    line: list[_OfSize[_Storage]]
    waiting: int
    place: int = -1
    storages: deque[_Storage] = dataclasses.field(default_factory=deque)
    is_surplus: bool = False
    multiple: int = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.multiple = _multiple(self.size)


class _Spare(Generic[_Storage]):
    """The spare storages, and the sizes that are still asked for.

    Sizes of one *line* are multiples of the same product of dimensions: each covers the smaller
    ones. Of two lines, none covers the other, but for what is no multiple of one product, which is
    a line by itself, and for no bytes, which all cover. So each question is put to one size of a
    line, found by bisection. The sum of all is ``n log n`` in the number of storages.
    """

    def __init__(self, waiting: Counter[Size]):
        self.count = 0
        self.bytes: Size = 0
        self._of: dict[Size, _OfSize[_Storage]] = {}
        self._seen = 0
        self._lines: dict[Hashable, list[_OfSize[_Storage]]] = {}
        self._by_need: list[
            tuple[int, int, _OfSize[_Storage]]
        ] = []  # a heap, with what was true, too
        self._to_come: dict[Hashable, list[_OfSize[_Storage]]] = {}  # by line, the least last
        for size in sorted(waiting, key=_multiple, reverse=True):
            self._of[size] = self._new(size, waiting[size])
            self._to_come.setdefault(_line(size), []).append(self._of[size])

    def taken_for(self, size: Size, shrinks: bool) -> _Storage | None:
        """The storage that an allocation takes, if one is there."""
        one = self._see(size)
        one.waiting -= 1
        found: _OfSize[_Storage] | None = one
        if not one.storages:
            found = self._larger(one) if shrinks else None
        storage = None if found is None else self._removed(found, last=True)
        if found is not one:
            self._changed(one)
        return storage

    def is_wanted(self, size: Size, shrinks: bool) -> bool:
        """Whether an allocation to come could take a storage of a size."""
        one = self._see(size)
        if one.waiting > len(one.storages):
            return True
        return shrinks and any(covers(size, least) for least in self._least_to_come())

    def add(self, storage: _Storage, size: Size) -> None:
        """Keep a spent storage."""
        one = self._of[size]
        one.storages.append(storage)
        self.count, self.bytes = self.count + 1, self.bytes + size
        self._changed(one)

    def drop(self) -> None:
        """Let the one go whose size is asked for least."""
        while not self._by_need[0][2].storages:
            heapq.heappop(self._by_need)
        # Ever fewer are to come: what the heap has of a size first is what is true now.
        self._removed(self._by_need[0][2], last=False)

    def _new(self, size: Size, waiting: int) -> _OfSize[_Storage]:
        return _OfSize(size, self._lines.setdefault(_line(size), []), waiting)

    def _see(self, size: Size) -> _OfSize[_Storage]:
        one = self._of.get(size)
        if one is None:
            one = self._of[size] = self._new(size, 0)
        if one.place < 0:
            one.place, self._seen = self._seen, self._seen + 1
        return one

    def _removed(self, one: _OfSize[_Storage], last: bool) -> _Storage:
        storage = one.storages.pop() if last else one.storages.popleft()
        self.count, self.bytes = self.count - 1, self.bytes - one.size
        self._changed(one)
        return storage

    def _changed(self, one: _OfSize[_Storage]) -> None:
        """Keep heap and line in step with how many storages there are, and are awaited."""
        if one.storages:
            heapq.heappush(self._by_need, (one.waiting, one.place, one))
        is_surplus = len(one.storages) > one.waiting
        if is_surplus != one.is_surplus:
            one.is_surplus = is_surplus
            at = bisect.bisect_left(one.line, one.multiple, key=_of_multiple)
            if is_surplus:
                one.line.insert(at, one)
            else:
                del one.line[at]

    def _least_to_come(self) -> list[Size]:
        """The least size of each line that is still asked for."""
        for line in list(self._to_come):
            sizes = self._to_come[line]
            while sizes and not sizes[-1].waiting:
                sizes.pop()
            if not sizes:
                del self._to_come[line]
        return [sizes[-1].size for sizes in self._to_come.values()]

    def _larger(self, one: _OfSize[_Storage]) -> _OfSize[_Storage] | None:
        """The smallest size that is larger, and of which more is spare than is asked for."""
        larger: list[tuple[list[_OfSize[_Storage]], int]] = []  # of a line, from where on
        for line in self._lines.values():
            at = bisect.bisect_left(line, one.multiple, key=_of_multiple) if line is one.line else 0
            if at < len(line) and covers(line[at].size, one.size):
                larger.append((line, at))
        if len(larger) == 1:
            line, at = larger[0]
            return line[at]
        best: _OfSize[_Storage] | None = None
        others = chain.from_iterable(line[at:] for line, at in larger)
        for other in sorted(others, key=lambda other: other.place):
            if best is None or covers(best.size, other.size):
                best = other
        return best


def _line(size: Size) -> Hashable:
    """What a size is a multiple of; itself if it is a sum."""
    if not isinstance(size, ByteSize):
        return ""
    return next(iter(size.terms)) if len(size.terms) == 1 else size


def _multiple(size: Size) -> int:
    """How many times what :func:`_line` says."""
    if not isinstance(size, ByteSize):
        return size
    return next(iter(size.terms.values())) if len(size.terms) == 1 else 1


_of_multiple = operator.attrgetter("multiple")
