"""DonateStorage: spent weights hold the new ones.

Definition: in a lowered function that updates a tuple, an allocation that
:mod:`relax_inplace.lower.donation` gives a spent tensor's storage becomes

    new = vm.builtin.donate_storage(spent, beside, shape, dtype)
    kill(spent)

    vm.builtin.shrink_storage(new)      # if it is smaller

right before the kernel that uses it first, and the register of the spent tensor is kept until then.
A result in place is that of the tensor the kernel reads; slots that hold it are emptied before, so
that the register alone does, and what fails in between is lost and not half overwritten:

    update(params, 3, None)
    new = vm.builtin.donate_storage(w, w, shape, dtype)
    kernel(w, new)
    kill(w)
    vm.builtin.shrink_storage(new)
    update(params, 3, new)

Every other allocation is one of the same builtin, of no donor, so that it can be donated in turn;
what is spent and taken by nothing gives its pages back (``vm.builtin.release_storage``) before its
register is killed.

On a device a function that takes storage begins with

    shared = vm.builtin.wait_for_readers(params)

and keeps that: what other streams read has been read, and what others refer to is not taken
(cpp/device_wait.cc). Whatever it then drops is released first, which waits for its stream.

The builtin decides: a storage that something else refers to, that TVM does not own, or that is on
another device is never taken, and a fresh one is allocated (cpp/donate_storage.cc).
"""

from __future__ import annotations

from collections import defaultdict

import tvm
from tvm import ir, relax

from ..ir.binding_rewriter import Rewrite, rewrite_bindings, with_blocks, with_body
from ..ir.updates import REFERENCE, STREAMED, functions_that_update
from ..op import BUILTIN, VOID
from .donation import ALLOC_TENSOR, KILL, Donation, Place, Taken, find_donation
from .free_temporaries import with_own_storages
from .kill_unused_registers import kill_unused_registers

__all__ = ["DonateStorage", "donating", "find_donations"]

_DONATE = "vm.builtin.donate_storage"
_SHRINK = "vm.builtin.shrink_storage"
_RELEASE = "vm.builtin.release_storage"
_WAIT = "vm.builtin.wait_for_readers"
_GET_ITEM = "vm.builtin.tuple_getitem"
_WORTH_RELEASING = 1 << 16  # bytes: below, what is given back is hardly a page


def DonateStorage() -> tvm.transform.Pass:  # noqa: N802  named as TVM names passes
    """Create the pass by which new weights are put into the storage of spent ones.

    For a lowered module: the last pass of a pipeline. Touches only functions that update a tuple,
    and their callers; not what a conversion is compared with (``reference=True`` of
    ``InplaceTransformParams``). The pipeline ``"inplace"`` ends with it.

    Returns
    -------
    tvm.transform.Pass
    """

    @tvm.transform.module_pass(opt_level=0, name="DonateStorage")
    def run(mod: ir.IRModule, _context: tvm.transform.PassContext) -> ir.IRModule:
        functions = donating(mod)
        mod = _with_known_lives(mod, functions)
        after = mod.clone()
        for gvar in functions:
            after[gvar] = _with_donation(mod[gvar], mod)
        return after

    return run


def donating(mod: ir.IRModule) -> set[ir.GlobalVar]:
    """The functions that the pass changes."""
    return {
        gvar
        for gvar in functions_that_update(mod)
        if not (mod[gvar].attrs and REFERENCE in mod[gvar].attrs)
    }


def find_donations(mod: ir.IRModule, name: str) -> list[Donation]:
    """What the pass decides for a function of a lowered module, and for each of its branches."""
    mod = _with_known_lives(mod, donating(mod))
    function = mod[name]
    found = []

    def look(sequence: relax.SeqExpr) -> Rewrite:
        found.append(find_donation(sequence, function.params[:], mod, _gives_back()))
        return lambda binding: [binding]

    rewrite_bindings(function, look)
    return found


def _gives_back() -> bool:
    """Whether the pages of a storage can be given back: of host memory (cpp/host_pages.h)."""
    target = tvm.target.Target.current(allow_none=True)
    return target is not None and target.kind.name == "llvm"


def _is_on_host() -> bool:
    target = tvm.target.Target.current(allow_none=True)
    return target is not None and target.kind.name in ("llvm", "c")


def _with_known_lives(mod: ir.IRModule, functions: set[ir.GlobalVar]) -> ir.IRModule:
    """The module, in which a tensor has a storage of its own, and lives until it is killed."""
    return with_own_storages(kill_unused_registers(mod, functions), functions)


def _with_donation(function: relax.Function, mod: ir.IRModule) -> relax.Function:
    params = function.params[:]
    writers: list[_Writer] = []

    def write(sequence: relax.SeqExpr) -> Rewrite:
        writers.append(_Writer(sequence, params, mod))
        return writers[-1].rewrite

    function = rewrite_bindings(function, write)
    is_streamed = function.attrs and STREAMED in function.attrs
    if _is_on_host() or is_streamed or not any(one.takes for one in writers):
        return function  # a streamed function is given weights that nothing uses any more
    shared = relax.Var("shared", relax.AnyType())
    call = relax.Call(relax.ExternFunc(_WAIT), params, None, [shared.ty], ret_ty=shared.ty)
    first = relax.BindingBlock([relax.VarBinding(shared, call)])
    return with_body(function, with_blocks(function.body, [first, *function.body.blocks[:]]))


class _Writer:
    def __init__(self, sequence: relax.SeqExpr, params: list[relax.Var], mod: ir.IRModule):
        donation = find_donation(sequence, params, mod, _gives_back())
        self.dropped: set[relax.Var] = set()  # variables that are bound elsewhere, or not at all
        self.kept: set[relax.Var] = set()  # that are killed elsewhere, or not at all
        self.before: dict[relax.Var, list[relax.Binding]] = defaultdict(list)
        self.after: dict[relax.Var, list[relax.Binding]] = defaultdict(list)
        self.untyped: dict[relax.Var, relax.Var] = {}
        self.kill = ir.Op.get(KILL)
        self.allocations = _allocations(sequence)
        self.takes = any(taken.donor is not None for taken in donation.taken)
        for taken in donation.taken:
            self._take(taken)
        for spent in donation.dropped:
            is_small = isinstance(spent.size, int) and spent.size < _WORTH_RELEASING
            if not (_is_on_host() and is_small):
                self.kept.add(spent.register)
                release = _statement(_RELEASE, [spent.register])
                self.after[spent.at] += [release, self._killing(spent.register)]
        self.first = [
            relax.MatchCast(alias, root, relax.AnyType()) for root, alias in self.untyped.items()
        ]

    def rewrite(self, binding: relax.Binding) -> list[relax.Binding]:
        var, value = binding.var, binding.value
        first, self.first = self.first, []
        killed = value.args[0] if isinstance(value, ir.Call) and value.op == self.kill else None
        stays = var not in self.dropped and killed not in self.kept
        return [
            *first,
            *self.before.get(var, ()),
            *([binding] if stays else []),
            *self.after.get(var, ()),
        ]

    def _take(self, taken: Taken) -> None:
        storage, shape, dtype = self.allocations[taken.tensor]
        self.dropped |= {taken.tensor, storage}
        self.kept.add(storage)
        if isinstance(shape, relax.Var):
            self.kept.add(shape)
        before, after = self.before[taken.by], self.after[taken.by]
        for place in taken.emptied:
            before += self._emptied(place)
        if taken.donor is None:
            donor = relax.Var("nothing", relax.AnyType())
            before.append(relax.VarBinding(donor, _null()))
        else:
            donor = taken.donor.register
            self.kept.add(donor)
        ty = taken.tensor.ty
        call = relax.Call(
            relax.ExternFunc(_DONATE), [donor, taken.beside, shape, dtype], None, [ty], ret_ty=ty
        )
        before.append(relax.VarBinding(taken.tensor, call))
        if taken.donor is not None:
            gone = after if taken.in_place else before
            if taken.in_place and not _is_on_host():
                gone.append(_statement(_RELEASE, [donor]))  # if it was refused
            gone.append(self._killing(donor))
            if taken.shrinks:
                gone.append(_statement(_SHRINK, [taken.tensor]))

    def _emptied(self, place: Place) -> list[relax.Binding]:
        """Empty a slot, by a name of its tuple that does not have its types."""
        root, (*outer, last) = place
        source = self.untyped.setdefault(root, relax.Var("untyped", relax.AnyType()))
        bindings, inner = [], []
        for index in outer:
            field = relax.Var("inner", relax.AnyType())
            args = [source, relax.prim_value(index)]
            call = relax.Call(relax.ExternFunc(_GET_ITEM), args, None, [field.ty], ret_ty=field.ty)
            bindings.append(relax.VarBinding(field, call))
            inner.append(field)
            source = field
        nothing = relax.Var("nothing", relax.AnyType())
        bindings.append(relax.VarBinding(nothing, _null()))
        bindings.append(_statement(BUILTIN, [source, relax.prim_value(last), nothing]))
        return bindings + [self._killing(field) for field in inner]

    def _killing(self, var: relax.Var) -> relax.Binding:
        return relax.VarBinding(relax.Var("_", VOID), relax.Call(self.kill, [var], ret_ty=VOID))


def _null() -> relax.Expr:
    return relax.Call(ir.Op.get("relax.null_value"), [], ret_ty=relax.AnyType())


def _statement(name: str, args: list[relax.Expr]) -> relax.Binding:
    call = relax.Call(relax.ExternFunc(name), args, None, [VOID], ret_ty=VOID)
    return relax.VarBinding(relax.Var("_", VOID), call)


def _allocations(
    sequence: relax.SeqExpr,
) -> dict[relax.Var, tuple[relax.Var, relax.Expr, relax.Expr]]:
    """Of each tensor that is allocated: its storage, shape and dtype."""
    alloc_tensor = ir.Op.get(ALLOC_TENSOR)
    found = {}
    for block in sequence.blocks[:]:
        for binding in block.bindings[:]:
            value = binding.value
            if isinstance(value, ir.Call) and value.op == alloc_tensor:
                storage, _offset, shape, dtype = value.args[:4]
                found[binding.var] = storage, shape, dtype
    return found
