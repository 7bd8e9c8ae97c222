"""TVM RPC on loopback: weights are converted on the far side, and never cross."""

import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import tvm
from click.testing import CliRunner
from memory import needs_clear_refs

from relax_inplace import runtime
from relax_inplace.cli import main
from relax_inplace.libinfo import BUILTINS, find_library

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "deploy.md"

# Weights of 16 and twice 2 MB, of which two become one: what is resident there shows them.
MODEL = """\
from tvm.script import ir as I
from tvm.script import relax as R

@I.ir_module
class Model:
    @R.function
    def decode(
        x: R.Tensor((1, 1024), "float32"),
        params: R.Tuple(
            R.Tensor((4096, 1024), "float32"),
            R.Tensor((512, 1024), "float32"),
            R.Tensor((512, 1024), "float32"),
        ),
    ):
        w = R.permute_dims(params[0])
        v = R.permute_dims(R.concat((params[1], params[2]), axis=0))
        return R.concat((R.matmul(x, w), R.matmul(x, v)), axis=1)
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Two folders: `with_library` and `alone` hold a model.so each; weights; the logits."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "model.py").write_text(MODEL)
    for name, options in {"with_library": [], "alone": ["--self-contained"]}.items():
        (folder / name).mkdir()
        arguments = [
            "build",
            str(folder / "model.py"),
            *options,
            "-o",
            str(folder / name / "model.so"),
        ]
        assert CliRunner().invoke(main, arguments).exit_code == 0
    generator = np.random.default_rng(0)
    transform = runtime.load_transform(folder / "alone" / "model.so", tvm.cpu())
    params = runtime.Params(
        [tvm.runtime.tensor(generator.random(one.shape, "float32")) for one in transform.weights],
        [one.name for one in transform.weights],
    )
    runtime.save_params(params, folder / "weights", "tensor-cache")
    runtime.transform_params(transform, params)
    x = tvm.runtime.tensor(np.ones((1, 1024), "float32"))
    return folder, transform.vm["decode"](x, params._fields()).numpy().tobytes()


class Server:
    """TVM's server, in processes of its own."""

    def __init__(self, *options):
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
        command = [sys.executable, "-m", "tvm.exec.rpc_server", "--host", "127.0.0.1"]
        command += ["--port", str(port), "--port-end", str(port + 100), *map(str, options)]
        self.process = subprocess.Popen(
            command,
            env={**os.environ, "TVM_USE_RUNTIME_LIB": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        said = ""
        for line in self.process.stderr:  # ends if the server does
            said += line
            bound = re.search(r"bind to 127\.0\.0\.1:(\d+)", line)
            if bound:
                self.port = int(bound[1])
                return
        self.stop()
        raise AssertionError(said)

    def stop(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.stderr.close()
        self.process.wait(30)


@pytest.fixture(scope="module")
def with_library():
    server = Server("--load-library", find_library())
    yield server
    server.stop()


@pytest.fixture(scope="module")
def alone():
    server = Server()
    yield server
    server.stop()


SETUP = """
    import os, sys
    import numpy as np
    host, port, folder = "127.0.0.1", int(sys.argv[1]), sys.argv[2]
    x = np.ones((1, 1024), "float32")
"""


def documented():
    """The document's program, in two parts: until the weights are there, and what follows."""
    text = DOCUMENT.read_text()
    block = text[text.index("## TVM RPC") :].split("```python\n")[1].split("```")[0]
    first, call, last = block.partition('params = vm["inplace_transform_params"](params)\n')
    return first, call, last


# The serving process is measured from this side: it runs on the same machine.
MEASURING = """
    import psutil
    serving = psutil.Process(int(sys.argv[3])).children(recursive=True)
    pid = max(serving, key=lambda one: (one.create_time(), one.pid)).pid

    def resident_mb(key):
        with open(f"/proc/{pid}/status") as status:
            return next(int(line.split()[1]) / 1024 for line in status if line.startswith(key))

    with open(f"/proc/{pid}/clear_refs", "w") as refs:
        refs.write("5")  # resets VmHWM
    before = resident_mb("VmRSS")
"""
MEASURED = """
    print(before, resident_mb("VmHWM"), resident_mb("VmRSS"))
"""


def client(*parts, arguments, cwd):
    """Run a program that has TVM's runtime, and nothing of ours."""
    program = "".join(textwrap.dedent(part) for part in (SETUP, *parts))
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env={**os.environ, "TVM_USE_RUNTIME_LIB": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        cwd=cwd,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_clear_refs
@pytest.mark.parametrize("kind", ["with_library", "alone"])
def test_converts_over_there(served, kind, request):
    """Bitwise, and in the memory of the largest weight: it is measured over there."""
    folder, logits = served
    server = request.getfixturevalue(kind)
    load, convert, decode = documented()
    said = client(
        *(load, MEASURING, convert, MEASURED, decode),
        """
    assert "relax_inplace" not in sys.modules
    print(logits.tobytes().hex())
    """,
        arguments=[server.port, folder / "weights", server.process.pid],
        cwd=folder / kind,
    )
    figures, result = said.strip().splitlines()
    assert bytes.fromhex(result) == logits
    resident, peak, left = map(float, figures.split())
    assert resident > 20 and peak - resident <= 16 + 4 and left - resident <= 4, figures


def test_errors_come_back(served, alone):
    folder, _ = served
    said = client(
        """
    import tvm
    from tvm import rpc
    from tvm.runtime.vm import VirtualMachine
    remote = rpc.connect(host, port, session_timeout=60)
    remote.upload("with_library/model.so")
    def fails(function, *arguments):
        try:
            function(*arguments)
        except tvm.error.RPCError as error:
            print(" ".join(str(error).split()))
        else:
            raise AssertionError
    fails(VirtualMachine, remote.load_module("model.so"), remote.cpu())
    fails(remote.get_function("vm.builtin.tensor_cache.load"), "/no/such/folder", 1, 0)
    fails(remote.get_function("vm.builtin.param_array_from_cache_by_name_unpacked"), "w")
    """,
        arguments=[alone.port, ""],
        cwd=folder,
    )
    library, no_folder, no_weight = said.strip().splitlines()
    assert BUILTINS in library
    assert "Cannot open /no/such/folder/tensor-cache.json" in no_folder
    assert no_weight.endswith("Cannot find parameter in cache: w")


def test_wrong_arguments_come_back(with_library):
    """Of each of the library's functions; the server goes on, in the same session."""
    listed = """
        import tvm, tvm_ffi
        known = set(tvm_ffi.registry.list_global_func_names())
        import relax_inplace
        print(*sorted(set(tvm_ffi.registry.list_global_func_names()) - known), sep="\\n")
    """
    command = [sys.executable, "-I", "-c", textwrap.dedent(listed)]
    names = subprocess.check_output(command, text=True)
    assert names.count("\n") > 20
    said = client(
        """
    import itertools, tvm, tvm_ffi
    from tvm import rpc
    remote = rpc.connect(host, port, session_timeout=60)
    tensor = tvm.runtime.empty((4,), "int8", remote.cpu())
    fields = remote.get_function("vm.builtin.make_tuple")(tensor, None)
    values = [None, -2**63, "", tensor, fields, remote.device("cuda", 0), tvm_ffi.dtype("int4")]
    refused = 0
    for name in folder.splitlines():
        for count in (0, 1, 2, 3, 4, 6):
            for first in range(len(values)):
                taken = itertools.islice(itertools.cycle(values), first, first + count)
                try:
                    remote.get_function(name)(*taken)
                except tvm.error.RPCError:
                    refused += 1
    remote.get_function("vm.builtin.make_tuple")(tensor)
    print(refused)
    """,
        arguments=[with_library.port, names],
        cwd=None,
    )
    assert int(said) > 800
