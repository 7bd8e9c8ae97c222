"""The device that weights are on: which it is, when it is done, what becomes of it if it fails.

What is on a device that has failed is given up: it can be neither read nor freed. A kernel that
fails leaves a CUDA device with an error that every later call reports, also the one that frees
memory. TVM throws it in the destructor of a tensor, which ends the process
(CUDADeviceAPI::FreeDataSpace, src/backend/cuda/runtime/cuda_device_api.cc). So such tensors are
kept for good: there is nothing left to be had of their memory.
"""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi

from ..libinfo import load_library

__all__ = ["device_of", "give_up_if_failed", "is_host", "wait_for_stream"]

_CPU = 1  # kDLCPU


def device_of(given: Any) -> Any:
    """A device, or the one of a name such as ``cpu`` or ``cuda:1``.

    Raises
    ------
    ValueError
        There is no device of this name.
    """
    if not isinstance(given, str):
        return given
    try:
        return tvm.device(given)
    except ValueError as error:
        raise ValueError(
            f"device {given!r}: expected a device of TVM's, or its name: cpu, cuda, cuda:1, rocm, "
            "metal, vulkan, opencl, ..."
        ) from error


def is_host(device: Any) -> bool:
    """The process can read and write the device's memory."""
    return device.dlpack_device_type() == _CPU


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
