"""Text of others in a message: on one line, without control characters."""

from __future__ import annotations

import os
import reprlib

__all__ = ["shown", "system_text"]


def shown(value: object) -> str:
    """A value as text for a message: short, on one line, without control characters.

    A printable path is shown as it is.
    """
    if isinstance(value, os.PathLike):
        text = os.fspath(value)
        return text if isinstance(text, str) and text.isprintable() else _SHORT.repr(text)
    return _SHORT.repr(value)


def system_text(error: Exception) -> str:
    """The message of an error of the operating system, without its number and the path."""
    text = (getattr(error, "strerror", None) or str(error)).lower()
    text = text if len(text) <= 200 else f"{text[:200]}..."
    return text if text.isprintable() else ascii(text)


_SHORT = reprlib.Repr()
_SHORT.maxstring = 80
_SHORT.maxlong = 40
_SHORT.maxother = 80
