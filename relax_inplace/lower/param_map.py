"""The parameter map: what a module says of its in-place transforms, compiled or not.

It is JSON, an entry for each transform, in an attribute of the module. An executable has no
attributes; so a module that is compiled gets a function ``inplace_param_map() -> str``, as
MLC-LLM's ``_metadata`` is one. docs/runtime.md shows an entry.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import tvm
from tvm import ir, relax

from ..ir.binding_rewriter import with_body
from ..ir.table import plain_size

__all__ = [
    "MAP_FUNCTION",
    "Entry",
    "keep_param_map",
    "param_map_of",
    "with_moved_weights",
    "with_param_map",
]

PARAM_MAP = "relax_inplace.param_map"  # an attribute of the module
MAP_FUNCTION = "inplace_param_map"

Entry = dict[str, Any]


def with_param_map(mod: ir.IRModule, entries: Mapping[str, Entry]) -> ir.IRModule:
    """The module, with entries added to its map."""
    if not entries:
        return mod
    map_of_both = {**param_map_of(mod), **entries}
    return mod.with_attr(PARAM_MAP, json.dumps(map_of_both, default=plain_size))


def param_map_of(mod: ir.IRModule) -> dict[str, Entry]:
    """The entries of a module's map; none if it has none."""
    if not mod.attrs or PARAM_MAP not in mod.attrs:
        return {}
    entries: dict[str, Entry] = json.loads(mod.attrs[PARAM_MAP])
    return entries


def keep_param_map(mod: ir.IRModule, target: Any = None) -> ir.IRModule:
    """Give a module that has a map the function that returns it, for what it is compiled for."""
    if not mod.attrs or PARAM_MAP not in mod.attrs:
        return mod
    if any(gvar.name_hint == MAP_FUNCTION for gvar in mod.get_global_vars()):
        return mod
    entries = param_map_of(mod)
    target = tvm.target.Target.current() if target is None else tvm.target.Target(target)
    for entry in entries.values():
        entry["target"] = None if target is None else str(target)
    builder = relax.BlockBuilder()
    with builder.function(MAP_FUNCTION, [], attrs={"global_symbol": MAP_FUNCTION}):
        builder.emit_func_output(ir.StringImm(json.dumps(entries)))
    mod = mod.clone()
    mod[MAP_FUNCTION] = builder.get()[MAP_FUNCTION]
    return mod


def with_moved_weights(mod: ir.IRModule, moved: Mapping[str, list[str]]) -> ir.IRModule:
    """The module, whose map says which weights are moved once: `TensorTrace.moved_weights`."""
    if not moved or MAP_FUNCTION not in (gvar.name_hint for gvar in mod.get_global_vars()):
        return mod
    function = mod[MAP_FUNCTION]
    entries = json.loads(function.body.body.value)
    for name, weights in moved.items():
        if name in entries:
            entry = entries[name]
            asked_by = [one["slot"] for one in entry["weights"]]
            if entry["streamed"]:
                asked_by = [str(index) for index in range(len(asked_by))]
            entry["moved"] = [index for index, one in enumerate(asked_by) if one in weights]
    text = ir.StringImm(json.dumps(entries))
    mod = mod.clone()
    mod[MAP_FUNCTION] = with_body(function, relax.SeqExpr(function.body.blocks, text))
    return mod
