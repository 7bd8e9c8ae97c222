"""Linear layers whose parameters are stored in another layout than they compute with.

A layer computes with weights W, and its parameters are W. Given a layout, its parameters become S,
what is stored of W, and what it computes with is made from S where it is used, and marked
(``R.lift_param``). So the model is the same, of other parameters; and
:func:`.transform.LiftInplaceTransformParams` takes the conversion out of it, to where the weights
are loaded.

Attributes of a parameter stay. A shard strategy says which axis is cut: it is made to say so of S,
where it is proved which axis that is (:mod:`._sharding`).
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import fnmatch
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import tvm_ffi
from tvm import relax, tirx
from tvm.relax.frontend import nn

from ..marker import lift_param
from ._argument import LayoutError, text_of
from ._sharding import Made, axis_of_parts

__all__ = ["StoredLayout"]

_WHERE = "StoredLayout"
_CONVERSIONS = "_relax_inplace_conversions"  # an attribute of a layer, innermost first
# The parameters of linear layers, as nn.Linear and MLC-LLM's quantised ones call them.
_KNOWN = (("qweight", "qzeros", "scales"), ("q_weight", "q_scale"), ("weight",))
_STRATEGY = "shard_strategy"
_PREPROCS = "preprocs"

Layout: TypeAlias = Callable[..., Any]
Layers: TypeAlias = str | Sequence[str] | Callable[[str, nn.Module], bool]


class StoredLayout(nn.Mutator):
    """Store the parameters of linear layers in another layout than the layers compute with.

    >>> mutator = layout.StoredLayout(
    ...     stored=layout.group_quantized.kn_to_nk, used=layout.group_quantized.nk_to_kn
    ... )
    >>> model = mutator.visit("", model)

    Each parameter becomes one of the stored shape and dtype, under its name, with all its
    attributes; a shard strategy among them (``attrs["shard_strategy"]``, with a ``dim``) is that of
    the stored axis. ``forward`` gets what ``used`` makes of it, marked by
    :func:`relax_inplace.lift_param`: ``LiftInplaceTransformParams`` makes that the conversion.
    The model is changed in place, by all of its layers or, if there is an error, by none.

    Parameters
    ----------
    stored : callable
        What is stored of the parameters that a layer has: it takes them as ``nn.Tensor``, and
        returns as many. Only the types of what it makes are used.
    used : callable
        The way back: what the layer computes with.
    layers : str, callable, or sequence of str, optional
        The layers, by their names in the model, which may be patterns (``fnmatch``); or a function
        that is given a name and a module. By default all linear layers: ``nn.Linear``, and what
        has ``out_features`` and parameters of the same names as MLC-LLM's quantised layers have.
    params : sequence of str, optional
        The attributes of a layer that hold the parameters. By default those of ``weight``; of
        ``q_weight, q_scale``; or of ``qweight, qzeros, scales`` that there are.

    Raises
    ------
    LayoutError
        By ``visit``: no layer is meant, or one cannot be given the layout.
    """

    def __init__(
        self,
        *,
        stored: Layout,
        used: Layout,
        layers: Layers | None = None,
        params: Sequence[str] | None = None,
    ) -> None:
        self.stored = stored
        self.used = used
        self.layers = [layers] if isinstance(layers, str) else layers
        self.params = None if params is None else tuple(params)
        self._found: list[tuple[str, nn.Module]] | None = None
        self._known: dict[object, Made] = {}

    def visit_module(self, name: str, node: nn.Module) -> Any:
        """Visit a module below the one that ``visit`` was called for."""
        if self._found is not None:
            self._found.append((name, node))
        return self.visit(name, node)

    def visit(self, name: str, node: Any) -> Any:
        """Change the linear layers of a model, which is returned.

        Parameters
        ----------
        name : str
            What the names of its layers begin with.
        node : nn.Module
        """
        if self._found is not None:
            return super().visit(name, node)
        self._found = [(name, node)] if isinstance(node, nn.Module) else []
        try:
            super().visit(name, node)
            found = self._found
        finally:
            self._found = None
        layers = self._selected(found)
        _require_all_owners(found, layers)
        made: dict[int, nn.Parameter] = {}  # of each parameter: layers may share one
        for layer_name, layer, params in layers:
            with _named_in_errors(layer_name):
                new = self._made(layer_name, layer, params)
            made.update(zip(map(id, params.values()), new, strict=True))
        for _, layer, params in layers:
            for attribute, param in params.items():
                setattr(layer, attribute, made[id(param)])
            _convert_in_forward(layer, tuple(params), self.used)
        return node

    # -- which --------------------------------------------------------------------------------

    def _selected(
        self, found: Sequence[tuple[str, nn.Module]]
    ) -> list[tuple[str, nn.Module, dict[str, nn.Parameter]]]:
        linear = {}
        for name, module in found:
            params = self._params_of(module)
            if params and id(module) not in linear:
                linear[id(module)] = (name, module, params)
        selected = [one for one in linear.values() if self._is_meant(one[0], one[1])]
        if not selected:
            names = ", ".join(f"`{name}`" for name, _, _ in list(linear.values())[:4])
            raise LayoutError.of(
                where=_WHERE,
                given=f"layers={self.layers!r} means none of {len(linear)} linear layers",
                expected="the name of one, a pattern, or a function that says so",
                remedy=f"they are called {names}"
                if names
                else "say with params=[...] which attributes of a layer hold its parameters",
            )
        return selected

    def _is_meant(self, name: str, module: nn.Module) -> bool:
        if self.layers is None:
            return True
        if callable(self.layers):
            return bool(self.layers(name, module))
        return any(name == one or fnmatch.fnmatchcase(name, one) for one in self.layers)

    def _params_of(self, module: nn.Module) -> dict[str, nn.Parameter]:
        """The parameters of a linear layer, by attribute; none of another module."""
        if not hasattr(module, "forward"):
            return {}
        if self.params is None and not (
            isinstance(module, nn.Linear) or hasattr(module, "out_features")
        ):
            return {}
        for names in _KNOWN if self.params is None else (self.params,):
            params = {name: getattr(module, name, None) for name in names}
            if all(isinstance(param, nn.Parameter) for param in params.values()):
                return params
        return {}

    # -- what is stored -----------------------------------------------------------------------

    def _made(
        self, name: str, layer: nn.Module, params: dict[str, nn.Parameter]
    ) -> list[nn.Parameter]:
        """The parameters that a layer gets."""
        if getattr(layer, "define_subroutine", False):
            raise LayoutError.of(
                where=_WHERE,
                given=f"`{name}` with define_subroutine",
                expected="a layer that is part of the function that has the weights",
                remedy="leave define_subroutine out: what a function that is called does to its "
                "weights is not lifted",
            )
        for attribute, param in params.items():
            _require_plain(_joined(name, attribute), param)
        types = [param._expr.ty for param in params.values()]
        made = self._made_of(self.stored, types)
        _require_types(name, "stored", made.types, len(types))
        again = self._made_of(self.used, made.types)
        _require_types(name, "used", again.types, len(types))
        for attribute, ty, wanted in zip(params, again.types, types, strict=True):
            if not tvm_ffi.structural_equal(ty, wanted):
                raise LayoutError.of(
                    where=_WHERE,
                    given=f"`used` makes {_shown(ty)} of what is stored for "
                    f"`{_joined(name, attribute)}`",
                    expected=_shown(wanted),
                    remedy="give a layout and its way back, with the same arguments",
                )
        return [
            self._parameter(_joined(name, attribute), layer, param, made, index, types)
            for index, (attribute, param) in enumerate(params.items())
        ]

    def _made_of(self, layout: Layout, types: Sequence[relax.TensorType]) -> Made:
        """What a layout makes of tensors of these types."""
        key = layout, tvm_ffi.StructuralKey(relax.TupleType(types))
        if key not in self._known:
            builder = relax.BlockBuilder()
            params = [relax.Var(f"w{index}", ty) for index, ty in enumerate(types)]
            with builder.function("main", params):
                result = layout(*(nn.Tensor(_expr=param) for param in params))
                fields = result if isinstance(result, (tuple, list)) else (result,)
                exprs = [one._expr if isinstance(one, nn.Tensor) else one for one in fields]
                builder.emit_func_output(builder.emit(relax.Tuple(exprs)))
            self._known[key] = Made(builder.finalize())
        return self._known[key]

    def _parameter(
        self,
        name: str,
        layer: nn.Module,
        param: nn.Parameter,
        made: Made,
        index: int,
        types: Sequence[relax.TensorType],
    ) -> nn.Parameter:
        """A parameter of the stored type, with all that the other one has."""
        ty = made.types[index]
        new = copy.copy(param)
        new.attrs = copy.copy(param.attrs)
        shape = list(ty.shape.values)
        new._expr = nn.Tensor.placeholder(shape, str(ty.dtype), param._expr.name)._expr
        strategy = param.attrs.get(_STRATEGY)
        if strategy is not None:
            new.attrs[_STRATEGY] = self._strategy(name, layer, strategy, made, index, types)
        return new

    def _strategy(
        self,
        name: str,
        layer: nn.Module,
        strategy: Any,
        made: Made,
        index: int,
        types: Sequence[relax.TensorType],
    ) -> Any:
        """The shard strategy of what is stored."""
        axis = getattr(strategy, "dim", None)
        ty = types[index]
        if not isinstance(axis, int) or not -ty.ndim <= axis < ty.ndim:
            raise _strategy_error(name, strategy, "it has no `dim` that is an axis of the weight")
        axis %= ty.ndim
        if _is_of_transposed(layer) and ty.ndim == 2:
            axis = 1 - axis
        alone = [_doubled(one, axis) if i == index else one for i, one in enumerate(types)]
        found = None
        # Others have to be as long along the same axis, as scales along that of codes, or must not.
        for given in ([_doubled(one, axis) for one in types], alone):
            with contextlib.suppress(LayoutError):
                found = axis_of_parts(made, self._made_of(self.stored, given), index, ty, axis)
                break
        if found is None:
            raise _strategy_error(
                name, strategy, f"no axis of what is stored has the parts of axis {axis}"
            )
        stored_axis, part = found
        stored = made.types[index]
        size, stored_size = int(ty.shape.values[axis]), int(stored.shape.values[stored_axis])
        segments = getattr(strategy, "segs", None)
        changed: dict[str, Any] = {"dim": stored_axis}
        if segments is not None:
            if any(segment % part for segment in segments):
                raise _strategy_error(name, strategy, f"`segs` are no multiples of {part}")
            changed["segs"] = [segment * stored_size // size for segment in segments]
        if hasattr(strategy, "name"):  # which is that of a function of this shape
            sizes = "x".join(str(int(one)) for one in stored.shape.values)
            changed["name"] = f"{strategy.name}_{sizes}_dim{stored_axis}"
        if dataclasses.is_dataclass(strategy) and not isinstance(strategy, type):
            return dataclasses.replace(strategy, **changed)
        new = copy.copy(strategy)
        for attribute, value in changed.items():
            setattr(new, attribute, value)
        return new


def _is_of_transposed(layer: nn.Module) -> bool:
    """Whether the strategies of a layer are those of its weight the other way round.

    MLC-LLM's ``GroupQuantizeLinear.from_linear`` gives parameters of K x N the strategy of the
    N x K weight (group_quantization.py), which compile.py then refuses to shard.
    """
    return getattr(getattr(layer, "config", None), "linear_weight_layout", None) == "KN"


def _doubled(ty: relax.TensorType, axis: int) -> relax.TensorType:
    shape = [size * 2 if i == axis else size for i, size in enumerate(ty.shape.values)]
    return relax.TensorType(shape, ty.dtype)


def _convert_in_forward(layer: nn.Module, attributes: tuple[str, ...], used: Layout) -> None:
    conversions = layer.__dict__.get(_CONVERSIONS, ())
    kind: Any = type(layer)
    layer.__class__ = _converting(kind)
    setattr(layer, _CONVERSIONS, (*conversions, (attributes, used)))


@functools.cache
def _converting(kind: Any) -> Any:
    """A class of layers that convert their parameters before they compute.

    A class, not an attribute of the layer: a copy of the model converts its own parameters.
    """
    if _CONVERSIONS in kind.__dict__:
        return kind

    @functools.wraps(kind.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _converted(self):
            return kind.forward(self, *args, **kwargs)

    space = {"forward": forward, _CONVERSIONS: (), "__module__": kind.__module__}
    return type(kind.__name__, (kind,), space)


@contextlib.contextmanager
def _converted(layer: Any) -> Iterator[None]:
    """The parameters are what the layer computes with."""
    given: dict[str, Any] = {}
    try:
        for attributes, used in reversed(getattr(layer, _CONVERSIONS)):
            result = used(*(getattr(layer, attribute) for attribute in attributes))
            fields = result if isinstance(result, (tuple, list)) else (result,)
            for attribute, field in zip(attributes, fields, strict=True):
                given.setdefault(attribute, getattr(layer, attribute))
                setattr(layer, attribute, field)
        for attribute in given:
            setattr(layer, attribute, lift_param(getattr(layer, attribute)))
        yield
    finally:
        for attribute, param in given.items():
            setattr(layer, attribute, param)


# -- what is refused ------------------------------------------------------------------------------


@contextlib.contextmanager
def _named_in_errors(layer: str) -> Iterator[None]:
    """What a layout refuses is of a layer."""
    try:
        yield
    except LayoutError as error:
        if error.where == _WHERE:
            raise
        raise LayoutError.of(
            where=error.where,
            given=f"{error.given}, of layer `{layer}`",
            expected=error.expected,
            remedy=error.remedy,
        ) from error


def _require_plain(name: str, param: nn.Parameter) -> None:
    if param.data is not None:
        raise LayoutError.of(
            where=_WHERE,
            given=f"`{name}`, which is bound to data",
            expected="a parameter that is not",
            remedy="give the model another layout before its weights",
        )
    if param.attrs.get(_PREPROCS):
        raise LayoutError.of(
            where=_WHERE,
            given=f"`{name}`, which has {_PREPROCS} for its shape already",
            expected="a parameter with a shard_strategy only",
            remedy="give the model another layout before export_tvm, and before what MLC-LLM does "
            "to parameters after it",
        )


def _require_types(name: str, which: str, types: Sequence[Any], count: int) -> None:
    if len(types) != count:
        raise LayoutError.of(
            where=_WHERE,
            given=f"`{which}` makes {len(types)} tensors of the parameters of `{name}`",
            expected=f"{count}, one for each",
            remedy="give a layout that takes and returns the parameters, or other params=[...]",
        )
    for ty in types:
        sizes = ty.shape.values if isinstance(ty.shape, relax.ShapeExpr) else [None]
        if not all(isinstance(size, (tirx.IntImm, tirx.Var)) for size in sizes):
            raise LayoutError.of(
                where=_WHERE,
                given=f"`{which}` makes {_shown(ty)} of `{name}`",
                expected="sizes that are numbers or names",
                remedy="leave layers out whose symbolic size would be computed from another one",
            )


def _require_all_owners(
    found: Sequence[tuple[str, nn.Module]],
    layers: Sequence[tuple[str, nn.Module, dict[str, nn.Parameter]]],
) -> None:
    """Refuse to take a parameter apart that something else has, too."""
    owners: dict[int, dict[tuple[int, Any], str]] = {}  # by the object that it is in, and where
    for name, module in found:
        for attribute, value in module.__dict__.items():
            if isinstance(value, nn.Parameter):
                place = {(id(module), attribute): _joined(name, attribute)}
                owners.setdefault(id(value), {}).update(place)
            elif isinstance(value, (nn.ParameterList, nn.ParameterDict)):
                items = value.items() if isinstance(value, nn.ParameterDict) else enumerate(value)
                for key, param in items:
                    place = {(id(value), key): _joined(name, attribute, str(key))}
                    owners.setdefault(id(param), {}).update(place)
    converted = {(id(module), attribute) for _, module, params in layers for attribute in params}
    for name, _, params in layers:
        for attribute, param in params.items():
            others = [other for place, other in owners[id(param)].items() if place not in converted]
            if others:
                raise LayoutError.of(
                    where=_WHERE,
                    given=f"`{_joined(name, attribute)}`, the same parameter as `{others[0]}`",
                    expected="a parameter of layers only that are given the layout",
                    remedy=f"leave `{name}` out, by layers=...",
                )


def _joined(*names: str) -> str:
    return ".".join(name for name in names if name)


def _strategy_error(name: str, strategy: Any, why: str) -> Exception:
    return LayoutError.of(
        where=_WHERE,
        given=f"`{name}` is sharded by {strategy!r}, and {why}",
        expected="a layout that keeps the parts of the sharded axis apart",
        remedy="leave that layer out, or set the attribute of the new parameter by hand",
    )


def _shown(ty: relax.TensorType) -> str:
    sizes = ", ".join(map(text_of, ty.shape.values))
    return f"({sizes}) {ty.dtype}"
