"""What restores the weights of a transform, and what cannot be restored, and why."""

import textwrap

import ml_dtypes
import numpy as np
import pytest
import tvm
from tvm import relax, te, tirx
from tvm.script import from_source

from relax_inplace.analysis import InverseError, find_inverse
from relax_inplace.relayout.exact_cast import cast_back
from relax_inplace.relayout.kernel_inverse import undo_kernel

TWO = 'R.Tensor((4, 6), "float16"), R.Tensor((4, 6), "float16")'


def module(weights, body, others="", before=""):
    body = textwrap.indent(textwrap.dedent(body).strip(), "        ")
    others = textwrap.indent(textwrap.dedent(others), "    ")
    return from_source(
        f"@I.ir_module\nclass Module:\n{others}\n    @R.function\n"
        f"    def transform_params({before}params: R.Tuple({weights})):\n"
        f"        cls = Module\n{body}\n"
    )


def inverse(*args, **options):
    mod = module(*args, **options)
    return find_inverse("transform_params", mod["transform_params"], mod)


def how(*args, **options):
    """For each weight how it is restored, or why not."""
    found = inverse(*args, **options)
    return [w.because if w.done is None else f"= {w.done}" for w in found.weights]


def test_table():
    found = inverse(
        f'{TWO}, R.Tuple(R.Tensor((2,), "float32"), R.Tensor((2,), "float32"))',
        """
        w = params[0]
        v = params[1]
        t = params[2]
        both = R.concat((R.permute_dims(w), R.permute_dims(v)))
        return (t[1], both)
        """,
    )
    assert str(found) == textwrap.dedent(
        """\
        slot  weight  restored by
           0  w       permute_dims(strided_slice(params[1]))
           1  v       permute_dims(strided_slice(params[1]))
         2.0  t[0]    not: nothing that is made from it is kept
         2.1  t[1]    params[0]"""
    )


@pytest.mark.parametrize(
    "code, expected",
    [
        ("R.permute_dims(w, axes=[1, 0])", "= permute_dims(params[0])"),
        ("R.reshape(w, (3, 8))", "= reshape(params[0])"),
        ("R.flatten(w)", "= reshape(params[0])"),
        ("R.squeeze(R.expand_dims(w, axis=[0, 2]), axis=[0])", "= reshape(reshape(params[0]))"),
        ("R.flip(w, axis=-1)", "= flip(params[0])"),
        ("R.split(w, 3, axis=1)", "= concat(params[0][0], params[0][1], params[0][2])"),
        ("R.stack((w, w), axis=0)", "= strided_slice(params[0])"),
        ('R.layout_transform(w, index_map=lambda i, j: (j // 2, i, j % 2))', "= undo_layout_transform(params[0])"),
        ("R.nn.pad(w, (1, 0, 0, 2))", "= undo_nn.pad(params[0])"),
        ("R.exp(w)", "`exp` has no inverse"),
        ("R.permute_dims(R.exp(w))", "`exp` has no inverse"),
        ("R.sum(w)", "`sum` has no inverse"),
        ("R.add(w, w)", "`add` has no inverse"),
        ("R.strided_slice(w, axes=[0], begin=[1], end=[3])", "`strided_slice` has no inverse"),
        ("R.repeat(w, 2, axis=0)", "`repeat` has no inverse"),
        ('R.astype(w, "float32")', "`astype` of float16 to float32 makes signalling NaNs quiet"),
        ('R.astype(w, "int8")', "`astype` of float16 to int8 loses bits"),
        ("R.take(w, R.const([0, 1, 2, 3]), axis=0)", "`take` has no inverse"),
        ("R.split(w, [1, 2], axis=0)[1]", "not all of what `split` makes of it is kept"),
        ("R.nn.softmax(w)", "`softmax` has no inverse"),
    ],
)  # fmt: skip
def test_operators(code, expected):
    if expected.startswith("`softmax"):
        expected = expected.replace("softmax", "nn.softmax")
    assert how('R.Tensor((4, 6), "float16")', f"w = params[0]\nx = {code}\nreturn (x,)") == [
        expected
    ]


@pytest.mark.parametrize(
    "dtype, code, expected",
    [
        ("uint8", "R.bitwise_not(w)", "= bitwise_not(params[0])"),
        ("uint8", 'R.bitwise_xor(w, R.const(136, "uint8"))', "= bitwise_xor(params[0])"),
        ("bool", "R.bitwise_not(w)", "`bitwise_not` of bool has no inverse"),
        ("int32", "R.bitwise_xor(w, w)", "`bitwise_xor` with no constant has no inverse"),
        ("int32", 'R.astype(w, "float32")', "`astype` of int32 to float32 loses bits"),
        ("float32", 'R.astype(w, "float64")', "`astype` of float32 to float64 makes signalling NaNs quiet"),
        ("bfloat16", 'R.astype(w, "float32")', "= astype(params[0])"),
        ("bfloat16", 'R.astype(w, "float16")', "`astype` of bfloat16 to float16 loses bits"),
        ("int32", 'R.bitwise_and(w, R.const(3, "int32"))', "`bitwise_and` has no inverse"),
    ],
)  # fmt: skip
def test_numbers(dtype, code, expected):
    weight = f'R.Tensor((4, 6), "{dtype}")'
    assert how(weight, f"w = params[0]\nx = {code}\nreturn (x,)") == [expected]


def test_any_one_that_is_kept_will_do():
    body = "w = params[0]\nx = R.exp(w)\ny = R.permute_dims(R.permute_dims(w))\nz = R.flip(w, axis=0)\n"
    weight = 'R.Tensor((4, 6), "float16")'
    assert how(weight, body + "return (x, y, z)") == ["= flip(params[2])"]
    assert how(weight, body + "return (x, y, w)") == ["= params[2]"]
    assert how(weight, body + "return (x, y)") == ["= permute_dims(permute_dims(params[1]))"]
    assert how(weight, body + "return (x,)") == ["`exp` has no inverse"]


@pytest.mark.parametrize(
    "view", ["x", "R.memory.ensure_zero_offset(x)", "R.memory.view(x, R.shape([6, 4]))"]
)
def test_what_may_be_written_to_is_not_known(view):
    others = """
        @T.prim_func(private=True, s_tir=True)
        def double(a: T.Buffer((6, 4), "float16")):
            for i, j in T.grid(6, 4):
                with T.sblock("double"):
                    v, w = T.axis.remap("SS", [i, j])
                    a[v, w] = a[v, w] * T.float16(2)
    """
    body = f"""
        x = R.permute_dims(params[0])
        v = {view}
        y = R.call_tir_inplace(cls.double, (v,), inplace_indices=[0], out_ty=R.Tensor((6, 4), "float16"))
        return (x, y)
    """
    assert how('R.Tensor((4, 6), "float16")', body, others=others) == [
        "a call may write to what is made from it"
    ]


def test_branches():
    body = """
        if c:
            r = (R.permute_dims(params[0]),)
        else:
            r = (params[0],)
        return r
    """
    weight = 'R.Tensor((4, 4), "float16")'
    before = 'c: R.Tensor((), "bool"), '
    mod = module(weight, body, before=before)
    function = mod["transform_params"].with_attr("num_input", 1)
    (found,) = find_inverse("transform_params", function, mod).weights
    assert (found.done, found.because) == (
        None,
        "it depends on a condition what is made from it",
    )


def test_sizes_that_nothing_shows():
    weights = 'R.Tensor(("n", 4), "float16")'
    body = "n = T.int64()\nw = R.reshape(params[0], (n * 4,))\nreturn (w,"
    assert how(weights, body + ")") == ["its size `n` cannot be read off what is kept"]
    assert how(weights, body + " R.shape([n]))") == ["= reshape(params[0])"]


def test_sizes_that_are_checked_when_it_runs():
    body = """
        n = T.int64()
        m = T.int64()
        w = R.match_cast(params[0], R.Tensor((m // 4 * 4, 4), "float16"))
        return (R.permute_dims(w), R.shape([m]))
    """
    assert how('R.Tensor(("m", 4), "float16")', body) == [
        "`match_cast` checks its sizes when it runs: they are not proved"
    ]
    body = body.replace("m // 4 * 4", "m")
    assert how('R.Tensor(("m", 4), "float16")', body) == ["= permute_dims(params[0])"]


def test_sizes_that_are_not_proved_equal():
    body = "n = T.int64()\nm = T.int64()\nk = T.int64()\nreturn (R.reshape(params[0], (k,)), R.shape([n, m, k]))"
    weights = 'R.Tensor(("n", "m"), "float16"), R.Tensor(("k",), "int8")'
    assert how(weights, body)[0] == "`reshape` is not proved to keep every element"


# -- kernels --------------------------------------------------------------------------------------


def kernel(loops, body, out="(4, 6)", axes=None, dtype="float16"):
    names = ", ".join("ijk"[: len(loops)])
    axes = axes or ", ".join(f"v{name}" for name in "ijk"[: len(loops)])
    return f"""
    @T.prim_func(private=True, s_tir=True)
    def move(w: T.Buffer((4, 6), "float16"), out: T.Buffer({out}, "{dtype}")):
        for {names} in T.grid({", ".join(map(str, loops))}):
            with T.sblock("move"):
                {axes} = T.axis.remap("{"S" * len(loops)}", [{names}])
                {body}
"""


ONCE = "`move` is not proved to write each element once"
KEPT = "`move` is not proved to keep every element"


@pytest.mark.parametrize(
    "others, expected",
    [
        (kernel([4, 6], "out[vi, vj] = w[3 - vi, vj]"), None),
        (kernel([2, 2, 6], "out[vi, vj, vk] = w[vi * 2 + vj, vk]", "(2, 2, 6)"), None),
        (kernel([4, 6], "out[vj, vi] = w[vi, vj]", "(6, 4)"), None),
        (kernel([5, 6], "out[vi, vj] = T.if_then_else(vi < 4, w[vi, vj], T.float16(0))", "(5, 6)"), None),
        (kernel([4, 6], 'out[vi, vj] = T.reinterpret("uint16", w[vi, vj])', dtype="uint16"),
         None),
        (kernel([4, 6], "out[vi, vj] = w[vi, vj] * T.float16(2)"), "`move` computes new numbers"),
        (kernel([3, 6], "out[vi, vj] = w[vi, vj]", "(3, 6)"), KEPT),
        (kernel([3, 6], "out[vi, vj] = w[vi + 1, vj]", "(3, 6)"), KEPT),
        (kernel([4, 6], "T.where(i < 3)\n                out[vi, vj] = w[vi, vj]"), ONCE),
        (kernel([4, 6], "out[vi, vj] = out[vi, vj]"), "`move` reads what it writes"),
        (kernel([4, 6], "out[vi, vj] = T.if_then_else(vi < 3, w[vi, vj], T.float16(0))"),
         KEPT),
        (kernel([4, 6], "out[0, vj] = w[vi, vj]"), ONCE),
        (kernel([4, 6], "out[vi, vj] = w[vi, vj // 2 * 2]"), KEPT),
        (kernel([4, 6], "out[vi, vj] = w[vi, vi]"), KEPT),
        (kernel([4, 6], 'out[vi, vj] = w[vi, T.Cast("int32", w[0, vj])]'),
         "`move` has an index that is data"),
        (kernel([4, 6], "out[vi, vj] = T.if_then_else(w[vi, vj] == w[vi, vj], w[vi, vj], T.float16(0))"),
         "`move` computes new numbers"),
        (kernel([4, 6], 'out[vi, vj] = T.Cast("float32", w[vi, vj])', dtype="float32"),
         "`move` casts: `astype` of float16 to float32 makes signalling NaNs quiet"),
        (kernel([4, 6, 2], "out[vi, vj] = w[vi, vj]"), ONCE),
        (kernel([4, 6], "out[vi, 0] = T.if_then_else(vj < 1, w[vi, 0], w[vi, vj])"),
         ONCE),
        (kernel([5, 6], "out[vi, vj] = T.if_then_else(vi == 4, T.float16(0), w[vi, vj])", "(5, 6)"), None),
        (kernel([5, 6], "out[vi, vj] = T.Select(vi > 0, w[vi - 1, vj], T.float16(0))", "(5, 6)"), None),
        (kernel([4, 6], "out[vi, vj] = w[vi, vj]\n                out[0, 0] = T.float16(1)"),
         ONCE),
    ],
)  # fmt: skip
def test_kernels(others, expected):
    mod = from_source(f"@I.ir_module\nclass M:\n{others}")
    out = mod["move"].params[1].ty
    shape = tuple(map(int, out.shape))
    body = f"""
        x = R.call_tir(cls.move, (params[0],), out_ty=R.Tensor({shape}, "{out.dtype}"))
        return (x,)
    """
    (found,) = how('R.Tensor((4, 6), "float16")', body, others=others)
    assert found == (expected or "= undo_move(params[0])")


COPY = kernel([4, 6], "out[vi, vj] = w[vi, vj]")
REMAP = 'vi, vj = T.axis.remap("SS", [i, j])'
INIT = "\n                with T.init():\n                    out[vi, vj] = T.float16(0)"
FALLING = "vi = T.axis.spatial(4, 3 - i)\n                vj = T.axis.spatial(6, j)"
LATER = "vi = T.axis.spatial(4, i + 1)\n                vj = T.axis.spatial(6, j)"


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('w: T.Buffer((4, 6), "float16"', 'w: T.Buffer((4, 6), "float16", strides=(1, 4)',
         "`move` has a buffer that is not row-major elements of whole bytes"),
        ("for i, j in T.grid(4, 6)", "for i, j, k in T.grid(4, 6, 0)", ONCE),
        (REMAP, REMAP.replace("SS", "SR"), "`move` sums up"),
        (REMAP, REMAP + INIT, "`move` has intermediate buffers, or sums up"),
        (REMAP, LATER, ONCE),
        (REMAP, FALLING, None),
    ],
)  # fmt: skip
def test_blocks_that_are_not_of_a_tensor_expression(old, new, reason):
    assert old in COPY
    mod = from_source(f"@I.ir_module\nclass M:\n{COPY.replace(old, new)}", check_well_formed=False)
    ty = relax.TensorType((4, 6), "float16")
    undone = undo_kernel(mod["move"], "move", [ty], ty, [])
    assert callable(undone) if reason is None else undone == reason


def test_a_call_of_a_kernel_with_other_tensors():
    mod = from_source(f"@I.ir_module\nclass M:\n{COPY}")
    half, whole = (relax.TensorType((4, 6), dtype) for dtype in ("float16", "float32"))
    assert undo_kernel(mod["move"], "move", [whole], half, []) == (
        "`move` is called with tensors of other dtypes"
    )
    flat = relax.TensorType((24,), "float16")
    assert undo_kernel(mod["move"], "move", [half], flat, []) == (
        "`move` is called with tensors of other ranks"
    )
    assert undo_kernel(mod["move"], "move", [half, half], half, []) == (
        "`move` has other tensors than its call"
    )
    assert undo_kernel(mod["move"], "move", [half], half, [tirx.const(4, "int64")]) == (
        "`move` takes other numbers than it is given"
    )


BY_SIZES = """
@T.prim_func(private=True, s_tir=True)
def move(a: T.handle, m: T.int64, b: T.handle):
    n = T.int64()
    w = T.match_buffer(a, (n * 4, 2), "float16")
    out = T.match_buffer(b, (n, 4, 2), "float16")
    for i, j, k in T.grid(n, 4, 2):
        with T.sblock("move"):
            vi, vj, vk = T.axis.remap("SSS", [i, j, k])
            out[vi, vj, vk] = w[PLACE, vk]
"""


@pytest.mark.parametrize(
    ("place", "size", "reason"),
    [
        ("vi * 4 + vj", "n", None),
        ("vi * 4 + 3 - vj", "n", None),
        ("vj * n + vi", "n", None),
        ("vi * 4 + vj", "n * 2", None),
        ("vi * 4 + (vj + m) % 4", "n", "`move` depends on a number that is no size"),
    ],
)
def test_a_kernel_that_is_called_with_sizes(place, size, reason):
    body = f"""
        R.func_attr({{"num_input": 1}})
        n = T.int64()
        x = R.call_tir(
            cls.move, (params[0], R.prim_value({size})), out_ty=R.Tensor((n, 4, 2), "float16")
        )
        return (x,)
    """
    others = BY_SIZES.replace("PLACE", place)
    before = 'sizes: R.Shape(["n"]), '
    (found,) = how('R.Tensor(("n * 4", 2), "float16")', body, others=others, before=before)
    assert found == (reason or "= undo_move(params[0])")


def test_a_size_that_no_tensor_shows():
    others = """
@T.prim_func(private=True, s_tir=True)
def move(a: T.handle, n: T.int64, b: T.handle):
    w = T.match_buffer(a, (n * 4, 2), "float16")
    out = T.match_buffer(b, (n * 8,), "float16")
    for i, j in T.grid(n * 4, 2):
        with T.sblock("move"):
            vi, vj = T.axis.remap("SS", [i, j])
            out[vi * 2 + 1 - vj] = w[vi, vj]
"""
    body = """
        R.func_attr({"num_input": 1})
        n = T.int64()
        x = R.call_tir(cls.move, (params[0], R.prim_value(n)), out_ty=R.Tensor(OUT, "float16"))
        return (x,)
    """
    shown = {"others": others, "before": 'sizes: R.Shape(["n"]), '}
    weight = 'R.Tensor(("n * 4", 2), "float16")'
    assert how(weight, body.replace("OUT", "(n * 8,)"), **shown) == ["= undo_move(params[0])"]
    weight = 'R.Tensor((8, 2), "float16")'
    assert how(weight, body.replace("OUT", "(16,)"), **shown) == [
        "`move` depends on more than the sizes of its tensors"
    ]


def test_sizes_of_one_name():
    """The kernel that undoes it takes sizes by name."""
    n, m = tirx.Var("n", "int64"), tirx.Var("n", "int64")
    w = te.placeholder((n, m), "float16", "w")
    move = te.create_prim_func([w, te.compute((m, n), lambda i, j: w[j, i])])
    there, back = (relax.TensorType(shape, "float16") for shape in ([n, m], [m, n]))
    assert undo_kernel(move, "move", [there], back, []) == "`move` has two sizes of one name"


# -- casts ----------------------------------------------------------------------------------------


def numpy_dtype(name):
    return np.dtype(getattr(ml_dtypes, name, None) or name)


def there_and_back(source, target, back):
    """All values of 16 bits, or fewer."""
    bits = numpy_dtype(source).itemsize * 8
    values = np.arange(1 << bits, dtype=f"uint{bits}").view(numpy_dtype(source))
    mod = module(
        f'R.Tensor(({1 << bits},), "{source}")',
        f'x = R.astype(params[0], "{target}")\nreturn (x,)',
    )
    builder = relax.BlockBuilder(mod)
    wide = relax.Var("x", relax.TensorType([1 << bits], target))
    with builder.function("back", [wide]):
        builder.emit_func_output(builder.emit(back(wide)))
    vm = relax.VirtualMachine(tvm.compile(builder.get(), "llvm"), tvm.cpu())
    result = vm["back"](vm["transform_params"]([tvm.runtime.tensor(values)])[0]).numpy()
    return int(np.sum(result.view(f"uint{bits}") != values.view(f"uint{bits}")))


NAMES = ["int8", "uint8", "int16", "uint16", "float16", "bfloat16"]
TARGETS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "float16", "bfloat16"]
TARGETS += ["float32", "float64"]
EXACT = [(a, b) for a in NAMES for b in TARGETS if a != b and cast_back(a, b)]


def test_which_casts_are_exact():
    floats = {(a, b) for a, b in EXACT if "float" in b}
    assert floats == {
        *((a, b) for a in ("int8", "uint8") for b in ("float16", "bfloat16", "float32", "float64")),
        *((a, b) for a in ("int16", "uint16", "bfloat16") for b in ("float32", "float64")),
    } - {("bfloat16", "float64")}


@pytest.mark.parametrize("source, target", EXACT)
def test_every_value_comes_back(source, target):
    def back(value):
        undo = cast_back(source, target)
        return relax.BlockBuilder.current().call_te(
            lambda x: te.compute(x.shape, lambda i: undo(x[i])), value
        )

    assert there_and_back(source, target, back) == 0


def test_signalling_nans_do_not():
    """Why float16 to float32 is no exact cast."""
    assert there_and_back("float16", "float32", lambda x: relax.op.astype(x, "float16")) == 1022


# -- the error ------------------------------------------------------------------------------------


def test_error():
    weights = ", ".join(['R.Tensor((4,), "float16")'] * 7)
    names = "\n".join(f"w{i} = params[{i}]" for i in range(7))
    body = names + "\ne = R.concat((R.exp(w0), R.exp(w1)))\nreturn (e, R.sum(w2), w6)"
    with pytest.raises(InverseError) as raised:
        inverse(weights, body).require_complete()
    assert str(raised.value) == (
        "function `transform_params` cannot be undone: 6 of 7 weights cannot be restored: "
        "`w0`, `w1` (`exp` has no inverse), `w2` (`sum` has no inverse), "
        "`w3`, `w4`, `w5` (nothing that is made from it is kept)"
    )
    assert raised.value.weights == {
        **dict.fromkeys(("w0", "w1"), "`exp` has no inverse"),
        "w2": "`sum` has no inverse",
        **dict.fromkeys(("w3", "w4", "w5"), "nothing that is made from it is kept"),
    }
    assert (raised.value.function, raised.value.count) == ("transform_params", "6 of 7")
