"""A fresh process's first conversion of about 100 MB, against those that follow.

    make bench

What the first call takes besides: pages of memory that are touched first, threads that start, what
is looked up once. Each process converts new weights several times; what is printed are medians over
processes of its first call, and of the median of its later ones, and of their ratio.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time

import ways
from workloads import WORKLOADS, Workload

_CALLS = 5


def first_and_later(workload: Workload, library: str) -> tuple[float, float]:
    """Seconds, in this process."""
    import tvm
    import tvm_ffi
    from tvm import relax

    import relax_inplace

    relax_inplace.libinfo.load_library()
    vm = relax.VirtualMachine(tvm.runtime.load_module(library), tvm.cpu())
    convert = vm["inplace_transform_params"]
    seconds = []
    for _ in range(_CALLS):
        holder = [tvm_ffi.Array(ways.weights_of(workload, is_ours=True))]
        start = time.perf_counter()
        converted = convert(holder.pop())
        seconds.append(time.perf_counter() - start)
        del converted
    return seconds[0], statistics.median(seconds[1:])


def _apart(function, *args):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mb", type=float, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, default=["transpose float16"])
    parser.add_argument("--shrink", type=int, default=2, choices=(1, 2, 4, 8), help="of N and K")
    args = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: ways.CORES])
    print(f"{'workload':24}{'MB':>6}{'first s':>9}{'later s':>9}{'ratio':>7}")
    for name in args.only:
        workload = Workload.of(name, args.mb * 1e6, args.shrink)
        with tempfile.TemporaryDirectory() as folder:
            library = os.path.join(folder, "lib.so")
            _apart(ways.compile_way, "in place", workload, library)
            pairs = [_apart(first_and_later, workload, library) for _ in range(args.rounds)]
        first, later = (statistics.median(each) for each in zip(*pairs, strict=True))
        ratio = statistics.median(one / other for one, other in pairs)
        print(f"{name:24}{workload.nbytes / 1e6:6.0f}{first:9.4f}{later:9.4f}{ratio:7.2f}")


if __name__ == "__main__":
    main()
