"""The ways to compile a module that every rewrite has to be right in."""

import tvm
from tvm import relax

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


def _by_hand(mod):
    """The pipeline run by the user, then the build of what is lowered already."""
    with LLVM:
        lowered = relax.get_default_pipeline(LLVM)(mod)
    return relax.build(lowered, LLVM, relax_pipeline=None)


PIPELINES = {
    "compile": lambda mod: tvm.compile(mod, "llvm"),
    "cpu default": lambda mod: tvm.compile(
        mod, "llvm", relax_pipeline=relax.get_default_pipeline(LLVM)
    ),
    "compiled mode": lambda mod: relax.build(mod, "llvm", exec_mode="compiled"),
    "passes first": lambda mod: tvm.compile(_passes_first(mod), "llvm"),
    "by hand": _by_hand,
    "inplace": lambda mod: tvm.compile(mod, "llvm", relax_pipeline="inplace"),
}

# Where other passes run between the plan and the pipeline, the plan is of another function.
IS_FUSED = {
    "compile": False,
    "compiled mode": False,
    "cpu default": True,
    "by hand": True,
    "inplace": True,
    "passes first": None,
}

# Where storages are donated: what is live is seen by lowered_machine.py, and not by live_bytes.py,
# which holds what it watches.
DONATES = {"inplace"}


def load(mod, pipeline="compile"):
    """Compile a module; the virtual machine that runs it."""
    return relax.VirtualMachine(PIPELINES[pipeline](mod), tvm.cpu())
