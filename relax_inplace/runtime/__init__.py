"""Load, own, convert and save a model's weights. Needs TVM's runtime, never its compiler.

:mod:`.checkpoint` reads and writes files. :mod:`.convert` owns weights and converts them.
"""

from .checkpoint import CheckpointError, MismatchError, SaveError, load_params, save_params
from .convert.failure import TransformError, TransformInterrupted
from .convert.held import HeldWeightsError
from .convert_params import convert_params
from .params import Params
from .report import Report
from .stream_params import stream_params
from .transform import ModuleError, Transform, load_transform
from .transform_params import (
    ConvertedError,
    VerificationError,
    restore_params,
    transform_params,
)

__all__ = [
    "CheckpointError",
    "ConvertedError",
    "HeldWeightsError",
    "MismatchError",
    "ModuleError",
    "Params",
    "Report",
    "SaveError",
    "Transform",
    "TransformError",
    "TransformInterrupted",
    "VerificationError",
    "convert_params",
    "load_params",
    "load_transform",
    "restore_params",
    "save_params",
    "stream_params",
    "transform_params",
]
