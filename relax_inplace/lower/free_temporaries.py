"""FreeTemporaries: the memory of a tensor that is dead must not stay with the function.

Definition: each tensor of a function that updates a tuple has a storage of its own, which is freed
when the tensor is. "Freed" is resident memory given back, or taken by an allocation of that size.

Two of TVM's ways stand against it:

- ``StaticPlanBlockMemory`` (src/relax/transform/static_plan_block_memory.cc) lets tensors share a
  storage, up to 16 times as large as one of them needs (``match_range_``), which then stays from
  one weight to the next. Hence: a storage that serves several tensors becomes one for each.
  Branches share one that only the first allocates, and the second would crash: no longer.
- A freed storage goes into a pool, by its size in pages, and stays resident
  (src/runtime/memory/pooled_allocator.h). Hence: the pool is emptied before an allocation that it
  does not surely serve, if anything that the function freed may lie in it; and at the end.

So resident memory never exceeds the peak of live memory, and what the pool held at entry: it grows
only where the pool does not serve an allocation, and there the pool is empty. A function whose
tensors all stay in the tuple, one kernel for each weight, frees nothing and empties nothing.

What an update replaces is taken for the caller's own, which is not in the pool, unless the function
has put it there itself. A weight that another TVM function made is pooled, and stays resident.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import tvm
from tvm import ir, relax, tirx

from ..ir.binding_rewriter import rewrite_bindings, with_blocks, with_body
from ..ir.updates import bindings_of, functions_that_update
from ..op import BUILTIN, VOID, is_statement
from .donation import ALLOC_STORAGE, ALLOC_TENSOR, KILL, VIEWS

__all__ = ["FreeTemporaries", "free_temporaries", "with_own_storages"]

_CLEAR = "vm.builtin.memory_manager.clear"
_PAGE = 4096  # PooledAllocator::kDefaultPageSize
# Of DonateStorage: they allocate outside the pool.
_DONATION = ("vm.builtin.donate_storage", "vm.builtin.shrink_storage", "vm.builtin.release_storage")


def FreeTemporaries() -> tvm.transform.Pass:  # noqa: N802  named as TVM names passes
    """Create the pass that gives each tensor a storage of its own, and empties TVM's pool of them.

    For a lowered module; touches only functions that update a tuple, and their callers. It runs
    by itself when a module that holds updates is compiled.

    Returns
    -------
    tvm.transform.Pass
    """

    @tvm.transform.module_pass(opt_level=0, name="FreeTemporaries")
    def run(mod: ir.IRModule, _context: tvm.transform.PassContext) -> ir.IRModule:
        return free_temporaries(mod, functions_that_update(mod))

    return run


def free_temporaries(mod: ir.IRModule, updating: set[ir.GlobalVar]) -> ir.IRModule:
    """What the pass does."""
    if not updating:
        return mod
    kernels = {
        gvar for gvar, function in mod.functions_items() if isinstance(function, tirx.PrimFunc)
    }
    after = with_own_storages(mod, updating)
    for gvar in updating:
        after[gvar] = _with_pool_emptied(after[gvar], kernels)
    return after


# -- a storage for each tensor --------------------------------------------------------------


def with_own_storages(mod: ir.IRModule, updating: set[ir.GlobalVar]) -> ir.IRModule:
    """The module, with a storage for each tensor of the functions that update."""
    after = mod.clone()
    for gvar in updating:
        after[gvar] = _with_own_storages(mod[gvar])
    return after


def _with_own_storages(function: relax.Function) -> relax.Function:
    alloc_storage, alloc_tensor = ir.Op.get(ALLOC_STORAGE), ir.Op.get(ALLOC_TENSOR)
    storages: set[relax.Var] = set()
    tensors: Counter[relax.Var] = Counter()  # by their storage
    for binding in bindings_of(function):
        value = binding.value
        if isinstance(value, ir.Call):
            if value.op.same_as(alloc_storage):
                storages.add(binding.var)
            elif value.op.same_as(alloc_tensor):
                tensors[value.args[0]] += 1
    shared = {storage for storage in storages if tensors[storage] > 1}
    if not shared:
        return function
    values = {binding.var: binding.value for binding in bindings_of(function)}
    kill = ir.Op.get(KILL)

    def rewrite(binding: relax.Binding) -> list[relax.Binding]:
        value = binding.value
        if binding.var in shared:
            return []
        if isinstance(value, ir.Call):
            if value.op.same_as(kill) and value.args[0] in shared:
                return []
            if value.op.same_as(alloc_tensor) and value.args[0] in shared:
                return _allocated_alone(binding, values)
        return [binding]

    return rewrite_bindings(function, lambda _sequence: rewrite)


def _allocated_alone(
    binding: relax.Binding, values: dict[relax.Var, relax.Expr]
) -> list[relax.Binding]:
    """The tensor with a storage that it alone holds."""
    tensor = binding.value
    storage, _offset, shape, dtype, device = tensor.args[:]
    size, storage_device, hint, scope = values[storage].args[:]
    bindings = []
    lengths = _constants(shape)
    if lengths is not None and scope.value == "global":
        size = relax.ShapeExpr([math.prod(lengths) * dtype.value.itemsize])
    elif isinstance(size, relax.Var):  # read from the shape heap: the variable may be out of scope
        made = relax.Var(size.name, size.ty)
        bindings.append(relax.VarBinding(made, values[size]))
        size = made
    own = relax.Var(storage.name, storage.ty)
    allocated = relax.Call(
        values[storage].op, [size, storage_device, hint, scope], ret_ty=values[storage].ty
    )
    operands = [own, relax.prim_value(0), shape, dtype, device]
    bindings += [
        relax.VarBinding(own, allocated),
        relax.VarBinding(binding.var, relax.Call(tensor.op, operands, ret_ty=tensor.ty)),
        relax.VarBinding(relax.Var("_", VOID), relax.Call(ir.Op.get(KILL), [own], ret_ty=VOID)),
    ]
    return bindings


def _constants(shape: relax.Expr) -> list[int] | None:
    """The lengths of a shape, None unless all are known."""
    if not isinstance(shape, relax.ShapeExpr):
        return None
    lengths = shape.values[:]
    if all(isinstance(length, tirx.IntImm) for length in lengths):
        return [length.value for length in lengths]
    return None


# -- an empty pool where it would grow ------------------------------------------------------


def _with_pool_emptied(function: relax.Function, kernels: set[ir.GlobalVar]) -> relax.Function:
    pool = _Pool(kernels)
    pool.visit(function.body)
    if pool.cleared_before:

        def rewrite(binding: relax.Binding) -> list[relax.Binding]:
            return [_clear(), binding] if binding.var in pool.cleared_before else [binding]

        function = rewrite_bindings(function, lambda _sequence: rewrite)
    if pool.holds_any():
        body = function.body
        *blocks, last = body.blocks[:]  # all of lowered code is in plain blocks
        blocks.append(relax.BindingBlock([*last.bindings[:], _clear()]))
        function = with_body(function, with_blocks(body, blocks))
    return function


def _clear() -> relax.Binding:
    call = relax.Call(relax.ExternFunc(_CLEAR), [], None, [VOID], ret_ty=VOID)
    return relax.VarBinding(relax.Var("_", VOID), call)


_Size = tuple[int, int, str]  # by which the pool finds a storage: pages, device, scope
_Place = tuple[Any, ...]  # a slot: the variable of the outermost tuple, and indices


@dataclasses.dataclass(slots=True, eq=False)
class _Memory:
    """What a register holds: a storage, or what a call has returned."""

    size: _Size | None  # None: not known, or others may hold it
    holders: int = 0  # registers, and slots of updated tuples


class _Pool:
    """What a function has freed and may lie idle in the pool, from one binding to the next."""

    def __init__(self, kernels: set[ir.GlobalVar]) -> None:
        self.cleared_before: set[relax.Var] = set()
        self._kernels = kernels
        self._surely: Counter[_Size] = Counter()
        self._perhaps = False
        self._held: dict[relax.Var, list[_Memory]] = {}
        self._places: dict[relax.Var, _Place] = {}
        self._slots: dict[_Place, list[_Memory]] = {}
        self._on_op = {
            ir.Op.get(ALLOC_STORAGE): self._alloc_storage,
            ir.Op.get(ALLOC_TENSOR): self._view,
            ir.Op.get(KILL): self._kill,
        }

    def holds_any(self) -> bool:
        return self._perhaps or self._surely.total() > 0

    def visit(self, sequence: relax.SeqExpr) -> None:
        for block in sequence.blocks[:]:
            for binding in block.bindings[:]:
                var, value = binding.var, binding.value
                if isinstance(value, ir.Call):
                    self._call(var, value)
                elif isinstance(value, relax.TupleGetItem):
                    self._read(var, value.tuple_value, value.index)
                elif isinstance(value, relax.Var):
                    self._places[var] = self._place(value)
                    self._hold(var, self._held.get(value, ()))
                elif isinstance(value, relax.Tuple):
                    for field in value.fields[:]:
                        self._hold(var, self._held.get(field, ()))
                elif isinstance(value, relax.If):
                    self._branches(value)
                    self._hold(var, [_Memory(None)])

    def _branches(self, branches: relax.If) -> None:
        """Of what is idle at entry of a branch, and after both, no size is sure."""
        before, after = self.holds_any(), False
        for branch in (branches.true_branch, branches.false_branch):
            self._forget(before)
            self.visit(branch)
            after = after or self.holds_any()
        self._forget(after)

    def _forget(self, any_left: bool) -> None:
        self._surely.clear()
        self._perhaps = any_left

    def _call(self, var: relax.Var, call: relax.Call) -> None:
        op = call.op
        if isinstance(op, (ir.GlobalVar, relax.Var)):  # a variable: a function that is a parameter
            if op in self._kernels:  # holds nothing when it returns
                return
            self._grow(var, None)
            self._perhaps = True  # the callee's temporaries, and what it has replaced
            for operand in call.args[:]:
                if isinstance(operand.ty, relax.TupleType):
                    self._hold(operand, [_Memory(None)])
        elif isinstance(op, ir.Op):
            if op in self._on_op:
                self._on_op[op](var, call)
                return
        elif op.global_symbol == BUILTIN:
            self._update(var, call)
            return
        elif op.global_symbol in VIEWS:
            self._view(var, call)
            return
        elif op.global_symbol in _DONATION:
            return
        if self._held:
            for used in relax.analysis.free_vars(call)[:]:
                for memory in self._held.get(used, ()):
                    memory.size = None
        if not is_statement(var):
            self._hold(var, [_Memory(None)])

    def _alloc_storage(self, var: relax.Var, call: relax.Call) -> None:
        shape, device, _hint, scope = call.args[:]
        lengths = _constants(shape)
        pages = None if lengths is None else -(-math.prod(lengths) // _PAGE)
        size = None if pages is None else (pages, device.value, scope.value)
        self._grow(var, size)
        self._hold(var, [_Memory(size)])

    def _grow(self, var: relax.Var, size: _Size | None) -> None:
        """Memory of this size is asked for by the binding of a variable."""
        if size is not None and self._surely[size] > 0:
            self._surely[size] -= 1
        elif self.holds_any():
            self.cleared_before.add(var)
            self._forget(False)

    def _view(self, var: relax.Var, call: relax.Call) -> None:
        self._hold(var, self._held.get(call.args[0], ()))

    def _read(self, var: relax.Var, source: relax.Var, index: int) -> None:
        place = self._places[var] = (*self._place(source), index)
        self._hold(var, self._slots.get(place, self._held.get(source, ())))

    def _update(self, var: relax.Var, call: relax.Call) -> None:
        source, index, value = call.args[:]
        if not is_statement(var):
            self._places[var] = self._place(source)
            self._hold(var, self._held.get(source, ()))
        place = (*self._place(source), index.value)
        if place in self._slots:
            self._release(self._slots.pop(place))
        elif self._held.get(source):  # a tuple of unknown origin: so may be its old field
            self._perhaps = True
        memories = self._slots[place] = self._held.get(value, [])[:]
        for memory in memories:
            memory.size = None
            memory.holders += 1

    def _kill(self, _var: relax.Var, call: relax.Call) -> None:
        self._release(self._held.pop(call.args[0], ()))

    def _place(self, var: relax.Var) -> _Place:
        return self._places.get(var, (var,))

    def _hold(self, var: relax.Var, memories: Sequence[_Memory]) -> None:
        if memories:
            self._held.setdefault(var, []).extend(memories)
            for memory in memories:
                memory.holders += 1

    def _release(self, memories: Sequence[_Memory]) -> None:
        for memory in memories:
            memory.holders -= 1
            if memory.holders == 0:
                if memory.size is None:
                    self._perhaps = True
                else:
                    self._surely[memory.size] += 1
