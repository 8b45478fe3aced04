"""Requests for speech, answered: over HTTP in one body, over sockets while their text is still being written.

Owns: headers, what is answered before the first byte, what an answer cost. Does not know: how speech is made
(`speech`), paths, who is admitted (`admission`), which model and voice are meant (`models`).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from chatterbox.config import StreamingConfig
from chatterbox.serve.admission import Admissions
from chatterbox.serve.bodies import json_of
from chatterbox.serve.config import ServerConfig
from chatterbox.serve.errors import ApiError, api_error
from chatterbox.serve.fields import SpeechCall, speech_call
from chatterbox.serve.health import Health
from chatterbox.serve.metrics import ServerMetrics
from chatterbox.serve.models import Asked, ModelHub
from chatterbox.serve.security import Client, client_of
from chatterbox.serve.session import Session
from chatterbox.serve.speech import Piece, Speech, audio, content_type, events, pieces
from chatterbox.serve.tracing import SpeechSpan
from chatterbox.synthesis.request import text_tokens_of


class Speaking:
    """What answers them."""

    def __init__(self, hub: ModelHub, config: ServerConfig, metrics: ServerMetrics, health: Health) -> None:
        self._hub, self._config, self._metrics, self._health = hub, config, metrics, health
        self._admissions = Admissions(config)

    @property
    def num_streams(self) -> int:
        """Requests that are answered now."""
        return self._admissions.num_held

    def end(self) -> None:
        """What is being said is said to its end; all else is refused."""
        self._admissions.end()

    async def speech(self, request: Request) -> Response:
        """POST /v1/audio/speech."""
        return await self.answer(speech_call(await json_of(request), self._config), client_of(request))

    async def answer(self, call: SpeechCall, client: Client, headers: Mapping[str, str] | None = None) -> Response:
        """A call's speech, while it is made, with ``headers`` of the route's own.

        Raises:
            ApiError: nothing can be said.
        """
        with self._admissions.admit(client.caller) as leave:
            asked = await self._asked(call)
            num_text_tokens = await run_in_threadpool(_num_text_tokens, asked, call)
            made = self._measured(asked.model.name, pieces(asked.model, call, asked.request), leave, client)
            own = {"cache-control": "no-cache", "x-accel-buffering": "no", **(headers or {})}
            if asked.warnings:
                own["x-chatterbox-warning"] = _header("; ".join(asked.warnings))
            content = events(made, call, num_text_tokens) if call.is_sse else audio(await _begun(made, call))
            return _Answer(leave, content, media_type=content_type(call), headers=own)

    async def session(self, socket: WebSocket) -> None:
        """WebSocket /v1/audio/speech/stream."""
        model = await run_in_threadpool(self._hub.get, self._hub.names[0])
        await Session(socket, self._config, model.defaults.streaming, partial(self.say, client_of(socket))).run()

    async def say(
        self,
        client: Client,
        call: SpeechCall,
        streaming: StreamingConfig | None = None,
        text: AsyncIterator[str] | None = None,
    ) -> Speech:
        """Speech of a call, or of a text that is still being written, for who is no reader of a body."""
        with self._admissions.admit(client.caller) as leave:
            model, request, _, warnings = await self._asked(call)
            if text is not None:
                request = dataclasses.replace(request, text=text)  # type: ignore[arg-type]
            made = pieces(model, call, request, streaming)
            return Speech(_Leaving(self._measured(model.name, made, leave, client), leave), warnings)

    async def _asked(self, call: SpeechCall) -> Asked:
        try:
            return await run_in_threadpool(self._hub.asked, call)
        except ApiError as error:
            self._health.failed(error)
            raise

    async def _measured(
        self, name: str, speech: AsyncIterator[Piece], leave: Callable[[], None], client: Client
    ) -> AsyncIterator[Piece]:
        """``speech``, and what it costs; ``leave`` is called when it is over."""
        own, outcome, started, last = self._metrics, "left", time.perf_counter(), None
        span = SpeechSpan(client.headers)
        try:
            with self._hub.used(name):
                async for piece in speech:
                    if last is None:
                        own.first_audio.labels(name).observe(time.perf_counter() - started)
                        span.event("first audio")
                    elif piece.metrics is not None and piece.data:
                        own.gap.labels(name).observe(piece.metrics.gap)
                    last = piece
                    yield piece
            outcome = "spoken"
            self._health.spoken()
        except Exception as error:
            outcome = "failed"
            self._health.failed(error)
            span.fail(error)
            raise
        finally:
            leave()
            own.requests.labels(name, outcome).inc()
            if last is not None and last.metrics is not None and last.metrics.rtf is not None:
                own.audio_seconds.labels(name).inc(last.metrics.total_audio_duration or 0.0)
                own.real_time_factor.labels(name).observe(last.metrics.rtf)
                span.tell(audio_seconds=last.metrics.total_audio_duration or 0.0, rtf=last.metrics.rtf)
            span.tell(model=name, outcome=outcome)
            span.end()
            await speech.aclose()  # type: ignore[attr-defined]  # an asynchronous generator


class _Answer(StreamingResponse):
    """An answer whose place is given back also where its reader has left before its body was begun."""

    def __init__(self, leave: Callable[[], None], *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._leave = leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._leave()


class _Leaving:
    """Speech whose place is given back when it is closed, be it before its first piece: a generator would keep it."""

    def __init__(self, speech: AsyncIterator[Piece], leave: Callable[[], None]) -> None:
        self._speech, self._leave = speech, leave

    def __aiter__(self) -> AsyncIterator[Piece]:
        return self

    async def __anext__(self) -> Piece:
        return await anext(self._speech)

    async def aclose(self) -> None:
        try:
            await self._speech.aclose()  # type: ignore[attr-defined]  # an asynchronous generator
        finally:
            self._leave()


def _num_text_tokens(asked: Asked, call: SpeechCall) -> int:
    own = asked.model.synthesizer
    try:
        return len(text_tokens_of(own.tokenizer, asked.request, call.text, hp=own.t3.hp))
    except Exception as error:
        raise api_error(error, call.given) from error


async def _begun(speech: AsyncIterator[Piece], call: SpeechCall) -> AsyncIterator[Piece]:
    """``speech`` once its first piece is there: what fails before it has a status."""
    try:
        first = await anext(speech, None)
    except Exception as error:
        raise api_error(error, call.given) from error

    async def all_of_it() -> AsyncIterator[Piece]:
        try:
            if first is not None:
                yield first
            async for piece in speech:
                yield piece
        finally:
            await speech.aclose()  # type: ignore[attr-defined]

    return all_of_it()


def _header(text: str) -> str:
    """As a header may hold it."""
    return text.encode("ascii", "replace").decode("ascii").replace("\n", " ")[:1000]
