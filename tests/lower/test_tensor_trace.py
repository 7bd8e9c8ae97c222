"""What holds each tensor: what is spent, hidden, or lies in slots; and no slot is emptied that is read."""

import textwrap

import numpy as np
import pytest
import tvm
import tvm_ffi
from pipelines import load
from tvm import relax
from tvm.script import from_source
from tvm.script import ir as I
from tvm.script import relax as R

from relax_inplace.lower.donation import find_donation
from relax_inplace.lower.kill_registers import kill_registers
from relax_inplace.lower.tensor_trace import TensorTrace

# -- on what is lowered ---------------------------------------------------------------------------

SHORT = {
    "STORAGE": 'R.vm.alloc_storage(R.shape([16]), 0, R.dtype("uint8"), R.str("global"))',
    "TENSOR": 'R.vm.alloc_tensor(s, 0, R.shape([4]), R.dtype("float32"), 0)',
    "FOUR": 'R.Tensor((4,), "float32")',
    "VOID": "ty_args=(R.Tuple,)",
    "UPDATE": 'R.call_packed("vm.builtin.inplace_update_tuple",',
    "READ": 'R.call_packed("vm.builtin.tuple_getitem",',
    "CALL": "R.call_packed(",
}
FOUR = relax.TensorType((4,), "float32")
PARAMS = relax.TupleType([FOUR, relax.TupleType([FOUR, FOUR]), FOUR])
TYPES = PARAMS, FOUR, relax.TensorType((), "bool")


def trace(body, replaced=(), in_branch=False, types=None):
    """Of a body in short, every register killed. `move` may not write over its input, `scale` may."""
    text = f"""
@I.ir_module
class Module:
    @T.prim_func(private=True, s_tir=True)
    def move(a: T.handle, b: T.handle):
        T.evaluate(0)

    @T.prim_func(private=True, s_tir=True)
    def move_once(a: T.handle, b: T.handle):
        T.func_attr({{"relax_inplace.moved_once": [0]}})
        T.evaluate(0)

    @T.prim_func(private=True, s_tir=True)
    def scale(a: T.handle, b: T.handle):
        T.func_attr({{"relax_inplace.inplace": [[0, 1]]}})
        T.evaluate(0)

    @T.prim_func(private=True, s_tir=True)
    def two(a: T.handle, b: T.handle, c: T.handle):
        T.func_attr({{"relax_inplace.inplace": [[0, 1], [0, 2]]}})
        T.evaluate(0)

    @T.prim_func(private=True, s_tir=True)
    def both(a: T.handle, b: T.handle, c: T.handle):
        T.func_attr({{"relax_inplace.inplace": [[0, 2]]}})
        T.evaluate(0)

    @R.function(pure=False)
    def main(params: R.Any, x: FOUR, c: R.Tensor((), "bool")):
        cls = Module
{textwrap.indent(textwrap.dedent(body), " " * 8)}
"""
    for short, long in [*SHORT.items(), *replaced]:
        text = text.replace(short, long)
    mod = from_source(text)
    function = kill_registers(mod["main"])
    return TensorTrace(function.body, function.params, [] if in_branch else types or TYPES, mod)


def tensor(found, name):
    return next(one for one in found.tensors if one.name == name)


def in_place(found):
    """The tensors whose memory a kernel's result takes."""
    donation = find_donation(found, shrinks=True)
    return [taken.donor.name for taken in donation.taken if taken.in_place]


NEW = """
w = READ params, 0, ty_args=FOUR)
s = STORAGE
a = TENSOR
cls.move(w, a)
UPDATE params, 0, a, VOID)
"""


def test_a_weight_that_is_replaced_is_spent():
    found = trace(NEW + "return params")
    assert [one.name for one in found.tensors] == ["slot 0", "slot 1.0", "slot 1.1", "slot 2", "a"]
    old, new = tensor(found, "slot 0"), tensor(found, "a")
    assert old.spent is not None and old.is_read and not old.is_hidden
    assert new.is_allocated and new.slot == "0" and new.spent is None and new.size == 16
    assert all(tensor(found, f"slot {i}").spent is None for i in ("1.0", "1.1", "2"))


HIDES = {
    "a packed function": 'CALL"keep", w, VOID)',
    "one that is given it in a tuple": 'CALL"keep", (x, w), VOID)',
    "one that is given a tuple made of it": """
        t = CALL"vm.builtin.make_tuple", w, x, ty_args=R.Any)
        CALL"keep", t, VOID)
    """,
    "one that is given a view": """
        v = CALL"vm.builtin.reshape", w, R.shape([2, 2]), ty_args=R.Tensor((2, 2), "float32"))
        CALL"keep", v, VOID)
    """,
    "one that is given the caller's tuple": 'CALL"keep", params, VOID)',
    "a closure": 'f = CALL"vm.builtin.make_closure", R.str("g"), w, ty_args=R.Any)',
    "a builtin that is not known": 'CALL"vm.builtin.of_tomorrow", w, VOID)',
}


@pytest.mark.parametrize("by", HIDES)
def test_hidden(by):
    read, rest = NEW.strip().split("\n", 1)
    body = "\n".join([read, textwrap.dedent(HIDES[by]).strip(), rest, "return params"])
    assert tensor(trace(body), "slot 0").is_hidden


def test_what_is_hidden_is_not_kept_to_be_taken():
    read, rest = NEW.strip().split("\n", 1)
    for by, dropped in (("", ["slot 0"]), ('CALL"keep", w, VOID)', [])):
        donation = find_donation(trace("\n".join([read, by, rest, "return params"])), shrinks=True)
        assert [one.name for one in donation.dropped] == dropped


LOOKS = {
    "a check": 'CALL"vm.builtin.check_tensor_info", w, 1, R.dtype("float32"), R.str(""), VOID)',
    "its shape": 'n = CALL"vm.builtin.shape_of", w, ty_args=R.Shape(ndim=1))',
    "a view": 'v = CALL"vm.builtin.reshape", w, R.shape([4]), ty_args=FOUR)',
    "another one": 'v = CALL"runtime.TVMTensorCreateView", w, R.shape([4]), ty_args=FOUR)',
}


@pytest.mark.parametrize("by", LOOKS)
def test_not_hidden(by):
    read, rest = NEW.strip().split("\n", 1)
    old = tensor(trace("\n".join([read, LOOKS[by], rest, "return params"])), "slot 0")
    assert not old.is_hidden and old.spent is not None


def test_a_view_holds():
    body = """
        w = READ params, 0, ty_args=FOUR)
        v = CALL"vm.builtin.reshape", w, R.shape([4]), ty_args=FOUR)
        UPDATE params, 0, x, VOID)
        UPDATE params, 2, v, VOID)
        return params
    """
    assert tensor(trace(body), "slot 0").spent is None


def test_a_branch_is_not_seen_into():
    body = """
        w = READ params, 0, ty_args=FOUR)
        if c:
            y = CALL"f", w, ty_args=FOUR)
        else:
            y = x
        UPDATE params, 0, y, VOID)
        return params
    """
    found = trace(body)
    assert tensor(found, "slot 0").is_hidden and tensor(found, "y").is_hidden


def test_what_may_be_a_weight_is_not_counted_again():
    """A function that is not known may return what it was given; a cast says how large that is."""
    found = trace("""
        w = READ params, 0, ty_args=FOUR)
        r = CALL"keep", w, ty_args=R.Any)
        y = R.match_cast(r, FOUR)
        UPDATE params, 2, y, VOID)
        return params
    """)
    assert tensor(found, "r").size is None
    assert find_donation(found, shrinks=True).peak == 4 * 16


def test_a_storage_of_two_tensors():
    """As StaticPlanBlockMemory plans, where it is run by hand."""
    found = trace(NEW.replace("UPDATE", "b = TENSOR\ncls.move(a, b)\nUPDATE") + "return params")
    for name in "ab":
        one = tensor(found, name)
        assert one.is_hidden and not one.is_allocated
    assert find_donation(found, shrinks=True).taken == []


def test_another_scope():
    found = trace(NEW + "return params", [('R.str("global")', 'R.str("global.texture")')])
    assert not tensor(found, "a").is_allocated and tensor(found, "a").is_hidden


def test_what_is_returned_is_held():
    """And so is a temporary, of which no register is killed."""
    assert tensor(trace(NEW + "return (params, w)"), "slot 0").spent is None
    body = NEW.replace("UPDATE params, 0, a, VOID)", "") + "return a"
    assert tensor(trace(body), "a").holders.total() == 2


# -- in place -------------------------------------------------------------------------------------

SCALED = """
    w = READ params, 0, ty_args=FOUR)
    s = STORAGE
    a = TENSOR
    cls.scale(w, a)
    UPDATE params, 0, a, VOID)
    return params
"""


def test_in_place():
    assert in_place(trace(SCALED)) == ["slot 0"]
    assert in_place(trace(SCALED, in_branch=True)) == ["slot 0"]


def test_one_tensor_is_written_over_once():
    other = 't = STORAGE\n    b = R.vm.alloc_tensor(t, 0, R.shape([4]), R.dtype("float32"), 0)'
    body = SCALED.replace("cls.scale(w, a)", other + "\n    cls.two(w, a, b)")
    assert in_place(trace(body)) == ["slot 0"]


NOT_IN_PLACE = {
    "a kernel that may not": ("scale", "move"),
    "a view": (
        "cls.scale(w, a)",
        'v = CALL"vm.builtin.reshape", w, R.shape([4]), ty_args=FOUR)\n    cls.scale(v, a)',
    ),
    "two registers": ("cls.scale(w, a)", "v = w\n    cls.scale(w, a)\n    cls.move(v, a)"),
    "given twice": ("cls.scale(w, a)", "cls.both(w, w, a)"),
    "given twice, by two registers": (
        "cls.scale(w, a)",
        "v = READ params, 0, ty_args=FOUR)\n    cls.both(w, v, a)",
    ),
    "a result that is larger": (
        "TENSOR",
        'R.vm.alloc_tensor(s, 0, R.shape([8]), R.dtype("float32"), 0)',
    ),
    "used later": ("UPDATE", "cls.move(w, a)\n    UPDATE"),
    "a result that is there already": ("cls.scale", "cls.move(x, a)\n    cls.scale"),
    "kept": ("cls.scale", 'CALL"keep", w, VOID)\n    cls.scale'),
    "read again from its slot": (
        "UPDATE params, 0",
        "v = READ params, 0, ty_args=FOUR)\n    cls.move(v, a)\n    UPDATE params, 0",
    ),
    "not replaced": ("UPDATE params, 0", "UPDATE params, 2"),
    "a packed function may read the slot": (
        "UPDATE params, 0",
        'CALL"f", x, VOID)\n    UPDATE params, 0',
    ),
    "a tuple made of the caller's is read": (
        "s = STORAGE\n    a = TENSOR\n    cls.scale(w, a)",
        'made = CALL"vm.builtin.make_tuple", params, x, ty_args=R.Any)\n    s = STORAGE\n'
        "    a = TENSOR\n    cls.scale(w, a)\n    q = READ made, 0, ty_args=R.Any)\n"
        "    v = READ q, 0, ty_args=FOUR)\n    cls.move(v, a)",
    ),
}


@pytest.mark.parametrize("name", NOT_IN_PLACE)
def test_not_in_place(name):
    old, new = NOT_IN_PLACE[name]
    assert old in SCALED
    for in_branch in (False, True):
        assert in_place(trace(SCALED.replace(old, new), in_branch=in_branch)) == []


INNER = """
    inner = READ params, 1, ty_args=R.Any)
    w = READ inner, 0, ty_args=FOUR)
    s = STORAGE
    a = TENSOR
    cls.scale(w, a)
    UPDATE inner, 0, a, VOID)
    UPDATE params, 1, inner, VOID)
    return params
"""


def test_in_place_in_a_nested_tuple():
    """Put back where it was, too; but not in a branch: another slot may hold it there."""
    assert in_place(trace(INNER)) == ["slot 1.0"]
    assert in_place(trace(INNER, in_branch=True)) == []


def test_what_is_put_back_is_not_replaced():
    body = """
        inner = READ params, 1, ty_args=R.Any)
        UPDATE params, 1, inner, VOID)
        w = READ params, 1, ty_args=R.Any)
        UPDATE w, 0, x, VOID)
        return params
    """
    found = trace(body)
    assert tensor(found, "slot 1.0").spent is not None
    assert not tensor(found, "slot 1.0").may_live_on
    assert tensor(found, "slot 1.1").spent is None


NESTED_NOT_IN_PLACE = {
    "the nested tuple is replaced": ("UPDATE inner, 0, a, VOID)\n    UPDATE params, 1, inner", "UPDATE params, 1, a"),
    "it is somewhere else by then": (
        "    w = READ",
        "    UPDATE params, 2, inner, VOID)\n    UPDATE params, 1, x, VOID)\n    w = READ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NESTED_NOT_IN_PLACE)
def test_not_in_place_in_a_nested_tuple(name):
    old, new = NESTED_NOT_IN_PLACE[name]
    assert old in INNER
    assert in_place(trace(INNER.replace(old, new))) == []


# -- numbers: no slot is emptied that something else reads ----------------------------------------


def full(value):
    return tvm.runtime.tensor(np.full(4, value, "float32"))


def seen(value):
    if isinstance(value, tvm_ffi.Array):
        return [seen(field) for field in value]
    return value if value is None else float(value.numpy()[0])


# With params = (1, (2, 3)): the body, what is returned, what the caller's tuple holds.
EMPTIED = {
    "moved to another slot": (
        """
        w = inner[0]
        y = R.add(w, w)
        p0 = R.inplace_update_tuple(params, 0, inner)
        p1 = R.inplace_update_tuple(p0, 1, y)
        return p1
        """,
        [[2, 3], 4],
        [[2, 3], 4],
    ),
    "returned": (
        """
        w = inner[0]
        y = R.add(w, w)
        p0 = R.inplace_update_tuple(params, 1, y)
        return inner
        """,
        [2, 3],
        [1, 4],
    ),
    "in a tuple that was made before": (
        """
        made = (inner, params[0])
        w = inner[0]
        y = R.add(w, w)
        p0 = R.inplace_update_tuple(params, 1, y)
        return (made, p0)
        """,
        [[[2, 3], 1], [1, 4]],
        [1, 4],
    ),
    "updated, then in a tuple that is made": (
        """
        w = inner[0]
        y = R.add(w, w)
        i0 = R.inplace_update_tuple(inner, 0, y)
        made = (i0, params[0])
        v = i0[0]
        z = R.add(v, v)
        p0 = R.inplace_update_tuple(params, 1, z)
        return (made, p0)
        """,
        [[[4, 3], 1], [1, 8]],
        [1, 8],
    ),
    "read when its slot is another's": (
        """
        w = inner[0]
        y = R.add(w, w)
        p0 = R.inplace_update_tuple(params, 1, y)
        v = inner[0]
        p1 = R.inplace_update_tuple(p0, 0, v)
        return p1
        """,
        [2, 4],
        [2, 4],
    ),
    "updated when its slot is another's": (
        """
        new = (x, x)
        p0 = R.inplace_update_tuple(params, 1, new)
        w = inner[0]
        y = R.add(w, w)
        i0 = R.inplace_update_tuple(inner, 0, y)
        p1 = R.inplace_update_tuple(p0, 0, i0)
        return p1
        """,
        [[4, 3], [10, 10]],
        [[4, 3], [10, 10]],
    ),
    "put back": (
        """
        w = inner[0]
        y = R.add(w, w)
        p0 = R.inplace_update_tuple(params, 0, y)
        i0 = R.inplace_update_tuple(inner, 1, x)
        p1 = R.inplace_update_tuple(p0, 1, i0)
        return p1
        """,
        [4, [2, 10]],
        [4, [2, 10]],
    ),
    "read from a tuple that holds the caller's": (
        """
        made = (params, x)
        w = params[0]
        y = R.add(w, w)
        again = made[0]
        v = again[0]
        z = R.add(v, x)
        p0 = R.inplace_update_tuple(params, 0, y)
        p1 = R.inplace_update_tuple(p0, 1, z)
        return p1
        """,
        [2, 11],
        [2, 11],
    ),
    "read by another name in a branch": (
        """
        if c:
            again = params[1]
            w = again[0]
            y = R.add(w, w)
            v = inner[0]
            z = R.add(v, x)
            i0 = R.inplace_update_tuple(again, 0, y)
            p0 = R.inplace_update_tuple(params, 1, i0)
            p1 = R.inplace_update_tuple(p0, 0, z)
            q = p1
        else:
            q = params
        return q
        """,
        [12, [4, 3]],
        [12, [4, 3]],
    ),
}


@pytest.mark.parametrize("name", EMPTIED)
def test_a_nested_tuple_that_lives_on_keeps_its_fields(name):
    body, returned, left = EMPTIED[name]
    text = f"""
@I.ir_module
class Module:
    @R.function(pure=False)
    def main(
        params: R.Tuple(FOUR, R.Tuple(FOUR, FOUR)), x: FOUR, c: R.Tensor((), "bool")
    ):
        inner = params[1]
{textwrap.indent(textwrap.dedent(body), " " * 8)}
"""
    main = load(from_source(text.replace("FOUR", SHORT["FOUR"])))["main"]
    params = tvm_ffi.Array([full(1), tvm_ffi.Array([full(2), full(3)])])
    assert seen(main(params, full(10), tvm.runtime.tensor(np.array(True)))) == returned
    assert seen(params) == left


tvm_ffi.register_global_func("tests.keep", lambda _: None, override=True)


@I.ir_module
class Kept:
    @R.function(pure=False)
    def main(params: R.Tuple(R.Tensor((4,), "float32"), R.Tensor((4,), "float32"))):
        w = params[0]
        R.call_packed("tests.keep", w, ty_args=(R.Tuple,))
        y = R.add(w, w)
        p0 = R.inplace_update_tuple(params, 0, y)
        z = R.exp(p0[1])
        p1 = R.inplace_update_tuple(p0, 1, z)
        return p1


def test_what_a_packed_function_keeps_is_not_written_over():
    kept = []
    tvm_ffi.register_global_func("tests.keep", kept.append, override=True)
    params = tvm_ffi.Array([full(1), full(0)])
    load(Kept)["main"](params)
    assert seen(params) == [2, 1] and seen(kept[0]) == 1


def test_storages_that_were_planned_by_hand():
    """A storage of two tensors; the transform's is one that TVM would hand on."""

    @I.ir_module
    class Planned:
        @R.function(pure=False)
        def main(params: R.Tuple(R.Tensor((4,), "float32"), R.Tensor((4,), "float32"))):
            y = R.exp(R.negative(R.exp(params[0])))
            p0 = R.inplace_update_tuple(params, 0, y)
            z = R.exp(R.negative(R.exp(p0[1])))
            p1 = R.inplace_update_tuple(p0, 1, z)
            return p1

    t = relax.transform
    by_hand = [t.LegalizeOps(), t.ToNonDataflow(), t.RemovePurityChecking(), t.CallTIRRewrite()]
    mod = tvm.transform.Sequential([*by_hand, t.StaticPlanBlockMemory()])(Planned)
    params = tvm_ffi.Array([full(0), full(1)])
    load(mod)["main"](params)
    for got, was in zip(params, (0, 1), strict=True):
        np.testing.assert_allclose(got.numpy(), np.exp(-np.exp(np.full(4, was, "float32"))), 1e-6)


def test_in_place_is_in_the_same_memory():
    """The slot that holds it is emptied before: no one else does."""
    text = """
@I.ir_module
class Module:
    @R.function(pure=False)
    def main(params: R.Tuple(FOUR)):
        y = R.add(params[0], R.const(1.0))
        p0 = R.inplace_update_tuple(params, 0, y)
        return p0
"""
    main = load(from_source(text.replace("FOUR", SHORT["FOUR"])))["main"]
    params = tvm_ffi.Array([full(1)])
    before = np.from_dlpack(params[0]).ctypes.data
    main(params)
    assert np.from_dlpack(params[0]).ctypes.data == before and seen(params) == [2]


# -- weights that one move reads, and nothing else -------------------------------------------------

MOVED = """
    w = READ params, 0, ty_args=FOUR)
    inner = READ params, 1, ty_args=R.Any)
    v = READ inner, 0, ty_args=FOUR)
    s = STORAGE
    a = TENSOR
    t = STORAGE
    b = TENSOR
    cls.move_once(w, a)
    UPDATE params, 0, a, VOID)
    cls.move_once(v, b)
    UPDATE inner, 0, b, VOID)
    return params
"""

NOT_MOVED = {
    "a packed function may read the slot": (
        "UPDATE params, 0",
        'CALL"f", x, VOID)\n    UPDATE params, 0',
        [],
    ),
    "it stays in its slot": ("UPDATE params, 0", "UPDATE params, 2", ["1.0"]),
    "another kernel reads it": ("cls.move_once(w, a)", "cls.move(w, a)", ["1.0"]),
    "it is read again": ("s = STORAGE", "s = STORAGE\n    cls.move(w, x)", ["1.0"]),
    "its tuple may live on": ("UPDATE inner, 0", "UPDATE params, 1", ["0"]),
    "it lies in another parameter": ("READ params, 0", "READ other, 0", ["1.0"]),
}


def moved(body):
    """Of a function whose last parameter is the tuple of weights."""
    four = SHORT["FOUR"]
    order = (
        f'params: R.Any, x: {four}, c: R.Tensor((), "bool")',
        f"x: {four}, other: R.Any, params: R.Any",
    )
    return trace(body, [order], types=[FOUR, relax.TupleType([FOUR]), PARAMS]).moved_weights()


def test_moved_weights():
    assert moved(MOVED) == ["0", "1.0"]


@pytest.mark.parametrize("name", NOT_MOVED)
def test_not_only_moved(name):
    old, new, expected = NOT_MOVED[name]
    assert old in MOVED
    assert moved(MOVED.replace(old, new)) == expected
