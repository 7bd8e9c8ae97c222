"""Which part of a folder of weights is a worker's.

Three ways are known, all without a word between the workers:

- **A folder each.** ``{rank}`` in a path is the worker's number, from 0.
- **Pre-sharded names**, as MLC-LLM writes them: of ``NAME_shard-2-of-4`` the second of four workers
  takes the weight ``NAME``; a name without such an end is for all.
- **Shard info**, TVM's (``src/runtime/extra/disco/loader.cc``): functions that cut a weight. There
  worker 0 reads it and scatters the parts, which takes a communication library that no CPU has.
  Here each worker reads the weight, cuts it, and keeps its part: that takes one whole weight, and
  what its functions make of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import tvm_ffi

from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.error import refuse
from ..checkpoint.manifest import parse_object
from ..checkpoint.reading import CheckpointReader
from ..checkpoint.stored_tensor import StoredTensor
from ..empty_tensor import empty
from ..shown import shown
from ..tensor_info import TensorInfo

__all__ = [
    "ShardFunction",
    "ShardInfo",
    "ShardedReader",
    "is_presharded",
    "numbered",
    "read_shard_info",
    "shard_info_of",
    "sharded",
    "shards_for",
]

_PRESHARDED = re.compile(r"(.+)_shard-([1-9][0-9]*)-of-([1-9][0-9]*)")


# -- pre-sharded names ----------------------------------------------------------------------------


def shards_for(source: Checkpoint, rank: int, workers: int) -> Checkpoint:
    """What of a source is for a worker, under the names of the whole weights.

    CheckpointError if it was sharded for another number of workers, or a shard is missing.
    """
    ours: list[StoredTensor] = []
    theirs: set[str] = set()
    for record in source.records.values():
        match = _PRESHARDED.fullmatch(record.name)
        if match is None:
            ours.append(record)
            continue
        name, number, of = match[1], int(match[2]), int(match[3])
        if of != workers or number > of:
            refuse(
                f"{shown(source.path)}, {shown(record.name)}",
                f"shard {number} of {of}",
                f"shards for {workers} workers",
                "shard the weights for as many workers as the session has",
            )
        theirs.add(name)
        if number == rank + 1:
            ours.append(dataclasses.replace(record, name=name))
    if not theirs:
        return source
    for name in sorted(theirs - {record.name for record in ours}):
        given = f"no shard {rank + 1} of {shown(name)}"
        refuse(shown(source.path), given, f"one for each of {workers} workers")
    chosen = Checkpoint.of(source.path, source.format, ours, source.files, source.provenance)
    return dataclasses.replace(chosen, fingerprint=f"{source.fingerprint}-{rank + 1}-of-{workers}")


def is_presharded(source: Checkpoint) -> bool:
    """Whether any name says that it is a shard."""
    return any(_PRESHARDED.fullmatch(name) for name in source.records)


# -- shard info -----------------------------------------------------------------------------------


class ShardFunction(NamedTuple):
    """A function that is called with a weight, the numbers, and a tensor for its result.

    Of the shape of the last function's result the first dimension counts the workers.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    numbers: tuple[int, ...]


ShardInfo = dict[str, list[ShardFunction]]  # by the names of the weights


def read_shard_info(text: str) -> ShardInfo:
    """Read ``{NAME: [[FUNCTION, [SHAPE, DTYPE], NUMBER, ...], ...]}``, or raise CheckpointError."""
    info: ShardInfo = {}
    for name, functions in parse_object(text.encode(), "shard info").items():
        where = f"shard info, {shown(name)}"
        if not isinstance(functions, list):
            refuse(where, f"{shown(functions)} given", "a list of functions")
        info[name] = [_function(one, where) for one in functions]
    return info


def _function(entry: Any, where: str) -> ShardFunction:
    try:
        name, (shape, dtype), *numbers = entry
        is_right = isinstance(name, str) and all(type(one) is int for one in [*shape, *numbers])
        tvm_ffi.dtype(dtype)
    except (TypeError, ValueError):
        is_right = False
    if not is_right:
        refuse(where, f"{shown(entry)} given", "[function, [shape, dtype], numbers...]")
    return ShardFunction(name, tuple(shape), dtype, tuple(numbers))


def sharded(source: Checkpoint, info: ShardInfo, workers: int) -> Checkpoint:
    """The source as a worker will have it: to choose from, not to read.

    CheckpointError if a weight is cut for another number of workers, or is not there.
    """
    records = dict(source.records)
    if source.provenance is not None and any(info.values()):
        refuse(
            shown(source.path),
            f"weights that {shown(source.provenance.transform)} has converted",
            "weights as they were stored, if they are to be cut",
            "load those that each worker has saved in a folder of its own",
        )
    for name, functions in info.items():
        if not functions:
            continue
        where = f"{shown(source.path)}, {shown(name)}"
        if name not in records:
            refuse(where, "shard info of a weight that is not there", "one that is")
        last = functions[-1]
        if not last.shape or last.shape[0] != workers:
            refuse(
                where,
                f"cut into {last.dtype}{list(last.shape)}",
                f"{workers} parts, one for each worker",
                "make shard info for as many workers as the session has",
            )
        records[name] = dataclasses.replace(records[name], shape=last.shape[1:], dtype=last.dtype)
    return dataclasses.replace(source, records=records)


class ShardedReader(CheckpointReader):
    """Reads whole weights, and keeps a worker's part of those that have shard functions.

    These are a module's, if there is one, or else global ones.
    """

    def __init__(
        self,
        source: Checkpoint,
        device: Any,
        checksum: bool,
        info: ShardInfo,
        module: Any,
        rank: int,
    ):
        super().__init__(source, device, checksum)
        self._rank = rank
        self._steps = {
            name: [(one, _found(one.name, module)) for one in functions]
            for name, functions in info.items()
            if functions
        }

    def read(self, name: str) -> Any:
        """The worker's part of a weight, which nothing else refers to."""
        weight = super().read(name)
        if name not in self._steps:
            return weight
        for function, call in self._steps[name]:
            result = empty(function.shape, function.dtype, self._device)
            call(weight, *function.numbers, result)
            weight = result
        shape = function.shape[1:]
        nbytes = TensorInfo("", shape, function.dtype).nbytes or 0
        part = empty(shape, function.dtype, self._device)
        weight._create_view(shape, function.dtype, self._rank * nbytes).copyto(part)
        self._device.sync()
        return part


def _found(name: str, module: Any) -> Any:
    if module is not None:
        with contextlib.suppress(AttributeError):  # what tvm-ffi raises where there is none
            return module.get_function(name, query_imports=True)
    found = tvm_ffi.get_global_func(name, allow_missing=True)
    if found is None:
        refuse(
            "shard info",
            f"the function {shown(name)}",
            "one of the module or one that is registered on the workers",
            "compile it into the module, or import what registers it on each worker",
        )
    return found


def shard_info_of(module: Any) -> str:
    """What a module says of its shards; ``{}`` if it says nothing."""
    name = "get_shard_info"  # as TVM's loader asks it
    return str(module[name]()) if module.implements_function(name) else "{}"


# -- names that are numbers -----------------------------------------------------------------------


def numbered(source: Checkpoint, names: Sequence[str]) -> Checkpoint:
    """Give weights that are called ``param_0``, ``param_1``, ... these names, in this order.

    TVM's loader knows no other names. A source that has other ones is returned as it is.
    """
    numbers = {f"param_{index}": name for index, name in enumerate(names)}
    if set(source.records) != set(numbers):
        return source
    records = [
        dataclasses.replace(record, name=numbers[record.name]) for record in source.records.values()
    ]
    named = Checkpoint.of(source.path, source.format, records, source.files, source.provenance)
    return dataclasses.replace(named, fingerprint=source.fingerprint)
