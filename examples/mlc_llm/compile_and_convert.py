"""A small Llama by MLC-LLM's own compiler, as it is and with one line more; then converted and run.

    python examples/mlc_llm/compile_and_convert.py CHECKOUT [--quantization q0f32] [--skip ...]

The line is the one that docs/mlc-llm.md adds after ``export_tvm``; here it stands in the function
that MLC-LLM's compiler hands its module to, so that the checkout stays as it is.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from checkout import import_mlc_llm
from tvm import relax
from tvm.contrib import tvmjs

import relax_inplace

TARGET = {"kind": "llvm", "mcpu": "x86-64-v3", "mattr": ["-fma"]}
CONFIG = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "num_hidden_layers": 4,
    "rms_norm_eps": 1e-5,
    "vocab_size": 8000,
    "context_window_size": 256,
    "prefill_chunk_size": 64,
    "tie_word_embeddings": False,
}
TOKENS = [1, 8, 15, 22]


def compiled(quantization: str, lift: tvm.transform.Pass | None) -> relax.VirtualMachine:
    """What `mlc_llm compile` makes, with a pass on the exported module."""
    from mlc_llm.interface.compile import compile as compile_model
    from mlc_llm.interface.compiler_flags import ModelConfigOverride, OptimizationFlags
    from mlc_llm.model import MODELS
    from mlc_llm.quantization import QUANTIZATION

    made = []

    def build(mod: tvm.IRModule, args: Any, pipeline: tvm.transform.Pass) -> None:
        if lift is not None:
            mod = lift(mod)  # the line
        made.append(relax.build(mod, target=args.target, relax_pipeline=pipeline))

    with contextlib.redirect_stdout(io.StringIO()):
        compile_model(
            dict(CONFIG),
            QUANTIZATION[quantization],
            MODELS["llama"],
            tvm.target.Target(TARGET),
            OptimizationFlags(),
            build,
            "",
            Path("unused.so"),
            ModelConfigOverride(),
        )
    return relax.VirtualMachine(made[0], tvm.cpu())


def random_weights(metadata: dict[str, Any], folder: str) -> None:
    """A folder as `mlc_llm convert_weight` writes it."""
    generator = np.random.default_rng(0)
    arrays = {}
    for param in metadata["params"]:
        shape = [size if isinstance(size, int) else CONFIG[size] for size in param["shape"]]
        if "int" in param["dtype"]:
            array = generator.integers(0, 2**31, shape).astype(param["dtype"])
        else:
            array = (generator.standard_normal(shape, "float32") * 0.02).astype(param["dtype"])
        arrays[param["name"]] = tvm.runtime.tensor(array)
    tvmjs.dump_tensor_cache(arrays, folder, encode_format="raw", show_progress=False)


def load_params(metadata: dict[str, Any], folder: str) -> tvm_ffi.Array:
    """As the engine does it (cpp/serve/function_table.cc, LoadParams)."""
    tvm.get_global_func("vm.builtin.tensor_cache.load")(folder, 1, 0)
    names = [param["name"] for param in metadata["params"]]
    params = tvm.get_global_func("vm.builtin.param_array_from_cache_by_name")(names)
    tvm.get_global_func("vm.builtin.tensor_cache.clear")()
    return params


def generate(vm: relax.VirtualMachine, params: tvm_ffi.Array) -> tuple[list[np.ndarray], float]:
    """Logits of a prompt and of three tokens after it; the seconds of a decode."""
    shape = tvm_ffi.Shape
    cache = vm["create_tir_paged_kv_cache"](
        *(shape([size]) for size in (1, CONFIG["context_window_size"], 64, 16, 0))
    )
    tvm.get_global_func("vm.builtin.kv_state_add_sequence")(cache, 0)
    begin = tvm.get_global_func("vm.builtin.kv_state_begin_forward")
    end = tvm.get_global_func("vm.builtin.kv_state_end_forward")
    reshape = tvm.get_global_func("vm.builtin.reshape")
    logits, seconds = [], []
    tokens = TOKENS
    for _ in range(4):
        embedded = vm["embed"](tvm.runtime.tensor(np.array(tokens, "int32")), params)
        embedded = reshape(embedded, shape([1, *embedded.shape]))
        begin(cache, shape([0]), shape([len(tokens)]))
        start = time.perf_counter()
        result = vm["prefill" if len(tokens) > 1 else "decode"](embedded, cache, params)
        seconds.append(time.perf_counter() - start)
        end(cache)
        logits.append(result[0].numpy())
        tokens = [int(logits[-1].argmax())]
    return logits, min(seconds[1:])


def main() -> int:
    """Compile, convert, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", help="of MLC-LLM")
    parser.add_argument("--quantization", default="q0f32")
    parser.add_argument(
        "--skip", nargs="*", default=["relax.permute_dims"], help="operators to leave alone"
    )
    given = parser.parse_args()
    import_mlc_llm(given.checkout)
    lift = relax_inplace.transform.LiftInplaceTransformParams(skip=given.skip)
    plain, lifted = (compiled(given.quantization, one) for one in (None, lift))
    metadata, ours = (json.loads(vm["_metadata"]()) for vm in (plain, lifted))
    same = metadata == ours
    print(f"_metadata: {'the same' if same else 'DIFFERENT'}, memory_usage included")
    with tempfile.TemporaryDirectory() as folder:
        random_weights(metadata, folder)
        expected, seconds = generate(plain, load_params(metadata, folder))
        params = load_params(metadata, folder)
        size = sum(one.numpy().nbytes for one in params)
        if lifted.module.implements_function("inplace_param_map"):
            plan = json.loads(lifted["inplace_param_map"]())["inplace_transform_params"]
            # In the vocabulary's size, where MLC-LLM leaves that open: text.
            print(f"weights {size / 1e6:.1f} MB, planned peak {plan['peak']} bytes")
        else:
            print("nothing to convert")
        start = time.perf_counter()
        convert = tvm_ffi.get_global_func("relax_inplace.ConvertLoaded")
        params = convert(lifted.module, folder, params)
        print(f"converted in {(time.perf_counter() - start) * 1e3:.0f} ms")
    got, converted_seconds = generate(lifted, params)
    difference = max(float(np.abs(a - b).max()) for a, b in zip(expected, got, strict=True))
    largest = max(float(np.abs(one).max()) for one in expected)
    print(f"logits of a prompt and 3 tokens: at most {difference:.1e} apart, of {largest:.1e}")
    print(f"decode: {seconds * 1e3:.1f} ms as it is, {converted_seconds * 1e3:.1f} ms converted")
    return 0 if same and difference <= 1e-4 * largest else 1


if __name__ == "__main__":
    sys.exit(main())
