"""What the model has looked at stays: heavy hitters, after Zhang et al. 2023, "H2O: Heavy-Hitter Oracle for Efficient
Generative Inference of Large Language Models".

Owns: how much attention cached positions get from a query, and which layers are asked. Does not know: the attention of
the pass, beside which this is computed from cached keys; where sums are kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from chatterbox.kvcache.eviction.scorers import Held, Scorer


@dataclass(frozen=True)
class Attention(Scorer):
    """Attention summed since a position was written, 1 for the most of its row."""

    num_layers: int = 3  # whose attention counts, spread evenly over the stack

    def layers(self, num_layers: int) -> tuple[int, ...]:
        count = min(self.num_layers, num_layers)
        return tuple(sorted({(2 * i + 1) * num_layers // (2 * count) for i in range(count)}))

    def score(self, held: Held) -> Tensor:
        return held.mass / held.mass.max().clamp_min(torch.finfo(torch.float32).tiny)


def received(query: Tensor, keys: Tensor, reached: Tensor) -> Tensor:
    """Attention of one query per row, summed over heads.

    (rows, heads, head_dim), (rows, heads, kept, head_dim) and (rows, kept) bool, where it may look, to (rows, kept)
    float32.
    """
    logits = (keys @ query[..., None])[..., 0].float() * query.shape[-1] ** -0.5  # (rows, heads, kept)
    return logits.masked_fill(~reached[:, None], -torch.inf).softmax(-1).sum(1)
