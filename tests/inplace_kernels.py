"""Kernels that may write over their input: made, run on arrays, and random ones."""

import dataclasses

import ml_dtypes
import numpy as np
import tvm
import tvm_ffi
from hypothesis import strategies as st
from layout.compiled import module_of, types_of
from tvm import relax, te, tirx

TARGET = tvm.target.Target("llvm")


def kernels_of(function, *tensors):
    """The kernels of a function of Relax expressions, fused; a shape may say ``"n"``, ``"n * 8"``."""
    before, _ = module_of(function, types_of(*tensors))
    mod = tvm.transform.Sequential(
        [
            relax.transform.LegalizeOps(),
            relax.transform.AnnotateTIROpPattern(),
            relax.transform.FoldConstant(),
            relax.transform.FuseOps(),
            relax.transform.FuseTIR(),
            relax.transform.DeadCodeElimination(),
        ]
    )(before)
    return [
        function for _, function in mod.functions_items() if isinstance(function, tirx.PrimFunc)
    ]


def kernel_of(function, *tensors):
    (kernel,) = kernels_of(function, *tensors)
    return kernel


def te_kernel(make, *tensors):
    """The kernel of a tensor expression; several results are a tuple."""
    given = [te.placeholder(shape, dtype, f"a{i}") for i, (shape, dtype) in enumerate(tensors)]
    made = make(*given)
    return te.create_prim_func([*given, *(made if isinstance(made, tuple) else (made,))])


def built(kernel):
    """The kernel, to be called with tensors and sizes."""
    with TARGET:
        mod = tvm.compile(tvm.IRModule({"main": kernel.with_attr("global_symbol", "main")}))
    return mod["main"]


def numpy_dtype(dtype):
    return np.dtype(getattr(ml_dtypes, dtype, None) or dtype)


def random_array(generator, shape, dtype):
    """Any bits of a dtype that is moved; float32 that is rounded is of a sane size."""
    dtype = numpy_dtype(dtype)
    if dtype == np.float32:
        return generator.standard_normal(shape, "float32") * 100
    data = generator.integers(0, 256, (*shape, dtype.itemsize), "uint8")
    return data.view(dtype).reshape(shape)


def run(function, kernel, inputs, sizes=None, over=None):
    """What a built kernel writes: all its outputs, as bytes.

    ``over`` is a pair of an input and an output, as in the attribute: the output then lies in the
    input's storage, from its first byte.
    """
    sizes, inputs = sizes or {}, list(inputs)
    analyzer = tvm.sym.Analyzer()
    args, outputs = [], []
    for param in kernel.params:
        if not isinstance(param.ty, tirx.BufferType):
            args.append(sizes[param.name])
        elif inputs:
            args.append(tvm.runtime.tensor(np.array(inputs.pop(0), order="C")))
        else:
            known = (
                relax.Var,
                lambda var: tirx.const(sizes[var.name], var.ty.dtype) if var.name in sizes else var,
            )
            shape = [analyzer.simplify(tvm_ffi.structural_map(s, known)) for s in param.ty.shape]
            shape, dtype = [int(size) for size in shape], str(param.ty.dtype)
            place = len(args)
            if over is not None and over[1] == place:
                args.append(args[over[0]]._create_view(shape, dtype))
            else:
                args.append(tvm.runtime.empty(shape, dtype))
            outputs.append(args[-1])
    function(*args)
    return [output.numpy().tobytes() for output in outputs]


def assert_right(scheduled, inputs, expected, sizes=None):
    """The scheduled kernel writes these bytes, into memory of its own and over each input."""
    function = built(scheduled)
    assert run(function, scheduled, inputs, sizes) == expected
    for pair in scheduled.attrs.get("relax_inplace.inplace", ()):
        over = [int(index) for index in pair]
        assert run(function, scheduled, inputs, sizes, over) == expected


# -- random kernels that move elements -----------------------------------------------------------


@dataclasses.dataclass
class Moves:
    """A kernel, and for each element of its result, in order, the number of the one it is."""

    kernel: tirx.PrimFunc
    sources: np.ndarray
    shape: tuple
    dtype: str
    made: str


@st.composite
def moves(draw, dtypes=("uint8", "float16", "float32", "int64"), may_cast=True):
    """Digits of a place, permuted, some of them reversed; seen through shapes that merge digits.

    The result often keeps its first digits where they are, so that it has blocks; it may leave out
    a part of each block, or cast.
    """
    digits = draw(st.lists(st.integers(1, 6), min_size=2, max_size=5))
    kept = draw(st.integers(0, len(digits) - 1))
    order = [*range(kept), *draw(st.permutations(range(kept, len(digits))))]
    backwards = [draw(st.booleans()) and place >= kept for place in range(len(digits))]
    cut = draw(st.integers(kept, len(digits) - 1))
    left = draw(st.integers(1, digits[cut])) if draw(st.booleans()) else digits[cut]
    there = [left if place == cut else size for place, size in enumerate(digits)]
    shape_in = _merged(draw, digits)
    shape_out = _merged(draw, [there[place] for place in order])
    dtype = draw(st.sampled_from(dtypes))
    casts = {"uint8": "int8", "float32": "float16", "int64": "int8", "float16": "float32"}
    made = draw(st.sampled_from((dtype, casts[dtype]))) if may_cast else dtype

    def kernel(given):
        def element(*at):
            flat = _flat(shape_out, at)
            found = [None] * len(digits)
            for place in reversed(order):
                digit = flat % there[place]
                flat = flat // there[place]
                found[place] = digits[place] - 1 - digit if backwards[place] else digit
            place = _flat(digits, found)
            indices = []
            for size in reversed(shape_in):
                indices.insert(0, place % size)
                place = place // size
            return given(*indices).astype(made)

        return te.compute(shape_out, element, "moved")

    grid = np.arange(np.prod(digits)).reshape(digits)
    for place, size in enumerate(digits):
        kept_part = range(size)[::-1] if backwards[place] else range(size)
        grid = grid.take(list(kept_part)[: there[place]], place)
    sources = grid.transpose(order).reshape(-1)
    return Moves(te_kernel(kernel, (shape_in, dtype)), sources, tuple(shape_in), dtype, made)


def _merged(draw, sizes):
    """The same number of elements, neighbouring axes merged."""
    shape = [1]
    for size in sizes:
        if draw(st.booleans()):
            shape.append(size)
        else:
            shape[-1] *= size
    return shape


def _flat(shape, at):
    flat = at[0]
    for size, index in zip(shape[1:], at[1:], strict=True):
        flat = flat * size + index
    return flat
