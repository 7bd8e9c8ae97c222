"""Weight layouts: each a pair of functions on Relax expressions, there and back.

A layout moves bits and never changes a value; :mod:`.requantize` does, and is no layout. Each
tensor that a layout makes is one kernel, or one Relax op, made from a line that declares where bits
go; on a CPU it is carried out in the weight's own memory.

>>> from relax_inplace import layout
>>> @I.ir_module
... class Model:
...     @R.function
...     def transform_params(params: R.Tuple(R.Tensor((4096, 4096), "float16"))):
...         w = layout.tiles.pack(params[0], 16, 64)
...         return (w,)

The functions take ``nn.Tensor`` in ``nn.Module.forward``, too. The table is in docs/layouts.md.
:class:`StoredLayout` gives a model's linear layers another layout of what is stored.
"""

import tvm  # noqa: F401  first: what is imported with it imports parts of this package

from . import (
    awq,
    block_scales,
    faster_transformer,
    gate_up,
    ggml,
    gptq,
    group_quantized,
    marlin,
    requantize,
    tiles,
)
from ._argument import LayoutError
from ._stored_layout import StoredLayout

__all__ = [
    "LayoutError",
    "StoredLayout",
    "awq",
    "block_scales",
    "faster_transformer",
    "gate_up",
    "ggml",
    "gptq",
    "group_quantized",
    "marlin",
    "requantize",
    "tiles",
]
