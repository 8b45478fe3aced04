"""Voices that clients bring: a recording is listened to once, and its voice has a name from then on.

Owns: what an upload must be, the order in which it is kept. Does not know: HTTP, the folder's files (`voice.library`).
"""

from __future__ import annotations

import io
import re
import time
from typing import Any

from chatterbox.audio.recordings import LIBRARY
from chatterbox.serve.config import ServerConfig
from chatterbox.serve.errors import CONFLICT, ApiError
from chatterbox.serve.models import ModelHub, library_of
from chatterbox.voice.conditionals import Hearing
from chatterbox.voice.library import BUILT_IN, VoiceError, VoiceLibrary

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_-]+")


class Voices:
    """Those of a server's first model, which may have to be loaded. Each call may take long."""

    def __init__(self, hub: ModelHub, config: ServerConfig) -> None:
        self._hub, self._found = hub, library_of(config)

    def names(self, model: str | None = None) -> list[str]:
        """Of all, a model's own first. Raises ApiError: there is no such model."""
        return self._hub.get(self._hub.named(model)[0]).voices()

    def add(self, name: str, recording: bytes) -> dict[str, Any]:
        """Keep the voice of ``recording``, a file's bytes. What OpenAI's client is told.

        Raises:
            ApiError: there is such a voice, it cannot have this name, or nowhere to keep it; or there is nothing that
                can be heard, or too little.
        """
        voice, model = _NOT_IN_NAMES.sub("-", name.strip()).strip("-_"), self._hub.get(self._hub.names[0])
        self._check_free(voice)
        try:
            heard = model.synthesizer.conditionals(io.BytesIO(recording), Hearing(purpose=LIBRARY))
        except ValueError as error:
            raise ApiError(str(error), param="audio_sample", code="invalid_audio") from error
        self._library.add(voice, heard, {"model": model.name, "family": model.family, "title": name.strip()})
        return voice_object(voice, name.strip()) | {"created_at": int(time.time())}

    def remove(self, name: str) -> None:
        """Forget a voice. Raises VoiceError: there is none, ApiError: it is a model's own."""
        self._check_kept(name)
        self._library.remove(name)

    @property
    def _library(self) -> VoiceLibrary:
        if self._found is None:
            raise ApiError("there is no folder for voices; set server.voices", code="no_voice_folder")
        return self._found

    def _check_free(self, voice: str) -> None:
        if voice in self._library.names():
            raise ApiError(f"there is a voice {voice!r} already", CONFLICT, param="name", code="voice_exists")
        try:
            self._library.free(voice)
        except VoiceError as error:
            raise ApiError(str(error), param="name", code="invalid_value") from None

    def _check_kept(self, name: str) -> None:
        if name == BUILT_IN:
            raise ApiError(f"the voice {BUILT_IN!r} is a model's own and stays", CONFLICT, code="voice_is_built_in")
        if self._found is None:
            raise VoiceError(f"no voice {name!r}")


def voice_object(voice: str, title: str | None = None) -> dict[str, Any]:
    return {"id": voice, "object": "audio.voice", "name": title or voice, "type": "audio_sample"}
