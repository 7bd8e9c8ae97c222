"""Hand-written updates through every way to compile: numbers, peak, checks before changes."""

import gc
import shutil

import numpy as np
import pytest
import tvm
import tvm_ffi
from memory import extra_mb, in_fresh_process, needs_clear_refs
from pipelines import LLVM, PIPELINES, load
from tvm import relax
from tvm.script import from_source
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

import relax_inplace
from relax_inplace import inplace_update_tuple
from relax_inplace.libinfo import BUILTINS
from relax_inplace.transform import Pipeline


def chain(count, dims, dtype="float32", attrs=None):
    """R.permute_dims of each field in turn, written by hand."""
    params = relax.Var("params", relax.TupleType([relax.TensorType(dims, dtype)] * count))
    builder = relax.BlockBuilder()
    with builder.function("main", [params], attrs=attrs, pure=False):
        p = params
        for index in range(count):
            w = builder.emit(relax.op.permute_dims(builder.emit(relax.TupleGetItem(p, index))))
            p = builder.emit(inplace_update_tuple(p, index, w))
        builder.emit_func_output(p)
    return builder.get()


def symbolic():
    return (tvm.tirx.Var("n", "int64"), tvm.tirx.Var("m", "int64"))


def tensors(count, shape, dtype="float32"):
    return tvm_ffi.Array(
        [
            tvm.runtime.tensor((np.arange(np.prod(shape)) + i).reshape(shape).astype(dtype))
            for i in range(count)
        ]
    )


# -- numbers --------------------------------------------------------------------------------


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("dims", [(3, 5), "symbolic"], ids=["static", "symbolic"])
def test_a_chain(pipeline, dims):
    params = tensors(4, (3, 5))
    expected = [p.numpy().T.copy() for p in params]
    result = load(chain(4, symbolic() if dims == "symbolic" else dims), pipeline)["main"](params)
    assert result.same_as(params)
    for got, want in zip(params, expected, strict=True):
        np.testing.assert_array_equal(got.numpy(), want)


@I.ir_module
class Values:
    """Each kind of value, a nested tuple, a slot that is emptied."""

    @R.function(pure=False)
    def main(
        params: R.Tuple(
            R.Tensor((4, 8), "float32"),
            R.Tensor(("n", 8), "float32"),
            R.Tuple(R.Tensor((2,), "float32"), R.Tensor((3,), "float32")),
            R.Tensor((5,), "float32"),
            R.Tensor((5,), "float32"),
        ),
    ):
        n = T.int64()
        inner = params[2]
        t = R.exp(inner[0])
        p0 = R.inplace_update_tuple(params, 0, R.shape([n, 2]))
        p1 = R.inplace_update_tuple(p0, 1, R.null_value())
        i1 = R.inplace_update_tuple(inner, 1, t)
        p2 = R.inplace_update_tuple(p1, 2, i1)
        p3 = R.inplace_update_tuple(p2, 3, R.prim_value(n * 3))
        p4 = R.inplace_update_tuple(p3, 4, (t, R.const(2.5)))
        return p4


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_every_kind_of_value(pipeline):
    inner = tensors(2, (2,))
    params = tvm_ffi.Array(
        [*tensors(1, (4, 8)), *tensors(1, (6, 8)), tvm_ffi.Array([inner[0], *tensors(1, (3,))]),
         *tensors(2, (5,))]
    )  # fmt: skip
    nested = params[2]
    assert load(Values, pipeline)["main"](params).same_as(params)
    assert tuple(params[0]) == (6, 2)
    assert params[1] is None
    assert params[2].same_as(nested)
    np.testing.assert_allclose(nested[1].numpy(), np.exp(inner[0].numpy()), rtol=1e-6)
    assert params[3] == 18
    assert params[4][0].same_as(nested[1]) and params[4][1].numpy() == 2.5


@I.ir_module
class Branches:
    @R.function(pure=False)
    def main(
        params: R.Tuple(R.Tensor((4, 8), "float32"), R.Tensor((8, 4), "float32")),
        c: R.Tensor((), "bool"),
    ):
        if c:
            w = R.permute_dims(params[0])
            p0 = R.inplace_update_tuple(params, 1, w)
            q = p0
        else:
            w = R.add(params[1], params[1])
            p0 = R.inplace_update_tuple(params, 1, w)
            q = p0
        return q


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("condition", [False, True])
def test_branches(pipeline, condition):
    params = tvm_ffi.Array([*tensors(1, (4, 8)), *tensors(1, (8, 4))])
    expected = params[0].numpy().T.copy() if condition else params[1].numpy() * 2
    load(Branches, pipeline)["main"](params, tvm.runtime.tensor(np.array(condition)))
    np.testing.assert_array_equal(params[1].numpy(), expected)


CALLS = """
@I.ir_module
class Module:
    @R.function(private=PRIVATE, pure=False)
    def callee(
        params: R.Tuple(R.Tensor((4, 8), "float32"), R.Tensor((8, 4), "float32")),
    ) -> R.Tuple(R.Tensor((8, 4), "float32"), R.Tensor((8, 4), "float32")):
        w = R.permute_dims(params[0])
        p0 = R.inplace_update_tuple(params, 0, w)
        return p0

    @R.function(pure=False)
    def main(params: R.Tuple(R.Tensor((4, 8), "float32"), R.Tensor((8, 4), "float32"))):
        cls = Module
        q = cls.callee(params)
        w = R.permute_dims(q[1])
        p1 = R.inplace_update_tuple(q, 1, w)
        return p1
"""


def calls(private):
    return from_source(CALLS.replace("PRIVATE", str(private)))


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("private", [False, True])
def test_calls(pipeline, private):
    if private and pipeline == "passes first":
        with pytest.raises(ValueError, match="`callee` updates the tuple `params`, which it makes"):
            load(calls(private), pipeline)
        return
    params = tvm_ffi.Array([*tensors(1, (4, 8)), *tensors(1, (8, 4))])
    expected = [p.numpy().T.copy() for p in params]
    assert load(calls(private), pipeline)["main"](params).same_as(params)
    for got, want in zip(params, expected, strict=True):
        np.testing.assert_array_equal(got.numpy(), want)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_called_again(pipeline):
    """Nothing of the first call's tuple lives on in the second's."""
    main = load(chain(2, (3, 5)), pipeline)["main"]
    first, second = tensors(2, (3, 5)), tensors(2, (3, 5), "float32")
    main(first)
    kept = [p.numpy().copy() for p in first]
    main(second)
    for now, then in zip(first, kept, strict=True):
        np.testing.assert_array_equal(now.numpy(), then)


# -- memory ---------------------------------------------------------------------------------


def extra_weights(pipeline, dims, count=6, side=2048, **options):
    mod = chain(count, symbolic() if dims == "symbolic" else (side, side), **options)
    main = load(mod, pipeline)["main"]
    params = tensors(count, (side, side))
    return extra_mb(lambda: main(params)) / (side * side * 4 / 2**20)


@needs_clear_refs
@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("dims", ["static", "symbolic"])
def test_a_chain_holds_one_temporary(pipeline, dims):
    assert in_fresh_process(extra_weights, pipeline, dims) <= 1.06


def extra_weights_of_caller(count=6, side=2048):
    """The caller checks its argument too, and must not keep what it checked."""
    ty = relax.TupleType([relax.TensorType((side, side), "float32")] * count)
    callee = chain(count, (side, side))["main"].with_attr("global_symbol", "convert")
    params = relax.Var("params", ty)
    builder = relax.BlockBuilder()
    convert = builder.add_func(callee, "convert")
    with builder.function("main", [params], pure=False):
        builder.emit_func_output(builder.emit(relax.Call(convert, [params])))
    main = load(builder.get())["main"]
    weights = tensors(count, (side, side))
    return extra_mb(lambda: main(weights)) / (side * side * 4 / 2**20)


@needs_clear_refs
def test_a_caller_holds_one_temporary_too():
    assert in_fresh_process(extra_weights_of_caller) <= 1.06


# -- checked, then changed ------------------------------------------------------------------


def wrong_arguments():
    good = tensors(1, (3, 5))[0]
    strided = tvm_ffi.from_dlpack(np.zeros((5, 3), "float32").T)
    return {
        "dtype": good.numpy().astype("float64"),
        "rank": np.zeros((15,), "float32"),
        "shape": np.zeros((3, 6), "float32"),
        "None": None,
        "not contiguous": strided,
        "not from the first byte": tensors(1, (6, 5))[0]._create_view(
            [3, 5], relative_byte_offset=20
        ),
        "no tensor": 3,
        "a tuple": tvm_ffi.Array([good]),
    }


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("kind", wrong_arguments())
@pytest.mark.parametrize("attrs", [None, {"num_input": 0}], ids=["plain", "num_input"])
def test_a_bad_last_field_changes_nothing(pipeline, kind, attrs):
    bad = wrong_arguments()[kind]
    bad = tvm.runtime.tensor(bad) if isinstance(bad, np.ndarray) else bad
    params = tvm_ffi.Array([*tensors(2, (3, 5)), bad])
    before = list(params)
    main = load(chain(3, (3, 5), attrs=attrs), pipeline)["main"]
    with pytest.raises((ValueError, TypeError, RuntimeError)) as error:
        main(params)
    if kind.startswith("not "):
        assert "`params`[2] is not contiguous from the first byte" in str(error.value)
    for now, then in zip(params, before, strict=True):
        assert now is then or now.same_as(then) or now == then
    assert params[0].shape == (3, 5)


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("count", [0, 2, 4])
def test_a_wrong_length_changes_nothing(pipeline, count):
    params = tensors(count, (3, 5))
    with pytest.raises((ValueError, TypeError, RuntimeError), match="3"):
        load(chain(3, (3, 5)), pipeline)["main"](params)
    assert all(p.shape == (3, 5) for p in params)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_symbolic_shapes_that_disagree_change_nothing(pipeline):
    params = tvm_ffi.Array([*tensors(2, (3, 5)), *tensors(1, (3, 6))])
    with pytest.raises((ValueError, RuntimeError)):
        load(chain(3, symbolic()), pipeline)["main"](params)
    assert [tuple(p.shape) for p in params] == [(3, 5), (3, 5), (3, 6)]


# -- the rest of TVM ------------------------------------------------------------------------


def test_a_module_without_updates_goes_through_untouched():
    @I.ir_module
    class Plain:
        @R.function
        def main(params: R.Tuple(R.Tensor((4, 8), "float32"))):
            return R.permute_dims(params[0])

    seen = []

    def pipeline(mod):
        seen.append(mod)
        return relax.get_pipeline("default")(mod)

    executable = relax.build(Plain, "llvm", relax_pipeline=pipeline)
    assert seen[0].same_as(Plain)
    stock = relax.build.__wrapped__(Plain, "llvm")
    assert executable.as_text() == stock.as_text()


def test_the_wrapped_functions_look_as_before():
    assert relax.build is relax.vm_build.build
    assert relax.build.__name__ == "build" and "executable" in relax.build.__doc__
    before = relax.build
    relax_inplace.registration.register()
    assert relax.build is before


@pytest.mark.parametrize("was_on", [True, False])
def test_the_garbage_collector_is_as_before(was_on):
    """It stands still meanwhile, whatever comes of it."""
    seen = []

    def look(mod):
        seen.append(gc.isenabled())
        return relax.get_pipeline("default")(mod)

    own = tvm.transform.module_pass(lambda mod, _: look(mod), opt_level=0)
    (gc.enable if was_on else gc.disable)()
    try:
        tvm.compile(chain(1, (3, 5)), LLVM, relax_pipeline=Pipeline(own, transforms=[]))
        assert gc.isenabled() is was_on
        with pytest.raises(ValueError):
            tvm.compile(chain(1, (3, 5)), LLVM, relax_pipeline="no such pipeline")
        assert gc.isenabled() is was_on
    finally:
        gc.enable()
    assert seen == [False]


def test_a_pipeline_that_is_not_tvms(monkeypatch):
    """As MLC-LLM's: passes of its own around TVM's, registered by name."""
    name = "tests_pipeline"

    def own(target=None):
        @tvm.transform.module_pass(opt_level=0)
        def run(mod, _context):
            return tvm.transform.Sequential(
                [
                    relax.transform.LegalizeOps(),
                    relax.transform.FuseOps(),
                    relax.transform.FuseTIR(),
                    relax.transform.DeadCodeElimination(),
                    relax.transform.ToNonDataflow(),
                    relax.transform.RemovePurityChecking(),
                    relax.transform.CallTIRRewrite(),
                    relax.transform.StaticPlanBlockMemory(),
                    relax.transform.LowerAllocTensor(),
                    relax.transform.KillAfterLastUse(),
                    relax.transform.LowerRuntimeBuiltin(),
                    relax.transform.VMShapeLower(),
                    relax.transform.AttachGlobalSymbol(),
                ]
            )(mod)

        return run

    monkeypatch.setitem(relax.pipeline.PIPELINE_MAP, name, own)
    vm = relax.VirtualMachine(tvm.compile(chain(2, (3, 5)), LLVM, relax_pipeline=name), tvm.cpu())
    params = tensors(2, (3, 5))
    vm["main"](params)
    assert params[1].shape == (5, 3)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="compiling for CUDA needs nvcc")
@pytest.mark.parametrize("cuda_graph", [False, True])
@pytest.mark.parametrize("dims", [(64, 32), "symbolic"], ids=["static", "symbolic"])
def test_compiles_for_cuda(cuda_graph, dims):
    """The GPU that would run it is not needed: the bytecode shows the order of things."""
    target = tvm.target.Target({"kind": "cuda", "arch": "sm_80"}, host="llvm")
    with tvm.transform.PassContext(config={"relax.backend.use_cuda_graph": cuda_graph}):
        mod = chain(2, symbolic() if dims == "symbolic" else dims, attrs={"num_input": 0})
        text = tvm.compile(mod, target).as_text()
    main = [line.split() for line in text.splitlines() if line.startswith("  call")]
    calls = [words[1] for words in main]
    assert calls.count("vm.builtin.inplace_update_tuple") == 2
    assert calls[0] == BUILTINS.split()[0]
    # Every register that a field was read into is emptied.
    reads = [words[-1] for words in main if words[1] == "vm.builtin.tuple_getitem"]
    kills = [words[-1] for words in main if words[1] == "vm.builtin.null_value"]
    assert set(reads) <= set(kills)
    first = calls.index("vm.builtin.inplace_update_tuple")
    assert not any(
        name.startswith(("vm.builtin.check", "vm.builtin.match")) for name in calls[first:]
    )
    # All is allocated by donation; no storage is handed to a graph.
    assert calls.count("vm.builtin.alloc_storage") == 0
    assert calls.count("vm.builtin.donate_storage") == 2
    assert not any("cuda_graph" in name for name in calls)
