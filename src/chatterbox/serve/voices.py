"""Voices that clients bring: a recording is listened to once, and its voice has a name from then on.

Owns: what an upload must be, the order in which it is kept. Does not know: HTTP, the folder's files (`voice.library`).
"""

from __future__ import annotations

import io
import threading
import time
from typing import Any

from chatterbox.audio.recordings import LIBRARY
from chatterbox.serve.config import ServerConfig
from chatterbox.serve.errors import CONFLICT, ApiError, api_error
from chatterbox.serve.models import ModelHub, library_of
from chatterbox.values import shown
from chatterbox.voice.conditionals import Hearing
from chatterbox.voice.library import BUILT_IN, MAX_NAME_LEN, VoiceError, VoiceLibrary, name_of

_ADDING = threading.Lock()  # one looks whether its name is free, and takes it


class Voices:
    """Those that a server's models speak in, of which one may have to be loaded. Each call may take long."""

    def __init__(self, hub: ModelHub, config: ServerConfig) -> None:
        self._hub, self._config, self._found = hub, config, library_of(config)

    def sweep(self) -> None:
        """Remove what killed writers have left."""
        if self._found is not None:
            self._found.sweep()

    def names(self, model: str | None = None) -> list[str]:
        """Of all, a model's own first. Raises ApiError: there is no such model."""
        return self._hub.get(self._hub.named(model)[0]).voices()

    def default(self) -> str:
        """Who speaks where a request names none. Raises VoiceError: nobody does."""
        return self._hub.get(self._hub.names[0]).voice_name(None, self._config.default_voice)

    def add(
        self,
        name: str,
        recording: bytes,
        language: str | None = None,
        *,
        model: str | None = None,
        field: str = "audio_sample",
    ) -> dict[str, Any]:
        """Keep the voice of ``recording``, a file's bytes. What OpenAI's client is told.

        Args:
            language: that the voice speaks where a request names none.
            model: that listens; models of its family can speak in the voice. None: the first.
            field: that the recording came in.

        Raises:
            ApiError: there is such a voice, it cannot have this name, or nowhere to keep it; or there is nothing that
                can be heard, or too little; or there is no such model, or it does not speak the language.
        """
        voice, title = name_of(name), name.strip()[:MAX_NAME_LEN]
        if not voice:
            message = f"a voice's name needs letters of a to z, or digits, and no other letters, got {shown(name)}"
            raise ApiError(message, param="name", code="invalid_value")
        self._check_free(voice)
        listener = self._hub.get(self._hub.known(model))
        notes = {"model": listener.name, "family": listener.family, "title": title}
        if language is not None:
            try:
                notes["language"] = listener.language(language) or language
            except ValueError as error:
                raise api_error(error, ("language", "language_id")) from error
        try:
            heard = listener.synthesizer.conditionals(io.BytesIO(recording), Hearing(purpose=LIBRARY))
        except ValueError as error:
            raise ApiError(str(error), param=field, code="invalid_audio") from error
        with _ADDING:
            self._check_free(voice)  # which another client may have taken meanwhile
            self._library.add(voice, heard, notes)
        return voice_object(voice, title) | {"created_at": int(time.time())}

    def about(self, name: str) -> dict[str, Any]:
        """A voice, and what was noted when it was added. Raises VoiceError: there is none."""
        name = self._there(name)
        noted = {} if name == BUILT_IN else self._library.about(name)
        told = {key: noted[key] for key in ("language", "model", "heard", "size") if key in noted}
        title = noted.get("title", name)
        return voice_object(name, title if name_of(title) == name else None) | told  # it may have another name by now

    def data(self, name: str) -> bytes:
        """What a voice's file holds. Raises VoiceError: there is none, ApiError: it is a model's own, without one."""
        name = self._kept(name)
        self._library.about(name)  # a file, and whole
        return self._library.path(name).read_bytes()

    def rename(self, name: str, new: str) -> dict[str, Any]:
        """Raises VoiceError: there is no such voice, ApiError: none can have the new name, or it is a model's own."""
        with _ADDING:
            name = self._kept(name)
            self._check_free(name_of(new))
            self._library.rename(name, name_of(new))
        return self.about(name_of(new))

    def remove(self, name: str) -> None:
        """Forget a voice. Raises VoiceError: there is none, ApiError: it is a model's own."""
        self._library.remove(self._kept(name))

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

    def _kept(self, name: str) -> str:
        if (name := self._there(name)) == BUILT_IN:
            raise ApiError(f"the voice {BUILT_IN!r} is a model's own and stays", CONFLICT, code="voice_is_built_in")
        return name

    def _there(self, name: str) -> str:
        """The voice of a name, also as its recording was called."""
        there = self.names()
        found = name if name in there or {"/", "\\"} & set(name) else name_of(name)
        if found not in there:
            raise VoiceError(f"there is no voice {shown(name)}; there are {', '.join(there) or 'none'}")
        return found


def voice_object(voice: str, title: str | None = None) -> dict[str, Any]:
    return {"id": voice, "object": "audio.voice", "name": title or voice, "type": "audio_sample"}
