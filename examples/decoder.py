"""Convert a decoder's weights to the layout its kernels want, in the memory they occupy.

A Llama-style decoder stores its weights as MLC-LLM's q4f16_1 does: 4-bit groups, N x K. Its
matrix multiplications read them as q4f16_0: K x N. The model says so where it uses a weight:

    q_weight = op.permute_dims(self.q_weight)

TVM's own LiftTransformParams moves all of these into one function, transform_params(params) ->
tuple. This script runs that function as it is (out of place), and rewritten by
relax_inplace.transform.InplaceTransformParams, each in a process of its own, and prints what it
cost in memory and whether every bit of the result, and of the logits, is the same.

    python examples/decoder.py            # about 500 MB of weights
    python examples/decoder.py --small    # about 40 MB, for tests
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import hashlib
import json
import os
import subprocess
import sys
import time

# First, as it costs nothing yet: TVM is imported below, by the process that needs it.
import relax_inplace

GROUP = 32  # weights that share a scale, along K
PER_WORD = 8  # int4 in a uint32, along K


@dataclasses.dataclass
class Config:
    """Shape of the decoder."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    prompt: int = 4


DEFAULT = Config(hidden=2048, intermediate=5632, layers=18, heads=32, kv_heads=4, vocab=32000)
# Its largest tensor is large enough to be told from the noise of resident memory.
SMALL = Config(hidden=512, intermediate=1408, layers=2, heads=8, kv_heads=2, vocab=65536)


# -- the model ------------------------------------------------------------------------------


def decoder(config: Config):
    """The IRModule of the decoder: ``forward(tokens, *weights)``."""
    from tvm import te
    from tvm.relax.frontend import nn
    from tvm.relax.frontend.nn import op

    head_dim = config.hidden // config.heads

    class QuantizedLinear(nn.Module):
        """y = x W, W in 4-bit groups along K: w[k, n] = (code[k, n] - 7) * scale[k / 32, n]."""

        def __init__(self, k: int, n: int):
            self.k, self.n = k, n
            self.q_weight = nn.Parameter((n, k // PER_WORD), "uint32")
            self.q_scale = nn.Parameter((n, k // GROUP), "float16")

        def forward(self, x: nn.Tensor) -> nn.Tensor:
            def matmul(x, codes, scales):
                scale = te.compute(scales.shape, lambda *at: scales(*at).astype("float32"), "scale")
                k = te.reduce_axis((0, self.k), "k")
                return te.compute(
                    (*x.shape[:-1], self.n),
                    lambda b, s, n: te.sum(
                        x[b, s, k] * _dequantize(codes[k // PER_WORD, n], k, scale[k // GROUP, n]),
                        k,
                    ),
                    "matmul",
                )

            codes, scales = op.permute_dims(self.q_weight), op.permute_dims(self.q_scale)
            return op.tensor_expr_op(matmul, "q4f16_0_matmul", [x, codes, scales])

    class QuantizedEmbedding(nn.Module):
        """Rows of a table in 4-bit groups; a lookup wants it as it is stored."""

        def __init__(self, vocab: int, hidden: int):
            self.q_weight = nn.Parameter((vocab, hidden // PER_WORD), "uint32")
            self.q_scale = nn.Parameter((vocab, hidden // GROUP), "float16")

        def forward(self, tokens: nn.Tensor) -> nn.Tensor:
            def take(tokens, codes, scales):
                return te.compute(
                    (*tokens.shape, config.hidden),
                    lambda b, s, k: _dequantize(
                        codes[tokens[b, s], k // PER_WORD],
                        k,
                        scales[tokens[b, s], k // GROUP].astype("float32"),
                    ),
                    "take",
                )

            return op.tensor_expr_op(take, "take", [tokens, self.q_weight, self.q_scale])

    def _dequantize(word, k, scale):
        shift = ((k % PER_WORD) * 4).astype("uint32")
        code = (word >> shift) & te.const(15, "uint32")
        return (code.astype("float32") - 7.0) * scale

    def rotary(x: nn.Tensor) -> nn.Tensor:
        """Rotary position embedding of (batch, sequence, head, head_dim), positions from 0."""
        half = head_dim // 2

        def rotate(x):
            def at(b, s, h, d):
                theta = s.astype("float32") * te.power(
                    te.const(10000.0, "float32"),
                    (d % half).astype("float32") * te.const(-2.0 / head_dim, "float32"),
                )
                other = te.if_then_else(d < half, -x[b, s, h, d + half], x[b, s, h, d - half])
                return x[b, s, h, d] * te.cos(theta) + other * te.sin(theta)

            return te.compute(x.shape, at, "rotary")

        return op.tensor_expr_op(rotate, "rotary", [x])

    def causal(scores: nn.Tensor) -> nn.Tensor:
        def mask(scores):
            lowest = te.const(-3.0e38, "float32")
            return te.compute(
                scores.shape,
                lambda b, h, q, k: te.if_then_else(k <= q, scores[b, h, q, k], lowest),
                "causal",
            )

        return op.tensor_expr_op(mask, "causal", [scores])

    class Attention(nn.Module):
        def __init__(self):
            self.q_proj = QuantizedLinear(config.hidden, config.hidden)
            self.k_proj = QuantizedLinear(config.hidden, config.kv_heads * head_dim)
            self.v_proj = QuantizedLinear(config.hidden, config.kv_heads * head_dim)
            self.o_proj = QuantizedLinear(config.hidden, config.hidden)

        def forward(self, x: nn.Tensor) -> nn.Tensor:
            b, s, _ = x.shape
            groups = config.heads // config.kv_heads
            q = rotary(op.reshape(self.q_proj(x), (b, s, config.heads, head_dim)))
            k = rotary(op.reshape(self.k_proj(x), (b, s, config.kv_heads, head_dim)))
            v = op.reshape(self.v_proj(x), (b, s, config.kv_heads, head_dim))
            k, v = op.repeat(k, groups, axis=2), op.repeat(v, groups, axis=2)
            q, k, v = (op.permute_dims(t, [0, 2, 1, 3]) for t in (q, k, v))
            scores = op.matmul(q, op.permute_dims(k, [0, 1, 3, 2])) * (head_dim**-0.5)
            attended = op.matmul(op.softmax(causal(scores), axis=-1), v)
            attended = op.reshape(op.permute_dims(attended, [0, 2, 1, 3]), (b, s, config.hidden))
            return self.o_proj(attended)

    class FeedForward(nn.Module):
        """SwiGLU."""

        def __init__(self):
            self.gate_proj = QuantizedLinear(config.hidden, config.intermediate)
            self.up_proj = QuantizedLinear(config.hidden, config.intermediate)
            self.down_proj = QuantizedLinear(config.intermediate, config.hidden)

        def forward(self, x: nn.Tensor) -> nn.Tensor:
            return self.down_proj(op.silu(self.gate_proj(x)) * self.up_proj(x))

    class Layer(nn.Module):
        def __init__(self):
            self.input_norm = nn.RMSNorm(config.hidden, -1, 1e-5, bias=False)
            self.attention = Attention()
            self.post_norm = nn.RMSNorm(config.hidden, -1, 1e-5, bias=False)
            self.feed_forward = FeedForward()

        def forward(self, x: nn.Tensor) -> nn.Tensor:
            x = x + self.attention(self.input_norm(x))
            return x + self.feed_forward(self.post_norm(x))

    class Decoder(nn.Module):
        def __init__(self):
            self.embedding = QuantizedEmbedding(config.vocab, config.hidden)
            self.layers = nn.ModuleList([Layer() for _ in range(config.layers)])
            self.norm = nn.RMSNorm(config.hidden, -1, 1e-5, bias=False)
            self.lm_head = QuantizedLinear(config.hidden, config.vocab)

        def forward(self, tokens: nn.Tensor) -> nn.Tensor:
            x = self.layers_of(self.embedding(tokens))
            last = op.tensor_expr_op(
                lambda x: te.compute(
                    (x.shape[0], 1, x.shape[2]), lambda b, _, h: x[b, x.shape[1] - 1, h], "last"
                ),
                "last",
                [x],
            )
            return self.lm_head(self.norm(last))

        def layers_of(self, x: nn.Tensor) -> nn.Tensor:
            for layer in self.layers:
                x = layer(x)
            return x

    tokens = nn.spec.Tensor([1, config.prompt], "int32")
    options = {"param_mode": "plain", "effect_mode": "none"}
    mod, _ = Decoder().export_tvm({"forward": {"tokens": tokens, "$": options}})
    return mod


def modules(config: Config, inplace: bool):
    """The transform and the decoder that reads converted weights, as one IRModule each."""
    import tvm
    from tvm import relax

    mod = relax.transform.LiftTransformParams()(decoder(config))
    functions = dict(mod.functions_items())
    transform = tvm.IRModule(
        {gvar: functions.pop(gvar) for gvar in list(functions) if "transform" in gvar.name_hint}
    )
    forward = relax.transform.BundleModelParams()(tvm.IRModule(functions))
    if inplace:
        transform = relax_inplace.transform.InplaceTransformParams()(transform)
    return transform, forward


# -- one run, in a process of its own -------------------------------------------------------


def random_weights(types):
    """Weights of the given types: random codes, scales and norms, the same in every process."""
    import numpy as np
    import tvm
    import tvm_ffi

    generator = np.random.default_rng(0)

    def random(ty):
        shape, dtype = [int(d) for d in ty.shape.values], str(ty.dtype.dtype)
        if dtype == "uint32":
            return generator.integers(0, 2**32, shape, dtype)
        return (generator.random(shape, "float32") * 0.01 + 0.01).astype(dtype)

    return tvm_ffi.Array([tvm.runtime.tensor(random(ty)) for ty in types])


def resident_mb(key: str = "VmRSS") -> float:
    """Resident memory of this process, now (VmRSS) or at its most (VmHWM), from Linux's /proc."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(key)) / 1024


def run(config: Config, inplace: bool) -> dict:
    """Convert the weights, run the decoder on them; what it took, and a hash of every result."""
    import numpy as np
    import tvm
    from tvm import relax

    transform, forward = modules(config, inplace)
    (gvar,) = transform.get_global_vars()
    types = transform[gvar].params[0].ty.fields
    convert = relax.VirtualMachine(tvm.compile(transform, "llvm"), tvm.cpu())[gvar.name_hint]
    decode = relax.VirtualMachine(tvm.compile(forward, "llvm"), tvm.cpu())["forward"]
    weights = random_weights(types)
    largest = max(w.numpy().nbytes for w in weights) / 2**20
    total = sum(w.numpy().nbytes for w in weights) / 2**20

    gc.collect()
    with open("/proc/self/clear_refs", "w") as refs:
        refs.write("5")  # resets VmHWM
    before = resident_mb()
    start = time.perf_counter()
    converted = convert(weights)
    seconds = time.perf_counter() - start
    peak = resident_mb("VmHWM")

    tokens = tvm.runtime.tensor(np.arange(config.prompt, dtype="int32")[None] * 7 + 1)
    logits = decode(tokens, converted).numpy()
    return {
        "weights": total,
        "largest": largest,
        "before": before,
        "peak": peak,
        "seconds": seconds,
        "fields": [_digest(field.numpy()) for field in converted],
        "logits": _digest(logits),
        "finite": bool(np.isfinite(logits).all()) and float(np.abs(logits).max()) > 0,
        "same_object": bool(converted.same_as(weights)),
    }


def _digest(array) -> str:
    text = f"{array.shape}{array.dtype}".encode()
    return hashlib.sha256(text + array.tobytes()).hexdigest()


def run_in_own_process(small: bool, way: str) -> dict:
    """Run this script there."""
    # glibc keeps freed blocks below a threshold that rises as larger ones are freed, in holes that
    # the next, smaller tensor does not fill; a fixed threshold gives each back when it is freed.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, os.path.abspath(__file__), "--run", way] + ["--small"] * small
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        sys.exit(f"the {way} run failed with exit code {done.returncode}")
    return json.loads(done.stdout)


# -- the table ------------------------------------------------------------------------------


def main() -> int:
    """Run both ways, print the table; 1 if they differ or the in-place one takes too much."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="about 40 MB of weights, not 500")
    parser.add_argument("--run", choices=["out-of-place", "in-place"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    config = SMALL if args.small else DEFAULT
    if not os.access("/proc/self/clear_refs", os.W_OK):
        sys.exit("examples/decoder.py measures memory by /proc/self/clear_refs: it needs Linux")
    if args.run:
        json.dump(run(config, args.run == "in-place"), sys.stdout)
        return 0

    out, ours = (run_in_own_process(args.small, way) for way in ("out-of-place", "in-place"))
    largest = out["largest"]
    print(
        f"{config.layers} layers, {len(out['fields'])} weights, {out['weights']:.0f} MB, "
        f"the largest {largest:.1f} MB"
    )
    heads = ("resident before", "peak", "extra", "in largest", "seconds")
    print(
        " " * 14
        + "".join(f"{head:>{w}}" for head, w in zip(heads, (17, 10, 10, 12, 9), strict=True))
    )
    for name, result in (("out of place", out), ("in place", ours)):
        extra = result["peak"] - result["before"]
        print(
            f"{name:14}{result['before']:14.0f} MB{result['peak']:7.0f} MB{extra:7.0f} MB"
            f"{extra / largest:11.2f}x{result['seconds']:9.2f}"
        )
    fields = sum(a == b for a, b in zip(out["fields"], ours["fields"], strict=True))
    extra = (ours["peak"] - ours["before"]) / largest
    checks = {
        f"fields bitwise equal: {fields} of {len(out['fields'])}": fields == len(out["fields"]),
        "logits bitwise equal": out["logits"] == ours["logits"] and out["finite"],
        "the tuple handed in is the one that came back": ours["same_object"],
        f"extra memory {extra:.2f} of the largest tensor, at most 1.1": extra <= 1.1,
    }
    for text, passed in checks.items():
        print(f"{'ok  ' if passed else 'FAIL'} {text}")
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
