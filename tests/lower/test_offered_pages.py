"""Concatenations and splits of whole rows: pages are moved, and whoever sees a weight keeps it."""

import contextlib
import ctypes

import numpy as np
import pytest
import tvm
import tvm_ffi
from hypothesis import given
from hypothesis import strategies as st
from memory import extra_mb, in_fresh_process, needs_clear_refs
from profiles import examples
from tvm import relax
from tvm.script import from_source

from relax_inplace import runtime
from relax_inplace.libinfo import load_library
from relax_inplace.runtime.empty_tensor import empty
from relax_inplace.runtime.tensor_bytes import bytes_of
from relax_inplace.transform import InplaceTransformParams

NAME = "inplace_transform_params"
RELAYOUT = "relax_inplace.relayout"
COLUMNS = 4096  # of float32: a row is 16 KB


def built(rows, body, **options):
    """The virtual machine of a transform of float32 weights of so many rows."""
    types = ", ".join(
        f"R.Tuple({', '.join(map(tensor_type, one))})"
        if isinstance(one, tuple)
        else tensor_type(one)
        for one in rows
    )
    source = f"""
@I.ir_module
class Module:
    @R.function
    def transform_params(params: R.Tuple({types})):
""" + "".join(f"        {line}\n" for line in body.strip().splitlines())
    mod = InplaceTransformParams(**options)(from_source(source))
    return relax.VirtualMachine(tvm.compile(mod, "llvm"), tvm.cpu())


def tensor_type(rows):
    return f'R.Tensor(({rows!r}, {COLUMNS}), "float32")'


def weights_of(*rows, seed=0):
    """As `load_params` makes them, and what they hold."""
    generator = np.random.default_rng(seed)
    weights, arrays = [], []
    for count in rows:
        arrays.append(generator.standard_normal((count, COLUMNS), "float32"))
        weights.append(empty(arrays[-1].shape, "float32", tvm.cpu()))
        bytes_of(weights[-1])[...] = arrays[-1].reshape(-1).view("uint8")
    return weights, arrays


def check(tensors, arrays):
    for tensor, array in zip(tensors, arrays, strict=True):
        assert bytes_of(tensor).tobytes() == array.tobytes()


@contextlib.contextmanager
def copied():
    """Bytes that kernels copy while their sources are there: what is moved reads as zeros."""
    load_library()
    stock, seen = tvm_ffi.get_global_func(RELAYOUT), []

    def watching(source, target, *numbers):
        stock(source, target, *numbers)
        count, *rest = numbers
        for _ in range(count):
            bits, read, _, _, _, digits = rest[:6]
            memory = (ctypes.c_uint8 * (bits // 8)).from_address(source.data_ptr() + read // 8)
            seen.append(bits // 8 if any(memory) else 0)
            rest = rest[6 + 3 * digits :]

    tvm_ffi.register_global_func(RELAYOUT, watching, override=True)
    try:
        yield seen
    finally:
        tvm_ffi.register_global_func(RELAYOUT, stock, override=True)


QKV = """
q = params[0]
k = params[1]
v = params[2]
qkv = R.concat((q, k, v), axis=0)
return (qkv,)
"""
SPLIT = """
qkv = params[0]
parts = R.split(qkv, [32, 40], axis=0)
q = parts[0]
k = parts[1]
v = parts[2]
return (q, k, v)
"""


MOVED, KB = 0, 1024


def run(rows, body, keep=lambda weights: None, weights=None):
    """What is made of weights, what they were, and what was copied; ``keep`` refers to some."""
    with copied() as seen:
        vm = built(rows, body)
        weights, arrays = weights_of(*rows) if weights is None else weights
        params = tvm_ffi.Array(weights)
        kept = keep(weights)
        weights.clear()
        made = vm[NAME](params)
    del kept
    return list(made), arrays, seen


def joined(arrays):
    return [np.concatenate(arrays)]


@pytest.mark.parametrize(
    "rows, body, expected",
    [
        ((32, 8, 8), QKV, joined),
        (("n", "m", "n"), QKV, joined),
        ((48,), SPLIT, lambda arrays: np.split(arrays[0], [32, 40])),
        (
            (8, 8),
            "a = params[0]\nb = params[1]\nc = R.stack((a, b))\nreturn (c,)",
            lambda arrays: [np.stack(arrays)],
        ),
    ],
    ids=["concat", "of any sizes", "split", "stack"],
)
def test_all_of_it_is_moved(rows, body, expected):
    given = weights_of(*(8 if isinstance(one, str) else one for one in rows))
    made, arrays, seen = run(rows, body, weights=given)
    check([one for one in made if one is not None][: len(expected(arrays))], expected(arrays))
    assert set(seen) == {MOVED}


def test_what_is_read_again_is_copied():
    """The first of two kernels that take rows of one weight."""
    made, (array,), seen = run(
        (24,),
        """
w = params[0]
a = R.strided_slice(w, axes=[0], begin=[0], end=[16])
b = R.strided_slice(w, axes=[0], begin=[16], end=[24])
return (a, b)
""",
    )
    check(made, [array[:16], array[16:]])
    assert sorted(seen) == [MOVED, 256 * KB]


def test_the_same_weight_twice_is_copied():
    made, (a, b), seen = run(
        (8, 8), "a = params[0]\nb = params[1]\nc = R.concat((a, b, a))\nreturn (c,)"
    )
    check(made[:1], [np.concatenate([a, b, a])])
    assert seen == [128 * KB, MOVED, 128 * KB]


def test_one_tensor_in_two_slots_is_copied():
    (tied, other), (array, last) = weights_of(8, 8)
    weights = [tied, tied, other]
    del tied, other
    made, _, seen = run((8, 8, 8), QKV, weights=(weights, None))
    check(made[:1], [np.concatenate([array, array, last])])
    assert seen == [128 * KB, 128 * KB, MOVED]


@pytest.mark.parametrize("how", ["variable", "export", "view"])
def test_what_is_seen_from_outside_is_copied(how):
    seen_outside = {
        "variable": lambda tensor: tensor,
        "export": np.from_dlpack,
        "view": lambda tensor: tensor._create_view((4,), "float32"),
    }[how]
    kept = []
    made, arrays, seen = run((8, 8, 8), QKV, lambda ws: kept.append(seen_outside(ws[1])))
    check(made[:1], joined(arrays))
    assert seen == [MOVED, 128 * KB, MOVED]
    (outside,) = kept
    outside = np.from_dlpack(outside) if how != "export" else outside
    assert (outside.reshape(-1)[:4] == arrays[1].reshape(-1)[:4]).all()


def test_weights_of_numpys_are_copied():
    _, arrays = weights_of(8, 8, 8)
    weights = [tvm.runtime.tensor(arrays[0]), tvm_ffi.from_dlpack(arrays[1].copy())]
    weights += weights_of(8, seed=1)[0]
    arrays[2] = weights_of(8, seed=1)[1][0]
    made, _, seen = run((8, 8, 8), QKV, weights=(weights, None))
    check(made[:1], joined(arrays))
    assert seen == [128 * KB, 128 * KB, MOVED]


def test_what_is_written_over_first():
    """A weight is scaled where it lies, and its storage moved then."""
    made, (a, b), seen = run(
        (8, 8),
        """
a = params[0]
b = params[1]
two = R.multiply(a, R.const(2.0, "float32"))
c = R.concat((two, b))
return (c,)
""",
    )
    check(made[:1], [np.concatenate([a * 2, b])])
    assert seen in ([MOVED, MOVED], [])  # if they are one kernel, it computes


def test_storages_that_were_moved_from_are_used_again():
    """Kernels that compute take them for their results."""
    made, (a, b, c), _ = run(
        (16, 16, 16),
        """
a = params[0]
b = params[1]
both = R.concat((a, b))
c = params[2]
first = R.cumsum(c, axis=0)
second = R.cumsum(first, axis=0)
return (both, second)
""",
    )
    expected = [np.concatenate([a, b]), np.cumsum(np.cumsum(c, 0), 0)]
    check(made[:1], expected[:1])
    np.testing.assert_allclose(np.from_dlpack(made[1]), expected[1], rtol=1e-4)


def test_nested():
    with copied() as seen:
        vm = built(
            (8, (8, 16)),
            """
a = params[0]
pair = params[1]
b = pair[0]
c = pair[1]
ab = R.concat((a, b))
return (ab, c)
""",
        )
        weights, (a, b, c) = weights_of(8, 8, 16)
        params = tvm_ffi.Array([weights[0], tvm_ffi.Array(weights[1:])])
        del weights
        made = vm[NAME](params)
    check(made, [np.concatenate([a, b]), c])
    assert seen == [MOVED, MOVED]


def test_streamed():
    with copied() as seen:
        vm = built((8, 8, 8), QKV, lazy=True)
        weights, arrays = weights_of(8, 8, 8)

        def get_weight(index):
            one, weights[index] = weights[index], None
            return one

        (made,) = vm[NAME](tvm_ffi.convert(get_weight), tvm_ffi.Array([None]))
    check([made], joined(arrays))
    assert seen == [MOVED] * 3


# -- any transform -----------------------------------------------------------------------------------

PARTS = st.lists(st.integers(4, 9), min_size=2, max_size=4)
HOLDS = st.sampled_from(["", "", "", "variable", "export", "tie"])


@examples(8)
@given(st.lists(st.tuples(st.booleans(), PARTS), min_size=1, max_size=3), st.data())
def test_any(steps, data):
    """Concatenations and splits, of weights some of which are tied or seen from outside."""
    rows, body, results, expected = [], [], [], []
    for splits, parts in steps:
        first = len(rows)
        rows += [sum(parts)] if splits else parts
        body += [f"w{i} = params[{i}]" for i in range(first, len(rows))]
        if splits:
            cuts = np.cumsum(parts)[:-1].tolist()
            body.append(f"s{first} = R.split(w{first}, {cuts}, axis=0)")
            body += [f"r{len(results) + i} = s{first}[{i}]" for i in range(len(parts))]
            expected.append(lambda arrays, i=first, cuts=cuts: np.split(arrays[i], cuts))
            results += range(len(results), len(results) + len(parts))
        else:
            names = "".join(f"w{i}, " for i in range(first, len(rows)))
            body.append(f"r{len(results)} = R.concat(({names}), axis=0)")
            of = slice(first, len(rows))
            expected.append(lambda arrays, of=of: [np.concatenate(arrays[of])])
            results.append(len(results))
    body.append(f"return ({''.join(f'r{i}, ' for i in results)})")
    vm = built(rows, "\n".join(body))
    weights, arrays = weights_of(*rows)
    outside = []
    for i in range(len(rows)):
        how = data.draw(HOLDS)
        if how == "tie":
            j = rows.index(rows[i])
            weights[i], arrays[i] = weights[j], arrays[j]
        elif how:
            outside.append((weights[i] if how == "variable" else np.from_dlpack(weights[i]), i))
    params = tvm_ffi.Array(weights)
    del weights
    made = vm[NAME](params)
    check(list(made)[: len(results)], [one for step in expected for one in step(arrays)])
    check([tvm_ffi.from_dlpack(one) for one, _ in outside], [arrays[i] for _, i in outside])


# -- what the runtime says ---------------------------------------------------------------------------


def params_of(*rows):
    weights, arrays = weights_of(*rows)
    return runtime.Params(weights, ["q", "k", "v"][: len(rows)]), arrays


def test_a_kernel_that_fails():
    """What was offered to it is lost, and said to be."""

    def fail(*_given):
        raise ValueError("the kernel failed")

    stock = tvm_ffi.get_global_func(RELAYOUT)
    tvm_ffi.register_global_func(RELAYOUT, fail, override=True)
    try:
        vm = built((8, 8, 8), QKV)
        params, _ = params_of(8, 8, 8)
        with pytest.raises(runtime.TransformError, match="the kernel failed") as caught:
            runtime.transform_params(vm, params)
    finally:
        tvm_ffi.register_global_func(RELAYOUT, stock, override=True)
    assert (caught.value.converted, caught.value.original) == ([], [])
    assert caught.value.lost == ["q", "k", "v"]
    assert list(caught.value.params) == [None] * 3


def test_interrupted():
    """When the kernel is done, and its result is in place: not before."""
    vm = built(
        (8, 8, 16),
        """
q = params[0]
k = params[1]
qk = R.concat((q, k))
v = params[2]
t = R.permute_dims(v)
return (qk, t)
""",
    )
    params, (q, k, _) = params_of(8, 8, 16)

    def stop(_progress):
        raise KeyboardInterrupt

    with pytest.raises(runtime.TransformInterrupted) as caught:
        runtime.transform_params(vm, params, progress=stop)
    assert caught.value.lost == []
    left = caught.value.params
    arrays = {"q": [np.concatenate([q, k])]}
    if "q" in caught.value.converted:
        check([left["q"]], arrays["q"])
    else:
        check([left["q"], left["k"]], [q, k])


def test_of_a_file(tmp_path):
    """What `load_params` loads is moved; the report counts it."""
    params, arrays = params_of(8, 8, 8)
    runtime.save_params(params, tmp_path)
    del params
    with copied() as seen:
        vm = built((8, 8, 8), QKV)
        loaded = runtime.load_params(tmp_path, tvm.cpu())
        result = runtime.transform_params(vm, loaded)
    check([result[0]], joined(arrays))
    assert seen == [MOVED] * 3
    assert result.report.held == []


# -- memory ------------------------------------------------------------------------------------------


def _extra(rows, body):
    vm = built(rows, body)
    params = tvm_ffi.Array(weights_of(*rows)[0])
    return extra_mb(lambda: vm[NAME](params))


@needs_clear_refs
@pytest.mark.parametrize("rows, body", [((2048, 512, 512), QKV), ((3072,), SPLIT.replace("32, 40", "2048, 2560"))], ids=["concat", "split"])  # fmt: skip
def test_no_extra_memory(rows, body):
    """48 MB of weights, and 48 of what is made of them."""
    assert in_fresh_process(_extra, rows, body, with_defaults=True) < 2
