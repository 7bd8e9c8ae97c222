"""Taking weights over: of whatever holds them, so that the tuple is their only owner."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import tvm_ffi

from ..weight_names import match_names
from .checkpoint.selection import names_in_slots, refuse_mismatch, tied_names
from .params import Params, in_slots
from .transform import Transform

__all__ = ["taken_over"]

# What is being converted, by address: virtual machines run one call at a time, tuples have one
# owner.
_busy: dict[int, str] = {}
_lock = threading.Lock()


@contextlib.contextmanager
def taken_over(given: Any, transform: Transform) -> Iterator[Params]:
    """The weights that something holds, as its only owner while the block runs.

    A ``Params`` or an ``ffi.Array`` is used as it is. A list or a dict is emptied, and refilled at
    the end: the list with the tensors that are there then, the dict by their names.

    Raises
    ------
    TypeError
        It is none of these, or holds what is no tensor.
    MismatchError
        The names in a dict are not those of the module's weights.
    RuntimeError
        Another thread converts them, or uses the virtual machine.
    """
    if isinstance(given, Params):
        params = given
    elif isinstance(given, tvm_ffi.Array) or type(given) is list:
        if type(given) is list:
            _require_tensors(given)
        fields = Params(given)._fields()
        params = Params(fields, _names(transform, fields))
    elif isinstance(given, dict):
        _require_tensors(given.values())
        params = _of_dict(given, transform)
    else:
        raise TypeError(
            f"transform_params: expected Params, an ffi.Array, a list or a dict, but got "
            f"{type(given).__name__}: only those can be emptied, so that the originals are freed"
        )
    with _used_alone(params, transform):
        if type(given) is list or isinstance(given, dict):
            given.clear()
        try:
            yield params
        finally:
            if type(given) is list:
                given.extend(params._fields())
            elif isinstance(given, dict):
                given.update(zip(params.names, params._leaves(), strict=True))


def _names(transform: Transform, fields: tvm_ffi.Array) -> list[str] | None:
    """Those of the module, if it takes as many."""
    weights = transform.weights
    if weights is None or len(weights) != len(Params(fields).names):
        return None
    return [one.name for one in weights]


def _of_dict(given: dict[str, Any], transform: Transform) -> Params:
    if transform.weights is None:
        return Params(list(given.values()), given)
    own = [one.name for one in transform.weights]
    choices = [tied_names(name, transform) for name in own]
    found = match_names(own, given, transform.tied).found
    chosen = [next((found[one] for one in names if one in found), None) for names in choices]
    extras = [name for name in given if name not in set(found.values())]
    refuse_mismatch(
        "transform_params",
        f"the weights of {transform.name}",
        [name for name, one in zip(own, chosen, strict=True) if one is None],
        extras,
        [],
        count=len(own),
        near=extras,
    )
    stored = [one for one in chosen if one is not None]  # all of them
    slots = [one.slot for one in transform.weights]
    return Params(in_slots([given[one] for one in stored], slots), names_in_slots(stored, choices))


def _require_tensors(values: Any) -> None:
    for value in values:
        if type(value) is list:
            _require_tensors(value)
        elif not isinstance(value, tvm_ffi.Tensor):
            raise TypeError(
                f"transform_params: expected tensors of TVM, but got {type(value).__name__}: make "
                "one with tvm.runtime.tensor, or load the weights with runtime.load_params"
            )


@contextlib.contextmanager
def _used_alone(params: Params, transform: Transform) -> Iterator[None]:
    thread = threading.current_thread().name
    used = {"these weights are": params._fields()}
    if transform.vm is not None:
        used["the virtual machine is"] = getattr(transform.vm, "module", transform.vm)
    keys = {what: int(one.__chandle__()) for what, one in used.items()}
    with _lock:
        for what, key in keys.items():
            if key in _busy:
                raise RuntimeError(
                    f"transform_params: {what} being used by transform_params in thread "
                    f"`{_busy[key]}`; wait for it"
                )
        _busy.update(dict.fromkeys(keys.values(), thread))
    try:
        with params._converting(thread):
            yield
    finally:
        with _lock:
            for key in keys.values():
                del _busy[key]
