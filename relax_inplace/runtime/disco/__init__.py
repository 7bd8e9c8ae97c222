"""Weights of the workers of a TVM Disco session: each loads its own, and converts them in place.

What is guaranteed, and how it is used: docs/disco.md. Only this package loads TVM's Disco, and
``import relax_inplace.runtime`` does not import it.
"""

from .sessions import (
    ProcessSession,
    SocketSession,
    ThreadedSession,
    WorkerError,
    WorkersInterrupted,
)
from .weights import (
    DParams,
    DTransform,
    convert_params,
    load_params,
    load_transform,
    restore_params,
    save_params,
    transform_params,
)

__all__ = [
    "DParams",
    "DTransform",
    "ProcessSession",
    "SocketSession",
    "ThreadedSession",
    "WorkerError",
    "WorkersInterrupted",
    "convert_params",
    "load_params",
    "load_transform",
    "restore_params",
    "save_params",
    "transform_params",
]
