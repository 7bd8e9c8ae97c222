"""Register the ops, their TVMScript and their part in compilation, as soon as TVM is imported."""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["register", "register_when_tvm_is_imported"]


def register() -> None:
    """Register our operators with the TVM of this process. May be called again.

    A TVM without its compiler (``TVM_USE_RUNTIME_LIB=1``, or no ``libtvm_compiler``) is left as
    it is: it needs the builtins alone.
    """
    import tvm

    from .libinfo import load_library

    load_library()
    if tvm.base._RUNTIME_ONLY:
        return
    from . import marker, op, script
    from .lower import build, pipeline

    op.register()
    marker.register()
    script.register()
    build.install()
    pipeline.register()


def register_when_tvm_is_imported() -> None:
    """Call :func:`register`, now or as soon as ``tvm`` has been imported."""
    if "tvm" in sys.modules:
        register()
    elif not any(isinstance(finder, _AfterImportOfTVM) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImportOfTVM())


def _register_while_importing() -> None:
    """Call :func:`register`, also while a module of this package imports ``tvm``.

    That module is not finished then, so the registered modules cannot import it. They import it
    anew, and the import system takes the one in ``sys.modules`` at the end.
    """
    begun = {
        name: module
        for name, module in sys.modules.items()
        if name.startswith(f"{__package__}.") and getattr(module.__spec__, "_initializing", False)
    }
    for name in begun:
        del sys.modules[name]
    try:
        register()
    finally:
        for name, module in begun.items():
            sys.modules.setdefault(name, module)


class _AfterImportOfTVM(importlib.abc.MetaPathFinder):
    """Finds ``tvm`` as the other finders do, and registers once it has been executed."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname != "tvm":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            sys.meta_path.insert(0, self)
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            try:
                execute(module)
            except BaseException:
                sys.meta_path.insert(0, self)  # it may be imported again, with success
                raise
            _register_while_importing()

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec
