"""Wyoming, by which Home Assistant speaks: a text, whole or while it is written, to audio over a socket.

Owns: events of both sides, their order. Does not know: how speech is made, models.

Speech is made in a task, so that events are read meanwhile: more text, and that the client has left. Home Assistant
sends the whole text once more within a stream, for servers that know no streams; here it is not said twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, cast

from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.error import Error
from wyoming.event import Event
from wyoming.info import Attribution, Describe, Info, TtsProgram, TtsVoice
from wyoming.server import AsyncEventHandler, AsyncTcpServer
from wyoming.tts import (
    Synthesize,
    SynthesizeChunk,
    SynthesizeStart,
    SynthesizeStop,
    SynthesizeStopped,
    SynthesizeVoice,
)

from chatterbox import __version__
from chatterbox.models.s3gen import S3GEN_SR
from chatterbox.serve.errors import BUSY, FAULT, ApiError, api_error
from chatterbox.serve.fields import SpeechCall
from chatterbox.serve.session import ArrivingText, Speak

logger = logging.getLogger(__name__)

ABOUT = Attribution(name="Chatterbox", url="https://github.com/resemble-ai/chatterbox")
FORMAT = {"rate": S3GEN_SR, "width": 2, "channels": 1}
DESCRIPTION = "Text to speech with voice cloning"
MAX_EVENT = 2**20  # bytes of one event's data
MAX_WAITING = 16  # texts of one connection behind the one that is spoken


async def start(
    host: str, port: int, voices: Callable[[], Sequence[tuple[str, Sequence[str]]]], speak: Speak, max_input: int
) -> AsyncTcpServer:
    """Listen. ``voices``: names and the languages of each, of this moment; it may take long."""
    server = AsyncTcpServer(host, port)
    await server.start(partial(_Handler, voices, speak, max_input))
    return server


class _Bounded:
    """A reader of events that are no larger than any is."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self.readline, self.feed_eof = reader.readline, reader.feed_eof

    async def readexactly(self, num: int) -> bytes:
        """Raises ValueError: more than an event may have."""
        if num > MAX_EVENT:
            raise ValueError(f"an event of {num} bytes")
        return await self._reader.readexactly(num)


class _Handler(AsyncEventHandler):
    """One connection."""

    def __init__(
        self,
        voices: Callable[[], Sequence[tuple[str, Sequence[str]]]],
        speak: Speak,
        max_input: int,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        super().__init__(cast(asyncio.StreamReader, _Bounded(reader)), writer)
        self._voices, self._speak, self._max_input = voices, speak, max_input
        self._text: ArrivingText | None = None  # of a stream that is under way
        self._speaking: asyncio.Task[None] | None = None
        self._num_asked = 0  # texts that are not spoken yet

    async def run(self) -> None:
        """Until the client leaves, or sends what is no event."""
        try:
            await super().run()
        except ConnectionError:
            pass
        except (AttributeError, EOFError, KeyError, TypeError, ValueError):
            logger.info("a Wyoming client sent what is no event, and was left")

    async def handle_event(self, event: Event) -> bool:
        """Do what an event says; those that are not known are dropped."""
        try:
            if Describe.is_type(event.type):
                await self.write_event((await asyncio.to_thread(self._info)).event())
            elif SynthesizeStart.is_type(event.type):
                voice, self._text = _read(SynthesizeStart, event).voice, ArrivingText(self._max_input)
                self._begin(self._text, voice, is_stream=True)
            elif SynthesizeChunk.is_type(event.type) and self._text is not None:
                self._text.push(_read(SynthesizeChunk, event).text)
            elif SynthesizeStop.is_type(event.type) and self._text is not None:
                self._text.end()
                self._text = None
            elif Synthesize.is_type(event.type) and self._text is None:
                asked, text = _read(Synthesize, event), ArrivingText(self._max_input)
                text.push(asked.text)
                text.end()
                self._begin(text, asked.voice, is_stream=False)
        except Exception as error:
            await self._fail(error)
        return True

    async def disconnect(self) -> None:
        """The client has left: what is under way is given up."""
        if self._speaking is not None:
            self._speaking.cancel()
            await asyncio.wait([self._speaking])

    def _begin(self, text: ArrivingText, voice: SynthesizeVoice | None, *, is_stream: bool) -> None:
        if self._num_asked > MAX_WAITING:
            message = f"{MAX_WAITING} texts of this connection wait; send the next when one is spoken"
            raise ApiError(message, BUSY, code="queue_full")
        name = None if voice is None else voice.name or voice.speaker
        language = None if voice is None else voice.language
        call = SpeechCall("", voice=name, language=language, format="pcm")
        self._num_asked += 1
        self._speaking = asyncio.create_task(self._say(call, text, self._speaking, is_stream=is_stream))
        self._speaking.add_done_callback(self._spoken)

    def _spoken(self, _: asyncio.Task[None]) -> None:
        self._num_asked -= 1

    async def _say(
        self, call: SpeechCall, text: AsyncIterator[str], before: asyncio.Task[None] | None, *, is_stream: bool
    ) -> None:
        """Speak ``text`` while it comes, behind what was asked for before."""
        if before is not None:
            await asyncio.wait([before])
        try:
            made, _ = await self._speak(call, None, text)  # there is nothing in a voice and a language to warn of
            async with aclosing(made) as speech:  # type: ignore[type-var]
                await self.write_event(AudioStart(**FORMAT).event())
                async for piece in speech:
                    if piece.data:
                        await self.write_event(AudioChunk(**FORMAT, audio=piece.data).event())
            await self.write_event(AudioStop().event())
        except ConnectionError:
            return
        except Exception as error:
            await self._fail(error)
        if is_stream:  # Home Assistant waits for it
            await self.write_event(SynthesizeStopped().event())

    async def _fail(self, error: Exception) -> None:
        told = api_error(error)
        if told.status == FAULT:
            logger.error("a Wyoming client's request failed", exc_info=error)
        await self.write_event(Error(text=str(told), code=told.code).event())

    def _info(self) -> Info:
        voices = [
            TtsVoice(
                name=name, attribution=ABOUT, installed=True, description=name, version=None, languages=list(languages)
            )
            for name, languages in self._voices()
        ]
        program = TtsProgram(
            name="chatterbox", attribution=ABOUT, installed=True, description=DESCRIPTION, version=__version__,
            voices=voices, supports_synthesize_streaming=True,
        )  # fmt: skip
        return Info(tts=[program])


def _read(kind: Any, event: Event) -> Any:
    """An event's data as its ``kind`` has them. Raises ApiError: they are others."""
    try:
        data = kind.from_event(event)
        voice = getattr(data, "voice", None)
        texts = [getattr(data, "text", ""), *(vars(voice).values() if voice is not None else ())]
        is_right = all(one is None or isinstance(one, str) for one in texts) and texts[0] is not None
    except (AttributeError, KeyError, TypeError, ValueError):
        is_right = False
    if not is_right:
        raise ApiError(f"{event.type} needs a text, and a voice by its name, as Wyoming has them", code="invalid_event")
    return data
