"""The kernel that undoes a kernel.

Definition
----------
A kernel's description (:mod:`.read_description`) is turned round (:mod:`.description_inverse`), and
made a kernel again (:mod:`.description_kernel`): of the same shapes, the other way round, and of
the same sizes, whatever they are. Where nothing moves it is a reshape. What is computed is undone
before, element by element, by a kernel of its own, which fusion makes one with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import tvm_ffi
from tvm import ir, relax, te, tirx
from tvm.tirx.buffer import BufferType

from .description import Computed, Digit, Piece, Relayout, normal
from .description_inverse import inverse
from .description_kernel import kernel_of
from .fields import bits_of
from .inlining import with_producers_inlined
from .read_description import read_relayouts
from .size import Size, over
from .te_block import buffer_params

__all__ = ["Made", "make_elementwise", "undo_kernel"]

# Makes the operand of a call again from its result, in the function that is being built.
Made: TypeAlias = Callable[[relax.Expr], relax.Expr]


def undo_kernel(
    kernel: tirx.PrimFunc,
    name: str,
    operands: Sequence[relax.TensorType],
    result: relax.TensorType,
    sizes: Sequence[ir.Expr],
) -> Made | str:
    """What undoes a kernel, or why nothing is known to.

    Parameters
    ----------
    kernel : tvm.tirx.PrimFunc
    name : str
        Of the kernel.
    operands : sequence of relax.TensorType
        Of the call. A kernel of several is not undone here.
    result : relax.TensorType
    sizes : sequence of tvm.ir.Expr
        What it is called with besides tensors.
    """
    undone = _undone(kernel, f"undo_{name.replace('.', '_')}", [*operands, result], sizes)
    return f"`{name}` {undone}" if isinstance(undone, str) else undone


def make_elementwise(name: str, function: Callable[[ir.Expr], ir.Expr]) -> Made:
    """Call a kernel that computes each element from the one at its place."""

    def kernel(given: te.Tensor) -> te.Tensor:
        return te.compute(given.shape, lambda *at: function(given[at]), "restored")

    return lambda value: relax.BlockBuilder.current().call_te(
        kernel, value, primfunc_name_hint=name
    )


def _undone(
    kernel: tirx.PrimFunc,
    name: str,
    types: Sequence[relax.TensorType],
    sizes: Sequence[ir.Expr],
) -> Made | str:
    relayouts = read_relayouts(with_producers_inlined(kernel) or kernel)
    if isinstance(relayouts, str):
        return relayouts
    back = inverse(relayouts[0])
    if isinstance(back, str):
        return back
    tensors = buffer_params(kernel)
    if len(tensors) != 2 or len(types) != 2:
        return "has other tensors than its call"
    if [str(tensor.ty.dtype) for tensor in tensors] != [str(ty.dtype) for ty in types]:
        return "is called with tensors of other dtypes"
    known = _sizes_of_call(kernel, types, sizes)
    if isinstance(known, str):
        return known
    value, moves = back.pieces[0].value, _as_moves(back)
    params = {at: kernel.params[at] for at, _ in back.bits}
    dtypes = {at: str(param.ty.dtype) for at, param in params.items()}
    if value is not None:
        dtypes = dict.fromkeys(dtypes, dtypes[back.output])
    made = kernel_of(moves, {at: param.ty.shape[:] for at, param in params.items()}, dtypes)
    if isinstance(made, str):
        return made
    stays = len(set(dtypes.values())) == 1 and _stays(moves)
    numbers = [known.get(str(param.name)) for param in made.params[:] if not _is_tensor(param)]
    shown = {var for ty in types for var in relax.analysis.tir_vars_in_type(ty)[:]}
    if not all(n is not None and set(tirx.analysis.undefined_vars(n)) <= shown for n in numbers):
        return "depends on more than the sizes of its tensors"

    def undo(given: relax.Expr) -> relax.Expr:
        builder = relax.BlockBuilder.current()
        if value is not None:
            given = builder.emit(make_elementwise(f"{name}_numbers", _function(value))(given))
        if stays:
            return relax.op.reshape(given, types[0].shape)
        args = [given, *map(relax.prim_value, numbers)]
        return relax.op.call_tir(builder.add_func(made, name), relax.Tuple(args), types[0])

    return undo


def _stays(relayout: Relayout) -> bool:
    """Whether all bits are where they were."""
    return len({size for _, size in relayout.bits}) == 1 and all(
        piece.inputs[0][1] == piece.into
        and not piece.flip
        and all(digit.read == (digit.into,) for digit in piece.digits)
        for piece in relayout.pieces
    )


def _is_tensor(param: relax.Var) -> bool:
    return isinstance(param.ty, BufferType)


def _function(value: Computed) -> Callable[[ir.Expr], ir.Expr]:
    (slot,) = value.slots
    return lambda element: tvm_ffi.structural_map(
        value.value, (relax.Var, lambda var: element if var.same_as(slot) else var), order="post"
    )


def _as_moves(back: Relayout) -> Relayout:
    """The same, of what is computed of each element that is read: it stays where that was."""
    value = back.pieces[0].value
    if value is None:
        return back
    (slot,) = value.slots
    before, after = bits_of(str(slot.ty)), value.bits

    def there(size: Size) -> Size:
        elements = over(size, before)
        assert elements is not None
        return elements * after

    def moved(piece: Piece) -> Piece:
        digits = [Digit(d.extent, d.into, (there(d.read[0]),)) for d in piece.digits]
        ((param, base),) = piece.inputs
        whole = Digit(after, 1, (1,))
        return Piece((*digits, whole), piece.into, ((param, there(base)),))

    bits = ((at, size if at == back.output else there(size)) for at, size in back.bits)
    return Relayout(back.output, normal(map(moved, back.pieces)), tuple(bits))


def _sizes_of_call(
    kernel: tirx.PrimFunc, types: Sequence[relax.TensorType], sizes: Sequence[ir.Expr]
) -> dict[str, ir.Expr] | str:
    """What the variables in a kernel's shapes are in its call, by name."""
    numbers = [param for param in kernel.params[:] if not _is_tensor(param)]
    if len(numbers) != len(sizes):
        return "takes other numbers than it is given"
    pairs = list(zip(numbers, sizes, strict=True))
    for tensor, ty in zip(buffer_params(kernel), types, strict=True):
        if len(tensor.ty.shape) != len(ty.shape.values):
            return "is called with tensors of other ranks"
        pairs += zip(tensor.ty.shape[:], ty.shape.values[:], strict=True)
    variables: dict[str, relax.Var] = {}
    known: dict[str, ir.Expr] = {}
    for var, size in pairs:
        if isinstance(var, relax.Var):
            name = str(var.name)
            if not variables.setdefault(name, var).same_as(var):
                return "has two sizes of one name"
            known.setdefault(name, size)
    return known
