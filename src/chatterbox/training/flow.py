"""Stage `flow`: speech codes and a prompt to mel spectrogram, by conditional flow matching."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from chatterbox.config import FlowConfig
from chatterbox.models.s3gen.const import S3GEN_SR
from chatterbox.models.s3gen.flow import FRAMES_PER_TOKEN, CausalMaskedDiffWithXvec
from chatterbox.models.s3gen.mel import mel_spectrogram
from chatterbox.training.codes import NUM_SYMBOLS
from chatterbox.training.loop import Schedule, Stage, held_out_figures
from chatterbox.training.recordings import Recordings, SpeakerBank
from chatterbox.training.tables import factorize
from chatterbox.training.tiny import NATURAL_SPEED

UNCONDITIONAL_SHARE = 0.15  # where the model is guided
PROMPTED_SHARE = 0.6
LONGEST_PROMPT_SHARE = 0.5
MISREAD_SHARE = 0.02  # codes of a reference are recognised, not known


class FlowStage(Stage):
    name = "flow"

    def __init__(
        self,
        config: FlowConfig,
        recordings: Recordings,
        held_out: Recordings,
        speakers: SpeakerBank,
        schedule: Schedule,
        *,
        batch: int = 8,
        crop_tokens: int = 90,
    ) -> None:
        self.recordings, self.held_out, self.speakers = recordings, held_out, speakers
        self.schedule, self.batch, self.crop_tokens = schedule, batch, crop_tokens
        self.module = CausalMaskedDiffWithXvec(config)
        factorize(self.module.input_embedding, std=0.5)

    def loss(self, rng: np.random.Generator, step: int) -> tuple[Tensor, dict[str, float]]:
        return self._batch_loss(self.recordings, rng, dropout=True)

    def validate(self) -> dict[str, float]:
        return held_out_figures(lambda rng: self._batch_loss(self.held_out, rng, dropout=False), num_batches=6)

    def _batch_loss(
        self, source: Recordings, rng: np.random.Generator, *, dropout: bool
    ) -> tuple[Tensor, dict[str, float]]:
        tokens, lens, mel, embedding = self._draw(source, rng)
        flow = self.module
        mu, mask = flow.encode(tokens, lens)
        if mask is None:
            mask = torch.ones(len(tokens), 1, mel.shape[2])
        prior = masked_mean((mu - mel).abs(), mask)
        cond = self._prompt(mel, lens, rng)
        spks = flow.embed_speaker(embedding)
        unconditional_share = UNCONDITIONAL_SHARE if dropout and flow.config.guidance_rate else 0.0
        keep = torch.from_numpy(rng.random(len(tokens)) >= unconditional_share).float()[:, None, None]
        velocity_error = self._velocity_error(mel, mask, mu * keep, spks * keep[..., 0], cond * keep, rng)
        figures = {"prior": float(prior.detach()), "velocity": float(velocity_error.detach())}
        return velocity_error + prior, figures

    def _velocity_error(
        self, mel: Tensor, mask: Tensor, mu: Tensor, spks: Tensor, cond: Tensor, rng: np.random.Generator
    ) -> Tensor:
        """Mean squared error of the straight path's velocity at a random time, dense where solver steps are short."""
        time = 1 - torch.cos(torch.from_numpy(rng.random(len(mel))).float() * 0.5 * torch.pi)
        noise = torch.from_numpy(rng.standard_normal(mel.shape, dtype=np.float32))
        noise = self.module.config.noise_temperature * noise
        t = time[:, None, None]
        predicted = self.module.decoder.estimator((1 - t) * noise + t * mel, mask, mu, time, spks, cond)
        return masked_mean((predicted - (mel - noise)) ** 2, mask)

    def _prompt(self, mel: Tensor, lens: Tensor, rng: np.random.Generator) -> Tensor:
        cond = torch.zeros_like(mel)
        for row, length in enumerate((lens * FRAMES_PER_TOKEN).tolist()):
            if rng.random() < PROMPTED_SHARE:
                known = int(rng.uniform(0, LONGEST_PROMPT_SHARE) * length)
                cond[row, :, :known] = mel[row, :, :known]
        return cond

    def _draw(self, source: Recordings, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Tokens (B, T), lengths (B,), mel (B, 80, 2T) and x-vectors (B, D) of crops."""
        size = self.crop_tokens
        tokens = torch.zeros(self.batch, size, dtype=torch.long)
        mel = torch.zeros(self.batch, self.module.config.num_mels, FRAMES_PER_TOKEN * size)
        lens, embeddings = [], []
        for row in range(self.batch):
            index, speed = source.draw(rng)
            voice = source.voice(index)
            other = source.by_voice[voice][int(rng.integers(len(source.by_voice[voice])))]
            # Two recordings in a row: a prompt and what is to be spoken, as at inference.
            pieces = [read(source, i, speed) for i in (other, index)]
            codes, spectrum = (torch.cat(parts, -1) for parts in zip(*pieces, strict=True))
            wrong = torch.from_numpy(rng.random(len(codes)) < MISREAD_SHARE)
            codes = torch.where(wrong, torch.from_numpy(rng.integers(0, NUM_SYMBOLS**2, len(codes))), codes)
            start = int(rng.integers(max(1, len(codes) - size + 1)))
            length = min(size, len(codes) - start)
            tokens[row, :length] = codes[start : start + length]
            frames = slice(FRAMES_PER_TOKEN * start, FRAMES_PER_TOKEN * (start + length))
            mel[row, :, : FRAMES_PER_TOKEN * length] = spectrum[:, frames]
            lens.append(length)
            embeddings.append(self.speakers.at(voice, speed, rng))
        longest = max(lens)
        return tokens[:, :longest], torch.tensor(lens), mel[..., : FRAMES_PER_TOKEN * longest], torch.stack(embeddings)


@torch.inference_mode()
def resynthesize(
    flow: CausalMaskedDiffWithXvec, recordings: Recordings, speakers: SpeakerBank, count: int
) -> list[Tensor]:
    """Mels (80, frames) in half precision of the first ``count`` recordings as the flow speaks their codes.

    Natural speed, each prompted with another recording of its voice.
    """
    rng = np.random.default_rng(2)
    made = []
    for index in range(count):
        voice = recordings.voice(index)
        prompt = recordings.by_voice[voice][int(rng.integers(len(recordings.by_voice[voice])))]
        prompt_codes, prompt_mel = read(recordings, prompt, NATURAL_SPEED)
        codes = recordings.codes(index, NATURAL_SPEED)[None]
        embedding = speakers.at(voice, NATURAL_SPEED, rng)
        mel, _ = flow.inference(codes, None, prompt_codes[None], None, prompt_mel.T[None], None, embedding, True)
        made.append(mel[0].half())
    return made


def read(source: Recordings, index: int, speed: int) -> tuple[Tensor, Tensor]:
    """Codes (T,) and mel (80, 2T) of one recording."""
    codes = source.codes(index, speed)
    spectrum = mel_spectrogram(torch.from_numpy(source.audio(index, speed, S3GEN_SR))[None])[0]
    total = min(len(codes), spectrum.shape[1] // FRAMES_PER_TOKEN)
    return codes[:total], spectrum[:, : FRAMES_PER_TOKEN * total]


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of (B, C, T) over the frames where ``mask`` (B, 1, T) is 1."""
    return (x * mask).sum() / (mask.sum() * x.shape[1])
