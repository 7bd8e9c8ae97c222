"""What is wrong with files of weights, in one line, whatever is in them."""

from __future__ import annotations

import os
import reprlib
from typing import NoReturn

from ..errors import StructuredError

__all__ = ["DAMAGED", "SourceError", "refuse", "shown", "system_text"]

DAMAGED = "download or write the weights again"  # what to do about most of them


class SourceError(StructuredError):
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

    @classmethod
    def of(cls, **fields: str) -> SourceError:
        """Make the error; its fields are these, also if one contains what separates them."""
        error = cls(cls.template.format(**fields))
        error.fields = fields
        return error


def refuse(
    where: str,
    given: str,
    expected: str,
    remedy: str = DAMAGED,
    because: BaseException | None = None,
) -> NoReturn:
    """Raise a SourceError."""
    raise SourceError.of(where=where, given=given, expected=expected, remedy=remedy) from because


def shown(value: object) -> str:
    """A value as a message may show it: short, on one line, and no control characters.

    A path is shown as it is, if it can be.
    """
    if isinstance(value, os.PathLike):
        text = os.fspath(value)
        return text if isinstance(text, str) and text.isprintable() else _SHORT.repr(text)
    return _SHORT.repr(value)


def system_text(error: Exception) -> str:
    """What the operating system or another reader said, without a number and the path."""
    text = (getattr(error, "strerror", None) or str(error)).lower()
    text = text if len(text) <= 200 else f"{text[:200]}..."
    return text if text.isprintable() else ascii(text)


_SHORT = reprlib.Repr()
_SHORT.maxstring = 80
_SHORT.maxlong = 40
_SHORT.maxother = 80
