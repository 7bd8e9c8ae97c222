"""TVMScript: printed, parsed back, built, and errors with the place in the source."""

import pytest
import tvm
from hypothesis import given
from hypothesis import strategies as st
from tvm import relax
from tvm.script import from_source
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import ir as I_builder
from tvm.script.ir_builder import relax as R_builder

from relax_inplace import inplace_update_tuple, lift_param

SOURCE = """
@I.ir_module
class Module:
    @R.function(pure=False)
    def inplace_transform_params(params: R.Tuple(R.Tensor((4, 8), "float32"), R.Tensor((4, 8), "float32"))):
        w0 = R.permute_dims(params[0])
        p0 = R.inplace_update_tuple(params, 0, w0)
        w1 = R.permute_dims(p0[1])
        p1 = R.inplace_update_tuple(p0, 1, w1)
        return p1
"""


@I.ir_module
class Chain:
    @R.function(pure=False)
    def inplace_transform_params(
        params: R.Tuple(R.Tensor((4, 8), "float32"), R.Tensor((4, 8), "float32")),
    ):
        w0 = R.permute_dims(params[0])
        p0 = R.inplace_update_tuple(params, 0, w0)
        w1 = R.permute_dims(p0[1])
        p1 = R.inplace_update_tuple(p0, 1, w1)
        return p1


@I.ir_module
class Symbolic:
    @R.function(pure=False)
    def main(
        params: R.Tuple(
            R.Tensor(("n", 8), "float16"), R.Tuple(R.Tensor((2,), "int8"), R.Tensor("bool", ndim=2))
        ),
    ):
        n = T.int64()
        p0 = R.inplace_update_tuple(params, 0, R.shape([n, n * 2]))
        p1 = R.inplace_update_tuple(p0, 1, R.null_value())
        p2 = R.inplace_update_tuple(p1, 1, (R.const(1.5), R.shape([3])))
        return p2


def test_decorated_and_from_source_agree():
    tvm.ir.assert_structural_equal(from_source(SOURCE), Chain)


def test_prints_as_it_is_written():
    script = Chain.script()
    assert "= R.inplace_update_tuple(params, 0, w0)\n" in script
    assert "= R.inplace_update_tuple(p0, 1, w1)\n" in script


@pytest.mark.parametrize("mod", [Chain, Symbolic], ids=["chain", "symbolic"])
def test_text_and_json_round_trip(mod):
    tvm.ir.assert_structural_equal(from_source(mod.script()), mod)
    tvm.ir.assert_structural_equal(from_source(mod.script(show_meta=True)), mod)
    tvm.ir.assert_structural_equal(tvm.ir.load_json(tvm.ir.save_json(mod)), mod)


@I.ir_module
class Marked:
    @R.function
    def main(x: R.Tensor((1, "k"), "float32"), params: R.Tuple(R.Tensor((4, "k"), "float32"))):
        with R.dataflow():
            w = R.lift_param(R.permute_dims(params[0]))
            y = R.matmul(x, w)
            R.output(y)
        return y


def test_a_mark_prints_and_is_read_as_it_is_written():
    assert 'w: R.Tensor((k, 4), dtype="float32") = R.lift_param(' in Marked.script()
    tvm.ir.assert_structural_equal(from_source(Marked.script()), Marked)
    tvm.ir.assert_structural_equal(from_source(Marked.script(show_meta=True)), Marked)
    tvm.ir.assert_structural_equal(tvm.ir.load_json(tvm.ir.save_json(Marked)), Marked)


def test_a_mark_in_the_ir_builder_and_in_a_block_builder():
    tensor = relax.TensorType((4, 8), "float32")
    with IRBuilder() as builder, I_builder.ir_module(), R_builder.function():
        R_builder.func_name("main")
        w = R_builder.arg("w", tensor)
        R_builder.func_ret_value(R_builder.emit(R_builder.lift_param(w)))
    block_builder = relax.BlockBuilder()
    w = relax.Var("w", tensor)
    with block_builder.function("main", [w]):
        block_builder.emit_func_output(block_builder.emit(lift_param(w)))
    tvm.ir.assert_structural_equal(builder.get(), block_builder.get())


def test_a_mark_is_of_one_tensor():
    with pytest.raises(Exception, match="expected a tensor"):
        from_source(
            """
@R.function
def main(w: R.Tensor((4, 8), "float32")):
    return R.lift_param((w, w))
"""
        )


def test_statements_round_trip_too():
    """What a long transform is written as."""
    source = SOURCE.replace(
        "p0 = R.inplace_update_tuple(params, 0, w0)",
        "R.inplace_update_tuple(params, 0, w0, ty_args=(R.Tuple,))",
    )
    assert source != SOURCE
    mod = from_source(source.replace("p0", "params"))
    assert "R.inplace_update_tuple(params, 0, w0, ty_args=(R.Tuple,))" in mod.script()
    tvm.ir.assert_structural_equal(from_source(mod.script()), mod)
    tvm.ir.assert_structural_equal(tvm.ir.load_json(tvm.ir.save_json(mod)), mod)


TENSORS = st.builds(
    lambda dims, dtype: relax.TensorType(dims, dtype),
    st.lists(st.integers(1, 9), max_size=3),
    st.sampled_from(["float32", "float16", "uint32", "int8", "bool"]),
)
# No prim fields: R.Tuple(R.Prim("int64")) prints as R.Tuple(T.int64), which TVM does not parse.
FIELDS = st.recursive(
    st.one_of(TENSORS, st.just(relax.AnyType()), st.just(relax.ShapeType([2, 3]))),
    lambda fields: st.builds(relax.TupleType, st.lists(fields, min_size=1, max_size=3)),
    max_leaves=6,
)


@given(st.lists(FIELDS, min_size=1, max_size=4), FIELDS, st.data())
def test_text_round_trip_of_any_type(fields, value_type, data):
    index = data.draw(st.integers(-len(fields), len(fields) - 1))
    params = relax.Var("params", relax.TupleType(fields))
    value = relax.Var("value", value_type)
    builder = relax.BlockBuilder()
    with builder.function("main", [params, value], pure=False):
        builder.emit_func_output(builder.emit(inplace_update_tuple(params, index, value)))
    tvm.ir.assert_structural_equal(from_source(builder.get().script()), builder.get())


def test_spans_survive_json():
    span = _updates(Chain)[0].span
    assert span is not None and span.source_name.name == __file__
    again = _updates(tvm.ir.load_json(tvm.ir.save_json(Chain)))[0].span
    assert (again.source_name.name, again.line, again.column) == (
        span.source_name.name,
        span.line,
        span.column,
    )


def test_ir_builder():
    tensor = relax.TensorType((4, 8), "float32")
    with IRBuilder() as builder, I_builder.ir_module(), R_builder.function(is_pure=False):
        R_builder.func_name("inplace_transform_params")
        p = R_builder.arg("params", relax.TupleType([tensor, tensor]))
        for index in range(2):
            w = R_builder.emit(R_builder.permute_dims(R_builder.emit(relax.TupleGetItem(p, index))))
            p = R_builder.emit(R_builder.inplace_update_tuple(p, index, w))
        R_builder.func_ret_value(p)
    tvm.ir.assert_structural_equal(builder.get(), Chain)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("R.inplace_update_tuple(params, 2, w0)", "index 2 is out of range"),
        ("R.inplace_update_tuple(params, -3, w0)", "index -3 is out of range"),
        ("R.inplace_update_tuple(params, 0.5, w0)", "expected a constant integer"),
        ("R.inplace_update_tuple(params, w0, w0)", "expected a constant integer"),
        ("R.inplace_update_tuple(w0, 0, w0)", "expected a tuple as first operand"),
    ],
)
def test_errors_carry_the_place(call, message):
    source = SOURCE.replace("R.inplace_update_tuple(params, 0, w0)", call)
    with pytest.raises(tvm.error.DiagnosticError, match=message) as error:
        from_source(source)
    line = next(i for i, text in enumerate(source.splitlines(), 1) if call in text)
    assert f"<str>:{line}:" in str(error.value)
    assert call in str(error.value)


def _updates(mod):
    return [
        binding.value
        for _, function in mod.functions_items()
        for block in function.body.blocks
        for binding in block.bindings
        if getattr(getattr(binding.value, "op", None), "name", "") == "relax.inplace_update_tuple"
    ]
