"""What is on a device that has failed is given up: it can be neither read nor freed.

A kernel that fails leaves a CUDA device with an error that every later call reports, also the one
that frees memory. TVM throws it in the destructor of a tensor, which ends the process
(CUDADeviceAPI::FreeDataSpace, src/backend/cuda/runtime/cuda_device_api.cc). So such tensors are
kept for good: there is nothing left to be had of their memory.
"""

from __future__ import annotations

from typing import Any

import tvm_ffi

from ..libinfo import load_library
from .tensor_bytes import is_host

__all__ = ["give_up_if_failed", "wait_for_stream"]


def wait_for_stream(device: Any) -> None:
    """Until a device has done what this thread's current stream was given.

    Raises
    ------
    Exception
        What the device reports.
    """
    if device is not None and not is_host(device):
        load_library()
        tvm_ffi.get_global_func("relax_inplace.WaitForStream")(device)


def give_up_if_failed(device: Any, tensors: tvm_ffi.Array) -> BaseException | None:
    """Empty the slots of a tuple whose tensors are on a device that has failed.

    Returns
    -------
    BaseException or None
        The device's error; None if it works, and nothing has changed.
    """
    try:
        wait_for_stream(device)
    except Exception as error:
        tvm_ffi.get_global_func("relax_inplace.AbandonTensors")(tensors)
        return error
    return None
