"""A model's own functions are compiled as if the module held no transform: code and numbers."""

import re

import ml_dtypes
import numpy as np
import pytest
import tvm
import tvm_ffi
from pipelines import LLVM
from tvm import ir, relax, te
from tvm.relax import vm_build
from tvm.script import from_source

from relax_inplace.transform import (
    InplaceTransformParams,
    LiftInplaceTransformParams,
    Pipeline,
)

# -- the model --------------------------------------------------------------------------------

# `halves` and `twice` are of both parts. Both parts have a `permute_dims` of
# their own shape, constants, and shapes that are computed.
MODEL = """
@I.ir_module
class Module:
    I.module_attrs({"tests.kept": 1})

    @T.prim_func(private=True, s_tir=True)
    def halves(
        x: T.Buffer((T.int64(32),), "bfloat16"), y: T.Buffer((T.int64(32),), "bfloat16")
    ):
        for i in T.serial(T.int64(32)):
            with T.sblock("y"):
                v = T.axis.spatial(T.int64(32), i)
                y[v] = x[v] * T.bfloat16(0.5)

    @R.function(private=True)
    def twice(w: R.Tensor((64, 32), "bfloat16")) -> R.Tensor((64, 32), "bfloat16"):
        return R.add(w, w)

    @R.function
    def prefill(
        x: R.Tensor(("n", 64), "bfloat16"),
        params: R.Tuple(R.Tensor((64, 32), "bfloat16"), R.Tensor((32,), "bfloat16")),
    ):
        R.func_attr({"num_input": 1})
        cls = Module
        with R.dataflow():
            w = cls.twice(params[0])
            b = R.call_tir(cls.halves, (params[1],), R.Tensor((32,), "bfloat16"))
            y = R.matmul(x, w)
            z = R.nn.silu(R.add(y, b))
            out = R.multiply(z, R.const(1.5, "bfloat16"))
            R.output(out)
        return out

    @R.function
    def decode(
        x: R.Tensor((1, 64), "bfloat16"),
        params: R.Tuple(R.Tensor((64, 32), "bfloat16"), R.Tensor((32,), "bfloat16")),
    ):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            w = R.permute_dims(params[0])
            y = R.matmul(w, R.permute_dims(x))
            out = R.exp(R.multiply(y, R.const(0.25, "bfloat16")))
            R.output(out)
        return out

    @R.function
    def transform_params(
        params: R.Tuple(
            R.Tensor((32, 64), "bfloat16"), R.Tensor((32,), "bfloat16"), R.Tensor(("k", 8), "float32")
        ),
    ):
        cls = Module
        with R.dataflow():
            w = R.permute_dims(params[0])
            doubled = cls.twice(w)
            b = R.call_tir(cls.halves, (params[1],), R.Tensor((32,), "bfloat16"))
            c = R.multiply(R.permute_dims(params[2]), R.const(3.0, "float32"))
            out = (doubled, b, c)
            R.output(out)
        return out
"""

LIFTED = """
@I.ir_module
class Module:
    @R.function
    def prefill(
        x: R.Tensor(("n", 64), "bfloat16"),
        w: R.Tensor((32, 64), "bfloat16"),
        b: R.Tensor((32,), "bfloat16"),
    ):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            y = R.matmul(x, R.permute_dims(w))
            c = R.multiply(b, R.const(2.0, "bfloat16"))
            out = R.nn.silu(R.add(y, c))
            R.output(out)
        return out

    @R.function
    def decode(
        x: R.Tensor((1, 64), "bfloat16"),
        w: R.Tensor((32, 64), "bfloat16"),
        b: R.Tensor((32,), "bfloat16"),
    ):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            y = R.matmul(x, R.permute_dims(w))
            c = R.multiply(b, R.const(2.0, "bfloat16"))
            out = R.exp(R.multiply(R.add(y, c), R.const(0.25, "bfloat16")))
            R.output(out)
        return out
"""


# `scale` calls `half`. TVM cannot run that, but it compiles.
NESTED = """
@I.ir_module
class Module:
    @T.prim_func(s_tir=True)
    def half(x: T.handle("float32"), y: T.handle("float32"), i: T.int64):
        X = T.decl_buffer((32,), "float32", data=x)
        Y = T.decl_buffer((32,), "float32", data=y)
        Y[i] = X[i] * T.float32(0.5)

    @T.prim_func(private=True, s_tir=True)
    def scale(x: T.Buffer((32,), "float32"), y: T.Buffer((32,), "float32")):
        T.func_attr({"op_pattern": 8})  # opaque: TVM cannot fuse it
        with T.sblock("root"):
            T.reads(x[0:32])
            T.writes(y[0:32])
            for i in T.serial(T.int64(32)):
                Module.half(x.data, y.data, i)

    @R.function
    def main(x: R.Tensor((32,), "float32")):
        cls = Module
        with R.dataflow():
            out = R.call_tir(cls.scale, (x,), R.Tensor((32,), "float32"))
            R.output(out)
        return out

    @R.function
    def transform_params(params: R.Tuple(R.Tensor((32,), "float32"))):
        cls = Module
        with R.dataflow():
            w = R.call_tir(cls.scale, (params[0],), R.Tensor((32,), "float32"))
            out = (w,)
            R.output(out)
        return out
"""

LIBRARY = """
@I.ir_module
class Module:
    @R.function
    def decode(x: R.Tensor((6,), "float32")):
        return R.call_dps_packed("tests_double", (x,), out_ty=R.Tensor((6,), "float32"))

    @R.function
    def transform_params(params: R.Tuple(R.Tensor((2, 3), "float32"))):
        with R.dataflow():
            w = R.multiply(params[0], R.const(3.0, "float32"))
            out = (R.permute_dims(w),)
            R.output(out)
        return out
"""
COMPILED = "__vmtir__"  # what exec_mode="compiled" makes of a Relax function


def by_hand():
    return InplaceTransformParams()(from_source(MODEL))


def lifted():
    return LiftInplaceTransformParams()(from_source(LIFTED))


def nested():
    return InplaceTransformParams()(from_source(NESTED))


MODULES = pytest.mark.parametrize("make", [by_hand, lifted, nested])


def without_transform(mod):
    """The module as its author would have it who converts weights somewhere else."""
    functions = {
        gvar: function
        for gvar, function in mod.functions_items()
        if gvar.name_hint != "inplace_transform_params"
    }
    attrs = {key: value for key, value in (mod.attrs or {}).items() if "param_map" not in key}
    return ir.IRModule(functions, attrs, mod.global_infos)


# -- the ways to compile ----------------------------------------------------------------------


def lower_only(mod, _context):
    """What has to follow "zero" before code is generated."""
    t = relax.transform
    return tvm.transform.Sequential(
        [
            relax.get_pipeline("zero"),
            t.RewriteDataflowReshape(),
            t.ToNonDataflow(),
            t.RemovePurityChecking(),
            t.CallTIRRewrite(),
            t.LowerAllocTensor(),
            t.LowerRuntimeBuiltin(),
            t.ComputePrimValue(),
            t.VMShapeLower(),
            t.AttachGlobalSymbol(),
        ]
    )(mod)


@tvm.transform.module_pass(opt_level=0, name="tests.custom")
class Custom:
    """A pass around TVM's pipeline; it looks at every function, and names one of its own."""

    def transform_module(self, mod, _context):
        assert {"main", "decode"} & {gvar.name_hint for gvar in mod.get_global_vars()}
        for gvar, function in mod.functions_items():
            if isinstance(function, relax.Function):
                mod[gvar] = function.with_attr("tests.seen", True)
        builder = relax.BlockBuilder(mod)
        with builder.function("_metadata", []):
            builder.emit_func_output(ir.StringImm(" ".join(g.name_hint for g in mod.functions)))
        return relax.get_default_pipeline(LLVM)(builder.finalize())


PIPELINES = {
    "default": lambda: "default",
    "target's": lambda: relax.get_default_pipeline(LLVM),
    "zero": lambda: Pipeline(
        tvm.transform.module_pass(lower_only, opt_level=0, name="tests.zero"), transforms=[]
    ),
    "custom": lambda: Pipeline(Custom(), transforms=[]),
}
EVERY_PIPELINE = pytest.mark.parametrize("pipeline", PIPELINES)


@tvm.instrument.pass_instrument
class PassNames:
    """A caller's own instrument."""

    def __init__(self):
        self.names = []

    def run_before_pass(self, _mod, info):
        self.names.append(info.name)


class Compiled:
    """An executable, with what it was made of.

    Attributes
    ----------
    lowered : dict of str to tvm.ir.BaseFunc
        What was given to TVM's code generators; of Relax functions that keeps their constants.
    bytecode : dict of str to str
        Constants are numbered by function, not by executable.
    machine_code : str
        LLVM's, of the kernels of the model; None if it has none.
    """

    def __init__(self, mod, monkeypatch, pipeline="default", **options):
        self.lowered = {}

        def noting(stock, mod_of):
            def call(*args, **kwargs):
                mod = mod_of(*args, **kwargs)
                if mod is not None:
                    self.lowered.update({gvar.name_hint: f for gvar, f in mod.functions_items()})
                return stock(*args, **kwargs)

            return call

        with monkeypatch.context() as patched:
            patched.setattr(
                vm_build, "_vmcodegen", noting(vm_build._vmcodegen, lambda builder, mod, mode: mod)
            )
            patched.setattr(
                vm_build, "_vmlink", noting(vm_build._vmlink, lambda *, tir_mod, **_: tir_mod)
            )
            patched.setattr(tvm.tirx, "build", noting(tvm.tirx.build, lambda mod, *_, **__: mod))
            self.executable = relax.build(
                mod, LLVM, relax_pipeline=PIPELINES[pipeline](), **options
            )
        self.bytecode = _by_function(self.executable.as_text())
        first = self.executable.mod.imports[0]
        if first.kind == "const_loader":
            first = first.imports[0]
        self.machine_code = None
        if first.kind == "llvm":  # addresses are names of what does not alias
            self.machine_code = _renumbered(first.inspect_source("ll"), r"\b(0x[0-9a-f]{8,})\b")

    def load(self):
        return relax.VirtualMachine(self.executable, tvm.cpu())


def _by_function(text):
    found = {}
    for part in re.split(r"^@", text, flags=re.M)[1:]:
        name, _, code = part.partition(":\n")
        if code:
            found[name] = _renumbered(code, r"c\[(\d+)\]")
    return found


def _renumbered(code, entry):
    order = {name: i for i, name in enumerate(dict.fromkeys(re.findall(entry, code)))}
    return re.sub(entry, lambda found: f"entry {order[found.group(1)]}", code)


# -- code -------------------------------------------------------------------------------------


def assert_same_code(having, model):
    """All code of the model is in the executable that has a transform, too."""
    assert having.lowered.keys() > model.lowered.keys()
    for name, function in model.lowered.items():
        if name == "_metadata" or name.startswith(COMPILED):
            continue
        tvm.ir.assert_structural_equal(having.lowered[name], function, map_free_vars=True)
    for name, code in model.bytecode.items():
        assert having.bytecode[name] == code
    for name, function in model.lowered.items():
        if name.startswith(COMPILED) and not name.endswith("_metadata"):
            number = r"anylist_getitem\(([cf], \d+)\)"
            left, right = (_renumbered(str(f), number) for f in (having.lowered[name], function))
            assert left == right


@MODULES
@EVERY_PIPELINE
def test_code(make, pipeline, monkeypatch):
    mod = make()
    having = Compiled(mod, monkeypatch, pipeline)
    model = Compiled(without_transform(mod), monkeypatch, pipeline)
    assert_same_code(having, model)
    assert having.machine_code == model.machine_code
    assert "inplace_transform_params" in having.bytecode


def test_a_kernel_that_both_parts_call_a_kernel_of(monkeypatch):
    """The copy that transforms have calls a copy."""
    lowered = Compiled(nested(), monkeypatch).lowered
    assert "half(" in str(lowered["scale"]) and "inplace_half(" not in str(lowered["scale"])
    assert "inplace_half(" in str(lowered["inplace_scale"])


MARKED = """
@I.ir_module
class Module:
    @R.function
    def decode(
        x: R.Tensor(("n", 64), "bfloat16"),
        w: R.Tensor((32, 64), "bfloat16"),
        b: R.Tensor((32,), "bfloat16"),
    ):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            t = R.permute_dims(w)
            marked = R.lift_param(t)
            c = R.multiply(b, R.const(2.0, "bfloat16"))
            scale = R.lift_param(c)
            y = R.add(R.matmul(x, marked), scale)
            kept = R.lift_param(b)
            R.output(y, scale, kept)
        return (y, R.exp(scale), kept)
"""


@pytest.mark.parametrize("options", [{}, {"exec_mode": "compiled"}, {"system_lib": True}])
@EVERY_PIPELINE
def test_marks_that_are_not_lifted_cost_nothing(pipeline, options, monkeypatch):
    """Not a kernel, a call, or an instruction; what is fused is fused across them."""
    plain = re.sub(r"R\.lift_param\((\w+)\)", r"\1", MARKED)
    having = Compiled(from_source(MARKED), monkeypatch, pipeline, **options)
    model = Compiled(canonical(from_source(plain)), monkeypatch, pipeline, **options)
    assert having.bytecode == model.bytecode
    assert having.lowered.keys() == model.lowered.keys()
    for name, function in model.lowered.items():
        if "tirx.is_host_func" in function.attrs:  # TVM's order of shapes varies from run to run
            assert statements(having.lowered[name]) == statements(function)
        else:
            tvm.ir.assert_structural_equal(having.lowered[name], function, map_free_vars=True)


def statements(function):
    return sorted(function.script().splitlines())


def canonical(mod):
    """Without second names, which marks do not leave."""
    return relax.transform.CanonicalizeBindings()(mod)


@EVERY_PIPELINE
def test_the_callers_instruments_see_the_pipeline_once(pipeline, monkeypatch):
    """What it is like is found out on a copy."""
    mod = by_hand()
    without, having = PassNames(), PassNames()
    with tvm.transform.PassContext(instruments=[without]):
        model = Compiled(without_transform(mod), monkeypatch, pipeline)
    with tvm.transform.PassContext(instruments=[having]):
        assert_same_code(Compiled(mod, monkeypatch, pipeline), model)
    ran = [name for name in without.names if name != "relax_inplace.Pipeline"]
    ran = ran[: ran.index("AttachGlobalSymbol") + 1]
    assert having.names[: len(ran)] == ran


@MODULES
@EVERY_PIPELINE
def test_compiled(make, pipeline, monkeypatch):
    mod = make()
    having = Compiled(mod, monkeypatch, pipeline, exec_mode="compiled")
    model = Compiled(without_transform(mod), monkeypatch, pipeline, exec_mode="compiled")
    assert_same_code(having, model)


@MODULES
def test_a_system_library(make, monkeypatch):
    mod = make()
    having = Compiled(mod, monkeypatch, system_lib=True)
    model = Compiled(without_transform(mod), monkeypatch, system_lib=True)
    assert_same_code(having, model)


def with_library(mod):
    """With a compiled module that `decode` calls."""
    x = te.placeholder((6,), "float32", "x")
    kernel = te.create_prim_func([x, te.compute((6,), lambda i: x[i] * 2.0, "y")])
    kernel = kernel.with_attr("global_symbol", "tests_double")
    library = tvm.tirx.build(ir.IRModule({"tests_double": kernel}), LLVM)
    return mod.with_attr("external_mods", [library])


@EVERY_PIPELINE
def test_a_library_of_the_model(pipeline, monkeypatch):
    mod = with_library(InplaceTransformParams()(from_source(LIBRARY)))
    having = Compiled(mod, monkeypatch, pipeline)
    assert_same_code(having, Compiled(without_transform(mod), monkeypatch, pipeline))
    x = np.arange(6, dtype="float32")
    result = having.load()["decode"](tvm.runtime.tensor(x))
    assert result.numpy().tobytes() == (x * 2).tobytes()
    weights = tvm_ffi.Array([tvm.runtime.tensor(x.reshape(2, 3))])
    having.load()["inplace_transform_params"](weights)
    assert weights[0].numpy().tobytes() == (x.reshape(2, 3) * 3).T.tobytes()


@EVERY_PIPELINE
def test_named_constants(pipeline, monkeypatch):
    """What is bound by ``params=`` goes to TVM's linker as ever."""
    bound = {"tests.constant": tvm.runtime.tensor(np.ones(3, "float32"))}
    given = []
    stock = vm_build._vmlink

    def linked(*args, **options):
        given.append(options["params"])
        return stock(*args, **options)

    mod = by_hand()
    monkeypatch.setattr(vm_build, "_vmlink", linked)
    for one in (mod, without_transform(mod)):
        relax.build(one, LLVM, params=dict(bound), relax_pipeline=PIPELINES[pipeline]())
    assert [list(names) for names in given] == [["tests.constant"]] * 2


# -- numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [by_hand, lifted])
@EVERY_PIPELINE
@pytest.mark.parametrize("mode", ["bytecode", "compiled"])
def test_outputs(make, pipeline, mode, monkeypatch):
    """Bfloat16, bitwise."""
    mod = make()
    having = Compiled(mod, monkeypatch, pipeline, exec_mode=mode).load()
    model = Compiled(without_transform(mod), monkeypatch, pipeline, exec_mode=mode).load()
    for name, rows in (("prefill", 5), ("decode", 1)):
        x, w, b = (_random(shape) for shape in ((rows, 64), (64, 32), (32,)))
        weights = tvm_ffi.Array([w, b])
        assert (
            having[name](x, weights).numpy().tobytes() == model[name](x, weights).numpy().tobytes()
        )


def _random(shape):
    array = np.random.default_rng(len(shape)).standard_normal(shape).astype(ml_dtypes.bfloat16)
    return tvm.runtime.tensor(array)
