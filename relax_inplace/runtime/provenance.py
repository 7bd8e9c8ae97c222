"""The mark of converted weights, in memory and in files: they are never converted twice."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from typing import Any

import tvm_ffi

from ..libinfo import load_library

__all__ = ["MARK", "Provenance", "converter_of", "mark_tensors"]

MARK = "relax_inplace.converted"  # its key in a file's metadata


@dataclasses.dataclass(frozen=True)
class Provenance:
    """The mark of converted weights: their transform, layout and source.

    Attributes
    ----------
    transform : str
        The function's name.
    layout : str
        The layout of the transform, by the compiled module: equal for transforms that compute the
        same. Empty if the function was called without its module.
    source : str
        The fingerprint of the files: see :func:`relax_inplace.runtime.load_params`. Empty if the
        weights were not loaded.
    key : str
        The key of a cached result: see :func:`relax_inplace.runtime.convert_params`.
    """

    transform: str
    layout: str = ""
    source: str = ""
    key: str = ""

    def to_json(self) -> str:
        """One line, for a file's metadata."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: object) -> Provenance | None:
        """Read a mark; None if the text is not one."""
        try:
            fields = json.loads(text)  # type: ignore[arg-type]
        except (TypeError, ValueError, RecursionError):
            return None
        names = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(fields, dict) or not isinstance(fields.get("transform"), str):
            return None
        return cls(**{name: str(fields.get(name, "")) for name in names})


def mark_tensors(tensors: Iterable[Any], transform: str) -> None:
    """Mark tensors, as long as they live, as made by a transform; "" takes the mark away."""
    load_library()
    tvm_ffi.get_global_func("relax_inplace.MarkConverted")(list(tensors), transform)


def converter_of(fields: tvm_ffi.Array) -> str | None:
    """The name of the transform that made a tensor of a tuple; None if all are originals."""
    load_library()
    return tvm_ffi.get_global_func("relax_inplace.ConvertedBy")(fields)
