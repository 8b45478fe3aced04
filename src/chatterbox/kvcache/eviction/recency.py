"""The oldest leave first: what a sliding window does. Owns: that order. Does not know: tokens, attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from chatterbox.kvcache.eviction.scorers import Held, Scorer


@dataclass(frozen=True)
class Recency(Scorer):
    """Rank by age, 1 for the newest."""

    def score(self, held: Held) -> Tensor:
        num = len(held.positions)
        return torch.arange(1, num + 1, device=held.positions.device, dtype=torch.float32) / num
