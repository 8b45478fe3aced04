"""Routes of devnen/Chatterbox-TTS-Server, beside those that OpenAI's clients share with it.

Owns: their paths, the names of their fields, how files there stand for voices here. Does not know: how speech is made
(`speaking`), how voices are kept (`voices`).

Files of recordings are voices here, by the same names with or without an ending: nothing that a client names is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from chatterbox.models.s3gen import S3GEN_SR
from chatterbox.serve.bodies import Upload, form_of, json_of
from chatterbox.serve.config import ServerConfig
from chatterbox.serve.errors import ApiError
from chatterbox.serve.fields import speech_call
from chatterbox.serve.models import ModelHub
from chatterbox.serve.security import client_of
from chatterbox.serve.speaking import Speaking
from chatterbox.serve.voices import Voices
from chatterbox.values import shown, whole_of

MODES = {"predefined": "predefined_voice_id", "clone": "reference_audio_filename"}  # the field that names the voice
MAX_FILES = 20


class DevnenRoutes:
    """The routes."""

    def __init__(self, hub: ModelHub, speaking: Speaking, voices: Voices, config: ServerConfig) -> None:
        self._hub, self._speaking, self._voices, self._config = hub, speaking, voices, config
        self.routes = [
            Route("/tts", self.speech, methods=["POST"]),
            Route("/v1/tts", self.speech, methods=["POST"]),
            Route("/upload_reference", self._uploading("all_reference_files"), methods=["POST"]),
            Route("/upload_predefined_voice", self._uploading("all_predefined_files"), methods=["POST"]),
            Route("/get_reference_files", self.references),
            Route("/get_predefined_voices", self.predefined),
            Route("/api/model-info", self.model),
        ]

    async def speech(self, request: Request) -> Response:
        """POST /tts: with ``text`` as here, with ``input`` as travisvn's clients send it."""
        body = await json_of(request)
        if isinstance(body, Mapping) and "text" in body:
            body = speech_fields(body)
        call = speech_call(body, self._config, usual_format="wav")
        headers = {"content-disposition": f'attachment; filename="speech.{call.format}"'}
        return await self._speaking.answer(call, client_of(request), headers)

    def _uploading(self, listed_as: str) -> Callable[[Request], Any]:
        async def upload(request: Request) -> Response:
            """POST: a form with recordings in ``files``; each becomes a voice of its file's name."""
            form = await form_of(request, self._config, max_files=MAX_FILES)
            if not form.files:
                raise ApiError("files must be recordings", param="files", code="invalid_value")
            return JSONResponse(await run_in_threadpool(self._added, form.files, listed_as))

        return upload

    def _added(self, files: list[Upload], listed_as: str) -> dict[str, Any]:
        """Raises ApiError: none of them can be a voice; the message is of the first."""
        added, failed = list[str](), dict[str, ApiError]()
        for file in files:
            try:
                added.append(self._voices.add(file.filename, file.data, field="files")["id"])
            except ApiError as error:
                failed[file.filename] = error
        if not added:
            raise next(iter(failed.values()))
        message = f"{len(added)} of {len(files)} recordings are voices now"
        errors = [{"filename": name, "error": str(error)} for name, error in failed.items()]
        return {"message": message, "uploaded_files": added, listed_as: self._voices.names(), "errors": errors}

    async def references(self, request: Request) -> Response:
        """GET /get_reference_files: names of all voices."""
        return JSONResponse(await run_in_threadpool(self._voices.names))

    async def predefined(self, request: Request) -> Response:
        """GET /get_predefined_voices: the same, as their clients show them."""
        names = await run_in_threadpool(self._voices.names)
        return JSONResponse([{"display_name": name, "filename": name} for name in names])

    async def model(self, request: Request) -> Response:
        """GET /api/model-info: of the first model."""
        own = await run_in_threadpool(self._hub.get, self._hub.names[0])
        sound = {"device": str(own.synthesizer.t3.device), "sample_rate": S3GEN_SR}
        return JSONResponse({"loaded": True, "model": own.name, **sound, "languages": own.languages})


def speech_fields(body: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a request for speech, of a body as it is sent to /tts. Raises ApiError: it names no voice to clone."""
    mode = body.get("voice_mode") or "predefined"
    if not isinstance(mode, str) or mode not in MODES:
        message = f"voice_mode must be {' or '.join(MODES)}, got {shown(mode)}"
        raise ApiError(message, param="voice_mode", code="invalid_value")
    own = {"voice_mode", "output_format", *MODES.values()}
    fields = {name: value for name, value in body.items() if name not in own}
    fields |= {"voice": body.get(MODES[mode]), "response_format": body.get("output_format")}
    if mode == "clone" and fields["voice"] is None:
        message = f"{MODES[mode]} must be the name of a voice; POST /upload_reference makes one of a recording"
        raise ApiError(message, param=MODES[mode], code="invalid_value")
    if whole_of(fields.get("seed")) == 0:  # another way each time, as -1 here
        fields["seed"] = None
    return fields
