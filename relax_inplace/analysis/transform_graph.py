"""A ``transform_params`` function as a graph: what each of its outputs is computed from.

Definition
----------
The *weights* are the fields of the function's tuple parameter, or its separate parameters, after
the ``num_input`` leading ones. A *step* is a binding that computes something: a read of a weight
and a second name for a value are none. The function is pure, so that its steps may run in any
order in which operands come first, and a step that no output needs need not run.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from tvm import ir, relax

from ..errors import StructuredError

__all__ = ["Step", "TransformGraph", "UnsupportedTransformError"]


class UnsupportedTransformError(StructuredError):
    """A function that cannot be rewritten to update its weights in place.

    Attributes
    ----------
    function : str
        Its name.
    reason : str
        Why not, and where in it.
    """

    template = "function `{function}` cannot be transformed in place: {reason}"


@dataclasses.dataclass(eq=False)
class Step:
    """One binding that computes something.

    Attributes
    ----------
    binding : relax.Binding
        Its variable, and the value as the function has it.
    in_dataflow : bool
        Whether it stands in a dataflow block, where TVM fuses.
    operands : list of Step
        The steps whose results it reads.
    reads : list of int
        The weights that it reads.
    runs_first : bool
        Whether types of later steps may depend on it: a ``match_cast`` defines symbolic
        variables, a prim value can be a dimension.
    """

    binding: relax.Binding
    in_dataflow: bool
    operands: list[Step]
    reads: list[int]
    runs_first: bool


@dataclasses.dataclass
class TransformGraph:
    """What a transform computes, and from what.

    Attributes
    ----------
    leading : list of relax.Var
        The ``num_input`` parameters before the weights.
    weights : relax.Var
        The tuple of weights: the function's own parameter, or one that its separate weights are
        bundled into.
    steps : list of Step
        In the function's order.
    outputs : list of relax.Expr
        The fields of the tuple it returns.
    output_needs : list of (list of Step, list of int)
        For each output the steps and the weights that it reads by itself.
    """

    leading: list[relax.Var]
    weights: relax.Var
    steps: list[Step]
    outputs: list[relax.Expr]
    output_needs: list[tuple[list[Step], list[int]]]
    _step_of: dict[relax.Var, Step]
    _weight_of: dict[relax.Var, int]
    _alias_of: dict[relax.Var, relax.Expr]

    @staticmethod
    def build(name: str, function: relax.Function) -> TransformGraph:
        """Read a function.

        Raises
        ------
        UnsupportedTransformError
            It is impure, takes no weights, returns no tuple, or uses the tuple of weights
            otherwise than to read a field.
        """
        return _Builder(name, function).build()

    def resolve(self, expr: relax.Expr) -> relax.Expr:
        """What a variable is a second name for; other expressions as they are."""
        while isinstance(expr, relax.Var) and expr in self._alias_of:
            expr = self._alias_of[expr]
        return expr

    def step_of(self, var: relax.Var) -> Step | None:
        """The step that computes a variable."""
        return self._step_of.get(var)

    def weight_of(self, expr: relax.Expr) -> int | None:
        """The weight that an expression is, unchanged: its index."""
        expr = self.resolve(expr)
        if isinstance(expr, relax.TupleGetItem) and self.resolve(expr.tuple_value).same_as(
            self.weights
        ):
            return int(expr.index)
        return self._weight_of.get(expr) if isinstance(expr, relax.Var) else None

    def needs(self, expr: relax.Expr) -> tuple[list[Step], list[int]]:
        """The steps and the weights that an expression reads by itself."""
        steps: list[Step] = []
        weights: list[int] = []
        for var in relax.analysis.free_vars(expr)[:]:
            resolved = self.resolve(var)
            weight = self.weight_of(resolved)
            if weight is not None:
                weights.append(weight)
                continue
            inner = (
                [resolved]
                if isinstance(resolved, relax.Var)
                else relax.analysis.free_vars(resolved)
            )
            steps += [self._step_of[x] for x in inner if x in self._step_of]
        return steps, weights


@functools.cache
def _overwriting_ops() -> frozenset[ir.Op]:
    """Ops that count as pure, but write to an operand that nothing later reads."""
    names = ("relax.call_tir_inplace", "relax.call_inplace_packed")
    return frozenset(ir.Op.get(name) for name in names)


class _Builder:
    def __init__(self, name: str, function: relax.Function):
        self.name = name
        self.function = function

    def build(self) -> TransformGraph:
        self._require_pure()
        graph = self._signature()
        for block in self.function.body.blocks[:]:
            in_dataflow = isinstance(block, relax.DataflowBlock)
            for binding in block.bindings[:]:
                self._add(graph, binding, in_dataflow)
        graph.outputs = self._outputs(graph)
        for output in graph.outputs:
            self._require_fields_only(graph, output, "the tuple it returns")
        graph.output_needs = [graph.needs(output) for output in graph.outputs]
        return graph

    def _unsupported(self, reason: str) -> StructuredError:
        return UnsupportedTransformError.of(function=self.name, reason=reason)

    def _require_pure(self) -> None:
        if not relax.analysis.contains_impure_call(self.function):
            return
        for block in self.function.body.blocks:
            for binding in block.bindings:
                if relax.analysis.contains_impure_call(binding.value):
                    raise self._unsupported(f"the binding of `{binding.var.name}` is impure")
        raise self._unsupported("it is impure")

    def _signature(self) -> TransformGraph:
        params = list(self.function.params)
        attrs = self.function.attrs
        count = int(attrs["num_input"]) if attrs and "num_input" in attrs else 0
        leading, trailing = params[:count], params[count:]
        if not trailing:
            raise self._unsupported(
                f"it takes no weights: num_input={count} of its {len(params)} parameters are inputs"
            )
        weight_of: dict[relax.Var, int] = {}
        if len(trailing) == 1 and isinstance(trailing[0].ty, relax.TupleType):
            weights = trailing[0]
        else:
            for param in trailing:
                if not isinstance(param.ty, relax.TensorType):
                    raise self._unsupported(
                        f"weight `{param.name}` has type {param.ty}; expected one tuple of "
                        f"weights, or tensors only, after the num_input={count} leading parameters"
                    )
            weights = relax.Var("params", relax.TupleType([param.ty for param in trailing]))
            weight_of = {param: index for index, param in enumerate(trailing)}
        return TransformGraph(leading, weights, [], [], [], {}, weight_of, {})

    def _add(self, graph: TransformGraph, binding: relax.Binding, in_dataflow: bool) -> None:
        var, value = binding.var, binding.value
        is_match_cast = isinstance(binding, relax.MatchCast)
        if not is_match_cast:
            if isinstance(value, (relax.Var, ir.Constant)):
                graph._alias_of[var] = value
                return
            weight = graph.weight_of(value)
            if weight is not None:
                graph._weight_of[var] = weight
                return
        self._require_fields_only(graph, value, f"the binding of `{var.name}`")
        if isinstance(value, ir.Call) and value.op in _overwriting_ops():
            raise self._unsupported(
                f"the binding of `{var.name}` overwrites its operand (R.{value.op.name[6:]}), so "
                "that steps cannot change their order"
            )
        operands, reads = graph.needs(value)
        runs_first = is_match_cast or isinstance(var.ty, (ir.PrimType, relax.ShapeType))
        step = Step(binding, in_dataflow, operands, reads, runs_first)
        graph.steps.append(step)
        graph._step_of[var] = step

    def _require_fields_only(self, graph: TransformGraph, expr: relax.Expr, where: str) -> None:
        if graph.weight_of(expr) is not None:
            return
        for var in relax.analysis.free_vars(expr)[:]:
            if graph.resolve(var).same_as(graph.weights):
                raise self._unsupported(
                    f"{where} uses the tuple of weights `{graph.weights.name}` as a whole; "
                    "only its fields can be read"
                )

    def _outputs(self, graph: TransformGraph) -> list[relax.Expr]:
        body: Any = graph.resolve(self.function.body.body)
        if isinstance(body, relax.Var):
            step = graph.step_of(body)
            if step is not None and isinstance(step.binding.value, relax.Tuple):
                return list(step.binding.value.fields)
            if body.same_as(graph.weights):
                return [relax.TupleGetItem(body, i) for i in range(len(body.ty.fields))]
        if isinstance(body, relax.Tuple):
            return list(body.fields)
        if isinstance(body, relax.Var) and isinstance(body.ty, relax.TupleType):
            return [relax.TupleGetItem(body, i) for i in range(len(body.ty.fields))]
        raise self._unsupported(f"it returns no tuple, but {self.function.ret_ty}")
