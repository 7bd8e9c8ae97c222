"""StoredLayout: linear layers that store another layout than they compute with.

Before and after, as TVMScript and as numbers; the attributes of parameters; MLC-LLM's quantised layers
by what they look like; what is refused, and then nothing has changed.
"""

import copy
import dataclasses
import functools

import numpy as np
import pytest
import tvm
import tvm_ffi
from tvm import relax, te, tirx
from tvm.relax.frontend import nn
from tvm.script import ir as I
from tvm.script import relax as R

from relax_inplace import layout
from relax_inplace.analysis import explain_lift
from relax_inplace.layout import LayoutError, StoredLayout
from relax_inplace.layout._sharding import axis_of_parts
from relax_inplace.transform import LiftInplaceTransformParams


class Model(nn.Module):
    def __init__(self, symbolic=False):
        self.first = nn.Linear(64, 32, bias=False, dtype="float32")
        self.layers = nn.ModuleList(
            [nn.Linear(32, 32, bias=True, dtype="float32") for _ in range(2)]
        )
        self.head = nn.Linear(32, "n" if symbolic else 48, bias=False, dtype="float32")
        self.norm = nn.RMSNorm(32, -1, bias=False, dtype="float32")

    def decode(self, x: nn.Tensor):
        x = self.first(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def spec(width=64, dtype="float32"):
    modes = {"param_mode": "packed", "effect_mode": "none"}
    return {"decode": {"x": nn.spec.Tensor([1, width], dtype), "$": modes}}


def transposed(**options):
    def permute(w):
        return nn.op.permute_dims(w)

    return StoredLayout(stored=permute, used=permute, **options)


def tiled(**options):
    pack = functools.partial(layout.tiles.pack, rows=8, columns=16)
    return StoredLayout(stored=pack, used=layout.tiles.unpack, **options)


def shapes(model):
    return {name: param.shape for name, param in model.named_parameters()}


# -- before and after -----------------------------------------------------------------------------


class Two(nn.Module):
    def __init__(self):
        self.a = nn.Linear(8, 4, bias=False, dtype="float32")
        self.b = nn.Linear(4, 4, bias=False, dtype="float32")

    def decode(self, x: nn.Tensor):
        return self.b(self.a(x))


@I.ir_module
class TwoAfter:
    @R.function
    def decode(
        x: R.Tensor((1, 8), "float32"),
        params: R.Tuple(R.Tensor((8, 4), "float32"), R.Tensor((4, 4), "float32")),
    ):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            a = params[0]
            b = params[1]
            used = R.permute_dims(a)
            w = R.lift_param(used)
            y = R.matmul(x, R.permute_dims(w))
            z = R.matmul(y, R.permute_dims(b))
            out = z
            R.output(out)
        return out


def test_before_and_after():
    model = transposed(layers="a").visit("", Two())
    mod, params = model.export_tvm(spec(8))
    tvm.ir.assert_structural_equal(mod, TwoAfter)
    assert [name for name, _ in params] == ["a.weight", "b.weight"]
    assert model.a.weight.shape == [8, 4]  # it was that of the weight in forward only
    assert isinstance(model.a, nn.Linear)
    assert type(model.b) is nn.Linear


@pytest.mark.parametrize("make", [transposed, tiled])
def test_what_is_stored_is_converted_and_then_the_model_is_as_it_was(make):
    """In numbers: a checkpoint of the plain model, laid out, gives what the plain model gives."""
    generator = np.random.default_rng(0)
    plain, _ = Model().export_tvm(spec())
    weights = {
        name: generator.standard_normal(shape).astype("float32")
        for name, shape in shapes(Model()).items()
    }
    mutator = make(layers=["first", "layers.*"])
    model = mutator.visit("", Model())
    exported, _ = model.export_tvm(spec())
    stored = {
        name: run(mutator.stored, [w])[0]
        if name.split(".")[0] in ("first", "layers") and w.ndim > 1
        else w
        for name, w in weights.items()
    }
    assert {name: list(w.shape) for name, w in stored.items()} == shapes(model)
    x = tvm.runtime.tensor(generator.standard_normal((1, 64)).astype("float32"))
    expected = vm_of(plain)["decode"](x, tensors(weights.values())).numpy()
    without = vm_of(exported)["decode"](x, tensors(stored.values())).numpy()
    np.testing.assert_array_equal(without, expected)
    lifted = LiftInplaceTransformParams()(exported)
    assert [one.done != "" for one in explain_lift(exported).weights] == [
        name in ("first.weight", "layers.0.weight", "layers.1.weight") for name in weights
    ]
    vm = vm_of(lifted)
    converted = vm["inplace_transform_params"](tensors(stored.values()))
    for field, weight in zip(converted, weights.values(), strict=True):
        np.testing.assert_array_equal(field.numpy(), weight)
    np.testing.assert_array_equal(vm["decode"](x, converted).numpy(), expected)


def vm_of(mod):
    return relax.VirtualMachine(tvm.compile(mod, "llvm"), tvm.cpu())


def tensors(arrays):
    return tvm_ffi.Array([tvm.runtime.tensor(one) for one in arrays])


def run(function, arrays):
    """What a layout makes of arrays."""
    types = [relax.TensorType(one.shape, str(one.dtype)) for one in arrays]
    made = StoredLayout(stored=function, used=function)._made_of(function, types)
    return [one.numpy() for one in vm_of(made.mod)["main"](*map(tvm.runtime.tensor, arrays))]


def test_a_copy_converts_its_own_parameters():
    model = transposed(layers="first").visit("", Model())
    other = copy.deepcopy(model)
    assert other.first.weight is not model.first.weight
    tvm.ir.assert_structural_equal(other.export_tvm(spec())[0], model.export_tvm(spec())[0])


def test_one_layout_after_another():
    """The last one is what is stored."""
    model = tiled(layers="first").visit("", transposed(layers="first").visit("", Model()))
    assert model.first.weight.shape == [8, 2, 8, 16]
    (first, *_) = explain_lift(model.export_tvm(spec())[0]).weights
    assert first.done.startswith("permute_dims(unpack_8x16_tiles(first")


def test_a_symbolic_size_stays_one():
    model = transposed(layers="head").visit("", Model(symbolic=True))
    assert [str(size) for size in model.head.weight.shape] == ["32", "n"]
    mod, _ = model.export_tvm(spec())
    relax.analysis.well_formed(LiftInplaceTransformParams()(mod))


# -- which layers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "changed"),
    [
        (None, ["first", "layers.0", "layers.1", "head"]),
        ("layers.1", ["layers.1"]),
        (["first", "layers.*"], ["first", "layers.0", "layers.1"]),
        (lambda name, module: module.out_features == 48, ["head"]),
    ],
)
def test_the_layers_that_are_meant(layers, changed):
    model = tiled(layers=layers).visit("", Model())
    found = [name for name, shape in shapes(model).items() if len(shape) == 4]
    assert found == [f"{name}.weight" for name in changed]


def test_names_begin_with_the_one_given():
    model = tiled(layers="model.first").visit("model", Model())
    assert len(model.first.weight.shape) == 4


def test_a_layer_by_itself():
    layer = transposed().visit("", nn.Linear(8, 4, bias=False, dtype="float32"))
    assert layer.weight.shape == [8, 4]


def test_a_parameter_that_layers_share_stays_shared():
    model = Two()
    model.b = nn.Linear(8, 4, bias=False, dtype="float32")
    model.b.weight = model.a.weight
    transposed().visit("", model)
    assert model.a.weight is model.b.weight
    assert model.a.weight.shape == [8, 4]


# -- attributes of parameters ---------------------------------------------------------------------


@dataclasses.dataclass
class Shard:
    """A strategy of MLC-LLM's kind."""

    name: str
    dim: int
    segs: list | None = None


def test_all_attributes_stay():
    class Own(nn.Parameter):
        pass

    model = Model()
    param = Own((32, 64), "float32")
    param.attrs["pipeline_stages"] = [1]
    param.attrs["mine"] = given = object()
    param.note = "kept"
    model.first.weight = param
    transposed(layers="first").visit("", model)
    new = model.first.weight
    assert new is not param
    assert (type(new), new.note, new.shape, new.dtype) == (Own, "kept", [64, 32], "float32")
    assert dict(new.attrs) == {"pipeline_stages": [1], "mine": given}
    assert param.shape == [32, 64]
    new.attrs["other"] = 1
    assert "other" not in param.attrs


def test_a_shard_strategy_is_that_of_the_stored_axis():
    model = Model()
    for name, dim, segs in [("first", 0, [16, 16]), ("head", 1, None), ("layers", 0, [8, 24])]:
        layer = model.layers[0] if name == "layers" else getattr(model, name)
        layer.weight.attrs["shard_strategy"] = Shard(f"shard_{name}", dim, segs)
    transposed(layers=["first", "head"]).visit("", model)
    tiled(layers="layers.*").visit("", model)
    assert model.first.weight.attrs["shard_strategy"] == Shard(
        "shard_first_64x32_dim1", 1, [16, 16]
    )
    assert model.head.weight.attrs["shard_strategy"] == Shard("shard_head_32x48_dim0", 0)
    # A row of tiles has 8 rows.
    assert model.layers[0].weight.attrs["shard_strategy"] == Shard(
        "shard_layers_4x2x8x16_dim0", 0, [1, 3]
    )


def _in_two_orders(w):
    """Of each half of the rows the two halves in turn."""
    half = int(w.shape[0]) // 2
    rows = lambda i: i // half * half + i % 2 * (half // 2) + i % half // 2  # noqa: E731
    return te.compute(w.shape, lambda i, j: w[rows(i), j])


CUT = {
    # A layout, the types of what it takes; the axis of each result that has the parts of each axis.
    "permute": (lambda w: nn.op.permute_dims(w), [((6, 8), "float16")], [[1, 0]]),
    "permute of three": (
        lambda w: nn.op.permute_dims(w, [1, 2, 0]),
        [((2, 4, 6), "int8")],
        [[2, 0, 1]],
    ),
    "nothing": (lambda w: w, [((4, 6), "float32")], [[0, 1]]),
    "flat": (
        lambda w: nn.op.reshape(w, (w.shape[0] * w.shape[1],)),
        [((4, 6), "float32")],
        [[0, None]],
    ),
    "tiles": (
        lambda w: layout.tiles.pack(w, 8, 16),
        [((8, 16), "float32")],  # one tile
        [[0, 1]],
    ),
    "tiles that are filled up": (
        lambda w: layout.tiles.pack(w, 8, 16),
        [((8, 9), "int8")],
        [[None, None]],
    ),
    "vnni": (layout.tiles.pack_vnni, [((6, 8), "int8")], [[1, 0]]),
    "groups": (
        layout.group_quantized.nk_to_kn,
        [((8, 8), "uint32"), ((8, 2), "float16")],
        [[1, 0], [1, 0]],
    ),
    "ggml": (
        lambda w: layout.ggml.interleave(w, block="q4_0", rows=4, bytes=4),
        [((8, 36), "uint8")],
        [[0, 1]],
    ),
    # Rows of both in turn: halves of all are not halves of both.
    "gate and up": (
        lambda w: layout.gate_up.interleave(w, group=8),
        [((32, 4), "float16")],
        [[None, 1]],
    ),
    # Each half stays where it is; inside of it rows lie as its length says.
    "rows in two orders": (
        lambda w: nn.op.tensor_expr_op(_in_two_orders, "in_two_orders", [w]),
        [((16, 4), "float16")],
        [[None, 1]],
    ),
    # Two axes grow.
    "square": (
        lambda w: nn.op.reshape(w, (8, 1) if int(w.shape[0]) == 8 else (4, 4)),
        [((8,), "float16")],
        [[None]],
    ),
}


@pytest.mark.parametrize("name", CUT)
def test_the_axis_that_has_the_parts(name):
    """And it has them: the layout of a whole is cut into the layouts of its parts."""
    function, given, axes = CUT[name]
    mutator = StoredLayout(stored=function, used=function)
    types = [relax.TensorType(*one) for one in given]
    made = mutator._made_of(function, types)
    for axis in range(len(given[0][0])):
        longer = [_twice(one, axis) for one in given]
        try:
            doubled = mutator._made_of(function, [relax.TensorType(*one) for one in longer])
        except LayoutError:
            doubled = None
        for index in range(len(given)):
            found = doubled and axis_of_parts(made, doubled, index, types[index], axis)
            assert (found[0] if found else None) == axes[index][axis]
        if not all(one[axis] is not None for one in axes):
            continue
        generator = np.random.default_rng(0)
        wholes = [generator.integers(0, 100, shape).astype(dtype) for shape, dtype in longer]
        results = run(function, wholes)
        halves = [np.split(whole, 2, axis) for whole in wholes]
        for part in range(2):
            parts = run(function, [half[part] for half in halves])
            for index, (result, one) in enumerate(zip(results, parts, strict=True)):
                np.testing.assert_array_equal(np.split(result, 2, axes[index][axis])[part], one)


def _twice(one, axis):
    shape, dtype = one
    return tuple(size * 2 if i == axis else size for i, size in enumerate(shape)), dtype


# -- MLC-LLM's quantised layers, by what they look like -------------------------------------------


@dataclasses.dataclass
class Config:
    linear_weight_layout: str


class GroupLinear(nn.Module):
    """Codes of 4 bits, with a scale for each 32 along K: in the parameters and names of MLC-LLM's."""

    def __init__(self, k, n, order):
        self.in_features, self.out_features = k, n
        self.config = Config(order)
        sizes = [(n, k // 8), (n, k // 32)]
        codes, scales = sizes if order == "NK" else [one[::-1] for one in sizes]
        self.q_weight = nn.Parameter(codes, "uint32")
        self.q_scale = nn.Parameter(scales, "float16")
        self.bias = None
        for name, param in (("q_weight", self.q_weight), ("q_scale", self.q_scale)):
            # As from_linear does it: of the N x K weight, whatever the order is.
            param.attrs["shard_strategy"] = Shard(f"qkv_{name}", 0, [n // 2, n // 2])

    def forward(self, x: nn.Tensor):
        axis = 1 if self.config.linear_weight_layout == "NK" else 0

        def number(codes, scales):
            shape = [size * 8 if i == axis else size for i, size in enumerate(codes.shape)]

            def element(i, j):
                along = (i, j)[axis]
                word = codes[(i, j // 8) if axis else (i // 8, j)]
                code = word >> (along % 8 * 4).astype("uint32") & tirx.const(15, "uint32")
                scale = scales[(i, j // 32) if axis else (i // 32, j)]
                return (code.astype("float16") - tirx.const(7, "float16")) * scale

            return tvm.te.compute(shape, element, "dequantize")

        w = nn.op.tensor_expr_op(number, "dequantize", [self.q_weight, self.q_scale])
        return nn.op.matmul(x, nn.op.permute_dims(w) if axis else w)

    def to(self, dtype=None):
        self.q_weight.to(dtype=dtype)
        self.q_scale.to(dtype=dtype)


class Quantised(nn.Module):
    def __init__(self, order):
        self.mlp = GroupLinear(64, 32, order)
        self.embed = nn.Embedding(8, 64, dtype="float16")

    def decode(self, x: nn.Tensor):
        return self.mlp(x)


def kn_to_nk(**options):
    groups = layout.group_quantized
    return StoredLayout(stored=groups.kn_to_nk, used=groups.nk_to_kn, **options)


def test_a_quantised_layer_of_k_x_n_is_stored_n_x_k():
    """q4f16_0 is computed with, and a checkpoint of q4f16_1 is what is loaded."""
    model = kn_to_nk().visit("", Quantised("KN"))
    assert model.mlp.q_weight.shape == [32, 8]
    assert model.mlp.q_scale.shape == [32, 2]
    # Of the N x K weight it is axis 0, in MLC-LLM's two orders.
    assert model.mlp.q_weight.attrs["shard_strategy"] == Shard(
        "qkv_q_weight_32x8_dim0", 0, [16, 16]
    )
    mod, _ = model.export_tvm(spec(64, "float16"))
    generator = np.random.default_rng(0)
    codes = generator.integers(0, 2**32, (32, 8), dtype="uint32")
    scales = generator.standard_normal((32, 2)).astype("float16")
    table = np.zeros((8, 64), "float16")
    x = tvm.runtime.tensor(generator.standard_normal((1, 64)).astype("float16"))
    plain, _ = Quantised("KN").export_tvm(spec(64, "float16"))
    expected = vm_of(plain)["decode"](x, tensors([codes.T.copy(), scales.T.copy(), table]))
    vm = vm_of(LiftInplaceTransformParams()(mod))
    converted = vm["inplace_transform_params"](tensors([codes, scales, table]))
    np.testing.assert_array_equal(converted[0].numpy(), codes.T)
    np.testing.assert_array_equal(vm["decode"](x, converted).numpy(), expected.numpy())


def test_a_quantised_layer_of_n_x_k_is_stored_k_x_n():
    groups = layout.group_quantized
    model = StoredLayout(stored=groups.nk_to_kn, used=groups.kn_to_nk).visit("", Quantised("NK"))
    assert model.mlp.q_weight.shape == [8, 32]
    assert model.mlp.q_scale.attrs["shard_strategy"] == Shard("qkv_q_scale_2x32_dim1", 1, [16, 16])


# -- what is refused ------------------------------------------------------------------------------


def _bound(model):
    model.first.weight.data = np.zeros((32, 64), "float32")


def _preprocs(model):
    model.first.weight.attrs["preprocs"] = [{"func_name": "shard"}]


def _tied(model):
    model.tied = nn.Embedding(32, 64, dtype="float32")
    model.tied.weight = model.first.weight


def _in_a_list(model):
    model.every = nn.ParameterList([model.first.weight])


def _sharded(model):
    model.first.weight.attrs["shard_strategy"] = Shard("s", 0, [4, 28])


def _other_strategy(model):
    model.first.weight.attrs["shard_strategy"] = object()


def _subroutine(model):
    model.first.define_subroutine = True


REFUSED = {
    "no such layer": (tiled(layers="frist"), lambda model: None, "'frist'.*`first`"),
    "no such parameters": (tiled(params=["weigth"]), lambda model: None, "params="),
    "another number": (
        StoredLayout(stored=lambda w: (w, w), used=lambda w: w),
        lambda model: None,
        "`stored` makes 2 tensors",
    ),
    "no way back": (
        StoredLayout(stored=lambda w: layout.tiles.pack(w, 8, 16), used=lambda w: w),
        lambda model: None,
        r"\(4, 4, 8, 16\).*`first.weight`, expected \(32, 64\)",
    ),
    "what the layout refuses": (
        StoredLayout(stored=layout.tiles.pack_vnni, used=layout.tiles.unpack_vnni),
        lambda model: None,
        "tiles.pack_vnni: .*float32, of layer `first`",
    ),
    "data": (tiled(), _bound, "bound to data"),
    "preprocs": (tiled(), _preprocs, "has preprocs"),
    "tied to a table": (tiled(), _tied, "same parameter as `tied.weight`"),
    "in a list": (tiled(), _in_a_list, "same parameter as `every.0`"),
    "segments that are cut": (tiled(), _sharded, "multiples of 8"),
    "an unknown strategy": (tiled(), _other_strategy, "no `dim`"),
    "a subroutine": (tiled(), _subroutine, "define_subroutine"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_and_then_nothing_has_changed(name):
    mutator, prepare, message = REFUSED[name]
    model = Model()
    prepare(model)
    before = shapes(model)
    with pytest.raises(LayoutError, match=message):
        mutator.visit("", model)
    assert shapes(model) == before
    assert type(model.first) is nn.Linear
