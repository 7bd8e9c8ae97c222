"""Options that several commands have."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import click

from ..weight_names import read_names
from .messages import Messages

__all__ = [
    "Choices",
    "bounds",
    "common",
    "every",
    "functions",
    "json_output",
    "lifting",
    "limits",
    "module",
    "names",
    "others",
    "target",
    "with_messages",
]

with_messages = click.make_pass_decorator(Messages)
module = click.argument("module", metavar="MODULE")
json_output = click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")


class Bytes(click.ParamType):
    """A number of bytes, or a factor if the text has a dot."""

    name = "bytes|factor"

    def convert(self, value: Any, param: Any, ctx: Any) -> int | float:
        """From text."""
        try:
            number = float(value) if "." in str(value) else int(value)
        except ValueError:
            number = 0
        if not 0 < number < 1 << 63:
            self.fail(f"{value!r} is neither bytes (1073741824) nor a factor (1.2)", param, ctx)
        return number


class MaxResident(Bytes):
    """A number of bytes, a factor, or ``none``."""

    name = "bytes|factor|none"

    def convert(self, value: Any, param: Any, ctx: Any) -> int | float:
        """From text; ``none`` is no limit."""
        return math.inf if value == "none" else super().convert(value, param, ctx)


class Tied(click.ParamType):
    """Weights that are equal: ``A=B``."""

    name = "A=B"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, ...]:
        """From text."""
        names = tuple(str(value).split("="))
        if len(names) < 2 or not all(names):
            self.fail(f"{value!r}: expected the names of two weights, A=B", param, ctx)
        return names


class Names(click.ParamType):
    """A JSON file with the names of the weights, an object or a list."""

    name = "file"

    def convert(self, value: Any, param: Any, ctx: Any) -> dict[str, str] | list[str]:
        """Read them."""
        try:
            return read_names(value)
        except ValueError as error:
            self.fail(str(error).removeprefix("names: "), param, ctx)


class Bound(click.ParamType):
    """A value for a symbolic dimension: ``n=4096``."""

    name = "NAME=N"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, int]:
        """From text."""
        name, _, number = str(value).partition("=")
        if not name.isidentifier() or not number.isdecimal():
            self.fail(f"{value!r}: expected a dimension and its largest value, n=4096", param, ctx)
        return name, int(number)


class Choices(dict[str, Any]):
    """The chosen options, by the names of the passes' parameters.

    ``lifting`` are the parameters of ``LiftInplaceTransformParams`` alone. ``with_others``
    are those for functions beside the transform; no analysis takes them.
    """

    def __init__(
        self,
        functions: tuple[str, ...],
        memory_limit: int | float | None = None,
        lazy: bool = False,
        restore: bool = False,
        verify: bool = False,
        names: dict[str, str] | list[str] | None = None,
        **lifting: Any,
    ):
        super().__init__(
            functions=list(functions) or None, memory_limit=memory_limit, lazy=lazy, names=names
        )
        self.lifting = lifting
        self.with_others: dict[str, Any] = {"restore": restore, "reference": verify}

    def for_lifting(self) -> dict[str, Any]:
        """The arguments of ``LiftInplaceTransformParams`` and ``explain_lift``."""
        chosen = {**self, **self.lifting}
        chosen["tied"] = list(chosen.get("tied") or ())
        for rules in ("only", "skip"):
            chosen[rules] = list(chosen.get(rules) or ()) or None
        max_resident = chosen.get("max_resident") or 1.0
        chosen["max_resident"] = None if max_resident == math.inf else max_resident
        return chosen

    def require_lift(self, lift: bool) -> None:
        """Refuse options that mean nothing without ``--lift``."""
        given = [name.replace("_", "-") for name, value in self.lifting.items() if value]
        if given and not lift:
            raise click.UsageError(
                f"--{given[0]} needs a lifted transform: add --lift", click.get_current_context()
            )


def common(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--quiet`` and ``--debug``."""

    def set_to(name: str) -> Callable[..., None]:
        def callback(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
            if value:
                setattr(ctx.ensure_object(Messages), name, True)

        return callback

    for name, text in (
        ("debug", "Show the traceback of an error, not one line."),
        ("quiet", "Show errors only, no warnings or notes."),
    ):
        function = click.option(
            f"--{name}",
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=set_to(name),
            help=text,
        )(function)
    return function


every = click.option(
    "--all", "every", is_flag=True, help="Show every weight, also of a large model."
)

functions = click.option(
    "--function",
    "functions",
    metavar="NAME",
    multiple=True,
    help="Use this function only. Repeatable.",
)

names = click.option(
    "--names",
    type=Names(),
    help="The weights' names in the checkpoint: JSON, an object from the module's names, or a list "
    "in the order of the tuple.",
)

bounds = click.option(
    "--bound",
    "bounds",
    type=Bound(),
    multiple=True,
    help="The largest value of a symbolic dimension. Repeatable.",
)


def target(default: str | None, says: str) -> Callable[..., Any]:
    """``--target``."""
    return click.option(
        "--target",
        default=default,
        show_default=default is not None,
        help=f'{says}: llvm, cuda, a tag, or JSON {{"kind": ...}}.',
    )


def limits(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--memory-limit`` and ``--lazy``."""
    function = click.option(
        "--lazy",
        is_flag=True,
        help="Stream the weights: the transform asks for them one by one.",
    )(function)
    return click.option(
        "--memory-limit",
        type=Bytes(),
        help="The memory that the transform may hold at once: bytes, or a factor of the weights "
        "(1.2). A step that needs more is run slice by slice.",
    )(function)


def others(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--restore`` and ``--verify``."""
    function = click.option(
        "--verify",
        is_flag=True,
        help="Add the function that `run --verify` compares with.",
    )(function)
    return click.option(
        "--restore",
        is_flag=True,
        help="Add the inverse: the function that converts the weights back.",
    )(function)


def lifting(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--only``, ``--skip``, ``--max-resident`` and ``--tied``."""
    for option in (
        click.option(
            "--tied", type=Tied(), multiple=True, help="Two weights that are equal. Repeatable."
        ),
        click.option(
            "--max-resident",
            type=MaxResident(),
            help="The size that the converted weights may have: bytes, or a factor of the weights "
            "(default 1.0). A computation that makes them larger stays in the model; with none, "
            "all are lifted.",
        ),
        click.option(
            "--skip",
            metavar="NAME",
            multiple=True,
            help="Do not lift these: a weight, operator (relax.permute_dims), kernel or layout, by "
            "name or pattern (*.gate.*). Repeatable.",
        ),
        click.option(
            "--only",
            metavar="NAME",
            multiple=True,
            help="Lift only these, and the computations that they depend on: a weight, operator, "
            "kernel or layout, by name or pattern. Repeatable.",
        ),
    ):
        function = option(function)
    return function
