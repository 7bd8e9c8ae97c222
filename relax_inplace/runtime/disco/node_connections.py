"""Between a node and the controller's session: a node that dies ends no controller.

What TVM does (``src/runtime/extra/disco/distributed/socket_session.cc``): as with pipes
(`worker_processes.py`), sending to a node that has gone is an error, in the destructor of a `DRef`,
too, where it ends the program. So TVM's session talks to this machine only: it listens on a port of
the loopback, and for each node two threads here pass on what is said. When a node has gone, what
the session says to it is read and dropped, and reading from it is the end of a file.

A node passes on likewise, and says first of all who it is: a worker that is asked for what it does
not know ends.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from importlib import metadata
from typing import NoReturn

from ..shown import shown
from ..transform import ModuleError

__all__ = ["NodeConnections", "connect_node"]

_LOOPBACK = "127.0.0.1"
_CHUNK = 1 << 16
_GREETING = f"relax_inplace {metadata.version('relax-inplace')}\n".encode()
_GREETED_WITHIN = 10.0  # seconds
_GONE_AFTER = 8  # seconds without an answer from the other machine
_QUICK = getattr(socket, "TCP_QUICKACK", None)


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
        Where TVM's session has to listen, on the loopback.

    Raises
    ------
    ModuleError
        What has connected is no node of this package, of this version.
    """

    def __init__(self, host: str, port: int, num_nodes: int):
        self._nodes: list[socket.socket] = []
        self._is_closed = threading.Event()
        try:
            with socket.create_server((host, port), backlog=num_nodes) as server:
                while len(self._nodes) < num_nodes - 1:
                    node, address = server.accept()
                    self._nodes.append(node)
                    _require_greeting(node, address)
                    _notice_if_it_vanishes(node)
        except BaseException:
            self.close()
            raise
        with socket.socket() as free:
            free.bind((_LOOPBACK, 0))
            self.inner_port: int = free.getsockname()[1]
        threading.Thread(target=self._connect, name="connects nodes", daemon=True).start()

    def close(self) -> None:
        """Hang up."""
        self._is_closed.set()
        for node in self._nodes:
            with contextlib.suppress(OSError):
                node.shutdown(socket.SHUT_RDWR)
            node.close()

    def _connect(self) -> None:
        for node in self._nodes:  # TVM numbers them as they come
            while True:
                try:
                    session = socket.create_connection((_LOOPBACK, self.inner_port))
                    break
                except ConnectionRefusedError:  # the session does not listen yet
                    if self._is_closed.wait(0.01):
                        return
            threading.Thread(target=_connect_both, args=(session, node), daemon=True).start()


def connect_node(host: str, port: int, patience: float) -> int:
    """Connect to a controller, which may not listen yet.

    Parameters
    ----------
    host, port
    patience : float
        Seconds.

    Returns
    -------
    int
        A port of the loopback: who connects there is connected to the controller.

    Raises
    ------
    OSError
    """
    give_up = time.monotonic() + patience
    while True:
        try:
            controller = socket.create_connection((host, port), timeout=_GREETED_WITHIN)
            break
        except OSError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.1)
    controller.settimeout(None)
    _notice_if_it_vanishes(controller)
    controller.sendall(_GREETING)
    server = socket.create_server((_LOOPBACK, 0))

    def serve() -> None:
        with server:
            node, _ = server.accept()
        _connect_both(node, controller)

    threading.Thread(target=serve, daemon=True).start()
    inner_port: int = server.getsockname()[1]
    return inner_port


def _connect_both(one: socket.socket, other: socket.socket) -> None:
    with one, other:
        answers = threading.Thread(target=_pass_on, args=(other, one), daemon=True)
        answers.start()
        _pass_on(one, other)
        answers.join()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    is_open = True
    for one in (source, target):
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while True:
        try:
            data = source.recv(_CHUNK)
            if _QUICK is not None:  # TVM sends two messages for a question, the second after this
                source.setsockopt(socket.IPPROTO_TCP, _QUICK, 1)
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


def _require_greeting(node: socket.socket, address: tuple[str, int]) -> None:
    node.settimeout(_GREETED_WITHIN)
    said = b""
    try:
        while len(said) < len(_GREETING):
            part = node.recv(len(_GREETING) - len(said))
            if not part:
                break
            said += part
    except TimeoutError:
        pass
    node.settimeout(None)
    if said != _GREETING:
        _refuse(address, said)


def _refuse(address: tuple[str, int], said: bytes) -> NoReturn:
    raise ModuleError.of(
        where="SocketSession",
        given=f"a connection from {address[0]} that says {shown(said.decode(errors='replace'))}",
        expected=f"{shown(_GREETING.decode())}",
        remedy="start the nodes with `python -m relax_inplace.runtime.disco.node HOST PORT "
        "WORKERS`, of the same version",
    )


def _notice_if_it_vanishes(other: socket.socket) -> None:
    """A machine that is switched off says nothing: ask it, and give up soon."""
    other.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    wanted = {"TCP_KEEPIDLE": 2, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3}
    wanted["TCP_USER_TIMEOUT"] = _GONE_AFTER * 1000  # Linux: of what was sent and not acknowledged
    for name, value in wanted.items():
        if hasattr(socket, name):
            other.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
