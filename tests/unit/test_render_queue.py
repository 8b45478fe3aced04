"""The order in which streams are rendered, and the thread that does it."""

from __future__ import annotations

import gc
import logging
import math
import os
import threading
import time
import weakref
from collections.abc import Iterator

import pytest

from chatterbox.synthesis.render_queue import MAX_WAIT, RenderJob, RenderQueue, pick

WAIT = 30.0  # seconds until a test that should not wait gives up
FIRST = None
WHOLE = math.inf


def job(owner: str, deadline: float | None, num_tokens: int = 10, submitted: float = 100.0) -> RenderJob:
    return RenderJob(owner, lambda: None, num_tokens, deadline, submitted)


# At 100 s, with 0.1 s a token: each job takes a second, if it has ten tokens.
CASES = {
    "the only one": ([job("a", WHOLE)], "a"),
    "the oldest first chunk": ([job("a", FIRST), job("b", FIRST)], "a"),
    "a first chunk before a later one with time enough for both": ([job("a", 102.0), job("b", FIRST)], "b"),
    "a later chunk that would be late for it": ([job("a", 101.9), job("b", FIRST)], "a"),
    "a later chunk that would be late for a long first one": ([job("a", 103.9), job("b", FIRST, 30)], "a"),
    "a later chunk that will be late anyhow": ([job("a", 100.9), job("b", FIRST)], "b"),
    "a later chunk that just makes it": ([job("a", 101.0), job("b", FIRST)], "a"),
    "a later chunk that is late already": ([job("a", 99.9), job("b", FIRST)], "a"),
    "the one of two later chunks that can be saved": ([job("a", 100.5), job("c", 101.5), job("b", FIRST)], "c"),
    "the first of two later chunks that can be saved": ([job("a", 101.8), job("c", 101.5), job("b", FIRST)], "c"),
    "later chunks by deadline": ([job("a", 104.0), job("b", 103.0), job("c", 103.5)], "b"),
    "later chunks behind none of their own stream": ([job("a", 104.0), job("b", 103.0), job("a", 101.0)], "b"),
    "a later chunk behind the first of its own stream": ([job("a", FIRST), job("a", 99.0)], "a"),
    "whole utterances behind later chunks": ([job("a", WHOLE), job("b", 104.0)], "b"),
    "whole utterances behind first chunks": ([job("a", WHOLE), job("b", FIRST)], "b"),
    "the oldest whole utterance": ([job("a", WHOLE, submitted=98.0), job("b", WHOLE, submitted=99.0)], "a"),
    "a whole utterance that has waited": ([job("a", WHOLE, submitted=95.5), job("b", 101.0)], "a"),
    "a whole utterance that has waited, and a late chunk": ([job("a", WHOLE, submitted=94.9), job("b", 99.0)], "b"),
    "a whole utterance that has waited, and a first chunk": ([job("a", WHOLE, submitted=94.9), job("b", FIRST)], "a"),
    "a later chunk that has waited, with much audio left": ([job("a", 130.0, submitted=95.2), job("b", 100.5)], "a"),
    "a first chunk that has waited for late ones": ([job("a", 97.0), job("b", FIRST, submitted=91.0)], "b"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_order(case):
    jobs, owner = CASES[case]
    picked = pick(jobs, now=100.0, seconds_per_token=0.1)
    assert picked is next(job for job in jobs if job.owner == owner)


def test_before_anything_is_measured_first_chunks_go_first_but_before_late_ones():
    first, soon, late = job("a", FIRST), job("b", 100.0), job("c", 99.0)
    assert pick([soon, first], 100.0, 0.0) is first
    assert pick([soon, first, late], 100.0, 0.0) is late


def test_of_many_whole_utterances_that_are_overdue_one_goes_before_a_stream():
    whole = [job(f"w{i}", WHOLE, submitted=90.0) for i in range(3)]
    chunk = job("stream", 101.0)
    assert pick([*whole, chunk], 100.0, 0.1) is whole[0]
    assert pick([*whole[1:], chunk], 100.0, 0.1, last_whole=99.0) is chunk
    assert pick([*whole[1:], chunk], 100.0, 0.1, last_whole=101.0 - MAX_WAIT - 0.1) is whole[1]
    assert pick(whole[1:], 100.0, 0.1, last_whole=99.0) is whole[1]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Jobs:
    """A queue whose thread waits inside a first job until `go`; names of the jobs that have run since."""

    def __init__(self) -> None:
        self.clock, self.names = Clock(), []
        self.queue = RenderQueue(clock=self.clock)
        self._go, self._is_inside = threading.Event(), threading.Event()

    def hold(self) -> None:
        self._go.clear()
        self._is_inside.clear()
        self.queue.submit(RenderJob("held", self._hold, 0, FIRST))
        assert self._is_inside.wait(WAIT)

    def _hold(self) -> None:
        self._is_inside.set()
        assert self._go.wait(WAIT)

    def submit(self, name: str, deadline: float | None, num_tokens: int = 10, seconds: float = 1.0) -> None:
        """The owner is the first letter of the name."""

        def run() -> None:
            self.names.append(name)
            self.clock.now += seconds
            if name.endswith("!"):
                raise ValueError(name)

        self.queue.submit(RenderJob(name[0], run, num_tokens, deadline))

    def all_run(self) -> list[str]:
        done = threading.Event()
        self._go.set()
        self.queue.submit(RenderJob("last", done.set, 0, WHOLE))
        assert done.wait(WAIT)
        return self.names


@pytest.fixture
def jobs() -> Iterator[Jobs]:
    jobs = Jobs()
    yield jobs
    jobs._go.set()
    jobs.queue.close()


def test_jobs_run_by_urgency_and_those_of_one_stream_in_order(jobs):
    jobs.hold()
    for name, deadline in (("w1", WHOLE), ("a1", 103.0), ("a2", 101.0), ("b1", 102.0), ("c1", FIRST), ("d1", FIRST)):
        jobs.submit(name, deadline, seconds=0.0)
    assert jobs.all_run() == ["c1", "d1", "b1", "a1", "a2", "w1"]


def test_the_time_of_a_token_is_learned(jobs):
    assert jobs.queue.seconds_per_token == 0.0
    jobs.submit("a1", 200.0, seconds=1.0)
    jobs.all_run()
    assert jobs.queue.seconds_per_token == pytest.approx(0.1)
    jobs.submit("a2", 200.0, seconds=2.0)
    jobs.all_run()
    assert jobs.queue.seconds_per_token == pytest.approx(0.12)


def test_what_is_learned_decides(jobs):
    """A chunk that is due in 1.5 s waits for a first chunk, until each is known to take a second."""
    jobs.hold()
    jobs.submit("a1", 101.5)
    jobs.submit("b1", FIRST)
    assert jobs.all_run() == ["b1", "a1"]
    jobs.names.clear()
    jobs.hold()
    jobs.submit("a2", jobs.clock.now + 1.5)
    jobs.submit("b2", FIRST)
    assert jobs.all_run() == ["a2", "b2"]


def test_a_whole_utterance_does_not_starve(jobs):
    """Each chunk that is run brings another, always sooner due."""
    jobs.hold()
    jobs.submit("w1", WHOLE)

    def stream() -> None:
        jobs.names.append("a")
        jobs.clock.now += 0.5
        if len(jobs.names) < 40:
            jobs.queue.submit(RenderJob("a", stream, 10, jobs.clock.now + 0.6))

    jobs.queue.submit(RenderJob("a", stream, 10, 100.5))
    jobs._go.set()
    deadline = time.monotonic() + WAIT
    while len(jobs.names) < 40:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert 0 < jobs.names.index("w1") <= MAX_WAIT / 0.5 + 1


def test_cancelled_jobs_do_not_run(jobs):
    jobs.hold()
    for name in ("a1", "b1", "a2"):
        jobs.submit(name, FIRST)
    jobs.queue.cancel("a")
    jobs.queue.cancel("nobody")
    assert jobs.all_run() == ["b1"]
    jobs.submit("a3", FIRST)
    assert jobs.all_run() == ["b1", "a3"]


def test_what_a_cancelled_job_holds_is_let_go(jobs):
    class Big:
        def use(self) -> None:
            raise AssertionError("it was cancelled")

    big = Big()
    gone = weakref.ref(big)
    jobs.hold()
    jobs.queue.submit(RenderJob("a", big.use, 1, FIRST))
    jobs.queue.cancel("a")
    del big
    gc.collect()
    assert gone() is None


def test_an_error_that_escapes_is_logged_and_the_next_job_runs(jobs, caplog):
    jobs.hold()
    jobs.submit("a1!", FIRST)
    jobs.submit("b1", FIRST)
    with caplog.at_level(logging.ERROR):
        assert jobs.all_run() == ["a1!", "b1"]
    assert "ValueError: a1!" in caplog.text
    assert jobs.queue.seconds_per_token == pytest.approx(0.1)  # of the second alone


def test_a_closed_queue_drops_what_waits_and_takes_nothing(jobs):
    jobs.hold()
    jobs.submit("a1", FIRST)
    threading.Timer(0.05, jobs._go.set).start()
    jobs.queue.close()
    jobs.queue.close()
    with pytest.raises(RuntimeError, match="the renderer is closed; load the model anew"):
        jobs.submit("b1", FIRST)
    assert jobs.names == [] and jobs.queue._jobs == []


def test_no_thread_before_the_first_job_and_none_after_the_queue():
    queue = RenderQueue()
    assert not queue._worker.is_alive
    done = threading.Event()
    queue.submit(RenderJob("a", done.set, 1, FIRST))
    assert done.wait(WAIT)
    thread = queue._worker._thread
    del queue
    thread.join(WAIT)
    assert not thread.is_alive()


def test_many_threads_submit_and_cancel(jobs):
    ran = []

    def submit(owner: int) -> None:
        for number in range(50):
            jobs.queue.submit(RenderJob(owner, lambda number=number: ran.append((owner, number)), 1, 200.0 + number))
            jobs.queue.cancel(f"not {owner}")

    threads = [threading.Thread(target=submit, args=(owner,)) for owner in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    jobs.all_run()
    assert sorted(ran) == [(owner, number) for owner in range(6) for number in range(50)]
    assert all([n for o, n in ran if o == owner] == list(range(50)) for owner in range(6))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_a_forked_child_has_an_empty_queue_that_works(jobs):
    jobs.submit("a1", FIRST)
    assert jobs.all_run() == ["a1"]
    with jobs.queue._lock:  # what is submitted meanwhile waits
        jobs.queue._jobs.append(job("b", FIRST))
        child = os.fork()
        if child:
            jobs.queue._jobs.clear()
    if not child:
        done = threading.Event()
        is_empty = not jobs.queue._jobs
        jobs.queue.submit(RenderJob("c", done.set, 1, FIRST))
        os._exit(0 if is_empty and done.wait(5) else 1)
    assert os.waitpid(child, 0)[1] == 0
    jobs.submit("c1", FIRST)
    assert jobs.all_run() == ["a1", "c1"]
