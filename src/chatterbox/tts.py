"""`ChatterboxTTS`: upstream's English façade over `chatterbox.synthesis.synthesizer`.

Owns: upstream's names, signatures and defaults, nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from chatterbox.base import ModelDefault, SpeechModel, by_name
from chatterbox.checkpoints import ENGLISH, REPO_ID, Files, find_checkpoint, layouts_of, resolve_device, with_files
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
from chatterbox.runtime.replaceable import replaceable
from chatterbox.synthesis.render import StreamingMetrics
from chatterbox.text.normalize import ENGLISH as RULES
from chatterbox.text.normalize import punc_norm as _punc_norm
from chatterbox.upstream_names import names_of
from chatterbox.voice.conditionals import Conditionals, Reference

if TYPE_CHECKING:
    from typing_extensions import Unpack  # typing has it from Python 3.11 on

PUBLISHED, LAYOUTS = ENGLISH.config.sampling, layouts_of("ChatterboxTTS")
STREAMING, ENGINE, S3GEN = StreamingConfig(), EngineConfig(), S3GenOptions()

__getattr__ = names_of(__name__)  # what upstream's module has because it imports it
__all__ = ["REPO_ID", "ChatterboxTTS", "Conditionals", "punc_norm"]


@replaceable
def punc_norm(text: str) -> str:
    """Punctuation as the English model was driven; see `chatterbox.text.normalize.punc_norm`."""
    return _punc_norm(text, RULES)


class ChatterboxTTS(SpeechModel):
    """Text to speech with voice cloning, in English. Safe for several threads; see `SpeechModel`."""

    published = PUBLISHED
    facade = __name__

    @classmethod
    def from_local(
        cls,
        ckpt_dir: str | Path,
        device: str | torch.device,
        *,
        t3_model: str | None = None,
        s3gen_model: str | None = None,
        tokenizer: str | None = None,
        kvcache: str | KVCacheConfig = "static",
        engine: EngineConfig = ENGINE,
        s3gen_options: S3GenOptions = S3GEN,
        precision: str | PrecisionConfig = "auto",
    ) -> ChatterboxTTS:
        """Load a checkpoint folder.

        Args:
            t3_model: T3 file of the folder, by name; None finds it. So are ``s3gen_model`` and ``tokenizer``.
            kvcache: what T3 keeps, settings or the name of a policy.
            engine: how requests share decode steps, and what their rows may take.
            s3gen_options: what S3Gen remembers, and in how many steps it solves.
            precision: type of the weights, "auto", "float32", "float16", "bfloat16", "int8", or of each network.

        Raises:
            ValueError: a file is missing, broken or of another model, or the device or policy does not exist.
        """
        given = Files(t3_model, s3gen_model, tokenizer)
        options: dict[str, Any] = {"kvcache": kvcache, "engine": engine, "s3gen_options": s3gen_options}
        return cls._load(ckpt_dir, device, LAYOUTS, given, precision=precision, **options)

    @classmethod
    def from_pretrained(
        cls,
        device: str | torch.device,
        *,
        model: str | Path = "chatterbox",
        local_files_only: bool = False,
        t3_model: str | None = None,
        s3gen_model: str | None = None,
        tokenizer: str | None = None,
        kvcache: str | KVCacheConfig = "static",
        engine: EngineConfig = ENGINE,
        s3gen_options: S3GenOptions = S3GEN,
        precision: str | PrecisionConfig = "auto",
    ) -> ChatterboxTTS:
        """Load a model: "chatterbox" (published, from the hub), "tiny" (part of this package) or a folder.

        The other arguments are `from_local`'s.

        Raises:
            ValueError: no such model or device, another class speaks it, or the hub is out of reach, which "tiny" does
                without.
        """
        device = resolve_device(device)
        layout = with_files(ENGLISH, t3_model, s3gen_model, tokenizer)
        folder = find_checkpoint(model, layout, repo=REPO_ID, local_files_only=local_files_only)
        files: dict[str, Any] = {"t3_model": t3_model, "s3gen_model": s3gen_model, "tokenizer": tokenizer}
        options: dict[str, Any] = {"kvcache": kvcache, "engine": engine, "s3gen_options": s3gen_options}
        return cls.from_local(folder, device, **files, precision=precision, **options)

    @by_name(SpeechArguments)
    def generate(
        self,
        text: str,
        repetition_penalty: float = ModelDefault(PUBLISHED.repetition_penalty),
        min_p: float = ModelDefault(PUBLISHED.min_p),
        top_p: float = ModelDefault(PUBLISHED.top_p),
        audio_prompt_path: Reference | None = None,
        exaggeration: float = 0.5,
        cfg_weight: float = ModelDefault(PUBLISHED.cfg_weight),
        temperature: float = ModelDefault(PUBLISHED.temperature),
        **options: Unpack[SpeechArguments],
    ) -> Tensor:
        """Speak ``text``: (1, N) float32 on the CPU, at ``sr`` Hz.

        The defaults of the sampling settings are the published model's. A checkpoint whose ``config.json`` has its own
        uses those for every one that the call leaves out. By name it takes `chatterbox.config.SpeechArguments` too.

        Args:
            audio_prompt_path: recording of the voice for this call alone, as `prepare_conditionals` takes it; None and
                "" use ``conds``.
            exaggeration: emotion, 0.5 is neutral.
            cfg_weight: guidance, 0 turns it off and halves the work.
            temperature: 0 is greedy. None, of this and its like, is the checkpoint's own.

        Raises:
            TypeError: ``text`` is not a string.
            ValueError: no voice, a setting out of range, no such guard, text too long, or an unusable recording.
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
            **options,
        )

    @by_name(StreamArguments)
    def generate_stream(
        self,
        text: str | Iterable[str],
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
        """Speak ``text`` while it is made: audio (1, N) float32 at ``sr`` Hz and what it has cost, chunk by chunk.

        The positional arguments are those of chatterbox-streaming 0.1.2. Closing the iterator, at any point, ends the
        work and frees what it held; docs/streaming.md shows a chunk's life.

        Args:
            text: a string of any length, or its pieces of any size as they are written.
            chunk_size: speech tokens of a chunk, 25 a second. The first has ``first_chunk``, those between double.
            context_window: speech tokens before a chunk that its waveform is made with.
            fade_duration: seconds over which a chunk takes over from the one before; 0 to 0.1.
            print_metrics: print one line to stderr at the end.

        By name it takes `chatterbox.config.StreamArguments` too. What is raised is what `generate` raises. What goes
        wrong on the way is raised behind the audio that came before it.
        """
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
        exaggeration: float = 0.5,
        cfg_weight: float = ModelDefault(PUBLISHED.cfg_weight),
        temperature: float = ModelDefault(PUBLISHED.temperature),
        **options: Unpack[BatchArguments],
    ) -> list[Tensor]:
        """Speak several texts at once: (1, N_i) float32 of each, as `generate` gives it. Tokens are decoded together.

        Args:
            voices: of each text, a recording, conditionals, or None for ``conds``; None is ``conds`` for all.

        By name it takes `chatterbox.config.BatchArguments` too; ``seed`` is of the first text, the others' follow from
        it. What is raised is what `generate` raises. Where some texts fail on the way, it is one
        `chatterbox.synthesis.synthesizer.BatchError`, which has the others' results.
        """
        return self._generate_batch(
            texts,
            voices,
            exaggeration=exaggeration,
            cfg_weight=cfg_weight,
            temperature=temperature,
            **options,
        )
