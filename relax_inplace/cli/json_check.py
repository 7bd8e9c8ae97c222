"""The allowed content of a ``.json`` module: data, while it is read and while it is compiled.

Guaranteed
----------
Building a ``.json`` module reads and writes no file but those of the command line and temporary
ones, and runs no code that the file brings or names. What the built library does when it runs is
another matter: it may call any function by its name.

How
---
- Each node is of a type that a program of IR consists of (:func:`check_types`, before TVM sees it):
  no compiled module, no pass, no schedule; of functions that TVM calls while it compiles, the two
  that deduce types.
- Text is what code generators take as source, options or file names. So attributes, annotations
  and options of targets may be numbers, and text only under names that are known to be harmless.
- All text in a kernel, and in attributes, consists of characters that make neither a line nor a
  string in a source language: names, but no ``#include "..."`` and no ``asm("...")``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import tvm_ffi
from tvm import ir, tirx
from tvm.target import Target

from .messages import RefusedError

__all__ = ["check_module", "check_types"]

_TYPES = re.compile(
    r"None|bool|int|float|DataType|Device"
    r"|ffi\.(Array|Dict|List|Map|Shape|String|Tensor)"
    r"|ir\.(Call|DictAttrs|EnvFunc|FloatImm|FuncType|GenericConst|GlobalVar|IRModule|IntImm|Op"
    r"|OpaqueType|PointerType|PrimType|Range|SequentialSpan|Source|SourceMap|SourceName|Span"
    r"|StringImm|StringType|TensorLoad|TensorRegion|Tuple|TupleGetItem|TupleType|Type|Var)"
    r"|prim\.\w+"
    r"|relax\.(AnyType|DTensorType|DummyGlobalInfo|FuncType|PackedFuncType|ShapeType|TensorType"
    r"|VDevice)"
    r"|relax\.(attrs|distributed|expr)\.\w+"
    r"|s_tir\.(MatchBufferRegion|SBlock|SBlockRealize)"
    r"|target\.(Target|TargetKind)"
    r"|te\.(CommReducer|Reduce)"
    r"|tirx\.(AllocBuffer|AssertStmt|AttrStmt|Axis|Bind|Break|BufferRegionType|BufferStore|BufferType"
    r"|Continue|DeclBuffer|Evaluate|For|IfThenElse|IndexMap|Iter|IterVar|LambdaExpr|PrimFunc"
    r"|Return|SeqStmt|TileLayout|While)"
)
_TYPE_FUNCTIONS = ("tvm.relax.type.infer_by_ty_args", "tvm.relax.type.infer_view_ty")
_TARGETS = ("cuda", "llvm", "metal", "opencl", "rocm", "vulkan", "webgpu")
_TARGET_TEXT = ("arch", "device_name", "mabi", "march", "mattr", "mcpu", "mfloat-abi", "mtriple")
# Of functions, loops and blocks. No pragma: TVM's are numbers, or source.
_TEXT = re.compile(
    r"Composite|PartitionedFromPattern|global_symbol|mod_name|system_lib_prefix"
    r"|compute_scope|device_(id|scope|type)|double_buffer_scope|thread_extent|virtual_thread"
    r"|tirx\.kernel_launch_params"
    r"|fragment_(shape|layout)|meta_schedule\.\w+|relax_inplace\.\w+"
)
_HARMLESS = re.compile(r"[\w .,:/$-]*", re.ASCII)  # `%:include <file>` is C, too


def check_types(nodes: Any) -> None:
    """Check the nodes of ``tvm.ir.save_json``.

    Raises
    ------
    RefusedError
    """
    for node in nodes:
        kind = node.get("type") if isinstance(node, dict) else node
        if not (isinstance(kind, str) and _TYPES.fullmatch(kind)):
            raise RefusedError(f"it holds a {_shown(kind)}, which is no part of a model")
        if kind == "ir.EnvFunc" and node.get("data") not in _TYPE_FUNCTIONS:
            raise RefusedError(f"TVM would call {_shown(node.get('data'))} while it reads it")


def check_module(mod: ir.IRModule) -> None:
    """Check the text that code generators interpret.

    Raises
    ------
    RefusedError
        With the name of the function.
    """
    _check_attributes("the module", mod.attrs or {})
    _check("the module", mod.global_infos)
    for gvar, function in mod.functions_items():
        where = f"`{gvar.name_hint}`"
        _require_harmless(where, gvar.name_hint)
        _check(where, function)


def _check(where: str, root: Any, in_kernel: bool = False) -> None:
    seen: set[int] = set()
    rest = [root]
    while rest:
        one = rest.pop()
        if isinstance(one, str):
            if in_kernel:
                _require_harmless(where, one)
        elif isinstance(one, Mapping):
            rest.extend(part for pair in one.items() for part in pair)
        elif isinstance(one, (tvm_ffi.Array, tvm_ffi.List)):
            rest.extend(one)
        elif isinstance(one, tvm_ffi.Object) and int(one.__chandle__()) not in seen:
            seen.add(int(one.__chandle__()))
            rest.extend(_parts(where, one, in_kernel))


def _parts(where: str, node: Any, in_kernel: bool) -> Iterator[Any]:
    """The parts of a node that are to be checked; its attributes have been."""
    if isinstance(node, (ir.Span, ir.GlobalVar, ir.Op)):
        return
    if isinstance(node, Target):
        _check_target(where, node)
        return
    if isinstance(node, ir.DictAttrs):
        _check_attributes(where, node)
        yield from (value for _, value in node.items() if not isinstance(value, str))
        return
    if not in_kernel and _is_computed_by_a_kernel(node):
        _check(where, node, in_kernel=True)
        return
    if isinstance(node, tirx.AttrStmt) and (_has_text(node.value) or _has_text(node.node)):
        _require_known(where, node.attr_key)
    for name in _fields(type(node)):
        if name == "annotations":
            _check_attributes(where, node.annotations)
        elif not (name == "message_parts" and isinstance(node, tirx.AssertStmt)):
            yield getattr(node, name)


def _is_computed_by_a_kernel(node: Any) -> bool:
    """Or becomes one: a number of Relax does (src/relax/transform/compute_prim_value.cc)."""
    is_call = isinstance(node, ir.Call) and isinstance(node.op, ir.Op)
    return isinstance(node, tirx.PrimFunc) or (is_call and node.op.name.startswith("tirx."))


def _fields(kind: type) -> Iterator[str]:
    info = kind.__tvm_ffi_type_info__  # type: ignore[attr-defined]
    while info is not None:
        yield from (field.name for field in info.fields or ())
        info = info.parent_type_info


def _check_attributes(where: str, attributes: Any) -> None:
    for key, value in attributes.items():
        if not _has_text(value):
            continue
        _require_known(where, key)
        if not key.startswith("relax_inplace."):
            _check(where, value, in_kernel=True)


def _check_target(where: str, target: Any) -> None:
    if target.kind.name not in _TARGETS:
        raise RefusedError(f"{where}: a target of kind {_shown(target.kind.name)}")
    for key, value in target.attrs.items():
        if _has_text(value) and key not in _TARGET_TEXT:
            raise RefusedError(f"{where}: the option {_shown(key)} of a target; {_REMEDY}")
    if target.host is not None:
        _check_target(where, target.host)


def _has_text(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_has_text(one) for one in value.values())
    if isinstance(value, (tvm_ffi.Array, tvm_ffi.List)):
        return any(_has_text(one) for one in value)
    return isinstance(value, (str, ir.StringImm))


_REMEDY = "a .json module is data: remove it, or build a .py file, which is executed"


def _require_known(where: str, key: str) -> None:
    if not _TEXT.fullmatch(key):
        raise RefusedError(f"{where}: text in the attribute {_shown(key)}; {_REMEDY}")


def _require_harmless(where: str, text: str) -> None:
    if not _HARMLESS.fullmatch(text):
        raise RefusedError(
            f"{where}: the text {_shown(text)}, which a code generator takes; {_REMEDY}"
        )


def _shown(text: Any) -> str:
    shown = repr(text)
    return shown if len(shown) <= 60 else f"{shown[:60]}..."
