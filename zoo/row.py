"""One model, from its checkpoint to its outputs: as it is, and converted in place.

    python zoo/row.py build FOLDER      compiles both, runs the one as it is
    python zoo/row.py convert FOLDER    loads the checkpoint, converts it, runs the other

Each in a process of its own, so that resident memory is that of the conversion; what they find out
is JSON, in the folder.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from specimen import Specimen

import relax_inplace
from relax_inplace import runtime

TARGET = {"kind": "llvm", "mcpu": "x86-64-v3", "mattr": ["-fma"]}


def build(folder: Path) -> dict[str, Any]:
    """Lift and compile; run the model as it is, on weights that numpy has read."""
    specimen = Specimen.load(folder)
    target = tvm.target.Target(TARGET)
    options = {"max_resident": 1.0, **specimen.options}
    report = relax_inplace.analysis.explain_lift(specimen.mod, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lifted = relax_inplace.transform.LiftInplaceTransformParams(
            reference=True, target=target, **options
        )(specimen.mod)
    found = {
        "weights": len(report.names),
        "bytes": _number(report.before),
        "lifted": len({one.name for one in report.weights if one.done}),
        "left": len(report.left),
        "reasons": sorted({one.because for one in report.left}),
        "warnings": [str(one.message) for one in caught],
    }
    if lifted.same_as(specimen.mod):  # nothing to lift
        return {**found, "alone": True}
    start = time.perf_counter()
    tvm.compile(lifted, target).export_library(str(folder / "lifted.so"))
    seconds = time.perf_counter() - start
    plain = tvm.compile(specimen.mod, target)
    vm = tvm.relax.VirtualMachine(plain, tvm.cpu())
    stored = Specimen.weights_of(folder)
    if specimen.inputs:
        weights = [tvm.runtime.tensor(stored[name]) for name in specimen.weights]
        results = {}
        for name, inputs in specimen.inputs.items():
            results.update(_called(vm, specimen.mod, name, inputs, weights))
        np.savez(folder / "expected.npz", **results)
    return {**found, "compile_seconds": seconds}


def convert(folder: Path) -> dict[str, Any]:
    """Load, convert, run; then once more, with each field compared."""
    specimen = Specimen.load(folder)
    transform = runtime.load_transform(folder / "lifted.so", tvm.cpu())
    checkpoint = folder / "weights"
    params = runtime.load_params(checkpoint, tvm.cpu(), transform, extra="ignore", progress=False)
    runtime.transform_params(transform, params, progress=False, strict=True)
    report = params.report
    found = {
        "converted": report.converted,
        "seconds": report.seconds,
        "plan": report.predicted_extra,
        "extra": report.extra,
        "grown": report.grown,
    }
    if specimen.inputs:
        results = {}
        for name, inputs in specimen.inputs.items():
            results.update(_called(transform.vm, None, name, inputs, params))
        with np.load(folder / "expected.npz") as expected:
            found.update(compared({name: expected[name] for name in expected.files}, results))
    del params
    params = runtime.load_params(checkpoint, tvm.cpu(), transform, extra="ignore", progress=False)
    runtime.transform_params(transform, params, progress=False, verify=True)
    found["verified"] = params.report.verified
    return found


def _called(
    vm: Any, mod: tvm.IRModule | None, name: str, inputs: list[np.ndarray], weights: Any
) -> dict[str, np.ndarray]:
    """The tensors that a function returns, as bytes and as numbers."""
    given = [tvm.runtime.tensor(one) for one in inputs]
    if mod is not None and len(mod[name].params) > len(given) + 1:
        result = vm[name](*given, *weights)
    elif mod is not None:
        result = vm[name](*given, tvm_ffi.Array(list(weights)))
    else:
        result = vm[name](*given, weights)
    found: dict[str, np.ndarray] = {}
    leaves_of(name, result, found)
    return found


def leaves_of(name: str, value: Any, found: dict[str, np.ndarray]) -> None:
    """Put the tensors of a result into a dict, by name."""
    if isinstance(value, tvm_ffi.Tensor):
        array = value.numpy()
        if array.dtype.kind == "V" or array.dtype.name == "bfloat16":
            array = array.astype("float32")  # keeps every bit
        found[name] = array
    elif isinstance(value, tvm_ffi.Array):
        for index, one in enumerate(value):
            leaves_of(f"{name}.{index}", one, found)


def compared(expected: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> dict[str, Any]:
    """Say how the one is like the other."""
    assert expected.keys() == found.keys(), (list(expected), list(found))
    assert all(np.isfinite(one).all() for one in expected.values() if one.dtype.kind == "f")
    equal = all(expected[name].tobytes() == found[name].tobytes() for name in expected)
    differences = [
        np.abs(expected[name].astype("float64") - found[name].astype("float64")).max()
        for name in expected
        if expected[name].size
    ]
    largest = [np.abs(one.astype("float64")).max() for one in expected.values() if one.size]
    return {
        "outputs": len(expected),
        "equal": equal,
        "difference": float(max(differences, default=0)),
        "largest": float(max(largest, default=0)),
    }


def _number(size: Any) -> int | str:
    return size if isinstance(size, int) else str(size)


if __name__ == "__main__":
    step, where = sys.argv[1], Path(sys.argv[2])
    try:
        result = {"build": build, "convert": convert}[step](where)
    except Exception as error:
        traceback.print_exc()
        result = {"failed": f"{step}: {type(error).__name__}: {error}".splitlines()[0][:300]}
    (where / f"{step}.json").write_text(json.dumps(result))
