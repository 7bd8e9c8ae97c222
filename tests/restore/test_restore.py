"""restore=True: the function that undoes a transform, before and after; then both are run."""

import importlib.util
import re
import sys
from pathlib import Path

import live_bytes
import pytest
import tvm
import tvm_ffi
from pipelines import PIPELINES, load
from restoring import assert_restores, passed, random_bits, restored
from transforms import passed as watched
from transforms import run_both
from tvm import relax, te
from tvm.script import from_source
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from relax_inplace import layout
from relax_inplace.analysis import InverseError, UnsupportedTransformError
from relax_inplace.transform import InplaceTransformParams, LiftInplaceTransformParams

# -- before and after ---------------------------------------------------------------------------


@I.ir_module
class Plain:
    @R.function
    def transform_params(
        params: R.Tuple(R.Tensor((4, 8), "float16"), R.Tensor((6, 8), "float16")),
    ):
        w = R.permute_dims(params[0])
        v = R.permute_dims(params[1])
        return (w, v)


@I.ir_module
class PlainAfter:
    @R.function(pure=False)
    def inplace_transform_params(
        params: R.Tuple(R.Tensor((4, 8), "float16"), R.Tensor((6, 8), "float16")),
    ):
        w0 = params[0]
        w = R.permute_dims(w0)
        p0 = R.inplace_update_tuple(params, 0, w)
        w1 = p0[1]
        v = R.permute_dims(w1)
        p1 = R.inplace_update_tuple(p0, 1, v)
        return p1

    @R.function(pure=False)
    def inplace_restore_params(
        params: R.Tuple(R.Tensor((8, 4), "float16"), R.Tensor((8, 6), "float16")),
    ):
        w0 = params[0]
        w = R.permute_dims(w0)
        p0 = R.inplace_update_tuple(params, 0, w)
        w1 = p0[1]
        v = R.permute_dims(w1)
        p1 = R.inplace_update_tuple(p0, 1, v)
        return p1


def test_plain_form():
    after = InplaceTransformParams(restore=True)(Plain)
    tvm.ir.assert_structural_equal(after.without_attr("relax_inplace.param_map"), PlainAfter)


def test_without_it_nothing_changes():
    names = {gvar.name_hint for gvar in InplaceTransformParams()(Plain).get_global_vars()}
    assert names == {"inplace_transform_params"}


def test_module_is_not_changed():
    before = Fused.script()
    InplaceTransformParams(restore=True)(Fused)
    assert Fused.script() == before


def test_weights_that_may_not_be_modified():
    """The converted ones are in a tuple of their own, and so are the restored ones."""
    after = InplaceTransformParams(restore=True, params=[0])(Plain)
    restored(after, random_bits(Plain["transform_params"].params[0].ty, {}))


def test_two_transforms():
    """Of a module; their kernels are shared where they are equal."""
    one = LAYOUTS["tiles.pack"]
    both = transform([one])
    both["main_transform_params"] = relax.utils.copy_with_new_vars(
        both["transform_params"]
    ).with_attr("global_symbol", "main_transform_params")
    after = InplaceTransformParams(restore=True)(both)
    assert {gvar.name_hint for gvar in after.get_global_vars()} == {
        "inplace_transform_params",
        "inplace_restore_params",
        "main_inplace_transform_params",
        "main_inplace_restore_params",
        "pack_4x8_tiles",
        "undo_pack_4x8_tiles",
    }
    for name in ("transform_params", "main_transform_params"):
        restored(after, random_bits(both[name].params[0].ty, {}), name=name)


def test_as_many_weights_are_the_tuple_handed_in():
    vm = load(InplaceTransformParams(restore=True)(Plain))
    weights = random_bits(Plain["transform_params"].params[0].ty, {})
    params = passed(weights)
    assert vm["inplace_restore_params"](vm["inplace_transform_params"](params)).same_as(params)


def test_weights_and_one_temporary():
    after = InplaceTransformParams(restore=True)(Plain)
    types, watches = after["inplace_restore_params"].params[0].ty, []
    with live_bytes.recorded_allocations():
        with tvm.transform.PassContext(disabled_pass=["DonateStorage"]):
            restore = load(after)["inplace_restore_params"]
        params = watched(random_bits(types, {}), watches)
        peak, _ = live_bytes.peak_of(lambda: restore(params), watches)
    assert peak == 64 + 96 + 96


@I.ir_module
class Fused:
    """Two weights in one, half of it in another format, a third in two, and nested tuples."""

    @R.function
    def transform_params(
        params: R.Tuple(
            R.Tensor(("n", 8), "uint8"),
            R.Tensor((4, 8), "uint8"),
            R.Tuple(R.Tensor((6, 4), "bfloat16"), R.Tensor((3,), "float32")),
            R.Tensor((5, 2), "int8"),
            R.Tensor((5, 2), "int8"),
        ),
    ):
        n = T.int64()
        with R.dataflow():
            qk = R.concat((params[0], params[1]))
            flipped = R.bitwise_xor(R.permute_dims(qk), R.const(0x88, "uint8"))
            nested = params[2]
            parts = R.split(R.flip(nested[0], axis=0), [1, 2], axis=1)
            wide = R.astype(parts[1], "float32")
            both = R.stack((params[3], R.bitwise_not(params[4])), axis=1)
            shown = R.shape([n])
            out = (
                flipped,
                (parts[0], wide),
                R.squeeze(R.expand_dims(both, 0), 0),
                nested[1],
                parts[2],
                shown,
            )
            R.output(out)
        return out


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_fused(pipeline):
    assert_restores(Fused, pipeline, {"n": 3})


@I.ir_module
class Kernels:
    """A kernel of a user: rows in blocks, with 32-bit indices; and the same for a symbolic size."""

    @T.prim_func(private=True, s_tir=True)
    def blocked(w: T.Buffer((6, 8), "float32"), blocks: T.Buffer((3, 8, 2), "float32")):
        for i, j in T.grid(6, 8):
            with T.sblock("blocked"):
                row, column = T.axis.remap("SS", [i, j])
                blocks[row // 2, column, row % 2] = w[row, column]

    @T.prim_func(private=True, s_tir=True)
    def turned(a: T.handle, b: T.handle):
        n = T.int64()
        w = T.match_buffer(a, (n, T.int64(4)), "int8")
        out = T.match_buffer(b, (T.int64(4), n), "uint8")
        for i, j in T.grid(T.int64(4), n):
            with T.sblock("turned"):
                row, column = T.axis.remap("SS", [i, j])
                out[row, column] = T.Cast("uint8", w[n - T.int64(1) - column, row])

    @R.function(private=True)
    def twice(x: R.Tensor((6, 8), "float32")) -> R.Tensor((8, 6), "float32"):
        y = R.permute_dims(x)
        return y

    @R.function
    def main_transform_params(
        sizes: R.Shape(["n"]),
        w: R.Tensor((6, 8), "float32"),
        v: R.Tensor(("n", 4), "int8"),
        u: R.Tensor((6, 8), "float32"),
    ):
        R.func_attr({"num_input": 1})
        n = T.int64()
        cls = Kernels
        a = R.call_tir(cls.blocked, (w,), out_ty=R.Tensor((3, 8, 2), "float32"))
        b = R.call_tir(cls.turned, (v,), out_ty=R.Tensor((4, n), "uint8"))
        c = cls.twice(u)
        return (a, b, c)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_kernels(pipeline):
    name = "main_transform_params"
    after, _ = assert_restores(Kernels, pipeline, {"n": 5}, name, [tvm_ffi.Shape([5])])
    names = {gvar.name_hint for gvar in after.get_global_vars()}
    assert names >= {"main_inplace_restore_params", "undo_blocked", "undo_turned"}


def test_the_last_step_of_a_kernel_is_undone_first():
    assert_restores(
        from_source("""
@I.ir_module
class Module:
    @T.prim_func(private=True, s_tir=True)
    def widen(w: T.Buffer((4, 6), "int8"), out: T.Buffer((4, 6), "int32")):
        for i, j in T.grid(4, 6):
            with T.sblock("widen"):
                vi, vj = T.axis.remap("SS", [i, j])
                out[vi, vj] = T.bitwise_xor(T.Cast("int32", w[vi, vj]), 300)

    @R.function
    def transform_params(params: R.Tuple(R.Tensor((4, 6), "int8"))):
        w = R.call_tir(Module.widen, (params[0],), out_ty=R.Tensor((4, 6), "int32"))
        return (w,)
""")
    )


def test_after_legalize_ops():
    before = relax.transform.LegalizeOps()(Plain)
    assert_restores(before)


# -- layouts ------------------------------------------------------------------------------------


FT, GGML, GPTQ = layout.faster_transformer, layout.ggml, layout.gptq
AWQ, GROUPS, TILES = layout.awq, layout.group_quantized, layout.tiles

LAYOUTS = {
    "tiles.pack": (lambda w: TILES.pack(w, 4, 8), [((7, 30), "bfloat16")]),
    "tiles.pack, symbolic": (lambda w: TILES.pack(w, 4, 8), [(("n", "m"), "float16")]),
    "tiles.unpack": (TILES.unpack, [((4, 3, 4, 8), "float16")]),
    "tiles.pack_vnni": (TILES.pack_vnni, [(("n", 8), "int8")]),
    "tiles.unpack_vnni": (TILES.unpack_vnni, [((2, "n", 2), "float16")]),
    "group_quantized.nk_to_kn": (
        lambda *tensors: GROUPS.nk_to_kn(*tensors, bits=3),
        [((6, 8), "uint32"), ((6, 2), "float16")],
    ),
    "group_quantized.kn_to_nk": (GROUPS.kn_to_nk, [((8, 6), "uint32"), ((2, 6), "float16")]),
    "gptq.to_groups": (
        lambda *tensors: GPTQ.to_groups(*tensors, bits=8),
        [((4, 16), "int32"), ((2, 4), "uint32"), ((2, 16), "float16")],
    ),
    "gptq.from_groups": (
        GPTQ.from_groups,
        [((16, 4), "uint32"), ((2, 2), "uint32"), ((16, 2), "float16")],
    ),
    "awq.to_groups": (
        AWQ.to_groups,
        [((32, 2), "int32"), ((3, 2), "uint32"), ((3, 16), "float16")],
    ),
    "awq.from_groups": (
        AWQ.from_groups,
        [((16, 4), "uint32"), ((2, 3), "uint32"), ((16, 3), "float16")],
    ),
}
for block, size in (("q4_0", 18), ("q8_0", 34)):
    for rows, bytes_ in ((4, 4), (4, 8), (8, 8)) if block == "q4_0" else ((4, 4), (4, 8)):
        options = {"block": block, "rows": rows, "bytes": bytes_}
        LAYOUTS[f"ggml.interleave {block} {rows}x{bytes_}"] = (
            lambda w, options=options: GGML.interleave(w, **options),
            [((8, 2 * size), "uint8")],
        )
        LAYOUTS[f"ggml.deinterleave {block} {rows}x{bytes_}"] = (
            lambda w, options=options: GGML.deinterleave(w, **options),
            [((2, 3, rows * size), "uint8")],
        )
for arch in (70, 75, 90):
    for bits in (4, 8):
        options = {"arch": arch, "bits": bits}
        for way in ("to", "from"):
            LAYOUTS[f"faster_transformer.{way}_mixed_gemm {bits} {arch}"] = (
                lambda w, options=options, way=way: getattr(FT, f"{way}_mixed_gemm")(w, **options),
                [((64, 64 * bits // 8), "int8")],
            )


def transform(layouts):
    """A module that applies them all, and keeps what shows the symbolic sizes."""
    builder, symbols, types = relax.BlockBuilder(), {}, []
    for _, tensors in layouts:
        for shape, dtype in tensors:
            dims = [
                d if isinstance(d, int) else symbols.setdefault(d, tvm.tirx.Var(d, "int64"))
                for d in shape
            ]
            types.append(relax.TensorType(dims, dtype))
    params = relax.Var("params", relax.TupleType(types))
    with builder.function("transform_params", [params]):
        with builder.dataflow():
            at, results = 0, []
            for function, tensors in layouts:
                fields = [builder.emit(params[at + i]) for i in range(len(tensors))]
                at += len(tensors)
                result = function(*fields)
                results += result if isinstance(result, tuple) else [result]
            if symbols:
                results.append(relax.ShapeExpr(list(symbols.values())))
            out = builder.emit_output(relax.Tuple([builder.emit(one) for one in results]))
        builder.emit_func_output(out)
    return builder.finalize()


@I.ir_module
class AnySize:
    """Kernels that are called with sizes, as these cannot be read off their tensors."""

    @R.function
    def transform_params(
        sizes: R.Shape(["n", "m"]),
        params: R.Tuple(
            R.Tensor(("n * 8", "m * 36"), "uint8"),
            R.Tensor(("n * 8", "m * 2"), "int32"),
            R.Tensor(("n * 64", "m * 32"), "int8"),
            R.Tensor(("n * 3", "m * 2"), "float16"),
            R.Tensor(("n", "m * 2"), "int32"),
            R.Tensor(("n", "m * 16"), "float16"),
        ),
    ):
        R.func_attr({"num_input": 1})
        n = T.int64()
        m = T.int64()
        a = AWQ.to_groups(params[1], params[4], params[5])
        b = GGML.interleave(params[0], rows=4, bytes=8)
        c = FT.to_mixed_gemm(params[2], arch=80)
        d = TILES.pack(params[3], 2, 8)
        return (a[0], a[1], a[2], b, c, d)


@pytest.mark.parametrize("pipeline", ["compile", "cpu default"])
def test_layouts_of_any_size(pipeline):
    assert_restores(AnySize, pipeline, {"n": 2, "m": 3}, inputs=[tvm_ffi.Shape([2, 3])])


def test_every_layout():
    """In one module, as a checkpoint of many weights would be."""
    assert_restores(transform(LAYOUTS.values()), sizes={"n": 6, "m": 11})


@pytest.mark.parametrize("pipeline", sorted(set(PIPELINES) - {"compile"}))
def test_layouts_of_each_kind(pipeline):
    names = ["tiles.pack, symbolic", "awq.to_groups", "gptq.to_groups", "ggml.interleave q4_0 8x8"]
    names += ["faster_transformer.to_mixed_gemm 4 90"]
    assert_restores(transform([LAYOUTS[name] for name in names]), pipeline, {"n": 6, "m": 11})


def test_kernels_that_are_printed_and_parsed():
    before = transform([LAYOUTS["awq.to_groups"], LAYOUTS["ggml.interleave q4_0 8x8"]])
    assert_restores(from_source(before.script(show_meta=True)))
    assert_restores(tvm.ir.load_json(tvm.ir.save_json(before)))


def test_equal_layouts_are_one_kernel():
    one = LAYOUTS["ggml.interleave q4_0 8x8"]
    names = {gvar.name_hint for gvar in transform([one, one]).get_global_vars()}
    assert names == {"transform_params", "interleave_q4_0_8x8_blocks"}


FLOAT8 = ["float8_e3m4", "float8_e4m3", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"]


def filled_up(dtype, how, first=lambda weight: weight):
    """Of a weight of 2 x 3 elements: a column more, or blocks of 2 columns; where none is, a 1."""
    builder = relax.BlockBuilder()
    params = relax.Var("params", relax.TupleType([relax.TensorType((2, 3), dtype)]))
    with builder.function("transform_params", [params]):
        with builder.dataflow():
            weight = builder.emit(first(builder.emit(params[0])))
            if how == "pad":
                made = relax.op.nn.pad(weight, (0, 0, 0, 1), pad_value=1.0)
            else:
                one = tvm.tirx.FloatImm(dtype, 1.0)
                made = relax.op.layout_transform(weight, lambda i, j: (j // 2, i, j % 2), one)
            out = builder.emit_output(relax.Tuple([builder.emit(made)]))
        builder.emit_func_output(out)
    return builder.finalize()


@pytest.mark.parametrize("dtype", FLOAT8)
def test_float8_padding(dtype):
    assert_restores(filled_up(dtype, "pad"))


@pytest.mark.parametrize("dtype", FLOAT8)
def test_float8_blocks_that_are_filled_up(dtype):
    """TVM's schedule of R.layout_transform takes no value for them: out of place, too."""
    before = filled_up(dtype, "blocks")
    for mod in (before, InplaceTransformParams()(before)):
        with pytest.raises(tvm.s_tir.ScheduleError, match="fills padding with"):
            load(mod)
    with pytest.raises(InverseError) as raised:
        InplaceTransformParams(restore=True)(before)
    assert str(raised.value) == (
        "function `transform_params` cannot be undone: 1 of 1 weights cannot be restored: "
        "`params[0]` "
        "(`layout_transform` has no inverse)"
    )


@pytest.mark.parametrize("options", [{}, {"lazy": True}, {"memory_limit": 100}])
def test_what_tvm_cannot_lower_is_not_lowered_ahead(options):
    """Whoever compiles it may give it a meaning that TVM's LegalizeOps does not know."""
    before = filled_up("float8_e4m3fn", "blocks", lambda weight: relax.op.flip(weight, 0))
    after = InplaceTransformParams(**options)(before)
    meaning = {"relax.layout_transform": lambda builder, call: builder.call_te(_blocks, *call.args)}
    run_both(
        *(relax.transform.LegalizeOps(meaning)(mod) for mod in (before, after)),
        streamed="lazy" in options,
    )


def _blocks(x):
    return te.compute((2, 2, 2), lambda b, i, j: x[i, b])


def test_requantised_weights_are_lost():
    tensors = [((64, 8), "uint32"), ((64, 2), "float16")]
    before = transform([(layout.requantize.groups_to_columns, tensors)])
    with pytest.raises(InverseError) as raised:
        InplaceTransformParams(restore=True)(before)
    because = "`requantize_to_columns` computes new numbers, with an index"
    assert raised.value.weights == {"params[0]": because, "params[1]": because}
    assert str(raised.value) == (
        "function `transform_params` cannot be undone: 2 of 2 weights cannot be restored: "
        f"`params[0]`, `params[1]` ({because})"
    )


# -- models -------------------------------------------------------------------------------------


def decoder():
    path = Path(__file__).resolve().parents[2] / "examples" / "decoder.py"
    spec = importlib.util.spec_from_file_location("decoder", path)
    module = sys.modules["decoder"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def only(mod, *names):
    """These functions, and what they call."""
    functions = {mod.get_global_var(name): mod[name] for name in names}
    for function in list(functions.values()):
        functions.update((gvar, mod[gvar]) for gvar in relax.analysis.all_global_vars(function))
    return tvm.IRModule(functions)


@pytest.mark.parametrize("target", ["kn", "tiles"])
def test_decoder(target):
    example = decoder()
    mod = LiftInplaceTransformParams(restore=True)(example.decoder(example.SMALL, target))
    transforms = only(mod, "inplace_transform_params", "inplace_restore_params")
    types = mod["inplace_transform_params"].params[0].ty
    assert len(types.fields) == 37
    restored(transforms, random_bits(types, {}))


def test_decoder_requantised():
    example = decoder()
    with pytest.raises(InverseError) as raised:
        LiftInplaceTransformParams(restore=True)(example.decoder(example.SMALL, "ft"))
    assert len(raised.value.weights) == 30
    because = re.compile(r"`requantize_to_columns\d*` computes new numbers, with an index")
    assert all(because.fullmatch(reason) for reason in raised.value.weights.values())
    assert str(raised.value).startswith(
        "function `inplace_transform_params` cannot be undone: 30 of 37 weights cannot be "
        "restored: `layers_0_attention_q_proj_q_weight`, `layers_0_attention_q_proj_q_scale`, "
    )


@I.ir_module
class Model:
    @R.function
    def main(
        x: R.Tensor((2, 8), "float32"),
        params: R.Tuple(
            R.Tensor((4, 8), "float32"), R.Tensor((8, 4), "float32"), R.Tensor((4, 8), "float32")
        ),
    ):
        y = R.matmul(x, R.permute_dims(params[0]))
        z = R.matmul(y, R.permute_dims(params[1]))
        v = R.matmul(z, R.permute_dims(params[2]))
        return v


def test_tied_weights():
    """One tensor stands for both, also when they are restored."""
    after = LiftInplaceTransformParams(restore=True, tied=[(0, 2)])(Model)
    weights = random_bits(Model["main"].params[1].ty, {})
    weights[2] = weights[0]
    seen = restored(only(after, "inplace_transform_params", "inplace_restore_params"), weights)
    assert [field.shape for field in seen] == [(8, 4), (4, 8)]


def test_a_weight_that_nothing_needs():
    source = Model.script().replace("params[2]", "params[0]")
    with pytest.raises(InverseError) as raised:
        LiftInplaceTransformParams(restore=True)(from_source(source))
    assert str(raised.value) == (
        "function `inplace_transform_params` cannot be undone: 1 of 3 weights cannot be restored: "
        "`params[2]` (nothing that is made from it is kept)"
    )


def test_lifted_twice_stays():
    once = LiftInplaceTransformParams(restore=True)(Model)
    tvm.ir.assert_structural_equal(LiftInplaceTransformParams(restore=True)(once), once)


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("create", [InplaceTransformParams, LiftInplaceTransformParams])
def test_streamed(create):
    with pytest.raises(ValueError) as raised:
        create(lazy=True, restore=True)
    assert str(raised.value) == (
        f"{create.__name__}: restore=True makes the original weights of converted ones where they "
        "are, but with lazy=True the function has never held them; run the pass once more, without "
        "lazy, for a module that restores"
    )


def test_its_name_is_taken():
    both = Plain.clone()
    both["inplace_restore_params"] = Model["main"].with_attr(
        "global_symbol", "inplace_restore_params"
    )
    with pytest.raises(UnsupportedTransformError) as raised:
        InplaceTransformParams(restore=True)(both)
    assert str(raised.value) == (
        "function `transform_params` cannot be transformed in place: restore=True: the module has "
        "a `inplace_restore_params` already"
    )


def test_not_strict():
    """The transform is rewritten, and a warning says why nothing restores its weights."""
    source = Plain.script().replace(
        '"float16") = R.permute_dims(gv2', '"float16") = R.permute_dims(R.exp(gv2)'
    )
    before = from_source(source)
    with pytest.warns(UserWarning) as warned:
        after = InplaceTransformParams(restore=True, strict=False)(before)
    assert str(warned[0].message) == (
        "function `transform_params` cannot be undone: 1 of 2 weights cannot be restored: "
        "`params[1]` (`exp` has no inverse); no function restores it"
    )
    assert {gvar.name_hint for gvar in after.get_global_vars()} == {"inplace_transform_params"}


def test_tiles_of_one_row_whose_length_is_symbolic():
    """What unpacks them reads two elements for each that it writes, of as many as there are."""
    builder = relax.BlockBuilder()
    n = tvm.tirx.Var("n", "int64")
    types = [relax.TensorType((1, n), "int8"), relax.TensorType((n,), "int8")]
    params = relax.Var("params", relax.TupleType(types))
    with builder.function("transform_params", [params]):
        with builder.dataflow():
            tiles = builder.emit(layout.tiles.pack(params[0], 2, 1))
            out = builder.emit_output(relax.Tuple([tiles, params[1]]))
        builder.emit_func_output(out)
    assert_restores(builder.finalize(), sizes={"n": 7})
