"""relax_inplace.ObserveUpdates, RunTransform and OutsideReferences: the library's side of the runtime."""

import gc

import numpy as np
import pytest
import tvm_ffi

from relax_inplace.libinfo import load_library

load_library()
update = tvm_ffi.get_global_func("vm.builtin.inplace_update_tuple")
observe = tvm_ffi.get_global_func("relax_inplace.ObserveUpdates")
run = tvm_ffi.get_global_func("relax_inplace.RunTransform")
outside = tvm_ffi.get_global_func("relax_inplace.OutsideReferences")


def tensor(count):
    return tvm_ffi.from_dlpack(np.zeros(count, "float32"))


def told_by(transform, fields, call=observe):
    seen = []
    result = call(lambda *told: seen.append(told), transform, fields)
    return seen, result


def test_an_update_is_told_before_and_after_the_old_field_is_freed():
    fields, freed = tvm_ffi.Array([tensor(4), 1]), []

    class Memory(np.ndarray):
        def __del__(self):
            freed.append(True)

    update(fields, 0, tvm_ffi.from_dlpack(np.zeros(6, "float32").view(Memory)))
    seen = []

    def told(*what):
        seen.append((what, len(freed)))

    observe(told, lambda given: update(given, 0, tensor(2)), fields)
    assert seen == [(("0", 8, 24, True), 0), ((None, 0, 0, True), 1)]


def test_what_something_else_holds_is_not_freed():
    fields = tvm_ffi.Array([tensor(4)])
    kept = fields[0]
    seen, _ = told_by(lambda given: update(given, 0, None), fields)
    assert seen == [("0", -1, 16, False)]
    assert kept.shape == (4,)


def test_fields_of_other_kinds_have_no_bytes():
    fields = tvm_ffi.Array([1, None, "a"])
    seen, _ = told_by(lambda given: update(update(given, 0, 2), 1, tensor(1)), fields)
    assert seen == [("0", 0, 0, False), ("1", 4, 0, False)]


def test_nested_tuples_have_places():
    fields = tvm_ffi.Array([1, tvm_ffi.Array([tensor(1), tvm_ffi.Array([tensor(2)])])])

    def transform(given):
        update(given[1][1], 0, tensor(3))
        update(given[1], 0, tensor(4))
        other = tvm_ffi.Array([tensor(1)])
        update(other, 0, tensor(5))  # a tuple of its own is nobody's business
        return given

    seen, _ = told_by(transform, fields)
    assert [one for one in seen if one[0]] == [("1.1.0", 12, 8, True), ("1.0", 16, 4, True)]


def test_nobody_listens_after_or_without():
    fields = tvm_ffi.Array([1])
    seen, _ = told_by(lambda given: given, fields)
    update(fields, 0, 2)
    assert seen == []
    assert observe(None, lambda given: update(given, 0, 3), fields)[0] == 3


def test_an_observer_within_another():
    outer, inner = [], []
    one, other = tvm_ffi.Array([1]), tvm_ffi.Array([1])

    def transform(given):
        update(given, 0, 2)
        observe(lambda *told: inner.append(told[0]), lambda it: update(it, 0, 2), other)
        return update(given, 0, 3)

    observe(lambda *told: outer.append(told[0]), transform, one)
    assert (outer, inner) == (["0", "0"], ["0"])


def test_what_an_observer_throws_comes_when_the_update_is_done():
    fields = tvm_ffi.Array([1, 1])

    def told(*_):
        raise ValueError("stop")

    def transform(given):
        update(given, 0, 2)
        return update(given, 1, 2)

    with pytest.raises(ValueError, match="stop"):
        observe(told, transform, fields)
    assert list(fields) == [2, 1]
    update(fields, 1, 2)  # nobody listens any more


# -- RunTransform ----------------------------------------------------------------------------------


def test_nobody_else_sees_the_fields_meanwhile():
    inner = tvm_ffi.Array([2])
    fields = tvm_ffi.Array([1, inner])

    def transform(given):
        assert not given.same_as(fields)
        assert (list(fields), list(inner)) == ([None, inner], [None])
        update(given[1], 0, 3)
        return update(given, 0, 4)

    assert run(None, transform, fields).same_as(fields)
    assert fields[0] == 4
    assert fields[1].same_as(inner)
    assert inner[0] == 3


def test_fields_are_put_back_after_a_failure():
    fields = tvm_ffi.Array([1, 2])

    def transform(given):
        update(given, 0, 3)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        run(None, transform, fields)
    assert list(fields) == [3, 2]


def test_another_tuple_leaves_the_given_one_empty():
    fields = tvm_ffi.Array([tensor(1), tensor(2)])
    result = run(None, lambda given: tvm_ffi.Array([given[0]]), fields)
    assert list(fields) == [None, None]
    gc.collect()
    assert [list(one) for one in outside(result)] == [[0], [0]]


def test_arguments_before_the_tuple():
    fields = tvm_ffi.Array([1])
    assert run(None, lambda a, b, given: update(given, 0, a + b), 2, 3, fields)[0] == 5


@pytest.mark.parametrize("function", [run, observe])
def test_refused(function):
    with pytest.raises(TypeError, match=r"expected a tuple .* as the last argument, but got none"):
        function(None, lambda: None)
    with pytest.raises(TypeError, match=r"expected a tuple .* as the last argument, but got `int`"):
        function(None, lambda given: given, 1)


# -- OutsideReferences -------------------------------------------------------------------------------


def test_outside_references():
    one, two = tensor(1), tensor(2)
    fields = tvm_ffi.Array([one, tvm_ffi.Array([two, one]), 3])
    assert [list(found) for found in outside(fields)] == [[1, 1, 1, 0], [0, 1, 0, 3]]
    del one
    gc.collect()
    assert [list(found) for found in outside(fields)] == [[0, 1, 0, 0], [0, 1, 0, 3]]
    with pytest.raises(TypeError, match=r"argument #0 .* Expected `ffi.Array` but got `None`"):
        outside(None)


# -- tuples in tuples --------------------------------------------------------------------------------


def wide(levels):
    """2^levels ways to one field."""
    fields = tvm_ffi.Array([tensor(1)])
    for _ in range(levels):
        fields = tvm_ffi.Array([fields, fields])
    return fields


def deep(levels):
    fields = tvm_ffi.Array([1])
    for _ in range(levels):
        fields = tvm_ffi.Array([fields])
    return fields


@pytest.mark.parametrize("call", [outside, lambda fields: run(None, lambda given: given, fields)])
def test_a_tuple_that_cannot_be_taken_apart(call):
    with pytest.raises(ValueError, match="one tuple stands in two places, "):
        call(wide(60))
    with pytest.raises(ValueError, match="nested more than 1000 deep"):
        call(deep(1001))
    call(deep(1000))


def test_an_update_with_2_to_the_60_ways_to_a_tensor():
    fields = tvm_ffi.Array([wide(60)])
    seen, _ = told_by(lambda given: update(given, 0, wide(60)), fields)
    assert seen == [("0", 4, 4, False)]  # its tensor is in the tuple twice, for all that is counted


def test_an_observer_is_not_told_of_what_it_does():
    fields, seen = tvm_ffi.Array([1, 1]), []

    def told(*what):
        seen.append(what[0])
        update(fields, 1, len(seen))

    observe(told, lambda given: update(given, 0, 2), fields)
    assert seen == ["0"]
    assert list(fields) == [2, 1]


def test_a_transform_that_puts_the_tuple_into_itself():
    fields = tvm_ffi.Array([1, 2])

    def transform(given):
        update(given, 0, tvm_ffi.Array([fields]))
        return update(given, 1, 3)

    with pytest.raises(ValueError, match="a tuple cannot hold itself"):
        run(None, transform, fields)
    assert list(fields) == [None, 3]
