"""Speaker embedding of whole recordings: an LSTM over overlapping windows of their mel spectrogram.

Owns: the network, the windows and their averaging. Does not know: files, nor what the embedding conditions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from chatterbox.audio.recordings import resample_hq, trim_silence
from chatterbox.models.config import VoiceEncoderConfig
from chatterbox.models.voice_encoder.melspec import melspectrogram
from chatterbox.upstream_names import names_of

__getattr__ = names_of(__name__)


class VoiceEncoder(nn.Module):
    """Generalised end-to-end speaker encoder (Wan et al. 2018). Embeddings have unit length and no negative entries.

    ``similarity_weight`` and ``similarity_bias`` belong to the training loss; checkpoints hold them.
    """

    def __init__(self, config: VoiceEncoderConfig = VoiceEncoderConfig()) -> None:
        super().__init__()
        self.config = config
        self.lstm = nn.LSTM(config.num_mels, config.hidden_size, config.num_layers, batch_first=True)
        self.proj = nn.Linear(config.hidden_size, config.embed_size)
        self.similarity_weight = nn.Parameter(torch.tensor([10.0]))
        self.similarity_bias = nn.Parameter(torch.tensor([-5.0]))

    @property
    def hp(self) -> VoiceEncoderConfig:
        """``config`` under upstream's name."""
        return self.config

    @property
    def device(self) -> torch.device:
        return self.proj.weight.device

    def forward(self, mels: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, embed_size) of windows (B, window_frames, num_mels)."""
        _, (hidden, _) = self.lstm(mels)
        return F.normalize(F.relu(self.proj(hidden[-1])), dim=1)

    def inference(
        self,
        mels: torch.Tensor,
        mel_lens: Sequence[int] | torch.Tensor,
        overlap: float = 0.5,
        rate: float | None = None,
        min_coverage: float | None = None,
        batch_size: int | None = None,
    ) -> torch.Tensor:
        """Embeddings (B, embed_size) of utterances (B, T, num_mels), differentiable, on the CPU.

        Windows follow each other ``rate`` times a second, or with ``overlap`` (a fraction) if that is None. A last,
        incomplete window counts when the utterance covers ``min_coverage`` of it.
        """
        step = self._window_step(overlap, rate)
        coverage = self.config.min_coverage if min_coverage is None else min_coverage
        windows = [self._windows(mel[:n], step, coverage) for mel, n in zip(mels, map(int, mel_lens), strict=True)]
        stacked = torch.cat(windows)  # (N, window_frames, num_mels)
        embeds = torch.cat([self(batch) for batch in stacked.split(batch_size or len(stacked))]).cpu()
        utterances = embeds.split([len(w) for w in windows])
        return F.normalize(torch.stack([utterance.mean(dim=0) for utterance in utterances]), dim=1)

    def embeds_from_mels(
        self,
        mels: torch.Tensor | list[np.ndarray] | list[torch.Tensor],
        mel_lens: Sequence[int] | None = None,
        as_spk: bool = False,
        batch_size: int = 32,
        **kwargs: Any,
    ) -> np.ndarray:
        """Embeddings (B, embed_size) of mel spectrograms, or one speaker embedding (embed_size,) with ``as_spk``.

        ``mels`` is (B, T, num_mels) with ``mel_lens`` (all of T if None), or a list of (T_i, num_mels). ``kwargs`` go
        to ``inference``.
        """
        if isinstance(mels, list):
            rows = [torch.as_tensor(mel, dtype=torch.float32) for mel in mels]
            if any(row.ndim != 2 or row.shape[1] != self.config.num_mels for row in rows):
                shapes = [tuple(row.shape) for row in rows]
                raise ValueError(f"mels must be (T, {self.config.num_mels}), got {shapes}; transpose them")
            mel_lens = [len(row) for row in rows]
            mels = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        if mel_lens is None:
            mel_lens = [mels.shape[1]] * len(mels)
        with torch.inference_mode():
            embeds = self.inference(mels.to(self.proj.weight), mel_lens, batch_size=batch_size, **kwargs)
        found = embeds.float().numpy()
        return self.utt_to_spk_embed(found) if as_spk else found

    def embeds_from_wavs(
        self,
        wavs: Sequence[np.ndarray],
        sample_rate: int,
        as_spk: bool = False,
        batch_size: int = 32,
        trim_top_db: float | None = 20,
        **kwargs: Any,
    ) -> np.ndarray:
        """Embeddings (B, embed_size) of mono float wavs, or one speaker embedding (embed_size,) with ``as_spk``.

        Silence ``trim_top_db`` below the loudest part is cut from both ends first. Other rates than the model's are
        resampled by soxr; upstream asks librosa for ``kaiser_fast`` there, which needs a package it does not declare.
        """
        kwargs.setdefault("rate", self.config.windows_per_second)
        mels = []
        for wav in wavs:
            samples = torch.from_numpy(resample_hq(np.asarray(wav, np.float32), sample_rate, self.config.sample_rate))
            if trim_top_db:
                samples, _ = trim_silence(samples, trim_top_db)
            mels.append(melspectrogram(samples, self.config).T)
        return self.embeds_from_mels(mels, as_spk=as_spk, batch_size=batch_size, **kwargs)

    @staticmethod
    def utt_to_spk_embed(utt_embeds: np.ndarray) -> np.ndarray:
        """Unit-length mean (E,) of utterance embeddings (B, E)."""
        mean = utt_embeds.mean(axis=0)
        return mean / np.linalg.norm(mean)

    @staticmethod
    def voice_similarity(embeds_x: np.ndarray, embeds_y: np.ndarray) -> float:
        """Cosine similarity of two speakers, each given as one embedding (E,) or as utterance embeddings (B, E)."""
        x, y = (e if e.ndim == 1 else VoiceEncoder.utt_to_spk_embed(e) for e in (embeds_x, embeds_y))
        return float(x @ y)

    def _window_step(self, overlap: float, rate: float | None) -> int:
        """Frames from one window to the next."""
        size = self.config.window_frames
        if rate is None:
            asked, step = f"overlap {overlap:g}", round(size * (1 - overlap))
        else:
            asked, step = f"rate {rate:g}", round(self.config.sample_rate / rate / self.config.hop_len)
        if not 0 < step <= size:
            raise ValueError(f"{asked} puts windows of {size} frames {step} frames apart; choose 1 to {size} frames")
        return step

    def _windows(self, mel: torch.Tensor, step: int, min_coverage: float) -> torch.Tensor:
        """(N, window_frames, num_mels) of (T, num_mels): zero-padded to, or cut at, the end of the last window."""
        size = self.config.window_frames
        count, rest = divmod(max(len(mel) - size + step, 0), step)
        if count == 0 or (rest + size - step) / size >= min_coverage:
            count += 1
        end = size + step * (count - 1)
        mel = F.pad(mel, (0, 0, 0, max(0, end - len(mel))))[:end]
        return mel.unfold(0, size, step).transpose(1, 2)
