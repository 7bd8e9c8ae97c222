"""``relax-inplace explain``: show what would be lifted from a model, and where it goes."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from ..weight_names import RULES, match_names
from . import options
from .messages import Messages, escaped
from .module_file import read_module
from .option_names import in_options
from .terminal import Command, show

if TYPE_CHECKING:
    from tvm import ir

    from ..analysis import LiftReport
    from ..runtime.checkpoint import Checkpoint

__all__ = ["command", "explained"]


@click.command(
    "explain", cls=Command, short_help="Show what would be lifted from a model, and where it goes."
)
@options.module
@click.option(
    "--params", "path", metavar="PATH", help="Also show the names of the weights in these files."
)
@options.json_output
@options.every
@options.functions
@options.limits
@options.names
@options.lifting
@options.common
@options.with_messages
def command(
    said: Messages, module: str, path: str | None, as_json: bool, every: bool, **chosen: Any
) -> None:
    """Show the computations that would be lifted, and their new slots.

    The report also lists the computations that stay in the model, with the reason. For more than 16
    weights, a summary is shown, and the weights that change.

    \b
      relax-inplace explain model.py
      relax-inplace explain model.py --skip relax.permute_dims --tied embed=lm_head
      relax-inplace explain model.json --function prefill --function decode --json
      relax-inplace explain model.py --params weights/

    A file may name a weight otherwise than the module. The first of these rules that finds all
    weights, each once, matches the names. For other differences, use --names, here or with run.
    """  # noqa: D301  click wants the character
    choices = options.Choices(**chosen)
    mod = read_module(module, said)
    with said.tvm_speaks():
        reports = explained(mod, choices)
        checkpoint = None if path is None else _opened(path)
    tied = choices.for_lifting()["tied"]
    named = [
        None if checkpoint is None else _names_in(checkpoint, report.names, tied)
        for report in reports
    ]
    if as_json:
        said_of = [json.loads(report.to_json()) for report in reports]
        for one, names in zip(said_of, named, strict=True):
            if names is not None:
                one["checkpoint"] = {row[0]: row[1] for row in names}
        click.echo(json.dumps(said_of, indent=1))
        return
    texts = []
    for report, names in zip(reports, named, strict=True):
        texts.append(in_options(report.text(every)))
        if checkpoint is not None and names is not None:
            texts.append(_as_text(checkpoint, names))
    show("\n".join(texts).removesuffix("\n"))


def explained(mod: ir.IRModule, choices: options.Choices) -> list[LiftReport]:
    """A report for each set of functions that share weights."""
    from ..analysis import explain_lift
    from ..lift.shared_weights import find_shared_weights

    chosen = choices.for_lifting()
    functions = chosen.pop("functions")
    groups = find_shared_weights(mod, functions, None, None)
    return [explain_lift(mod, [user.name for user in shared.users], **chosen) for shared in groups]


def _opened(path: str) -> Checkpoint:
    from ..runtime.checkpoint import open_checkpoint

    return open_checkpoint(path)


def _names_in(
    checkpoint: Checkpoint, names: Sequence[str], tied: Sequence[Sequence[str]]
) -> list[tuple[str, str | None, str]]:
    """For each weight its name in the files, or None, and the rule that found it."""
    found, rules = match_names(names, checkpoint.records, tied)
    others = {name: [one for one in group if one != name] for group in tied for name in group}
    rows: list[tuple[str, str | None, str]] = []
    for name in names:
        other = next((one for one in others.get(name, ()) if one in found), None)
        if name in found:
            rows.append((name, found[name], rules[name]))
        elif other is not None:
            rows.append((name, found[other], f"tied to {other}"))
        else:
            rows.append((name, None, "by no rule"))
    return rows


def _as_text(checkpoint: Checkpoint, names: Sequence[tuple[str, str | None, str]]) -> str:
    from ..ir.table import table

    text = table(
        ["weight", f"in {checkpoint.path}", "by which rule"],
        [[escaped(name), escaped(stored or "-"), rule] for name, stored, rule in names],
    )
    used = {stored for _, stored, _ in names}
    extra = [escaped(name) for name in checkpoint.records if name not in used]
    if extra:
        text += f"\n\nnot used ({len(extra)}): {', '.join(extra[:8])}"
        text += ", ..." if len(extra) > 8 else ""
    return text + "\n"


# The rules are defined once, in weight_names; the help repeats them.
command.help = f"{inspect.cleandoc(command.help or '')}\n\n\b\n" + "\n".join(
    f"  {number}. {rule}" for number, rule in enumerate(RULES, 1)
)
