"""The passes. Each is a ``tvm.transform.Pass``, as TVM's own are."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import tvm
from tvm import ir

from .inplace.inplace_transform_params import Restored, require_resident, rewrite_transforms
from .lift.lift_inplace_transform_params import LiftInplaceTransformParams
from .lower.collector import paused_collector
from .lower.user_pipeline import Pipeline
from .restore.inverse import InverseError
from .restore.restore_params import restored
from .weight_names import GivenNames

__all__ = ["InplaceTransformParams", "LiftInplaceTransformParams", "Pipeline"]


def InplaceTransformParams(  # noqa: N802  named as TVM names passes
    functions: str | Sequence[str] | None = None,
    *,
    params: Sequence[str | int] | None = None,
    names: GivenNames | None = None,
    memory_limit: int | float | None = None,
    lazy: bool = False,
    restore: bool = False,
    reference: bool = False,
    strict: bool = True,
    target: str | tvm.target.Target | None = None,
) -> tvm.transform.Pass:
    """Create the pass that makes weight transforms work in place.

    Each Relax function ``*transform_params(params) -> tuple`` becomes
    ``*inplace_transform_params(params)``. That function replaces the fields of ``params``, one by
    one, by the fields that the original returned, in an order of least peak memory. The caller of
    the compiled function gives its tuple away. Other functions stay as they are.

    Parameters
    ----------
    functions : str or sequence of str, optional
        The functions to rewrite, by name. By default those whose name ends in
        ``transform_params``. A function with another name gets the prefix ``inplace_``. A function
        that is rewritten already stays as it is.
    params : sequence of str or int, optional
        The weights that may be modified, all by default: indices in the tuple, or names, of
        parameters or of the variables that fields are read into first. The slots of the other
        weights keep the original.
    names : mapping, sequence, callable or path, optional
        The names of the weights in the checkpoint: see :mod:`relax_inplace.weight_names`.
    memory_limit : int or float, optional
        The most bytes that the function may hold at once, the weights included; a float is a
        factor of the weights' bytes. A step whose temporaries are too large is run slice by slice.
        The compiled function checks the limit at each call. It computes its plan for the given
        shapes, and adds the weights that something else refers to, because it cannot free them.
    lazy : bool
        Whether the function asks for its weights one by one, instead of taking all at once: see
        Notes. Then ``params`` is refused, because all weights are the function's own.
    restore : bool
        Whether the module also gets the inverse, ``*inplace_restore_params(params)``. It converts
        the weights back, in place, bit by bit: see :mod:`relax_inplace.restore.inverse`. Not with
        ``lazy``.
    reference : bool
        Whether the module also gets ``*reference_transform_params(get_weight, params)``, the same
        transform streamed. ``runtime.transform_params(verify=True)`` runs it on copies of the
        weights, one by one, and compares. Not with ``lazy``.
    strict : bool
        Whether a function that cannot be rewritten is an error. Otherwise it stays as it was, with
        a warning.
    target : str or tvm.target.Target, optional
        The target of the compilation; by default the current one. A step may work in its weight's
        memory there, as a transpose does on a CPU. Such a step is planned without a temporary, also
        for ``memory_limit``. The module can then be compiled for a target of this kind only.
        Without a target, each step is planned with a temporary.

    Returns
    -------
    tvm.transform.Pass
        The pass. If it raises one of these errors, it has changed nothing:

        - :class:`~relax_inplace.analysis.UnsupportedTransformError` for a function that takes no
          weights, returns no tuple, is recursive, is called by a function that is not rewritten, or
          overwrites, or returns a view of, memory that is not its own. With ``lazy``, also for a
          function that ends with a branch whose condition reads a weight, for weights whose
          symbolic dimensions define each other, and for a ``memory_limit`` on symbolic dimensions
          that only weights define.
        - :class:`~relax_inplace.analysis.MemoryLimitError` if no plan fits into ``memory_limit``.
        - :class:`~relax_inplace.analysis.InverseError`, with ``restore``, if a weight cannot be
          restored.

    Notes
    -----
    The weights are the parameters after the first ``num_input``, an attribute of the function that
    ``LiftTransformParams`` sets: one tuple, or several parameters, which are bundled into one. If
    the function returns as many fields as it takes, the result is the tuple itself. Otherwise it is
    a new tuple, and the slots of the old one hold finished outputs or None.

    With ``lazy``, two parameters take the place of the weights:

    - ``get_weight`` is called with an index, and returns that weight. It is a function of Python or
      TVM, or a closure of the virtual machine. The index counts weights through nested tuples:
      those of ``((a, b), c)`` are 0, 1 and 2. The returned weight belongs to the transform, which
      may free it and write to it, so ``get_weight`` must keep no reference.
    - ``params`` is an ``ffi.Array`` with a slot for each output, with any content. It is returned.

    The calls come in the order of the plan, in no fixed order with other impure calls. If a call
    raises, finished slots stay filled, and the others are as they were.

    The rewritten function has no ``num_input``, because every field is checked before the first one
    is replaced. It has no ``relax.force_pure``, because it is impure. It is public, even if the
    original was private. No function of the module calls it, so ``DeadCodeElimination`` would
    remove a private one, and ``FuseTIR`` would give it a parameter for each field, whose memory
    nobody could free.

    The module's attribute ``relax_inplace.param_map`` describes the conversion of each weight; in a
    compiled module, the function ``inplace_param_map`` returns it.
    """
    selected = [functions] if isinstance(functions, str) else functions
    if lazy and params is not None:
        raise ValueError(
            f"InplaceTransformParams: params={list(params)!r} says which weights may be modified, "
            "but with lazy=True all that get_weight returns is the function's own; leave params out"
        )

    require_resident("InplaceTransformParams", lazy, restore, reference)

    def undo(mod: ir.IRModule, name: str, *args: Any) -> Restored | None:
        try:
            return restored(mod, name, *args)
        except InverseError as error:
            if strict:
                raise
            warnings.warn(f"{error}; no function restores it", stacklevel=2)
            return None

    @tvm.transform.module_pass(opt_level=0, name="InplaceTransformParams")
    def run(mod: ir.IRModule, _context: tvm.transform.PassContext) -> ir.IRModule:
        with paused_collector():
            return rewrite_transforms(
                mod,
                selected,
                params,
                memory_limit,
                lazy,
                reference,
                strict,
                undo if restore else None,
                target,
                names,
            )

    return run
