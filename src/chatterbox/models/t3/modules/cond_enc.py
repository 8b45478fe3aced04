"""What T3 knows beside the text: speaker, speech prompt, emotion.

Owns: `T3Cond`, the container people build and store, and `T3CondEnc`, which turns it into the conditioning prefix.
Does not know: how a reference recording becomes a `T3Cond` (`chatterbox.voice.conditionals`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chatterbox.models.config import T3Config
from chatterbox.models.linear import apply_linear
from chatterbox.models.t3.modules.perceiver import Perceiver
from chatterbox.runtime.pickles import load_plain


@dataclass
class T3Cond:
    """Conditioning of one voice.

    speaker_emb: (B, 256) voice-encoder embedding. cond_prompt_speech_tokens: (B, T) speech tokens of the reference.
    cond_prompt_speech_emb: (B, T, hidden), only if precomputed. emotion_adv: exaggeration, a number or (B, 1, 1).
    clap_emb: must stay None; it exists because stored conditionals have the field.
    """

    speaker_emb: Tensor
    clap_emb: Tensor | None = None
    cond_prompt_speech_tokens: Tensor | None = None
    cond_prompt_speech_emb: Tensor | None = None
    emotion_adv: Tensor | float | None = 0.5

    def to(self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> T3Cond:
        """A copy on ``device``; ``dtype`` applies to floating-point fields only."""

        def move(value: Tensor | float | None) -> Tensor | float | None:
            if not isinstance(value, Tensor):
                return value
            return value.to(device=device, dtype=dtype if value.is_floating_point() else None)

        moved: dict[str, Any] = {f.name: move(getattr(self, f.name)) for f in dataclasses.fields(self)}
        return T3Cond(**moved)

    def save(self, fpath: str | Path) -> None:
        torch.save({f.name: getattr(self, f.name) for f in dataclasses.fields(self)}, fpath)

    @staticmethod
    def load(fpath: str | Path, map_location: torch.device | str = "cpu") -> T3Cond:
        return T3Cond(**load_plain(fpath, map_location))


class T3CondEnc(nn.Module):
    """Conditioning prefix: speaker (1), the embedded prompt or a perceiver's view of it, emotion (1 or none)."""

    def __init__(self, config: T3Config) -> None:
        super().__init__()
        self.speaker_embed_size = config.speaker_embed_size
        self.spkr_enc = nn.Linear(config.speaker_embed_size, config.n_channels)
        self.emotion_adv_fc = self.perceiver = None
        if config.emotion_adv:
            self.emotion_adv_fc = nn.Linear(1, config.n_channels, bias=False)
        if config.use_perceiver_resampler:
            self.perceiver = Perceiver(config.perceiver_queries, config.n_channels, config.perceiver_heads)

    def forward(self, cond: T3Cond, prompt_emb: Tensor) -> Tensor:
        """Args: ``prompt_emb`` (B, T, hidden), the embedded speech prompt. Returns (B, cond_len, hidden).

        Raises:
            ValueError: a CLAP embedding is given (no published model has one), or no emotion where the model knows it,
                or the speaker's embedding is of another model.
        """
        if tuple(cond.speaker_emb.shape[-1:]) != (self.speaker_embed_size,):
            raise ValueError(
                f"the voice's speaker embedding is {tuple(cond.speaker_emb.shape)}, that of this model "
                f"{self.speaker_embed_size} wide; make the voice with this model"
            )
        if cond.clap_emb is not None:
            raise ValueError("clap_emb must be None: no published model reads a CLAP embedding")
        weight = next(self.parameters(), prompt_emb)  # quantised layers have none
        speaker = cond.speaker_emb.to(weight).view(-1, 1, self.speaker_embed_size)
        speaker = apply_linear(self.spkr_enc, speaker)  # (B, 1, hidden)
        prompt = prompt_emb.to(weight) if self.perceiver is None else self.perceiver(prompt_emb)
        parts = [speaker, prompt.expand(speaker.shape[0], -1, -1)]
        if self.emotion_adv_fc is not None:
            if cond.emotion_adv is None:
                raise ValueError("emotion_adv must be a number (0.5 is neutral), got None")
            emotion = torch.as_tensor(cond.emotion_adv, dtype=weight.dtype, device=weight.device)
            emotion = apply_linear(self.emotion_adv_fc, emotion.reshape(-1, 1, 1))
            parts.append(emotion.expand(speaker.shape[0], -1, -1))
        return torch.cat(parts, dim=1)
