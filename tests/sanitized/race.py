"""Two threads update one tuple: ThreadSanitizer has to see it, or it sees nothing."""

import threading

import tvm_ffi

from relax_inplace.libinfo import load_library

load_library()
update = tvm_ffi.get_global_func("vm.builtin.inplace_update_tuple")
fields = tvm_ffi.Array([1, 2, 3])


def update_often():
    for i in range(20000):
        update(fields, 1, i)


threads = [threading.Thread(target=update_often) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
