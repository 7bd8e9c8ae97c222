"""How far a load has come: a bar, a callable, or nothing."""

import pytest
import tvm
from weight_files import write_tensor_cache

from relax_inplace import runtime
from relax_inplace.runtime.progress import Progress


@pytest.mark.parametrize(
    ("progress", "shown"), [(None, False), (False, False), (True, True)]
)  # stderr is no terminal here
def test_bar(progress, shown, tmp_path, capsys):
    runtime.load_params(write_tensor_cache(tmp_path), tvm.cpu(), progress=progress)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert ("load: 100%" in captured.err) == shown
    assert ("31.0/31.0" in captured.err) == shown  # bytes
    assert ("layers.0.weight" in captured.err) == shown


def test_callable(tmp_path):
    told = []
    runtime.load_params(write_tensor_cache(tmp_path), tvm.cpu(), progress=told.append)
    assert told == [
        Progress(3, 31, "codes"),
        Progress(7, 31, "bias"),
        Progress(31, 31, "layers.0.weight"),
    ]
