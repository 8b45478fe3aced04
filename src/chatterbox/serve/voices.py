"""Voices that clients bring: a recording is listened to once, and its voice has a name from then on.

Owns: what an upload must be, the order in which it is kept. Does not know: HTTP, the folder's files (`voice.library`).
"""

from __future__ import annotations

import io
import re
import threading
import time
from typing import Any

from chatterbox.audio.recordings import LIBRARY
from chatterbox.serve.errors import CONFLICT, ApiError
from chatterbox.serve.models import ServedModel
from chatterbox.voice.conditionals import Hearing
from chatterbox.voice.library import BUILT_IN, VoiceError, VoiceLibrary

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_-]+")
_ADDING = threading.Lock()  # one looks whether its name is free, and takes it


def add_voice(model: ServedModel, library: VoiceLibrary | None, name: str, recording: bytes) -> dict[str, Any]:
    """Keep the voice of ``recording``, a file's bytes, for ``model``. What OpenAI's client is told.

    Raises:
        ApiError: there is such a voice, it cannot have this name, or nowhere to keep it.
        ValueError: nothing that can be heard, or too little.
    """
    voice = _NOT_IN_NAMES.sub("-", name.strip()).strip("-_")
    if library is None:
        raise ApiError("there is no folder for voices; set server.voices", code="no_voice_folder")
    if voice in library.names():
        raise _there_is(voice)
    try:
        library.free(voice)
    except VoiceError as error:
        raise ApiError(str(error), param="name", code="invalid_value") from None
    conditionals = model.synthesizer.conditionals(io.BytesIO(recording), Hearing(purpose=LIBRARY))
    with _ADDING:
        if voice in library.names():  # by another client, meanwhile
            raise _there_is(voice)
        library.add(voice, conditionals, {"model": model.name, "family": model.family, "title": name.strip()})
    return voice_object(voice, name.strip()) | {"created_at": int(time.time())}


def _there_is(voice: str) -> ApiError:
    return ApiError(f"there is a voice {voice!r} already", CONFLICT, param="name", code="voice_exists")


def remove_voice(library: VoiceLibrary | None, name: str) -> dict[str, Any]:
    """Forget a voice. Raises VoiceError: there is none, ApiError: it is a model's own."""
    if name == BUILT_IN:
        raise ApiError(f"the voice {BUILT_IN!r} is a model's own and stays", CONFLICT, code="voice_is_built_in")
    if library is None:
        raise VoiceError(f"no voice {name!r}")
    library.remove(name)
    return {"id": name, "object": "audio.voice.deleted", "deleted": True}


def voice_object(voice: str, title: str | None = None) -> dict[str, Any]:
    return {"id": voice, "object": "audio.voice", "name": title or voice, "type": "audio_sample"}
