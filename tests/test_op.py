"""relax.inplace_update_tuple: constructor, type inference, normalisation, purity."""

import os
import subprocess
import sys

import pytest
import tvm
from hypothesis import given
from hypothesis import strategies as st
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from relax_inplace import inplace_update_tuple

N = tvm.tirx.Var("n", "int64")

DTYPES = st.sampled_from(["float32", "float16", "uint32", "int8", "bool", "bfloat16"])
DIMS = st.one_of(st.integers(0, 9), st.just(N))
TENSORS = st.one_of(
    st.builds(relax.TensorType, st.lists(DIMS, max_size=3), DTYPES),
    st.builds(
        lambda dtype, ndim: relax.TensorType(dtype=dtype, ndim=ndim), DTYPES, st.integers(-1, 3)
    ),
    st.builds(
        lambda dims: relax.TensorType(dims, "float32", relax.VDevice("llvm", 0, "global")),
        st.lists(st.integers(1, 4), max_size=2),
    ),
)
SHAPES = st.builds(relax.ShapeType, st.lists(DIMS, max_size=3))
PRIMS = st.just(tvm.ir.PrimType("int64"))
FIELDS = st.recursive(
    st.one_of(TENSORS, SHAPES, PRIMS, st.just(relax.AnyType())),
    lambda fields: st.builds(relax.TupleType, st.lists(fields, max_size=4)),
    max_leaves=8,
)
TUPLES = st.builds(relax.TupleType, st.lists(FIELDS, min_size=1, max_size=6))


def params(*fields):
    return relax.Var("params", relax.TupleType(list(fields)))


TWO = (relax.TensorType((4, 8), "float32"), relax.TensorType((6,), "int8"))


@given(TUPLES, FIELDS, st.data())
def test_type_is_the_tuples_with_one_field_replaced(tuple_type, value_type, data):
    n = len(tuple_type.fields)
    index = data.draw(st.integers(-n, n - 1))
    source, value = relax.Var("params", tuple_type), relax.Var("value", value_type)
    call = relax.BlockBuilder().normalize(inplace_update_tuple(source, index, value))
    assert int(call.args[1].value) == index % n
    fields = list(tuple_type.fields)
    fields[index] = value_type
    tvm.ir.assert_structural_equal(call.ty, relax.TupleType(fields))


@given(TUPLES, FIELDS, st.data())
def test_json_round_trip(tuple_type, value_type, data):
    index = data.draw(st.integers(0, len(tuple_type.fields) - 1))
    source, value = relax.Var("params", tuple_type), relax.Var("value", value_type)
    n = relax.Var("shape", relax.ShapeType([N]))
    builder = relax.BlockBuilder()
    with builder.function("main", [n, source, value], pure=False):
        builder.emit_func_output(builder.emit(inplace_update_tuple(source, index, value)))
    mod = builder.get()
    again = tvm.ir.load_json(tvm.ir.save_json(mod))
    tvm.ir.assert_structural_equal(again, mod)


@pytest.mark.parametrize(
    "value",
    [
        relax.Var("x", TWO[0]),
        relax.const(1.0),
        relax.ShapeExpr([N, 2]),
        relax.prim_value(3),
        N * 2,
        relax.Tuple([relax.Var("x", TWO[0]), relax.ShapeExpr([1])]),
        (relax.Var("x", TWO[0]), relax.Var("y", TWO[1])),
        relax.op.null_value(),
        relax.ExternFunc("f"),
    ],
    ids=str,
)
def test_value_is_any_expression(value):
    builder = relax.BlockBuilder()
    with builder.function("main", [relax.Var("s", relax.ShapeType([N])), params(*TWO)], pure=False):
        call = builder.emit(inplace_update_tuple(params(*TWO), 0, value))
        builder.emit_func_output(relax.Tuple([]))
    expected = builder.normalize(relax.utils.convert_to_expr(value)).ty
    tvm.ir.assert_structural_equal(call.ty.fields[0], expected)


@pytest.mark.parametrize("index", [-3, 2, 100, 2**40])
def test_index_out_of_range(index):
    with pytest.raises(
        IndexError, match=rf"index {index} .*`params` is a tuple of 2 fields.*-2 <="
    ):
        inplace_update_tuple(params(*TWO), index, relax.const(1.0))


@pytest.mark.parametrize(
    "index",
    [
        1.0,
        "0",
        None,
        True,
        N,
        relax.Var("i", tvm.ir.PrimType("int64")),
        relax.const(1),
        relax.prim_value(1.0),
    ],
    ids=str,
)
def test_index_is_a_constant_integer(index):
    with pytest.raises(TypeError, match="expected a constant integer as index"):
        inplace_update_tuple(params(*TWO), index, relax.const(1.0))


@pytest.mark.parametrize(
    "source",
    [relax.Var("x", TWO[0]), relax.Var("x", relax.AnyType()), relax.ShapeExpr([1]), relax.const(1)],
    ids=str,
)
def test_first_operand_is_a_tuple(source):
    with pytest.raises(TypeError, match="expected a tuple as first operand"):
        inplace_update_tuple(source, 0, relax.const(1.0))


def test_operands_made_by_hand_are_checked_too():
    """relax.Call goes past the constructor; inference does not let it."""
    op = tvm.ir.Op.get("relax.inplace_update_tuple")
    builder = relax.BlockBuilder()
    for args, error in [
        ([params(*TWO), relax.prim_value(2), relax.const(1)], IndexError),
        ([params(*TWO), relax.const(1), relax.const(1)], TypeError),
        ([relax.const(1), relax.prim_value(0), relax.const(1)], TypeError),
        ([params(*TWO), relax.prim_value(0)], TypeError),
    ]:
        with pytest.raises(error):
            builder.normalize(relax.Call(op, args))
    call = builder.normalize(relax.Call(op, [params(*TWO), relax.prim_value(-1), relax.const(1)]))
    assert int(call.args[1].value) == 1


def test_negative_index_of_a_tuple_whose_type_is_not_known_yet():
    builder = relax.BlockBuilder()
    x, source = relax.Var("x", TWO[0]), params(*TWO)
    with builder.function("main", [source, x], pure=False):
        nested = inplace_update_tuple(inplace_update_tuple(source, 0, x), -1, x)
        builder.emit_func_output(builder.emit(nested))
    bindings = [b for block in builder.get()["main"].body.blocks for b in block.bindings]
    assert [int(b.value.args[1].value) for b in bindings] == [0, 1]


def test_is_impure():
    assert relax.analysis.contains_impure_call(
        relax.BlockBuilder().normalize(inplace_update_tuple(params(*TWO), 0, relax.const(1.0)))
    )


def test_refused_in_a_pure_function():
    with pytest.raises(tvm.error.DiagnosticError, match=r"add pure=False, .* to `main`"):

        @R.function
        def main(params: R.Tuple(R.Tensor((4,), "float32")), x: R.Tensor((4,), "float32")):
            p0 = R.inplace_update_tuple(params, 0, x)
            return p0


def test_refused_in_a_dataflow_block():
    with pytest.raises(tvm.error.DiagnosticError, match=r"move it out of R.dataflow\(\)"):

        @R.function(pure=False)
        def main(params: R.Tuple(R.Tensor((4,), "float32")), x: R.Tensor((4,), "float32")):
            with R.dataflow():
                p0 = R.inplace_update_tuple(params, 0, x)
                R.output(p0)
            return p0


def test_an_error_that_nobody_catches_is_printed(tmp_path):
    """TVM's hook prints a note only; without an update it is TVM's own hook."""
    script = tmp_path / "script.py"
    text = """
import sys
import relax_inplace
from tvm.script import relax as R
before = sys.excepthook

@R.function(pure=False)
def fine(params: R.Tuple(R.Tensor((4,), "float32")), x: R.Tensor((4,), "float32")):
    return x

assert sys.excepthook is before

@R.function(pure=False)
def main(params: R.Tuple(R.Tensor((4,), "float32")), x: R.Tensor((4,), "float32")):
    p0 = R.inplace_update_tuple(params, 3, x)
    return p0
"""
    script.write_text(text)
    # TVM's hook prints a traceback where pytest has set this variable.
    environment = {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.count("index 3 is out of range") == 1
    assert (
        f"script.py:{text.splitlines().index('    p0 = R.inplace_update_tuple(params, 3, x)') + 1}:"
        in done.stderr
    )


@pytest.mark.parametrize("dataflow", [False, True])
def test_an_ill_formed_function_does_not_compile(dataflow):
    """tvm.compile checks no well-formedness of its own."""

    @I.ir_module
    class Module:
        @R.function(pure=False)
        def main(params: R.Tuple(R.Tensor((4,), "float32")), x: R.Tensor((4,), "float32")):
            p0 = R.inplace_update_tuple(params, 0, x)
            return p0

    main = Module["main"]
    blocks = [relax.DataflowBlock(one.bindings) if dataflow else one for one in main.body.blocks]
    body = relax.SeqExpr(blocks, main.body.body)
    ill = relax.Function(main.params, body, main.ret_ty, dataflow is False, main.attrs)
    message = "occurs within a dataflow block" if dataflow else "annotated as pure"
    with pytest.raises(ValueError, match=message):
        tvm.compile(tvm.IRModule({"main": ill.with_attr("global_symbol", "main")}), "llvm")
