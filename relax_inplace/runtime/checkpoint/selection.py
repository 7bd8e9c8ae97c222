"""Which records of a checkpoint become which weights, and everything that does not fit.

Which name is which is a matter of :mod:`relax_inplace.weight_names`.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from ...weight_names import (
    GivenNames,
    made_from,
    match_names,
    names_to_look_for,
    near_names,
    unused_name,
)
from ..provenance import Provenance
from ..shown import shown
from ..tensor_info import Difference, differences
from .checkpoint import Checkpoint
from .error import CheckpointError, refuse
from .stored_tensor import StoredTensor

__all__ = [
    "MismatchError",
    "Selection",
    "names_in_slots",
    "refuse_mismatch",
    "select",
    "tied_names",
]


class MismatchError(CheckpointError):
    """The weights of a checkpoint are not those that are asked for; all that is wrong is listed.

    Attributes
    ----------
    missing : tuple of str
        Asked for, and not in the checkpoint.
    unexpected : tuple of str
        In the checkpoint, and not among the module's.
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
        As the checkpoint has them.
    records : list of StoredTensor
        Of tied weights the same one.
    slots : list of str
        Places in the tuple: ``3``, or ``0.3`` in a nested one.
    provenance : Provenance or None
    read_as : dict of str to str
        For what the module calls a weight its name here.
    ignored : list of str
        In the checkpoint, and not wanted.
    tied : list of tuple of StoredTensor
        Of which all have to be equal.
    """

    names: list[str]
    records: list[StoredTensor]
    slots: list[str]
    provenance: Provenance | None
    read_as: dict[str, str] = dataclasses.field(default_factory=dict)
    ignored: list[str] = dataclasses.field(default_factory=list)
    tied: list[tuple[StoredTensor, ...]] = dataclasses.field(default_factory=list)


def select(
    checkpoint: Checkpoint,
    wanted: Any = None,
    names: GivenNames | None = None,
    extra: str = "error",
) -> Selection:
    """Choose from a checkpoint, and check what is chosen.

    Parameters
    ----------
    checkpoint : Checkpoint
    wanted : sequence of str or a compiled module's transform, optional
        Of a transform every weight is checked.
    names : mapping, sequence, callable or path, optional
        What the transform's weights are called in the checkpoint.
    extra : str
        Whether the checkpoint may have others than the transform's: ``error`` or ``ignore``.
    """
    if extra not in ("error", "ignore"):
        raise ValueError(f"extra={extra!r}: expected 'error' or 'ignore'")
    if hasattr(wanted, "weights"):
        return _of_transform(checkpoint, wanted, names, extra)
    if names is not None:
        raise ValueError(
            "names= says what the weights of a transform are called in the files; give the "
            "transform, too, or the names alone as the third argument"
        )
    if wanted is None:
        return _flat(
            list(checkpoint.records), list(checkpoint.records.values()), checkpoint.provenance
        )
    return _named(checkpoint, list(wanted))


def _flat(
    names: list[str], records: list[StoredTensor], provenance: Provenance | None
) -> Selection:
    return Selection(names, records, [str(index) for index in range(len(names))], provenance)


def _named(checkpoint: Checkpoint, names: list[str]) -> Selection:
    _check_names(names)
    found = match_names(names, checkpoint.records).found
    missing = [name for name in names if name not in found]
    unused = [name for name in checkpoint.records if name not in set(found.values())]
    refuse_mismatch(shown(checkpoint.path), "the names given", missing, [], [], near=unused)
    return _flat(names, [checkpoint.records[found[name]] for name in names], checkpoint.provenance)


def _of_transform(
    checkpoint: Checkpoint, transform: Any, given: GivenNames | None, extra: str
) -> Selection:
    wanted, of = transform.weights, f"the weights of {transform.name}"
    own = [one.name for one in wanted]
    if checkpoint.provenance is not None:
        if not checkpoint.provenance.layout or checkpoint.provenance.layout != transform.layout:
            refuse(
                shown(checkpoint.path),
                f"weights that {shown(checkpoint.provenance.transform)} has converted, "
                f"layout {shown(checkpoint.provenance.layout)}",
                f"weights as they were stored, or of layout {shown(transform.layout)}",
                "load the original weights: converted ones are not converted again",
            )
        wanted, of = transform.params, f"what {transform.name} makes"
    looked_for = names_to_look_for(given, own, checkpoint.records, transform.name)
    called = dict(zip(own, looked_for, strict=True))
    choices = [
        [made_from(name, called) for name in tied_names(one.name, transform)] for one in wanted
    ]
    _check_names([names[0] for names in choices])
    everything = list(dict.fromkeys(name for names in choices for name in names))
    found = match_names(everything, checkpoint.records, choices).found
    groups = dict.fromkeys(
        tuple(dict.fromkeys(found[name] for name in sorted(names) if name in found))
        for names in choices
    )
    chosen = [
        next((checkpoint.records[found[name]] for name in names if name in found), None)
        for names in choices
    ]
    chosen = _first_of_each(chosen, groups)
    used = set(found.values())
    extras = [
        name for name in checkpoint.records if name not in used and name not in checkpoint.ties
    ]
    records = {
        one.name: record for one, record in zip(wanted, chosen, strict=True) if record is not None
    }
    refuse_mismatch(
        shown(checkpoint.path),
        of,
        [names[0] for names, record in zip(choices, chosen, strict=True) if record is None],
        [] if extra == "ignore" else extras,
        differences(records, wanted),
        count=len(wanted),
        near=extras,
    )
    names = names_in_slots((record.name for record in records.values()), choices)
    return Selection(
        names,
        list(records.values()),
        [one.slot for one in wanted],
        checkpoint.provenance,
        dict(zip(records, names, strict=True)),
        extras,
        [tuple(checkpoint.records[name] for name in group) for group in groups if len(group) > 1],
    )


def tied_names(name: str, transform: Any) -> list[str]:
    """What a weight, or what is made from it, may be called: its own name first."""
    own = {one.name for one in transform.weights}
    for names in transform.tied:
        for one in names:
            if name in own and name not in names:  # `w.1` may be a weight, too
                continue
            if made_from(name, {one: ""}) != name:
                others = [made_from(name, {one: other}) for other in names]
                return list(dict.fromkeys([name, *others]))
    return [name]


def _first_of_each(
    chosen: list[StoredTensor | None], groups: Iterable[tuple[str, ...]]
) -> list[StoredTensor | None]:
    """Of tied weights the record that comes first: they are equal, and one is read."""
    together = {name: group for group in groups for name in group}
    first: dict[tuple[str, ...], StoredTensor] = {}
    return [
        None if one is None else first.setdefault(together.get(one.name, (one.name,)), one)
        for one in chosen
    ]


def names_in_slots(found: Iterable[str], choices: Sequence[Sequence[str]]) -> list[str]:
    """What was found for each slot; for a second one that has the same, another of its names."""
    taken: set[str] = set()
    names = []
    for name, choice in zip(found, choices, strict=True):
        free = next((one for one in (name, *choice) if one not in taken), name)
        names.append(unused_name(free, taken))
    return names


def _check_names(names: Sequence[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        refuse("load_params", f"the name {shown(twice[0])} twice", "each name once", "give it once")


# -- what does not fit ----------------------------------------------------------------------------


def refuse_mismatch(
    where: str,
    expected: str,
    missing: Sequence[str],
    unexpected: Sequence[str],
    mismatched: Sequence[Difference],
    *,
    count: int = 0,
    near: Sequence[str] = (),
) -> None:
    """Raise a MismatchError if there is anything to list.

    ``count`` says how many are expected, ``near`` are the names that are left over, among which
    the missing may be.
    """
    given = [
        f"{len(found)} {kind} ({_first([shown(name) for name in found])})"
        for kind, found in (("missing", missing), ("too many", unexpected))
        if found
    ]
    given += _grouped(mismatched, count)
    if not given:
        return
    error = MismatchError.of(
        where=where,
        given=" and ".join(given),
        expected=expected,
        remedy=_remedy(missing, mismatched, count, near),
    )
    assert isinstance(error, MismatchError)
    error.missing = tuple(missing)
    error.unexpected = tuple(unexpected)
    error.mismatched = tuple(map(str, mismatched))
    raise error


def _grouped(mismatched: Sequence[Difference], count: int) -> list[str]:
    """Those that have the same thing wrong as one."""
    groups: dict[tuple[str | None, str | None], list[Difference]] = {}
    for one in mismatched:
        if one.is_of_dtype:
            groups.setdefault((one.given.dtype, one.wanted.dtype), []).append(one)
    said = []
    rest = list(mismatched)
    for (given, wanted), group in groups.items():
        if len(group) > 1:
            all_of_them = len(group) == count
            who = f"all {count}" if all_of_them else f"{len(group)}"
            names = "" if all_of_them else f" ({_first([shown(one.name) for one in group])})"
            said.append(f"{who} are {given}, expected {wanted}{names}")
            rest = [one for one in rest if one not in group]
    if rest:
        said.append(f"{len(rest)} of another type ({_first(list(map(str, rest)))})")
    return said


def _remedy(
    missing: Sequence[str], mismatched: Sequence[Difference], count: int, near: Sequence[str]
) -> str:
    example = near_names(missing, near) if missing else None
    if example is not None:
        stored, wanted, _ = example
        return (
            f"names differ: the file says {shown(stored)}, the module {shown(wanted)}: give "
            "names=, which maps the module's names to the file's"
        )
    of_another_kind = [one for one in mismatched if not one.is_of_dtype]
    if count and 2 * (len(missing) + len(of_another_kind)) > count:
        return "these are weights of another model, or of another version of it"
    if of_another_kind:
        return "give the weights that the module was made for, or make the module for these"
    if missing:
        return (
            "download the rest; of a weight that is another one's, say so by tied= when the module "
            "is made, or by ties=True if the file's metadata does"
        )
    if mismatched:
        return "make the module for the dtype of the file, or convert the file"
    return 'load with extra="ignore" if the module does not need them'


def _first(found: Sequence[str]) -> str:
    return ", ".join([*found[:8], "..."] if len(found) > 8 else found)
