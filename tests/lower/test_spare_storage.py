"""Which spent storage an allocation takes: against the definition, and what it costs."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from profiles import examples
from tvm import tirx

from relax_inplace.ir.byte_size import ByteSize, covers, largest
from relax_inplace.lower import spare_storage
from relax_inplace.lower.spare_storage import Moment, take_spare

# -- the definition, word by word -------------------------------------------------------------


def by_definition(moments, sizes, start, peak, rises, falls, shrinks):
    """What takes what; ``spare`` is all that is spare, as it was spent."""
    waiting = [sizes[one] for moment in moments for one in moment.allocated if one in moment.takes]
    seen, spare, taken, live = [], [], {}, start

    def of(size):
        return [one for one in spare if sizes[one] == size]

    def more_than_needed(size):
        return len(of(size)) > waiting.count(size)

    for moment in moments:
        for one in moment.allocated:
            size = sizes[one]
            live = live + rises.get(one, size)
            if one in moment.takes:
                seen.append(size)
                waiting.remove(size)
                larger = None
                if not of(size) and shrinks:
                    for other in dict.fromkeys(seen):
                        is_larger = more_than_needed(other) and covers(other, size)
                        if is_larger and (larger is None or covers(larger, other)):
                            larger = other
                found = of(size) or ([] if larger is None else of(larger))
                if found:
                    taken[one] = found[-1]
                    spare.remove(found[-1])
        while spare and not covers(peak, live + sum(sizes[one] for one in spare)):
            kinds = [size for size in dict.fromkeys(seen) if of(size)]
            spare.remove(of(min(kinds, key=waiting.count))[0])
        for one in moment.spent:
            size = sizes[one]
            live = live - falls.get(one, size)
            if one in moment.leaves:
                seen.append(size)
                is_wanted = waiting.count(size) > len(of(size)) or (
                    shrinks and any(covers(size, other) for other in waiting)
                )
                if is_wanted and covers(peak, live + sum(sizes[s] for s in spare) + size):
                    spare.append(one)
    return taken


PRODUCTS = {name: tirx.Var(name, "int64") for name in ("n", "m")}


def some_size(choose, products):
    """A number, a multiple of one product, or a sum."""
    terms = {name: choose.randint(1, 6) for name in products if choose.random() < 0.6}
    if not set(terms) - {""}:
        return choose.randint(0, 12)
    return ByteSize(terms, PRODUCTS)


def instance(seed):
    """Allocations and deaths at random, in sizes of which many are equal."""
    choose = random.Random(seed)
    products = choose.choice([[""], ["n"], ["n", "m", ""]])
    pool = [some_size(choose, products) for _ in range(choose.randint(1, 12))]
    sizes = {one: choose.choice(pool) for one in range(choose.randint(1, 40))}
    count = choose.randint(0, len(sizes))
    live, to_come = list(range(count)), list(range(count, len(sizes)))
    start = level = sum(sizes[one] for one in live)
    moments, levels = [], [start]
    while live or to_come:
        moment = Moment()
        for _ in range(min(choose.choice([0, 1, 1, 2]), len(to_come))):
            moment.allocated.append(to_come.pop(0))
        live += moment.allocated
        level = level + sum(sizes[one] for one in moment.allocated)
        levels.append(level)
        for _ in range(min(choose.choice([0, 1, 1, 2]), len(live))):
            moment.spent.append(live.pop(choose.randrange(len(live))))
        level = level - sum(sizes[one] for one in moment.spent)
        moment.takes = {one for one in moment.allocated if choose.random() < 0.8}
        moment.leaves = {one for one in moment.spent if choose.random() < 0.8}
        moments.append(moment)
    peak = largest([*levels, choose.choice([0, start + choose.randint(0, 40)])])
    in_place = {one: 0 for one in sizes if choose.random() < 0.1}
    return moments, sizes, start, peak, in_place, in_place, choose.random() < 0.7


@given(st.integers(0, 1 << 32))
@examples(1000)
def test_what_is_taken_is_the_definition(seed):
    problem = instance(seed)
    assert take_spare(*problem) == by_definition(*problem)


# -- what it costs ----------------------------------------------------------------------------


@pytest.mark.parametrize("unit", [1, ByteSize({"n": 1}, PRODUCTS)])
def test_the_cost_is_linear_in_different_sizes(unit, monkeypatch):
    """Of comparisons; each size is found by bisection."""
    counts = []
    for count in (200, 2000):
        sizes = {("w", i): (1000 + 7 * i) * unit for i in range(count)}
        sizes |= {("o", i): (1000 + 5 * i) * unit for i in range(count)}
        moments = [Moment([("o", i)], [("w", i)], {("o", i)}, {("w", i)}) for i in range(count)]
        start = sum(sizes["w", i] for i in range(count))
        calls = []
        monkeypatch.setattr(
            spare_storage, "covers", lambda *pair, calls=calls: calls.append(0) or covers(*pair)
        )
        assert take_spare(moments, sizes, start, 2 * start, {}, {}, shrinks=True)
        counts.append(len(calls))
    assert counts[1] <= 11 * counts[0]


# -- what it promises -------------------------------------------------------------------------


@st.composite
def moments(draw):
    """Of storages: each is allocated in one moment, and spent in it or in a later one.

    Their sizes, by how much each changes what is live, and the moments.
    """
    sizes, counted, found, live = {}, {}, [], []
    for _ in range(draw(st.integers(1, 8))):
        moment = Moment()
        for _ in range(draw(st.integers(0, 2))):
            one = f"s{len(sizes)}"
            sizes[one] = draw(st.integers(1, 4))
            counted[one] = draw(st.sampled_from([sizes[one], sizes[one], 0]))
            moment.allocated.append(one)
        live += moment.allocated
        moment.spent = [one for one in live if draw(st.booleans())]
        live = [one for one in live if one not in moment.spent]
        moment.takes = {one for one in moment.allocated if draw(st.integers(0, 4))}
        moment.leaves = {one for one in moment.spent if draw(st.integers(0, 4))}
        found.append(moment)
    return sizes, counted, found


@examples(500)
@given(moments(), st.integers(0, 6), st.booleans())
def test_what_is_taken_was_left_and_the_peak_stays(drawn, room, shrinks):
    sizes, counted, order = drawn
    live, during, after = 3, [], []
    for moment in order:
        live += sum(counted[one] for one in moment.allocated)
        during.append(live)
        live -= sum(counted[one] for one in moment.spent)
        after.append(live)
    peak = max(during) + room
    taken = take_spare(order, sizes, 3, peak, counted, counted, shrinks)

    spent_at = {one: at for at, moment in enumerate(order) for one in moment.spent}
    taken_at = {taken[one]: at for at, m in enumerate(order) for one in m.allocated if one in taken}
    assert len(taken_at) == len(taken)  # each once
    for one, storage in taken.items():
        assert spent_at[storage] < taken_at[storage]
        assert storage in order[spent_at[storage]].leaves
        assert one in order[taken_at[storage]].takes
        assert sizes[storage] == sizes[one] or (shrinks and sizes[storage] > sizes[one])
    for at in range(len(order)):
        kept = {one for one in taken_at if spent_at[one] <= at < taken_at[one]}
        assert after[at] + sum(sizes[one] for one in kept) <= peak
        kept -= set(order[at].spent)
        assert during[at] + sum(sizes[one] for one in kept) <= peak


def row(*sizes):
    """Storages that are allocated one after the other, each spent before the next one."""
    names = [f"s{i}" for i in range(len(sizes))]
    order = [Moment([one], [one], {one}, {one}) for one in names]
    return order, dict(zip(names, sizes, strict=True))


def test_the_largest_first_is_one_storage():
    order, sizes = row(4, 4, 2, 1)
    taken = take_spare(order, sizes, 0, 4, {}, {}, shrinks=True)
    assert taken == {"s1": "s0", "s2": "s1", "s3": "s2"}


def test_what_cannot_be_cut_is_for_its_size():
    order, sizes = row(4, 2, 4, 2)
    taken = take_spare(order, sizes, 0, 6, {}, {}, shrinks=False)
    assert taken == {"s2": "s0", "s3": "s1"}


def test_without_room_nothing_is_kept():
    order, sizes = row(4, 2, 4)
    assert take_spare(order, sizes, 0, 5, {}, {}, shrinks=False) == {}


def test_what_does_not_count_while_it_is_used_counts_while_it_is_spare():
    order, sizes = row(4, 4)
    none = dict.fromkeys(sizes, 0)
    assert take_spare(order, sizes, 3, 6, none, none, shrinks=False) == {}
    assert take_spare(order, sizes, 3, 7, none, none, shrinks=False) == {"s1": "s0"}


def test_what_was_spent_last_is_taken_first():
    order = [Moment(["a", "b"], ["a"], set(), {"a"}), Moment([], ["b"], set(), {"b"})]
    order += [Moment(["c"], [], {"c"}), Moment(["d"], [], {"d"})]
    sizes = dict.fromkeys("abcd", 1)
    assert take_spare(order, sizes, 0, 2, {}, {}, shrinks=False) == {"c": "b", "d": "a"}
