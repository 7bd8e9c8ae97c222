"""``relax-inplace demo``: run examples/decoder.py, which is in the wheel (CMakeLists.txt)."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import click

from .messages import RefusedError

__all__ = ["command"]


@click.command(
    "demo",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    short_help="Convert the weights of a decoder, in place and out of place.",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(arguments: tuple[str, ...]) -> None:
    """Run the example; ``--help`` shows its options."""
    example = Path(__file__).resolve().parent.parent / "examples" / "decoder.py"
    if not example.is_file():
        raise RefusedError(f"no {example}: this is a source tree; run `pip install .` in it")
    sys.argv[:] = [str(example), *arguments]
    sys.path.insert(0, str(example.parent))
    runpy.run_path(str(example), run_name="__main__")
