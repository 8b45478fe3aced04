"""Perceiver: a speech prompt of any length becomes a fixed number of vectors.

One attention block is applied twice with the same weights: learned queries over the prompt, then over themselves.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatterbox.models.linear import apply_linear


class AttentionBlock(nn.Module):
    """Pre-norm attention with a residual on the queries; one norm serves both inputs."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(channels)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.proj_out = nn.Linear(channels, channels)

    def forward(self, queries: Tensor, memory: Tensor) -> Tensor:
        """(B, Q, C) attends to (B, M, C): (B, Q, C)."""

        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, H, T, C / H)

        normed_queries, normed_memory = self.norm(queries), self.norm(memory)
        mixed = F.scaled_dot_product_attention(
            heads(apply_linear(self.to_q, normed_queries)),
            heads(apply_linear(self.to_k, normed_memory)),
            heads(apply_linear(self.to_v, normed_memory)),
        )
        return queries + apply_linear(self.proj_out, mixed.transpose(1, 2).flatten(2))


class Perceiver(nn.Module):
    def __init__(self, num_queries: int = 32, channels: int = 1024, num_heads: int = 4) -> None:
        super().__init__()
        bound = 3.0**0.5 / num_queries**0.5
        self.pre_attention_query = nn.Parameter(torch.empty(1, num_queries, channels).uniform_(-bound, bound))
        self.attn = AttentionBlock(channels, num_heads)

    def forward(self, prompt: Tensor) -> Tensor:
        """Embedded prompt (B, T, channels) to (B, num_queries, channels)."""
        queries = self.pre_attention_query.expand(prompt.shape[0], -1, -1)
        summary = self.attn(queries, prompt)
        return self.attn(summary, summary)
