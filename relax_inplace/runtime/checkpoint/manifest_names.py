"""Which file in a folder says what its weights are, and who looks at which.

We look for `SEARCHED`, in this order, then for the only .safetensors file. TVM looks for the first,
before 0.22 for the second, in a browser also for those with `b16`; Hugging Face for the third, then
for the fourth. `INSTEAD` of a new manifest is what a reader of its format could look at, and what
we would find before it, in our order.
"""

from __future__ import annotations

__all__ = ["INDEX", "INSTEAD", "SEARCHED", "SINGLE", "TENSOR_CACHE"]

TENSOR_CACHE = "tensor-cache.json"
SINGLE = "model.safetensors"  # no manifest: the weights themselves
INDEX = "model.safetensors.index.json"
_EARLIER = "ndarray-cache.json"  # the name before TVM 0.22
_SAME_FILES = ("tensor-cache-b16.json", "ndarray-cache-b16.json")  # TVM's writer adds one
SEARCHED = (TENSOR_CACHE, _EARLIER, SINGLE, INDEX)
INSTEAD = {
    TENSOR_CACHE: (_EARLIER, *_SAME_FILES),
    INDEX: (TENSOR_CACHE, _EARLIER, *_SAME_FILES, SINGLE),
}
