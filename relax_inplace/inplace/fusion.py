"""Which bindings TVM runs as one kernel.

Definition
----------
Bindings of a dataflow block that ``FuseOps`` (src/relax/transform/fuse_ops.cc) puts into one group,
after ``LegalizeOps``, ``AnnotateTIROpPattern`` and ``FoldConstant``, which removes dead code: what
TVM's ``zero_pipeline`` and its default pipelines per target do. Asked of ``FuseOps`` itself, on a
copy of the function in which each operator is a call to a kernel of the same pattern, for which an
operator of given attributes and operand types is legalised once.

The in-place function keeps these groups together and everything else apart, so that the same
kernels run as out of place, whether the pipeline fuses or not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from tvm import ir, relax, tirx

from ..ir.byte_size import size_of
from ..ir.effects import EffectTable

__all__ = ["Fusion", "find_fusion"]

_Position = tuple[int, int]  # a block of the function, a binding of the block


@dataclasses.dataclass
class Fusion:
    """The fused bindings of a function, by (block, binding).

    Attributes
    ----------
    group_of : dict of (int, int) to int
        The group of each binding that is fused with another.
    views : set of (int, int)
        Those among them that are a view of their operand where TVM does not fuse: see
        ``RewriteDataflowReshape`` (src/relax/transform/rewrite_dataflow_reshape.cc).
    """

    group_of: dict[_Position, int] = dataclasses.field(default_factory=dict)
    views: set[_Position] = dataclasses.field(default_factory=set)

    def is_view(self, block: int, binding: int) -> bool:
        """Whether a binding is one of ``views``."""
        return (block, binding) in self.views


def find_fusion(function: relax.Function, effects: EffectTable) -> Fusion:
    """Ask TVM which bindings of a function it fuses.

    Parameters
    ----------
    function : relax.Function
    effects : EffectTable
        Of the module where the kernels that it calls are.
    """
    body = function.body
    if not isinstance(body, relax.SeqExpr):
        return Fusion()
    blocks = body.blocks[:]
    if not any(_may_fuse(block) for block in blocks):
        return Fusion()
    return _Finder(function, effects).find()


def _may_fuse(block: relax.BindingBlock) -> bool:
    """Whether a call of a dataflow block reads what another one computes."""
    if not isinstance(block, relax.DataflowBlock):
        return False
    computed: set[relax.Var] = set()
    for binding in block.bindings[:]:
        value = binding.value
        if isinstance(value, ir.Call):
            if computed and any(var in computed for var in relax.analysis.free_vars(value)[:]):
                return True
            computed.add(binding.var)
        elif isinstance(value, (relax.Tuple, relax.TupleGetItem, relax.Var)) and any(
            var in computed for var in relax.analysis.free_vars(value)[:]
        ):
            computed.add(binding.var)
    return False


_PREFIX = "relax_inplace_binding_"


class _Finder:
    def __init__(self, function: relax.Function, effects: EffectTable):
        self.function = function
        self.effects = effects
        self.mod = effects.mod
        self.kernel_at: dict[_Position, tuple[relax.Binding, tirx.PrimFunc]] = {}

    def find(self) -> Fusion:
        grouped = self._fused()
        fusion = Fusion()
        for _, function in grouped.functions_items():
            if not (isinstance(function, relax.Function) and "Primitive" in (function.attrs or {})):
                continue
            members = list(_members(function))
            if len(members) < 2:
                continue
            group = len(fusion.group_of)
            for position in members:
                fusion.group_of[position] = group
                if self._is_view(position):
                    fusion.views.add(position)
        return fusion

    def _fused(self) -> ir.IRModule:
        functions: dict[ir.GlobalVar, ir.BaseFunc] = {}
        blocks = []
        tuples: dict[relax.Var, relax.Tuple] = {}
        for b, block in enumerate(self.function.body.blocks[:]):
            if not isinstance(block, relax.DataflowBlock):
                blocks.append(block)
                continue
            bindings = []
            for i, binding in enumerate(block.bindings[:]):
                found = self.effects.kernels.of(binding.value)
                if found is not None and isinstance(binding, relax.VarBinding):
                    kernel = found.kernel
                    self.kernel_at[b, i] = binding, kernel
                    gvar = ir.GlobalVar(f"{_PREFIX}{b}_{i}")
                    relax.expr._update_type(gvar, kernel.ty)
                    functions[gvar] = kernel
                    binding = relax.VarBinding(binding.var, _as_call_tir(gvar, binding, tuples))
                elif type(binding.value) is relax.Tuple:
                    tuples[binding.var] = binding.value
                bindings.append(binding)
            blocks.append(relax.DataflowBlock(bindings))
        body = relax.SeqExpr(blocks, self.function.body.body)
        copy = relax.Function(
            self.function.params,
            body,
            self.function.ret_ty,
            self.function.is_pure,
            self.function.attrs,
        )
        # As FoldConstant does, which the pipelines run before FuseOps: what is dead fuses with
        # nothing, and keeps nothing from being fused.
        copy = relax.analysis.remove_all_unused(copy)
        for called in relax.analysis.all_global_vars(copy):
            if called in self.mod.functions:
                functions[called] = self.mod[called]
        functions[ir.GlobalVar("relax_inplace_transform")] = copy.with_attr(
            "global_symbol", "relax_inplace_transform"
        )
        return relax.transform.FuseOps()(ir.IRModule(functions))

    def _is_view(self, position: _Position) -> bool:
        binding, kernel = self.kernel_at[position]
        if not isinstance(binding.var, relax.DataflowVar) or not self.effects.moves_nothing(kernel):
            return False
        tensors = [v for v in relax.analysis.free_vars(binding.value)[:] if _is_tensor(v)]
        if len(tensors) != 1 or not _is_tensor(binding.var):
            return False
        source, target = tensors[0].ty, binding.var.ty
        return source.dtype == target.dtype and size_of(source) == size_of(target)


def _is_tensor(var: relax.Var) -> bool:
    return isinstance(var.ty, relax.TensorType)


def _as_call_tir(
    gvar: ir.GlobalVar, binding: relax.VarBinding, tuples: Mapping[relax.Var, relax.Tuple]
) -> ir.Call:
    """A call to the kernel with the same variables: FuseOps looks at these, and at its pattern.

    Of a tuple, at its fields, as LegalizeOps gives them to a kernel.
    """
    operands: list[relax.Expr] = []
    for var in relax.analysis.free_vars(binding.value)[:]:
        if var in tuples:
            operands += tuples[var].fields[:]
        elif _is_operand(var):
            operands.append(var)
    ty = binding.var.ty
    types = ty.fields[:] if isinstance(ty, relax.TupleType) else [ty]
    if not all(isinstance(field, relax.TensorType) for field in types):
        return binding.value
    return relax.Call(
        ir.Op.get("relax.call_tir"), [gvar, relax.Tuple(operands)], None, [ty], ret_ty=ty
    )


def _is_operand(var: relax.Var) -> bool:
    return isinstance(var.ty, (relax.TensorType, relax.TupleType))


def _members(function: relax.Function) -> Iterator[_Position]:
    """The bindings of the original function that stand in a group."""
    for block in function.body.blocks[:]:
        for binding in block.bindings[:]:
            value = binding.value
            if isinstance(value, ir.Call) and isinstance(value.args[0], ir.GlobalVar):
                name = value.args[0].name_hint
                if name.startswith(_PREFIX):
                    b, i = name[len(_PREFIX) :].split("_")
                    yield int(b), int(i)
