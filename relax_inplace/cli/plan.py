"""``relax-inplace plan``: show the order of a transform's steps, and the memory of each."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from . import options
from .compilation import rewritten, running_nothing, target_of
from .messages import Messages, RefusedError
from .module_file import read_module
from .option_names import in_options
from .terminal import Command, show

if TYPE_CHECKING:
    import tvm
    from tvm import ir, relax

    from ..analysis import LiftReport, MemoryPlan
    from ..lower.storage_plan import StoragePlan

__all__ = ["command", "planned", "transforms_of"]


@click.command(
    "plan", cls=Command, short_help="Show the order of a transform's steps, and their memory."
)
@options.module
@click.option(
    "--lift", is_flag=True, help="Plan the lifted transform, also if the module has one of its own."
)
@options.target(None, "Plan for a target, and show the storage of each new weight")
@click.option("--plot", metavar="FILE", help="Also draw the plan: .svg, .png or .pdf.")
@options.json_output
@options.every
@options.functions
@options.bounds
@options.limits
@options.names
@options.lifting
@options.common
@options.with_messages
def command(
    said: Messages,
    module: str,
    lift: bool,
    target: str | None,
    plot: str | None,
    as_json: bool,
    every: bool,
    bounds: tuple[tuple[str, int], ...],
    **chosen: Any,
) -> None:
    """Show the steps of a transform in their order, the live bytes at each, and the peak.

    The plan is for each function *transform_params of the module. If there is none, it is for the
    transform that lifting would make. For more than 16 weights, a summary is shown, and the weights
    that change.

    \b
      relax-inplace plan model.py
      relax-inplace plan transform.py --memory-limit 1.2 --plot plan.svg
      relax-inplace plan model.py --bound n=4096 --json
      relax-inplace plan transform.py --target llvm
    """  # noqa: D301  click wants the character
    choices = options.Choices(**chosen)
    mod = read_module(module, said)
    lifts = lift or not (choices["functions"] or transforms_of(mod))
    choices.require_lift(lifts)
    with said.tvm_speaks():
        compiled_for = None if target is None else target_of(target)
        plans = planned(mod, choices, lifts, dict(bounds), compiled_for)
        storages = compiled_for and _storages(mod, choices, lifts, plans, compiled_for)
    if not plans:
        said.note("nothing is lifted: `relax-inplace explain` says why")
    if plot is not None and len(plans) != 1:
        names = ", ".join(f"`{one.memory.function}`" for one in plans) or "none"
        raise click.UsageError(
            f"--plot draws one transform, the module has {names}: add --function",
            click.get_current_context(),
        )
    if plot is not None:
        from ..plot import plot_plan

        with said.tvm_speaks():
            plot_plan(plans[0].memory, plot)
    if as_json:
        said_of = [_as_json(one.memory) for one in plans]
        for one, storage in zip(said_of, storages or (), strict=storages is not None):
            one["storage"] = json.loads(storage.to_json())
        click.echo(json.dumps(said_of, indent=1))
    else:
        texts = [*(_as_text(one, every) for one in plans), *map(str, storages or ())]
        show("\n".join(texts).removesuffix("\n"))


@dataclasses.dataclass
class Planned:
    """The plan of a transform, and the report of the lifting, if it was lifted."""

    memory: MemoryPlan
    lifted: LiftReport | None


def transforms_of(mod: ir.IRModule) -> list[str]:
    """The transforms of a module that are not in place yet, by name."""
    from tvm import relax

    from ..analysis import functions_that_update

    updating = functions_that_update(mod)
    return sorted(
        gvar.name_hint
        for gvar, function in mod.functions_items()
        if isinstance(function, relax.Function)
        and gvar.name_hint.endswith("transform_params")
        and gvar not in updating
    )


def planned(
    mod: ir.IRModule,
    choices: options.Choices,
    lifts: bool,
    bounds: Mapping[str, int] | None = None,
    target: tvm.target.Target | None = None,
) -> list[Planned]:
    """The plans of a module's transforms, or of the lifted one, for a target."""
    from ..analysis import functions_that_update, plan_memory

    updating = {gvar.name_hint for gvar in functions_that_update(mod)}
    names = choices["functions"] or transforms_of(mod)
    done = updating if lifts else updating.intersection(names)
    if done:
        raise RefusedError(
            f"`{min(done)}` works in place already: plan the module as it was before"
        )
    plans = []
    for name, function, report in (
        _lifted(mod, choices) if lifts else [(name, _function(mod, name), None) for name in names]
    ):
        plan = plan_memory(
            function,
            mod,
            names=None if lifts else choices["names"],
            memory_limit=choices["memory_limit"],
            lazy=choices["lazy"],
            tir_var_upper_bound=bounds or None,
            target=target,
        )
        plan.function = name
        plans.append(Planned(plan, report))
    return plans


def _storages(
    mod: ir.IRModule,
    choices: options.Choices,
    lifts: bool,
    plans: list[Planned],
    target: tvm.target.Target,
) -> list[StoragePlan]:
    """Which storage each new weight takes, for each plan."""
    from ..analysis import plan_storage
    from ..inplace.inplace_transform_params import inplace_name

    inplace = rewritten(mod, choices, lifts, target)
    with running_nothing():
        return [plan_storage(inplace, target, inplace_name(one.memory.function)) for one in plans]


def _function(mod: ir.IRModule, name: str) -> relax.Function:
    from tvm import relax

    functions = {
        gvar.name_hint: function
        for gvar, function in mod.functions_items()
        if isinstance(function, relax.Function)
    }
    if name not in functions:
        raise RefusedError(
            f"the module has no Relax function `{name}`; it has {', '.join(sorted(functions))}"
        )
    return functions[name]


def _lifted(
    mod: ir.IRModule, choices: options.Choices
) -> Iterator[tuple[str, relax.Function, LiftReport]]:
    """The transforms that lifting makes, by the names of those whose place they take."""
    from ..lift.plan import plan_lift
    from ..lift.report import described
    from ..lift.selection import Selection
    from ..lift.shared_weights import find_shared_weights
    from ..lift.transform import write_transform
    from ..lift.weight_values import find_values

    chosen = choices.for_lifting()
    selection = Selection.of(chosen["only"], chosen["skip"])
    for shared in find_shared_weights(mod, chosen["functions"], None, chosen["names"]):
        values = find_values(mod, shared, chosen["tied"])
        lift = plan_lift(values, chosen["max_resident"], selection)
        if not lift.is_nothing():
            name = "transform_params" if shared.transform is None else shared.transform.name_hint
            yield name, write_transform(lift, mod), described(lift)


def _as_text(planned: Planned, every: bool) -> str:
    from ..inplace.memory_plan import FEW
    from ..inplace.out_of_place import out_of_place_bytes
    from ..ir.table import shown

    plan = planned.memory
    out_of_place = out_of_place_bytes(plan)
    lifted, text = planned.lifted, ""
    if lifted is not None and len(lifted.weights) > FEW:
        text = f"{in_options(lifted.summary())}\n\n"
    text += (
        f"{plan.text(every)}\nout of place: at least {shown(out_of_place)}, the originals and the "
        f"results; in place: {shown(plan.peak)}"
    )
    if isinstance(out_of_place, int) and isinstance(plan.peak, int) and out_of_place:
        text += f", {plan.peak / out_of_place:.2f} of that"
    return text + "\n"


def _as_json(plan: MemoryPlan) -> dict[str, Any]:
    from ..inplace.out_of_place import out_of_place_bytes

    out_of_place = out_of_place_bytes(plan)
    return {
        **json.loads(plan.to_json()),
        "out_of_place": out_of_place if isinstance(out_of_place, int) else str(out_of_place),
    }
