"""``relax-inplace rewrite``: write the module that converts its weights in place."""

from __future__ import annotations

from typing import Any

import click

from . import options
from .messages import Messages
from .module_file import read_module
from .module_text import write_module
from .terminal import Command

__all__ = ["command"]


@click.command(
    "rewrite", cls=Command, short_help="Write the module that converts its weights in place."
)
@options.module
@click.option(
    "--lift", is_flag=True, help="First lift the computations on weights out of the functions."
)
@click.option(
    "-o",
    "--output",
    metavar="OUT",
    help="The file to write, .py or .json. Default: standard output.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print JSON on standard output, not TVMScript."
)
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
    lift: bool,
    output: str | None,
    as_json: bool,
    **chosen: Any,
) -> None:
    """Rewrite a module so that it converts its weights in place.

    Each function *transform_params becomes *inplace_transform_params, which replaces the weights
    one by one (the pass InplaceTransformParams). With --lift, the computations on weights in the
    other functions become such a function first (LiftInplaceTransformParams).

    \b
      relax-inplace rewrite transform.py
      relax-inplace rewrite model.py --lift --max-resident 1.0 -o new.py
      relax-inplace rewrite model.json --lift --json | relax-inplace plan - --json
    """  # noqa: D301  click wants the character
    choices = options.Choices(**chosen)
    choices.require_lift(lift)
    mod = read_module(module, said)
    from .. import transform
    from ..analysis import functions_that_update

    if lift:
        rewritten = transform.LiftInplaceTransformParams(
            **choices.for_lifting(), **choices.with_others
        )
    else:
        rewritten = transform.InplaceTransformParams(**choices, **choices.with_others)
    with said.tvm_speaks():
        after = rewritten(mod)
    if not functions_that_update(after):
        said.note(
            "nothing is lifted, the module is as it was; `relax-inplace explain` says why"
            if lift
            else "nothing to rewrite: no function *transform_params; --lift makes one of a model"
        )
    if choices["lazy"] and not as_json and not (output or "").endswith(".json"):
        # R.Prim("int64") of a callable prints as T.int64, which is no type of Relax there.
        said.note("TVM's parser does not read the text of a streamed transform back; JSON it does")
    write_module(after, output, as_json)
