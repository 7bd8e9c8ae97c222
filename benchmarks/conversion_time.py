"""Time and memory to convert weights: in place, by TVM, numpy, torch and jax, against a warm copy.

    make bench
    python benchmarks/conversion_time.py --only "transpose float16" --rounds 5 --plot picture.svg

Each way converts each workload in a fresh process, in interleaved rounds: all ways, then all of
them again. Seconds and extra memory are medians, ratios are of this one run. Before the first round
each way runs once more, untimed: the bits of what it makes are compared with what TVM makes out of
place, and what it allocates is counted.

A fresh process is a fork of one that has imported TVM and has run nothing. Every way runs on two
cores, with the threads that it takes by default. The C library is as it is by default;
MALLOC_MMAP_THRESHOLD_=65536 in the environment shows the tensors alone.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import ways
from workloads import WORKLOADS, Workload

_EXPECTED = "TVM out of place"  # whose bits the others have to have
_HEAD = (
    f"{'workload':24}{'way':20}{'seconds':>8}{'x copy':>8}{'extra MB':>10}{'in largest':>12}"
    f"{'allocations':>13}  bits"
)


def run(names: Iterable[str], wanted: list[str], nbytes: float, rounds: int, shrink: int) -> list:
    """One row for each workload and way."""
    missing = {way: ways.why_missing(way) for way in wanted}
    rows = []
    for name in names:
        workload = Workload.of(name, nbytes, shrink)
        for row in _rows(workload, missing, rounds):
            print(_line(row), flush=True)
            rows.append(row)
    return rows


def _rows(workload: Workload, missing: dict[str, str | None], rounds: int) -> list[dict[str, Any]]:
    present = [way for way, why in missing.items() if why is None]
    with tempfile.TemporaryDirectory() as folder:
        libraries = {
            way: os.path.join(folder, f"{i}.so")
            for i, way in enumerate(present)
            if way in ways.COMPILED
        }
        for way, library in libraries.items():
            _progress(workload, way, "compile")
            _in_fresh_process(ways.compile_way, way, workload, library)
        verified, measured = {}, {way: [] for way in present}
        for way in present:
            _progress(workload, way, "verify")
            verified[way] = _in_fresh_process(ways.verify, way, workload, libraries.get(way))
        for i in range(rounds):
            for way in present:
                _progress(workload, way, f"round {i + 1} of {rounds}")
                one = _in_fresh_process(ways.measure, way, workload, libraries.get(way))
                measured[way].append(one)
        _progress()
    largest = max(
        *(weight.nbytes for weight in workload.weights),
        *(one["largest"] for one in verified.values()),
    )
    floor = _median(measured.get(ways.FLOOR), "seconds")
    expected = verified[_EXPECTED]["digest"] if _EXPECTED in verified else None
    rows = []
    for way, why in missing.items():
        row = {"workload": workload.name, "way": way, "missing": why}
        if way in present:
            seconds, extra = (_median(measured[way], key) for key in ("seconds", "extra"))
            digest = verified[way]["digest"]
            row |= {
                "bytes": workload.nbytes,
                "largest": largest,
                "seconds": seconds,
                "ratio": seconds / floor if floor else None,
                "extra": extra,
                "extra_in_largest": None if extra is None else extra / largest,
                "allocations": verified[way]["allocations"],
                "is_view": ways.makes_views(way, workload),
                "equal": digest == expected if digest and expected else None,
                "rounds": measured[way],
            }
        rows.append(row)
    return rows


def _median(measured: list[dict[str, Any]] | None, key: str) -> Any:
    values = [one[key] for one in measured or () if one[key] is not None]
    return statistics.median(values) if values else None


def _in_fresh_process(function: Callable[..., Any], *args: Any) -> Any:
    # Not a multiprocessing.Pool: that waits for ever for a process that was killed.
    with ProcessPoolExecutor(1, multiprocessing.get_context("forkserver")) as pool:
        return pool.submit(function, *args).result()


def _line(row: dict[str, Any]) -> str:
    start = f"{row['workload']:24}{row['way']:20}"
    if row["missing"]:
        return f"{start}   {row['missing']}"
    extra = None if row["extra"] is None else row["extra"] / 1e6
    bits = {True: "equal", False: "DIFFER", None: "-"}[row["equal"]]
    ratio = "a view" if row["is_view"] else _number(row["ratio"], ".2f")
    numbers = (
        f"{row['seconds']:8.3f}{ratio:>8}{_number(extra, '.1f'):>10}"
        f"{_number(row['extra_in_largest'], '.2f'):>12}{_number(row['allocations'], 'd'):>13}"
    )
    return f"{start}{numbers}  {bits}"


def _number(value: Any, how: str) -> str:
    return "-" if value is None else format(value, how)


def _progress(workload: Workload | None = None, way: str = "", what: str = "") -> None:
    """One line on a terminal, which the table then overwrites."""
    if sys.stderr.isatty():
        text = f"{workload.name}: {what}, {way}" if workload else ""
        print(f"\r{text:79}\r", end="", file=sys.stderr, flush=True)


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """What the figures depend on."""
    versions = {}
    for package in ("relax_inplace", "apache-tvm", "numpy", "torch", "jax"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "mb": args.mb,
        "rounds": args.rounds,
        "shrink": args.shrink,
        "cores": ways.CORES,
        "cpu": _in_fresh_process(ways.host_cpu),
        "python": platform.python_version(),
        "versions": versions,
        "malloc": {key: value for key, value in os.environ.items() if key.startswith("MALLOC_")},
    }


def _parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mb", type=float, default=512, help="bytes of a workload, more or less")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--ways", nargs="+", choices=ways.WAYS, default=list(ways.WAYS))
    parser.add_argument("--shrink", type=int, default=1, choices=(1, 2, 4, 8), help="of N and K")
    parser.add_argument("--json", metavar="FILE", help="write the rows, with every round")
    parser.add_argument("--plot", metavar="FILE", help="draw them: .svg, .png or .pdf")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = _parsed(arguments)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: ways.CORES])
    multiprocessing.set_forkserver_preload(["tvm"])
    start = time.perf_counter()
    print(_HEAD)
    rows = run(args.only, args.ways, args.mb * 1e6, args.rounds, args.shrink)
    settings = _settings(args)
    print(
        f"\n{args.rounds} rounds of about {args.mb:g} MB, {ways.CORES} cores of {settings['cpu']}, "
        f"in {time.perf_counter() - start:.0f} s"
    )
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"settings": settings, "rows": rows}, file, indent=1)
    if args.plot:
        from conversion_plot import plot_rows

        plot_rows(rows, args.plot)
    different = [f"{row['workload']}, {row['way']}" for row in rows if row.get("equal") is False]
    if different:
        sys.exit(f"bits differ from those of {_EXPECTED}: {'; '.join(different)}")


if __name__ == "__main__":
    main()
