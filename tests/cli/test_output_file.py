"""What a command writes replaces what was there when it is whole, and not before."""

import pytest

from relax_inplace.cli.messages import RefusedError
from relax_inplace.cli.output_file import output_file


def test_it_gets_its_name_at_the_end(tmp_path):
    path = tmp_path / "out.py"
    path.write_text("old")
    link = tmp_path / "link.py"
    link.symlink_to(path)
    with output_file(str(link)) as file:
        file.write_text("new")
        assert path.read_text() == "old"
        assert (file.parent, file.suffix) == (tmp_path, ".py")
    assert path.read_text() == "new"
    assert link.is_symlink()
    assert set(tmp_path.iterdir()) == {path, link}


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (OSError(28, "No space left on device"), RefusedError),
        (RuntimeError("ld"), RuntimeError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_a_failure_leaves_what_was_there(tmp_path, raised, expected):
    path = tmp_path / "out.py"
    path.write_text("old")
    with pytest.raises(expected), output_file(str(path)) as file:
        file.write_text("half of the n")
        raise raised
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
