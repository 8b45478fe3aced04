"""Which of the tokens that T3 draws S3Gen renders.

Owns: the clean-up of an utterance's tokens, while they are drawn and as a whole. Does not know: who draws or renders.
"""

from __future__ import annotations

import torch
from torch import Tensor

from chatterbox.engine.guards import guard_of
from chatterbox.models.config import SPEECH_CODES, START_SPEECH_TOKEN, T3Config
from chatterbox.models.s3gen.const import S3GEN_SIL
from chatterbox.models.s3tokenizer import drop_invalid_tokens


class SpeechCodes:
    """What S3Gen can render of an utterance's tokens, as they are drawn."""

    def __init__(self, hp: T3Config, guard: str | None, *, at_once: bool) -> None:
        """``at_once``: nothing is certain before the end; then all is as if it had been looked at as a whole."""
        self._hp, self._guard = hp, guard_of(guard)
        self._num_held = None if at_once else hp.num_trailing_noise
        self._num_certain = 0
        self.drawn: list[int] = []
        self.kept: list[int] = []  # codes of all that was drawn

    def push(self, token: int) -> list[int]:
        """Codes that are certain now, in order."""
        self.drawn.append(token)
        if token < SPEECH_CODES:
            self.kept.append(token)
        if self._num_held is None:
            return []
        certain = self.kept[self._num_certain : max(self._num_certain, len(self.kept) - self._num_held)]
        self._num_certain += len(certain)
        return certain

    def finish(self) -> list[int]:
        """The codes that are left, now that all is drawn, without what a guard saw repeated and is unsaid."""
        tokens = torch.tensor(self.drawn, dtype=torch.long)
        if self._guard is not None:
            tokens = self._guard.trim(tokens)
        codes = valid_codes(tokens, self._hp).tolist()
        if self.kept[: self._num_certain] == codes[: self._num_certain]:
            self.kept = codes
        rest = self.kept[self._num_certain :]
        if self.kept:
            rest += [S3GEN_SIL] * self._hp.num_trailing_silence
        return rest


def valid_codes(tokens: Tensor, hp: T3Config) -> Tensor:
    """What S3Gen can render of the drawn tokens (N,): the ids below 6561 between start and stop.

    One stray start token of a Llama model discards what was drawn before it, as upstream. On a second one upstream
    fails; here all codes stay.
    """
    if hp.start_discards and int((tokens == START_SPEECH_TOKEN).sum()) <= 1:
        tokens = drop_invalid_tokens(tokens)
    codes = tokens[tokens < SPEECH_CODES]
    return codes[: max(1, len(codes) - hp.num_trailing_noise)]
