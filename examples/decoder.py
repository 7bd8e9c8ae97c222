"""Convert a decoder's weights to the layout its kernels want, in the memory they occupy.

A Llama-style decoder stores its weights as MLC-LLM's q4f16_1 does: 4-bit groups, N x K. Its matrix
multiplications read them in another layout, and the model says so where it uses a weight, in each
of its functions, `prefill` and `decode`:

    codes, scales = layout.group_quantized.nk_to_kn(self.q_weight, self.q_scale)

relax_inplace.transform.LiftInplaceTransformParams moves all of these into one function,
inplace_transform_params(params). This script runs that, and what TVM's own LiftTransformParams
makes of the same model (out of place, and with consume_params, which frees what it has read), each
in a process of its own. It prints what they cost in memory and time, and whether every bit of the
weights, and of the logits, is the same.

    python examples/decoder.py                  # about 500 MB of weights
    python examples/decoder.py --small          # about 40 MB, for tests
    python examples/decoder.py --layout tiles   # or ft: see one_format_many_machines.md
    python examples/decoder.py --explain        # what is lifted, and where it goes
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
TILE = (16, 4)  # rows and words of a tile
LAYOUTS = ("kn", "tiles", "ft")
NAME = "transform_params"
WAYS = {
    "out-of-place": "TVM, out of place",
    "consume-params": "TVM, consume_params",
    "in-place": "in place",
}


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


def decoder(config: Config, target: str, bundled: bool = True):
    """The IRModule of the decoder.

    ``prefill(tokens, weights) -> (logits, cache)``, ``decode(token, cache, weights) -> logits``;
    the weights are one tuple, or parameters of their own.
    """
    from tvm import relax, te
    from tvm.relax.frontend import nn
    from tvm.relax.frontend.nn import op

    from relax_inplace import layout

    head_dim = config.hidden // config.heads

    class QuantizedLinear(nn.Module):
        """y = x W, W in 4-bit groups along K: w[k, n] = (code[k, n] - 7) * scale[k / 32, n]."""

        def __init__(self, k: int, n: int):
            self.k, self.n = k, n
            self.q_weight = nn.Parameter((n, k // PER_WORD), "uint32")
            self.q_scale = nn.Parameter((n, k // GROUP), "float16")

        def forward(self, x: nn.Tensor) -> nn.Tensor:
            return getattr(self, f"_{target}")(x)

        def _kn(self, x: nn.Tensor) -> nn.Tensor:
            """Kernels on q4f16_0, K x N."""
            codes, scales = layout.group_quantized.nk_to_kn(self.q_weight, self.q_scale)

            def weight(codes, scales, k, n):
                return _dequantize(codes[k // PER_WORD, n], k, scales[k // GROUP, n])

            return self._matmul("kn", weight, x, codes, scales)

        def _tiles(self, x: nn.Tensor) -> nn.Tensor:
            """Kernels on tiles of 16 rows and 32 codes, each of 256 bytes in a row."""
            rows, words = TILE
            codes = layout.tiles.pack(self.q_weight, rows, words)
            scales = layout.tiles.pack(self.q_scale, rows, 1)

            def weight(codes, scales, k, n):
                word = k // PER_WORD
                return _dequantize(
                    codes[n // rows, word // words, n % rows, word % words],
                    k,
                    scales[n // rows, k // GROUP, n % rows, 0],
                )

            return self._matmul("tiles", weight, x, codes, scales)

        def _ft(self, x: nn.Tensor) -> nn.Tensor:
            """What FasterTransformer's GEMM reads on a GPU of the Ampere generation.

            There is no such kernel for a CPU: the codes are put in order again before they are
            used. `stop_lift_params` keeps that where it is; it would be lifted, too.
            """
            codes, scales = layout.requantize.groups_to_columns(self.q_weight, self.q_scale)
            codes = layout.faster_transformer.to_mixed_gemm(codes, arch=80)
            stopped = relax.op.builtin.stop_lift_params(codes._expr)
            in_order = layout.faster_transformer.from_mixed_gemm(
                op.wrap_nested(stopped, "stopped"), arch=80
            )

            def weight(codes, scales, k, n):
                shift = (n % 2 * 4).astype("int8")
                code = ((codes[k, n // 2] >> shift) & te.const(15, "int8")).astype("int32")
                signed = code - te.if_then_else(code > 7, 16, 0)
                return signed.astype("float32") * scales[n].astype("float32")

            return self._matmul("ft", weight, x, in_order, scales)

        def _matmul(self, name: str, weight, *operands: nn.Tensor) -> nn.Tensor:
            def matmul(x, codes, scales):
                k = te.reduce_axis((0, self.k), "k")
                return te.compute(
                    (*x.shape[:-1], self.n),
                    lambda b, s, n: te.sum(x[b, s, k] * weight(codes, scales, k, n), k),
                    "matmul",
                )

            return op.tensor_expr_op(matmul, f"{name}_matmul", list(operands))

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
                        codes[tokens[b, s], k // PER_WORD], k, scales[tokens[b, s], k // GROUP]
                    ),
                    "take",
                )

            return op.tensor_expr_op(take, "take", [tokens, self.q_weight, self.q_scale])

    def _dequantize(word, k, scale):
        shift = ((k % PER_WORD) * 4).astype("uint32")
        code = (word >> shift) & te.const(15, "uint32")
        return (code.astype("float32") - 7.0) * scale.astype("float32")

    def rotary(x: nn.Tensor, first: int) -> nn.Tensor:
        """Rotary position embedding of (batch, sequence, head, head_dim), from a position."""
        half = head_dim // 2

        def rotate(x):
            def at(b, s, h, d):
                theta = (s + first).astype("float32") * te.power(
                    te.const(10000.0, "float32"),
                    (d % half).astype("float32") * te.const(-2.0 / head_dim, "float32"),
                )
                other = te.if_then_else(d < half, -x[b, s, h, d + half], x[b, s, h, d - half])
                return x[b, s, h, d] * te.cos(theta) + other * te.sin(theta)

            return te.compute(x.shape, at, "rotary")

        return op.tensor_expr_op(rotate, "rotary", [x])

    def causal(scores: nn.Tensor, first: int) -> nn.Tensor:
        def mask(scores):
            lowest = te.const(-3.0e38, "float32")
            return te.compute(
                scores.shape,
                lambda b, h, q, k: te.if_then_else(k <= q + first, scores[b, h, q, k], lowest),
                "causal",
            )

        return op.tensor_expr_op(mask, "causal", [scores])

    class Attention(nn.Module):
        def __init__(self):
            self.q_proj = QuantizedLinear(config.hidden, config.hidden)
            self.k_proj = QuantizedLinear(config.hidden, config.kv_heads * head_dim)
            self.v_proj = QuantizedLinear(config.hidden, config.kv_heads * head_dim)
            self.o_proj = QuantizedLinear(config.hidden, config.hidden)

        def forward(self, x: nn.Tensor, cache: list[nn.Tensor]) -> tuple[nn.Tensor, list]:
            b, s, _ = x.shape
            first = cache[0].shape[1] if cache else 0
            groups = config.heads // config.kv_heads
            q = rotary(op.reshape(self.q_proj(x), (b, s, config.heads, head_dim)), first)
            k = rotary(op.reshape(self.k_proj(x), (b, s, config.kv_heads, head_dim)), first)
            v = op.reshape(self.v_proj(x), (b, s, config.kv_heads, head_dim))
            if cache:
                k, v = op.concat([cache[0], k], 1), op.concat([cache[1], v], 1)
            new_cache = [k, v]
            k, v = op.repeat(k, groups, axis=2), op.repeat(v, groups, axis=2)
            q, k, v = (op.permute_dims(t, [0, 2, 1, 3]) for t in (q, k, v))
            scores = op.matmul(q, op.permute_dims(k, [0, 1, 3, 2])) * (head_dim**-0.5)
            attended = op.matmul(op.softmax(causal(scores, first), axis=-1), v)
            attended = op.reshape(op.permute_dims(attended, [0, 2, 1, 3]), (b, s, config.hidden))
            return self.o_proj(attended), new_cache

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

        def forward(self, x: nn.Tensor, cache: list[nn.Tensor]) -> tuple[nn.Tensor, list]:
            attended, new_cache = self.attention(self.input_norm(x), cache)
            x = x + attended
            return x + self.feed_forward(self.post_norm(x)), new_cache

    class Decoder(nn.Module):
        def __init__(self):
            self.embedding = QuantizedEmbedding(config.vocab, config.hidden)
            self.layers = nn.ModuleList([Layer() for _ in range(config.layers)])
            self.norm = nn.RMSNorm(config.hidden, -1, 1e-5, bias=False)
            self.lm_head = QuantizedLinear(config.hidden, config.vocab)

        def prefill(self, tokens: nn.Tensor):
            x, cache = self.embedding(tokens), []
            for layer in self.layers:
                x, new_cache = layer(x, [])
                cache += new_cache
            last = op.tensor_expr_op(
                lambda x: te.compute(
                    (x.shape[0], 1, x.shape[2]), lambda b, _, h: x[b, x.shape[1] - 1, h], "last"
                ),
                "last",
                [x],
            )
            return self.lm_head(self.norm(last)), op.concat(cache, 0)

        def decode(self, token: nn.Tensor, cache: nn.Tensor):
            x, caches = self.embedding(token), op.split(cache, 2 * config.layers, 0)
            for i, layer in enumerate(self.layers):
                x, _ = layer(x, [caches[2 * i], caches[2 * i + 1]])
            return self.lm_head(self.norm(x))

    cache = [2 * config.layers, config.prompt, config.kv_heads, head_dim]
    options = {"param_mode": "packed" if bundled else "plain", "effect_mode": "none"}
    mod, _ = Decoder().export_tvm(
        {
            "prefill": {"tokens": nn.spec.Tensor([1, config.prompt], "int32"), "$": options},
            "decode": {
                "token": nn.spec.Tensor([1, 1], "int32"),
                "cache": nn.spec.Tensor(cache, "float32"),
                "$": options,
            },
        }
    )
    return mod


def lifted(config: Config, target: str, way: str):
    """The module with its transform, and the transform's name."""
    import tvm
    from tvm import relax

    if way == "in-place":
        lift = relax_inplace.transform.LiftInplaceTransformParams()
        return lift(decoder(config, target)), f"inplace_{NAME}"
    # TVM's passes take weights one by one, and would bundle the transform's tuple once more.
    mod = decoder(config, target, bundled=False)
    consumes = {"relax.lift_transform_params.consume_params": way == "consume-params"}
    with tvm.transform.PassContext(config=consumes):
        mod = relax.transform.LiftTransformParams(shared_transform=True)(mod)
    functions = dict(mod.functions)
    transform = {gvar: functions.pop(gvar) for gvar in list(functions) if gvar.name_hint == NAME}
    bundled = relax.transform.BundleModelParams()(tvm.IRModule(functions))
    return tvm.IRModule({**dict(bundled.functions), **transform}), NAME


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


def say(text: str) -> None:
    """What is being done, on standard error."""
    print(f"  {text}", file=sys.stderr, flush=True)


def run(config: Config, target: str, way: str) -> dict:
    """Convert the weights, run the decoder on them; what it took, and a hash of every result."""
    import numpy as np
    import tvm
    from tvm import relax

    say("lifting")
    mod, name = lifted(config, target, way)

    def compiled(*names: str):
        """Functions, with the kernels they call."""
        functions = {mod.get_global_var(name): mod[name] for name in names}
        for function in list(functions.values()):
            functions.update((g, mod[g]) for g in relax.analysis.all_global_vars(function))
        return relax.VirtualMachine(tvm.compile(tvm.IRModule(functions), "llvm"), tvm.cpu())

    say("compiling the transform")
    convert = compiled(name)[name]  # alone: LLVM leaves memory that would count as the transform's
    weights = random_weights(mod[name].params[0].ty.fields)
    largest = max(w.numpy().nbytes for w in weights) / 2**20
    total = sum(w.numpy().nbytes for w in weights) / 2**20

    say(f"converting {total:.0f} MB")
    gc.collect()
    with open("/proc/self/clear_refs", "w") as refs:
        refs.write("5")  # resets VmHWM
    before = resident_mb()
    start = time.perf_counter()
    converted = convert(weights)
    seconds = time.perf_counter() - start
    peak = resident_mb("VmHWM")

    say("compiling the decoder, and running it on the converted weights")
    vm = compiled("prefill", "decode")
    tokens = tvm.runtime.tensor(np.arange(config.prompt, dtype="int32")[None] * 7 + 1)
    first, cache = vm["prefill"](tokens, converted)
    token = tvm.runtime.tensor(first.numpy().argmax(-1).astype("int32"))
    logits = np.concatenate([first.numpy(), vm["decode"](token, cache, converted).numpy()])
    return {
        "weights": total,
        "largest": largest,
        "before": before,
        "peak": peak,
        "seconds": seconds,
        "fields": sorted(_digest(field.numpy()) for field in converted),  # TVM has its own order
        "logits": _digest(logits),
        "finite": bool(np.isfinite(logits).all()) and float(np.abs(logits).max()) > 0,
        "same_object": bool(converted.same_as(weights)),
    }


def _digest(array) -> str:
    text = f"{array.shape}{array.dtype}".encode()
    return hashlib.sha256(text + array.tobytes()).hexdigest()


def run_in_own_process(small: bool, target: str, way: str) -> dict:
    """Run this script there."""
    # glibc keeps freed blocks below a threshold that rises as larger ones are freed, in holes that
    # the next, smaller tensor does not fill; a fixed threshold gives each back when it is freed.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, os.path.abspath(__file__), "--run", way, "--layout", target]
    command += ["--small"] * small
    # In a session of its own: Ctrl-C comes to this process, which ends that one.
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, check=False, start_new_session=True
    )
    if done.returncode:
        sys.exit(f"the {way} run failed with exit code {done.returncode}")
    return json.loads(done.stdout)


# -- the table ------------------------------------------------------------------------------


def main() -> int:
    """Run both ways, print the table; 1 if they differ or the in-place one takes too much."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="about 40 MB of weights, not 500")
    parser.add_argument("--layout", choices=LAYOUTS, default="kn", help="what the kernels read")
    parser.add_argument("--explain", action="store_true", help="print what is lifted, no more")
    parser.add_argument("--run", choices=list(WAYS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    config = SMALL if args.small else DEFAULT
    if not os.access("/proc/self/clear_refs", os.W_OK):
        sys.exit("examples/decoder.py measures memory by /proc/self/clear_refs: it needs Linux")
    if args.run:
        json.dump(run(config, args.layout, args.run), sys.stdout)
        return 0
    if args.explain:
        print(relax_inplace.analysis.explain_lift(decoder(config, args.layout)))
        return 0

    results = {}
    for number, (way, shown) in enumerate(WAYS.items(), 1):
        print(f"{number} of {len(WAYS)}: {shown}", file=sys.stderr, flush=True)
        results[way] = run_in_own_process(args.small, args.layout, way)
    out, consumes, ours = results.values()
    largest = out["largest"]
    print(
        f"{config.layers} layers, {len(out['fields'])} weights, {out['weights']:.0f} MB, "
        f"the largest {largest:.1f} MB"
    )
    heads = ("resident before", "peak", "extra", "in largest", "seconds")
    print(
        " " * 20
        + "".join(f"{head:>{w}}" for head, w in zip(heads, (17, 10, 10, 12, 9), strict=True))
    )
    for name, result in zip(WAYS.values(), results.values(), strict=True):
        extra = result["peak"] - result["before"]
        print(
            f"{name:20}{result['before']:14.0f} MB{result['peak']:7.0f} MB{extra:7.0f} MB"
            f"{extra / largest:11.2f}x{result['seconds']:9.2f}"
        )
    for name, other in (("out of place", out), ("consume_params", consumes)):
        print(
            f"in place takes {ours['peak'] - ours['before']:.0f} MB more than the weights, "
            f"{name} {other['peak'] - other['before']:.0f} MB; it is "
            f"{other['seconds'] / max(ours['seconds'], 1e-6):.1f} times as fast"
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
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
