"""`ChatterboxMultilingualTTS`: upstream's façade for 23 languages over `chatterbox.synthesis.synthesizer`.

Owns: upstream's names, signatures and defaults, nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from chatterbox.base import ModelDefault, SpeechModel, by_name
from chatterbox.checkpoints import (
    MULTILINGUAL,
    REPO_ID,
    DefaultName,
    Files,
    find_checkpoint,
    layouts_of,
    resolve_device,
)
from chatterbox.config import (
    BatchArguments,
    EngineConfig,
    KVCacheConfig,
    PrecisionConfig,
    S3GenOptions,
    SpeechArguments,
    StreamArguments,
    StreamingConfig,
)
from chatterbox.models.tokenizers.languages import LANGUAGES, check_language
from chatterbox.runtime.replaceable import replaceable
from chatterbox.synthesis.render import StreamingMetrics
from chatterbox.text.normalize import MULTILINGUAL as RULES
from chatterbox.text.normalize import punc_norm as _punc_norm
from chatterbox.upstream_names import names_of
from chatterbox.voice.conditionals import Conditionals, Reference

if TYPE_CHECKING:
    from typing_extensions import Unpack  # typing has it from Python 3.11 on

SUPPORTED_LANGUAGES = LANGUAGES  # a program may add to it
PUBLISHED, LAYOUTS = MULTILINGUAL.config.sampling, (MULTILINGUAL, *layouts_of("ChatterboxMultilingualTTS"))
V2, THE_MODELS = DefaultName("v2"), DefaultName("")
STREAMING, ENGINE, S3GEN = StreamingConfig(), EngineConfig(), S3GenOptions()

__getattr__ = names_of(__name__)  # what upstream's module has because it imports it
__all__ = ["REPO_ID", "SUPPORTED_LANGUAGES", "ChatterboxMultilingualTTS", "Conditionals", "punc_norm"]


@replaceable
def punc_norm(text: str) -> str:
    """Punctuation as the multilingual model was driven; see `chatterbox.text.normalize.punc_norm`."""
    return _punc_norm(text, RULES)


class ChatterboxMultilingualTTS(SpeechModel):
    """Text to speech with voice cloning, in 23 languages. Safe for several threads; see `SpeechModel`."""

    published = PUBLISHED
    facade = __name__

    @classmethod
    def get_supported_languages(cls) -> dict[str, str]:
        """Names of the languages by code; the caller's own."""
        return dict(LANGUAGES)

    @classmethod
    def from_local(
        cls,
        ckpt_dir: str | Path,
        device: str | torch.device,
        t3_model: str = V2,
        *,
        s3gen_model: str | None = None,
        tokenizer: str | None = None,
        kvcache: str | KVCacheConfig = "static",
        engine: EngineConfig = ENGINE,
        s3gen_options: S3GenOptions = S3GEN,
        precision: str | PrecisionConfig = "auto",
    ) -> ChatterboxMultilingualTTS:
        """Load a checkpoint folder.

        Args:
            t3_model: "v2", "v3", their long names, or a T3 file of the folder; left out, what the folder has.
            s3gen_model: "v1", "v3" or a file of the folder; None is the T3's own.
            tokenizer: a file of the folder; None finds it.
            kvcache: what T3 keeps, settings or the name of a policy.
            engine: how requests share decode steps, and what their rows may take.
            s3gen_options: what S3Gen remembers, and in how many steps it solves.
            precision: type of the weights, "auto", "float32", "float16", "bfloat16", "int8", or of each network.

        Raises:
            ValueError: a file is missing, broken or of another model, or the model, device or policy does not exist.
        """
        given = Files(t3_model, s3gen_model, tokenizer)
        options: dict[str, Any] = {"kvcache": kvcache, "engine": engine, "s3gen_options": s3gen_options}
        return cls._load(ckpt_dir, device, LAYOUTS, given, precision=precision, **options)

    @classmethod
    def from_pretrained(
        cls,
        device: str | torch.device,
        t3_model: str = V2,
        *,
        model: str | Path = "multilingual",
        local_files_only: bool = False,
        s3gen_model: str | None = None,
        tokenizer: str | None = None,
        kvcache: str | KVCacheConfig = "static",
        engine: EngineConfig = ENGINE,
        s3gen_options: S3GenOptions = S3GEN,
        precision: str | PrecisionConfig = "auto",
    ) -> ChatterboxMultilingualTTS:
        """Load the published model ("multilingual", from the hub), a Single Language Pack ("zh-cmn", "es-mx-latam",
        "es-es", "pt-br", "pt-pt", "hi") or a folder; the rest is `from_local`'s.

        Raises:
            ValueError: no such model or device, another class speaks it, or the hub is out of reach.
        """
        device, given = resolve_device(device), Files(t3_model, s3gen_model, tokenizer)
        folder = find_checkpoint(model, MULTILINGUAL, given, repo=REPO_ID, local_files_only=local_files_only)
        options: dict[str, Any] = {"kvcache": kvcache, "engine": engine, "s3gen_options": s3gen_options}
        options |= {"local_files_only": local_files_only, "precision": precision}
        return cls._load(folder, device, LAYOUTS, given, **options)

    def _language(self, language_id: str | None) -> str | None:
        """The code of what a call says.

        Raises:
            TypeError: it says nothing, and the model has no language of its own.
            ValueError: no such language, or the model is for another alone.
        """
        if isinstance(language_id, DefaultName) and self._own_language is None:
            raise TypeError(
                f"language_id is missing, and this model has none of its own: give one of {', '.join(LANGUAGES)}; "
                "None names no language to the model"
            )
        code = check_language(language_id or None, getattr(self.tokenizer, "has_language", None))
        if self.layout is not None:
            self.layout.check_language(code)
        return code

    @by_name(SpeechArguments)
    def generate(
        self,
        text: str,
        language_id: str | None = THE_MODELS,
        audio_prompt_path: Reference | None = None,
        exaggeration: float = 0.5,
        cfg_weight: float = ModelDefault(PUBLISHED.cfg_weight),
        temperature: float = ModelDefault(PUBLISHED.temperature),
        repetition_penalty: float = ModelDefault(PUBLISHED.repetition_penalty),
        min_p: float = ModelDefault(PUBLISHED.min_p),
        top_p: float = ModelDefault(PUBLISHED.top_p),
        **options: Unpack[SpeechArguments],
    ) -> Tensor:
        """Speak ``text``: (1, N) float32 on the CPU, at ``sr`` Hz.

        The defaults of the sampling settings are the published model's (chatterbox-tts 0.1.7). A checkpoint whose
        ``config.json`` has its own uses those for every one that the call leaves out.

        Args:
            language_id: code of `SUPPORTED_LANGUAGES`, in any case, or one that the tokenizer has a mark of; None names
                no language to the model. May be left out where the model has its own, as a Single Language Pack.
            audio_prompt_path: recording of the voice for this call alone, as `prepare_conditionals` takes it; None and
                "" use ``conds``.
            exaggeration: emotion, 0.5 is neutral.
            cfg_weight: guidance, 0 turns it off and halves the work.
            temperature: 0 is greedy.

        Raises:
            TypeError: ``text`` is not a string, or ``language_id`` is missing.
            ValueError: no such language, no voice, a setting out of range, no such guard, text too long, or a recording
                that cannot be used.
        """
        return self._generate(
            text,
            audio_prompt_path,
            exaggeration=exaggeration,
            repetition_penalty=repetition_penalty,
            min_p=min_p,
            top_p=top_p,
            cfg_weight=cfg_weight,
            temperature=temperature,
            language_id=self._language(language_id),
            **options,
        )

    @by_name(StreamArguments)
    def generate_stream(
        self,
        text: str | Iterable[str],
        language_id: str | None = THE_MODELS,
        audio_prompt_path: Reference | None = None,
        exaggeration: float = 0.5,
        cfg_weight: float = ModelDefault(PUBLISHED.cfg_weight),
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
            language_id=self._language(language_id),
            chunk_size=chunk_size,
            context_window=context_window,
            fade_duration=fade_duration,
            **options,
        )

    @by_name(BatchArguments)
    def generate_batch(
        self,
        texts: Sequence[str],
        language_id: str | None = THE_MODELS,
        voices: Sequence[Reference | Conditionals | None] | None = None,
        exaggeration: float = 0.5,
        cfg_weight: float = ModelDefault(PUBLISHED.cfg_weight),
        temperature: float = ModelDefault(PUBLISHED.temperature),
        **options: Unpack[BatchArguments],
    ) -> list[Tensor]:
        """Speak several texts of one language at once, as `ChatterboxTTS.generate_batch`."""
        return self._generate_batch(
            texts,
            voices,
            exaggeration=exaggeration,
            cfg_weight=cfg_weight,
            temperature=temperature,
            language_id=self._language(language_id),
            **options,
        )
