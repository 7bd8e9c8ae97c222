"""Where the nodes of a `SocketSession` connect: a connection for each of their workers.

A connection says first what it is, in a line of JSON: this package, of this version; the token that
both have in their environment, if there is one; and the key of its node, which the controller has
made up for the node's first worker. The answer is the worker's place. Then it is TVM's.
"""

from __future__ import annotations

import hmac
import json
import logging
import os
import queue
import secrets
import socket
import threading
import time
from importlib import metadata
from typing import Any

__all__ = ["accept_workers", "connect_worker"]

TOKEN = "RELAX_INPLACE_DISCO_TOKEN"  # the name of a variable
_VERSION = metadata.version("relax-inplace")
_GREETED_WITHIN = 10.0  # seconds for all of it
_LONGEST = 4096  # bytes
_GONE_AFTER = 8  # seconds without an answer from the other machine


def accept_workers(
    num_nodes: int, num_workers_per_node: int, num_groups: int, host: str, port: int
) -> list[socket.socket]:
    """Wait for the workers of the nodes 1, 2, ...

    Returns
    -------
    list of socket
        By rank.
    """
    nodes: dict[str, list[socket.socket]] = {}  # by key
    greeted: queue.SimpleQueue[tuple[socket.socket, Any, str | None]] = queue.SimpleQueue()

    def greet(connection: socket.socket, address: Any) -> None:
        try:
            said = _line(connection)
            if said.get("version") != _VERSION or not _is_token(said.get("token")):
                raise ValueError("another version or token")
            if not isinstance(key := said.get("key"), (str, type(None))):
                raise ValueError("a key that is no text")
            greeted.put((connection, address, key))
        except (OSError, ValueError, RecursionError) as error:
            _drop(connection, address, f"no node of relax_inplace {_VERSION}: {error}")

    with socket.create_server((host, port), backlog=128) as server:
        server.settimeout(0.05)
        while sum(map(len, nodes.values())) < (num_nodes - 1) * num_workers_per_node:
            try:
                made = server.accept()
                threading.Thread(target=greet, args=made, daemon=True).start()
            except TimeoutError:
                pass
            while not greeted.empty():
                connection, address, key = greeted.get()
                if key is None and len(nodes) < num_nodes - 1:
                    key = secrets.token_hex(16)  # of a new node
                elif key not in nodes or len(nodes[key]) == num_workers_per_node:
                    _drop(connection, address, "there are as many workers as there should be")
                    continue
                place = {
                    "key": key,
                    "node": [*nodes, key].index(key) + 1,
                    "local": len(nodes.get(key, ())),
                    "sizes": [num_nodes, num_groups, num_workers_per_node],
                }
                try:
                    connection.sendall(json.dumps(place).encode() + b"\n")
                    connection.settimeout(None)
                    _notice_if_it_vanishes(connection)
                except OSError as error:
                    _drop(connection, address, str(error))
                    continue
                nodes.setdefault(key, []).append(connection)
    return [one for node in nodes.values() for one in node]


def connect_worker(
    host: str, port: int, key: str | None, patience: float
) -> tuple[socket.socket, dict[str, Any]]:
    """Connect to a controller, which may not listen yet, and ask for a place.

    Parameters
    ----------
    host, port
    key : str or None
        Of the node; None for its first worker.
    patience : float
        Seconds.

    Raises
    ------
    OSError, ValueError
    """
    give_up = time.monotonic() + patience
    while True:
        try:
            connection = socket.create_connection((host, port), timeout=_GREETED_WITHIN)
            break
        except OSError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.1)
    greeting = {"version": _VERSION, "token": os.environ.get(TOKEN, ""), "key": key}
    connection.sendall(json.dumps(greeting).encode() + b"\n")
    try:
        place = _line(connection)
    except ValueError as error:
        raise ValueError(
            f"{host}:{port}: {error}; the controller takes nodes of relax_inplace {_VERSION}, with "
            f"its {TOKEN}, and says in its log why it has dropped one"
        ) from None
    connection.settimeout(None)
    _notice_if_it_vanishes(connection)
    return connection, place


def _line(connection: socket.socket) -> dict[str, Any]:
    """An object, in a line, read byte by byte: what follows is TVM's."""
    give_up = time.monotonic() + _GREETED_WITHIN
    said = b""
    while not said.endswith(b"\n"):
        connection.settimeout(max(give_up - time.monotonic(), 0.001))
        byte = connection.recv(1)
        said += byte
        if not byte or len(said) > _LONGEST or time.monotonic() > give_up:
            raise ValueError(f"it said {said[:40]!r}")
    found = json.loads(said)
    if not isinstance(found, dict):
        raise ValueError(f"it said {said[:40]!r}")
    return found


def _is_token(given: Any) -> bool:
    expected = os.environ.get(TOKEN, "")
    return isinstance(given, str) and hmac.compare_digest(given.encode(), expected.encode())


def _drop(connection: socket.socket, address: Any, why: str) -> None:
    connection.close()
    logging.getLogger(__name__).warning("dropped a connection from %s: %s", address, why)


def _notice_if_it_vanishes(other: socket.socket) -> None:
    """A machine that is switched off says nothing: ask it, and give up soon."""
    other.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    other.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    wanted = {"TCP_KEEPIDLE": 2, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3}
    wanted["TCP_USER_TIMEOUT"] = _GONE_AFTER * 1000  # Linux: of what was sent and not acknowledged
    for name, value in wanted.items():
        if hasattr(socket, name):
            other.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
