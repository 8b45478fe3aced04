"""Who leaves a full cache first: scorers say what a position is worth, one shared pruner picks.

Owns: what scorers judge by, sums of scorers, the choice of who stays. Does not know: keys and values, which tokens mean
what, when a row is full.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

NO_TOKEN = -1  # of a position that stands for no decoded token


class Held(NamedTuple):
    """The positions that one row holds, ascending, each field (kept,)."""

    positions: Tensor
    tokens: Tensor  # the speech token that each stands for; NO_TOKEN where there is none or it is not known
    mass: Tensor  # attention that each got since it was written, summed over heads, layers and queries; float32


@dataclass(frozen=True)
class Scorer(abc.ABC):
    """What the positions of a row are worth. Immutable: one serves any number of caches and rows."""

    silent_tokens: tuple[int, ...] = ()  # speech tokens that are silence, for whoever asks

    @property
    def wants_tokens(self) -> bool:
        """Whether `Held.tokens` is looked at."""
        return False

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """The layers whose attention is to be summed up in `Held.mass`."""
        return ()

    @abc.abstractmethod
    def score(self, held: Held) -> Tensor:
        """(kept,) float32 from 0, leaves first, to 1. Device tensors alone, nothing that waits for them."""


@dataclass(frozen=True)
class Sum(Scorer):
    """Weighted sum of scorers."""

    parts: tuple[tuple[Scorer, float], ...] = ()

    @property
    def wants_tokens(self) -> bool:
        return any(part.wants_tokens for part, _ in self.parts)

    def layers(self, num_layers: int) -> tuple[int, ...]:
        return tuple(sorted({layer for part, _ in self.parts for layer in part.layers(num_layers)}))

    def score(self, held: Held) -> Tensor:
        return torch.stack([weight * part.score(held) for part, weight in self.parts]).sum(0)


def within(positions: Tensor, spans: tuple[range, ...]) -> Tensor:
    """Which positions (kept,) lie in one of ``spans``, bool."""
    inside = torch.zeros_like(positions, dtype=torch.bool)
    for span in spans:
        inside |= (positions >= span.start) & (positions < span.stop)
    return inside


def survivors(scores: Tensor, pinned: Tensor, num_recent: int, num_kept: int) -> Tensor:
    """The ``num_kept`` places that stay, ascending.

    All ``pinned`` stay, and the last ``num_recent``; then the highest scores, of equal ones the newest.

    Args:
        scores: (kept,), of places in the order of their positions.
        pinned: (kept,) bool. There are at most ``num_kept`` of them and the last together.
    """
    scores = scores.masked_fill(pinned, torch.inf)
    scores[len(scores) - num_recent :] = torch.inf
    newest_first = scores.flip(0).argsort(stable=True, descending=True)[:num_kept]
    return (len(scores) - 1 - newest_first).sort().values
