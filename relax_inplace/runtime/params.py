"""Params: a tuple of weights with names, and one owner."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import tvm_ffi

from ..weight_names import made_from, unused_name
from .provenance import Provenance
from .slots import leaf_at, leaves_of
from .tensor_info import TensorInfo

if TYPE_CHECKING:
    from .checkpoint.reading import UnreadWeights
    from .report import Report

__all__ = ["Params"]


class Params(Sequence):
    """The weights of a model: a tuple of tensors, which may be nested, and their names.

    A compiled function takes it as a tuple. It is a sequence of its tensors, counted through nested
    tuples: those of ``((a, b), c)`` are 0, 1 and 2. It is also a mapping by name: ``params["w"]``,
    ``"w" in params``, ``get``, ``keys``, ``values``, ``items``, ``dict(params)``, ``**params``.

    Weights that :func:`load_params` has left in their files are read when one of them is asked for.

    Parameters
    ----------
    tensors : tvm_ffi.Array or iterable
        Tensors, and sequences of them. An ``ffi.Array`` is kept as it is, not copied.
    names : iterable of str, optional
        A name for each tensor. By default their slots, such as ``3``, and ``0.3`` in a nested
        tuple.
    provenance : Provenance, optional
        The mark of converted weights.
    source : str
        The fingerprint of the files that the weights were loaded from.

    Attributes
    ----------
    names : tuple of str
        The names of the tensors.
    provenance : Provenance or None
        The mark of converted weights; None for weights as they were stored.
    source : str
        The fingerprint of the files; empty if the weights were not loaded.
    ignored : tuple of str
        The names of weights in the files that were not read.
    report : Report or None
        The report of the last conversion.
    partial : str or None
        The name of a transform that failed and left some of the weights converted. Such weights
        have no layout.

    Raises
    ------
    ValueError
        There are more or fewer names than tensors, or a name is given twice.
    """

    def __init__(
        self,
        tensors: Any,
        names: Iterable[str] | None = None,
        *,
        provenance: Provenance | None = None,
        source: str = "",
    ):
        self._converted_by: str | None = None  # a thread
        self._unread: UnreadWeights | None = None
        self._tuple = tensors if isinstance(tensors, tvm_ffi.Array) else _array(tensors)
        self.provenance = provenance
        self.source = source
        self.ignored: tuple[str, ...] = ()
        self._read_as: dict[str, str] = {}  # from a module's name of a weight to the name here
        self.report: Report | None = None
        self.partial: str | None = None
        self._name(names)

    def _name(self, names: Iterable[str] | None) -> None:
        slots = [slot for slot, _ in leaves_of(self._tuple)]
        self.names = tuple(slots if names is None else names)
        if len(self.names) != len(slots):
            raise ValueError(
                f"Params: {len(self.names)} names given for {len(slots)} tensors; expected one each"
            )
        self._slots_by_name = dict(zip(self.names, slots, strict=True))
        if len(self._slots_by_name) < len(slots):
            twice = [name for name, count in Counter(self.names).items() if count > 1]
            raise ValueError(f"Params: names given twice: {', '.join(twice)}")

    @property
    def fields(self) -> tvm_ffi.Array:
        """The tuple itself, for a compiled function.

        Raises
        ------
        RuntimeError
            The weights are being converted, by another thread.
        CheckpointError
            A file of a weight that was not read yet has changed, or cannot be read.
        """
        self._require_rest()
        if self._unread is not None:
            self._unread.read(self._tuple, check=self._require_rest)
        return self._tuple

    def _require_rest(self) -> None:
        if self._converted_by is not None:
            raise RuntimeError(
                f"these weights are being converted by thread `{self._converted_by}`; "
                "wait for transform_params to return"
            )

    def __tvm_ffi_object__(self) -> tvm_ffi.Array:
        """The argument of a compiled function, by tvm-ffi's protocol."""
        return self.fields

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, key: Any) -> Any:
        """A tensor, by name or index; None where a failure has lost it."""
        fields = self.fields
        if isinstance(key, str):
            return leaf_at(fields, self._slots_by_name[key])
        slots = self._slots()
        if isinstance(key, slice):
            return [leaf_at(fields, slot) for slot in slots[key]]
        return leaf_at(fields, slots[key])

    def __iter__(self) -> Iterator[Any]:
        """The tensors, as of a sequence."""
        return iter(self.values())

    def __contains__(self, name: object) -> bool:
        """Whether there is a weight of this name."""
        return name in self._slots_by_name

    def keys(self) -> tuple[str, ...]:
        """The names."""
        return self.names

    def values(self) -> list[Any]:
        """The tensors."""
        return [value for _, value in leaves_of(self.fields)]

    def items(self) -> list[tuple[str, Any]]:
        """Names and tensors."""
        return list(zip(self.names, self, strict=True))

    def get(self, name: str, default: Any = None) -> Any:
        """A tensor, or the default."""
        slot = self._slots_by_name.get(name)
        return default if slot is None else leaf_at(self.fields, slot)

    def _fields(self) -> tvm_ffi.Array:
        """The tuple, for the conversion."""
        return self._tuple

    def _slots(self) -> list[str]:
        return list(self._slots_by_name.values())

    def _leaves(self) -> list[Any]:
        return [value for _, value in leaves_of(self._tuple)]

    def _types(self) -> list[TensorInfo]:
        return _types(self.names, self._leaves())

    def _names_of(self, types: Iterable[TensorInfo]) -> list[str]:
        """The names that the weights of a module, or those made from them, get here."""
        taken: set[str] = set()
        return [unused_name(made_from(one.name, self._read_as), taken) for one in types]

    def _hold(self, fields: tvm_ffi.Array) -> None:
        """Hold another tuple, which is complete, without names."""
        self._tuple = fields
        self._unread = None
        self._name(None)

    def _become(self, names: Iterable[str] | None, provenance: Provenance | None) -> None:
        """Set the names and the mark: the weights have one layout."""
        self._name(names)
        self.provenance = provenance
        self.partial = None

    @property
    def types(self) -> list[TensorInfo]:
        """The types of the tensors, without those that are lost."""
        self._require_rest()
        return self._types()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(one.nbytes or 0 for one in self.types)

    def __repr__(self) -> str:
        state = "converted" if self.provenance else "as stored"
        if self.partial is not None:
            state = f"left in part converted by `{self.partial}`"
        return f"<Params: {len(self)} weights, {state}>"


def _types(names: Iterable[str], values: Iterable[Any]) -> list[TensorInfo]:
    return [
        TensorInfo(name, tuple(map(int, value.shape)), str(value.dtype))
        for name, value in zip(names, values, strict=True)
        if isinstance(value, tvm_ffi.Tensor)
    ]


def _array(tensors: Iterable[Any]) -> tvm_ffi.Array:
    return tvm_ffi.Array([_array(one) if type(one) in (list, tuple) else one for one in tensors])
