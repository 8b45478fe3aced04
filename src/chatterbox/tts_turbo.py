"""`ChatterboxTurboTTS`: upstream's façade of Turbo and Nano over `chatterbox.pipeline`.

Owns: upstream's names, signatures and defaults, nothing else.
"""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from chatterbox.checkpoints import NANO, TURBO, fetch, find_checkpoint, resolve_device
from chatterbox.conditioning import TURBO_ENC_COND_SECONDS, Conditionals, Reference
from chatterbox.config import KVCacheConfig
from chatterbox.facade import ModelDefault, SpeechModel
from chatterbox.models.s3tokenizer import S3_SR
from chatterbox.text import TURBO as RULES
from chatterbox.text import punc_norm as _punc_norm

logger = logging.getLogger(__name__)

REPO_ID = TURBO.repo
PUBLISHED = TURBO.config.sampling

__all__ = ["REPO_ID", "ChatterboxTurboTTS", "Conditionals", "punc_norm"]


def punc_norm(text: str) -> str:
    """Punctuation as Turbo was driven; see `chatterbox.text.punc_norm`."""
    return _punc_norm(text, RULES)


class ChatterboxTurboTTS(SpeechModel):
    """Text to speech with voice cloning, in English, by Turbo or Nano. Safe for several threads; see `SpeechModel`."""

    published = PUBLISHED
    ENC_COND_LEN = TURBO_ENC_COND_SECONDS * S3_SR
    model_label = "Turbo"

    @classmethod
    def from_local(
        cls,
        ckpt_dir: str | Path,
        device: str | torch.device,
        nano: bool = False,
        *,
        kvcache: str | KVCacheConfig = "static",
    ) -> ChatterboxTurboTTS:
        """Load a checkpoint folder of Turbo, or of Nano. ``kvcache``: what T3 keeps, settings or a policy's name.

        Raises:
            ValueError: a file is missing, broken or of another model, or the device or policy does not exist.
        """
        tts = cls._load(ckpt_dir, device, NANO if nano else TURBO, kvcache)
        tts.model_label = "Nano" if nano else "Turbo"
        return tts

    @classmethod
    def from_pretrained(
        cls,
        device: str | torch.device,
        nano: bool = False,
        *,
        model: str | Path | None = None,
        local_files_only: bool = False,
        kvcache: str | KVCacheConfig = "static",
    ) -> ChatterboxTurboTTS:
        """Load the published model (None, from the hub) or a folder; the rest is `from_local`'s.

        Raises:
            ValueError: no such model or device, or the hub is out of reach.
        """
        device = resolve_device(device)
        if model is None:
            folder = fetch(NANO if nano else TURBO, local_files_only=local_files_only)
        else:
            folder = find_checkpoint(model)
        return cls.from_local(folder, device, nano, kvcache=kvcache)

    def prepare_conditionals(self, wav_fpath: Reference, exaggeration: float = 0.5, norm_loudness: bool = True) -> None:
        """Make the voice of a recording (file, or samples at 24 kHz) the one that later calls use.

        Args:
            exaggeration: ignored; these models have no emotion.
            norm_loudness: bring the recording to -27 LUFS first.

        Raises:
            FileNotFoundError, TypeError, ValueError: the recording cannot be used, or is not longer than 5 s.
        """
        self.conds = self._voice_of(wav_fpath, exaggeration, norm_loudness)

    def generate(
        self,
        text: str,
        repetition_penalty: float = ModelDefault(PUBLISHED.repetition_penalty),
        min_p: float = 0.0,
        top_p: float = ModelDefault(PUBLISHED.top_p),
        audio_prompt_path: Reference | None = None,
        exaggeration: float = 0.0,
        cfg_weight: float = 0.0,
        temperature: float = ModelDefault(PUBLISHED.temperature),
        top_k: int = ModelDefault(PUBLISHED.top_k),
        norm_loudness: bool = True,
        *,
        seed: int | None = None,
        use_cache: bool = True,
        watermark: bool = True,
        guard: str = "light",
    ) -> Tensor:
        """Speak ``text``: (1, N) float32 on the CPU, at ``sr`` Hz.

        The defaults of the sampling knobs are the published model's. A checkpoint whose ``config.json`` has its own
        uses those for every knob that the call leaves out.

        Args:
            min_p, exaggeration, cfg_weight: ignored, with a warning when one is above 0: these models have neither
                emotion nor guidance.
            audio_prompt_path: recording of the voice, longer than 5 s, for this call alone; None uses ``conds``.
            temperature: 0 is greedy.
            top_k: so many of the likeliest tokens are drawn from; 0 is all.
            norm_loudness: bring ``audio_prompt_path`` to -27 LUFS first.
            seed, use_cache, watermark, guard: as `chatterbox.tts.ChatterboxTTS.generate`.

        Raises:
            TypeError: ``text`` is not a string.
            ValueError: no voice, a knob out of range, text too long, or a recording that cannot be used.
        """
        _warn_ignored(
            tuple(
                name
                for name, value in (("min_p", min_p), ("exaggeration", exaggeration), ("cfg_weight", cfg_weight))
                if value > 0.0
            )
        )
        return self._speak(
            text,
            audio_prompt_path,
            exaggeration,
            repetition_penalty=repetition_penalty,
            top_p=top_p,
            top_k=top_k,
            temperature=temperature,
            seed=seed,
            use_cache=use_cache,
            watermark=watermark,
            guard=guard,
            norm_loudness=norm_loudness,
        )


@cache
def _warn_ignored(names: tuple[str, ...]) -> None:
    """Once a process for the same names."""
    if names:
        logger.warning("Turbo and Nano ignore %s: they have neither emotion nor guidance", ", ".join(names))
