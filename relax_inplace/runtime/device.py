"""The device of the weights: its name, a wait for its stream, and its failure.

A failed kernel leaves a CUDA device with an error that every later call reports, including the call
that frees memory. TVM throws it in the destructor of a tensor, which ends the process
(CUDADeviceAPI::FreeDataSpace, src/backend/cuda/runtime/cuda_device_api.cc). So the tensors of a
failed device are never freed: their memory is lost in any case.
"""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi

from ..libinfo import load_library

__all__ = ["device_of", "give_up_if_failed", "is_host", "wait_for_stream"]

_CPU = 1  # kDLCPU


def device_of(given: Any) -> Any:
    """The device of a name such as ``cpu`` or ``cuda:1``; a device is returned as it is.

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
    """Whether the process can read and write the device's memory."""
    return device.dlpack_device_type() == _CPU


def wait_for_stream(device: Any) -> None:
    """Wait until a device has finished the work on this thread's current stream.

    Raises
    ------
    Exception
        The error that the device reports.
    """
    if device is not None and not is_host(device):
        load_library()
        tvm_ffi.get_global_func("relax_inplace.WaitForStream")(device)


def give_up_if_failed(device: Any, tensors: tvm_ffi.Array) -> BaseException | None:
    """Empty the slots of a tuple if its device has failed.

    Returns
    -------
    BaseException or None
        The device's error; None if the device works, and then nothing has changed.
    """
    try:
        wait_for_stream(device)
    except Exception as error:
        tvm_ffi.get_global_func("relax_inplace.AbandonTensors")(tensors)
        return error
    return None
