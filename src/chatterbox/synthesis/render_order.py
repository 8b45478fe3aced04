"""Which chunk is rendered next: that of the listener who would run dry first.

Owns: the order of jobs. Does not know: threads, clocks, what a job renders.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

MAX_WAIT = 5.0  # seconds after which a job has its turn although others are more urgent
SLOW_SHARE = 0.9  # of the jobs are not slower than a slow one
SAFE_SECONDS = 2.0  # that a listener has left: no stream is more urgent than another then


@dataclass(frozen=True, eq=False)
class RenderJob:
    """One chunk to render. ``run`` catches its own errors, and sees for itself whether its result is still wanted."""

    owner: Hashable  # its jobs run one after another, in the order of `RenderQueue.submit`
    run: Callable[[], None]
    num_tokens: int  # that are computed, new ones and others that it sees: what it takes
    deadline: float | None  # when its listener runs out of audio; None: a first chunk; math.inf: nobody listens yet
    submitted: float = 0.0  # set by the queue, in seconds of its clock, as ``deadline``
    fail: Callable[[BaseException], None] | None = None  # told why it will never run, but not if it was cancelled


class Pace(NamedTuple):
    """Seconds that a token takes to render."""

    usual: float = 0.0
    slow: float = 0.0  # what few take longer than: T3, other chunks and other programs have the same cores

    @classmethod
    def of(cls, seconds: Collection[float]) -> Pace:
        """Of what tokens took, the last ones of some jobs; 0 of none."""
        if not seconds:
            return cls()
        ordered = sorted(seconds)
        return cls(ordered[len(ordered) // 2], ordered[int(SLOW_SHARE * len(ordered))])


@dataclass(frozen=True)
class Expected:
    """The next chunk of a listener, whose tokens are still being decoded; ``deadline`` as that of a job."""

    num_tokens: int
    deadline: float


def pick(
    jobs: Sequence[RenderJob],
    now: float,
    pace: Pace,
    last_whole: float = -math.inf,
    *,
    expected: Sequence[Expected] = (),
    num_workers: int = 1,
) -> RenderJob | None:
    """The job to run at ``now``, of ``jobs`` in the order of their submission; at least one. None: better none yet.

    First chunks go first, unless another listener could hear a gap for it, were both rendered slowly, who would hear
    none otherwise, or hears one already; that may be one whose next chunk is only ``expected``. Later chunks go by
    deadline, and in turn where listeners have more than `SAFE_SECONDS` left. No deadline is more than `MAX_WAIT` from
    the submission; whole utterances that nobody listens to yet have that one, or `MAX_WAIT` from ``last_whole``, when
    one of them was run: many that wait must not all be overdue at once.
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

    def can_be_met(deadline: float, num_tokens: float) -> bool:
        return now + pace.usual * num_tokens <= deadline

    def could_be_missed(deadline: float, num_tokens: float) -> bool:
        return deadline < now + pace.slow * num_tokens

    for job in later:
        is_worth_it = can_be_met(due(job), job.num_tokens) or due(job) < now
        if due(job) < due(first) and is_worth_it and could_be_missed(due(job), job.num_tokens + first.num_tokens):
            return job
    # All that is heard before the first chunk must be, in order of its deadline, beside it and without it.
    num_ahead = 0
    ahead = [(due(job), job.num_tokens) for job in later] + [(one.deadline, one.num_tokens) for one in expected]
    for deadline, num_tokens in sorted(ahead):
        num_ahead += num_tokens
        is_worth_it = deadline < due(first) and can_be_met(deadline, num_ahead / num_workers)
        if is_worth_it and could_be_missed(deadline, (num_ahead + first.num_tokens) / num_workers):
            return later[0] if later else None
    return first
