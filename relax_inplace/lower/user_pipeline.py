"""The pipeline that a caller of ``tvm.compile`` has chosen: run on the rest, and looked at.

Functions that update a tuple do not go through it, but what they compute has to be what the same
operators compute there. So two things have to be known of it:

- whether it *fuses* operators: a fused kernel may compute other bits;
- whether it is *known*, which is to say that its code is TVM's or MLC-LLM's. Any other one may give
  an operator a meaning of its own (``LegalizeOps({"relax.add": ...})``, a partition for an
  accelerator), which functions that update would not see. The caller is told so.

Both are seen while it runs: a pass instrument is told of each pass in it, with the frames of the
Python functions that run it on the stack.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Collection, Sequence
from typing import Any

import tvm
from tvm import ir, relax

__all__ = ["Pipeline", "UserPipeline"]

_KNOWN = ("tvm", "tvm_ffi", "mlc_llm")  # whose pipelines mean by an operator what TVM does
# The modules of their pipelines, each of which is one pass that runs others.
_PIPELINES = ("tvm.relax.pipeline", "tvm.relax.backend.", "mlc_llm.")
_FUSES = "FuseOps"


@tvm.transform.module_pass(opt_level=0, name="relax_inplace.Pipeline")
class Pipeline:
    """A pipeline for a module, and passes for its functions that update a tuple.

    Use it as ``tvm.compile(mod, target, relax_pipeline=Pipeline(pipeline, transforms=[...]))``.
    ``pipeline`` is for the rest of the module. Functions that update a tuple are lowered by TVM's
    passes for the target. If passes of ``pipeline`` change the meaning of an operator, name them in
    ``transforms``: a ``LegalizeOps({...})`` of your own, or a partition for an accelerator with its
    ``RunCodegen``.

    Parameters
    ----------
    pipeline : str or tvm.transform.Pass
        The pipeline, as ``tvm.compile`` takes it.
    transforms : sequence of tvm.transform.Pass
        Passes for the functions that update a tuple, and for the functions that they call. They run
        before these are lowered.
    """

    def __init__(
        self,
        pipeline: str | tvm.transform.Pass = "default",
        transforms: Sequence[tvm.transform.Pass] = (),
    ):
        self.pipeline = pipeline
        self.transforms = list(transforms)

    def transform_module(
        self, mod: ir.IRModule, _context: tvm.transform.PassContext
    ) -> ir.IRModule:
        """Run the pipeline on a module without updates."""
        pipeline = _resolved(self.pipeline, tvm.target.Target.current(allow_none=True))
        return mod if pipeline is None else pipeline(mod)


class UserPipeline:
    """The pipeline that ``tvm.relax.build`` was given.

    Parameters
    ----------
    given : str, tvm.transform.Pass or None
        None: the module is lowered already.
    target : tvm.target.Target or None

    Attributes
    ----------
    transforms : list of tvm.transform.Pass
        What the caller wants on functions that update.
    fuses : bool
        Whether it fuses operators; known when it has run.
    """

    def __init__(self, given: Any, target: tvm.target.Target | None):
        self._target = target
        self._says_transforms = isinstance(given, Pipeline)
        self.transforms = given.transforms if self._says_transforms else []
        self._pipeline = _resolved(given.pipeline if self._says_transforms else given, target)
        self.fuses = True

    def run(self, mod: ir.IRModule, apart: Collection[str]) -> ir.IRModule:
        """Lower the rest of a module.

        Parameters
        ----------
        mod : tvm.ir.IRModule
        apart : collection of str
            The functions that update, which are not in it.

        Raises
        ------
        ValueError
            It looks for one of these functions.
        """
        if self._pipeline is None:
            return mod
        try:
            mod, seen = self._observed(mod)
        except Exception as error:
            asked = [name for name in sorted(apart) if re.search(f"[`'\"]{name}[`'\"]", str(error))]
            if not asked:
                raise
            raise ValueError(
                f"the pipeline asks for function `{asked[0]}`, which updates a tuple in place and "
                "does not go through the pipeline that tvm.compile was given. Run the pass that "
                "asks for it before tvm.compile, or give it by "
                "relax_inplace.transform.Pipeline(pipeline, transforms=[...])"
            ) from error
        self.fuses = _FUSES in seen.names
        if not seen.are_known() and not self._says_transforms:
            names = ", ".join(f"`{name}`" for name in sorted(apart))
            how = "fused" if self.fuses else "one kernel for each operator"
            warnings.warn(
                f"the pipeline that tvm.compile was given does not apply to {names}: functions "
                "that update a tuple in place are lowered by TVM's passes for the target "
                f"({how}). If the pipeline changes what an operator computes, give the passes that "
                "do so by relax_inplace.transform.Pipeline(pipeline, transforms=[...]); "
                "transforms=[] says that there are none",
                stacklevel=4,
            )
        return mod

    def _observed(self, mod: ir.IRModule) -> tuple[ir.IRModule, Any]:
        context = tvm.transform.PassContext.current()
        seen = _Passes()
        if not context.instruments:
            context.override_instruments([seen])
            try:
                return self._run(mod), seen
            finally:
                context.override_instruments([])
        # To replace the caller's instruments would tell them that their context has ended. A copy
        # is looked at: passes may change what they are given, and ask for functions by name.
        with tvm.transform.PassContext(
            context.opt_level,
            context.required_pass,
            context.disabled_pass,
            [seen],
            dict(context.config),
        ):
            self._run(mod.clone())
        return self._run(mod), seen

    def _run(self, mod: ir.IRModule) -> ir.IRModule:
        assert self._pipeline is not None
        if self._target is None:
            return self._pipeline(mod)
        with self._target:
            return self._pipeline(mod)


@tvm.instrument.pass_instrument
class _Passes:
    """The passes of a pipeline, as they run, and whose functions run them."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._packages: set[str] = set()
        self._outermost = 0  # passes that no pipeline runs

    def run_before_pass(self, _mod: ir.IRModule, info: tvm.transform.PassInfo) -> None:
        """Note the pass, and whose functions are on the stack below it."""
        self.names.append(str(info.name))
        modules = set()
        frame = sys._getframe(1)
        while frame is not None and frame.f_code is not UserPipeline._run.__code__:
            modules.add(frame.f_globals.get("__name__", ""))
            frame = frame.f_back  # type: ignore[assignment]
        self._outermost += not any(module.startswith(_PIPELINES) for module in modules)
        self._packages |= {module.split(".")[0] for module in modules}

    def are_known(self) -> bool:
        """Whether it is one pass, that runs all others by functions of known packages."""
        return self._outermost == 1 < len(self.names) and self._packages <= set(_KNOWN)


def _resolved(pipeline: Any, target: tvm.target.Target | None) -> tvm.transform.Pass | None:
    """The pass that a name stands for, as in ``tvm.relax.build``."""
    if not isinstance(pipeline, str):
        return pipeline
    if pipeline == "default" and target is not None and "gpu" in target.keys:
        try:
            return relax.get_default_pipeline(target)
        except (ValueError, AttributeError):
            pass
    return relax.get_pipeline(pipeline)
