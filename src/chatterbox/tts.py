"""`ChatterboxTTS`: upstream's English façade over `chatterbox.pipeline`.

Owns: upstream's names, signatures and defaults, nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from chatterbox.checkpoints import REPO_ID, TTS_FILES, find_checkpoint, load_models, resolve_device
from chatterbox.conditioning import (
    DEC_COND_SECONDS,
    ENC_COND_SECONDS,
    Conditionals,
    Reference,
    prepare_conditionals,
)
from chatterbox.config import KVCacheConfig, SamplingConfig
from chatterbox.generation.prefix import PrefixSource
from chatterbox.kvcache import GlobalKVCacheManager, check_names
from chatterbox.models.s3gen import S3GEN_SR, S3Gen
from chatterbox.models.s3tokenizer import S3_SR
from chatterbox.models.t3 import T3
from chatterbox.models.tokenizers import EnTokenizer
from chatterbox.models.voice_encoder import VoiceEncoder
from chatterbox.pipeline import SpeechRequest, decode_request, speak
from chatterbox.text import punc_norm
from chatterbox.voice_cache import VoiceCache

__all__ = ["REPO_ID", "ChatterboxTTS", "Conditionals", "punc_norm"]


class _ModelDefault(float):
    """The published model's value in a signature; left in place, it stands for the loaded checkpoint's own setting."""


_UPSTREAM = SamplingConfig()


class ChatterboxTTS:
    """Text to speech with voice cloning.

    One instance serves several threads: `generate` changes nothing here. ``conds`` is the voice used when a call names
    none; only `prepare_conditionals` and the caller assign it, and a call works on the value it found at its start.
    """

    ENC_COND_LEN = ENC_COND_SECONDS * S3_SR
    DEC_COND_LEN = DEC_COND_SECONDS * S3GEN_SR

    def __init__(
        self,
        t3: T3,
        s3gen: S3Gen,
        ve: VoiceEncoder,
        tokenizer: EnTokenizer,
        device: str | torch.device,
        conds: Conditionals | None = None,
        *,
        sampling: SamplingConfig = _UPSTREAM,
        kvcache: str | KVCacheConfig = "static",
        cache: GlobalKVCacheManager | None = None,
    ) -> None:
        """``kvcache``: what T3 keeps, settings or the name of a policy. ``cache``: a manager that several models share,
        in place of one made of the settings.

        Raises:
            ValueError: ``kvcache`` names what does not exist.
        """
        self.sr = S3GEN_SR
        self.t3 = t3
        self.s3gen = s3gen
        self.ve = ve
        self.tokenizer = tokenizer
        self.device = device
        self.conds = conds
        self.sampling = sampling
        self._kvcache = KVCacheConfig(policy=kvcache) if isinstance(kvcache, str) else kvcache
        check_names(self._kvcache)
        self._prefixes = PrefixSource(t3, self._kvcache if cache is None else cache)
        self._voices = VoiceCache()

    @classmethod
    def from_local(
        cls, ckpt_dir: str | Path, device: str | torch.device, *, kvcache: str | KVCacheConfig = "static"
    ) -> ChatterboxTTS:
        """Load a checkpoint folder. ``kvcache``: what T3 keeps, settings or the name of a policy.

        Raises:
            ValueError: a file is missing, broken or of another model, or the device or policy does not exist.
        """
        m = load_models(ckpt_dir, device)
        parts = (m.t3, m.s3gen, m.voice_encoder, m.tokenizer, str(m.device), m.conds)
        return cls(*parts, sampling=m.config.sampling, kvcache=kvcache)

    @classmethod
    def from_pretrained(
        cls,
        device: str | torch.device,
        *,
        model: str | Path = "chatterbox",
        local_files_only: bool = False,
        kvcache: str | KVCacheConfig = "static",
    ) -> ChatterboxTTS:
        """Load a model by name: "chatterbox" (published, from the hub), "tiny" (part of this package) or a folder.

        ``kvcache``: what T3 keeps, settings or the name of a policy.

        Raises:
            ValueError: no such model or device, or the hub is out of reach; "tiny" works offline.
        """
        device = resolve_device(device)
        folder = find_checkpoint(model, TTS_FILES, local_files_only=local_files_only)
        return cls.from_local(folder, device, kvcache=kvcache)

    def prepare_conditionals(self, wav_fpath: Reference, exaggeration: float = 0.5) -> None:
        """Make the voice of a recording (file, or samples at 24 kHz) the one that later calls use.

        Raises:
            FileNotFoundError, TypeError, ValueError: the recording cannot be used; the message says why.
        """
        self.conds = self._voice_of(wav_fpath, exaggeration)

    def generate(
        self,
        text: str,
        repetition_penalty: float = _ModelDefault(_UPSTREAM.repetition_penalty),
        min_p: float = _ModelDefault(_UPSTREAM.min_p),
        top_p: float = _ModelDefault(_UPSTREAM.top_p),
        audio_prompt_path: Reference | None = None,
        exaggeration: float = 0.5,
        cfg_weight: float = _ModelDefault(_UPSTREAM.cfg_weight),
        temperature: float = _ModelDefault(_UPSTREAM.temperature),
        *,
        seed: int | None = None,
        use_cache: bool = True,
        watermark: bool = True,
    ) -> Tensor:
        """Speak ``text``: (1, N) float32 on the CPU, at ``sr`` Hz.

        The defaults of the sampling knobs are the published model's. A checkpoint whose ``config.json`` has its own
        uses those for every knob that the call leaves out.

        Args:
            audio_prompt_path: recording of the voice for this call alone; None uses ``conds``.
            exaggeration: emotion, 0.5 is neutral.
            cfg_weight: guidance, 0 turns it off and halves the work.
            temperature: 0 is greedy.
            seed: own random numbers for this call; None draws from torch's global generator, as upstream.
            use_cache: False recomputes the whole sequence at every step; for checking.
            watermark: False leaves the audio unmarked.

        Raises:
            TypeError: ``text`` is not a string.
            ValueError: no voice, a knob out of range, text too long, or a recording that cannot be used.
        """
        knobs = {
            "repetition_penalty": repetition_penalty,
            "min_p": min_p,
            "top_p": top_p,
            "cfg_weight": cfg_weight,
            "temperature": temperature,
        }
        given = {name: value for name, value in knobs.items() if not isinstance(value, _ModelDefault)}
        sampling = dataclasses.replace(self.sampling, **given)
        conds = self._conditionals(audio_prompt_path, exaggeration)
        request = SpeechRequest(text, conds, sampling, exaggeration, seed, use_cache, watermark, self._kvcache.policy)
        return speak(self.t3, self.s3gen, self.tokenizer, request, prefixes=self._prefixes).audio

    def warm(
        self,
        texts: Sequence[str] = ("",),
        audio_prompt_path: Reference | None = None,
        exaggeration: float = 0.5,
        *,
        pin: bool = False,
    ) -> None:
        """Compute ahead of time what texts of a voice begin with, so that the first request finds it.

        Args:
            texts: whole texts, or beginnings of texts to come.
            audio_prompt_path: recording of the voice; None is ``conds``.
            pin: keep the voice's own part on the device, whatever else comes.

        Raises:
            TypeError, ValueError: as `generate`.
        """
        voice = self._conditionals(audio_prompt_path, exaggeration).with_exaggeration(exaggeration)
        requests = [SpeechRequest(text, voice, self.sampling, exaggeration) for text in texts]
        self._prefixes.warm([decode_request(self.t3, self.tokenizer, voice, one) for one in requests], pin=pin)

    def get_cache_hit_rate(self) -> float:
        """Share of T3's prefix positions that did not have to be computed, 0 to 1."""
        return self._prefixes.manager.hit_rate

    def cache_stats(self) -> dict[str, float]:
        """Counters of the prefix cache by name: tokens, bytes and milliseconds; see docs/kvcache.md."""
        return self._prefixes.manager.stats()

    def clear_cache(self) -> None:
        """Forget all recordings, and all voices' and texts' beginnings. Needed only after a change of weights."""
        self._voices.clear()
        self._prefixes.manager.clear()
        self._prefixes = PrefixSource(self.t3, self._prefixes.manager)

    def _conditionals(self, reference: Reference | None, exaggeration: float) -> Conditionals:
        conds = self.conds if reference is None else self._voice_of(reference, exaggeration)
        if conds is None:
            raise ValueError("no voice yet: pass audio_prompt_path, or call prepare_conditionals first")
        return conds

    def _voice_of(self, reference: Reference, exaggeration: float) -> Conditionals:
        make = partial(prepare_conditionals, self.s3gen, self.ve, prompt_len=self.t3.hp.speech_cond_prompt_len)
        return self._voices.get(reference, make).with_exaggeration(exaggeration)
