"""A module that carries the builtins: alone, beside others, beside the library, beside a stranger."""

import shutil
import subprocess

import pytest

from relax_inplace import libinfo

# What a stock process does with a module: convert, and decode. `load` comes from here.
STOCK = """
    import sys
    import numpy as np
    import tvm, tvm_ffi
    from tvm.runtime.vm import VirtualMachine

    def load(path):
        return VirtualMachine(tvm.runtime.load_module(path), tvm.cpu())

    def weights():
        generator = np.random.default_rng(0)
        return [generator.standard_normal(shape, "float32") for shape in ((32, 64), (16, 64))]

    def converts(vm):
        originals = weights()
        params = tvm_ffi.Array([tvm.runtime.tensor(one) for one in originals])
        assert vm["inplace_transform_params"](params).same_as(params)
        assert [one.numpy().tobytes() for one in params] == [one.T.tobytes() for one in originals]
        return params
"""


@pytest.mark.parametrize(
    ("module", "compiler"),
    [("self_contained", True), ("self_contained", False), ("self_contained_compiled", False)],
)
def test_runs_in_a_stock_process(exported, fresh_process, module, compiler):
    program = (
        STOCK
        + """
    vm = load(sys.argv[1])
    params = converts(vm)
    x = tvm.runtime.tensor(np.ones((1, 64), "float32"))
    print(vm["decode"](x, params).numpy().tobytes().hex())
    assert "relax_inplace" not in sys.modules
    assert "librelax_inplace" not in open("/proc/self/maps").read()
    """
    )
    said = fresh_process(program, exported.modules[module], compiler=compiler)
    assert bytes.fromhex(said.strip()) == exported.logits


def test_stays_when_it_is_closed(exported, fresh_process):
    """Its functions are in tvm-ffi's registry, and serve a module that has none."""
    fresh_process(
        STOCK
        + """
    import _ctypes, ctypes
    library = ctypes.CDLL(sys.argv[1])
    for _ in range(3):
        _ctypes.dlclose(library._handle)
    converts(load(sys.argv[2]))
    """,
        exported.modules["self_contained"],
        exported.modules["plain"],
    )


SEES_UPDATES = """
    from relax_inplace import runtime
    for path in sys.argv[1:]:
        transform = runtime.load_transform(path, tvm.cpu())
        params = runtime.Params([tvm.runtime.tensor(one) for one in weights()],
                                [one.name for one in transform.weights])
        said = []
        runtime.transform_params(transform, params, progress=said.append)
        assert [one.numpy().tobytes() for one in params] == [one.T.tobytes() for one in weights()]
        assert said and params.report.reused, (path, said, params.report)
"""


@pytest.mark.parametrize("first", ["module", "library"])
def test_beside_other_copies(exported, fresh_process, tmp_path, first):
    """Whichever comes first serves all: what one copy observes, another would not see."""
    import_it = "    import relax_inplace\n"
    load_it = "    converts(load(sys.argv[1]))\n"
    again = tmp_path / "again.so"
    shutil.copy(exported.modules["self_contained"], again)
    fresh_process(
        STOCK + (load_it + import_it if first == "module" else import_it + load_it) + SEES_UPDATES,
        exported.modules["self_contained"],
        again,
        exported.modules["plain"],
    )


# A copy of another version came first: what it says, and one of its functions.
STRANGER = """
    import tvm_ffi
    theirs = "relax_inplace.builtins of version 0.0 (load librelax_inplace.so)"
    tvm_ffi.register_global_func("relax_inplace.Builtins", lambda: theirs)
    tvm_ffi.register_global_func(theirs, lambda: None)
    @tvm_ffi.register_global_func("vm.builtin.inplace_update_tuple")
    def update(*arguments):
        raise AssertionError("another version's function was called")
"""


@pytest.mark.parametrize("module", ["self_contained", "self_contained_compiled"])
def test_functions_of_two_versions_are_not_mixed(exported, fresh_process, module):
    said = fresh_process(
        STRANGER
        + STOCK
        + """
    originals = [tvm.runtime.tensor(one) for one in weights()]
    params = tvm_ffi.Array(originals)
    try:
        load(sys.argv[1])["inplace_transform_params"](params)
    except Exception as error:
        print(error)
    assert all(field.same_as(one) for field, one in zip(params, originals))
    assert tvm_ffi.get_global_func("vm.builtin.donate_storage", allow_missing=True) is None
    """,
        exported.modules[module],
    )
    assert libinfo.BUILTINS in said


def test_python_refuses_another_version(fresh_process):
    said = fresh_process(STRANGER + "    import tvm, relax_inplace\n", fails=True)
    assert said.strip().splitlines()[-1] == (
        "ImportError: relax_inplace needs `relax_inplace.builtins of version 0.2`, but this process "
        "has `relax_inplace.builtins of version 0.0`: the first library or self-contained module "
        "that is loaded serves all; import relax_inplace before it, and export the module again"
    )


def test_a_library_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"self_contained_options: no library at .*no\.a"):
        libinfo.self_contained_options(tmp_path / "no.a")


needs_readelf = pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf")


def _dynamic(path):
    """What a library needs, and its flags."""
    done = subprocess.run(["readelf", "-dW", path], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    needed = {line.split("[")[1].rstrip("]") for line in lines if "(NEEDED)" in line}
    # Of the compiler and the C library.
    system = ("libc.", "libm.", "libstdc++.", "libgcc_s.", "ld-linux", "libpthread.", "libdl.")
    return {name for name in needed if not name.startswith(system)}, done.stdout


@needs_readelf
def test_needs_tvm_ffi_alone(exported):
    for path in (libinfo.find_library(), exported.modules["self_contained"]):
        needed, text = _dynamic(path)
        assert needed == {"libtvm_ffi.so"}
        assert "NODELETE" in text
        assert "RPATH" not in text and "RUNPATH" not in text


@needs_readelf
def test_shows_no_symbols_of_the_builtins(exported):
    for path in (libinfo.find_library(), exported.modules["self_contained"]):
        command = ["readelf", "--dyn-syms", "-W", path]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        defined = [line for line in text.splitlines() if " UND " not in line]
        assert not [line for line in defined if "13relax_inplace" in line]
