"""Between the other nodes and TVM's session: a node that dies ends no controller.

What TVM does (``src/runtime/extra/disco/distributed/socket_session.cc``): as with pipes
(`worker_processes.py`), sending to a node that has gone is an error, in the destructor of a `DRef`,
too, where it ends the program. So TVM's session talks to this machine only: it listens on a port of
the loopback, and for each node two threads here pass on what is said. When a node has gone, what
the session says to it is read and dropped, and reading from it is the end of a file.
"""

from __future__ import annotations

import contextlib
import socket
import threading

__all__ = ["NodeConnections"]

_LOOPBACK = "127.0.0.1"
_CHUNK = 1 << 16
_GONE_AFTER = 8  # seconds without an answer from a node's machine


class NodeConnections:
    """The connections of the nodes 1, 2, ...; node 0 is the controller's.

    Parameters
    ----------
    host, port
        Where the nodes connect.
    num_nodes : int
        With the controller's. The call returns when all have connected.

    Attributes
    ----------
    inner_port : int
        Where TVM's session has to listen, on the loopback; until it does, it is connected to again
        and again.
    """

    def __init__(self, host: str, port: int, num_nodes: int):
        self._nodes: list[socket.socket] = []
        try:
            with socket.create_server((host, port), backlog=num_nodes) as server:
                while len(self._nodes) < num_nodes - 1:
                    node, _ = server.accept()
                    _notice_if_it_vanishes(node)
                    self._nodes.append(node)
        except BaseException:
            self.close()
            raise
        with socket.socket() as free:
            free.bind((_LOOPBACK, 0))
            self.inner_port = free.getsockname()[1]
        self._is_closed = threading.Event()
        threading.Thread(target=self._connect, name="connects nodes", daemon=True).start()

    def close(self) -> None:
        """Hang up."""
        with contextlib.suppress(AttributeError):
            self._is_closed.set()
        for node in self._nodes:
            with contextlib.suppress(OSError):
                node.shutdown(socket.SHUT_RDWR)

    def _connect(self) -> None:
        for number, node in enumerate(self._nodes, 1):  # a node's number is its turn
            while True:
                try:
                    session = socket.create_connection((_LOOPBACK, self.inner_port))
                    break
                except ConnectionRefusedError:
                    if self._is_closed.wait(0.01):
                        return
            session.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(
                target=_connect_both, args=(session, node), name=f"node {number}", daemon=True
            ).start()


def _connect_both(session: socket.socket, node: socket.socket) -> None:
    with session, node:
        answers = threading.Thread(target=_pass_on, args=(node, session), daemon=True)
        answers.start()
        _pass_on(session, node)
        answers.join()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    is_open = True
    while True:
        try:
            data = source.recv(_CHUNK)
        except OSError:
            data = b""
        if not data:
            break
        if is_open:
            try:
                target.sendall(data)
            except OSError:
                is_open = False  # go on reading: whoever writes must not see that it is gone
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def _notice_if_it_vanishes(node: socket.socket) -> None:
    """A machine that is switched off says nothing: ask it, and give up soon."""
    node.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    node.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    wanted = {"TCP_KEEPIDLE": 2, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3}
    wanted["TCP_USER_TIMEOUT"] = _GONE_AFTER * 1000  # Linux: what was sent and not acknowledged
    for name, value in wanted.items():
        if hasattr(socket, name):
            node.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
