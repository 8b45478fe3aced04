"""Silence leaves before speech. Owns: which tokens count as silence. Does not know: what they sound like."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from chatterbox.kvcache.eviction.scorers import Held, Scorer


def is_silent(tokens: Tensor, silent_tokens: tuple[int, ...]) -> Tensor:
    """Which of ``tokens`` are in ``silent_tokens``, bool, same shape."""
    return torch.isin(tokens, torch.tensor(silent_tokens, dtype=torch.long, device=tokens.device))


@dataclass(frozen=True)
class Silence(Scorer):
    """0 for a silent token, 1 for any other and for what stands for no token."""

    @property
    def wants_tokens(self) -> bool:
        return True

    def score(self, held: Held) -> Tensor:
        return (~is_silent(held.tokens, self.silent_tokens)).float()
