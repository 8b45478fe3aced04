"""How a server begins, what it does beside answers, how it ends.

Owns: the first word, what is loaded and warmed before the first caller, models that nobody uses, the Wyoming port. Does
not know: routes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool

from chatterbox.serve.config import ServerConfig, is_loopback
from chatterbox.serve.fields import SpeechCall
from chatterbox.serve.health import Health
from chatterbox.serve.job_routes import JobRoutes
from chatterbox.serve.models import ModelHub, ServedModel
from chatterbox.serve.security import Client
from chatterbox.serve.speaking import Speaking
from chatterbox.serve.voices import Voices
from chatterbox.voice.library import VoiceError

if TYPE_CHECKING:
    from wyoming.server import AsyncTcpServer

logger = logging.getLogger(__name__)

LOOK_SECONDS = 5.0  # between two looks for models that nobody uses, at most


class Lifecycle:
    def __init__(
        self,
        hub: ModelHub,
        config: ServerConfig,
        speaking: Speaking,
        health: Health,
        voices: Voices,
        jobs: JobRoutes,
        *,
        on_ready: Callable[[], None],
        on_failure: Callable[[Exception], None],
    ) -> None:
        """``on_ready``: called when the first model speaks; ``on_failure``: it cannot."""
        self._hub, self._config, self._speaking = hub, config, speaking
        self._health, self._voices, self._jobs = health, voices, jobs
        self._on_ready, self._on_failure = on_ready, on_failure

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        warming = asyncio.create_task(run_in_threadpool(self._begin))
        unloading = asyncio.create_task(self._unload())
        wyoming = None if self._config.wyoming_port is None else await self._listen(self._config.wyoming_port)
        try:
            yield
        finally:
            self._health.end()
            unloading.cancel()
            if wyoming is not None:
                await wyoming.stop()
            await warming
            await run_in_threadpool(self._jobs.close)
            await run_in_threadpool(self._hub.close)

    def end(self) -> None:
        """What is under way has some time to end from now on; nothing begins, and what would last for ever ends."""
        self._health.end()
        self._speaking.end()
        self._jobs.end()

    async def cut(self) -> None:
        """End what is under way, with an error that says why."""
        await run_in_threadpool(self._hub.close)

    async def _listen(self, port: int) -> AsyncTcpServer | None:
        from chatterbox.serve import wyoming

        host = self._config.wyoming_host
        try:
            say = partial(self._speaking.say, Client())
            listening = await wyoming.start(host, port, self._spoken_voices, say, self._config.max_input)
        except OSError as error:
            self._on_failure(OSError(f"cannot listen at {host}, port {port}: {error.strerror or error}"))
            return None
        if not is_loopback(host):
            logger.warning("Wyoming at %s, port %d, knows no keys: whoever reaches it may speak", host, port)
        return listening

    def _spoken_voices(self) -> list[tuple[str, list[str]]]:
        model = self._hub.get(self._hub.names[0])
        return [(name, model.languages) for name in model.voices()]

    def _begin(self) -> None:
        """Load what is configured, and have it say something: what is slow once is slow before the first caller."""
        first, *others = self._hub.names
        try:
            self._make_folders()
            with self._hub.used(first):
                say_a_word(self._hub)
                self._warm(self._hub.get(first))
            self._look_for_default()
            for name in others if self._config.preload else ():
                self._hub.get(name)
            self._voices.sweep()
            self._jobs.begin()
        except Exception as error:
            self._on_failure(error)
        else:
            self._health.begin()
            self._on_ready()

    def _look_for_default(self) -> None:
        """Say so where the voice that is to speak is still to be added."""
        model = self._hub.get(self._hub.names[0])
        try:
            model.voice_name(self._config.default_voice, None)
        except VoiceError as error:
            logger.warning("server.default_voice: %s; requests that name no voice fail until it is added", error)

    def _make_folders(self) -> None:
        """Raises OSError: there cannot be one that was named."""
        for name in ("voices", "jobs"):
            if (folder := getattr(self._config, name)) is not None:
                try:
                    Path(folder).expanduser().mkdir(parents=True, exist_ok=True)
                except OSError as error:
                    raise OSError(f"server.{name}={folder} cannot be a folder: {error.strerror or error}") from None

    def _warm(self, model: ServedModel) -> None:
        """Compute what every text of the voices that are to be warm begins with.

        Raises:
            VoiceError: there is none of that name.
        """
        if names := self._config.warm:
            requests = [model.request(SpeechCall(""), model.voice_name(name, None)) for name in names]
            model.synthesizer.warm(requests)

    async def _unload(self) -> None:
        """Now and then, where the configuration says so."""
        seconds = self._config.unload_seconds
        while seconds is not None:
            await asyncio.sleep(min(seconds, LOOK_SECONDS))
            for name in await run_in_threadpool(self._hub.unload_idle, seconds):
                logger.info("model %s was not used for %g s and is unloaded", name, seconds)


def say_a_word(hub: ModelHub) -> None:
    """Of the first model, in any voice; where it has none there is nothing to try."""
    first = hub.names[0]
    with hub.used(first):
        model = hub.get(first)
        if names := model.voices():
            model.synthesizer.speak(model.request(SpeechCall("Ready.", sampling={"max_new_tokens": 20}), names[0]))
