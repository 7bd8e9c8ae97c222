"""A manifest: JSON in which no key is given twice, checked against what its format says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import msgspec

from ..provenance import MARK, Provenance
from ..shown import shown
from .error import refuse
from .files import read_whole

__all__ = ["Size", "converted", "mark_in", "parse_object", "read_manifest"]

Size = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]  # TVM counts in int64
_LARGEST = 256 << 20  # bytes of a manifest; those of large models have a few
_T = TypeVar("_T")


def read_manifest(path: Path, of: type[_T]) -> tuple[bytes, _T]:
    """The bytes of a manifest, and the struct they are."""
    raw = read_whole(path, _LARGEST)
    return raw, converted(parse_object(raw, shown(path)), of, shown(path))


def parse_object(raw: bytes, where: str) -> dict[str, Any]:
    """A JSON object in which no key is given twice."""
    try:
        # Not by msgspec, which takes the last of two values of a key.
        value = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant
        )
    except UnicodeDecodeError as error:
        refuse(where, f"byte {error.start:,} is not UTF-8", "JSON in UTF-8", because=error)
    except RecursionError as error:
        refuse(where, "JSON nested too deeply", "a manifest of weights", because=error)
    except ValueError as error:
        refuse(where, f"not JSON: {error}", "JSON", because=error)
    return converted(value, dict[str, Any], where)


def converted(value: object, of: Any, where: str) -> Any:
    """A value, checked to be of a type; fields that a struct does not have are left out."""
    try:
        return msgspec.convert(value, of)
    except msgspec.ValidationError as error:
        said, _, place = str(error).replace("`", "").partition(" - at $")
        for key, index in re.findall(r"\.(\w+)|\[(\d+)\]", place):
            value = value[key or int(index)]  # type: ignore[index]
        match = re.match(r"Expected (.+?)(?:, got .*)?$", said)
        name = said.split()[-1]  # "Object missing required field name"
        given, expected = (shown(value), match[1]) if match else (f"no {name!r}", repr(name))
        refuse(f"{where}, {place[1:]}" if place else where, f"{given} given", expected)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {shown(twice)} is given twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def mark_in(metadata: object, where: str) -> Provenance | None:
    """The mark of converted weights; None if there is none."""
    if not isinstance(metadata, dict) or MARK not in metadata:
        return None
    provenance = Provenance.from_json(metadata[MARK])
    if provenance is None:  # taken for weights as stored, they might be converted twice
        refuse(where, f"{MARK!r} is {shown(metadata[MARK])}", "the mark of converted weights")
    return provenance
