"""Where a layout can be written, and every layout in place: the same bits, with one temporary."""

import numpy as np
import pytest
import tvm
from compiled import kernels, types_of
from transforms import argument, check_slots, run_both
from tvm import relax
from tvm.relax.frontend import nn
from tvm.script import from_source
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from relax_inplace import layout
from relax_inplace.analysis import plan_memory
from relax_inplace.layout import LayoutError
from relax_inplace.transform import InplaceTransformParams

# -- where a layout can be written --------------------------------------------------------------


@I.ir_module
class Script:
    @R.function
    def transform_params(
        params: R.Tuple(
            R.Tensor(("n", 24), "float16"),
            R.Tensor((5, 24), "float16"),
            R.Tensor((64, 8), "uint32"),
            R.Tensor((64, 2), "float16"),
            R.Tensor(("n", "m"), "uint8"),
        ),
    ):
        n = T.int64()
        m = T.int64()
        with R.dataflow():
            a = layout.tiles.unpack(layout.tiles.pack(R.permute_dims(params[0]), 4, 8), (24, n))
            b = layout.tiles.pack(params[1], 4, 8)
            codes, scales = layout.group_quantized.nk_to_kn(params[2], params[3])
            rows = R.match_cast(params[4], R.Tensor((n // 4 * 4, m // 18 * 18), "uint8"))
            c = layout.ggml.interleave(rows, rows=4, bytes=8)
            out = (a, b, codes, scales, c)
            R.output(out)
        return out


def test_in_a_script():
    """Nested, twice with other sizes, several results, and sizes that are checked at run time."""
    kernels = {gvar.name_hint for gvar in Script.get_global_vars()} - {"transform_params"}
    assert kernels == {
        "pack_4x8_tiles",
        "unpack_4x8_tiles",
        "pack_4x8_tiles_1",
        "interleave_q4_0_4x8_blocks",
    }
    run_both(Script, InplaceTransformParams()(Script), sizes={"n": 8, "m": 36})


def test_a_size_that_is_wrong_at_run_time():
    vm = relax.VirtualMachine(tvm.compile(Script, "llvm"), tvm.cpu())
    types = Script["transform_params"].params[0].ty
    weights = [tvm.runtime.tensor(x) for x in argument(types, {"n": 6, "m": 36})]
    with pytest.raises(RuntimeError, match=r"\(6 vs. 4\) .*match_cast error"):
        vm["transform_params"](weights)


def test_in_a_module():
    """nn.Tensor in, nn.Tensor out; the same kernel once for both weights."""

    class Model(nn.Module):
        def __init__(self):
            self.a = nn.Parameter((8, 16), "float16")
            self.b = nn.Parameter((8, 16), "float16")
            self.codes = nn.Parameter((64, 8), "uint32")
            self.scales = nn.Parameter((64, 2), "float16")

        def forward(self, x: nn.Tensor):
            a, b = (layout.tiles.pack(weight, 4, 8) for weight in (self.a, self.b))
            c = layout.tiles.unpack(tiles=a, shape=(8, 16))
            codes, scales = layout.group_quantized.nk_to_kn(self.codes, scales=self.scales)
            assert all(isinstance(y, nn.Tensor) for y in (a, b, c, codes, scales))
            return nn.op.matmul(x, c), b, codes, scales

    spec = {"forward": {"x": nn.spec.Tensor(["n", 8], "float16")}}
    mod, _ = Model().export_tvm(spec)
    names = {gvar.name_hint for gvar in mod.get_global_vars()}
    assert names == {"forward", "pack_4x8_tiles", "unpack_4x8_tiles"}
    vm = relax.VirtualMachine(tvm.compile(mod, "llvm"), tvm.cpu())
    generator = np.random.default_rng(0)
    arrays = [generator.integers(-4, 4, s).astype("float16") for s in [(2, 8), (8, 16), (8, 16)]]
    arrays += [np.ones((64, 8), "uint32"), np.ones((64, 2), "float16")]
    out = vm["forward"](*(tvm.runtime.tensor(x) for x in arrays))
    np.testing.assert_array_equal(out[0].numpy(), arrays[0] @ arrays[1])


def test_in_no_module():
    x = relax.Var("x", relax.TensorType((8, 16), "float16"))
    remedy = (
        "expected a module to put the kernel into; call it inside `with bb.function(...)`, in "
        "`nn.Module.forward`, or in an @R.function of an @I.ir_module"
    )
    with pytest.raises(LayoutError) as raised:
        layout.tiles.pack(x, 4, 8)
    assert str(raised.value) == (
        f"layout.tiles.pack: neither a BlockBuilder nor an @I.ir_module is active, {remedy}"
    )
    source = """
@R.function
def transform_params(x: R.Tensor((8, 16), "float16")):
    y = layout.tiles.pack(x, 4, 8)
    return y
"""
    with pytest.raises(Exception, match=r"layout\.tiles\.pack: an @R\.function in no module"):
        from_source(source, {"R": R, "layout": layout})


def test_what_is_no_tensor():
    with pytest.raises(LayoutError) as raised:
        layout.tiles.pack(np.zeros((8, 16), "float16"), 4, 8)
    assert str(raised.value) == (
        "layout.tiles.pack: a ndarray, expected a Relax expression or an nn.Tensor; a layout is "
        "part of a function that is being built, and does not convert arrays itself"
    )
    with pytest.raises(LayoutError, match=r"`weight` is R.Shape\(\[8, 16\]\), expected a tensor"):
        layout.tiles.pack(relax.ShapeExpr([8, 16]), 4, 8)
    unknown = relax.Var("x", relax.TensorType(None, "float16", ndim=2))
    with pytest.raises(LayoutError, match=r"the type of a weight has to say its shape"):
        layout.tiles.pack(unknown, 4, 8)
    unknown = relax.Var("x", relax.TensorType((8, 16), None))
    with pytest.raises(LayoutError, match=r"`weight` is None, expected a tensor \(N, K\)"):
        layout.tiles.pack(unknown, 4, 8)


# -- in place -----------------------------------------------------------------------------------


FT, GGML, GPTQ = layout.faster_transformer, layout.ggml, layout.gptq
AWQ, GROUPS, TILES = layout.awq, layout.group_quantized, layout.tiles

# A layout, and two weights of it: the tensors of each. A size `n` is symbolic.
LAYOUTS = {
    "tiles.pack": (
        lambda w: TILES.pack(w, 4, 8),
        [[((16, 32), "float16")], [((8, 24), "float16")]],
    ),
    "tiles.pack, symbolic": (lambda w: TILES.pack(w, 4, 8), [[(("n", "m"), "float16")]] * 2),
    "tiles.unpack": (
        TILES.unpack,
        [[((4, 4, 4, 8), "float16")], [((2, 3, 4, 8), "uint32")]],
    ),
    "tiles.pack_vnni": (TILES.pack_vnni, [[((6, 32), "int8")], [((8, 24), "float16")]]),
    "tiles.unpack_vnni": (TILES.unpack_vnni, [[((8, 6, 4), "int8")], [((12, 8, 2), "float16")]]),
    "ggml.interleave": (
        lambda w: GGML.interleave(w, block="q4_0", rows=8, bytes=8),
        [[((16, 36), "uint8")], [((8, 90), "uint8")]],
    ),
    "ggml.deinterleave": (
        lambda w: GGML.deinterleave(w, block="q8_0", rows=4, bytes=8),
        [[((4, 2, 136), "uint8")], [((2, 5, 136), "uint8")]],
    ),
    "ggml.interleave, scales of 6 bits": (
        lambda w: GGML.interleave(w, block="q4_K", rows=8, bytes=8),
        [[((16, 288), "uint8")], [((8, 144), "uint8")]],
    ),
    "ggml.deinterleave, scales of 6 bits": (
        lambda w: GGML.deinterleave(w, block="q5_K", rows=8, bytes=4),
        [[((1, 3, 1408), "uint8")], [((2, 2, 1408), "uint8")]],
    ),
    "ggml.interleave, experts": (
        lambda w: GGML.interleave(w, block="mxfp4", rows=4, bytes=4),
        [[((3, 8, 34), "uint8")], [((2, 4, 17), "uint8")]],
    ),
    "marlin.from_gptq": (
        layout.marlin.from_gptq,
        [[((4, 64), "int32"), ((2, 64), "float16")], [((2, 128), "int32"), ((1, 128), "float16")]],
    ),
    "marlin.from_awq": (
        lambda *w: layout.marlin.from_awq(*w, bits=8),
        [[((16, 16), "int32"), ((2, 16), "int32"), ((2, 64), "float16")]] * 2,
    ),
    "marlin.to_awq": (
        layout.marlin.to_awq,
        [[((2, 128), "int32"), ((2, 8), "int32"), ((2, 64), "float16")]] * 2,
    ),
    "block_scales.swizzle": (
        layout.block_scales.swizzle,
        [[((256, 8), "uint8")], [((128, 12), "uint8")]],
    ),
    "block_scales.unswizzle": (
        layout.block_scales.unswizzle,
        [[((2, 3, 32, 16), "uint8")], [((3, 1, 2, 32, 16), "uint8")]],
    ),
    "gate_up.interleave": (
        lambda w: layout.gate_up.interleave(w, group=8),
        [[((32, 6), "float16")], [((2, 48, 4), "float16")]],
    ),
    "faster_transformer.to_mixed_gemm": (
        FT.to_mixed_gemm,
        [[((64, 32), "int8")], [((128, 32), "int8")]],
    ),
    "faster_transformer.from_mixed_gemm": (
        lambda w: FT.from_mixed_gemm(w, arch=75, bits=8),
        [[((64, 64), "int8")], [((128, 64), "int8")]],
    ),
    "group_quantized.nk_to_kn": (
        GROUPS.nk_to_kn,
        [[((8, 8), "uint32"), ((8, 2), "float16")], [((6, 4), "uint32"), ((6, 1), "float16")]],
    ),
    "group_quantized.kn_to_nk": (
        lambda c, s: GROUPS.kn_to_nk(c, s, bits=3),
        [[((8, 8), "uint32"), ((2, 8), "float16")], [((4, 6), "uint32"), ((1, 6), "float16")]],
    ),
    "awq.to_groups": (
        AWQ.to_groups,
        [[((32, 2), "int32"), ((2, 2), "int32"), ((2, 16), "float16")]] * 2,
    ),
    "awq.from_groups": (
        AWQ.from_groups,
        [[((16, 4), "uint32"), ((2, 2), "uint32"), ((16, 2), "float16")]] * 2,
    ),
    "gptq.to_groups": (
        GPTQ.to_groups,
        [[((4, 16), "int32"), ((2, 2), "int32"), ((2, 16), "float16")]] * 2,
    ),
    "gptq.from_groups": (
        lambda *tensors: GPTQ.from_groups(*tensors, bits=8),
        [[((16, 8), "uint32"), ((4, 2), "uint32"), ((16, 2), "float16")]] * 2,
    ),
}


def transform(function, weights):
    """A module whose transform_params converts each of these weights."""
    builder = relax.BlockBuilder()
    types = types_of(*(tensor for weight in weights for tensor in weight))
    params = relax.Var("params", relax.TupleType(types))
    with builder.function("transform_params", [params]):
        with builder.dataflow():
            at, results = 0, []
            for weight in weights:
                fields = [builder.emit(params[at + i]) for i in range(len(weight))]
                at += len(weight)
                result = function(*fields)
                fields = result if isinstance(result, tuple) else [result]
                results += [builder.emit(field) for field in fields]
            out = builder.emit_output(relax.Tuple(results))
        builder.emit_func_output(out)
    return builder.finalize()


@pytest.mark.parametrize("name", LAYOUTS)
def test_one_kernel_for_each_tensor(name):
    """Which TVM takes for injective: it may fuse it."""
    function, weights = LAYOUTS[name]
    called = kernels(function, *weights[0])
    assert len(called) == len(weights[0])
    assert {pattern for _, pattern in called} == {2}  # kInjective of relax/op_attr_types.h


@pytest.mark.parametrize("name", LAYOUTS)
def test_in_place_with_one_temporary(name):
    function, weights = LAYOUTS[name]
    before = transform(function, weights)
    run = run_both(before, InplaceTransformParams()(before), sizes={"n": 8, "m": 16})
    check_slots(run)
    plan = plan_memory(before["transform_params"], before)
    if "symbolic" not in name:
        assert run.peak == plan.peak
        # Every tensor takes as many bytes as before, so the largest is one temporary.
        assert plan.peak == plan.before + max(weight.size for weight in plan.weights)
        assert plan.after == plan.before


def test_requantised_in_place():
    """Its scales are a temporary until the codes are there, too."""
    weight = [((64, 8), "uint32"), ((64, 2), "float16")]
    before = transform(layout.requantize.groups_to_columns, [weight] * 2)
    run = run_both(before, InplaceTransformParams()(before))
    plan = plan_memory(before["transform_params"], before)
    assert run.peak == plan.peak == plan.before + 64 * 32 + 64 * 2
