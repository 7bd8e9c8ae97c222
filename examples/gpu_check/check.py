"""Check relax_inplace on this machine: a folder that build.py has made.

    python check.py [--rounds N] [--only CASE ...] [--json FILE]

For each conversion: its bits, its highest memory by the driver's figure, how many new weights took
a spent one's storage, and its speed against a copy of the same bytes on the device. Then the order
of streams, and CUDA graphs. Ends with 0 if all is well, with 1 if a check has failed, with 2 if the
machine cannot make the checks.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import hashlib
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
NAME = "transform_params"
INPLACE = "inplace_transform_params"
SLACK = 32 << 20  # bytes above the largest weight: what the driver rounds to, what modules take
DRIVER = 13000  # CUDA 13.0


def cannot(why: str) -> None:
    """End: the machine lacks something."""
    print(f"cannot check here: {why}", file=sys.stderr)
    sys.exit(2)


def require_packages(manifest: dict[str, Any]) -> None:
    """What the folder does not bring."""
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    if running != manifest["python"]:
        cannot(
            f"this is Python {running}, the folder is for {manifest['python']}: build it with "
            f"--python {running}"
        )
    missing = []
    for name in ("numpy", "psutil", "ml_dtypes", "packaging", "msgspec", "safetensors", "tqdm"):
        try:
            __import__(name)
        except ImportError:
            missing.append(name)
    if missing:
        cannot(f"no {', '.join(missing)}: carry them as wheels")


def compute_capability() -> int:
    """Of the first GPU, such as 90, by the driver alone."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        cannot(f"no CUDA driver ({error})")
    version, count, major, minor = (ctypes.c_int() for _ in range(4))
    code = driver.cuInit(0)
    if code == 0:
        driver.cuDriverGetVersion(ctypes.byref(version))
        code = driver.cuDeviceGetCount(ctypes.byref(count))
    if code != 0 or count.value == 0:
        cannot(f"no GPU (the driver says {code}, and {count.value} devices)")
    if version.value < DRIVER:
        cannot(
            f"the driver is of CUDA {version.value // 1000}.{version.value % 1000 // 10}, TVM's "
            f"runtime needs {DRIVER // 1000}.0 or newer"
        )
    driver.cuDeviceGetAttribute(ctypes.byref(major), 75, 0)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, 0)
    return 10 * major.value + minor.value


def chosen_arch(arches: list[str], capability: int) -> str:
    """The newest whose machine code runs: of the same major version, and no newer."""
    numbers = [int(one.removeprefix("sm_")) for one in arches]
    found = [one for one in numbers if one // 10 == capability // 10 and one <= capability]
    if not found:
        cannot(
            f"the GPU is an sm_{capability}, the folder is for {', '.join(arches)}: build it with "
            f"--arch sm_{capability}"
        )
    return f"sm_{max(found)}"


class Checks:
    """What was found, and whether it is as it should be."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.checks: list[dict[str, Any]] = []
        self.streamed: dict[str, float] = {}

    def check(self, what: str, is_right: bool, detail: str = "") -> None:
        """Note one down, and say it."""
        self.checks.append({"what": what, "ok": bool(is_right), "detail": detail})
        said = f"{what}: {detail}" if detail else what
        print("ok  " if is_right else "FAIL", said, flush=True)


class Machine:
    """TVM's runtime and its device."""

    def __init__(self, manifest: dict[str, Any], arch: str):
        os.environ["TVM_USE_RUNTIME_LIB"] = "1"
        sys.path[:0] = [str(HERE / "site"), str(HERE)]
        if arch:
            carried = HERE / "site" / "cuda" / "libcudart.so.13"
            try:
                ctypes.CDLL(str(carried if carried.is_file() else carried.name), ctypes.RTLD_GLOBAL)
            except OSError as error:
                cannot(f"no CUDA runtime ({error}): put libcudart.so.13 into {carried.parent}")
        import tvm
        import tvm_ffi

        if arch:  # TVM loads it only together with its compiler (tvm/backend/cuda/__init__.py)
            try:
                ctypes.CDLL(str(HERE / "site" / "tvm" / "lib" / "libtvm_runtime_cuda.so"))
            except OSError as error:
                cannot(f"TVM's CUDA runtime cannot be loaded ({error})")
        self.tvm, self.ffi, self.arch = tvm, tvm_ffi, arch
        self.device = tvm.cuda(0) if arch else tvm.cpu()
        if not self.device.exist:
            cannot(f"TVM sees no {self.device}")
        from relax_inplace import runtime

        self.runtime = runtime
        self.wait = tvm_ffi.get_global_func("relax_inplace.WaitForDevice", allow_missing=True)
        if self.wait is None:
            from relax_inplace.libinfo import load_library

            load_library()
            self.wait = tvm_ffi.get_global_func("relax_inplace.WaitForDevice")

    def transform(self, stem: str) -> Any:
        """A module's transform in place."""
        library = HERE / (f"{stem}.{self.arch}.so" if self.arch else f"{stem}.so")
        return self.runtime.load_transform(library, self.device)

    def vm(self, stem: str) -> Any:
        """A module's virtual machine."""
        from tvm.runtime.vm import VirtualMachine

        library = HERE / (f"{stem}.{self.arch}.so" if self.arch else f"{stem}.so")
        return VirtualMachine(self.tvm.runtime.load_module(str(library)), self.device)

    def synchronize(self) -> None:
        """Until all of it is done."""
        self.wait(self.device)


class Case:
    """The weights of a conversion, and what is to become of them."""

    def __init__(self, given: dict[str, Any]):
        from contents import CONTENTS, content

        self.name, self.stem = given["name"], given["stem"]
        self.layers = given["layers"]
        self.layer = given["layer"]
        self._contents = {
            (s, j, c): content(one["shape"], one["dtype"], s, j, c)
            for s, step in enumerate(self.layer)
            for j, one in enumerate(step["weights"])
            for c in range(min(CONTENTS, self.layers))
        }
        self._count = CONTENTS
        order = [
            self._contents[s, j, layer % CONTENTS]
            for layer in range(self.layers)
            for s, step in enumerate(self.layer)
            for j in range(len(step["weights"]))
        ]
        self.arrays = order
        self.nbytes = sum(one.nbytes for one in order)
        self.largest = max(one.nbytes for one in order)

    def weights(self, machine: Machine) -> Any:
        """On the device, for the one who is given them alone."""
        make = machine.tvm.runtime.tensor
        made = machine.ffi.Array([make(array, machine.device) for array in self.arrays])
        machine.synchronize()
        return made

    def expected(self) -> list[str]:
        """Digests of the new weights, in their order."""
        return [
            step["digests"][layer % self._count]
            for layer in range(self.layers)
            for step in self.layer
        ]

    def wrong(self, fields: Any) -> list[int]:
        """The fields that are not as they should be."""
        new = [one for one in fields if one is not None]
        digests = [digest(one) for one in new]
        expected = self.expected()
        if len(digests) != len(expected):
            return list(range(max(len(digests), len(expected))))
        if sorted(digests) == sorted(expected) and digests != expected:
            return [-1]
        return [i for i, (a, b) in enumerate(zip(digests, expected, strict=True)) if a != b]


def digest(tensor: Any) -> str:
    """Of the bytes of a tensor."""
    return hashlib.blake2b(tensor.numpy().view("uint8").data, digest_size=16).hexdigest()


def seconds_of_copy(machine: Machine, case: Case, rounds: int) -> float:
    """Of the same bytes, from device memory into device memory that are both warm."""
    import math

    empty = machine.tvm.runtime.empty
    pairs = []
    count = max(1, math.ceil(case.nbytes / (256 << 20)))
    size = case.nbytes // count
    for _ in range(count):
        pairs.append([empty((size,), "uint8", machine.device) for _ in range(2)])
    times = []
    for _ in range(rounds + 1):
        machine.synchronize()
        start = time.perf_counter()
        for source, target in pairs:
            source.copyto(target)
        machine.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def kernels(machine: Machine, transform: Any, weights: Any) -> dict[str, list[tuple[int, float]]]:
    """Bytes of the result and seconds of each kernel, from one wait to the next.

    ``weights`` is emptied, and filled with the new ones.
    """
    found: dict[str, list[tuple[int, float]]] = {}
    started = 0.0

    def instrument(_function: Any, name: str, before: bool, _result: Any, *args: Any) -> int:
        nonlocal started
        if not name.startswith(("vm.", "relax_inplace.")):
            machine.synchronize()
            if before:
                started = time.perf_counter()
            else:
                took = time.perf_counter() - started
                found.setdefault(name, []).append((_nbytes(args[-1]), took))
        return 0

    transform.vm.set_instrument(instrument)
    transform.function(weights)
    transform.vm.set_instrument(lambda *_: 0)
    return found


def _nbytes(tensor: Any) -> int:
    from relax_inplace.runtime.tensor_info import TensorInfo

    shape = tuple(map(int, tensor.shape))
    return TensorInfo("", shape, str(tensor.dtype)).nbytes or 0


def run_case(machine: Machine, case: Case, rounds: int, found: Checks) -> None:
    """One conversion, measured and checked."""
    transform = machine.transform(case.stem)
    weights = case.weights(machine)
    per_kernel = kernels(machine, transform, weights)  # loads the kernels, too
    wrong = case.wrong(weights)
    found.check(f"{case.name}, bits", not wrong, f"{len(case.expected())} fields, wrong: {wrong}")
    del weights
    copy = seconds_of_copy(machine, case, rounds)
    direct, by_runtime, reports = [], [], []
    for _ in range(rounds):
        weights = case.weights(machine)
        start = time.perf_counter()
        transform.function(weights)
        machine.synchronize()
        direct.append(time.perf_counter() - start)
        del weights
        weights = case.weights(machine)
        params = machine.runtime.transform_params(transform, weights, progress=False)
        reports.append(params.report)
        by_runtime.append(params.report.seconds)
        wrong = case.wrong([params[one] for one in params.names])
        del params, weights
        if wrong:
            break
    found.check(f"{case.name}, bits by transform_params", not wrong, f"wrong: {wrong}")
    report = reports[-1]
    extra = max(one.extra for one in reports)
    found.check(
        f"{case.name}, peak",
        extra <= max(case.largest, report.predicted_extra or 0) + SLACK,
        f"{extra / 1e6:.1f} MB above the weights, the largest has {case.largest / 1e6:.1f}",
    )
    refused = {why: n for why, n in report.allocated.items() if why != "first of its size"}
    made = report.reused + sum(report.allocated.values())
    found.check(
        f"{case.name}, storage of spent weights",
        not refused and made >= len(case.expected()),
        f"{report.reused} taken, {sum(report.allocated.values())} allocated {report.allocated}",
    )
    middle = statistics.median(direct)
    found.rows.append(
        {
            "case": case.name,
            "bytes": case.nbytes,
            "weights": len(case.arrays),
            "largest": case.largest,
            "copy_seconds": copy,
            "seconds": middle,
            "seconds_by_runtime": statistics.median(by_runtime),
            "in_copies": middle / copy,
            "gb_per_second": case.nbytes / middle / 1e9,
            "copy_gb_per_second": case.nbytes / copy / 1e9,
            "extra": extra,
            "peak_of_device": report.peak_sample.device,
            "reused": report.reused,
            "allocated": report.allocated,
            "kernels": {
                name: {
                    "calls": len(calls),
                    "gb_per_second": max(n / t for n, t in calls) / 1e9,
                }
                for name, calls in per_kernel.items()
            },
        }
    )


def run_streams(machine: Machine, case: Case, found: Checks) -> None:
    """A weight is not taken before a kernel of another stream has read it."""
    transform, reader = machine.transform(case.stem), machine.vm(f"{case.stem}_reader")
    reading, own = (machine.device.create_raw_stream() for _ in range(2))

    def read(weights: Any, times: int) -> Any:
        machine.device.set_raw_stream(reading)
        for _ in range(times):
            result = reader[NAME](machine.ffi.Array(list(weights)))
        machine.device.set_raw_stream(0)
        return result

    weights = case.weights(machine)
    read(weights, 3)  # its memory comes from a pool afterwards, without a wait
    machine.synchronize()
    for name, stream in (("the default stream", 0), ("a user's stream", own)):
        weights = case.weights(machine)
        result = read(weights, 20)
        machine.device.set_raw_stream(stream)
        transform.function(weights)
        machine.device.sync(reading)
        wrong = case.wrong(result)
        found.check(f"read on another stream, converted on {name}", not wrong, f"wrong: {wrong}")
        machine.device.sync(stream)
        machine.device.set_raw_stream(0)
        wrong = case.wrong(weights)
        found.check(f"converted on {name}", not wrong, f"wrong: {wrong}")
    weights = case.weights(machine)
    machine.device.set_raw_stream(own)
    machine.runtime.transform_params(transform, weights, progress=False)
    machine.device.set_raw_stream(0)
    wrong = case.wrong(weights)  # by the default stream, without a wait
    found.check("transform_params has finished when it returns", not wrong, f"wrong: {wrong}")
    for stream in (reading, own):
        machine.device.free_raw_stream(stream)


def run_streamed(machine: Machine, case: Case, found: Checks) -> None:
    """Weights from a file are copied to the device while others are converted."""
    from safetensors.numpy import save_file

    streamed = machine.transform(f"{case.stem}_streamed")
    resident = machine.transform(case.stem)
    with tempfile.TemporaryDirectory() as folder:
        named = {f"w{i}": one for i, one in enumerate(case.arrays)}
        save_file(named, f"{folder}/model.safetensors")
        seconds: dict[str, list[float]] = {"load": [], "load and convert": [], "stream": []}
        for _ in range(3):
            start = time.perf_counter()
            loaded = machine.runtime.load_params(folder, machine.device, resident, progress=False)
            machine.synchronize()
            seconds["load"].append(time.perf_counter() - start)
            machine.runtime.transform_params(resident, loaded, progress=False)
            seconds["load and convert"].append(time.perf_counter() - start)
            del loaded
            start = time.perf_counter()
            made = machine.runtime.stream_params(streamed, folder, machine.device, progress=False)
            seconds["stream"].append(time.perf_counter() - start)
            wrong = case.wrong([made[name] for name in made.names])
            del made
            found.check("streamed from files", not wrong, f"wrong: {wrong}")
    found.streamed = {name: min(times) for name, times in seconds.items()}
    print("     " + ", ".join(f"{name} {one:.3f} s" for name, one in found.streamed.items()))


def run_graph(machine: Machine, found: Checks) -> None:
    """Converted weights in a CUDA graph: captured, and run again."""
    from contents import content

    def signs(height: int, number: int) -> Any:  # sums of their products are exact
        return content([height, 256], "uint8", 0, number, 0).astype("float32") % 3 - 1

    vm = machine.vm("graph")
    w0, w1 = (signs(256, number) for number in range(2))
    tensor = machine.tvm.runtime.tensor
    weights = machine.ffi.Array([tensor(one, machine.device) for one in (w0, w1)])
    machine.runtime.transform_params(vm, weights, progress=False)
    right = True
    for turn in range(3):
        x = signs(64, 2 + turn)
        made = vm["decode"](tensor(x, machine.device), weights).numpy()
        right = right and bool((made == x @ w0.T @ w1.T @ w1.T).all())
    found.check("decode after a conversion, with CUDA graphs on", right, "3 turns")


def main() -> int:
    """Check all."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", help="names of conversions")
    parser.add_argument("--json", type=Path, default=HERE / "result.json")
    options = parser.parse_args()
    manifest = json.loads((HERE / "manifest.json").read_text())
    require_packages(manifest)
    arch = ""
    if manifest["device"] == "cuda":
        arch = chosen_arch(manifest["arches"], compute_capability())
    machine = Machine(manifest, arch)
    name = machine.device.device_name if arch else platform.processor() or platform.machine()
    print(f"{name}, {arch or 'cpu'}; TVM {manifest['tvm']}", flush=True)
    found = Checks()
    cases = [one for one in manifest["cases"] if not options.only or one["name"] in options.only]
    for given in cases:
        case = Case(given)
        _guarded(found, case.name, lambda case=case: run_case(machine, case, options.rounds, found))
        if given["name"] == "transpose uint8":
            _guarded(found, "streams", lambda case=case: run_streams(machine, case, found))
            _guarded(found, "streamed", lambda case=case: run_streamed(machine, case, found))
    _guarded(found, "graph", lambda: run_graph(machine, found))
    result = {
        "date": datetime.date.today().isoformat(),
        "device": str(name),
        "arch": arch,
        "checks": found.checks,
        "rows": found.rows,
        "seconds_streamed": found.streamed,
        **{key: manifest[key] for key in ("tvm", "relax_inplace")},
    }
    options.json.write_text(json.dumps(result, indent=1))
    print(table(found.rows))
    failed = [one["what"] for one in found.checks if not one["ok"]]
    print(f"{len(found.checks) - len(failed)} of {len(found.checks)} checks passed")
    return 1 if failed else 0


def _guarded(found: Checks, what: str, run: Any) -> None:
    try:
        run()
    except Exception as error:
        import traceback

        traceback.print_exc()
        found.check(what, False, f"{type(error).__name__}: {str(error).splitlines()[0]}")


def table(rows: list[dict[str, Any]]) -> str:
    """For docs/figures.md."""
    lines = [
        "| | GB | copy, GB/s | converted, GB/s | in copies | by the runtime | extra, MB | "
        "largest, MB | taken | allocated |",
        "| --- " + "| ---: " * 9 + "|",
    ]
    for row in rows:
        by_runtime = row["seconds_by_runtime"] / row["copy_seconds"]
        lines.append(
            f"| {row['case']} | {row['bytes'] / 1e9:.2f} | {row['copy_gb_per_second']:.0f} | "
            f"{row['gb_per_second']:.0f} | {row['in_copies']:.2f} | {by_runtime:.2f} | "
            f"{row['extra'] / 1e6:.1f} | {row['largest'] / 1e6:.1f} | {row['reused']} | "
            f"{sum(row['allocated'].values())} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
