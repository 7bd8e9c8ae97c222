"""The order of least peak: against every order there is, and what it costs to find."""

import collections
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from profiles import examples
from transforms import transforms, without_what_is_refused
from tvm.script import from_source

from relax_inplace.inplace import step_order
from relax_inplace.inplace.read_transform import read_transform
from relax_inplace.inplace.schedule import _closure, plan_graph
from relax_inplace.inplace.step_order import Live, Problem, StepCost, least_peak_order

# -- the definition, word by word -------------------------------------------------------------


def run_by_definition(problem, order):
    """The bytes around each step, from a list of what is live."""
    lives = []
    live = {b for b in problem.at_start if b in problem.kept or problem.readers[b]}
    for position, step in enumerate(order):
        to_come = set().union(*(problem.uses[other] for other in order[position + 1 :]))
        before = sum(problem.sizes[b] for b in live)
        allocated = set(problem.allocates[step])
        after = {b for b in live | allocated if b in problem.kept or b in to_come}
        by_kernel = unfused(problem, step, live, after)
        at_once = fused(problem, step, live, after)
        worst = {None: max(by_kernel, at_once), True: at_once, False: by_kernel}[problem.fused]
        lives.append(Live(before, worst, sum(problem.sizes[b] for b in after)))
        live = after
    return lives


def fused(problem, step, live, after):
    """One kernel: what only its parts see is never allocated.

    Of a part with several results all are, if one of them is seen outside.
    """
    kernels = problem.steps[step].kernels
    if len(kernels) == 1:
        return unfused(problem, step, live, after)
    seen = {b for b in problem.allocates[step] if b in problem.kept or problem.readers[b]}
    results = {b for _, allocates, _ in kernels if seen & set(allocates) for b in allocates}
    scratch = max(scratch for _, _, scratch in kernels)
    return sum(problem.sizes[b] for b in live | results) + scratch


def unfused(problem, step, live, after):
    """Kernel by kernel: what it reads last is freed, and its result may lie there."""
    kernels, live, worst = problem.steps[step].kernels, set(live), 0
    for position, (reads, allocates, scratch) in enumerate(kernels):
        to_come = set().union(*(reads | set(a) for reads, a, _ in kernels[position + 1 :]))
        freed = (reads | set(allocates)) - to_come - after
        taken = dict(problem.sizes)
        for result, donors in problem.steps[step].over.items():
            if result in allocates and freed.intersection(donors, reads):
                taken[result] = min(taken[result], in_place_at_most(problem))
        live |= set(allocates)
        worst = max(worst, sum(taken[b] for b in live) + scratch)
        live -= freed
    return worst


def in_place_at_most(problem):
    return 10 if problem.most_scratch is None else problem.most_scratch  # no size is above 9


def valid_orders(problem, first):
    others = [step for step in range(len(problem.steps)) if step not in first]
    for rest in itertools.permutations(others):
        order = [*first, *rest]
        if is_valid(problem, order):
            yield order


def is_valid(problem, order):
    position = {step: number for number, step in enumerate(order)}
    return sorted(order) == list(range(len(problem.steps))) and all(
        position[other] < position[step] for step in order for other in problem.steps[step].after
    )


def least_peak(problem, first=()):
    """By a dynamic programme: the least peak with which each set of steps can be run."""
    steps = range(len(problem.steps))
    peaks = {frozenset(first): problem.peak(first)} if first else {frozenset(): 0}
    for _ in range(len(steps) - len(first)):
        reached = {}
        for done, peak in peaks.items():
            live = live_after(problem, done)
            for step in steps:
                if step not in done and problem.steps[step].after <= done:
                    worst = live + problem.rise(step, problem.dying(step, done))
                    after = done | {step}
                    reached[after] = min(reached.get(after, worst + peak), max(peak, worst))
        peaks = reached
    (peak,) = peaks.values()
    return max(peak, problem.live_at_start, problem.live_at_end)


def live_after(problem, done):
    there = problem.at_start.union(*(problem.allocates[step] for step in done))
    return sum(
        problem.sizes[b] for b in there if b in problem.kept or not problem.readers[b] <= done
    )


# -- random problems --------------------------------------------------------------------------


@st.composite
def problems(draw, most_steps=8):
    """Steps of one to three kernels; the buffers that they read are older than they are.

    Results may lie in operands that are not smaller.
    """
    sizes = draw(st.lists(st.integers(0, 9), min_size=1, max_size=4))
    at_start = set(range(len(sizes)))
    steps, computed_by = [], {}
    for index in range(draw(st.integers(1, most_steps))):
        kernels, after, own, over = [], set(), set(), {}
        for _ in range(draw(st.sampled_from([1, 1, 2, 3]))):
            reads = set(draw(st.lists(st.sampled_from(range(len(sizes))), max_size=3)))
            after |= {computed_by[b] for b in reads if b in computed_by and b not in own}
            allocates = []
            for _ in range(draw(st.integers(0, 2))):
                allocates.append(len(sizes))
                sizes.append(draw(st.integers(0, 9)))
            if len(allocates) == 1:
                (new,) = allocates
                donors = [b for b in sorted(reads) if sizes[b] >= sizes[new]]
                over[new] = [b for b in donors if draw(st.booleans())]
            own.update(allocates)
            computed_by.update(dict.fromkeys(allocates, index))
            kernels.append((reads, allocates, draw(st.sampled_from([0, 0, 0, 4]))))
        if index and draw(st.integers(0, 5)) == 0:
            after.add(draw(st.integers(0, index - 1)))
        steps.append(StepCost(kernels, after, over))
    kept = {b for b in range(len(sizes)) if draw(st.integers(0, 3)) == 0}
    fused = draw(st.sampled_from([None, True, False]))
    most_scratch = draw(st.sampled_from([None, 0, 2]))
    return Shown(numbered(sizes), at_start, kept, numbered(steps), fused, None, most_scratch)


def numbered(values):
    return dict(enumerate(values))


class Shown(Problem):
    def __repr__(self):
        return (
            f"Problem({self.sizes}, {self.at_start}, {self.kept}, {self.steps}, {self.fused}, "
            f"None, {self.most_scratch})"
        )


@given(problems(), st.data())
@examples(500)
def test_no_order_has_a_lower_peak(problem, data):
    count = data.draw(st.integers(0, 2))
    first = next(valid_orders(problem, []))[:count]
    order, is_exact = least_peak_order(problem, first)
    assert is_exact
    assert order[: len(first)] == first
    assert is_valid(problem, order)
    assert problem.peak(order) == least_peak(problem, first)


@given(problems(most_steps=5))
def test_simulate_is_the_definition(problem):
    for order in valid_orders(problem, []):
        assert problem.simulate(order) == run_by_definition(problem, order)


@given(problems(most_steps=4))
def test_the_dynamic_programme_is_the_best_of_all_orders(problem):
    assert least_peak(problem) == min(map(problem.peak, valid_orders(problem, [])))


# -- groups -----------------------------------------------------------------------------------


def side_by_side(parts):
    """One problem of several that share nothing."""
    sizes, at_start, kept, steps = [], set(), set(), []
    for part in parts:
        by, step_by = len(sizes), len(steps)
        for step in part.steps.values():
            kernels = [
                ({b + by for b in reads}, [b + by for b in allocates], scratch)
                for reads, allocates, scratch in step.kernels
            ]
            after = {other + step_by for other in step.after}
            over = {new + by: [b + by for b in old] for new, old in step.over.items()}
            steps.append(StepCost(kernels, after, over))
        at_start |= {b + by for b in part.at_start}
        kept |= {b + by for b in part.kept}
        sizes += part.sizes.values()
    most_scratch = 2 if any(part.most_scratch == 2 for part in parts) else None
    return Problem(numbered(sizes), at_start, kept, numbered(steps), most_scratch=most_scratch)


@given(st.lists(problems(most_steps=3), min_size=4, max_size=4))
@examples(200)
def test_merged_groups_are_as_good_as_one_search(parts):
    problem = side_by_side(parts)
    order, _ = least_peak_order(problem)
    assert problem.peak(order) == least_peak(problem)


def chain(sizes):
    """A weight and what becomes of it, each read once; the last is kept."""
    steps = [StepCost([({i}, [i + 1], 0)], {i - 1} if i else set()) for i in range(len(sizes) - 1)]
    return Problem(numbered(sizes), {0}, {len(sizes) - 1}, numbered(steps))


@given(st.lists(st.lists(st.integers(0, 9), min_size=4, max_size=4), min_size=6, max_size=6))
@examples(20)
def test_six_chains_of_three_steps(sizes):
    problem = side_by_side(list(map(chain, sizes)))
    order, _ = least_peak_order(problem)
    assert problem.peak(order) == least_peak(problem)


def independent(count):
    return side_by_side([chain([i % 7, 3 * i % 5]) for i in range(count)])


def reading_one_weight(count, steps_each=1):
    """Rows of steps that read one weight and, each, one of their own."""
    sizes, steps, kept = [10], [], set()
    for _ in range(count):
        own = len(sizes)
        sizes += [4] * (steps_each + 1)
        for i in range(steps_each):
            after = {len(steps) - 1} if i else set()
            steps.append(StepCost([({0, own + i}, [own + i + 1], 0)], after))
        kept.add(len(sizes) - 1)
    at_start = {0, *(b for b in range(1, len(sizes)) if (b - 1) % (steps_each + 1) == 0)}
    return Problem(numbered(sizes), at_start, kept, numbered(steps))


def test_a_buffer_of_no_bytes_connects_nothing():
    """Such as an input that is not a weight, and that every step reads."""
    problem = reading_one_weight(1000)
    problem.sizes[0] = 0
    assert least_peak_order(problem)[1]


# -- groups that are too large ----------------------------------------------------------------


@given(problems(), st.integers(0, 20))
def test_too_large_a_group_is_ordered_by_a_heuristic(problem, limit):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_order, "SEARCH_LIMIT", limit)
        order, is_exact = least_peak_order(problem)
    assert is_valid(problem, order)
    assert problem.peak(order) >= least_peak(problem)
    if is_exact:
        assert problem.peak(order) == least_peak(problem)


def test_a_large_group_says_so():
    problem = reading_one_weight(20, steps_each=20)
    problem.sizes.update({b: 1 + 7 * b % 13 for b in problem.sizes if b})
    order, is_exact = least_peak_order(problem)
    assert not is_exact
    assert is_valid(problem, order)


@given(transforms(), st.integers(0, 20))
@examples(50)
def test_a_schedule_is_never_worse_than_the_order_of_the_function(transform, limit):
    mod = from_source(transform.source)
    with without_what_is_refused():
        graph = read_transform("f", mod["transform_params"], mod, transform.params)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_order, "SEARCH_LIMIT", limit)
        schedule = plan_graph(graph)
    # With what they need: another order would be none.
    problem = schedule.problem
    first = _closure(problem, [step for step in graph.steps if step.runs_first], set())
    as_written = [step for step in graph.steps if step not in first]
    assert problem.peak(schedule.steps) <= problem.peak([*first, *as_written])


# -- what it costs ----------------------------------------------------------------------------


class Counting(Problem):
    """Counts how often the cost of a step is asked for."""

    def __init__(self, problem):
        vars(self).update(vars(problem))
        self.count = collections.Counter()

    def rise(self, step, dying):
        self.count[step] += 1
        return super().rise(step, dying)


@given(problems(), st.data())
def test_moves_that_are_known_are_not_searched(problem, data):
    first = next(valid_orders(problem, []))[: data.draw(st.integers(0, 2))]
    known = {}
    found = least_peak_order(problem, first, known)
    again = Counting(problem)
    assert least_peak_order(again, first, known) == found
    assert not again.count


def test_the_cost_is_linear_in_independent_steps():
    problem = Counting(independent(10_000))
    order, is_exact = least_peak_order(problem)
    assert is_exact
    assert is_valid(problem, order)
    assert max(problem.count.values()) == 1


def test_the_cost_is_bounded_in_steps_that_read_one_weight():
    problem = Counting(reading_one_weight(5_000))
    order, is_exact = least_peak_order(problem)
    assert not is_exact
    assert is_valid(problem, order)
    assert max(problem.count.values()) < 10
