"""The program of a node that is not the controller's: its workers, until the session ends.

python -m relax_inplace.runtime.disco.node HOST PORT
"""

from __future__ import annotations

import subprocess
import sys

from .nodes import connect_workers
from .processes import worker_command
from .worker import serve


def main() -> None:
    """Connect to a `SocketSession`, start the other workers of the node, and be its first."""
    if len(sys.argv) != 3:
        sys.exit(f"usage: python -m {__spec__.name} HOST PORT")
    (first, arguments), *others = connect_workers(sys.argv[1], int(sys.argv[2]))
    for connection, given in others:
        with connection:
            subprocess.Popen(worker_command(given), pass_fds=[connection.fileno()])
    first.detach()
    serve(arguments)


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"node: {error}")
