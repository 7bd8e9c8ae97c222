"""``relax-inplace explain``: what would be lifted from a model, and where it goes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from . import options
from .messages import Messages
from .module_file import read_module

if TYPE_CHECKING:
    from tvm import ir

    from ..analysis import LiftReport

__all__ = ["command", "explained"]


@click.command("explain", short_help="What would be lifted from a model, and where it goes.")
@options.module
@options.json_output
@options.every
@options.functions
@options.limits
@options.lifting
@options.common
@options.with_messages
def command(said: Messages, module: str, as_json: bool, every: bool, **chosen: Any) -> None:
    """Say what would be lifted from which functions, where it goes, and what stays, and why.

    Of more than 16 weights, a summary, and those that change.

    \b
      relax-inplace explain model.py
      relax-inplace explain model.py --skip relax.permute_dims --tied embed=lm_head
      relax-inplace explain model.json --function prefill --function decode --json
    """  # noqa: D301  click wants the character
    choices = options.Choices(**chosen)
    mod = read_module(module, said)
    with said.tvm_speaks():
        reports = explained(mod, choices)
    if as_json:
        click.echo(json.dumps([json.loads(report.to_json()) for report in reports], indent=1))
    else:
        click.echo("\n".join(report.text(every) for report in reports), nl=False)


def explained(mod: ir.IRModule, choices: options.Choices) -> list[LiftReport]:
    """A report for each set of functions that share weights."""
    from ..analysis import explain_lift
    from ..lift.shared_weights import find_shared_weights

    chosen = choices.for_lifting()
    functions = chosen.pop("functions")
    groups = find_shared_weights(mod, functions, None, None)
    return [explain_lift(mod, [user.name for user in shared.users], **chosen) for shared in groups]
