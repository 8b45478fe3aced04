"""Requests for speech, answered: over HTTP in one body, over sockets while their text is still being written.

Owns: admission, headers, what is answered before the first byte, what an answer cost. Does not know: how speech is made
(`speech`), paths, which model and voice are meant (`models`).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from chatterbox.config import StreamingConfig
from chatterbox.serve.bodies import json_of
from chatterbox.serve.config import ServerConfig
from chatterbox.serve.errors import BUSY, RETRY_SECONDS, ApiError, api_error
from chatterbox.serve.fields import SpeechCall, speech_call
from chatterbox.serve.metrics import ServerMetrics
from chatterbox.serve.models import Asked, ModelHub
from chatterbox.serve.session import Session
from chatterbox.serve.speech import Piece, Speech, audio, content_type, events, pieces
from chatterbox.synthesis.request import text_tokens_of


class Speaking:
    """What answers them. ``num_streams``: that are answered now."""

    def __init__(self, hub: ModelHub, config: ServerConfig, metrics: ServerMetrics) -> None:
        self._hub, self._config, self._metrics = hub, config, metrics
        self.num_streams = 0

    async def speech(self, request: Request) -> Response:
        """POST /v1/audio/speech."""
        return await self.answer(speech_call(await json_of(request), self._config))

    async def answer(self, call: SpeechCall, headers: Mapping[str, str] | None = None) -> Response:
        """A call's speech, while it is made, with ``headers`` of the route's own.

        Raises:
            ApiError: nothing can be said.
        """
        with self._admitted() as leave:
            asked = await run_in_threadpool(self._hub.asked, call)
            num_text_tokens = await run_in_threadpool(_num_text_tokens, asked, call)
            made = self._measured(asked.model.name, pieces(asked.model, call, asked.request), leave)
            own = {"cache-control": "no-cache", "x-accel-buffering": "no", **(headers or {})}
            if asked.warnings:
                own["x-chatterbox-warning"] = _header("; ".join(asked.warnings))
            content = events(made, call, num_text_tokens) if call.is_sse else audio(await _begun(made, call))
            return _Answer(leave, content, media_type=content_type(call), headers=own)

    async def session(self, socket: WebSocket) -> None:
        """WebSocket /v1/audio/speech/stream."""
        model = await run_in_threadpool(self._hub.get, self._hub.names[0])
        await Session(socket, self._config, model.defaults.streaming, self.say).run()

    async def say(
        self, call: SpeechCall, streaming: StreamingConfig | None = None, text: AsyncIterator[str] | None = None
    ) -> Speech:
        """Speech of a call, or of a text that is still being written, for who is no reader of a body."""
        with self._admitted() as leave:
            model, request, _, warnings = await run_in_threadpool(self._hub.asked, call)
            if text is not None:
                request = dataclasses.replace(request, text=text)  # type: ignore[arg-type]
            made = pieces(model, call, request, streaming)
            return Speech(_Leaving(self._measured(model.name, made, leave), leave), warnings)

    async def _measured(
        self, name: str, speech: AsyncIterator[Piece], leave: Callable[[], None]
    ) -> AsyncIterator[Piece]:
        """``speech``, and what it costs; ``leave`` is called when it is over."""
        own, outcome, started, last = self._metrics, "left", time.perf_counter(), None
        try:
            async for piece in speech:
                if last is None:
                    own.first_audio.labels(name).observe(time.perf_counter() - started)
                elif piece.metrics is not None and piece.data:
                    own.gap.labels(name).observe(piece.metrics.gap)
                last = piece
                yield piece
            outcome = "spoken"
        except Exception:
            outcome = "failed"
            raise
        finally:
            leave()
            own.requests.labels(name, outcome).inc()
            if last is not None and last.metrics is not None and last.metrics.rtf is not None:
                own.audio_seconds.labels(name).inc(last.metrics.total_audio_duration or 0.0)
                own.real_time_factor.labels(name).observe(last.metrics.rtf)
            await speech.aclose()  # type: ignore[attr-defined]  # an asynchronous generator

    def _admitted(self) -> _Admission:
        if self.num_streams >= self._config.max_streams:
            headers = {"retry-after": str(RETRY_SECONDS)}
            message = f"{self.num_streams} requests are being answered, which is all that fit; try again in a moment"
            raise ApiError(message, BUSY, code="queue_full", headers=headers)
        return _Admission(self._count)

    def _count(self, number: int) -> None:
        self.num_streams += number


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


class _Admission:
    """A place among those that are answered: given back when the answer is over, or was never begun."""

    def __init__(self, count: Callable[[int], None]) -> None:
        self._count, self._is_held = count, False

    def __enter__(self) -> Callable[[], None]:
        self._is_held = True
        self._count(1)
        return self._leave

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if error is not None:
            self._leave()

    def _leave(self) -> None:
        if self._is_held:
            self._is_held = False
            self._count(-1)


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
