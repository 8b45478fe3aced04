"""Which speech tokens of a model are silence, measured from the energy of what they sound like.

Owns: levels of token frames, and when a token counts as silent. Does not know: what the answer is for; a configuration
keeps it (`T3Config.silent_speech_tokens`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

TOKEN_RATE = 25  # a second
BELOW_DB = -40.0  # under the loudest frame of an utterance
MIN_COUNT = 5  # rarer tokens are not judged
MIN_SHARE = 0.9  # of a token's frames


def frame_levels(audio: Tensor, sample_rate: int, num_tokens: int) -> Tensor:
    """Level of each token's frame, (num_tokens,), in dB under the loudest; what ``audio`` (N,) lacks is silence."""
    frame_len = sample_rate // TOKEN_RATE
    padded = torch.zeros(num_tokens * frame_len)
    padded[: min(len(audio), len(padded))] = audio[: len(padded)].float()
    energy = padded.reshape(num_tokens, frame_len).square().mean(1)
    return 10.0 * torch.log10((energy / energy.max().clamp_min(1e-12)).clamp_min(1e-12))


def silent_tokens(utterances: Iterable[tuple[Tensor, Tensor, int]]) -> tuple[int, ...]:
    """Tokens that are silence wherever they stand, ascending.

    Args:
        utterances: speech tokens (T,), the audio (N,) that they stand for, and its sample rate in Hz.
    """
    levels: dict[int, list[float]] = defaultdict(list)
    for speech_tokens, audio, sample_rate in utterances:
        heard = frame_levels(audio, sample_rate, len(speech_tokens)).tolist()
        for token, level in zip(speech_tokens.tolist(), heard, strict=True):
            levels[token].append(level)
    return tuple(
        sorted(
            token
            for token, found in levels.items()
            if len(found) >= MIN_COUNT and sum(level < BELOW_DB for level in found) >= MIN_SHARE * len(found)
        )
    )
