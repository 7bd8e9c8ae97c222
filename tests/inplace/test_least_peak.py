"""The measured peak of random transforms against the best of all orders, by brute force.

Each step is one kernel; tensors have 2 to 8 MB; each transform runs in a fresh process, and its
resident memory is measured.
"""

import itertools
import random

import numpy as np
import tvm
import tvm_ffi
from hypothesis import given
from hypothesis import strategies as st
from memory import extra_mb, in_fresh_process, needs_clear_refs
from profiles import examples
from tvm import relax

from relax_inplace.analysis import plan_memory

COLUMNS = 1024
ROWS_PER_MB = 256  # of float32
MOST_STEPS = 7
SEEDS = st.integers(0, 2**32)


class Graph:
    """Random weights, steps and outputs; sizes are in MB."""

    def __init__(self, seed):
        choose = random.Random(seed)
        self.sizes = [choose.choice([2, 4, 8]) for _ in range(choose.randint(1, 4))]
        self.weights = len(self.sizes)
        self.steps = []  # (operator, operands); the result of step i is value weights + i
        for _ in range(choose.randint(1, MOST_STEPS)):
            a = choose.randrange(len(self.sizes))
            same = [b for b, size in enumerate(self.sizes) if size == self.sizes[a]]
            b = choose.choice(same)
            kinds = (
                ["exp", "add"] + ["concat"] * (self.sizes[a] < 8) + ["half"] * (self.sizes[a] > 2)
            )
            kind = choose.choice(kinds)
            size = self.sizes[a] * {"concat": 2, "half": 0.5}.get(kind, 1)
            self.steps.append((kind, [a] if kind in ("exp", "half") else [a, b]))
            self.sizes.append(int(size))
        values = range(len(self.sizes))
        count = self.weights if seed % 2 else choose.randint(1, 5)  # as many fields, or not
        self.outputs = [choose.choice(values) for _ in range(count)]

    def module(self):
        types = [relax.TensorType((s * ROWS_PER_MB, COLUMNS), "float32") for s in self.sizes]
        params = relax.Var("params", relax.TupleType(types[: self.weights]))
        builder = relax.BlockBuilder()
        with builder.function("transform_params", [params]):
            values = [builder.emit(relax.TupleGetItem(params, i)) for i in range(self.weights)]
            for kind, operands in self.steps:
                args = [values[o] for o in operands]
                if kind == "concat":
                    call = relax.op.concat(args, axis=0)
                elif kind == "half":
                    rows = self.sizes[operands[0]] * ROWS_PER_MB // 2
                    call = relax.op.strided_slice(args[0], axes=[0], begin=[0], end=[rows])
                else:
                    call = getattr(relax.op, kind)(*args)
                values.append(builder.emit(call))
            out = builder.emit(relax.Tuple([values[o] for o in self.outputs]))
            builder.emit_func_output(out)
        return builder.get()

    def least_peak(self, streamed=False):
        """The best of all orders of the steps that are needed."""
        needed, pending = set(), [o for o in self.outputs if o >= self.weights]
        while pending:
            value = pending.pop()
            if value not in needed:
                needed.add(value)
                pending += [o for o in self.steps[value - self.weights][1] if o >= self.weights]
        orders = itertools.permutations(sorted(needed))
        return min(self._peak(order, needed, streamed) for order in orders)

    def _peak(self, order, needed, streamed):
        position = {value: at for at, value in enumerate(order)}
        last = {}
        for value in order:
            for operand in self.steps[value - self.weights][1]:
                if operand >= self.weights and position[operand] > position[value]:
                    return float("inf")  # no order of these steps
                last[operand] = value
        live = set() if streamed else set(range(self.weights))
        peak = sum(self.sizes[value] for value in live)
        live = {value for value in live if value in last or value in self.outputs}
        for value in order:
            live.add(value)
            live.update(o for o in self.steps[value - self.weights][1] if o < self.weights)
            peak = max(peak, sum(self.sizes[v] for v in live))
            live -= {v for v in live if last.get(v) == value and v not in self.outputs}
        live.update(self.outputs)
        return max(peak, sum(self.sizes[v] for v in live))


def measured_peak(seed):
    from relax_inplace.transform import InplaceTransformParams

    graph = Graph(seed)
    mod = InplaceTransformParams()(graph.module())
    vm = relax.VirtualMachine(tvm.compile(mod, "llvm"), tvm.cpu())
    function = vm["inplace_transform_params"]
    weights = graph.sizes[: graph.weights]
    params = tvm_ffi.Array(
        [tvm.runtime.tensor(np.ones((size * ROWS_PER_MB, COLUMNS), "float32")) for size in weights]
    )
    return sum(weights) + extra_mb(lambda: function(params))


@needs_clear_refs
@examples(6, fuzz=200)
@given(SEEDS)
def test_no_order_has_a_lower_peak(seed):
    measured, least = in_fresh_process(measured_peak, seed), Graph(seed).least_peak()
    assert measured <= least + 1


@examples(60, fuzz=2000)
@given(SEEDS)
def test_no_order_of_a_streamed_one_has_a_lower_peak(seed):
    """By the plan, which is what happens: test_any_transform.py."""
    graph = Graph(seed)
    plan = plan_memory(graph.module()["transform_params"], lazy=True)
    assert plan.peak == graph.least_peak(streamed=True) << 20
