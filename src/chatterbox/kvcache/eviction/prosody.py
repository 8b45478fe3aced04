"""Where phrases begin and end stays, as far as tokens tell: the tokens on both sides of a change between silence and
speech. Owns: what counts as such a change. Does not know: pitch and energy, which tokens do not spell out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from chatterbox.kvcache.eviction.scorers import NO_TOKEN, Held, Scorer
from chatterbox.kvcache.eviction.silence import is_silent


@dataclass(frozen=True)
class Prosody(Scorer):
    """1 for both sides of a phrase boundary, 0 elsewhere.

    Neighbours count where their positions are neighbours. Both sides score alike, so that they stay or leave together,
    and a boundary that stayed is known as one the next time.
    """

    @property
    def wants_tokens(self) -> bool:
        return True

    def score(self, held: Held) -> Tensor:
        silent, spoken = is_silent(held.tokens, self.silent_tokens), held.tokens != NO_TOKEN
        adjacent = (held.positions[1:] - held.positions[:-1] == 1) & spoken[1:] & spoken[:-1]
        turn = (adjacent & (silent[1:] != silent[:-1])).float()  # between a place and the next
        return F.pad(turn, (1, 0)).maximum(F.pad(turn, (0, 1)))
