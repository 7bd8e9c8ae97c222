"""Rewrite and compile a module with TVM, without running its code."""

from __future__ import annotations

import json
import warnings
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from .messages import RefusedError
from .options import Choices
from .processor import of_this_machine

if TYPE_CHECKING:
    import tvm
    from tvm import ir

__all__ = ["compiled", "rewritten", "running_nothing", "target_of"]

_NO_KINDS = ("composite", "ext_dev", "test")  # TVM's own, which compile nothing


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
    _require_known_kind(text, given)
    target = tvm.target.Target(given)
    for one in filter(None, (target, target.host)):
        _require_known_processor(text, one)
    if target.host is None and "gpu" in target.keys:
        return tvm.target.Target(target, host="llvm")
    return target


def _require_known_kind(text: str, given: Any) -> None:
    """Refuse a name that is none of TVM's, which says no others."""
    from tvm.target import Target, list_tags

    name = given.get("kind", "") if isinstance(given, dict) else given
    if name is given and " " in name:
        raise RefusedError(f"--target {text}: TVM reads options as JSON: '{_as_json(text)}'")
    if name is not given and "tag" in given:
        return  # TVM says which there are
    kinds, tags = [one for one in Target.list_kinds() if one not in _NO_KINDS], list(list_tags())
    if name in kinds or (name is given and name in tags):
        return
    near = get_close_matches(name, [*kinds, *tags] if "/" in name else kinds, 3, 0.4)
    rest = sorted(one for one in kinds if one not in near)
    raise RefusedError(f"--target {text}: no such kind; there are {', '.join([*near, *rest])}")


def _as_json(text: str) -> str:
    """Options as TVM took them before it took JSON: ``llvm -mcpu=znver4 -mattr=+avx2,+fma``."""
    kind, *options = text.split()
    values: dict[str, Any] = {"kind": kind}
    for option in options:
        key, _, value = option.lstrip("-").partition("=")
        is_list = key in ("keys", "libs", "mattr")
        values[key] = value.split(",") if is_list else int(value) if value.isdigit() else value
    return json.dumps(values)


def _require_known_processor(text: str, target: tvm.target.Target) -> None:
    """Refuse a processor or a feature that LLVM does not know: it would take its generic one.

    It says so, and TVM does (src/target/llvm/llvm_instance.cc), where ``build`` keeps it away.
    """
    from tvm.target import Target, codegen

    if target.kind.name != "llvm" or "mcpu" not in target.attrs:
        return
    triple = str(target.attrs.get("mtriple", codegen.llvm_get_system_triple()))
    if triple.split("-")[0] not in codegen.llvm_get_targets():
        return  # TVM asks LLVM by a null pointer for what a triple that it does not know has
    name = str(target.attrs["mcpu"])
    if not codegen.llvm_is_valid_cpu(name, triple):
        known = codegen.llvm_get_cpu_archlist(Target({"kind": "llvm", "mtriple": triple}))
        near = get_close_matches(name, list(known), 4, 0.4)
        raise RefusedError(
            f"--target {text}: LLVM knows no processor {name!r} of {triple}; expected one such as "
            f"{', '.join(near or sorted(known)[:4])}, {len(known)} in all"
        )


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
