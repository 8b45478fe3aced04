"""Stage `tokenizer`: audio to the speech tokens that the alignment names, frame by frame."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from chatterbox.models.config import S3TokenizerConfig
from chatterbox.models.s3tokenizer import S3_SR, S3Tokenizer
from tools.tiny_voice.loop import Schedule, Stage
from tools.tiny_voice.recordings import Recordings
from tools.tiny_voice.speech_tokens import DIGITS_PER_SYMBOL, NUM_SYMBOLS, SYMBOL_IDS, digits

SAMPLES_PER_CODE, FRAMES_PER_CODE = S3_SR // 25, 4
SHARPNESS = 3.0  # of the squared distance between eight read digits and a symbol's


class TokenizerBatch(NamedTuple):
    """Crops that begin on a speech token."""

    wav: Tensor  # (B, L) at 16 kHz
    lens: Tensor  # (B,) speech tokens
    symbols: Tensor  # (B, speech tokens, 2)


class TokenizerStage(Stage[TokenizerBatch]):
    name = "tokenizer"
    module: S3Tokenizer

    def __init__(
        self,
        config: S3TokenizerConfig,
        recordings: Recordings,
        held_out: Recordings,
        schedule: Schedule,
        *,
        batch: int = 12,
        crop_len: int = 100,
    ) -> None:
        self.recordings, self.held_out_recordings, self.schedule = recordings, held_out, schedule
        self.batch, self.crop_len = batch, crop_len
        self.module = S3Tokenizer(config=config)
        # (symbols in use, 4) digits -1, 0, 1
        self._targets = torch.from_numpy(digits(SYMBOL_IDS)[:, :DIGITS_PER_SYMBOL] - 1).float()
        self._rank = torch.full((NUM_SYMBOLS,), -1)
        self._rank[torch.from_numpy(SYMBOL_IDS)] = torch.arange(len(SYMBOL_IDS))

    def draw(self, rng: np.random.Generator, step: int) -> TokenizerBatch:
        return self._draw(self.recordings, rng)

    def held_out(self) -> Iterator[tuple[str, TokenizerBatch]]:
        rng = np.random.default_rng(1)
        for _ in range(6):
            yield "", self._draw(self.held_out_recordings, rng)

    def loss(self, batch: TokenizerBatch) -> tuple[Tensor, dict[str, float]]:
        device = batch.wav.device
        wavs = [wav[: SAMPLES_PER_CODE * n] for wav, n in zip(batch.wav, batch.lens.tolist(), strict=True)]
        mels = [self.module.log_mel_spectrogram(wav).T for wav in wavs]
        read, token_lens = self.module.digits(pad_sequence(mels, batch_first=True).mT, FRAMES_PER_CODE * batch.lens)
        valid = torch.arange(read.shape[1], device=device) < token_lens[:, None]
        halves = read.tanh().unflatten(-1, (2, DIGITS_PER_SYMBOL))  # (B, T, 2, 4)
        targets, rank = self._targets.to(device), self._rank.to(device)
        distance = (halves[..., None, :] - targets).square().sum(-1)  # (B, T, 2, symbols in use)
        logits, wanted = -SHARPNESS * distance[valid], rank[batch.symbols[:, : read.shape[1]][valid]]
        cross_entropy = F.cross_entropy(logits.flatten(0, 1), wanted.flatten())
        rounded = (halves[valid] * 0.999).round()
        right = (rounded == targets[wanted]).all(-1).float()
        return cross_entropy, {"symbol_accuracy": float(right.mean()), "code_accuracy": float(right.prod(-1).mean())}

    def _draw(self, source: Recordings, rng: np.random.Generator) -> TokenizerBatch:
        wavs, lens = [], []
        symbols = torch.zeros(self.batch, self.crop_len, 2, dtype=torch.long)
        for row in range(self.batch):
            index, speed = source.draw(rng)
            audio = torch.from_numpy(source.audio(index, speed, S3_SR) * float(rng.uniform(0.4, 1.4)))
            named = torch.from_numpy(source.symbols(index, speed)).view(-1, 2)
            total = min(len(named), len(audio) // SAMPLES_PER_CODE)
            start = int(rng.integers(max(1, total - self.crop_len + 1)))
            length = min(self.crop_len, total - start)
            wavs.append(audio[start * SAMPLES_PER_CODE : (start + length) * SAMPLES_PER_CODE])
            symbols[row, :length] = named[start : start + length]
            lens.append(length)
        return TokenizerBatch(pad_sequence(wavs, batch_first=True), torch.tensor(lens), symbols)
