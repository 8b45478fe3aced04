"""The light guard, every model's default: ends what repeats itself, runs away or says nothing.

Owns: its rules and their numbers. Does not know: attention, sampling. An utterance in which it does not act has the
tokens that the same seed gives without it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from chatterbox.engine.guards.guard import Guard
from chatterbox.models.config import STOP_SPEECH_TOKEN, T3Config

# An utterance whose last 64 tokens (2.56 s) repeat a pattern of at most 16 (0.64 s) says nothing more: speech never
# repeats itself to the speech token, and no pause of one speech token is as long.
WINDOW = 64
MAX_PERIOD = 16
# 0.2 s: shorter than any word. The stop token is not heard before.
MIN_TOKENS = 5
# 4 s for pauses, on top of what `T3Config.max_speech_per_text_token` allows.
SLACK = 100


@dataclass
class LightGuard(Guard):
    """`Guard` of repetition, length and emptiness."""

    history: Tensor  # (N, MAX_PERIOD), the tokens before the last, newest first, -1 where there was none
    matches: Tensor  # (N, MAX_PERIOD), for each period, how many tokens in a row equal the one a period before
    enough: Tensor  # (N, MAX_PERIOD), so many are a whole window's

    @classmethod
    def max_tokens(cls, hp: T3Config, text_len: int) -> int:
        return SLACK + hp.max_speech_per_text_token * text_len

    @classmethod
    def trim(cls, tokens: Tensor) -> Tensor:
        """Without the repetition that they end in, but for its first period."""
        decoded = tokens.tolist()
        if decoded and decoded[-1] == STOP_SPEECH_TOKEN:
            decoded.pop()
        for period in range(1, MAX_PERIOD + 1):
            first = len(decoded) - 1
            while first >= period and decoded[first] == decoded[first - period]:
                first -= 1
            if len(decoded) - 1 - first >= WINDOW - period:
                return tokens[: first + 1]
        return tokens

    @classmethod
    def start(cls, text_start: int, text_len: int, device: torch.device | str = "cpu") -> LightGuard:
        periods = torch.arange(1, MAX_PERIOD + 1, device=device)[None]
        return cls(
            places=torch.zeros(1, dtype=torch.long, device=device),
            history=torch.full_like(periods, -1),
            matches=torch.zeros_like(periods),
            enough=WINDOW - periods,
        )

    def look(self, last: Tensor, num_decoded: Tensor) -> tuple[Tensor, Tensor]:
        self.matches.add_(1).mul_(self.history == last)
        self.history.copy_(torch.cat([last, self.history[:, :-1]], dim=1))
        return num_decoded < MIN_TOKENS, (self.matches >= self.enough).any(1, keepdim=True)
