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
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute

from chatterbox import __version__
from chatterbox.audio.encoding import available
from chatterbox.serve.access_log import RequestsLog
from chatterbox.serve.batch import Batches
from chatterbox.serve.bodies import BodyLimit, form_of
from chatterbox.serve.config import ServerConfig
from chatterbox.serve.errors import NOT_FOUND, ApiError, api_error
from chatterbox.serve.fields import SpeechCall
from chatterbox.serve.job_routes import JobRoutes
from chatterbox.serve.metrics import CONTENT_TYPE, ServerMetrics
from chatterbox.serve.models import ModelHub
from chatterbox.serve.page import page
from chatterbox.serve.peers.devnen import DevnenRoutes
from chatterbox.serve.peers.travisvn import TravisvnRoutes
from chatterbox.serve.security import Keys
from chatterbox.serve.speaking import Speaking
from chatterbox.serve.voices import Voices, voice_object

if TYPE_CHECKING:
    from wyoming.server import AsyncTcpServer

logger = logging.getLogger(__name__)

OWNER = "chatterbox"


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
        self._is_ready = False
        self._metrics = ServerMetrics(lambda: hub.loaded, lambda: self.speaking.num_streams)
        self.speaking = Speaking(hub, config, self._metrics)
        self._voices, self._jobs = Voices(hub, config), JobRoutes(hub, config)
        versioned = [
            Route("/v1/audio/speech", self.speaking.speech, methods=["POST"]),
            Route("/v1/audio/speech/batch", Batches(self.speaking, config).batch, methods=["POST"]),
            *self._jobs.routes,
            *TravisvnRoutes(hub, self.speaking, self._voices, config).routes,
            Route("/v1/audio/voices", self.voices, methods=["GET"]),
            Route("/v1/audio/voices", self.add_voice, methods=["POST"]),
            Route("/v1/audio/voices/{name}", self.remove_voice, methods=["DELETE"]),
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
        warming = asyncio.create_task(run_in_threadpool(self._warm))
        wyoming = None if self._config.wyoming_port is None else await self._listen(self._config.wyoming_port)
        try:
            yield
        finally:
            self._is_ready = False
            if wyoming is not None:
                await wyoming.stop()
            await warming
            await run_in_threadpool(self._jobs.close)
            await run_in_threadpool(self._hub.close)

    async def _listen(self, port: int) -> AsyncTcpServer | None:
        from chatterbox.serve import wyoming

        host = self._config.wyoming_host
        try:
            return await wyoming.start(host, port, self._spoken_voices, self.speaking.say, self._config.max_input)
        except OSError as error:
            self._on_failure(OSError(f"cannot listen at {host}, port {port}: {error.strerror or error}"))
            return None

    def _spoken_voices(self) -> list[tuple[str, list[str]]]:
        model = self._hub.get(self._hub.names[0])
        return [(name, model.languages) for name in model.voices()]

    def _warm(self) -> None:
        """Load the default model, and have it say something: what is slow once is slow before the first caller."""
        try:
            model = self._hub.get(self._hub.names[0])
            if names := model.voices():
                model.synthesizer.speak(model.request(SpeechCall("Ready.", sampling={"max_new_tokens": 20}), names[0]))
            self._jobs.begin()
        except Exception as error:
            self._on_failure(error)
        else:
            self._is_ready = True
            self._on_ready()

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
        """GET /health: the process lives."""
        status, loaded = "healthy" if self._is_ready else "initializing", self._hub.loaded
        about = {"status": status, "version": __version__, "model_loaded": self._is_ready}
        return JSONResponse({**about, "device": str(loaded[0].synthesizer.t3.device) if loaded else None})

    async def ready(self, request: Request) -> Response:
        """GET /ready: the default model speaks."""
        return JSONResponse({"ready": self._is_ready}, 200 if self._is_ready else 503)

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
    return _failed(ApiError(message, error.status_code, code=code, headers=error.headers))
