"""Ownership: take weights from their container, and give them back."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any

import tvm_ffi

from ...weight_names import match_names
from ..checkpoint.selection import names_in_slots, refuse_mismatch, tied_names
from ..params import Params
from ..slots import in_slots
from ..transform import Transform
from .failure import TransformInterrupted, failure
from .signals import HeldSignals

__all__ = ["Ownership"]

# The tuples and virtual machines that are in use, by address, and by which thread: a virtual
# machine runs one call at a time, a tuple has one owner.
_in_use: dict[int, str] = {}
_lock = threading.Lock()


class Ownership:
    """Makes the block the only owner of weights.

    While the block runs, nobody else can read or convert the weights, nor run the virtual machine
    that converts them. The block is not interrupted: an exception of a signal handler, or of the
    caller's ``progress``, is held. It is raised when all weights are given back, with the names of
    those that are converted.

    A ``Params`` or an ``ffi.Array`` is used as it is. A list or a dict is emptied, and refilled at
    the end: a list with the new tensors in their order, a dict by their names.

    Parameters
    ----------
    given : Params, tvm_ffi.Array, list or dict
        The weights.
    transform : Transform
        The transform that will convert them.

    Raises
    ------
    TypeError
        The container is none of these, or holds something else than tensors.
    MismatchError
        The names in a dict are not those of the module's weights.
    RuntimeError
        At the beginning of the block: another thread converts the weights, or uses the virtual
        machine.
    """

    def __init__(self, given: Any, transform: Transform):
        self.params = _params_of(given, transform)
        self.signals = HeldSignals()
        self.is_done = False  # whether all weights are converted
        self._transform = transform
        self._container = given if isinstance(given, (list, dict)) else None
        self._names = self.params.names  # of the weights: what is made of them may have others
        self._keys: list[int] = []

    def __enter__(self) -> Params:
        self.signals.__enter__()
        try:
            self._claim()
            if self._container is not None:
                self._container.clear()
        except BaseException:
            self.signals.__exit__()
            raise
        return self.params

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        try:
            if isinstance(self._container, dict):
                self._container.update(zip(self.params.names, self.params._leaves(), strict=True))
            elif self._container is not None:
                self._container.extend(self.params._fields())
        finally:
            with _lock:
                for key in self._keys:
                    del _in_use[key]
            self.params._converted_by = None
            self.signals.__exit__()
        if error is None and self.signals.error is not None:
            raise self.signals.error

    def named(self, error: BaseException) -> BaseException:
        """The error; for an interrupt after the last update, an error that says so."""
        is_interrupt = isinstance(error, KeyboardInterrupt) or error is self.signals.error
        if not self.is_done or not is_interrupt or isinstance(error, TransformInterrupted):
            return error
        names = self.params.names if self._transform.is_streamed else self._names
        return failure(self._transform, self.params, error, converted=names)

    def _claim(self) -> None:
        thread = threading.current_thread().name
        used = {"these weights are": self.params._fields()}
        if self._transform.vm is not None:
            vm = self._transform.vm
            used["the virtual machine is"] = getattr(vm, "module", vm)
        keys = {what: int(one.__chandle__()) for what, one in used.items()}
        with _lock:
            for what, key in keys.items():
                if key in _in_use:
                    raise RuntimeError(
                        f"transform_params: {what} being used by transform_params in thread "
                        f"`{_in_use[key]}`; wait for it"
                    )
            _in_use.update(dict.fromkeys(keys.values(), thread))
        self._keys = list(keys.values())
        self.params._converted_by = thread


def _params_of(given: Any, transform: Transform) -> Params:
    if isinstance(given, Params):
        return given
    if isinstance(given, dict):
        _require_tensors(given.values())
        return _of_dict(given, transform)
    if type(given) is list:
        _require_tensors(given)
    elif not isinstance(given, tvm_ffi.Array):
        raise TypeError(
            f"transform_params: expected Params, an ffi.Array, a list or a dict, but got "
            f"{type(given).__name__}: only those can be emptied, so that the originals are freed"
        )
    params = Params(given)
    weights = transform.weights
    if weights is not None and len(weights) == len(params.names):
        params._name([one.name for one in weights])
    return params


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
            kind = f"{type(value).__module__}.{type(value).__name__}".removeprefix("builtins.")
            raise TypeError(
                f"transform_params: expected tensors of TVM, but got {kind}, whose memory TVM can "
                "neither write to nor free; make one with tvm.runtime.tensor, or load the weights "
                "with runtime.load_params"
            )
