"""The same architectures through ONNX: exported by torch, read by TVM."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx.numpy_helper
import torch
import torch_models
from specimen import Specimen
from tvm.relax.frontend import detach_params
from tvm.relax.frontend.onnx import from_onnx

__all__ = ["ONNX_MODELS", "exported", "imported"]

ONNX_MODELS = ("Llama", "BERT", "ViT", "Whisper's encoder", "ResNet", "LSTM")


def exported(name: str) -> Specimen:
    """A model of torch_models, by torch's exporter and TVM's ONNX front end."""
    making, _ = torch_models.TORCH_MODELS[name]
    torch.manual_seed(0)
    model, inputs = making()
    file = io.BytesIO()
    names = [f"input_{index}" for index in range(len(inputs))]
    with torch.no_grad():
        torch.onnx.export(
            model.eval(),
            tuple(inputs),
            file,
            input_names=names,
            opset_version=18,
            dynamo=False,
            do_constant_folding=False,
        )
    arrays = [torch_models.array_of(one) for one in inputs]
    return imported(onnx.load_from_string(file.getvalue()), arrays)


def imported(
    model: onnx.ModelProto,
    inputs: Sequence[np.ndarray],
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Specimen:
    """An ONNX model, with its initializers as checkpoint."""
    arrays = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    given = None if shapes is None else {name: list(shape) for name, shape in shapes.items()}
    mod = from_onnx(model, shape_dict=given, keep_params_in_input=True)
    mod, _ = detach_params(mod)
    function = mod["main"]
    printed = {_printed(name): name for name in arrays} | {name: name for name in arrays}
    weights = [printed[one.name] for one in function.params[int(function.attrs["num_input"]) :]]
    return Specimen(mod, arrays, {"main": list(inputs)}, {}, weights)


def _printed(name: str) -> str:
    """As TVM makes a name of Python of it (onnx_frontend.py, _sanitize_name)."""
    clean = "".join(one if one.isalnum() or one == "_" else "_" for one in name)
    return clean if clean and clean[0].isalpha() else f"input_{clean}"
