"""Stage `flow`: speech tokens and a prompt to mel spectrogram, by conditional flow matching."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from chatterbox.models.config import FlowConfig
from chatterbox.models.s3gen.const import S3GEN_SR
from chatterbox.models.s3gen.flow import FRAMES_PER_TOKEN, CausalMaskedDiffWithXvec
from chatterbox.models.s3gen.mel import mel_spectrogram
from tools.tiny_voice.loop import Schedule, Stage
from tools.tiny_voice.recordings import Recordings, SpeakerBank
from tools.tiny_voice.speech_tokens import NUM_SYMBOLS
from tools.tiny_voice.tables import factorize
from tools.tiny_voice.tiny import NATURAL_SPEED

UNCONDITIONAL_SHARE = 0.15  # where the model is guided
PROMPTED_SHARE = 0.6
LONGEST_PROMPT_SHARE = 0.5
START_SHARE = 0.8  # rows at time 0, where a solver of one step does its work
MISREAD_SHARE = 0.02  # speech tokens of a reference are recognised, not known


class FlowBatch(NamedTuple):
    """Crops of two recordings in a row, and everything that is drawn at random for them."""

    tokens: Tensor  # (B, T)
    lens: Tensor  # (B,)
    mel: Tensor  # (B, 80, 2T)
    cond: Tensor  # (B, 80, 2T), the mel where it is a prompt
    embedding: Tensor  # (B, D) x-vectors
    keep: Tensor  # (B, 1, 1), 0 where the row is unconditional
    time: Tensor  # (B,)
    noise: Tensor  # (B, 80, 2T)


class FlowStage(Stage[FlowBatch]):
    module: CausalMaskedDiffWithXvec

    def __init__(
        self,
        config: FlowConfig,
        recordings: Recordings,
        held_out: Recordings,
        speakers: SpeakerBank,
        schedule: Schedule,
        *,
        name: str = "flow",
        batch: int = 8,
        crop_tokens: int = 90,
    ) -> None:
        self.name = name
        self.recordings, self.held_out_recordings, self.speakers = recordings, held_out, speakers
        self.schedule, self.batch, self.crop_tokens = schedule, batch, crop_tokens
        self.module = CausalMaskedDiffWithXvec(config)
        factorize(self.module.input_embedding, std=0.5)

    def draw(self, rng: np.random.Generator, step: int) -> FlowBatch:
        return self._draw(self.recordings, rng, UNCONDITIONAL_SHARE if self.module.config.guidance_rate else 0.0)

    def held_out(self) -> Iterator[tuple[str, FlowBatch]]:
        rng = np.random.default_rng(1)
        for _ in range(6):
            yield "", self._draw(self.held_out_recordings, rng, 0.0)

    def loss(self, batch: FlowBatch) -> tuple[Tensor, dict[str, float]]:
        """The encoder's own mean mel, and the velocity of the straight path from noise to mel at a random time."""
        flow, mel, keep = self.module, batch.mel, batch.keep
        mu, mask = flow.encode(batch.tokens, batch.lens)
        assert mask is not None  # as lengths are given
        prior = masked_mean((mu - mel).abs(), mask)
        spks = flow.embed_speaker(batch.embedding)
        t = batch.time[:, None, None]
        x = (1 - t) * batch.noise + t * mel
        predicted = flow.decoder.estimator(x, mask, mu * keep, batch.time, spks * keep[..., 0], batch.cond * keep)
        error = predicted - (mel - batch.noise)
        # From noise the velocity is the mean of what may come; without it the answer is one, and the median is it.
        velocity_error = masked_mean(error.square() if flow.config.noise_temperature else error.abs(), mask)
        figures = {"prior": float(prior.detach()), "velocity": float(velocity_error.detach())}
        return velocity_error + prior, figures

    def _draw(self, source: Recordings, rng: np.random.Generator, unconditional_share: float) -> FlowBatch:
        config, size = self.module.config, self.crop_tokens
        tokens = torch.zeros(self.batch, size, dtype=torch.long)
        mel = torch.zeros(self.batch, config.num_mels, FRAMES_PER_TOKEN * size)
        cond = torch.zeros_like(mel)
        lens, embeddings = [], []
        for row in range(self.batch):
            index, speed = source.draw(rng)
            voice = source.voice(index)
            other = source.by_voice[voice][int(rng.integers(len(source.by_voice[voice])))]
            # Two recordings in a row: a prompt and what is to be spoken, as at inference.
            pieces = [read(source, i, speed) for i in (other, index)]
            speech_tokens, spectrum = (torch.cat(parts, -1) for parts in zip(*pieces, strict=True))
            wrong = torch.from_numpy(rng.random(len(speech_tokens)) < MISREAD_SHARE)
            speech_tokens = torch.where(
                wrong, torch.from_numpy(rng.integers(0, NUM_SYMBOLS**2, len(speech_tokens))), speech_tokens
            )
            start = int(rng.integers(max(1, len(speech_tokens) - size + 1)))
            length = min(size, len(speech_tokens) - start)
            tokens[row, :length] = speech_tokens[start : start + length]
            frames = slice(FRAMES_PER_TOKEN * start, FRAMES_PER_TOKEN * (start + length))
            mel[row, :, : FRAMES_PER_TOKEN * length] = spectrum[:, frames]
            if rng.random() < PROMPTED_SHARE:
                known = int(rng.uniform(0, LONGEST_PROMPT_SHARE) * FRAMES_PER_TOKEN * length)
                cond[row, :, :known] = mel[row, :, :known]
            lens.append(length)
            embeddings.append(self.speakers.at(voice, speed, rng))
        longest = max(lens)
        mel, cond = mel[..., : FRAMES_PER_TOKEN * longest], cond[..., : FRAMES_PER_TOKEN * longest]
        # Dense where the solver's steps are short.
        time = 1 - torch.cos(torch.from_numpy(rng.random(self.batch)).float() * 0.5 * torch.pi)
        start_share = START_SHARE if config.num_steps == 1 else 0.0
        time[torch.from_numpy(rng.random(self.batch) < start_share)] = 0.0
        noise = config.noise_temperature * torch.from_numpy(rng.standard_normal(mel.shape, dtype=np.float32))
        keep = torch.from_numpy(rng.random(self.batch) >= unconditional_share).float()[:, None, None]
        return FlowBatch(tokens[:, :longest], torch.tensor(lens), mel, cond, torch.stack(embeddings), keep, time, noise)


@torch.inference_mode()
def resynthesize(
    flow: CausalMaskedDiffWithXvec, recordings: Recordings, speakers: SpeakerBank, indices: Iterable[int]
) -> dict[int, Tensor]:
    """Mels (80, frames) in half precision, by recording, as the flow speaks the speech tokens of ``indices``.

    Natural speed, each prompted with another recording of its voice.
    """
    rng = np.random.default_rng(2)
    made = {}
    for index in indices:
        voice = recordings.voice(index)
        prompt = recordings.by_voice[voice][int(rng.integers(len(recordings.by_voice[voice])))]
        prompt_tokens, prompt_mel = read(recordings, prompt, NATURAL_SPEED)
        speech_tokens = recordings.speech_tokens(index, NATURAL_SPEED)[None]
        embedding = speakers.at(voice, NATURAL_SPEED, rng)
        mel, _ = flow.inference(
            speech_tokens, None, prompt_tokens[None], None, prompt_mel.T[None], None, embedding, True
        )
        made[index] = mel[0].half()
    return made


def read(source: Recordings, index: int, speed: int) -> tuple[Tensor, Tensor]:
    """Speech tokens (T,) and mel (80, 2T) of one recording."""
    speech_tokens = source.speech_tokens(index, speed)
    spectrum = mel_spectrogram(torch.from_numpy(source.audio(index, speed, S3GEN_SR))[None])[0]
    total = min(len(speech_tokens), spectrum.shape[1] // FRAMES_PER_TOKEN)
    return speech_tokens[:total], spectrum[:, : FRAMES_PER_TOKEN * total]


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of (B, C, T) over the frames where ``mask`` (B, 1, T) is 1."""
    return (x * mask).sum() / (mask.sum() * x.shape[1])
