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
