"""Random programs of updates: what the ownership check lets through means what it says.

A program is written as TVMScript and run twice: by TVM, and, as it is written, on a model in which
a tuple is a Python list that is changed in place. Names are used at random; aliases, nested tuples,
copies, calls and branches are among them. Either the program is refused, or both agree: on what is
returned, on what is left in the argument, and on which tuples are one object.
"""

import copy
import textwrap

import numpy as np
import tvm
import tvm_ffi
from hypothesis import event, given, note
from hypothesis import strategies as st
from pipelines import load
from profiles import examples
from tvm.script import from_source

from relax_inplace.analysis import OwnershipError, check_ownership

# A type is "T", a tensor, or a tuple of types; a value is an array, or a list of values.
PAIR = ("T", "T")
ARGUMENT = ("T", PAIR, "T", ("T",), PAIR)


def annotation(ty):
    if ty == "T":
        return 'R.Tensor((2,), "float32")'
    return f"R.Tuple({', '.join(map(annotation, ty))})"


HEADER = f"""
@I.ir_module
class Module:
    @R.function(pure=False)
    def replaced(q: {annotation(PAIR)}, x: {annotation("T")}) -> {annotation(PAIR)}:
        q0 = R.inplace_update_tuple(q, 0, x)
        return q0

    @R.function
    def same(q: {annotation(PAIR)}) -> {annotation(PAIR)}:
        return q

    @R.function
    def second(q: {annotation(PAIR)}) -> {annotation("T")}:
        y = q[1]
        return y

    @R.function(pure=False)
    def main(params: {annotation(ARGUMENT)}, c: R.Tensor((), "bool")):
        cls = Module
"""


def numbered(ty, counter):
    """A value in which no two tensors are equal."""
    if ty != "T":
        return [numbered(field, counter) for field in ty]
    counter[0] += 1
    return np.full(2, counter[0], "float32")


def to_tvm(value):
    if isinstance(value, list):
        return tvm_ffi.Array([to_tvm(field) for field in value])
    return tvm.runtime.tensor(value)


def is_of_type(value, ty):
    if ty == "T":
        return isinstance(value, np.ndarray)
    return isinstance(value, list) and len(value) == len(ty) and all(map(is_of_type, value, ty))


def holds(value, wanted):
    return value is wanted or (
        isinstance(value, list) and any(holds(field, wanted) for field in value)
    )


class Program:
    """Writes lines of a function, and runs each on the model."""

    def __init__(self, draw, condition, names, lines, counter):
        self.draw = draw
        self.condition = condition
        self.names = names  # (name, type, value in the model)
        self.lines = lines
        self.counter = counter

    def pick(self, wanted=lambda ty: True):
        """A name. A stale one only if its type is still true: those are the dangerous."""
        found = [n for n in self.names if wanted(n[1]) and is_of_type(n[2], n[1])]
        return self.draw(st.sampled_from(found[-8:])) if found else None

    def pick_tuple(self):
        return self.pick(lambda ty: ty != "T")

    def pick_tensor(self):
        return self.pick(lambda ty: ty == "T")

    def emit(self, code, ty, value):
        self.counter[0] += 1
        name = f"v{self.counter[0]}"
        self.lines.append(f"{name} = {code}")
        self.names.append((name, ty, value))

    def steps(self, count, in_branch=False):
        kinds = ["read", "update", "update", "put_back", "tuple", "alias", "call"]
        # TVM crashes on a temporary in each branch: StaticPlanBlockMemory hands the storage of one
        # branch to the other, which has not allocated it.
        kinds += [] if in_branch else ["compute", "branch"]
        for _ in range(self.draw(st.integers(1, count))):
            if self.pick_tuple() is not None:
                getattr(self, self.draw(st.sampled_from(kinds)))()

    def read(self):
        name, ty, value = self.pick_tuple()
        index = self.draw(st.integers(0, len(ty) - 1))
        self.emit(f"{name}[{index}]", ty[index], value[index])

    def alias(self):
        self.emit(*self.pick_tuple())

    def tuple(self):
        fields = [self.pick() for _ in range(self.draw(st.integers(1, 3)))]
        code = "".join(name + ", " for name, _, _ in fields)
        self.emit(f"({code})", tuple(ty for _, ty, _ in fields), [value for _, _, value in fields])

    def compute(self):
        left, right = self.pick_tensor(), self.pick_tensor()
        if left is None:
            return self.read()
        self.emit(f"R.add({left[0]}, {right[0]})", "T", left[2] + right[2])

    def update(self):
        source = self.pick_tuple()
        self._update(source, self.draw(st.integers(0, len(source[1]) - 1)), self.pick())

    def put_back(self):
        """Take out an inner tuple, update it, and put it back: what a careful program does."""
        source = self.pick_tuple()
        inner = [i for i, ty in enumerate(source[1]) if ty != "T"]
        new = self.pick_tensor()
        if not inner or new is None:
            return self.read()
        index = self.draw(st.sampled_from(inner))
        self.emit(f"{source[0]}[{index}]", source[1][index], source[2][index])
        taken = self.names[-1]
        self._update(taken, self.draw(st.integers(0, len(taken[1]) - 1)), new)
        self._update(source, index, self.names[-1])

    def _update(self, source, index, new):
        name, ty, value = source
        if holds(new[2], value):
            return self.read()  # it would be refused; the model would never end
        value[index] = new[2]
        ty = (*ty[:index], new[1], *ty[index + 1 :])
        self.emit(f"R.inplace_update_tuple({name}, {index}, {new[0]})", ty, value)

    def call(self):
        source, new = self.pick(lambda ty: ty == PAIR), self.pick_tensor()
        if source is None or new is None:
            return self.read()
        name, ty, value = source
        callee = self.draw(st.sampled_from(["replaced", "same", "second"]))
        if callee == "replaced":
            value[0] = new[2]
            self.emit(f"cls.replaced({name}, {new[0]})", ty, value)
        else:
            self.emit(
                f"cls.{callee}({name})", *((ty, value) if callee == "same" else ("T", value[1]))
            )

    def branch(self):
        """The model runs the branch that is taken; the other one is written on a copy of it."""
        otherwise = self.pick()
        wanted = otherwise[1]
        self.counter[0] += 1
        result = f"v{self.counter[0]}"
        untaken = copy.deepcopy(self.names)
        before = len(self.names)
        for taken in (True, False):
            names = self.names if taken == self.condition else untaken
            inner = Program(self.draw, self.condition, names, [], self.counter)
            inner.steps(2, in_branch=True)
            name, _, value = inner.pick(lambda ty, wanted=wanted: ty == wanted) or otherwise
            inner.lines.append(f"{result} = {name}")
            self.lines.append("if c:" if taken else "else:")
            self.lines += ["    " + line for line in inner.lines]
            if taken == self.condition:
                returned = value
        del self.names[before:]  # what a branch defines ends with it
        self.names.append((result, wanted, returned))


def assert_agrees(ours, model, objects):
    """Equal, and what is one object here is one object there."""
    if isinstance(model, list):
        assert len(ours) == len(model)
        assert objects.setdefault(id(model), ours).same_as(ours)
        for left, right in zip(ours, model, strict=True):
            assert_agrees(left, right, objects)
    else:
        np.testing.assert_array_equal(ours.numpy(), model)


@examples(60, fuzz=2000)
@given(st.data())
def test_a_program_is_refused_or_right(data):
    condition = data.draw(st.booleans())
    model = numbered(ARGUMENT, [0])
    argument = to_tvm(model)
    program = Program(data.draw, condition, [("params", ARGUMENT, model)], [], [0])
    program.steps(10)
    returned = [program.pick() or program.names[-1] for _ in range(2)]
    program.lines.append(f"return ({', '.join(name for name, _, _ in returned)})")
    code = HEADER + textwrap.indent("\n".join(program.lines), " " * 8)
    note(code)
    mod = from_source(code)
    try:
        check_ownership(mod)
    except OwnershipError as error:
        note(str(error))
        event("refused")
        return
    event("right, with a branch" if "if c:" in code else "right")
    pipeline = data.draw(st.sampled_from(["compile", "cpu default", "compiled mode"]))
    output = load(mod, pipeline)["main"](argument, tvm.runtime.tensor(np.array(condition)))
    objects = {}
    assert_agrees(argument, model, objects)
    assert_agrees(output, [value for _, _, value in returned], objects)
