"""Routes of travisvn/chatterbox-tts-api, beside those that OpenAI's clients share with it.

Owns: their paths, the names of their fields, what of the server's state they show. Does not know: how speech is made
(`speaking`), how voices are kept (`voices`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from chatterbox.models.tokenizers.languages import LANGUAGES
from chatterbox.serve.bodies import form_of, json_of
from chatterbox.serve.config import ServerConfig
from chatterbox.serve.errors import ApiError
from chatterbox.serve.fields import speech_call
from chatterbox.serve.models import ModelHub
from chatterbox.serve.security import client_of
from chatterbox.serve.speaking import Speaking
from chatterbox.serve.voices import Voices, voice_object
from chatterbox.values import shown

CREATED = 201
SWITCHES = {"true": True, "false": False}  # as a form has them


class TravisvnRoutes:
    """The routes, each with /v1 before it."""

    def __init__(self, hub: ModelHub, speaking: Speaking, voices: Voices, config: ServerConfig) -> None:
        self._hub, self._speaking, self._voices, self._config = hub, speaking, voices, config
        speech, voice = "/v1/audio/speech", "/v1/voices/{name}"
        self.routes = [
            Route(f"{speech}/stream", self.speech, methods=["POST"]),
            Route(f"{speech}/upload", self.upload, methods=["POST"]),
            Route(f"{speech}/stream/upload", self.upload, methods=["POST"]),
            Route("/v1/voices", self.voices, methods=["GET"]),
            Route("/v1/voices", self.add, methods=["POST"]),
            Route("/v1/voices/all-names", self.names),
            Route("/v1/voices/default", self.default),
            Route(voice, self.voice, methods=["GET"]),
            Route(voice, self.rename, methods=["PUT"]),
            Route(voice, self.remove, methods=["DELETE"]),
            Route(f"{voice}/download", self.download),
            Route("/v1/languages", self.languages),
            Route("/v1/ping", self.ping),
            Route("/v1/memory", self.memory),
            Route("/v1/status", self.status),
        ]

    async def speech(self, request: Request) -> Response:
        """POST .../stream: a request for speech, as WAV unless it says otherwise."""
        call = speech_call(await json_of(request), self._config, usual_format="wav")
        return await self._speaking.answer(call, client_of(request))

    async def upload(self, request: Request) -> Response:
        """POST .../upload: the same as a form, in the voice of the recording ``voice_file``, which is not kept."""
        form = await form_of(request, self._config)
        recording = form.file("voice_file")
        fields = {name: SWITCHES.get(value.lower(), value) for name, value in form.fields.items() if value}
        call = speech_call(fields, self._config, usual_format="wav")
        if recording is not None:
            call = dataclasses.replace(call, recording=recording.data)
        return await self._speaking.answer(call, client_of(request))

    async def voices(self, request: Request) -> Response:
        """GET /voices."""
        names = await run_in_threadpool(self._voices.names)
        return JSONResponse({"voices": [*map(voice_object, names)], "count": len(names)})

    async def names(self, request: Request) -> Response:
        """GET /voices/all-names."""
        names = await run_in_threadpool(self._voices.names)
        return JSONResponse({"voices": names, "count": len(names)})

    async def add(self, request: Request) -> Response:
        """POST /voices: a form with ``voice_name``, the recording ``voice_file`` and its ``language``."""
        form = await form_of(request, self._config)
        recording, name = form.file("voice_file"), _name("voice_name", form.fields.get("voice_name"))
        if recording is None:
            raise ApiError("voice_file must be a recording", param="voice_file", code="invalid_value")
        language = form.fields.get("language") or None
        added = await run_in_threadpool(self._voices.add, name, recording.data, language, field="voice_file")
        return JSONResponse(added, CREATED)

    async def voice(self, request: Request) -> Response:
        """GET /voices/{name}."""
        return JSONResponse(await run_in_threadpool(self._voices.about, request.path_params["name"]))

    async def rename(self, request: Request) -> Response:
        """PUT /voices/{name}: a form, or JSON, with its ``new_name``."""
        is_json = request.headers.get("content-type", "").startswith("application/json")
        fields = await json_of(request) if is_json else (await form_of(request, self._config)).fields
        new = _name("new_name", fields.get("new_name") if isinstance(fields, Mapping) else None)
        return JSONResponse(await run_in_threadpool(self._voices.rename, request.path_params["name"], new))

    async def remove(self, request: Request) -> Response:
        """DELETE /voices/{name}."""
        name = request.path_params["name"]
        await run_in_threadpool(self._voices.remove, name)
        return JSONResponse({"id": name, "deleted": True})

    async def download(self, request: Request) -> Response:
        """GET /voices/{name}/download: the prepared voice; no recording is kept."""
        name = request.path_params["name"]
        data = await run_in_threadpool(self._voices.data, name)
        headers = {"content-disposition": f'attachment; filename="{name}.safetensors"'}
        return Response(data, media_type="application/octet-stream", headers=headers)

    async def default(self, request: Request) -> Response:
        """GET /voices/default: who speaks where a request names no voice."""
        return JSONResponse({"default_voice": await run_in_threadpool(self._voices.default)})

    async def languages(self, request: Request) -> Response:
        """GET /languages: of the first model."""
        model = await run_in_threadpool(self._hub.get, self._hub.names[0])
        told = [{"code": code, "name": LANGUAGES.get(code, code)} for code in model.languages]
        return JSONResponse({"languages": told, "count": len(told)})

    async def ping(self, request: Request) -> Response:
        """GET /ping."""
        return JSONResponse({"status": "ok"})

    async def memory(self, request: Request) -> Response:
        """GET /memory: bytes that each model's rows and cached prefixes hold, and may hold."""
        return JSONResponse({"models": await run_in_threadpool(self._held)})

    async def status(self, request: Request) -> Response:
        """GET /status: what is being answered, and what each model's engine does."""
        num = self._speaking.num_streams
        engines = [{"name": one.name, **one.synthesizer.scheduler.stats()} for one in self._hub.loaded]
        about = {"status": "busy" if num else "idle", "streams": num, "max_streams": self._config.max_streams}
        return JSONResponse({**about, "models": engines})

    def _held(self) -> list[dict[str, Any]]:
        held = []
        for model in self._hub.loaded:
            own = model.synthesizer
            prefixes = {name: num for name, num in own.prefixes.manager.stats().items() if name.endswith("bytes")}
            about = {"name": model.name, "device": str(own.t3.device)}
            held.append({**about, "rows": {"bytes": own.scheduler.stats()["cache_bytes"]}, "prefixes": prefixes})
        return held


def _name(field: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ApiError(f"{field} must be a name for the voice, got {shown(value)}", param=field, code="invalid_value")
    return value
