"""Which functions of a module update a tuple in place, and whether it is their caller's."""

from __future__ import annotations

from collections.abc import Iterator

from tvm import ir, relax

from ..op import is_update

__all__ = [
    "OVERWRITES",
    "PLANNED_FOR",
    "REFERENCE",
    "STREAMED",
    "UPDATES_NOTHING",
    "bindings_of",
    "expanded_tuple",
    "functions_that_update",
]

# Attributes of rewritten transforms.
UPDATES_NOTHING = "relax_inplace.updates_nothing"
REFERENCE = "relax_inplace.reference"  # what a conversion is compared with
STREAMED = "relax_inplace.streamed"  # its last parameter is a tuple that it fills, and never reads
OVERWRITES = "relax_inplace.overwrites"  # weights in whose memory it computes, by their leaves
PLANNED_FOR = "relax_inplace.planned_for"  # the kind of target by whose kernels its peak is planned

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
    """The Relax functions that have an update, or refer to a function that has one.

    Callers are included because they can keep an original alive, as the callee can. A rewritten
    transform without an update is included, so that its plan holds.

    Parameters
    ----------
    mod : tvm.ir.IRModule
        A module, before or after lowering.

    Returns
    -------
    set of tvm.ir.GlobalVar
        The functions; empty for a module without any use of this package.
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


def expanded_tuple(function: relax.Function) -> relax.Var | None:
    """A tuple that a private function makes of its parameters, and updates; None if there is none.

    ``ExpandTupleArguments`` (src/relax/transform/expand_tuple_arguments.cc), which ``FuseTIR``
    runs, gives a private function a parameter for each field of a tuple, and makes the tuple anew.
    What is updated then is not the caller's.
    """
    if function.attrs and "global_symbol" in function.attrs:
        return None
    params = set(function.params[:])
    made = {
        binding.var
        for binding in bindings_of(function)
        if type(binding.value) is relax.Tuple
        and len(binding.value.fields)
        and all(field in params for field in binding.value.fields[:])
    }
    if made:
        for binding in bindings_of(function):
            if is_update(binding.value) and binding.value.args[0] in made:
                return binding.value.args[0]
    return None
