"""InplaceTransformParams: a function that returns new weights becomes one that replaces the old.

Definition
----------
``f(params) -> (o0, ..., om)`` becomes ``g(params)``, which runs the steps of ``f``, each once, and
puts ``oi`` into slot ``i``. A weight is read before its slot is replaced, and its slot is emptied
or replaced after its last read. So each ``oi`` is computed by the operations of ``f`` from the
fields of ``f``: what ``g`` returns is bitwise what ``f`` returns.

*Streamed* (``lazy=True``), it becomes ``g(get_weight, params)``, which runs the same steps on what
``get_weight(i)`` returns for weight ``i``, and puts ``oj`` into slot ``j`` of ``params``. It asks
for each weight once, before the first step that needs it; for one that nothing needs, never. It
checks at once that it is given the type of the weight, and holds it until the last step that reads
it. So nothing is resident before, and the peak is what is finished and what a step works on.

The steps are those of :mod:`relax_inplace.inplace.transform_graph`, their order is that of
:mod:`relax_inplace.inplace.schedule`, which :func:`relax_inplace.analysis.plan_memory` shows,
and :mod:`.function_writer` writes ``g``. With ``restore=True``,
:mod:`relax_inplace.restore.restore_params` adds what undoes it.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence

import tvm
from tvm import ir, relax

from ..ir.kernels import Kernels
from ..ir.marks import without_marks
from ..ir.updates import REFERENCE, bindings_of
from ..lower.param_map import with_param_map
from ..op import is_update
from ..weight_names import GivenNames, given_names
from .branches import find_branches
from .function_writer import write_inplace_function
from .inplace_function import InplaceFunction, choose
from .memory_limit import bytes_of_limit, plan_within
from .moves_in_place import target_to_plan_for
from .param_map_entry import Entry, restoring_entry
from .read_transform import read_transform
from .schedule import plan_graph
from .signature import names_of_weights
from .transform_graph import TRANSFORM, UnsupportedTransformError

__all__ = [
    "Restored",
    "Rewrite",
    "Undo",
    "inplace_name",
    "require_resident",
    "rewrite_transforms",
    "write_family",
]

_PREFIX = "inplace_"

Rewrite = Callable[[ir.IRModule, relax.Function, str], InplaceFunction]


@dataclasses.dataclass
class Restored:
    """What becomes the function that undoes another.

    Attributes
    ----------
    name : str
    function : InplaceFunction
    undoes : str
        The transform, by its name in the module.
    kernels : dict of tvm.ir.GlobalVar to tvm.tirx.PrimFunc
        What it calls and the module does not have yet.
    """

    name: str
    function: InplaceFunction
    undoes: str
    kernels: dict[ir.GlobalVar, ir.BaseFunc]

    def functions(self) -> dict[ir.GlobalVar, ir.BaseFunc]:
        """It, and its kernels."""
        return {**self.function.functions(self.name), **self.kernels}


# Of a module, a name, a transform, and its name in place: what undoes it. None if nothing
# can, and that is no error.
Undo = Callable[
    [ir.IRModule, str, relax.Function, str, Rewrite, "Mapping[str, str] | None"], "Restored | None"
]


def rewrite_transforms(
    mod: ir.IRModule,
    names: Sequence[str] | None,
    params: Sequence[str | int] | None,
    memory_limit: int | float | None,
    lazy: bool,
    reference: bool,
    strict: bool,
    undo: Undo | None,
    target: str | tvm.target.Target | None = None,
    weight_names: GivenNames | None = None,
) -> ir.IRModule:
    """What the pass does: see :func:`relax_inplace.transform.InplaceTransformParams`.

    ``undo`` writes what restores the original weights; None if nothing is to.
    """
    selected = _selected(mod, names)
    taken = {gvar.name_hint for gvar in mod.get_global_vars()}
    replaced: dict[ir.GlobalVar, dict[ir.GlobalVar, ir.BaseFunc]] = {}
    entries = {}
    callers = _callers(mod, selected)
    for gvar in selected:
        try:
            new_name = inplace_name(gvar.name_hint)
            _require_replaceable(gvar.name_hint, new_name, taken, callers.get(gvar))
            family = write_family(
                mod,
                gvar.name_hint,
                mod[gvar],
                new_name,
                params=params,
                memory_limit=memory_limit,
                lazy=lazy,
                reference=reference,
                undo=undo,
                target=target,
                names=weight_names,
            )
        except UnsupportedTransformError as error:
            if strict:
                raise
            warnings.warn(f"{error}; it stays as it was", stacklevel=2)
        else:
            taken.add(new_name)
            replaced[gvar] = family.functions
            entries.update(family.entries)
            mod = _with_kernels(mod, family.kernels)
    if not replaced:
        return mod
    kept = {gvar: function for gvar, function in mod.functions_items() if gvar not in replaced}
    for functions in replaced.values():
        kept.update(functions)
    after = ir.IRModule(kept, attrs=mod.attrs, global_infos=mod.global_infos)
    return with_param_map(after, entries)


def _with_kernels(mod: ir.IRModule, kernels: dict[ir.GlobalVar, ir.BaseFunc]) -> ir.IRModule:
    """The module with kernels that the next function shares, or whose names it leaves alone."""
    return ir.IRModule({**dict(mod.functions_items()), **kernels}, mod.attrs, mod.global_infos)


def require_resident(where: str, lazy: bool, restore: bool, reference: bool) -> None:
    """Refuse what goes with resident weights only."""
    if lazy and restore:
        raise ValueError(
            f"{where}: restore=True makes the original weights of converted ones where they are, "
            "but with lazy=True the function has never held them; run the pass once more, without "
            "lazy, for a module that restores"
        )
    if lazy and reference:
        raise ValueError(
            f"{where}: reference=True adds what a conversion of resident weights is compared with, "
            "but with lazy=True none are resident; leave one of them out"
        )


def _selected(mod: ir.IRModule, names: Sequence[str] | None) -> list[ir.GlobalVar]:
    relax_functions = {
        gvar.name_hint: gvar
        for gvar, function in mod.functions_items()
        if isinstance(function, relax.Function)
    }
    if names is None:
        names = sorted(
            name
            for name in relax_functions
            if name.endswith(TRANSFORM) and not name.endswith(_PREFIX + TRANSFORM)
        )
    selected = {}
    for name in names:
        if name in relax_functions:
            if not _updates(mod[relax_functions[name]]):  # else it is rewritten already
                selected[name] = relax_functions[name]
        elif inplace_name(name) not in relax_functions:  # else it is rewritten already
            raise ValueError(
                f"InplaceTransformParams: functions={list(names)}, but the module has no Relax "
                f"function `{name}`; it has {sorted(relax_functions)}"
            )
    return list(selected.values())


def _updates(function: relax.Function) -> bool:
    return any(is_update(binding.value) for binding in bindings_of(function))


def inplace_name(name: str) -> str:
    """What a transform is called once it works in place."""
    if name.endswith(TRANSFORM):
        return name[: -len(TRANSFORM)] + _PREFIX + TRANSFORM
    return _PREFIX + name


def _callers(mod: ir.IRModule, selected: Sequence[ir.GlobalVar]) -> dict[ir.GlobalVar, str]:
    """The functions that are called by one that is not rewritten, with its name."""
    callers = {}
    for gvar, function in mod.functions_items():
        if isinstance(function, relax.Function) and gvar not in selected:
            for called in relax.analysis.all_global_vars(function):
                callers[called] = gvar.name_hint
    return callers


def _require_replaceable(name: str, new_name: str, taken: set[str], caller: str | None) -> None:
    if new_name in taken:
        raise UnsupportedTransformError.of(
            function=name, reason=f"the module has a `{new_name}` already"
        )
    if caller is not None:
        raise UnsupportedTransformError.of(
            function=name, reason=f"`{caller}` calls it, and expects new weights from it"
        )


@dataclasses.dataclass
class Family:
    """A transform in place, and the functions that go with it.

    Attributes
    ----------
    functions : dict of tvm.ir.GlobalVar to tvm.ir.BaseFunc
        It, what restores, what it is compared with, and their kernels.
    entries : dict of str to Entry
        Of the parameter map.
    kernels : dict of tvm.ir.GlobalVar to tvm.tirx.PrimFunc
        Those of what restores: that of the next transform may call them, too.
    """

    functions: dict[ir.GlobalVar, ir.BaseFunc]
    entries: dict[str, Entry]
    kernels: dict[ir.GlobalVar, ir.BaseFunc]


def write_family(
    mod: ir.IRModule,
    name: str,
    function: relax.Function,
    new_name: str,
    *,
    params: Sequence[str | int] | None = None,
    memory_limit: int | float | None = None,
    lazy: bool = False,
    reference: bool = False,
    undo: Undo | None = None,
    renamed: Callable[[Entry], Entry] = lambda entry: entry,
    equal: Mapping[str, str] | None = None,
    target: str | tvm.target.Target | None = None,
    names: GivenNames | None = None,
) -> Family:
    """Write what works in place, and what goes with it.

    Parameters
    ----------
    mod : tvm.ir.IRModule
        Where the functions that it calls are.
    name, function
        Of the transform, out of place.
    new_name : str
        Of the one that works in place.
    params, memory_limit, lazy, reference, target, names
        See :func:`relax_inplace.transform.InplaceTransformParams`.
    undo : callable, optional
        Writes what restores the original weights.
    renamed : callable
        Says in the map what lifting knows.
    equal : dict of str to str, optional
        Slots of weights that are known to be equal to others.
    """
    function = without_marks(function)
    planned_for = target_to_plan_for(target, mod)
    if names is not None:  # once: the branches of a function may read other fields
        names = given_names(names, names_of_weights(function), f"`{name}`")
    inplace = _rewritten(
        mod, name, function, new_name, params, memory_limit, lazy, planned_for, names
    )
    entry = renamed(inplace.entry)
    family = Family(inplace.functions(new_name), {new_name: entry}, {})
    if reference:
        other_name = _reference_name(new_name)
        if any(gvar.name_hint == other_name for gvar in mod.get_global_vars()):
            raise UnsupportedTransformError.of(
                function=name, reason=f"reference=True: the module has a `{other_name}` already"
            )
        other = relax.utils.copy_with_new_vars(function)  # no two functions define one variable
        other = other.with_attr(REFERENCE, True)
        streamed = _rewritten(mod, name, other, other_name, None, None, lazy=True)
        family.functions.update(streamed.functions(other_name))
        entry["reference"] = other_name
    if undo is not None:

        def rewrite(mod: ir.IRModule, inverse: relax.Function, name: str) -> InplaceFunction:
            return _rewritten(mod, name, inverse, name, None, memory_limit, False, planned_for)

        undone = undo(mod, name, function, new_name, rewrite, equal)
        if undone is not None:
            family.functions.update(undone.functions())
            family.kernels.update(undone.kernels)
            family.entries[undone.name] = restoring_entry(undone.function.entry, new_name, entry)
    return family


def _reference_name(inplace: str) -> str:
    stem = _PREFIX + TRANSFORM
    if inplace.endswith(stem):
        return f"{inplace[: -len(stem)]}reference_{TRANSFORM}"
    return f"{inplace}_reference"


def _rewritten(
    mod: ir.IRModule,
    name: str,
    function: relax.Function,
    new_name: str,
    params: Sequence[str | int] | None,
    memory_limit: int | float | None,
    lazy: bool,
    target: tvm.target.Target | None = None,
    names: Sequence[str] | None = None,
) -> InplaceFunction:
    """What works in place."""

    def rewrite(function: relax.Function, prefix: str) -> InplaceFunction:
        branches = find_branches(function, mod)
        if branches is not None:
            if lazy:
                branches.require_streamable(name)
            return choose(
                branches,
                rewrite(branches.on_true, f"{prefix}_true"),
                rewrite(branches.on_false, f"{prefix}_false"),
            )
        graph = read_transform(name, function, mod, params, lazy, target, names)
        if memory_limit is None:
            limit, schedule = None, plan_graph(graph)
        else:
            limit = bytes_of_limit(graph, memory_limit)
            schedule = plan_within(graph, limit, Kernels(mod))
        written = write_inplace_function(schedule, mod, prefix, limit)
        if target is not None and schedule.moves_in_place():
            written.planned_for = target.kind.name
        return written

    return rewrite(function, new_name)
