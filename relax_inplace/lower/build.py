"""How functions that update a tuple are compiled: ``tvm.relax.build`` is wrapped, nothing else is.

``tvm.compile`` and every pipeline, TVM's own and others (MLC-LLM's), end there. A module that holds
updates is checked (:mod:`.ownership`) and split (:mod:`.split`): the functions that update are
lowered by passes of our own (:mod:`.pipeline`), the rest by the pipeline that the caller has chosen
(:mod:`.user_pipeline`), as if they were not there. Both are merged, and TVM's own build makes an
executable of them, without a pipeline. A module without updates goes through untouched.

What a conversion is compared with (``reference=True`` of ``InplaceTransformParams``) is lowered by
the caller's pipeline, too: the comparison shows whether that means something else by an operator.

Kernels of ours are compiled by themselves, so that those of the rest are not changed by them, and
their own may be given one memory for two parameters: :mod:`.kernel_libraries`.

Marks (``R.lift_param``) that no pass has taken out go first of all, so that the pipeline sees the
model without them.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import tvm
from tvm import ir, relax
from tvm.relax import vm_build

from ..ir.marks import without_marks_in
from ..ir.updates import REFERENCE, expanded_tuple, functions_that_update
from ..ir.whole_bytes import require_whole_bytes
from ..op import is_update
from .collector import paused_collector
from .donate_storage import MOVED_WEIGHTS
from .kernel_libraries import with_kernel_libraries
from .kill_registers import kill_registers
from .ownership import check_ownership
from .param_map import MAP_FUNCTION, keep_param_map, with_moved_weights
from .pipeline import NAME, checks_first, lower, target_of
from .split import beside, merge, renamed, split
from .tuple_objects import tuples_as_objects
from .user_pipeline import UserPipeline

__all__ = ["install", "prepared"]


def install() -> None:
    """Wrap ``tvm.relax.build``; again is harmless."""
    if not hasattr(vm_build.build, "_relax_inplace"):
        vm_build.build = relax.build = _splitting(vm_build.build)


def _splitting(stock: Any) -> Any:
    @functools.wraps(stock)
    def build(
        mod: ir.IRModule,
        target: Any = None,
        params: Any = None,
        relax_pipeline: Any = "default",
        tir_pipeline: Any = "default",
        exec_mode: str = "bytecode",
        *,
        system_lib: bool | None = None,
    ) -> tvm.runtime.Executable:
        if relax_pipeline == NAME:
            relax_pipeline = "default"
        with contextlib.ExitStack() as stack:
            if isinstance(mod, ir.IRModule):  # what it is not, TVM says
                mod = keep_param_map(without_marks_in(mod), target)
                updating = functions_that_update(mod)
                if updating:
                    stack.enter_context(paused_collector())
                    target = tvm.target.Target(target) if isinstance(target, str) else target
                    link = functools.partial(
                        with_kernel_libraries,
                        target=target,
                        tir_pipeline=tir_pipeline,
                        exec_mode=exec_mode,
                        system_lib=system_lib,
                    )
                    mod = _lowered(mod, updating, target, relax_pipeline, link)
                    relax_pipeline = None
            return stock(
                mod, target, params, relax_pipeline, tir_pipeline, exec_mode, system_lib=system_lib
            )

    build._relax_inplace = True  # type: ignore[attr-defined]
    return build


def _lowered(
    mod: ir.IRModule,
    updating: set[ir.GlobalVar],
    target: tvm.target.Target | None,
    relax_pipeline: Any,
    link: Callable[[ir.IRModule], ir.IRModule],
) -> ir.IRModule:
    pipeline = UserPipeline(relax_pipeline, target)
    references = {gvar for gvar in updating if REFERENCE in (mod[gvar].attrs or {})}
    ours, rest, kept = prepared(mod, updating, references, pipeline.transforms, target)
    rest = pipeline.run(rest, kept - {MAP_FUNCTION})
    for gvar in rest.get_global_vars():
        if gvar.name_hint in {one.name_hint for one in references}:
            rest[gvar] = kill_registers(checks_first(rest[gvar]))
    ours = lower(ours, target_of(target), pipeline.fuses)
    moved = {
        gvar.name_hint: list(map(str, function.attrs[MOVED_WEIGHTS]))
        for gvar, function in ours.functions_items()
        if function.attrs and MOVED_WEIGHTS in function.attrs
    }
    ours = beside(with_moved_weights(ours, moved), rest, kept)
    return merge(link(ours), rest)


def prepared(
    mod: ir.IRModule,
    updating: set[ir.GlobalVar],
    references: Collection[ir.GlobalVar] = (),
    transforms: Sequence[tvm.transform.Pass] = (),
    target: tvm.target.Target | None = None,
) -> tuple[ir.IRModule, ir.IRModule, set[str]]:
    """Check a module, and split it.

    Parameters
    ----------
    mod : tvm.ir.IRModule
    updating : set of tvm.ir.GlobalVar
        The functions that update a tuple, and their callers.
    references : collection of tvm.ir.GlobalVar
        Those among them that conversions are compared with.
    transforms : sequence of tvm.transform.Pass
        What the caller wants to be run on ours.
    target : tvm.target.Target, optional

    Returns
    -------
    ours : tvm.ir.IRModule
        Their tuples are objects.
    rest : tvm.ir.IRModule
        With the references, whose tuples are objects, too.
    kept : set of str
        The functions of ours that keep their names.
    """
    _check(mod, updating)
    roots = {gvar for gvar in updating if gvar not in references}
    roots |= {gvar for gvar in mod.get_global_vars() if gvar.name_hint == MAP_FUNCTION}
    kept = {gvar.name_hint for gvar in roots}
    ours, rest = split(mod, roots)
    if transforms:
        with target_of(target):
            ours = _transformed(ours, transforms)
        _check(ours, functions_that_update(ours))  # they may have taken two tuples for one
    names = {gvar.name_hint for gvar in updating}
    ours = tuples_as_objects(ours, _convertible(ours), names)
    return ours, tuples_as_objects(rest, references, names), kept


def _transformed(mod: ir.IRModule, transforms: Sequence[tvm.transform.Pass]) -> ir.IRModule:
    """What the caller's passes make of ours.

    The code of a function for an accelerator is found by its name, in all libraries of the
    executable; the rest may have been given to the same one. So ours get other names, between the
    pass that takes operators apart and the one that compiles them (RunCodegen).
    """
    for one in transforms:
        if isinstance(one, tvm.transform.Sequential):
            mod = _transformed(mod, one.passes)
            continue
        mod = tvm.transform.Sequential([one])(mod)
        apart = (g.name_hint for g, f in mod.functions_items() if "Codegen" in (f.attrs or {}))
        mod = renamed(mod, [name for name in apart if not name.startswith("inplace_")])
    return mod


def _convertible(mod: ir.IRModule) -> list[ir.GlobalVar]:
    """The Relax functions, but for those that FuseOps makes kernels of, and that stay values."""
    return [
        gvar
        for gvar, function in mod.functions_items()
        if isinstance(function, relax.Function) and "Primitive" not in (function.attrs or {})
    ]


def _check(mod: ir.IRModule, updating: set[ir.GlobalVar]) -> None:
    """Refuse what is wrong, on names and source places as the user wrote them."""
    for gvar in updating:
        if _is_misplaced(mod[gvar]):
            relax.analysis.well_formed(mod[gvar])  # TVM's own error; tvm.compile does not look
        require_whole_bytes(mod[gvar], mod)
        expanded = expanded_tuple(mod[gvar])
        if expanded is not None:
            raise ValueError(
                f"function `{gvar.name_hint}` updates the tuple `{expanded}`, which it makes of "
                "its parameters: a pass (FuseTIR or ExpandTupleArguments) has replaced a tuple by "
                "its fields, so that the caller's is out of reach; leave that pass to "
                "tvm.compile, or make the function public (no private=True) before it"
            )
    check_ownership(mod)


def _is_misplaced(function: relax.Function) -> bool:
    """Whether an update may stand in a pure function or in a dataflow block."""
    return function.is_pure or any(
        is_update(binding.value)
        for block in function.body.blocks[:]
        if isinstance(block, relax.DataflowBlock)
        for binding in block.bindings[:]
    )


def _is_wasm(target: tvm.target.Target | None) -> bool:
    """Whether TVM makes a system library of it: python/tvm/relax/vm_build.py, _vmlink."""
    if target is None:
        return False
    host = target if target.host is None else target.host
    return "wasm" in host.attrs.get("mtriple", "")
