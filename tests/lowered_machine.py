"""A lowered function, run on memory alone: who holds which storage, binding by binding.

No kernel runs. What is live is what registers, slots and the caller's tuple lead to, so that the
peak is that of any run in which nothing outside refers to the weights. It knows nothing of how
relax_inplace decides.
"""

import dataclasses

import tvm
from tvm import ir, relax

from relax_inplace.ir.byte_size import at_bounds, size_of
from relax_inplace.ir.updates import functions_that_update
from relax_inplace.lower.build import prepared
from relax_inplace.lower.donate_storage import DonateStorage
from relax_inplace.lower.pipeline import lower_without_donation
from relax_inplace.lower.shape_heap import MAKE_SHAPE, MATCH_SHAPE, ShapeHeap
from relax_inplace.lower.tuple_objects import PARAM_TYPES


@dataclasses.dataclass(eq=False)
class Storage:
    size: int


@dataclasses.dataclass(eq=False)
class Tensor:
    storage: Storage
    base: "Tensor | None" = None  # of a view
    size: int = 0  # where it may be less than the storage's


@dataclasses.dataclass(eq=False)
class Fields:
    fields: list


class LoweredMachine:
    """What a run of a function does to memory.

    Attributes
    ----------
    peak : int
        The most bytes that were live.
    allocated : list of int
        Bytes of each storage that was allocated.
    """

    def __init__(self, mod, name, sizes, takes_branch=0):
        self.mod = mod
        self.sizes = sizes
        self.takes_branch = takes_branch
        self.registers = {}
        self.shapes = {}
        self.heap = ShapeHeap(mod[name].body)
        self.loaded = {}  # the types of what a function that is a parameter yields, once checked
        self.allocated = []
        self.peak = 0
        function = mod[name]
        types = mod.attrs["param_types"][name]
        for param, ty in zip(function.params, types, strict=True):
            # Tensors that are no field of a tuple are not the transform's.
            is_weight = isinstance(ty, relax.TupleType)
            self.registers[param] = self.argument(ty) if is_weight else Tensor(Storage(0))
        self.seen()
        self.run(function.body)

    def bytes_of(self, ty, shape=None):
        dims = self.shapes.get(shape) if isinstance(shape, relax.Var) else None
        if dims is not None:
            ty = relax.TensorType(dims, ty.dtype)
        return int(at_bounds(size_of(ty), self.sizes, 3))

    def argument(self, ty):
        if isinstance(ty, relax.TupleType):
            return Fields([self.argument(field) for field in ty.fields])
        if isinstance(ty, relax.TensorType):
            return Tensor(Storage(self.bytes_of(ty)))
        return None

    def run(self, sequence):
        for block in sequence.blocks:
            for binding in block.bindings:
                if isinstance(binding.var.ty, relax.TensorType):
                    self.loaded.setdefault(binding.value, binding.var.ty)
        for block in sequence.blocks:
            for binding in block.bindings:
                value = self.value(binding.var, binding.value)
                if value is not None:
                    self.registers[binding.var] = value

    def value(self, var, value):
        if isinstance(value, relax.If):
            branch = (value.true_branch, value.false_branch)[self.takes_branch]
            self.run(branch)
            return self.registers.get(branch.body)
        if isinstance(value, relax.Tuple):
            return Fields([self.registers.get(field) for field in value.fields])
        if isinstance(value, relax.TupleGetItem):
            return self.registers[value.tuple_value].fields[value.index]
        if isinstance(value, ir.Call):
            return self.call(var, value)
        return self.registers.get(value) if isinstance(value, relax.Var) else None

    def call(self, var, call):
        args = list(call.args)
        held = [self.registers.get(arg) if isinstance(arg, relax.Var) else None for arg in args]
        name = getattr(call.op, "name", None) or getattr(call.op, "global_symbol", None)
        if name == MATCH_SHAPE:
            self.heap.match(call)
        elif name == MAKE_SHAPE:
            self.shapes[var] = self.heap.shape(call)
        elif isinstance(call.op, ir.GlobalVar) and len(args) == 1:
            self.heap.compute(self.mod[call.op])
        elif name == "relax.vm.kill_object":
            self.registers.pop(args[0], None)
        elif name == "relax.vm.alloc_storage":
            return Storage(0)
        elif name == "relax.vm.alloc_tensor":
            self.allocate(held[0], self.bytes_of(var.ty, args[2]))
            return Tensor(held[0])
        elif name == "vm.builtin.tuple_getitem":
            return held[0].fields[args[1].value]
        elif name == "vm.builtin.make_tuple":
            return Fields(held)
        elif name == "vm.builtin.inplace_update_tuple":
            held[0].fields[args[1].value] = held[2]
            return held[0]
        elif name in ("vm.builtin.reshape", "runtime.TVMTensorCreateView"):
            return Tensor(held[0].storage, held[0])
        elif name == "vm.builtin.donate_storage":
            return self.donated(held[0], self.bytes_of(var.ty, args[2]))
        elif name == "vm.builtin.shrink_storage":
            if self.tensors_in(held[0].storage) == 1:
                held[0].storage.size = held[0].size
        elif isinstance(call.op, relax.Var):
            made = Storage(0)
            self.allocate(made, self.bytes_of(self.loaded[var]) if var in self.loaded else 0)
            return Tensor(made)
        elif isinstance(var.ty, relax.TensorType):
            made = Storage(0)
            self.allocate(made, 0)  # of a function of TVM's
            return Tensor(made)
        return None

    def allocate(self, storage, size):
        storage.size = size
        self.allocated.append(size)
        self.seen(storage)

    def donated(self, donor, size):
        if (
            donor is not None
            and donor.base is None
            and self.references(donor) == 1
            and self.tensors_in(donor.storage) == 1
            and size <= donor.storage.size
        ):
            return Tensor(donor.storage, size=size)
        made = Storage(0)
        self.allocate(made, size)
        return Tensor(made)

    def reached(self):
        """Every object, as often as something refers to it."""
        pending = list(self.registers.values())
        entered = []
        while pending:
            one = pending.pop()
            yield one
            if any(one is other for other in entered):
                continue
            entered.append(one)
            if isinstance(one, Fields):
                pending += [field for field in one.fields if field is not None]
            elif isinstance(one, Tensor):
                pending.append(one.storage)
                if one.base is not None:
                    pending.append(one.base)

    def references(self, wanted):
        return sum(one is wanted for one in self.reached())

    def tensors_in(self, storage):
        tensors = {one for one in self.reached() if isinstance(one, Tensor)}
        return sum(tensor.storage is storage for tensor in tensors)

    def seen(self, made=None):
        storages = {one for one in self.reached() if isinstance(one, Storage)}
        if made is not None:
            storages.add(made)
        self.peak = max(self.peak, sum(storage.size for storage in storages))


def lowered(mod, target="llvm", donates=True, fuses=True):
    """What the functions that update become, with storage donation or without."""
    target = tvm.target.Target(target)
    ours, _, _ = prepared(mod, functions_that_update(mod))
    types = {gvar.name_hint: f.attrs[PARAM_TYPES] for gvar, f in ours.functions_items()
             if isinstance(f, relax.Function)}  # fmt: skip
    with target:
        after = lower_without_donation(ours, target, fuses)
        return (DonateStorage()(after) if donates else after).with_attr("param_types", types)
