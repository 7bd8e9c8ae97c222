"""The table of effects: what each kind of call overwrites, aliases and keeps."""

import pytest
from tvm import ir, relax
from tvm.ir import op
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from relax_inplace.ir.effects import EffectTable, operands
from relax_inplace.ir.kernel_writes import written_parameters


@I.ir_module
class Module:
    @T.prim_func(private=True, s_tir=True)
    def reads(a: T.Buffer((4, 4), "float32"), b: T.Buffer((4, 4), "float32")):
        for i, j in T.grid(4, 4):
            with T.sblock("b"):
                vi, vj = T.axis.remap("SS", [i, j])
                b[vi, vj] = a[vj, vi]

    @T.prim_func(private=True, s_tir=True)
    def copies(a: T.Buffer((4, 4), "float32"), b: T.Buffer((4, 4), "float32")):
        for i, j in T.grid(4, 4):
            with T.sblock("b"):
                vi, vj = T.axis.remap("SS", [i, j])
                b[vi, vj] = a[vi, vj]

    @T.prim_func(private=True, s_tir=True)
    def stores(a: T.Buffer((4, 4), "float32"), b: T.Buffer((4, 4), "float32")):
        for i, j in T.grid(4, 4):
            with T.sblock("b"):
                vi, vj = T.axis.remap("SS", [i, j])
                b[vi, vj] = a[vi, vj]
                a[vi, vj] = T.float32(0)

    @T.prim_func(private=True, s_tir=True)
    def stores_in_part(a: T.Buffer((4, 4), "float32"), b: T.Buffer((4, 4), "float32")):
        for i in range(4):
            with T.sblock("b"):
                vi = T.axis.spatial(4, i)
                T.reads()
                T.writes(a[vi, 0:4])
                row = T.match_buffer(a[vi, 0:4], (1, 4), offset_factor=1)
                row[0, 0] = T.float32(0)

    @T.prim_func(private=True, s_tir=True)
    def stores_by_another_name(a: T.Buffer((4, 4), "float32"), b: T.Buffer((4, 4), "float32")):
        flat = T.decl_buffer((16,), "float32", data=a.data)
        for i in range(16):
            flat[i] = T.float32(0)

    @T.prim_func(private=True, s_tir=True)
    def calls_a_library(a: T.Buffer((4, 4), "float32"), b: T.Buffer((4, 4), "float32")):
        with T.sblock("b"):
            T.reads(a[0:4, 0:4])
            T.writes(b[0:4, 0:4])
            T.evaluate(T.call_packed("tests.library", a.data, b.data))

    @T.prim_func(private=True, s_tir=True)
    def hands_out_addresses(a: T.Buffer((4, 4), "float32"), b: T.Buffer((4, 4), "float32")):
        T.evaluate(T.call_extern("int32", "f", T.address_of(a[0, 0]), b.access_ptr("r")))

    @T.prim_func(private=True, s_tir=True)
    def stores_without_a_block(a: T.Buffer((4, 4), "float32"), b: T.Buffer((4, 4), "float32")):
        for i in range(4):
            a[i, 0] = b[i, 0]

    @T.prim_func(private=True, s_tir=True)
    def adds_in_a_library(a: T.Buffer((4, 4), "float32"), b: T.Buffer((4, 4), "float32")):
        with T.sblock("b"):
            T.reads(a[0:4, 0:4], b[0:4, 0:4])
            T.writes(b[0:4, 0:4])
            T.evaluate(T.call_extern("int32", "f", a.data, b.data))

    @T.prim_func(private=True, s_tir=True)
    def hands_out_pointers(
        a: T.Buffer((4, 4), "float32"), b: T.Buffer((4, 4), "float32"), c: T.Buffer((4,), "float32")
    ):
        T.evaluate(
            T.call_extern("int32", "f", a.access_ptr("r"), b.access_ptr("w"), c.access_ptr("rw"))
        )

    @T.prim_func(private=True, s_tir=True)
    def hands_out_what_depends(
        a: T.Buffer((4, 4), "float32"), b: T.Buffer((4, 4), "float32"), mode: T.int32
    ):
        pointer = T.tvm_access_ptr(T.type_annotation("float32"), a.data, 0, 16, mode)
        T.evaluate(T.call_extern("int32", "f", pointer, b.access_ptr("r")))

    @R.function(private=True)
    def overwrites_second(
        x: R.Tensor((4, 4), "float32"), y: R.Tensor((4, 4), "float32")
    ) -> R.Tensor((4, 4), "float32"):
        v = R.memory.view(y, R.shape([4, 4]))
        z = R.call_tir_inplace(
            Module.stores, (v, x), inplace_indices=[0], out_ty=R.Tensor((4, 4), "float32")
        )
        w = R.memory.ensure_zero_offset(x)
        return w

    @R.function(private=True)
    def recursive(x: R.Tensor((4, 4), "float32")) -> R.Tensor((4, 4), "float32"):
        y: R.Tensor((4, 4), "float32") = Module.recursive(x)
        return y

    @R.function(pure=False)
    def main(
        c: R.Tensor((), "bool"),
        x: R.Tensor((4, 4), "float32"),
        y: R.Tensor((4, 4), "float32"),
        t: R.Tuple(R.Tensor((4, 4), "float32"), R.Tensor((4, 4), "float32")),
        g: R.Callable((R.Tensor((4, 4), "float32"),), R.Tensor((4, 4), "float32"), False),
    ):
        cls = Module
        add = R.add(x, y)
        view = R.memory.view(x, R.shape([16]))
        zero_offset = R.memory.ensure_zero_offset(x)
        reshape = R.reshape(x, (16,))
        kernel = R.call_tir(cls.reads, (x,), out_ty=R.Tensor((4, 4), "float32"))
        copy = R.call_tir(cls.copies, (x,), out_ty=R.Tensor((4, 4), "float32"))
        storing = R.call_tir(cls.stores, (x,), out_ty=R.Tensor((4, 4), "float32"))
        in_place = R.call_tir_inplace(
            cls.reads, (x, y), inplace_indices=[1], out_ty=R.Tensor((4, 4), "float32")
        )
        in_place_and_stored = R.call_tir_inplace(
            cls.stores, (x, y), inplace_indices=[1], out_ty=R.Tensor((4, 4), "float32")
        )
        packed_in_place = R.call_inplace_packed(
            "f", x, y, inplace_indices=[0], ty_args=R.Tensor((4, 4), "float32")
        )
        pure_packed = R.call_pure_packed("f", x, (y,), ty_args=R.Tensor((4, 4), "float32"))
        packed = R.call_packed("f", x, (y,), ty_args=R.Tensor((4, 4), "float32"))
        dps = R.call_dps_packed("f", (x,), out_ty=R.Tensor((4, 4), "float32"))
        known_packed = R.call_pure_packed("vm.builtin.copy", x, ty_args=R.Tensor((4, 4), "float32"))
        lowered_view = R.call_packed(
            "vm.builtin.reshape", x, R.shape([16]), ty_args=R.Tensor((16,), "float32")
        )
        field = R.call_packed("vm.builtin.tuple_getitem", t, 0, ty_args=R.Any)
        made = R.call_packed("vm.builtin.make_tuple", x, y, ty_args=R.Any)
        checked = R.call_packed("vm.builtin.check_tensor_info", x, ty_args=R.Tuple())
        shape = R.call_packed("vm.builtin.shape_of", x, ty_args=R.Shape(ndim=2))
        function: R.Tensor((4, 4), "float32") = cls.overwrites_second(x, y)
        recursion: R.Tensor((4, 4), "float32") = cls.recursive(x)
        unknown_closure = g(x)
        printed = R.print(x, format="{}")
        return (x, add)


def effects_of():
    table = EffectTable(Module)
    return table, {
        binding.var.name: binding.value
        for block in Module["main"].body.blocks
        for binding in block.bindings
    }


TABLE, VALUES = effects_of()


X = relax.Var("x", relax.TensorType((4, 4), "float32"))


def names(exprs):
    return sorted(str(expr) for expr in exprs)


# What it overwrites, aliases and keeps.
ROWS = {
    "add": ("", "", ""),
    "view": ("", "x", ""),
    "zero_offset": ("", "x", ""),
    "reshape": ("", "", ""),
    "kernel": ("", "", ""),
    "storing": ("x", "", ""),
    "in_place": ("y", "y", ""),
    "in_place_and_stored": ("xy", "y", ""),
    "packed_in_place": ("x", "xy", "xy"),
    "pure_packed": ("", "xy", "xy"),
    "packed": ("xy", "xy", "xy"),
    "dps": ("", "", ""),
    "known_packed": ("", "x", ""),
    "lowered_view": ("", "x", ""),
    "field": ("", "t", ""),
    "made": ("", "xy", ""),
    "checked": ("", "", ""),
    "shape": ("", "", ""),
    "function": ("xy", "x", ""),
    "recursion": ("x", "x", "x"),
    "unknown_closure": ("gx", "gx", "gx"),
    "printed": ("", "", ""),
}


@pytest.mark.parametrize("name", ROWS)
def test_row(name):
    effects = TABLE.of(VALUES[name])
    found = effects.overwrites, effects.aliases, effects.keeps
    assert tuple("".join(names(one)) for one in found) == ROWS[name]
    is_view = {"view", "in_place", "known_packed", "lowered_view", "field", "made"}
    assert effects.is_view == (name in is_view | {"in_place_and_stored", "packed_in_place"})
    assert effects.looks_only == (name in {"checked", "shape"})
    assert effects.is_known == (name not in {"packed", "recursion", "unknown_closure"})


@pytest.mark.parametrize(
    ("name", "expected"), [("reshape", "x"), ("copy", "x"), ("kernel", None), ("add", None)]
)
def test_what_is_a_view_in_a_dataflow_block(name, expected):
    view = TABLE.view_if_lowered_so(VALUES[name])
    assert (None if view is None else str(view)) == expected


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        ("reads", [1]),
        ("stores", [0, 1]),
        ("stores_in_part", [0]),
        ("stores_by_another_name", [0]),
        ("calls_a_library", [1]),
        ("hands_out_addresses", [0]),
        ("stores_without_a_block", [0]),
        ("adds_in_a_library", [1]),
        ("hands_out_pointers", [1, 2]),
        ("hands_out_what_depends", [0]),
    ],
)
def test_what_a_kernel_writes_to(kernel, expected):
    assert written_parameters(Module[kernel]) == expected


def test_a_kernel_that_is_given_its_results():
    """As it is called when it is lowered, directly or with symbolic sizes."""
    y = relax.Var("y", X.ty)
    kernel = Module.get_global_var("stores")
    calls = [
        relax.Call(kernel, [X, y]),
        relax.Call(ir.Op.get("relax.vm.call_tir_dyn"), [kernel, relax.Tuple([X, y])]),
    ]
    for call in calls:
        effects = TABLE.of(call)
        assert names(effects.overwrites) == ["x", "y"]
        assert not effects.allocates


def test_what_is_nowhere_in_the_module():
    """Of a function nothing is known; a kernel computes its result, and may store to all else."""
    nowhere = ir.GlobalVar("nowhere")
    effects = TABLE.of(relax.Call(nowhere, [X]))
    found = effects.overwrites, effects.aliases, effects.keeps
    assert [names(one) for one in found] == [["x"]] * 3
    assert not effects.is_known
    effects = TABLE.of(relax.op.call_tir(nowhere, relax.Tuple([X]), X.ty))
    assert names(effects.overwrites) == ["x"]


def sequence(value, *before):
    """Bindings, of which the last one is the result."""
    builder = relax.BlockBuilder()
    values = [builder.normalize(one) for one in (*before, value)]
    bindings = [relax.VarBinding(relax.Var("result", one.ty), one) for one in values]
    return relax.SeqExpr([relax.BindingBlock(bindings)], bindings[-1].var)


def packed(arg):
    return ir.Call(relax.ExternFunc("f"), [arg], ret_ty=X.ty)


@pytest.mark.parametrize("swapped", [False, True])
def test_a_choice_does_what_either_branch_does(swapped):
    """The first one, or the second, overwrites, returns and keeps."""
    y = relax.Var("y", X.ty)
    condition = relax.Var("c", relax.TensorType((), "bool"))
    branches = [sequence(packed(X)), sequence(relax.op.memory.ensure_zero_offset(y))]
    if swapped:
        branches.reverse()
    effects = EffectTable(Module).of(relax.BlockBuilder().normalize(relax.If(condition, *branches)))
    found = effects.overwrites, effects.aliases, effects.keeps
    assert [names(one) for one in found] == [["x"], ["x", "y"], ["x"]]
    assert not effects.is_known


def test_a_function_does_what_the_calls_in_it_do():
    """To what it is given and captures, through tuples; what it does not know it makes unknown."""
    param, captured, y = (relax.Var(name, X.ty) for name in ("p", "q", "y"))
    calls = packed(param), relax.op.call_pure_packed("f", captured, ty_args=X.ty)
    local = relax.Function([param], sequence(relax.op.add(param, param), *calls), X.ty)
    variable = relax.Var("local", local.ty)
    table = EffectTable(Module)
    table.local[variable] = local
    effects = table.of(relax.Call(variable, [relax.Tuple([X, y])]))
    found = effects.overwrites, effects.aliases, effects.keeps
    assert [names(one) for one in found] == [["x", "y"], [], ["q", "x", "y"]]
    assert effects.allocates
    assert not effects.is_known


def test_a_function_that_returns_what_it_is_given():
    """That is no new memory; what it makes of it may be, and may be a view of it."""
    param = relax.Var("p", X.ty)
    table = EffectTable(Module)
    for body, allocates in (
        (relax.SeqExpr([], param), False),
        (sequence(relax.op.reshape(param, (4, 4))), True),
    ):
        local = relax.Function([param], body, X.ty)
        variable = relax.Var("local", local.ty)
        table.local[variable] = local
        effects = table.of(relax.Call(variable, [X]))
        assert (names(effects.aliases), effects.allocates) == (["x"], allocates)


def test_names_in_a_function():
    """A second name, a tuple and a field of it stand for what they are made of."""
    param = relax.Var("p", X.ty)
    again = relax.Var("again", X.ty)
    pair = relax.Var("pair", relax.TupleType([X.ty, X.ty]))
    field = relax.Var("field", X.ty)
    bindings = [
        relax.VarBinding(again, param),
        relax.VarBinding(pair, relax.Tuple([again, again])),
        relax.VarBinding(field, relax.TupleGetItem(pair, 1)),
    ]
    local = relax.Function([param], relax.SeqExpr([relax.BindingBlock(bindings)], field), X.ty)
    variable = relax.Var("local", local.ty)
    table = EffectTable(Module)
    table.local[variable] = local
    assert names(table.of(relax.Call(variable, [X])).aliases) == ["x"]


def test_a_reshape_that_no_kernel_is_known_of():
    """Its shape is not known: it may be a view, as any may be."""
    shape = relax.Var("shape", relax.ShapeType(ndim=2))
    reshape = relax.BlockBuilder().normalize(relax.op.reshape(X, shape))
    assert TABLE.kernels.of(reshape) is None
    assert TABLE.view_if_lowered_so(reshape).same_as(X)


@pytest.mark.parametrize("packed", [False, True], ids=["kernel", "packed function"])
def test_in_place_in_part(packed):
    """The field that is not in place is new memory."""
    y = relax.Var("y", X.ty)
    if packed:
        call = relax.op.call_inplace_packed(
            "f", X, y, inplace_indices=[-1, 1], ty_args=[X.ty, X.ty]
        )
    else:
        kernel = Module.get_global_var("reads")
        call = relax.op.call_tir_inplace(kernel, relax.Tuple([X, y]), [-1, 1], [X.ty, X.ty])
    effects = TABLE.of(call)
    assert effects.allocates
    assert names(effects.overwrites) == ["y"]
    assert [None if one is None else str(one) for one in effects.lies_in] == [None, "y"]


def test_branches_and_local_functions():
    f32 = relax.TensorType((4, 4), "float32")
    c, x, y = (
        relax.Var(name, ty)
        for name, ty in (("c", relax.TensorType((), "bool")), ("x", f32), ("y", f32))
    )
    gvar = Module.get_global_var("stores")
    call = relax.op.call_tir_inplace(gvar, relax.Tuple([x]), [0], [f32])
    one = relax.Var("one", f32)
    written = relax.SeqExpr([relax.BindingBlock([relax.VarBinding(one, call)])], one)
    choice = relax.BlockBuilder().normalize(relax.If(c, written, relax.SeqExpr([], y)))
    effects = TABLE.of(choice)
    assert (names(effects.overwrites), names(effects.aliases)) == (["x"], ["x", "y"])
    # A local function does nothing before it is called, and is known by its variable.
    param = relax.Var("p", f32)
    local = relax.Function([param], written, f32)
    variable = relax.Var("local", local.ty)
    assert not TABLE.of(local).overwrites
    TABLE.local[variable] = local
    effects = TABLE.of(relax.Call(variable, [y]))
    assert (names(effects.overwrites), names(effects.aliases)) == (["x"], ["x"])
    assert names(operands(relax.Call(variable, [y]))) == ["local", "y"]
    # One that calls itself is not known in there.
    again = relax.SeqExpr(
        [relax.BindingBlock([relax.VarBinding(one, relax.Call(variable, [param]))])], one
    )
    TABLE.local[variable] = relax.Function([param], again, f32)
    effects = TABLE.of(relax.Call(variable, [y]))
    assert not effects.is_known
    assert "y" in names(effects.overwrites)


def test_an_operator_that_nobody_knows():
    """Pure, it overwrites nothing; impure, it may do anything."""
    if "tests.impure" not in ir.Op.list_op_names():
        op.register_op_attr("tests.impure", "FPurity", False)
    for name, overwritten in (
        ("relax.dist.annotate_sharding", []),
        ("relax.invoke_closure", ["x"]),
        ("relax.invoke_pure_closure", ["x"]),  # it may call a kernel in place
        ("tests.impure", ["x"]),
    ):
        effects = TABLE.of(ir.Call(ir.Op.get(name), [X]))
        assert names(effects.overwrites) == overwritten
        assert names(effects.aliases) == names(effects.keeps) == ["x"]


@pytest.mark.parametrize(
    ("name", "allocates"),
    [
        ("relax.memory.view", False),
        ("relax.memory.ensure_zero_offset", True),
        ("relax.to_vdevice", True),
        ("relax.hint_on_device", False),
        ("relax.builtin.stop_lift_params", False),
        ("relax.wrap_param", False),
        ("relax.make_closure", False),
        ("relax.memory.alloc_tensor", False),
        ("relax.vm.alloc_tensor", False),
        ("vm.builtin.alloc_tensor", False),
        ("vm.builtin.copy", False),
        ("vm.builtin.ensure_zero_offset", True),
        ("vm.builtin.make_tuple", False),
        ("vm.builtin.reshape", False),
        ("vm.builtin.to_device", True),
        ("vm.builtin.tuple_getitem", False),
        ("runtime.TVMTensorCreateView", False),
    ],
)
def test_what_may_be_or_lie_in_its_operand(name, allocates):
    callee = ir.Op.get(name) if name.startswith("relax.") else relax.ExternFunc(name)
    effects = TABLE.of(ir.Call(callee, [X]))
    assert (names(effects.aliases), effects.allocates) == (["x"], allocates)
    assert not effects.overwrites
    assert not effects.keeps


@pytest.mark.parametrize("name", ["relax.inplace_update_tuple", "vm.builtin.inplace_update_tuple"])
def test_an_update_keeps_what_it_stores(name):
    callee = ir.Op.get(name) if name.startswith("relax.") else relax.ExternFunc(name)
    params = relax.Var("params", relax.TupleType([X.ty]))
    effects = TABLE.of(ir.Call(callee, [params, relax.prim_value(0), X]))
    found = effects.overwrites, effects.aliases, effects.keeps
    assert [names(one) for one in found] == [["params"], ["params"], ["x"]]


def test_a_slot_that_is_emptied_is_overwritten():
    params = relax.Var("params", relax.TupleType([X.ty]))
    call = ir.Call(relax.ExternFunc("vm.builtin.tuple_reset_item"), [params, relax.prim_value(0)])
    assert names(TABLE.of(call).overwrites) == ["params"]
