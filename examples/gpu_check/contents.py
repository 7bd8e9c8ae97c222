"""What is in the weights that are converted: the same on the machine that builds and that checks.

Definition: the weight number ``j`` of the step ``s`` of a layer holds one of two contents, by the
number of the layer. They are made from the raw stream of numpy's PCG64, which no version changes.
Numbers that are computed with are small multiples of 2^-12: their results are rounded, but none is
an infinity, a NaN or subnormal, in which devices may differ.
"""

from __future__ import annotations

import math

import numpy as np

__all__ = ["CONTENTS", "content"]

CONTENTS = 2


def content(shape: list[int], dtype: str, step: int, j: int, layer: int) -> np.ndarray:
    """The numbers of a weight."""
    count = math.prod(shape)
    kind = np.dtype(dtype)
    generator = np.random.PCG64((step, j, layer % CONTENTS))
    if dtype == "float32":
        raw = generator.random_raw((count + 3) // 4).view("int16")[:count]
        return (raw.astype("float32") / 4096).reshape(shape)
    words = generator.random_raw((count * kind.itemsize + 7) // 8)
    return words.view("uint8")[: count * kind.itemsize].view(kind).reshape(shape)
