"""What a nest of loops reads and writes, in sectors of a GPU's memory.

Definition: a *sector* is 32 bytes, the least that the memory is read and written in. For some
outputs that are computed together, a kernel *moves* the sectors that its reads and writes touch,
and *needs* the bytes that it reads and writes. Both are counted at a few places, from the addresses
there. They are to choose a schedule with, and prove nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tvm_ffi
from tvm import ir, relax, tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from .te_block import TEBlock, loads_in

__all__ = [
    "PARTS",
    "Nest",
    "Traffic",
    "Unknown",
    "bytes_of",
    "flat_runs",
    "nest_of",
    "number_of",
    "traffic_of",
    "value_of",
]

PARTS = (0, 0.3, 0.5, 0.9)  # of the output: where it is looked at

_SECTOR = 32  # bytes
_SIZE = 4096  # stands for a symbolic size
_IF = ir.Op.get("prim.if_then_else")


@dataclasses.dataclass
class Nest:
    """A block that writes each element of one buffer, and where it is in the schedule."""

    place: SBlockRV
    block: TEBlock
    loads_and_conditions: list[tuple[ir.TensorLoad, tuple[ir.Expr, ...]]]

    @property
    def loads(self) -> list[ir.TensorLoad]:
        """All that is read."""
        return [load for load, _ in self.loads_and_conditions]

    @property
    def output(self) -> relax.Var:
        """The buffer that is written."""
        return self.block.buffer

    @property
    def inputs(self) -> list[relax.Var]:
        """The buffers that are read, each once."""
        return list(dict.fromkeys(load.source for load in self.loads))

    @property
    def sizes(self) -> list[int]:
        """Of the axes; a symbolic one has some size."""
        return [number_of(extent) for extent in self.block.box.values()]

    def size_of(self, index: relax.Var) -> int:
        """Of the axis that an index is of."""
        return number_of(self.block.box[index])

    @property
    def widest(self) -> int:
        """Bytes of the largest element."""
        return max(bytes_of(buffer) for buffer in (self.output, *self.inputs))

    def loops(self, schedule: Schedule) -> list[LoopRV]:
        """One for each index, in the order of the output's axes."""
        realize = self.block.realize
        axes = [axis.var for axis in realize.block.iter_vars[:]]
        names = dict(zip(axes, realize.iter_values[:], strict=True))
        loops = {schedule.get(loop).loop_var: loop for loop in schedule.get_loops(self.place)}
        return [loops[names[index]] for index in self.block.box]


def nest_of(place: SBlockRV, block: TEBlock) -> Nest | None:
    """None if it reads where its data says, or has no elements that are moved in bytes."""
    nest = Nest(place, block, list(_conditional_loads(block.value, ())))
    if any(loads_in(index) for load in nest.loads for index in load.indices[:]):
        return None
    buffers = (nest.output, *nest.inputs)
    if (
        not block.box
        or 0 in nest.sizes
        or any(len(b.ty.strides) or not bytes_of(b) for b in buffers)
    ):
        return None
    return nest


def _conditional_loads(
    value: ir.Expr, conditions: tuple[ir.Expr, ...]
) -> Iterator[tuple[ir.TensorLoad, tuple[ir.Expr, ...]]]:
    """The loads in an expression, each with the conditions under which its value is taken."""
    found = []

    def visit(expr: ir.Expr) -> tvm_ffi.WalkResult:
        if isinstance(expr, ir.TensorLoad):
            found.append((expr, conditions))
        elif isinstance(expr, tirx.Select):
            take(expr.condition, expr.true_value, expr.false_value)
            return tvm_ffi.WalkResult.SKIP
        elif isinstance(expr, ir.Call) and expr.op.same_as(_IF):
            take(*expr.args[:])
            return tvm_ffi.WalkResult.SKIP
        return tvm_ffi.WalkResult.ADVANCE

    def take(condition: ir.Expr, if_true: ir.Expr, if_false: ir.Expr) -> None:
        found.extend(_conditional_loads(condition, conditions))
        by_index = not loads_in(condition)
        for side, holds in ((if_true, condition), (if_false, tirx.Not(condition))):
            found.extend(_conditional_loads(side, (*conditions, holds) if by_index else conditions))

    tvm_ffi.structural_walk(value, (ir.Expr, visit), order="pre")
    yield from found


def bytes_of(buffer: relax.Var) -> int:
    """Of an element; 0 if there are no vectors of it."""
    # Of bool, codegen_cuda.cc makes vectors of 16 bits an element.
    dtype = tvm_ffi.dtype(name := str(buffer.ty.dtype))
    return 0 if name == "bool" or dtype.lanes != 1 or dtype.bits % 8 else dtype.bits // 8


class Unknown(Exception):  # noqa: N818  a reason to choose another schedule
    """An address that is not computed here."""


_BINARY: dict[type, Any] = {
    tirx.Add: np.add,
    tirx.Sub: np.subtract,
    tirx.Mul: np.multiply,
    tirx.FloorDiv: np.floor_divide,
    tirx.FloorMod: np.mod,
    tirx.Min: np.minimum,
    tirx.Max: np.maximum,
    tirx.LT: np.less,
    tirx.LE: np.less_equal,
    tirx.GT: np.greater,
    tirx.GE: np.greater_equal,
    tirx.EQ: np.equal,
    tirx.NE: np.not_equal,
    tirx.And: np.logical_and,
    tirx.Or: np.logical_or,
}


def value_of(expr: ir.Expr, at: Mapping[relax.Var, Any]) -> Any:
    """An expression of indices at some points: a number, or an array of the points' shape.

    Raises
    ------
    Unknown
        It has other operations than those of index arithmetic.
    """
    if isinstance(expr, tirx.IntImm):
        return int(expr)
    if isinstance(expr, relax.Var):
        return at.get(expr, _SIZE)
    if isinstance(expr, tirx.Not):
        return np.logical_not(value_of(expr.a, at))
    if isinstance(expr, tirx.Cast):
        return value_of(expr.value, at)
    if type(expr) in _BINARY:
        with np.errstate(divide="ignore"):
            return _BINARY[type(expr)](value_of(expr.a, at), value_of(expr.b, at))
    raise Unknown


def number_of(size: ir.Expr) -> int:
    """A size; some number for a symbolic one."""
    return int(value_of(size, {}))


def _addresses(buffer: Any, indices: Sequence[ir.Expr], at: Mapping[relax.Var, Any]) -> Any:
    """In bytes, of the points that are given as an array for each index."""
    address: Any = 0
    for index, size in zip(indices, buffer.ty.shape, strict=True):
        address = address * number_of(size) + value_of(index, at)
    shape = next(iter(at.values())).shape
    return np.broadcast_to(np.asarray(address, "int64") * bytes_of(buffer), shape)


@dataclasses.dataclass
class Traffic:
    """What one thread block moves and needs, in bytes."""

    moved: int = 0
    needed: int = 0

    def add(self, addresses: Any, width: int) -> None:
        """Add the accesses to one buffer."""
        self.needed += len(np.unique(addresses)) * width
        self.moved += len(np.unique(addresses // _SECTOR)) * _SECTOR

    @property
    def wasted(self) -> int:
        """Bytes that are moved in vain."""
        return self.moved - self.needed

    @property
    def excess(self) -> float:
        """Bytes moved for each that is needed."""
        return self.moved / max(self.needed, 1)


def traffic_of(
    nest: Nest, runs: Sequence[Mapping[relax.Var, Any]]
) -> tuple[Traffic, dict[relax.Var, Traffic]]:
    """Of blocks that compute some runs of points: of all, and of each buffer that is read."""
    total, reads = Traffic(), {buffer: Traffic() for buffer in nest.inputs}
    for at in runs:
        total.add(_addresses(nest.output, list(nest.block.box), at), bytes_of(nest.output))
        for buffer, traffic in reads.items():
            found = [
                _addresses(buffer, load.indices, at)[_where(conditions, at)]
                for load, conditions in nest.loads_and_conditions
                if load.source.same_as(buffer)
            ]
            traffic.add(np.concatenate([each.ravel() for each in found]), bytes_of(buffer))
    for traffic in reads.values():
        total.moved += traffic.moved
        total.needed += traffic.needed
    return total, reads


def _points(nest: Nest, places: Any) -> dict[relax.Var, Any]:
    """Indices of the elements at given places of the output."""
    return dict(zip(nest.block.box, np.unravel_index(places, nest.sizes), strict=True))


def _where(conditions: Sequence[ir.Expr], at: Mapping[relax.Var, Any]) -> Any:
    """Which of some points a load is done at."""
    holds: Any = True
    for condition in conditions:
        holds = holds & (np.asarray(value_of(condition, at)) != 0)
    return np.broadcast_to(holds, next(iter(at.values())).shape)


def flat_runs(nest: Nest, length: int) -> list[dict[relax.Var, Any]]:
    """The indices of some runs of so many consecutive outputs."""
    total = math.prod(nest.sizes)
    starts = {int(total * part) // length * length for part in PARTS}
    return [_points(nest, np.arange(s, min(s + length, total))) for s in sorted(starts)]
