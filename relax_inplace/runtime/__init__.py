"""Parameter tuples: load, own, transform, report, save. Needs TVM's runtime, never its compiler."""

from .mark import Mark
from .params import Params
from .tensor_type import TensorType

__all__ = ["Mark", "Params", "TensorType"]
