"""Weights in files: opened and checked, chosen from, read, saved.

=====================  =============================================================================
``open``               a path -> a :class:`Checkpoint`, of which no weight is read
``tensor_cache``       TVM's format: read and written
``safetensors``        Hugging Face's format: read and written
``manifest``           JSON, and what it has to be; ``manifest_names``: who looks for which
``files``              which files may be read, and how
``selection``          what of a checkpoint becomes a module's weights; ``tied_weights``: the same
                       ones
``reading``            a weight -> a tensor; ``prefetching``: the next one meanwhile
``loading``            all of them: ``load_params``
``saving``             ``save_params``; ``folder_update``: the old or the new weights, at any moment
=====================  =============================================================================
"""

from .checkpoint import Checkpoint
from .error import CheckpointError
from .loading import load_params
from .open import open_checkpoint
from .prefetching import Prefetcher
from .reading import CheckpointReader
from .saving import SaveError, save_params
from .selection import MismatchError
from .stored_tensor import StoredTensor

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "CheckpointReader",
    "MismatchError",
    "Prefetcher",
    "SaveError",
    "StoredTensor",
    "load_params",
    "open_checkpoint",
    "save_params",
]
