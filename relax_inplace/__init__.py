"""In-place conversion of a model's weights: an extension of Apache TVM's Relax.

``import relax_inplace`` makes ``R.inplace_update_tuple`` and ``R.lift_param`` known to TVM. It does
not import TVM itself: :mod:`relax_inplace.libinfo` serves processes that have no compiler, too.
Where ``tvm`` is not imported yet, the registration waits until it is.

>>> import relax_inplace
>>> from tvm.script import relax as R
>>> mod = relax_inplace.transform.InplaceTransformParams()(mod)
>>> tvm.compile(mod, "llvm")

That is the fast way with the low peak: :mod:`relax_inplace.lower.build` says how.
"""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from . import libinfo
from .registration import register_when_tvm_is_imported
from .versions import check_versions

if TYPE_CHECKING:
    from . import analysis, layout, runtime, transform
    from .marker import lift_param
    from .op import inplace_update_tuple

__all__ = [
    "analysis",
    "inplace_update_tuple",
    "layout",
    "libinfo",
    "lift_param",
    "runtime",
    "transform",
]

check_versions()
__version__ = version("relax-inplace")
register_when_tvm_is_imported()


def __getattr__(name: str) -> Any:
    """Import what needs the compiler when it is asked for (PEP 562)."""
    if name == "inplace_update_tuple":
        from .op import inplace_update_tuple

        return inplace_update_tuple
    if name == "lift_param":
        from .marker import lift_param

        return lift_param
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
