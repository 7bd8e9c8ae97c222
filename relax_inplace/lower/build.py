"""How updates ride TVM's stock compilation: the one place where functions of TVM are wrapped.

``tvm.compile`` and every pipeline, TVM's own and others (MLC-LLM's), end in ``tvm.relax.build``.
Around the pipeline that it runs, a module that holds updates needs two things which no hook of
TVM's offers:

- before the first pass: the ownership check, on names and source places as the user wrote them,
  :mod:`~relax_inplace.lower.lower_update_chain`,
  :mod:`~relax_inplace.lower.keep_tuple_copies` and
  :mod:`~relax_inplace.lower.hide_tuple_types`;
- after the last one: :mod:`~relax_inplace.lower.kill_unused_registers`,
  :mod:`~relax_inplace.lower.free_temporaries`,
  :mod:`~relax_inplace.lower.check_contiguous` and
  :mod:`~relax_inplace.lower.require_builtins`, as ``VMShapeLower`` has run only then.

So ``build`` is wrapped for the one, and ``_vmcodegen``, which ``build`` calls next after the
pipeline, for the other. ``_vmlink``, the last, is wrapped for kernels that write over their input:
whether parameters may be the same memory (``tirx.noalias``) CodeGenLLVM asks of the function that
it has declared last, for all of a module (src/target/llvm/codegen_llvm.cc, ``is_restricted_`` in
``DeclareFunctionInternal``). Taken for distinct they would be compiled wrong, and all others slower
if they were not: so they are compiled by themselves.

Within the pipeline, ``RewriteCUDAGraph`` is wrapped: it would move the storages of temporaries into
a graph that keeps them, and its kernels with them, where nothing can be mended afterwards. A module
without updates goes through untouched.

What would make this unnecessary: ``KillAfterLastUse`` after ``VMShapeLower`` in TVM's pipelines
(or a ``VMShapeLower`` that kills what it reads, and checks strides), a hook for an op to prepare a
function before a pipeline, as ``FLowerBuiltin`` is one for a call, and a function attribute by
which a function has its memory left unplanned.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import tvm
from tvm import ir, relax
from tvm.relax import vm_build

from ..ir.updates import bindings_of, expanded_parameter, functions_that_update
from ..op import is_update, the_op
from ..relayout.inplace_kernel import INPLACE
from .check_contiguous import check_contiguous
from .free_temporaries import free_temporaries
from .hide_tuple_types import hide_tuple_types
from .keep_tuple_copies import keep_tuple_copies
from .kill_unused_registers import kill_unused_registers
from .lower_update_chain import lower_update_chain
from .ownership import check_ownership
from .param_map import keep_param_map
from .require_builtins import require_builtins

__all__ = ["install", "prepare"]

_NUM_INPUT = "num_input"
_GLOBAL_SYMBOL = "global_symbol"
_USE_CUDA_GRAPH = "relax.backend.use_cuda_graph"


def install() -> None:
    """Wrap ``tvm.relax.build``, its step to bytecode, and a pass; again is harmless."""
    if hasattr(vm_build.build, "_relax_inplace"):
        return
    vm_build.build = relax.build = _with_module_prepared(vm_build.build)
    vm_build._vmcodegen = _with_lowered_module_finished(vm_build._vmcodegen)
    vm_build._vmlink = _with_inplace_kernels_apart(vm_build._vmlink)
    # Pipelines look it up where they run: python/tvm/relax/pipeline.py, and MLC-LLM's.
    relax.transform.RewriteCUDAGraph = _without_updates(relax.transform.RewriteCUDAGraph)


def _with_module_prepared(stock: Any) -> Any:
    @functools.wraps(stock)
    def build(
        mod: ir.IRModule, target: Any = None, *args: Any, **kwargs: Any
    ) -> tvm.runtime.Executable:
        return stock(prepare(mod, target), target, *args, **kwargs)

    build._relax_inplace = True  # type: ignore[attr-defined]
    return build


def _with_lowered_module_finished(stock: Any) -> Any:
    @functools.wraps(stock)
    def _vmcodegen(builder: Any, mod: ir.IRModule, *args: Any, **kwargs: Any) -> ir.IRModule:
        updating = functions_that_update(mod)
        for gvar in updating:
            if _skips_checks(mod[gvar]):  # a pipeline run by hand: prepare had not removed it
                raise ValueError(
                    f"function `{gvar.name_hint}` updates a tuple in place, but has the attribute "
                    f"`{_NUM_INPUT}`, for which VMShapeLower left out the checks of its weights: "
                    "leave the pipeline to tvm.compile, or remove the attribute before running it"
                )
        return stock(builder, _finish(mod, updating), *args, **kwargs)

    return _vmcodegen


def _with_inplace_kernels_apart(stock: Any) -> Any:
    signature = inspect.signature(stock)

    @functools.wraps(stock)
    def _vmlink(*args: Any, **kwargs: Any) -> tvm.runtime.Executable:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        mod, target = given.arguments["tir_mod"], given.arguments["target"]
        apart = set() if mod is None else _inplace_kernels(mod)
        if apart and (target is None or tvm.target.Target(target).kind.name == "llvm"):
            if given.arguments["system_lib"] or _calls_directly(mod):
                given.arguments["tir_mod"] = _without_noalias(mod)
            else:
                own, others = _split(mod, apart)
                library = tvm.tirx.build(own, target, given.arguments["tir_pipeline"])
                given.arguments["tir_mod"] = others
                given.arguments["ext_libs"] = [*(given.arguments["ext_libs"] or ()), library]
        return stock(*given.args, **given.kwargs)

    return _vmlink


def _inplace_kernels(mod: ir.IRModule) -> set[ir.GlobalVar]:
    return {gvar for gvar, f in mod.functions_items() if f.attrs and INPLACE in f.attrs}


def _calls_directly(mod: ir.IRModule) -> bool:
    """Whether kernels are called by symbols of their module: ``exec_mode="compiled"``."""
    return any(gvar.name_hint.startswith("__vmtir__") for gvar in mod.get_global_vars())


def _without_noalias(mod: ir.IRModule) -> ir.IRModule:
    return ir.IRModule(
        {gvar: f.with_attr("tirx.noalias", False) for gvar, f in mod.functions_items()},
        mod.attrs,
    )


def _split(mod: ir.IRModule, apart: set[ir.GlobalVar]) -> tuple[ir.IRModule, ir.IRModule]:
    own: dict[ir.GlobalVar, ir.BaseFunc] = {}
    others: dict[ir.GlobalVar, ir.BaseFunc] = {}
    for gvar, function in mod.functions_items():
        (own if gvar in apart else others)[gvar] = function
    return ir.IRModule(own, mod.attrs), ir.IRModule(others, mod.attrs)


def _without_updates(stock: Any) -> Any:
    """A module pass that does not see the functions that update. No other function calls them."""

    @functools.wraps(stock)
    def create() -> tvm.transform.Pass:
        stock_pass = stock()

        @tvm.transform.module_pass(opt_level=0, name=stock_pass.info.name)
        def run(mod: ir.IRModule, context: tvm.transform.PassContext) -> ir.IRModule:
            if not context.config.get(_USE_CUDA_GRAPH, False):
                return mod
            updating = functions_that_update(mod)
            if not updating:
                return stock_pass(mod)
            others = mod.clone()
            for gvar in updating:
                del others[gvar]
            after = stock_pass(others)
            for gvar in updating:
                after[gvar] = mod[gvar]
            return after

        return run

    return create


def _finish(mod: ir.IRModule, updating: set[ir.GlobalVar]) -> ir.IRModule:
    """What is to be done to a lowered module."""
    mod = free_temporaries(kill_unused_registers(mod, updating), updating)
    return require_builtins(check_contiguous(mod, updating), updating)


def prepare(mod: Any, target: Any) -> Any:
    """What is to be done to a module before a pipeline, lowered by hand already or not."""
    if not isinstance(mod, ir.IRModule):
        return mod  # what it is not, TVM says
    mod = keep_param_map(mod, target)
    updating = functions_that_update(mod)
    if not updating:
        return mod
    for gvar in updating:
        function = mod[gvar]
        if _is_misplaced(function):
            relax.analysis.well_formed(function)  # TVM's own error; tvm.compile does not look
        expanded = expanded_parameter(function)
        if expanded is not None:
            raise ValueError(
                f"function `{gvar.name_hint}` updates its tuple parameter `{expanded}` in place, "
                "but a pass (FuseTIR or ExpandTupleArguments) has replaced the parameter by one "
                "for each field, so that the caller's tuple is out of reach: leave that pass to "
                "tvm.compile, or make the function public (no private=True) before it"
            )
    check_ownership(mod)
    if not any(_holds_op(mod[gvar]) for gvar in updating):
        return mod
    mod = keep_tuple_copies(lower_update_chain(mod), updating)
    mod = hide_tuple_types(mod, updating)
    for gvar in updating:
        mod[gvar] = _with_full_checks(_made_public(mod[gvar], gvar.name_hint))
    return mod


def _holds_op(function: relax.Function) -> bool:
    """Whether updates are still ops: the pipeline is to come."""
    return any(
        isinstance(binding.value, ir.Call) and binding.value.op.same_as(the_op())
        for binding in bindings_of(function)
    )


def _is_misplaced(function: relax.Function) -> bool:
    """Whether an update may stand in a pure function or in a dataflow block."""
    return function.is_pure or any(
        is_update(binding.value)
        for block in function.body.blocks[:]
        if isinstance(block, relax.DataflowBlock)
        for binding in block.bindings[:]
    )


def _made_public(function: relax.Function, name: str) -> relax.Function:
    """A function that no pass gives other parameters: see ``expanded_parameter``."""
    if function.attrs and _GLOBAL_SYMBOL in function.attrs:
        return function
    return function.with_attr(_GLOBAL_SYMBOL, name)


def _with_full_checks(function: relax.Function) -> relax.Function:
    """A function that checks every field before it changes the first.

    With ``num_input``, VMShapeLower checks the symbolic shapes of weights only.
    """
    return function.without_attr(_NUM_INPUT) if _skips_checks(function) else function


def _skips_checks(function: relax.Function) -> bool:
    return bool(function.attrs) and _NUM_INPUT in function.attrs
