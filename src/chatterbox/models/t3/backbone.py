"""Llama backbone of T3, with the published parameter names (``tfmr.layers.N.self_attn.q_proj.weight`` ...).

Owns: rotary positions, attention, gated MLP, the stack. Does not know: text, speech, sampling, or which cache policy
it runs on: it appends to a `KVCache` and masks by the positions that come back.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatterbox.config import LlamaConfig
from chatterbox.kvcache.base import KVCache, position_mask


def rope_frequencies(config: LlamaConfig) -> Tensor:
    """Angular frequency of each rotated pair with "llama3" scaling, (head_dim / 2,), radians per position."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponents
    wavelengths = 2 * math.pi / frequencies
    turns = config.rope_original_len / wavelengths
    # 0 below the low-frequency bound (fully slowed down), 1 above the high-frequency bound (untouched).
    blend = (turns - config.rope_low_freq_factor) / (config.rope_high_freq_factor - config.rope_low_freq_factor)
    blend = blend.clamp(0.0, 1.0)
    return (1 - blend) * frequencies / config.rope_factor + blend * frequencies


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary embedding to (B, H, T, head_dim); pairs are (k, k + head_dim / 2)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class Attention(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        inner = config.num_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, inner, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, inner, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, inner, bias=False)
        self.o_proj = nn.Linear(inner, config.hidden_size, bias=False)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)  # (B, H, T, head_dim)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, layer: int, cache: KVCache | None
    ) -> Tensor:
        query = rotate(self._heads(self.q_proj(x)), cos, sin)
        key = rotate(self._heads(self.k_proj(x)), cos, sin)
        value = self._heads(self.v_proj(x))
        if cache is None:
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        else:
            key, value, key_positions = cache.append(layer, key, value)
            # One new position may look at everything that is kept.
            mask = None if x.shape[1] == 1 else position_mask(positions, key_positions)
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class GatedMLP(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = GatedMLP(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, layer: int, cache: KVCache | None
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, positions, layer, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class LlamaBackbone(nn.Module):
    """Embeddings in, hidden states after the final norm out."""

    rope_freqs: Tensor

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.register_buffer("rope_freqs", rope_frequencies(config), persistent=False)

    def rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines, (T, head_dim / 2), of absolute positions (T,)."""
        angles = positions[:, None].float() * self.rope_freqs.float()
        dtype = self.norm.weight.dtype
        return angles.cos().to(dtype), angles.sin().to(dtype)

    def forward(self, embeds: Tensor, cache: KVCache | None = None) -> Tensor:
        """Run the stack over new positions.

        Args:
            embeds: (B, T, hidden_size); they get the positions that follow the cache's content, or 0.. without one.
            cache: appended to, layer by layer; None computes attention over ``embeds`` alone.

        Returns:
            (B, T, hidden_size), after the final norm.
        """
        start = 0 if cache is None else cache.length
        positions = torch.arange(start, start + embeds.shape[1], device=embeds.device)
        cos, sin = self.rotary(positions)
        x = embeds
        for index, layer in enumerate(self.layers):
            x = layer(x, cos, sin, positions, index, cache)
        return self.norm(x)
