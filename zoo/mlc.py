"""MLC-LLM's models, each small and in each of its quantisations, from a checkout."""

from __future__ import annotations

import contextlib
import copy
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tvm
from tvm import relax

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples" / "mlc_llm"))

from checkout import import_mlc_llm

__all__ = ["TARGET", "Exported", "entries"]

TARGET = {"kind": "llvm", "mcpu": "x86-64-v3", "mattr": ["-fma"]}

# What any of the models asks for; what one does not know it ignores.
_SMALL: dict[str, Any] = {
    "hidden_size": 256,
    "n_embd": 256,
    "intermediate_size": 512,
    "ffn_hidden_size": 512,
    "n_inner": 512,
    "moe_intermediate_size": 128,
    "shared_expert_intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_layers": 2,
    "n_layer": 2,
    "num_attention_heads": 4,
    "n_head": 4,
    "num_key_value_heads": 2,
    "multi_query_group_num": 2,
    "num_heads": 4,
    "head_dim": 64,
    "kv_channels": 64,
    "head_size": 64,
    "vocab_size": 1024,
    "padded_vocab_size": 1024,
    "context_window_size": 256,
    "prefill_chunk_size": 64,
    "max_position_embeddings": 256,
    "n_positions": 256,
    "seq_length": 256,
    "rms_norm_eps": 1e-5,
    "layer_norm_eps": 1e-5,
    "layer_norm_epsilon": 1e-5,
    "layernorm_epsilon": 1e-5,
    "norm_epsilon": 1e-5,
    "norm_eps": 1e-5,
    "hidden_act": "silu",
    "hidden_activation": "gelu_pytorch_tanh",
    "rope_theta": 10000,
    "position_embedding_base": 10000,
    "rotary_pct": 0.5,
    "rotary_dim": 32,
    "partial_rotary_factor": 0.5,
    "use_parallel_residual": True,
    "attention_bias": False,
    "use_bias": True,
    "use_qkv_bias": True,
    "use_cache": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "decoder_sparse_step": 1,
    "norm_topk_prob": True,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "routed_scaling_factor": 1.0,
    "scoring_func": "softmax",
    "topk_method": "greedy",
    "n_group": 1,
    "topk_group": 1,
    "kv_lora_rank": 64,
    "q_lora_rank": 64,
    "qk_rope_head_dim": 32,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "use_qk_norm": True,
    "interleave_moe_layer_step": 1,
    "medusa_num_heads": 2,
    "medusa_num_layers": 1,
    "model_type": "zoo",
    "scale_emb": 12,
    "scale_depth": 1.4,
    "dim_model_base": 256,
    "query_pre_attn_scalar": 64,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 4,
    "logit_scale": 0.1,
    "bias": False,
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "multi_query_attention": True,
    "scale_attn_weights": True,
    "rotary_emb_base": 10000,
    "initializer_range": 0.02,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
    "image_token_index": 1000,
    "post_layer_norm": True,
    "rmsnorm": True,
    "apply_query_key_layer_scaling": True,
    "activation_function": "gelu_new",
}

# What one of them wants otherwise.
_VISION = {
    "hidden_size": 128,
    "image_size": 56,
    "intermediate_size": 256,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "patch_size": 14,
    "projection_dim": 64,
    "vocab_size": 1024,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
_CHANGED: dict[str, dict[str, Any]] = {
    "llama4": {"moe_layers": [], "rope_scaling": _LLAMA3},
    "gemma3": {"sliding_window_size": 64},
    "gemma3_text": {"sliding_window_size": 64},
    "deepseek_v2": {"rope_scaling": {"factor": 1.0}},
    "deepseek_v3": {"rope_scaling": {"factor": 1.0}},
    "llava": {"vision_config": _VISION},
    "minicpm": {"num_experts": 0},
    "phi3_v": {"img_processor": {"image_dim_out": 1024, "num_img_tokens": 144}},
    "rwkv5": {"model_version": "5_2"},
}

# Its own config within: the language model's.
_NESTED = ("text_config", "language_config")


def _models() -> Any:
    """The registry of the checkout whose path is in the environment."""
    import_mlc_llm(os.environ["MLC_LLM"])
    import mlc_llm.model

    return mlc_llm.model.MODELS


def entries() -> dict[str, list[str]]:
    """Each model of the registry, and the quantisations that it says it supports."""
    models = _models()
    from mlc_llm.quantization import QUANTIZATION

    return {
        name: [one for one, how in QUANTIZATION.items() if how.kind in model.quantize]
        for name, model in models.items()
    }


@contextlib.contextmanager
def _unchecked() -> Iterator[None]:
    """Without TVM's check of a module that was exported."""
    check = relax.analysis.well_formed
    relax.analysis.well_formed = lambda *_: True
    try:
        yield
    finally:
        relax.analysis.well_formed = check


class Exported:
    """A model as MLC-LLM's compiler has it before its pipeline."""

    def __init__(self, name: str, quantisation: str, shards: int = 1):
        models = _models()
        from mlc_llm import op
        from mlc_llm.quantization import QUANTIZATION

        self.model, self.quantisation = models[name], copy.copy(QUANTIZATION[quantisation])
        config = {**_SMALL, "tensor_parallel_shards": shards, **_CHANGED.get(name, {})}
        config = copy.deepcopy({**config, **dict.fromkeys(_NESTED, config)})
        self.config = self.model.config.from_dict(config)
        self.target = tvm.target.Target(TARGET)
        with self.target:
            op.extern.enable(self.target, flashinfer=False, faster_transformer=False, cutlass=False)
            made, _ = self.model.quantize[self.quantisation.kind](self.config, self.quantisation)
            spec = made.get_default_spec()
            try:
                exported = made.export_tvm(spec=spec, allow_extern=True)
                self.runs = True
            except ValueError as error:
                if "FValidate" not in str(error):
                    raise
                # Kernels of its routers take their arguments in the order of MLC-LLM's own TVM.
                with _unchecked():
                    exported = made.export_tvm(spec=spec, allow_extern=True)
                self.runs = False
            self.mod, self.params, self.externs = exported
