"""How many bytes a tensor takes: a number, or an expression of its symbolic dimensions.

A ``ByteSize`` is a sum of products: ``{"n*m": 4, "n": 2}`` is ``4*n*m + 2*n``. Sums of many sizes
are formed while a function is planned, so a size is kept in this form, not as a TVM expression.
Static sizes are plain integers and never come here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from tvm import ir, relax, sym, tirx

__all__ = [
    "NOMINAL_DIMENSION",
    "ByteSize",
    "LargestOf",
    "Size",
    "at_bounds",
    "covers",
    "largest",
    "nominal_size",
    "size_of",
    "tensors_in",
    "unknown_size",
]

NOMINAL_DIMENSION = 1024  # of a symbolic dimension without a bound, where sizes are to be compared


class ByteSize:
    """Bytes as a sum of products of symbolic dimensions.

    Attributes
    ----------
    terms : dict of str to int
        The coefficient of each product, by the product's text; ``""`` is the constant term.
    products : dict of str to tvm.ir.PrimExpr
        The product that each text stands for.
    """

    __slots__ = ("products", "terms")

    def __init__(self, terms: Mapping[str, int], products: Mapping[str, ir.PrimExpr]):
        self.terms = {text: factor for text, factor in terms.items() if factor != 0}
        self.products = products

    def __add__(self, other: Size) -> ByteSize:
        return self._plus(other, 1)

    __radd__ = __add__

    def __sub__(self, other: Size) -> ByteSize:
        return self._plus(other, -1)

    def __rsub__(self, other: Size) -> ByteSize:
        return ByteSize({}, {})._plus(other, 1)._plus(self, -1)

    def __mul__(self, factor: int) -> ByteSize:
        return ByteSize({text: c * factor for text, c in self.terms.items()}, self.products)

    __rmul__ = __mul__

    def __eq__(self, other: object) -> bool:
        return self.terms == _terms(other)

    def __hash__(self) -> int:
        return hash(frozenset(self.terms.items()))

    def __str__(self) -> str:
        texts = [
            text if factor == 1 else f"{factor}*{text}" if text else str(factor)
            for text, factor in sorted(self.terms.items(), key=lambda term: term[0], reverse=True)
        ]
        return " + ".join(texts) or "0"

    __repr__ = __str__

    def covers(self, other: Size) -> bool:
        """Whether it is at least the other one, whatever the dimensions."""
        difference = self - other
        return all(factor > 0 for factor in difference.terms.values())

    def unknown(self) -> list[str]:
        """The names of tensors whose types do not say how large they are."""
        return [text.strip("|") for text in self.terms if text.startswith("|")]

    def expr(self) -> ir.PrimExpr:
        """As an expression of TVM."""
        total: ir.PrimExpr = tirx.const(self.terms.get("", 0), "int64")
        for text, factor in self.terms.items():
            if text:
                total = total + tirx.const(factor, "int64") * self.products[text]
        return sym.Analyzer().simplify(total)

    def at(self, bounds: Mapping[str, int], default: int | None = None) -> int | ByteSize:
        """With values for the dimensions, by name; a number if all that occur have one."""
        total, left = 0, {}
        for text, factor in self.terms.items():
            value = 1 if not text else _value(self.products[text], bounds, default)
            if value is None:
                left[text] = factor
            else:
                total += factor * value
        if not left:
            return total
        return ByteSize({**left, "": total}, self.products)

    def _plus(self, other: Size, sign: int) -> ByteSize:
        terms, products = dict(self.terms), self.products
        for text, factor in _terms(other).items():
            terms[text] = terms.get(text, 0) + sign * factor
        if isinstance(other, ByteSize) and other.products is not products:
            products = {**products, **other.products}
        return ByteSize(terms, products)


Size = int | ByteSize


def _terms(size: object) -> dict[str, int]:
    if isinstance(size, ByteSize):
        return size.terms
    return {"": size} if isinstance(size, int) and size != 0 else {}


def _value(product: ir.PrimExpr, bounds: Mapping[str, int], default: int | None) -> int | None:
    analyzer = sym.Analyzer()
    for var in tirx.analysis.undefined_vars(product):
        value = bounds.get(var.name, default)
        if value is None:
            return None
        analyzer.bind(var, tirx.const(value, var.ty.dtype))
    result = analyzer.simplify(product)
    return int(result) if isinstance(result, tirx.IntImm) else None


class LargestOf:
    """The largest of several sizes, none of which is always at least another one."""

    __slots__ = ("sizes",)

    def __init__(self, sizes: list[Size]):
        self.sizes = sizes

    def __str__(self) -> str:
        return f"max({', '.join(map(str, self.sizes))})"

    __repr__ = __str__

    def unknown(self) -> list[str]:
        """The names of tensors whose types do not say how large they are."""
        sizes = [size for size in self.sizes if isinstance(size, ByteSize)]
        return [name for size in sizes for name in size.unknown()]

    def expr(self) -> ir.PrimExpr:
        """As an expression of TVM."""
        result, *others = (_as_expr(size) for size in self.sizes)
        for other in others:
            result = tirx.max(result, other)
        return result


def _as_expr(size: Size) -> ir.PrimExpr:
    return size.expr() if isinstance(size, ByteSize) else tirx.const(size, "int64")


def at_bounds(size: Size, bounds: Mapping[str, int], default: int | None = None) -> Size:
    """A size with values for its dimensions."""
    return size.at(bounds, default) if isinstance(size, ByteSize) else size


def nominal_size(size: Size, bounds: Mapping[str, int] | None = None) -> int:
    """A number to compare with others."""
    value = at_bounds(size, bounds or {}, NOMINAL_DIMENSION)
    assert isinstance(value, int)
    return value


def largest(sizes: Iterable[Size | LargestOf]) -> Size | LargestOf:
    """The size that covers all others; where there is none, those of which none covers another."""
    kept: list[Size] = []
    each = (size.sizes if isinstance(size, LargestOf) else [size] for size in sizes)
    for size in dict.fromkeys(size for several in each for size in several):
        if any(covers(other, size) for other in kept):
            continue
        kept = [other for other in kept if not covers(size, other)] + [size]
    return kept[0] if len(kept) == 1 else LargestOf(kept)


def covers(size: Size | LargestOf, other: Size) -> bool:
    """Whether a size is at least another one, whatever the dimensions."""
    if isinstance(size, int) and isinstance(other, int):
        return size >= other
    if isinstance(size, LargestOf):
        return any(covers(one, other) for one in size.sizes)
    size = size if isinstance(size, ByteSize) else ByteSize({"": size}, {})
    return size.covers(other)


def tensors_in(ty: ir.Type) -> Iterator[relax.TensorType]:
    """The tensor types in a type, at any depth of tuples."""
    if isinstance(ty, relax.TensorType):
        yield ty
    elif isinstance(ty, relax.TupleType):
        for field in ty.fields[:]:
            yield from tensors_in(field)


def size_of(ty: ir.Type, name: str = "?") -> Size:
    """The bytes of all tensors in a type.

    ``name`` stands for the bytes of a tensor whose shape or dtype is not known.
    """
    total: Size = 0
    for tensor in tensors_in(ty):
        total = total + _tensor_size(tensor, name)
    return total


def unknown_size(name: str) -> ByteSize:
    """What a type does not say: ``|name|``."""
    text = f"|{name}|"
    return ByteSize({text: 1}, {text: tirx.Var(text, "int64")})


def _tensor_size(ty: relax.TensorType, name: str) -> Size:
    shape = ty.shape
    if not isinstance(shape, relax.ShapeExpr) or ty.dtype is None:
        return unknown_size(name)
    dtype = ty.dtype
    factor = dtype.dtype.bits * dtype.dtype.lanes
    symbolic = []
    for dim in shape.values[:]:
        if isinstance(dim, tirx.IntImm):
            factor *= int(dim.value)
        else:
            symbolic.append(dim)
    # Memory is packed (ffi::GetDataSize). Rounded up before symbolic dimensions: a bound.
    factor = (factor + 7) // 8
    if not symbolic or factor == 0:
        return factor
    product = symbolic[0]
    for dim in symbolic[1:]:
        product = product * dim
    product = sym.Analyzer().simplify(product)
    text = "*".join(
        sorted(str(dim) if isinstance(dim, tirx.Var) else f"({dim})" for dim in symbolic)
    )
    return ByteSize({text: factor}, {text: product})
