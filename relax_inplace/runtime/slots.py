"""Slots of a tuple that may be nested: ``3``, and ``0.3`` for field 3 of field 0."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import tvm_ffi

__all__ = ["in_slots", "leaf_at", "leaves_of"]


def leaves_of(fields: Any, path: str = "") -> list[tuple[str, Any]]:
    """The slots and values of a tuple, through nested tuples."""
    leaves: list[tuple[str, Any]] = []
    for index, value in enumerate(fields):
        slot = f"{path}.{index}" if path else str(index)
        if isinstance(value, tvm_ffi.Array):
            leaves += leaves_of(value, slot)
        else:
            leaves.append((slot, value))
    return leaves


def leaf_at(fields: Any, slot: str) -> Any:
    """The value in a slot of a tuple, such as ``0.3``."""
    for index in slot.split("."):
        fields = fields[int(index)]
    return fields


def in_slots(values: Iterable[Any], slots: Iterable[str]) -> tvm_ffi.Array:
    """The tuple, which may be nested, with each value in its slot."""
    below: dict[int, list[tuple[str, Any]]] = {}
    fields: dict[int, Any] = {}
    for value, slot in zip(values, slots, strict=True):
        index, _, inner = slot.partition(".")
        if inner:
            below.setdefault(int(index), []).append((inner, value))
        else:
            fields[int(index)] = value
    for position, inside in below.items():
        inner_slots, inner_values = zip(*inside, strict=True)
        fields[position] = in_slots(inner_values, inner_slots)
    return tvm_ffi.Array([fields[index] for index in sorted(fields)])
