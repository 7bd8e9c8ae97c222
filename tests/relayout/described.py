"""A description, carried out by numpy: what it is to be compared with."""

import functools

import numpy as np
from inplace_kernels import numpy_dtype
from tvm import relax, tirx

from relax_inplace.relayout.description import NUMBER
from relax_inplace.relayout.size import evaluate, unknowns_in


def number(size, sizes):
    """A size, where variables have these values, by name."""
    if isinstance(size, int):
        return size
    return evaluate(size, {unknown: _value(unknown, sizes) for unknown in unknowns_in(size)})


def _value(unknown, sizes):
    if unknown.kind == "size":
        return sizes[unknown.variable.name]
    a, b = (number(arg, sizes) for arg in unknown.args)
    return {
        "//": lambda: a // b,
        "%": lambda: a % b,
        "max": lambda: max(a, b),
        "min": lambda: min(a, b),
    }[unknown.kind]()


def places(base, strides, extents):
    """The places of a box, flat."""
    steps = (np.arange(extent) * stride for extent, stride in zip(extents, strides, strict=True))
    return functools.reduce(np.add.outer, steps, np.array(base)).reshape(-1)


def apply(relayout, given, sizes=None):
    """The bytes of the output, of the bytes of each input. Asserts that each bit is written once."""
    size = functools.partial(number, sizes=sizes or {})
    bits = {
        param: np.unpackbits(np.frombuffer(data, "uint8"), bitorder="little")
        for param, data in given.items()
    }
    out = np.zeros(size(relayout.bits_of(relayout.output)), "uint8")
    written = np.zeros(len(out), int)
    for piece in relayout.pieces:
        extents = [size(digit.extent) for digit in piece.digits]
        if 0 in extents:
            continue
        assert min(extents, default=1) > 0
        into = places(size(piece.into), [size(d.into) for d in piece.digits], extents)
        reads = [
            (param, places(size(base), [size(d.read[at]) for d in piece.digits], extents))
            for at, (param, base) in enumerate(piece.inputs)
        ]
        if piece.value is not None:
            made = _computed(piece.value, reads, bits, len(into))
            into = into[:, None] + np.arange(piece.value.bits)
        elif piece.fill is not None:
            made = _pattern(piece.fill, extents, len(into))
        else:
            ((param, there),) = reads
            made = bits[param][there] ^ _pattern(piece.flip, extents, len(into))
        out[into] = made
        np.add.at(written, into, 1)
    assert (written == 1).all()
    return np.packbits(out, bitorder="little").tobytes()


def _pattern(pattern, extents, count):
    if not pattern:
        return np.zeros(count, "uint8")
    return np.resize(np.array([pattern >> k & 1 for k in range(extents[-1])], "uint8"), count)


def _computed(computed, reads, bits, count):
    known = {}
    for slot, (param, there) in zip(computed.slots, reads, strict=True):
        if param == NUMBER:
            known[slot] = there.astype(str(slot.ty))
            continue
        dtype = numpy_dtype(str(slot.ty))
        element = bits[param][there[:, None] + np.arange(8 * dtype.itemsize)]
        known[slot] = np.packbits(element, axis=1, bitorder="little").view(dtype).reshape(-1)
    made = np.broadcast_to(_numpy(computed.value, known), (count,))
    made = np.ascontiguousarray(made).view("uint8").reshape(count, -1)
    return np.unpackbits(made, axis=1, bitorder="little")


_NUMPY = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "BitwiseAnd": np.bitwise_and,
    "BitwiseOr": np.bitwise_or,
    "BitwiseXor": np.bitwise_xor,
    "BitwiseNot": np.invert,
    "LShift": np.left_shift,
    "RShift": np.right_shift,
    "LT": np.less,
    "LE": np.less_equal,
}


def _numpy(value, known):
    if isinstance(value, relax.Var):
        return known[value]
    if isinstance(value, (tirx.IntImm, tirx.FloatImm)):
        return np.array(value.value, numpy_dtype(str(value.ty)))
    if isinstance(value, tirx.Cast):
        return _numpy(value.value, known).astype(numpy_dtype(str(value.ty)))
    if isinstance(value, tirx.Select):
        parts = (value.condition, value.true_value, value.false_value)
        return np.where(*(_numpy(part, known) for part in parts))
    operands = [value.a] if isinstance(value, tirx.BitwiseNot) else [value.a, value.b]
    return _NUMPY[type(value).__name__](*(_numpy(operand, known) for operand in operands))
