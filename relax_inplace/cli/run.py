"""``relax-inplace run``: load weights, convert them in place, report, save the result."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shutil
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from . import options
from .messages import Messages, RefusedError
from .option_names import in_options
from .output_file import require_folder
from .terminal import Command, show

__all__ = ["command"]


@click.command(
    "run", cls=Command, short_help="Load weights, convert them in place, report, save them."
)
@click.argument("library", metavar="LIB")
@click.option(
    "--params", "path", required=True, metavar="PATH", help="The weights: a folder or a file."
)
@click.option(
    "--device",
    "device_name",
    default="cpu",
    show_default=True,
    help="The device: cpu, cuda, cuda:1 ...",
)
@click.option("--save", metavar="DIR", help="Write the converted weights into this folder.")
@click.option(
    "--cache",
    metavar="DIR",
    help="Write them into this folder, or load them from there if this library made them from "
    "these files before.",
)
@click.option(
    "--format",
    type=click.Choice(["tensor-cache", "safetensors"]),
    default="tensor-cache",
    show_default=True,
    help="The format of the written weights.",
)
@click.option("--plot", metavar="FILE", help="Draw memory over time, as .svg, .png or .pdf.")
@options.names
@click.option(
    "--ignore-extra", is_flag=True, help="Ignore weights in the files that LIB does not use."
)
@click.option(
    "--ties",
    is_flag=True,
    help="Follow the metadata of safetensors that says which weights are tied.",
)
@click.option(
    "--function", "name", metavar="NAME", help="The transform to run, if LIB has several."
)
@click.option(
    "--call",
    "function",
    metavar="FUNCTION",
    help="Call this function of LIB once, with zeros and the converted weights, and print the "
    "shapes of what it returns.",
)
@click.option(
    "--npz",
    metavar="FILE",
    help="Arrays for --call, by the names of the parameters; needed where LIB does not say shapes.",
)
@click.option("--strict", is_flag=True, help="Refuse weights that cannot be freed.")
@click.option("--verify", is_flag=True, help="Compare each field with an out-of-place conversion.")
@click.option("--checksum", is_flag=True, help="Compare the md5 sums of the files.")
@options.json_output
@options.common
@options.with_messages
def command(
    said: Messages,
    library: str,
    path: str,
    device_name: str,
    save: str | None,
    cache: str | None,
    format: str,
    plot: str | None,
    names: dict[str, str] | list[str] | None,
    ignore_extra: bool,
    ties: bool,
    name: str | None,
    function: str | None,
    npz: str | None,
    strict: bool,
    verify: bool,
    checksum: bool,
    as_json: bool,
) -> None:
    """Load weights, convert them in the memory they occupy, and report.

    LIB is a library by `relax-inplace build`. The weights are a tensor cache of TVM or MLC-LLM, or
    safetensors. If LIB was built with --lazy, each weight is read when its step comes.

    \b
      relax-inplace run lib.so --params weights/
      relax-inplace run lib.so --params weights/ --save converted/ --plot memory.svg
      relax-inplace run lib.so --params weights/ --call decode
      relax-inplace run lib.so --params model.safetensors --device cuda --cache ~/.cache/model
    """  # noqa: D301  click wants the character
    if plot is not None and Path(plot).suffix not in (".svg", ".png", ".pdf"):
        raise click.UsageError(
            f"--plot {plot}: expected .svg, .png or .pdf", click.get_current_context()
        )
    if npz is not None and function is None:
        raise click.UsageError("--npz is for --call: add it", click.get_current_context())
    if plot is not None:
        if importlib.util.find_spec("matplotlib") is None:
            raise RefusedError("--plot: pictures need matplotlib: pip install matplotlib")
        if not Path(plot).absolute().parent.is_dir():
            raise RefusedError(f"--plot {plot}: no such folder")
        require_folder(Path(plot), f"--plot {plot}")
    if save is not None:
        require_folder(Path(save, "file"), f"--save {save}")
    if "tvm" not in sys.modules:
        os.environ.setdefault("TVM_USE_RUNTIME_LIB", "1")  # the compiler is not needed
    from .. import runtime
    from ..runtime.checkpoint import open_checkpoint
    from ..runtime.transform import open_module, transform_in

    device = _device(device_name)
    if save is not None:
        source = open_checkpoint(path)
        if source.provenance is None and Path(save).resolve() == source.path.resolve().parent:
            raise RefusedError(
                f"--save {save}: the original weights are there; give another folder"
            )
    progress = False if said.quiet else None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        from tvm.runtime.vm import VirtualMachine

        executable = open_module(library)
        vm = VirtualMachine(executable, device)
        transform = transform_in(vm, name, device, library)
        inputs = None
        if function is not None:
            from .call import inputs_of

            weights = len(_slots(transform))
            inputs = inputs_of(executable, vm, function, weights, npz, device)
        if save is not None:
            _require_room(save, transform)
        params = runtime.convert_params(
            transform,
            path,
            device,
            cache=cache,
            format=format,
            names=names,
            extra="ignore" if ignore_extra else "error",
            ties=ties,
            strict=strict,
            verify=verify,
            checksum=checksum,
            progress=progress,
        )
    for warning in caught:
        said.note(f"warning: {in_options(str(warning.message))}")
    if params.ignored:
        said.note(f"not used, and not read: {_listed(params.ignored)}")
    report = params.report
    assert report is not None
    if save is not None:
        runtime.save_params(params, save, format, progress=progress)
        said.note(f"saved: {save}")
    if plot is not None:
        report.plot(plot)
        said.note(f"drawn: {plot}")
    called = None
    if inputs is not None and function is not None:
        from .call import call

        called = call(vm, function, inputs, params)
    if as_json:
        made = {} if called is None else {"call": dataclasses.asdict(called)}
        click.echo(json.dumps({**json.loads(report.to_json()), **made}, indent=1))
    elif not said.quiet:
        show("\n".join(map(str, filter(None, [report, called]))))


def _slots(transform: Any) -> set[str]:
    """The fields of the tuple that a transform leaves."""
    return {one.slot.split(".")[0] for one in transform.params or ()}


def _listed(names: Sequence[str], most: int = 8) -> str:
    """Names, or the first of them and how many there are."""
    more = f", ... ({len(names)})" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def _require_room(folder: str, transform: Any) -> None:
    """Refuse, before the conversion, a result that is larger than the free disk space."""
    needed = sum(one.nbytes or 0 for one in transform.params or [])
    there = Path(folder).absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if needed > free:
        raise RefusedError(
            f"--save {folder}: {free:,} bytes are free, expected {needed:,}; make room"
        )


def _device(name: str) -> Any:
    from ..runtime.device import device_of

    try:
        device = device_of(name)
    except ValueError as error:
        raise RefusedError(f"--device: {error}") from error
    if not device.exist:
        raise RefusedError(f"--device {name}: there is no such device")
    return device
