"""A specimen: a model in a folder, as its owner would have it.

``model.json`` is the module, whose functions take their weights after ``num_input`` others or as a
tuple at the end; ``weights/`` is the checkpoint, under its own names; ``inputs.npz`` is what each
function is called with. Nothing that made it has to be installed where it is looked at.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy
import tvm

__all__ = ["Specimen"]


@dataclasses.dataclass
class Specimen:
    """A model, its checkpoint, and what it is called with.

    Attributes
    ----------
    mod : tvm.ir.IRModule
    checkpoint : mapping of str to numpy.ndarray
        Under its own names; more than the module wants, if that is how it comes.
    inputs : mapping of str to sequence of numpy.ndarray
        For each function that is called, what goes before the weights.
    options : mapping
        Of ``LiftInplaceTransformParams``: what the user of such a model says.
    weights : sequence of str
        What the checkpoint calls the weights of the module, in their order, by whoever made it: for
        the model as it is. The converted one has to find them by itself.
    """

    mod: tvm.IRModule
    checkpoint: Mapping[str, np.ndarray]
    inputs: Mapping[str, Sequence[np.ndarray]]
    options: Mapping[str, Any]
    weights: Sequence[str]

    def save(self, folder: Path) -> None:
        """Write it to a folder that is there."""
        (folder / "model.json").write_text(tvm.ir.save_json(self.mod))
        (folder / "weights").mkdir()
        arrays = {name: np.ascontiguousarray(array) for name, array in self.checkpoint.items()}
        safetensors.numpy.save_file(arrays, folder / "weights" / "model.safetensors")
        flat = {
            f"{name} {i}": array
            for name, arrays in self.inputs.items()
            for i, array in enumerate(arrays)
        }
        np.savez(folder / "inputs.npz", **flat)
        said = {
            "options": self.options,
            "weights": self.weights,
            "calls": list(self.inputs),
        }
        (folder / "said.json").write_text(json.dumps(said))

    @classmethod
    def load(cls, folder: Path) -> Specimen:
        """Read it; the checkpoint stays in its file."""
        said = json.loads((folder / "said.json").read_text())
        with np.load(folder / "inputs.npz") as flat:
            inputs: dict[str, list[np.ndarray]] = {name: [] for name in said["calls"]}
            for key in flat.files:
                inputs[key.split()[0]].append(flat[key])
        mod = tvm.ir.load_json((folder / "model.json").read_text())
        return cls(mod, {}, inputs, said["options"], said["weights"])

    @staticmethod
    def weights_of(folder: Path) -> dict[str, np.ndarray]:
        """The checkpoint, read in a way that is not ours."""
        data = (folder / "weights" / "model.safetensors").read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        found = {}
        for name, entry in json.loads(data[8:start]).items():
            if name != "__metadata__":
                first, end = entry["data_offsets"]
                array = np.frombuffer(data[start + first : start + end], _DTYPES[entry["dtype"]])
                found[name] = array.reshape(entry["shape"])
        return found


_DTYPES = {
    **{
        f"{kind}{8 * size}": np.dtype(f"{kind.lower()}{size}")
        for kind in "IUF"
        for size in (2, 4, 8)
    },
    "I8": np.dtype("int8"),
    "U8": np.dtype("uint8"),
    "BOOL": np.dtype("bool"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
