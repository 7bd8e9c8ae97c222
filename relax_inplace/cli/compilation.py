"""Rewrite and compile a module with TVM, without running its code."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Any

from .messages import RefusedError
from .options import Choices
from .processor import of_this_machine

if TYPE_CHECKING:
    import tvm
    from tvm import ir

__all__ = ["compiled", "rewritten", "running_nothing", "target_of"]


def target_of(text: str) -> tvm.target.Target:
    """A target, with a host if it needs one; plain ``llvm`` gets this machine's processor."""
    import tvm

    given: Any = text
    if text.lstrip().startswith("{"):
        try:
            given = json.loads(text)
        except ValueError as error:
            raise RefusedError(f"--target {text}: no JSON: {error}") from None
    if given in ("llvm", {"kind": "llvm"}):
        given = of_this_machine()
    target = tvm.target.Target(given)
    if target.host is None and "gpu" in target.keys:
        return tvm.target.Target(target, host="llvm")
    return target


def rewritten(
    mod: ir.IRModule, choices: Choices, lifts: bool, target: tvm.target.Target
) -> ir.IRModule:
    """The module, lifted if asked for, and rewritten to work in place on a target."""
    from ..lift.transpositions import FusionWarning
    from ..transform import InplaceTransformParams, LiftInplaceTransformParams

    others = {**choices.with_others, "target": target}
    if lifts:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FusionWarning)  # none of TVM's has FuseTransposeMatmul
            return LiftInplaceTransformParams(**choices.for_lifting(), **others)(mod)
    return InplaceTransformParams(**choices, **others)(mod)


def running_nothing() -> tvm.transform.PassContext:
    """A context in which TVM runs no kernel of a module while it compiles it.

    FoldConstant runs kernels (src/relax/transform/fold_constant.cc); pipelines that fuse have it.
    """
    import tvm

    return tvm.transform.PassContext(disabled_pass=["FoldConstant"])


def compiled(mod: ir.IRModule, target: tvm.target.Target) -> Any:
    """The module, compiled."""
    import tvm

    with running_nothing():
        return tvm.compile(mod, target)
