"""A module in two: the functions that update a tuple, and the rest; and back in one.

Definition
----------
*Ours* are the functions that update a tuple, their callers, and copies of what these reach: kernels
and other Relax functions. The *rest* is the module without the functions that update, and without
private functions that nothing else reaches: what the module would be if it had no transforms.

Both are lowered, each by passes of its own. Then ours are put beside the rest. A function that
updates keeps its name: that is what it is called by. What else of ours has a name that the rest
has, too, gets another one.
"""

from __future__ import annotations

from collections.abc import Collection

import tvm_ffi
from tvm import ir, relax, tirx

from ..ir.names import unused

__all__ = ["beside", "merge", "renamed", "split"]

# Of a lowered module: compiled code, and constants by name (tvm.relax.build reads them).
_LIBRARIES = "external_mods"
_CONSTANTS = "const_name_to_constant"


def split(mod: ir.IRModule, updating: Collection[ir.GlobalVar]) -> tuple[ir.IRModule, ir.IRModule]:
    """Take a module apart.

    Parameters
    ----------
    mod : tvm.ir.IRModule
    updating : collection of tvm.ir.GlobalVar
        The functions that update a tuple, and all their callers.

    Returns
    -------
    ours, rest : tvm.ir.IRModule
    """
    ours = _reached(mod, updating)
    others = {
        gvar
        for gvar, function in mod.functions_items()
        if gvar not in updating and (gvar not in ours or _is_public(function))
    }
    rest = _reached(mod, others)
    attrs = {k: v for k, v in (mod.attrs or {}).items() if k not in (_LIBRARIES, _CONSTANTS)}
    return (
        ir.IRModule(_functions(mod, ours), attrs, mod.global_infos),
        ir.IRModule(_functions(mod, rest), mod.attrs, mod.global_infos),
    )


def beside(ours: ir.IRModule, rest: ir.IRModule, kept: Collection[str]) -> ir.IRModule:
    """Ours, after both have been lowered, under names that the rest does not have.

    Parameters
    ----------
    ours, rest : tvm.ir.IRModule
    kept : collection of str
        The names of functions of ours that stay as they are.

    Raises
    ------
    ValueError
        The rest has a function of such a name by now.
    """
    taken = {gvar.name_hint for gvar in rest.get_global_vars()}
    for name in kept:
        if name in taken:
            raise ValueError(
                f"function `{name}` updates a tuple in place, but the pipeline has made another "
                "function of that name: rename one of them"
            )
    return renamed(ours, taken)


def merge(ours: ir.IRModule, rest: ir.IRModule) -> ir.IRModule:
    """Put both parts into one module: functions, libraries, named constants."""
    merged = rest.clone()
    merged.update(ours)
    attrs, added = merged.attrs or {}, ours.attrs or {}
    if _LIBRARIES in added:
        merged = merged.with_attr(_LIBRARIES, [*attrs.get(_LIBRARIES, ()), *added[_LIBRARIES]])
    if _CONSTANTS in added:
        constants = {**dict(attrs.get(_CONSTANTS, {})), **dict(added[_CONSTANTS])}
        merged = merged.with_attr(_CONSTANTS, constants)
    return merged


def _functions(
    mod: ir.IRModule, wanted: Collection[ir.GlobalVar]
) -> dict[ir.GlobalVar, ir.BaseFunc]:
    return {gvar: function for gvar, function in mod.functions_items() if gvar in wanted}


def _reached(mod: ir.IRModule, roots: Collection[ir.GlobalVar]) -> set[ir.GlobalVar]:
    found, pending = set(roots), list(roots)
    while pending:
        for callee in _callees(mod[pending.pop()]):
            if callee not in found and callee in mod.functions:
                found.add(callee)
                pending.append(callee)
    return found


def _callees(function: ir.BaseFunc) -> Collection[ir.GlobalVar]:
    if isinstance(function, relax.Function):
        return relax.analysis.all_global_vars(function)[:]
    found: list[ir.GlobalVar] = []
    if isinstance(function, tirx.PrimFunc):
        tvm_ffi.structural_walk(function.body, (ir.GlobalVar, found.append))
    return found


def _is_public(function: ir.BaseFunc) -> bool:
    return bool(function.attrs) and "global_symbol" in function.attrs


def renamed(mod: ir.IRModule, taken: Collection[str]) -> ir.IRModule:
    """The module with other names for what has one that is taken.

    TVM's own renaming (AttachGlobalSymbol with a ``system_lib_prefix``) fails on scheduled kernels.

    Parameters
    ----------
    mod : tvm.ir.IRModule
    taken : collection of str
    """
    used = {*taken, *(gvar.name_hint for gvar in mod.get_global_vars())}
    new: dict[ir.GlobalVar, ir.GlobalVar] = {}
    for gvar in mod.get_global_vars():
        if gvar.name_hint in taken:
            name = unused(f"inplace_{gvar.name_hint}", used, "_")
            used.add(name)
            new[gvar] = ir.GlobalVar(name)
            relax.expr._update_type(new[gvar], gvar.ty)
    if not new:
        return mod
    functions = {}
    for gvar, function in mod.functions_items():
        # Of a kernel, too: it may call another one.
        function = tvm_ffi.structural_map(function, (ir.GlobalVar, lambda one: new.get(one, one)))
        if gvar in new:
            function = function.with_attr("global_symbol", new[gvar].name_hint)
        functions[new.get(gvar, gvar)] = function
    return ir.IRModule(functions, mod.attrs, mod.global_infos)
