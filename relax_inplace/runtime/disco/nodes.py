"""The workers of other machines: where they connect, and who passes on what is said to them.

A node makes a connection for each of its workers. It says first what it is, in a line of JSON: this
package, of this version; the token that both have in their environment, if there is one; and the
node's key, which it has made up. The answer is the worker's place. Then it is TVM's.

This file is a program, too: ``nodes.py SOCKET READING WRITING``, file descriptors, passes on what
the controller says to a worker, and its answers. In the controller itself such a thread would wait
for Python, which a destructor holds that waits for room in the pipe.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
from importlib import metadata
from typing import Any

__all__ = ["accept_workers", "connect_workers"]

TOKEN = "RELAX_INPLACE_DISCO_TOKEN"  # the name of a variable
_GREETED_WITHIN = 10.0  # seconds for all of it
_LONGEST = 4096  # bytes
_LISTENS_WITHIN = 60.0  # seconds that the controller may need
# A machine that is switched off says nothing: ask it, and give up after 8 seconds.
_OPTIONS = {"NODELAY": 1, "KEEPIDLE": 2, "KEEPINTVL": 2, "KEEPCNT": 3, "USER_TIMEOUT": 8000}


def accept_workers(
    num_nodes: int, num_workers_per_node: int, num_groups: int, host: str, port: int
) -> list[socket.socket]:
    """Wait for the workers of the nodes 1, 2, ...; the connections are by rank."""
    version, token = _version(), os.environ.get(TOKEN, "")
    keys: list[str] = []  # of the nodes
    workers: dict[tuple[int, int], socket.socket] = {}  # by node, and number on it
    lock = threading.Lock()

    def greet(connection: socket.socket, address: Any) -> None:
        try:
            said = _line(connection)
            is_ours = hmac.compare_digest(said["token"].encode(), token.encode())
            if said["version"] != version or not is_ours:
                raise ValueError("another version or token")
            with lock:
                node = keys.index(said["key"]) if said["key"] in keys else len(keys)
                local = sum(one == node for one, _ in workers)
                if node == num_nodes - 1 or local == num_workers_per_node:
                    raise ValueError("there are as many workers as there should be")
                place = [num_nodes, node + 1, num_groups, num_workers_per_node]
                _say(connection, {"local": local, "place": place})
                connection.settimeout(None)
                keys.extend([] if local else [said["key"]])
                workers[node, local] = connection
        except Exception as error:  # a stranger may say anything
            connection.close()
            why = f"no node of relax_inplace {version}: {type(error).__name__}: {error}"
            logging.getLogger(__name__).warning("dropped a connection from %s: %s", address, why)

    with socket.create_server((host, port), backlog=128) as server:
        server.settimeout(0.05)
        while len(workers) < (num_nodes - 1) * num_workers_per_node:
            with contextlib.suppress(OSError):  # nobody, or more than there are descriptors for
                threading.Thread(target=greet, args=server.accept(), daemon=True).start()
    return [workers[place] for place in sorted(workers)]


def connect_workers(host: str, port: int) -> list[tuple[socket.socket, list[str]]]:
    """A node's connections to a controller, which may not listen yet, and what to `serve` each."""
    version, token, key = _version(), os.environ.get(TOKEN, ""), secrets.token_hex(16)
    give_up = time.monotonic() + _LISTENS_WITHIN
    workers: list[tuple[socket.socket, list[str]]] = []
    wanted = 1
    while len(workers) < wanted:
        try:
            connection = socket.create_connection((host, port), timeout=_GREETED_WITHIN)
        except OSError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.1)
            continue
        try:
            _say(connection, {"version": version, "token": token, "key": key})
            said = _line(connection)
        except ValueError as error:
            raise ValueError(
                f"{host}:{port}: {error}; the controller takes nodes of relax_inplace {version}, "
                f"with its {TOKEN}, and says in its log why it has dropped one"
            ) from None
        connection.settimeout(None)
        wanted, descriptor = said["place"][-1], connection.fileno()
        numbers = [said["local"], wanted, 1, descriptor, descriptor, *said["place"]]
        workers.append((connection, list(map(str, numbers))))
    return workers


def _version() -> str:
    return metadata.version("relax-inplace")


def _say(connection: socket.socket, said: dict[str, Any]) -> None:
    connection.sendall(json.dumps(said).encode() + b"\n")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _OPTIONS.items():
        if (option := getattr(socket, f"TCP_{name}", None)) is not None:
            connection.setsockopt(socket.IPPROTO_TCP, option, value)


def _line(connection: socket.socket) -> dict[str, Any]:
    """An object, in a line, read byte by byte: what follows is TVM's."""
    give_up = time.monotonic() + _GREETED_WITHIN
    said = b""
    while not said.endswith(b"\n"):
        connection.settimeout(max(give_up - time.monotonic(), 0.001))
        byte = connection.recv(1)
        said += byte
        if not byte or len(said) > _LONGEST:
            raise ValueError(f"it said {said[:40]!r}")
    return dict(json.loads(said))


def _pass_on(worker: socket.socket, reading: int, writing: int) -> None:
    """Copy in both directions, until the worker or the session ends."""

    def ask() -> None:
        try:
            while said := os.read(reading, 1 << 16):
                worker.sendall(said)
            worker.shutdown(socket.SHUT_WR)  # the session has ended
        except OSError:
            os._exit(0)

    threading.Thread(target=ask, daemon=True).start()
    with contextlib.suppress(OSError):  # it does not answer any more
        while answer := worker.recv(1 << 16):
            while answer:
                answer = answer[os.write(writing, answer) :]


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a worker does
    _pass_on(socket.socket(fileno=int(sys.argv[1])), *map(int, sys.argv[2:]))
    os._exit(0)
