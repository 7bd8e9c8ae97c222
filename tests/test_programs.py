"""Random programs of updates: what the ownership check lets through means what it says.

A program is run twice: by TVM, and by a model in which a tuple is a Python list that is changed in
place. Names are used at random, aliases, nested tuples, copies and branches among them. Either the
program is refused, or both agree: on what is returned, on what is left in the argument, and on
which tuples are one object.
"""

import numpy as np
import tvm
import tvm_ffi
from hypothesis import event, given
from hypothesis import strategies as st
from pipelines import load
from tvm import relax

from relax_inplace import inplace_update_tuple
from relax_inplace.analysis import OwnershipError, check_ownership

TENSOR = relax.TensorType((2,), "float32")
PAIR = relax.TupleType([TENSOR, TENSOR])
ARGUMENT = relax.TupleType([TENSOR, PAIR, TENSOR, relax.TupleType([TENSOR]), PAIR])


def add_callees(builder):
    """A function that updates its argument, one that returns it, one that reads it."""
    q, x = relax.Var("q", PAIR), relax.Var("x", TENSOR)
    with builder.function("replaced", [q, x], pure=False):
        builder.emit_func_output(builder.emit(inplace_update_tuple(q, 0, x)))
    q = relax.Var("q", PAIR)
    with builder.function("same", [q]):
        builder.emit_func_output(q)
    q = relax.Var("q", PAIR)
    with builder.function("second", [q]):
        builder.emit_func_output(builder.emit(relax.TupleGetItem(q, 1)))
    return {name: builder.get().get_global_var(name) for name in ("replaced", "same", "second")}


def numbered(ty, counter):
    """The model's argument: tensors with values of their own."""
    if isinstance(ty, relax.TupleType):
        return [numbered(field, counter) for field in ty.fields]
    counter[0] += 1
    return np.full(2, counter[0], "float32")


def to_tvm(value):
    if isinstance(value, list):
        return tvm_ffi.Array([to_tvm(field) for field in value])
    return tvm.runtime.tensor(value)


class Program:
    """Emits bindings, and runs each on the model as it goes."""

    def __init__(self, draw):
        self.draw = draw
        self.builder = relax.BlockBuilder()
        self.callees = add_callees(self.builder)
        self.values = []  # (variable, value in the model)

    def pick(self, *kinds):
        """A name of a type. A stale one only if its type is still true: those are the dangerous."""
        found = [
            (var, value)
            for var, value in self.values
            if isinstance(var.ty, kinds) and _is_of_type(value, var.ty)
        ]
        return self.draw(st.sampled_from(found[-8:])) if found else None

    def emit(self, expr, value):
        self.values.append((self.builder.emit(expr), value))

    def step(self):
        kinds = [
            "read",
            "read",
            "update",
            "update",
            "update",
            "put back",
            "compute",
            "tuple",
            "alias",
        ]
        getattr(self, self.draw(st.sampled_from(kinds)).replace(" ", "_"))()

    def read(self):
        source, value = self.pick(relax.TupleType)
        index = self.draw(st.integers(0, len(value) - 1))
        self.emit(relax.TupleGetItem(source, index), value[index])

    def alias(self):
        self.emit(*self.pick(relax.TupleType))

    def tuple(self):
        count = self.draw(st.integers(1, 3))
        pairs = [self.pick(relax.TensorType, relax.TupleType) for _ in range(count)]
        self.emit(relax.Tuple([var for var, _ in pairs]), [value for _, value in pairs])

    def update(self):
        source, value = self.pick(relax.TupleType)
        index = self.draw(st.integers(0, len(value) - 1))
        self._update(source, value, index, *self.pick(relax.TensorType, relax.TupleType))

    def put_back(self):
        """Take out an inner tuple, update it, and put it back: what a careful program does."""
        source, value = self.pick(relax.TupleType)
        inner = [i for i, field in enumerate(value) if isinstance(field, list)]
        new = self.pick(relax.TensorType)
        if not inner or new is None:
            return self.read()
        index = self.draw(st.sampled_from(inner))
        self.emit(relax.TupleGetItem(source, index), value[index])
        position = self.draw(st.integers(0, len(value[index]) - 1))
        self._update(*self.values[-1], position, *new)
        self._update(source, value, index, *self.values[-1])

    def call(self):
        pairs = [(v, value) for v, value in self.values if _is_of_type(value, PAIR)]
        pairs = [(v, value) for v, value in pairs if tvm.ir.structural_equal(v.ty, PAIR)]
        new = self.pick(relax.TensorType)
        if not pairs or new is None:
            return self.read()
        source, value = self.draw(st.sampled_from(pairs[-8:]))
        name = self.draw(st.sampled_from(sorted(self.callees)))
        callee = self.callees[name]
        if name == "replaced":
            value[0] = new[1]
            self.emit(relax.Call(callee, [source, new[0]]), value)
        elif name == "same":
            self.emit(relax.Call(callee, [source]), value)
        else:
            self.emit(relax.Call(callee, [source]), value[1])

    def _update(self, source, value, index, new, new_value):
        if _holds(new_value, value):
            return self.read()  # it would be refused; the model would never end
        value[index] = new_value
        self.emit(inplace_update_tuple(source, index, new), value)

    def compute(self):
        left, right = self.pick(relax.TensorType), self.pick(relax.TensorType)
        if left is None or right is None:
            return self.read()
        self.emit(relax.op.add(left[0], right[0]), left[1] + right[1])


def _is_of_type(value, ty):
    if isinstance(ty, relax.TupleType):
        return (
            isinstance(value, list)
            and len(value) == len(ty.fields)
            and all(map(_is_of_type, value, ty.fields))
        )
    return isinstance(value, np.ndarray)


def _holds(value, wanted):
    return value is wanted or (
        isinstance(value, list) and any(_holds(field, wanted) for field in value)
    )


def assert_agrees(ours, model, objects):
    """Equal, and what is one object here is one object there."""
    if isinstance(model, list):
        assert len(ours) == len(model)
        assert objects.setdefault(id(model), ours).same_as(ours)
        for left, right in zip(ours, model, strict=True):
            assert_agrees(left, right, objects)
    else:
        np.testing.assert_array_equal(ours.numpy(), model)


@given(st.data())
def test_a_program_is_refused_or_right(data):
    program = Program(data.draw)
    params = relax.Var("params", ARGUMENT)
    model = numbered(ARGUMENT, [0])
    argument = to_tvm(model)
    with program.builder.function("main", [params], pure=False):
        program.values.append((params, model))
        for _ in range(data.draw(st.integers(2, 10))):
            program.step()
        returned = [program.pick(relax.TensorType, relax.TupleType) for _ in range(2)]
        result = program.builder.emit(relax.Tuple([var for var, _ in returned]))
        program.builder.emit_func_output(result)
    mod = program.builder.get()
    try:
        check_ownership(mod)
    except OwnershipError:
        event("refused")
        return
    event("right")
    pipeline = data.draw(st.sampled_from(["compile", "cpu default", "compiled mode"]))
    output = load(mod, pipeline)["main"](argument)
    objects = {}
    assert_agrees(argument, model, objects)
    assert_agrees(output, [value for _, value in returned], objects)
