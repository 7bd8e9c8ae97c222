"""The pipeline that a caller chooses: what is known of it, what it is told, what it sees."""

import subprocess
import sys
import textwrap
import types
import warnings

import numpy as np
import pytest
import tvm
import tvm_ffi
from pipelines import LLVM
from tvm import ir, relax, te
from tvm.script import ir as I
from tvm.script import relax as R

from relax_inplace.lower.user_pipeline import UserPipeline
from relax_inplace.transform import InplaceTransformParams, Pipeline


@I.ir_module
class Module:
    @R.function
    def main(x: R.Tensor((4, 4), "float32")):
        return R.add(R.exp(x), x)

    @R.function(pure=False)
    def convert(params: R.Tuple(R.Tensor((4, 4), "float32"), R.Tensor((4, 4), "float32"))):
        with R.dataflow():
            w = R.add(R.exp(params[0]), params[1])
            R.output(w)
        p0 = R.inplace_update_tuple(params, 0, w)
        return p0


default = relax.get_pipeline("default")


@tvm.transform.module_pass(opt_level=0, name="AroundTVMs")
def around_tvms(mod, _context):
    return default(mod)


def compiled(pipeline, mod=Module, target="llvm"):
    """(the executable, what was warned of)."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        executable = tvm.compile(mod, target, relax_pipeline=pipeline)
    return executable, [str(one.message) for one in said]


def fresh():
    return tvm_ffi.Array([tvm.runtime.tensor(np.ones((4, 4), "float32")) for _ in range(2)])


def mlc_llm(monkeypatch):
    """A package that has a pipeline of its own around TVM's, as MLC-LLM has."""
    package = types.ModuleType("mlc_llm.compiler_pass.pipeline")
    text = """
        import tvm
        from tvm import relax

        @tvm.transform.module_pass(opt_level=0, name="MLC")
        def pipeline(mod, _context):
            return tvm.transform.Sequential([
                relax.transform.LegalizeOps(), relax.transform.AnnotateTIROpPattern(),
                relax.transform.FuseOps(), relax.transform.FuseTIR(),
                relax.get_pipeline("default"),
            ])(mod)
    """
    exec(textwrap.dedent(text), package.__dict__)
    monkeypatch.setitem(sys.modules, package.__name__, package)
    return package.pipeline


# -- which are known ------------------------------------------------------------------------------

KNOWN = {
    "default": lambda: "default",
    "inplace": lambda: "inplace",
    "the target's by name": lambda: "default_build",
    "TVM's by pass": lambda: default,
    "the target's": lambda: relax.get_default_pipeline(LLVM),
    "with passes for transforms": lambda: Pipeline(around_tvms, transforms=[]),
    "by name, with passes": lambda: Pipeline("default"),
}
UNKNOWN = {
    "a pass around TVM's": lambda: around_tvms,
    "a sequence with a pass of the user's": lambda: tvm.transform.Sequential(
        [tvm.transform.module_pass(lambda mod, _: mod, opt_level=0), default]
    ),
    "a function around TVM's": lambda: lambda mod: default(mod),
    "a sequence of TVM's": lambda: tvm.transform.Sequential([relax.get_pipeline("zero"), default]),
    "another meaning": lambda: tvm.transform.Sequential(
        [relax.transform.LegalizeOps({"relax.add": one_more}), default]
    ),
}


def one_more(builder, call):
    def compute(x, y):
        return te.compute(x.shape, lambda *i: x(*i) + y(*i) + tvm.tirx.const(1, "float32"))

    return builder.call_te(compute, *call.args)


@pytest.mark.parametrize("name", KNOWN)
def test_what_is_known_is_not_warned_of(name):
    assert compiled(KNOWN[name]())[1] == []


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_known_is_said_once(name):
    said = compiled(UNKNOWN[name]())[1]
    assert len(said) == 1
    assert said[0].startswith(
        "the pipeline that tvm.compile was given does not apply to `convert`: functions that "
        "update a tuple in place are lowered by TVM's passes for the target ("
    )


def test_one_pass_alone_is_not_known():
    rest = ir.IRModule({Module.get_global_var("main"): Module["main"]})
    with pytest.warns(UserWarning, match="does not apply to `convert`"):
        UserPipeline(relax.transform.LegalizeOps(), LLVM).run(rest, {"convert"})


def test_mlc_llms_is_known(monkeypatch):
    assert compiled(mlc_llm(monkeypatch))[1] == []


def test_it_says_where_tvm_compile_was_called():
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        relax.build(Module, "llvm", relax_pipeline=around_tvms)
    assert said[0].filename == __file__


def test_a_module_without_updates_is_not_warned_of():
    mod = ir.IRModule({Module.get_global_var("main"): Module["main"]})
    assert compiled(around_tvms, mod)[1] == []
    assert compiled(Pipeline(around_tvms), mod)[1] == []


# -- fused or not ---------------------------------------------------------------------------------


def fuses(pipeline, target=LLVM):
    user = UserPipeline(pipeline, target)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        user.run(ir.IRModule({Module.get_global_var("main"): Module["main"]}), {"convert"})
    return user.fuses


def test_which_fuse(monkeypatch):
    assert not fuses("default")
    assert not fuses(default)
    assert not fuses(around_tvms)
    assert fuses(relax.get_default_pipeline(LLVM))
    assert fuses(mlc_llm(monkeypatch))
    assert fuses(Pipeline(relax.get_default_pipeline(LLVM)))
    assert not fuses(Pipeline("default"))


def test_transforms_are_fused_where_the_rest_is():
    def kernels(pipeline):
        text = compiled(pipeline)[0].as_text().partition("@convert:")[2].partition("@")[0]
        calls = [line.split()[1] for line in text.splitlines() if line.startswith("  call")]
        return [name for name in calls if "builtin" not in name]

    assert sorted(kernels("default")) == ["inplace_add", "inplace_tir_exp"]
    assert kernels(relax.get_default_pipeline(LLVM)) == ["fused_tir_exp_add"]


# -- passes for transforms ------------------------------------------------------------------------

OWN = relax.transform.LegalizeOps({"relax.add": one_more})


@pytest.mark.parametrize("ours", [False, True])
@pytest.mark.parametrize("theirs", [False, True])
def test_a_meaning_of_ones_own(ours, theirs):
    """In place is what out of place is where both are given the passes."""
    pipeline = tvm.transform.Sequential([OWN, default]) if theirs else default
    pipeline = Pipeline(pipeline, transforms=[OWN] if ours else [])
    executable, said = compiled(pipeline)
    assert said == []
    vm = relax.VirtualMachine(executable, tvm.cpu())
    params = fresh()
    expected = np.exp(np.float32(1)) + np.float32(1)
    np.testing.assert_allclose(vm["main"](params[0]).numpy(), expected + theirs, rtol=1e-6)
    np.testing.assert_allclose(vm["convert"](params)[0].numpy(), expected + ours, rtol=1e-6)


def test_ownership_is_checked_again_after_them():
    @I.ir_module
    class Copy:
        @R.function(pure=False)
        def convert(params: R.Tuple(R.Tensor((4,), "float32"), R.Tensor((4,), "float32"))):
            with R.dataflow():
                copy = (params[0], params[1])
                R.output(copy)
            p0 = R.inplace_update_tuple(params, 0, R.const([1.0, 2.0, 3.0, 4.0]))
            return (copy, p0)

    tvm.compile(Copy, "llvm")
    takes_one_for_the_other = Pipeline(transforms=[relax.transform.CanonicalizeBindings()])
    with pytest.raises(ValueError, match="consumed it"):
        tvm.compile(Copy, "llvm", relax_pipeline=takes_one_for_the_other)


# -- what a pipeline is not told of ---------------------------------------------------------------


@pytest.mark.parametrize("with_instrument", [False, True])
def test_a_pipeline_that_asks_for_the_transform(with_instrument):
    @tvm.transform.module_pass(opt_level=0)
    def asks(mod, _context):
        mod["convert"]
        return default(mod)

    instruments = [tvm.instrument.PassTimingInstrument()] if with_instrument else []
    message = "the pipeline asks for function `convert`, which updates a tuple in place and does"
    with (
        tvm.transform.PassContext(instruments=instruments),
        pytest.raises(ValueError, match=message),
    ):
        tvm.compile(Module, "llvm", relax_pipeline=Pipeline(asks))


def test_other_errors_stay():
    @tvm.transform.module_pass(opt_level=0)
    def fails(mod, _context):
        raise RuntimeError("of its own")

    with pytest.raises(RuntimeError, match="of its own"):
        tvm.compile(Module, "llvm", relax_pipeline=fails)


def test_no_pipeline_is_for_what_is_lowered():
    """The transform is lowered all the same."""
    rest = ir.IRModule({Module.get_global_var("main"): Module["main"]})
    with LLVM:
        lowered = default(rest)
    lowered[Module.get_global_var("convert")] = Module["convert"]
    executable, said = compiled(None, lowered)
    assert said == []
    vm = relax.VirtualMachine(executable, tvm.cpu())
    params = fresh()
    expected = vm["main"](params[0]).numpy()
    np.testing.assert_array_equal(vm["convert"](params)[0].numpy(), expected)


# -- the caller's context -------------------------------------------------------------------------


@tvm.instrument.pass_instrument
class Seen:
    def __init__(self):
        self.entered = self.left = 0
        self.names = []

    def enter_pass_ctx(self):
        self.entered += 1

    def exit_pass_ctx(self):
        self.left += 1

    def run_before_pass(self, _mod, info):
        self.names.append(str(info.name))


def test_instruments_see_each_pass_once_and_are_not_told_of_an_end():
    seen = Seen()
    with tvm.transform.PassContext(instruments=[seen]):
        tvm.compile(Module, "llvm", relax_pipeline=Pipeline(around_tvms))
        assert (seen.entered, seen.left) == (1, 0)
        assert tvm.transform.PassContext.current().instruments[0].same_as(seen)
    assert (seen.entered, seen.left) == (1, 1)
    assert seen.names.count("AroundTVMs") == 1
    assert seen.names.count("StaticPlanBlockMemory") == 1
    assert seen.names.count("DonateStorage") == 1


def test_without_instruments_there_are_none_afterwards():
    with tvm.transform.PassContext() as context:
        tvm.compile(Module, "llvm")
        assert len(context.instruments) == 0


def test_times_of_passes():
    timing = tvm.instrument.PassTimingInstrument()
    with tvm.transform.PassContext(instruments=[timing]):
        tvm.compile(Module, "llvm")
        shown = timing.render()
    assert "LegalizeOps" in shown and "DonateStorage" in shown


def test_a_pass_that_needs_a_function_is_not_run_without():
    """With instruments the pipeline is looked at on a copy of the module, which has it."""

    @tvm.transform.module_pass(opt_level=0)
    def needs_main(mod, _context):
        mod["main"]
        return relax.get_default_pipeline(LLVM)(mod)

    with tvm.transform.PassContext(instruments=[tvm.instrument.PassTimingInstrument()]):
        user = UserPipeline(Pipeline(needs_main), LLVM)
        rest = ir.IRModule({Module.get_global_var("main"): Module["main"]})
        user.run(rest, {"convert"})
    assert user.fuses


def test_a_pass_that_changes_the_module_that_it_is_given_changes_it_once():
    """With instruments, too, where the pipeline is run on a copy before."""
    before = []

    @tvm.transform.module_pass(opt_level=0)
    def adds(mod, _context):
        before.append(len(mod.functions))
        mod["added"] = mod["main"].with_attr("global_symbol", "added")
        return default(mod)

    with tvm.transform.PassContext(instruments=[tvm.instrument.PassTimingInstrument()]):
        tvm.compile(Module, "llvm", relax_pipeline=Pipeline(adds, transforms=[]))
    assert before == [1, 1]


def test_options_and_disabled_passes_hold_for_both():
    def donations(**options):
        with tvm.transform.PassContext(**options):
            return tvm.compile(Module, "llvm").as_text().count("vm.builtin.donate_storage")

    assert donations() > 0
    assert donations(disabled_pass=["DonateStorage"]) == 0

    seen = []

    @tvm.transform.module_pass(opt_level=0)
    def looks(mod, context):
        seen.append((int(context.config["relax.FuseOps.max_depth"]), int(context.opt_level)))
        return mod

    pipeline = Pipeline(tvm.transform.Sequential([looks, default]), transforms=[looks])
    config = {"relax.FuseOps.max_depth": 3}
    for instruments in ([], [Seen()]):
        with tvm.transform.PassContext(opt_level=1, config=config, instruments=instruments):
            tvm.compile(Module, "llvm", relax_pipeline=pipeline)
    assert set(seen) == {(3, 1)}


def test_a_required_pass_runs():
    ran = []

    @tvm.transform.module_pass(opt_level=9, name="tests.Required")
    def required(mod, _context):
        ran.append(mod)
        return mod

    pipeline = Pipeline(transforms=[required])
    tvm.compile(Module, "llvm", relax_pipeline=pipeline)
    assert not ran
    with tvm.transform.PassContext(required_pass=["tests.Required"]):
        tvm.compile(Module, "llvm", relax_pipeline=pipeline)
    assert len(ran) == 1


# -- other ways in --------------------------------------------------------------------------------

EARLY = """
from tvm.relax import build
import relax_inplace
from relax_inplace import inplace_update_tuple
from tvm import relax

params = relax.Var("params", relax.TupleType([relax.TensorType((4,), "float32")]))
builder = relax.BlockBuilder()
with builder.function("main", [params], pure=False):
    one = builder.emit(relax.op.add(params[0], params[0]))
    builder.emit_func_output(builder.emit(inplace_update_tuple(params, 0, one)))
try:
    build(builder.get(), "llvm")
except Exception as error:
    print(error)
"""


def test_a_build_imported_before_us_refuses(tmp_path):
    command = [sys.executable, "-c", EARLY]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert "R.inplace_update_tuple is lowered in tvm.compile and tvm.relax.build" in done.stdout
    assert "`import relax_inplace` before `from tvm.relax import build`" in done.stdout


def test_a_pipeline_by_hand_refuses_and_names_the_place():
    line = Module["convert"].body.blocks[-1].bindings[-1].value.span.line
    with pytest.raises(ValueError, match=rf"test_user_pipeline\.py:{line}:"), LLVM:
        default(Module)


def test_a_reference_goes_through_the_callers_pipeline():
    @I.ir_module
    class Transform:
        @R.function
        def transform_params(params: R.Tuple(R.Tensor((4, 4), "float32"))):
            with R.dataflow():
                w = R.add(params[0], params[0])
                out = (w,)
                R.output(out)
            return out

    mod = InplaceTransformParams(reference=True)(Transform)
    pipeline = Pipeline(tvm.transform.Sequential([OWN, default]), transforms=[])
    vm = relax.VirtualMachine(compiled(pipeline, mod)[0], tvm.cpu())
    slots = tvm_ffi.Array([None])
    vm["reference_transform_params"](lambda i: fresh()[0], slots)
    assert slots[0].numpy()[0, 0] == 3
    params = tvm_ffi.Array([fresh()[0]])
    assert vm["inplace_transform_params"](params)[0].numpy()[0, 0] == 2
