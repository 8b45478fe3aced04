"""Jobs on disk: in order, paused, resumed, removed, failed, and killed at any point."""

from __future__ import annotations

import subprocess
import sys
import threading
import wave
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chatterbox.serve.errors import ApiError
from chatterbox.serve.jobs import DONE, FAILED, PAUSED, RUNNING, WAITING, Jobs
from tests.support.waiting import wait_for

RATE = 8000
WAV = {"response_format": "wav"}
TEXT = "\n\n".join(f"This is paragraph number {number}." for number in range(5))


class Speaker:
    """A tenth of a second a part, whose level is its number; it waits where it is told to."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.goes_on, self.fails_at = threading.Event(), -1
        self.goes_on.set()

    def __call__(
        self, fields: Mapping[str, Any], text: str, number: int, is_unwanted: Callable[[], bool]
    ) -> Iterator[np.ndarray]:
        self.said.append(text)
        if number == self.fails_at:
            raise ValueError("voice 'bob' is gone")
        for _ in range(2):
            while not self.goes_on.wait(0.01):
                if is_unwanted():
                    return
            yield np.full(RATE // 20, (number + 1) / 100, np.float32)


@pytest.fixture
def speaker() -> Speaker:
    return Speaker()


@pytest.fixture
def jobs(tmp_path: Path, speaker: Speaker) -> Iterator[Jobs]:
    one = Jobs(tmp_path, speaker, RATE, most=3)
    yield one
    one.close()


def state_of(jobs: Jobs, name: str) -> str:
    return jobs.get(name).state


def levels(data: bytes) -> list[int]:
    """Of each tenth of a second."""
    with wave.open(BytesIO(data)) as file:
        samples = np.frombuffer(file.readframes(10**6), "<i2")
    return [round(float(part.mean()) / 327.67) for part in np.split(samples, len(samples) // (RATE // 10))]


def test_a_job_is_spoken_part_by_part(jobs: Jobs, speaker: Speaker) -> None:
    job = jobs.add(TEXT, WAV, paragraph_pause=0.1)
    assert (job.state, len(job.parts), job.about["progress"]) == (WAITING, 5, 0)
    wait_for(lambda: state_of(jobs, job.id) == DONE)
    about = jobs.get(job.id).about
    assert (about["completed_chunks"], about["progress"], about["duration_seconds"]) == (5, 1, pytest.approx(0.9))
    assert levels(b"".join(jobs.audio(job.id))) == [1, 0, 2, 0, 3, 0, 4, 0, 5]
    assert speaker.said == [f"This is paragraph number {number}." for number in range(5)]
    assert TEXT[:10] not in str(about)


def test_it_stops_within_a_part_and_goes_on_with_it(jobs: Jobs, speaker: Speaker) -> None:
    speaker.goes_on.clear()
    job = jobs.add(TEXT, WAV, 0.0)
    wait_for(lambda: len(speaker.said) == 1)
    assert jobs.pause(job.id).state == PAUSED == jobs.pause(job.id).state
    with pytest.raises(ApiError, match="the job is paused, 0% of it is done"):
        jobs.audio(job.id)
    speaker.goes_on.set()
    assert state_of(jobs, job.id) == PAUSED
    assert jobs.resume(job.id).state in (WAITING, RUNNING, DONE)
    wait_for(lambda: state_of(jobs, job.id) == DONE)
    assert levels(b"".join(jobs.audio(job.id))) == [1, 2, 3, 4, 5]
    for move in (jobs.pause, jobs.resume):
        with pytest.raises(ApiError, match="the job is completed already"):
            move(job.id)


def test_a_part_that_fails_is_told_and_tried_again(jobs: Jobs, speaker: Speaker) -> None:
    speaker.fails_at = 2
    job = jobs.add(TEXT, WAV, 0.0)
    wait_for(lambda: state_of(jobs, job.id) == FAILED)
    assert jobs.get(job.id).error == "voice 'bob' is gone" and jobs.get(job.id).num_done == 2
    speaker.fails_at = -1
    jobs.resume(job.id)
    wait_for(lambda: state_of(jobs, job.id) == DONE)
    assert len(speaker.said) == 6 and jobs.get(job.id).error is None


def test_one_after_the_other_and_no_more_than_fit(jobs: Jobs, speaker: Speaker, tmp_path: Path) -> None:
    speaker.goes_on.clear()
    names = [jobs.add(f"Text {number}.", WAV, 0.0).id for number in range(3)]
    with pytest.raises(ApiError, match="3 jobs are kept, which is all that fit; delete some") as caught:
        jobs.add("More.", WAV, 0.0)
    assert caught.value.status == 429
    wait_for(lambda: state_of(jobs, names[0]) == RUNNING)
    assert [state_of(jobs, name) for name in names[1:]] == [WAITING] * 2
    jobs.remove(names[0])
    assert not (tmp_path / names[0]).exists()
    with pytest.raises(ApiError, match="there is no job"):
        jobs.get(names[0])
    speaker.goes_on.set()
    wait_for(lambda: all(state_of(jobs, name) == DONE for name in names[1:]))
    assert [job.id for job in jobs.all()] == names[:0:-1]


def test_whoever_waits_is_told_of_each_change(jobs: Jobs) -> None:
    job = jobs.add(TEXT, WAV, 0.0)
    seen, known = [], None
    while known is None or known["status"] != DONE:
        known = jobs.wait(job.id, known, 10).about
        seen.append(known["completed_chunks"])
    assert seen == sorted(seen) and seen[-1] == 5
    assert jobs.wait(job.id, known, 0.05).about == known


def test_nothing_to_speak_is_no_job(jobs: Jobs) -> None:
    with pytest.raises(ApiError, match="input has nothing to speak"):
        jobs.add("... \n\n ---", WAV, 0.0)
    assert not jobs.all()


def test_a_restart_goes_on_with_the_first_part_that_is_missing(tmp_path: Path, speaker: Speaker) -> None:
    one = Jobs(tmp_path, speaker, RATE)
    job = one.add(TEXT, WAV, 0.0)
    wait_for(lambda: one.get(job.id).num_done >= 1)
    speaker.goes_on.clear()
    one.close()
    num_done = len(list((tmp_path / job.id).glob("*.pcm")))
    other, speaker.goes_on = Speaker(), threading.Event()
    again = Jobs(tmp_path, other, RATE)
    wait_for(lambda: state_of(again, job.id) == DONE)
    assert len(other.said) == 5 - num_done and levels(b"".join(again.audio(job.id))) == [1, 2, 3, 4, 5]
    again.close()


KILLED = """
import os, sys, threading, time
from pathlib import Path
import numpy as np
from chatterbox.serve.jobs import Jobs
def speak(fields, text, number, is_unwanted):
    yield np.full(400, (number + 1) / 100, np.float32)
jobs = Jobs(Path(sys.argv[1]), speak, 8000, most=10**6)
threading.Timer(float(sys.argv[2]), lambda: os.kill(os.getpid(), 9)).start()
while True:
    print(jobs.add("One. Two.\\n\\nThree.\\n\\nFour.", {"response_format": "wav"}, 0.0).id, flush=True)
    time.sleep(0.001)
"""


def test_killed_at_any_point_nothing_that_was_told_is_lost(tmp_path: Path, speaker: Speaker) -> None:
    told = []
    for turn in range(4):
        command = [sys.executable, "-c", KILLED, str(tmp_path), str(0.05 + 0.07 * turn)]
        told += subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    assert len(told) > 4
    jobs = Jobs(tmp_path, speaker, RATE, most=10**6)
    wait_for(lambda: all(job.state == DONE for job in jobs.all()))
    there = {job.id: job for job in jobs.all()}
    assert {path.name for path in tmp_path.glob("job_*")} == set(there)
    assert set(told) <= set(there)
    for name in told:
        assert there[name].num_done == 3 and len(b"".join(jobs.audio(name))) > 44
        sizes = {path.stat().st_size for path in (tmp_path / name).glob("*.pcm")}
        assert sizes <= {800, 1600} and len(list((tmp_path / name).iterdir())) == 3
    jobs.close()
