"""What others wrote, as a message may show it: in one line, whatever is in it."""

from __future__ import annotations

import os
import reprlib

__all__ = ["shown", "system_text"]


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
