"""What a kernel reads for a slice of its result."""

from __future__ import annotations

import tvm_ffi
from tvm import ir, relax, tirx
from tvm.s_tir import SBlock

__all__ = ["operand_axes"]


def operand_axes(kernel: tirx.PrimFunc, axis: int) -> dict[int, int | None] | None:
    """For each parameter that is read the axis sliced with the result's, None where it is whole.

    None if the kernel is not independent along the axis.
    """
    params = kernel.params[:]
    blocks: list[SBlock] = []
    tvm_ffi.structural_walk(kernel.body, (SBlock, lambda block: _append(blocks, block)))
    axes: dict[relax.Var, int | None] = {params[-1]: axis}
    for block in reversed(blocks):
        if block.name_hint == "root":
            continue
        written = block.writes[:]
        if len(written) != 1:
            return None
        target = written[0].source
        if axes.get(target) is None:
            if target in axes:
                continue  # computed as a whole
            return None  # read by no later block
        spatial = _index(written[0], axes[target])
        if spatial is None or not _is_index_only(block, spatial):
            return None
        for read in block.reads[:]:
            if read.source.same_as(target):
                continue
            found = _axis_of(read, spatial)
            if found == -1:
                return None
            if axes.setdefault(read.source, found) != found:
                return None
    inner = [source for source in axes if source not in params]
    if any(axes[source] is None for source in inner):
        return None  # a slice would be computed from an incomplete whole
    return {index: axes[param] for index, param in enumerate(params[:-1]) if param in axes}


def _append(blocks: list[SBlock], block: SBlock) -> None:
    blocks.append(block)


def _index(region: ir.TensorRegion, axis: int | None) -> relax.Var | None:
    """The variable that is the index along an axis, if one is."""
    assert axis is not None
    index = region.region[axis]
    is_one = isinstance(index.extent, tirx.IntImm) and int(index.extent) == 1
    return index.min if is_one and isinstance(index.min, relax.Var) else None


def _axis_of(region: ir.TensorRegion, spatial: relax.Var) -> int | None:
    """The axis whose index a variable is; None if it is in no index; -1 if in one otherwise."""
    found = None
    for axis, index in enumerate(region.region[:]):
        if any(var.same_as(spatial) for var in tirx.analysis.undefined_vars(index.min)):
            if found is not None or not index.min.same_as(spatial):
                return -1
            if not (isinstance(index.extent, tirx.IntImm) and int(index.extent) == 1):
                return -1
            found = axis
        if any(var.same_as(spatial) for var in tirx.analysis.undefined_vars(index.extent)):
            return -1
    return found


def _is_index_only(block: SBlock, spatial: relax.Var) -> bool:
    """Whether a variable is used as an index, and for nothing else."""
    uses: list[relax.Var] = []
    indices: list[relax.Var] = []

    def visit_var(var: relax.Var) -> None:
        if var.same_as(spatial):
            uses.append(var)

    def visit_access(access: tirx.BufferStore | ir.TensorLoad) -> None:
        indices.extend(index for index in access.indices[:] if index.same_as(spatial))

    for part in (block.body, block.init):
        if part is not None:
            tvm_ffi.structural_walk(part, (relax.Var, visit_var))
            tvm_ffi.structural_walk(part, ((tirx.BufferStore, ir.TensorLoad), visit_access))
    return len(uses) == len(indices)
