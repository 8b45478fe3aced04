"""A WebSocket that text comes in by, and speech goes out of, at the same time.

Owns: messages of both sides, their order, barge-in. Does not know: how speech is made (`speech`), models.

The client sends JSON: ``session.config`` (fields of a request for speech, and of streaming; they hold until the next),
``input.text`` (a piece of text, of any size), ``input.done`` (the text is over: say all of it), ``input.cancel`` (stop
at once, and forget what was not said), ``session.close``. It gets JSON and, between, binary frames of the format:
``audio.start`` (with warnings), ``audio.sentence`` before the frames of each, ``audio.done`` with the tokens used, or
``audio.cancelled``; ``session.done``; ``error``.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from chatterbox.config import StreamingConfig
from chatterbox.models.s3gen import S3GEN_SR
from chatterbox.serve.config import ServerConfig
from chatterbox.serve.errors import FAULT, ApiError, api_error
from chatterbox.serve.fields import SpeechCall, speech_call
from chatterbox.serve.speech import Speech

logger = logging.getLogger(__name__)

STREAMING = {one.name for one in dataclasses.fields(StreamingConfig)}
ILL_FORMED = 1007  # why a connection is closed
Speak = Callable[[SpeechCall, StreamingConfig | None, AsyncIterator[str]], Awaitable[Speech]]


class Session:
    """One connection. `run` it."""

    def __init__(self, socket: WebSocket, config: ServerConfig, streaming: StreamingConfig, speak: Speak) -> None:
        """Args:
        streaming: where the client names nothing else.
        speak: speech of a text in pieces; what it raises before the first piece is told as any error is.
        """
        self._socket, self._config, self._speak = socket, config, speak
        self._call = SpeechCall("", format="pcm")
        self._streaming = streaming
        self._usual = streaming
        self._text: ArrivingText | None = None
        self._speaking: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Until the client leaves, or closes."""
        await self._socket.accept()
        try:
            while await self._understood(await self._socket.receive_text()):
                pass
            await self._spoken()
            await self._tell(type="session.done")
            await self._socket.close()
        except WebSocketDisconnect:
            pass
        except KeyError:  # a message of bytes
            await self._fail(ApiError("a message must be text, of JSON", code="invalid_json"))
            await self._socket.close(ILL_FORMED)
        finally:
            await self._stop()

    async def _understood(self, message: str) -> bool:
        """Do what a message says; False: it was the last."""
        try:
            values = json.loads(message)
            if not isinstance(values, Mapping):
                raise ApiError("a message must be a JSON object", code="invalid_json")
            kind = values.get("type")
            if kind == "session.close":
                return False
            await self._done(kind, {name: value for name, value in values.items() if name != "type"})
        except json.JSONDecodeError:
            await self._fail(ApiError("a message must be JSON", code="invalid_json"))
        except Exception as error:
            await self._fail(error)
        return True

    async def _done(self, kind: Any, values: dict[str, Any]) -> None:
        if kind == "session.config":
            self._configure(values)
        elif kind == "input.text":
            self._take(values.get("text"))
        elif kind == "input.done":
            if self._text is not None:
                self._text.end()
                self._text = None
        elif kind == "input.cancel":
            was_speaking = self._speaking is not None and not self._speaking.done()
            await self._stop()
            if was_speaking:
                await self._tell(type="audio.cancelled")
        else:
            choices = "session.config, input.text, input.done, input.cancel or session.close"
            raise ApiError(f"type must be {choices}, got {kind!r}", param="type", code="invalid_value")

    def _configure(self, values: dict[str, Any]) -> None:
        """What is said from now on; it does not reach into what is under way."""
        given = {name: values.pop(name) for name in STREAMING & values.keys()}
        streaming = dataclasses.replace(self._usual, **given)
        call = speech_call({"response_format": "pcm", **values, "input": "a"}, self._config)
        if call.is_whole:
            raise ApiError(
                "speed, loudness and stream=false are of whole speech alone; leave them out", code="invalid_value"
            )
        self._call, self._streaming = call, streaming

    def _take(self, text: Any) -> None:
        if not isinstance(text, str):
            raise ApiError("text must be a string", param="text", code="invalid_value")
        if self._text is None:
            before, self._text = self._speaking, ArrivingText(self._config.max_input)
            said = self._say(self._text, self._call, self._streaming, before)
            self._speaking = asyncio.create_task(said)
        self._text.push(text)

    async def _say(
        self, text: ArrivingText, call: SpeechCall, streaming: StreamingConfig, before: asyncio.Task[None] | None
    ) -> None:
        """Speak ``text`` while it comes, behind what was asked for before."""
        if before is not None:
            await asyncio.wait([before])
        num_tokens, sentence = 0, None
        try:
            made, warnings = await self._speak(call, streaming, text)
            async with aclosing(made) as speech:  # type: ignore[type-var]
                form = {"response_format": call.format, "sample_rate": S3GEN_SR, "channels": 1}
                await self._tell(type="audio.start", **form, warnings=warnings)
                async for piece in speech:
                    if piece.metrics is not None:
                        num_tokens = piece.metrics.num_tokens
                    if piece.sentence is not None and piece.sentence != sentence:
                        sentence = piece.sentence
                        await self._tell(type="audio.sentence", **sentence._asdict())
                    if piece.data:
                        await self._socket.send_bytes(piece.data)
            await self._tell(type="audio.done", usage={"output_tokens": num_tokens})
        except WebSocketDisconnect:
            pass
        except Exception as error:
            if self._socket.application_state is WebSocketState.CONNECTED:
                await self._fail(error)
        finally:
            if self._text is text:
                self._text = None

    async def _spoken(self) -> None:
        if self._text is not None:
            self._text.end()
        if self._speaking is not None:
            await asyncio.wait([self._speaking])

    async def _stop(self) -> None:
        speaking, self._speaking, self._text = self._speaking, None, None
        if speaking is not None:
            speaking.cancel()
            await asyncio.wait([speaking])

    async def _fail(self, error: Exception) -> None:
        told = api_error(error)
        if told.status == FAULT:
            logger.error("a session failed", exc_info=error)
        await self._tell(type="error", **told.body)

    async def _tell(self, **message: Any) -> None:
        with contextlib.suppress(RuntimeError, WebSocketDisconnect):
            await self._socket.send_text(json.dumps(message))


class ArrivingText:
    """Pieces of a text on their way from the client to the model."""

    def __init__(self, most: int) -> None:
        """``most``: characters that may wait."""
        self._pieces: asyncio.Queue[str | None] = asyncio.Queue()
        self._most, self._num_waiting = most, 0

    def push(self, piece: str) -> None:
        if self._num_waiting + len(piece) > self._most:
            message = f"more than {self._most} characters wait to be spoken; send the rest when some are said"
            raise ApiError(message, param="text", code="string_above_max_length")
        self._num_waiting += len(piece)
        if piece:
            self._pieces.put_nowait(piece)

    def end(self) -> None:
        self._pieces.put_nowait(None)

    def __aiter__(self) -> ArrivingText:
        return self

    async def __anext__(self) -> str:
        piece = await self._pieces.get()
        if piece is None:
            self._pieces.put_nowait(None)  # for whoever asks again
            raise StopAsyncIteration
        self._num_waiting -= len(piece)
        return piece
