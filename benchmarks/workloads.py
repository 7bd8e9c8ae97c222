"""What is converted: weights of the shapes that models have, and what is done to each.

Definition: a workload is a list of steps; a step spends one or several weights and makes one new
one, or several, of them, by one of :mod:`operations`. It has as many equal layers as come nearest
to the bytes asked for, at least one; where its name says how many, it has those.

The shapes are those of Llama-3-8B's linear layers, and of the experts of Qwen3-30B-A3B, where one
tensor holds a matrix of each of the 128 experts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

__all__ = ["WORKLOADS", "Step", "Weight", "Workload"]


@dataclasses.dataclass(frozen=True)
class Weight:
    """A tensor that is converted."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclasses.dataclass(frozen=True)
class Step:
    """What makes new tensors, and the weights that it makes them of, which nothing else needs."""

    operation: str
    weights: tuple[Weight, ...]


@dataclasses.dataclass(frozen=True)
class Workload:
    """Steps, in their order; the weights are theirs, one after the other."""

    name: str
    steps: tuple[Step, ...]

    @property
    def weights(self) -> list[Weight]:
        """What is converted, in the order of the steps."""
        return [weight for step in self.steps for weight in step.weights]

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return sum(weight.nbytes for weight in self.weights)

    @classmethod
    def of(cls, name: str, nbytes: float, shrink: int = 1) -> Workload:
        """A workload by its name.

        Parameters
        ----------
        name : str
            One of ``WORKLOADS``.
        nbytes : float
            Of the weights together, more or less.
        shrink : int
            What N and K are divided by: 8 at most, for a quick look.
        """
        layer = [Step(operation, tuple(weights)) for operation, weights in WORKLOADS[name](shrink)]
        is_given = name[0].isdigit()
        count = 1 if is_given else max(1, round(nbytes / cls(name, tuple(layer)).nbytes))
        return cls(name, tuple(layer) * count)


# -- matrices, N x K -------------------------------------------------------------------------------

_QUERY, _KEY, _OUT = (4096, 4096), (1024, 4096), (4096, 4096)
_LLAMA = (_QUERY, _KEY, _KEY, _OUT, (14336, 4096), (14336, 4096), (4096, 14336))
_EXPERTS, _EXPERT = 128, ((1536, 2048), (2048, 768))  # gate and up in one; down

_Layer = list[tuple[str, list[Weight]]]


def _shrunk(matrices: tuple[tuple[int, int], ...], shrink: int) -> list[tuple[int, int]]:
    return [(n // shrink, k // shrink) for n, k in matrices]


def _each(operation: str, dtype: str) -> Callable[[int], _Layer]:
    """One operation on each matrix of a Llama's layer."""
    return lambda shrink: [(operation, [Weight(shape, dtype)]) for shape in _shrunk(_LLAMA, shrink)]


def _groups(leading: tuple[int, ...], n: int, k: int) -> _Layer:
    """MLC-LLM's q4f16_1 to q4f16_0: the codes transposed, and the scales."""
    codes, scales = (
        Weight((*leading, n, k // 8), "uint32"),
        Weight((*leading, n, k // 32), "float16"),
    )
    return [("transpose", [codes]), ("transpose", [scales])]


WORKLOADS: dict[str, Callable[[int], _Layer]] = {
    "transpose float32": _each("transpose", "float32"),
    "transpose float16": _each("transpose", "float16"),
    "transpose uint8": _each("transpose", "uint8"),
    "q4f16_1 to q4f16_0": lambda shrink: [
        step for n, k in _shrunk(_LLAMA, shrink) for step in _groups((), n, k)
    ],
    "q4f16_1 to _0, experts": lambda shrink: [
        step for n, k in _shrunk(_EXPERT, shrink) for step in _groups((_EXPERTS,), n, k)
    ],
    "GGML Q4_0 8x8": lambda shrink: [
        ("interleave", [Weight((n, k // 32 * 18), "uint8")]) for n, k in _shrunk(_LLAMA, shrink)
    ],
    "FasterTransformer int4": lambda shrink: [
        ("mixed_gemm", [Weight((k, n // 2), "int8")]) for n, k in _shrunk(_LLAMA, shrink)
    ],
    "FasterTransformer int8": lambda shrink: [
        ("mixed_gemm_8", [Weight((k, n), "int8")]) for n, k in _shrunk(_LLAMA, shrink)
    ],
    "AWQ to groups": lambda shrink: [
        ("awq", [Weight((k, n // 8), "int32")]) for n, k in _shrunk(_LLAMA, shrink)
    ],
    "GPTQ to Marlin int4": lambda shrink: [
        ("marlin", [Weight((k // 8, n), "int32")]) for n, k in _shrunk(_LLAMA, shrink)
    ],
    "tiles 16x32 float16": _each("tiles", "float16"),
    "split QKV": lambda shrink: [
        ("split", [Weight(shape, "float16")]) for shape in _shrunk(((6144, 4096),), shrink)
    ],
    "concat QKV": lambda shrink: [
        ("concat", [Weight(shape, "float16") for shape in _shrunk((_QUERY, _KEY, _KEY), shrink)])
    ],
    "cast to float16": _each("to_float16", "float32"),
    "scale in place": _each("scale", "float32"),
    "32 equal layers": lambda shrink: [
        ("transpose", [Weight(shape, "float16")]) for shape in _shrunk((_KEY,) * 32, shrink)
    ],
}
