"""Which of the tokens that T3 decodes S3Gen renders.

Owns: the clean-up of an utterance's tokens, while they are decoded and as a whole. Does not know: who decodes or
renders.
"""

from __future__ import annotations

import torch
from torch import Tensor

from chatterbox.engine.guards import guard_of
from chatterbox.models.config import NUM_SPEECH_TOKENS, START_SPEECH_TOKEN, T3Config
from chatterbox.models.s3gen.const import S3GEN_SIL
from chatterbox.models.s3tokenizer import drop_invalid_tokens


class SpeechTokenFilter:
    """What S3Gen can render of an utterance's tokens, as they are decoded."""

    def __init__(self, hp: T3Config, guard: str | None, *, streaming: bool) -> None:
        """``streaming``: `push` returns tokens as soon as they are certain; else `finish` returns all."""
        self._hp, self._guard = hp, guard_of(guard)
        self._num_held = hp.num_trailing_noise if streaming else None
        self._num_certain = 0
        self.decoded: list[int] = []
        self.kept: list[int] = []  # speech tokens of all that was decoded

    def push(self, token: int) -> list[int]:
        """Speech tokens that are certain now, in order."""
        self.decoded.append(token)
        if token < NUM_SPEECH_TOKENS:
            self.kept.append(token)
        if self._num_held is None:
            return []
        certain = self.kept[self._num_certain : max(self._num_certain, len(self.kept) - self._num_held)]
        self._num_certain += len(certain)
        return certain

    def finish(self) -> list[int]:
        """The speech tokens that are left, now that all is decoded, without what a guard saw repeated."""
        tokens = torch.tensor(self.decoded, dtype=torch.long)
        if self._guard is not None:
            tokens = self._guard.trim(tokens)
        speech_tokens = valid_speech_tokens(tokens, self._hp).tolist()
        if self.kept[: self._num_certain] == speech_tokens[: self._num_certain]:
            self.kept = speech_tokens
        rest = self.kept[self._num_certain :]
        if self.kept:
            rest += [S3GEN_SIL] * self._hp.num_trailing_silence
        return rest


def valid_speech_tokens(tokens: Tensor, hp: T3Config) -> Tensor:
    """What S3Gen can render of the decoded tokens (N,): the ids below 6561 between start and stop.

    One stray start token of a Llama model discards what was decoded before it, as upstream. On a second one upstream
    fails; here all speech tokens stay.
    """
    if hp.start_discards and int((tokens == START_SPEECH_TOKEN).sum()) <= 1:
        tokens = drop_invalid_tokens(tokens)
    speech_tokens = tokens[tokens < NUM_SPEECH_TOKENS]
    return speech_tokens[: max(1, len(speech_tokens) - hp.num_trailing_noise)]
