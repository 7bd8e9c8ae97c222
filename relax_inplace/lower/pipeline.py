"""The Relax pipeline ``"inplace"``: TVM's default one, with weights converted at memory's speed.

``tvm.compile(mod, target, relax_pipeline="inplace")`` runs the passes of
``relax.get_default_pipeline(target)``, in their order, and

- :func:`~relax_inplace.transform.ScheduleRelayouts` when kernels are fused, before TVM's own rules;
- :func:`~relax_inplace.transform.DonateStorage` at the end.

Both touch functions that update a tuple only. What is returned is bitwise what the default pipeline
returns.
"""

from __future__ import annotations

import tvm
from tvm import ir
from tvm.relax import backend, pipeline

from .build import prepare
from .donate_storage import DonateStorage, donating, find_donations
from .schedule_relayouts import ScheduleRelayouts
from .storage_plan import StoragePlan, describe_donation

__all__ = ["NAME", "inplace_pipeline", "plan_storage", "register"]

NAME = "inplace"
_TVM_RULES = "ApplyDefaultSchedule"  # tvm.s_tir.dlight's pass, where a target has rules


def inplace_pipeline() -> tvm.transform.Pass:
    """Create the pipeline, for the current target.

    Returns
    -------
    tvm.transform.Pass
        Raises ``ValueError`` if there is no target, or one that TVM has no default pipeline for.
    """

    @tvm.transform.module_pass(opt_level=0, name="inplace_pipeline")
    def run(mod: ir.IRModule, _context: tvm.transform.PassContext) -> ir.IRModule:
        target = tvm.target.Target.current(allow_none=True)
        if target is None:
            raise ValueError(
                f'the pipeline "{NAME}" schedules kernels for a target, but none is given: '
                f'tvm.compile(mod, target="llvm", relax_pipeline="{NAME}")'
            )
        return tvm.transform.Sequential(_passes(target))(mod)

    return run


def _passes(target: tvm.target.Target) -> list[tvm.transform.Pass]:
    return [*_lowering(target), DonateStorage()]


def _lowering(target: tvm.target.Target) -> list[tvm.transform.Pass]:
    legalize = pipeline.legalize_passes(target)
    names = [one.info.name for one in legalize]
    at = names.index(_TVM_RULES) if _TVM_RULES in names else len(names)
    return [
        *pipeline.library_dispatch_passes(target),
        *legalize[:at],
        ScheduleRelayouts(),
        *legalize[at:],
        *_dataflow_lower_passes(target),
        *pipeline.finalize_passes(target),
    ]


def _dataflow_lower_passes(target: tvm.target.Target) -> list[tvm.transform.Pass]:
    # TVM's own function of that name fails for these: their packages do not export what it calls
    # (python/tvm/relax/backend/cpu_generic/__init__.py).
    package = {"llvm": backend.cpu_generic, "cuda": backend.cuda, "rocm": backend.rocm}.get(
        target.kind.name
    )
    stage = pipeline if package is None else package.pipeline
    return stage.dataflow_lower_passes(target)


def plan_storage(
    mod: ir.IRModule, target: str | tvm.target.Target, function: str | None = None
) -> StoragePlan:
    """Plan which storage each new weight takes: what this pipeline makes of a transform.

    Parameters
    ----------
    mod : tvm.ir.IRModule
        After ``InplaceTransformParams``, as it is given to ``tvm.compile``.
    target : str or tvm.target.Target
    function : str, optional
        The one that updates its tuple, by name; by default the only one that does.

    Returns
    -------
    StoragePlan
        ``print`` shows it. It holds if nothing outside refers to the weights: what does keeps its
        storage, and another one is allocated.

    Raises
    ------
    ValueError
        The module has no such function.
    """
    updating = sorted(gvar.name_hint for gvar in donating(mod))
    if function is None and len(updating) == 1:
        function = updating[0]
    if function is None or function not in updating:
        raise ValueError(
            f"plan_storage: function={function!r}, but the functions of the module that update a "
            f"tuple are {updating}"
        )
    target = tvm.target.Target(target)
    with target:
        lowered = tvm.transform.Sequential(_lowering(target))(prepare(mod, target))
        return describe_donation(function, find_donations(lowered, function))


def register() -> None:
    """Make the pipeline known to TVM; again is harmless."""
    if NAME not in pipeline.PIPELINE_MAP:
        pipeline.register_pipeline(NAME)(inplace_pipeline)
