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
    ``*inplace_transform_params(params)``, which replaces the fields of ``params`` by what the
    function returned, in an order of least peak memory. The caller of the compiled function hands
    its tuple over. Other functions stay as they are.

    Parameters
    ----------
    functions : str or sequence of str, optional
        The functions to rewrite, by name. By default those whose name ends in
        ``transform_params``; one that is rewritten already stays as it is. Another name gets the
        prefix ``inplace_``.
    params : sequence of str or int, optional
        The weights that may be modified: indices in the tuple, or names, of parameters or of the
        variables that fields are read into first. The others are read, and their slots keep the
        original. All by default.
    names : mapping, sequence, callable or path, optional
        What the weights are called in the checkpoint: see :mod:`relax_inplace.weight_names`.
    memory_limit : int or float, optional
        The most bytes that the function may hold at once, the weights included; a float is a
        factor of the weights' bytes. A step whose temporaries are too large for it is run slice by
        slice. The compiled function checks the limit when it is called: against its plan, with the
        shapes it is given, and the weights that something else refers to, which it cannot free.
    lazy : bool
        Whether the function asks for its weights one by one, instead of being handed all: see
        Notes. Then ``params`` is refused, as all weights are the function's own.
    restore : bool
        Whether the module also gets ``*inplace_restore_params(params)``, which makes the original
        weights of the converted ones, in place, bit by bit: see
        :mod:`relax_inplace.restore.inverse`. Not with ``lazy``.
    reference : bool
        Whether the module also gets ``*reference_transform_params(get_weight, params)``, the same
        transform streamed: ``runtime.transform_params(verify=True)`` runs it on copies of the
        weights, one by one, and compares. Not with ``lazy``.
    strict : bool
        Whether a function that cannot be rewritten is an error. Otherwise it stays as it was, with
        a warning.
    target : str or tvm.target.Target, optional
        What the module will be compiled for; by default the current target. A step whose kernel
        works in its weight's memory there, as a transpose does on a CPU, is then planned without a
        temporary, and so is ``memory_limit``; for a target of another kind the module is not
        compiled. Where there is none, each step is planned with one.

    Returns
    -------
    tvm.transform.Pass
        Raises :class:`~relax_inplace.analysis.UnsupportedTransformError`, and then has changed
        nothing, for a function that takes no weights, returns no tuple, is recursive, is called by
        a function that is not rewritten, or overwrites or returns a view of what is not its own;
        and :class:`~relax_inplace.analysis.MemoryLimitError` if nothing fits into ``memory_limit``;
        with ``restore``, :class:`~relax_inplace.analysis.InverseError` if a weight cannot be
        restored.
        With ``lazy``, also for a function that ends with a branch whose condition reads a weight,
        for weights whose symbolic dimensions define each other, and for a ``memory_limit`` on
        symbolic dimensions that only weights define.

    Notes
    -----
    The weights are the parameters after the first ``num_input`` (an attribute of the function, as
    ``LiftTransformParams`` leaves it): one tuple, or others, which are bundled into one. The result
    is the tuple itself if the function returns as many fields as it takes, else a new tuple; then
    the slots of the old one hold finished outputs or None.

    With ``lazy``, two parameters take the place of the weights: ``get_weight``, a function (of
    Python, of TVM, or a closure of the virtual machine) that is called with an index, and
    ``params``, an ``ffi.Array`` with a slot for each output, whatever is in it, which is returned.
    The index counts weights through nested tuples: those of ``((a, b), c)`` are 0, 1 and 2. What
    ``get_weight`` returns it hands over: the function may free it and write to it, so that it must
    hold no reference. The order of the calls is that of the plan, and not in relation to other
    impure calls. If one raises, finished slots stay filled, and the others are as they were.

    The result has neither ``num_input``, since every field is to be checked before the first one is
    replaced, nor ``relax.force_pure``, since it is impure. It is public, also where the function
    was private: no function of the module calls it, so ``DeadCodeElimination`` would remove it,
    and ``FuseTIR`` would give it a parameter for each field, whose memory nobody could free.

    The attribute ``relax_inplace.param_map`` of the module says what it does to which weight; in a
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
