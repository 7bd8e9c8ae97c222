"""A manifest: JSON in which every field is checked as it is taken out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from .mark import MARK, Mark
from .regular_file import read_whole
from .source_error import refuse, shown

__all__ = ["list_of", "mark_in", "object_in", "parse_object", "read_manifest", "size_of", "text_of"]

_LARGEST = 256 << 20  # bytes of a manifest; those of large models have a few
_SIZES_END = 1 << 63  # TVM counts in int64


def read_manifest(path: Path) -> tuple[bytes, dict[str, Any]]:
    """The bytes of a manifest, and the object they are."""
    raw = read_whole(path, _LARGEST)
    return raw, parse_object(raw, shown(path))


def parse_object(raw: bytes, where: str) -> dict[str, Any]:
    """A JSON object in which no key is given twice.

    Raises
    ------
    SourceError
        It is none.
    """
    try:
        value = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant
        )
    except UnicodeDecodeError as error:
        refuse(where, f"byte {error.start:,} is not UTF-8", "JSON in UTF-8", because=error)
    except RecursionError as error:
        refuse(where, "JSON nested too deeply", "a manifest of weights", because=error)
    except ValueError as error:
        refuse(where, f"not JSON: {error}", "JSON", because=error)
    if not isinstance(value, dict):
        refuse(where, f"{shown(value)} given", "a JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {shown(twice)} is given twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def text_of(entry: dict[str, Any], key: str, where: str) -> str:
    """A field that is text."""
    value = _field(entry, key, where)
    if not isinstance(value, str):
        refuse(where, f"{key!r} is {shown(value)}", "text")
    return value


def size_of(value: object, what: str, where: str) -> int:
    """A whole number that is not negative, and that 64 bits hold."""
    # True is an int in Python; 1.0 and "3" are what other writers make of a size they guessed.
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _SIZES_END:
        refuse(where, f"{what} is {shown(value)}", "a whole number from 0 to 2**63 - 1")
    return value


def list_of(entry: dict[str, Any], key: str, where: str) -> list[Any]:
    """A field that is a list."""
    value = _field(entry, key, where)
    if not isinstance(value, list):
        refuse(where, f"{key!r} is {shown(value)}", "a list")
    return value


def object_in(entry: dict[str, Any], key: str, where: str) -> dict[str, Any]:
    """A field that is an object."""
    value = _field(entry, key, where)
    if not isinstance(value, dict):
        refuse(where, f"{key!r} is {shown(value)}", "an object")
    return value


def mark_in(metadata: object, where: str) -> Mark | None:
    """The mark of converted weights; None if there is none."""
    if not isinstance(metadata, dict) or MARK not in metadata:
        return None
    mark = Mark.from_json(metadata[MARK])
    if mark is None:  # taken for weights as stored, they might be converted twice
        refuse(where, f"{MARK!r} is {shown(metadata[MARK])}", "the mark of converted weights")
    return mark


def _field(entry: dict[str, Any], key: str, where: str) -> Any:
    if key not in entry:
        refuse(where, f"no {key!r} given", f"{key!r}")
    return entry[key]
