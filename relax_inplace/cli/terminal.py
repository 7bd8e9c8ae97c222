"""Results and help on standard output: what is longer than a terminal's line breaks at a word.

A pipe gets lines as they are, if COLUMNS does not say how long they may be.
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap

import click

__all__ = ["Command", "fitted", "show"]


class Command(click.Command):
    """A command whose help fits, what click does not break included."""

    def get_help(self, ctx: click.Context) -> str:
        """Its text."""
        return fitted(super().get_help(ctx))


def show(text: str) -> None:
    """Print lines that fit; of nothing, none."""
    if text:
        click.echo(fitted(text))


def fitted(text: str) -> str:
    """Lines; those that are too long go on in the next one, indented."""
    if not sys.stdout.isatty() and not os.environ.get("COLUMNS"):
        return text
    width = max(shutil.get_terminal_size().columns, 20)
    return "\n".join(_broken(line, width) for line in text.split("\n"))


def _broken(line: str, width: int) -> str:
    if len(line) <= width:
        return line
    indent = len(line) - len(line.lstrip()) + 4
    return textwrap.fill(
        line,
        width,
        subsequent_indent=" " * min(indent, width // 2),
        break_long_words=False,
        break_on_hyphens=False,
    )
