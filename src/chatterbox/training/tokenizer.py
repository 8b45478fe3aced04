"""Stage `tokenizer`: audio to the speech codes that the alignment names, frame by frame."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from chatterbox.config import S3TokenizerConfig
from chatterbox.models.s3tokenizer import S3_SR, S3Tokenizer
from chatterbox.training.codes import DIGITS_PER_SYMBOL, NUM_SYMBOLS, SYMBOL_IDS, digits
from chatterbox.training.loop import Schedule, Stage, held_out_figures
from chatterbox.training.recordings import Recordings

SHARPNESS = 3.0  # of the squared distance between eight read digits and a symbol's


class TokenizerStage(Stage):
    name = "tokenizer"

    def __init__(
        self,
        config: S3TokenizerConfig,
        recordings: Recordings,
        held_out: Recordings,
        schedule: Schedule,
        *,
        batch: int = 12,
        crop_codes: int = 100,
    ) -> None:
        self.recordings, self.held_out, self.schedule = recordings, held_out, schedule
        self.batch, self.crop_codes = batch, crop_codes
        self.module = S3Tokenizer(config=config)
        # (symbols in use, 4) digits -1, 0, 1
        self._targets = torch.from_numpy(digits(SYMBOL_IDS)[:, :DIGITS_PER_SYMBOL] - 1).float()
        self._rank = torch.full((NUM_SYMBOLS,), -1)
        self._rank[torch.from_numpy(SYMBOL_IDS)] = torch.arange(len(SYMBOL_IDS))

    def loss(self, rng: np.random.Generator, step: int) -> tuple[Tensor, dict[str, float]]:
        return self._batch_loss(self.recordings, rng)

    def validate(self) -> dict[str, float]:
        return held_out_figures(lambda rng: self._batch_loss(self.held_out, rng), num_batches=6)

    def _batch_loss(self, source: Recordings, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        mels, lens, symbols = self._draw(source, rng)
        read, code_lens = self.module.digits(mels, lens)
        valid = torch.arange(read.shape[1]) < code_lens[:, None]
        halves = read.tanh().unflatten(-1, (2, DIGITS_PER_SYMBOL))  # (B, T, 2, 4)
        distance = (halves[..., None, :] - self._targets).square().sum(-1)  # (B, T, 2, symbols in use)
        logits, wanted = -SHARPNESS * distance[valid], self._rank[symbols[:, : read.shape[1]][valid]]
        cross_entropy = F.cross_entropy(logits.flatten(0, 1), wanted.flatten())
        rounded = (halves[valid] * 0.999).round()
        right = (rounded == self._targets[wanted]).all(-1).float()
        return cross_entropy, {"symbol_accuracy": float(right.mean()), "code_accuracy": float(right.prod(-1).mean())}

    def _draw(self, source: Recordings, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Log-mels (B, 128, T), their lengths (B,) and symbols (B, codes, 2) of crops that begin on a code."""
        samples_per_code, frames_per_code = S3_SR // 25, 4
        mels, lens = [], []
        symbols = torch.zeros(self.batch, self.crop_codes, 2, dtype=torch.long)
        for row in range(self.batch):
            index, speed = source.draw(rng)
            audio = torch.from_numpy(source.audio(index, speed, S3_SR) * float(rng.uniform(0.4, 1.4)))
            named = torch.from_numpy(source.symbols(index, speed)).view(-1, 2)
            total = min(len(named), len(audio) // samples_per_code)
            start = int(rng.integers(max(1, total - self.crop_codes + 1)))
            length = min(self.crop_codes, total - start)
            mels.append(
                self.module.log_mel_spectrogram(audio[start * samples_per_code : (start + length) * samples_per_code])
            )
            symbols[row, :length] = named[start : start + length]
            lens.append(frames_per_code * length)
        padded = torch.nn.utils.rnn.pad_sequence([m.T for m in mels], batch_first=True).transpose(1, 2)
        return padded, torch.tensor(lens), symbols
