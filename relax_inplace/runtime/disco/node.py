"""The program of a node that is not the controller's.

    python -m relax_inplace.runtime.disco.node HOST PORT [WORKERS]

It connects to a `SocketSession`, starts the node's workers, of which it is the first, and ends when
the session does. ``WORKERS`` is the most that it may start.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from .nodes import connect_worker
from .worker import serve

_KEY = "RELAX_INPLACE_DISCO_NODE"  # the name of a variable, for the other workers of the node
_PATIENCE = 60.0  # seconds that the controller may need until it listens


def main() -> int:
    """Be a worker of a node, until the controller hangs up."""
    if len(sys.argv) not in (3, 4):
        print(f"usage: python -m {__spec__.name} HOST PORT [WORKERS]", file=sys.stderr)
        return 2
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    key = os.environ.get(_KEY)
    connection, place = connect_worker(sys.argv[1], int(sys.argv[2]), key, _PATIENCE)
    nodes, groups, workers = place["sizes"]
    if len(sys.argv) == 4 and int(sys.argv[3]) < workers:
        raise ValueError(f"{sys.argv[3]} workers given, expected {workers}, as the session has")
    if key is None:
        command = [sys.executable, "-m", __spec__.name, *sys.argv[1:]]
        for _ in range(workers - 1):
            subprocess.Popen(command, env={**os.environ, _KEY: place["key"]})
    descriptor = connection.detach()
    serve(
        *(place["local"], workers, 1, descriptor, descriptor),
        *(nodes, place["node"], groups, workers),
    )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, ValueError) as error:
        sys.exit(f"node: {error}")
