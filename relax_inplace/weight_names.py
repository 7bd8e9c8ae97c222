"""The names of weights in a module and in a checkpoint, and how they are matched: all rules.

The name of a weight in a module is the first of these:

- the one that ``names=`` gives: a mapping from the module's names, a sequence in the order of the
  tuple, a callable, or a JSON file with an object or a list;
- the one in MLC-LLM's metadata, if the module has some;
- the name of the function's parameter, or of the variable that it reads the field into first;
- ``params[3]``, if the field has no name of its own (``gv4`` is a name that TVM made up).

The name in a checkpoint is found by the :data:`RULES`. Each rule is tried for all weights of a
module together. The first rule that gives exactly one answer for every weight holds.

A new weight has the name of the weight that it is made from. A second one has that name and ``.1``.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

__all__ = [
    "RULES",
    "GivenNames",
    "Matched",
    "given_names",
    "is_made_up",
    "made_from",
    "match_names",
    "names_to_look_for",
    "near_names",
    "own_names",
    "read_names",
    "unused_name",
]

GivenNames: TypeAlias = (
    Mapping[str, str] | Sequence[str] | Callable[[str], str] | str | os.PathLike[str]
)

# In the order in which they are tried. TVM's script printer writes `_` as in the second. The later
# rules compare names in that form, too.
RULES = (
    "equal",
    "equal, with `_` for each character that a Python name cannot have",
    "equal in lower case, without torch.export's prefix `p_`, `b_` or `c_`",
    "equal after one prefix that all names of the file have, such as `model.`",
    "equal after one prefix that all names of the module have",
)
_EQUAL, _PRINTED, _EXPORTED, _FILE_PREFIX, _MODULE_PREFIX = RULES

_MADE_UP = re.compile(r"(gv|lv)\d*(_\d+)?")  # what BlockBuilder calls a variable that has no name
# torch/_export/utils.py, placeholder_prefixes: parameters, buffers, constants.
_EXPORT_PREFIXES = ("p_", "b_", "c_")
_LARGEST_FILE = 64 << 20


# -- in a module ----------------------------------------------------------------------------------


def is_made_up(name: str) -> bool:
    """Whether TVM has made up the name of a variable."""
    return _MADE_UP.fullmatch(name) is not None


def own_names(called: Iterable[str], bundle: str) -> list[str]:
    """Unique names for the fields of a tuple; ``called`` are the functions' names for them, or "".

    A name that is taken gets the number of its field.
    """
    names: list[str] = []
    taken: set[str] = set()
    for index, name in enumerate(called):
        name = name or f"{bundle}[{index}]"
        if name in taken:
            name = f"{name}[{index}]"
        taken.add(name)
        names.append(name)
    return names


def made_from(name: str, called: Mapping[str, str]) -> str:
    """The name of a new weight once the old ones are renamed: `w.1` is `v.1` if `w` is `v`."""
    if name in called:
        return called[name]
    stem, _, number = name.rpartition(".")
    return f"{called[stem]}.{number}" if stem in called and number.isdecimal() else name


def unused_name(name: str, taken: set[str]) -> str:
    """The first of ``name``, ``name.1``, ``name.2``, ... that is not taken; added to ``taken``."""
    number, free = 0, name
    while free in taken:
        number += 1
        free = f"{name}.{number}"
    taken.add(free)
    return free


# -- given by the user ----------------------------------------------------------------------------


def read_names(path: str | os.PathLike[str]) -> dict[str, str] | list[str]:
    """Read a JSON file: an object from the module's names, or a list in the tuple's order.

    Raises
    ------
    ValueError
        The file cannot be read, or holds neither.
    """
    shown = os.fspath(path)
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(_LARGEST_FILE + 1)
        names = json.loads(text) if len(text) <= _LARGEST_FILE else None
    except OSError as error:
        raise ValueError(f"names: {shown}: {error.strerror}") from None
    except (ValueError, RecursionError):
        names = None
    values: Iterable[Any] = names.values() if isinstance(names, dict) else names or ()
    if isinstance(names, (dict, list)) and all(isinstance(one, str) for one in values):
        return names
    raise ValueError(
        f"names: {shown}: expected JSON, an object from the module's names to others, or a list of "
        "names in the order of the tuple"
    )


def given_names(given: GivenNames | None, own: Sequence[str], of: str) -> list[str]:
    """The names of a module's weights, with those that the user gives.

    Parameters
    ----------
    given : mapping, sequence, callable or path, optional
        A mapping may leave out names: those weights keep theirs.
    own : sequence of str
        The module's names.
    of : str
        The owner of the weights, for errors.

    Raises
    ------
    ValueError
        There are too many names, too few, one twice, or none of the module's.
    """
    if given is None:
        return list(own)
    given = _opened(given)
    names: list[Any]
    if isinstance(given, Mapping):
        if not any(name in given for name in own):
            swapped = set(given.values()) & set(own)
            raise ValueError(
                f"names: {_some(given)} are no weights of {of}, expected some of {_some(own)}"
                + ("; it is the other way round: {module's name: other name}" if swapped else "")
            )
        names = [given.get(name, name) for name in own]
    elif callable(given):
        names = [given(name) for name in own]
    else:
        names = list(given)
    if not all(isinstance(name, str) for name in names):
        wrong = next(name for name in names if not isinstance(name, str))
        raise ValueError(f"names: {wrong!r} given for a weight of {of}, expected text")
    if len(names) != len(own) or len(set(names)) != len(names):
        raise ValueError(
            f"names: {len(names)} given, {len(set(names))} of them different, for {len(own)} "
            f"weights of {of}; expected one for each"
        )
    return names


def names_to_look_for(
    given: GivenNames | None, own: Sequence[str], stored: Iterable[str], of: str
) -> list[str]:
    """As :func:`given_names`, to look up in a checkpoint: a mapping may be either way round."""
    if given is None:
        return list(own)
    given = _opened(given)
    if isinstance(given, Mapping):
        there = set(stored)
        if not any(name in given for name in own):
            swapped = {new: old for old, new in given.items() if old in there}
            if any(name in swapped for name in own):
                given = swapped
            elif set(own) & set(given.values()):
                return list(own)  # the module was built with these names
    return given_names(given, own, of)


def _opened(
    given: GivenNames,
) -> Mapping[str, str] | Sequence[str] | Callable[[str], str]:
    return read_names(given) if isinstance(given, (str, os.PathLike)) else given


# -- in a checkpoint ------------------------------------------------------------------------------


class Matched(NamedTuple):
    """The names of a module, matched with those of a checkpoint.

    Attributes
    ----------
    found : dict of str to str
        From a name of the module to that of the checkpoint.
    rules : dict of str to str
        From a name of the module to the one of the :data:`RULES` that found it.
    """

    found: dict[str, str]
    rules: dict[str, str]


def match_names(
    wanted: Sequence[str], stored: Iterable[str], tied: Iterable[Iterable[str]] = ()
) -> Matched:
    """Find the names of a module in a checkpoint, by the first rule that finds all.

    If no rule finds all, the result has the names that the first two rules find.

    Parameters
    ----------
    wanted : sequence of str
        The module's names.
    stored : iterable of str
        The checkpoint's names.
    tied : iterable of iterable of str
        Groups of the module's names. The checkpoint may hold any one of a group.
    """
    stored = list(stored)
    groups = _groups(wanted, tied)
    first = _equal_or_printed(wanted, stored)
    for found in itertools.chain([first], _others(wanted, stored, groups)):
        if all(any(name in found.found for name in group) for group in groups):
            return found
    return first


def near_names(missing: Sequence[str], stored: Sequence[str]) -> tuple[str, str, int] | None:
    """An example of names that match by a rule that does not hold for all, for an error message.

    Returns
    -------
    tuple of str, str and int, or None
        The checkpoint's name, the module's name, and the number of such pairs; None if they are
        less than half.
    """
    asked = list(missing[:16])
    exported = [name for name in asked if name.startswith(_EXPORT_PREFIXES)]
    found = [_paired(_keys(exported, _exported), _keys(stored, _small))]
    found += [prefixes.of_most(asked) for prefixes in _kinds_of_prefixes(asked, stored)]
    best = max(found, key=len)
    if not best or 2 * len(best) < len(asked):
        return None
    name = next(name for name in asked if name in best)
    return best[name], name, len(best)


def _groups(wanted: Sequence[str], tied: Iterable[Iterable[str]]) -> list[list[str]]:
    """The wanted names in groups: of each group the checkpoint need hold only one."""
    group_of = {name: [name] for name in wanted}
    for names in tied:
        together: list[str] = []
        for name in names:
            together += [one for one in group_of.get(name, ()) if one not in together]
        group_of.update(dict.fromkeys(together, together))
    return list({id(group): group for group in group_of.values()}.values())


def _equal_or_printed(wanted: Sequence[str], stored: Sequence[str]) -> Matched:
    there = set(stored)
    equal = {name: name for name in wanted if name in there}
    rest = [name for name in wanted if name not in equal]
    printed = _paired(_keys(rest, _printed), _keys(there.difference(equal), _printed))
    rules = {**dict.fromkeys(equal, _EQUAL), **dict.fromkeys(printed, _PRINTED)}
    return Matched({**equal, **printed}, rules)


def _others(
    wanted: Sequence[str], stored: Sequence[str], groups: Sequence[Sequence[str]]
) -> Iterator[Matched]:
    """The names that each of the other rules finds."""
    with_prefix = [name for name in wanted if name.startswith(_EXPORT_PREFIXES)]
    if with_prefix:
        others = [name for name in wanted if not name.startswith(_EXPORT_PREFIXES)]
        plain = _equal_or_printed(others, stored)
        rest = set(stored).difference(plain.found.values())
        exported = _paired(_keys(with_prefix, _exported), _keys(rest, _small))
        rules = {**plain.rules, **dict.fromkeys(exported, _EXPORTED)}
        yield Matched({**plain.found, **exported}, rules)
    for prefixes in _kinds_of_prefixes(wanted, stored):
        found = prefixes.of_all(groups)
        yield Matched(found, dict.fromkeys(found, prefixes.rule))


_Keys: TypeAlias = dict[str, list[str]]  # from a key to the names that have it


def _keys(names: Iterable[str], key_of: Callable[[str], str]) -> _Keys:
    keys: _Keys = {}
    for name in names:
        keys.setdefault(key_of(name), []).append(name)
    return keys


def _printed(name: str) -> str:
    return re.sub("[^A-Za-z0-9_]", "_", name)


def _small(name: str) -> str:
    return _printed(name).lower()


def _exported(name: str) -> str:
    """A name of torch.export, without its prefix: in the form of :func:`_small`."""
    return _small(name[2:])


def _paired(ours: _Keys, theirs: _Keys) -> dict[str, str]:
    """Pairs of names with the same key, if no other name on either side has it."""
    return {
        names[0]: theirs[key][0]
        for key, names in ours.items()
        if len(names) == 1 and len(theirs.get(key, ())) == 1
    }


class _Prefixes:
    """Names that are equal but for a prefix of whole parts.

    Parameters
    ----------
    rule : str
        One of the :data:`RULES`.
    stored : sequence of str
        The checkpoint's names.
    key_of, key_of_stored : callable
        The keys that are compared: of a name of the module, and of one of the checkpoint.
    """

    def __init__(
        self,
        rule: str,
        stored: Sequence[str],
        key_of: Callable[[str], str],
        key_of_stored: Callable[[str], str],
    ):
        self.rule = rule
        self.is_in_file = rule == _FILE_PREFIX
        self.key_of = key_of
        self.stored = _keys(stored, key_of_stored)

    def before(self, name: str) -> Iterator[str]:
        """The prefixes by which a name differs from one of the checkpoint."""
        key = self.key_of(name)
        for other, (stored, *_) in self.stored.items():
            long, short = (other, key) if self.is_in_file else (key, other)
            length = len(long) - len(short)
            if length > 0 and long.endswith(short) and self._is_end(stored, long, length):
                yield long[:length]

    def _is_end(self, stored: str, long: str, length: int) -> bool:
        """Whether a prefix ends at the end of a part of the name."""
        if not self.is_in_file or "." not in stored:
            return long[length - 1] == "_"
        return stored[length - 1] in "./"

    def under(self, prefix: str, names: Iterable[str]) -> dict[str, str]:
        """The checkpoint's names that match after a prefix; empty if two match one."""
        found = {}
        for name in names:
            key = self.key_of(name)
            if not self.is_in_file and not key.startswith(prefix):
                continue
            other = f"{prefix}{key}" if self.is_in_file else key[len(prefix) :]
            if len(self.stored.get(other, ())) == 1:
                found[name] = self.stored[other][0]
        return found if len(set(found.values())) == len(found) else {}

    def of_all(self, groups: Sequence[Sequence[str]]) -> dict[str, str]:
        """The names that match after one prefix of all; empty if there are two such prefixes."""
        if not groups:
            return {}
        names = [name for group in groups for name in group]
        longest = max(groups, key=lambda group: min(map(len, group)))  # has the fewest
        possible = dict.fromkeys(prefix for name in longest for prefix in self.before(name))
        found = [self.under(prefix, names) for prefix in possible]
        complete = [
            one for one in found if all(any(name in one for name in group) for group in groups)
        ]
        return complete[0] if len(complete) == 1 else {}

    def of_most(self, names: Sequence[str]) -> dict[str, str]:
        """The names that match after the prefix that most of the names have."""
        count = Counter(prefix for name in names for prefix in self.before(name))
        return self.under(count.most_common(1)[0][0], names) if count else {}


def _kinds_of_prefixes(wanted: Sequence[str], stored: Sequence[str]) -> Iterator[_Prefixes]:
    for rule in (_FILE_PREFIX, _MODULE_PREFIX):
        yield _Prefixes(rule, stored, _printed, _printed)
    if all(name.startswith(_EXPORT_PREFIXES) for name in wanted):
        for rule in (_FILE_PREFIX, _MODULE_PREFIX):
            yield _Prefixes(rule, stored, _exported, _small)


def _some(names: Iterable[str], shown: int = 4) -> str:
    names = list(names)
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return f"{', '.join(map(repr, names[:shown]))}{more}"
