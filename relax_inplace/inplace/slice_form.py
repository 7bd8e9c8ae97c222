"""A step of slices as Relax: slices read, operators on slices, slices written.

Definition
----------
For each slice in turn: ``rows = call_tir(read_slice, (weight, start))`` of each operand that is
sliced; the operators, on these; ``call_tir_inplace(write_slice, (rows, start, whole))``, of which
the first is a ``call_tir``, which makes the whole. It is written in the names of the function that
the step stands in, and binds the one that the step computes.

What is fused out of place is so here: fused kernels may round differently from others.
"""

from __future__ import annotations

from collections.abc import Iterator

from tvm import relax

from .cones import SlicedStep
from .slice_kernels import SliceKernels
from .slicing import Operand, sliced_type, with_operands

__all__ = ["sliced_bindings"]


def sliced_bindings(
    step: SlicedStep, kernels: SliceKernels
) -> Iterator[tuple[relax.VarBinding, bool]]:
    """The bindings of a step, each with whether it is to stand in a dataflow block."""
    slicing, normalize = step.slicing, relax.BlockBuilder().normalize
    result, outside = slicing.result, slicing.outside()
    whole: relax.Var | None = None
    for start in range(0, slicing.length, step.rows):
        rows = min(step.rows, slicing.length - start)
        made: dict[Operand, relax.Var] = {}
        for part in step.cone:
            for operand, source in slicing.read(part).items():
                if operand not in made:
                    axis = slicing.axes[operand]
                    args = relax.Tuple([source, relax.prim_value(start)])
                    reader = kernels.reader(source.ty, axis, rows)
                    ty = sliced_type(source.ty, axis, rows)
                    made[operand] = relax.Var("rows", ty)
                    read = normalize(relax.op.call_tir(reader, args, out_ty=ty))
                    yield relax.VarBinding(made[operand], read), False
            for kernel in part.kernels:
                var = kernel.binding.var
                operands = slicing.operands[kernel].items()
                slices = {name: made[operand] for name, operand in operands if operand in made}
                value = normalize(with_operands(kernel.binding.value, slices))
                is_local = part.is_fused and var not in outside
                made[var] = (relax.DataflowVar if is_local else relax.Var)(var.name, value.ty)
                yield relax.VarBinding(made[var], value), part.is_fused
        writer = kernels.writer(result.ty, 0, rows)
        written = [made[result], relax.prim_value(start)]
        if whole is None:
            call = relax.op.call_tir(writer, relax.Tuple(written), out_ty=result.ty)
        else:
            call = relax.op.call_tir_inplace(
                writer, relax.Tuple([*written, whole]), inplace_indices=[2], out_ty=result.ty
            )
        is_last = start + rows == slicing.length
        whole = result if is_last else relax.Var(result.name, result.ty)
        yield relax.VarBinding(whole, normalize(call)), False
