"""What is heard while it is made: when a chunk is due, how its waveform follows the last one's, what it cost.

Owns: the schedule of chunks, the waveform streams of utterances and the seams between them, the metrics of a stream.
Does not know: text, T3, where speech tokens come from.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chatterbox.config import S3GenOptions, StreamingConfig
from chatterbox.models.s3gen import S3GEN_SR, S3Gen
from chatterbox.models.s3gen.cfm import DEFAULT_STEPS
from chatterbox.models.s3gen.stream import S3GenStream, prompt_len, with_prompt_seconds
from chatterbox.runtime.torch_context import own_context
from chatterbox.synthesis.reshaping import Reshape, within_full_scale
from chatterbox.synthesis.voice_memory import VoiceMemories
from chatterbox.watermark.perth import Watermarker, WatermarkStream, mark_with

# An utterance begins with 20 ms of silence: the last sample of the one before fades to 0 in the first half of it.
RELEASE_LEN = S3GEN_SR // 100
WHOLE = 2**62  # speech tokens of a chunk that only the end of an utterance completes


@dataclass
class StreamingMetrics:
    """What a stream has cost so far; each chunk comes with one of its own. Times in seconds.

    The first five are those of chatterbox-streaming 0.1.2. Time that the caller spends between two chunks counts in
    none of them.
    """

    latency_to_first_chunk: float | None = None
    rtf: float | None = None  # total_generation_time / total_audio_duration
    total_generation_time: float | None = None  # that the caller waited
    total_audio_duration: float | None = None
    chunk_count: int = 0
    gap: float = 0.0  # that the caller waited for this chunk
    tokens_time: float = 0.0  # of which T3 took, that was not ahead by so much
    num_tokens: int = 0  # speech tokens decoded so far for what was heard, stop tokens included
    utterance: int = 0  # which of the stream's utterances this chunk is of
    positions_served: int = 0  # before decoded tokens: those that were in memory
    positions_computed: int = 0  # and those that were not

    @property
    def cache_hit_rate(self) -> float:
        """Share of the positions before decoded tokens that were in memory."""
        positions = self.positions_served + self.positions_computed
        return self.positions_served / positions if positions else 0.0

    def summary(self) -> str:
        duration, waited = self.total_audio_duration or 0.0, self.total_generation_time or 0.0
        return (
            f"{duration:.2f} s of audio in {self.chunk_count} chunks, {waited:.2f} s of waiting, real-time factor "
            f"{self.rtf or 0.0:.2f}, first chunk after {self.latency_to_first_chunk or 0.0:.3f} s, "
            f"{self.cache_hit_rate:.0%} of prefixes from the cache"
        )


class Stopwatch:
    """Makes the metrics of a stream: told when a wait begins, and what it gave."""

    def __init__(self) -> None:
        self._waiting = 0.0
        self._num_samples = self._num_chunks = 0
        self._first: float | None = None
        self._since = time.perf_counter()

    def resume(self) -> None:
        """The caller waits from now on."""
        self._since = time.perf_counter()

    def chunk(self, num_samples: int, rendered_from: float, **counts: Any) -> StreamingMetrics:
        """The wait has ended with a chunk, whose rendering began at ``rendered_from`` (`time.perf_counter`)."""
        gap = time.perf_counter() - self._since
        self._waiting += gap
        self._first = self._waiting if self._first is None else self._first
        self._num_samples += num_samples
        self._num_chunks += 1
        duration = self._num_samples / S3GEN_SR
        return StreamingMetrics(
            latency_to_first_chunk=self._first,
            rtf=self._waiting / duration if duration else None,
            total_generation_time=self._waiting,
            total_audio_duration=duration,
            chunk_count=self._num_chunks,
            gap=gap,
            tokens_time=min(gap, max(0.0, rendered_from - self._since)),
            **counts,
        )


def chunk_lens(config: StreamingConfig) -> Iterator[int]:
    """Speech tokens of the first chunk, the second, ...: doubling from `first_chunk` until they are `chunk_size`."""
    length = min(config.first_chunk, config.chunk_size)
    while True:
        yield length
        length = min(2 * length, config.chunk_size)


class SpeechRenderer:
    """Speech tokens to audible chunks: one stream of speech tokens per utterance, or one for all that follow one
    another.

    With ``config`` None a chunk is a whole utterance.
    """

    @own_context()
    def __init__(
        self,
        s3gen: S3Gen,
        gen: Mapping[str, Any],
        config: StreamingConfig | None,
        watermarker: Watermarker | None,
        reshape: Reshape | None = None,
        memories: VoiceMemories | None = None,
    ) -> None:
        """Args:
        gen: the voice, of `S3Gen.embed_ref`.
        watermarker: None leaves the audio unmarked.
        reshape: what each utterance goes through before it is marked, where ``config`` is None; None: nothing.
        memories: what S3Gen remembers, and how many steps it takes; None is its own number and nothing.
        """
        options = S3GenOptions() if memories is None else memories.options
        gen = with_prompt_seconds(gen, options.prompt_seconds)
        self._solving: dict[str, Any] = {"steps": DEFAULT_STEPS if memories is None else memories.steps}
        self._solving |= {"memory": options.memory}
        if memories is not None and options.memory != "none":
            self._solving["voice"] = memories.of(gen)
        self._s3gen, self._gen, self._config = s3gen, gen, config or StreamingConfig()
        self._lookahead_len = s3gen.config.flow.encoder.lookahead_len
        self._lens = iter([WHOLE]) if config is None else chunk_lens(config)
        self._due = next(self._lens)
        self._stream: S3GenStream | None = None
        self._speech_tokens: list[int] = []  # that the stream has not got yet
        self._last = 0.0  # sample of the utterance before
        self._reshape = reshape
        self._watermarker = watermarker
        self._marks = None if config is None or watermarker is None else WatermarkStream(watermarker, S3GEN_SR)

    @property
    def is_open(self) -> bool:
        """Whether an utterance is under way."""
        return self._stream is not None

    @own_context()
    def begin(self, seed: int | None) -> None:
        """The next speech tokens are another utterance's. ``seed``: of its noise, as `S3GenStream`."""
        context_len, fade = self._config.context_window, self._config.fade_duration
        self._stream = S3GenStream(
            self._s3gen, self._gen, seed=seed, context_len=context_len, fade=fade, **self._solving
        )

    @property
    def num_missing(self) -> int:
        """Speech tokens that complete the next chunk."""
        num_waiting = 0 if self._stream is None else self._stream.num_waiting
        return self._due + self._lookahead_len - len(self._speech_tokens) - num_waiting

    @property
    def num_seen_again(self) -> int:
        """Speech tokens that S3Gen computes again with the next chunk: the voice's and the context's."""
        if self._stream is not None:
            return self._stream.num_seen_again
        return prompt_len(self._gen) if self._solving["memory"] == "none" else 0

    def grow(self, num_waiting: int, room: int, *, ends: bool) -> None:
        """Let the next chunk have all of the ``num_waiting`` speech tokens that could be pushed, up to ``room``.

        ``ends``: they end an utterance, so that nothing is held back of them.
        """
        num_more = self._due - self.num_missing + num_waiting + (self._lookahead_len if ends else 0)
        longest = min(room, self._config.max_chunk or 0)
        self._due = max(self._due, min(num_more, longest))

    @property
    def num_to_follow(self) -> int:
        """Speech tokens that complete the next chunk and the one behind it."""
        return self.num_missing + min(2 * self._due, self._config.chunk_size)

    @own_context()
    def push(self, speech_tokens: list[int]) -> Tensor | None:
        """Speech tokens follow; (1, N) samples on the CPU where they complete a chunk."""
        self._speech_tokens += speech_tokens
        if self._stream is None or self.num_missing > 0:
            return None
        return self._said(self._stream.push(self._handed_over()))

    @own_context()
    def flush(self) -> Tensor:
        """Audio of all there is, although speech tokens may follow in the same stream."""
        assert self._stream is not None, "nothing has begun"
        return self._said(self._stream.finish(self._handed_over()), is_all=True)

    def close(self) -> Tensor:
        """Audio of all there is: the utterance is over."""
        audio = self.flush()
        self._stream = None
        self._last = float(audio[0, -1]) if audio.shape[1] else 0.0
        return audio

    def silence(self, seconds: float) -> Tensor:
        """(1, N) samples, exactly so many, between two utterances. They need no mark."""
        assert self._stream is None, "an utterance is under way"
        samples = np.zeros(round(seconds * S3GEN_SR), np.float32)
        self._fade_out_the_last(samples)
        return torch.from_numpy(samples)[None]

    def _handed_over(self) -> Tensor:
        speech_tokens, self._speech_tokens = torch.tensor(self._speech_tokens, dtype=torch.long), []
        self._due = next(self._lens, WHOLE)
        return speech_tokens

    def _said(self, wav: Tensor, *, is_all: bool = False) -> Tensor:
        """``wav`` (1, N) as it is heard: behind the utterance before, and marked. ``is_all``: nothing is held back."""
        samples = wav[0].float().cpu().numpy()
        if self._reshape is not None and len(samples):
            samples = self._reshape(samples)
        self._fade_out_the_last(samples)
        if self._marks is not None:
            ready = [self._marks.push(samples), *([self._marks.finish()] if is_all else [])]
            samples = np.concatenate(ready)
        elif self._watermarker is not None and len(samples):
            samples = mark_with(self._watermarker, samples, S3GEN_SR)
            if self._reshape is not None:
                samples = within_full_scale(samples)
        return torch.from_numpy(np.ascontiguousarray(samples))[None]

    def _fade_out_the_last(self, samples: np.ndarray) -> None:
        """Let the last sample of the utterance before fade in the first 10 ms of ``samples``."""
        if self._last and len(samples):
            length = min(RELEASE_LEN, len(samples))
            samples[:length] += self._last * np.linspace(1, 0, RELEASE_LEN, dtype=np.float32)[:length]
            self._last = 0.0
