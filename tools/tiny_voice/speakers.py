"""Stage `speakers`: the voice encoder (for T3) and CAM++ (for the flow), trained to tell voices and speeds apart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatterbox.models.config import CAMPPlusConfig, VoiceEncoderConfig
from chatterbox.models.s3gen.xvector import CAMPPlus
from chatterbox.models.s3tokenizer import S3_SR
from chatterbox.models.voice_encoder import VoiceEncoder
from chatterbox.models.voice_encoder.melspec import melspectrogram
from tools.tiny_voice.loop import Schedule, Stage
from tools.tiny_voice.recordings import Recordings
from tools.tiny_voice.teacher import VOICES
from tools.tiny_voice.tiny import SPEEDS

SHARPNESS = 12.0  # of the cosine similarities before the softmax


class SpeakerBatch(NamedTuple):
    """Crops at 16 kHz of random loudness."""

    wav: Tensor  # (B, L)
    label: Tensor  # (B,) voice and speed


class SpeakerStage(Stage[SpeakerBatch]):
    name = "speakers"

    def __init__(
        self,
        voice_encoder: VoiceEncoderConfig,
        campplus: CAMPPlusConfig,
        recordings: Recordings,
        held_out: Recordings,
        schedule: Schedule,
        *,
        batch: int = 24,
    ) -> None:
        self.recordings, self.held_out_recordings, self.schedule, self.batch = recordings, held_out, schedule, batch
        classes = len(VOICES) * len(SPEEDS)
        self.voice_encoder, self.campplus = VoiceEncoder(voice_encoder), CAMPPlus(campplus)
        self.module = nn.ModuleDict(
            {
                "voice_encoder": self.voice_encoder,
                "campplus": self.campplus,
                "voice_prototypes": nn.Linear(voice_encoder.embed_size, classes, bias=False),
                "xvector_prototypes": nn.Linear(campplus.embed_size, classes, bias=False),
            }
        )
        self.crop_len = voice_encoder.window_frames * voice_encoder.hop_len

    def draw(self, rng: np.random.Generator, step: int) -> SpeakerBatch:
        return self._draw(self.recordings, rng)

    def held_out(self) -> Iterator[tuple[str, SpeakerBatch]]:
        rng = np.random.default_rng(1)
        for _ in range(8):
            yield "", self._draw(self.held_out_recordings, rng)

    def loss(self, batch: SpeakerBatch) -> tuple[Tensor, dict[str, float]]:
        wavs, labels = batch
        config = self.voice_encoder.config
        mels = torch.stack([melspectrogram(w, config).T[: config.window_frames] for w in wavs])
        features = torch.stack([self.campplus.features(w) for w in wavs])
        figures, total = {}, wavs.new_zeros(())
        for name, embedding in (
            ("voice", self.voice_encoder(mels)),
            ("xvector", self.campplus(features)),
        ):
            prototypes = F.normalize(self.module.get_parameter(f"{name}_prototypes.weight"), dim=1)
            logits = SHARPNESS * F.normalize(embedding, dim=1) @ prototypes.T
            total = total + F.cross_entropy(logits, labels)
            figures[f"{name}_accuracy"] = float((logits.argmax(1) == labels).float().mean())
        return total, figures

    def _draw(self, source: Recordings, rng: np.random.Generator) -> SpeakerBatch:
        wavs: list[Tensor] = []
        labels: list[int] = []
        while len(wavs) < self.batch:
            index, speed = source.draw(rng)
            audio = source.audio(index, speed, S3_SR)
            if len(audio) < self.crop_len:
                continue
            start = int(rng.integers(len(audio) - self.crop_len + 1))
            wavs.append(torch.from_numpy(audio[start : start + self.crop_len] * float(rng.uniform(0.4, 1.4))))
            labels.append(source.voice(index) * len(SPEEDS) + speed)
        return SpeakerBatch(torch.stack(wavs), torch.tensor(labels))


@torch.no_grad()
def embed_voices(
    voice_encoder: VoiceEncoder, campplus: CAMPPlus, recordings: Recordings, per_class: int = 24
) -> tuple[Tensor, Tensor]:
    """Voice-encoder and x-vector embeddings of whole recordings, each (voices, speeds, per_class, D)."""
    voice_encoder.eval()
    campplus.eval()
    voice_rows, xvector_rows = [], []
    for voice in range(len(VOICES)):
        for speed in range(len(SPEEDS)):
            wavs = [recordings.audio(i, speed, S3_SR) for i in recordings.by_voice[voice][:per_class]]
            voice_rows.append(torch.from_numpy(voice_encoder.embeds_from_wavs(wavs, S3_SR)))
            xvector_rows.append(torch.cat([campplus.inference([torch.from_numpy(w)]) for w in wavs]))
    shape = (len(VOICES), len(SPEEDS), per_class, -1)
    return torch.stack(voice_rows).view(shape).clone(), torch.stack(xvector_rows).view(shape).clone()
