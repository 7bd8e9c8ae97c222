"""What is wrong with a checkpoint, in one line."""

from __future__ import annotations

from typing import NoReturn

from ...errors import StructuredError

__all__ = ["CheckpointError", "refuse"]

_DAMAGED = "download or write the weights again"  # what to do about most of them


class CheckpointError(StructuredError):
    """Files of weights cannot be read, or are not what they should be.

    Attributes
    ----------
    where : str
        The file, and the record in it.
    given : str
    expected : str
    remedy : str
        What to do.
    """

    template = "{where}: {given}, expected {expected}; {remedy}"


def refuse(
    where: str,
    given: str,
    expected: str,
    remedy: str = _DAMAGED,
    because: BaseException | None = None,
) -> NoReturn:
    """Raise a CheckpointError."""
    fields = {"where": where, "given": given, "expected": expected, "remedy": remedy}
    raise CheckpointError.of(**fields) from because
