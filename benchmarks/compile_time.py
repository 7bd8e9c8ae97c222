"""Time and memory to compile n transposes: out of place, in place, streamed.

    make bench

Each is compiled in a fresh process, in interleaved rounds; the figures are medians, and ratios of
this one run. Time is processor time: compiling has one thread.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import time

WAYS = ("out of place", "in place", "streamed")


def compile_cost(way: str, count: int) -> tuple[float, float, float]:
    """(seconds in our pass, seconds in tvm.compile, resident MB at most), in this process."""
    import tvm
    from tvm import relax

    from relax_inplace.transform import InplaceTransformParams

    ty = relax.TensorType((64, 32), "float32")
    params = relax.Var("params", relax.TupleType([ty] * count))
    builder = relax.BlockBuilder()
    with builder.function("transform_params", [params]):
        with builder.dataflow():
            fields = [builder.emit(relax.TupleGetItem(params, i)) for i in range(count)]
            new = [builder.emit(relax.op.permute_dims(field)) for field in fields]
            out = builder.emit_output(relax.Tuple(new))
        builder.emit_func_output(out)
    mod = builder.get()

    start = time.process_time()
    if way != "out of place":
        mod = InplaceTransformParams(lazy=way == "streamed")(mod)
    rewritten = time.process_time()
    tvm.compile(mod, "llvm")
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return rewritten - start, time.process_time() - rewritten, resident


def measure(way: str, count: int) -> tuple[float, float, float]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(compile_cost, (way, count))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[500, 1000, 3000, 10000])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    head = f"{'weights':>8}  {'way':14}{'pass s':>9}{'ms/weight':>11}{'compile s':>11}"
    print(f"{head}{'ratio':>8}{'MB':>7}")
    for count in args.counts:
        costs: dict[str, list[tuple[float, float, float]]] = {way: [] for way in WAYS}
        for _ in range(args.rounds):
            for way in WAYS:
                costs[way].append(measure(way, count))
        totals = {way: statistics.median(c[0] + c[1] for c in all_) for way, all_ in costs.items()}
        for way, all_ in costs.items():
            in_pass, in_compile, resident = map(statistics.median, zip(*all_, strict=True))
            ratio = totals[way] / totals["out of place"]
            print(
                f"{count:8}  {way:14}{in_pass:9.2f}{in_pass / count * 1e3:11.2f}{in_compile:11.2f}"
                f"{ratio:7.2f}x{resident:7.0f}"
            )


if __name__ == "__main__":
    main()
