"""Tables and sizes as text, for what the analyses report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .byte_size import ByteSize, LargestOf

__all__ = ["listed", "plain_size", "shown", "table"]


def table(head: list[str], rows: list[list[str]], without: Sequence[str] = ()) -> str:
    """Columns under their heads, but some; those of numbers to the right."""
    columns = [column for column in zip(head, *rows, strict=True) if column[0] not in without]
    widths = [max(map(len, column)) for column in columns]
    numbers = [all(cell[:1].isdigit() or cell == "-" for cell in column[1:]) for column in columns]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if is_number else cell.ljust(width)
            for cell, width, is_number in zip(row, widths, numbers, strict=True)
        ).rstrip()
        for row in zip(*columns, strict=True)
    )


def listed(names: list[str], most: int = 4) -> str:
    """Names, or the first of them and how many there are more."""
    if len(names) > most:
        names = [*names[: most - 1], f"{len(names) - most + 1} more"]
    return ", ".join(names)


def shown(size: Any) -> str:
    """Bytes, in groups of three digits, or an expression."""
    return f"{size:,}" if isinstance(size, int) else str(size)


def plain_size(value: Any) -> str:
    """For ``json.dumps``: a symbolic size as text."""
    if isinstance(value, (ByteSize, LargestOf)):
        return str(value)
    raise TypeError(type(value).__name__)
