"""Passes on what the controller says to a worker of another machine, and its answers.

A program of its own: ``relay.py SOCKET READING WRITING``, file descriptors. It ends when the worker
does. In the controller itself such a thread would wait for Python, which a destructor holds that
waits for room in the pipe.
"""

import os
import signal
import socket
import sys
import threading


def main() -> None:
    """Copy in both directions."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a worker does
    worker = socket.socket(fileno=int(sys.argv[1]))
    reading, writing = int(sys.argv[2]), int(sys.argv[3])

    def ask() -> None:
        try:
            while said := os.read(reading, 1 << 16):
                worker.sendall(said)
            worker.shutdown(socket.SHUT_WR)  # the session has ended
        except OSError:
            os._exit(0)

    threading.Thread(target=ask, daemon=True).start()
    try:
        while answer := worker.recv(1 << 16):
            while answer:
                answer = answer[os.write(writing, answer) :]
    except OSError:  # it does not answer any more
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
