"""THE MAIN PATH: a request comes in, audio goes out, piece by piece or whole. Read this first.

Owns: the order of the steps and the state of a request, which is passed along and never kept. Does not know: where
weights, recordings or overrides come from.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chatterbox.audio import load_reference
from chatterbox.conditioning import Conditionals, Reference
from chatterbox.config import StreamingConfig
from chatterbox.engine.decode import generate_batch
from chatterbox.engine.prefill import PrefixSource
from chatterbox.engine.utterances import Utterances
from chatterbox.models.s3gen import S3GEN_SR, S3Gen
from chatterbox.models.s3tokenizer import S3_SR
from chatterbox.models.t3 import T3
from chatterbox.models.tokenizers import TextTokenizer
from chatterbox.synthesis.prefetch import Ahead
from chatterbox.synthesis.render import SpeechRenderer, Stopwatch, StreamingMetrics
from chatterbox.synthesis.request import (
    SpeechRequest,
    check_seed,
    decode_request,
    utterance_seed,
    utterance_texts,
    with_seed,
)
from chatterbox.synthesis.token_filter import SpeechCodes
from chatterbox.watermark import PerthWatermarker

logger = logging.getLogger(__name__)

DEFAULTS = StreamingConfig()
PERTH = PerthWatermarker()


@dataclass(frozen=True)
class SpeechResult:
    """audio: (1, N) float32 on the CPU at ``sample_rate`` Hz. speech_codes: (T,), 25 a second. Times in seconds."""

    audio: Tensor
    sample_rate: int
    speech_codes: Tensor
    tokens_time: float
    audio_time: float

    @property
    def duration(self) -> float:
        return self.audio.shape[-1] / self.sample_rate


@dataclass(frozen=True)
class SpeechChunk:
    """A part of the speech: audio (1, N) float32 on the CPU at 24 kHz, the codes drawn for it so far, what it cost."""

    audio: Tensor
    speech_codes: tuple[int, ...]
    metrics: StreamingMetrics


def speak(
    t3: T3,
    s3gen: S3Gen,
    tokenizer: TextTokenizer,
    request: SpeechRequest,
    *,
    on_token: Callable[[int], None] | None = None,
    prefixes: PrefixSource | None = None,
    watermarker: PerthWatermarker = PERTH,
) -> SpeechResult:
    """Speak ``request.text``, of any length: `speak_stream` in whole utterances. Safe from several threads.

    ``on_token`` is told how many speech tokens were drawn so far. ``prefixes``, of ``t3``, keeps what a later request
    of the same voice or text need not compute again.

    Raises:
        TypeError: the text is neither a string nor pieces of one.
        ValueError: the model lacks what the guard looks at; the message says so.
        RuntimeError: the model ended before it said anything or computed NaN, or the watermark cannot be made.
    """
    return collect(
        speak_stream(t3, s3gen, tokenizer, request, None, on_token=on_token, prefixes=prefixes, watermarker=watermarker)
    )


def collect(chunks: Iterable[SpeechChunk]) -> SpeechResult:
    """All chunks of a speech in one. Raises RuntimeError if there is nothing."""
    parts: list[Tensor] = []
    codes: list[int] = []
    tokens_time = waited = 0.0
    for chunk in chunks:
        parts.append(chunk.audio)
        codes += chunk.speech_codes
        tokens_time += chunk.metrics.tokens_time
        waited += chunk.metrics.gap
    if not codes:
        raise RuntimeError("the model ended the utterance before it said anything; try another seed or text")
    audio = torch.cat(parts, dim=1)
    return SpeechResult(audio, S3GEN_SR, torch.tensor(codes), tokens_time, max(0.0, waited - tokens_time))


def speak_batch(
    t3: T3,
    s3gen: S3Gen,
    tokenizer: TextTokenizer,
    requests: Sequence[SpeechRequest],
    *,
    prefixes: PrefixSource | None = None,
    watermarker: PerthWatermarker = PERTH,
) -> list[SpeechResult]:
    """Speak several texts, each as `speak` does alone with the same seed. Their tokens are drawn together.

    A batch is on a cache of its first request's policy. The time for tokens is shared out alike.

    Raises:
        ValueError: a request without a cache; nothing can be decoded together then.
        RuntimeError: as `speak`.
    """
    if any(not request.use_cache for request in requests):
        raise ValueError("a batch needs use_cache=True; without a cache texts are spoken one by one")
    # Requests of a batch draw in no order that upstream would know: each has a seed.
    requests = [with_seed(request) for request in requests]
    texts = [list(utterance_texts(t3, tokenizer, request)) for request in requests]
    voices = [request.conditionals.with_exaggeration(request.exaggeration) for request in requests]
    decodes = [
        decode_request(t3, tokenizer, voice, request, text, index=index)
        for request, voice, parts in zip(requests, voices, texts, strict=True)
        for index, text in enumerate(parts)
    ]
    if not decodes:
        return []
    started = time.perf_counter()
    monitor = None if prefixes is None else prefixes.manager.monitor
    policy = requests[0].cache_policy
    tokens = iter(generate_batch(t3, decodes, cache_policy=policy, prefixes=prefixes, monitor=monitor))
    seconds = (time.perf_counter() - started) / len(requests)
    results = []
    for request, voice, parts in zip(requests, voices, texts, strict=True):
        watch = Stopwatch()
        drawn = [at_once(t3, request, text, next(tokens), index) for index, text in enumerate(parts)]
        renderer = SpeechRenderer(s3gen, voice.gen, None, watermarker if request.watermark else None)
        result = collect(render(iter(drawn), renderer, DEFAULTS, request.seed, watch))
        results.append(dataclasses.replace(result, tokens_time=seconds))
    return results


def at_once(t3: T3, request: SpeechRequest, text: str, tokens: Tensor, index: int) -> Drawn:
    """The utterance of ``text``, whose tokens (N,) are all drawn."""
    codes = SpeechCodes(t3.hp, request.guard, at_once=True)
    for token in tokens.tolist():
        codes.push(token)
    return Drawn(finish(codes, text), index, True, len(tokens), 0, 0)


def finish(codes: SpeechCodes, text: str) -> list[int]:
    """The codes of an utterance that were not certain before its end; that there are none at all is logged."""
    rest = codes.finish()
    if not codes.kept:
        logger.warning("the model said nothing of %r; try another seed", text[:80])
    return rest


def speak_stream(
    t3: T3,
    s3gen: S3Gen,
    tokenizer: TextTokenizer,
    request: SpeechRequest,
    streaming: StreamingConfig | None = DEFAULTS,
    *,
    on_token: Callable[[int], None] | None = None,
    prefixes: PrefixSource | None = None,
    watermarker: PerthWatermarker = PERTH,
) -> Generator[SpeechChunk, None, None]:
    """Speak ``request.text`` and hand out its audio while it is made. Closing the iterator frees what it holds.

    ``streaming``: None hands out whole utterances. The other arguments, and what is raised, are those of `speak`; what
    goes wrong on the way is raised behind the audio that came before it.
    """
    watch = Stopwatch()
    voice = request.conditionals.with_exaggeration(request.exaggeration)
    plan = streaming or DEFAULTS
    texts = utterance_texts(t3, tokenizer, request, by_sentence=plan.continuity != "isolated")
    in_one_piece = streaming is None and isinstance(texts, list) and len(texts) == 1
    if not in_one_piece:
        request = with_seed(request)
    renderer = SpeechRenderer(s3gen, voice.gen, streaming, watermarker if request.watermark else None)
    drawn: Generator[Drawn, None, None] | Ahead[Drawn] = draw(t3, tokenizer, voice, request, texts, streaming, prefixes)
    if plan.decode_ahead and not in_one_piece:
        # On a CPU the two share the cores: the first chunk gets them all, so that it is heard sooner.
        drawn = Ahead(drawn, plan.decode_ahead, start=streaming is None or t3.device.type != "cpu")
    is_written = not isinstance(request.text, str)
    with closing(drawn):
        for chunk in render(drawn, renderer, plan, request.seed, watch, on_token, may_stall=is_written):
            if isinstance(drawn, Ahead):
                drawn.start()
            yield chunk
    if prefixes is not None and request.use_cache:
        logger.info(prefixes.manager.summary())


@dataclass(frozen=True)
class Drawn:
    """What T3 hands over: codes that are certain, and of which utterance they are."""

    codes: list[int]
    utterance: int
    ends: bool  # the utterance is over
    num_tokens: int  # drawn so far
    positions_served: int
    positions_computed: int


def draw(
    t3: T3,
    tokenizer: TextTokenizer,
    voice: Conditionals,
    request: SpeechRequest,
    texts: Iterable[str],
    streaming: StreamingConfig | None = None,
    prefixes: PrefixSource | None = None,
) -> Generator[Drawn, None, None]:
    """Speech codes of one utterance after another, as they are drawn; with ``streaming`` None an utterance at once."""
    plan = streaming or DEFAULTS
    speaker = Utterances(
        t3,
        use_cache=request.use_cache,
        cache_policy=request.cache_policy,
        prefixes=prefixes,
        continued=plan.continuity == "append",
    )
    said: tuple[str, list[int]] | None = None  # the utterance before, where the next one knows of it
    num_tokens = 0
    for index, text in enumerate(texts):
        codes = SpeechCodes(t3.hp, request.guard, at_once=streaming is None)
        decode = decode_request(t3, tokenizer, voice, request, text, said=said, index=index)
        for token in speaker.stream(decode):
            num_tokens += 1
            certain = codes.push(token)
            yield Drawn(certain, index, False, num_tokens, speaker.num_served, speaker.num_computed)
        if len(codes.drawn) == decode.max_new_tokens and codes.drawn[-1] != t3.hp.stop_speech_token:
            logger.warning(
                "an utterance was cut off at max_new_tokens %d: %r; raise it", decode.max_new_tokens, text[:80]
            )
        rest = finish(codes, text)
        if plan.continuity == "history":
            said = (text, codes.kept) if 0 < len(codes.kept) <= plan.history_len else None
        yield Drawn(rest, index, True, num_tokens, speaker.num_served, speaker.num_computed)


def render(
    drawn: Iterator[Drawn],
    renderer: SpeechRenderer,
    plan: StreamingConfig,
    seed: int | None,
    watch: Stopwatch,
    on_token: Callable[[int], None] | None = None,
    *,
    may_stall: bool = False,
) -> Iterator[SpeechChunk]:
    """Audio of what is drawn. ``may_stall``: an utterance may be long in coming, so nothing is held back for it."""
    is_isolated = plan.continuity == "isolated"
    codes: list[int] = []

    def chunk(audio: Tensor, last: Drawn) -> Iterator[SpeechChunk]:
        if not audio.shape[1]:
            return
        metrics = watch.chunk(
            audio.shape[1],
            num_tokens=last.num_tokens,
            utterance=last.utterance,
            positions_served=last.positions_served,
            positions_computed=last.positions_computed,
        )
        done = tuple(codes)
        codes.clear()
        yield SpeechChunk(audio, done, metrics)
        watch.resume()

    last = None
    for last in watch.waiting_for_tokens(drawn):
        if on_token is not None and not last.ends:
            on_token(last.num_tokens)
        if last.codes and not renderer.is_open:
            renderer.begin(utterance_seed(seed, last.utterance))
        codes += last.codes
        audio = renderer.take(last.codes)
        if audio is not None:
            yield from chunk(audio, last)
        if last.ends and renderer.is_open and (is_isolated or may_stall):
            yield from chunk(renderer.end() if is_isolated else renderer.pause(), last)
    if last is None:
        logger.warning("the text ended before it said anything; nothing is spoken")
    elif renderer.is_open:
        yield from chunk(renderer.end(), last)


def render_codes(
    s3gen: S3Gen, codes: Tensor, gen: Mapping[str, Any], *, seed: int | None, watermarker: PerthWatermarker | None
) -> Tensor:
    """Waveform (1, N), float32 on the CPU at 24 kHz, of speech codes (T,) or (1, T) in the voice of ``gen``."""
    renderer = SpeechRenderer(s3gen, gen, None, watermarker)
    renderer.begin(seed)
    renderer.take(codes.reshape(-1).tolist())
    return renderer.end()


def convert(
    s3gen: S3Gen,
    recording: Reference,
    gen: Mapping[str, Any],
    *,
    seed: int | None = None,
    watermarker: PerthWatermarker | None = PERTH,
) -> Tensor:
    """Waveform (1, N), as `render_codes`, that says what ``recording`` says in the voice of ``gen``.

    Raises:
        FileNotFoundError, TypeError, ValueError: as `chatterbox.audio.load_reference`, or a bad seed.
    """
    check_seed(seed)
    wav = load_reference(recording, S3_SR)
    with torch.inference_mode():
        codes, _ = s3gen.tokenizer([wav])  # (1, T)
    return render_codes(s3gen, codes, gen, seed=seed, watermarker=watermarker)
