"""What is checked on the emulated device, by a process that is given the path of its library, and
the names of checks. It makes them in turn and prints a line of JSON for each: what went wrong.

Its kernels are functions of the global registry, where a virtual machine looks for those that its
module lacks: `emulated.reverse` makes the bytes of a weight, the other way round, on this thread's
stream; `emulated.fail` is a kernel that fails there.
"""

from __future__ import annotations

import contextlib
import gc
import json
import sys
import tempfile
import traceback
from pathlib import Path
from unittest import mock

import numpy as np
import tvm
import tvm_ffi
from emulated_device import load
from safetensors.numpy import save_file
from tvm import relax
from tvm.relax import vm_build
from tvm.script import from_source

from relax_inplace import runtime
from relax_inplace.runtime import Params, Transform, TransformError, transform_params
from relax_inplace.transform import InplaceTransformParams

# That there is no driver is not to be remembered: TVM loads it with the first thing on a device.
sys.path.append(str(Path(__file__).resolve().parents[1]))
from any_arguments import of_bytes

UINT8 = (1, 8, 1)
copy = tvm_ffi.get_global_func("relax_inplace.CopyToDevice")
assert not copy(of_bytes(*UINT8), of_bytes(*UINT8, device_type=2), 0)
load(sys.argv[1])
assert copy(of_bytes(*UINT8), tvm.runtime.empty((2,), "uint8", tvm.cuda()), 0)

DEVICE = tvm.cuda(0)
SIZE = 1 << 18  # bytes of a weight

HEAD = """
@I.ir_module
class Module:
"""
KERNEL = """    @T.prim_func(s_tir=True)
    def {name}(a: T.Buffer(({size},), "uint8"), b: T.Buffer(({size},), "uint8")):
        for i in range({size}):
            with T.sblock("reverse"):
                vi = T.axis.spatial({size}, i)
                b[vi] = a[{size} - 1 - vi]

"""

reverse = tvm_ffi.get_global_func("emulated.reverse")
kept = []
calls = tvm_ffi.get_global_func("emulated.calls")
clear_pool = tvm_ffi.get_global_func("vm.builtin.memory_manager.clear")


def register(name, kernel):
    """As a public kernel: the reference has it, and the in-place function a copy of it."""
    for one in (name, f"inplace_{name}"):
        tvm_ffi.register_global_func(one, kernel)


register("reverse", reverse)
register("fail", tvm_ffi.get_global_func("emulated.fail"))


def transform(count=4, kernels=None, **options):
    """A transform of weights of SIZE bytes, each by its kernel."""
    names = [(kernels or {}).get(i, "reverse") for i in range(count)]
    text = HEAD + "".join(KERNEL.format(name=name, size=SIZE) for name in sorted({*names}))
    tensor = f'R.Tensor(({SIZE},), "uint8")'
    text += f"    @R.function\n    def transform_params(params: R.Tuple({', '.join([tensor] * count)})):\n"
    for i, name in enumerate(names):
        text += f"        w{i} = params[{i}]\n"
        text += f"        t{i} = R.call_tir(Module.{name}, (w{i},), out_ty={tensor})\n"
    text += f"        return ({', '.join(f't{i}' for i in range(count))},)\n"
    mod = InplaceTransformParams(**options)(from_source(text))
    target = tvm.target.Target({"kind": "cuda", "arch": "sm_90"}, host="llvm")
    without_kernels = mock.patch.object(vm_build, "_filter_tir", lambda _mod: None)
    with without_kernels:
        compiled = tvm.compile(mod, target)
    return Transform.of(relax.VirtualMachine(compiled, DEVICE))


def arrays(count=4):
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, SIZE).astype("uint8") for _ in range(count)]


def on_device(array):
    return tvm.runtime.tensor(array, DEVICE)


def weights(count=4):
    made = tvm_ffi.Array([on_device(array) for array in arrays(count)])
    calls()
    return made


def check_converted(params, count=4):
    for tensor, array in zip(params, arrays(count), strict=True):
        assert (tensor.numpy() == array[::-1]).all()


@contextlib.contextmanager
def stream():
    """This thread's stream while the block runs: one that does not wait for the default one."""
    made = DEVICE.create_raw_stream()
    DEVICE.set_raw_stream(made)
    try:
        yield made
    finally:
        DEVICE.set_raw_stream(0)


def read_on_a_stream(tensor):
    """Asks for a kernel that reads a tensor, on a stream that nobody waits for."""
    made = tvm.runtime.empty((SIZE,), "uint8", DEVICE)
    with stream() as reading:
        reverse(tensor, made)
    return made, reading


def right_result_of(read, array):
    made, reading = read
    DEVICE.sync(reading)
    return bool((made.numpy() == array[::-1]).all())


# -- the order of streams -------------------------------------------------------------------


def reads_on_another_stream():
    """A weight is not written over, nor freed, before a kernel of another stream has read it."""
    for on_own_stream in (False, True):
        for call in (transform_params, lambda of, params: of.function(params)):
            params, of = weights(), transform()
            reads = [read_on_a_stream(weight) for weight in params]
            with stream() if on_own_stream else contextlib.nullcontext():
                call(of, params)
                right = [right_result_of(*one) for one in zip(reads, arrays(), strict=True)]
                assert all(right), (on_own_stream, right)
                tvm_ffi.get_global_func("relax_inplace.WaitForStream")(DEVICE)
            check_converted(params)


def without_the_wait():
    """That the check above sees it if nothing waits."""
    name = "vm.builtin.wait_for_readers"
    ours = tvm_ffi.get_global_func(name)
    tvm_ffi.register_global_func(name, lambda *_: None, override=True)
    params, of = weights(), transform()
    tvm_ffi.register_global_func(name, ours, override=True)
    reads = [read_on_a_stream(weight) for weight in params]
    of.function(params)
    assert not all(right_result_of(*one) for one in zip(reads, arrays(), strict=True))


def one_wait():
    """With donation the device is waited for once, and the stream at no kernel."""
    params, of = weights(), transform()
    of.function(params)
    of.function(params)
    said = list(map(str, calls()))
    assert said.count("wait for the device") == 2, said
    assert said.index("wait for the device") <= 1, said
    assert said.count("free") == 2, said  # of the first one's weight, in each conversion
    # Before the device is waited for, and before that weight is freed.
    assert said.count("wait for the default stream") == 4, said


def reference_that_is_dropped_meanwhile():
    """A weight that something else refers to at first may be read until it is let go."""
    held, reads = [], []

    def let_go(source, target):
        if held:
            reads.append(read_on_a_stream(held[0]))
            held.clear()
        reverse(source, target)

    register("let_go", let_go)
    params, of = weights(), transform(kernels={0: "let_go"})
    held.append(params[2])
    result = transform_params(of, params)
    assert right_result_of(reads[0], arrays()[2])
    check_converted(params)
    assert result.report.allocated == {"first of its size": 1, "something else refers to it": 1}


def waits_before_it_frees():
    """An error of a kernel would come in a destructor; another owner uses memory again at once."""
    of = transform()
    for imported in (False, True):
        params = weights()
        if imported:
            params = tvm_ffi.Array([tvm_ffi.from_dlpack(Lent(one)) for one in params])
        calls()
        of.function(params)
        said = list(map(str, calls()))
        frees = [i for i, call in enumerate(said) if call == "free"]
        assert len(frees) >= (4 if imported else 1), said
        for i in frees:
            before = [call for call in said[:i] if call != "free"]
            assert before[-1] == "wait for the default stream", said
        check_converted(params)


class Lent:
    """A tensor of another library."""

    def __init__(self, tensor):
        self._tensor = tensor

    def __dlpack__(self, **options):
        return self._tensor.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._tensor.__dlpack_device__()


def done_when_it_returns():
    """What transform_params returns can be read on any stream."""
    params, of = weights(), transform()
    with stream():
        transform_params(of, params)
    check_converted(params)  # by the default stream
    assert "wait for a stream" in map(str, calls())


def verified_and_saved():
    """Copies wait for what is on the stream, and kernels for copies."""
    of = transform(reference=True)
    with tempfile.TemporaryDirectory() as folder:
        with stream():
            made = runtime.load_params(_written(folder), DEVICE, of)
            given = Params([pending(made[name]) for name in made.names], made.names)
            params = transform_params(of, given, verify=True)
            assert params.report.verified
        with stream():
            one = Params([pending(params[name]) for name in params.names], params.names)
            runtime.save_params(one, f"{folder}/saved")
        saved = runtime.load_params(f"{folder}/saved", DEVICE)
        check_converted([saved[name] for name in saved.names])


def pending(tensor):
    """The tensor as two kernels make it, which are still to run."""
    for _ in range(2):
        made = tvm.runtime.empty((SIZE,), "uint8", DEVICE)
        reverse(tensor, made)
        kept.append(tensor)  # else freeing it would wait
        tensor = made
    return made


# -- errors ---------------------------------------------------------------------------------


def kernel_that_fails():
    params = weights()
    of = transform(kernels={2: "fail"})
    try:
        transform_params(of, params)
        raise AssertionError("no error")
    except TransformError as error:
        assert (error.step, error.steps) == (3, 4), error.step
        assert error.is_device_lost
        assert not error.converted and not error.original and len(error.lost) == 4
        assert "step 3 of 4" in str(error) and "cudaErrorEmulated" in str(error), str(error)
        assert "nothing on cuda:0 can be read any more" in str(error), str(error)
        assert list(params) == [None] * 4


def last_kernel_fails():
    """Nothing is freed after it: it is the wait at its update that finds it."""
    params, of = weights(1), transform(1, kernels={0: "fail"})
    try:
        transform_params(of, params)
        raise AssertionError("no error")
    except TransformError as error:
        assert error.step == 1 and error.lost == ["w0"], str(error)


def streamed_kernel_that_fails():
    """What was converted is gone; the originals are in their files."""
    of = transform(kernels={1: "fail"}, lazy=True)
    with tempfile.TemporaryDirectory() as folder:
        try:
            runtime.stream_params(of, _written(folder), DEVICE)
            raise AssertionError("no error")
        except TransformError as error:
            assert error.is_device_lost and len(error.original) == 4, str(error)


def out_of_memory():
    """An error of the host: nothing is lost."""
    params, of = weights(), transform()
    free = int(DEVICE.available_global_memory)
    filling = tvm.runtime.empty((free,), "uint8", DEVICE)
    try:
        of.function(params)
        raise AssertionError("no error")
    except Exception as error:
        assert "out of memory" in str(error), str(error)
    try:
        transform_params(Transform(of.function), params)
        raise AssertionError("no error")
    except TransformError as error:
        assert not error.is_device_lost and len(error.original) == 4, str(error)
    del filling
    transform_params(of, params)
    check_converted(params)


# -- memory ---------------------------------------------------------------------------------


def peak_by_the_driver():
    """It is what the device says, and one weight more than the weights."""
    peak = tvm_ffi.get_global_func("emulated.peak")
    used = tvm_ffi.get_global_func("emulated.used")
    params, of = weights(), transform()
    clear_pool()
    before = used()
    peak()
    report = transform_params(of, params).report
    assert (report.peak_sample.device, report.extra) == (peak(), SIZE), str(report)
    assert report.samples[0].device == before
    assert used() == before


# -- streamed -------------------------------------------------------------------------------


def _written(folder):
    save_file({f"w{i}": array for i, array in enumerate(arrays())}, f"{folder}/model.safetensors")
    return folder


def streamed():
    """Weights are copied on a stream of their own: no kernel is waited for, nor waits for them."""
    of = transform(lazy=True)
    with tempfile.TemporaryDirectory() as folder:
        calls()
        params = runtime.stream_params(of, _written(folder), DEVICE)
    said = list(map(str, calls()))
    assert said.count("copy on a stream") == 4, said
    assert "copy on the default stream" not in said, said
    check_converted([params[name] for name in params.names])


def loaded():
    """As streamed weights are; complete on any stream."""
    of = transform()
    with tempfile.TemporaryDirectory() as folder:
        params = runtime.load_params(_written(folder), DEVICE, of)
    with stream():
        transform_params(of, params)
    check_converted([params[name] for name in params.names])


if __name__ == "__main__":
    for name in sys.argv[2:]:
        tvm_ffi.get_global_func("emulated.repair")()
        kept.clear()
        gc.collect()  # what earlier ones left
        clear_pool()
        try:
            globals()[name]()
            wrong = ""
        except Exception:
            wrong = traceback.format_exc()
        print(json.dumps([name, wrong]), flush=True)
