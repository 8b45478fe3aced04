"""Routes that say what the server is, what it has and how it does.

Owns: their paths, models as OpenAI and Open WebUI ask for them. Does not know: what is measured (`metrics`), when the
server is well (`health`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from chatterbox import __version__
from chatterbox.audio.encoding import available
from chatterbox.serve.config import ServerConfig
from chatterbox.serve.errors import CLOSED
from chatterbox.serve.health import FAILING, Health
from chatterbox.serve.metrics import CONTENT_TYPE, ServerMetrics
from chatterbox.serve.models import ModelHub
from chatterbox.serve.openapi import description

OWNER = "chatterbox"


class AboutRoutes:
    def __init__(
        self,
        hub: ModelHub,
        config: ServerConfig,
        health: Health,
        metrics: ServerMetrics,
        num_streams: Callable[[], int],
    ) -> None:
        """``num_streams``: how many answers are under way."""
        self._hub, self._config, self._health, self._metrics = hub, config, health, metrics
        self._num_streams, self._started = num_streams, int(time.time())
        self.versioned = [
            Route("/v1/audio/models", self.audio_models),
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            Route("/v1/info", self.info),
            Route("/v1/health", self.health),
            Route("/v1/ready", self.ready),
        ]
        self.routes = [
            Route("/v1/", self.about),
            Route("/v1", self.about),
            Route("/openapi.json", self.openapi),
            Route("/metrics", self.metrics),
        ]

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
            "streams": self._num_streams(),
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
        return JSONResponse(self._about(self._hub.known(request.path_params["name"])))

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
