"""Architectures as people have them: from transformers, small, random; through torch.export.

Each is a function that returns the torch model and an example of its arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import transformers
import tvm
from specimen import Specimen
from torch import nn
from tvm import relax
from tvm.relax.frontend import detach_params
from tvm.relax.frontend.torch import from_exported_program

__all__ = ["TORCH_MODELS", "exported", "imported"]

_DECODER = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 4000,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "attn_implementation": "eager",
    "use_cache": False,
}


class Output(nn.Module):
    """One tensor of what a model of transformers returns."""

    def __init__(self, model: nn.Module, field: str | int, **options: Any):
        super().__init__()
        self.model = model
        self._field, self._options = field, options

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Run the model."""
        named = zip(("input_ids", "attention_mask"), inputs, strict=False)
        given = dict(named) if inputs[1:] else {}
        return self.model(*inputs[: not given], **given, **self._options)[self._field]


def _tokens(vocab: int = 4000, length: int = 12) -> torch.Tensor:
    return torch.randint(1, vocab, (1, length))


def _mask(length: int = 12) -> torch.Tensor:
    """Given, or transformers looks for packed sequences by operators that TVM has not for bool."""
    return torch.ones(1, length, dtype=torch.int64)


def _causal(name: str, **changed: Any) -> tuple[nn.Module, Sequence[torch.Tensor]]:
    text = "Text" if name == "Gemma3" else ""
    config = getattr(transformers, f"{name}{text}Config")(**{**_DECODER, **changed})
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    return Output(model, "logits"), (_tokens(), _mask())


def llama():
    return _causal("Llama", tie_word_embeddings=False)


def llama_tied():
    return _causal("Llama", tie_word_embeddings=True)


def llama_bfloat16():
    model, inputs = _causal("Llama", tie_word_embeddings=False)
    return model.to(torch.bfloat16), inputs


def qwen3():
    return _causal("Qwen3", tie_word_embeddings=False)


def gemma():
    return _causal("Gemma")


def gemma3():
    return _causal("Gemma3", sliding_window=8)


def phi():
    return _causal("Phi", partial_rotary_factor=0.5)


def phi3():
    return _causal("Phi3", tie_word_embeddings=False)


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=4000,
        n_positions=128,
        n_embd=256,
        n_layer=2,
        n_head=4,
        attn_implementation="eager",
        use_cache=False,
    )
    return Output(transformers.GPT2LMHeadModel(config), "logits"), (_tokens(), _mask())


def bert():
    config = transformers.BertConfig(
        vocab_size=4000,
        hidden_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=128,
        attn_implementation="eager",
    )
    model = transformers.BertModel(config, add_pooling_layer=True)
    return Output(model, "pooler_output"), (_tokens(), _mask())


def vit():
    config = transformers.ViTConfig(
        hidden_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=384,
        image_size=64,
        patch_size=16,
        attn_implementation="eager",
    )
    return Output(transformers.ViTModel(config), "last_hidden_state"), (torch.randn(1, 3, 64, 64),)


def whisper_encoder():
    config = transformers.WhisperConfig(
        d_model=192,
        encoder_layers=2,
        encoder_attention_heads=4,
        encoder_ffn_dim=384,
        max_source_positions=50,
        num_mel_bins=40,
        attn_implementation="eager",
    )
    encoder = transformers.WhisperModel(config).get_encoder()
    return Output(encoder, "last_hidden_state"), (torch.randn(1, 40, 100),)


def resnet():
    config = transformers.ResNetConfig(
        embedding_size=32, hidden_sizes=[64, 128], depths=[2, 2], layer_type="basic"
    )
    return Output(transformers.ResNetModel(config), "pooler_output"), (torch.randn(1, 3, 64, 64),)


class _LSTM(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(128, 256, num_layers=2, batch_first=True)
        self.head = nn.Linear(256, 100)

    def forward(self, x):
        return self.head(self.lstm(x)[0])


def lstm():
    return _LSTM(), (torch.randn(1, 8, 128),)


class _Normalised(nn.Module):
    """Its BatchNorm's buffers are in the checkpoint, and constants of the exported module."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(512, 256)
        self.norm = nn.BatchNorm1d(256)

    def forward(self, x):
        return self.norm(self.fc(x))


def batch_norm():
    return _Normalised(), (torch.randn(2, 512),)


def _channels_last(mod: tvm.IRModule) -> tvm.IRModule:
    layouts = {"relax.nn.conv2d": ["NHWC", "OHWI"]}
    return tvm.transform.Sequential(
        [relax.transform.ConvertLayout(layouts), relax.transform.Normalize()]
    )(mod)


Making = Callable[[], tuple[nn.Module, Sequence[torch.Tensor]]]

TORCH_MODELS: dict[str, tuple[Making, Callable[[tvm.IRModule], tvm.IRModule] | None]] = {
    "Llama": (llama, None),
    "Llama, tied": (llama_tied, None),
    "Llama, bfloat16": (llama_bfloat16, None),
    "Qwen3": (qwen3, None),
    "Gemma": (gemma, None),
    "Gemma3": (gemma3, None),
    "Phi": (phi, None),
    "Phi3": (phi3, None),
    "GPT-2": (gpt2, None),
    "BERT": (bert, None),
    "ViT": (vit, None),
    "Whisper's encoder": (whisper_encoder, None),
    "ResNet": (resnet, None),
    "ResNet, NHWC": (resnet, _channels_last),
    "LSTM": (lstm, None),
    "BatchNorm": (batch_norm, None),
}


def exported(name: str) -> Specimen:
    """A model of the list, by torch.export."""
    making, change = TORCH_MODELS[name]
    torch.manual_seed(0)
    model, inputs = making()
    return imported(model.eval(), inputs, change)


def imported(
    model: nn.Module,
    inputs: Sequence[torch.Tensor],
    change: Callable[[tvm.IRModule], tvm.IRModule] | None = None,
) -> Specimen:
    """A torch model by torch.export, with its own state as checkpoint."""
    with torch.no_grad():
        program = torch.export.export(model, tuple(inputs))
    mod = from_exported_program(program, keep_params_as_input=True, unwrap_unit_return_tuple=True)
    mod, _ = detach_params(mod)
    if change is not None:
        mod = change(mod)
    calls = {"main": [array_of(one) for one in inputs]}
    weights = _weights_of(program)
    # What is tied is in a checkpoint once, under the first name, as transformers saves it.
    tied = _tied(model)
    left_out = {name for group in tied for name in group[1:]}
    state = {
        name: array_of(one) for name, one in model.state_dict().items() if name not in left_out
    }
    options = {"tied": [[weights.index(name) for name in group] for group in tied]} if tied else {}
    first = {name: group[0] for group in tied for name in group}
    return Specimen(mod, state, calls, options, [first.get(name, name) for name in weights])


def _weights_of(program: torch.export.ExportedProgram) -> list[str]:
    """What the module's parameters are called in the model, in their order."""
    kinds = torch.export.graph_signature.InputKind
    specs = program.graph_signature.input_specs
    return [one.target for one in specs if one.kind is kinds.PARAMETER]


def _tied(model: nn.Module) -> list[list[str]]:
    """Names of one tensor."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def array_of(tensor: torch.Tensor) -> np.ndarray:
    """Numpy's view; of bfloat16 through its bits."""
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        import ml_dtypes

        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
