"""What is free: the machine's memory, or what the cgroups leave of it."""

import psutil
import pytest
import tvm

from relax_inplace.runtime.memory import _left_in_cgroups, available_bytes


def test_host():
    assert 0 < available_bytes(tvm.cpu()) <= psutil.virtual_memory().total


def group(folder, version, limit, used, cached):
    folder.mkdir(parents=True, exist_ok=True)
    one = version == 1
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if one else ("memory.max", "memory.current")  # fmt: skip
    prefix = "total_" if one else ""
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(
        f"{prefix}active_file {cached - 1}\n{prefix}inactive_file 1\n"
    )


@pytest.mark.parametrize(
    ("version", "line", "folder"),
    [(1, "4:cpu,memory:/jobs/one", "memory/jobs/one"), (2, "0::/jobs/one", "jobs/one")],
)
@pytest.mark.parametrize(
    ("inner", "outer", "left"),
    [
        ((100, 60, 20), (1000, 60, 20), 60),  # pages of files can be given up
        ((1000, 60, 20), (100, 90, 10), 20),  # the group around it has less left
        (("max", 60, 20), (100, 90, 10), 20),
        ((100, 200, 10), (1000, 0, 0), 0),
    ],
)
def test_cgroups(version, line, folder, inner, outer, left, tmp_path):
    if version == 1 and inner[0] == "max":
        inner = (1 << 62, *inner[1:])  # as version 1 says it
    mount = tmp_path / "cgroup"
    group(mount / folder, version, *inner)
    group((mount / folder).parent, version, *outer)
    membership = tmp_path / "membership"
    membership.write_text(f"9:name=systemd:/\n{line}\n")
    assert _left_in_cgroups(membership, mount) == left


def test_in_a_container(tmp_path):
    """The path is the host's; here is only the root of the mount."""
    group(tmp_path / "memory", 1, 100, 60, 20)
    (tmp_path / "membership").write_text("4:memory:/docker/4f2a\n")
    assert _left_in_cgroups(tmp_path / "membership", tmp_path) == 60


def test_no_cgroups(tmp_path):
    assert _left_in_cgroups(tmp_path / "none", tmp_path) is None
