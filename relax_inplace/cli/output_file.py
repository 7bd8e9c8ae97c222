"""A file that a command writes: an old one stays until the new one is whole."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from .messages import RefusedError

__all__ = ["output_file", "require_folder"]


def require_folder(path: Path, what: str) -> None:
    """Refuse, before the work is done, a file or folder that cannot be made.

    Raises
    ------
    RefusedError
        Its first folder that exists is no folder, or cannot be written to.
    """
    folder = path.absolute().parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise RefusedError(f"{what}: {folder} is no folder; give another path")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise RefusedError(f"{what}: {folder} cannot be written to; give another path")


@contextlib.contextmanager
def output_file(path: str) -> Iterator[Path]:
    """A temporary path to write to; the file is renamed at the end.

    Yields
    ------
    Path
        A file in the same folder with the same ending, which is not there yet.

    Raises
    ------
    RefusedError
        The system refuses.
    """
    target = Path(path).resolve()  # through a link, to what it names
    temporary = target.with_name(f".{target.stem}.{secrets.token_hex(6)}{target.suffix}")
    try:
        yield temporary
        os.replace(temporary, target)
    except OSError as error:
        raise RefusedError(f"{path}: {error.strerror}; an old file is unchanged") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
