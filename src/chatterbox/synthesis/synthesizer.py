"""THE MAIN PATH: one loaded model that speaks for all its callers. Read this first.

    text in a voice ──▶ SpeechStream: utterances ──▶ Scheduler: T3's decode steps, shared by all streams
                                                          │ speech tokens, per stream
                                                          ▼
                        chunks ◀── watermark ◀── RenderQueue: S3Gen, the stream that would run dry first

Owns: the parts of a model and how they hang together, for as long as it lives. Does not know: where weights, recordings
or overrides come from, upstream's signatures.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor

from chatterbox.config import EngineConfig, KVCacheConfig, S3GenOptions, StreamingConfig
from chatterbox.engine.prefill import Prefiller
from chatterbox.engine.request import Request
from chatterbox.engine.scheduler import Scheduler
from chatterbox.kvcache import GlobalKVCacheManager, check_names
from chatterbox.models.parallel import unwrapped
from chatterbox.models.s3gen import S3GEN_SR, S3Gen
from chatterbox.models.s3gen.stream import can_remember
from chatterbox.models.s3gen.weight_norm import forget_products
from chatterbox.models.t3 import T3
from chatterbox.models.tokenizers import TextTokenizer
from chatterbox.models.voice_encoder import VoiceEncoder
from chatterbox.models.weights import is_small
from chatterbox.runtime.openmp import release_idle_threads
from chatterbox.runtime.replaceable import replacement
from chatterbox.runtime.torch_context import own_context
from chatterbox.synthesis.render import SpeechRenderer
from chatterbox.synthesis.render_queue import RenderQueue
from chatterbox.synthesis.replaced import chunks_by, inference_name, replaced_inference
from chatterbox.synthesis.request import (
    SynthesisRequest,
    decode_request,
    text_tokens_of,
    utterances_of,
    with_seed,
)
from chatterbox.synthesis.reshaping import reshape_of
from chatterbox.synthesis.speech_stream import SpeechChunk, SpeechStream
from chatterbox.synthesis.utterances import TokenChunk, TokenReader, Utterances, is_silence, nothing_to_speak
from chatterbox.synthesis.voice_memory import VoiceMemories, memory_nbytes, steps_of
from chatterbox.text import Utterance
from chatterbox.values import Fields
from chatterbox.voice.cache import VoiceCache
from chatterbox.voice.conditionals import DEC_COND_SECONDS, Conditionals, Hearing, Reference, prepare_conditionals
from chatterbox.voice.recipe import VoiceRecipe
from chatterbox.watermark.perth import PerthWatermarker, Watermarker

logger = logging.getLogger(__name__)

DEFAULTS = StreamingConfig()
PERTH = PerthWatermarker()
NUM_REMEMBERED = 2  # voices that the default budget has room for, where S3Gen remembers them


@dataclass(frozen=True)
class SynthesizerConfig:
    """What a model keeps and shares: `kvcache` of rows and prefixes, `engine` of steps, `s3gen` of rendering."""

    kvcache: KVCacheConfig = field(default_factory=KVCacheConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    s3gen: S3GenOptions = field(default_factory=S3GenOptions)

    def __post_init__(self) -> None:
        own = Fields(self)
        own.table("kvcache", KVCacheConfig)
        own.table("engine", EngineConfig)
        own.table("s3gen", S3GenOptions)


@dataclass(frozen=True)
class SpeechResult:
    """audio: (1, N) float32 on the CPU at ``sample_rate`` Hz. speech_tokens: (T,), 25 a second. Times in seconds."""

    audio: Tensor
    sample_rate: int
    speech_tokens: Tensor
    tokens_time: float
    audio_time: float

    @property
    def duration(self) -> float:
        return self.audio.shape[-1] / self.sample_rate


class BatchError(RuntimeError):
    """Some texts of a batch failed: ``errors`` by place, ``results`` of all, None where a text failed."""

    def __init__(self, errors: dict[int, BaseException], results: list[SpeechResult | None]) -> None:
        self.errors, self.results = errors, results
        first, error = next(iter(errors.items()))
        super().__init__(
            f"{len(errors)} of {len(results)} texts failed, number {first + 1} with: {error}; "
            "the error's `results` has the others"
        )


class Synthesizer:
    """One model for all threads, streams and batches: T3 behind a scheduler, S3Gen behind a render queue.

    It has no thread before the first request. Threads, rows and caches go with it, or with `close`.
    """

    def __init__(
        self,
        t3: T3,
        s3gen: S3Gen,
        tokenizer: TextTokenizer,
        voice_encoder: VoiceEncoder,
        config: SynthesizerConfig = SynthesizerConfig(),
        *,
        manager: GlobalKVCacheManager | None = None,
        watermarker: Watermarker = PERTH,
    ) -> None:
        """Args:
            manager: a prefix cache that several models share, in place of one made of ``config``.

        Raises:
            ValueError: ``config`` names what does not exist.
        """
        check_names(config.kvcache)
        t3, s3gen, voice_encoder = map(unwrapped, (t3, s3gen, voice_encoder))
        self.t3, self.s3gen, self.tokenizer, self.voice_encoder = t3, s3gen, tokenizer, voice_encoder
        self.config, self.watermarker, self.voices = config, watermarker, VoiceCache()
        self.recipe = VoiceRecipe()
        self._warned: set[str] = set()  # replaced functions that were named
        self._drive(config.kvcache if manager is None else manager)
        self._render_by(s3gen)
        release_idle_threads()  # of the thread that loaded the model, which may only wait from now on

    def replace(self, part: str, value: Any) -> None:
        """Speak with another ``part`` from now on: "t3", "s3gen", "tokenizer", "voice_encoder" or "watermarker".

        Requests under way end with what they began with.
        """
        value = unwrapped(value)
        setattr(self, part, value)
        if part == "t3":
            self._drive(self.prefixes.manager)
        if part == "s3gen":
            self._render_by(value)

    def stream(
        self,
        request: SynthesisRequest,
        streaming: StreamingConfig | None = DEFAULTS,
        *,
        on_token: Callable[[int], None] | None = None,
    ) -> Generator[SpeechChunk, None, None]:
        """Speak ``request.text``, of any length, and hand out its audio while it is made.

        Args:
            streaming: None hands out whole utterances.
            on_token: is told how many speech tokens were decoded so far.

        Closing the iterator, at any point, frees what it holds within a step. What goes wrong on the way is raised
        behind the audio that came before it.

        Raises:
            TypeError: the text is neither a string nor pieces of one.
            ValueError: the model lacks what the guard looks at; the message says so.
            RuntimeError: the model computed NaN, the watermark cannot be made, or the engine is closed or full.
        """
        self._warn_of_replaced(is_streamed=streaming is not None)
        with closing(self._speech(request, streaming).chunks(on_token)) as chunks:
            yield from chunks
        if request.use_cache:
            logger.info(self.prefixes.manager.summary())

    def speak(self, request: SynthesisRequest, *, on_token: Callable[[int], None] | None = None) -> SpeechResult:
        """`stream` in whole utterances, all of them in one. Raises RuntimeError too if the model said nothing.

        Where a program has replaced the T3's ``inference``, or ``inference_turbo``, that is called, in this thread.
        """
        inference = replaced_inference(self.t3)
        if inference is not None:
            return collect(self._chunks_by(inference, request, on_token))
        return collect(self.stream(request, None, on_token=on_token))

    def speak_batch(self, requests: Sequence[SynthesisRequest]) -> list[SpeechResult]:
        """Speak several texts at once, each as `speak` does alone with the same seed. Their steps are shared.

        Raises:
            TypeError, ValueError: a request that cannot be spoken; then none is.
            BatchError: some failed on the way; it has the others' results.
        """
        self._warn_of_replaced(is_streamed=False)
        results: list[SpeechResult | None] = []
        errors: dict[int, BaseException] = {}
        with ExitStack() as under_way:
            # Requests of a batch decode in no order that upstream would know: each has a seed.
            streams = [self._speech(request, None, has_own_seed=True) for request in requests]
            for stream in streams:
                under_way.callback(stream.close)
                stream.start()
            for place, stream in enumerate(streams):
                results.append(None)
                try:
                    results[place] = collect(stream.chunks())
                except Exception as error:
                    errors[place] = error
        if errors:
            raise BatchError(errors, results)
        return [result for result in results if result is not None]

    def decode(self, request: SynthesisRequest, streaming: StreamingConfig = DEFAULTS) -> Iterator[TokenChunk]:
        """Speech tokens of a request as they are decoded, without any audio."""
        request = with_seed(request)
        reader = TokenReader()
        utterances = Utterances(self.scheduler, self.tokenizer, request, streaming, on_change=reader.notify)
        return reader.read(utterances)

    @own_context()
    def utterances(self, request: SynthesisRequest, *, by_sentence: bool = False) -> list[str]:
        """What of a text is spoken in one piece each; ``by_sentence`` as where one knows of another."""
        return [one.text for one in self._utterances_of(request, by_sentence=by_sentence) if not is_silence(one)]

    @own_context()
    def decode_requests(self, request: SynthesisRequest, *, by_sentence: bool = False) -> list[Request]:
        """What T3 is asked for when a text is spoken, one utterance after the other."""
        found = self._utterances_of(request, by_sentence=by_sentence)
        return [decode for _, decode in self._decode_requests(request, found) if decode is not None]

    def warm(self, requests: Sequence[SynthesisRequest], *, pin: bool = False) -> None:
        """Compute ahead of time what texts begin with. ``pin``: keep the voices' own parts on the device."""
        decodes = [decode for request in requests for decode in self.decode_requests(request)]
        self.scheduler.call(lambda between: self.prefixes.warm(decodes, pin=pin, between=between))
        for request in requests:
            self.memories.warm(request.conditionals.gen, pin=pin)

    def conditionals(self, reference: Reference, hearing: Hearing = Hearing()) -> Conditionals:
        """The voice of a recording, prepared once for the same content.

        Raises:
            FileNotFoundError, TypeError, ValueError: the recording cannot be used; the message says why.
        """
        make: Callable[[Reference], Conditionals] = partial(
            prepare_conditionals, self.s3gen, self.voice_encoder, hp=self.t3.hp, hearing=hearing
        )
        recipe = self.recipe.name(self.s3gen, self.voice_encoder)
        try:
            if recipe is None:
                return make(reference)
            recipe = f"{replace(hearing, sample_rate=None)} {recipe}"
            return self.voices.get(reference, make, source_rate=hearing.sample_rate, recipe=recipe)
        finally:
            release_idle_threads()

    def clear(self) -> None:
        """Forget all recordings, and all voices' and texts' prefixes."""
        self.voices.clear()
        self.prefixes.clear()

    def weights_changed(self) -> None:
        """Use nothing any more that was computed before, of any network."""
        self.clear()
        self.t3.weights_changed()
        self.recipe.forget()
        self.memories.forget()
        forget_products(self.s3gen)

    def close(self) -> None:
        """End all requests with an error, and the threads; the model speaks no more. Twice is harmless."""
        self.scheduler.close()
        self.whole_renders.close()
        self.chunk_renders.close()

    def _drive(self, manager: GlobalKVCacheManager | KVCacheConfig) -> None:
        """Let requests from now on be decoded by `t3`."""
        engine, s3gen, beside = self.config.engine, self.config.s3gen, 0
        if s3gen.memory != "none":
            seconds = min(DEC_COND_SECONDS, s3gen.prompt_seconds or DEC_COND_SECONDS)
            beside = NUM_REMEMBERED * memory_nbytes(self.s3gen, steps_of(s3gen, self.s3gen), seconds)
        self.prefixes = Prefiller(
            self.t3,
            manager,
            prefill_len=engine.prefill_len,
            batch_invariant=engine.batch_invariant,
            beside_bytes=beside,
        )
        self.scheduler = Scheduler(self.prefixes, engine)

    def _render_by(self, s3gen: S3Gen) -> None:
        """Let requests from now on be rendered by ``s3gen``."""
        self.memories = VoiceMemories(s3gen, self.prefixes.manager, self.config.s3gen)
        self.whole_renders = self.chunk_renders = RenderQueue()
        if is_small(s3gen.flow, s3gen.mel2wav):
            self.chunk_renders = RenderQueue(runs_alone=True)

    def _tokens_of(self, request: SynthesisRequest) -> Callable[[str], Tensor]:
        return partial(text_tokens_of, self.tokenizer, request, hp=self.t3.hp)

    def _utterances_of(self, request: SynthesisRequest, *, by_sentence: bool = False) -> Iterable[Utterance]:
        return utterances_of(self.t3, request, self._tokens_of(request), by_sentence=by_sentence)

    @own_context()
    def _decode_requests(
        self, request: SynthesisRequest, utterances: Iterable[Utterance]
    ) -> list[tuple[float, Request | None]]:
        """Seconds of silence, and what T3 is asked for behind them; None where nothing is said."""
        tokens_of, index = self._tokens_of(request), count()
        voice = request.conditionals.with_exaggeration(request.exaggeration)

        def decode(text: str) -> Request:
            return decode_request(self.t3, voice, request, tokens_of, text, index=next(index))

        return [(one.pause, None if is_silence(one) else decode(one.text)) for one in utterances]

    def _chunks_by(
        self, inference: Callable[..., Any], request: SynthesisRequest, on_token: Callable[[int], None] | None
    ) -> Iterator[SpeechChunk]:
        """`chunks_by` for ``request``."""
        found = list(self._utterances_of(request)) or [nothing_to_speak()]
        if request.seed is None and sum(not is_silence(one) for one in found) > 1:
            request = with_seed(request)
        requests = self._decode_requests(request, found)
        voice = request.conditionals.with_exaggeration(request.exaggeration)
        watermarker = self.watermarker if request.watermark else None
        renderer = SpeechRenderer(self.s3gen, voice.gen, None, watermarker, reshape_of(request), self.memories)
        return chunks_by(inference, self.t3, renderer, requests, on_token)

    def _warn_of_replaced(self, *, is_streamed: bool) -> None:
        """Name, once, a replaced function that they do not call."""
        self._warn_if_replaced(
            f"t3.{inference_name(self.t3.hp)}", "streams and batches do not call the replaced %s; generate does"
        )
        if is_streamed:
            self._warn_if_replaced(
                "s3gen.inference",
                "streams call the replaced %s for utterances of one chunk alone; generate and batches do for all",
            )

        settings = self.config.s3gen.departures
        if settings and "flow" not in self._warned and not can_remember(self.s3gen):
            self._warned.add("flow")
            settings_shown = " ".join(settings)
            logger.warning("%s has no effect: a replaced function of s3gen's flow makes the mels", settings_shown)

    def _warn_if_replaced(self, name: str, message: str) -> None:
        part, _, method = name.partition(".")
        if name not in self._warned and replacement(getattr(self, part), method) is not None:
            self._warned.add(name)
            logger.warning(message, name)

    def _speech(
        self, request: SynthesisRequest, streaming: StreamingConfig | None, *, has_own_seed: bool = False
    ) -> SpeechStream:
        return SpeechStream(
            self.scheduler,
            self.whole_renders if streaming is None else self.chunk_renders,
            self.s3gen,
            self.tokenizer,
            request,
            streaming,
            self.watermarker,
            self.memories,
            has_own_seed=has_own_seed,
        )


def collect(chunks: Iterable[SpeechChunk]) -> SpeechResult:
    """All chunks of a speech in one. Raises RuntimeError if the model said nothing of what there is to speak."""
    parts: list[Tensor] = []
    speech_tokens: list[int] = []
    tokens_time = waited = 0.0
    for chunk in chunks:
        parts.append(chunk.audio)
        speech_tokens += chunk.speech_tokens
        tokens_time += chunk.metrics.tokens_time
        waited += chunk.metrics.gap
    if not parts:
        raise RuntimeError("the model ended the utterance before it said anything; try another seed or text")
    with own_context():  # not around it all: a program's own function may be what makes the chunks
        audio, decoded = torch.cat(parts, dim=1), torch.tensor(speech_tokens)
    release_idle_threads()
    return SpeechResult(audio, S3GEN_SR, decoded, tokens_time, max(0.0, waited - tokens_time))


@own_context()
def render_speech_tokens(
    s3gen: S3Gen,
    speech_tokens: Tensor,
    gen: Mapping[str, Any],
    *,
    seed: int | None,
    watermarker: Watermarker | None,
) -> Tensor:
    """Waveform (1, N), float32 on the CPU at 24 kHz, of speech tokens (T,) or (1, T) in the voice of ``gen``."""
    renderer = SpeechRenderer(s3gen, gen, None, watermarker)
    renderer.begin(seed)
    renderer.push(speech_tokens.reshape(-1).tolist())
    wav = renderer.close()
    release_idle_threads()
    return wav
