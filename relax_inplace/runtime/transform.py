"""A compiled transform, and the description of it in its module."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tvm_ffi
from elftools.elf.elffile import ELFFile

from ..errors import StructuredError
from ..weight_names import made_from, match_names
from .device import device_of
from .symbolic_size import size_at
from .tensor_info import TensorInfo

__all__ = ["ModuleError", "Transform", "TransformStep", "load_transform"]

_PARAM_MAP = "inplace_param_map"
_METADATA = "_metadata"  # of MLC-LLM: cpp/model_metadata.h says what is in it
_LOAD_EXECUTABLE = "vm_load_executable"
# What a target's kind needs: TVM's DLDevice types, by their names in Python.
_DEVICES = {"llvm": "cpu", "c": "cpu", "nvptx": "cuda"}


class ModuleError(StructuredError):
    """A compiled module does not have the function that is needed.

    Attributes
    ----------
    where, given, expected, remedy : str
        The parts of the message.
    """

    template = "{where}: {given}, expected {expected}; {remedy}"


@dataclasses.dataclass(frozen=True)
class TransformStep:
    """A step in the plan of a transform.

    Attributes
    ----------
    computes : str
        The name of its value.
    writes, frees : tuple of str
        The slots that are finished after the step, and the slots of the weights whose last use it
        is.
    before, worst : int or str
        Live bytes before the step, and while it runs; text if they are symbolic.
    """

    computes: str
    writes: tuple[str, ...]
    frees: tuple[str, ...]
    before: int | str
    worst: int | str


@dataclasses.dataclass(frozen=True)
class Transform:
    """A compiled transform: the function, and the description of it in its module.

    Attributes
    ----------
    function : tvm_ffi.Function
        The function.
    name : str
        Its name.
    weights, params : list of TensorInfo or None
        The tensors that it takes, and those that it leaves in the tuple, through nested tuples.
        None for a function without its module.
    steps : list of TransformStep
        The steps of its plan.
    loads : list of int
        The indices of the weights that a streamed transform asks for, in that order.
    moved : frozenset of int
        The indices of those that one kernel moves, and nothing else reads: they may stay in their
        file until then.
    peak : int, str or None
        The bytes of its plan; text if they are symbolic, None if they are not known.
    layout : str
        A digest of the computation: equal for transforms that compute the same.
    restores : str or None
        The name of the transform that it inverts.
    reference : tvm_ffi.Function or None
        The same transform streamed, for ``transform_params(verify=True)``.
    is_streamed : bool
        Whether it asks for its weights one by one.
    made : dict of str to tuple of str
        From the slot of each weight to the slots of the values made from it; empty if not known.
    tied : list of tuple of str
        Groups of weights that are equal: the first of each stands for the others.
    target : str
        The target of the compilation, as TVM prints it.
    vm : tvm.runtime.vm.VirtualMachine or None
        The module's virtual machine.
    device : tvm.runtime.Device or None
        The device of the virtual machine; None if that was made elsewhere.
    """

    function: tvm_ffi.Function
    name: str = "transform"
    weights: list[TensorInfo] | None = None
    params: list[TensorInfo] | None = None
    steps: list[TransformStep] = dataclasses.field(default_factory=list)
    loads: list[int] = dataclasses.field(default_factory=list)
    moved: frozenset[int] = frozenset()
    peak: int | str | None = None
    layout: str = ""
    restores: str | None = None
    reference: tvm_ffi.Function | None = None
    is_streamed: bool = False
    made: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    target: str = ""
    tied: list[tuple[str, ...]] = dataclasses.field(default_factory=list)
    vm: Any = None
    device: Any = None

    @staticmethod
    def of(given: Any, name: str | None = None, *, restoring: str | None = None) -> Transform:
        """Find a transform.

        Parameters
        ----------
        given : Transform, tvm_ffi.Function, VirtualMachine or module
            For a function without its module, the weights are not known.
        name : str, optional
            The name of the function, if the module has several.
        restoring : str, optional
            The name of a transform, to find its inverse.

        Raises
        ------
        ModuleError
            The module has no such transform, or several.
        """
        if isinstance(given, Transform):
            if restoring is None or given.restores is not None or given.vm is None:
                return given
            return _find(given.vm, None, restoring, given.device)
        if isinstance(given, tvm_ffi.Function):
            return Transform(given)
        return _find(given, name, restoring, None)

    def is_tied(self, name: str) -> bool:
        """Whether a weight is in a group of tied ones."""
        return any(name in names for names in self.tied)

    def with_dimensions(self, dimensions: Mapping[str, int]) -> Transform:
        """The transform, with numbers for those symbolic sizes of its plan that are known now."""
        steps = [
            dataclasses.replace(
                one,
                before=_size(one.before, dimensions),
                worst=_size(one.worst, dimensions),
            )
            for one in self.steps
        ]
        peak = None if self.peak is None else _size(self.peak, dimensions)
        return dataclasses.replace(self, steps=steps, peak=peak)


def load_transform(path: str | os.PathLike, device: Any, name: str | None = None) -> Transform:
    """Load a compiled module, and find its transform.

    Parameters
    ----------
    path : str or path
        A library by ``export_library``.
    device : tvm.runtime.Device or str
        The device of the virtual machine, such as ``"cuda:1"``.
    name : str, optional
        The name of the transform, if the module has several.

    Returns
    -------
    Transform
        Its ``vm`` is the module's virtual machine on that device.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ModuleError
        The file is not a module of TVM, was built for another machine or target, or has no
        transform.
    """
    from tvm.runtime.vm import VirtualMachine

    module = open_module(path)
    device = device_of(device)
    return transform_in(VirtualMachine(module, device), name, device, str(path))


def open_module(path: str | os.PathLike) -> Any:
    """Load the library of a compiled module, for a virtual machine: see `load_transform`.

    Load it once, also for several virtual machines: a library knows only the module of its last
    load (``__tvm_ffi__library_ctx``), and looks for its kernels there.
    """
    import tvm

    from ..libinfo import load_library

    load_library()
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file, expected a library that `relax-inplace build` or "
            "export_library wrote"
        )
    expected = "a module that `relax-inplace build` or export_library wrote for this machine"
    remedy = "build it for the target it is to run on"
    _require_whole(path)
    try:
        module = tvm.runtime.load_module(str(path))
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModuleError.of(
            where=str(path), given=f"not loadable ({first})", expected=expected, remedy=remedy
        ) from error
    if not module.implements_function(_LOAD_EXECUTABLE):
        raise ModuleError.of(
            where=str(path), given="no Relax executable", expected=expected, remedy=remedy
        )
    return module


def _require_whole(path: Path) -> None:
    """Refuse a truncated library: loading one ends the process, by a SIGBUS."""
    try:
        missing = _missing_part(path)
    except OSError as error:
        raise ModuleError.of(
            where=str(path),
            given=f"not readable ({error.strerror})",
            expected="a file that this process may read",
            remedy="give its owner's permission, or another file",
        ) from error
    if missing:
        raise ModuleError.of(
            where=str(path),
            given=f"{path.stat().st_size:,} bytes of a library",
            expected=f"all of it ({missing})",
            remedy="it was cut off: copy it again",
        )


def _missing_part(path: Path) -> str:
    """The first part of the headers that is missing; empty if none is, or if it is no ELF file."""
    with path.open("rb") as file:
        if file.read(4) != b"\x7fELF":
            return ""
        try:
            elf = ELFFile(file)
            parts = [("segment", one["p_offset"], one["p_filesz"]) for one in elf.iter_segments()]
            parts += [
                ("section", one["sh_offset"], one.data_size)
                for one in elf.iter_sections()
                if one["sh_type"] != "SHT_NOBITS"
            ]
        except Exception as error:  # of what is damaged it raises more than its own errors
            return str(error)
    size = path.stat().st_size
    return next((f"a {kind} at byte {at:,}" for kind, at, count in parts if at + count > size), "")


def transform_in(vm: Any, name: str | None, device: Any, where: str) -> Transform:
    """The transform in a virtual machine on a device: see `load_transform`."""
    return _find(vm, name, None, device, where)


def _find(
    vm: Any, name: str | None, restoring: str | None, device: Any, where: str = "the module"
) -> Transform:
    module = getattr(vm, "module", vm)
    if not module.implements_function(_PARAM_MAP):
        raise ModuleError.of(
            where=where,
            given=f"no function `{_PARAM_MAP}`",
            expected="one with an in-place transform",
            remedy="compile the result of InplaceTransformParams or LiftInplaceTransformParams",
        )
    entries: dict[str, Any] = json.loads(module[_PARAM_MAP]())
    if name is not None:
        found = [one for one in entries if one == name]
        asked = f"`{name}`"
    elif restoring is not None:
        found = [one for one in entries if entries[one]["restores"] == restoring]
        asked = f"a function that restores what `{restoring}` made"
    else:
        found = [one for one in entries if entries[one]["restores"] is None]
        asked = "one transform"
    if len(found) != 1:
        remedy = "name one of them"
        if restoring is not None:
            remedy = "build the module with restore=True"
        raise ModuleError.of(
            where=where,
            given=f"transforms {', '.join(f'`{one}`' for one in entries) or 'none'}",
            expected=asked,
            remedy=remedy,
        )
    entry = entries[found[0]]
    converting = entries.get(entry["restores"], entry)  # whose weights are the model's
    entry = _renamed(entry, _names_of_mlc(module, converting))
    _require_device(where, entry["target"], device)
    return Transform(
        module[found[0]],
        found[0],
        _types(entry["weights"]),
        _types(entry["params"]),
        [
            TransformStep(
                one["computes"],
                tuple(one["writes"]),
                tuple(one["frees"]),
                one["before"],
                one["worst"],
            )
            for one in entry["steps"]
        ],
        entry["loads"],
        frozenset(entry.get("moved", ())),
        entry["peak"],
        entry["layout"],
        entry["restores"],
        None if entry["reference"] is None else module[entry["reference"]],
        entry["streamed"],
        _made(entries[found[0]]),
        entry["target"] or "",
        [tuple(names) for names in entry["tied"]],
        vm,
        device,
    )


def _made(entry: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    return {
        weight["slot"]: tuple(
            one["slot"] for one in entry["params"] if weight["name"] in one["from"]
        )
        for weight in entry["weights"]
    }


def _names_of_mlc(module: Any, entry: dict[str, Any]) -> dict[str, str]:
    """From the names of a transform's weights to those in MLC-LLM's metadata, if there is some.

    With metadata, the weights are one tuple in its order. The names that the functions use are
    matched with it by the rules. If the rules do not find all, each slot gets the name of its
    index.
    """
    if not module.implements_function(_METADATA):
        return {}
    try:
        described = json.loads(module[_METADATA]())["params"]
        types = {one["name"]: (one["dtype"], len(one["shape"])) for one in described}
    except (ValueError, KeyError, TypeError):
        return {}
    weights = entry["weights"]
    names = match_names([one["name"] for one in weights], types).found
    if len(names) < len(weights):
        if not len(types) == len(described) == len(weights):
            return {}
        by_slot = {str(index): name for index, name in enumerate(types)}
        names = {one["name"]: by_slot.get(one["slot"], "") for one in weights}
    for one in weights:
        if types.get(names[one["name"]]) != (one["dtype"], len(one["shape"] or ())):
            return {}
    return names


def _renamed(entry: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    def types(key: str) -> list[dict[str, Any]]:
        return [{**one, "name": made_from(one["name"], names)} for one in entry[key]]

    tied = [[made_from(name, names) for name in group] for group in entry["tied"]]
    return {**entry, "weights": types("weights"), "params": types("params"), "tied": tied}


def _size(size: int | str, dimensions: Mapping[str, int]) -> int | str:
    value = size_at(size, dimensions)
    return size if value is None else value


def _types(entries: Iterable[dict[str, Any]]) -> list[TensorInfo]:
    return [
        TensorInfo(
            one["name"],
            None if one["shape"] is None else tuple(one["shape"]),
            one["dtype"],
            one["slot"],
        )
        for one in entries
    ]


def _require_device(where: str, target: str | None, device: Any) -> None:
    if target is None or device is None:
        return
    kind = _kind(target)
    needed, given = _DEVICES.get(kind, kind), str(device).split(":")[0].split("(")[0]
    if needed != given:
        raise ModuleError.of(
            where=where,
            given=f"built for target `{kind}`",
            expected=f"one for device {device}",
            remedy=f"run it on a {needed} device, or build it for this one",
        )


def _kind(target: str) -> str:
    """The kind in a target's text: JSON, or ``llvm -mcpu=...``."""
    try:
        fields = json.loads(target)
    except ValueError:
        return target.split()[0] if target.split() else ""
    return str(fields.get("kind", "")) if isinstance(fields, dict) else str(fields)
