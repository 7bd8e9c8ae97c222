"""The description of what a kernel moves, read off its TIR.

A kernel of loops around stores is read: blocks or none, perfect nests or not, in any order of
loops. Each store is a box of digits, its loops. The box is cut until its conditions are settled and
all indices are sums of digits (:mod:`.cutting`); then the value is fields of bits (:mod:`.fields`),
and each is a piece. That the pieces write each bit of the output once is proved at last, of the
description alone (:mod:`.coverage`): nothing rests on how it was made.

What is not known here is refused, with the reason: data-dependent indices, intermediate buffers,
reductions, buffers that are not row-major elements of whole bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import tvm_ffi
from tvm import ir, relax, tirx
from tvm.s_tir import SBlockRealize
from tvm.tirx.buffer import BufferType

from .coverage import tile
from .cutting import Cut, changed_box, new_digit, resolve
from .description import NUMBER, Computed, Digit, Piece, Relayout, box_of, normal
from .fields import Field, ValueReader, bits_of, bits_of_choice, is_of_bits
from .index import Counter, Form, NoRelayout, Restart, Sizes, constant
from .size import Size, is_at_least_zero
from .te_block import loads_in
from .tir_forms import IndexReader, choice_of

__all__ = ["read_relayouts"]

_MOST_CUTS = 128  # of a store, and one after another: a part of a box is cut again
_MOST_IN_TURN = 24
_MOST_RESTARTS = 16
_DIVISIONS = (tirx.Div, tirx.Mod, tirx.FloorDiv, tirx.FloorMod)
_SERIAL = (
    tirx.ForKind.SERIAL,
    tirx.ForKind.PARALLEL,
    tirx.ForKind.VECTORIZED,
    tirx.ForKind.UNROLLED,
)


def read_relayouts(
    kernel: tirx.PrimFunc, *, elements: bool = False, numbers: bool = False
) -> list[Relayout] | str:
    """What a kernel does to bits, for each of its outputs, or why that is not read.

    Parameters
    ----------
    kernel : tvm.tirx.PrimFunc
        Without intermediate buffers: :func:`relax_inplace.relayout.inlining.with_producers_inlined`
        makes it so.
    elements : bool
        Whether all values are computed from whole elements, and from numbers of the point, even
        those that only move bits: as loops over elements need it.
    numbers : bool
        Whether what is computed may be so from numbers of the point, too: of what is at a diagonal,
        say, each point has its own side.

    Returns
    -------
    list of Relayout, or str
        In the order of parameters; each is proved to write each bit of its output once.
    """
    sizes = Sizes(_variables_of(kernel))
    for _ in range(_MOST_RESTARTS):
        try:
            return _Kernel(kernel, sizes, elements, numbers).relayouts()
        except Restart:
            continue
        except NoRelayout as error:
            return str(error)
    return "divides sizes in too many ways"


def _variables_of(kernel: tirx.PrimFunc) -> set[relax.Var]:
    """What is in the shapes of tensors: it is 0 or more. Other numbers may be below."""
    shapes = [param.ty.shape[:] for param in kernel.params[:] if isinstance(param.ty, BufferType)]
    return {var for shape in shapes for size in shape for var in tirx.analysis.undefined_vars(size)}


@dataclasses.dataclass
class _Store:
    """A store, and what is around it, from the outside."""

    loops: list[tuple[relax.Var, ir.Expr, ir.Expr]]  # variable, least value, extent
    bound: list[tuple[relax.Var, ir.Expr]]
    conditions: list[tuple[ir.Expr, bool]]
    store: tirx.BufferStore


class _Kernel:
    """A kernel that is read."""

    def __init__(self, kernel: tirx.PrimFunc, sizes: Sizes, elements: bool, numbers: bool) -> None:
        self._kernel = kernel
        self._sizes = sizes
        self._elements = elements
        self._numbers = numbers or elements
        self._params: dict[relax.Var, tuple[int, list[Size]]] = {}
        self._bits: dict[int, Size] = {}
        self._dimensions: set[Size] = set()
        reader = IndexReader(sizes, {})
        sizes.suppose(())
        for number, param in enumerate(kernel.params[:]):
            if isinstance(param.ty, BufferType):
                self._add(param, number, reader)

    def _add(self, param: relax.Var, number: int, reader: IndexReader) -> None:
        ty = param.ty
        bits = bits_of(str(ty.dtype))
        plain = not len(ty.strides) and ty.layout is None and ty.storage_scope in ("", "global")
        offset = ty.elem_offset
        starts = offset is None or (isinstance(offset, tirx.IntImm) and int(offset) == 0)
        if not bits or not plain or not starts:
            raise NoRelayout("has a buffer that is not row-major elements of whole bytes")
        strides: list[Size] = []
        step: Size = bits
        for expr in reversed(ty.shape[:]):
            size = reader.size(expr)
            strides.insert(0, step)
            self._dimensions.add(size)
            step = step * size
        self._params[param] = number, strides
        self._bits[number] = step

    def relayouts(self) -> list[Relayout]:
        """One for each parameter that is written."""
        stores = list(_stores(self._kernel.body, [], [], []))
        pieces: dict[int, list[Piece]] = {}
        for store in stores:
            if store.store.buffer not in self._params:
                raise NoRelayout("has intermediate buffers")
            output = self._params[store.store.buffer][0]
            pieces.setdefault(output, []).extend(self._pieces(store))
        if not pieces:
            raise NoRelayout("writes nothing")
        found = [self._relayout(output, pieces[output]) for output in sorted(pieces)]
        if any(param in pieces for relayout in found for param in relayout.inputs):
            raise NoRelayout("reads what it writes")
        return found

    def _relayout(self, output: int, pieces: list[Piece]) -> Relayout:
        found = normal(pieces)
        if not tile((box_of(piece) for piece in found), self._bits[output]):
            raise NoRelayout("is not proved to write each element once")
        read = {param for piece in found for param, _ in piece.inputs if param != NUMBER}
        used = sorted({output, *read})
        return Relayout(output, found, tuple((param, self._bits[param]) for param in used))

    # -- a store -----------------------------------------------------------------------------------

    def _pieces(self, store: _Store) -> Iterator[Piece]:
        waiting = [(*self._whole(store), 0)]
        count = 0
        while waiting:
            box, at, depth = waiting.pop()
            self._sizes.suppose(digit.extent for digit in box)
            try:
                pieces = self._read(store, box, at)
            except Cut as cut:
                count += 1
                if count > _MOST_CUTS or depth >= _MOST_IN_TURN:
                    raise NoRelayout("moves too many pieces") from None
                waiting += [
                    (
                        changed_box(box, change),
                        {var: self._sizes.replaced(form, change.at) for var, form in at.items()},
                        depth + 1,
                    )
                    for change in reversed(cut.changes)
                ]
            else:
                yield from pieces

    def _whole(self, store: _Store) -> tuple[list[Counter], dict[relax.Var, Form]]:
        """The box of all loops, and what variables are in it."""
        box: list[Counter] = []
        at: dict[relax.Var, Form] = {}
        self._sizes.suppose(())
        reader = IndexReader(self._sizes, at)
        for var, least, extent in store.loops:
            size = reader.size(extent)
            if not is_at_least_zero(size) and size not in self._dimensions:
                raise NoRelayout("has a loop whose length may be below 0")
            form, new = new_digit(size)
            at[var] = form.plus(constant(reader.size(least)))
            box += new
        return box, at

    def _read(self, store: _Store, box: list[Counter], at: dict[relax.Var, Form]) -> list[Piece]:
        """The pieces of a box. Raises Cut where it has to be cut first."""
        if any(digit.extent == 0 for digit in box):
            return []
        at = dict(at)
        indices = IndexReader(self._sizes, at)
        for var, value in store.bound:
            at[var] = indices.form(value)
        if not all(indices.holds(condition) is said for condition, said in store.conditions):
            return []
        values = ValueReader(indices, self._params, self._bits)
        write, value = store.store, store.store.value
        _, place = values.place(write.buffer, write.indices[:])
        fields = None if self._elements else self._fields(value, values)
        if fields is None or any(field.is_sign for field in fields):
            made, elements = _computed(value, values, indices, self._numbers)
            return [_piece(self._sizes, box, place, elements, value=made)]
        return [_piece_of(self._sizes, box, place, field) for field in fields]

    def _fields(self, value: ir.Expr, values: ValueReader) -> list[Field] | None:
        try:
            return values.fields(value)
        except NoRelayout:
            if not self._numbers:
                raise
            return None


def _stores(
    body: tirx.Stmt,
    loops: list[tuple[relax.Var, ir.Expr, ir.Expr]],
    bound: list[tuple[relax.Var, ir.Expr]],
    conditions: list[tuple[ir.Expr, bool]],
) -> Iterator[_Store]:
    """The stores of a statement."""
    if isinstance(body, tirx.BufferStore):
        yield _Store(loops, bound, conditions, body)
    elif isinstance(body, tirx.SeqStmt):
        for part in body.seq:
            yield from _stores(part, loops, bound, conditions)
    elif isinstance(body, tirx.For):
        if body.kind not in _SERIAL or body.step is not None:
            raise NoRelayout("is scheduled already")
        loop = body.loop_var, body.min, body.extent
        yield from _stores(body.body, [*loops, loop], bound, conditions)
    elif isinstance(body, tirx.IfThenElse):
        yield from _stores(body.then_case, loops, bound, [*conditions, (body.condition, True)])
        if body.else_case is not None:
            no = [*conditions, (body.condition, False)]
            yield from _stores(body.else_case, loops, bound, no)
    elif isinstance(body, SBlockRealize):
        block = body.block
        if block.init is not None or block.alloc_buffers or block.match_buffers:
            raise NoRelayout("has intermediate buffers, or sums up")
        if any(index.iter_type != tirx.IterVar.DataPar for index in block.iter_vars[:]):
            raise NoRelayout("sums up")
        values = zip(block.iter_vars[:], body.iter_values[:], strict=True)
        inner = [*bound, *((index.var, value) for index, value in values)]
        yield from _stores(block.body, loops, inner, [*conditions, (body.predicate, True)])
    else:
        raise NoRelayout("has a statement that is neither a loop nor a store")


# -- pieces ----------------------------------------------------------------------------------------


def _piece_of(sizes: Sizes, box: Sequence[Counter], place: Form, field: Field) -> Piece:
    """The bits of a field, of all elements of a box."""
    place = place.plus(constant(field.low))
    source = field.source
    if source is None:
        piece = _piece(sizes, box, place, [], fill=field.flip)
    else:
        element = source.param, source.element.plus(source.bit)
        piece = _piece(sizes, box, place, [element], flip=field.flip)
        if not sizes.is_within(source.bit, source.width - field.width + 1):
            raise NoRelayout("shifts by more bits than there are")
    bits = Digit(field.width, 1, (1,) * len(piece.inputs))
    return dataclasses.replace(piece, digits=(*piece.digits, bits))


def _piece(
    sizes: Sizes,
    box: Sequence[Counter],
    place: Form,
    elements: Sequence[tuple[int, Form]],
    flip: int = 0,
    fill: int | None = None,
    value: Computed | None = None,
) -> Piece:
    """A piece of a box. Raises Cut where a place is no sum of digits."""
    forms = [place, *(form for _, form in elements)]
    changes = resolve(forms, sizes)
    if changes:
        raise Cut(changes)
    digits = tuple(
        Digit(
            digit.extent, place.terms.get(digit, 0), tuple(f.terms.get(digit, 0) for f in forms[1:])
        )
        for digit in box
    )
    inputs = tuple((param, form.const) for param, form in elements)
    return Piece(digits, place.const, inputs, flip, fill, value)


def _computed(
    value: ir.Expr, values: ValueReader, indices: IndexReader, numbers: bool
) -> tuple[Computed, list[tuple[int, Form]]]:
    """A value as an expression of elements, and of numbers if they may be; and where these are."""
    value = _settled(value, values, indices, numbers)
    slots: dict[tuple[str, int, Form], relax.Var] = {}
    slot_of: dict[ir.Expr, relax.Var] = {}
    for part in (*loads_in(value), *(_numbers_in(value) if numbers else ())):
        is_load = isinstance(part, ir.TensorLoad)
        place = (
            values.place(part.source, part.indices[:]) if is_load else (NUMBER, indices.form(part))
        )
        key = str(part.ty), *place
        if key not in slots:
            slots[key] = tirx.Var(f"x{len(slots)}", key[0])
        slot_of[part] = slots[key]
    body = tvm_ffi.structural_map(value, (ir.TensorLoad, lambda load: slot_of[load]))
    instead = (ir.Expr, lambda expr: slot_of.get(expr, expr))
    body = tvm_ffi.structural_map(body, instead, order="pre")  # not what the largest are made of
    own = list(slots.values())
    if any(not any(v.same_as(s) for s in own) for v in tirx.analysis.undefined_vars(body)):
        raise NoRelayout("computes new numbers, with an index")
    as_bits = {
        slot: tirx.Var(slot.name, f"uint{bits_of(dtype)}")
        for (dtype, param, _), slot in slots.items()
        if param != NUMBER
    }
    chosen = bits_of_choice(body, as_bits)
    places = {slot: key[1:] for key, slot in slots.items()}
    if chosen is not None:
        # An element may be chosen, as bits, and stand in a condition, as it is.
        places |= {bits: places[slot] for slot, bits in as_bits.items()}
        body, used = chosen, tirx.analysis.undefined_vars(chosen)
        own = [slot for slot in places if any(slot.same_as(one) for one in used)]
    return Computed(body, tuple(own), bits_of(str(value.ty))), [places[slot] for slot in own]


def _settled(value: ir.Expr, values: ValueReader, indices: IndexReader, numbers: bool) -> ir.Expr:
    """A value of which choices by indices are made, if all points of the box make the same."""
    settled: dict[ir.Expr, ir.Expr] = {}
    for expr, (condition, *sides) in _choices_of(value):
        try:
            sides = sides[:1] if indices.holds(condition) else sides[1:]
        except NoRelayout:
            # By numbers, then: at each point both sides are computed.
            if not numbers or not all(_can_be_computed(side, values) for side in sides):
                raise
        made = [_settled(side, values, indices, numbers) for side in sides]
        settled[expr] = made[0] if len(made) == 1 else tirx.Select(condition, *made)
    kinds = (tirx.Select, ir.Call)
    instead = (kinds, lambda expr: settled.get(expr, expr))
    return tvm_ffi.structural_map(value, instead, order="pre") if settled else value


def _choices_of(value: ir.Expr) -> list[tuple[ir.Expr, tuple[ir.Expr, ir.Expr, ir.Expr]]]:
    """The outermost choices by indices: what is in a side that is not taken cuts no box."""
    found: list[tuple[ir.Expr, tuple[ir.Expr, ir.Expr, ir.Expr]]] = []

    def visit(expr: ir.Expr) -> tvm_ffi.WalkResult:
        choice = choice_of(expr)
        if choice is None or loads_in(choice[0]):
            return tvm_ffi.WalkResult.ADVANCE
        found.append((expr, choice))
        return tvm_ffi.WalkResult.SKIP

    tvm_ffi.structural_walk(value, ((tirx.Select, ir.Call), visit), order="pre")
    return found


def _can_be_computed(value: ir.Expr, values: ValueReader) -> bool:
    """Whether a value may be computed where it is not taken: it is there, and nothing fails."""
    fails: list[ir.Expr] = []

    def visit(expr: ir.Expr) -> tvm_ffi.WalkResult:
        if isinstance(expr, ir.TensorLoad):
            if not values.is_inside(expr):
                fails.append(expr)
            return tvm_ffi.WalkResult.SKIP
        if isinstance(expr, _DIVISIONS) or (
            isinstance(expr, ir.Call) and choice_of(expr) is None and not is_of_bits(expr)
        ):
            fails.append(expr)
        return tvm_ffi.WalkResult.ADVANCE

    tvm_ffi.structural_walk(value, (ir.Expr, visit), order="pre")
    return not fails


def _numbers_in(value: ir.Expr) -> list[ir.Expr]:
    """The largest parts of a value that are indices: by how much to shift."""
    found: list[ir.Expr] = []

    def visit(expr: ir.Expr) -> tvm_ffi.WalkResult:
        is_number = str(expr.ty) in ("int32", "int64") and not loads_in(expr)
        if is_number and tirx.analysis.undefined_vars(expr):
            found.append(expr)
        is_read = is_number or isinstance(expr, ir.TensorLoad)
        return tvm_ffi.WalkResult.SKIP if is_read else tvm_ffi.WalkResult.ADVANCE

    tvm_ffi.structural_walk(value, (ir.Expr, visit), order="pre")
    return found
