"""Learned absolute positions, added to text and speech embeddings before the backbone."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LearnedPositionEmbeddings(nn.Module):
    def __init__(self, seq_len: int, model_dim: int, init: float = 0.02) -> None:
        super().__init__()
        self.emb = nn.Embedding(seq_len, model_dim)
        nn.init.normal_(self.emb.weight, std=init)

    def forward(self, x: Tensor) -> Tensor:
        """Positions 0 to T - 1 for a batch (B, T, ...) of ids or embeddings: (T, model_dim)."""
        return self.emb(torch.arange(x.shape[1], device=x.device))

    def get_fixed_embedding(self, idx: int | Tensor) -> Tensor:
        """Embedding of given positions: an int or (T,) gives (1, T, model_dim), (B, T) gives (B, T, model_dim)."""
        index = torch.as_tensor(idx, device=self.emb.weight.device)
        return self.emb(torch.atleast_2d(index))
