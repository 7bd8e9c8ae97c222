"""Types whose elements have no whole bytes: they are moved, and nothing else.

Definition: an element is *packed* if its type has not 8, 16, 32, 64 or 128 bits: int4, uint4,
float4_e2m1fn, float6_e2m3fn, float6_e3m2fn, int1, uint1, int2, ..., and int12 or int24 as well; in
vectors (int4x8) as by itself. A bool has 8 bits. Of a packed tensor a function may

- put it into another slot, return it, hand it to a packed function, and ask for its shape;
- view bytes of it (``R.memory.view``): whole rows, or all of it as uint8 to compute with.

It may not compute with it or make one, which is what kernels do, nor hold one as a constant. With
apache-tvm 0.27 on ``llvm``:

- Memory is packed: n elements of b bits in l lanes take ``(n*b*l + 7) // 8`` bytes, in
  ``tvm.runtime.empty``, copies and views (``ffi::GetDataSize``).
- Kernels are not: each lane of an element takes the smallest power of two of bytes that holds b
  bits. So int4 is read from the low half of a byte, int24 from four bytes, and int4x8 from eight,
  where it has four. A kernel reads other elements than those that are there, and beyond the end;
  what it writes goes beyond the end as well: the heap is corrupted.
- The VM allocates no such result, on any device (``VerifyDataType``,
  src/runtime/memory/memory_manager.cc). So what makes one fails out of place, when it is run. What
  only reads one, as a cast to float32 does, returns wrong numbers in silence.

- A constant is saved and loaded with whole bytes for each element (``Tensor::Save``,
  include/tvm/runtime/tensor.h), which corrupts the heap when a module is loaded.

So no kernel on packed elements is right, of whatever number of lanes, and there is none to keep.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from tvm import ir, relax

from ..op import is_update
from .byte_size import tensors_in
from .updates import bindings_of

__all__ = ["packed_computation", "require_whole_bytes"]

# Operators that leave elements alone. Packed functions get the tensor, and read it as it lies.
_MOVES = frozenset(
    [
        "relax.builtin.stop_lift_params",
        "relax.call_builtin_with_ctx",
        "relax.call_inplace_packed",
        "relax.call_pure_packed",
        "relax.hint_on_device",
        "relax.invoke_closure",
        "relax.invoke_pure_closure",
        "relax.lift_param",
        "relax.make_closure",
        "relax.memory.ensure_zero_offset",
        "relax.memory.view",
        "relax.shape_of",
        "relax.to_vdevice",
    ]
)
_INSPECT = "relax.inspect."  # these read a tensor's shape, dtype, strides
_TO_PACKED = "relax.call_dps_packed"  # the VM allocates what it returns
_TO_KERNEL = ("relax.call_tir", "relax.call_tir_inplace", "relax.call_tir_with_grad")


def require_whole_bytes(function: relax.Function, mod: ir.IRModule) -> None:
    """Refuse a function that computes with packed elements.

    Parameters
    ----------
    function : relax.Function
        Before it is lowered.
    mod : tvm.ir.IRModule
        Where the functions that it calls are.

    Raises
    ------
    ValueError
        Names the function, the tensor and the operator.
    """
    reason = packed_computation(function, mod)
    if reason is not None:
        attrs = function.attrs
        name = attrs["global_symbol"] if attrs and "global_symbol" in attrs else "?"
        raise ValueError(f"function `{name}`: {reason}")


def packed_computation(function: relax.Function, mod: ir.IRModule) -> str | None:
    """What in a function computes with packed elements or makes some, at first.

    Returns
    -------
    str or None
        The operator, the tensor, why not, and what to do instead.
    """
    visited: set[ir.GlobalVar] = set()
    pending = [(function, "")]
    while pending:
        function, where = pending.pop()
        bindings = list(bindings_of(function))
        reason = _packed_constant(function, bindings)
        if reason is None and _has_packed(function, bindings):
            reason = _computation_in(bindings, mod, where)
        if reason is not None:
            return reason
        for binding in bindings:
            callee: Any = getattr(binding.value, "op", None)
            if type(callee) is ir.GlobalVar and callee not in visited:
                visited.add(callee)
                called = mod[callee] if callee in mod.functions else None
                if isinstance(called, relax.Function):
                    pending.append((called, f" in `{callee.name_hint}`"))
    return None


def _is_packed(ty: relax.TensorType) -> bool:
    if ty.dtype is None:
        return False
    bits = ty.dtype.dtype.bits
    return bits % 8 != 0 or bits & (bits - 1) != 0


def _packed_in(ty: ir.Type) -> relax.TensorType | None:
    return next((tensor for tensor in tensors_in(ty) if _is_packed(tensor)), None)


def _packed_constant(function: relax.Function, bindings: list[relax.Binding]) -> str | None:
    bodies = [function.body.body]
    for binding in bindings:
        value = binding.value
        kind = type(value)
        if kind is relax.Call:
            bodies += value.args[2:] if is_update(value) else value.args[:]
        elif kind is relax.Tuple or kind is ir.GenericConst:
            bodies.append(value)
        elif kind is relax.If:
            bodies += [value.true_branch.body, value.false_branch.body]
        elif kind is relax.Function:
            bodies.append(value.body.body)
    for leaf in _leaves(bodies):
        if type(leaf) is ir.GenericConst:
            packed = _packed_in(leaf.ty)
            if packed is not None:
                return (
                    f"it has a constant of {packed.dtype.dtype}: memory holds such elements "
                    "packed, but TVM saves and loads whole bytes for each; make it a weight"
                )
    return None


def _has_packed(function: relax.Function, bindings: list[relax.Binding]) -> bool:
    """Whether there is a packed tensor in a function at all: nearly always there is none."""
    types = [param.ty for param in function.params[:]]
    for binding in bindings:
        value = binding.value
        is_made = type(value) is relax.Call or type(value) is relax.Function
        if is_update(value):
            continue  # its type has all fields of the tuple, which are known
        if is_made or isinstance(binding, relax.MatchCast):
            types.append(binding.var.ty)
    return any(_packed_in(ty) is not None for ty in types)


def _leaves(args: Iterable[relax.Expr]) -> Iterator[relax.Expr]:
    for arg in args:
        if type(arg) is relax.Tuple:
            yield from _leaves(arg.fields[:])
        else:
            yield arg


def _computation_in(bindings: list[relax.Binding], mod: ir.IRModule, where: str) -> str | None:
    bound: dict[relax.Var, relax.Expr] = {}
    for binding in bindings:
        bound[binding.var] = binding.value
        value = binding.value
        if type(value) is not relax.Call or is_update(value):
            continue
        kernel = _kernel(value, mod)
        if kernel is None:
            continue
        name, args = kernel
        for arg in _leaves(args):
            packed = _packed_in(arg.ty)
            if packed is not None:
                return _reason(f"{name} computes with {_named(arg, bound)}{where}", packed)
        packed = _packed_in(binding.var.ty)
        if packed is not None:
            return _reason(f"{name} makes `{binding.var.name}`{where}", packed)
    return None


def _kernel(call: relax.Call, mod: ir.IRModule) -> tuple[str, list[relax.Expr]] | None:
    """What a call is called if it becomes a kernel, and what the kernel reads; else None."""
    callee, args = call.op, list(call.args[:])
    if type(callee) is ir.GlobalVar:
        called = mod[callee] if callee in mod.functions else None
        if isinstance(called, relax.Function):
            return None  # its own calls are looked at
        return f"`{callee.name_hint}`", args
    if not isinstance(callee, ir.Op) or callee.name in _MOVES or callee.name.startswith(_INSPECT):
        return None
    if callee.name == _TO_PACKED:
        return f"R.call_dps_packed of `{args[0].global_symbol}`", []
    if callee.name in _TO_KERNEL:
        return f"`{args[0].name_hint}`", args[1:]
    return f"R.{callee.name.removeprefix('relax.')}", args


def _named(expr: relax.Expr, bound: dict[relax.Var, relax.Expr]) -> str:
    """A tensor as the field that it was read from."""
    if type(expr) is relax.TupleGetItem:
        source = expr.tuple_value
        while is_update(bound.get(source)) and int(bound[source].args[1]) != expr.index:
            source = bound[source].args[0]
        if is_update(bound.get(source)):
            return _named(bound[source].args[2], bound)
        return f"{_named(source, bound)}[{expr.index}]"
    value = bound.get(expr)
    if type(value) in (relax.Var, relax.DataflowVar, relax.TupleGetItem):
        return _named(value, bound)
    return f"`{expr.name}`"


def _reason(what: str, ty: relax.TensorType) -> str:
    return (
        f"{what}, of {ty.dtype.dtype}: memory holds such elements packed, but kernels take whole "
        "bytes for each; pass the tensor on as it is, or view it as uint8 by R.memory.view and "
        "compute with that"
    )
