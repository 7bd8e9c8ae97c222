"""A module whose nodes are of many kinds, as JSON; and commands in copies of this process."""

import contextlib
import io
import json
import os
import signal
import sys
import time

import tvm
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from relax_inplace.cli import main

LONGEST = 300  # seconds of a command; most take less than one


@I.ir_module
class Model:
    I.module_attrs({"mod_name": "model"})
    I.module_global_infos({"vdevice": [I.vdevice({"kind": "llvm", "mcpu": "x86-64"})]})

    @T.prim_func(s_tir=True)
    def kernel(a: T.Buffer((4, 8), "float32"), b: T.Buffer((8, 4), "float32")):
        T.func_attr({"global_symbol": "kernel", "target": T.target("llvm"), "tirx.noalias": True})
        for i in T.serial(8, annotations={"pragma_auto_unroll_max_step": 4}):
            for j in range(4):
                with T.sblock("moved"):
                    vi, vj = T.axis.remap("SS", [i, j])
                    T.sblock_attr({"meta_schedule.tiling_structure": "SR"})
                    with T.attr(0, "pragma_unroll_explicit", 1):
                        b[vi, vj] = a[vj, vi] + T.float32(2.5)
                    T.evaluate(T.call_extern("int32", "abs", 1))

    @R.function(private=True)
    def twice(x: R.Tensor((8, 4), "float32")) -> R.Tensor((8, 4), "float32"):
        return R.add(x, x)

    @R.function
    def main(
        x: R.Tensor((4, 8), "float32"),
        w: R.Tensor((4, 8), "float32"),
        v: R.Tensor(("n", 4), "float32"),
    ) -> R.Tensor((8, 4), "float32"):
        R.func_attr({"num_input": 1, "tir_var_upper_bound": {"n": 16}})
        cls = Model
        with R.dataflow():
            m = R.call_tir(cls.kernel, (w,), out_ty=R.Tensor((8, 4), "float32"))
            p = R.permute_dims(w)
            c = R.add(m, R.multiply(p, R.const(2.0, "float32")))
            R.output(c)
        d = cls.twice(c)
        e = R.call_pure_packed("anything.at.all", v, ty_args=R.Tensor((8, 4), "float32"))
        return R.add(d, e)


MODEL = tvm.ir.save_json(Model)


def as_json():
    """Anew each time."""
    return json.loads(MODEL)


def in_a_copy(folder, *arguments):
    """A command in a copy of this process: its exit code, and what it prints.

    AssertionError if it ends by a signal, or not at all.
    """
    said = folder / "said"
    child = os.fork()
    if child == 0:
        code = -1
        try:
            with open(said, "wb") as file:
                os.dup2(file.fileno(), 1)
            os.dup2(1, 2)
            sys.stdout = sys.stderr = io.TextIOWrapper(io.FileIO(1, "w"), write_through=True)
            os.environ["TMPDIR"] = str(folder / "temporary")
            os.chdir(folder)
            main([str(one) for one in arguments])
        except SystemExit as ended:
            code = ended.code
        finally:
            with contextlib.suppress(BaseException):
                sys.stdout.flush()
            os._exit(code)
    give_up = time.monotonic() + LONGEST
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > give_up:
            os.kill(child, signal.SIGKILL)
            raise AssertionError(f"{arguments} has not ended in {LONGEST} s")
        time.sleep(0.005)
    assert os.WIFEXITED(ended[1]), f"{arguments} ended by signal {os.WTERMSIG(ended[1])}"
    return os.WEXITSTATUS(ended[1]), said.read_text()
