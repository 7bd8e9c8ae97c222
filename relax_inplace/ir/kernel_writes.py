"""What a kernel writes to."""

from __future__ import annotations

from typing import Any

import tvm_ffi
from tvm import ir, relax, tirx
from tvm.s_tir import SBlock

__all__ = ["written_parameters"]

_WRITE = 2  # of the access mask of tvm_access_ptr


def written_parameters(kernel: tirx.PrimFunc) -> list[int]:
    """The parameters that a kernel may write to.

    It stores to them, a block says that it writes them, or their address is handed out where no
    block says that they are only read.
    """
    params = kernel.params[:]
    written: set[relax.Var] = set()

    def visit_store(store: tirx.BufferStore) -> None:
        written.add(store.buffer)

    def walk(body: Any, only_read: frozenset[relax.Var]) -> None:
        def visit_block(block: SBlock) -> tvm_ffi.WalkResult:
            writes = {region.source for region in block.writes[:]}
            reads = {region.source for region in block.reads[:]}
            written.update(writes)
            for part in (block.init, block.body):
                if part is not None:
                    walk(part, frozenset((only_read | reads) - writes))
            return tvm_ffi.WalkResult.SKIP

        def visit_call(call: ir.Call) -> tvm_ffi.WalkResult:
            buffer = _pointed_to(call)
            if buffer is None:
                return tvm_ffi.WalkResult.ADVANCE
            may_write = True
            if call.op.same_as(_ACCESS_PTR):
                mask = call.args[4]
                may_write = not isinstance(mask, tirx.IntImm) or bool(int(mask) & _WRITE)
            if may_write and buffer not in only_read:
                written.add(buffer)
            return tvm_ffi.WalkResult.SKIP

        callbacks = (SBlock, visit_block), (ir.Call, visit_call), (tirx.BufferStore, visit_store)
        tvm_ffi.structural_walk(body, callbacks, order="pre")

    walk(kernel.body, frozenset())
    return [index for index, param in enumerate(params) if param in written]


_BUFFER_DATA = ir.Op.get("tirx.buffer_data")
_ADDRESS_OF = ir.Op.get("tirx.address_of")
_ACCESS_PTR = ir.Op.get("tirx.tvm_access_ptr")


def _pointed_to(call: ir.Call) -> relax.Var | None:
    """The buffer whose address an expression is."""
    op, args = call.op, call.args[:]
    if op.same_as(_BUFFER_DATA):
        return args[0]
    if op.same_as(_ADDRESS_OF) and type(args[0]) is ir.TensorLoad:
        return args[0].source
    if op.same_as(_ACCESS_PTR) and type(args[1]) is ir.Call:
        return _pointed_to(args[1])
    return None
