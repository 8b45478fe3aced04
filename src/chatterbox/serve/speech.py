"""A call's speech as bytes of its format while it is made, or as events that hold them.

Owns: what a stream says first, between and last, when it fails too. Does not know: HTTP, which model is meant.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import AsyncIterator, Generator
from contextlib import aclosing, closing
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from chatterbox.audio.encoding import FORMATS, encoder_of
from chatterbox.config import StreamingConfig
from chatterbox.models.s3gen import S3GEN_SR
from chatterbox.serve.errors import FAULT, api_error
from chatterbox.serve.fields import SpeechCall
from chatterbox.serve.models import ServedModel
from chatterbox.synthesis.aio import astream
from chatterbox.synthesis.render import StreamingMetrics
from chatterbox.synthesis.request import SynthesisRequest
from chatterbox.synthesis.utterances import SILENCE

logger = logging.getLogger(__name__)

EVENTS_TYPE = "text/event-stream"
KEEP_ALIVE = b": keep-alive\n\n"  # a comment, which clients skip
KEEP_ALIVE_SECONDS = 2.0  # between two lines of events at most: LiveKit leaves after 5


class Sentence(NamedTuple):
    """What is being said, and from when on in the audio."""

    utterance: int
    text: str
    start: float  # seconds


@dataclass(frozen=True)
class Piece:
    """Bytes of the format, and what the speech has cost up to them; the last has no audio, and may have bytes."""

    data: bytes
    metrics: StreamingMetrics | None
    sentence: Sentence | None = None


class Speech(NamedTuple):
    """What is being made, and what of it is not as it was asked for, one line each."""

    pieces: AsyncIterator[Piece]
    warnings: tuple[str, ...]


def pieces(
    model: ServedModel, call: SpeechCall, request: SynthesisRequest, streaming: StreamingConfig | None = None
) -> AsyncIterator[Piece]:
    """Speech of ``request`` as it is made, in a thread of its own, as far as its reader is. Leaving closes it.

    Its text may also be an asynchronous iterator of pieces. ``streaming``: None is the model's usual.
    """
    usual = None if call.is_whole else model.defaults.streaming
    return astream(lambda text: _encoded(model, call, replace(request, text=text), streaming or usual), request.text)


def _encoded(
    model: ServedModel, call: SpeechCall, request: SynthesisRequest, streaming: StreamingConfig | None
) -> Generator[Piece, None, None]:
    encoder, metrics, sentence, seconds = encoder_of(call.format, S3GEN_SR), None, None, 0.0
    with closing(encoder), closing(model.synthesizer.stream(request, streaming)) as chunks:
        for chunk in chunks:
            metrics = chunk.metrics
            if sentence is None or sentence.utterance != metrics.utterance:
                sentence = Sentence(metrics.utterance, chunk.text, round(seconds, 3))
            seconds += chunk.audio.shape[1] / S3GEN_SR
            if data := encoder.push(chunk.audio[0].numpy()):
                yield Piece(data, metrics, sentence)
        if not seconds:  # nothing in the text can be spoken: programs try a server out by a full stop
            yield Piece(encoder.push(np.zeros(round(SILENCE * S3GEN_SR), np.float32)), metrics, sentence)
        yield Piece(encoder.finish(), metrics, sentence)


async def audio(speech: AsyncIterator[Piece]) -> AsyncIterator[bytes]:
    """The body of an answer that is audio. What goes wrong in its midst cuts it."""
    async with aclosing(speech) as made:  # type: ignore[type-var]  # an asynchronous generator
        async for piece in made:
            if piece.data:
                yield piece.data


async def events(speech: AsyncIterator[Piece], call: SpeechCall, num_text_tokens: int) -> AsyncIterator[bytes]:
    """The body of an answer of server-sent events. What goes wrong is the last of them: no client asks again for it."""
    form: dict[str, Any] = {"response_format": call.format, "sample_rate": S3GEN_SR, "channels": 1}
    yield event({"type": "speech.audio.info", **form, "bits_per_sample": 16})
    metrics = None
    try:
        async with aclosing(_patiently(speech)) as made:  # type: ignore[type-var]
            async for piece in made:
                if piece is None:
                    yield KEEP_ALIVE
                    continue
                metrics = piece.metrics
                if piece.data:
                    encoded = base64.b64encode(piece.data).decode("ascii")
                    yield event({"type": "speech.audio.delta", "audio": encoded, "response_format": call.format})
    except Exception as error:
        told = api_error(error)
        if told.status == FAULT:
            logger.exception("speech failed behind its first bytes")
        yield event({"type": "speech.audio.error", **told.body})
        return
    num_speech_tokens = 0 if metrics is None else metrics.num_tokens
    usage = {"input_tokens": num_text_tokens, "output_tokens": num_speech_tokens}
    yield event({"type": "speech.audio.done", "usage": {**usage, "total_tokens": sum(usage.values())}})


async def _patiently(speech: AsyncIterator[Piece]) -> AsyncIterator[Piece | None]:
    """``speech``, and None as often as nothing comes for `KEEP_ALIVE_SECONDS`: it may wait for rows of the engine.

    Leaving closes it.
    """
    coming = asyncio.create_task(_next(speech))
    try:
        while True:
            while not (await asyncio.wait([coming], timeout=KEEP_ALIVE_SECONDS))[0]:
                yield None
            piece = coming.result()
            if piece is None:
                return
            yield piece
            coming = asyncio.create_task(_next(speech))
    finally:
        if coming.done():
            await speech.aclose()  # type: ignore[attr-defined]  # an asynchronous generator
        else:
            coming.cancel()  # which is raised within ``speech``, and so ends it


async def _next(speech: AsyncIterator[Piece]) -> Piece | None:
    return await anext(speech, None)


def event(values: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return f"data: {json.dumps(values, separators=(',', ':'))}\n\n".encode()


def content_type(call: SpeechCall) -> str:
    return EVENTS_TYPE if call.is_sse else FORMATS[call.format].content_type
