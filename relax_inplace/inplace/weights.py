"""The weights of a transform, and the buffers that values lie in.

Definition
----------
A *buffer* is memory that is allocated and freed as one: a weight's, or one that a step allocates.
A value may be a view of another one's buffer. The weights are a tree of tuples, of which a function
may modify some.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, TypeAlias

from tvm import ir, relax

from ..ir.byte_size import Size, size_of, unknown_size
from ..ir.tuple_tree import leaves

__all__ = ["Buffer", "Container", "Layout", "Weight", "buffers_of"]


@dataclasses.dataclass(eq=False)
class Buffer:
    """Memory that is allocated and freed as one.

    Attributes
    ----------
    name : str
        Of the weight, or of the variable it is allocated for.
    size : int or ByteSize
        Bytes.
    weight : Weight or None
        The weight whose slot it lies in at the start: its original.
    is_stuck : bool
        Whether it is not freed before the function returns. The register that a branch has its
        result in cannot be emptied: it is out of scope after the branch.
    """

    name: str
    size: Size
    weight: Weight | None = None
    is_stuck: bool = False


@dataclasses.dataclass(eq=False)
class Weight:
    """A tensor (or a shape or a number) in the tuple of weights.

    Attributes
    ----------
    container : Container
        The tuple it is a field of.
    index : int
        The field.
    name : str
        As the function calls it, or ``params[0]``.
    ty : ir.Type
    buffer : Buffer
    is_modifiable : bool
        Whether its slot may be emptied and replaced.
    is_streamed : bool
        Whether it is loaded, and in no slot.
    """

    container: Container
    index: int
    name: str
    ty: ir.Type
    is_modifiable: bool
    is_streamed: bool = False
    buffer: Buffer = dataclasses.field(init=False)

    @property
    def path(self) -> list[int]:
        """The indices that lead to it from the whole tuple."""
        return [*self.container.path, self.index]

    def __post_init__(self) -> None:
        is_known = not isinstance(self.ty, relax.AnyType)
        size = size_of(self.ty, self.name) if is_known else unknown_size(self.name)
        self.buffer = Buffer(self.name, size, None if self.is_streamed else self)


@dataclasses.dataclass(eq=False)
class Container:
    """The tuple of weights, or a tuple nested in it.

    Attributes
    ----------
    parent : Container or None
        The tuple it is a field of, with the index ``index``.
    fields : list of Container or Weight
    """

    parent: Container | None
    index: int
    ty: relax.TupleType
    fields: list[Container | Weight] = dataclasses.field(default_factory=list)

    @property
    def path(self) -> list[int]:
        """The indices that lead to it from the whole tuple."""
        return [] if self.parent is None else [*self.parent.path, self.index]

    def weights(self) -> Iterator[Weight]:
        """Of this tuple and of those nested in it, in order."""
        for field in self.fields:
            if isinstance(field, Weight):
                yield field
            else:
                yield from field.weights()


# The buffers a value lies in: of a tensor a set, of a tuple a list.
Layout: TypeAlias = frozenset[Buffer] | list[Any]


def buffers_of(layout: Layout) -> Iterator[Buffer]:
    """All buffers of a value."""
    for buffers in leaves(layout):
        yield from buffers
