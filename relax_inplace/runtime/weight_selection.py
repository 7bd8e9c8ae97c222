"""Which records of a source become which weights, and everything that does not fit."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from .mark import Mark
from .source import Record, Source
from .source_error import SourceError, refuse, shown
from .tensor_type import differences

__all__ = ["MismatchError", "Selection", "refuse_mismatch", "select"]


class MismatchError(SourceError):
    """The weights of a source are not those that are asked for; all that is wrong is listed.

    Attributes
    ----------
    missing : tuple of str
        Asked for, and not in the source.
    unexpected : tuple of str
        In the source, and not among the module's.
    mismatched : tuple of str
        Of another shape or dtype, and which.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Selection:
    """What is to be read, in the order of the tuple that it makes.

    Attributes
    ----------
    names : list of str
        As the module has them.
    records : list of Record
    slots : list of str
        Places in the tuple: ``3``, or ``0.3`` in a nested one.
    mark : Mark or None
    """

    names: list[str]
    records: list[Record]
    slots: list[str]
    mark: Mark | None


def select(source: Source, names: Any = None) -> Selection:
    """Choose from a source, and check what is chosen.

    Parameters
    ----------
    source : Source
    names : sequence of str or a compiled module's transform, optional
        Of a transform every weight is checked, and the source may have no others.

    Raises
    ------
    MismatchError
        They do not fit.
    SourceError
        A name is given twice, or the weights were converted for another layout.
    """
    if names is None:
        return _flat(list(source.records), list(source.records.values()), source.mark)
    if not hasattr(names, "weights"):
        return _named(source, list(names))
    return _of_transform(source, names)


def _flat(names: list[str], records: list[Record], mark: Mark | None) -> Selection:
    return Selection(names, records, [str(index) for index in range(len(names))], mark)


def _named(source: Source, names: list[str]) -> Selection:
    _check_names(names)
    found = _match(names, source.records)
    missing = [name for name in names if name not in found]
    refuse_mismatch(shown(source.path), "the names given", missing, [], [])
    return _flat(names, [source.records[found[name]] for name in names], source.mark)


def _of_transform(source: Source, transform: Any) -> Selection:
    wanted, called = transform.weights, f"the weights of {transform.name}"
    if source.mark is not None:
        if not source.mark.layout or source.mark.layout != transform.layout:
            refuse(
                shown(source.path),
                f"weights that {shown(source.mark.transform)} has converted, "
                f"layout {shown(source.mark.layout)}",
                f"weights as they were stored, or of layout {shown(transform.layout)}",
                "load the original weights: converted ones are not converted again",
            )
        wanted, called = transform.params, f"what {transform.name} makes"
    names = [one.name for one in wanted]
    _check_names(names)
    found = _match(names, source.records)
    used = set(found.values())
    refuse_mismatch(
        shown(source.path),
        called,
        [name for name in names if name not in found],
        [name for name in source.records if name not in used],
        differences({name: source.records[stored].type for name, stored in found.items()}, wanted),
    )
    records = [source.records[found[name]] for name in names]
    return Selection(names, records, [one.slot for one in wanted], source.mark)


def _check_names(names: Sequence[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        refuse("load_params", f"the name {shown(twice[0])} twice", "each name once", "give it once")


def _match(wanted: Iterable[str], stored: Iterable[str]) -> dict[str, str]:
    """The stored name of each one that is wanted: the same, or the one that is printed the same.

    TVM's script printer replaces what cannot be in a Python name: `layers.0.w` is `layers_0_w`.
    """
    wanted, stored = set(wanted), set(stored)
    found = {name: name for name in wanted & stored}
    printed_wanted = _by_printed(wanted - stored)
    printed_stored = _by_printed(stored - wanted)
    for printed, names in printed_wanted.items():
        candidates = printed_stored.get(printed, [])
        if len(names) == len(candidates) == 1:
            found[names[0]] = candidates[0]
    return found


def _by_printed(names: Iterable[str]) -> dict[str, list[str]]:
    printed: dict[str, list[str]] = {}
    for name in names:
        printed.setdefault(re.sub("[^A-Za-z0-9_]", "_", name), []).append(name)
    return printed


def refuse_mismatch(
    where: str,
    expected: str,
    missing: Sequence[str],
    unexpected: Sequence[str],
    mismatched: Sequence[str],
) -> None:
    """Raise a MismatchError if there is anything to list."""
    kinds = [
        ("missing", [shown(name) for name in missing]),
        ("too many", [shown(name) for name in unexpected]),
        ("of another type", list(mismatched)),
    ]
    given = [f"{len(found)} {kind} ({_first(found)})" for kind, found in kinds if found]
    if not given:
        return
    error = MismatchError.of(
        where=where,
        given=" and ".join(given),
        expected=expected,
        remedy="these are weights of another model, or of another version of it",
    )
    assert isinstance(error, MismatchError)
    error.missing = tuple(missing)
    error.unexpected = tuple(unexpected)
    error.mismatched = tuple(mismatched)
    raise error


def _first(found: list[str]) -> str:
    return ", ".join([*found[:8], "..."] if len(found) > 8 else found)
