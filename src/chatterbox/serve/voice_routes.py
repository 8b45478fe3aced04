"""Routes of voices: which there are, a new one from a recording, one that is removed.

Owns: their paths, as OpenAI has them. Does not know: how voices are kept (`voices`), whose voice is meant (`models`).
"""

from __future__ import annotations

from functools import partial

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from chatterbox.serve.bodies import form_of
from chatterbox.serve.config import ServerConfig
from chatterbox.serve.consents import add_consent
from chatterbox.serve.errors import ApiError
from chatterbox.serve.voices import Voices, voice_object

PATH = "/v1/audio/voices"


class VoiceRoutes:
    def __init__(self, voices: Voices, config: ServerConfig) -> None:
        self._voices, self._config = voices, config
        self.routes = [
            Route(PATH, self.all, methods=["GET"]),
            Route(PATH, self.add, methods=["POST"]),
            Route(PATH + "/{name}", self.remove, methods=["DELETE"]),
            Route("/v1/audio/voice_consents", partial(add_consent, config=config), methods=["POST"]),
        ]

    async def all(self, request: Request) -> Response:
        """GET /v1/audio/voices: objects, or with ``?legacy=true`` their names."""
        names = await run_in_threadpool(self._voices.names, request.query_params.get("model"))
        if request.query_params.get("legacy", "").lower() in ("1", "true"):
            return JSONResponse({"voices": names})
        return JSONResponse({"voices": [*map(voice_object, names)]})

    async def add(self, request: Request) -> Response:
        """POST /v1/audio/voices: a form with ``name``, the recording ``audio_sample``, ``model`` if not the first."""
        form = await form_of(request, self._config)
        sample, name = form.file("audio_sample"), form.fields.get("name", "")
        if sample is None:
            raise ApiError("audio_sample must be a recording", param="audio_sample", code="invalid_value")
        if not name.strip():
            raise ApiError("name must be a name for the voice", param="name", code="invalid_value")
        add = partial(self._voices.add, name, sample.data, model=form.fields.get("model") or None)
        return JSONResponse(await run_in_threadpool(add))

    async def remove(self, request: Request) -> Response:
        """DELETE /v1/audio/voices/{name}."""
        name = request.path_params["name"]
        await run_in_threadpool(self._voices.remove, name)
        return JSONResponse({"id": name, "object": "audio.voice.deleted", "deleted": True})
