"""Writes the function that restores the weights of a transform, in place as that one is.

Its inverse (:mod:`.inverse`) is a transform of its own, of what the first one has made.
It is rewritten by what rewrites any: so it, too, needs the weights and one temporary.
"""

from __future__ import annotations

from collections.abc import Mapping

from tvm import ir, relax

from ..inplace.inplace_transform_params import Restored, Rewrite
from ..inplace.schedule import UPPER_BOUND, bounds_of
from ..inplace.transform_graph import RESTORE, TRANSFORM, UnsupportedTransformError
from .inverse import find_inverse

__all__ = ["restore_name", "restored"]


def restore_name(inplace: str) -> str:
    """What undoes a transform is called, from what that is called once it works in place."""
    if inplace.endswith(TRANSFORM):
        return inplace[: -len(TRANSFORM)] + RESTORE
    return f"{inplace}_{RESTORE}"


def restored(
    mod: ir.IRModule,
    name: str,
    function: relax.Function,
    undoes: str,
    rewrite: Rewrite,
    equal: Mapping[str, str] | None = None,
) -> Restored:
    """The inverse of a transform, in place.

    Parameters
    ----------
    mod : tvm.ir.IRModule
        Where the functions that the transform calls are.
    name : str
        Of the transform, for errors.
    function : relax.Function
        The transform, out of place.
    undoes : str
        What it is called once it works in place.
    rewrite : callable
        What makes an in-place function of one of a module.
    equal : dict of str to str, optional
        Slots of weights that are known to be equal to others.

    Raises
    ------
    InverseError
        Some weights cannot be restored.
    """
    new_name = restore_name(undoes)
    if any(gvar.name_hint == new_name for gvar in mod.get_global_vars()):
        reason = f"restore=True: the module has a `{new_name}` already"
        raise UnsupportedTransformError.of(function=name, reason=reason)
    inverse = find_inverse(name, function, mod, equal)
    inverse.require_complete()
    attrs: dict[str, object] = {"global_symbol": new_name}
    if bounds := bounds_of(function):  # its dimensions have the names that they have there
        attrs[UPPER_BOUND] = dict(bounds)
    if inverse.graph.leading:
        attrs["num_input"] = len(inverse.graph.leading)
    leading = [relax.Var(var.name, var.ty) for var in inverse.graph.leading]
    params = relax.Var("params", relax.TupleType(inverse.outputs()))
    builder = relax.BlockBuilder(mod)
    with builder.function(new_name, [*leading, params], attrs=attrs):
        with builder.dataflow():
            weights = builder.emit_output(inverse.write(params))
        builder.emit_func_output(weights)
    known = builder.get()
    # Its symbolic dimensions are its own: two functions may not define the same.
    out_of_place = relax.utils.copy_with_new_vars(known[new_name])
    kernels = {
        gvar: kernel
        for gvar, kernel in known.functions_items()
        if gvar.name_hint != new_name and gvar not in mod.functions
    }
    return Restored(new_name, rewrite(known, out_of_place, new_name), undoes, kernels)
