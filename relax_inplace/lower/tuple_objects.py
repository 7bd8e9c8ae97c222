"""A tuple is an object with fields, not a value with a type of n fields.

    def main(params: R.Tuple(R.Tensor((n, 4), "float32"), ...)):
        w0 = params[0]
        p0 = R.inplace_update_tuple(params, 0, w)
        return p0

becomes

    def main(params: R.Any) -> R.Any:
        dims = <the entry check>("main", ..., params)
        _ = R.match_cast(dims, R.Shape([n]))
        w0 = R.call_pure_packed("vm.builtin.tuple_getitem", params, 0, ty_args=...)
        R.inplace_update_tuple(params, 0, w, ty_args=(R.Tuple,))
        return params

Definition: every tuple that is a parameter, a field, a result of a Relax function, of a branch or
of a packed function, or that is made here and updated, stored, returned or passed, has the type
``R.Any`` and one variable, whatever names it had. A tuple that an operator takes or returns stays a
value; where it is used otherwise, too, an object is made of its fields.

So no type has n fields, no pass can take two tuples for one (``CanonicalizeBindings`` would replace
``(params[0], params[1])`` by ``params``), ``VMShapeLower`` reads no field to check it and leave it
in a register, and ``ExpandTupleArguments`` finds no tuple to expand.

Right because ownership has been checked: a name that an update has consumed is not used any more.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from tvm import ir, relax

from ..ir.tuple_objects import ANY, is_tuple, make_tuple, object_type, read_field
from ..op import VOID, is_statement, is_update
from .entry_check import entry_check

__all__ = ["PARAM_TYPES", "tuples_as_objects"]

PARAM_TYPES = "relax_inplace.param_types"  # of a converted function: those that it had

# Operators that hand tuples on as they are, to something that is not an operator. The last operand
# of those in _LISTS is no tuple but a list of operands.
_LISTS = (
    "relax.make_closure",
    "relax.invoke_closure",
    "relax.invoke_pure_closure",
    "relax.call_builtin_with_ctx",
    "relax.call_py_func",
)
_HANDS_ON = (*_LISTS, "relax.call_pure_packed", "relax.call_inplace_packed")


def tuples_as_objects(
    mod: ir.IRModule, converted: Collection[ir.GlobalVar], updating: Collection[str]
) -> ir.IRModule:
    """The module, in which the tuples of some functions are objects.

    Parameters
    ----------
    mod : tvm.ir.IRModule
    converted : collection of tvm.ir.GlobalVar
        Their types change, so no other function may call them.
    updating : collection of str
        The names of those that are impure, and check all their arguments.
    """
    renewed: dict[ir.GlobalVar, ir.GlobalVar] = {}
    for gvar in converted:
        function = mod[gvar]
        ty = relax.FuncType(
            [object_type(param.ty) for param in function.params[:]],
            object_type(function.ret_ty),
            function.is_pure,
        )
        renewed[gvar] = ir.GlobalVar(gvar.name_hint)
        relax.expr._update_type(renewed[gvar], ty)
    functions: dict[ir.GlobalVar, ir.BaseFunc] = {}
    for gvar, function in mod.functions_items():
        if gvar in renewed:
            name = gvar.name_hint
            writer = _Function(function, name, renewed, name in updating)
            functions[renewed[gvar]] = writer.written()
        else:
            functions[gvar] = function
    return ir.IRModule(functions, mod.attrs, mod.global_infos)


class _Function:
    """Writes a function whose tuples are objects."""

    def __init__(
        self,
        function: relax.Function,
        name: str,
        renewed: dict[ir.GlobalVar, ir.GlobalVar],
        updates: bool,
    ):
        self.function = function
        self.name = name
        self.renewed = renewed  # the functions that take and return objects
        self.updates = updates
        self.objects: dict[relax.Var, relax.Var] = {}  # for each name of a tuple its one variable
        self.values: set[relax.Var] = set()  # those among them that are values, too
        self.normalize = relax.BlockBuilder().normalize
        self.wanted, self.used = _uses(function.body)

    def written(self) -> relax.Function:
        function = self.function
        params = []
        for param in function.params[:]:
            is_object = is_tuple(param.ty)
            params.append(self._named(param, relax.Var(param.name, ANY)) if is_object else param)
        first = entry_check(function, self.name, params, self.updates)
        body = self._sequence(function.body, first)
        attrs = dict(function.attrs.items()) if function.attrs else {}
        attrs.pop("num_input", None)  # VMShapeLower would check symbolic shapes only
        attrs["global_symbol"] = self.name
        attrs[PARAM_TYPES] = [param.ty for param in function.params[:]]
        return relax.Function(
            params,
            body,
            object_type(function.ret_ty),
            function.is_pure,
            ir.make_node("ir.DictAttrs", **attrs),
            function.span,
        )

    def _named(self, var: relax.Var, object: relax.Var) -> relax.Var:
        self.objects[var] = object
        return object

    # -- sequences ----------------------------------------------------------------------------

    def _sequence(
        self, sequence: relax.SeqExpr, first: Sequence[relax.Binding] = ()
    ) -> relax.SeqExpr:
        outer = dict(self.objects)
        blocks = [relax.BindingBlock(list(first))] if first else []
        for block in sequence.blocks[:]:
            bindings: list[relax.Binding] = []
            for binding in block.bindings[:]:
                self._binding(binding, bindings)
            kind = type(block)
            blocks.append(kind(bindings, block.span))
        last: list[relax.Binding] = []
        result = self._object(sequence.body, last)
        if last:
            blocks.append(relax.BindingBlock(last))
        after = relax.SeqExpr(blocks, result, sequence.span)
        relax.expr._update_type(after, object_type(sequence.ty))
        self.objects = outer
        return after

    def _binding(self, binding: relax.Binding, out: list[relax.Binding]) -> None:
        """Append what becomes of a binding."""
        var, value = binding.var, binding.value
        if isinstance(binding, relax.MatchCast):
            self._match_cast(var, value, binding.ty, out)
            return
        kind = type(value)
        if kind is relax.TupleGetItem:
            self._read(binding, out)
        elif kind in (relax.Var, relax.DataflowVar):
            if value in self.objects:
                self._named(var, self.objects[value])
            else:
                out.append(binding)
        elif kind is relax.Tuple:
            self._tuple(var, value, out)
        elif kind is relax.If:
            self._branch(var, value, out)
        elif is_update(value):
            self._update(var, value, out)
        elif kind is ir.Call:
            self._call(binding, out)
        else:
            out.append(binding)

    # -- expressions --------------------------------------------------------------------------

    def _object(self, expr: relax.Expr, out: list[relax.Binding]) -> relax.Expr:
        """An expression where a tuple is to be an object."""
        if type(expr) in (relax.Var, relax.DataflowVar):
            return self.objects.get(expr, expr)
        if type(expr) is relax.Tuple and len(expr.fields):
            object = relax.Var("made", ANY)
            fields = [self._object(field, out) for field in expr.fields[:]]
            out.append(relax.VarBinding(object, make_tuple(fields)))
            return object
        return self.renewed.get(expr, expr) if type(expr) is ir.GlobalVar else expr

    def _value(self, expr: relax.Expr, of: relax.Var, out: list[relax.Binding]) -> relax.Expr:
        """An expression where an operator takes it. Its fields are bound as ``of`` is."""
        if type(expr) in (relax.Var, relax.DataflowVar) and expr in self.objects:
            if not is_tuple(expr.ty):
                return self.objects[expr]
            fields = []
            for index, ty in enumerate(expr.ty.fields[:]):
                field = type(of)("field", ty)
                out.append(relax.VarBinding(field, read_field(self.objects[expr], index, ty)))
                fields.append(field)
            return self.normalize(relax.Tuple(fields))
        if type(expr) is relax.Tuple:
            fields = [self._value(field, of, out) for field in expr.fields[:]]
            return self.normalize(relax.Tuple(fields))
        return expr

    # -- bindings -----------------------------------------------------------------------------

    def _read(self, binding: relax.Binding, out: list[relax.Binding]) -> None:
        var, value = binding.var, binding.value
        source = value.tuple_value
        if type(source) is relax.Tuple:
            self._binding(relax.VarBinding(var, source.fields[value.index], binding.span), out)
            return
        object, ty = self.objects.get(source), object_type(var.ty)
        if object is None or (source in self.values and ty is not ANY):
            out.append(binding)
            self._object_of_value(var, out)
            return
        read = read_field(object, value.index, ty, value.span)
        if ty is ANY:
            var = self._named(var, type(var)(var.name, ANY))
        out.append(relax.VarBinding(var, read, binding.span))

    def _tuple(self, var: relax.Var, value: relax.Tuple, out: list[relax.Binding]) -> None:
        fields = value.fields[:]
        if not fields or not (var in self.wanted or any(is_tuple(field.ty) for field in fields)):
            out.append(relax.VarBinding(var, self._value(value, var, out)))
            return
        made = make_tuple([self._object(field, out) for field in fields], value.span)
        out.append(relax.VarBinding(self._named(var, type(var)(var.name, ANY)), made))

    def _branch(self, var: relax.Var, value: relax.If, out: list[relax.Binding]) -> None:
        branches = (self._sequence(one) for one in (value.true_branch, value.false_branch))
        branch = relax.If(value.cond, *branches, span=value.span)
        relax.expr._update_type(branch, object_type(value.ty))
        if is_tuple(var.ty):
            var = self._named(var, relax.Var(var.name, ANY))
        out.append(relax.VarBinding(var, branch))

    def _update(self, var: relax.Var, call: ir.Call, out: list[relax.Binding]) -> None:
        source, index, new = call.args[:]
        object, stored = self._object(source, out), self._object(new, out)
        args = [object, index, stored]
        update = relax.Call(call.op, args, None, [VOID], call.span, ret_ty=VOID)
        out.append(relax.VarBinding(relax.Var("_", VOID), update))
        if not is_statement(var):
            self._named(var, object)

    def _match_cast(
        self, var: relax.Var, value: relax.Expr, ty: ir.Type, out: list[relax.Binding]
    ) -> None:
        if type(value) is relax.TupleGetItem and value.tuple_value in self.objects:
            read = type(var)("read", ANY)
            source = self.objects[value.tuple_value]
            out.append(relax.VarBinding(read, read_field(source, value.index, ANY)))
            value = read
        object = self.objects.get(value, value)
        if is_tuple(ty) or value in self.objects:
            if not isinstance(ty, relax.AnyType):
                out.append(relax.MatchCast(type(var)("cast", ty), object, ty))
            self._named(var, object)
        else:
            out.append(relax.MatchCast(var, value, ty))

    def _call(self, binding: relax.Binding, out: list[relax.Binding]) -> None:
        var, call = binding.var, binding.value
        op = call.op
        is_operator = type(op) is ir.Op and op.name not in _HANDS_ON
        is_kernel = type(op) is ir.GlobalVar and op not in self.renewed
        if is_operator or is_kernel:
            args = [self._value(arg, var, out) for arg in call.args[:]]
            if any(not a.same_as(b) for a, b in zip(args, call.args[:], strict=True)):
                call = relax.Call(op, args, call.attrs, call.ty_args, call.span, ret_ty=call.ty)
                binding = relax.VarBinding(var, call, binding.span)
            out.append(binding)
            if is_operator and op.name == "relax.call_tir_inplace" and var not in self.used:
                # FuseTIR takes what overwrites a tensor for dead if nobody reads its result
                # (src/relax/transform/dead_code_elimination.cc).
                kill = relax.Call(ir.Op.get("relax.vm.kill_object"), [var], ret_ty=VOID)
                out.append(relax.VarBinding(relax.Var("_", VOID), kill))
            self._object_of_value(var, out)
            return
        args = list(call.args[:])
        listed = []
        if type(op) is ir.Op and op.name in _LISTS and type(args[-1]) is relax.Tuple:
            fields = [self._object(field, out) for field in args.pop().fields[:]]
            listed = [self.normalize(relax.Tuple(fields))]
        args = [*(self._object(arg, out) for arg in args), *listed]
        op = self._object(op, out)
        ty_args = [object_type(ty) for ty in call.ty_args[:]]
        ty = object_type(var.ty)
        if is_tuple(var.ty):
            var = self._named(var, type(var)(var.name, ANY))
        call = relax.Call(op, args, call.attrs, ty_args, call.span, ret_ty=ty)
        out.append(relax.VarBinding(var, call, binding.span))

    def _object_of_value(self, var: relax.Var, out: list[relax.Binding]) -> None:
        """Make an object of a value's fields, if it is used as one."""

        def made(source: relax.Var) -> relax.Var:
            fields = []
            for index, ty in enumerate(source.ty.fields[:]):
                field = type(source)("field", ty)
                read = self.normalize(relax.TupleGetItem(source, index))
                out.append(relax.VarBinding(field, read))
                fields.append(made(field) if is_tuple(ty) else field)
            object = type(source)(source.name, ANY)
            out.append(relax.VarBinding(object, make_tuple(fields)))
            return object

        if is_tuple(var.ty) and var in self.wanted:
            self._named(var, made(var))
            self.values.add(var)


def _uses(body: relax.SeqExpr) -> tuple[set[relax.Var], set[relax.Var]]:
    """The variables that are used otherwise than to be read from or by operators; all that are."""
    wanted: set[relax.Var] = set()
    used: set[relax.Var] = set()

    def want(expr: relax.Expr) -> None:
        if type(expr) in (relax.Var, relax.DataflowVar):
            wanted.add(expr)
            used.add(expr)
        elif type(expr) is relax.Tuple:
            for field in expr.fields[:]:
                want(field)

    def sequence(one: relax.SeqExpr) -> None:
        want(one.body)
        for block in one.blocks[:]:
            for binding in block.bindings[:]:
                value = binding.value
                kind = type(value)
                if kind is relax.If:
                    used.add(value.cond)
                    sequence(value.true_branch)
                    sequence(value.false_branch)
                elif is_update(value):
                    want(value.args[0])
                    want(value.args[2])
                elif kind is ir.Call:
                    if type(value.op) is ir.Op and value.op.name not in _HANDS_ON:
                        used.update(relax.analysis.free_vars(value)[:])
                    else:
                        for arg in value.args[:]:
                            want(arg)
                elif kind in (relax.Var, relax.DataflowVar, relax.Tuple):
                    want(value)
                else:
                    used.update(relax.analysis.free_vars(value)[:])

    sequence(body)
    return wanted, used
