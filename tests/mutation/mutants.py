"""The soundness checks, each with what it is when it is broken, and the tests that have to see it."""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """One check, broken.

    Attributes
    ----------
    why : str
        What goes wrong without the check.
    file : str
        In the package.
    old, new : str
        Exact text, which is there once, and what replaces it.
    tests : tuple of str
        In `tests/`.
    """

    why: str
    file: str
    old: str
    new: str
    tests: tuple

    def __str__(self) -> str:
        return f"{self.file}: {self.why}"


def _mutants(file, tests, *breaks):
    return [Mutant(why, file, old, new, tests) for why, old, new in breaks]


# -- who owns a tuple -----------------------------------------------------------------------------

OWNERSHIP = _mutants(
    "lower/ownership.py",
    ("lower/test_ownership.py", "-k", "not pipeline"),
    (
        "a name that an update has consumed is stale",
        "self.state.consumption[object] = consumption\n        if statement",
        "pass\n        if statement",
    ),
    (
        "what is used as a whole has to be current",
        "                self._require_current(reference, (expr,), set())\n",
        "                pass\n",
    ),
    (
        "and so have its fields, at any depth",
        "                self._require_current(nested, (*path, index), seen)",
        "                pass",
    ),
    (
        "a tuple that is read has to be current",
        "            self._require_name(reference, (source,))\n            path = (source, value.index)",
        "            path = (source, value.index)",
    ),
    (
        "a nested tuple that is read has to be current",
        "                    self._require_name(nested, path)\n",
        "                    pass\n",
    ),
    (
        "a tuple that is updated has to be current",
        "        for reference in references:\n            self._require_name(reference, (source,))\n        inside",
        "        inside",
    ),
    (
        "what is stored is used",
        "stored = self._use(value)",
        "stored = self._references(value)",
    ),
    (
        "a tuple may not hold itself",
        "            if object in inside:",
        "            if False:",
    ),
    (
        "nor at any depth",
        "        inside = self.state.reachable(stored)",
        "        inside = {reference.object for reference in stored}",
    ),
    (
        "where it is not known which tuple was updated, each keeps its old field, too",
        "old = _NOTHING if len(references) == 1 else self.state.field(object, position)",
        "old = _NOTHING",
    ),
    (
        "what is updated is every tuple that the name may stand for",
        "        for reference in references:\n            object = reference.object",
        "        for reference in list(references)[:1]:\n            object = reference.object",
    ),
    (
        "a tuple that one branch has consumed is consumed after both: the first",
        "mine if mine is not entry.get(object) else theirs  # type: ignore",
        "theirs",
    ),
    (
        "a tuple that one branch has consumed is consumed after both: the second",
        "mine if mine is not entry.get(object) else theirs  # type: ignore",
        "mine",
    ),
    (
        "a field may be what either branch has put there: the second",
        "                | renamed(right, right.field(object, index))\n",
        "",
    ),
    (
        "a field may be what either branch has put there: the first",
        "index: renamed(left, left.field(object, index))\n                | renamed",
        "index: renamed",
    ),
    (
        "a value may be that of either branch: the second",
        "return renamed(left, values[0]) | renamed(right, values[1])",
        "return renamed(left, values[0])",
    ),
    (
        "a value may be that of either branch: the first",
        "return renamed(left, values[0]) | renamed(right, values[1])",
        "return renamed(right, values[1])",
    ),
    (
        "a closure that updates what it captures consumes it when it is called",
        "        called = frozenset(reference for reference in involved if reference.is_updated_by_call)",
        "        called = _NOTHING",
    ),
    (
        "a closure is known to update what it captures",
        "            dataclasses.replace(reference, is_updated_by_call=True)\n            if inner",
        "            reference\n            if inner",
    ),
    (
        "a closure names what it captures",
        "            captured |= self.names.get(free, _NOTHING)",
        "            pass",
    ),
    (
        "a recursive call may consume whatever it is given",
        "self.state.reachable(involved if recursion else called)",
        "self.state.reachable(called)",
    ),
    (
        "R.make_closure of a function that updates makes one that does",
        "        updates = any(self.summaries.consumes(operand) for operand in operands)",
        "        updates = False",
    ),
    (
        "an unknown call may return what it was given",
        "            for reference in involved\n        }",
        "            for reference in _NOTHING\n        }",
    ),
    (
        "a call consumes what its callee updates",
        "        self._consume((ours for object in consumed for ours in objects_here(object)), var)\n",
        "",
    ),
    (
        "a call that updates may not be passed one tuple twice",
        "                if other is not object and ours & here[object]:",
        "                if False:",
    ),
    (
        "a field that the callee has replaced is what it has put there",
        "                    self.state.fields.setdefault(mine, {})[index] = translated(references) | old",
        "                    pass",
    ),
    (
        "and may be the old one where it is not known which tuple it was",
        "                    old = _NOTHING if len(objects) == 1 else self.state.field(mine, index)",
        "                    old = _NOTHING",
    ),
    (
        "what a call returns may be what it was given",
        "        return translated(summary.result)",
        "        return frozenset([self.state.name(_Object())])",
    ),
    (
        "nested tuples of parameters are found in the caller",
        "                pending.append((nested, frozenset(reference.object for reference in fields)))",
        "                pass",
    ),
    (
        "nested tuples of a parameter are one object each time they are read",
        "object.fields_at_entry.setdefault(index, _Object(object.fresh))",
        "_Object(object.fresh)",
    ),
    (
        "a name of another type than a tuple's may be one",
        "return isinstance(ty, (relax.AnyType, relax.FuncType))",
        "return False",
    ),
    (
        "match_cast and plain bindings name the same tuple",
        "        return self._use(value)\n\n    # -- uses",
        "        return _NOTHING\n\n    # -- uses",
    ),
    (
        "a tuple that is made holds the tuples that it is made of",
        "            self.state.fields[object] = {i: field for i, field in enumerate(fields) if field}\n",
        "",
    ),
)

# -- kernels that write over what they read -------------------------------------------------------

INPLACE = _mutants(
    "relayout/inplace_kernel.py",
    ("relayout/test_inplace_kernel.py",),
    (
        "each block is computed from the one there: proved, not only tried",
        "            if _is_local(block, written, reads, read):",
        "            if True:",
    ),
    (
        "a block lies in front of the end of the one that it is computed from",
        "            if read.elements * before < written.elements * after:\n                continue\n",
        "",
    ),
    (
        "the result is not larger",
        "    if not _always(tirx.LE(*whole), {}, ()):",
        "    if False:",
    ),
    (
        "an element in its place is not larger than what was there",
        "    if before >= after and all(",
        "    if all(",
    ),
    (
        "same elements have the same number only in the same shape",
        "    if _are_same(at, there) and _are_same(shape, other):",
        "    if _are_same(at, there):",
    ),
    (
        "all that is read of an element has the same number",
        "all(is_same_position(block, read.load) for read in reads)",
        "any(is_same_position(block, read.load) for read in reads)",
    ),
    (
        "buffers are row-major",
        "    if not plain or not (offset is None or _is_number(offset, 0)):\n        return None\n",
        "",
    ),
    (
        "elements have whole bytes",
        "    return dtype.itemsize if dtype.bits % 8 == 0 and dtype.lanes == 1 else None",
        "    return dtype.itemsize",
    ),
    (
        "two outputs are not computed from an input that one overwrites",
        "            if sum(buffer in others for others in sources) > 1:",
        "            if False:",
    ),
    (
        "places that data give are any",
        "    if any(loads_in(index) for read in reads for index in read.load.indices[:]):",
        "    if False:",
    ),
    (
        "a block fits into scratch memory",
        "        for read in blocks_along(source, MOST_SCRATCH // before):",
        "        for read in blocks_along(source, 1 << 40):",
    ),
    (
        "the other side of a choice is read where it does not hold",
        "[*conditions, *(tirx.Not(c) for c in known)]",
        "[*conditions, *known]",
    ),
    (
        "a choice by data is no condition on indices",
        "            known = [] if loads_in(condition) else [condition]",
        "            known = [tirx.const(False)] if loads_in(condition) else [condition]",
    ),
    (
        "a condition of a choice is read, too",
        "            found.extend(_reads(condition, conditions))\n",
        "",
    ),
    (
        "intermediate buffers are none of the kernel's parameters",
        "    if any(buffer not in params for buffer in written) or len(set(written)) != len(written):",
        "    if any(buffer not in params for buffer in written):",
    ),
    (
        "a block is cut where the size divides, of a multiple and a rest",
        "math.gcd(int(modular.coeff), int(modular.base))",
        "int(modular.coeff)",
    ),
)

TE_BLOCKS = _mutants(
    "relayout/te_block.py",
    ("relayout/test_te_block.py",),
    (
        "a block reads nothing that it writes",
        "    if any(load.source.same_as(store.buffer) for load in loads_in(store.value)):",
        "    if False:",
    ),
    (
        "indices are independent",
        "        if extent is None or index.iter_type != tirx.IterVar.DataPar:",
        "        if extent is None:",
    ),
    (
        "a block with an init is a reduction",
        "    if block.init is not None or block.alloc_buffers or block.match_buffers:",
        "    if block.alloc_buffers or block.match_buffers:",
    ),
    (
        "what is written is all of the buffer",
        "            if index in ordered or not analyzer.can_prove_equal(extent, size):",
        "            if index in ordered:",
    ),
    (
        "an axis without an index has one position",
        "        elif not (_is_number(index, 0) and _is_number(size, 1)):\n            return None\n",
        "",
    ),
    (
        "each loop is an index",
        "return dataclasses.replace(block, box=ordered) if len(ordered) == len(block.box) else None",
        "return dataclasses.replace(block, box=ordered)",
    ),
    (
        "a predicate leaves elements out",
        "    if not isinstance(body, SBlockRealize) or not _is_number(body.predicate, 1):",
        "    if not isinstance(body, SBlockRealize):",
    ),
)

# -- kernels that are undone ----------------------------------------------------------------------

INVERSES = _mutants(
    "relayout/kernel_inverse.py",
    ("restore/test_inverse.py", "restore/test_restore.py", "-k", "inverse.py or last_step"),
    (
        "every element is kept: proved",
        "    if not _proved(goals, places, unknown):",
        "    if False:",
    ),
    (
        "the place that an element is found at is in the box: not below it",
        "    goals = [there[index] >= 0 for index in moves.box]\n    goals += [",
        "    goals = [",
    ),
    (
        "the place that an element is found at is in the box: not beyond it",
        "    goals += [there[index] < extent for index, extent in moves.box.items()]\n",
        "",
    ),
    (
        "the element that is found is the one that is wanted",
        "        goals.append(tirx.EQ(_substitute(index, there), var))",
        "        pass",
    ),
    (
        "where a choice does not hold, nothing was kept",
        "    goals += [_substitute(condition, there) for condition in moves.conditions]\n",
        "",
    ),
    (
        "each place is written once",
        "    if not _are_distinct(moves.writes, moves.box, unknown):",
        "    if False:",
    ),
    (
        "the other side of a choice is taken where it does not hold",
        "condition if reads else tirx.Not(condition)",
        "condition",
    ),
    (
        "a cast loses nothing",
        '            if back is None:\n                raise _Unproved(f"casts: {lossy(source, target)}")',
        "            if back is None:\n                back = lambda value: value.astype(source)",
    ),
    (
        "steps are undone, the last one first",
        "            for undone in moves.undone:",
        "            for undone in reversed(moves.undone):",
    ),
    (
        "what reads what it has written is no move",
        "    if not load.source.same_as(tensors[0]):",
        "    if False:",
    ),
    (
        "a kernel of strided buffers is not row-major",
        "    if any(len(tensor.ty.strides) for tensor in tensors):",
        "    if False:",
    ),
    (
        "places that data give are any",
        "    if any(_loads_in(expr) for expr in (*moves.writes, *moves.reads, *moves.conditions)):",
        "    if False:",
    ),
    (
        "a predicate leaves elements out",
        "    if not _is_number(body.predicate, 1):",
        "    if False:",
    ),
    (
        "loops start at 0",
        "        if body.thread_binding is not None or not _is_number(body.min, 0):",
        "        if body.thread_binding is not None:",
    ),
    (
        "a loop that is no index may run no times",
        "    if loops:  # which may run no times",
        "    if False:",
    ),
    (
        "indices are independent",
        "        if extent is None or index.iter_type != tirx.IterVar.DataPar:",
        "        if extent is None:",
    ),
    (
        "a block with an init is a reduction",
        "    if block.init is not None or block.alloc_buffers or block.match_buffers:",
        "    if block.alloc_buffers or block.match_buffers:",
    ),
    (
        "a kernel of several tensors mixes them",
        "        if len(operands) != 1:",
        "        if False:",
    ),
    (
        "dtypes are those of the call",
        '        raise _Unproved("is called with tensors of other dtypes")',
        "        pass",
    ),
)

CASTS = _mutants(
    "relayout/exact_cast.py",
    ("restore/test_inverse.py",),
    (
        "an integer fits into the bits of another",
        "int(wider[2]) >= bits if wider",
        "True if wider",
    ),
    (
        "an integer fits into a significand",
        "_SIGNIFICAND.get(target, 0) >= needed",
        "_SIGNIFICAND.get(target, 0) >= 8",
    ),
    (
        "a signalling NaN becomes a quiet one",
        'return (source, target) == ("bfloat16", "float32")',
        'return target == "float32"',
    ),
)

# -- steps that run slice by slice ----------------------------------------------------------------

SLICES = _mutants(
    "relayout/kernel_slices.py",
    ("relayout/test_kernel_slices.py", "inplace/test_slicing.py"),
    (
        "a value that is needed as a whole is not computed in slices",
        "    if any(axes[source] is None for source in inner):\n        return None",
        "    if False:\n        return None",
    ),
    (
        "one value is not read along two axes",
        "            if axes.setdefault(read.source, found) != found:",
        "            axes.setdefault(read.source, found)\n            if False:",
    ),
    (
        "an index computed from that of the slice reads other rows",
        "            if found is not None or not index.min.same_as(spatial):",
        "            if found is not None:",
    ),
    (
        "an element is read at one index of the slice",
        "            if found is not None or not index.min.same_as(spatial):",
        "            if not index.min.same_as(spatial):",
    ),
    (
        "a region of several rows is more than the slice",
        "            if not (isinstance(index.extent, tirx.IntImm) and int(index.extent) == 1):\n                return -1\n",
        "",
    ),
    (
        "a region whose extent depends on the row is more than the slice",
        "        if any(var.same_as(spatial) for var in tirx.analysis.undefined_vars(index.extent)):\n            return -1\n",
        "",
    ),
    (
        "the number of the row is part of no value",
        "    return len(uses) == len(indices)",
        "    return True",
    ),
    (
        "a block that writes several buffers is not cut",
        "        if len(written) != 1:\n            return None\n",
        "",
    ),
)

SLICING = _mutants(
    "inplace/slicing.py",
    ("inplace/test_slicing.py",),
    (
        "a step that has to run in between is none of the cone",
        "            if step in cone:\n                return []\n            behind.add(step)",
        "            behind.add(step)",
    ),
    (
        "an output is there as a whole",
        "            and not any(kernel.binding.var in outputs for kernel in step.kernels)\n",
        "",
    ),
    (
        "a value that others need is there as a whole",
        "            and used_in[step] <= cone\n",
        "",
    ),
)

LIMIT = _mutants(
    "inplace/memory_limit.py",
    ("inplace/test_memory_limit.py", "-k", "not any and not resident and not eight_temporaries"),
    (
        "what does not fit is refused",
        "        if isinstance(peak, int) and peak > limit:\n            raise MemoryLimitError",
        "        if False:\n            raise MemoryLimitError",
    ),
    (
        "what is not known in bytes is refused",
        "        if not isinstance(peak, int) and peak.unknown():",
        "        if False:",
    ),
)

# -- storage that is used again -------------------------------------------------------------------

SPARE = _mutants(
    "lower/spare_storage.py",
    ("lower/test_spare_storage.py",),
    (
        "spare storages stay within the peak",
        "                and covers(peak, live + held + size)\n",
        "",
    ),
    (
        "room is made when what is live grows",
        "        while kept and not covers(peak, live + held):",
        "        while False:",
    ),
    (
        "a storage that is taken is large enough",
        "            and covers(other, size)\n            and (best",
        "            and (best",
    ),
    (
        "a storage is taken once",
        "taken[one] = spare[found].pop()",
        "taken[one] = spare[found][-1]",
    ),
    (
        "what may not take a storage takes none",
        "            if one not in moment.takes:\n                continue\n",
        "",
    ),
    (
        "what may not leave a storage leaves none",
        "                one in moment.leaves\n                and ",
        "                ",
    ),
    (
        "what is spent is live until after it",
        "        for one in moment.allocated:\n            size = sizes[one]\n            live = live + rises.get(one, size)",
        "        for one in moment.allocated:\n            size = sizes[one]\n            live = live",
    ),
)

MUTANTS = [
    *OWNERSHIP,
    *INPLACE,
    *TE_BLOCKS,
    *INVERSES,
    *CASTS,
    *SLICES,
    *SLICING,
    *LIMIT,
    *SPARE,
]
