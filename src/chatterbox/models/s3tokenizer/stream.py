"""Speech tokens of a recording of any length while it is read.

Owns: the windows of one recording, one at a time, and how loud it has been so far. Does not know: files, what the
speech tokens are used for.
"""

from __future__ import annotations

import numpy as np
import torch

from chatterbox.models.s3tokenizer.encoder import FSQCodebook
from chatterbox.models.s3tokenizer.s3tokenizer import (
    FRAMES_PER_CODE,
    S3_HOP,
    S3_SR,
    WINDOW_FRAMES,
    WINDOW_OVERLAP,
    S3Tokenizer,
)

WINDOW_SECONDS = WINDOW_FRAMES * S3_HOP // S3_SR
_MARGIN = 2  # frames on either side whose samples a frame's spectrum sees
_HALF = WINDOW_OVERLAP // 2 // FRAMES_PER_CODE


def num_tokens(num_samples: int) -> int:
    """Speech tokens of a 16 kHz recording."""
    return -(-(num_samples // S3_HOP) // FRAMES_PER_CODE)


class SpeechTokenStream:
    """Speech tokens of one 16 kHz recording: `push` its samples, then `finish`.

    They come in the windows of `S3Tokenizer.quantize`, and are what that makes of the whole recording, but for one
    thing: a spectrogram is floored below the loudest frame so far, not below one that is still to come.
    """

    def __init__(self, tokenizer: S3Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._blocks: list[np.ndarray] = []  # from frame `_first` on
        self._num_samples = 0  # of those
        self._first = 0  # frame
        self._start = 0  # frame where the next window begins
        self._peak: torch.Tensor | None = None

    def push(self, wav: np.ndarray) -> list[int]:
        """Speech tokens of the windows that are known now that ``wav`` (n,) follows, maybe none."""
        self._blocks.append(wav)
        self._num_samples += len(wav)
        speech_tokens: list[int] = []
        while self._num_samples >= (self._start - self._first + WINDOW_FRAMES + _MARGIN) * S3_HOP:
            speech_tokens += self._window(is_last=False)
        return speech_tokens

    def finish(self) -> list[int]:
        """The rest of the recording's."""
        speech_tokens: list[int] = []
        while self._num_samples // S3_HOP > self._start - self._first + WINDOW_FRAMES:
            speech_tokens += self._window(is_last=False)
        return speech_tokens + self._window(is_last=True)

    @torch.inference_mode()
    def _window(self, *, is_last: bool) -> list[int]:
        wav = np.concatenate(self._blocks)
        end = len(wav) if is_last else (self._start - self._first + WINDOW_FRAMES + _MARGIN) * S3_HOP
        log_mel = self._tokenizer.log_spectrum(wav[:end])[:, self._start - self._first :][:, :WINDOW_FRAMES]
        self._peak = log_mel.amax() if self._peak is None else torch.maximum(self._peak, log_mel.amax())
        mel = self._tokenizer.floored(log_mel, self._peak)
        digits, _ = self._tokenizer.digits(mel[None], torch.tensor([mel.shape[1]], device=mel.device))
        speech_tokens: list[int] = FSQCodebook.tokens(digits)[0].tolist()
        is_first = not self._start
        self._start += WINDOW_FRAMES - WINDOW_OVERLAP
        first = self._start - _MARGIN
        self._blocks = [wav[(first - self._first) * S3_HOP :]]
        self._num_samples, self._first = len(self._blocks[0]), first
        return speech_tokens[0 if is_first else _HALF : None if is_last else -_HALF]
