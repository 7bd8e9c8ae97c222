"""Keeps the map from old weights to new ones when a module is compiled.

An executable has no attributes. So the module gets a function ``inplace_param_map() -> str``, as
MLC-LLM's ``_metadata`` is one: the JSON that the attribute holds, for whoever loads the executable.
"""

from __future__ import annotations

from tvm import ir, relax

__all__ = ["PARAM_MAP", "keep_param_map"]

PARAM_MAP = "relax_inplace.param_map"  # an attribute of the module
_FUNCTION = "inplace_param_map"


def keep_param_map(mod: ir.IRModule) -> ir.IRModule:
    """Give a module that has the attribute the function."""
    if not mod.attrs or PARAM_MAP not in mod.attrs:
        return mod
    if any(gvar.name_hint == _FUNCTION for gvar in mod.get_global_vars()):
        return mod
    builder = relax.BlockBuilder()
    with builder.function(_FUNCTION, [], attrs={"global_symbol": _FUNCTION}):
        builder.emit_func_output(ir.StringImm(mod.attrs[PARAM_MAP]))
    mod = mod.clone()
    mod[_FUNCTION] = builder.get()[_FUNCTION]
    return mod
