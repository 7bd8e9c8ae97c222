"""The rows of the table of effects: operators of Relax, and packed functions of the VM.

What the words mean stands in :mod:`.effects`. A row says what a call does, or how to tell it from
the call and from what the kernel that it names overwrites.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

from tvm import ir, relax

from ..libinfo import BUILTINS

__all__ = [
    "LOOKS",
    "Effects",
    "is_call_to",
    "is_kill",
    "is_var",
    "kernel_operands",
    "leaves",
    "of_packed",
    "operands",
    "rule_of",
    "unknown",
]


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
        Whether it becomes kernels that write to nothing but its result.
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
LOOKS = Effects(allocates=False, looks_only=True)
_READS = Effects(allocates=False)
_ALLOCATES = Effects(looks_only=True)

# The operands of a call to a kernel that the kernel overwrites.
StoredInputs: TypeAlias = Callable[[ir.Call], list[relax.Expr]]
Rule: TypeAlias = "Effects | Callable[[ir.Call, StoredInputs], Effects]"


def operands(expr: relax.Expr) -> list[relax.Expr]:
    """The values that an expression is given, through tuples; no functions, shapes and numbers."""
    kind = type(expr)
    if kind is ir.Call:
        found = [leaf for arg in expr.args[:] for leaf in leaves(arg)]
        return [*found, expr.op] if is_var(expr.op) else found
    if kind in (relax.If, relax.Function, relax.SeqExpr):
        return list(relax.analysis.free_vars(expr)[:])
    return list(leaves(expr))


def leaves(expr: relax.Expr) -> Iterator[relax.Expr]:
    """The values in an expression, through tuples."""
    kind = type(expr)
    if kind is relax.Tuple:
        for field in expr.fields[:]:
            yield from leaves(field)
    elif kind in _VALUES:
        yield expr


_VARS = (ir.Var, relax.DataflowVar)
_VALUES = (*_VARS, relax.TupleGetItem, ir.Call, ir.Constant)


def is_var(expr: Any) -> bool:
    """Whether it is a variable; isinstance is slow to say no."""
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


def kernel_operands(call: ir.Call) -> list[relax.Expr]:
    """What a call_tir, or its like, gives to the kernel."""
    args = call.args[1]
    return list(args.fields[:]) if type(args) is relax.Tuple else [args]


def unknown(given: Sequence[relax.Expr]) -> Effects:
    """What is not known may do anything to all that it is given."""
    return Effects(given, given, given, is_known=False)


# -- operators ------------------------------------------------------------------------------------


@functools.cache
def rule_of(op: ir.Op) -> Rule:
    """The row of an operator."""
    rule = _OPERATORS.get(str(op.name))
    if rule is not None:
        return rule
    if not op.get_attr("FPurity"):
        return _unknown
    return _KERNEL if op.get_attr("FLegalize") else _pure


def _pure(call: ir.Call, _stored: StoredInputs) -> Effects:
    given = operands(call)
    return Effects(aliases=given, keeps=given)


def _view(call: ir.Call, _stored: StoredInputs) -> Effects:
    return Effects(aliases=call.args[:1], allocates=False)


def _view_or_copy(call: ir.Call, _stored: StoredInputs) -> Effects:
    return Effects(aliases=call.args[:1])


def _kernel(call: ir.Call, stored: StoredInputs) -> Effects:
    written = stored(call)
    return Effects(overwrites=written) if written else _KERNEL


def _kernel_given_results(call: ir.Call, stored: StoredInputs) -> Effects:
    return Effects(overwrites=stored(call), allocates=False)


def _kernel_in_place(call: ir.Call, stored: StoredInputs) -> Effects:
    given = kernel_operands(call)
    lies_in = [given[i] if i >= 0 else None for i in map(int, call.attrs.inplace_indices[:])]
    aliased = [operand for operand in lies_in if operand is not None]
    others = [o for o in stored(call) if not any(o.same_as(a) for a in aliased)]
    return Effects([*aliased, *others], aliased, (), len(aliased) < len(lies_in), lies_in=lies_in)


def _packed_in_place(call: ir.Call, _stored: StoredInputs) -> Effects:
    given = call.args[1:]
    lies_in = [given[i] if i >= 0 else None for i in map(int, call.attrs.inplace_indices[:])]
    written = [operand for operand in lies_in if operand is not None]
    allocates = len(written) < len(lies_in)
    return Effects(written, operands(call), operands(call), allocates, lies_in=lies_in)


def _packed(call: ir.Call, _stored: StoredInputs) -> Effects:
    return of_packed(call.args[0], call.args[1:], is_pure=True)


def _builtin(call: ir.Call, _stored: StoredInputs) -> Effects:
    return of_packed(call.args[0], call.args[1:], is_pure=False)


def _closure(call: ir.Call, _stored: StoredInputs) -> Effects:
    return Effects(aliases=operands(call), allocates=False)


def _unknown(call: ir.Call, _stored: StoredInputs) -> Effects:
    return unknown(operands(call))


def _update(call: ir.Call, _stored: StoredInputs) -> Effects:
    return _update_of(call.args[:])


def _update_of(args: Sequence[relax.Expr]) -> Effects:
    return Effects(args[:1], args[:1], list(leaves(args[2])), allocates=False)


_OPERATORS: dict[str, Rule] = {
    # Views.
    "relax.memory.view": _view,
    "relax.memory.ensure_zero_offset": _view_or_copy,  # a copy where the offset is not zero
    "relax.to_vdevice": _view_or_copy,  # a copy where it is another device
    "relax.hint_on_device": _view,
    "relax.builtin.stop_lift_params": _view,
    "relax.lift_param": _view,
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
    "relax.invoke_closure": _unknown,
    "relax.invoke_pure_closure": _unknown,  # pure to TVM, with a call_tir_inplace in it, too
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
    "relax.shape_of": LOOKS,
    "relax.null_value": LOOKS,
    **dict.fromkeys(_KILLS, LOOKS),
    # Memory.
    "relax.builtin.alloc_tensor": _ALLOCATES,
    "relax.memory.alloc_storage": _ALLOCATES,
    "relax.memory.alloc_tensor": _view,  # in a storage
    "relax.vm.alloc_storage": _ALLOCATES,
    "relax.vm.alloc_tensor": _view,
    "relax.inplace_update_tuple": _update,
}

# -- packed functions of the VM -------------------------------------------------------------------

_Args: TypeAlias = Sequence[relax.Expr]


def _first(args: _Args) -> Effects:
    return Effects(aliases=args[:1], allocates=False)


def _first_or_copy(args: _Args) -> Effects:
    return Effects(aliases=args[:1])


_LOOKS_ONLY = (BUILTINS, "vm.builtin.check_", "vm.builtin.match_")
_BUILTINS: dict[str, Effects | Callable[[_Args], Effects]] = {
    "runtime.TVMTensorCreateView": _first,  # relax.memory.view, lowered
    "vm.builtin.alloc_shape_heap": _ALLOCATES,
    "vm.builtin.alloc_storage": _ALLOCATES,
    "vm.builtin.alloc_tensor": _first,
    "vm.builtin.copy": _first,  # another register
    "vm.builtin.ensure_zero_offset": _first_or_copy,
    "vm.builtin.inplace_update_tuple": _update_of,
    "vm.builtin.make_prim_value": LOOKS,
    "vm.builtin.make_shape": LOOKS,
    "vm.builtin.make_tuple": lambda args: Effects(
        aliases=[leaf for arg in args for leaf in leaves(arg)], allocates=False
    ),
    "vm.builtin.null_value": LOOKS,
    "vm.builtin.read_if_cond": _READS,
    "vm.builtin.reshape": _first,
    "vm.builtin.shape_of": LOOKS,
    "vm.builtin.tensor_to_shape": _READS,
    "vm.builtin.to_device": _first_or_copy,
    "vm.builtin.tuple_getitem": _first,
    "vm.builtin.tuple_reset_item": lambda args: Effects(overwrites=args[:1], allocates=False),
}


def of_packed(callee: relax.Expr, args: Sequence[relax.Expr], is_pure: bool) -> Effects:
    """What a call of a packed function does. If TVM takes it for pure, it overwrites nothing."""
    name = str(callee.global_symbol) if type(callee) is relax.ExternFunc else ""
    known = _BUILTINS.get(name)
    if known is None and name.startswith(_LOOKS_ONLY):
        known = LOOKS
    if known is None:
        given = [leaf for arg in args for leaf in leaves(arg)]
        return Effects(aliases=given, keeps=given) if is_pure else unknown(given)
    return known(args) if callable(known) else known
