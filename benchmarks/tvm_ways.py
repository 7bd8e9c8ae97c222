"""TVM's ways to transform weights, and ours: extra memory, seconds, and how many results are right.

    make bench

Eight float32 weights of 4096 x 4096, transposed where the model uses them, so that TVM's
LiftTransformParams finds the transform. Each way is compiled by ``tvm.compile(mod, "llvm")``, and
runs in a fresh process.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time

COUNT, SIDE = 8, 4096


def model():
    """H = x w0^T w1^T ..., which every way starts from."""
    from tvm import relax

    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, SIDE), "float32"))
    ty = relax.TensorType((SIDE, SIDE), "float32")
    weights = [relax.Var(f"w{i}", ty) for i in range(COUNT)]
    with builder.function("main", [x, *weights], attrs={"num_input": 1}):
        with builder.dataflow():
            h = x
            for w in weights:
                h = builder.emit(relax.op.matmul(h, builder.emit(relax.op.permute_dims(w))))
            out = builder.emit_output(h)
        builder.emit_func_output(out)
    return builder.get()


def lifted(*passes, **config):
    """The transform alone, as a module."""
    import tvm
    from tvm import relax

    with tvm.transform.PassContext(config=config):
        mod = relax.transform.LiftTransformParams(shared_transform=True)(model())
    mod = tvm.transform.Sequential(list(passes))(mod)
    return tvm.IRModule({g: f for g, f in mod.functions_items() if "transform" in g.name_hint})


def compiled(mod):
    import tvm
    from tvm import relax

    (gvar,) = mod.get_global_vars()
    return relax.VirtualMachine(tvm.compile(mod, "llvm"), tvm.cpu())[gvar.name_hint]


def out_of_place():
    return compiled(lifted())


def consume_params():
    return compiled(lifted(**{"relax.lift_transform_params.consume_params": True}))


def consume_params_and_dce():
    from tvm import relax

    consume = {"relax.lift_transform_params.consume_params": True}
    return compiled(lifted(relax.transform.DeadCodeElimination(), **consume))


def lazy():
    """LazyTransformParams: the caller hands out originals and takes results, one by one."""
    import tvm
    import tvm.relax.op.vm
    from tvm import relax

    originals: list = []
    results: dict = {}

    def get_item(index):
        original, originals[index] = originals[index], None
        return original

    def set_item(index, value):
        results[int(index)] = value

    tvm.register_global_func("get_item", get_item)
    tvm.register_global_func("set_item", set_item)
    convert = compiled(
        lifted(
            relax.transform.ToNonDataflow(),
            relax.transform.RemovePurityChecking(),
            relax.transform.LazyTransformParams(),
        )
    )

    def run(weights):
        originals.extend(weights)
        del weights
        convert()
        return [results[i] for i in range(COUNT)]

    return run


def in_place():
    from relax_inplace.transform import InplaceTransformParams

    return compiled(lifted(InplaceTransformParams()))


def streamed():
    """The same callers' part as for LazyTransformParams: each original is handed out once."""
    import tvm_ffi

    from relax_inplace.transform import InplaceTransformParams

    convert = compiled(lifted(InplaceTransformParams(lazy=True)))

    def run(weights):
        originals = list(weights)
        del weights

        def get_weight(index):
            original, originals[index] = originals[index], None
            return original

        return convert(get_weight, tvm_ffi.Array([None] * COUNT))

    return run


WAYS = {
    "LiftTransformParams": out_of_place,
    "consume_params": consume_params,
    "consume_params, then DeadCodeElimination": consume_params_and_dce,
    "LazyTransformParams": lazy,
    "InplaceTransformParams": in_place,
    "InplaceTransformParams(lazy=True)": streamed,
}


def status_mb(key):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(key)) / 1024


def measure(way):
    import numpy as np
    import tvm
    import tvm_ffi

    convert = WAYS[way]()
    rows = np.arange(SIDE, dtype="float32")
    weights = [tvm.runtime.tensor(np.add.outer(rows, rows * 2 + i)) for i in range(COUNT)]
    holder = [tvm_ffi.Array(weights)]  # the only references: what is passed can be freed
    del weights
    gc.collect()
    with open("/proc/self/clear_refs", "w") as refs:
        refs.write("5")
    before = status_mb("VmRSS")
    start = time.perf_counter()
    results = convert(holder.pop())
    seconds = time.perf_counter() - start
    extra = status_mb("VmHWM") - before
    right = sum(
        np.array_equal(results[i].numpy(), np.add.outer(rows * 2 + i, rows)) for i in range(COUNT)
    )
    return {"extra": extra, "seconds": seconds, "right": right}


def main():
    if len(sys.argv) > 1:
        json.dump(measure(sys.argv[1]), sys.stdout)
        return
    print(f"{COUNT} weights of {SIDE} x {SIDE} float32: {COUNT * SIDE * SIDE * 4 >> 20} MB")
    print(f"{'':42}{'extra MB':>9}{'seconds':>9}{'right':>9}")
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    for way in WAYS:
        done = subprocess.run(
            [sys.executable, __file__, way], env=environment, stdout=subprocess.PIPE, check=True
        )
        row = json.loads(done.stdout)
        print(f"{way:42}{row['extra']:9.0f}{row['seconds']:9.2f}{row['right']:6} of {COUNT}")


if __name__ == "__main__":
    main()
