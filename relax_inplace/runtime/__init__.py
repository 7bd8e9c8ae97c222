"""Parameter tuples: load, own, transform, report, save. Needs TVM's runtime, never its compiler."""

from .convert.failure import TransformError, TransformInterrupted
from .convert.held import HeldWeight, HeldWeightsError
from .convert_params import convert_params
from .load_params import clear_cache, load_params
from .mark import Mark
from .memory_sampler import Sample
from .open_source import open_source
from .params import Params
from .progress import Progress
from .report import Report
from .save_params import SaveError, save_params
from .source import Record, Source
from .source_error import SourceError
from .source_reader import SourceReader
from .stream_params import stream_params
from .stream_reader import ReadAhead
from .tensor_type import TensorType
from .transform import ModuleError, Transform, TransformStep, load_transform
from .transform_params import (
    ConvertedError,
    VerificationError,
    restore_params,
    transform_params,
)
from .weight_selection import MismatchError

__all__ = [
    "ConvertedError",
    "HeldWeight",
    "HeldWeightsError",
    "Mark",
    "MismatchError",
    "ModuleError",
    "Params",
    "Progress",
    "ReadAhead",
    "Record",
    "Report",
    "Sample",
    "SaveError",
    "Source",
    "SourceError",
    "SourceReader",
    "TensorType",
    "Transform",
    "TransformError",
    "TransformInterrupted",
    "TransformStep",
    "VerificationError",
    "clear_cache",
    "convert_params",
    "load_params",
    "load_transform",
    "open_source",
    "restore_params",
    "save_params",
    "stream_params",
    "transform_params",
]
