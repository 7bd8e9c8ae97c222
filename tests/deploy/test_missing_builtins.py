"""A module that meets a runtime without the builtins says which library to load."""

import pytest

from relax_inplace.libinfo import BUILTINS


@pytest.mark.parametrize("module", ["plain", "streamed"])
def test_when_it_is_loaded(exported, fresh_process, module):
    said = fresh_process(
        """
        import sys, tvm
        from tvm.runtime.vm import VirtualMachine
        VirtualMachine(tvm.runtime.load_module(sys.argv[1]), tvm.cpu())
        """,
        exported.modules[module],
        fails=True,
    )
    last = said.strip().splitlines()[-1]
    assert BUILTINS in last
    assert "load librelax_inplace.so before the module, in Python: import relax_inplace" in last


def test_when_it_is_compiled_and_called(exported, fresh_process):
    """Functions are looked up when they are called: this one first, before a field has changed."""
    said = fresh_process(
        """
        import sys, numpy as np, tvm, tvm_ffi
        from tvm.runtime.vm import VirtualMachine
        vm = VirtualMachine(tvm.runtime.load_module(sys.argv[1]), tvm.cpu())
        originals = [tvm.runtime.tensor(np.ones(s, "float32")) for s in ((32, 64), (16, 64))]
        params = tvm_ffi.Array(originals)
        try:
            vm["inplace_transform_params"](params)
        except Exception as error:
            print(error)
        assert all(field.same_as(one) for field, one in zip(params, originals))
        assert vm["decode"] is not None  # what converts nothing is not concerned
        """,
        exported.modules["compiled"],
    )
    assert BUILTINS in said
