"""The kernel that undoes a kernel: compiled, it gives back every bit."""

import ml_dtypes
import numpy as np
import pytest
import tvm
import tvm_ffi
from inplace_kernels import kernels_of
from moving_kernels import COMPUTED, LAYOUTS, OPERATORS, SIZES
from restoring import random_bits
from test_description_inverse import EXACT, NONE
from tvm import relax, tirx
from tvm.script import from_source

from relax_inplace import layout
from relax_inplace.relayout.description_inverse import inverse
from relax_inplace.relayout.host_move import schedule_host_move
from relax_inplace.relayout.inlining import with_producers_inlined
from relax_inplace.relayout.kernel_inverse import undo_kernel
from relax_inplace.relayout.moves import calls_of
from relax_inplace.relayout.read_description import read_relayouts

RIM = {"n": 50, "k": 100}


class BothWays:
    """A module of kernels, and of what undoes them, by number."""

    def __init__(self):
        self.builder = relax.BlockBuilder()
        self.types = []

    def add(self, kernel):
        """Why it is not undone; None if it is."""
        params = kernel.params[:]
        tensors = [param for param in params if isinstance(param.ty, tirx.BufferType)]
        numbers = [param for param in params if not isinstance(param.ty, tirx.BufferType)]
        *given, made = (relax.TensorType(t.ty.shape, str(t.ty.dtype)) for t in tensors)
        undone = undo_kernel(kernel, "move", given, made, numbers)
        if isinstance(undone, str):
            return undone
        name = self.builder.add_func(kernel.without_attr("global_symbol"), "move")
        at = len(self.types)
        self.types.append((given[0], made))
        sizes = relax.analysis.tir_vars_in_type(relax.TupleType([*given, made]))[:]

        def there(x):
            args = relax.Tuple([x, *map(relax.prim_value, numbers)])
            return relax.op.call_tir(name, args, made)

        for way, ty, call in (("there", given[0], there), ("back", made, undone)):
            own = relax.Var("sizes", relax.ShapeType(sizes)), relax.Var("x", ty)
            with self.builder.function(f"{way}_{at}", own):
                with self.builder.dataflow():
                    out = self.builder.emit_output(call(own[1]))
                self.builder.emit_func_output(out)
        return None

    def assert_undone(self, sizes):
        """Of random bits; ``sizes``, by name, of each kernel."""
        vm = relax.VirtualMachine(tvm.compile(self.builder.get(), "llvm"), tvm.cpu())
        for at, ((given, made), known) in enumerate(zip(self.types, sizes, strict=True)):
            names = relax.analysis.tir_vars_in_type(relax.TupleType([given, made]))[:]
            shape = tvm_ffi.Shape([known[var.name] for var in names])
            bits = random_bits(given, known)
            there = vm[f"there_{at}"](shape, tvm.runtime.tensor(bits))
            back = vm[f"back_{at}"](shape, there).numpy()
            assert back.tobytes() == bits.tobytes(), at


def kernels(name):
    function, tensors = {**OPERATORS, **LAYOUTS, **COMPUTED, **EXACT}[name]
    return kernels_of(function, *tensors)


@pytest.mark.parametrize("corpus", [OPERATORS, LAYOUTS, {**COMPUTED, **EXACT}])
def test_the_corpus_comes_back(corpus):
    """Static and symbolic; what is not undone has the description's reason."""
    both, sizes = BothWays(), []
    for name in corpus:
        for kernel in kernels(name):
            reason = both.add(kernel)
            assert reason == (f"`move` {NONE[name]}" if name in NONE else None), name
            if reason is None:
                sizes.append(RIM if "rim" in name else SIZES)
    assert both.types
    both.assert_undone(sizes)


@pytest.mark.parametrize("name", {**OPERATORS, **LAYOUTS})
def test_the_runtime_carries_it_out(name):
    """Where the description moves bits in runs of bytes: the kernel is read again as such."""
    if name in NONE:
        return
    for kernel in kernels(name):
        (relayout,) = read_relayouts(with_producers_inlined(kernel))
        is_carried_out = calls_of(inverse(relayout)) is not None
        both = BothWays()
        assert both.add(kernel) is None
        for gvar, made in both.builder.get().functions_items():
            if gvar.name_hint == "undo_move":  # no reshape
                scheduled = schedule_host_move(made, tvm.target.Target("llvm"))
                assert (scheduled is not None) is is_carried_out


# -- rims ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [{"n": 5, "k": 11}, {"n": 4, "k": 36}, {"n": 1, "k": 1}])
def test_a_rim_of_any_size(sizes):
    """Sizes that are multiples of what does not divide tiles: a last tile is there or not."""
    both = BothWays()
    shapes = [("n", "k"), ("n * 3", "k * 2"), ("n", "k * 2"), ("n * 2", "k * 4"), ("n * 3", 2)]
    for shape in shapes:
        (kernel,) = kernels_of(lambda x: layout.tiles.pack(x, 2, 8), (shape, "float16"))
        assert both.add(kernel) is None
    both.assert_undone([sizes] * len(shapes))


# -- what is computed ----------------------------------------------------------------------------

WIDENED = """
@T.prim_func(private=True, s_tir=True)
def widened(a: T.handle, b: T.handle):
    n = T.int64()
    A = T.match_buffer(a, (n, 6), "bfloat16")
    B = T.match_buffer(b, (6, n), "float32")
    for i, j in T.grid(6, n):
        with T.sblock("widened"):
            v, w = T.axis.remap("SS", [i, j])
            B[v, w] = T.Cast("float32", A[n - 1 - w, v])
"""


def test_every_bfloat16():
    """NaNs with any payload, too: they come back as bits."""
    both = BothWays()
    assert both.add(from_source(WIDENED)) is None
    vm = relax.VirtualMachine(tvm.compile(both.builder.get(), "llvm"), tvm.cpu())
    every = np.arange(1 << 16, dtype="uint16")
    bits = np.concatenate([every, every[:2]]).view(ml_dtypes.bfloat16).reshape(-1, 6)
    shape = tvm_ffi.Shape([len(bits)])
    there = vm["there_0"](shape, tvm.runtime.tensor(bits))
    assert there.numpy().shape == (6, len(bits))
    assert vm["back_0"](shape, there).numpy().tobytes() == bits.tobytes()


def test_numbers_are_undone_before_they_are_moved():
    """So that what is moved is as small as the weight."""
    both = BothWays()
    (kernel,) = kernels("to a wider signed, turned")
    assert both.add(kernel) is None
    undo = next(f for gvar, f in both.builder.get().functions_items() if gvar.name_hint == "back_0")
    first, second = (binding.var.ty for binding in undo.body.blocks[0].bindings[:2])
    assert (str(first.dtype), list(first.shape)) == ("int8", [10, 12])
    assert (str(second.dtype), list(second.shape)) == ("int8", [12, 10])


STAYING = {
    "astype": (lambda x: relax.op.astype(x, "int32"), [((12, 10), "int8")]),
    "reshape": (lambda x: relax.op.reshape(x, (8, 15)), [((12, 10), "int8")]),
    "pad": (lambda x: relax.op.nn.pad(x, (0, 1)), [((120,), "int8")]),
    "permute_dims": (relax.op.permute_dims, [((12, 10), "int8")]),
    "bitwise_not": (relax.op.bitwise_not, [((12, 10), "int8")]),
    "flip": (lambda x: relax.op.flip(x, 0), [((1, 120), "int8")]),
}


@pytest.mark.parametrize("name", STAYING)
def test_what_stays_is_not_moved(name):
    function, tensors = STAYING[name]
    (kernel,) = kernels_of(function, *tensors)
    both = BothWays()
    assert both.add(kernel) is None
    mod = both.builder.get()
    moves = name in ("bitwise_not", "pad", "permute_dims")
    assert any(gvar.name_hint == "undo_move" for gvar in mod.get_global_vars()) is moves
    both.assert_undone([{}])
