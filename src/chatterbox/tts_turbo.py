"""`ChatterboxTurboTTS`: upstream's façade of Turbo and Nano over `chatterbox.synthesis.synthesizer`.

Owns: upstream's names, signatures and defaults, nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from chatterbox.base import ModelDefault, SpeechModel, by_name
from chatterbox.checkpoints import NANO, TURBO, Files, find_checkpoint, resolve_device, with_files
from chatterbox.config import (
    BatchArguments,
    EngineConfig,
    KVCacheConfig,
    PrecisionConfig,
    S3GenOptions,
    SpeechArguments,
    StreamArguments,
    StreamingConfig,
    exaggeration_of,
)
from chatterbox.models.config import T3Config
from chatterbox.models.s3tokenizer import S3_SR
from chatterbox.runtime.replaceable import replaceable
from chatterbox.synthesis.render import StreamingMetrics
from chatterbox.synthesis.request import SynthesisRequest
from chatterbox.text.normalize import TURBO as RULES
from chatterbox.text.normalize import punc_norm as _punc_norm
from chatterbox.upstream_names import names_of
from chatterbox.values import number, switch
from chatterbox.voice.conditionals import Conditionals, Reference

if TYPE_CHECKING:
    from typing_extensions import Unpack  # typing has it from Python 3.11 on

logger = logging.getLogger(__name__)

REPO_ID = TURBO.repo
PUBLISHED = TURBO.config.sampling
STREAMING, ENGINE, S3GEN = StreamingConfig(), EngineConfig(), S3GenOptions()
TOP_K: Any = ModelDefault(PUBLISHED.top_k)  # a float where whole numbers stand

__getattr__ = names_of(__name__)  # what upstream's module has because it imports it
__all__ = ["REPO_ID", "ChatterboxTurboTTS", "Conditionals", "punc_norm"]


@replaceable
def punc_norm(text: str) -> str:
    """Punctuation as Turbo was driven; see `chatterbox.text.normalize.punc_norm`."""
    return _punc_norm(text, RULES)


class ChatterboxTurboTTS(SpeechModel):
    """Text to speech with voice cloning, in English, by Turbo or Nano. Safe for several threads; see `SpeechModel`."""

    published = PUBLISHED
    facade = __name__
    ENC_COND_LEN = T3Config.turbo().prompt_seconds * S3_SR
    _published_lens = (ENC_COND_LEN, SpeechModel.DEC_COND_LEN)
    model_label = "Turbo"

    @classmethod
    def from_local(
        cls,
        ckpt_dir: str | Path,
        device: str | torch.device,
        nano: bool = False,
        *,
        t3_model: str | None = None,
        s3gen_model: str | None = None,
        kvcache: str | KVCacheConfig = "static",
        engine: EngineConfig = ENGINE,
        s3gen_options: S3GenOptions = S3GEN,
        precision: str | PrecisionConfig = "auto",
    ) -> ChatterboxTurboTTS:
        """Load a checkpoint folder of Turbo, or of Nano.

        Args:
            t3_model: T3 file of the folder, by name; None finds it. So is ``s3gen_model``.
            kvcache: what T3 keeps, settings or the name of a policy.
            engine: how requests share decode steps, and what their rows may take.
            s3gen_options: what S3Gen remembers, and in how many steps it solves.
            precision: type of the weights, "auto", "float32", "float16", "bfloat16", "int8", or of each network.

        Raises:
            ValueError: a file is missing, broken or of another model, or the device or policy does not exist.
        """
        given = Files(NANO.t3 if nano and t3_model is None else t3_model, s3gen_model)
        options: dict[str, Any] = {"kvcache": kvcache, "engine": engine, "s3gen_options": s3gen_options}
        tts = cls._load(ckpt_dir, device, (TURBO, NANO), given, precision=precision, **options)
        tts.model_label = "Nano" if tts.layout is not None and tts.layout.repo == NANO.repo else "Turbo"
        return tts

    @classmethod
    def from_pretrained(
        cls,
        device: str | torch.device,
        nano: bool = False,
        *,
        model: str | Path | None = None,
        local_files_only: bool = False,
        t3_model: str | None = None,
        s3gen_model: str | None = None,
        kvcache: str | KVCacheConfig = "static",
        engine: EngineConfig = ENGINE,
        s3gen_options: S3GenOptions = S3GEN,
        precision: str | PrecisionConfig = "auto",
    ) -> ChatterboxTurboTTS:
        """Load a published model ("turbo" or "nano", from the hub) or a folder; the rest is `from_local`'s.

        ``model``: None is the one that ``nano`` says.

        Raises:
            ValueError: no such model or device, another class speaks it, or the hub is out of reach.
        """
        device = resolve_device(device)
        if nano and model == "turbo":
            raise ValueError("nano=True is model 'nano', not 'turbo'; give one of the two")
        nano = nano or model == "nano"
        if model is None:
            model = "nano" if nano else "turbo"
        layout = with_files(NANO if nano else TURBO, t3_model, s3gen_model)
        repo = None if nano else REPO_ID
        folder = find_checkpoint(model, layout, repo=repo, local_files_only=local_files_only)
        files: dict[str, Any] = {"t3_model": t3_model, "s3gen_model": s3gen_model}
        options: dict[str, Any] = {"kvcache": kvcache, "engine": engine, "s3gen_options": s3gen_options}
        return cls.from_local(folder, device, nano, **files, precision=precision, **options)

    @replaceable
    def prepare_conditionals(
        self,
        wav_fpath: Reference,
        exaggeration: float = 0.5,
        norm_loudness: bool = True,
        *,
        sample_rate: int | None = None,
    ) -> None:
        """Make the voice of a recording the one that later calls use; the rest is `SpeechModel.prepare_conditionals`'s.

        Args:
            exaggeration: kept in the voice, as upstream, and otherwise ignored; these models have no emotion.
            norm_loudness: bring the recording to -27 LUFS first.

        Raises:
            FileNotFoundError, TypeError, ValueError: the recording cannot be used, or is not longer than 5 s.
        """
        norm_loudness = switch("norm_loudness", norm_loudness, True)
        self.conds = self._voice_of(wav_fpath, exaggeration_of(exaggeration), norm_loudness, sample_rate)

    @by_name(SpeechArguments)
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
        top_k: int = TOP_K,
        norm_loudness: bool = True,
        **options: Unpack[SpeechArguments],
    ) -> Tensor:
        """Speak ``text``: (1, N) float32 on the CPU, at ``sr`` Hz.

        The defaults of the sampling settings are the published model's. A checkpoint whose ``config.json`` has its own
        uses those for every one that the call leaves out. By name it takes `chatterbox.config.SpeechArguments` too.

        Args:
            min_p: ignored, as ``exaggeration`` and ``cfg_weight``, with a warning when one is above 0: these models
                have neither emotion nor guidance.
            audio_prompt_path: recording of the voice, longer than 5 s, for this call alone; None and "" use ``conds``.
            temperature: 0 is greedy.
            top_k: so many of the likeliest tokens are sampled from; 0 is all.
            norm_loudness: bring ``audio_prompt_path`` to -27 LUFS first.

        Raises:
            TypeError: ``text`` is not a string.
            ValueError: no voice, a setting out of range, text too long, or a recording that cannot be used.
        """
        return self._generate(
            text,
            audio_prompt_path,
            min_p=min_p,
            exaggeration=exaggeration,
            cfg_weight=cfg_weight,
            repetition_penalty=repetition_penalty,
            top_p=top_p,
            top_k=top_k,
            temperature=temperature,
            norm_loudness=norm_loudness,
            **options,
        )

    @by_name(StreamArguments)
    def generate_stream(
        self,
        text: str | Iterable[str],
        audio_prompt_path: Reference | None = None,
        exaggeration: float = 0.0,
        cfg_weight: float = 0.0,
        temperature: float = ModelDefault(PUBLISHED.temperature),
        chunk_size: int = STREAMING.chunk_size,
        context_window: int = STREAMING.context_window,
        fade_duration: float = STREAMING.fade_duration,
        print_metrics: bool = True,
        **options: Unpack[StreamArguments],
    ) -> Iterator[tuple[Tensor, StreamingMetrics]]:
        """Speak ``text`` while it is made, as `ChatterboxTTS.generate_stream`; the rest as `generate`."""
        return self._generate_stream(
            text,
            audio_prompt_path,
            print_metrics,
            exaggeration=exaggeration,
            cfg_weight=cfg_weight,
            temperature=temperature,
            chunk_size=chunk_size,
            context_window=context_window,
            fade_duration=fade_duration,
            **options,
        )

    @by_name(BatchArguments)
    def generate_batch(
        self,
        texts: Sequence[str],
        voices: Sequence[Reference | Conditionals | None] | None = None,
        temperature: float = ModelDefault(PUBLISHED.temperature),
        **options: Unpack[BatchArguments],
    ) -> list[Tensor]:
        """Speak several texts at once, as `ChatterboxTTS.generate_batch`."""
        return self._generate_batch(
            texts,
            voices,
            temperature=temperature,
            **options,
        )

    def _request(
        self, text: str | Iterable[str], reference: Reference | Conditionals | None, options: Mapping[str, Any]
    ) -> SynthesisRequest:
        ignored = {name: options.get(name) for name in ("min_p", "exaggeration", "cfg_weight")}
        _warn_once(tuple(name for name, value in ignored.items() if value is not None and _number(name, value) > 0.0))
        heeded = {name: value for name, value in options.items() if name not in ignored}
        return super()._request(text, reference, {**heeded, "exaggeration": 0.0})


def _number(name: str, value: object) -> float:
    return number(name, value, -1e9, 1e9, "this model has no use for it; leave it out")


@cache
def _warn_once(names: tuple[str, ...]) -> None:
    """Name what is above 0 and has no effect, once a process for the same names."""
    if names:
        logger.warning("Turbo and Nano ignore %s: they have neither emotion nor guidance", ", ".join(names))
