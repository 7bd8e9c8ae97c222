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
        "old = NOTHING if len(references) == 1 else self.state.field(object, position)",
        "old = NOTHING",
    ),
    (
        "what is updated is every tuple that the name may stand for",
        "        for reference in references:\n            object = reference.object",
        "        for reference in list(references)[:1]:\n            object = reference.object",
    ),
    (
        "a closure that updates what it captures consumes it when it is called",
        "        called = frozenset(reference for reference in involved if reference.is_updated_by_call)",
        "        called = NOTHING",
    ),
    (
        "a closure is known to update what it captures",
        "            dataclasses.replace(reference, is_updated_by_call=True)\n            if inner",
        "            reference\n            if inner",
    ),
    (
        "a closure names what it captures",
        "            captured |= self.names.get(free, NOTHING)",
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
        "            for reference in NOTHING\n        }",
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
        "                    old = NOTHING if len(objects) == 1 else self.state.field(mine, index)",
        "                    old = NOTHING",
    ),
    (
        "what a call returns may be what it was given",
        "        return translated(summary.result)",
        "        return frozenset([self.state.name(TupleObject())])",
    ),
    (
        "nested tuples of parameters are found in the caller",
        "                pending.append((nested, frozenset(reference.object for reference in fields)))",
        "                pass",
    ),
    (
        "a name of another type than a tuple's may be one",
        "return isinstance(ty, (relax.AnyType, relax.FuncType))",
        "return False",
    ),
    (
        "match_cast and plain bindings name the same tuple",
        "        return self._use(value)\n\n    # -- uses",
        "        return NOTHING\n\n    # -- uses",
    ),
    (
        "a tuple that is made holds the tuples that it is made of",
        "            self.state.fields[object] = {i: field for i, field in enumerate(fields) if field}\n",
        "",
    ),
)

TUPLE_STATE = _mutants(
    "lower/tuple_state.py",
    ("lower/test_ownership.py", "-k", "not pipeline"),
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
        "nested tuples of a parameter are one object each time they are read",
        "object.fields_at_entry.setdefault(index, TupleObject(object.fresh))",
        "TupleObject(object.fresh)",
    ),
)

# -- kernels that write over what they read -------------------------------------------------------

COMPUTED = [
    *_mutants(
        "relayout/cpu_compute.py",
        (
            "relayout/test_cpu_compute.py",
            "-k",
            "numbers or order or whole or outputs or alone or place or otherwise or either",
        ),
        (
            "each block is of one group of pieces",
            "    return is_free and isinstance(rest, int) and tile(boxes, total)\n",
            "    return is_free\n",
        ),
        (
            "what may lie in its input is not taken for other memory",
            'attrs |= {INPLACE: pairs, "tirx.noalias": False}',
            "attrs |= {INPLACE: pairs}",
        ),
        (
            "a block is read before it is written",
            '            return loop("block", total, self._in_scratch, tirx.ForKind.PARALLEL)\n',
            "            return loop(\n"
            '                "block", total, lambda at: self._block(at, None), tirx.ForKind.PARALLEL\n'
            "            )\n",
        ),
        (
            "so is the first one of those that become smaller",
            "        first = self._in_scratch(constant(0))\n",
            "        first = self._block(constant(0), None)\n",
        ),
        (
            "phases are for blocks that are at most half as large",
            "        if read >= 2 * written:\n",
            "        if read > written:\n",
        ),
        (
            "those that are not go one after the other",
            '        return loop("block", total, self._in_scratch)\n',
            '        return loop("block", total, self._in_scratch, tirx.ForKind.PARALLEL)\n',
        ),
        (
            "a phase reads nothing that it writes",
            "        extent = tirx.min(start, total - start)\n",
            "        extent = total - start\n",
        ),
        (
            "a copy ends where the weight does",
            "        if not self._is_whole:\n",
            "        if False:\n",
        ),
        (
            "several ways are allowed where no scratch is needed",
            "    return direct or sorted(found, key=lambda blocks: blocks.read)[:1]\n",
            "    return list(found)\n",
        ),
        (
            "other memory gets what is the same in vectors",
            "    if not pairs and not is_exact:\n",
            "    if False:\n",
        ),
        (
            "what is not the same in vectors is made one by one",
            "is_vector = is_exact and (",
            "is_vector = (",
        ),
    ),
    *_mutants(
        "relayout/cpu_loops.py",
        ("relayout/test_cpu_compute.py", "relayout/test_cpu_loops.py", "-k", "not any"),
        (
            "tiles that are there twice are not over what they read",
            "        if extent % cut.size:\n",
            "        if False:\n",
        ),
        (
            "rows are vectors where what is read is one after the other, too",
            "or not all(s in (0, 1) for s in steps):",
            ":",
        ),
        (
            "nothing is divided by 0",
            "        by = each.extent if integer(each.extent) else tirx.max(each.extent, constant(1))\n",
            "        by = each.extent\n",
        ),
    ),
    *_mutants(
        "relayout/cpu_loops.py",
        ("relayout/test_cpu_loops.py", "-k", "same_tiles"),  # another one crashes
        (
            "a size that is smaller than a tile has rows",
            "    return tirx.IfThenElse(fits, in_tiles, rows_of(nest, parallel=parallel))\n",
            "    return in_tiles\n",
        ),
    ),
]

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

INVERSES = [
    *_mutants(
        "relayout/kernel_inverse.py",
        ("restore/test_inverse.py", "-k", "kernel or sizes or shows"),
        (
            "dtypes are those of the call",
            '        return "is called with tensors of other dtypes"',
            "        pass",
        ),
        (
            "sizes are told from each other by name",
            "            if not variables.setdefault(name, var).same_as(var):\n",
            "            if variables.setdefault(name, var) is None:\n",
        ),
        (
            "sizes are those that tensors show",
            "set(tirx.analysis.undefined_vars(n)) <= shown",
            "True",
        ),
    ),
    *_mutants(
        "relayout/kernel_inverse.py",
        ("relayout/test_kernel_inverse.py", "-k", "stays or bfloat16"),
        (
            "what is longer is no other shape of it",
            "    return len({size for _, size in relayout.bits}) == 1 and all(\n",
            "    return all(\n",
        ),
        (
            "what is moved does not stay",
            "        and all(digit.read == (digit.into,) for digit in piece.digits)\n",
            "",
        ),
        (
            "what is turned over does not stay",
            "        and not piece.flip\n",
            "",
        ),
        (
            "numbers are undone before they are moved",
            "        if value is not None:\n            given",
            "        if False:\n            given",
        ),
    ),
    *_mutants(
        "relayout/description_inverse.py",
        ("relayout/test_description_inverse.py",),
        (
            "every element is kept",
            "    if not tile((box_of(piece) for piece in pieces), relayout.bits_of(source)):\n",
            "    if False:\n",
        ),
        (
            "what moves is not undone as what computes",
            "    if len(first.slots) != 1 or len(computed) < len(values):\n",
            "    if len(first.slots) != 1:\n",
        ),
        (
            "elements are computed in one way",
            "    if not all(tvm_ffi.structural_equal(_as_function(v), _as_function(first)) for v in computed):\n",
            "    if False:\n",
        ),
        (
            "a cast loses nothing",
            '                return f"casts: {lossy(source, target)}"',
            "                back = lambda made: made.astype(source)",
        ),
        (
            "what is done last is undone first",
            "    for step in steps:\n        made",
            "    for step in reversed(steps):\n        made",
        ),
        (
            "not of a bool is not of a byte",
            "isinstance(value, tirx.BitwiseNot) and is_integer",
            "isinstance(value, tirx.BitwiseNot)",
        ),
    ),
    *_mutants(
        "relayout/index.py",
        ("relayout/test_size.py",),
        (
            "a rest is there or not, and no more",
            "    return quotients == [0, 1, 1]\n",
            "    return quotients[:2] == [0, 1]\n",
        ),
        (
            "what rises with a rest is a multiple of it",
            "    if r.high is None or not terms_of(rest).keys() <= terms_of(Polynomial.of(r) + 1).keys():\n",
            "    if r.high is None:\n",
        ),
        (
            "what is more than 1 is not its own sign",
            "        if is_sign and r.high == 1:\n",
            "        if is_sign:\n",
        ),
    ),
    *_mutants(
        "relayout/size.py",
        ("relayout/test_size.py",),
        (
            "what is more than 1 has powers",
            "        if unknown.high == 1:\n            powers",
            "        if unknown.high:\n            powers",
        ),
    ),
]

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

SLICES = [
    *_mutants(
        "relayout/kernel_slices.py",
        ("relayout/test_kernel_slices.py",),
        (
            "a value that is needed as a whole is not computed in slices",
            "        if along is None:\n            return None",
            "        if along is None:\n            continue",
        ),
        (
            "one value is not read along two axes",
            "            if any(axes.setdefault(source, found) != found for source, found in read.items()):\n",
            "            if any(axes.setdefault(source, found) is Ellipsis for source, found in read.items()):\n",
        ),
        (
            "a block of other stores is not cut",
            "        if block is None or not isinstance(block.body, tirx.BufferStore):\n            return None",
            "        if block is None or not isinstance(block.body, tirx.BufferStore):\n            continue",
        ),
        (
            "a reduction reads its own element alone",
            "    if before and not (steps and store.same_as(block.body) and _are_at(before, store.indices[:])):\n",
            "    if before and not (steps and store.same_as(block.body)):\n",
        ),
        (
            "what a reduction starts from is computed, too",
            "    for part in (block.init, block.body):\n",
            "    for part in (block.body,):\n",
        ),
        (
            "what is an index is read",
            "    if inner:\n",
            "    if False:\n",
        ),
    ),
    *_mutants(
        "inplace/slicing.py",
        ("inplace/test_slicing.py",),
        (
            "only the axis depends on its length",
            "        if operand_axes(whole.kernel, axis) != operand_axes(part.kernel, axis):\n",
            "        if operand_axes(whole.kernel, axis) is None:\n",
        ),
        (
            "a slice of it is as long as the slices",
            "        if not tvm_ffi.structural_equal(call.ty, _with_rows(var.ty, slicing.axes[var], _ROWS)):\n            return {}\n",
            "",
        ),
    ),
]

SLICING = _mutants(
    "inplace/cones.py",
    ("inplace/test_slicing.py",),
    (
        "an output is there as a whole",
        "                    and step not in self._outputs\n",
        "",
    ),
    (
        "a value that others need is there as a whole",
        "                    and all(other in cone for other in self._later[step])\n",
        "",
    ),
    (
        "what is impure, or runs first, is not cut",
        "        return step in self._position and not is_whole",
        "        return step in self._position",
    ),
)

LIMIT = _mutants(
    "inplace/memory_limit.py",
    ("inplace/test_memory_limit.py", "-k", "not any and not resident and not eight_temporaries"),
    (
        "what does not fit is refused",
        "        if peak > limit:\n            weights",
        "        if False:\n            weights",
    ),
    (
        "what is not known in bytes is refused",
        "        if peak.unknown():",
        "        if False:",
    ),
)

# -- storage that is used again -------------------------------------------------------------------

SPARE = _mutants(
    "lower/spare_storage.py",
    ("lower/test_spare_storage.py",),
    (
        "spare storages stay within the peak",
        "                and covers(peak, live + spare.bytes + size)\n",
        "",
    ),
    (
        "room is made when what is live grows",
        "        while spare.count and not covers(peak, live + spare.bytes):",
        "        while False:",
    ),
    (
        "a storage of another line is large enough",
        "            if at < len(line) and covers(line[at].size, one.size):",
        "            if at < len(line):",
    ),
    (
        "a storage of its line is large enough",
        "bisect.bisect_left(line, one.multiple, key=_of_multiple) if line is one.line else 0",
        "0",
    ),
    (
        "a storage is taken once",
        "storage = one.storages.pop() if last else one.storages.popleft()",
        "storage = one.storages[-1] if last else one.storages.popleft()",
    ),
    (
        "what may not take a storage takes none",
        "            if one in moment.takes:\n",
        "            if True:\n",
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

# -- functions that update, lowered ---------------------------------------------------------------

TRACE = _mutants(
    "lower/tensor_trace.py",
    ("lower/test_tensor_trace.py",),
    (
        "what a function that is not known was given is hidden",
        "                self._used(tensor)\n                tensor.is_hidden = True",
        "                self._used(tensor)",
    ),
    (
        "and so is what lies in a tuple that it was given",
        "tensor.is_hidden |= any(place[0].same_as(root) for place in places)",
        "pass",
    ),
    (
        "what it returns is hidden",
        "            self._new(var, None, var.name).is_hidden = True",
        "            self._new(var, _known(var.ty), var.name)",
    ),
    (
        "and its bytes are not counted, whatever is known of them later",
        "if tensor.size is None and not tensor.is_hidden:",
        "if tensor.size is None:",
    ),
    (
        "it may read slots",
        '        """What may keep what it is given, and may hold what it returns."""\n        self.reads_unseen.append(self._at)\n',
        "",
    ),
    (
        "so may a read of a tuple that is not followed",
        "            self.reads_unseen.append(self._at)\n            self._hold(var",
        "            self._hold(var",
    ),
    (
        "a nested tuple is followed where it was only",
        "        self._nested.discard(place)\n",
        "",
    ),
    (
        "it may live on when its slot is replaced",
        "                tensor.may_live_on = True\n",
        "                pass\n",
    ),
    (
        "a nested tuple that is put back is not replaced",
        "            return  # a nested tuple, put back\n",
        "            pass\n",
    ),
    (
        "a view holds what it is a view of",
        "        for operand in effects.aliases:\n            self._hold(var, self._held.get(operand, ()))\n",
        "",
    ),
    (
        "a tuple holds what it is made of",
        "        for held in self._fields[var]:\n            self._hold(var, held)\n",
        "",
    ),
    (
        "what is returned is held on",
        "                tensor.holders[var] += 1  # held on by the caller",
        "                pass",
    ),
    (
        "a storage of two tensors is not taken",
        "self._storages[storage] == 1 and self._scopes",
        "self._scopes",
    ),
    (
        "memory of another scope is not taken",
        ' and self._scopes.get(storage) == "global"',
        "",
    ),
    (
        "a kernel that is given a tensor twice is not in place",
        " or sum(register.same_as(arg) for arg in args) != 1",
        "",
    ),
    (
        "a view is not written over in place of its tensor",
        "        if register not in donor.registers:\n            return  # a view\n",
        "",
    ),
    (
        "a result that is there already is not in place",
        " and results[0].used_first == self._at:",
        ":",
    ),
    (
        "another register keeps a kernel from writing over it",
        "        if any(isinstance(h, relax.Var) and not h.same_as(register) for h in donor.holders):\n            return\n",
        "",
    ),
    (
        "what is put into a slot is held by it",
        "            tensor.holders[place] += 1\n            self._used(tensor)\n            if tensor.slot",
        "            self._used(tensor)\n            if tensor.slot",
    ),
)

DONATION = _mutants(
    "lower/donation.py",
    (
        "lower/test_tensor_trace.py",
        "lower/test_donate_storage.py",
        "-k",
        "not any_ and not resident",
    ),
    (
        "what is used later is not written over",
        "donor.used_last != chance.at or ",
        "",
    ),
    (
        "what stays in a slot is not written over",
        "donor.spent is None or donor.is_hidden",
        "donor.is_hidden",
    ),
    (
        "what is hidden is not written over",
        " or donor.is_hidden:",
        ":",
    ),
    (
        "a slot that may be read is not emptied",
        "        return not is_read and not donor.may_live_on",
        "        return not donor.may_live_on",
    ),
    (
        "nor one of a nested tuple that may live on",
        "        return not is_read and not donor.may_live_on",
        "        return not is_read",
    ),
    (
        "a result fits into what it is written over",
        "                and covers(self.sizes[donor], self.sizes[result])\n",
        "",
    ),
    (
        "one tensor is written over once",
        "                and donor not in self.falls\n",
        "",
    ),
    (
        "what is hidden is not kept to be taken",
        "return tensor.is_read and bool(tensor.registers) and not tensor.is_hidden",
        "return tensor.is_read and bool(tensor.registers)",
    ),
    (
        "what is not the function's own allocation is not replaced",
        "    return tensor.is_allocated and tensor.used_first is not None",
        "    return tensor.used_first is not None",
    ),
)

DONATE = _mutants(
    "lower/donate_storage.py",
    (
        "lower/test_tensor_trace.py",
        "lower/test_donate_storage.py",
        "-k",
        "not any_ and not resident",
    ),
    (
        "a slot is emptied before its tensor is written over",
        "            before += self._emptied(place)\n",
        "            pass\n",
    ),
    (
        "a register is kept until its storage is taken",
        "            self.kept.add(donor)\n",
        "",
    ),
    (
        "what other streams read has been read before it is taken",
        "    if _is_on_host() or is_streamed or not any(one.takes for one in writers):",
        "    if True:",
    ),
    (
        "what is refused on a device is released",
        "            if taken.in_place and not _is_on_host():\n                gone.append(_statement(_RELEASE, [donor]))  # if it was refused\n",
        "",
    ),
    (
        "what a storage has too much is given back",
        "            if taken.shrinks:\n",
        "            if False:\n",
    ),
    (
        "what is dropped on a device is released, however small",
        "            if not (_is_on_host() and is_small(spent.size)):",
        "            if not is_small(spent.size):",
    ),
)

ENTRY = _mutants(
    "lower/entry_check.py",
    (
        "lower/test_entry_check.py",
        "lower/test_tuple_objects.py",
        "-k",
        "entry_check or size or passes",
    ),
    (
        "what updates is checked, where no tuple defines a size, too",
        "    if not updates and not of_tuples:",
        "    if not of_tuples:",
    ),
    (
        "a function that updates may not be given one tuple twice",
        '        "updates": updates,\n',
        '        "updates": False,\n',
    ),
    (
        "sizes that tuples define are named",
        '        bindings.append(relax.MatchCast(relax.Var("dims", named), dims, named))\n',
        "",
    ),
    (
        "an expression of sizes is matched",
        "            bindings += _match(new, path, ty)",
        "            pass",
    ),
    (
        "in a nested tuple, too",
        "            if is_tuple(field) or _has_expression(field):",
        "            if _has_expression(field):",
    ),
    (
        "a number defines a size",
        "    if isinstance(param.ty, ir.PrimType):\n        return [param]\n",
        "",
    ),
    (
        "dtypes are checked",
        "            dtype = None if ty.dtype is None else str(ty.dtype.dtype)",
        "            dtype = None",
    ),
    (
        "static sizes are checked",
        "            return int(size)\n",
        "            return None\n",
    ),
    (
        "symbolic sizes are checked",
        "        return [number[size]] if size in number else None",
        "        return None",
    ),
)

TUPLES = _mutants(
    "lower/tuple_objects.py",
    ("lower/test_tuple_objects.py", "-k", "test_rule or compile- or overwrites"),
    (
        "an operator is given the fields of an object",
        "            args = [self._value(arg, var, out) for arg in call.args[:]]",
        "            args = call.args[:]",
    ),
    (
        "what overwrites a tensor is run if nobody reads its result",
        '            if is_operator and op.name == "relax.call_tir_inplace" and var not in self.used:',
        "            if False:",
    ),
    (
        "an operator's tuple that is stored becomes an object",
        "        if is_tuple(var.ty) and var in self.wanted:",
        "        if False:",
    ),
    (
        "a tuple that is made and stored is an object",
        "        if not fields or not (var in self.wanted or any(is_tuple(field.ty) for field in fields)):",
        "        if True:",
    ),
    (
        "a cast of a tuple checks",
        '            if not isinstance(ty, relax.AnyType):\n                out.append(relax.MatchCast(type(var)("cast", ty), object, ty))\n',
        "",
    ),
    (
        "an update's result is the tuple",
        "        if not is_statement(var):\n            self._named(var, object)\n",
        "",
    ),
)

KILLS = _mutants(
    "lower/kill_registers.py",
    ("lower/test_kill_registers.py",),
    (
        "what is returned is not killed",
        "    for var in relax.analysis.free_vars(sequence.body)[:]:\n        last_use.pop(var, None)\n",
        "",
    ),
    (
        "the last use is the last one",
        "            for one in _used_by(value, kind):\n                if one in last_use:\n                    last_use[one] = var\n",
        "",
    ),
    (
        "operands in a tuple are used",
        "        if any(type(arg) is relax.Tuple for arg in args):\n            return list(relax.analysis.free_vars(value)[:])\n",
        "",
    ),
    (
        "what a tuple is read from is used",
        "        return [value.tuple_value]\n",
        "        return []\n",
    ),
    (
        "a second name uses the first",
        "    if kind is relax.Var:\n        return [value]\n",
        "    if kind is relax.Var:\n        return []\n",
    ),
    (
        "what an outer sequence has bound is not killed in a branch",
        "                if one in last_use:\n                    last_use[one] = var\n",
        "                last_use[one] = var\n",
    ),
    (
        "what is killed already is not killed again",
        "                last_use.pop(value.args[0], None)  # it is killed already\n",
        "                pass\n",
    ),
)

SPLIT = _mutants(
    "lower/split.py",
    ("lower/test_split.py",),
    (
        "what both reach is in both",
        "        if gvar not in updating and (gvar not in ours or _is_public(function))",
        "        if gvar not in ours",
    ),
    (
        "what the rest reaches stays, if ours do, too",
        "    rest = _reached(mod, others)",
        "    rest = others",
    ),
    (
        "another function of that name is an error",
        "        if name in taken:\n            raise",
        "        if False:\n            raise",
    ),
    (
        "kernels that call kernels are reached",
        "        tvm_ffi.structural_walk(function.body, (ir.GlobalVar, found.append))\n",
        "        pass\n",
    ),
    (
        "a new name is free",
        "            used.add(name)\n",
        "            used.clear()\n",
    ),
    (
        "a name is changed wherever it is used",
        "        function = tvm_ffi.structural_map(function, (ir.GlobalVar, lambda one: new.get(one, one)))\n",
        "",
    ),
    (
        "symbols are renamed",
        '            function = function.with_attr("global_symbol", new[gvar].name_hint)',
        "            pass",
    ),
    (
        "libraries of both are kept",
        "[*attrs.get(_LIBRARIES, ()), *added[_LIBRARIES]]",
        "[*added[_LIBRARIES]]",
    ),
    (
        "constants of both are kept",
        "{**dict(attrs.get(_CONSTANTS, {})), **dict(added[_CONSTANTS])}",
        "dict(added[_CONSTANTS])",
    ),
    (
        "libraries that were there are linked once",
        "if k not in (_LIBRARIES, _CONSTANTS)}",
        "}",
    ),
)

BUILD = _mutants(
    "lower/build.py",
    (
        "lower/test_split.py",
        "lower/test_user_pipeline.py",
        "lower/test_ownership.py",
        "-k",
        "split or user_pipeline",
    ),
    (
        "what both parts give to an accelerator has two names",
        '        mod = renamed(mod, [name for name in apart if not name.startswith("inplace_")])\n',
        "",
    ),
    (
        "ownership is checked after the caller's passes",
        "        _check(ours, functions_that_update(ours))  # they may have taken two tuples for one\n",
        "",
    ),
    (
        "a reference goes through the caller's pipeline",
        "    roots = {gvar for gvar in updating if gvar not in references}",
        "    roots = set(updating)",
    ),
)

USER = _mutants(
    "lower/user_pipeline.py",
    ("lower/test_user_pipeline.py",),
    (
        "a pipeline that is not known is said",
        "return self._outermost == 1 < len(self.names) and self._packages <= set(_KNOWN)",
        "return True",
    ),
    (
        "passes before a known pipeline may be anyone's",
        "return self._outermost == 1 < len(self.names) and",
        "return",
    ),
    (
        "functions in between may be anyone's",
        " and self._packages <= set(_KNOWN)",
        "",
    ),
    (
        "one pass alone is no pipeline",
        "self._outermost == 1 < len(self.names)",
        "self._outermost == 1",
    ),
    (
        "what is fused there is fused here",
        "        self.fuses = _FUSES in seen.names",
        "        self.fuses = False",
    ),
    (
        "what is not fused there is not fused here",
        "        self.fuses = _FUSES in seen.names",
        "        self.fuses = True",
    ),
    (
        "the caller's context does not end",
        "        if not context.instruments:\n",
        "        if True:\n",
    ),
    (
        "no instrument of ours is left",
        "            finally:\n                context.override_instruments([])",
        "            finally:\n                pass",
    ),
    (
        "a pipeline that fails at a module of nothing is looked at on the caller's",
        "            self._run(mod.clone())\n",
        "            self._run(ir.IRModule())\n",
    ),
    (
        "what a pipeline does to the module that it is given is not done twice",
        "            self._run(mod.clone())\n",
        "            self._run(mod)\n",
    ),
    (
        "the caller's options hold where it is looked at",
        "            dict(context.config),\n",
        "            {},\n",
    ),
    (
        "a pipeline that asks for our function is refused by name",
        "            if not asked:\n                raise\n",
        "            raise\n",
    ),
)

PIPELINE = _mutants(
    "lower/pipeline.py",
    (
        "lower/test_tuple_objects.py",
        "lower/test_entry_check.py",
        "lower/test_user_pipeline.py",
        "-k",
        "number or None or comes_first or disabled or fused",
    ),
    (
        "the check of the arguments is the first",
        "[relax.VarBinding(first[0].var, check, first[0].span), *others]",
        "[*others[:1], relax.VarBinding(first[0].var, check, first[0].span), *others[1:]]",
    ),
    (
        "it is given the arguments themselves",
        "    args = [*call.args[:2], *function.params[:]]",
        "    args = call.args[:]",
    ),
    (
        "nothing is fused that was not",
        "        legalize = [one for one in legalize if one.info.name not in _FUSION]\n",
        "        pass\n",
    ),
    (
        "donation may be disabled",
        "        last = tvm.transform.Sequential([DonateStorage()])  # which PassContext may disable",
        "        last = DonateStorage()",
    ),
)

# -- what calls do --------------------------------------------------------------------------------

EFFECTS = _mutants(
    "ir/effects.py",
    ("ir/test_effects.py",),
    (
        "of a function that calls itself nothing is known",
        "return unknown(operands(call)) if summary is None else summary.at(function, call.args[:])",
        "return Effects() if summary is None else summary.at(function, call.args[:])",
    ),
    (
        "of a local function that calls itself nothing is known",
        "            if function is None:\n                return unknown(operands(expr))\n",
        "            if function is None:\n                return Effects()\n",
    ),
    (
        "of a function that is nowhere nothing is known",
        "        if type(function) is not relax.Function:\n            return unknown(operands(call))\n",
        "        if type(function) is not relax.Function:\n            return Effects()\n",
    ),
    (
        "a kernel that is nowhere may store to all",
        "            return given\n",
        "            return []\n",
    ),
    (
        "a call of a kernel, lowered, overwrites what that stores to",
        "            return Effects(overwrites=written, allocates=False)\n",
        "            return Effects(allocates=False)\n",
    ),
    (
        "what either branch overwrites may be overwritten: the first",
        "        list(set().union(*(branch.overwrites for branch in branches))),",
        "        list(branches[1].overwrites),",
    ),
    (
        "what either branch overwrites may be overwritten: the second",
        "        list(set().union(*(branch.overwrites for branch in branches))),",
        "        list(branches[0].overwrites),",
    ),
    (
        "the result may be that of either branch: the first",
        "        list(set().union(*(branch.aliases for branch in branches))),",
        "        list(branches[1].aliases),",
    ),
    (
        "the result may be that of either branch: the second",
        "        list(set().union(*(branch.aliases for branch in branches))),",
        "        list(branches[0].aliases),",
    ),
    (
        "what either branch keeps may be kept",
        "        list(set().union(*(branch.keeps for branch in branches))),",
        "        [],",
    ),
    (
        "a branch that is not known makes the choice so",
        "is_known=all(branch.is_known for branch in branches)",
        "is_known=any(branch.is_known for branch in branches)",
    ),
    (
        "a function does what the calls in it do: they overwrite",
        "            given(operand for effects in done for operand in effects.overwrites),",
        "            set(),",
    ),
    (
        "a function does what the calls in it do: they keep",
        "            given(operand for effects in done for operand in effects.keeps),",
        "            set(),",
    ),
    (
        "a function with a call that is not known is not known",
        "            all(effects.is_known for effects in done),",
        "            True,",
    ),
    (
        "the result of a function may be what it is given",
        "            given([result]),",
        "            set(),",
    ),
    (
        "what a function returns of what it is given is not new memory",
        "            not (is_var(result) and result not in bound),",
        "            False,",
    ),
    (
        "a view that is made in a dataflow block is traced to its operand",
        "                        pending += table.shares(bound[var]) if var in bound else ()",
        "                        pending += table.of(bound[var]).aliases if var in bound else ()",
    ),
    (
        "a view is traced to its operand",
        "return self.of(expr).aliases if view is None else [view]",
        "return [] if view is None else [view]",
    ),
    (
        "a closure does what it does to what it captures",
        "            return [leaf for var in variables for leaf in leaves(arg_of.get(var, var))]",
        "            return [leaf for var in variables & set(arg_of) for leaf in leaves(arg_of[var])]",
    ),
    (
        "what a call does it does to all that is in a tuple",
        "            return [leaf for var in variables for leaf in leaves(arg_of.get(var, var))]",
        "            return [arg_of.get(var, var) for var in variables]",
    ),
    (
        "several kernels may be a view",
        "                return operand\n            kernel = legalized.kernel",
        "                return None\n            kernel = legalized.kernel",
    ),
    (
        "a name, a field and a tuple are what they are made of",
        "        return Effects(aliases=operands(expr), allocates=False)\n\n    def view_if",
        "        return Effects(allocates=False)\n\n    def view_if",
    ),
)

EFFECT_ROWS = _mutants(
    "ir/effect_rows.py",
    ("ir/test_effects.py",),
    (
        "a kernel overwrites the inputs that it stores to",
        "    return Effects(overwrites=written) if written else _KERNEL",
        "    return _KERNEL",
    ),
    (
        "so does a kernel that is given its results",
        "    return Effects(overwrites=stored(call), allocates=False)",
        "    return Effects(allocates=False)",
    ),
    (
        "so does one in place, besides what its result lies in",
        "Effects([*aliased, *others], aliased,",
        "Effects(aliased, aliased,",
    ),
    (
        "a kernel in place overwrites what its result lies in",
        "Effects([*aliased, *others], aliased,",
        "Effects(others, aliased,",
    ),
    (
        "one that is in place in part allocates the rest",
        "aliased, (), len(aliased) < len(lies_in), lies_in=lies_in)",
        "aliased, (), False, lies_in=lies_in)",
    ),
    (
        "a field that is not in place is new",
        "    lies_in = [given[i] if i >= 0 else None for i in map(int, call.attrs.inplace_indices[:])]\n    aliased",
        "    lies_in = [given[i] for i in map(int, call.attrs.inplace_indices[:])]\n    aliased",
    ),
    (
        "a packed function in place overwrites what its result lies in",
        "    return Effects(written, operands(call), operands(call), allocates, lies_in=lies_in)",
        "    return Effects((), operands(call), operands(call), allocates, lies_in=lies_in)",
    ),
    (
        "a packed function in place may keep what it is given",
        "    return Effects(written, operands(call), operands(call), allocates, lies_in=lies_in)",
        "    return Effects(written, operands(call), (), allocates, lies_in=lies_in)",
    ),
    (
        "a packed function in place that makes new fields allocates",
        "    allocates = len(written) < len(lies_in)",
        "    allocates = False",
    ),
    (
        "an operator that is not known may return what it is given",
        "    given = operands(call)\n    return Effects(aliases=given, keeps=given)",
        "    given = operands(call)\n    return Effects(keeps=given)",
    ),
    (
        "an operator that is not known may keep what it is given",
        "    given = operands(call)\n    return Effects(aliases=given, keeps=given)",
        "    given = operands(call)\n    return Effects(aliases=given)",
    ),
    (
        "an impure operator that is not known may do anything",
        '    if not op.get_attr("FPurity"):\n        return _unknown\n',
        "",
    ),
    (
        "an operator that becomes no kernel is not known",
        '    return _KERNEL if op.get_attr("FLegalize") else _pure',
        "    return _KERNEL",
    ),
    (
        "a closure that is invoked may do anything, though TVM takes it for pure",
        '    "relax.invoke_pure_closure": _unknown,',
        '    "relax.invoke_pure_closure": _COMPUTES,',
    ),
    (
        "an update keeps what it stores",
        "    return Effects(args[:1], args[:1], list(leaves(args[2])), allocates=False)",
        "    return Effects(args[:1], args[:1], (), allocates=False)",
    ),
    (
        "an update overwrites a slot",
        "    return Effects(args[:1], args[:1], list(leaves(args[2])), allocates=False)",
        "    return Effects((), args[:1], list(leaves(args[2])), allocates=False)",
    ),
    (
        "what may do anything is not known",
        "    return Effects(given, given, given, is_known=False)",
        "    return Effects(given, given, given)",
    ),
    (
        "an impure packed function may do anything",
        "return Effects(aliases=given, keeps=given) if is_pure else unknown(given)",
        "return Effects(aliases=given, keeps=given)",
    ),
    (
        "a pure packed function may return and keep what it is given",
        "return Effects(aliases=given, keeps=given) if is_pure else unknown(given)",
        "return Effects() if is_pure else unknown(given)",
    ),
    (
        "operands in tuples are operands",
        "        for field in expr.fields[:]:\n            yield from leaves(field)",
        "        yield from ()",
    ),
    (
        "a closure that is called is an operand",
        "        return [*found, expr.op] if is_var(expr.op) else found",
        "        return found",
    ),
    (
        "an offset that is not zero makes a copy",
        '    "relax.memory.ensure_zero_offset": _view_or_copy,',
        '    "relax.memory.ensure_zero_offset": _view,',
    ),
    (
        "an offset that is zero makes no copy",
        '    "relax.memory.ensure_zero_offset": _view_or_copy,',
        '    "relax.memory.ensure_zero_offset": _COMPUTES,',
    ),
    (
        "what is on its device is not copied",
        '    "relax.to_vdevice": _view_or_copy,',
        '    "relax.to_vdevice": _COMPUTES,',
    ),
    (
        "a slot that is emptied is overwritten",
        "lambda args: Effects(overwrites=args[:1], allocates=False)",
        "lambda args: Effects(allocates=False)",
    ),
    (
        "what allocates is no view",
        "        return bool(self.aliases) and not self.allocates",
        "        return bool(self.aliases)",
    ),
)

KERNEL_WRITES = _mutants(
    "ir/kernel_writes.py",
    ("ir/test_effects.py",),
    (
        "a kernel writes what it stores to",
        "        written.add(store.buffer)",
        "        pass",
    ),
    (
        "a kernel writes what a block says that it writes",
        "            written.update(writes)\n",
        "",
    ),
    (
        "an address that is handed out may be written to",
        "            if may_write and buffer not in only_read:",
        "            if False:",
    ),
    (
        "an address of an element is one of the buffer",
        "        return args[0].source\n",
        "        return None\n",
    ),
    (
        "the data of a buffer are its memory",
        "    if op.same_as(_BUFFER_DATA):\n        return args[0]\n",
        "",
    ),
    (
        "a pointer that may be written through",
        "bool(int(mask) & _WRITE)",
        "False",
    ),
    (
        "a pointer of which it is not known whether it may be written through",
        "not isinstance(mask, tirx.IntImm) or bool(",
        "isinstance(mask, tirx.IntImm) and bool(",
    ),
)

# -- the order of what overwrites -----------------------------------------------------------------

MEMORY_ORDER = _mutants(
    "inplace/memory_order.py",
    ("inplace/test_memory_order.py",),
    (
        "what is overwritten was read before",
        "                before += touching\n",
        "",
    ),
    (
        "what was overwritten is read after",
        "                self._last_writer[buffer] = step\n",
        "",
    ),
    (
        "what two steps overwrite they overwrite in order",
        "before = [] if writer is None else [writer]",
        "before = [] if writer is None or buffer in overwritten else [writer]",
    ),
    (
        "a result may lie in the memory of an operand",
        "            self._memory[var] = frozenset(aliased.union(buffers_of(self.graph.layout(var))))",
        "            pass",
    ),
    (
        "what one packed function has kept another one may overwrite",
        "            self._kept |= self._memory_of(effects.keeps)\n",
        "",
    ),
    (
        "or has overwritten",
        "            overwritten.add(self._elsewhere)\n",
        "",
    ),
    (
        "or may return",
        "            aliased.add(self._elsewhere)\n",
        "",
    ),
    (
        "what touches what has been kept is in order with it",
        "            touched.add(self._elsewhere)\n",
        "            pass\n",
    ),
    (
        "what is a view or a copy is not touched when one of them is overwritten",
        '            self.require_settled(touched, f"`{var.name} = {one_line(value)}`")',
        "            pass",
    ),
    (
        "it is noted when one of them is overwritten",
        "            self._unsettled.update(dict.fromkeys(copies, ",
        "            dict(dict.fromkeys(copies, ",
    ),
    (
        "what may be a view is overwritten, too",
        "        overwritten |= copies\n",
        "",
    ),
    (
        "what a step overwrites is known",
        "        step.overwrites |= overwritten\n",
        "",
    ),
    (
        "what may turn out to be a view is noted",
        "            self._note(kernel, touched)\n",
        "            pass\n",
    ),
    (
        "what is a view of a view is, too",
        "                    pending += both - found\n",
        "",
    ),
    (
        "a view is found from what it is a view of",
        "both = self.memory(kernel.binding.var) | self.memory(operand)",
        "both = self.memory(operand)",
    ),
    (
        "what it is a view of is found from the view",
        "both = self.memory(kernel.binding.var) | self.memory(operand)",
        "both = self.memory(kernel.binding.var)",
    ),
    (
        "a field lies in the memory of its tuple",
        "        while isinstance(owner, relax.TupleGetItem):\n            owner = owner.tuple_value\n",
        "",
    ),
    (
        "a tuple lies in the memory of its fields",
        "            return frozenset().union(*map(self.memory, owner.fields[:]))",
        "            return frozenset()",
    ),
)

READ = _mutants(
    "inplace/read_transform.py",
    (
        "inplace/test_memory_order.py",
        "inplace/test_memory_plan.py",
        "inplace/test_inplace_transform_params.py",
        "-k",
        "not_to_be_modified or own_is_refused or impure_calls or may_be_a_weight",
    ),
    (
        "a pure call overwrites nothing that is not to be modified",
        "                self._require_own(step, value)",
        "                pass",
    ),
    (
        "an input is not to be modified",
        "        return buffer in self.leading or (weight",
        "        return (weight",
    ),
    (
        "nor a weight that is left out",
        "(weight is not None and not weight.is_modifiable)",
        "False",
    ),
    (
        "impure calls keep their order",
        "                step.after[self.last_impure] = None\n",
        "                pass\n",
    ),
    (
        "the result of a choice may be what a branch captures",
        "            return self._with_captured(layout, value)",
        "            return layout",
    ),
)

# -- what TVM fuses -------------------------------------------------------------------------------

FUSION = _mutants(
    "inplace/fusion.py",
    (
        "inplace/test_fusion.py",
        "inplace/test_memory_plan.py",
    ),
    (
        "what is fused is known",
        "    if not any(_may_fuse(block) for block in blocks):",
        "    if True:",
    ),
    (
        "through tuples, too",
        "            computed.add(binding.var)\n    return False",
        "            pass\n    return False",
    ),
    (
        "what is dead is fused with nothing",
        "        copy = relax.analysis.remove_all_unused(copy)\n",
        "",
    ),
    (
        "a view moves no element",
        "isinstance(binding.var, relax.DataflowVar) or not self.effects.moves_nothing(kernel):",
        "isinstance(binding.var, relax.DataflowVar):",
    ),
    (
        "what leaves a dataflow block is copied",
        "if not isinstance(binding.var, relax.DataflowVar) or not self.effects",
        "if not self.effects",
    ),
    (
        "each group is one",
        "            group = len(fusion.group_of)\n",
        "            group = 0\n",
    ),
    (
        "a kernel that is given a tuple is fused with what makes it",
        "    return isinstance(var.ty, (relax.TensorType, relax.TupleType))",
        "    return isinstance(var.ty, relax.TensorType)",
    ),
    (
        "kernels of several results are given to FuseOps as others",
        "    types = ty.fields[:] if isinstance(ty, relax.TupleType) else [ty]",
        "    types = [ty]",
    ),
)

KERNELS = _mutants(
    "ir/kernels.py",
    ("ir/test_kernels.py",),
    (
        "operators of other attributes have other kernels",
        "            StructuralKey(value.attrs),\n",
        "",
    ),
    (
        "other operators have other kernels",
        "            value.op,\n",
        "",
    ),
    (
        "operands of other types have other kernels",
        "        return position.get(arg), StructuralKey(arg.ty)",
        "        return position.get(arg)",
    ),
    (
        "an operand that is given twice is one",
        "        return position.get(arg), StructuralKey(arg.ty)",
        "        return StructuralKey(arg.ty)",
    ),
    (
        "other constants have other kernels",
        "    return StructuralKey(arg)\n",
        "    return None\n",
    ),
    (
        "operands in tuples, too",
        "        return tuple(_key_of(field, position) for field in arg.fields[:])",
        "        return len(arg.fields)",
    ),
    (
        "several kernels are not one",
        '    if len(calls) != 1 or calls[0].op != ir.Op.get("relax.call_tir"):',
        '    if calls[0].op != ir.Op.get("relax.call_tir"):',
    ),
    (
        "what is no kernel is none",
        '    if len(calls) != 1 or calls[0].op != ir.Op.get("relax.call_tir"):',
        "    if len(calls) != 1:",
    ),
)

LEGALIZE_ONCE = _mutants(
    "lower/legalize_once.py",
    ("lower/test_legalize_once.py",),
    (
        "the kernel computes what the call does",
        "            if not tvm_ffi.structural_equal(legalized.ty, call.ty):",
        "            if False:",
    ),
    (
        "what is given to the kernel is a variable of the call",
        "            if legalized is None or None in legalized.operands:",
        "            if legalized is None:",
    ),
    (
        "operands are in the order of the kernel",
        "relax.Tuple([given[index] for index in legalized.operands])",
        "relax.Tuple(given)",
    ),
)

WHOLE_BYTES = _mutants(
    "ir/whole_bytes.py",
    ("ir/test_whole_bytes.py",),
    (
        "a packed type has no whole bytes",
        "    return bits % 8 != 0 or bits & (bits - 1) != 0",
        "    return bits & (bits - 1) != 0",
    ),
    (
        "or whole bytes that are no power of two",
        "    return bits % 8 != 0 or bits & (bits - 1) != 0",
        "    return bits % 8 != 0",
    ),
    (
        "packed elements are not computed with",
        '                return _reason(f"{name} computes with',
        '                str(f"{name} computes with',
    ),
    (
        "packed elements are not made",
        "        packed = _packed_in(binding.var.ty)\n        if packed is not None:",
        "        packed = _packed_in(binding.var.ty)\n        if False:",
    ),
    (
        "a kernel is called",
        '        return f"`{callee.name_hint}`", args\n    if not',
        "        return None\n    if not",
    ),
    (
        "what a function calls is looked at",
        "                    pending.append((called, ",
        "                    str((called, ",
    ),
    (
        "a packed constant is refused",
        "        reason = _packed_constant(function, bindings)\n",
        "        reason = None\n",
    ),
    (
        "in a branch, too",
        "            bodies += [value.true_branch.body, value.false_branch.body]",
        "            pass",
    ),
    (
        "in a local function, too",
        "            bodies.append(value.body.body)",
        "            pass",
    ),
    (
        "as an operand, too",
        "            bodies += value.args[2:] if is_update(value) else value.args[:]",
        "            pass",
    ),
    (
        "in a tuple, too",
        "        elif kind is relax.Tuple or kind is ir.GenericConst:",
        "        elif kind is ir.GenericConst:",
    ),
    (
        "a cast may say that there is a packed tensor",
        "        if is_made or isinstance(binding, relax.MatchCast):",
        "        if is_made:",
    ),
    (
        "a call may make a packed tensor",
        "        if is_made or isinstance(binding, relax.MatchCast):",
        "        if isinstance(binding, relax.MatchCast):",
    ),
    (
        "a function that updates is refused before it is lowered",
        "    if reason is not None:\n        attrs",
        "    if False:\n        attrs",
    ),
)

# -- kernels that are fused -----------------------------------------------------------------------

INLINING = _mutants(
    "relayout/inlining.py",
    ("relayout/test_inlining.py",),
    (
        "what could round otherwise is left",
        "    if any(_could_round_otherwise(written[source], block) for source in sources):",
        "    if False:",
    ),
    (
        "no operation is simplified away",
        "    if _operations(value) != _operations(analyzer.simplify(value)):",
        "    if False:",
    ),
    (
        "operations are counted",
        "        found[kind, dtype] += 1",
        "        found[kind, dtype] = 1",
    ),
    (
        "a bfloat16 that is computed is rounded",
        '        return not kinds <= {"TensorLoad", *_CHOICES}',
        "        return False",
    ),
    (
        "so is a float8",
        '    if dtype.startswith(("bfloat", "float8", "float6", "float4")):',
        '    if dtype.startswith("bfloat"):',
    ),
    (
        "a quotient may be a product",
        '{"Mul", "Div", "FloorDiv", "FloorMod", "Mod"}',
        '{"Mul"}',
    ),
    (
        "a difference is a sum",
        '_SUMS = {"Add", "Sub"}',
        '_SUMS = {"Add"}',
    ),
    (
        "a function may do anything inside",
        'kind in wanted or ("." in kind and kind not in _CHOICES)',
        "kind in wanted",
    ),
    (
        "a buffer that two blocks write is left",
        "block.buffer in written or ",
        "",
    ),
    (
        "what is read before it is overwritten is not read afterwards",
        " or block.buffer in read:",
        ":",
    ),
    (
        "a kernel of other blocks is left",
        "        return function if _has_one_block(function) else None",
        "        return function",
    ),
    (
        "a name in an expression may hide another one",
        " and not any(isinstance(node, tirx.Let) for node in nodes)",
        "",
    ),
    (
        "an element is read where the block has written it",
        "(relax.Var, lambda var: at.get(var, var))",
        "(relax.Var, lambda var: var)",
    ),
    (
        "a large expression is left",
        "    return len(nodes) <= _MOST_NODES and",
        "    return",
    ),
)

LIBRARY = _mutants(
    "lower/kernel_libraries.py",
    (
        "lower/test_schedule_relayouts.py",
        "lower/test_model_unchanged.py",
        "lower/test_kernel_libraries.py",
        "-k",
        "numbers or one_memory or library or outputs or code or kernel_libraries",
    ),
    (
        "kernels are compiled apart from the model's",
        '    if target_of(target).kind.name != "llvm":',
        "    if True:",
    ),
    (
        "those of distinct memory are not compiled with the others",
        "    return [group for group in (distinct, shared) if group]",
        "    return [kernels] if kernels else []",
    ),
    (
        "a kernel is compiled with what it calls",
        "        together = {g for g, called in calls.items() if called & others}",
        "        together = set()",
    ),
    (
        "what is called is compiled with the kernel",
        "        together = (together | others).union(*(calls[g] for g in others))",
        "        together = together | others",
    ),
    (
        "the others are all taken for shared memory",
        "f.with_attr(_NO_ALIAS, False) for g, f in kernels.items() if g in others",
        "f for g, f in kernels.items() if g in others",
    ),
    (
        "a compiled function has the VM call them",
        '    if exec_mode == "compiled":',
        "    if False:",
    ),
    (
        "a system library has a prefix",
        "    if _is_system_library(target, system_lib):",
        "    if False:",
    ),
    (
        "the libraries of the module are kept",
        "    libraries = list(attrs.get(_LIBRARIES, ()))",
        "    libraries = []",
    ),
)

# -- the function that is written -----------------------------------------------------------------

WRITER = _mutants(
    "inplace/function_writer.py",
    (
        "inplace/test_memory_plan.py",
        "inplace/test_inplace_transform_params.py",
        "-k",
        "memory_plan or test_form or left_out or one_tuple or another_step or (before_and_after and cpu) or captures or local_function",
    ),
    (
        "what others need of a step's tuple is read at once",
        "            for kernel in step.kernels:\n                self._read_fields(kernel.binding.var)\n",
        "",
    ),
    (
        "a field is read where it is in the tuple",
        '                field = self.blocks.bind("field", relax.TupleGetItem(field, index))\n',
        '                field = self.blocks.bind("field", relax.TupleGetItem(field, 0))\n',
    ),
    (
        "the outputs need fields of a step's tuple, too",
        "    for output in graph.outputs:\n        visit(output, None)\n    return found",
        "    return found",
    ),
    (
        "so do the operands of other steps",
        "                visit(part, step)\n",
        "                pass\n",
    ),
    (
        "so do tuples that are made of fields",
        "            for field in value.fields[:]:\n                visit(field, by)\n",
        "            pass\n",
    ),
    (
        "a slot is replaced when its weight is spent",
        "            weight in self.spent and weight.is_modifiable for",
        "            weight.is_modifiable for",
    ),
    (
        "a slot whose weight is left out is not emptied at the end",
        "            if index in stays or not all(weight.is_modifiable for weight in weights):",
        "            if index in stays:",
    ),
    (
        "a function that leaves weights out returns another tuple",
        "            weights[0].is_modifiable or self._is_own(index)",
        "            True",
    ),
    (
        "what leaves a fused step is no variable of its block",
        "                if runs_in.get(made_in, made_in) is not runs_in.get(step, step):",
        "                if False:",
    ),
    (
        "an output that a fused step makes is no variable of its block",
        "    for output in graph.outputs:\n        escaping.update(graph.variables(output))\n",
        "",
    ),
    (
        "a register holds a weight during one step only",
        "                self._finish(index)\n            self.reads = {}\n",
        "                self._finish(index)\n",
    ),
    (
        "outputs that are weights are stored at the end",
        "        waiting: set[int] = set(moved)",
        "        waiting: set[int] = set()",
    ),
    (
        "two outputs that are one tuple are one",
        "        if output not in self.made:",
        "        if True:",
    ),
    (
        "a nested tuple may outlive its slot",
        "                self.tuples.empty(weight)  # its tuple may outlive the slot that is replaced\n",
        "                pass\n",
    ),
)

SCHEDULE = _mutants(
    "inplace/schedule.py",
    ("inplace/test_memory_plan.py",),
    (
        "a weight that is left out is not freed",
        "    kept |= {weight.buffer for weight in weights if not weight.is_modifiable}\n",
        "",
    ),
)

UPDATED = _mutants(
    "inplace/updated_tuples.py",
    (
        "inplace/test_inplace_transform_params.py",
        "-k",
        "test_form and passes",
    ),
    (
        "a new tuple of all fields of an old one is not taken for that",
        "        if not fields or any(self.field_read.get(field)",
        "        if True or any(self.field_read.get(field)",
    ),
)

# -- what a kernel moves ---------------------------------------------------------------------------

DESCRIPTIONS = [
    *_mutants(
        "relayout/coverage.py",
        ("relayout/test_coverage.py",),
        ("no box is no places", "        return size == 0\n", "        return True\n"),
        (
            "a run begins with the first place",
            "return base == 0 and digits ==",
            "return digits ==",
        ),
        ("so does the first part", "    if starts[0] != 0:\n", "    if False:\n"),
        (
            "each part ends where the next one begins",
            "zip(groups, starts, ends, strict=True)",
            "zip(groups[1:], starts[1:], ends[1:])",
        ),
        (
            "rows change in a known order",
            "    if not all(is_at_least_zero(b - a) for a, b in itertools.pairwise(order)):\n",
            "    if False:\n",
        ),
        (
            "and in no other rows",
            "    if order[0] != 0 or order[-1] != (rows if rest == 0 else rows + 1):\n",
            "    if False:\n",
        ),
        (
            "a last tile is left out only where its rim is there",
            "            if any(over(other, Polynomial.of(rim)) is not None for other in others):\n",
            "            if True:\n",
        ),
        (
            "each row is tiled",
            "        if not _tile(there, below, known):\n",
            "        if False:\n",
        ),
    ),
    *_mutants(
        "relayout/size.py",
        ("relayout/test_size.py",),
        (
            "a negative term is not above 0",
            "    return all(number >= 0 for number in terms_of(evaluate(size, values)).values())\n",
            "    return True\n",
        ),
        (
            "only what is linear is settled by its ends",
            "unknown.high is not None and _is_linear_in(size, unknown)",
            "unknown.high is not None",
        ),
        (
            "both ends",
            "            ends = (low, unknown.high)\n",
            "            ends = (low, low)\n",
        ),
    ),
    *_mutants(
        "relayout/read_description.py",
        ("relayout/test_read_description.py", "-k", "not_taken"),
        (
            "what is computed where it is not taken is there",
            "            if not values.is_inside(expr):\n",
            "            if False:\n",
        ),
        (
            "nor is anything divided by it",
            "        if isinstance(expr, _DIVISIONS) or (",
            "        if (",
        ),
        (
            "nor called",
            "            isinstance(expr, ir.Call) and choice_of(expr) is None and not is_of_bits(expr)\n",
            "            False\n",
        ),
    ),
    *_mutants(
        "relayout/read_description.py",
        ("relayout/test_read_description.py", "-k", "refused or any_loops or any_kernels"),
        (
            "each place is written once",
            "        if not tile((box_of(piece) for piece in found), self._bits[output]):\n",
            "        if False:\n",
        ),
        (
            "what is read is not written",
            "        if any(param in pieces for relayout in found for param in relayout.inputs):\n",
            "        if False:\n",
        ),
        (
            "shifted bits are in the element",
            "        if not sizes.is_within(source.bit, source.width - field.width + 1):\n",
            "        if False:\n",
        ),
        (
            "values do not depend on their places",
            "any(not any(v.same_as(s) for s in own) for v in",
            "any(False for v in",
        ),
        (
            "buffers are row-major",
            "        if not bits or not plain or not starts:\n",
            "        if not bits:\n",
        ),
        (
            "no threads",
            "        if body.kind not in _SERIAL or body.step is not None:\n",
            "        if body.step is not None:\n",
        ),
        (
            "loops have a length",
            "            if not is_at_least_zero(size) and size not in self._dimensions:\n",
            "            if False:\n",
        ),
        (
            "stores have their conditions",
            "        if not all(indices.holds(condition) is said for condition, said in store.conditions):\n",
            "        if False:\n",
        ),
    ),
    *_mutants(
        "relayout/tir_forms.py",
        ("relayout/test_read_description.py", "-k", "refused or any_loops or what_is_read"),
        (
            "unsigned indices may wrap around",
            "            if not self.sizes.is_within(form if known[1] else form.plus(constant(half)), 2 * half):\n",
            "            if False:\n",
        ),
        (
            "numbers that are no sizes may be below 0",
            "        if self.sizes.variables is not None and var not in self.sizes.variables:\n",
            "        if False:\n",
        ),
        (
            "unsigned comparisons, too",
            '        if str(condition.a.ty) not in ("int32", "int64"):\n',
            "        if False:\n",
        ),
        (
            "a division towards 0 is another one below it",
            "            if low is None or not self.sizes.is_at_least(low, 0):\n",
            "            if False:\n",
        ),
    ),
    *_mutants(
        "relayout/index.py",
        ("relayout/test_read_description.py", "-k", "refused or any_moves or what_is_read"),
        (
            "a rest is 0 or more",
            "        return self.is_at_least(low, 0) and self.is_at_least(size - 1, high)\n",
            "        return self.is_at_least(size - 1, high)\n",
        ),
        (
            "and below the divisor",
            "        return self.is_at_least(low, 0) and self.is_at_least(size - 1, high)\n",
            "        return self.is_at_least(low, 0)\n",
        ),
        (
            "divisors are above 0",
            "        if by == 0 or not is_at_least_zero(by):",
            "        if by == 0:",
        ),
    ),
    *_mutants(
        "relayout/cutting.py",
        ("relayout/test_read_description.py", "-k", "refused or pad or loops"),
        (
            "a border is in the box",
            "    if not is_at_least_zero(border) or not is_at_least_zero(digit.extent - border):\n",
            "    if False:\n",
        ),
    ),
    *_mutants(
        "relayout/element_parts.py",
        (
            "relayout/test_description_kernel.py",
            "-k",
            "refused or be_0 or bits or pad or axis",
        ),
        (
            "bits lie in one element",
            "    if low >= 0 and high + unit <= wide:\n",
            "    if True:\n",
        ),
    ),
    *_mutants(
        "relayout/element_indices.py",
        (
            "relayout/test_description_kernel.py",
            "-k",
            "refused or be_0 or bits or pad or axis",
        ),
        (
            "steps stay in an axis",
            "            if not all(_is_at_least_zero(rest, positive) for rest in (least, length - 1 - most)):\n",
            "            if False:\n",
        ),
        (
            "places follow each other",
            "            if not self._is_at_least(step - 1, span):\n",
            "            if False:\n",
        ),
        (
            "a box has a beginning",
            "            if first != 0 or goes_on:\n",
            "            if False:\n",
        ),
        (
            "what goes on has a beginning",
            "            if first != 0 or goes_on:\n",
            "            if first != 0:\n",
        ),
        (
            "a box has an end",
            "            if not self._is_at_least((first + extents[at]) * step, size):\n",
            "            if False:\n",
        ),
        (
            "what goes on in the next step is counted from there",
            "            goes_on = not self._is_at_least(step - 1, rest + span)\n",
            "            goes_on = False\n",
        ),
        (
            "a place of its own is a condition",
            "        if size != 1:\n",
            "        if False:\n",
        ),
        (
            "nothing is divided by 0",
            "        if not self._is_at_least(size, 1) and over(self._count, size) is None:\n",
            "        if False:\n",
        ),
        (
            "what falls is counted from the end",
            "        backwards = falls == {True}\n",
            "        backwards = False\n",
        ),
        (
            "both ways are refused",
            "        if len(falls) > 1:\n",
            "        if False:\n",
        ),
    ),
    *_mutants(
        "relayout/description_kernel.py",
        (
            "relayout/test_description_kernel.py",
            "-k",
            "refused or be_0 or bits or pad or axis",
        ),
        (
            "other places are other values",
            "        return alike[0] == alike[1] and tvm_ffi.structural_equal(*places)\n",
            "        return alike[0] == alike[1]\n",
        ),
    ),
    *_mutants(
        "relayout/description_kernel.py",
        ("layout/test_tiles.py", "-k", "static"),
        (
            "nothing is read behind the end",
            "            if size != end\n",
            "            if size == 0 == end\n",
        ),
    ),
    *_mutants(
        "layout/_declaration.py",
        ("layout/test_declaration.py",),
        (
            "a flip is of the same bits on both sides",
            "        if flip and read[-1][-1] != into[-1][-1]:\n",
            "        if False:\n",
        ),
        (
            "an axis is what its digits are",
            "                    if known != count:\n",
            "                    if False:\n",
        ),
        (
            "a field holds what is inside",
            "            if not isinstance(width, int) or start + width > size:\n",
            "            if False:\n",
        ),
    ),
    *_mutants(
        "layout/marlin.py",
        ("layout/test_marlin.py", "-k", "refusals"),
        (
            "it is known whether there is one group",
            "        isinstance(groups, tirx.IntImm),\n",
            "        True,\n",
        ),
    ),
    *_mutants(
        "relayout/moves.py",
        ("relayout/test_moves.py", "relayout/test_description_inverse.py"),
        (
            "a bijection reads all",
            "    return tile(boxes, bits)\n",
            "    return True\n",
        ),
        (
            "steps are of bytes",
            "    return all(over(step, 8) is not None for step in left.values())\n",
            "    return True\n",
        ),
        (
            "runs are of bytes",
            "        if at is None:\n            return False\n",
            "        if at is None:\n            break\n",
        ),
        (
            "runs begin at bytes",
            "        over(base, 8) is not None and _are_in_bytes(",
            "        _are_in_bytes(",
        ),
        (
            "constants are not put beside each number",
            "            return short and isinstance(digit.into, int) and digit.into <= 2 * _WORD\n",
            "            return False\n",
        ),
        (
            "a digit's steps go beyond what is inside",
            "        if not is_at_least_zero(step - reach):\n",
            "        if False:\n",
        ),
        (
            "a part of a pattern is in its place",
            "                into=piece.into + done,\n",
            "                into=piece.into,\n",
        ),
    ),
    *_mutants(
        "relayout/description_slices.py",
        ("relayout/test_description_slices.py",),
        (
            "what is inside stays inside",
            "    return all(is_at_least_zero(end, positive) for end in (low, step - 1 - high))\n",
            "    return True\n",
        ),
        (
            "an axis begins with its first position",
            "    if outer is None or not _is_free((outer, low, step), size):\n",
            "    if not _is_free((outer or 0, low, step), size):\n",
        ),
        (
            "what is read as a whole does not depend on the length",
            "            elif not _is_free((base, *(stride for _, stride in reach)), size):\n                return None\n",
            "",
        ),
        (
            "what is left of the length depends on it",
            "            found |= {var for arg in unknown.args for var in _variables_in(arg)}\n",
            "            pass\n",
        ),
        (
            "an input is sliced along one axis",
            "            if axes.setdefault(param, found) != found:\n",
            "            if axes.setdefault(param, found) is found is Ellipsis:\n",
        ),
        (
            "all of it is along the axis",
            "    if len(along) != 1 or not _is_free(",
            "    if len(along) > 1 or not _is_free(",
        ),
    ),
    *_mutants(
        "relayout/description_blocks.py",
        ("relayout/test_description_blocks.py",),
        (
            "what is inside stays inside",
            "    return number + low // block if low // block == high // block else None\n",
            "    return number + low // block\n",
        ),
        (
            "in the same block on both sides",
            "        if there != parts.number:\n",
            "        if there is None:\n",
        ),
        (
            "blocks go on as far on both sides",
            "        if any(d.read[at] * written != d.into * read for d in parts.outer):\n",
            "        if False:\n",
        ),
        (
            "all bits of an element are read",
            "        bits = 1 if piece.value is None else bits_of(str(piece.value.slots[at].ty))\n",
            "        bits = 1\n",
        ),
        (
            "no input is used twice",
            "            if sum(source in other.inputs for other in relayouts) == 1:\n",
            "            if True:\n",
        ),
        (
            "the output is not larger",
            "    if not is_at_least_zero(relayout.bits_of(source) - relayout.bits_of(relayout.output)):\n",
            "    if False:\n",
        ),
        (
            "a block fits into scratch memory",
            "        if read * times > most * 8:\n",
            "        if False:\n",
        ),
        (
            "each piece is computed from the block there",
            "        if all(_is_local(piece, source, read, written) for piece in relayout.pieces):\n",
            "        if any(_is_local(piece, source, read, written) for piece in relayout.pieces):\n",
        ),
    ),
]

HOST_MOVES = _mutants(
    "relayout/host_move.py",
    ("relayout/test_host_move.py",),
    (
        "an input of several outputs is not written over",
        "    if len(relayouts) > 1:",
        "    if False:",
    ),
    (
        "what keeps only some of the bytes is not in place",
        "        if is_bijection(relayout) and (",
        "        if (",
    ),
    (
        "what may be in place is not taken for distinct memory",
        'attrs |= {INPLACE: pairs, "tirx.noalias": False}',
        "attrs |= {INPLACE: pairs}",
    ),
)

OFFERED_PAGES = [
    *_mutants(
        "relayout/moves.py",
        ("relayout/test_host_move.py", "-k", "pages"),
        (
            "what is read twice is not moved",
            "len(pieces) == 1 or _is_read_once(pieces, relayouts[0].bits_of(source))",
            "True",
        ),
        (
            "what is no run is not moved",
            "not pieces or not all(_is_a_run(piece) for piece in pieces)",
            "not pieces",
        ),
    ),
    *_mutants(
        "relayout/host_move.py",
        ("relayout/test_host_move.py", "-k", "pages"),
        (
            "a result that lies in its input is not made of its pages",
            "    if of_pages and not pairs:",
            "    if of_pages:",
        ),
    ),
    *_mutants(
        "lower/tensor_trace.py",
        ("lower/test_offered_pages.py", "-k", "twice"),
        (
            "what a kernel is given twice is not offered",
            "len(donors) != 1 or sum(register.same_as(arg) for arg in args) != 1:",
            "len(donors) != 1:",
        ),
    ),
    *_mutants(
        "lower/donation.py",
        ("lower/test_offered_pages.py", "-k", "copied and not numpys"),
        (
            "what is read again is not offered",
            "            and self._may_be_emptied(chance)\n        ]",
            "        ]",
        ),
    ),
    *_mutants(
        "lower/donate_storage.py",
        ("lower/test_donate_storage.py", "-k", "offered"),
        (
            "a slot is emptied before its pages are offered",
            "                self.before[offered.by] += self._emptied(place)\n",
            "                pass\n",
        ),
    ),
]

# -- what is planned in place ---------------------------------------------------------------------

MOVES_IN_PLACE = _mutants(
    "inplace/moves_in_place.py",
    ("inplace/test_moves_in_place.py", "-k", "operand or taken_over or loaded or nested or device"),
    ("what is one operand twice is not written over", "or operands.count(position) > 1", ""),
    (
        "nor what another operand is a view of",
        "sum(donor in buffers for buffers in layouts) == 1",
        "True",
    ),
    (
        "nor a weight that is loaded",
        "known.is_modifiable and not known.is_streamed",
        "known.is_modifiable",
    ),
    ("nor one in a nested tuple", "if is_free and known.container.parent is None", "if is_free"),
    ("devices beside the target have other kernels", 'mod.global_infos.get("vdevice")', "False"),
)

MOVED_WEIGHTS = [
    *_mutants(
        "lower/tensor_trace.py",
        ("lower/test_moved_weights.py",),
        (
            "a weight that something else reads, too, is left unread",
            "            and tensor.moves == [True]\n",
            "            and True in tensor.moves\n",
        ),
        (
            "a weight that is asked for twice is left unread",
            "            and times[tensor.weight] == 1\n",
            "",
        ),
        (
            "weights are left unread where others are asked for out of sight",
            "else self._asks_unseen)",
            "else False)",
        ),
        (
            "nobody asks by what a tuple holds",
            "self._asks_unseen |= any(map(_is_function, fields))",
            "pass",
        ),
        (
            "nobody asks by what an unknown call is given",
            "self._asks_unseen |= _is_function(used)",
            "pass",
        ),
        (
            "an index that is no constant is no other weight's",
            "                self._asks_unseen = True\n",
            "                pass\n",
        ),
        (
            "a weight that is kept is left unread",
            "            and tensor.spent is not None\n            and not",
            "            and not",
        ),
        (
            "a kernel that computes is taken for one that moves",
            "tensor.moves.append(at in moved and arg in tensor.registers)",
            "tensor.moves.append(arg in tensor.registers)",
        ),
    ),
    *_mutants(
        "relayout/host_move.py",
        ("lower/test_moved_weights.py",),
        ("an input of several calls is moved once", "if times == 1]", "if times >= 1]"),
    ),
    *_mutants(
        "runtime/checkpoint/reading.py",
        ("runtime/test_stream_params.py",),
        (
            "what is to be checked is left unread",
            'record.encoding == "raw" and not self._checksum',
            'record.encoding == "raw"',
        ),
        (
            "what is stored as another type is left unread",
            'if later and record.encoding == "raw" and',
            "if later and",
        ),
        (
            "weights that are only moved are read before",
            "if file.read_later(tensor, record.offset, _where(record)):",
            "if False:",
        ),
    ),
    *_mutants(
        "lower/tensor_trace.py",
        ("lower/test_tensor_trace.py", "-k", "moved"),
        (
            "slots that may be read out of sight are left unread",
            "(self.reads_unseen if tensor.born < 0",
            "(False if tensor.born < 0",
        ),
        ("a tuple that lives on is looked at", "            and not tensor.may_live_on\n", ""),
        ("another parameter holds weights", "if place[0].same_as(self._weights):", "if True:"),
    ),
    *_mutants(
        "runtime/checkpoint/loading.py",
        ("runtime/test_unread_weights.py",),
        (
            "a weight in two slots is unread",
            "{name for name in moved if times[name] == 1}",
            "set(moved)",
        ),
        ("converted weights are moved once more", " or selection.provenance is not None", ""),
        ("all files are kept open", "list(files)[:most]", "list(files)"),
    ),
    *_mutants(
        "runtime/checkpoint/reading.py",
        ("runtime/test_unread_weights.py",),
        ("what is read stays unread", "                self.slots -= {slot}\n", ""),
    ),
    *_mutants(
        "runtime/params.py",
        ("runtime/test_unread_weights.py",),
        ("who waits for the lock reads what is converted", ", check=self._require_rest)", ")"),
    ),
    *_mutants(
        "runtime/transform_params.py",
        ("runtime/test_unread_weights.py",),
        (
            "what another transform computes with is read",
            "_read_now(params, but=transform)",
            "pass",
        ),
        ("what is compared is read", "                _read_now(owned)\n", ""),
    ),
    *_mutants(
        "runtime/convert/observe.py",
        ("runtime/test_unread_weights.py",),
        ("what is unread is resident", "if (slot in unread) == is_unread:", "if True:"),
    ),
]

PLANNED_FOR = _mutants(
    "lower/pipeline.py",
    ("inplace/test_moves_in_place.py", "-k", "another_target"),
    (
        "what was planned for one target is compiled for it",
        "if kind is not None and kind != target.kind.name:",
        "if False:",
    ),
)

# -- the command line -----------------------------------------------------------------------------

PROCESSOR = _mutants(
    "cli/processor.py",
    ("cli/test_build_command.py",),
    ("a processor has all of a level, or is taken for none", "_flags() >= _V3", "_flags()"),
    ("with FMA a product and a sum are rounded once", ', "mattr": ["-fma"]', ""),
)

JSON_MODULES = [
    *_mutants(
        "cli/json_check.py",
        ("cli/test_json_file.py", "-k", "hostile"),
        ("no compiled module", "not (isinstance(kind, str) and _TYPES.fullmatch(kind))", "False"),
        ("of TVM's functions, the harmless", 'node.get("data") not in _TYPE_FUNCTIONS', "False"),
        ("a pragma as a statement", "_has_text(node.value) or _has_text(node.node)", "False"),
        ("pragmas of loops and blocks", 'if name == "annotations":', "if False:"),
        ("attributes of functions", "if isinstance(node, ir.DictAttrs):", "if False:"),
        ("of the module", '_check_attributes("the module"', '(lambda *_, **__: 0)("the module"'),
        ("text in lists", "return any(_has_text(one) for one in value)\n", "return False\n"),
        ("text under another name", "if not _TEXT.fullmatch(key):", "if False:"),
        ("text in a kernel", "if not _HARMLESS.fullmatch(text):", "if False:"),
        ("options of a target", "and key not in _TARGET_TEXT", "and False"),
        ("of its host", "if target.host is not None:", "if False:"),
        ("of virtual devices", '_check("the module", mod.global_infos)', "pass"),
        ("kinds of targets", "if target.kind.name not in _TARGETS:", "if False:"),
    ),
    *_mutants(
        "cli/json_file.py",
        ("cli/test_json_file.py", "-k", "hostile or crashes"),
        ("a crash ends a child", "    go_on_in_child(f", "    (lambda *_: 0)(f"),
    ),
]

NODES = _mutants(
    "runtime/disco/nodes.py",
    ("runtime/test_disco.py", "-k", "strangers"),
    ("a stranger is no node", "or not is_ours:", "and not is_ours:"),
    ("nor one of another version", 'said["version"] != version or ', ""),
    ("nor one that takes too long", "max(give_up - time.monotonic(), 0.001)", "60.0"),
)

GPU_KERNELS = [
    *_mutants(
        "relayout/gpu_units.py",
        ("relayout/test_gpu_units.py",),
        (
            "a place says the digits that it is of",
            "        if not is_at_least_zero(step - reach):\n",
            "        if False:\n",
        ),
        (
            "a pattern is in one unit",
            "    if pattern and (not inner or inner[-1].extent != piece.digits[-1].extent):\n",
            "    if False:\n",
        ),
        (
            "a piece that begins in a unit ends in it",
            " or low + sum((d.extent - 1) * d.into for d in inner) >= unit:\n",
            ":\n",
        ),
        (
            "an input is whole words",
            "        if over(relayout.bits_of(piece.inputs[0][0]), size) is not None:\n",
            "        if True:\n",
        ),
        (
            "a field is in one word",
            "    if any(not isinstance(bit, int) or bit + reach > size for _, _, bit in places):\n",
            "    if False:\n",
        ),
        (
            "a part that makes all bits of its units is whole",
            "math.prod(digit.extent for digit in inner) == unit\n",
            "True\n",
        ),
    ),
    *_mutants(
        "relayout/gpu_nest.py",
        (
            "relayout/test_gpu_relayout.py",
            "-k",
            "sizes and (pad or heads) or 131 or nibbles or slice",
        ),
        (
            "tiles may go beyond what is there",
            "        if not isinstance(extent, int) or extent % size:\n",
            "        if not isinstance(extent, int):\n",
        ),
        (
            "a size may be anything",
            "        if not isinstance(extent, int) or extent % size:\n",
            "        if isinstance(extent, int) and extent % size:\n",
        ),
        (
            "the last threads may have nothing to do",
            "        return done if count % most == 0 else tirx.IfThenElse(number < count, done, None)\n",
            "        return done\n",
        ),
        (
            "a vector is aligned in the input",
            "        row = even([read.base, *read.steps[:-1]], 16) if is_row else 1\n",
            "        row = 16 if is_row else 1\n",
        ),
        (
            "a group is in one row of the output",
            "    return even([part.into, part.extents[-1], *part.steps[:-1]], most)\n",
            "    return most\n",
        ),
        (
            "bits of several parts are put together",
            "unit if is_whole else made[index] | unit",
            "unit",
        ),
        (
            "a digit is below its extent",
            "        holds = tirx.And(holds, digit < expression(extent))\n",
            "",
        ),
    ),
    *_mutants(
        "relayout/gpu_nest.py",
        ("relayout/test_gpu_inplace.py", "-k", "pointers"),
        (
            "a kernel has one pointer to memory that may be the same",
            "        return self._base if away is None else tirx.handle_add_byte_offset(self._base, away)\n",
            "        return self._function.params[param].data\n",
        ),
    ),
    *_mutants(
        "relayout/gpu_tiles.py",
        ("relayout/test_gpu_relayout.py", "-k", "sectors or room"),
        (
            "what is read at once is in the tile, from a multiple on",
            "        sizes = [self.read.base, self.extents[inner], self.tile[inner]]\n",
            "        sizes: list[Size] = [self.tile[inner]]\n",
        ),
        (
            "rows do not begin in one bank",
            "        return number + tirx.truncdiv(number, tirx.const(line, str(number.ty))) * self.gap\n",
            "        return number\n",
        ),
        (
            "a tile has room in shared memory",
            "    fits = sum(each.bytes for each in staged.values()) <= SHARED\n",
            "    fits = True\n",
        ),
    ),
    *_mutants(
        "relayout/gpu_relayout.py",
        ("relayout/test_gpu_relayout.py", "-k", "for_kernels or other or float32_are"),
        (
            "what lies apart goes through shared memory",
            "    if len(parts) == 1 and apart:\n",
            "    if False:\n",
        ),
        (
            "a kernel for another target is TVM's",
            '    if target.kind.name != "cuda":\n',
            "    if False:\n",
        ),
        (
            "all outputs are known",
            "    return found if len(found) == len(relayouts) else None\n",
            "    return found\n",
        ),
    ),
    *_mutants(
        "relayout/gpu_inplace.py",
        ("relayout/test_gpu_inplace.py", "-k", "not_in_place or one_memory or several_sizes"),
        (
            "thread blocks have no order: smaller blocks are not in place",
            "        if blocks.read == blocks.written\n",
            "",
        ),
        (
            "a thread reads all of a block before it writes it",
            "    if not small or lanes % by:\n",
            "    if not small:\n",
        ),
        (
            "shared memory has words of one size",
            "        if len({read.bits for read in reads}) > 1 or blocks",
            "        if blocks",
        ),
        (
            "what may be in place is not taken for distinct memory",
            '{INPLACE: pairs, "tirx.noalias": False}',
            "{INPLACE: pairs}",
        ),
    ),
]


# -- which weight is which ------------------------------------------------------------------------

NAMES = [
    *_mutants(
        "lift/selection.py",
        ("lift/test_selection.py",),
        (
            "what is made from what is left is lifted",
            "                if value.made_by in left:\n",
            "                if False:\n",
        ),
        (
            "only= of a weight's name takes what is made from others, too",
            "        is_of_such = bool(weights) and all(\n",
            "        is_of_such = bool(weights) and any(\n",
        ),
        (
            "a tied weight's other name is not known",
            "names.setdefault(self.graph.tied.get(weight, weight), [])",
            "names.setdefault(weight, [])",
        ),
        (
            "a name with brackets is a pattern",
            "known = name == self.rule or fnmatch.fnmatchcase(name, self.rule)",
            "known = fnmatch.fnmatchcase(name, self.rule)",
        ),
        (
            "what depends on no weight is reported as left",
            "        if made.needs_weight and not made.is_cast  # those",
            "        if True  # those",
        ),
        (
            "a rule that names nothing is not told",
            "for one in (*only, *skip) if not one.is_known()}",
            "for one in ()}",
        ),
    ),
    *_mutants(
        "lift/selection.py",
        ("lift/test_lift_param.py", "-k", "not any_model"),
        (
            "marks are not looked at",
            "asked_for = graph.marked if selection.only is None",
            "asked_for = None if selection.only is None",
        ),
    ),
    *_mutants(
        "lift/transpositions.py",
        ("lift/test_selection.py",),
        (
            "any permutation is a transposition",
            "    return bool(axes) and axes == [*range(rank - 2), rank - 1, rank - 2]\n",
            "    return bool(axes)\n",
        ),
        (
            "what others read, too, is warned of",
            "in transposed.difference(others)}",
            "in transposed}",
        ),
        (
            "what stands on the left of a matmul is warned of",
            "            used += relax.analysis.free_vars(value.args[0])[:]\n",
            "            pass\n",
        ),
    ),
    *_mutants(
        "lift/earlier_transform.py",
        (
            "lift/test_earlier_transform.py",
            "lift/test_lift_inplace_transform_params.py::test_symbolic_and_more_to_lift_after_lift_transform_params",
        ),
        (
            "a transform with other inputs is put back",
            "    return None if user is None or user.position else user\n",
            "    return user\n",
        ),
        (
            "functions that take other weights are taken for alike",
            "    if shared.raw:\n",
            "    if False:\n",
        ),
        (
            "dimensions of the weights keep the names of the copy",
            "    if renamed:\n",
            "    if False:\n",
        ),
        (
            "what empties the slots is put back",
            "    return isinstance(callee, relax.ExternFunc) and callee.global_symbol == _RESET\n",
            "    return False\n",
        ),
    ),
    *_mutants(
        "ir/marks.py",
        ("ir/test_marks.py",),
        (
            "what is bound elsewhere takes the name of a mark",
            "            if marked in bound and _takes_name(marked, var):\n",
            "            if _takes_name(marked, var):\n",
        ),
        (
            "a mark of a mark stays",
            "            while expr in self.names:\n",
            "            if expr in self.names:\n",
        ),
        (
            "a module without marks is another object",
            "    if not marked:\n        return mod\n",
            "",
        ),
    ),
    *_mutants(
        "layout/_sharding.py",
        ("layout/test_stored_layout.py",),
        (
            "the other digits are not looked at",
            "    if not halves or normal(halves) != one.pieces(index):\n",
            "    if not halves:\n",
        ),
        (
            "several axes have parts",
            "    if len(grown) != 1:\n",
            "    if not grown:\n",
        ),
        (
            "what computes is taken for a move",
            "    if not piece.moves:\n",
            "    if False:\n",
        ),
        (
            "parts of any size are kept apart",
            "        part = math.lcm(part, given[axis] // 2 // parts)\n",
            "",
        ),
    ),
    *_mutants(
        "layout/_stored_layout.py",
        ("layout/test_stored_layout.py",),
        (
            "a parameter that something else has is changed",
            "            if others:\n",
            "            if False:\n",
        ),
        (
            "a layer that is a function of its own is changed",
            '        if getattr(layer, "define_subroutine", False):\n',
            "        if False:\n",
        ),
        (
            "a parameter with data is changed",
            "    if param.data is not None:\n",
            "    if False:\n",
        ),
        (
            "a parameter that is cut already is changed",
            "    if param.attrs.get(_PREPROCS):\n",
            "    if False:\n",
        ),
        (
            "a way back that makes something else is taken",
            "            if not tvm_ffi.structural_equal(ty, wanted):\n",
            "            if False:\n",
        ),
        (
            "another number of tensors is taken",
            "    if len(types) != count:\n",
            "    if False:\n",
        ),
        (
            "segments that are no multiples are taken",
            "            if any(segment % part for segment in segments):\n",
            "            if False:\n",
        ),
        (
            "the strategy of K x N is taken for that of its axes",
            "        if _is_of_transposed(layer) and ty.ndim == 2:\n",
            "        if False:\n",
        ),
        (
            "the layer keeps what it was given",
            "        for attribute, param in given.items():\n            setattr(layer, attribute, param)\n",
            "        pass\n",
        ),
    ),
    *_mutants(
        "runtime/convert/signals.py",
        ("runtime/test_owned_weights.py",),
        (
            "what a handler raises is not held",
            "        except BaseException as error:\n            self.hold(error)\n",
            "        except ZeroDivisionError as error:\n            self.hold(error)\n",
        ),
        (
            "handlers are not put back",
            "                if signal.getsignal(number) == self._hold:",
            "                if False:",
        ),
        (
            "only Ctrl-C is held",
            "for number in signal.valid_signals()",
            "for number in (signal.SIGINT,)",
        ),
    ),
    *_mutants(
        "runtime/convert/run.py",
        ("runtime/test_owned_weights.py", "runtime/test_failures.py"),
        (
            "a stop does not wait until each weight is whole",
            'return "lost" not in states and "original" in states',
            'return "original" in states',
        ),
        (
            "a run whose last update is made is stopped",
            'return "lost" not in states and "original" in states',
            'return "lost" not in states',
        ),
        (
            "a weight that is lost in part is called converted",
            "        if not lost:\n",
            "        if len(lost) < len(made):\n",
        ),
        (
            "converted tensors are not marked",
            '            mark_tensors(made, "" if',
            '            mark_tensors([], "" if',
        ),
        (
            "a run begins though it was asked to stop",
            "        if self._signals.error is not None:  # nothing has changed yet\n",
            "        if False:\n",
        ),
    ),
    *_mutants(
        "runtime/checkpoint/loading.py",
        ("runtime/test_owned_weights.py", "-k", "from_files"),
        (
            "converted weights that are loaded have no mark",
            "        if selection.provenance is not None:\n            mark",
            "        if False:\n            mark",
        ),
    ),
    *_mutants(
        "runtime/convert/run.py",
        ("runtime/test_owned_weights.py", "-k", "from_files"),
        (
            "restored weights that stayed keep the mark",
            "if (is_whole and is_restored) or self",
            "if self",
        ),
    ),
    *_mutants(
        "runtime/convert/own.py",
        ("runtime/test_owned_weights.py", "runtime/test_threads.py"),
        (
            "a list is not refilled",
            "            self._container.extend(self.params._fields())\n",
            "            pass\n",
        ),
        (
            "what was held is not raised",
            "        if error is None and self.signals.error is not None:\n",
            "        if False:\n",
        ),
        (
            "an interrupt after the last mark has no names",
            "        if not self.is_done or not is_interrupt or",
            "        if True or",
        ),
        (
            "a virtual machine is used by two threads",
            '            used["the virtual machine is"]',
            '            {}["the virtual machine is"]',
        ),
        (
            "weights stay in use",
            "                del _in_use[key]\n",
            "                pass\n",
        ),
    ),
    *_mutants(
        "runtime/transform_params.py",
        ("runtime/test_owned_weights.py",),
        (
            "converted tensors are converted again",
            "    if converter is not None:\n",
            "    if params.provenance is not None:\n",
        ),
    ),
    *_mutants(
        "runtime/convert/observe.py",
        ("runtime/test_transform_params.py",),
        (
            "a tensor in two slots counts twice",
            "        place = tensor.data_ptr()\n",
            "        place = len(sizes)\n",
        ),
    ),
    *_mutants(
        "runtime/checkpoint/selection.py",
        ("runtime/test_names.py",),
        (
            "what is not wanted is ignored",
            '        [] if extra == "ignore" else extras,\n',
            "        [],\n",
        ),
        (
            "tied weights are not compared",
            "for group in groups if len(group) > 1]",
            "for group in ()]",
        ),
        (
            "a name is used twice",
            "        free = next((one for one in (name, *choice) if one not in taken), name)\n        names.append(unused_name(free, taken))\n",
            "        names.append(name)\n",
        ),
    ),
    *_mutants(
        "weight_names.py",
        ("test_weight_names.py",),
        (
            "names are found under one of two prefixes",
            "return complete[0] if len(complete) == 1 else {}",
            "return complete[0] if complete else {}",
        ),
        (
            "a rule holds that does not find all names",
            "        if all(any(name in found.found for name in group) for group in groups):\n",
            "        if any(any(name in found.found for name in group) for group in groups):\n",
        ),
        (
            "one of two names is taken that are printed the same",
            "if len(names) == 1 and len(theirs.get(key, ())) == 1",
            "if key in theirs",
        ),
        (
            "a prefix ends within a part of a name",
            'return stored[length - 1] in "./"',
            "return True",
        ),
    ),
    *_mutants(
        "runtime/checkpoint/tied_weights.py",
        ("runtime/test_names.py", "-k", "differ or handed"),
        (
            "tied weights are compared in part",
            "        return all(np.array_equal(part, other_part) for part, other_part in parts)\n",
            "        return all(np.array_equal(part[:256], other_part[:256]) for part, other_part in parts)\n",
        ),
        (
            "tied weights that are handed over are not compared",
            "        if not first.same_as(other) and not np.array_equal(",
            "        if False and not np.array_equal(",
        ),
    ),
    *_mutants(
        "runtime/checkpoint/folder_update.py",
        ("runtime/test_killed_saves.py", "-k", "not random"),
        (
            "files of savers that are alive are removed",
            "            is_alone = False\n",
            "            is_alone = True\n",
        ),
        (
            "files of dead savers stay",
            "if match and (is_alone or match[1] == self.token)]",
            "if match and match[1] == self.token]",
        ),
        (
            "files go that another manifest names",
            "            if is_temporary or not _is_mentioned(match[1], manifests):\n",
            "            if True:\n",
        ),
        (
            "a process that was forked keeps the lock",
            "                fcntl.flock(self._lock, fcntl.LOCK_UN)\n",
            "                pass\n",
        ),
        (
            "what we search first goes first",
            "for name in (*reversed(instead), *obsolete):",
            "for name in (*instead, *obsolete):",
        ),
    ),
    *_mutants(
        "runtime/checkpoint/safetensors.py",
        ("runtime/test_bad_input.py", "-k", "safetensors or two_files"),
        (
            "two weights may overlap",
            "        if first != end or last < first:\n",
            "        if first > end:\n",
        ),
        (
            "what the index does not take is read",
            "        if wanted is None or name in wanted:\n",
            "        if True:\n",
        ),
    ),
    *_mutants(
        "runtime/checkpoint/reading.py",
        ("runtime/test_any_file.py", "runtime/test_bad_input.py", "-k", "moment or changes_before"),
        (
            "a file that changed before it is opened is read",
            "            file.check_unchanged(self._descriptor)\n            if checksum:\n",
            "            if checksum:\n",
        ),
        (
            "a file may change while it is read",
            "            self.file.check_unchanged(self._descriptor)  # nor was it while it was read\n",
            "",
        ),
    ),
    *_mutants(
        "runtime/checkpoint/files.py",
        ("runtime/test_any_file.py", "-k", "kind_of_file"),
        (
            "a device is opened",
            "        is_regular = stat.S_ISREG(os.stat(path).st_mode)  # to open a device may do something\n",
            "        is_regular = True\n",
        ),
    ),
    *_mutants(
        "runtime/checkpoint/files.py",
        ("runtime/test_bad_input.py", "-k", "link"),
        (
            "blobs may be a link",
            '    return [*own, model / "blobs"] if model.parent == hub else own\n',
            "    return [Path(os.path.realpath(one)) for one in own]\n",
        ),
    ),
    *_mutants(
        "runtime/convert_params.py",
        ("runtime/test_names.py", "-k", "another_cache"),
        (
            "a cache is used that was made under other names",
            "    parts += [*selection.names, *(",
            "    parts += [*(",
        ),
    ),
    *_mutants(
        "lift/weight_values.py",
        ("lift/test_earlier_transform.py",),
        (
            "a transform is put back that cannot be lifted again",
            "        if numbered.user.function.body.body in numbered.holds:\n",
            "        if True:\n",
        ),
    ),
    *_mutants(
        "lift/shared_weights.py",
        ("lift/test_earlier_transform.py",),
        (
            "a function that takes weights as they are gets what a transform makes of them",
            "    return names == names_of_weights(transform.function) and names != made_names\n",
            "    return False\n",
        ),
    ),
]

MUTANTS = [
    *NAMES,
    *GPU_KERNELS,
    *OFFERED_PAGES,
    *DESCRIPTIONS,
    *HOST_MOVES,
    *OWNERSHIP,
    *COMPUTED,
    *TE_BLOCKS,
    *INVERSES,
    *CASTS,
    *SLICES,
    *SLICING,
    *LIMIT,
    *SPARE,
    *TUPLE_STATE,
    *TRACE,
    *DONATION,
    *DONATE,
    *ENTRY,
    *TUPLES,
    *KILLS,
    *SPLIT,
    *BUILD,
    *USER,
    *PIPELINE,
    *EFFECTS,
    *EFFECT_ROWS,
    *KERNEL_WRITES,
    *MEMORY_ORDER,
    *READ,
    *FUSION,
    *KERNELS,
    *LEGALIZE_ONCE,
    *WHOLE_BYTES,
    *INLINING,
    *LIBRARY,
    *WRITER,
    *SCHEDULE,
    *UPDATED,
    *MOVES_IN_PLACE,
    *MOVED_WEIGHTS,
    *PLANNED_FOR,
    *PROCESSOR,
    *JSON_MODULES,
    *NODES,
]
