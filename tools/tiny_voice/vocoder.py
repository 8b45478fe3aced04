"""Stage `vocoder`: mel spectrogram to waveform, on short crops with true F0 for the excitation.

The loss is an energy distance of spectra (A. Gritsenko et al., https://arxiv.org/abs/2008.01160): two answers to the
same mel with other noise must each be near the recording, but not nearer to each other than to it. The first alone
would answer the median of noise, a pattern that repeats; together they are least for the right distribution. It needs
no adversary. Part of the mels are the flow's own for the same recording: smoother than true ones, and what inference
brings.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from chatterbox.audio.recordings import mel_filters
from chatterbox.models.config import HiFTConfig
from chatterbox.models.s3gen.hifigan import HiFTGenerator
from chatterbox.models.s3gen.mel import mel_spectrogram
from tools.tiny_voice.loop import Schedule, Stage
from tools.tiny_voice.recordings import Recordings
from tools.tiny_voice.tiny import NATURAL_SPEED

STFT_SIZES = (128, 256, 512, 1024)  # longer ones would have F0 truer than it is known
MAGNITUDE_FLOOR = 1e-3
LINEAR_WEIGHT = 0.5  # of relative linear magnitudes against a nat of log magnitude
MEL_FFT, MEL_HIGHEST = 1920, 8000.0  # of S3Gen's mel
MADE_SHARE = 0.8  # of the rows for which the flow's mel is known
LARGEST_NOISE = 0.1  # nats
CLEAR = -3.0  # logit of the share of noise before training
FIRST_ANSWER = 0.1  # of its usual scale: what the network adds to the mel's own envelope before training
F0_SCALE = 40.0  # Hz of error that cost as much as a nat of log magnitude


class VocoderBatch(NamedTuple):
    """Crops of recordings, and all of their mels, of which F0 costs little to learn."""

    wav: Tensor  # (B, frames * hop)
    mel: Tensor  # (B, 80, frames), as the vocoder will get it
    f0: Tensor  # (B, frames), true Hz
    whole_mel: Tensor  # (B, 80, longest)
    whole_f0: Tensor  # (B, longest), NaN behind the end


class VocoderStage(Stage[VocoderBatch]):
    name = "vocoder"
    module: HiFTGenerator

    def __init__(
        self,
        config: HiFTConfig,
        recordings: Recordings,
        held_out: Recordings,
        schedule: Schedule,
        *,
        made_mels: Mapping[int, Tensor] | None = None,
        batch: int = 4,
        crop_frames: int = 32,
    ) -> None:
        """``made_mels``: (80, frames) at natural speed by recording, see :func:`flow.resynthesize`."""
        self.made_mels = made_mels or {}
        self.recordings, self.held_out_recordings, self.schedule = recordings, held_out, schedule
        self.batch, self.crop_frames = batch, crop_frames
        self.module = HiFTGenerator(config)
        start_from_mel(self.module)

    def draw(self, rng: np.random.Generator, step: int) -> VocoderBatch:
        return self._draw(self.recordings, rng)

    def held_out(self) -> Iterator[tuple[str, VocoderBatch]]:
        rng = np.random.default_rng(1)
        for _ in range(4):
            yield "", self._draw(self.held_out_recordings, rng)

    def loss(self, batch: VocoderBatch) -> tuple[Tensor, dict[str, float]]:
        # Nobody knows where in its turn the voice was, so each answer begins anywhere.
        rows = [self.module.source(f0[None], turns=float(torch.rand(()))) for f0 in (*batch.f0, *batch.f0)]
        source = torch.cat(rows)
        answers = self.module.decode(torch.cat([batch.mel, batch.mel]), source)
        wanted, one, other = (spectra(wav) for wav in (batch.wav, *answers.chunk(2)))
        near = distance(one, wanted) + distance(other, wanted)
        apart = distance(one, other)
        known = ~batch.whole_f0.isnan()
        f0_error = (self.module.f0_predictor(batch.whole_mel) - batch.whole_f0)[known].abs().mean()
        loss = near - apart + f0_error / F0_SCALE
        figures = {"energy": near - apart, "distance": near / 2, "apart": apart, "f0_hz": f0_error}
        return loss, {key: float(value.detach()) for key, value in figures.items()}

    def _draw(self, source: Recordings, rng: np.random.Generator) -> VocoderBatch:
        hop, frames = self.module.config.hop_len, self.crop_frames
        wavs: list[Tensor] = []
        mels: list[Tensor] = []
        f0s: list[Tensor] = []
        whole: list[tuple[Tensor, Tensor]] = []
        while len(wavs) < self.batch:
            index, speed = source.draw(rng)
            audio = torch.from_numpy(source.audio(index, speed, self.module.config.sample_rate))
            mel = self._mel(source, index, speed, audio, rng)
            total = min(len(audio) // hop, mel.shape[1])
            if total < frames:
                continue
            start = int(rng.integers(total - frames + 1))
            gain = float(rng.uniform(0.5, 1.2))
            mel, f0 = mel[:, :total] + math.log(gain), torch.from_numpy(source.f0(index, speed, total))
            mels.append(mel[:, start : start + frames])
            wavs.append(gain * audio[start * hop : (start + frames) * hop])
            f0s.append(f0[start : start + frames])
            whole.append((mel, f0))
        longest = max(len(f0) for _, f0 in whole)
        whole_mels = torch.stack([F.pad(mel, (0, longest - mel.shape[1])) for mel, _ in whole])
        whole_f0s = torch.stack([F.pad(f0, (0, longest - len(f0)), value=math.nan) for _, f0 in whole])
        return VocoderBatch(torch.stack(wavs), torch.stack(mels), torch.stack(f0s), whole_mels, whole_f0s)

    def _mel(self, source: Recordings, index: int, speed: int, audio: Tensor, rng: np.random.Generator) -> Tensor:
        """Mel (80, frames) of a recording: the flow's where there is one, mostly, else the true one and some noise."""
        known = source is self.recordings and speed == NATURAL_SPEED and index in self.made_mels
        if known and rng.random() < MADE_SHARE:
            return self.made_mels[index].float()
        mel = mel_spectrogram(audio[None])[0]
        noise = torch.from_numpy(rng.standard_normal(mel.shape, dtype=np.float32))
        return mel + float(rng.uniform(0, LARGEST_NOISE)) * noise


@torch.no_grad()
def start_from_mel(vocoder: HiFTGenerator) -> None:
    """Let the filter be the mel's own envelope, with little noise, from the first step on."""
    config, envelope = vocoder.config, vocoder.envelope
    filters = mel_filters(config.sample_rate, MEL_FFT, config.num_mels, 0.0, MEL_HIGHEST).double().numpy()
    size = filters.sum(axis=1)
    centres = filters @ np.linspace(0, config.sample_rate / 2, filters.shape[1]) / size  # (mels,) Hz
    bins = np.linspace(0, config.sample_rate / 2, config.istft_n_fft // 2 + 1)
    weights = np.stack([np.interp(bins, centres, unit) for unit in np.eye(config.num_mels)], axis=1)  # (bins, mels)
    # The mel of noise of unit power: the window's norm times the mean magnitude of a complex normal number.
    unit_mel = np.log(size * np.sqrt(3 / 8 * MEL_FFT) * np.sqrt(np.pi) / 2)
    assert envelope.bias is not None
    envelope.weight.zero_()
    envelope.bias.zero_()
    envelope.weight[: len(bins), :, 0] = torch.from_numpy(weights)
    envelope.bias[: len(bins)] = torch.from_numpy(-weights @ unit_mel)
    envelope.bias[2 * len(bins) :] = CLEAR
    vocoder.conv_post.get_parameter("parametrizations.weight.original0").mul_(FIRST_ANSWER)


def spectra(wav: Tensor) -> list[Tensor]:
    """Magnitudes (B, F, T) of (B, N) waveforms at several resolutions."""
    found = []
    for size in STFT_SIZES:
        window = torch.hann_window(size, device=wav.device)
        spectrum = torch.stft(wav, size, size // 4, window=window, return_complex=True)
        found.append(torch.sqrt(spectrum.real**2 + spectrum.imag**2 + 1e-8))
    return found


def distance(ones: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """Mean over frames and resolutions of the distance of spectra, as vectors, in nats, and of linear magnitudes."""
    total = ones[0].new_zeros(())
    for a, b in zip(ones, others, strict=True):
        nats = a.clamp_min(MAGNITUDE_FLOOR).log() - b.clamp_min(MAGNITUDE_FLOOR).log()
        level = (a.detach().mean() + b.detach().mean()) / 2 + MAGNITUDE_FLOOR
        total = total + (nats.square().mean(1) + 1e-6).sqrt().mean() + LINEAR_WEIGHT * (a - b).abs().mean() / level
    return total / len(ones)
