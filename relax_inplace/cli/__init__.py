"""The command line, ``relax-inplace``: a command is a file, :mod:`.program` lists them.

``--help`` imports no TVM: a command imports it when it runs.
"""

from .program import main

__all__ = ["main"]
