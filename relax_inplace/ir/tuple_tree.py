"""Tuples of tuples, as nested lists: what is known of each field.

A *path* is the indices that lead to a field from the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

from tvm import ir, relax

__all__ = ["Path", "leaves", "map_leaves", "slot_text", "subscripted", "tree_of", "type_at"]

Path: TypeAlias = tuple[int, ...]


def leaves(tree: Any) -> Iterator[Any]:
    """What is no list, in order."""
    if isinstance(tree, list):
        for field in tree:
            yield from leaves(field)
    else:
        yield tree


def map_leaves(function: Callable[[Any], Any], tree: Any) -> Any:
    """The tree of what a function makes of each leaf."""
    if isinstance(tree, list):
        return [map_leaves(function, field) for field in tree]
    return function(tree)


def tree_of(ty: ir.Type, make: Callable[[ir.Type, Path], Any], path: Path = ()) -> Any:
    """The tree of what a function makes of each type that is no tuple, and of its path."""
    if not isinstance(ty, relax.TupleType):
        return make(ty, path)
    return [tree_of(field, make, (*path, index)) for index, field in enumerate(ty.fields[:])]


def type_at(ty: ir.Type, path: Path) -> ir.Type:
    """The type of a field."""
    for index in path:
        ty = ty.fields[index]
    return ty


def slot_text(path: Sequence[int]) -> str:
    """A path as ``1.0.2``."""
    return ".".join(map(str, path))


def subscripted(name: str, path: Sequence[int]) -> str:
    """A path as ``params[1][0][2]``."""
    return name + "".join(f"[{index}]" for index in path)
