"""A checkpoint: what lies in which file, and where, before a byte of it is read."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..provenance import Provenance
from ..shown import shown
from .error import refuse
from .stored_tensor import CheckpointFile, StoredTensor

__all__ = ["Checkpoint"]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Weights in files, checked, none of them read: see :func:`open_checkpoint`.

    Attributes
    ----------
    path : Path
        The manifest, or the file if there is none.
    format : str
        ``tensor-cache`` or ``safetensors``.
    records : dict of str to StoredTensor
        In the order in which they lie in the files.
    files : tuple of CheckpointFile
    provenance : Provenance or None
        Of converted weights.
    fingerprint : str
        Another one once a manifest, a header, a file's name, size or time of change is another.
    ties : dict of str to str
        Names that the files' metadata says are other weights'.
    """

    path: Path
    format: str
    records: dict[str, StoredTensor]
    files: tuple[CheckpointFile, ...]
    provenance: Provenance | None
    fingerprint: str
    ties: dict[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(
        cls,
        path: Path,
        format: str,
        records: Iterable[StoredTensor],
        files: Iterable[CheckpointFile],
        provenance: Provenance | None,
        manifest: bytes = b"",
        ties: Mapping[str, str] | None = None,
    ) -> Checkpoint:
        """Make a checkpoint of records that have been checked; no name may be there twice."""
        by_name: dict[str, StoredTensor] = {}
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
        described = [[one.name, *one.state[:2], one.header] for one in files]
        text = json.dumps([hashlib.sha256(manifest).hexdigest(), described])
        fingerprint = hashlib.sha256(text.encode()).hexdigest()
        known = {
            name: other
            for name, other in (ties or {}).items()
            if name not in by_name and other in by_name
        }
        return cls(path, format, by_name, files, provenance, fingerprint, known)

    def with_ties(self) -> Checkpoint:
        """The checkpoint with a record for each name that is another weight's."""
        tied = {
            name: dataclasses.replace(self.records[other], name=name)
            for name, other in self.ties.items()
        }
        return dataclasses.replace(self, records={**self.records, **tied})

    @property
    def nbytes(self) -> int:
        """Bytes of all weights in memory."""
        return sum(record.nbytes or 0 for record in self.records.values())
