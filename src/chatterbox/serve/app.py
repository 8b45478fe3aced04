"""The server's routes, and what is answered beside speech.

Owns: paths, statuses, how the server begins and ends. Does not know: how a request for speech is answered (`speaking`),
which model and voice are meant (`models`), fields (`fields`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, Route, WebSocketRoute

from chatterbox import __version__
from chatterbox.audio.encoding import available
from chatterbox.serve.access_log import RequestsLog
from chatterbox.serve.batch import Batches
from chatterbox.serve.bodies import BodyLimit, form_of
from chatterbox.serve.config import ServerConfig
from chatterbox.serve.consents import add_consent
from chatterbox.serve.errors import CLOSED, NOT_FOUND, ApiError, api_error
from chatterbox.serve.fields import SpeechCall
from chatterbox.serve.health import FAILING, Health
from chatterbox.serve.job_routes import JobRoutes
from chatterbox.serve.metrics import CONTENT_TYPE, ServerMetrics
from chatterbox.serve.models import ModelHub, ServedModel
from chatterbox.serve.openapi import description
from chatterbox.serve.page import page
from chatterbox.serve.peers.devnen import DevnenRoutes
from chatterbox.serve.peers.travisvn import TravisvnRoutes
from chatterbox.serve.security import Client, Keys, Origins
from chatterbox.serve.speaking import Speaking
from chatterbox.serve.voices import Voices, voice_object

if TYPE_CHECKING:
    from wyoming.server import AsyncTcpServer

logger = logging.getLogger(__name__)

OWNER = "chatterbox"
LOOK_SECONDS = 5.0  # between two looks for models that nobody uses, at most


class Server:
    """One process's models behind routes. ``app`` is the ASGI application."""

    def __init__(
        self,
        hub: ModelHub,
        config: ServerConfig,
        keys: Sequence[str] = (),
        *,
        on_ready: Callable[[], None] = lambda: None,
        on_failure: Callable[[Exception], None] = lambda error: None,
    ) -> None:
        """``on_ready``: called when the first model speaks; ``on_failure``: it cannot."""
        self._hub, self._config, self._started = hub, config, int(time.time())
        self._on_ready, self._on_failure = on_ready, on_failure
        self._health = Health(self._say_a_word)
        self._metrics = ServerMetrics(lambda: hub.loaded, lambda: self.speaking.num_streams)
        self.speaking = Speaking(hub, config, self._metrics, self._health)
        self._voices, self._jobs = Voices(hub, config), JobRoutes(hub, config)
        versioned = [
            Route("/v1/audio/speech", self.speaking.speech, methods=["POST"]),
            Route("/v1/audio/speech/batch", Batches(self.speaking, config).batch, methods=["POST"]),
            *self._jobs.routes,
            *TravisvnRoutes(hub, self.speaking, self._voices, config).routes,
            Route("/v1/audio/voices", self.voices, methods=["GET"]),
            Route("/v1/audio/voices", self.add_voice, methods=["POST"]),
            Route("/v1/audio/voices/{name}", self.remove_voice, methods=["DELETE"]),
            Route("/v1/audio/voice_consents", partial(add_consent, config=config), methods=["POST"]),
            Route("/v1/audio/models", self.audio_models),
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            Route("/v1/info", self.info),
            Route("/v1/health", self.health),
            Route("/v1/ready", self.ready),
        ]
        routes = [
            *versioned,
            *map(_without_version, versioned),
            *DevnenRoutes(hub, self.speaking, self._voices, config).routes,
            WebSocketRoute("/v1/audio/speech/stream", self.speaking.session),
            Route("/v1/", self.about),
            Route("/v1", self.about),
            Route("/", page),
            Route("/page/{name}", page),
            Route("/openapi.json", self.openapi),
            Route("/metrics", self.metrics),
        ]
        middleware = [Middleware(RequestsLog)]
        if config.hosts:
            middleware.append(Middleware(TrustedHostMiddleware, allowed_hosts=list(config.hosts)))
        if config.origins:
            origins = list(config.origins)
            middleware.append(
                Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
            )
        middleware.append(Middleware(Origins, origins=config.origins, answer=_failed))
        middleware.append(Middleware(Keys, keys=keys, open_lists=config.open_lists, answer=_failed))
        middleware.append(Middleware(BodyLimit, config=config))
        self.app = Starlette(
            routes=routes,
            middleware=middleware,
            lifespan=self._lifespan,
            exception_handlers={ApiError: _on_error, HTTPException: _on_http, Exception: _on_error},
        )

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
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
        """Answers under way have some time to end from now on: what would go on beyond it is told to."""
        self._health.end()
        self._jobs.end()

    async def _listen(self, port: int) -> AsyncTcpServer | None:
        from chatterbox.serve import wyoming

        host = self._config.wyoming_host
        try:
            say = partial(self.speaking.say, Client())
            return await wyoming.start(host, port, self._spoken_voices, say, self._config.max_input)
        except OSError as error:
            self._on_failure(OSError(f"cannot listen at {host}, port {port}: {error.strerror or error}"))
            return None

    def _spoken_voices(self) -> list[tuple[str, list[str]]]:
        model = self._hub.get(self._hub.names[0])
        return [(name, model.languages) for name in model.voices()]

    def _begin(self) -> None:
        """Load what is configured, and have it say something: what is slow once is slow before the first caller."""
        first, *others = self._hub.names
        try:
            with self._hub.used(first):
                self._say_a_word()
                self._warm(self._hub.get(first))
            for name in others if self._config.preload else ():
                self._hub.get(name)
            self._voices.sweep()
            self._jobs.begin()
        except Exception as error:
            self._on_failure(error)
        else:
            self._health.begin()
            self._on_ready()

    def _warm(self, model: ServedModel) -> None:
        """Compute what every text of the voices that are to be warm begins with.

        Raises:
            VoiceError: there is none of that name.
        """
        if names := self._config.warm:
            requests = [model.request(SpeechCall(""), model.voice_name(name, None)) for name in names]
            model.synthesizer.warm(requests)

    def _say_a_word(self) -> None:
        """Of the first model, in any voice; where it has none there is nothing to try."""
        first = self._hub.names[0]
        with self._hub.used(first):
            model = self._hub.get(first)
            if names := model.voices():
                model.synthesizer.speak(model.request(SpeechCall("Ready.", sampling={"max_new_tokens": 20}), names[0]))

    async def _unload(self) -> None:
        """Now and then, where the configuration says so."""
        seconds = self._config.unload_seconds
        while seconds is not None:
            await asyncio.sleep(min(seconds, LOOK_SECONDS))
            for name in await run_in_threadpool(self._hub.unload_idle, seconds):
                logger.info("model %s was not used for %g s and is unloaded", name, seconds)

    async def voices(self, request: Request) -> Response:
        """GET /v1/audio/voices: objects, or with ``?legacy=true`` their names."""
        names = await run_in_threadpool(self._voices.names, request.query_params.get("model"))
        if request.query_params.get("legacy", "").lower() in ("1", "true"):
            return JSONResponse({"voices": names})
        return JSONResponse({"voices": [*map(voice_object, names)]})

    async def add_voice(self, request: Request) -> Response:
        """POST /v1/audio/voices: a form with ``name`` and the recording ``audio_sample``."""
        form = await form_of(request, self._config)
        sample, name = form.file("audio_sample"), form.fields.get("name", "")
        if sample is None:
            raise ApiError("audio_sample must be a recording", param="audio_sample", code="invalid_value")
        if not name.strip():
            raise ApiError("name must be a name for the voice", param="name", code="invalid_value")
        return JSONResponse(await run_in_threadpool(self._voices.add, name, sample.data))

    async def remove_voice(self, request: Request) -> Response:
        """DELETE /v1/audio/voices/{name}."""
        name = request.path_params["name"]
        await run_in_threadpool(self._voices.remove, name)
        return JSONResponse({"id": name, "object": "audio.voice.deleted", "deleted": True})

    async def openapi(self, request: Request) -> Response:
        """GET /openapi.json."""
        return JSONResponse(description(self._config))

    async def info(self, request: Request) -> Response:
        """GET /info: what there is, and what the caches save."""
        models = [
            {"name": model.name, "cache": model.synthesizer.prefixes.manager.stats()} for model in self._hub.loaded
        ]
        about = {
            "version": __version__,
            "formats": available(),
            "streams": self.speaking.num_streams,
            "models": models,
        }
        return JSONResponse({**about, "max_input": self._config.max_input})

    async def metrics(self, request: Request) -> Response:
        """GET /metrics."""
        return Response(await run_in_threadpool(self._metrics.text), media_type=CONTENT_TYPE)

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        return JSONResponse({"object": "list", "data": [self._about(name) for name in self._hub.names]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/{name}."""
        name = request.path_params["name"]
        if name not in self._hub.names:
            raise ApiError(f"there is no model {name!r}", NOT_FOUND, param="model", code="model_not_found")
        return JSONResponse(self._about(name))

    async def audio_models(self, request: Request) -> Response:
        """GET /v1/audio/models, as Open WebUI asks."""
        return JSONResponse({"models": [{"id": name, "name": name} for name in self._hub.names]})

    async def about(self, request: Request) -> Response:
        """GET /v1/: clients warm their connection with it."""
        return JSONResponse({"server": "chatterbox", "version": __version__, "formats": available()})

    async def health(self, request: Request) -> Response:
        """GET /health: whether it speaks; after a failure it says a word to find out."""
        status, loaded = await run_in_threadpool(self._health.status), self._hub.loaded
        about = {"status": status, "version": __version__, "model_loaded": bool(loaded)}
        device = str(loaded[0].synthesizer.t3.device) if loaded else None
        return JSONResponse({**about, "device": device}, CLOSED if status == FAILING else 200)

    async def ready(self, request: Request) -> Response:
        """GET /ready: the default model speaks."""
        is_ready = self._health.is_ready
        return JSONResponse({"ready": is_ready}, 200 if is_ready else CLOSED)

    def _about(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._started, "owned_by": OWNER}


def _without_version(route: Route) -> Route:
    """The same without /v1 before it, as clients of other servers ask."""
    return Route(route.path.removeprefix("/v1"), route.endpoint, methods=[*(route.methods or ())])


def _failed(error: ApiError) -> Response:
    return JSONResponse(error.body, error.status, headers=error.headers)


async def _on_error(request: Request, error: Exception) -> Response:
    told = api_error(error)
    if told.status >= 500:
        logger.error("a request to %s failed", request.url.path, exc_info=error)
    return _failed(told)


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    known = {
        404: ("there is no such path", "not_found"),
        405: ("that method is not for this path", "method_not_allowed"),
    }
    message, code = known.get(error.status_code, (error.detail, None))
    headers = dict(error.headers or {})
    if error.status_code == 405:  # of the path's other routes too
        headers["Allow"] = ", ".join(_methods(request))
    return _failed(ApiError(message, error.status_code, code=code, headers=headers))


def _methods(request: Request) -> list[str]:
    """Those that the path of a request has, each of a route of its own."""
    fitting = [
        one for one in request.app.routes if isinstance(one, Route) and one.matches(request.scope)[0] is not Match.NONE
    ]
    return sorted({method for one in fitting for method in one.methods or ()})
