"""The ways to compile a module that every rewrite has to be right in."""

import tvm
from tvm import relax

from relax_inplace.transform import Pipeline

LLVM = tvm.target.Target("llvm")


def _passes_first(mod):
    """TVM's optimisation passes, before its default pipeline."""
    t = relax.transform
    return tvm.transform.Sequential(
        [
            t.ToNonDataflow(),
            t.ConvertToDataflow(),
            t.CanonicalizeBindings(),
            t.EliminateCommonSubexpr(),
            t.DeadCodeElimination(),
            t.LegalizeOps(),
            t.AnnotateTIROpPattern(),
            t.FoldConstant(),
            t.FuseOps(),
            t.FuseTIR(),
            t.LambdaLift(),
            t.DeadCodeElimination(),
        ]
    )(mod)


def _own(mod):
    """A pipeline that is not TVM's, which fuses."""
    t = relax.transform
    own = tvm.transform.Sequential([t.DeadCodeElimination(), relax.get_default_pipeline(LLVM)])
    return tvm.compile(mod, LLVM, relax_pipeline=Pipeline(own, transforms=[]))


PIPELINES = {
    "compile": lambda mod: tvm.compile(mod, "llvm"),
    "cpu default": lambda mod: tvm.compile(
        mod, "llvm", relax_pipeline=relax.get_default_pipeline(LLVM)
    ),
    "compiled mode": lambda mod: relax.build(mod, "llvm", exec_mode="compiled"),
    "passes first": lambda mod: tvm.compile(_passes_first(mod), "llvm"),
    "own pipeline": _own,
}

# Where other passes run between the plan and the pipeline, the plan is of another function.
IS_FUSED = {
    "compile": False,
    "compiled mode": False,
    "cpu default": True,
    "own pipeline": True,
    "passes first": None,
}


def load(mod, pipeline="compile"):
    """Compile a module; the virtual machine that runs it."""
    return relax.VirtualMachine(PIPELINES[pipeline](mod), tvm.cpu())
