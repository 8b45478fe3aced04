"""Long texts as jobs: kept on disk, spoken part by part, told how far they are, and gone on with after a restart.

Owns: the folder of jobs (a SQLite file, and the audio of each part), their states, who works on them. Does not know:
HTTP, models (``speak`` makes audio of a part).

What was acknowledged is on disk: a job before its id is told; a part's audio, whole or not at all, before it counts.
Killed at any point, the next start goes on with the first part that is missing.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shutil
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chatterbox.audio.encoding import encoder_of, to_pcm
from chatterbox.runtime.files import whole
from chatterbox.serve.errors import BUSY, CONFLICT, NOT_FOUND, ApiError, api_error
from chatterbox.text import split_text

logger = logging.getLogger(__name__)

PART_LEN = 600  # characters at most: what is said again after a restart
STATES = WAITING, RUNNING, PAUSED, DONE, FAILED = "queued", "running", "paused", "completed", "failed"
_PARAGRAPHS = re.compile(r"\n\s*\n")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, created REAL NOT NULL, state TEXT NOT NULL, fields TEXT NOT NULL, parts TEXT NOT NULL,
    num_done INTEGER NOT NULL DEFAULT 0, seconds REAL NOT NULL DEFAULT 0, error TEXT
)
"""
Speak = Callable[[Mapping[str, Any], str, int, Callable[[], bool]], Iterator[np.ndarray]]


@dataclass(frozen=True)
class Job:
    """One of them, as it was at some moment. ``fields``: of the request, without its text."""

    id: str
    created: float
    state: str
    fields: Mapping[str, Any]
    parts: Sequence[tuple[str, float]]  # text, and seconds of silence behind it
    num_done: int
    seconds: float  # of audio
    error: str | None

    @property
    def about(self) -> dict[str, Any]:
        """What a client is told; none of its text."""
        return {
            "job_id": self.id,
            "object": "audio.speech.job",
            "status": self.state,
            "created_at": int(self.created),
            "total_chunks": len(self.parts),
            "completed_chunks": self.num_done,
            "progress": round(self.num_done / len(self.parts), 4),
            "duration_seconds": round(self.seconds, 3),
            "response_format": self.fields.get("response_format", "mp3"),
            "error": self.error,
        }


class Jobs:
    """All jobs of a folder, and the thread that works on them, one after the other. Thread-safe."""

    def __init__(self, folder: Path, speak: Speak, sample_rate: int, *, most: int = 100) -> None:
        """Args:
            speak: samples (N,) of a part, in pieces, of the request's fields, the part's text and number, and a
                function that says whether to give up.
            most: jobs that are kept; one more is refused until some are removed.

        Raises:
            OSError: the folder cannot be written to.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._speak, self._rate, self._most = folder, speak, sample_rate, most
        self._changed = threading.Condition(threading.RLock())
        self._is_closed = False
        self._file = sqlite3.connect(folder / "jobs.sqlite3", check_same_thread=False, isolation_level=None)
        self._file.execute("PRAGMA journal_mode=WAL")
        self._file.execute("PRAGMA synchronous=FULL")
        self._file.execute(_SCHEMA)
        self._file.execute("UPDATE jobs SET state = ? WHERE state = ?", (WAITING, RUNNING))
        known = {name for (name,) in self._file.execute("SELECT id FROM jobs")}
        for left in folder.glob("job_*"):  # whoever made or removed them was killed
            if left.name not in known:
                shutil.rmtree(left, ignore_errors=True)
        self._worker = threading.Thread(target=self._work, name="chatterbox-jobs", daemon=True)
        self._worker.start()

    def add(self, text: str, fields: Mapping[str, Any], paragraph_pause: float) -> Job:
        """A job for ``text``. Raises ApiError: too many are kept, or there is nothing to speak."""
        parts = _parts(text, paragraph_pause)
        if not parts:
            raise ApiError("input has nothing to speak", param="input", code="invalid_value")
        name = f"job_{uuid.uuid4().hex}"
        with self._changed:
            (count,) = self._file.execute("SELECT count(*) FROM jobs").fetchone()
            if count >= self._most:
                raise ApiError(f"{count} jobs are kept, which is all that fit; delete some", BUSY, code="too_many_jobs")
            (self._folder / name).mkdir()
            row = (name, time.time(), WAITING, json.dumps(dict(fields)), json.dumps(parts))
            self._file.execute("INSERT INTO jobs (id, created, state, fields, parts) VALUES (?, ?, ?, ?, ?)", row)
            self._changed.notify_all()
        return self.get(name)

    def get(self, name: str) -> Job:
        """One by its id. Raises ApiError: there is none."""
        with self._changed:
            row = self._file.execute(f"{_SELECT} WHERE id = ?", (name,)).fetchone()
        if row is None:
            raise ApiError(f"there is no job {name!r}", NOT_FOUND, code="job_not_found")
        return _job(row)

    def all(self) -> list[Job]:
        """Those that are kept, the newest first."""
        with self._changed:
            return [_job(row) for row in self._file.execute(f"{_SELECT} ORDER BY created DESC").fetchall()]

    def pause(self, name: str) -> Job:
        """Stop working on one, within its part. Raises ApiError: it is over, or there is none."""
        return self._move(name, PAUSED, of=(WAITING, RUNNING, PAUSED))

    def resume(self, name: str) -> Job:
        """Go on with one that is paused, or failed. Raises ApiError: it is over, or there is none."""
        return self._move(name, WAITING, of=(PAUSED, FAILED, WAITING, RUNNING))

    def remove(self, name: str) -> None:
        """Forget one, its text and audio. Raises ApiError: there is none."""
        self.get(name)
        with self._changed:
            self._file.execute("DELETE FROM jobs WHERE id = ?", (name,))
            self._changed.notify_all()
        shutil.rmtree(self._folder / name, ignore_errors=True)

    def wait(self, name: str, known: Mapping[str, Any] | None, seconds: float) -> Job:
        """One as it is once it is no more what is ``known`` of it, or after so long. Raises as `get`."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self.get(name).about != known, seconds)
            return self.get(name)

    def audio(self, name: str) -> Iterator[bytes]:
        """All of a job's audio in its format. Raises ApiError: it is not completed, or there is none."""
        job = self.get(name)
        if job.state != DONE:
            raise ApiError(
                f"the job is {job.state}, {job.about['progress']:.0%} of it is done", CONFLICT, code="not_ready"
            )
        return self._encoded(job)

    @property
    def is_ending(self) -> bool:
        """Whether no more is worked on."""
        return self._is_closed

    def end(self) -> None:
        """Stop within the part that is worked on; the next start goes on with it. Returns at once."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def close(self) -> None:
        """`end`, and wait until nothing is worked on. Twice is harmless."""
        self.end()
        self._worker.join()
        self._file.close()

    def _encoded(self, job: Job) -> Iterator[bytes]:
        pauses = sum(round(pause * self._rate) for _, pause in job.parts)
        spoken = sum(self._path(job, number).stat().st_size // 2 for number in range(len(job.parts)))
        form = job.fields.get("response_format", "mp3")
        with contextlib.closing(encoder_of(form, self._rate, spoken + pauses)) as encoder:
            for number, (_, pause) in enumerate(job.parts):
                samples = np.fromfile(self._path(job, number), "<i2").astype(np.float32) / 32767
                yield encoder.push(np.concatenate([samples, np.zeros(round(pause * self._rate), np.float32)]))
            yield encoder.finish()

    def _move(self, name: str, state: str, *, of: Sequence[str]) -> Job:
        with self._changed:
            job = self.get(name)
            if job.state not in of:
                raise ApiError(f"the job is {job.state} already", CONFLICT, code="job_is_over")
            if not (state == WAITING and job.state == RUNNING):
                self._set(name, state=state, error=None)
            return self.get(name)

    def _set(self, name: str, **values: Any) -> None:
        columns = ", ".join(f"{column} = ?" for column in values)
        with self._changed:
            self._file.execute(f"UPDATE jobs SET {columns} WHERE id = ?", (*values.values(), name))
            self._changed.notify_all()

    def _work(self) -> None:
        while (job := self._next()) is not None:
            try:
                self._work_on(job)
            except Exception as error:
                logger.exception("a job failed")
                self._set(job.id, state=FAILED, error=str(api_error(error)))

    def _next(self) -> Job | None:
        """The oldest that waits, once there is one; None: the end."""
        query = f"{_SELECT} WHERE state = ? ORDER BY created LIMIT 1"
        with self._changed:
            while not self._is_closed:
                row = self._file.execute(query, (WAITING,)).fetchone()
                if row is not None:
                    self._set(row[0], state=RUNNING)
                    return _job(row)
                self._changed.wait()
        return None

    def _work_on(self, job: Job) -> None:
        def is_unwanted() -> bool:
            with self._changed:
                row = self._file.execute("SELECT state FROM jobs WHERE id = ?", (job.id,)).fetchone()
            return self._is_closed or row != (RUNNING,)

        seconds = 0.0
        for number, (text, pause) in enumerate(job.parts):
            path = self._path(job, number)
            if not path.is_file():
                pieces = list(self._speak(job.fields, text, number, is_unwanted))
                if is_unwanted():
                    return
                with whole(path) as part:
                    part.write_bytes(b"".join(to_pcm(piece).tobytes() for piece in pieces))
            seconds += path.stat().st_size / 2 / self._rate + pause
            self._set(job.id, num_done=number + 1, seconds=seconds)
        self._set(job.id, state=DONE)

    def _path(self, job: Job, number: int) -> Path:
        return self._folder / job.id / f"{number:06}.pcm"


_SELECT = "SELECT id, created, state, fields, parts, num_done, seconds, error FROM jobs"


def _job(row: Sequence[Any]) -> Job:
    name, created, state, fields, parts, *rest = row
    return Job(name, created, state, json.loads(fields), [tuple(part) for part in json.loads(parts)], *rest)


def _parts(text: str, paragraph_pause: float) -> list[tuple[str, float]]:
    """What is spoken at a time, and the silence behind it: sentences of one paragraph, up to `PART_LEN` characters."""
    parts: list[tuple[str, float]] = []
    for paragraph in _PARAGRAPHS.split(text):
        own = split_text(paragraph, PART_LEN, len)
        parts += [(part, 0.0 if place < len(own) - 1 else paragraph_pause) for place, part in enumerate(own)]
    return [*parts[:-1], (parts[-1][0], 0.0)] if parts else []
