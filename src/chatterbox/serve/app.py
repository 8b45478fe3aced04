"""The server as one ASGI application: routes, what each request passes before them, errors as their answers.

Owns: which routes there are, in which order. Does not know: what they answer, how a server begins and ends
(`lifecycle`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, Route, WebSocketRoute

from chatterbox.serve.about_routes import AboutRoutes
from chatterbox.serve.access_log import RequestsLog
from chatterbox.serve.batch import Batches
from chatterbox.serve.bodies import BodyLimit
from chatterbox.serve.config import ServerConfig
from chatterbox.serve.errors import FAULT, LEFT, REFUSALS, ApiError, api_error
from chatterbox.serve.health import Health
from chatterbox.serve.job_routes import JobRoutes
from chatterbox.serve.lifecycle import Lifecycle, say_a_word
from chatterbox.serve.metrics import ServerMetrics
from chatterbox.serve.models import ModelHub
from chatterbox.serve.page import page
from chatterbox.serve.peers.devnen import DevnenRoutes
from chatterbox.serve.peers.travisvn import TravisvnRoutes
from chatterbox.serve.security import Keys, Origins
from chatterbox.serve.speaking import Speaking
from chatterbox.serve.voice_routes import VoiceRoutes
from chatterbox.serve.voices import Voices

logger = logging.getLogger(__name__)


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
        health = Health(partial(say_a_word, hub))
        metrics = ServerMetrics(lambda: hub.loaded, lambda: self.speaking.num_streams)
        self.speaking = Speaking(hub, config, metrics, health)
        voices, jobs = Voices(hub, config), JobRoutes(hub, config)
        about = AboutRoutes(hub, config, health, metrics, lambda: self.speaking.num_streams)
        life = Lifecycle(hub, config, self.speaking, health, voices, jobs, on_ready=on_ready, on_failure=on_failure)
        self.end, self.cut = life.end, life.cut
        versioned = [
            Route("/v1/audio/speech", self.speaking.speech, methods=["POST"]),
            Route("/v1/audio/speech/batch", Batches(self.speaking, config).batch, methods=["POST"]),
            *jobs.routes,
            *TravisvnRoutes(hub, self.speaking, voices, config).routes,
            *VoiceRoutes(voices, config).routes,
            *about.versioned,
        ]
        routes = [
            *versioned,
            *map(_without_version, versioned),
            *DevnenRoutes(hub, self.speaking, voices, config).routes,
            WebSocketRoute("/v1/audio/speech/stream", self.speaking.session),
            *about.routes,
            Route("/", page),
            Route("/page/{name}", page),
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
            lifespan=life.lifespan,
            exception_handlers={
                **dict.fromkeys((ApiError, *REFUSALS), _on_error),
                ClientDisconnect: _on_left,
                HTTPException: _on_http,
                Exception: _on_error,
            },
        )


def _without_version(route: Route) -> Route:
    """The same without /v1 before it, as clients of other servers ask."""
    return Route(route.path.removeprefix("/v1"), route.endpoint, methods=[*(route.methods or ())])


def _failed(error: ApiError) -> Response:
    return JSONResponse(error.body, error.status, headers=error.headers)


async def _on_error(request: Request, error: Exception) -> Response:
    told = api_error(error)
    if told.status == FAULT:
        logger.error("a request to %s failed", request.url.path, exc_info=error)
    return _failed(told)


async def _on_left(request: Request, error: Exception) -> Response:
    return Response(status_code=LEFT)


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
