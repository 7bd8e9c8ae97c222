"""DonateStorage: spent weights hold the new ones.

Definition: in a lowered function, an allocation that :mod:`.donation` gives a spent tensor's
storage becomes

    new = vm.builtin.donate_storage(spent, here, shape, dtype)
    kill(spent)

    vm.builtin.shrink_storage(new)      # if it is smaller

right before the kernel that uses it first, and the register of the spent tensor is kept until then.
A result in place is that of the tensor the kernel reads; slots that hold it are emptied before, so
that the register alone does, and what fails in between is lost and not half overwritten:

    update(params, 3, None)
    new = vm.builtin.donate_storage(w, here, shape, dtype)
    kernel(w, new)
    kill(w)
    vm.builtin.shrink_storage(new)
    update(params, 3, new)

A tensor whose pages a kernel may move is offered to it, by the register alone, too, once what the
kernel writes is allocated:

    update(params, 3, None)
    vm.builtin.offer_pages(w)
    kernel(w, new)

Every other allocation is one of the same builtin, of no donor, so that it can be donated in turn,
and so that what is freed goes back to the system: TVM's pool would keep it
(src/runtime/memory/pooled_allocator.h). The pages of a spent tensor that no allocation takes are
given back (``vm.builtin.release_storage``) before its register is killed.

``here`` says on which device: None on a host, else a tensor there: one that the kernel reads, or
one byte that the function allocates if there is none. On a device a function that takes storage
begins with

    shared = vm.builtin.wait_for_readers(params)

and keeps that: what other streams read has been read, and what others refer to is not taken
(cpp/device.cc). Whatever it then drops is released first, which waits for its stream.

A weight that one kernel moves, and nothing else reads, may stay in its file until then. The
attribute ``relax_inplace.moved_weights`` says which those are, and the parameter map repeats it.

The builtin decides: a storage that something else refers to, that TVM does not own, or that is on
another device is never taken, and a fresh one is allocated (cpp/storage.cc).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import tvm
from tvm import ir, relax

from ..ir.binding_rewriter import Rewrite, rewrite_bindings, with_blocks, with_body
from ..ir.tuple_objects import ANY, GET_ITEM
from ..ir.updates import STREAMED
from ..op import BUILTIN, VOID
from .donation import Donation, Taken, find_donation, is_small
from .entry_check import is_entry_check
from .tensor_trace import ALLOC_STORAGE, ALLOC_TENSOR, KILL, Place, TensorTrace
from .tuple_objects import PARAM_TYPES

__all__ = ["MOVED_WEIGHTS", "DonateStorage", "find_donations"]

#: The weights that one kernel moves, and nothing else reads: TensorTrace.moved_weights.
MOVED_WEIGHTS = "relax_inplace.moved_weights"

_DONATE = "vm.builtin.donate_storage"
_OFFER = "vm.builtin.offer_pages"
_SHRINK = "vm.builtin.shrink_storage"
_RELEASE = "vm.builtin.release_storage"
_WAIT = "vm.builtin.wait_for_readers"


def DonateStorage() -> tvm.transform.Pass:  # noqa: N802  named as TVM names passes
    """Create the pass, for a lowered module whose registers are killed; for the current target."""

    @tvm.transform.module_pass(opt_level=0, name="DonateStorage")
    def run(mod: ir.IRModule, _context: tvm.transform.PassContext) -> ir.IRModule:
        after = mod.clone()
        for gvar, function in mod.functions_items():
            if isinstance(function, relax.Function):
                after[gvar] = _with_donation(function, mod).without_attr(PARAM_TYPES)
        return after

    return run


def find_donations(mod: ir.IRModule, name: str) -> list[Donation]:
    """What the pass decides for a function, and for each of its branches."""
    function = mod[name]
    found = []

    def look(sequence: relax.SeqExpr) -> Rewrite:
        found.append(find_donation(_trace(function, sequence, mod), _gives_back()))
        return lambda binding: [binding]

    rewrite_bindings(function, look)
    return found


def _trace(function: relax.Function, sequence: relax.SeqExpr, mod: ir.IRModule) -> TensorTrace:
    is_body = sequence.same_as(function.body)
    types = function.attrs[PARAM_TYPES] if is_body and function.attrs else ()
    return TensorTrace(sequence, function.params[:], types, mod)


def _gives_back() -> bool:
    """Whether the pages of a storage can be given back: of host memory (cpp/pages.h)."""
    return tvm.target.Target.current().kind.name == "llvm"


def _is_on_host() -> bool:
    return tvm.target.Target.current().kind.name in ("llvm", "c")


def _with_donation(function: relax.Function, mod: ir.IRModule) -> relax.Function:
    params = function.params[:]
    writers: list[_Writer] = []
    here = _Here(mod)

    moved: list[str] = []

    def write(sequence: relax.SeqExpr) -> Rewrite:
        trace = _trace(function, sequence, mod)
        if sequence.same_as(function.body):
            moved.extend(trace.moved_weights())
        donation = find_donation(trace, _gives_back())
        writers.append(_Writer(sequence, donation, here))
        return writers[-1].rewrite

    written = here.defined_in(rewrite_bindings(function, write))
    is_streamed = bool(function.attrs) and STREAMED in function.attrs
    if moved:
        written = written.with_attr(MOVED_WEIGHTS, moved)
    if _is_on_host() or is_streamed or not any(one.takes for one in writers):
        return written  # a streamed function is given weights that nothing uses any more
    shared = relax.Var("shared", ANY)
    call = relax.Call(relax.ExternFunc(_WAIT), params, None, [ANY], ret_ty=ANY)
    return _beginning_with(written, [relax.VarBinding(shared, call)])


def _beginning_with(function: relax.Function, first: Sequence[relax.Binding]) -> relax.Function:
    """The function with bindings before all others, but after the check of its arguments."""
    body = function.body
    before, *blocks = body.blocks[:]
    bindings = before.bindings[:]
    at = 1 if bindings and is_entry_check(bindings[0]) else 0
    block = relax.BindingBlock([*bindings[:at], *first, *bindings[at:]])
    return with_body(function, with_blocks(body, [block, *blocks]))


class _Here:
    """What says on which device a function allocates."""

    def __init__(self, mod: ir.IRModule):
        self._has_several = bool(mod.global_infos.get("vdevice"))
        self._is_host = _is_on_host() and not self._has_several
        self._bindings: dict[int, list[relax.Binding]] = {}

    def on(self, device: int, beside: relax.Var | None) -> relax.Var | None:
        """What says it; ``beside`` is what the kernel reads."""
        if self._is_host:
            return None
        if beside is not None and not self._has_several:
            return beside
        if device not in self._bindings:
            size, index = relax.ShapeExpr([1]), relax.prim_value(device)
            byte = ir.GenericConst(tvm.DataType("uint8"), ANY)
            storage, ty = relax.Var("here_storage", ANY), relax.TensorType((1,), "uint8")
            args = [size, index, byte, ir.StringImm("global")]
            allocated = relax.Call(ir.Op.get(ALLOC_STORAGE), args, ret_ty=ANY)
            args = [storage, relax.prim_value(0), size, byte, index]
            here = relax.Call(ir.Op.get(ALLOC_TENSOR), args, ret_ty=ty)
            self._bindings[device] = [
                relax.VarBinding(storage, allocated),
                relax.VarBinding(relax.Var("here", ty), here),
            ]
        return self._bindings[device][-1].var

    def defined_in(self, function: relax.Function) -> relax.Function:
        if not self._bindings:
            return function
        return _beginning_with(function, [b for pair in self._bindings.values() for b in pair])


class _Writer:
    """Writes what is decided for one sequence of bindings."""

    def __init__(self, sequence: relax.SeqExpr, donation: Donation, here: _Here):
        self.here = here
        self.dropped: set[relax.Var] = set()  # variables that are bound elsewhere, or not at all
        self.kept: set[relax.Var] = set()  # that are killed elsewhere, or not at all
        self.before: dict[relax.Var, list[relax.Binding]] = defaultdict(list)
        self.after: dict[relax.Var, list[relax.Binding]] = defaultdict(list)
        self.kill = ir.Op.get(KILL)
        self.allocations = _allocations(sequence)
        self.made_for: dict[relax.Var, set[relax.Var]] = defaultdict(set)  # by what uses it first
        for taken in donation.taken:
            self.made_for[taken.by].add(taken.tensor)
        self.beside = self._read_by(sequence)
        self.takes = any(taken.donor is not None for taken in donation.taken)
        for taken in donation.taken:
            self._take(taken)
        for offered in donation.offered:  # after what is allocated: that may fail
            for place in offered.emptied:
                self.before[offered.by] += self._emptied(place)
            self.before[offered.by].append(_statement(_OFFER, [offered.register]))
        for spent in donation.dropped:
            if not (_is_on_host() and is_small(spent.size)):
                self.kept.add(spent.register)
                release = _statement(_RELEASE, [spent.register])
                self.after[spent.at] += [release, self._killing(spent.register)]

    def rewrite(self, binding: relax.Binding) -> list[relax.Binding]:
        var, value = binding.var, binding.value
        killed = value.args[0] if type(value) is ir.Call and value.op.same_as(self.kill) else None
        stays = var not in self.dropped and killed not in self.kept
        return [
            *self.before.get(var, ()),
            *([binding] if stays else []),
            *self.after.get(var, ()),
        ]

    def _read_by(self, sequence: relax.SeqExpr) -> dict[relax.Var, relax.Var]:
        """For each binding that uses an allocation first, a tensor that it is given besides."""
        found = {}
        for block in sequence.blocks[:]:
            for binding in block.bindings[:]:
                var, value = binding.var, binding.value
                if var in self.made_for and type(value) is ir.Call:
                    for arg in value.args[:]:
                        is_tensor = type(arg) is relax.Var and isinstance(arg.ty, relax.TensorType)
                        if is_tensor and arg not in self.made_for[var]:
                            found[var] = arg
                            break
        return found

    def _take(self, taken: Taken) -> None:
        storage, device, shape, dtype = self.allocations[taken.tensor]
        self.dropped |= {taken.tensor, storage}
        self.kept.add(storage)
        before, after = self.before[taken.by], self.after[taken.by]
        for place in taken.emptied:
            before += self._emptied(place)
        donor = self._nothing(before) if taken.donor is None else taken.donor.register
        here = self.here.on(device, self.beside.get(taken.by))
        here = self._nothing(before) if here is None else here
        ty = taken.tensor.ty
        args = [donor, here, shape, dtype]
        call = relax.Call(relax.ExternFunc(_DONATE), args, None, [ty], ret_ty=ty)
        before.append(relax.VarBinding(taken.tensor, call))
        if taken.donor is not None:
            self.kept.add(donor)
            gone = after if taken.in_place else before
            if taken.in_place and not _is_on_host():
                gone.append(_statement(_RELEASE, [donor]))  # if it was refused
            gone.append(self._killing(donor))
            if taken.shrinks:
                gone.append(_statement(_SHRINK, [taken.tensor]))

    def _emptied(self, place: Place) -> list[relax.Binding]:
        """Empty a slot."""
        source, (*outer, last) = place
        bindings: list[relax.Binding] = []
        inner = []
        for index in outer:
            field = relax.Var("inner", ANY)
            args = [source, relax.prim_value(index)]
            call = relax.Call(relax.ExternFunc(GET_ITEM), args, None, [ANY], ret_ty=ANY)
            bindings.append(relax.VarBinding(field, call))
            inner.append(field)
            source = field
        nothing = self._nothing(bindings)
        bindings.append(_statement(BUILTIN, [source, relax.prim_value(last), nothing]))
        return bindings + [self._killing(field) for field in inner]

    def _nothing(self, bindings: list[relax.Binding]) -> relax.Var:
        nothing = relax.Var("nothing", ANY)
        null = relax.Call(ir.Op.get("relax.null_value"), [], ret_ty=ANY)
        bindings.append(relax.VarBinding(nothing, null))
        return nothing

    def _killing(self, var: relax.Var) -> relax.Binding:
        return relax.VarBinding(relax.Var("_", VOID), relax.Call(self.kill, [var], ret_ty=VOID))


def _statement(name: str, args: list[relax.Expr]) -> relax.Binding:
    call = relax.Call(relax.ExternFunc(name), args, None, [VOID], ret_ty=VOID)
    return relax.VarBinding(relax.Var("_", VOID), call)


def _allocations(
    sequence: relax.SeqExpr,
) -> dict[relax.Var, tuple[relax.Var, int, relax.Expr, relax.Expr]]:
    """Of each tensor that is allocated: its storage, device, shape and dtype."""
    alloc_storage, alloc_tensor = ir.Op.get(ALLOC_STORAGE), ir.Op.get(ALLOC_TENSOR)
    devices: dict[relax.Var, int] = {}
    found = {}
    for block in sequence.blocks[:]:
        for binding in block.bindings[:]:
            value = binding.value
            if type(value) is not ir.Call:
                continue
            if value.op.same_as(alloc_storage):
                devices[binding.var] = int(value.args[1].value)
            elif value.op.same_as(alloc_tensor):
                storage, _offset, shape, dtype = value.args[:4]
                if storage in devices:
                    found[binding.var] = storage, devices[storage], shape, dtype
    return found
