"""Codes in words of 32 bits, the first in the lowest: how checkpoints and MLC-LLM pack them."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any

from tvm import ir, tirx

__all__ = ["code_of", "word_of"]


def code_of(word: ir.Expr, place: Any, bits: int) -> ir.Expr:
    """The code at a place of a word, as uint32."""
    shift = (place * bits).astype("uint32") if isinstance(place, ir.Expr) else place * bits
    return (word.astype("uint32") >> shift) & tirx.const((1 << bits) - 1, "uint32")


def word_of(codes: Sequence[ir.Expr], bits: int) -> ir.Expr:
    """A uint32 of such codes."""
    return functools.reduce(
        operator.or_,
        (
            code << tirx.const(bits * place, "uint32") if place else code
            for place, code in enumerate(codes)
        ),
    )
