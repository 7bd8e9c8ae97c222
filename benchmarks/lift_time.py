"""Time to lift what three functions do to n shared weights: TVM's pass, and ours with its rewrite.

    make bench

A weight is transposed and multiplied with in each function. `LiftTransformParams` takes weights as
separate parameters; with one tuple, its time grows with the square of their number. Processor
time, in a fresh process each, in interleaved rounds; medians, and ratios of this one run.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
import warnings

WAYS = ("TVM, separate", "ours, separate", "TVM, one tuple", "ours, one tuple")


def lift_time(way: str, count: int) -> float:
    """Seconds, in this process."""
    from tvm import relax

    import relax_inplace

    builder = relax.BlockBuilder()
    ty = relax.TensorType((64, 64), "float32")
    for rows, name in enumerate(("decode", "verify", "prefill"), 1):
        x = relax.Var("x", relax.TensorType((rows, 64), "float32"))
        if way.endswith("tuple"):
            params = [relax.Var("params", relax.TupleType([ty] * count))]
        else:
            params = [relax.Var(f"w{i}", ty) for i in range(count)]
        with builder.function(name, [x, *params], attrs={"num_input": 1}):
            with builder.dataflow():
                y = x
                for i in range(count):
                    w = params[i] if len(params) > 1 else relax.TupleGetItem(params[0], i)
                    w = builder.emit(relax.op.permute_dims(builder.emit(w)))
                    y = builder.emit(relax.op.matmul(y, w))
                out = builder.emit_output(y)
            builder.emit_func_output(out)
    mod = builder.get()
    if way.startswith("TVM"):
        lift = relax.transform.LiftTransformParams(shared_transform=True)
    else:
        # It says that only matmul reads the transposed weights.
        warnings.simplefilter("ignore")
        lift = relax_inplace.transform.LiftInplaceTransformParams()
    start = time.process_time()
    lift(mod)
    return time.process_time() - start


def measure(way: str, count: int) -> float:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(lift_time, (way, count))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[500, 2000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tuple-up-to", type=int, default=500, help="TVM's pass on one tuple")
    args = parser.parse_args()
    print(f"{'weights':>8}  {'way':16}{'seconds':>9}{'ms/weight':>11}{'ratio':>8}")
    for count in args.counts:
        ways = [way for way in WAYS if way != "TVM, one tuple" or count <= args.tuple_up_to]
        times: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(args.rounds):
            for way in ways:
                times[way].append(measure(way, count))
        medians = {way: statistics.median(seconds) for way, seconds in times.items()}
        for way, seconds in medians.items():
            ratio = seconds / medians["TVM, separate"]
            print(f"{count:8}  {way:16}{seconds:9.2f}{seconds / count * 1e3:11.2f}{ratio:7.2f}x")


if __name__ == "__main__":
    main()
