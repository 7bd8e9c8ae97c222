"""Calls every function that the library registers with random arguments: `python any_arguments.py SEED COUNT`.

It prints how many calls there were, how many of them returned, and how many calls each function had.
What a call is given is written before it, so that the last line says which one has ended the process.
"""

import collections
import ctypes
import json
import math
import os
import random
import sys

import numpy as np
import tvm
import tvm_ffi

known = set(tvm_ffi.registry.list_global_func_names())
from relax_inplace.libinfo import BUILTINS  # noqa: E402  what is new is ours

FUNCTIONS = sorted(set(tvm_ffi.registry.list_global_func_names()) - known)

FILE = os.open(__file__, os.O_RDONLY)
BIG = [2**63 - 1, -(2**63), 2**62, 2**40, -1]
DTYPES = [
    "uint8",
    "float32",
    "float16",
    "int4",
    "bool",
    "float32x4",
    "int1",
    "handle",
    "int8xvscalex4",
]
TEXTS = [
    "",
    "f",
    "w",
    "float32",
    "bool",
    "int0",
    "nonsense",
    "\0",
    "ä",
    "[" * 100_000,
    "{}",
    "/",
    "/tmp",
]


# -- tensors that nobody sane would make -------------------------------------------------------------


class _DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class _DLManagedTensor(ctypes.Structure):
    _fields_ = [("tensor", _DLTensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]


_capsule = ctypes.pythonapi.PyCapsule_New
_capsule.restype = ctypes.py_object
_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
_kept = []  # for good: there is no deleter
_memory = ctypes.create_string_buffer(1 << 16)


class _Imported:
    def __init__(self, tensor):
        self.managed = _DLManagedTensor(tensor, None, None)
        _kept.append(self)

    def __dlpack__(self, **_):
        return _capsule(ctypes.addressof(self.managed), b"dltensor", None)

    def __dlpack_device__(self):
        return (self.managed.tensor.device_type, self.managed.tensor.device_id)


def of_bytes(*dtype, device_type=1):
    """Host memory that says that it is elsewhere, of a dtype: (code, bits, lanes)."""
    shape = (ctypes.c_int64 * 1)(2)
    _kept.append(shape)
    tensor = _DLTensor(ctypes.addressof(_memory), device_type, 0, 1, *dtype, shape, None, 0)
    return tvm_ffi.from_dlpack(_Imported(tensor))


def imported(rng):
    """Its memory is there, if it says that it has some and is on the host."""
    sizes = [rng.choice([0, 1, 2, 3, 8, *BIG]) for _ in range(rng.randrange(4))]
    bits, lanes = rng.choice([0, 1, 4, 8, 8, 16, 32, 255]), rng.choice([0, 1, 1, 1, 4, 65535])
    bytes_ = (math.prod(sizes) * bits * lanes + 7) // 8
    strides = rng.choice([None, [rng.choice([0, 1, 2, 8, *BIG]) for _ in sizes]])
    numbers = [(ctypes.c_int64 * max(1, len(sizes)))(*given) for given in (sizes, strides or [])]
    _kept.append(numbers)
    tensor = _DLTensor(
        ctypes.addressof(_memory) if 0 <= bytes_ <= 1 << 15 and rng.random() < 0.8 else None,
        rng.choice([1, 1, 1, 2, 3, 4, 10, 0, 99, 127, 128, 200, -1, 2**31 - 1]),
        rng.choice([0, 0, 1, -1, 2**31 - 1]),
        len(sizes),
        rng.choice([0, 1, 2, 3, 4, 6, 17, 255]),
        bits,
        lanes,
        numbers[0],
        numbers[1] if strides else None,
        rng.choice([0, 0, 0, 1, 64, 1 << 14]),
    )
    return tvm_ffi.from_dlpack(_Imported(tensor))


def tensor(rng):
    kind = rng.randrange(4)
    shape = [rng.randrange(5) for _ in range(rng.randrange(4))]
    if kind == 0:
        return imported(rng)
    if kind == 1:
        return tvm_ffi.from_dlpack(np.zeros([*shape, 2], "float32")[..., ::-1][..., 0])
    if kind == 2:
        return tvm.runtime.empty((rng.choice([1, 4096, 1 << 17]),), rng.choice(DTYPES[:4]))
    return tvm.runtime.empty(shape, rng.choice(DTYPES[:6]))


# -- everything else ---------------------------------------------------------------------------------


def function(rng, pool):
    update = tvm_ffi.get_global_func("vm.builtin.inplace_update_tuple")
    run = tvm_ffi.get_global_func("relax_inplace.RunTransform")
    kept = rng.choice(pool)

    def raises(*_):
        raise ValueError("no")

    return tvm_ffi.convert(
        rng.choice(
            [
                lambda *args: args[-1] if args else None,
                lambda *args: None,
                lambda *args: kept,
                raises,
                lambda *args: update(args[-1], 0, kept),
                lambda *args: update(args[-1], 0, tvm_ffi.Array([kept, args[-1]])),
                lambda *args: update(kept, 0, args[-1]),
                lambda *args: tvm_ffi.Array([args[-1], kept]),
                lambda *args: run(None, lambda given: update(given, 0, kept), args[-1]),
                update,
                tvm_ffi.get_global_func(rng.choice(FUNCTIONS)),
            ]
        )
    )


def types(rng, depth=2):
    """What a function's arguments are to be, or nearly that."""
    dim = rng.choice([0, 1, 3, [0], [1], [-1], [2**40], None, 2**63 - 1, "n", 1.5])
    kind = rng.choice(
        ["tensor", "tensor", "tuple", "shape", "prim", "callable", "slots", "any", "?"]
    )
    if kind == "tuple":
        return [types(rng, depth - 1) for _ in range(rng.randrange(4))] if depth else []
    one = {
        "kind": kind,
        "dtype": rng.choice([None, *DTYPES, "nonsense"]),
        "ndim": rng.choice([-1, 0, 1, 2, 2**40]),
        "shape": rng.choice([None, [dim] * rng.randrange(3)]),
        "device": rng.choice([None, [1, 0], [2**40, -1], []]),
        "values": rng.choice([None, [dim] * rng.randrange(3)]),
        "size": rng.choice([0, 1, 2, -1, 2**62, [0], None]),
    }
    if rng.random() < 0.1:
        del one[rng.choice(list(one))]
    return one


def types_text(rng):
    spec = {
        "sizes": rng.choice([0, 1, 2, -1, 2**40]),
        "updates": rng.choice([True, False]),
        "params": [{"name": "x", "type": types(rng)} for _ in range(rng.randrange(4))],
        "overwrites": [rng.choice([0, 0, 1, -1, 2**40]) for _ in range(rng.randrange(3))],
    }
    if rng.random() < 0.1:
        del spec[rng.choice(list(spec))]
    text = json.dumps(spec)
    return text[: rng.randrange(len(text))] if rng.random() < 0.1 else text


def integer(rng):
    return rng.choice([0, 0, 1, 1, 2, 3, 8, 64, *BIG])


def tuple_(rng, pool, depth=2):
    fields = [
        tuple_(rng, pool, depth - 1) if depth and rng.random() < 0.2 else anything(rng, pool)
        for _ in range(rng.randrange(4))
    ]
    return tvm_ffi.Array(fields)


def digits(rng):
    """Pieces of a relayout, or nearly that."""
    numbers = [rng.choice([0, 1, 1, 2])]
    for _ in range(numbers[0]):
        count = rng.choice([0, 1, 1, 2, 3])
        sizes = [rng.choice([0, 1, 2, 3, 4, 8]) for _ in range(count)]
        element = rng.choice([1, 4, 8, 8, 32])
        places = list(range(count))
        rng.shuffle(places)
        numbers += [element, 0, 0, rng.choice([0, 0, -1, 3]), rng.choice([0, 0, 0, 1]), count]
        for i in range(count):
            into = element * math.prod(sizes[i + 1 :])
            read = element * math.prod(sizes[j] for j in range(count) if places[j] > places[i])
            numbers += [sizes[i], into, read]
    for _ in range(rng.choice([0, 0, 0, 1, 2])):
        numbers[rng.randrange(len(numbers))] = rng.choice([*BIG, 0, 1, 7])
    return numbers


def anything(rng, pool):
    return rng.choice(
        [
            lambda: None,
            lambda: None,
            lambda: rng.choice([True, False]),
            lambda: integer(rng),
            lambda: rng.choice([0.0, -1.5, math.inf, math.nan]),
            lambda: rng.choice(TEXTS),
            lambda: rng.choice([b"", b"\0\xff"]),
            lambda: tvm_ffi.dtype(rng.choice(DTYPES)),
            lambda: device(rng),
            lambda: shape(rng),
            lambda: tensor(rng),
            lambda: tensor(rng),
            lambda: function(rng, pool),
            lambda: tvm_ffi.List([1, rng.choice(pool)]),
            lambda: tvm_ffi.Map({"a": rng.choice(pool)}),
            lambda: rng.choice(pool),
            lambda: rng.choice(pool),
        ]
    )()


def shape(rng):
    return tvm_ffi.Shape([integer(rng) for _ in range(rng.randrange(4))])


def device(rng):
    kind = rng.choice([1, 1, 1, 2, 4, 7, 0, 99, 127, 128, 2**31 - 1, -1])
    return tvm_ffi.Device(kind, rng.choice([0, 0, 1, -1, 2**31 - 1]))


TUPLE = lambda rng, pool: rng.choice([tuple_(rng, pool), rng.choice(pool)])  # noqa: E731
TENSOR = lambda rng, _: tensor(rng)  # noqa: E731
TEXT = lambda rng, _: rng.choice(TEXTS[:7])  # noqa: E731
DTYPE = lambda rng, _: tvm_ffi.dtype(rng.choice(DTYPES))  # noqa: E731
SHAPE = lambda rng, _: shape(rng)  # noqa: E731
INTEGER = lambda rng, _: integer(rng)  # noqa: E731
DESCRIPTOR = lambda rng, _: rng.choice([FILE, FILE, integer(rng)])  # noqa: E731
OFFSET = lambda rng, _: rng.choice([0, 5, integer(rng)])  # noqa: E731
DEVICE = lambda rng, _: device(rng)  # noqa: E731
TENSOR_OR_NONE = lambda rng, _: rng.choice([None, tensor(rng)])  # noqa: E731
CALLBACK = lambda rng, pool: rng.choice([None, function(rng, pool)])  # noqa: E731
# What the functions take, so that most calls come past the check of their types.
RIGHT = {
    "relax_inplace.AbandonTensors": [TUPLE],
    "relax_inplace.AllocateTensor": [SHAPE, DTYPE, DEVICE],
    "relax_inplace.ArrayWithItem": [TUPLE, INTEGER, anything],
    "relax_inplace.CopyToDevice": [TENSOR, TENSOR, INTEGER],
    "relax_inplace.ObserveUpdates": [CALLBACK, function, TUPLE],
    "relax_inplace.OutsideReferences": [TUPLE],
    "relax_inplace.Prefetch": [TENSOR],
    "relax_inplace.ReadFile": [TENSOR, DESCRIPTOR, OFFSET],
    "relax_inplace.ReadLater": [TENSOR, DESCRIPTOR, OFFSET, TEXT],
    "relax_inplace.ReadNow": [TENSOR],
    "relax_inplace.RunTransform": [CALLBACK, function, TUPLE],
    "relax_inplace.WaitForDevice": [DEVICE],
    "relax_inplace.WaitForStream": [DEVICE],
    "vm.builtin.check_memory_limit": [TEXT, INTEGER, INTEGER, INTEGER, SHAPE, TUPLE],
    "vm.builtin.check_weight": [TEXT, INTEGER, TEXT, anything, TEXT, SHAPE],
    "vm.builtin.donate_storage": [TENSOR_OR_NONE, TENSOR_OR_NONE, SHAPE, DTYPE],
    "vm.builtin.inplace_update_tuple": [TUPLE, INTEGER, anything],
    "vm.builtin.number_weight": [TEXT, INTEGER, TEXT, anything, TEXT, SHAPE],
    "vm.builtin.offer_pages": [TENSOR],
    "vm.builtin.release_storage": [TENSOR],
    "vm.builtin.shrink_storage": [TENSOR],
    "vm.builtin.wait_for_readers": [TUPLE],
}


def arguments(rng, name, pool):
    if rng.random() < 0.15:
        return [anything(rng, pool) for _ in range(rng.randrange(8))]
    if name == BUILTINS:
        args = ["f", types_text(rng), *(anything(rng, pool) for _ in range(rng.randrange(4)))]
    elif name == "relax_inplace.relayout":
        one = tensor(rng)
        args = [one, rng.choice([one, tensor(rng)]), *digits(rng)]
    elif name == "relax_inplace.relayout_scratch":
        args = digits(rng)
    else:
        kinds = RIGHT.get(name, [anything] * rng.randrange(4))
        args = [kind(rng, pool) for kind in kinds]
    if args and rng.random() < 0.1:
        args[rng.randrange(len(args))] = anything(rng, pool)
    if args and rng.random() < 0.05:
        del args[rng.randrange(len(args))]
    return args


def deep(levels):
    fields = tvm_ffi.Array([])
    for _ in range(levels):
        fields = tvm_ffi.Array([fields])
    return fields


def wide(levels):
    fields = tvm_ffi.Array([1])
    for _ in range(levels):
        fields = tvm_ffi.Array([fields, fields])
    return fields


def main(seed, count):
    assert {BUILTINS, "vm.builtin.inplace_update_tuple", "relax_inplace.relayout"} <= set(FUNCTIONS)
    rng = random.Random(seed)
    calls, returned = collections.Counter(), 0
    for call in range(count):
        if call % 200 == 0:  # what has become of the old ones may be large
            pool = [None, 0, deep(3), deep(2000), wide(60), tvm_ffi.Array([None] * 3)]
        name = rng.choice(FUNCTIONS)
        try:
            args = arguments(rng, name, pool)
        except Exception:
            continue  # tvm-ffi has no such value
        print(f"seed {seed}, call {call}: {name} of {len(args)} arguments", file=sys.stderr)
        calls[name] += 1
        try:
            result = tvm_ffi.get_global_func(name)(*args)
            returned += 1
        except Exception:
            continue
        if isinstance(result, (tvm_ffi.Array, tvm_ffi.Tensor, tvm_ffi.Function)):
            pool.append(result)
        pool += [one for one in args if isinstance(one, tvm_ffi.Array)][:1]
    print(json.dumps({"calls": sum(calls.values()), "returned": returned, "of": calls}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
