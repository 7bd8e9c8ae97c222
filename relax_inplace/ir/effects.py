"""What a call does to the memory of what it is given: one table, asked by every stage.

Definition
----------
The *operands* of an expression are the values that it is given, through tuples. Of these, one may

- be *overwritten*: its memory may hold other bits afterwards;
- be *aliased*: the result may be it, hold it, or lie in its memory;
- be *kept*: something may hold on to it that outlives the call and is not its result.

All the others are read, if the call does not merely look at what they are. The result may be memory
that the call *allocates*. A tuple has memory, too: its slots.

What the table does not know may do all of that to all that it is given. What TVM takes for pure
overwrites nothing, unless the table says so: ``call_tir_inplace`` is pure to TVM. An operator that
becomes kernels computes new memory.

A kernel that moves no element (``reshape``, or a ``permute_dims`` of an axis of length 1) is a case
of its own: in a dataflow block TVM makes its result a view of the operand, elsewhere a copy
(src/relax/transform/rewrite_dataflow_reshape.cc). See :meth:`EffectTable.view_if_lowered_so`.

What a function of the module does is read off its body, and what a kernel overwrites off its.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import tvm_ffi
from tvm import ir, relax, tirx
from tvm.s_tir import SBlock

from .byte_size import size_of
from .kernels import Kernels

__all__ = ["EffectTable", "Effects", "is_call_to", "is_kill", "operands", "written_parameters"]


@dataclasses.dataclass(frozen=True)
class Effects:
    """What an expression does: see the definition.

    Attributes
    ----------
    overwrites, aliases, keeps : sequence of relax.Expr
        Operands.
    allocates : bool
    looks_only : bool
        Whether it reads no element: of a tensor its shape, say, or nothing.
    is_kernel : bool
        Whether it becomes a kernel, or several, that nothing but the results are written by.
    is_known : bool
        Whether the table knows it. What it does not may also hand out, and overwrite, what a call
        before it has kept.
    lies_in : sequence of (relax.Expr or None)
        For each field of the result the operand that it is, None if it is new; empty if it is not
        known field by field.
    """

    overwrites: Sequence[relax.Expr] = ()
    aliases: Sequence[relax.Expr] = ()
    keeps: Sequence[relax.Expr] = ()
    allocates: bool = True
    looks_only: bool = False
    is_kernel: bool = False
    is_known: bool = True
    lies_in: Sequence[relax.Expr | None] = ()

    @property
    def is_view(self) -> bool:
        """Whether the result has no memory of its own."""
        return bool(self.aliases) and not self.allocates


_COMPUTES = Effects()
_KERNEL = Effects(is_kernel=True)
_LOOKS = Effects(allocates=False, looks_only=True)
_READS = Effects(allocates=False)
_ALLOCATES = Effects(looks_only=True)

_Rule: TypeAlias = "Effects | Callable[[EffectTable, ir.Call], Effects]"


def operands(expr: relax.Expr) -> list[relax.Expr]:
    """The values that an expression is given, through tuples; no functions, shapes and numbers."""
    kind = type(expr)
    if kind is ir.Call:
        found = [leaf for arg in expr.args[:] for leaf in _leaves(arg)]
        return [*found, expr.op] if _is_var(expr.op) else found
    if kind in (relax.If, relax.Function, relax.SeqExpr):
        return list(relax.analysis.free_vars(expr)[:])
    return list(_leaves(expr))


def _leaves(expr: relax.Expr) -> Iterator[relax.Expr]:
    kind = type(expr)
    if kind is relax.Tuple:
        for field in expr.fields[:]:
            yield from _leaves(field)
    elif kind in _VALUES:
        yield expr


_VARS = (ir.Var, relax.DataflowVar)
_VALUES = (*_VARS, relax.TupleGetItem, ir.Call, ir.Constant)


def _is_var(expr: Any) -> bool:
    return type(expr) in _VARS


_KILLS = ("relax.vm.kill_object", "relax.memory.kill_tensor", "relax.memory.kill_storage")


@functools.cache
def _op(name: str) -> ir.Op:
    return ir.Op.get(name)


def is_kill(call: ir.Call) -> bool:
    """Whether a call ends a name, and uses nothing."""
    return type(call.op) is ir.Op and any(call.op.same_as(_op(name)) for name in _KILLS)


def is_call_to(expr: relax.Expr, name: str) -> bool:
    """Whether an expression is a call to the operator of that name."""
    return type(expr) is ir.Call and type(expr.op) is ir.Op and expr.op.same_as(_op(name))


class EffectTable:
    """What the expressions of a module do.

    Parameters
    ----------
    mod : tvm.ir.IRModule
        Where the functions and kernels are that they call.
    """

    def __init__(self, mod: ir.IRModule):
        self.mod = mod
        self.kernels = Kernels(mod)
        self.local: dict[relax.Var, relax.Function] = {}  # the functions that variables stand for
        self._written: dict[tirx.PrimFunc, list[int]] = {}
        self._moves_nothing: dict[tirx.PrimFunc, bool] = {}
        self._summaries: dict[ir.GlobalVar, _Summary | None] = {}

    def of(self, expr: relax.Expr) -> Effects:
        """What an expression does.

        Parameters
        ----------
        expr : relax.Expr
            What a variable may be bound to.
        """
        kind = type(expr)
        if kind is ir.Call:
            callee = expr.op
            kind = type(callee)
            if kind is ir.Op:
                rule = _RULES.get(callee)
                if rule is None:
                    rule = _RULES[callee] = _rule_of(callee)
                return rule if isinstance(rule, Effects) else rule(self, expr)
            if kind is ir.GlobalVar:
                return self._function(expr, callee)
            if kind is relax.ExternFunc:
                return self._extern(callee, expr.args[:], is_pure=False)
            if callee in self.local:
                summary = _Summary.of(self.local[callee], self)
                return summary.at(self.local[callee], expr.args[:])
            return _unknown(operands(expr))
        if kind is relax.If:
            branches = [_Summary.of(b, self) for b in (expr.true_branch, expr.false_branch)]
            return _either(branches)
        if kind is ir.Constant:
            return _LOOKS
        # A name, a field, a tuple, a local function, which does nothing before it is called.
        return Effects(aliases=operands(expr), allocates=False)

    def view_if_lowered_so(self, expr: relax.Expr) -> relax.Expr | None:
        """The operand that the result is a view of in a dataflow block, and a copy of elsewhere."""
        if type(expr) is not ir.Call or not self.of(expr).is_kernel:
            return None
        given = [operand for operand in operands(expr) if type(operand.ty) is relax.TensorType]
        if len(given) != 1 or type(expr.ty) is not relax.TensorType:
            return None
        (operand,), target = given, expr.ty
        if operand.ty.dtype != target.dtype:
            return None
        sizes = size_of(operand.ty), size_of(target)
        if all(type(size) is int for size in sizes) and sizes[0] != sizes[1]:
            return None
        legalized = self.kernels.of(expr)
        moves_nothing = legalized is None or self.moves_nothing(legalized.kernel)
        return operand if moves_nothing else None

    def shares(self, expr: relax.Expr) -> Sequence[relax.Expr]:
        """The operands that the result may share memory with, however it is lowered."""
        view = self.view_if_lowered_so(expr)
        return self.of(expr).aliases if view is None else [view]

    def moves_nothing(self, kernel: tirx.PrimFunc) -> bool:
        """Whether each element that a kernel writes is the one in the same place."""
        known = self._moves_nothing.get(kernel)
        if known is None:
            known = bool(relax.analysis.has_reshape_pattern(kernel))
            self._moves_nothing[kernel] = known
        return known

    # -- what is called -----------------------------------------------------------------------

    def _function(self, call: ir.Call, callee: ir.GlobalVar) -> Effects:
        function = self.mod[callee] if callee in self.mod.functions else None
        if type(function) is tirx.PrimFunc:  # lowered: it is given its results
            args = call.args[:]
            written = [args[index] for index in self._stores(function) if index < len(args)]
            return Effects(overwrites=written, allocates=False)
        if type(function) is not relax.Function:
            return _unknown(operands(call))
        if callee not in self._summaries:
            self._summaries[callee] = None  # while it is looked at: of recursion nothing is known
            self._summaries[callee] = _Summary.of(function, self)
        summary = self._summaries[callee]
        return _unknown(operands(call)) if summary is None else summary.at(function, call.args[:])

    def _extern(self, callee: relax.Expr, args: Sequence[relax.Expr], is_pure: bool) -> Effects:
        name = str(callee.global_symbol) if type(callee) is relax.ExternFunc else ""
        known = _BUILTINS.get(name)
        if known is None and name.startswith(_LOOKS_ONLY):
            known = _LOOKS
        if known is None:
            given = [leaf for arg in args for leaf in _leaves(arg)]
            return Effects(aliases=given, keeps=given) if is_pure else _unknown(given)
        return known(args) if callable(known) else known

    def _stores(self, kernel: tirx.PrimFunc) -> list[int]:
        known = self._written.get(kernel)
        if known is None:
            known = self._written[kernel] = written_parameters(kernel)
        return known

    def _stored_inputs(self, call: ir.Call) -> list[relax.Expr]:
        """The operands of a call_tir, or of its like, that the kernel overwrites."""
        gvar = call.args[0]
        kernel = self.mod[gvar] if gvar in self.mod.functions else None
        given = _kernel_operands(call)
        if type(kernel) is not tirx.PrimFunc:
            return given
        return [given[index] for index in self._stores(kernel) if index < len(given)]


def _kernel_operands(call: ir.Call) -> list[relax.Expr]:
    args = call.args[1]
    return list(args.fields[:]) if type(args) is relax.Tuple else [args]


def _unknown(given: Sequence[relax.Expr]) -> Effects:
    return Effects(given, given, given, is_known=False)


# -- operators ------------------------------------------------------------------------------------


def _rule_of(op: ir.Op) -> _Rule:
    rule = _OPERATORS.get(str(op.name))
    if rule is not None:
        return rule
    if not op.get_attr("FPurity"):
        return lambda _table, call: _unknown(operands(call))
    return _KERNEL if op.get_attr("FLegalize") else _pure


def _pure(_table: EffectTable, call: ir.Call) -> Effects:
    given = operands(call)
    return Effects(aliases=given, keeps=given)


def _view(_table: EffectTable, call: ir.Call) -> Effects:
    return Effects(aliases=call.args[:1], allocates=False)


def _view_or_copy(_table: EffectTable, call: ir.Call) -> Effects:
    return Effects(aliases=call.args[:1])


def _kernel(table: EffectTable, call: ir.Call) -> Effects:
    written = table._stored_inputs(call)
    return Effects(overwrites=written) if written else _KERNEL


def _kernel_given_results(table: EffectTable, call: ir.Call) -> Effects:
    return Effects(overwrites=table._stored_inputs(call), allocates=False)


def _kernel_in_place(table: EffectTable, call: ir.Call) -> Effects:
    given = _kernel_operands(call)
    lies_in = [given[i] if i >= 0 else None for i in map(int, call.attrs.inplace_indices[:])]
    aliased = [operand for operand in lies_in if operand is not None]
    stored = [o for o in table._stored_inputs(call) if not any(o.same_as(a) for a in aliased)]
    return Effects([*aliased, *stored], aliased, (), len(aliased) < len(lies_in), lies_in=lies_in)


def _packed_in_place(_table: EffectTable, call: ir.Call) -> Effects:
    given = call.args[1:]
    lies_in = [given[i] if i >= 0 else None for i in map(int, call.attrs.inplace_indices[:])]
    written = [operand for operand in lies_in if operand is not None]
    allocates = len(written) < len(lies_in)
    return Effects(written, operands(call), operands(call), allocates, lies_in=lies_in)


def _packed(table: EffectTable, call: ir.Call) -> Effects:
    return table._extern(call.args[0], call.args[1:], is_pure=True)


def _builtin(table: EffectTable, call: ir.Call) -> Effects:
    return table._extern(call.args[0], call.args[1:], is_pure=False)


def _closure(_table: EffectTable, call: ir.Call) -> Effects:
    return Effects(aliases=operands(call), allocates=False)


def _any_closure(_table: EffectTable, call: ir.Call) -> Effects:
    return _unknown(operands(call))


def _update(_table: EffectTable, call: ir.Call) -> Effects:
    return _update_of(call.args[:])


def _update_of(args: Sequence[relax.Expr]) -> Effects:
    return Effects(args[:1], args[:1], list(_leaves(args[2])), allocates=False)


_OPERATORS: dict[str, _Rule] = {
    # Views.
    "relax.memory.view": _view,
    "relax.memory.ensure_zero_offset": _view_or_copy,  # a copy where the offset is not zero
    "relax.to_vdevice": _view_or_copy,  # a copy where it is another device
    "relax.hint_on_device": _view,
    "relax.builtin.stop_lift_params": _view,
    "relax.wrap_param": _view,
    # Kernels and packed functions.
    "relax.call_tir": _kernel,
    "relax.call_tir_with_grad": _kernel,
    "relax.call_tir_inplace": _kernel_in_place,
    "relax.vm.call_tir_dyn": _kernel_given_results,
    "relax.call_dps_packed": _COMPUTES,  # it writes to its results only, by convention
    "relax.call_pure_packed": _packed,
    "relax.call_inplace_packed": _packed_in_place,
    "relax.call_builtin_with_ctx": _builtin,
    "relax.make_closure": _closure,
    "relax.invoke_closure": _any_closure,
    "relax.invoke_pure_closure": _any_closure,  # pure to TVM, with a call_tir_inplace in it, too
    # Operators without FLegalize that become kernels, or calls to libraries.
    **dict.fromkeys(
        (
            "relax.argsort",
            "relax.cumprod",
            "relax.cumsum",
            "relax.ewise_fma",
            "relax.multinomial_from_uniform",
            "relax.nonzero",
            "relax.sort",
            "relax.topk",
            "relax.unique",
        ),
        _COMPUTES,
    ),
    # What makes no tensor.
    "relax.assert_op": _READS,
    "relax.print": _READS,
    "relax.tensor_to_shape": _READS,
    "relax.shape_of": _LOOKS,
    "relax.null_value": _LOOKS,
    **dict.fromkeys(_KILLS, _LOOKS),
    # Memory.
    "relax.builtin.alloc_tensor": _ALLOCATES,
    "relax.memory.alloc_storage": _ALLOCATES,
    "relax.memory.alloc_tensor": _view,  # in a storage
    "relax.vm.alloc_storage": _ALLOCATES,
    "relax.vm.alloc_tensor": _view,
    "relax.inplace_update_tuple": _update,
}
_RULES: dict[ir.Op, _Rule] = {}

# -- packed functions of the VM -------------------------------------------------------------------

_Args: TypeAlias = Sequence[relax.Expr]


def _first(args: _Args) -> Effects:
    return Effects(aliases=args[:1], allocates=False)


def _first_or_copy(args: _Args) -> Effects:
    return Effects(aliases=args[:1])


_LOOKS_ONLY = ("vm.builtin.check_", "vm.builtin.match_")
_BUILTINS: dict[str, Effects | Callable[[_Args], Effects]] = {
    "runtime.TVMTensorCreateView": _first,  # relax.memory.view, lowered
    "vm.builtin.alloc_shape_heap": _ALLOCATES,
    "vm.builtin.alloc_storage": _ALLOCATES,
    "vm.builtin.alloc_tensor": _first,
    "vm.builtin.copy": _first,  # another register
    "vm.builtin.ensure_zero_offset": _first_or_copy,
    "vm.builtin.inplace_update_tuple": _update_of,
    "vm.builtin.make_prim_value": _LOOKS,
    "vm.builtin.make_shape": _LOOKS,
    "vm.builtin.make_tuple": lambda args: Effects(
        aliases=[leaf for arg in args for leaf in _leaves(arg)], allocates=False
    ),
    "vm.builtin.null_value": _LOOKS,
    "vm.builtin.read_if_cond": _READS,
    "vm.builtin.reshape": _first,
    "vm.builtin.shape_of": _LOOKS,
    "vm.builtin.tensor_to_shape": _READS,
    "vm.builtin.to_device": _first_or_copy,
    "vm.builtin.tuple_getitem": _first,
    "vm.builtin.tuple_reset_item": lambda args: Effects(overwrites=args[:1], allocates=False),
}


# -- functions of the module ----------------------------------------------------------------------


@dataclasses.dataclass
class _Summary:
    """What a body does to the variables that are given to it: parameters, and what it captures."""

    overwrites: set[relax.Var]
    aliases: set[relax.Var]
    keeps: set[relax.Var]
    allocates: bool
    is_known: bool

    @staticmethod
    def of(body: relax.Expr, table: EffectTable) -> _Summary:
        """Read off a body, in the order of its bindings."""
        summary = _Summary(set(), set(), set(), False, True)
        sequence = body.body if type(body) is relax.Function else body
        given: dict[relax.Var, set[relax.Var]] = {}  # what a variable may share memory with

        def reached(exprs: Iterable[relax.Expr]) -> set[relax.Var]:
            found: set[relax.Var] = set()
            for expr in exprs:
                for var in [expr] if _is_var(expr) else relax.analysis.free_vars(expr)[:]:
                    found |= given.get(var, {var})
            return found

        for block in sequence.blocks[:]:
            for binding in block.bindings[:]:
                var, value = binding.var, binding.value
                if type(value) is relax.Function:
                    table.local[var] = value
                effects = table.of(value)
                summary.overwrites |= reached(effects.overwrites)
                summary.keeps |= reached(effects.keeps)
                summary.is_known &= effects.is_known
                given[var] = reached(table.shares(value))
        summary.aliases = reached([sequence.body])
        summary.allocates = not (_is_var(sequence.body) and sequence.body not in given)
        return summary

    def at(self, function: relax.Function, args: Sequence[relax.Expr]) -> Effects:
        """What a call does."""
        arg_of = dict(zip(function.params[:], args, strict=True))

        def here(variables: set[relax.Var]) -> list[relax.Expr]:
            return [leaf for var in variables for leaf in _leaves(arg_of.get(var, var))]

        return Effects(
            here(self.overwrites),
            here(self.aliases),
            here(self.keeps),
            self.allocates,
            is_known=self.is_known,
        )


def _either(branches: Sequence[_Summary]) -> Effects:
    return Effects(
        list(set().union(*(branch.overwrites for branch in branches))),
        list(set().union(*(branch.aliases for branch in branches))),
        list(set().union(*(branch.keeps for branch in branches))),
        is_known=all(branch.is_known for branch in branches),
    )


# -- kernels --------------------------------------------------------------------------------------

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
