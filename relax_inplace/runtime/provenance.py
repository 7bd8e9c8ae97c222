"""The mark of converted weights, in memory and in files: they are never converted twice."""

from __future__ import annotations

import dataclasses
import json

__all__ = ["MARK", "Provenance"]

MARK = "relax_inplace.converted"  # its key in a file's metadata


@dataclasses.dataclass(frozen=True)
class Provenance:
    """What converted a set of weights, to which layout, and from which source.

    Attributes
    ----------
    transform : str
        The function's name.
    layout : str
        Of the transform, as the compiled module says: the same for those that compute the same.
        Empty if the function was called without its module.
    source : str
        What the weights were loaded from: see :func:`relax_inplace.runtime.load_params`. Empty if
        they were not.
    key : str
        What a cached result was made from: see :func:`relax_inplace.runtime.convert_params`.
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
        """Read a mark; None for what is none."""
        try:
            fields = json.loads(text)  # type: ignore[arg-type]
        except (TypeError, ValueError, RecursionError):
            return None
        names = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(fields, dict) or not isinstance(fields.get("transform"), str):
            return None
        return cls(**{name: str(fields.get(name, "")) for name in names})
