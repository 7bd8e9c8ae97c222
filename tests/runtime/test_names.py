"""A checkpoint with names of its own: found, refused with what to do, kept when it is saved."""

import functools
import json

import numpy as np
import pytest
import tvm
from compiled_transforms import arrays, compiled, tensors, transposes
from safetensors.numpy import save_file
from tvm import relax
from tvm.script import from_source

from relax_inplace.runtime import (
    CheckpointError,
    MismatchError,
    Params,
    Transform,
    convert_params,
    load_params,
    restore_params,
    save_params,
    stream_params,
    transform_params,
)
from relax_inplace.runtime.checkpoint import open_checkpoint
from relax_inplace.runtime.tensor_info import TensorInfo
from relax_inplace.transform import InplaceTransformParams, LiftInplaceTransformParams

CPU = tvm.cpu()


def write(folder, weights, **metadata):
    folder.mkdir(exist_ok=True)
    save_file(weights, folder / "model.safetensors", metadata or None)
    return folder


def named(transform, names):
    """Weights for a transform, under other names."""
    return dict(zip(names, arrays(transform), strict=True))


def is_transposed(params, transform):
    return all(
        np.array_equal(one.numpy(), array.T)
        for one, array in zip(params, arrays(transform), strict=True)
    )


# -- found ----------------------------------------------------------------------------------------

NAMES = {
    "equal": (["w0", "w1", "w2"], None),
    "under a prefix": (["model.w0", "model.w1", "model.w2"], None),
    "by a mapping": (["a", "b", "w2"], {"w0": "a", "w1": "b"}),
    "by a mapping, the other way round": (["a", "b", "w2"], {"a": "w0", "b": "w1"}),
    "by a sequence": (["a", "b", "c"], ["a", "b", "c"]),
    "by a callable": (["W0", "W1", "W2"], str.upper),
    "by a mapping, then under a prefix": (["m.a", "m.w1", "m.w2"], {"w0": "a"}),
}


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("how", NAMES)
def test_found(how, lazy, tmp_path):
    """What is saved has the names that were read, and is found by them again."""
    transform = transposes(lazy=lazy)
    names, given = NAMES[how]
    folder = write(tmp_path / "in", named(transform, names))
    params = convert_params(transform, folder, CPU, names=given, cache=tmp_path / "cache")
    assert is_transposed(params, transform)
    assert params.names == tuple(names)
    save_params(params, tmp_path / "out", "safetensors")
    assert set(open_checkpoint(tmp_path / "out").records) == set(names)
    again = load_params(tmp_path / "out", CPU, transform, names=given)
    assert again.provenance == params.provenance
    assert is_transposed(again, transform)
    cached = convert_params(transform, folder, CPU, names=given, cache=tmp_path / "cache")
    assert cached.report.read_from is not None
    assert is_transposed(cached, transform)


def test_other_names_are_another_cache(tmp_path):
    """Two weights of one shape: what is converted depends on which is which."""
    body = "a = params[0]\nb = params[1]\nt = R.permute_dims(a)\nreturn (t, b)"
    transform = Transform.of(compiled(tensors((4, 4), (4, 4)), body))
    one, two = np.arange(16, dtype="float32").reshape(4, 4), np.ones((4, 4), "float32")
    folder = write(tmp_path / "in", {"one": one, "two": two})
    for names, expected in ((["one", "two"], one.T), (["two", "one"], two.T)):
        params = convert_params(transform, folder, CPU, names=names, cache=tmp_path / "cache")
        assert params.report.read_from is None
        assert np.array_equal(params[0].numpy(), expected)


def test_what_is_made_from_a_weight_has_its_name(tmp_path):
    body = "a = params[0]\ns = R.split(a, 2)\nreturn (s[0], s[1], a)"
    transform = Transform.of(compiled(tensors((2, 3)), body))
    folder = write(tmp_path, {"layers.0.w": np.ones((2, 3), "float32")})
    params = load_params(folder, CPU, transform, names={"a": "layers.0.w"})
    transform_params(transform, params)
    assert params.names == ("layers.0.w", "layers.0.w.1", "layers.0.w.2")


def test_restored_weights_have_the_names_that_were_read(tmp_path):
    transform = transposes(restore=True)
    folder = write(tmp_path, named(transform, ["m.w0", "m.w1", "m.w2"]))
    params = transform_params(transform, load_params(folder, CPU, transform))
    restore_params(transform, params)
    assert params.names == ("m.w0", "m.w1", "m.w2")


def test_names_without_a_lift(tmp_path):
    """InplaceTransformParams takes names, too; a field without a name of its own has its number."""
    mod = from_source("""
@I.ir_module
class Module:
    @R.function
    def transform_params(params: R.Tuple(R.Tensor((2, 3), "float32"), R.Tensor((4, 5), "float32"))):
        gv4 = params[1]
        t = R.permute_dims(gv4)
        u = R.permute_dims(params[0])
        return (u, t)
""")
    for names, expected in (
        (None, ["params[0]", "params[1]"]),
        ({"params[1]": "up"}, ["params[0]", "up"]),
        (["down", "up"], ["down", "up"]),
    ):
        after = InplaceTransformParams(names=names)(mod)
        transform = Transform.of(relax.VirtualMachine(tvm.compile(after, "llvm"), CPU))
        assert [one.name for one in transform.weights] == expected
    with pytest.raises(ValueError, match="for 2 weights of `transform_params`; expected one for"):
        InplaceTransformParams(names=["a"])(mod)


def test_a_dict_by_the_same_rules():
    transform = transposes()
    given = {f"model.{n}": tvm.runtime.tensor(a) for n, a in named(transform, "012").items()}
    given = {name.replace("model.", "model.w"): one for name, one in given.items()}
    params = transform_params(transform, given)
    assert is_transposed(params, transform)
    assert list(given) == ["model.w0", "model.w1", "model.w2"]


# -- not wanted -----------------------------------------------------------------------------------


@pytest.mark.parametrize("lazy", [False, True])
def test_what_is_not_wanted(lazy, tmp_path):
    transform = transposes(lazy=lazy)
    weights = named(transform, ["w0", "w1", "w2"])
    folder = write(tmp_path, {**weights, "inv_freq": np.ones(9, "float32")})
    message = r"1 too many \('inv_freq'\).*; load with extra=\"ignore\""
    with pytest.raises(MismatchError, match=message):
        convert_params(transform, folder, CPU)
    params = convert_params(transform, folder, CPU, extra="ignore")
    assert is_transposed(params, transform)
    assert params.ignored == ("inv_freq",)
    with pytest.raises(ValueError, match="extra='no': expected 'error' or 'ignore'"):
        convert_params(transform, folder, CPU, extra="no")


# -- tied -----------------------------------------------------------------------------------------

TIED = """
@I.ir_module
class Module:
    @R.function
    def main(
        x: R.Tensor((2, 8), "float32"),
        embed: R.Tensor((12, 8), "float32"),
        up: R.Tensor((8, 8), "float32"),
        lm_head: R.Tensor((12, 8), "float32"),
    ):
        R.func_attr({"num_input": 1})
        e = R.matmul(x, R.permute_dims(embed))
        h = R.matmul(x, R.permute_dims(up))
        return R.add(e, R.matmul(h, R.permute_dims(lm_head)))
"""
EMBED = np.arange(96, dtype="float32").reshape(12, 8)
UP = np.arange(64, dtype="float32").reshape(8, 8)


@functools.cache
def tied(**options):
    pair = [("embed", "lm_head")]
    mod = LiftInplaceTransformParams(tied=pair, **options)(from_source(TIED))
    return Transform.of(relax.VirtualMachine(tvm.compile(mod, "llvm"), CPU))


def loaded(transform, folder):
    return transform_params(transform, load_params(folder, CPU, transform), strict=True)


WAYS = {
    "load_params": lambda folder: loaded(tied(), folder),
    "stream_params": lambda folder: stream_params(tied(lazy=True), folder, CPU),
    "convert_params": lambda folder: convert_params(tied(), folder, CPU, strict=True),
    "verified": lambda folder: convert_params(tied(reference=True), folder, CPU, verify=True),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("there", [["embed", "lm_head"], ["embed"], ["lm_head"]])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_checkpoint_may_hold_any_of_tied_weights(way, there, prefix, tmp_path):
    weights = {f"{prefix}{name}": EMBED for name in there} | {f"{prefix}up": UP}
    params = WAYS[way](write(tmp_path / "in", weights))
    assert [one.numpy().tolist() for one in params] == [EMBED.T.tolist(), UP.T.tolist()]
    assert params.names == (f"{prefix}{there[0]}", f"{prefix}up")
    save_params(params, tmp_path / "out")
    assert convert_params(tied(), tmp_path / "out", CPU).report.read_from is not None


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("at", [0, 95])
def test_tied_weights_that_differ(way, at, tmp_path):
    other = EMBED.copy()
    other.flat[at] += 1
    folder = write(tmp_path, {"embed": EMBED, "lm_head": other, "up": UP})
    with pytest.raises(
        CheckpointError, match="'embed' and 'lm_head' differ, expected the same numbers"
    ):
        WAYS[way](folder)


@pytest.mark.parametrize("added", [0, 1])
def test_tied_weights_stored_in_different_ways(added, tmp_path):
    """One as bfloat16, as a tensor cache may hold a float32: decoded, then compared."""
    halves = ((EMBED + added).view("uint32") >> 16).astype("uint16")
    stored = [
        ("embed", EMBED, "raw", EMBED.tobytes()),
        ("lm_head", EMBED, "f32-to-bf16", halves.tobytes()),
        ("up", UP, "raw", UP.tobytes()),
    ]
    records, offset = [], 0
    for name, array, encoding, content in stored:
        record = {"name": name, "shape": array.shape, "dtype": "float32", "format": encoding}
        records.append({**record, "nbytes": len(content), "byteOffset": offset})
        offset += len(content)
    (tmp_path / "shard.bin").write_bytes(b"".join(content for *_, content in stored))
    shard = {"dataPath": "shard.bin", "format": "raw-shard", "nbytes": offset, "records": records}
    (tmp_path / "tensor-cache.json").write_text(json.dumps({"metadata": {}, "records": [shard]}))
    if added:
        with pytest.raises(CheckpointError, match="'embed' and 'lm_head' differ"):
            loaded(tied(), tmp_path)
    else:
        assert np.array_equal(loaded(tied(), tmp_path)["embed"].numpy(), EMBED.T)


@pytest.mark.parametrize("kind", [list, dict])
def test_tied_weights_that_are_handed_over(kind):
    def given(head):
        named = {"embed": EMBED, "up": UP, "lm_head": head}
        tensors = {name: tvm.runtime.tensor(one) for name, one in named.items()}
        return tensors if kind is dict else list(tensors.values())

    params = transform_params(tied(), given(EMBED))
    assert np.array_equal(params[0].numpy(), EMBED.T)
    holder = given(EMBED + 1)
    with pytest.raises(CheckpointError, match="'embed' and 'lm_head' differ"):
        transform_params(tied(), holder)
    assert len(holder) == 3
    if kind is dict:
        alone = given(EMBED)
        del alone["embed"]
        assert np.array_equal(transform_params(tied(), alone)[0].numpy(), EMBED.T)


def test_tied_weights_are_restored_under_both_names(tmp_path):
    transform = tied(restore=True)
    params = loaded(transform, write(tmp_path / "in", {"lm_head": EMBED, "up": UP}))
    restore_params(transform, params)
    assert sorted(params.names) == ["embed", "lm_head", "up"]
    assert np.array_equal(params["embed"].numpy(), EMBED)
    save_params(params, tmp_path / "out")
    assert len(loaded(transform, tmp_path / "out")) == 2


def test_ties_in_metadata(tmp_path):
    """`safetensors.torch.save_model` writes a tied weight once, and its other name as metadata."""
    transform = transposes()
    weights = named(transform, ["w0", "w1", "w2"])
    del weights["w2"]
    mod = "\n".join(f"w{i} = params[{i}]\nt{i} = R.permute_dims(w{i})" for i in range(2))
    two = Transform.of(compiled(tensors((4, 8), (4, 8)), f"{mod}\nreturn (t0, t1)"))
    folder = write(tmp_path, {"w0": weights["w0"]}, w1="w0", format="pt", other="gone")
    with pytest.raises(MismatchError, match=r"1 missing \('w1'\).*ties=True if"):
        load_params(folder, CPU, two)
    params = load_params(folder, CPU, two, ties=True)
    assert params.names == ("w0", "w1")
    assert not params[0].same_as(params[1])
    transform_params(two, params, strict=True)
    assert np.array_equal(params[0].numpy(), weights["w0"].T)
    assert np.array_equal(params[1].numpy(), weights["w0"].T)
    one = Transform.of(compiled(tensors((4, 8)), "w0 = params[0]\nreturn (R.permute_dims(w0),)"))
    assert load_params(folder, CPU, one, ties=True).ignored == ()


# -- what does not fit, in few words --------------------------------------------------------------


def described(*weights):
    types = [
        TensorInfo(name, shape, dtype, str(slot))
        for slot, (name, shape, dtype) in enumerate(weights)
    ]
    return Transform(function=None, name="inplace_transform_params", weights=types, params=types)


SIX = [f"layers.{i}.w" for i in range(6)]


@pytest.mark.parametrize(
    ("stored", "wanted", "message"),
    [
        (
            dict.fromkeys(SIX, "float32"),
            [(name, (2, 3), "float16") for name in SIX],
            "all 6 are float32, expected float16, expected the weights of inplace_transform_params; "
            "make the module for the dtype of the file, or convert the file",
        ),
        (
            dict.fromkeys(SIX, "float32"),
            [(name, (2, 3), "float16" if i else "float32") for i, name in enumerate(SIX)],
            "5 are float32, expected float16 ('layers.1.w', 'layers.2.w'",
        ),
        (
            {f"model.{name}": "float32" for name in SIX[1:]},
            [(name.replace(".", "_"), (2, 3), "float32") for name in SIX],
            "names differ: the file says 'model.layers.1.w', the module 'layers_1_w': give names=, "
            "which maps the module's names to the file's",
        ),
        (
            {f"x{name}": "float32" for name in SIX},
            [(name, (2, 3), "float32") for name in SIX],
            "these are weights of another model, or of another version of it",
        ),
        (
            dict.fromkeys(SIX, "float32"),
            [(name, (2, 3) if i else (3, 3), "float32") for i, name in enumerate(SIX)],
            "1 of another type ('layers.0.w' is float32[2, 3], expected float32[3, 3]), expected "
            "the weights of inplace_transform_params; give the weights that the module was made for",
        ),
        (
            dict.fromkeys(SIX[1:], "float32"),
            [(name, (2, 3), "float32") for name in SIX],
            "1 missing ('layers.0.w'), expected the weights of inplace_transform_params; download",
        ),
    ],
)
def test_one_line(stored, wanted, message, tmp_path):
    folder = write(tmp_path, {name: np.ones((2, 3), dtype) for name, dtype in stored.items()})
    with pytest.raises(MismatchError) as caught:
        load_params(folder, CPU, described(*wanted))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_need_a_transform(tmp_path):
    folder = write(tmp_path, {"a": np.ones(2, "float32")})
    with pytest.raises(ValueError, match="give the transform, too"):
        load_params(folder, CPU, names={"a": "b"})


def test_params_without_names_get_the_modules():
    transform = transposes()
    params = Params([tvm.runtime.tensor(one) for one in arrays(transform)])
    assert transform_params(transform, params).names == ("w0", "w1", "w2")
