"""The errors of a failed or interrupted conversion, with the state of each weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..params import Params
from ..transform import Transform

__all__ = ["TransformError", "TransformInterrupted", "failure"]


class _Failure:
    """The state of the weights after a conversion that failed."""

    transform: str
    step: int | None
    steps: int | None
    computes: str
    converted: list[str]
    original: list[str]
    lost: list[str]
    is_device_lost: bool
    params: Params


class TransformError(RuntimeError, _Failure):
    """A conversion has failed. ``__cause__`` is the original exception.

    Attributes
    ----------
    transform : str
        The function's name.
    step : int or None
        The step that failed, counted from 1: the first that was not seen to finish. None if the
        module does not describe its steps, or if all have finished.
    steps : int or None
        The number of steps.
    computes : str
        The name of the value that the failed step computes; empty if it is not known.
    converted, original, lost : list of str
        Names of weights. Converted: all results made from it are in their slots. Original: it is
        in its slot, unchanged. Lost: any other; if only a part is lost, the part is named, too.
    is_device_lost : bool
        Whether the device has failed: nothing on it can be read or freed.
    params : Params
        The weights as they are now.
    """


class TransformInterrupted(KeyboardInterrupt, _Failure):
    """A conversion was interrupted by Ctrl-C. The attributes are those of `TransformError`."""


def failure(
    transform: Transform,
    params: Params,
    cause: BaseException,
    *,
    converted: Sequence[str] = (),
    original: Sequence[str] = (),
    lost: Sequence[str] = (),
    step: int | None = None,
    said: str = "",
    is_device_lost: bool = False,
) -> BaseException:
    """Make the error to raise.

    Parameters
    ----------
    said : str
        More about the cause, appended to its message.
    """
    is_interrupt = isinstance(cause, KeyboardInterrupt)
    steps = transform.steps
    where = f"`{transform.name}`"
    if step is not None:
        where += f", step {step} of {len(steps)} (`{steps[step - 1].computes}`)"
    what = "interrupted" if is_interrupt else _one_line(cause)
    kinds = {"converted": converted, "original": original, "lost": lost}
    left = "; ".join(f"{kind}: {_listed(names)}" for kind, names in kinds.items())
    message = f"{where}: {what}{said}. {left}"
    error: Any = TransformInterrupted(message) if is_interrupt else TransformError(message)
    error.transform = transform.name
    error.step, error.steps = step, len(steps) or None
    error.computes = "" if step is None else steps[step - 1].computes
    error.converted, error.original, error.lost = map(list, kinds.values())
    error.is_device_lost = is_device_lost
    error.params = params
    error.__cause__ = cause
    return error


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _listed(names: Sequence[str]) -> str:
    if not names:
        return "none"
    more = f", {len(names) - 4} more" if len(names) > 4 else ""
    return f"{len(names)} ({', '.join(names[:4])}{more})"
