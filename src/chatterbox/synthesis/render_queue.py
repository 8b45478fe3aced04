"""Which stream's audio is rendered next: one thread for all streams, the listener who would run dry first goes first.

Owns: the jobs that wait, their order, what a token takes to render. Does not know: what a job renders, how, and for
whom; errors of rendering, which a job keeps to itself.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

from chatterbox import forking
from chatterbox.engine.worker import Worker

logger = logging.getLogger(__name__)

MAX_WAIT = 5.0  # seconds after which a job has its turn although others are more urgent
NEWEST_SHARE = 0.2  # of the last job in the average time of a token


@dataclass(frozen=True, eq=False)
class RenderJob:
    """One chunk to render. ``run`` catches its own errors, and sees for itself whether its result is still wanted."""

    owner: Hashable  # its jobs run one after another, in the order of `RenderQueue.submit`
    run: Callable[[], None]
    num_tokens: int
    deadline: float | None  # when its listener runs out of audio; None: a first chunk; math.inf: nobody listens yet
    submitted: float = 0.0  # set by the queue, in seconds of its clock, as ``deadline``


def pick(jobs: Sequence[RenderJob], now: float, seconds_per_token: float, last_whole: float = -math.inf) -> RenderJob:
    """The job to run at ``now``, of ``jobs`` in the order of their submission; at least one.

    First chunks go first, unless another listener would hear a gap for it who would hear none otherwise, or hears one
    already. Later chunks go by deadline, which is at most `MAX_WAIT` from their submission; whole utterances that
    nobody listens to yet have that one, or `MAX_WAIT` from ``last_whole``, when one of them was run: many that wait
    must not all be overdue at once.
    """
    oldest: dict[Hashable, RenderJob] = {}
    for job in jobs:
        oldest.setdefault(job.owner, job)

    def due(job: RenderJob) -> float:
        if job.deadline is None:
            return job.submitted + MAX_WAIT
        if job.deadline == math.inf:
            return max(job.submitted, last_whole) + MAX_WAIT
        return min(job.deadline, job.submitted + MAX_WAIT)

    later = sorted((job for job in oldest.values() if job.deadline is not None), key=due)
    first = next((job for job in oldest.values() if job.deadline is None), None)
    if first is None:
        return later[0]
    for job in later:
        own_end = now + seconds_per_token * job.num_tokens
        can_be_met, is_late = own_end <= due(job), due(job) < now
        would_be_missed = due(job) < own_end + seconds_per_token * first.num_tokens
        if due(job) < due(first) and would_be_missed and (can_be_met or is_late):
            return job
    return first


class RenderQueue:
    """Runs jobs in a thread of its own, one at a time. In a forked child it is empty. Thread-safe."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock``: seconds, what deadlines are told in."""
        self._clock = clock
        self._worker: Worker[RenderQueue] = Worker(self, RenderQueue._work, "chatterbox-render")
        forking.register(self, RenderQueue._renew)

    @property
    def seconds_per_token(self) -> float:
        """What a token of the last jobs took to render; 0 before the first."""
        return self._seconds_per_token or 0.0

    def submit(self, job: RenderJob) -> None:
        """Have ``job`` run when its turn comes.

        Raises:
            RuntimeError: the queue is closed.
        """
        job = replace(job, submitted=self._clock())
        with self._lock:
            self._jobs.append(job)
        if not self._worker.wake():
            self._remove(lambda waiting: waiting is job)
            raise RuntimeError("the renderer is closed; load the model anew")

    def cancel(self, owner: Hashable) -> None:
        """Forget the jobs of ``owner`` that wait. One that is under way goes on."""
        self._remove(lambda waiting: waiting.owner == owner)

    def close(self) -> None:
        """End the thread behind the job under way; those that wait are forgotten. Closing twice is harmless."""
        self._remove(lambda waiting: True)
        self._worker.close()

    def _renew(self) -> forking.Lock:
        self._lock = threading.RLock()  # a stream may be cancelled by a destructor, at any point of any thread
        self._jobs: list[RenderJob] = []
        self._seconds_per_token: float | None = None
        self._last_whole = -math.inf
        return self._lock

    def _remove(self, is_unwanted: Callable[[RenderJob], bool]) -> None:
        with self._lock:
            self._jobs = [waiting for waiting in self._jobs if not is_unwanted(waiting)]

    def _work(self) -> float | None:
        with self._lock:
            if not self._jobs:
                return math.inf
            now = self._clock()
            job = pick(self._jobs, now, self.seconds_per_token, self._last_whole)
            self._remove(lambda waiting: waiting is job)
            if job.deadline == math.inf:
                self._last_whole = now
        try:
            job.run()
        except BaseException:
            logger.exception("a chunk was not rendered, for an error that its job does not know")
        else:
            self._learn(job.num_tokens, self._clock() - now)
        return None

    def _learn(self, num_tokens: int, seconds: float) -> None:
        if num_tokens:
            newest = seconds / num_tokens
            known = newest if self._seconds_per_token is None else self._seconds_per_token
            self._seconds_per_token = known + NEWEST_SHARE * (newest - known)
