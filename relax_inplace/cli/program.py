"""``relax-inplace``: its commands, and how it ends: exit codes, and one line for each error."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import click

from .. import libinfo
from . import build, demo, explain, messages, plan, rewrite, run
from .terminal import fitted

__all__ = ["COMMANDS", "main"]

# Where a command is added: a file of its own, and a line here.
COMMANDS: tuple[click.Command, ...] = (
    rewrite.command,
    plan.command,
    explain.command,
    build.command,
    run.command,
    demo.command,
)

REFUSED = 1
USAGE = 2
INTERRUPTED = 130  # 128 + SIGINT, as a shell has it
NOBODY_READS = 141  # 128 + SIGPIPE


class Program(click.Group):
    """A group of commands that ends with one of the exit codes of its help."""

    def main(  # type: ignore[override]
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        **extra: Any,
    ) -> NoReturn:
        """Run a command; ends the process."""
        said = messages.Messages()
        said.is_program = args is None
        try:
            extra["standalone_mode"] = False
            code = super().main(args, prog_name or "relax-inplace", obj=said, **extra)
        except click.UsageError as error:
            said.error(_with_hint(error))
            code = USAGE
        except (click.Abort, KeyboardInterrupt) as error:
            # click raises Abort from a KeyboardInterrupt; that of a conversion says what it left.
            said.error(str(error.__cause__ or error) or "interrupted")
            code = INTERRUPTED
        except click.exceptions.Exit as error:
            code = error.exit_code
        except Exception as error:
            if said.debug:
                raise
            said.error(messages.one_line(error))
            code = REFUSED
        said.end(code if isinstance(code, int) else 0)

    def get_help(self, ctx: click.Context) -> str:
        """Its text."""
        return fitted(super().get_help(ctx))

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; click itself would exit with 1 if nobody reads the output."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            # Python flushes standard output once more as it ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(NOBODY_READS)
        return result


def _with_hint(error: click.UsageError) -> str:
    message = error.format_message().rstrip(".")
    return f"{message}; see {error.ctx.command_path} --help" if error.ctx else message


def _printing(option: str, find: Callable[[], str], text: str) -> Callable[..., Any]:
    """An option that prints a path and ends the program, as ``tvm-ffi-config`` does."""

    def callback(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
        if value:
            click.echo(find())
            ctx.exit()

    return click.option(
        option, is_flag=True, is_eager=True, expose_value=False, callback=callback, help=text
    )


@click.group(
    "relax-inplace",
    cls=Program,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    commands={command.name: command for command in COMMANDS if command.name is not None},
)
@click.version_option(package_name="relax-inplace", prog_name="relax-inplace")
@_printing(
    "--cmakedir", libinfo.find_cmake_path, "Print the folder for find_package(relax_inplace)."
)
@_printing("--libfiles", libinfo.find_library, "Print the path of the shared library.")
def main() -> None:
    """Convert a model's weights in the memory they already occupy.

    A MODULE is a Python file, model.py or model.py:NAME, which is executed; or JSON by
    tvm.ir.save_json, model.json or - for standard input, which is data.

    \b
      relax-inplace explain model.py:Model               show what is lifted, and where it goes
      relax-inplace plan model.py                        show the steps, and the memory of each
      relax-inplace rewrite model.py --lift -o new.py    write the module that converts in place
      relax-inplace build model.py -o lib.so             compile it
      relax-inplace run lib.so --params weights/ --save converted/

    \b
    Exit codes:
      0    done
      1    the module, a file, or the weights are refused; standard error says why, in one line
      2    the command line is wrong
      130  interrupted (Ctrl-C)
      141  the reader of the output has ended (| head)
    """  # noqa: D301  click wants the character
