"""The README's picture: resident memory while 2 GB of weights are converted.

python benchmarks/memory_picture.py docs/pictures/memory.svg
"""

from __future__ import annotations

import argparse
import os
import tempfile

import ways
from workloads import WORKLOADS, Workload


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", help=".svg, .png or .pdf")
    parser.add_argument("--mb", type=float, default=2000)
    parser.add_argument("--only", choices=WORKLOADS, default="transpose float16")
    parser.add_argument("--shrink", type=int, default=1, choices=(1, 2, 4, 8), help="of N and K")
    args = parser.parse_args()
    workload = Workload.of(args.only, args.mb * 1e6, args.shrink)
    with tempfile.TemporaryDirectory() as folder:
        library = os.path.join(folder, "lib.so")
        ways.compile_way("in place", workload, library)
        import tvm

        from relax_inplace import runtime

        transform = runtime.load_transform(library, tvm.cpu())
        params = runtime.transform_params(transform, ways.weights_of(workload), progress=False)
    print(params.report)
    params.report.plot(args.picture)


if __name__ == "__main__":
    main()
