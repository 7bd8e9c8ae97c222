"""A tuple refers to a tensor that is gone: AddressSanitizer has to see it, or it sees nothing."""

import ctypes

import numpy as np
import tvm_ffi

from relax_inplace.libinfo import load_library

load_library()
fields = tvm_ffi.Array([tvm_ffi.from_dlpack(np.zeros(3, "float32"))])
tensor = fields[0]
decrease = ctypes.CDLL(tvm_ffi.libinfo.find_libtvm_ffi()).TVMFFIObjectDecRef
decrease.argtypes = [ctypes.c_void_p]
for _ in range(2):
    decrease(tensor.__chandle__())
tvm_ffi.get_global_func("relax_inplace.OutsideReferences")(fields)
