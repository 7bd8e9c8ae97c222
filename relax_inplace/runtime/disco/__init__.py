"""Weights of the workers of a TVM Disco session: each loads its own, and converts them in place.

What is guaranteed, and how it is used: docs/disco.md. Only this package loads TVM's Disco, and
``import relax_inplace.runtime`` does not import it.
"""

from .d_params import (
    DParams,
    DTransform,
    convert_params,
    load_params,
    load_transform,
    save_params,
    transform_params,
)
from .report import WorkersReport
from .sessions import ProcessSession, SocketSession, ThreadedSession
from .worker_error import WorkerError, WorkersInterrupted, WorkerState

__all__ = [
    "DParams",
    "DTransform",
    "ProcessSession",
    "SocketSession",
    "ThreadedSession",
    "WorkerError",
    "WorkerState",
    "WorkersInterrupted",
    "WorkersReport",
    "convert_params",
    "load_params",
    "load_transform",
    "save_params",
    "transform_params",
]
