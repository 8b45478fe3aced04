"""`ChatterboxTTS`: upstream's English façade over `chatterbox.synthesis.synthesizer`.

Owns: upstream's names, signatures and defaults, nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from chatterbox.base import ModelDefault, SpeechModel
from chatterbox.checkpoints import ENGLISH, REPO_ID, find_checkpoint, resolve_device
from chatterbox.config import EngineConfig, KVCacheConfig, StreamingConfig
from chatterbox.synthesis.render import StreamingMetrics
from chatterbox.text.normalize import punc_norm
from chatterbox.voice.conditionals import Conditionals, Reference

PUBLISHED = ENGLISH.config.sampling
STREAMING, ENGINE = StreamingConfig(), EngineConfig()

__all__ = ["REPO_ID", "ChatterboxTTS", "Conditionals", "punc_norm"]


class ChatterboxTTS(SpeechModel):
    """Text to speech with voice cloning, in English. Safe for several threads; see `SpeechModel`."""

    published = PUBLISHED

    @classmethod
    def from_local(
        cls,
        ckpt_dir: str | Path,
        device: str | torch.device,
        *,
        kvcache: str | KVCacheConfig = "static",
        engine: EngineConfig = ENGINE,
    ) -> ChatterboxTTS:
        """Load a checkpoint folder.

        Args:
            kvcache: what T3 keeps, settings or the name of a policy.
            engine: how requests share decode steps, and what their rows may take.

        Raises:
            ValueError: a file is missing, broken or of another model, or the device or policy does not exist.
        """
        return cls._load(ckpt_dir, device, ENGLISH, kvcache, engine)

    @classmethod
    def from_pretrained(
        cls,
        device: str | torch.device,
        *,
        model: str | Path = "chatterbox",
        local_files_only: bool = False,
        kvcache: str | KVCacheConfig = "static",
        engine: EngineConfig = ENGINE,
    ) -> ChatterboxTTS:
        """Load a model: "chatterbox" (published, from the hub), "tiny" (part of this package) or a folder.

        ``kvcache`` and ``engine`` are `from_local`'s.

        Raises:
            ValueError: no such model or device, another class speaks it, or the hub is out of reach, which "tiny" does
                without.
        """
        device = resolve_device(device)
        folder = find_checkpoint(model, local_files_only=local_files_only)
        return cls.from_local(folder, device, kvcache=kvcache, engine=engine)

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
        *,
        max_new_tokens: int | None = None,
        seed: int | None = None,
        use_cache: bool = True,
        watermark: bool = True,
        guard: str = "light",
    ) -> Tensor:
        """Speak ``text``: (1, N) float32 on the CPU, at ``sr`` Hz.

        The defaults of the sampling knobs are the published model's. A checkpoint whose ``config.json`` has its own
        uses those for every knob that the call leaves out.

        Args:
            audio_prompt_path: recording of the voice for this call alone; None uses ``conds``.
            exaggeration: emotion, 0.5 is neutral.
            cfg_weight: guidance, 0 turns it off and halves the work.
            temperature: 0 is greedy.
            max_new_tokens: speech tokens at most, 25 a second, of each utterance; a longer one is cut there with a
                warning. None is the checkpoint's own limit, 1000 as published.
            seed: own random numbers for this call; None draws from torch's global generator, as upstream.
            use_cache: False recomputes the whole sequence at every step; for checking.
            watermark: False leaves the audio unmarked.
            guard: ends an utterance that loops or runs away: "light", or "none"; docs/guards.md.

        Raises:
            TypeError: ``text`` is not a string.
            ValueError: no voice, a knob out of range, no such guard, text too long, or a recording that cannot be used.
        """
        request = self._request(
            text,
            audio_prompt_path,
            exaggeration,
            repetition_penalty=repetition_penalty,
            min_p=min_p,
            top_p=top_p,
            cfg_weight=cfg_weight,
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            seed=seed,
            use_cache=use_cache,
            watermark=watermark,
            guard=guard,
        )
        return self._speak(request)

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
        *,
        first_chunk: int = STREAMING.first_chunk,
        continuity: str = STREAMING.continuity,
        decode_ahead: int = STREAMING.decode_ahead,
        repetition_penalty: float = ModelDefault(PUBLISHED.repetition_penalty),
        min_p: float = ModelDefault(PUBLISHED.min_p),
        top_p: float = ModelDefault(PUBLISHED.top_p),
        max_new_tokens: int | None = None,
        seed: int | None = None,
        use_cache: bool = True,
        watermark: bool = True,
        guard: str = "light",
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
            continuity: what a sentence knows of those before: "isolated", "history" or "append".
            decode_ahead: speech tokens that may be decoded while a waveform is made; 0 does one after the other.
            seed: None draws one from torch's global generator.

        The other arguments, and what is raised, are those of `generate`. What goes wrong on the way is raised behind
        the audio that came before it.
        """
        request = self._request(
            text,
            audio_prompt_path,
            exaggeration,
            repetition_penalty=repetition_penalty,
            min_p=min_p,
            top_p=top_p,
            cfg_weight=cfg_weight,
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            seed=seed,
            use_cache=use_cache,
            watermark=watermark,
            guard=guard,
        )
        streaming = StreamingConfig(
            chunk_size=chunk_size,
            first_chunk=first_chunk,
            context_window=context_window,
            fade_duration=fade_duration,
            continuity=continuity,
            decode_ahead=decode_ahead,
        )
        return self._stream(request, streaming, print_metrics)

    def generate_batch(
        self,
        texts: Sequence[str],
        voices: Sequence[Reference | Conditionals | None] | None = None,
        exaggeration: float = 0.5,
        cfg_weight: float = ModelDefault(PUBLISHED.cfg_weight),
        temperature: float = ModelDefault(PUBLISHED.temperature),
        *,
        repetition_penalty: float = ModelDefault(PUBLISHED.repetition_penalty),
        min_p: float = ModelDefault(PUBLISHED.min_p),
        top_p: float = ModelDefault(PUBLISHED.top_p),
        max_new_tokens: int | None = None,
        seed: int | None = None,
        watermark: bool = True,
        guard: str = "light",
    ) -> list[Tensor]:
        """Speak several texts at once: (1, N_i) float32 of each, as `generate` gives it. Tokens are decoded together.

        Args:
            voices: of each text, a recording, conditionals, or None for ``conds``; None is ``conds`` for all.
            seed: of the first text; the others' follow from it. None draws them from torch's global generator.

        The other arguments, and what is raised, are those of `generate`. Where some texts fail on the way, it is one
        `chatterbox.synthesis.synthesizer.BatchError`, which has the others' results.
        """
        return self._batch(
            texts,
            voices,
            exaggeration=exaggeration,
            repetition_penalty=repetition_penalty,
            min_p=min_p,
            top_p=top_p,
            cfg_weight=cfg_weight,
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            seed=seed,
            watermark=watermark,
            guard=guard,
        )
