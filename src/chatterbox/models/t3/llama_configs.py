"""Upstream's import path of the backbones' sizes by name, with the names that transformers gives them."""

from __future__ import annotations

from typing import Any

from chatterbox.models.config import GPT2Config, LlamaConfig


def _llama(config: LlamaConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": 131072,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": {
            "factor": config.rope_factor,
            "high_freq_factor": config.rope_high_freq_factor,
            "low_freq_factor": config.rope_low_freq_factor,
            "original_max_position_embeddings": config.rope_original_len,
            "rope_type": "llama3",
        },
        "model_type": "llama",
    }


def _gpt2(config: GPT2Config) -> dict[str, Any]:
    return {
        "activation_function": "gelu_new",
        "n_ctx": config.max_positions,
        "n_embd": config.hidden_size,
        "hidden_size": config.hidden_size,
        "n_head": config.num_heads,
        "n_layer": config.num_layers,
        "n_positions": config.max_positions,
        "vocab_size": 50276,
        "layer_norm_epsilon": config.norm_eps,
        "model_type": "gpt2",
    }


LLAMA_520M_CONFIG_DICT = _llama(LlamaConfig())
GPT2_MEDIUM_CONFIG = _gpt2(GPT2Config())
LLAMA_CONFIGS = {"Llama_520M": LLAMA_520M_CONFIG_DICT, "GPT2_medium": GPT2_MEDIUM_CONFIG}
