"""LiftInplaceTransformParams: lift the weight transforms of a model into one that works in place.

Definition
----------
The pass lifts the values that the functions sharing the weights compute from them alone
(:mod:`.weight_values`), if they are selected (:mod:`.selection`) and do not enlarge the weights.
Structurally equal computations are lifted once. The result is the union over all functions; TVM's
``LiftTransformParams(shared_transform=True)`` takes the intersection. :mod:`.plan` decides which
values are stored, and where. The pass writes

- ``inplace_transform_params(params)``, by :mod:`..inplace.inplace_transform_params`: it replaces
  the weights by the stored values, in an order of least peak;
- each function, by :mod:`.lifted_users`: it takes the new tuple in the place of its weights, and
  reads from it the values that it computed before.

So ``f(x, *weights)`` becomes ``f(x, inplace_transform_params(weights))``; with ``lazy=True``,
``f(x, inplace_transform_params(get_weight, empty))``. Each value is computed by the same operations
from the same operands as before. If nothing is lifted, the module is returned unchanged.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence

import tvm
from tvm import ir, relax

from ..inplace.inplace_transform_params import inplace_name, require_resident, write_family
from ..inplace.transform_graph import TRANSFORM
from ..ir.tuple_tree import slot_text
from ..ir.updates import bindings_of
from ..lower.param_map import Entry, param_map_of, with_param_map
from ..restore.restore_params import restored
from ..weight_names import GivenNames
from .lifted_users import without_stops, write_users
from .plan import LiftPlan, plan_lift
from .report import LiftReport, described
from .selection import Rules, Selection
from .shared_weights import LiftError, find_shared_weights
from .transform import write_transform
from .transpositions import warning_of
from .user import called_user
from .weight_values import Value, find_values, is_stop

__all__ = ["LiftInplaceTransformParams"]


def LiftInplaceTransformParams(  # noqa: N802  named as TVM names passes
    functions: str | Sequence[str] | None = None,
    *,
    params: str | None = None,
    names: GivenNames | None = None,
    tied: Sequence[Sequence[str | int]] = (),
    max_resident: int | float | None = 1.0,
    only: Rules = None,
    skip: Rules = None,
    memory_limit: int | float | None = None,
    lazy: bool = False,
    restore: bool = False,
    reference: bool = False,
    target: str | tvm.target.Target | None = None,
) -> tvm.transform.Pass:
    """Create the pass that lifts a model's computations on weights into one in-place transform.

    Parameters
    ----------
    functions : str or sequence of str, optional
        The functions that share the weights. By default all that have weights: parameters after
        ``num_input`` others, or a tuple as the last parameter.
    params : str, optional
        The name of the tuple of weights in functions without ``num_input``, if it is not the last
        parameter.
    names : mapping, sequence, callable or path, optional
        The names of the weights in the checkpoint: a mapping from the module's names, a sequence in
        the order of the tuple, or a JSON file with either. By default the names that the functions
        use: see :mod:`relax_inplace.weight_names`.
    tied : sequence of sequences of str or int
        Weights that are known to be equal, by name or index, such as
        ``[("embed.weight", "lm_head.weight")]``. The first of each group stands for the others. A
        checkpoint may hold any of them.
    max_resident : int or float, optional
        The most bytes that the converted weights may take; a float is a factor of the original
        bytes. A computation that would make them larger is not lifted. None lifts all. See
        :mod:`relax_inplace.lift.stored_values` for the choice, and
        :func:`relax_inplace.analysis.explain_lift` for its result.
    only : str, callable, or sequence of these, optional
        The calls to lift, with the calls that they depend on; by default all. A name, or a pattern
        as :mod:`fnmatch` has them, of

        - weights: all calls that depend on such weights and no others;
        - operators (``"relax.permute_dims"``), kernels or packed functions;
        - layouts (``"tiles.pack"``).

        Or a predicate on the call. The weights among its operands have their names.
    skip : str, callable, or sequence of these, optional
        The calls that stay in the functions, with all calls that depend on them; by default none.
        The forms are those of ``only``, but the name of a weight stands for all calls that depend
        on it. Calls that come before may be lifted.
    memory_limit : int or float, optional
        The most bytes that the transform may hold at once: see :func:`InplaceTransformParams`.
    lazy : bool
        Whether the transform asks for the original weights one by one: see
        :func:`InplaceTransformParams`.
    restore : bool
        Whether the module also gets the inverse of the transform: see
        :func:`InplaceTransformParams`. It makes tied weights one tensor again.
    reference : bool
        Whether the module also gets the function that ``verify=True`` compares with: see
        :func:`InplaceTransformParams`.
    target : str or tvm.target.Target, optional
        The target of the compilation: see :func:`InplaceTransformParams`.

    Returns
    -------
    tvm.transform.Pass
        The pass. If it raises one of these errors, it has changed nothing:

        - :class:`~relax_inplace.analysis.LiftError` for functions that do not share their weights,
          or are called by others with other weights.
        - :class:`~relax_inplace.analysis.InverseError`, with ``restore``, if a weight cannot be
          restored.

    Notes
    -----
    If nothing is to be lifted, the module is returned unchanged. Otherwise every function takes one
    tuple, in the place of its first weight. Weights that no function needs are not in it. The
    module's attribute ``relax_inplace.param_map`` gives the old and the new place of each weight;
    in a compiled module, the function ``inplace_param_map`` returns it.

    The module may have a ``transform_params`` that makes the weights of the functions, as
    ``LiftTransformParams`` leaves it. It becomes part of the new transform, whose weights are those
    that enter the module: see :mod:`relax_inplace.lift.earlier_transform`. A function with a
    ``<name>_transform_params`` of its own gets ``<name>_inplace_transform_params``.
    """
    named = [functions] if isinstance(functions, str) else functions
    selection = Selection.of(only, skip)
    require_resident("LiftInplaceTransformParams", lazy, restore, reference)

    @tvm.transform.module_pass(opt_level=0, name="LiftInplaceTransformParams")
    def run(mod: ir.IRModule, _context: tvm.transform.PassContext) -> ir.IRModule:
        entries: dict[str, Entry] = {}
        plans = []
        for shared in find_shared_weights(mod, named, params, names):
            plan = plan_lift(find_values(mod, shared, tied), max_resident, selection)
            made_by = shared.transform
            new_name = inplace_name(TRANSFORM if made_by is None else made_by.name_hint)
            if plan.selected.is_all_asked_for and _MARKED in param_map_of(mod).get(new_name, {}):
                continue  # what was marked is lifted, and the marks are gone
            plans.append(plan)
            if _is_lifted(mod, plan, new_name):
                continue
            _require_no_other_callers(mod, plan)
            report = described(plan)
            family = write_family(
                mod,
                new_name,
                write_transform(plan, mod),
                new_name,
                names=plan.graph.shared.entering,
                memory_limit=memory_limit,
                lazy=lazy,
                reference=reference,
                undo=restored if restore else None,
                renamed=functools.partial(_said_of, plan, report),
                equal=_equal_weights(plan),
                target=target,
            )
            if plan.selected.is_by_marks:
                family.entries[new_name][_MARKED] = True
            mod = _lifted(mod, plan, family.functions)
            entries.update(family.entries)
        _warn_of_marks(plans)
        if plans:
            _warn(plans)
        return with_param_map(_without_stops(mod), entries)

    return run


def _is_lifted(mod: ir.IRModule, plan: LiftPlan, new_name: str) -> bool:
    """Whether there is nothing to lift, or no more than an in-place transform does already."""
    shared = plan.graph.shared
    if plan.is_nothing():
        return True
    if new_name not in {gvar.name_hint for gvar in mod.get_global_vars()}:
        return False
    raise LiftError.of(
        functions=shared.listed,
        reason=f"the module has a `{new_name}` already, but there is more to lift; run "
        "LiftInplaceTransformParams once, after the passes that change what is done to weights",
    )


def _require_no_other_callers(mod: ir.IRModule, plan: LiftPlan) -> None:
    graph = plan.graph
    changed = [numbered.user.gvar for numbered in graph.users]
    if graph.shared.transform is not None:
        changed.append(graph.shared.transform)
    numbered_of = {numbered.user.gvar: numbered for numbered in graph.users}
    for gvar, function in mod.functions_items():
        if not isinstance(function, relax.Function):
            continue
        numbered = numbered_of.get(gvar)
        if numbered is None:
            called = set(relax.analysis.all_global_vars(function)).intersection(changed) - {gvar}
        else:
            called = set()
            for _, _, value, _ in numbered.bindings:
                # all_global_vars would visit the type of the tuple at each read of a field.
                if called_user(value, numbered, graph) is None:
                    called.update(_global_vars(value).intersection(changed))
        if called:
            other = min(one.name_hint for one in called)
            raise LiftError.of(
                functions=graph.shared.listed,
                reason=f"`{gvar.name_hint}` calls `{other}`, whose weights it would have to "
                "transform; lift both, with functions=[...], or inline one",
            )


def _global_vars(value: relax.Expr) -> set[ir.GlobalVar]:
    if type(value) is ir.Call:
        return {one for one in (value.op, *value.args[:]) if type(one) is ir.GlobalVar}
    if type(value) is relax.Function:
        return set(relax.analysis.all_global_vars(value))
    return {value} if type(value) is ir.GlobalVar else set()


def _warn(plans: Sequence[LiftPlan]) -> None:
    """Of transpositions that are lifted, and of rules that name nothing in any of the plans."""
    found: list[UserWarning | None] = [warning_of(plan) for plan in plans]
    for rule, text in plans[0].selected.unmatched.items():
        if all(rule in plan.selected.unmatched for plan in plans):
            found.append(UserWarning(f"LiftInplaceTransformParams: {text}"))
    for warning in filter(None, found):
        warnings.warn(warning, stacklevel=2)


def _warn_of_marks(plans: Sequence[LiftPlan]) -> None:
    """Warn where the author of a model is not obeyed, and nobody has asked for that."""
    texts = []
    for plan in plans:
        if plan.selected.is_by_marks:
            texts += plan.graph.without_effect
            for made in plan.graph.computations:
                reason = plan.values.left.get(made)
                if reason is None or made not in (plan.graph.marked or ()):
                    continue
                if not reason.rule.startswith("skip="):
                    texts.append(f"`{made.binding.var.name}`: {reason.text}")
    if texts:
        named = "; ".join(texts[:3]) + (f"; and {len(texts) - 3} more" if len(texts) > 3 else "")
        warnings.warn(
            f"LiftInplaceTransformParams: R.lift_param has no effect on {named}", stacklevel=2
        )


_MARKED = "marked"  # of an entry of the map: what is lifted is what was marked


def _lifted(
    mod: ir.IRModule, plan: LiftPlan, transform: dict[ir.GlobalVar, ir.BaseFunc]
) -> ir.IRModule:
    shared = plan.graph.shared
    functions = dict(mod.functions_items())
    for gvar in [user.gvar for user in shared.users] + [shared.transform]:
        functions.pop(gvar, None)
    functions.update({**write_users(plan), **transform})
    return ir.IRModule(functions, attrs=mod.attrs, global_infos=mod.global_infos)


def _equal_weights(plan: LiftPlan) -> dict[str, str]:
    """The slots of tied weights, and of those that stand for them."""
    if plan.graph.shared.is_called:
        return {}  # tied is what the other transform makes
    return {
        slot_text(weight.path): slot_text(first.path) for weight, first in plan.graph.tied.items()
    }


def _said_of(plan: LiftPlan, report: LiftReport, entry: Entry) -> Entry:
    """An entry of the map, with what lifting knows: what is tied, and what is done to what."""
    if plan.graph.shared.is_called:
        return {**entry, "tied": []}
    names: dict[Value, list[str]] = {}
    for weight, first in plan.graph.tied.items():
        names.setdefault(first, [first.name]).append(weight.name)
    said = report.param_map()
    dimensions = {"name": (report.new_names or [""])[-1], "from": [], "done": "shape"}
    params = [{**one, **said.get(one["slot"], dimensions)} for one in entry["params"]]
    return {**entry, "tied": list(names.values()), "params": params}


def _without_stops(mod: ir.IRModule) -> ir.IRModule:
    """Without ``R.builtin.stop_lift_params``, in all functions."""
    stopped = [
        gvar
        for gvar, function in mod.functions_items()
        if isinstance(function, relax.Function)
        and any(is_stop(binding.value) for binding in bindings_of(function))
    ]
    if stopped:
        mod = mod.clone()
        for gvar in stopped:
            mod[gvar] = without_stops(mod[gvar])
    return mod
