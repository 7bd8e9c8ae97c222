"""Copies of tensors, complete when they are returned.

TVM copies on the device's default stream, and does not wait for it (Tensor::CopyFromTo of
src/runtime/tensor.cc). The kernel that wrote the tensor may be on this thread's stream, which the
default one does not wait for. So a copy waits for this thread's stream before, and for the default
one after.
"""

from __future__ import annotations

import hashlib
from typing import Any

import tvm

from .device import is_host, wait_for_stream
from .empty_tensor import empty
from .tensor_bytes import bytes_of

__all__ = ["copy_of", "digest_of", "on_host"]


def copy_of(tensor: Any, device: Any = None) -> Any:
    """A copy of a contiguous tensor, on its device or on another one."""
    device = tensor.device if device is None else device
    copy = empty(tuple(map(int, tensor.shape)), str(tensor.dtype), device)
    wait_for_stream(tensor.device)
    tensor.copyto(copy)
    for one in (tensor.device, device):
        if not is_host(one):
            one.sync()
    return copy


def on_host(tensor: Any) -> Any:
    """The tensor if it is on the host, otherwise a copy on the host."""
    return tensor if is_host(tensor.device) else copy_of(tensor, tvm.cpu())


def digest_of(tensor: Any) -> bytes:
    """A digest of the bytes of a contiguous tensor, on any device."""
    return hashlib.blake2b(bytes_of(on_host(tensor)).data).digest()
