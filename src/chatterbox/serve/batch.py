"""Several requests for speech in one, as vLLM-Omni's clients send them: spoken together, answered together.

Owns: the body of a batch, what is told of each item. Does not know: how speech is made (`speaking`), fields (`fields`).
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import logging
from collections.abc import Mapping
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from chatterbox.audio.encoding import FORMATS, with_its_length
from chatterbox.serve.bodies import json_of
from chatterbox.serve.config import ServerConfig
from chatterbox.serve.errors import BUSY, FAULT, LEFT, ApiError, api_error
from chatterbox.serve.fields import SpeechCall, speech_call
from chatterbox.serve.security import Client, client_of
from chatterbox.serve.speaking import Speaking
from chatterbox.serve.speech import audio
from chatterbox.values import shown

logger = logging.getLogger(__name__)

MAX_ITEMS = 32


class Batches:
    """What answers them."""

    def __init__(self, speaking: Speaking, config: ServerConfig) -> None:
        self._speaking, self._config = speaking, config

    async def batch(self, request: Request) -> Response:
        """POST /v1/audio/speech/batch: ``items``, each a request for speech, and fields that all of them have.

        Each item has a place of its own among the requests that are answered; what is wrong with one is told of it
        alone.
        """
        calls = self._calls(await json_of(request))
        told = await _unless_left(request, asyncio.gather(*(self._spoken(call, client_of(request)) for call in calls)))
        if told is None:
            return Response(status_code=LEFT)
        errors = [one for one in told if isinstance(one, ApiError)]
        if len(errors) == len(told) and all(one.status == BUSY for one in errors):
            raise errors[0]
        results = [{"index": number, **_result(one)} for number, one in enumerate(told)]
        counts = {"total": len(told), "succeeded": len(told) - len(errors), "failed": len(errors)}
        return JSONResponse({"results": results, **counts})

    def _calls(self, body: Any) -> list[SpeechCall | ApiError]:
        """What each item means, or what is wrong with it. Raises ApiError: it is no batch, or one of too much text."""
        items = body.get("items") if isinstance(body, Mapping) else None
        if not isinstance(items, list) or not 1 <= len(items) <= MAX_ITEMS:
            got = f"{len(items)} of them" if isinstance(items, list) else shown(items)
            message = f"items must be a list of 1 to {MAX_ITEMS} requests for speech, got {got}"
            raise ApiError(message, param="items", code="invalid_value")
        shared = {name: value for name, value in body.items() if name != "items"}
        calls = [self._call(shared, item) for item in items]
        num = sum(len(one.text) for one in calls if isinstance(one, SpeechCall))
        if num > self._config.max_input:
            message = f"items have {num} characters, more than {self._config.max_input}; send them in several batches"
            raise ApiError(message, param="items", code="string_above_max_length")
        return calls

    def _call(self, shared: Mapping[str, Any], item: Any) -> SpeechCall | ApiError:
        if not isinstance(item, Mapping):
            return ApiError(f"an item must be a JSON object, got {shown(item)}", param="items", code="invalid_value")
        try:
            return dataclasses.replace(speech_call({**shared, **item}, self._config), is_collected=True)
        except ApiError as error:
            return error

    async def _spoken(self, call: SpeechCall | ApiError, client: Client) -> _Spoken | ApiError:
        if isinstance(call, ApiError):
            return call
        try:
            speech, warnings = await self._speaking.say(client, call)
            async with aclosing(audio(speech)) as parts:  # type: ignore[type-var]  # an asynchronous generator
                data = b"".join([part async for part in parts])
            return _Spoken(call.format, with_its_length(data) if call.format == "wav" else data, warnings)
        except Exception as error:
            told = api_error(error, call.given)
            if told.status == FAULT:
                logger.error("an item of a batch failed", exc_info=error)
            return told


@dataclasses.dataclass(frozen=True)
class _Spoken:
    format: str
    data: bytes
    warnings: tuple[str, ...]


def _result(one: _Spoken | ApiError) -> dict[str, Any]:
    if isinstance(one, ApiError):
        return {"status": "error", **one.body}
    encoded, kind = base64.b64encode(one.data).decode("ascii"), FORMATS[one.format].content_type
    told = {"status": "success", "audio_data": encoded, "response_format": one.format, "media_type": kind}
    return {**told, "warnings": list(one.warnings)}


async def _unless_left(request: Request, work: asyncio.Future[list[Any]]) -> list[Any] | None:
    """What ``work`` gives; None: the client has left before, which ends it."""
    left = asyncio.create_task(_left(request))
    both: list[asyncio.Future[Any]] = [work, left]
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        return work.result() if work.done() else None
    finally:
        for one in both:
            one.cancel()
        await asyncio.wait(both)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
