"""The passes that lower the functions that update a tuple, with what they call.

TVM's passes for the target, with four differences:

- tuples are objects (:mod:`.tuple_objects`), from the first pass on;
- equal operators become one kernel in one step (:mod:`.legalize_once`);
- kernels that move are scheduled by our rules first (:mod:`.schedule_relayouts`), before TVM's;
- memory is not planned. ``StaticPlanBlockMemory`` takes a call of a packed function for one that
  keeps none of its arguments, and hands the new weight's storage on; and it keeps the storage of
  temporaries from one weight to the next. Here each tensor has a storage of its own, every register
  is killed after its last use (:mod:`.kill_registers`), and allocations take what is spent
  (:mod:`.donate_storage`).

Operators are fused where the pipeline for the rest of the module fuses them, and nowhere else: what
is fused may compute other bits.
"""

from __future__ import annotations

from collections.abc import Callable

import tvm
from tvm import ir, relax
from tvm.relax import backend, pipeline

from ..ir.binding_rewriter import with_blocks, with_body
from ..ir.updates import PLANNED_FOR
from .donate_storage import DonateStorage
from .entry_check import is_entry_check
from .kill_registers import kill_registers
from .legalize_once import LegalizeOnce
from .schedule_relayouts import ScheduleRelayouts

__all__ = ["NAME", "checks_first", "lower", "lower_without_donation", "register", "target_of"]

NAME = "inplace"
_TVM_RULES = "ApplyDefaultSchedule"  # tvm.s_tir.dlight's pass, where a target has rules
_FUSION = ("AnnotateTIROpPattern", "FoldConstant", "FuseOps", "FuseTIR")


def register() -> None:
    """Make the name ``"inplace"`` known to TVM, as another one of its default pipeline; again is
    harmless.
    """
    if NAME not in pipeline.PIPELINE_MAP:
        pipeline.register_pipeline(NAME)(pipeline.default_build_pipeline)


def target_of(target: tvm.target.Target | None) -> tvm.target.Target:
    """What a module is compiled for if a target, or none, is given (python/tvm/tirx/build.py)."""
    if target is None:
        target = tvm.target.Target.current(allow_none=True)
    return tvm.target.Target("llvm") if target is None else target


def lower(mod: ir.IRModule, target: tvm.target.Target, fuses: bool) -> ir.IRModule:
    """Lower functions whose tuples are objects; a module of nothing else.

    Parameters
    ----------
    mod : tvm.ir.IRModule
    target : tvm.target.Target
    fuses : bool
        Whether operators are fused.
    """
    with target:
        last = tvm.transform.Sequential([DonateStorage()])  # which PassContext may disable
        return last(lower_without_donation(mod, target, fuses))


def lower_without_donation(mod: ir.IRModule, target: tvm.target.Target, fuses: bool) -> ir.IRModule:
    """The same, up to where spent storages are to be donated."""
    _require_planned_for(mod, target)
    legalize = _stage("legalize_passes", target)
    if not fuses:
        legalize = [one for one in legalize if one.info.name not in _FUSION]
    names = [one.info.name for one in legalize]
    legalize.insert(names.index("LegalizeOps"), LegalizeOnce())
    names = [one.info.name for one in legalize]
    at = names.index(_TVM_RULES) if _TVM_RULES in names else len(names)
    passes = [
        *_stage("library_dispatch_passes", target),
        *legalize[:at],
        ScheduleRelayouts(),
        *legalize[at:],
        *_stage("dataflow_lower_passes", target),
        relax.transform.LowerAllocTensor(),
        relax.transform.LowerRuntimeBuiltin(),
        relax.transform.ComputePrimValue(),
        relax.transform.VMShapeLower(),
        _on_functions("ChecksFirst", checks_first),
        _on_functions("KillRegisters", kill_registers),
        relax.transform.AttachGlobalSymbol(),
    ]
    with target:
        return tvm.transform.Sequential(passes)(mod)


def _require_planned_for(mod: ir.IRModule, target: tvm.target.Target) -> None:
    """Refuse what would need more memory than its plan says, and than its limit."""
    for gvar, function in mod.functions_items():
        kind = (function.attrs or {}).get(PLANNED_FOR)
        if kind is not None and kind != target.kind.name:
            raise ValueError(
                f"function `{gvar.name_hint}` was planned for {kind}, and is compiled for "
                f"{target.kind.name}, where other kernels work in place: give the pass that made "
                "it the same target"
            )


def checks_first(function: relax.Function) -> relax.Function:
    """The check of the arguments before what VMShapeLower checks: it crashes at None."""
    bindings = [one for block in function.body.blocks[:] for one in block.bindings[:]]
    first = [one for one in bindings if is_entry_check(one)][:1]
    if not first:
        return function
    others = [one for one in bindings if not one.same_as(first[0])]
    # A number that defines a size is one that VMShapeLower makes of it, after what it checks.
    call = first[0].value
    args = [*call.args[:2], *function.params[:]]
    check = relax.Call(call.op, args, call.attrs, call.ty_args, call.span, ret_ty=call.ty)
    # All of lowered code is in plain blocks.
    block = relax.BindingBlock([relax.VarBinding(first[0].var, check, first[0].span), *others])
    return with_body(function, with_blocks(function.body, [block]))


def _on_functions(
    name: str, change: Callable[[relax.Function], relax.Function]
) -> tvm.transform.Pass:
    @tvm.transform.module_pass(opt_level=0, name=name)
    def run(mod: ir.IRModule, _context: tvm.transform.PassContext) -> ir.IRModule:
        mod = mod.clone()
        for gvar, function in mod.functions_items():
            if isinstance(function, relax.Function):
                mod[gvar] = change(function)
        return mod

    return run


def _stage(name: str, target: tvm.target.Target) -> list[tvm.transform.Pass]:
    """TVM's passes for a target; those of a CPU where TVM has none."""
    # TVM's own function fails for these: their packages do not export what it calls
    # (python/tvm/relax/backend/cpu_generic/__init__.py).
    packages = {"llvm": backend.cpu_generic, "cuda": backend.cuda, "rocm": backend.rocm}
    package = packages.get(target.kind.name)
    if package is None:
        try:
            return getattr(pipeline, name)(target)
        except ValueError:
            package = backend.cpu_generic
    return getattr(package.pipeline, name)(target)
