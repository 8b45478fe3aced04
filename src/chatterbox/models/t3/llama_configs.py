"""The backbones' sizes by name, under upstream's import path and with the names that transformers gives them.

Owns: the table, which a program may change or add to, and what an entry of it means here. Does not know: how a backbone
computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chatterbox.models.config import GPT2Config, LlamaConfig


def named_as_in_transformers(config: LlamaConfig | GPT2Config) -> dict[str, Any]:
    """Sizes of a backbone as a configuration of transformers spells them."""
    return _gpt2(config) if isinstance(config, GPT2Config) else _llama(config)


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
        "n_inner": config.intermediate_size,
        "n_positions": config.max_positions,
        "vocab_size": 50276,
        "layer_norm_epsilon": config.norm_eps,
        "model_type": "gpt2",
    }


LLAMA_520M_CONFIG_DICT = _llama(LlamaConfig())
GPT2_MEDIUM_CONFIG = _gpt2(GPT2Config())
LLAMA_CONFIGS: dict[str, dict[str, Any]] = {
    "Llama_520M": LLAMA_520M_CONFIG_DICT,
    "GPT2_medium": GPT2_MEDIUM_CONFIG,
}
PUBLISHED: dict[str, LlamaConfig | GPT2Config] = {"Llama_520M": LlamaConfig(), "GPT2_medium": GPT2Config()}

_ALWAYS = {
    "model_type": ("llama", "gpt2"),
    "hidden_act": ("silu",),
    "activation_function": ("gelu_new",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
}


def backbone_named(name: str) -> LlamaConfig | GPT2Config:
    """What the table says under ``name`` now.

    Raises:
        ValueError: no such name, or an entry that lacks a size or asks for what the backbones do not have.
    """
    if name not in LLAMA_CONFIGS:
        raise ValueError(f"llama_config_name must be one of {', '.join(LLAMA_CONFIGS)}, got {name!r}")
    entry = LLAMA_CONFIGS[name]
    for key, supported in _ALWAYS.items():
        if key in entry and entry[key] not in supported:
            words = " or ".join(map(repr, supported))
            raise ValueError(f"LLAMA_CONFIGS[{name!r}][{key!r}] must be {words}, got {entry[key]!r}")
    try:
        return _gpt2_of(entry) if entry.get("model_type") == "gpt2" else _llama_of(name, entry)
    except KeyError as error:
        raise ValueError(f"LLAMA_CONFIGS[{name!r}] lacks {error.args[0]!r}; set it") from None


def _llama_of(name: str, entry: Mapping[str, Any]) -> LlamaConfig:
    heads, rope = entry["num_attention_heads"], entry["rope_scaling"]
    if (shared := entry.get("num_key_value_heads", heads)) != heads:
        raise ValueError(f"LLAMA_CONFIGS[{name!r}]['num_key_value_heads'] must be {heads}, as heads, got {shared!r}")
    if not isinstance(rope, Mapping) or rope.get("rope_type", "llama3") != "llama3":
        raise ValueError(f"LLAMA_CONFIGS[{name!r}]['rope_scaling'] must be of rope_type 'llama3', got {rope!r}")
    return LlamaConfig(
        num_layers=entry["num_hidden_layers"],
        hidden_size=entry["hidden_size"],
        num_heads=heads,
        head_dim=entry.get("head_dim") or entry["hidden_size"] // heads,
        intermediate_size=entry["intermediate_size"],
        vocab_size=entry["vocab_size"],
        norm_eps=entry["rms_norm_eps"],
        rope_theta=entry["rope_theta"],
        rope_factor=rope["factor"],
        rope_low_freq_factor=rope["low_freq_factor"],
        rope_high_freq_factor=rope["high_freq_factor"],
        rope_original_len=rope["original_max_position_embeddings"],
    )


def _gpt2_of(entry: Mapping[str, Any]) -> GPT2Config:
    width = entry["hidden_size"] if "hidden_size" in entry else entry["n_embd"]
    return GPT2Config(
        num_layers=entry["n_layer"],
        hidden_size=width,
        num_heads=entry["n_head"],
        head_dim=width // entry["n_head"],
        intermediate_size=entry.get("n_inner") or 4 * width,
        max_positions=entry["n_positions"],
        norm_eps=entry["layer_norm_epsilon"],
    )
