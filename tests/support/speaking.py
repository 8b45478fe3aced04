"""Speech of requests by the parts of a model, in one call."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

import pytest

from chatterbox.config import StreamingConfig
from chatterbox.engine.prefill import Prefiller
from chatterbox.engine.request import Request
from chatterbox.engine.scheduler import Scheduler
from chatterbox.engine.token_stream import TokenSink
from chatterbox.models.s3gen import S3Gen
from chatterbox.models.t3 import T3
from chatterbox.models.tokenizers import TextTokenizer
from chatterbox.models.voice_encoder import VoiceEncoder
from chatterbox.synthesis.request import SynthesisRequest
from chatterbox.synthesis.speech_stream import SpeechChunk
from chatterbox.synthesis.synthesizer import SpeechResult, Synthesizer


def synthesizer_of(t3: T3, s3gen: S3Gen, tokenizer: TextTokenizer, prefixes: Prefiller | None = None) -> Synthesizer:
    """A synthesizer of its own, with the prefix cache of ``prefixes`` if given."""
    manager = None if prefixes is None else prefixes.manager
    return Synthesizer(t3, s3gen, tokenizer, VoiceEncoder(), manager=manager)


def speak(
    t3: T3,
    s3gen: S3Gen,
    tokenizer: TextTokenizer,
    request: SynthesisRequest,
    *,
    prefixes: Prefiller | None = None,
    on_token: Callable[[int], None] | None = None,
) -> SpeechResult:
    return synthesizer_of(t3, s3gen, tokenizer, prefixes).speak(request, on_token=on_token)


def speak_stream(
    t3: T3,
    s3gen: S3Gen,
    tokenizer: TextTokenizer,
    request: SynthesisRequest,
    streaming: StreamingConfig | None,
    *,
    prefixes: Prefiller | None = None,
) -> Iterator[SpeechChunk]:
    return synthesizer_of(t3, s3gen, tokenizer, prefixes).stream(request, streaming)


def speak_batch(
    t3: T3, s3gen: S3Gen, tokenizer: TextTokenizer, requests: Sequence[SynthesisRequest]
) -> list[SpeechResult]:
    return synthesizer_of(t3, s3gen, tokenizer).speak_batch(requests)


def say_instead(
    monkeypatch: pytest.MonkeyPatch, tokens_of: Callable[[int, Request], Sequence[int] | None]
) -> list[Request]:
    """Let T3 say ``tokens_of`` the number of the request and the request; None lets it decode. Requests come here."""
    seen: list[Request] = []
    submit = Scheduler.submit

    def submit_instead(self: Scheduler, request: Request, sink: TokenSink, **options) -> Callable[[], None]:
        seen.append(request)
        tokens = tokens_of(len(seen) - 1, request)
        if tokens is None:
            return submit(self, request, sink, **options)

        def say() -> None:
            sink.begin(0, 1)
            for token in tokens:
                sink.push([token])
            sink.finish()

        threading.Thread(target=say).start()
        return lambda: None

    monkeypatch.setattr(Scheduler, "submit", submit_instead)
    return seen
