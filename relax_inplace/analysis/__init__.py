"""What is known of a function before it is changed. Reads IR, changes none."""

import tvm  # noqa: F401  first: what is imported with it imports parts of this package

from .inverse import Inverse, InverseError, find_inverse
from .lift.report import LiftReport, explain_lift
from .lift.shared_weights import LiftError
from .memory_limit import MemoryLimitError
from .memory_plan import MemoryPlan, plan_memory
from .ownership import OwnershipError, check_ownership
from .transform_graph import TransformGraph, UnsupportedTransformError
from .updates import functions_that_update

__all__ = [
    "Inverse",
    "InverseError",
    "LiftError",
    "LiftReport",
    "MemoryLimitError",
    "MemoryPlan",
    "OwnershipError",
    "TransformGraph",
    "UnsupportedTransformError",
    "check_ownership",
    "explain_lift",
    "find_inverse",
    "functions_that_update",
    "plan_memory",
]
