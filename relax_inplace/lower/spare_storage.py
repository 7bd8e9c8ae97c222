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

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Generic, TypeVar

from ..ir.byte_size import LargestOf, Size, covers

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
    waiting: Counter[Size] = Counter(
        sizes[one] for moment in moments for one in moment.allocated if one in moment.takes
    )
    taken: dict[_Storage, _Storage] = {}
    spare: dict[Size, list[_Storage]] = defaultdict(list)
    kept = 0  # how many
    held: Size = 0  # bytes of these
    live = start
    for moment in moments:
        for one in moment.allocated:
            size = sizes[one]
            live = live + rises.get(one, size)
            if one not in moment.takes:
                continue
            waiting[size] -= 1
            found: Size | None = size if spare[size] else None
            if found is None and shrinks:
                found = _larger(size, spare, waiting)
            if found is not None:
                taken[one] = spare[found].pop()
                kept, held = kept - 1, held - found
        while kept and not covers(peak, live + held):
            size = _least_wanted(spare, waiting)
            spare[size].pop(0)
            kept, held = kept - 1, held - size
        for one in moment.spent:
            size = sizes[one]
            live = live - falls.get(one, size)
            if (
                one in moment.leaves
                and _is_wanted(size, spare, waiting, shrinks)
                and covers(peak, live + held + size)
            ):
                spare[size].append(one)
                kept, held = kept + 1, held + size
    return taken


def _is_wanted(
    size: Size, spare: Mapping[Size, Sequence[_Storage]], waiting: Mapping[Size, int], shrinks: bool
) -> bool:
    """Whether an allocation to come could take a storage of a size."""
    if waiting[size] > len(spare[size]):
        return True
    return shrinks and any(count and covers(size, other) for other, count in waiting.items())


def _larger(
    size: Size, spare: Mapping[Size, Sequence[_Storage]], waiting: Mapping[Size, int]
) -> Size | None:
    """The smallest size of a spare storage that is larger, and that nothing of its size needs."""
    best: Size | None = None
    for other, storages in spare.items():
        if (
            len(storages) > waiting[other]
            and covers(other, size)
            and (best is None or covers(best, other))
        ):
            best = other
    return best


def _least_wanted(spare: Mapping[Size, Sequence[_Storage]], waiting: Mapping[Size, int]) -> Size:
    sizes: Iterable[Size] = (size for size, storages in spare.items() if storages)
    return min(sizes, key=lambda size: waiting[size])
