"""Consents to a voice's use, which OpenAI's clients send before its recording.

Owns: what one must be, what is answered. Nothing of it is kept: whoever runs a server answers for its voices.
"""

from __future__ import annotations

import time
import uuid

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from chatterbox.serve.bodies import form_of
from chatterbox.serve.config import ServerConfig
from chatterbox.serve.errors import ApiError

NAMES = ("name", "language")


async def add_consent(request: Request, config: ServerConfig) -> Response:
    """POST /v1/audio/voice_consents: a form with ``name``, ``language`` and the recording ``recording``."""
    form = await form_of(request, config)
    if form.file("recording") is None:
        raise ApiError("recording must be a recording of the consent", param="recording", code="invalid_value")
    about = {name: form.fields.get(name, "").strip() for name in NAMES}
    for name, value in about.items():
        if not value:
            raise ApiError(f"{name} must be given", param=name, code="invalid_value")
    own = {"id": f"cons_{uuid.uuid4().hex}", "object": "audio.voice_consent", "created_at": int(time.time())}
    return JSONResponse({**own, **about})
