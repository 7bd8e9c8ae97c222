"""One model of MLC-LLM, in each of its quantisations: lifted, converted, and called.

    python zoo/mlc_row.py --list
    python zoo/mlc_row.py NAME FOLDER

A small model has a hundred compiled functions, most of them of the engine's. Compiled here are the
transform, and in one quantisation of each kind those of the model's functions that take nothing but
tensors (``embed``, ``get_logits``, an encoder's ``prefill``); examples/mlc_llm compiles all.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Any

import ml_dtypes
import mlc
import numpy as np
import tvm
import tvm_ffi
from row import compared, leaves_of
from tvm import relax

import relax_inplace
from relax_inplace import runtime

_ROWS = 3  # what a symbolic dimension is in a call
_VOCABULARY = 1024  # and in a weight


def main() -> None:
    if sys.argv[1:] == ["--list"]:
        print("\n".join(mlc.entries()))
        return
    name, folder = sys.argv[1], Path(sys.argv[2])
    found: dict[str, Any] = {}
    called: set[str] = set()  # one of each kind is
    for quantisation in mlc.entries()[name]:
        try:
            made = mlc.Exported(name, quantisation)
        except Exception as error:
            traceback.print_exc()
            found[quantisation] = {"not exported": _line(error)}
            continue
        where = folder / quantisation
        where.mkdir()
        try:
            kind = made.quantisation.kind
            found[quantisation] = _converted(made, where, kind not in called)
            if "outputs" in found[quantisation]:
                called.add(kind)
        except Exception as error:
            traceback.print_exc()
            found[quantisation] = {"failed": _line(error)}
    (folder / "mlc.json").write_text(json.dumps(found))


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def _converted(made: mlc.Exported, folder: Path, calls: bool) -> dict[str, Any]:
    names = [name for name, _ in made.params]
    options = {"names": names, "max_resident": 1.0}
    report = relax_inplace.analysis.explain_lift(made.mod, **options)
    found: dict[str, Any] = {
        "weights": len(names),
        "lifted": len({one.name for one in report.weights if one.done}),
        "left": len(report.left),
    }
    lifted = relax_inplace.transform.LiftInplaceTransformParams(
        reference=True, target=made.target, **options
    )(made.mod)
    if not found["lifted"]:
        return {**found, "alone": lifted.same_as(made.mod)}
    called = _callable(made) if made.runs and calls else {}
    plain = _plain(made, called)
    if plain is None:
        called = {}
    arrays = [
        _random(param.shape, param.dtype, index) for index, (_, param) in enumerate(made.params)
    ]
    tensors = [tvm.runtime.tensor(one) for one in arrays]
    runtime.save_params(runtime.Params(tensors, names), folder, progress=False)
    del tensors
    kept = [*called, "inplace_transform_params", "reference_transform_params"]
    executable = tvm.compile(_only(lifted, kept), made.target)
    transform = runtime.Transform.of(relax.VirtualMachine(executable, tvm.cpu()))
    params = runtime.load_params(folder, tvm.cpu(), transform, progress=False)
    found["bytes"] = params.nbytes
    runtime.transform_params(transform, params, progress=False, strict=True)
    found.update(plan=params.report.predicted_extra, extra=params.report.extra)
    found.update(seconds=params.report.seconds, converted=params.report.converted)
    if called:
        assert plain is not None
        weights = tvm_ffi.Array([tvm.runtime.tensor(one) for one in arrays])
        expected, got = {}, {}
        for name, inputs in called.items():
            leaves_of(name, plain[name](*inputs, weights), expected)
            leaves_of(name, transform.vm[name](*inputs, params), got)
        found.update(compared(expected, got))
    params = runtime.load_params(folder, tvm.cpu(), transform, progress=False)
    runtime.transform_params(transform, params, progress=False, verify=True)
    found["verified"] = params.report.verified
    return found


def _plain(made: mlc.Exported, called: dict[str, Any]) -> relax.VirtualMachine | None:
    """The functions as they are; None if there are none, or TVM has them for a GPU alone."""
    try:
        executable = tvm.compile(_only(made.mod, called), made.target) if called else None
    except Exception:
        return None
    return None if executable is None else relax.VirtualMachine(executable, tvm.cpu())


def _only(mod: tvm.IRModule, names: Any) -> tvm.IRModule:
    """Some functions of a module, and what they call."""
    there = {gvar.name_hint for gvar in mod.get_global_vars()}
    entries = [name for name in names if name in there]
    return relax.transform.DeadCodeElimination(entries)(_without_others(mod, entries))


def _without_others(mod: tvm.IRModule, entries: list[str]) -> tvm.IRModule:
    """Kernels that are public stay only if they are called: some are for a GPU alone."""
    kept = {
        gvar: function
        if isinstance(function, relax.Function) or not function.attrs
        else function.without_attr("global_symbol")
        for gvar, function in mod.functions_items()
        if not isinstance(function, relax.Function)
        or gvar.name_hint in entries
        or function.attrs is None
        or "global_symbol" not in function.attrs
    }
    return tvm.IRModule(kept, attrs=mod.attrs, global_infos=mod.global_infos)


def _callable(made: mlc.Exported) -> dict[str, list[Any]]:
    """The functions that take tensors and the weights, with arguments for each."""
    found = {}
    for gvar, function in made.mod.functions_items():
        if not isinstance(function, relax.Function) or not function.params:
            continue
        *inputs, weights = function.params
        if not isinstance(weights.ty, tvm.ir.TupleType) or not inputs:
            continue
        if all(isinstance(one.ty, relax.TensorType) for one in inputs):
            found[gvar.name_hint] = [_argument(one.ty) for one in inputs]
    return found


def _argument(ty: relax.TensorType) -> tvm.runtime.Tensor:
    shape = [int(size) if isinstance(size, tvm.tirx.IntImm) else _ROWS for size in ty.shape.values]
    dtype = str(ty.dtype)
    if "int" in dtype:
        return tvm.runtime.tensor(np.arange(np.prod(shape)).reshape(shape).astype(dtype) % _ROWS)
    return tvm.runtime.tensor(_random(shape, dtype, 99))


def _random(shape: Any, dtype: str, seed: int) -> np.ndarray:
    """Small floats, so that results are finite; codes of quantised weights."""
    generator = np.random.default_rng(seed)
    known = (int, tvm.tirx.IntImm)
    shape = [int(size) if isinstance(size, known) else _VOCABULARY for size in shape]
    if dtype.startswith(("int", "uint")):
        return generator.integers(0, 100, shape).astype(dtype)
    return (generator.standard_normal(shape, "float32") * 0.05).astype(_numpy(dtype))


def _numpy(dtype: str) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, dtype, None) or dtype)


if __name__ == "__main__":
    main()
