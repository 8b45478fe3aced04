"""Routes of jobs: long texts that are spoken while nobody waits.

Owns: their paths, as travisvn's server has them, how a part of a job becomes a request. Does not know: how jobs are
kept (`jobs`), how speech is made.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from starlette.concurrency import iterate_in_threadpool, run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from chatterbox.audio.encoding import FORMATS
from chatterbox.models.s3gen import S3GEN_SR
from chatterbox.serve.bodies import json_of
from chatterbox.serve.config import ServerConfig
from chatterbox.serve.errors import ApiError
from chatterbox.serve.fields import SpeechCall, speech_call
from chatterbox.serve.jobs import DONE, FAILED, PAUSED, Job, Jobs
from chatterbox.serve.models import ModelHub
from chatterbox.serve.speech import EVENTS_TYPE, KEEP_ALIVE, KEEP_ALIVE_SECONDS, event
from chatterbox.synthesis.request import utterance_seed, with_seed
from chatterbox.voice.library import default_folder

PATH = "/v1/audio/speech/long"
ACCEPTED = 202


class JobRoutes:
    """The routes, and the jobs behind them, which are read when they are first asked for."""

    def __init__(self, hub: ModelHub, config: ServerConfig) -> None:
        self._hub, self._config, self._lock = hub, config, threading.Lock()
        self._jobs: Jobs | None = None
        one = PATH + "/{name}"
        self.routes = [
            Route(PATH, self.add, methods=["POST"]),
            Route(PATH, self.all, methods=["GET"]),
            Route(one, self.get, methods=["GET"]),
            Route(one, self.remove, methods=["DELETE"]),
            Route(one + "/pause", self.pause, methods=["PUT", "POST"]),
            Route(one + "/resume", self.resume, methods=["PUT", "POST"]),
            Route(one + "/retry", self.resume, methods=["PUT", "POST"]),
            Route(one + "/download", self.download),
            Route(one + "/sse", self.follow),
        ]

    def begin(self) -> None:
        """Go on with what was under way when the last server ended."""
        if self._config.jobs is None and default_folder() is None:  # nowhere to look: whoever adds one is told
            return
        if (self._folder / "jobs.sqlite3").exists():
            self._opened()

    def end(self) -> None:
        """The server ends: work on a job stops, and whoever follows one is let go."""
        with self._lock:
            if self._jobs is not None:
                self._jobs.end()

    def close(self) -> None:
        with self._lock:
            if self._jobs is not None:
                self._jobs.close()

    async def add(self, request: Request) -> Response:
        """POST: a request for speech, whose text may be long."""
        body = await json_of(request)
        call = speech_call(body, self._config, max_input=self._config.max_job_input)
        return JSONResponse(await run_in_threadpool(self._added, body, call), ACCEPTED)

    def _added(self, body: Mapping[str, Any], call: SpeechCall) -> dict[str, Any]:
        asked = self._hub.asked(call)
        request = with_seed(asked.request)  # what is said after a restart follows what was said before
        own = {key: value for key, value in body.items() if key not in ("input", "text")}
        settled = {"model": asked.model.name, "voice": asked.voice, "seed": request.seed}
        fields = {**own, **settled, "response_format": call.format}
        job = self._opened().add(call.text, fields, request.paragraph_pause)
        return {**_told(job), "warnings": list(asked.warnings)}

    def _speak(
        self, fields: Mapping[str, Any], text: str, number: int, is_unwanted: Callable[[], bool]
    ) -> Iterator[np.ndarray]:
        """A part of a job. Raises what its request raises."""
        asked = self._hub.asked(speech_call({**fields, "input": text}, self._config, max_input=len(text)))
        request = dataclasses.replace(asked.request, seed=utterance_seed(asked.request.seed, number))
        own = asked.model
        with self._hub.used(own.name), closing(own.synthesizer.stream(request, None)) as chunks:
            for chunk in chunks:
                if is_unwanted():
                    return
                yield chunk.audio[0].numpy()

    async def all(self, request: Request) -> Response:
        """GET: all that are kept, the newest first."""
        jobs = await run_in_threadpool(lambda: self._opened().all())
        return JSONResponse({"jobs": [*map(_told, jobs)]})

    async def get(self, request: Request) -> Response:
        """GET one: how far it is."""
        return JSONResponse(_told(await self._one(request, Jobs.get)))

    async def pause(self, request: Request) -> Response:
        """PUT .../pause."""
        return JSONResponse(_told(await self._one(request, Jobs.pause)))

    async def resume(self, request: Request) -> Response:
        """PUT .../resume, and .../retry of one that failed."""
        return JSONResponse(_told(await self._one(request, Jobs.resume)))

    async def remove(self, request: Request) -> Response:
        """DELETE one, its text and its audio."""
        await self._one(request, Jobs.remove)
        return JSONResponse({"job_id": request.path_params["name"], "deleted": True})

    async def download(self, request: Request) -> Response:
        """GET .../download: its audio."""
        name, jobs = request.path_params["name"], await run_in_threadpool(self._opened)
        form = (await run_in_threadpool(jobs.get, name)).about["response_format"]
        audio = await run_in_threadpool(jobs.audio, name)
        headers = {"content-disposition": f'attachment; filename="{name}.{form}"'}
        return StreamingResponse(iterate_in_threadpool(audio), media_type=FORMATS[form].content_type, headers=headers)

    async def follow(self, request: Request) -> Response:
        """GET .../sse: an event at each change, until it is over."""
        name, jobs = request.path_params["name"], await run_in_threadpool(self._opened)
        first = await run_in_threadpool(jobs.get, name)
        return StreamingResponse(_events(jobs, first), media_type=EVENTS_TYPE, headers={"cache-control": "no-cache"})

    async def _one(self, request: Request, what: Callable[[Jobs, str], Any]) -> Any:
        return await run_in_threadpool(lambda: what(self._opened(), request.path_params["name"]))

    @property
    def _folder(self) -> Path:
        if self._config.jobs is not None:
            return Path(self._config.jobs).expanduser()
        voices = default_folder()
        if voices is None:
            raise ApiError("there is no folder for jobs; set server.jobs", code="no_job_folder")
        return voices.parent / "jobs"

    def _opened(self) -> Jobs:
        with self._lock:
            if self._jobs is None:
                self._jobs = Jobs(self._folder, self._speak, S3GEN_SR)
            return self._jobs


async def _events(jobs: Jobs, job: Job) -> AsyncIterator[bytes]:
    known: dict[str, Any] | None = None
    while True:
        if job.about != known:
            known = job.about
            kind = {DONE: "completed", FAILED: "error"}.get(job.state, "progress")
            yield event({"type": kind, **_told(job)})
            if job.state in (DONE, FAILED, PAUSED):
                return
        else:
            yield KEEP_ALIVE
        if jobs.is_ending:
            return
        try:
            job = await run_in_threadpool(jobs.wait, job.id, known, KEEP_ALIVE_SECONDS)
        except ApiError as error:  # it was removed
            yield event({"type": "error", **error.body})
            return


def _told(job: Job) -> dict[str, Any]:
    own = f"{PATH}/{job.id}"
    return {**job.about, "status_url": own, "sse_url": f"{own}/sse", "download_url": f"{own}/download"}
