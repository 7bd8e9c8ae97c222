"""Reports, plans and checks of a module, and the errors of the passes. Nothing here changes IR."""

from .inplace.memory_limit import MemoryLimitError
from .inplace.memory_plan import MemoryPlan, plan_memory
from .inplace.transform_graph import TransformGraph, UnsupportedTransformError
from .ir.updates import functions_that_update
from .lift.report import LiftReport, explain_lift
from .lift.shared_weights import LiftError
from .lower.ownership import OwnershipError, check_ownership
from .lower.storage_plan import StoragePlan, plan_storage
from .restore.inverse import Inverse, InverseError, find_inverse

__all__ = [
    "Inverse",
    "InverseError",
    "LiftError",
    "LiftReport",
    "MemoryLimitError",
    "MemoryPlan",
    "OwnershipError",
    "StoragePlan",
    "TransformGraph",
    "UnsupportedTransformError",
    "check_ownership",
    "explain_lift",
    "find_inverse",
    "functions_that_update",
    "plan_memory",
    "plan_storage",
]
