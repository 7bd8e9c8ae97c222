"""Load weights from files, as their only owner."""

from __future__ import annotations

import os
import resource
from collections import Counter
from collections.abc import Collection
from typing import Any

from ...weight_names import GivenNames
from ..device import device_of, is_host
from ..forget_locals import forget_locals
from ..memory import available_bytes
from ..params import Params
from ..progress import ProgressOption, progress_bar
from ..provenance import mark_tensors
from ..shown import shown
from ..slots import in_slots
from .checkpoint import Checkpoint
from .error import refuse
from .open import open_checkpoint
from .reading import CheckpointReader, UnreadWeights
from .selection import Selection, select
from .tied_weights import require_equal

__all__ = ["load_params", "load_selected", "require_room"]


def load_params(
    path: str | os.PathLike[str] | Checkpoint,
    device: Any,
    transform: Any = None,
    *,
    names: GivenNames | None = None,
    extra: str = "error",
    ties: bool = False,
    checksum: bool = False,
    progress: ProgressOption = None,
) -> Params:
    """Load weights.

    Everything is checked before memory is taken for the first of them. Each is read into the memory
    of its tensor, in the order of the files; TVM's own cache of weights is not used.

    On the host, a weight that the transform only moves stays in its file: it is read on the way to
    its new place, or when somebody asks for a weight. The files are kept open until then. They may
    be removed, but not written to: that is an error.

    Parameters
    ----------
    path : path or Checkpoint
        See :func:`open_checkpoint`.
    device : tvm.runtime.Device or str
        Such as ``tvm.cuda(1)`` or ``"cuda:1"``.
    transform : Transform or sequence of str, optional
        What a compiled module says of itself: its weights must be there, of its shapes and dtypes.
        Or the names of some weights, in the order of the tuple. By default all, in the order of the
        files.
    names : mapping, sequence, callable or path, optional
        What the transform's weights are called in the files: a mapping from the module's names (or
        from the files'), a sequence in the order of its weights, or a JSON file with either.
        Without it, names are found by the rules of :mod:`relax_inplace.weight_names`.
    extra : str
        Whether the files may hold weights that the transform does not want: ``"error"``, or
        ``"ignore"``; ``ignored`` of the result names them.
    ties : bool
        Whether weights that the metadata of safetensors says are others' are there, too: see
        :func:`open_checkpoint`. Each is read into memory of its own.
    checksum : bool
        Compare md5 sums, which takes host memory for one file: see :class:`CheckpointReader`.
    progress : bool or callable, optional
        See :func:`progress_bar`.

    Returns
    -------
    Params
        Nothing else refers to a tensor in it. Its ``provenance`` and its names are those of the
        files. Weights that the transform takes for one (``tied=``) are one tensor; where the files
        hold several, they have to be equal.

    Raises
    ------
    CheckpointError
        The files are damaged, are not what is asked for, or need more memory than is free.
    """
    device = device_of(device)
    checkpoint = open_checkpoint(path, ties=ties)
    selection = select(checkpoint, transform, names, extra)
    require_room(checkpoint, selection, device, checksum)
    reader = CheckpointReader(checkpoint, device, checksum)
    return load_selected(checkpoint, selection, reader, progress, _later(selection, transform))


def _later(selection: Selection, transform: Any) -> set[str]:
    """The weights that may be unread, by their names in the files: each is in one slot."""
    if not hasattr(transform, "moved") or selection.provenance is not None:
        return set()
    times = Counter(record.name for record in selection.records)
    moved = [selection.records[index].name for index in transform.moved]
    names = {name for name in moved if times[name] == 1}
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4  # of open files
    files = dict.fromkeys(one.file for one in selection.records if one.name in names)
    kept = set(files if most < 0 else list(files)[:most])
    return {one.name for one in selection.records if one.name in names and one.file in kept}


def load_selected(
    checkpoint: Checkpoint,
    selection: Selection,
    reader: CheckpointReader,
    progress: ProgressOption,
    later: Collection[str] = (),
) -> Params:
    """Read what is selected, as the only owner of it: see :func:`load_params`."""
    tensors: dict[str, Any] = {}
    try:
        require_equal(checkpoint, selection.tied)
        wanted = {record.name for record in selection.records}
        total = sum(checkpoint.records[name].stored_nbytes for name in wanted)
        with reader, progress_bar(progress, total, "load") as bar:
            for name, record in checkpoint.records.items():  # as they lie in the files
                if name in wanted:
                    tensors[name] = reader.read(name, later=name in later)
                    bar.update(record.stored_nbytes, name)
        params = Params(
            in_slots((tensors[one.name] for one in selection.records), selection.slots),
            selection.names,
            provenance=selection.provenance,
            source=checkpoint.fingerprint,
        )
        if selection.provenance is not None:
            mark_tensors(tensors.values(), selection.provenance.transform)
        if reader.unread:
            records = zip(selection.slots, selection.records, strict=True)
            slots = [slot for slot, one in records if one.name in reader.unread]
            params._unread = UnreadWeights(slots)
        params.ignored = tuple(selection.ignored)
        params._read_as.update(selection.read_as)
        return params
    except BaseException as error:
        tensors.clear()
        forget_locals(error)  # one of them is the weight that was being read
        raise


def require_room(checkpoint: Checkpoint, selection: Selection, device: Any, checksum: bool) -> None:
    """Refuse weights that do not fit into what is free."""
    records = {record.name: record for record in selection.records}  # tied ones once
    needed = sum(record.nbytes or 0 for record in records.values())
    staged = max((file.nbytes for file in checkpoint.files), default=0) if checksum else 0
    if is_host(device):
        needed += staged
    free = available_bytes(device)
    if free is not None and needed > free:
        refuse(
            shown(checkpoint.path),
            f"weights that take {needed:,} bytes",
            f"at most the {free:,} that are free on {device}",
            "free memory, or convert them with a streamed transform, which needs less at once",
        )
