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

Where a ``transform_params`` of the module makes the weights of a function, it may stand beside
functions that take the weights as they are: these are told by the types of their weights, or by the
names if the types leave a choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import tvm_ffi
from tvm import ir, relax

from ..errors import StructuredError
from ..inplace.signature import called_fields, names_of_weights
from ..inplace.transform_graph import RESTORE, TRANSFORM
from ..ir.resolve import resolve
from ..ir.updates import bindings_of
from ..weight_names import GivenNames, given_names, own_names

__all__ = ["LiftError", "SharedWeights", "WeightUser", "find_shared_weights", "user_of"]

_NUM_INPUT = "num_input"
_TUPLE = "params"  # what a tuple is called that weights are bundled into


class LiftError(StructuredError):
    """The weight transforms of functions cannot be lifted.

    Attributes
    ----------
    functions : str
        The names of the functions.
    reason : str
        The reason, and its place in them.
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
        Of the fields: see :mod:`..weight_names`.
    transform : tvm.ir.GlobalVar or None
        A function of the module that makes the weights of some users from others.
    entering : list of str
        The names of what enters: the fields of the transform's tuple, or of this one.
    raw : list of WeightUser
        Users that take what enters, and not what the transform makes.
    is_called : bool
        Whether these weights are what the transform makes, so that the new one calls it.
    """

    users: list[WeightUser]
    type: relax.TupleType
    names: list[str]
    transform: ir.GlobalVar | None
    entering: list[str]
    raw: list[WeightUser] = dataclasses.field(default_factory=list)
    is_called: bool = False

    @property
    def served(self) -> list[WeightUser]:
        """The users that take what the transform makes."""
        return [user for user in self.users if user not in self.raw]

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
    names: GivenNames | None = None,
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
    names : mapping, sequence, callable or path, optional
        Of the weights: see :mod:`..weight_names`.

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
            user = user_of(relax_functions[name], mod[relax_functions[name]], params)
            if user is None:
                raise LiftError.of(
                    functions=f"`{name}`",
                    reason="it has no weights: neither parameters after `num_input` others, nor a "
                    f"tuple as its {f'parameter `{params}`' if params else 'last parameter'}",
                )
            users.append(user)
        return users
    found = [
        user_of(relax_functions[name], mod[relax_functions[name]], params)
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


def user_of(
    gvar: ir.GlobalVar, function: relax.Function, params: str | None = None
) -> WeightUser | None:
    """A function with its weights; None if it has none."""
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
    names: GivenNames | None,
) -> SharedWeights:
    if transform is None:
        _require_agreement(users)
        ty = users[0].type
        users = [_with_dimensions_of(ty, user) for user in users]
        called = given_names(names, _names(users), f"`{users[0].name}`")
        return SharedWeights(users, ty, called, None, called)
    function = mod[transform]
    taker = user_of(transform, function)
    made = function.ret_ty
    raw = [user for user in users if taker is not None and _takes_what(user, taker)]
    served = [user for user in users if user not in raw]
    if not served:  # it makes weights of no function here
        served, raw = raw, []
    _require_agreement(served)
    if not tvm_ffi.structural_equal(made, served[0].type, map_free_vars=True):
        raise LiftError.of(
            functions=f"`{served[0].name}`",
            reason=f"its weights are {_shown(served[0].type)}, but `{transform.name_hint}` makes "
            f"{_shown(made)}",
        )
    served = [_with_dimensions_of(made, user) for user in served]
    if raw:
        assert taker is not None
        raw = [_with_dimensions_of(taker.type, user) for user in raw]
    called = _names(served)
    entering = given_names(names, _entering_names(function, served), f"`{transform.name_hint}`")
    return SharedWeights([*served, *raw], made, called, transform, entering, raw, is_called=True)


def _takes_what(user: WeightUser, transform: WeightUser) -> bool:
    """Whether a function takes what a transform takes, and not what it makes."""
    made = transform.function.ret_ty
    if not _agree(user, transform):
        return False
    if not tvm_ffi.structural_equal(made, user.type, map_free_vars=True):
        return True
    # LiftTransformParams calls the parameters as the variables that it returns.
    result = transform.function.body.body
    outputs: list[relax.Expr] = next(
        (
            binding.value.fields[:]
            for block in reversed(transform.function.body.blocks[:])
            for binding in reversed(block.bindings[:])
            if binding.var.same_as(result) and isinstance(binding.value, relax.Tuple)
        ),
        [],
    )
    names = _names([user])
    made_names = [getattr(one, "name", "") for one in outputs]
    return names == names_of_weights(transform.function) and names != made_names


def _entering_names(transform: relax.Function, served: Sequence[WeightUser]) -> list[str]:
    """What a transform calls the fields of its tuple, or the functions what it hands on to them."""
    bundle = transform.params[len(transform.params) - 1]
    if not isinstance(bundle.ty, relax.TupleType):
        return names_of_weights(transform)
    called, here = called_fields(transform, bundle), _merged(served)
    for made, index in _handed_on(transform, bundle).items():
        called[index] = called[index] or here[made]
    return own_names(called, bundle.name)


def _handed_on(transform: relax.Function, bundle: relax.Var) -> dict[int, int]:
    """Of the fields that a transform returns as they are, the places before."""
    bound = {one.var: one.value for one in bindings_of(transform) if type(one) is relax.VarBinding}
    result = resolve(transform.body.body, bound.get)
    if result.same_as(bundle):
        return {index: index for index in range(len(bundle.ty.fields))}
    fields = result.fields[:] if isinstance(result, relax.Tuple) else []
    values = {index: resolve(field, bound.get) for index, field in enumerate(fields)}
    return {
        index: value.index
        for index, value in values.items()
        if isinstance(value, relax.TupleGetItem) and value.tuple_value.same_as(bundle)
    }


def _require_agreement(users: Sequence[WeightUser]) -> None:
    first = users[0]
    for user in users[1:]:
        if not _agree(user, first):
            raise LiftError.of(
                functions=f"`{first.name}` and `{user.name}`",
                reason=f"they do not share their weights: {_difference(first, user)}; name those "
                "that do with functions=[...]",
            )


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
    names = _names([first])
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


def _names(users: Sequence[WeightUser]) -> list[str]:
    """What the functions call their weights."""
    bundle = next((user.tuple_name for user in users if user.is_bundled), _TUPLE)
    return own_names(_merged(users), bundle)


def _merged(users: Sequence[WeightUser]) -> list[str]:
    """For each weight the name that a function gives it; "" if none does."""
    found = [""] * len(users[0].type.fields)
    for user in users:  # a name that is taken in a module of several functions gets a number
        for index, name in enumerate(_called(user)):
            if name and (not found[index] or len(name) < len(found[index])):
                found[index] = name
    return found


def _called(user: WeightUser) -> list[str]:
    if user.is_bundled:
        return called_fields(user.function, user.weights[0])
    return [str(var.name) for var in user.weights]
