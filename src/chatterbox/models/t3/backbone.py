"""Llama backbone of T3, with the published parameter names (``tfmr.layers.N.self_attn.q_proj.weight`` ...).

Owns: rotary positions, projections, gated MLP, the stack. Does not know: text, speech, sampling, or which cache policy
it runs on: `attention` appends to a `KVCache` and masks by the positions that come back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatterbox.kvcache.base import KVCache
from chatterbox.models.config import LlamaConfig
from chatterbox.models.linear import apply_linear
from chatterbox.models.shared_input import SharedInput
from chatterbox.models.t3 import batch_invariant as blocks
from chatterbox.models.t3.attention import HeadReader, Pass, attend, positions_of
from chatterbox.models.t3.transformers_call import Backbone, call
from chatterbox.models.t3.uncompiled import Layers, Uncompiled, share_notice


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


class RotaryPass(Pass):
    """A run over new positions, and the rotation that they give queries and keys."""

    def __init__(
        self,
        positions: Tensor,
        cos: Tensor,
        sin: Tensor,
        cache: KVCache | None,
        readers: Sequence[HeadReader],
        *,
        batch_invariant: bool = False,
    ) -> None:
        """``cos`` and ``sin``: (..., T, head_dim / 2) of the positions, (B, T) or (T,)."""
        super().__init__(positions, cache, readers, batch_invariant=batch_invariant)
        self.cos, self.sin = cos, sin


class Attention(Uncompiled, SharedInput):
    JOINED = ("q_proj", "k_proj", "v_proj")

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        inner = config.num_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, inner, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, inner, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, inner, bias=False)
        self.o_proj = nn.Linear(inner, config.hidden_size, bias=False)

    def forward(self, x: Tensor, run: RotaryPass, layer: int) -> Tensor:
        query, key, value = (  # (B, H, T, head_dim)
            part.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for part in run.rowwise(self.project, x)
        )
        query, key = rotate(query, run.cos, run.sin), rotate(key, run.cos, run.sin)
        return run.rowwise(partial(apply_linear, self.o_proj), attend(query, key, value, run, layer))


class GatedMLP(Uncompiled, SharedInput):
    JOINED = ("gate_proj", "up_proj")

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, run: Pass) -> Tensor:
        gate, up = run.rowwise(self.project, x)
        silu = blocks.silu if run.batch_invariant else F.silu
        return run.rowwise(partial(apply_linear, self.down_proj), silu(gate) * up)


class Layer(Uncompiled):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = GatedMLP(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)

    def forward(self, x: Tensor, run: RotaryPass, layer: int) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), run, layer)
        return x + self.mlp(self.post_attention_layernorm(x), run)


class LlamaBackbone(Backbone):
    """Embeddings in, hidden states after the final norm out."""

    rope_freqs: Tensor
    embed_tokens: nn.Module

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = Layers(Layer(config) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.register_buffer("rope_freqs", rope_frequencies(config), persistent=False)
        share_notice(self)

    def get_input_embeddings(self) -> nn.Module:
        """A table that the published files have, and T3 does not use: it embeds tokens itself."""
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embed_tokens = value

    def start(
        self,
        positions: Tensor,
        cache: KVCache | None = None,
        readers: Sequence[HeadReader] = (),
        *,
        batch_invariant: bool = False,
    ) -> RotaryPass:
        """A pass over absolute positions, (B, T) or (T,) where all rows have the same."""
        angles = positions[..., None].float() * self.rope_freqs.float()
        if positions.ndim == 2:
            angles = angles[:, None]  # (B, 1, T, head_dim / 2), the same for all heads
        dtype = self.norm.weight.dtype
        cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
        return RotaryPass(positions, cos, sin, cache, readers, batch_invariant=batch_invariant)

    def forward(
        self,
        embeds: Tensor | None = None,
        cache: KVCache | None = None,
        *,
        positions: Tensor | None = None,
        readers: Sequence[HeadReader] = (),
        batch_invariant: bool = False,
        **as_transformers: Any,
    ) -> Any:
        """Run the stack over new positions.

        Args:
            embeds: (B, T, hidden_size); they get the positions that follow the cache's content, or 0.. without one.
            cache: appended to, layer by layer; None computes attention over ``embeds`` alone.
            positions: (B, T), what the caller's own `KVCache.reserve` gave for the rows of ``embeds``; None reserves
                here, for all rows.
            readers: what wants to know where heads look.
            batch_invariant: give every position the bits that it gets alone (`chatterbox.models.t3.batch_invariant`).

        Returns:
            (B, T, hidden_size), after the final norm. Called with ``inputs_embeds`` instead, and other names that
            transformers has, what that returns: see `transformers_call.call`.
        """
        if embeds is None:
            return call(self, **as_transformers)
        if as_transformers:
            raise TypeError(f"{type(self).__name__} got an unexpected argument {min(as_transformers)!r}")
        positions = positions_of(embeds, cache) if positions is None else positions
        run = self.start(positions, cache, readers, batch_invariant=batch_invariant)
        return self._through(embeds, run)

    def _run(self, embeds: Tensor, cache: KVCache | None, inputs: list[Tensor] | None) -> Tensor:
        return self._through(embeds, self.start(positions_of(embeds, cache), cache), inputs)

    def _through(self, x: Tensor, run: RotaryPass, inputs: list[Tensor] | None = None) -> Tensor:
        """``inputs``: gets what enters each layer."""
        x = self._entering(x)
        for index, layer in enumerate(self.layers):
            if inputs is not None:
                inputs.append(x)
            x = self._through_layer(layer, x, run, index)
        return self.norm(x)
