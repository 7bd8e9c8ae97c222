"""``relax-inplace build``: compile a model to a library that converts its own weights."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..libinfo import self_contained_options
from . import options
from .compilation import compiled, rewritten, target_of
from .messages import Messages, RefusedError
from .module_file import read_module
from .output_file import output_file, require_folder
from .plan import planned, transforms_of
from .terminal import Command, show

if TYPE_CHECKING:
    from tvm import ir

    from ..analysis import MemoryPlan

__all__ = ["command"]


@click.command(
    "build", cls=Command, short_help="Compile a model to a library that converts its weights."
)
@options.module
@options.target("llvm", "The target")
@click.option(
    "--pipeline",
    type=click.Choice(["inplace", "default"]),
    hidden=True,
    expose_value=False,  # two names of one pipeline: scripts of the first version say one of them
)
@click.option("-o", "--output", required=True, metavar="LIB", help="The library to write, .so.")
@click.option(
    "--lift/--no-lift",
    default=None,
    help="Lift the computations on weights out of the functions. Default: if they have weights.",
)
@click.option(
    "--self-contained",
    is_flag=True,
    help="Put the builtins into the library, so that it needs TVM's runtime alone.",
)
@options.json_output
@options.functions
@options.limits
@options.others
@options.names
@options.lifting
@options.common
@options.with_messages
def command(
    said: Messages,
    module: str,
    target: str,
    output: str,
    lift: bool | None,
    self_contained: bool,
    as_json: bool,
    **chosen: Any,
) -> None:
    """Lift, rewrite and compile a module, and write it as a library.

    TVM's default pipeline for the target compiles it, but folds no constants, because that would
    run kernels of the module. If the target is llvm and names no processor, the library is for the
    processor of this machine.

    \b
      relax-inplace build model.py -o lib.so
      relax-inplace build model.py --target cuda --max-resident 1.0 -o lib.so
      relax-inplace build model.py --target '{"kind": "llvm", "mcpu": "x86-64"}' -o lib.so
    """  # noqa: D301  click wants the character
    choices = options.Choices(**chosen)
    if Path(output).suffix not in (".so", ".dylib", ".dll"):
        raise click.UsageError(f"-o {output}: expected a library, .so", click.get_current_context())
    if not Path(output).resolve().parent.is_dir():
        raise RefusedError(f"{output}: no such folder")
    require_folder(Path(output), f"-o {output}")
    mod = read_module(module, said)
    from ..analysis import functions_that_update

    with said.tvm_speaks():
        chosen_target = target_of(target)
        lifts = _has_weights(mod, choices) if lift is None else lift
        choices.require_lift(lifts)
        has_plan = lifts or transforms_of(mod)
        made = planned(mod, choices, lifts, target=chosen_target) if has_plan else []
    said.progress(f"rewriting {len(mod.functions)} functions")
    with said.tvm_speaks():
        mod = rewritten(mod, choices, lifts, chosen_target)
    said.progress(f"compiling for {chosen_target.kind.name}")
    with said.tvm_speaks(), output_file(output) as file:
        library = compiled(mod, chosen_target)
        linked = self_contained_options() if self_contained else []
        library.export_library(str(file), options=linked)
    if not made and not functions_that_update(mod):
        said.note("no weights are converted: the module has no transform, and none to lift")
    if chosen_target.kind.name == "cuda" and not _compiles_cuda():
        said.note(
            f"{output} holds CUDA source: TVM's CUDA runtime cannot be loaded here (libcuda.so.1). "
            "The machine that loads the library compiles it, by nvcc or NVRTC; docs/gpu.md says "
            "how to compile it here"
        )
    processor = chosen_target.attrs.get("mcpu")
    if processor is not None and "mcpu" not in target:
        said.note(
            f"{output} is for this machine's processor ({processor}); a library for others names "
            'theirs: --target \'{"kind": "llvm", "mcpu": "x86-64"}\''
        )
    summaries = [_summary(one.memory, mod) for one in made]
    built = Built(output, chosen_target.kind.name, processor, _functions(mod), summaries)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(built), indent=1))
    elif not said.quiet:
        show(str(built))


@dataclasses.dataclass
class Built:
    """The library that was built."""

    library: str
    target: str
    processor: str | None
    functions: list[str]
    transforms: list[dict[str, Any]]

    def __str__(self) -> str:
        """For a person."""
        compiled_for = " ".join(filter(None, [self.target, self.processor]))
        lines = [f"{self.library}: {', '.join(self.functions)}; for {compiled_for}"]
        for one in self.transforms:
            lines.append(
                f"{one['name']}: weights {one['weights']} -> {one['new_weights']}, bytes "
                f"{_bytes(one['before'])} -> {_bytes(one['after'])}, peak {_bytes(one['peak'])}, "
                f"steps {one['steps']}" + (", streamed" if one["streamed"] else "")
            )
        return "\n".join(lines)


def _bytes(size: int | str) -> str:
    return f"{size:,}" if isinstance(size, int) else size


def _summary(plan: MemoryPlan, mod: ir.IRModule) -> dict[str, Any]:
    from ..inplace.inplace_transform_params import inplace_name
    from ..ir.byte_size import tensors_in

    name = inplace_name(plan.function)
    sizes = {"before": plan.before, "after": plan.after, "peak": plan.peak}
    return {
        "name": name,
        "weights": len(plan.weights),
        "new_weights": len(list(tensors_in(mod[name].ret_ty))),
        **{key: size if isinstance(size, int) else str(size) for key, size in sizes.items()},
        "steps": len(plan.steps),
        "streamed": any(weight.loaded_by for weight in plan.weights),
    }


def _compiles_cuda() -> bool:
    """Whether TVM makes machine code; if not, it keeps source (cuda_fallback_module.h)."""
    import tvm_ffi

    return tvm_ffi.get_global_func("ffi.Module.create.cuda", allow_missing=True) is not None


def _has_weights(mod: ir.IRModule, choices: options.Choices) -> bool:
    """Whether the module has functions to lift from."""
    from ..analysis import LiftError, functions_that_update
    from ..lift.shared_weights import find_shared_weights

    if functions_that_update(mod):
        return False
    chosen = choices["functions"]
    if chosen and set(chosen) <= set(transforms_of(mod)):
        return False
    try:
        return bool(find_shared_weights(mod, chosen))
    except LiftError as error:
        if error.fields.get("functions") == "the module":  # none of its functions has weights
            return False
        raise


def _functions(mod: ir.IRModule) -> list[str]:
    """The Relax functions that a caller finds in the library."""
    from tvm import relax

    return sorted(
        gvar.name_hint
        for gvar, function in mod.functions_items()
        if isinstance(function, relax.Function)
        and function.attrs
        and "global_symbol" in function.attrs
    )
