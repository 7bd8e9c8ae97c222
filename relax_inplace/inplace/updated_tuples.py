"""The tuples that an in-place function updates: their names, and updates of them.

Definition
----------
The tuple of weights and those nested in it are objects, which are updated. The updates are a chain:
each consumes the name that the one before it gave the tuple, and gives it another one. The types
that a chain carries take memory with the square of the number of weights. So the updates of more
than some hundred are statements: they have a void type and leave the name as it is, and the last
one says the type of the tuple.

A nested tuple is read once, updated by its own name, and put back into its slot in the end, where
its type is another one.
"""

from __future__ import annotations

from tvm import ir, relax

from ..op import VOID, inplace_update_tuple, the_op
from .weights import Container, Weight
from .written_blocks import WrittenBlocks

__all__ = ["UpdatedTuples", "identifier"]

# Fields times updates of the longest chain: 16 bytes each.
_LONGEST_CHAIN = 1 << 20


class UpdatedTuples:
    """The names of the tuple of weights and of those nested in it, and updates of them."""

    def __init__(self, blocks: WrittenBlocks, root: Container, params: relax.Var, outputs: int):
        self.blocks = blocks
        self.root = root
        self.names: dict[Container, relax.Var] = {root: params}
        self.replaced: set[int] = set()  # fields of the root that hold an output
        self.nothing: relax.Var | None = None
        self.field_read: dict[relax.Expr, int] = {}  # into each variable
        fields = len(root.fields) + sum(
            len(field.fields) for field in root.fields if isinstance(field, Container)
        )
        self.are_statements = fields * (fields + outputs) > _LONGEST_CHAIN
        self.updated: dict[Container, tuple[int, relax.Expr]] = {}  # what was replaced last
        self.types: dict[Container, dict[int, ir.Type]] = {}  # of replaced fields, for statements

    def _name(self, container: Container) -> relax.Var:
        name = self.names.get(container)
        if name is None:
            assert container.parent is not None
            source = self._name(container.parent)
            name = self.blocks.bind(
                f"{source.name}_{container.index}", relax.TupleGetItem(source, container.index)
            )
            self.names[container] = name
        return name

    def read(self, weight: Weight) -> relax.Var:
        """Bind a weight to a variable."""
        source = self._name(weight.container)
        name = identifier(weight, source.name)
        var = self.blocks.bind(name, relax.TupleGetItem(source, weight.index))
        self.field_read[var] = weight.index
        return var

    def empty(self, weight: Weight) -> None:
        """Empty the slot of a weight, if it may be."""
        if not weight.is_modifiable:
            return
        self.replace(weight.container, weight.index, self._nothing())

    def replace(self, container: Container, index: int, value: relax.Expr) -> None:
        """Replace a field."""
        source = self._name(container)
        if container is self.root and value is not self.nothing:
            self.replaced.add(index)
        self.updated[container] = (index, value)
        if self.are_statements:
            self.types.setdefault(container, {})[index] = value.ty
            self._statement(source, index, value, VOID)
        else:
            call = self.blocks.normalize(inplace_update_tuple(source, index, value))
            self.names[container] = self._bound(f"p{index}", call)

    def bind_new(self, name: str, value: relax.Tuple) -> relax.Var:
        """Bind a new tuple.

        One of each field of an old one in its place is made with its first slot empty, and filled:
        ``CanonicalizeBindings`` (src/relax/transform/canonicalize_bindings.cc), which somebody may
        run before ``tvm.compile``, takes ``(params[0], params[1])`` for ``params``, of which one is
        updated.
        """
        value = self.blocks.normalize(value)
        fields = value.fields[:]
        if not fields or any(self.field_read.get(field) != i for i, field in enumerate(fields)):
            return self.blocks.bind(name, value)
        first, *others = fields
        unfilled = self.blocks.bind("unfilled", relax.Tuple([self._nothing(), *others]))
        return self._bound(name, _update(unfilled, 0, first, value.ty))

    def result(self) -> relax.Var:
        """The name of the whole tuple, at the end."""
        changed = [container for container in self.updated if container is not self.root]
        while changed:  # the innermost first: putting one back changes the one around it
            container = max(changed, key=lambda one: len(one.path))
            changed.remove(container)
            parent = container.parent
            assert parent is not None
            if container.path[0] in self.replaced:
                continue
            if self.are_statements:
                self._name_result(container)
            self.replace(parent, container.index, self.names[container])
            if parent is not self.root and parent not in changed:
                changed.append(parent)
        if self.are_statements and self.root in self.updated:
            self._name_result(self.root)
        return self._name(self.root)

    def _name_result(self, container: Container) -> None:
        """Make the last update of a tuple one that says its type."""
        index, value = self.updated[container]
        fields = list(container.ty.fields[:])
        for i, ty in self.types[container].items():
            fields[i] = ty
        ty = relax.TupleType(fields)
        source = self.names[container]
        last = self.blocks.last()
        if last is not None and _is_update_of(last, source):
            self.blocks.pop()
        self.names[container] = self._statement(source, index, value, ty)

    def _statement(
        self, source: relax.Var, index: int, value: relax.Expr, ty: ir.Type
    ) -> relax.Var:
        return self._bound("_" if ty is VOID else f"p{index}", _update(source, index, value, ty))

    def _nothing(self) -> relax.Var:
        if self.nothing is None:
            self.nothing = self.blocks.bind("nothing", relax.op.null_value())
        return self.nothing

    def _bound(self, name: str, call: relax.Call) -> relax.Var:
        var = relax.Var(name, call.ty)
        self.blocks.append(relax.VarBinding(var, call))
        return var


def identifier(weight: Weight, container: str) -> str:
    """A name for the variable that holds a weight."""
    return weight.name if weight.name.isidentifier() else f"{container}_{weight.index}"


def _is_update_of(binding: relax.Binding, source: relax.Var) -> bool:
    value = binding.value
    return (
        isinstance(value, ir.Call) and value.op.same_as(the_op()) and source.same_as(value.args[0])
    )


def _update(source: relax.Var, index: int, value: relax.Expr, ty: ir.Type) -> relax.Call:
    """An update that says its type."""
    operands = [source, relax.prim_value(index), value]
    return relax.Call(the_op(), operands, None, [ty], ret_ty=ty)
