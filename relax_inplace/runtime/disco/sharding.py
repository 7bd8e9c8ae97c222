"""Which part of a checkpoint is a worker's, without a word between the workers.

- **Shards with names**, as they are written beforehand. ``NAME_shard-K`` is worker K's ``NAME``, as
  MLC-LLM has it (``python/mlc_llm/support/preshard.py``); of ``NAME_shard-K-of-N``, as TVM has it
  (``src/runtime/extra/disco/loader.cc``), K counts from 1. Other names are for all.
- **Whole weights that a module cuts.** MLC-LLM's says in its metadata by which functions
  (``preprocs``). Its loader reads on worker 0 and scatters the parts, which takes a communication
  library that no CPU has. Here each worker reads the weight, cuts it, and keeps its part: that
  takes one whole weight, and what its functions make of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Callable
from typing import Any

import tvm_ffi

from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.error import refuse
from ..checkpoint.stored_tensor import StoredTensor
from ..empty_tensor import empty
from ..shown import shown
from ..tensor_info import TensorInfo
from ..transform import Transform

__all__ = ["part_of"]

_SHARD = re.compile(r"(.+)_shard-([0-9]+)(?:-of-([0-9]+))?")


def part_of(source: Checkpoint, rank: int, workers: int, transform: Transform | None) -> Checkpoint:
    """What of a source is for a worker, under the names of the whole weights.

    CheckpointError if it was sharded for another number of workers.
    """
    shards = {name: match for name in source.records if (match := _SHARD.fullmatch(name))}
    if shards:
        records = _shard_of_each(source, shards, rank, workers)
    elif transform is not None and source.provenance is None:
        records = _part_of_each(source, transform.vm.module, rank, workers)
    else:
        return source
    if records == list(source.records.values()):
        return source
    part = Checkpoint.of(source.path, source.format, records, source.files, source.provenance)
    return dataclasses.replace(part, fingerprint=f"{source.fingerprint}-{rank + 1}-of-{workers}")


def _shard_of_each(
    source: Checkpoint, shards: dict[str, re.Match[str]], rank: int, workers: int
) -> list[StoredTensor]:
    numbers: dict[str, set[int]] = {}
    ours = []
    for record in source.records.values():
        if match := shards.get(record.name):
            number = int(match[2]) - (match[3] is not None)
            numbers.setdefault(match[1], set()).add(number)
            record = dataclasses.replace(record, name=match[1])
            if number != rank:
                continue
        ours.append(record)
    for name, found in numbers.items():
        if found != set(range(workers)):
            refuse(
                f"{shown(source.path)}, {shown(name)}",
                f"shards {', '.join(map(str, sorted(found)))}, counted from 0",
                f"one for each of {workers} workers",
                "shard the weights for as many workers as the session has",
            )
    return ours


def _part_of_each(source: Checkpoint, module: Any, rank: int, workers: int) -> list[StoredTensor]:
    preprocs: dict[str, Any] = {}
    # Another "_metadata" is not MLC-LLM's.
    with contextlib.suppress(AttributeError, KeyError, TypeError, ValueError):
        described = json.loads(module["_metadata"]())["params"]
        preprocs = {one["name"]: one["preprocs"] for one in described if one.get("preprocs")}
    cuts: dict[str, _Cut] = {}  # one for weights that are cut alike: they may be tied
    ours = []
    for record in source.records.values():
        if record.name in preprocs:
            try:
                text = json.dumps(preprocs[record.name])
                cut = cuts.setdefault(text, _Cut(preprocs[record.name], module, rank))
            except (KeyError, TypeError, ValueError):
                cut = None
            if cut is None or cut.parts != workers:
                refuse(
                    f"{shown(source.path)}, {shown(record.name)}",
                    f"preprocs {shown(preprocs[record.name])}",
                    f"functions of which the last makes {workers} parts, one for each worker",
                    "compile the model for as many workers as the session has, and import what "
                    "registers its functions on each",
                )
            record = dataclasses.replace(
                record, shape=cut.shape, dtype=cut.dtype, whole=record, cut=cut
            )
        ours.append(record)
    return ours


class _Cut:
    """Makes a worker's part of a weight."""

    def __init__(self, preprocs: list[dict[str, Any]], module: Any, rank: int):
        self._steps = [
            (
                _function(one["func_name"], module),
                tuple(map(int, one["out_shape"])),
                one["out_dtype"],
            )
            for one in preprocs
        ]
        _, (self.parts, *shape), self.dtype = self._steps[-1]
        self.shape = tuple(shape)
        self._offset = rank * (TensorInfo("", self.shape, self.dtype).nbytes or 0)

    def __call__(self, weight: Any) -> Any:
        for function, shape, dtype in self._steps:
            made = empty(shape, dtype, weight.device)
            function(weight, made)
            weight = made
        part = empty(self.shape, self.dtype, weight.device)
        weight._create_view(self.shape, self.dtype, self._offset).copyto(part)
        weight.device.sync()
        return part


def _function(name: str, module: Any) -> Callable[..., Any]:
    """One of the module, or one that is registered; ValueError if there is none."""
    with contextlib.suppress(AttributeError):  # what tvm-ffi raises where there is none
        return module.get_function(name, query_imports=True)
    return tvm_ffi.get_global_func(name)
