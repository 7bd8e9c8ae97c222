"""Parameter tuples: load, own, transform, report, save. Needs TVM's runtime, never its compiler."""

from .checkpoint import (
    Checkpoint,
    CheckpointError,
    CheckpointReader,
    MismatchError,
    Prefetcher,
    SaveError,
    StoredTensor,
    clear_cache,
    load_params,
    open_checkpoint,
    save_params,
)
from .convert.failure import TransformError, TransformInterrupted
from .convert.held import HeldWeight, HeldWeightsError
from .convert_params import convert_params
from .mark import Mark
from .memory_sampler import Sample
from .params import Params
from .progress import Progress
from .report import Report
from .stream_params import stream_params
from .tensor_info import TensorInfo
from .transform import ModuleError, Transform, TransformStep, load_transform
from .transform_params import (
    ConvertedError,
    VerificationError,
    restore_params,
    transform_params,
)

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "CheckpointReader",
    "ConvertedError",
    "HeldWeight",
    "HeldWeightsError",
    "Mark",
    "MismatchError",
    "ModuleError",
    "Params",
    "Prefetcher",
    "Progress",
    "Report",
    "Sample",
    "SaveError",
    "StoredTensor",
    "TensorInfo",
    "Transform",
    "TransformError",
    "TransformInterrupted",
    "TransformStep",
    "VerificationError",
    "clear_cache",
    "convert_params",
    "load_params",
    "load_transform",
    "open_checkpoint",
    "restore_params",
    "save_params",
    "stream_params",
    "transform_params",
]
