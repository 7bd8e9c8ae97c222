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
        self._waiting = waiting  # how many allocations of each size are to come
        self._storages: dict[Size, deque[_Storage]] = {}
        self._place: dict[Size, int] = {}  # of sizes as they are first seen; the first goes first
        self._surplus: dict[Hashable, list[Size]] = {}  # by line: those with more than are awaited
        self._by_need: list[tuple[int, int, Size]] = []  # a heap, with entries of the past in it
        self._to_come: dict[Hashable, list[Size]] = {}  # by line, the least last
        for size in sorted(waiting, key=_multiple, reverse=True):
            self._to_come.setdefault(_line(size), []).append(size)

    def taken_for(self, size: Size, shrinks: bool) -> _Storage | None:
        """The storage that an allocation takes, if one is there."""
        self._see(size)
        self._waiting[size] -= 1
        found: Size | None = size
        if not self._storages[size]:
            found = self._larger(size) if shrinks else None
        storage = None if found is None else self._removed(found, last=True)
        self._changed(size)
        return storage

    def is_wanted(self, size: Size, shrinks: bool) -> bool:
        """Whether an allocation to come could take a storage of a size."""
        self._see(size)
        if self._waiting[size] > len(self._storages[size]):
            return True
        return shrinks and any(covers(size, least) for least in self._least_to_come())

    def add(self, storage: _Storage, size: Size) -> None:
        """Keep a spent storage."""
        self._storages[size].append(storage)
        self.count, self.bytes = self.count + 1, self.bytes + size
        self._changed(size)

    def drop(self) -> None:
        """Let the one go whose size is asked for least."""
        while True:
            waiting, _, size = self._by_need[0]
            if self._storages[size] and self._waiting[size] == waiting:
                self._removed(size, last=False)
                return
            heapq.heappop(self._by_need)

    def _see(self, size: Size) -> None:
        if size not in self._storages:
            self._storages[size] = deque()
            self._place[size] = len(self._place)

    def _removed(self, size: Size, last: bool) -> _Storage:
        storages = self._storages[size]
        storage = storages.pop() if last else storages.popleft()
        self.count, self.bytes = self.count - 1, self.bytes - size
        self._changed(size)
        return storage

    def _changed(self, size: Size) -> None:
        """Keep what is known of a size in step with how many there are, and are awaited."""
        held, waiting = len(self._storages[size]), self._waiting[size]
        if held:
            heapq.heappush(self._by_need, (waiting, self._place[size], size))
        line = self._surplus.setdefault(_line(size), [])
        at = bisect.bisect_left(line, _multiple(size), key=_multiple)
        is_there = at < len(line) and line[at] == size
        if held > waiting and not is_there:
            line.insert(at, size)
        elif held <= waiting and is_there:
            del line[at]

    def _least_to_come(self) -> list[Size]:
        """The least size of each line that is still asked for."""
        for line in list(self._to_come):
            sizes = self._to_come[line]
            while sizes and not self._waiting[sizes[-1]]:
                sizes.pop()
            if not sizes:
                del self._to_come[line]
        return [sizes[-1] for sizes in self._to_come.values()]

    def _larger(self, size: Size) -> Size | None:
        """The smallest size that is larger, and of which more is spare than is asked for."""
        own = _line(size)
        larger: list[tuple[list[Size], int]] = []  # of each line that has some: from where on
        for line, sizes in self._surplus.items():
            at = bisect.bisect_left(sizes, _multiple(size), key=_multiple) if line == own else 0
            if at < len(sizes) and covers(sizes[at], size):
                larger.append((sizes, at))
        if len(larger) == 1:
            sizes, at = larger[0]
            return sizes[at]
        best: Size | None = None
        for other in sorted(
            chain(*(sizes[at:] for sizes, at in larger)), key=self._place.__getitem__
        ):
            if best is None or covers(best, other):
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
