"""Convert a model's weights in the memory they already occupy: an extension of Apache TVM's Relax.

From a model to converted weights:

>>> import relax_inplace
>>> from relax_inplace import runtime
>>> mod = relax_inplace.transform.LiftInplaceTransformParams()(mod)
>>> tvm.compile(mod, "llvm").export_library("lib.so")
>>> transform = runtime.load_transform("lib.so", tvm.cpu())
>>> params = runtime.load_params("weights/", tvm.cpu(), transform)
>>> runtime.transform_params(transform, params)

The parts:

- :mod:`~relax_inplace.transform`: the passes;
- :mod:`~relax_inplace.analysis`: reports and plans of a module, and the errors of the passes;
- :mod:`~relax_inplace.layout`: weight layouts as Relax expressions;
- :mod:`~relax_inplace.runtime`: load, own, convert and save weights;
- :mod:`~relax_inplace.libinfo`: the paths of the shared library;
- :func:`~relax_inplace.inplace_update_tuple`: the op that replaces a field of a tuple;
- :func:`~relax_inplace.lift_param`: the mark of a value that is to be stored.

``import relax_inplace`` does not import TVM. It registers ``R.inplace_update_tuple`` and
``R.lift_param`` with TVM as soon as ``tvm`` is imported.
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
    """Import a part of the API when it is asked for: some need TVM's compiler (PEP 562)."""
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
