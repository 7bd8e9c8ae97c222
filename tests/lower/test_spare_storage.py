"""Which spent storage an allocation takes: what it may be, and that the peak is not raised."""

import tvm  # noqa: F401  the registration needs all of the package, once TVM is there
from hypothesis import given
from hypothesis import strategies as st
from profiles import examples

from relax_inplace.lower.spare_storage import Moment, take_spare


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
