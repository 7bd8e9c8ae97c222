"""Refuses to run beside a TVM or a tvm-ffi that this release was not written for."""

from __future__ import annotations

from importlib import metadata

from packaging.requirements import Requirement

__all__ = ["check_version", "check_versions"]

_CHECKED = ("apache-tvm", "apache-tvm-ffi")


def check_version(requirement: Requirement, found: str) -> None:
    """Raise ImportError unless ``found`` lies within the bounds of ``requirement``."""
    if not requirement.specifier.contains(found, prereleases=True):
        raise ImportError(
            f"relax_inplace needs {requirement.name} {requirement.specifier}, but {found} is "
            f"installed: pip install '{requirement}'"
        )


def check_versions() -> None:
    """Compare what is installed with the bounds in our own package metadata.

    A distribution that is not installed at all passes: a process may hold ``tvm_ffi`` only.

    Raises
    ------
    ImportError
        Says which version was found and which is needed.
    """
    try:
        requirements = metadata.requires("relax-inplace") or []
    except metadata.PackageNotFoundError:
        raise ImportError(
            "relax_inplace is not installed, this is its source tree: run `pip install .` in it, "
            "and import it from another folder"
        ) from None
    for text in requirements:
        requirement = Requirement(text)
        if requirement.name in _CHECKED:
            try:
                found = metadata.version(requirement.name)
            except metadata.PackageNotFoundError:
                continue
            check_version(requirement, found)
