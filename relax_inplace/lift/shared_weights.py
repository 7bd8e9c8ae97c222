"""Which functions of a module share which weights.

Definition
----------
The *weights* of a function are what follows its ``num_input`` leading parameters: parameters of
their own, or one tuple. A function without that attribute has them in the tuple that is its last
parameter, or that has the given name. A ``*transform_params`` function makes weights, and shares
none.

All functions that have weights share them, so their types agree, up to the names of symbolic
dimensions. But a tuple that does not agree is something else where other functions have
``num_input``, and in a private function. A function ``f`` whose weights come from a function
``f_transform_params`` of the module shares them with none.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import tvm_ffi
from tvm import ir, relax

from ..errors import StructuredError
from ..inplace.transform_graph import RESTORE, TRANSFORM

__all__ = ["LiftError", "SharedWeights", "WeightUser", "find_shared_weights"]

_NUM_INPUT = "num_input"
_TUPLE = "params"  # what a tuple is called that weights are bundled into
_MADE_UP = re.compile(r"(gv|lv)\d*")  # what BlockBuilder calls a variable that has no name


class LiftError(StructuredError):
    """Functions whose weight transforms cannot be lifted.

    Attributes
    ----------
    functions : str
        Their names.
    reason : str
        Why not, and where in them.
    """

    template = "the weight transforms of {functions} cannot be lifted: {reason}"


@dataclasses.dataclass(eq=False)
class WeightUser:
    """A function that takes weights.

    Attributes
    ----------
    gvar : tvm.ir.GlobalVar
    function : relax.Function
        With the symbolic dimensions of its weights named as in the tuple that all share.
    position : int
        Of the weights, or of the first of them, among its parameters.
    is_bundled : bool
        Whether they are one tuple.
    """

    gvar: ir.GlobalVar
    function: relax.Function
    position: int
    is_bundled: bool

    @property
    def name(self) -> str:
        """The function's."""
        return str(self.gvar.name_hint)

    @property
    def weights(self) -> list[relax.Var]:
        """The parameters that are weights: one tuple, or all from ``position``."""
        params = self.function.params[:]
        return [params[self.position]] if self.is_bundled else list(params[self.position :])

    @property
    def tuple_name(self) -> str:
        """What the tuple of weights is called."""
        return str(self.weights[0].name) if self.is_bundled else _TUPLE

    @property
    def inputs(self) -> list[relax.Var]:
        """The other parameters."""
        params = self.function.params[:]
        after = params[self.position + 1 :] if self.is_bundled else []
        return [*params[: self.position], *after]

    @property
    def type(self) -> relax.TupleType:
        """Of the weights, as one tuple."""
        if self.is_bundled:
            return self.weights[0].ty
        return relax.TupleType([var.ty for var in self.weights])

    def has_num_input(self) -> bool:
        """Whether it says which parameters are weights."""
        return _num_input(self.function) is not None

    def is_public(self) -> bool:
        """Whether it is called from outside the module."""
        attrs = self.function.attrs
        return bool(attrs) and "global_symbol" in attrs


@dataclasses.dataclass(eq=False)
class SharedWeights:
    """The weights that some functions share.

    Attributes
    ----------
    users : list of WeightUser
        By name.
    type : relax.TupleType
    names : list of str
        Of the fields: given, or as the functions call them, or ``params[3]``.
    transform : tvm.ir.GlobalVar or None
        A function of the module that makes these weights from others.
    """

    users: list[WeightUser]
    type: relax.TupleType
    names: list[str]
    transform: ir.GlobalVar | None

    @property
    def tuple_name(self) -> str:
        """What the tuple of weights is called."""
        return next((user.tuple_name for user in self.users if user.is_bundled), _TUPLE)

    @property
    def listed(self) -> str:
        """The functions, for a person."""
        return ", ".join(f"`{user.name}`" for user in self.users)


def find_shared_weights(
    mod: ir.IRModule,
    functions: Sequence[str] | None = None,
    params: str | None = None,
    names: Sequence[str] | None = None,
) -> list[SharedWeights]:
    """Find the functions that share weights.

    Parameters
    ----------
    mod : tvm.ir.IRModule
    functions : sequence of str, optional
        These, and no others.
    params : str, optional
        The name of the tuple parameter of functions that have no ``num_input``; by default their
        last parameter.
    names : sequence of str, optional
        Of the weights, in order.

    Raises
    ------
    LiftError
        The functions do not share their weights, or one has none.
    ValueError
        There is no such function, or the names are too many, too few, or not unique.
    """
    users = _users(mod, functions, params)
    if not users:
        raise LiftError.of(
            functions="the module",
            reason="none of its functions has weights: parameters after `num_input` others, or a "
            f"tuple as its {f'parameter `{params}`' if params else 'last parameter'}",
        )
    groups: dict[ir.GlobalVar | None, list[WeightUser]] = {}
    transforms = {
        gvar.name_hint: gvar
        for gvar, function in mod.functions_items()
        if isinstance(function, relax.Function) and gvar.name_hint.endswith(TRANSFORM)
    }
    for user in users:
        own = transforms.get(f"{user.name}_{TRANSFORM}")
        groups.setdefault(own or transforms.get(TRANSFORM), []).append(user)
    return [_shared(mod, group, transform, names) for transform, group in groups.items()]


def _users(
    mod: ir.IRModule, functions: Sequence[str] | None, params: str | None
) -> list[WeightUser]:
    relax_functions = {
        gvar.name_hint: gvar
        for gvar, function in mod.functions_items()
        if isinstance(function, relax.Function)
    }
    if functions is not None:
        users = []
        for name in dict.fromkeys(functions):
            if name not in relax_functions:
                raise ValueError(
                    f"functions={list(functions)}, but the module has no Relax function `{name}`; "
                    f"it has {sorted(relax_functions)}"
                )
            user = _user(relax_functions[name], mod[relax_functions[name]], params)
            if user is None:
                raise LiftError.of(
                    functions=f"`{name}`",
                    reason="it has no weights: neither parameters after `num_input` others, nor a "
                    f"tuple as its {f'parameter `{params}`' if params else 'last parameter'}",
                )
            users.append(user)
        return users
    found = [
        _user(relax_functions[name], mod[relax_functions[name]], params)
        for name in sorted(relax_functions)
        if not name.endswith((TRANSFORM, RESTORE))
    ]
    users = [user for user in found if user is not None]
    certain = [user for user in users if user.has_num_input()] or [
        user for user in users if user.is_public()
    ]
    return [user for user in users if user in certain or not certain or _agree(user, certain[0])]


def _num_input(function: relax.Function) -> int | None:
    attrs = function.attrs
    return int(attrs[_NUM_INPUT]) if attrs and _NUM_INPUT in attrs else None


def _user(gvar: ir.GlobalVar, function: relax.Function, params: str | None) -> WeightUser | None:
    variables = list(function.params[:])
    position = _num_input(function)
    if position is None:
        named = [i for i, var in enumerate(variables) if params is None or var.name == params]
        if not named or not isinstance(variables[named[-1]].ty, relax.TupleType):
            return None
        return WeightUser(gvar, function, named[-1], True)
    if position >= len(variables):
        return None
    is_bundled = position == len(variables) - 1 and isinstance(
        variables[position].ty, relax.TupleType
    )
    return WeightUser(gvar, function, position, is_bundled)


def _agree(one: WeightUser, other: WeightUser) -> bool:
    return bool(tvm_ffi.structural_equal(one.type, other.type, map_free_vars=True))


def _shared(
    mod: ir.IRModule,
    users: list[WeightUser],
    transform: ir.GlobalVar | None,
    names: Sequence[str] | None,
) -> SharedWeights:
    first = users[0]
    for user in users[1:]:
        if not _agree(user, first):
            raise LiftError.of(
                functions=f"`{first.name}` and `{user.name}`",
                reason=f"they do not share their weights: {_difference(first, user)}; name those "
                "that do with functions=[...]",
            )
    ty = first.type
    if transform is not None:
        ty = mod[transform].ret_ty
        if not tvm_ffi.structural_equal(ty, first.type, map_free_vars=True):
            raise LiftError.of(
                functions=f"`{first.name}`",
                reason=f"its weights are {_shown(first.type)}, but `{transform.name_hint}` makes "
                f"{_shown(ty)}",
            )
    users = [_with_dimensions_of(ty, user) for user in users]
    return SharedWeights(users, ty, _names(users, names), transform)


def _with_dimensions_of(ty: relax.TupleType, user: WeightUser) -> WeightUser:
    """The user, with the symbolic dimensions of its weights named as those of a type."""
    theirs, own = (relax.analysis.tir_vars_in_type(one)[:] for one in (ty, user.type))
    renamed = {old: new for old, new in zip(own, theirs, strict=True) if not old.same_as(new)}
    if not renamed:
        return user
    return dataclasses.replace(user, function=user.function.bind_symbolic_vars(renamed))


def _difference(first: WeightUser, other: WeightUser) -> str:
    types = [list(user.type.fields[:]) for user in (first, other)]
    if len(types[0]) != len(types[1]):
        return f"`{first.name}` has {len(types[0])}, `{other.name}` {len(types[1])}"
    names = _names([first], None)
    for index, (one, two) in enumerate(zip(*types, strict=True)):
        if not tvm_ffi.structural_equal(one, two, map_free_vars=True):
            return (
                f"`{names[index]}`, weight {index}, is {_shown(one)} in `{first.name}` and "
                f"{_shown(two)} in `{other.name}`"
            )
    return (
        f"symbolic dimensions stand in other places: {_shown(first.type)} in `{first.name}`, "
        f"{_shown(other.type)} in `{other.name}`"
    )


def _shown(ty: ir.Type, longest: int = 200) -> str:
    lines = [line.strip() for line in str(ty).splitlines()]
    text = " ".join(line for line in lines if not line.startswith("#") and " = T." not in line)
    return text if len(text) <= longest else text[: longest - 3] + "..."


def _names(users: Sequence[WeightUser], given: Sequence[str] | None) -> list[str]:
    count = len(users[0].type.fields)
    if given is not None:
        if len(given) != count or len(set(given)) != count:
            raise ValueError(
                f"names: {len(given)} given, {len(set(given))} of them different, for {count} "
                f"weights of `{users[0].name}`; expected one for each"
            )
        return list(given)
    found: dict[int, str] = {}
    for user in users:  # a name that is taken in a module of several functions gets a number
        for index, name in enumerate(_called(user)):
            if name and len(name) < len(found.get(index, name + "_")):
                found[index] = name
    taken: set[str] = set()
    for index, name in found.items():
        if name in taken:
            found[index] = f"{name}[{index}]"
        taken.add(name)
    bundle = next((user.tuple_name for user in users if user.is_bundled), _TUPLE)
    return [found.get(index, f"{bundle}[{index}]") for index in range(count)]


def _called(user: WeightUser) -> list[str]:
    """What a function calls its weights: the variables that it reads them into first."""
    if not user.is_bundled:
        return [var.name for var in user.weights]
    bundle, names = user.weights[0], [""] * len(user.type.fields)
    for block in user.function.body.blocks[:]:
        for binding in block.bindings[:]:
            value = binding.value
            if type(value) is relax.TupleGetItem and value.tuple_value.same_as(bundle):
                name = binding.var.name
                if not names[value.index] and not _MADE_UP.fullmatch(name):
                    names[value.index] = name
    return names
