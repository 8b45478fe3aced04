"""A server as most are: one route, one lock, `generate`, the whole answer as a WAV. What `load` compares with.

``python -m benchmarks.serve.locked SOURCE [TOKENS]``: SOURCE is a checkpoint's folder or, with this package, a model's
name. Its package ``chatterbox`` is whichever the interpreter has: this one, or chatterbox-tts 0.1.7, whose random
weights never end a text, so TOKENS bounds what is drawn. Imports nothing of this repository. The route and its fields
are those of travisvn/chatterbox-tts-api; like it, a voice is a recording that each call brings anew.
"""

from __future__ import annotations

import asyncio
import io
import socket
import sys
from pathlib import Path
from typing import Any

import soundfile
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from chatterbox.tts import ChatterboxTTS

OPTIONS = ("exaggeration", "cfg_weight", "temperature")


class Locked:
    def __init__(self, source: str, most_tokens: int | None) -> None:
        load = ChatterboxTTS.from_local if Path(source).is_dir() else ChatterboxTTS.from_pretrained
        self._tts = load(source, "cpu") if Path(source).is_dir() else load("cpu", model=source)
        self._lock = asyncio.Lock()
        if most_tokens is not None:
            draw = self._tts.t3.inference
            self._tts.t3.inference = lambda **asked: draw(**{**asked, "max_new_tokens": most_tokens})

    async def speech(self, request: Request) -> Response:
        """POST /v1/audio/speech. ``voice``: the path of a recording, where there is one."""
        body = await request.json()
        async with self._lock:
            wav = await run_in_threadpool(self._generate, body)
        return Response(wav, media_type="audio/wav")

    def _generate(self, body: dict[str, Any]) -> bytes:
        options = {name: body[name] for name in OPTIONS if name in body}
        if Path(voice := body.get("voice", "")).is_file():
            options["audio_prompt_path"] = voice
        wav, file = self._tts.generate(body["input"], **options), io.BytesIO()
        soundfile.write(file, wav[0].numpy(), self._tts.sr, format="WAV", subtype="PCM_16")
        return file.getvalue()


def main() -> None:
    source, *tokens = sys.argv[1:]
    own = Locked(source, int(tokens[0]) if tokens else None)
    app = Starlette(routes=[Route("/v1/audio/speech", own.speech, methods=["POST"])])
    listening = socket.create_server(("127.0.0.1", 0))
    print(f"speaks at http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False)).run(sockets=[listening])


if __name__ == "__main__":
    main()
