"""The program of a node that is not the controller's.

    python -m relax_inplace.runtime.disco.node HOST PORT WORKERS

It connects to a `SocketSession`, starts the node's workers, and ends when the session does. The
first of them is a thread of this process.
"""

from __future__ import annotations

import os
import sys

import tvm_ffi

from ...libinfo import load_library
from . import tasks  # noqa: F401  registers what a worker can be asked
from .node_connections import connect_node
from .sessions import processes_for_local_workers

_PATIENCE = 60.0  # seconds that the controller may need until it listens


def main() -> int:
    """Be a node, until the controller hangs up."""
    if len(sys.argv) != 4:
        print(f"usage: python -m {__spec__.name} HOST PORT WORKERS", file=sys.stderr)
        return 2
    host, port, workers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    load_library()
    run = tvm_ffi.get_global_func("runtime.disco.RemoteSocketSession")
    inner_port = connect_node(host, port, _PATIENCE)
    with processes_for_local_workers():
        run("127.0.0.1", inner_port, workers)
    return 0


if __name__ == "__main__":
    status = 1
    try:
        status = main()
    except Exception as error:
        print(f"node: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        pass
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # a conversion that is still running would be waited for
