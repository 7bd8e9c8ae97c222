"""A source of weights: what lies in which file, and where, before a byte of it is read."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from .mark import Mark
from .source_error import refuse, shown
from .tensor_type import TensorType

__all__ = ["Record", "Source", "SourceFile", "element_count"]

_DIMENSIONS = 64  # of what numpy can show


@dataclasses.dataclass(frozen=True)
class Record:
    """One weight as it is stored.

    Attributes
    ----------
    name : str
    shape : tuple of int
    dtype : str
        As TVM spells it.
    file : Path
        The real one, no link.
    offset : int
        In the file.
    nbytes : int
        That are stored.
    encoding : str
        ``raw``, or ``f32-to-bf16``: the upper halves of float32 numbers.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: Path
    offset: int
    nbytes: int
    encoding: str = "raw"

    @property
    def type(self) -> TensorType:
        """Of the tensor it becomes."""
        return TensorType(self.name, self.shape, self.dtype)


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """A file of weights, as it was when the source was opened.

    Attributes
    ----------
    path : Path
        The real one, no link.
    name : str
        As the manifest calls it.
    nbytes : int
    md5 : str or None
        Of all its bytes, if the manifest says it.
    mtime_ns : int
    inode : tuple of int
        Which file it is.
    header : str
        The sha256 of what it says of itself.
    """

    path: Path
    name: str
    nbytes: int
    md5: str | None = None
    mtime_ns: int = 0
    inode: tuple[int, int] = (0, 0)
    header: str = ""

    @classmethod
    def of(
        cls, path: Path, name: str, descriptor: int, md5: str | None = None, header: bytes = b""
    ) -> SourceFile:
        """Describe a file that is open."""
        found = os.fstat(descriptor)
        return cls(
            path=path,
            name=name,
            nbytes=found.st_size,
            md5=md5,
            mtime_ns=found.st_mtime_ns,
            inode=(found.st_dev, found.st_ino),
            header=hashlib.sha256(header).hexdigest(),
        )

    def check_unchanged(self, descriptor: int) -> None:
        """Raise a SourceError if an open file is not the one that was checked."""
        now = SourceFile.of(self.path, self.name, descriptor)
        if (now.inode, now.nbytes, now.mtime_ns) != (self.inode, self.nbytes, self.mtime_ns):
            refuse(
                shown(self.path),
                f"it has changed since it was opened ({now.nbytes:,} bytes now)",
                f"the file of {self.nbytes:,} bytes that was checked",
                "open the weights again once nobody writes them",
            )


@dataclasses.dataclass(frozen=True)
class Source:
    """Weights in files, checked, none of them read: see :func:`open_source`.

    Attributes
    ----------
    path : Path
        The manifest, or the file if there is none.
    format : str
        ``tensor-cache`` or ``safetensors``.
    records : dict of str to Record
        In the order in which they lie in the files.
    files : tuple of SourceFile
    mark : Mark or None
        Of converted weights.
    fingerprint : str
        Another one once a manifest, a header, a file's name, size or time of change is another.
    ties : dict of str to str
        Names that the files' metadata says are other weights'.
    """

    path: Path
    format: str
    records: dict[str, Record]
    files: tuple[SourceFile, ...]
    mark: Mark | None
    fingerprint: str
    ties: dict[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(
        cls,
        path: Path,
        format: str,
        records: Iterable[Record],
        files: Iterable[SourceFile],
        mark: Mark | None,
        manifest: bytes = b"",
        ties: Mapping[str, str] | None = None,
    ) -> Source:
        """Make a source of records that have been checked one by one.

        Raises
        ------
        SourceError
            There are none, or a name is given twice.
        """
        by_name: dict[str, Record] = {}
        for record in records:
            if record.name in by_name:
                refuse(
                    shown(path),
                    f"the weight {shown(record.name)} is in {shown(by_name[record.name].file)} "
                    f"and in {shown(record.file)}",
                    "each name once",
                )
            by_name[record.name] = record
        if not by_name:
            refuse(shown(path), "no weights given", "at least one", "check the path")
        files = tuple(files)
        described = [[one.name, one.nbytes, one.mtime_ns, one.header] for one in files]
        text = json.dumps([hashlib.sha256(manifest).hexdigest(), described])
        fingerprint = hashlib.sha256(text.encode()).hexdigest()
        known = {
            name: other
            for name, other in (ties or {}).items()
            if name not in by_name and other in by_name
        }
        return cls(path, format, by_name, files, mark, fingerprint, known)

    def with_ties(self) -> Source:
        """The source with a record for each name that is another weight's."""
        tied = {
            name: dataclasses.replace(self.records[other], name=name)
            for name, other in self.ties.items()
        }
        return dataclasses.replace(self, records={**self.records, **tied})

    @property
    def nbytes(self) -> int:
        """Bytes of all weights in memory."""
        return sum(record.type.nbytes or 0 for record in self.records.values())


def element_count(shape: Sequence[int], where: str) -> int:
    """How many numbers a shape has, if 64 bits can count them.

    The sizes that are not 0 are multiplied first: 2**62 x 2**62 x 0 overflows in TVM on its way.
    """
    if len(shape) > _DIMENSIONS:
        refuse(where, f"{len(shape):,} dimensions", f"at most {_DIMENSIONS}")
    count = 1
    for size in shape:
        count *= size or 1
        if count >= 1 << 60:  # times 8 bytes, 2**63
            refuse(where, f"the shape {shown(list(shape))}", "a size that 64 bits can count")
    return 0 if 0 in shape else count
