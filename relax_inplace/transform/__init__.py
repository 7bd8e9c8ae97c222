"""The passes. Each is a ``tvm.transform.Pass``, as TVM's own are."""

import tvm  # noqa: F401  first: what is imported with it imports parts of this package

from .check_contiguous import CheckContiguous
from .donate_storage import DonateStorage
from .free_temporaries import FreeTemporaries
from .inplace_transform_params import InplaceTransformParams
from .kill_unused_registers import KillUnusedRegisters
from .lift_inplace_transform_params import LiftInplaceTransformParams
from .lower_update_chain import LowerUpdateChain
from .require_builtins import RequireBuiltins
from .schedule_relayouts import ScheduleRelayouts

__all__ = [
    "CheckContiguous",
    "DonateStorage",
    "FreeTemporaries",
    "InplaceTransformParams",
    "KillUnusedRegisters",
    "LiftInplaceTransformParams",
    "LowerUpdateChain",
    "RequireBuiltins",
    "ScheduleRelayouts",
]
