"""Which chunk is rendered next: that of the listener who would run dry first.

Owns: the order of jobs. Does not know: threads, clocks, what a job renders.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

MAX_WAIT = 5.0  # seconds after which a job has its turn although others are more urgent
SAFE_SECONDS = 2.0  # that a listener has left: no stream is more urgent than another then


@dataclass(frozen=True, eq=False)
class RenderJob:
    """One chunk to render. ``run`` catches its own errors, and sees for itself whether its result is still wanted."""

    owner: Hashable  # its jobs run one after another, in the order of `RenderQueue.submit`
    run: Callable[[], None]
    num_tokens: int
    deadline: float | None  # when its listener runs out of audio; None: a first chunk; math.inf: nobody listens yet
    submitted: float = 0.0  # set by the queue, in seconds of its clock, as ``deadline``
    fail: Callable[[BaseException], None] | None = None  # told why it will never run, but not if it was cancelled


@dataclass(frozen=True)
class Expected:
    """The next chunk of a listener, whose tokens are still being drawn; ``deadline`` as that of a job."""

    num_tokens: int
    deadline: float


def pick(
    jobs: Sequence[RenderJob],
    now: float,
    seconds_per_token: float,
    last_whole: float = -math.inf,
    *,
    first_per_token: float | None = None,
    expected: Sequence[Expected] = (),
    num_at_once: int = 1,
) -> RenderJob | None:
    """The job to run at ``now``, of ``jobs`` in the order of their submission; at least one. None: better none yet.

    First chunks go first, unless another listener would hear a gap for it who would hear none otherwise, or hears one
    already; that may be one whose next chunk is only ``expected``. Later chunks go by deadline, and in turn where
    listeners have more than `SAFE_SECONDS` left. No deadline is more than `MAX_WAIT` from the submission; whole
    utterances that nobody listens to yet have that one, or `MAX_WAIT` from ``last_whole``, when one of them was run:
    many that wait must not all be overdue at once.

    ``first_per_token``: seconds per token of first chunks, which see as much of the voice as longer ones; None: the
    same.
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

    def turn(job: RenderJob) -> float:
        # A listener who has begun has least left: by deadline alone, all others would wait until they have as much.
        return due(job) if job.deadline == math.inf else min(due(job), job.submitted + SAFE_SECONDS)

    later = sorted((job for job in oldest.values() if job.deadline is not None), key=turn)
    first = next((job for job in oldest.values() if job.deadline is None), None)
    if first is None:
        return later[0]
    first_takes = first.num_tokens * (seconds_per_token if first_per_token is None else first_per_token)
    for job in later:
        own_end = now + seconds_per_token * job.num_tokens
        can_be_met, is_late = own_end <= due(job), due(job) < now
        would_be_missed = due(job) < own_end + first_takes
        if due(job) < due(first) and would_be_missed and (can_be_met or is_late):
            return job
    # All that is heard before the first chunk must be, in order of its deadline, beside it and without it.
    work = 0.0
    ahead = [(due(job), job.num_tokens) for job in later] + [(one.deadline, one.num_tokens) for one in expected]
    for deadline, num_tokens in sorted(ahead):
        work += seconds_per_token * num_tokens / num_at_once
        end = now + work
        if end <= deadline < min(due(first), end + first_takes / num_at_once):
            return later[0] if later else None
    return first
