"""Kills after last uses: before and after, on what lowering leaves."""

import textwrap

import pytest
import tvm
from pipelines import LLVM
from tvm import relax
from tvm.script import from_source
from tvm.script import ir as I
from tvm.script import relax as R

from relax_inplace.ir.updates import functions_that_update
from relax_inplace.lower.build import prepared
from relax_inplace.lower.kill_registers import kill_registers
from relax_inplace.lower.pipeline import lower

SHORT = {
    "STORAGE": 'R.vm.alloc_storage(R.shape([16]), 0, R.dtype("uint8"), R.str("global"))',
    "TENSOR": 'R.vm.alloc_tensor(s, 0, R.shape([4]), R.dtype("float32"), 0)',
    "KILL": "R.vm.kill_object",
    "FOUR": 'R.Tensor((4,), "float32")',
    "VOID": "ty_args=(R.Tuple,)",
    "UPDATE": 'R.call_packed("vm.builtin.inplace_update_tuple", params,',
    "READ": 'R.call_packed("vm.builtin.tuple_getitem", params,',
}


def function(body):
    body = textwrap.indent(textwrap.dedent(body), " " * 8)
    text = f"""
@I.ir_module
class Module:
    @R.function(pure=False)
    def main(params: R.Any, x: FOUR, c: R.Tensor((), "bool")):
{body}
"""
    for short, long in SHORT.items():
        text = text.replace(short, long)
    return from_source(text)["main"]


# KILL stands where it has to come; without these lines it is what goes in.
AFTER = {
    "after the last use": """
        w = READ 0, ty_args=FOUR)
        s = STORAGE
        a = TENSOR
        KILL(s)
        R.call_packed("kernel", w, a, VOID)
        KILL(w)
        UPDATE 0, a, VOID)
        KILL(a)
        return params
    """,
    "what is never used": """
        w = READ 0, ty_args=FOUR)
        KILL(w)
        v = R.call_packed("f", x, ty_args=FOUR)
        KILL(v)
        return params
    """,
    "what is returned stays, and its parts": """
        w = READ 0, ty_args=FOUR)
        v = READ 1, ty_args=FOUR)
        KILL(v)
        both = (w, x)
        return (w, both)
    """,
    "a view, and what it is a view of": """
        w = READ 0, ty_args=FOUR)
        v = R.call_packed("vm.builtin.reshape", w, R.shape([4]), ty_args=FOUR)
        KILL(w)
        UPDATE 0, v, VOID)
        KILL(v)
        return params
    """,
    "a second name is a second register": """
        w = READ 0, ty_args=FOUR)
        v = w
        KILL(w)
        UPDATE 1, v, VOID)
        KILL(v)
        return params
    """,
    "a second name of a parameter has a register of its own": """
        y = x
        UPDATE 1, y, VOID)
        KILL(y)
        return params
    """,
    "a tuple, and what is read from it": """
        w = READ 0, ty_args=FOUR)
        both = (w, w)
        KILL(w)
        v = both[1]
        KILL(both)
        UPDATE 1, v, VOID)
        KILL(v)
        return params
    """,
    "in a tuple that is an operand": """
        w = READ 0, ty_args=FOUR)
        v = R.call_packed("f", (w, x), ty_args=FOUR)
        KILL(w)
        UPDATE 1, v, VOID)
        KILL(v)
        return params
    """,
    "what is called": """
        f = READ 0, ty_args=R.Callable((FOUR,), FOUR, False))
        v = f(x)
        UPDATE 1, v, VOID)
        KILL(v)
        return params
    """,
    "shapes and numbers hold nothing": """
        n = R.call_packed("f", x, ty_args=R.Shape([4]))
        k = R.call_packed("f", x, ty_args=R.Prim("int64"))
        e = R.call_packed("f", x, ty_args=R.Tuple())
        nothing = R.null_value()
        UPDATE 1, nothing, VOID)
        return params
    """,
    "what is killed already": """
        w = READ 0, ty_args=FOUR)
        R.call_packed("f", w, VOID)
        KILL(w)
        R.call_packed("f", x, VOID)
        return params
    """,
    "in a branch, before it, and after it": """
        w = READ 0, ty_args=FOUR)
        v = READ 1, ty_args=FOUR)
        if c:
            a = R.call_packed("f", w, ty_args=FOUR)
            b = R.call_packed("f", a, ty_args=FOUR)
            KILL(a)
            y = b
        else:
            y = R.call_packed("f", w, ty_args=FOUR)
        KILL(w)
        z = R.call_packed("f", y, v, ty_args=FOUR)
        KILL(v)
        KILL(y)
        UPDATE 0, z, VOID)
        KILL(z)
        return params
    """,
}


@pytest.mark.parametrize("name", AFTER)
def test_before_and_after(name):
    lines = AFTER[name].splitlines()
    killed_already = name == "what is killed already"
    before = [line for line in lines if killed_already or "KILL" not in line]
    after = kill_registers(function("\n".join(before)))
    tvm.ir.assert_structural_equal(after, function("\n".join(lines)))
    tvm.ir.assert_structural_equal(kill_registers(after), after)


@pytest.mark.parametrize("fuses", [False, True])
def test_in_what_is_lowered_no_register_is_left_full(fuses):
    """Each is killed once, of what nothing returns; the checks of sizes, too."""

    @I.ir_module
    class Chain:
        @R.function(pure=False)
        def main(
            params: R.Tuple(
                R.Tensor((4, 8), "float32"),
                R.Tuple(R.Tensor(("n", 8), "float32"), R.Tensor(("n * 2",), "float32")),
            ),
            c: R.Tensor((), "bool"),
        ):
            w0 = R.permute_dims(params[0])
            p0 = R.inplace_update_tuple(params, 0, w0)
            if c:
                a = R.exp(p0[1][0])
                y = R.permute_dims(a)
            else:
                y = R.permute_dims(p0[1][0])
            w1 = R.sqrt(y)
            p1 = R.inplace_update_tuple(p0, 1, w1)
            return p1

    ours, _, _ = prepared(Chain, functions_that_update(Chain))
    lowered = lower(ours, LLVM, fuses)

    def check(sequence):
        bindings = [one for block in sequence.blocks for one in block.bindings]
        kills = [
            one.value.args[0]
            for one in bindings
            if "kill_object" in str(getattr(one.value, "op", ""))
        ]
        full = []
        for one in bindings:
            if isinstance(one.value, relax.If):
                check(one.value.true_branch)
                check(one.value.false_branch)
            is_object = isinstance(one.var.ty, relax.TensorType | relax.AnyType)
            is_null = "null_value" in str(getattr(one.value, "op", ""))
            if is_object and not is_null and not one.var.same_as(sequence.body):
                full.append(one.var)
        assert set(full) == set(kills) and len(kills) == len(set(kills))

    check(lowered["main"].body)
