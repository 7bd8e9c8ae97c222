"""transform_params converts weights in place; restore_params converts them back."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import tvm_ffi

from ..errors import StructuredError
from ..libinfo import load_library
from .checkpoint.selection import refuse_mismatch
from .checkpoint.tied_weights import require_equal_tensors
from .convert.held import HeldWeightsError, find_held
from .convert.observe import convert, require_memory, resident_bytes
from .convert.own import Ownership
from .forget_locals import forget_locals
from .params import Params
from .progress import ProgressOption
from .provenance import Provenance, converter_of
from .report import Report
from .slots import leaf_at, leaves_of
from .tensor_copy import copy_of, digest_of
from .tensor_info import TensorInfo, differences, dimensions_of
from .transform import ModuleError, Transform

__all__ = [
    "ConvertedError",
    "VerificationError",
    "restore_params",
    "transform_params",
]


class ConvertedError(StructuredError):
    """The weights are converted already, or not converted, or converted by another transform.

    Attributes
    ----------
    given, expected, remedy : str
        The parts of the message.
    """

    template = "{given}, expected {expected}; {remedy}"


class VerificationError(RuntimeError):
    """Fields differ from an out-of-place conversion.

    Attributes
    ----------
    names : list of str
        The names of the fields that differ.
    params : Params
        The converted weights.
    """

    names: list[str]
    params: Params


def transform_params(
    function: Any,
    params: Any,
    *,
    inputs: Sequence[Any] = (),
    strict: bool = False,
    verify: bool = False,
    progress: ProgressOption = None,
) -> Params:
    """Convert weights in the memory that they occupy.

    Parameters
    ----------
    function : Transform, VirtualMachine, module or tvm_ffi.Function
        A compiled in-place transform. For a function without its module, the plan and the names
        and types of the weights are not known.
    params : Params, tvm_ffi.Array, list or dict
        The weights, which the function takes over. A ``Params`` or an ``ffi.Array`` is updated in
        place. A list or a dict is emptied first, and refilled at the end.
    inputs : sequence
        The function's arguments before the weights.
    strict : bool
        Whether a weight that something else refers to is an error. It cannot be freed. Otherwise
        the report names it.
    verify : bool
        Whether each converted field is compared, bitwise, with an out-of-place conversion of a
        copy, one weight at a time. The module must be made with ``reference=True``.
    progress : bool or callable, optional
        By default a bar on standard error, if that is a terminal. A callable is called with a
        :class:`~relax_inplace.runtime.progress.Progress`.

    Returns
    -------
    Params
        The converted weights, with a mark and a ``report``; the given object, if it is a
        ``Params``.

    Raises
    ------
    ConvertedError
        The weights, or some of them after a failure, are converted already.
    MismatchError
        The shapes or dtypes are not those of the module. The error lists all that differ.
    HeldWeightsError
        With ``strict``: something else refers to a weight.
    TransformError
        The conversion failed. The error says which weights are converted, original and lost.
    TransformInterrupted
        The conversion was interrupted by Ctrl-C: a KeyboardInterrupt with the same attributes.
    VerificationError
        With ``verify``: a field differs.
    """
    transform = Transform.of(function)
    if transform.restores is not None:
        raise ModuleError.of(
            where="transform_params",
            given=f"`{transform.name}`, which restores",
            expected="a function that converts",
            remedy="call restore_params",
        )
    ownership = Ownership(params, transform)
    try:
        with ownership as owned:
            _require_originals(owned)
            if verify:
                _checked(transform, owned.names, owned._types())
                _read_now(owned)
            expected = _digests(transform, ownership, inputs) if verify else None
            names = _new_names(transform, owned)
            report = _run(transform, ownership, inputs, strict, progress, "convert")
            owned._become(names, Provenance(transform.name, transform.layout, owned.source))
            owned.report = report
            ownership.is_done = True
            if expected is not None:
                _compare(transform, owned, expected)
                owned.report = dataclasses.replace(report, verified=True)
        return owned
    except BaseException as error:
        raise ownership.named(error)  # noqa: B904 (mostly the same one)


def restore_params(
    function: Any,
    params: Params,
    *,
    inputs: Sequence[Any] = (),
    strict: bool = False,
    progress: ProgressOption = None,
) -> Params:
    """Convert weights back to their stored format, in place.

    Parameters
    ----------
    function : Transform, VirtualMachine, module or tvm_ffi.Function
        A transform, or its module, made with ``restore=True``.
    params : Params
        Converted weights, with a mark.
    inputs, strict, progress
        As for :func:`transform_params`.

    Returns
    -------
    Params
        The given object, without a mark.

    Raises
    ------
    ConvertedError
        The weights are not converted, or converted by another transform.
    ModuleError
        The module has no inverse of the transform.
    """
    if not isinstance(params, Params) or params.provenance is None:
        raise ConvertedError.of(
            given="weights without a mark",
            expected="weights that transform_params has converted",
            remedy="they are as they were stored, as far as is known",
        )
    _require_whole(params)
    provenance = params.provenance
    transform = Transform.of(function, restoring=provenance.transform)
    if transform.vm is not None:
        undone = Transform.of(transform.vm, provenance.transform)
        if provenance.layout and undone.layout != provenance.layout:
            raise ConvertedError.of(
                given=f"weights in layout {provenance.layout}",
                expected=f"layout {undone.layout}, which `{transform.name}` undoes",
                remedy="restore them with the module that converted them",
            )
    ownership = Ownership(params, transform)
    try:
        with ownership as owned:
            names = _new_names(transform, owned)
            report = _run(transform, ownership, inputs, strict, progress, "restore")
            owned._become(names, None)
            owned.report = report
            ownership.is_done = True
        return owned
    except BaseException as error:
        raise ownership.named(error)  # noqa: B904 (mostly the same one)


def _run(
    transform: Transform,
    ownership: Ownership,
    inputs: Sequence[Any],
    strict: bool,
    progress: ProgressOption,
    doing: str,
) -> Report:
    """Check, then convert; the tuple may be a new one afterwards."""
    if transform.is_streamed:
        raise ModuleError.of(
            where="transform_params",
            given=f"`{transform.name}`, which asks for its weights one by one",
            expected="a transform of resident weights",
            remedy="call stream_params, or compile it without lazy=True",
        )
    params = ownership.params
    _read_now(params, but=transform)
    transform = _checked(transform, params.names, params._types())
    _require_tied(transform, params)
    tied = {one.slot for one in transform.weights or () if transform.is_tied(one.name)}
    held = find_held(params._fields(), params.names, tied)
    if held and strict:
        listed = "; ".join(map(str, held[:4]))
        more = f"; and {len(held) - 4} more" if len(held) > 4 else ""
        raise HeldWeightsError.of(held=f"{listed}{more}")
    device = transform.device or _device_of(params)
    require_memory(transform, resident_bytes(params), device)
    return convert(
        transform, ownership, inputs, device=device, progress=progress, doing=doing, held=held
    )


def _read_now(params: Params, but: Transform | None = None) -> None:
    """Read the weights that are unread, but for those that a transform only moves."""
    if params._unread is not None:
        weights = [] if but is None or but.weights is None else but.weights
        moved = {weights[index].slot for index in but.moved} if but is not None and weights else ()
        params._unread.read(params._fields(), moved)


def _require_whole(params: Params) -> None:
    if params.partial is not None:
        raise ConvertedError.of(
            given=f"weights that `{params.partial}` has converted in part, and then failed",
            expected="weights of one layout",
            remedy="load them again",
        )


def _require_originals(params: Params) -> None:
    _require_whole(params)
    converter = converter_of(params._fields())
    if params.provenance is not None:
        converter = params.provenance.transform
    if converter is not None:
        raise ConvertedError.of(
            given=f"weights that `{converter}` has converted",
            expected="weights as they were stored",
            remedy="use them as they are, or restore_params",
        )


def _require_tied(transform: Transform, params: Params) -> None:
    """Refuse tied weights that differ: the transform reads one of them for all."""
    slots = {one.name: one.slot for one in transform.weights or ()}
    for names in transform.tied:
        tensors = [(name, leaf_at(params._fields(), slots[name])) for name in names]
        found = [(name, one) for name, one in tensors if one is not None and one.is_contiguous()]
        if found:
            require_equal_tensors("transform_params", found)


def _new_names(transform: Transform, params: Params) -> list[str]:
    """The names of the new weights: those that the old ones have now."""
    if transform.params is None or transform.weights is None:
        return list(params.names)
    slots = params._slots()
    if params.names != tuple(slots):  # or else they have no names
        called = dict(zip(slots, params.names, strict=True))
        params._read_as.update(
            (one.name, called[one.slot]) for one in transform.weights if one.slot in called
        )
    return params._names_of(transform.params)


def _checked(transform: Transform, names: Sequence[str], types: Sequence[TensorInfo]) -> Transform:
    """Check all weights at once, by name; TVM checks field by field.

    Returns
    -------
    Transform
        The transform, with the sizes of these weights in its plan.
    """
    if transform.weights is None:
        return transform
    where, expected = "transform_params", f"the weights of {transform.name}"
    count = len(transform.weights)
    wanted = [one.name for one in transform.weights]
    if len(names) != len(wanted):
        refuse_mismatch(
            where, expected, wanted[len(names) :], names[len(wanted) :], [], count=count
        )
    by_name = {one.name: one for one in types}
    # The weights may have other names here: the slot counts.
    given = {one: by_name[name] for one, name in zip(wanted, names, strict=True) if name in by_name}
    lost = [
        one.name for one in transform.weights if one.dtype is not None and one.name not in given
    ]
    refuse_mismatch(where, expected, lost, [], differences(given, transform.weights), count=count)
    return transform.with_dimensions(dimensions_of(given, transform.weights))


def _device_of(params: Params) -> Any:
    for value in params._leaves():
        if isinstance(value, tvm_ffi.Tensor):
            return value.device
    return None


# -- verification ---------------------------------------------------------------------------


def _digests(transform: Transform, ownership: Ownership, inputs: Sequence[Any]) -> dict[str, bytes]:
    """Digests of the fields of an out-of-place conversion, made one weight at a time."""
    if transform.reference is None:
        raise ModuleError.of(
            where="transform_params(verify=True)",
            given=f"`{transform.name}` without a reference",
            expected="one to compare with",
            remedy="make the module with reference=True",
        )
    load_library()
    assert transform.params is not None
    update = tvm_ffi.get_global_func("vm.builtin.inplace_update_tuple")
    observe = tvm_ffi.get_global_func("relax_inplace.ObserveUpdates")
    slots = 1 + max(int(one.slot.split(".")[0]) for one in transform.params)
    made = tvm_ffi.Array([None] * slots)
    digests: dict[str, bytes] = {}

    params, signals = ownership.params, ownership.signals
    fields, weights = params._fields(), params._slots()

    def get_weight(index: int) -> Any:
        return copy_of(leaf_at(fields, weights[index]))

    def told(slot: str | None, bytes_in: int, _bytes_out: int, _freed: bool) -> None:
        if slot is not None and bytes_in >= 0:
            index = int(slot)
            field = made[index]
            nested = leaves_of(field, slot) if isinstance(field, tvm_ffi.Array) else [(slot, field)]
            for path, tensor in nested:
                digests[path] = digest_of(tensor)
            update(made, index, None)
        if signals.error is not None:
            raise signals.error

    try:
        observe(told, transform.reference, *inputs, get_weight, made)
    except BaseException as error:
        forget_locals(error)
        raise signals.error or error from None
    return digests


def _compare(transform: Transform, params: Params, expected: dict[str, bytes]) -> None:
    different = [
        name
        for name, (slot, value) in zip(params.names, leaves_of(params._fields()), strict=True)
        if expected.get(slot) != digest_of(value)
    ]
    if different:
        error = VerificationError(
            f"`{transform.name}`: {len(different)} of {len(params.names)} fields differ from an "
            f"out-of-place conversion: {', '.join(different[:8])}"
        )
        error.names, error.params = different, params
        raise error
