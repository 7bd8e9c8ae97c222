"""Time to compile n weights' transposes: out of place, by the pass in place, and as a naive chain.

    make bench

Each is compiled in a fresh process, in interleaved rounds; the figures are medians, and ratios of
this one run. The naive chain has the same updates, but TVM's passes see them as they are written:
a tuple type of n fields in each of n bindings.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time

WAYS = ("out of place", "in place", "naive chain")


def compile_seconds(way: str, count: int) -> tuple[float, float]:
    """(seconds in our pass, seconds in tvm.compile) for one way, in this process."""
    import tvm
    from tvm import relax

    import relax_inplace
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

    start = time.perf_counter()
    if way != "out of place":
        mod = InplaceTransformParams()(mod)
    rewritten = time.perf_counter()
    if way == "naive chain":
        relax_inplace.build._prepare = lambda mod: mod
    tvm.compile(mod, "llvm")
    return rewritten - start, time.perf_counter() - rewritten


def measure(way: str, count: int) -> tuple[float, float]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(compile_seconds, (way, count))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[800, 3000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--naive-up-to", type=int, default=800, help="it takes minutes at 3,000")
    args = parser.parse_args()
    print(f"{'weights':>8}  {'way':14}{'pass s':>9}{'compile s':>11}{'ratio':>8}")
    for count in args.counts:
        ways = [way for way in WAYS if way != "naive chain" or count <= args.naive_up_to]
        seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for _ in range(args.rounds):
            for way in ways:
                seconds[way].append(measure(way, count))
        totals = {way: statistics.median(map(sum, rounds)) for way, rounds in seconds.items()}
        for way, rounds in seconds.items():
            in_pass = statistics.median(pair[0] for pair in rounds)
            in_compile = statistics.median(pair[1] for pair in rounds)
            ratio = totals[way] / totals["out of place"]
            print(f"{count:8}  {way:14}{in_pass:9.2f}{in_compile:11.2f}{ratio:7.2f}x")


if __name__ == "__main__":
    main()
