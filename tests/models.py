"""Models to lift from: how to run one before and after, and random ones."""

import numpy as np
import tvm_ffi
from hypothesis import strategies as st
from pipelines import IS_FUSED, load
from transforms import (
    CASTS,
    SIZES,
    Transform,
    arguments,
    assert_bitwise,
    passed,
    tensors_in,
    transforms,
)
from tvm import ir, relax
from tvm.script import from_source

# The others become float32 inside of a kernel, where a cast and its way back round nothing; and what
# is lifted is not fused with the same operators (src/tirx/transform/unsupported_dtype_legalize.cc).
ROUNDED_IF_FUSED = ["float16", "int8"]


def users_of(mod):
    """The functions that take weights: their names, and how many parameters come before."""
    users = {}
    for gvar, function in mod.functions_items():
        if isinstance(function, relax.Function) and "transform_params" not in gvar.name_hint:
            attrs = function.attrs
            if attrs and "global_symbol" in attrs:
                last = len(function.params) - 1
                users[gvar.name_hint] = int(attrs["num_input"]) if "num_input" in attrs else last
    return users


def run_model(
    before,
    after,
    pipeline="compile",
    transform="inplace_transform_params",
    sizes=SIZES,
    weights=None,
    only=None,
    lazy=False,
):
    """Run each function before, and after on converted weights; compare. The new weights.

    Where nothing is lifted, the functions take their weights as before.
    """
    users = users_of(before)
    first = min(users)
    params = before[first].params[users[first] :]
    if weights is None:
        weights = arguments([param.ty for param in params], sizes, 3)
        if len(weights) == 1 and isinstance(weights[0], list):
            weights = weights[0]
    old, new = load(before, pipeline), load(after, pipeline)
    is_lifted = transform in {gvar.name_hint for gvar in after.get_global_vars()}
    if not is_lifted:
        converted = None
    elif lazy:
        slots = len(after[transform].ret_ty.fields)
        converted = new[transform](_giving(weights), tvm_ffi.Array([None] * slots))
    else:
        converted = new[transform](passed(weights))
    for name in sorted(users) if only is None else only:
        function, count = before[name], users[name]
        inputs = arguments([param.ty for param in function.params[:count]], sizes, 3, seed=1)
        is_bundled = isinstance(function.params[count].ty, relax.TupleType)
        own = [passed(weights)] if is_bundled else [passed(weight) for weight in weights]
        expected = old[name](*map(passed, inputs), *own)
        if not is_lifted:  # what is written to is not handed over twice
            new_weights = [passed(weights)] if is_bundled else list(map(passed, weights))
        else:
            new_weights = [converted]
        result = new[name](*map(passed, inputs), *new_weights)
        if IS_FUSED[pipeline] is False:
            assert_bitwise(result, expected)
        else:
            assert_close(result, expected)
    return converted


def _giving(weights):
    """What yields weight i, once; the indices count through nested tuples."""
    left = dict(enumerate(_leaves(weights)))
    return lambda i: passed(left.pop(i))


def _leaves(weights):
    for weight in weights:
        if isinstance(weight, list):
            yield from _leaves(weight)
        else:
            yield weight


def assert_close(left, right):
    """Equal but for what another order of a reduction, or of fused operations, changes."""
    for a, b in zip(tensors_in(_tuple(left)), tensors_in(_tuple(right)), strict=True):
        with np.errstate(invalid="ignore"):
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
            np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-3, atol=1e-3)


def _tuple(value):
    return value if isinstance(value, tvm_ffi.Array) else tvm_ffi.Array([value])


@st.composite
def models(draw, pipeline="compile"):
    """A random function of inputs and weights, and one that returns some of the same."""
    source = draw(transforms(CASTS if IS_FUSED[pipeline] is False else ROUNDED_IF_FUSED))
    both = from_source(source.source)
    function = both["transform_params"]
    fields = list(range(len(function.ret_ty.fields)))
    kept = [index for index in fields if draw(st.booleans())] or fields[:1]
    return Transform(source.source, kept, source.is_exact)


def as_model(drawn):
    """The module: `main`, and `other`, which returns only the fields that were drawn."""
    mod = from_source(drawn.source)
    functions = {g: f for g, f in mod.functions_items() if g.name_hint != "transform_params"}
    main = mod["transform_params"]
    other = relax.utils.copy_with_new_vars(main)
    body = other.body
    fields = [relax.TupleGetItem(body.body, index) for index in drawn.params]
    result = relax.Var("result", relax.TupleType([field.ty for field in fields]))
    builder = relax.BlockBuilder()
    last = relax.BindingBlock([relax.VarBinding(result, relax.Tuple(fields))])
    other = relax.Function(
        other.params,
        builder.normalize(relax.SeqExpr([*body.blocks, last], result)),
        None,
        main.is_pure,
        main.attrs,
    )
    for name, function in (("main", main), ("other", other)):
        functions[ir.GlobalVar(name)] = builder.normalize(function.with_attr("global_symbol", name))
    return ir.IRModule(functions)
