"""What is stored within a budget: against all choices there are, for random functions."""

import itertools

import pytest
from hypothesis import given, note
from hypothesis import strategies as st
from profiles import examples
from tvm.script import from_source

from relax_inplace.analysis import LiftError
from relax_inplace.lift.min_cut import source_side
from relax_inplace.lift.shared_weights import find_shared_weights
from relax_inplace.lift.stored_values import choose_stored
from relax_inplace.lift.weight_values import find_values, leaves


def values_of(mod):
    return find_values(mod, find_shared_weights(mod)[0])


@st.composite
def models(draw):
    """Two functions of bytes: each adds some of what is computed, in at most 8 steps, to an input."""
    count = draw(st.integers(1, 3))
    lines = [f"v{i} = params[{i}]" for i in range(count)]
    sizes = [draw(st.sampled_from([2, 4, 8])) for _ in range(count)]
    types = ", ".join(f'R.Tensor(({size},), "int8")' for size in sizes)
    for i in range(count, count + draw(st.integers(1, 8))):
        a = draw(st.integers(0, i - 1))
        kind = draw(st.sampled_from(["concat", "half", "negative"]))
        if kind == "concat" and sizes[a] <= 32:
            b = draw(st.integers(0, i - 1))
            lines.append(f"v{i} = R.concat((v{a}, v{b}))")
            sizes.append(sizes[a] + sizes[b])
        elif kind == "half":
            lines.append(f"v{i} = R.strided_slice(v{a}, [0], [0], [{sizes[a] // 2}])")
            sizes.append(sizes[a] // 2)
        else:
            lines.append(f"v{i} = R.negative(v{a})")
            sizes.append(sizes[a])
    functions = ""
    for name in ("first", "second"):
        used = draw(st.lists(st.integers(0, len(sizes) - 1), min_size=1, max_size=3, unique=True))
        body = "\n        ".join([*lines, *(f"o{i} = R.add(v{i}, x)" for i in used)])
        functions += f"""
    @R.function
    def {name}(x: R.Tensor((1,), "int8"), params: R.Tuple({types})):
        {body}
        return ({", ".join(f"o{i}" for i in used)},)
"""
    return f"@I.ir_module\nclass Module:{functions}"


def all_choices(graph, needed_by):
    """(stored, moved) of every choice of what the functions compute themselves."""
    costs = {}
    computations = graph.computations
    for count in range(len(computations) + 1):
        for left in itertools.combinations(computations, count):
            stored, run = set(), {}
            for value, users in needed_by.items():
                pending = [value]
                while pending:
                    one = pending.pop()
                    if one.made_by in left:
                        run.setdefault(one.made_by, set()).update(users)
                        pending += one.made_by.operands
                    else:
                        stored.add(one)
            if set(run) == set(left):
                bytes_of = [value.size for value in stored]
                costs[frozenset(left)] = (sum(bytes_of), stored)
    return costs


def moved_by(graph, left, needed_by):
    """Bytes that functions move, with a function counted that needs what a computation makes."""
    users = {value: set(names) for value, names in needed_by.items()}
    for made in reversed(graph.computations):
        names = set().union(*(users.get(value, ()) for value in leaves(made.result)))
        for operand in made.operands if names else ():
            users.setdefault(operand, set()).update(names)
    total = 0
    for made in left:
        names = set().union(*(users.get(value, ()) for value in leaves(made.result)))
        total += len(names) * sum(v.size for v in (*made.operands, *leaves(made.result)))
    return total


@examples(60)
@given(models(), st.floats(0.2, 2))
def test_no_choice_is_better(source, max_resident):
    graph = values_of(from_source(source))
    needed_by = choose_stored(graph, None).needed_by
    choices = all_choices(graph, needed_by)
    least = min(stored for stored, _ in choices.values())
    limit = int(max_resident * sum(weight.size for weight in leaves(graph.weights)))
    note(f"limit {limit}, least {least}")
    if least > limit:
        with pytest.raises(LiftError, match=f"they need take {least} bytes, even if"):
            choose_stored(graph, max_resident)
        return
    chosen = choose_stored(graph, max_resident)
    stored = sum(value.size for value in chosen.needed_by)
    left = {made for made in chosen.left if made.needs_weight}
    moved = moved_by(graph, left, needed_by)
    note(f"stored {stored}, moved {moved}")
    assert stored <= limit
    assert choices[frozenset(left)] == (stored, set(chosen.needed_by))
    for other, (size, _) in choices.items():
        cost = moved_by(graph, other, needed_by)
        assert size > stored or cost > moved or (size, cost) == (stored, moved)


def test_two_that_only_together_make_it_smaller():
    """Each half-and-a-bit is smaller than the weight; both are larger."""
    graph = values_of(
        from_source("""
@I.ir_module
class Module:
    @R.function
    def main(x: R.Tensor((1,), "int8"), params: R.Tuple(R.Tensor((10,), "int8"))):
        a = R.strided_slice(params[0], [0], [0], [8])
        b = R.strided_slice(params[0], [0], [2], [10])
        return (R.add(a, x), R.add(b, x))
""")
    )
    assert [value.size for value in choose_stored(graph, None).needed_by] == [8, 8]
    chosen = choose_stored(graph, 1.0)
    assert list(chosen.needed_by) == graph.weights
    assert len(chosen.left) == 2


def test_cut():
    """The narrowest place of a pipe, and of two the one at the source."""
    edges = {("s", "a"): 3, ("a", "b"): 2, ("b", "c"): 2, ("c", "t"): 5, ("a", "t"): 1}
    assert source_side(edges, "s", "t") == {"s"}
    edges["s", "a"] = 4
    assert source_side(edges, "s", "t") == {"s", "a"}
