"""Rendering for all streams: jobs wait here until their turn, and are run in threads of the queue.

Owns: the jobs that wait, the threads that run them, what a token takes to render, who may start. Does not know: the
order (`render_order`); what a job renders, how, and for whom; errors of rendering, which a job keeps to itself.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TypedDict

from chatterbox.engine.scheduler import EngineClosedError
from chatterbox.engine.worker import CHECK_SECONDS, Worker, process_num_threads
from chatterbox.runtime import forking
from chatterbox.runtime.openmp import alone, can_compute_alone
from chatterbox.synthesis.render_order import SAFE_SECONDS, Expected, Pace, RenderJob, pick

logger = logging.getLogger(__name__)

CLOSED = "the renderer is closed; load the model anew"
NUM_RECENT = 32  # jobs that tell what a token takes
START_SECONDS = 2.0  # in which a listener who starts has a second chunk, or counts as started without


@dataclass(eq=False)
class _Start:
    """A listener who has no second chunk yet."""

    until: float  # in seconds of the queue's clock
    ask_again: Callable[[], None] | None = None  # while they wait for leave to have the first


class RenderStats(TypedDict):
    """Jobs by where they are; streams whose second chunk is not rendered; workers that are at it."""

    waiting: int
    running: int
    starting: int
    workers: int


class RenderQueue:
    """Runs jobs in threads of its own. In a forked child it is empty. Thread-safe."""

    def __init__(self, *, runs_alone: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        """Args:
        runs_alone: a job computes in one thread, and as many run at once as torch has threads, where that can be had
            (`openmp.can_compute_alone`). Else one job at a time has all of them.
        clock: seconds, what deadlines are told in.
        """
        self._clock, self._is_closed = clock, False
        self._runs_alone = runs_alone and can_compute_alone()
        self._workers: list[Worker[RenderQueue]] = [
            Worker(self, partial(RenderQueue._work, index=index), f"chatterbox-render-{index}")
            for index in range((os.cpu_count() or 1) if self._runs_alone else 1)
        ]
        forking.register(self, RenderQueue._renew)

    @property
    def is_alive(self) -> bool:
        """Whether there is a thread now."""
        return any(worker.is_alive for worker in self._workers)

    def stats(self) -> RenderStats:
        """Counts of this moment."""
        with self._lock:
            return {
                "waiting": len(self._jobs),
                "running": len(self._running),
                "starting": len(self._starting),
                "workers": len(self._busy),
            }

    def is_for_none_but(self, owner: Hashable) -> bool:
        """Whether no job of another waits, runs or is expected, and nobody else starts."""
        now = self._clock()
        with self._lock:
            expected = (other for other, one in self._expected.items() if one.deadline > now)
            owners = self._busy_for(now).union(expected)
        return owners <= {owner}

    def submit(self, job: RenderJob) -> None:
        """Have ``job`` run when its turn comes.

        Raises:
            EngineClosedError: the queue is closed.
        """
        job = replace(job, submitted=self._clock())
        with self._lock:
            if self._is_closed:
                raise EngineClosedError(CLOSED)
            self._expected.pop(job.owner, None)
            self._jobs.append(job)
            num_jobs = len(self._jobs)
        is_woken = False
        try:
            num_workers = self._allowed()
            # More than one: others may have waited for what was expected.
            is_woken = all(self._wake(num_workers) for _ in range(min(num_jobs, num_workers)))
        finally:
            if not is_woken:
                self._remove(lambda waiting: waiting is job)
        if not is_woken:
            raise EngineClosedError(CLOSED)

    def announce(self, owner: Hashable) -> None:
        """A listener waits for a first chunk whose tokens are not decoded yet, and counts as one who starts."""
        if self._runs_alone:
            with self._lock:
                self._starting.setdefault(owner, _Start(self._clock() + START_SECONDS))

    def num_tokens_within(self, seconds: float) -> int:
        """Tokens of a job that is surely run in so many seconds; 0 before any was run."""
        with self._lock:
            pace = Pace.of(self._per_token)
        return int(seconds / pace.slow) if pace.slow else 0

    def starts(self, owner: Hashable, ask_again: Callable[[], None]) -> bool:
        """A listener's first chunk could be rendered; whether it should be, although its second cannot follow yet.

        Not where more start, or are rendered for, than there are threads: the chunks of all would slow the tokens of
        the second one, which would be late. ``ask_again`` is called, in a thread of the queue, when it should.
        Where a job has all threads, it should always.
        """
        if not self._runs_alone:
            return True
        with self._lock:
            start = self._starting.setdefault(owner, _Start(self._clock() + START_SECONDS))
            may_start, is_known_to_wait = self._may_start(owner), start.ask_again is not None
            start.ask_again = None if may_start else ask_again
        if not may_start and not is_known_to_wait:  # a worker that sleeps does not know when to ask
            self._wake(self._num_workers)
        return may_start

    def expect(self, owner: Hashable, num_tokens: int, deadline: float) -> None:
        """A listener of ``owner`` will need a chunk by ``deadline``, which is submitted when its tokens are decoded."""
        with self._lock:
            self._expected[owner] = Expected(num_tokens, deadline)

    def cancel(self, owner: Hashable) -> None:
        """Forget the jobs of ``owner`` that wait, and what is expected of it. One that is under way goes on."""
        self._remove(lambda waiting: waiting.owner == owner)
        with self._lock:
            self._expected.pop(owner, None)
            self._starting.pop(owner, None)
            is_awaited = bool(self._jobs) or any(start.ask_again for start in self._starting.values())
        if is_awaited:  # by whichever number of threads is known: this may be a destructor
            self._wake(self._num_workers)

    def close(self) -> None:
        """End the threads behind the jobs under way; those that wait fail. Closing twice is harmless."""
        with self._lock:
            self._is_closed = True
            dropped = self._jobs[:]
            for waiting in (self._jobs, self._expected, self._starting):
                waiting.clear()
        for job in dropped:
            if job.fail is not None:
                job.fail(EngineClosedError(CLOSED))
        for worker in self._workers:
            worker.close()

    def _renew(self) -> forking.Lock:
        self._lock = threading.RLock()  # a stream may be cancelled by a destructor, at any point of any thread
        self._jobs: list[RenderJob] = []
        self._expected: dict[Hashable, Expected] = {}
        self._running: set[Hashable] = set()  # owners
        self._starting: dict[Hashable, _Start] = {}  # owners whose second chunk is not rendered, in their order
        self._busy: set[int] = set()  # workers that will look at the jobs once more before they sleep
        self._num_workers = 1
        self._checked = -math.inf  # monotonic seconds
        self._per_token: deque[float] = deque(maxlen=NUM_RECENT)  # seconds of the last jobs
        self._last_whole = -math.inf
        return self._lock

    def _wake(self, num_workers: int) -> bool:
        """Have one of so many workers look at the jobs that is not at it yet; False: the queue is closed."""
        index = None
        try:
            with self._lock:
                index = next((one for one in range(num_workers) if one not in self._busy), None)
                if index is None:
                    return not self._is_closed
                self._busy.add(index)
            return self._workers[index].wake()
        except BaseException:  # Ctrl-C among them: nobody would wake a worker that counts as busy
            if index is not None:
                self._busy.discard(index)
            raise

    def _allowed(self) -> int:
        """Jobs that may run at once: the number of torch's threads, as it is now."""
        if self._runs_alone and time.monotonic() - self._checked > CHECK_SECONDS:
            self._checked = time.monotonic()
            self._num_workers = min(len(self._workers), process_num_threads(default=1))
        return self._num_workers

    def _may_start(self, owner: Hashable) -> bool:
        """Whether few enough start or are rendered for, or ``owner`` has waited; with the lock held."""
        now = self._clock()
        return self._starting[owner].until <= now or len(self._busy_for(now)) <= self._num_workers

    def _busy_for(self, now: float) -> set[Hashable]:
        """Owners who start, and those whose jobs run, or wait and cannot do so for long; with the lock held."""
        starting = (owner for owner, start in self._starting.items() if start.until > now)
        urgent = (job.owner for job in self._jobs if job.deadline is None or job.deadline <= now + SAFE_SECONDS)
        return self._running.union(starting, urgent)

    def _ask(self) -> None:
        """Tell those who may start by now."""
        with self._lock:
            ready = [
                start
                for owner, start in self._starting.items()
                if start.ask_again is not None and self._may_start(owner)
            ]
            asked = [start.ask_again for start in ready]
            for start in ready:
                start.ask_again = None
        for ask_again in asked:
            assert ask_again is not None
            try:
                ask_again()
            except BaseException:
                logger.exception("a stream that waited for leave to start failed, for an error that it does not know")

    def _remove(self, is_unwanted: Callable[[RenderJob], bool]) -> None:
        with self._lock:
            self._jobs = [waiting for waiting in self._jobs if not is_unwanted(waiting)]

    def _work(self, index: int) -> float | None:
        self._ask()
        now = self._clock()
        with self._lock:
            job, pause = self._next(now) if index < self._num_workers else (None, math.inf)
            if job is None:
                self._busy.discard(index)
                if index >= self._num_workers:  # torch has fewer threads by now
                    self._wake(self._num_workers)
                return pause
            self._busy.add(index)
            self._running.add(job.owner)
            self._jobs.remove(job)
            if job.deadline == math.inf:
                self._last_whole = now
        try:
            with alone() if self._runs_alone else nullcontext():
                job.run()
        except BaseException:
            logger.exception("a chunk was not rendered, for an error that its job does not know")
        else:
            self._learn(job, self._clock() - now)
        with self._lock:
            self._running.discard(job.owner)
            if job.deadline is not None:
                self._starting.pop(job.owner, None)
        return None

    def _next(self, now: float) -> tuple[RenderJob | None, float]:
        """The job whose turn it is; without one, seconds until there may be one although nobody wakes a worker."""
        held_until = min((start.until for start in self._starting.values() if start.ask_again), default=math.inf)
        jobs = [job for job in self._jobs if job.owner not in self._running]
        if not jobs:
            return None, held_until - now
        expected = [one for one in self._expected.values() if one.deadline > now]
        job = pick(
            jobs,
            now,
            Pace.of(self._per_token),
            self._last_whole,
            expected=expected,
            num_workers=self._num_workers,
        )
        return job, min([held_until, *(one.deadline for one in expected)]) - now

    def _learn(self, job: RenderJob, seconds: float) -> None:
        if job.num_tokens:
            with self._lock:
                self._per_token.append(seconds / job.num_tokens)
