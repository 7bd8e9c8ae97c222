"""Names that are free."""

from __future__ import annotations

__all__ = ["unused"]


def unused(name: str, taken: set[str], separator: str = ".") -> str:
    """The name, or ``name.1``, ``name.2``, ..."""
    number, free = 0, name
    while free in taken:
        number += 1
        free = f"{name}{separator}{number}"
    return free
