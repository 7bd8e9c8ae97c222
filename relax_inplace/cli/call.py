"""``run --call FUNCTION``: one call of a function of the library, a first sign of life.

What the function takes is read from the texts of its checks, which the executable has among its
constants: ``ErrorContext(fn=f, loc=param[0], param=x, annotation=R.Tensor((16, 64), ...))``.
"""

from __future__ import annotations

import dataclasses
import re
import time
from typing import Any

from .messages import RefusedError

__all__ = ["Called", "call", "inputs_of"]

_CHECK = r'ErrorContext\(fn={}, loc=param\[(\d+)\], param=[^,]*, annotation=(.+?)\) "[,\]]'
_TENSOR = re.compile(r'R\.Tensor\(\(([\d, ]*)\), dtype="(\w+)"\)')


@dataclasses.dataclass
class Called:
    """What came of it."""

    function: str
    inputs: list[str]
    returned: list[str]
    seconds: float

    def __str__(self) -> str:
        """For a person."""
        took = f"{self.function}({', '.join([*self.inputs, 'the weights'])})"
        made = ", ".join(self.returned) or "nothing"
        return f"{took} returned {made} in {self.seconds * 1e3:,.1f} ms"


def inputs_of(
    module: Any, vm: Any, function: str, weights: int, npz: str | None, device: Any
) -> tuple[list[Any], list[str], bool]:
    """What to call a function with, without the weights.

    Parameters
    ----------
    module : Module
        The executable.
    vm : VirtualMachine
    function : str
    weights : int
        How many there are, converted.
    npz : str or None
        A file of arrays, by the names of the parameters, or ``arr_0``, ``arr_1`` by their places.
    device : Device

    Returns
    -------
    values : list
    described : list of str
    bundled : bool
        Whether the weights are one tuple.

    Raises
    ------
    RefusedError
        There is no such function, or nothing says what it takes.
    """
    if not vm.module.implements_function(function):
        raise RefusedError(f"--call {function}: the library has no such function")
    names = [
        vm._get_function_param_name(function, i) for i in range(vm._get_function_arity(function))
    ]
    says = {
        int(place): re.sub(r"T\.int64\((\d+)\)", r"\1", text)
        for place, text in re.findall(_CHECK.format(re.escape(function)), module["stats"]())
    }
    bundled = re.match(r"[RT]\.Tuple\(", says.get(len(names) - 1, "")) is not None
    count = len(names) - (1 if bundled else weights)
    if count < 0:
        raise RefusedError(
            f"--call {function}: it takes {', '.join(names) or 'nothing'}, expected one that takes "
            f"the {weights} converted weights last"
        )
    given = {} if npz is None else _read(npz, names[:count])
    made = [
        _value(function, name, says.get(place, ""), given.get(name), device)
        for place, name in enumerate(names[:count])
    ]
    return [value for value, _ in made], [text for _, text in made], bundled


def call(vm: Any, function: str, inputs: tuple[list[Any], list[str], bool], params: Any) -> Called:
    """Call a function with the converted weights last."""
    values, described, bundled = inputs
    start = time.perf_counter()
    result = vm[function](*values, *([params] if bundled else params))
    leaves = list(_leaves(result))
    for leaf in leaves[:1]:
        if hasattr(leaf, "numpy"):
            leaf.numpy()  # until the device has done it
    seconds = time.perf_counter() - start
    return Called(function, described, [_described(leaf) for leaf in leaves], seconds)


def _read(npz: str, names: list[str]) -> dict[str, Any]:
    import numpy as np

    try:
        with np.load(npz, allow_pickle=False) as file:
            given = {name: file[name] for name in file.files}
    except OSError as error:
        raise RefusedError(f"--npz {npz}: {error.strerror or error}") from None
    except Exception:  # of what is no .npz it raises more than its own
        raise RefusedError(f"--npz {npz}: expected what numpy.savez writes of numbers") from None
    by_place = {f"arr_{place}": name for place, name in enumerate(names)}
    given = {
        by_place.get(name, name) if name not in names else name: array
        for name, array in given.items()
    }
    unknown = [name for name in given if name not in names]
    if unknown:
        raise RefusedError(
            f"--npz {npz}: it has {unknown[0]!r}, expected arrays named "
            + (", ".join(names) or "none")
        )
    return given


def _value(function: str, name: str, says: str, array: Any, device: Any) -> tuple[Any, str]:
    """A value for a parameter, and what it is."""
    import numpy as np
    import tvm
    import tvm_ffi

    if array is not None and says.startswith("R.Shape"):
        shape = [int(one) for one in np.asarray(array).ravel()]
        return tvm_ffi.Shape(shape), f"{name} {tuple(shape)}"
    if array is not None:
        return tvm.runtime.tensor(array, device), f"{name} {array.shape} {array.dtype}"
    tensor = _TENSOR.fullmatch(says)
    if tensor is None:
        raise RefusedError(
            f"--call {function}: the library does not say the shape of {name}"
            + (f" ({says})" if says else "")
            + f"; give it with --npz FILE, as the array {name!r}"
        )
    shape = [int(one) for one in tensor[1].replace(" ", "").split(",") if one]
    try:
        zeros = np.zeros(shape, tensor[2])
    except TypeError:
        import ml_dtypes

        zeros = np.zeros(shape, getattr(ml_dtypes, tensor[2]))
    return tvm.runtime.tensor(zeros, device), f"{name} {zeros.shape} {tensor[2]} of zeros"


def _leaves(value: Any) -> Any:
    import tvm_ffi

    if isinstance(value, (tvm_ffi.Array, tuple, list)) and not isinstance(value, tvm_ffi.Shape):
        for one in value:
            yield from _leaves(one)
    else:
        yield value


def _described(leaf: Any) -> str:
    if hasattr(leaf, "dtype") and hasattr(leaf, "shape"):
        return f"{tuple(map(int, leaf.shape))} {leaf.dtype}"
    return str(tuple(leaf)) if type(leaf).__name__ == "Shape" else type(leaf).__name__
