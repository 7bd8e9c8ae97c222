"""The program of a node that is not the controller's.

    python -m relax_inplace.runtime.disco.node HOST PORT

It connects to a `SocketSession`, starts the node's workers, of which it is the first, and ends when
the session does.
"""

from __future__ import annotations

import secrets
import subprocess
import sys

from .nodes import connect_worker
from .processes import worker_command
from .worker import serve


def main() -> None:
    """Be a worker of a node, until the controller hangs up."""
    if len(sys.argv) != 3:
        sys.exit(f"usage: python -m {__spec__.name} HOST PORT")
    host, port, key = sys.argv[1], int(sys.argv[2]), secrets.token_hex(16)
    first, place = connect_worker(host, port, key)
    arguments = _arguments(first.fileno(), place)
    for _ in range(place["place"][-1] - 1):
        other, place = connect_worker(host, port, key)
        with other:
            given = other.fileno()
            subprocess.Popen(worker_command(_arguments(given, place)), pass_fds=[given])
    serve(arguments)


def _arguments(descriptor: int, place: dict) -> list[str]:
    numbers = [place["local"], place["place"][-1], 1, descriptor, descriptor, *place["place"]]
    return list(map(str, numbers))


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"node: {error}")
