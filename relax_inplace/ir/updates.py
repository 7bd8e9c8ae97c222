"""Which functions of a module update a tuple in place, and whether the tuple is still theirs."""

from __future__ import annotations

from collections.abc import Iterator

from tvm import ir, relax

from ..op import is_update

__all__ = [
    "OVERWRITES",
    "REFERENCE",
    "STREAMED",
    "UPDATES_NOTHING",
    "bindings_of",
    "expanded_parameter",
    "functions_that_update",
]

# Attributes of rewritten transforms.
UPDATES_NOTHING = "relax_inplace.updates_nothing"
REFERENCE = "relax_inplace.reference"  # what a conversion is compared with: compiled as TVM does
STREAMED = "relax_inplace.streamed"  # its last parameter is a tuple that it fills, and never reads
OVERWRITES = "relax_inplace.overwrites"  # weights that its kernels write to, counted through tuples

_WITH_BINDINGS = (relax.Function, relax.If, relax.SeqExpr)


def bindings_of(expr: relax.Expr) -> Iterator[relax.Binding]:
    """Every binding in a function, at any depth of branches and local functions.

    What is inside a binding comes right before it: everything after what it uses.
    """
    kind = type(expr)  # the classes of tvm-ffi are abstract base classes: isinstance is slow
    if kind is relax.Function:
        yield from bindings_of(expr.body)
    elif kind is relax.If:
        yield from bindings_of(expr.true_branch)
        yield from bindings_of(expr.false_branch)
    elif kind is relax.SeqExpr:
        for block in expr.blocks[:]:  # a slice: iterating an ffi.Array takes 4 times as long
            for binding in block.bindings[:]:
                if type(binding.value) in _WITH_BINDINGS:
                    yield from bindings_of(binding.value)
                yield binding


def functions_that_update(mod: ir.IRModule) -> set[ir.GlobalVar]:
    """The Relax functions that hold an update, or refer to a function that does.

    A caller belongs to them because it is as able as the callee to keep an original alive. So does
    a transform that has been rewritten and finds nothing to update: its plan is to hold.

    Parameters
    ----------
    mod : tvm.ir.IRModule
        Before lowering or after it.

    Returns
    -------
    set of tvm.ir.GlobalVar
        Empty for a module that has nothing to do with this package.
    """
    functions = {
        gvar: function
        for gvar, function in mod.functions_items()
        if isinstance(function, relax.Function)
    }
    found = {
        gvar
        for gvar, function in functions.items()
        if any(is_update(binding.value) for binding in bindings_of(function))
        or (function.attrs and UPDATES_NOTHING in function.attrs)
    }
    if not found:
        return found
    callers: dict[ir.GlobalVar, list[ir.GlobalVar]] = {}
    for gvar in functions.keys() - found:
        # Quadratic in the fields of a tuple: it visits the type of a name at each of its uses.
        for callee in relax.analysis.all_global_vars(functions[gvar]):
            callers.setdefault(callee, []).append(gvar)
    pending = list(found)
    while pending:
        for caller in callers.get(pending.pop(), ()):
            if caller not in found:
                found.add(caller)
                pending.append(caller)
    return found


def expanded_parameter(function: relax.Function) -> str | None:
    """The tuple parameter that a pass has replaced by one parameter for each field, if any.

    ``ExpandTupleArguments`` (src/relax/transform/expand_tuple_arguments.cc), which ``FuseTIR``
    runs, does that to a private function: ``params`` becomes ``params_0, params_1``, and its first
    binding is ``params = (params_0, params_1)``. What is updated then is a tuple of its own.

    Returns
    -------
    str or None
        Name of the parameter that was.
    """
    expanded = {
        binding.var
        for binding in bindings_of(function)
        if isinstance(binding.value, relax.Tuple) and _is_expanded(binding.var, binding.value)
    }
    if expanded:
        for binding in bindings_of(function):
            if is_update(binding.value) and binding.value.args[0] in expanded:
                return str(binding.value.args[0].name)
    return None


def _is_expanded(var: relax.Var, value: relax.Tuple) -> bool:
    fields = value.fields[:]
    return bool(fields) and all(
        isinstance(field, relax.Var) and field.name == f"{var.name}_{index}"
        for index, field in enumerate(fields)
    )
