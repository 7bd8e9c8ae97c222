"""Transforms to test with: random ones, and how to run any of them both ways."""

import contextlib
import dataclasses
import functools
import json
import tempfile
import textwrap

import live_bytes
import numpy as np
import tvm
import tvm_ffi
from hypothesis import assume
from hypothesis import strategies as st
from pipelines import IS_FUSED, load
from tvm import relax

from relax_inplace.analysis import UnsupportedTransformError
from relax_inplace.libinfo import load_library
from relax_inplace.runtime.empty_tensor import empty

RANDOM = np.random.default_rng(0)
SIZES = {"n": 5, "m": 7}  # of symbolic dimensions
PAGES = 64 << 10  # bytes of a tensor that has pages of its own
NUMBER = 3  # of every other one, and of a number that is a weight

load_library()
READ_LATER = tvm_ffi.get_global_func("relax_inplace.ReadLater")

# -- running both ways ------------------------------------------------------------------------


def arguments(types, sizes=SIZES, span=100, seed=0):
    """A random argument of each type, as numpy arrays; `sizes` gives the symbolic dimensions."""
    generator = np.random.default_rng(seed)
    return [_argument(ty, sizes, span, generator) for ty in types]


def argument(ty, sizes=SIZES, span=100):
    """As `arguments`, for one type."""
    return arguments([ty], sizes, span)[0]


def _argument(ty, sizes, span, generator):
    if isinstance(ty, relax.TupleType):
        return [_argument(field, sizes, span, generator) for field in ty.fields]
    if isinstance(ty, tvm.ir.PrimType):
        return NUMBER
    if isinstance(ty, relax.AnyType):
        return generator.integers(-span, span, (3, 4)).astype("float32")
    if isinstance(ty, relax.ShapeType):
        return tvm_ffi.Shape(_dimensions(ty.values, ty.ndim, sizes))
    shape = _dimensions(getattr(ty.shape, "values", None), ty.ndim, sizes)
    dtype = str(ty.dtype)
    if dtype == "bool":
        return np.array(bool(generator.integers(2)))
    return generator.integers(-span, span, shape).astype(dtype)


def _dimensions(values, ndim, sizes):
    """With sizes for the symbols; a prim value for a dimension that the type does not name."""
    if values is None:
        return [NUMBER] * ndim
    analyzer = tvm.sym.Analyzer()
    for dim in values:
        for var in tvm.tirx.analysis.undefined_vars(dim):
            analyzer.bind(var, tvm.tirx.const(sizes.get(var.name, NUMBER), "int64"))
    return [int(analyzer.simplify(dim)) for dim in values]


def passed(value, watches=None):
    """An argument as a compiled function takes it, in memory that TVM owns and may donate.

    With ``watches``, in memory that can be watched, and is not TVM's.
    """
    if isinstance(value, list):
        return tvm_ffi.Array([passed(field, watches) for field in value])
    if isinstance(value, np.ndarray):
        if watches is None:
            return tvm.runtime.tensor(value)
        tensor, watch = live_bytes.watched(value)
        watches.append(watch)
        return tensor
    return value


def assert_bitwise(left, right):
    if isinstance(right, tvm_ffi.Array):
        assert len(left) == len(right)
        for a, b in zip(left, right, strict=True):
            assert_bitwise(a, b)
    elif hasattr(right, "numpy"):
        assert (left.shape, left.dtype) == (right.shape, right.dtype)
        assert left.numpy().tobytes() == right.numpy().tobytes()
    elif isinstance(right, tvm_ffi.Shape):
        assert tuple(left) == tuple(right)
    else:
        assert left == right


def tensors_in(value):
    """Every tensor in a value, at any depth of tuples."""
    if isinstance(value, tvm_ffi.Array):
        for field in value:
            yield from tensors_in(field)
    elif hasattr(value, "numpy"):
        yield value


def leaves_of(value):
    """What is in nested lists, in order."""
    if isinstance(value, list):
        for field in value:
            yield from leaves_of(field)
    else:
        yield value


@dataclasses.dataclass
class Run:
    """What a run in place showed."""

    result: object
    argument: object
    weights: list  # as they were
    asked: list  # the weights that a streamed one asked for, in order
    left: list  # indices of those that it was given in their files, when it ran once more
    measured: object

    @functools.cached_property
    def peak(self):
        """The most bytes that were live in another run, in which no storage is donated.

        Donation raises no peak; a tensor that is recorded cannot be donated.
        """
        return self.measured()


def with_unread(value, slots, path=""):
    """As `passed`, but for tensors in some slots, such as ``0.3``, which are in files still."""
    if isinstance(value, list):
        inner = [f"{path}.{i}" if path else str(i) for i in range(len(value))]
        return tvm_ffi.Array(
            [with_unread(one, slots, at) for one, at in zip(value, inner, strict=True)]
        )
    return unread(value) if path in slots else passed(value)


def unread(array):
    """A tensor whose bytes are in a file still; in pages, which small ones do not have."""
    pages = empty((max(array.nbytes, PAGES),), "uint8", tvm_ffi.device("cpu", 0))
    tensor = pages._create_view(array.shape, str(array.dtype), 0)
    with tempfile.TemporaryFile() as file:
        file.write(array.tobytes())
        file.flush()
        assert READ_LATER(tensor, file.fileno(), 0, "a weight")
    return tensor


class Stream:
    """Yields weights, made when they are asked for and held by nobody else.

    Those of ``left`` are in files until they are moved.
    """

    def __init__(self, weights, watches=None, left=()):
        self.weights = list(leaves_of(weights))
        self.watches = watches
        self.left = left
        self.asked = []

    def __call__(self, index):
        self.asked.append(index)
        if index in self.left:
            return unread(self.weights[index])
        own = [] if self.watches is not None else None
        weight = passed(self.weights[index], own)
        for watch in own or ():
            live_bytes.loaded(watch)
        return weight


def run_both(
    before,
    after,
    pipeline="compile",
    name="transform_params",
    sizes=SIZES,
    streamed=False,
    referring=lambda weights: contextlib.nullcontext(),
):
    """Run before out of place and after in place on equal arguments; compare bit by bit.

    ``referring`` may keep references to the weights that it is given, and look at them afterwards.
    """
    function = before[name]
    new_name = name.replace("transform_params", "inplace_transform_params")
    # "passes first" fuses what neither the function nor the pass has in a dataflow block, differently
    # in place and out of place; and TVM computes `exp(w) - exp(w)` in one kernel as 0, even of inf.
    span = 100 if IS_FUSED[pipeline] is not None else 3
    args = arguments([param.ty for param in function.params], sizes, span)
    leading = int(function.attrs["num_input"]) if "num_input" in function.attrs else 0
    begin = len(NOTES)
    expected = load(before, pipeline)[name](*map(passed, args))
    weights = args[leading:]
    if len(weights) > 1 or not isinstance(weights[0], list):  # the new function takes a tuple
        weights = [weights]

    def given(watches):
        inputs = [*map(passed, args[:leading])]
        if streamed:
            return [*inputs, Stream(weights, watches), tvm_ffi.Array([None] * len(expected))]
        return inputs + [passed(w, watches) for w in weights]

    vm = load(after, pipeline)

    def run():
        taken = given(None)
        with referring(taken[leading:]):
            result = vm[new_name](*taken)
        assert_bitwise(result, expected)
        if streamed:
            assert result.same_as(taken[-1])
        return result, taken

    def measured():
        watches = []
        with live_bytes.recorded_allocations():
            with tvm.transform.PassContext(disabled_pass=["DonateStorage"]):
                inplace = load(after, pipeline)[new_name]
            taken = given(watches)
            peak, result = live_bytes.peak_of(lambda: inplace(*taken), watches)
        assert_bitwise(result, expected)
        return peak

    def moved_from_files():
        """Runs with those weights in their files of which the module says that it only moves them."""
        entry = json.loads(vm["inplace_param_map"]())[new_name]
        left = entry.get("moved", [])
        if left:
            taken = given(None)
            if streamed:
                taken[leading].left = left
            else:
                slots = {entry["weights"][index]["slot"] for index in left}
                taken[leading:] = [with_unread(weights[0], slots)]
            told = len(NOTES)
            assert_bitwise(vm[new_name](*taken), expected)
            assert NOTES[told:] == NOTES[begin:told]
            del NOTES[told:]
        return left

    has_map = vm.module.implements_function("inplace_param_map")
    left = moved_from_files() if has_map else []
    result, taken = run()
    asked = taken[leading].asked if streamed else []
    assert len(set(asked)) == len(asked)
    return Run(result, taken[-1], weights[0], asked, left, measured)


# On a read of a read where num_input is not set, and on a kernel whose buffers are declared with
# other dtypes of their extents than the operators', and on a function that returns a shape after
# calls of kernels: out of place, too.
_FUSE_TIR_FAILS = ("func_info_.global_name", "Inconsistent buffers", "prim_var.has_value()")


@contextlib.contextmanager
def without_what_fuse_tir_fails_at():
    """An example that TVM's FuseTIR cannot do is none."""
    try:
        yield
    except tvm.error.InternalError as error:
        assume(not any(text in str(error) for text in _FUSE_TIR_FAILS))
        raise


# What overwrites a reshape of a weight: that is a view or a copy, as the pipeline has it.
_REFUSED = ("and a copy elsewhere; make the view by", "which is not to be modified")


@contextlib.contextmanager
def without_what_is_refused():
    """An example whose result depends on the pipeline, or that overwrites what it may not, is none."""
    try:
        yield
    except UnsupportedTransformError as error:
        assume(not any(text in str(error) for text in _REFUSED))
        raise


def check_slots(run, params=None):
    """Each slot of the argument holds a result or None, or the original where it has to."""
    results = list(tensors_in(run.result))
    for index, field in enumerate(run.argument):
        if params is None or index in params:
            for tensor in tensors_in(field):
                assert any(tensor.same_as(result) for result in results)
        else:
            assert_bitwise(field, passed(run.weights[index]))


# -- random transforms --------------------------------------------------------------------------


@tvm_ffi.register_global_func("tests.negate", override=True)
def _negate(source, target):
    target.copyfrom(-source.numpy())


NOTES = []  # what impure calls were given, in order


@tvm_ffi.register_global_func("tests.note", override=True)
def _note(value):
    NOTES.append(value.numpy().tobytes())


@dataclasses.dataclass
class Transform:
    """A random transform, and what to expect of it.

    Attributes
    ----------
    source : str
        TVMScript.
    params : list of int or None
        For the pass.
    is_exact : bool
        Whether the plan's peak is what happens, or a bound: a branch is not taken, a constant is
        folded.
    """

    source: str
    params: list | None
    is_exact: bool

    def __repr__(self):
        return f"params={self.params} is_exact={self.is_exact}\n{self.source}"


@dataclasses.dataclass(frozen=True)
class Value:
    name: str
    shape: tuple
    dtype: str = "float32"
    is_fresh: bool = False  # computed, and nothing else holds it

    @property
    def ty(self):
        dims = ", ".join(f'"{d}"' if isinstance(d, str) else str(d) for d in self.shape)
        return f'R.Tensor(({dims}{"," if len(self.shape) == 1 else ""}), "{self.dtype}")'


CASTS = ["float16", "int8", "bfloat16", "float8_e4m3fn"]
SHAPES = [(4, 4), (4, 4), (3, 4), (2, 3, 4), (6,), ("n", 4)]


class _Writer:
    def __init__(self, draw, casts, kinds=None):
        self.draw = draw
        self.casts = casts
        self.kinds = kinds
        self.lines = []
        self.functions = []
        self.symbols = []
        self.count = 0
        self.is_exact = True
        self.is_impure = draw(st.integers(0, 5)) == 0

    def chance(self, one_in):
        return self.draw(st.integers(1, one_in)) == 1

    def pick(self, values):
        return self.draw(st.sampled_from(values))

    def name(self):
        self.count += 1
        return f"v{self.count}"

    def emit(self, shape, code, dtype="float32", fresh=True):
        value = Value(self.name(), shape, dtype, fresh)
        self.lines.append(f"{value.name} = {code}")
        return value

    def step(self, values, in_dataflow):
        """Write one step; the values that there are after it."""
        a = self.pick(values)
        static = all(isinstance(d, int) for d in a.shape)
        if self.kinds is not None:
            return self.write(self.pick(self.kinds), a, values, static)
        kinds = ["unary", "unary", "binary", "binary", "permute", "reshape", "cast", "softmax"]
        kinds += ["concat", "split", "sum", "alias", "negate", "tuple"]
        if a.dtype == "float32" and static:
            kinds += ["prim_func", "private", "match_cast"]
            if not in_dataflow:
                kinds += ["if", "inplace"]
        if self.is_impure and not in_dataflow:
            kinds += ["note", "note"]
        kind = self.pick(kinds)
        if a.dtype != "float32" and kind not in ("permute", "alias", "concat", "tuple", "note"):
            kind = "cast back"
        return self.write(kind, a, values, static)

    def write(self, kind, a, values, static):
        if kind == "unary":
            op = self.pick(["exp", "negative", "sqrt", "tanh"])
            return [self.emit(a.shape, f"R.{op}({a.name})")]
        if kind == "binary":
            b = self.pick([v for v in values if (v.shape, v.dtype) == (a.shape, a.dtype)])
            op = self.pick(["add", "multiply", "subtract"])
            return [self.emit(a.shape, f"R.{op}({a.name}, {b.name})")]
        if kind == "permute":
            return [self.emit(a.shape[::-1], f"R.permute_dims({a.name})", a.dtype)]
        if kind == "reshape" and static:
            shape = (int(np.prod(a.shape)),) if len(a.shape) > 1 else (2, a.shape[0] // 2)
            if int(np.prod(shape)) == int(np.prod(a.shape)):
                return [self.emit(shape, f"R.reshape({a.name}, {shape})")]
        if kind == "cast":
            dtype = self.pick(self.casts)
            if dtype == "int8":  # LLVM does not say what becomes of what does not fit
                a = self.emit(a.shape, f"R.clip({a.name}, -100, 100)")
            return [self.emit(a.shape, f'R.astype({a.name}, "{dtype}")', dtype)]
        if kind == "cast back":
            return [self.emit(a.shape, f'R.astype({a.name}, "float32")')]
        if kind == "softmax":
            return [self.emit(a.shape, f"R.nn.softmax({a.name}, axis=-1)")]
        if kind == "concat" and static:
            b = self.pick([v for v in values if (v.shape, v.dtype) == (a.shape, a.dtype)])
            if a.shape[0] <= 8:
                shape = (2 * a.shape[0], *a.shape[1:])
                code = f"R.concat(({a.name}, {b.name}), axis=0)"
                return [self.emit(shape, code, a.dtype)]
        if kind == "split" and static and a.shape[0] % 2 == 0:
            shape = (a.shape[0] // 2, *a.shape[1:])
            both = self.emit(None, f"R.split({a.name}, 2, axis=0)")
            halves = [i for i in (0, 1) if not self.chance(3)]
            return [self.emit(shape, f"{both.name}[{i}]", fresh=False) for i in halves]
        if kind == "sum" and len(a.shape) > 1:
            return [self.emit(a.shape[1:], f"R.sum({a.name}, axis=0)")]
        if kind == "alias":
            return [self.emit(a.shape, a.name, a.dtype, fresh=False)]
        if kind == "tuple":
            b = self.pick(values)
            both = self.emit(None, f"({a.name}, {b.name})")
            return [self.emit(b.shape, f"{both.name}[1]", b.dtype, fresh=False)]
        if kind == "negate" and static:
            return [
                self.emit(a.shape, f'R.call_dps_packed("tests.negate", ({a.name},), out_ty={a.ty})')
            ]
        if kind == "prim_func":
            return [
                self.emit(
                    a.shape, self.prim_func(a, f"R.call_tir({{}}, ({a.name},), out_ty={a.ty})")
                )
            ]
        if kind == "inplace" and a.is_fresh:
            code = self.prim_func(
                a,
                f"R.call_tir_inplace({{}}, ({a.name},), inplace_indices=[0], out_ty={a.ty})",
                True,
            )
            values.remove(a)
            return [self.emit(a.shape, code)]
        if kind == "private":
            return [self.emit(a.shape, self.private_function(a))]
        if kind == "match_cast":
            symbol = f"k{len(self.symbols)}"
            self.symbols.append(symbol)
            shape = ", ".join([symbol, *map(str, a.shape[1:])])
            code = f'R.match_cast({a.name}, R.Tensor(({shape},), "float32"))'
            cast = self.emit((symbol, *a.shape[1:]), code, fresh=False)
            self.is_exact = False  # its symbol has no bound for the plan
            return [cast]
        if kind == "if":
            return [self.branches(a)]
        if kind == "note":
            self.lines.append(f'R.call_packed("tests.note", {a.name}, ty_args=R.Tuple())')
            return []
        return [self.emit(a.shape, f"R.exp({a.name})" if a.dtype == "float32" else a.name, a.dtype)]

    def prim_func(self, a, call, in_place=False):
        name = f"kernel{len(self.functions)}"
        loops = ", ".join(f"i{d}" for d in range(len(a.shape)))
        axes = ", ".join(f"v{d}" for d in range(len(a.shape)))
        shape = ", ".join(map(str, a.shape))
        buffer = f'T.Buffer({a.shape}, "float32")'
        signature = f"A: {buffer}" if in_place else f"A: {buffer}, B: {buffer}"
        self.functions.append(
            f"""\
@T.prim_func(private=True, s_tir=True)
def {name}({signature}):
    for {loops} in T.grid({shape}):
        with T.sblock("block"):
            {axes} = T.axis.remap("{"S" * len(a.shape)}", [{loops}])
            {"A" if in_place else "B"}[{axes}] = A[{axes}] * T.float32(2) + T.float32(1)
"""
        )
        return call.format(f"Module.{name}")

    def private_function(self, a):
        name = f"private{len(self.functions)}"
        inner = "R.exp(x)"
        callee = (
            f"Module.{self.last_private}(y)"
            if getattr(self, "last_shape", None) == a.shape
            else "R.negative(y)"
        )
        self.functions.append(
            f"""\
@R.function(private=True)
def {name}(x: {a.ty}) -> {a.ty}:
    with R.dataflow():
        y = {inner}
        z: {a.ty} = {callee}
        R.output(z)
    return z
"""
        )
        self.last_private, self.last_shape = name, a.shape
        return f"Module.{name}({a.name})"

    def branches(self, a):
        self.is_exact = False
        value = Value(self.name(), a.shape)
        left, right = self.name(), self.name()
        ends = (
            [f"R.exp({a.name})", a.name]
            if self.chance(3)
            else [f"R.exp({a.name})", f"R.negative({a.name})"]
        )
        self.lines += [
            "if flag:",
            f"    {left} = {ends[0]}",
            f"    {value.name} = {left}",
            "else:",
            f"    {right} = {ends[1]}",
            f"    {value.name} = {right}",
        ]
        return value


@st.composite
def transforms(draw, casts=CASTS, kinds=None):
    """Any transform that TVM compiles; of these kinds of steps, which keep the dtype."""
    w = _Writer(draw, casts, kinds)
    fields, values, reads = [], [], []
    is_tuple = not w.chance(4)
    for index in range(draw(st.integers(1, 5))):
        inner = []
        for _ in range(draw(st.integers(2, 3)) if is_tuple and w.chance(6) else 1):
            shape = w.pick(SHAPES)
            value = Value(f"w{index}" + ("" if not inner else f"_{len(inner)}"), shape)
            inner.append(value)
        fields.append(inner)
    nested = {i for i, inner in enumerate(fields) if len(inner) > 1}
    for index, inner in enumerate(fields):
        source = f"params[{index}]"
        if index in nested:
            reads.append(f"t{index} = {source}")
            source = f"t{index}"
        for position, value in enumerate(inner):
            if is_tuple:
                at = f"{source}[{position}]" if index in nested else source
                reads.append(f"{value.name} = {at}")
            values.append(value)
    signature = ['flag: R.Tensor((), "bool")']
    if w.chance(3):
        signature.append('x: R.Tensor((4, 4), "float32")')
        values.append(Value("x", (4, 4)))
    leading = len(signature)
    if is_tuple:
        types = [
            f"R.Tuple({', '.join(v.ty for v in inner)})" if len(inner) > 1 else inner[0].ty
            for inner in fields
        ]
        signature.append(f"params: R.Tuple({', '.join(types)})")
    else:
        signature += [f"{inner[0].name}: {inner[0].ty}" for inner in fields]
    body = list(reads)
    for _ in range(draw(st.integers(1, 3))):
        in_dataflow = draw(st.booleans())
        here = list(values)
        new = []
        w.lines = []
        for _ in range(draw(st.integers(0, 6))):
            added = w.step(here, in_dataflow)
            here += added
            new += added
        new = [value for value in new if value in here]
        values = [value for value in values if value in here]
        if in_dataflow and new:
            kept = [value for value in new if draw(st.booleans())] or new[-1:]
            inside = [*w.lines, f"R.output({', '.join(value.name for value in kept)})"]
            body += ["with R.dataflow():", *(f"    {line}" for line in inside)]
            values += kept
        else:
            body += w.lines
            values += new
    outputs = []
    for _ in range(draw(st.integers(1, 6))):
        kind = draw(st.integers(0, 12))
        if kind == 0:
            outputs.append("R.const([[1.0, 2.0]])")
        elif kind == 1:
            outputs.append("R.shape([2, 3])")
        elif kind == 2:
            outputs.append(f"({w.pick(values).name}, {w.pick(values).name})")
        elif kind == 3 and nested:
            outputs.append(f"t{min(nested)}")
        else:
            outputs.append(w.pick(values).name)
    body.append(f"return ({', '.join(outputs)},)")
    attrs = {"num_input": leading}
    if w.chance(5) and not w.is_impure:
        attrs["relax.force_pure"] = True
    symbols = [f"{symbol} = T.int64()" for symbol in w.symbols]
    purity = "@R.function(pure=False)" if w.is_impure else "@R.function"
    main = "\n".join(
        [
            purity,
            f"def transform_params({', '.join(signature)}):",
            f"    R.func_attr({attrs})",
            *(f"    {line}" for line in [*symbols, *body]),
        ]
    )
    functions = textwrap.indent("\n".join([*w.functions, main]), "    ")
    params = [i for i in range(len(fields)) if draw(st.booleans())] if w.chance(4) else None
    return Transform(f"@I.ir_module\nclass Module:\n{functions}\n", params, w.is_exact)
