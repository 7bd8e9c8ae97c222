"""Parameter tuples: load, own, transform, report, save. Needs TVM's runtime, never its compiler."""

from .load_params import clear_cache, load_params
from .mark import Mark
from .open_source import open_source
from .params import Params
from .progress import Progress
from .save_params import SaveError, save_params
from .source import Record, Source
from .source_error import SourceError
from .source_reader import SourceReader
from .stream_reader import ReadAhead
from .tensor_type import TensorType
from .weight_selection import MismatchError

__all__ = [
    "Mark",
    "MismatchError",
    "Params",
    "Progress",
    "ReadAhead",
    "Record",
    "SaveError",
    "Source",
    "SourceError",
    "SourceReader",
    "TensorType",
    "clear_cache",
    "load_params",
    "open_source",
    "save_params",
]
