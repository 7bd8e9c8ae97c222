"""The kernels that read a slice of a tensor, and write one into it."""

from __future__ import annotations

from tvm import ir, relax, tirx
from tvm.script import from_source

__all__ = ["SliceKernels"]

_SOURCE = """
@T.prim_func(private=True, s_tir=True)
def {name}(
    source: T.Buffer({source}, "{dtype}"), start: T.int64, target: T.Buffer({target}, "{dtype}")
):
    T.func_attr({{"tirx.noalias": True, "op_pattern": 8}})
    for {loops} in T.grid({slice}):
        with T.sblock("{name}"):
            {axes} = T.axis.remap("{kinds}", [{loops}])
            T.reads(source[{reads}])
            T.writes(target[{writes}])
            target[{writes}] = source[{reads}]
"""


class SliceKernels:
    """The kernels that one in-place function needs; each is made once.

    Both take (source, first row, target). The writer leaves the other rows of its target as they
    are, so that one tensor is written by a ``call_tir`` and then by ``call_tir_inplace``.

    Attributes
    ----------
    functions : dict of tvm.ir.GlobalVar to tvm.tirx.PrimFunc
        To be added to the module.
    """

    def __init__(self, prefix: str):
        self.prefix = prefix
        self.functions: dict[ir.GlobalVar, tirx.PrimFunc] = {}
        self._known: dict[object, ir.GlobalVar] = {}

    def reader(self, whole: relax.TensorType, axis: int, rows: int) -> ir.GlobalVar:
        """Reads a slice of so many rows along an axis."""
        return self._kernel("read_slice", whole, axis, rows)

    def writer(self, whole: relax.TensorType, axis: int, rows: int) -> ir.GlobalVar:
        """Writes a slice of so many rows along an axis."""
        return self._kernel("write_slice", whole, axis, rows)

    def _kernel(self, kind: str, whole: relax.TensorType, axis: int, rows: int) -> ir.GlobalVar:
        shape = [int(dim) for dim in whole.shape.values[:]]
        dtype = str(whole.dtype)
        key = kind, tuple(shape), dtype, axis, rows
        if key not in self._known:
            name = f"{self.prefix}_{kind}_{len(self._known)}"
            kernel = _kernel(name, kind, shape, dtype, axis, rows)
            gvar = ir.GlobalVar(name)
            relax.expr._update_type(gvar, kernel.ty)
            self._known[key] = gvar
            self.functions[gvar] = kernel
        return self._known[key]


def _kernel(
    name: str, kind: str, shape: list[int], dtype: str, axis: int, rows: int
) -> tirx.PrimFunc:
    slice_shape = [rows if i == axis else dim for i, dim in enumerate(shape)]
    inside = [f"v{i}" for i in range(len(shape))]
    shifted = [f"v{i} + start" if i == axis else f"v{i}" for i in range(len(shape))]
    is_reader = kind == "read_slice"

    def text(values: list[object]) -> str:
        return "".join(f"T.int64({value}), " for value in values)

    source, target = (shape, slice_shape) if is_reader else (slice_shape, shape)
    return from_source(
        _SOURCE.format(
            name=name,
            dtype=dtype,
            source=f"({text(list(source))})",
            target=f"({text(list(target))})",
            slice=text(list(slice_shape)),
            loops=", ".join(f"i{i}" for i in range(len(shape))),
            axes=", ".join(inside),
            kinds="S" * len(shape),
            reads=", ".join(shifted if is_reader else inside),
            writes=", ".join(inside if is_reader else shifted),
        )
    )
