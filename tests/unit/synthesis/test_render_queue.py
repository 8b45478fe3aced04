"""The queue of what is rendered, and the threads that do it."""

from __future__ import annotations

import gc
import logging
import math
import os
import threading
import time
import weakref
from collections.abc import Iterator
from functools import partial

import pytest
import torch

from chatterbox.synthesis import render_queue
from chatterbox.synthesis.render_order import MAX_WAIT, RenderJob
from chatterbox.synthesis.render_queue import NUM_RECENT, START_SECONDS, RenderQueue
from tests.support.waiting import WAIT, wait_for

FIRST = None
WHOLE = math.inf


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Jobs:
    """A queue whose thread waits inside a first job until `go`; names of the jobs that have run since."""

    def __init__(self, **options: bool) -> None:
        self.clock, self.names = Clock(), []
        self.queue = RenderQueue(clock=self.clock, **options)
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
        wait_for(lambda: not self.queue._running)
        return self.names


@pytest.fixture
def jobs() -> Iterator[Jobs]:
    jobs = Jobs()
    yield jobs
    jobs._go.set()
    jobs.queue.close()


def test_jobs_run_by_urgency_and_those_of_one_stream_in_order(jobs):
    jobs.hold()
    for name, deadline in (("w1", WHOLE), ("a1", 101.9), ("a2", 101.0), ("b1", 101.5), ("c1", FIRST), ("d1", FIRST)):
        jobs.submit(name, deadline, seconds=0.0)
    assert jobs.all_run() == ["c1", "d1", "b1", "a1", "a2", "w1"]


def test_the_time_of_a_token_is_learned(jobs):
    jobs.submit("a1", FIRST, seconds=1.0)
    jobs.submit("a2", 200.0, num_tokens=20, seconds=4.0)
    jobs.all_run()
    assert list(jobs.queue._per_token) == pytest.approx([0.1, 0.2])
    for _ in range(NUM_RECENT):
        jobs.submit("a3", 200.0, seconds=3.0)
    jobs.all_run()
    assert list(jobs.queue._per_token) == pytest.approx([0.3] * NUM_RECENT)


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


def test_a_first_chunk_that_gives_way_runs_when_what_was_expected_has_come_or_is_late(jobs):
    jobs.submit("a1", 200.0, seconds=1.0)
    jobs.all_run()
    for settle in (lambda: jobs.submit("a2", jobs.clock.now + 1.5), lambda: jobs.queue.cancel("a")):
        jobs.hold()
        jobs.queue.expect("a", 10, jobs.clock.now + 1.5)
        jobs.submit("b1", FIRST)
        jobs._go.set()
        wait_for(lambda: jobs.queue.stats()["workers"] == 0)
        assert "b1" not in jobs.names
        settle()
        jobs.all_run()
        assert jobs.names[-1] == "b1"
        jobs.names.clear()
    jobs.queue.expect("a", 10, jobs.clock.now + 1.5)
    jobs.submit("b2", FIRST)
    wait_for(lambda: jobs.queue.stats()["workers"] == 0)
    assert jobs.names == []
    jobs.clock.now += 2.0
    assert jobs.all_run() == ["b2"]


def test_a_queue_is_for_one_until_another_has_a_job_or_is_expected(jobs):
    jobs.hold()
    assert jobs.queue.is_for_none_but("held") and not jobs.queue.is_for_none_but("a")
    jobs.submit("a1", FIRST)
    assert not jobs.queue.is_for_none_but("held")
    jobs.all_run()
    wait_for(lambda: jobs.queue.is_for_none_but("a"))
    jobs.queue.expect("b", 10, 200.0)
    assert not jobs.queue.is_for_none_but("a")
    jobs.queue.cancel("b")
    assert jobs.queue.is_for_none_but("a")


def test_a_queue_is_not_for_one_while_another_starts(few):
    few.queue.announce("a")
    assert few.queue.is_for_none_but("a") and not few.queue.is_for_none_but("b")
    few.clock.now += START_SECONDS
    assert few.queue.is_for_none_but("b")


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
    jobs.submit("a1!", 200.0)
    jobs.submit("b1", 201.0)
    with caplog.at_level(logging.ERROR):
        assert jobs.all_run() == ["a1!", "b1"]
    assert "ValueError: a1!" in caplog.text
    assert list(jobs.queue._per_token) == pytest.approx([0.1])  # of the second alone


def test_a_closed_queue_drops_what_waits_and_takes_nothing(jobs):
    jobs.hold()
    jobs.submit("a1", FIRST)
    threading.Timer(0.05, jobs._go.set).start()
    jobs.queue.close()
    jobs.queue.close()
    with pytest.raises(RuntimeError, match="the renderer is closed; load the model anew"):
        jobs.submit("b1", FIRST)
    assert jobs.names == [] and jobs.queue.stats()["waiting"] == 0


def test_jobs_that_a_closed_queue_drops_are_told(jobs):
    jobs.hold()
    told = []
    for name in "ab":
        jobs.queue.submit(
            RenderJob(name, lambda: None, 1, FIRST, fail=lambda error, name=name: told.append((name, error)))
        )
    jobs.queue.submit(RenderJob("c", lambda: None, 1, FIRST, fail=lambda error: told.append(("c", error))))
    jobs.queue.cancel("c")
    threading.Timer(0.05, jobs._go.set).start()
    jobs.queue.close()
    assert [name for name, _ in told] == ["a", "b"] and all("renderer is closed" in str(error) for _, error in told)


def test_ctrl_c_while_a_worker_is_woken_loses_no_worker(jobs):
    class Interrupted(set):
        def add(self, index: int) -> None:
            super().add(index)
            jobs.queue._busy = set(self)
            raise KeyboardInterrupt

    jobs.queue._busy = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        jobs.submit("a1", FIRST)
    assert jobs.queue.stats()["waiting"] == jobs.queue.stats()["workers"] == 0
    jobs.submit("b1", FIRST)
    assert jobs.all_run() == ["b1"]


def test_a_first_chunk_runs_as_soon_as_what_it_waits_for_is_cancelled(jobs):
    jobs.submit("a1", 200.0, seconds=1.0)
    jobs.all_run()
    jobs.queue.expect("a", 10, jobs.clock.now + 1.5)
    jobs.submit("b1", FIRST)
    wait_for(lambda: jobs.queue.stats()["workers"] == 0)
    assert jobs.names == ["a1"]
    jobs.queue.cancel("a")
    wait_for(lambda: jobs.names == ["a1", "b1"])


def test_what_was_expected_too_long_ago_is_not_waited_for(jobs):
    jobs.queue.expect("a", 10, jobs.clock.now + 1.0)
    assert not jobs.queue.is_for_none_but("b")
    jobs.clock.now += 1.0
    assert jobs.queue.is_for_none_but("b")


def test_no_thread_before_the_first_job_and_none_after_the_queue():
    queue = RenderQueue()
    assert not queue.is_alive
    done = threading.Event()
    queue.submit(RenderJob("a", done.set, 1, FIRST))
    assert done.wait(WAIT)
    (thread,) = [worker._thread for worker in queue._workers]
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


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[RenderQueue]:
    """A queue whose jobs compute alone, two at a time."""
    monkeypatch.setattr(render_queue, "process_num_threads", lambda default: 2)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    queue = RenderQueue(runs_alone=True)
    if not queue._runs_alone:
        pytest.skip("torch's runtime has no threads of one thread's own")
    yield queue
    queue.close()


def test_several_run_at_once_but_not_of_one_stream(pair):
    now, most, lock = [], [], threading.Lock()

    def run(owner: int) -> None:
        with lock:
            now.append(owner)
            most.append(tuple(now))
        assert torch.get_num_threads() == 1
        time.sleep(0.002)
        with lock:
            now.remove(owner)

    for number in range(60):
        pair.submit(RenderJob(number % 5, partial(run, number % 5), 1, 200.0))
    wait_for(lambda: len(most) == 60 and not now)
    assert max(map(len, most)) == 2
    assert all(len(set(owners)) == len(owners) for owners in most)


def test_fewer_run_at_once_when_torch_gets_fewer_threads(pair, monkeypatch):
    go, running = threading.Event(), []

    def run(name: str) -> None:
        running.append(name)
        assert go.wait(WAIT)

    for name in "ab":
        pair.submit(RenderJob(name, partial(run, name), 1, 200.0))
    wait_for(lambda: len(running) == 2)
    monkeypatch.setattr(render_queue, "process_num_threads", lambda default: 1)
    pair._checked = -math.inf
    for name in "cdef":
        pair.submit(RenderJob(name, partial(run, name), 1, 200.0))
    go.set()
    wait_for(lambda: len(running) == 6)
    wait_for(lambda: pair.stats()["workers"] == 0)
    go.clear()
    for name in "gh":
        pair.submit(RenderJob(name, partial(run, name), 1, 200.0))
    wait_for(lambda: len(running) == 7)
    time.sleep(0.05)
    assert len(running) == 7
    go.set()
    wait_for(lambda: len(running) == 8)


def test_where_a_thread_cannot_compute_alone_one_job_runs_at_a_time(monkeypatch):
    monkeypatch.setattr(render_queue, "can_compute_alone", lambda: False)
    queue = RenderQueue(runs_alone=True)
    assert len(queue._workers) == 1 and not queue._runs_alone
    queue.close()


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> Iterator[Jobs]:
    """Jobs that compute alone, one at a time."""
    monkeypatch.setattr(render_queue, "process_num_threads", lambda default: 1)
    few = Jobs(runs_alone=True)
    if not few.queue._runs_alone:
        pytest.skip("torch's runtime has no threads of one thread's own")
    yield few
    few._go.set()
    few.queue.close()


def test_no_more_start_than_are_rendered_at_once(few):
    asked = []

    def starts(owner: str) -> bool:
        return few.queue.starts(owner, lambda: asked.append(owner))

    few.queue.announce("a")
    assert starts("a")
    few.queue.announce("b")
    assert not starts("a") and not starts("b")
    few.submit("a1", FIRST, seconds=0.0)  # its second chunk can follow by now
    few.all_run()
    assert not asked and not starts("b")  # the second chunk of "a" is still to come
    few.submit("a2", 200.0, seconds=0.0)
    wait_for(lambda: asked == ["b"])
    assert starts("b") and not starts("c")
    few.queue.cancel("b")
    wait_for(lambda: asked == ["b", "c"])
    assert starts("c") and not starts("d")


def test_nobody_starts_beside_as_many_as_are_rendered_for(few):
    asked = []
    few.hold()
    assert not few.queue.starts("a", lambda: asked.append("a"))
    few.all_run()
    wait_for(lambda: asked == ["a"])
    assert few.queue.starts("a", lambda: None)


def test_who_has_no_second_chunk_counts_as_started_in_time(few):
    asked, queue = [], few.queue
    assert queue.starts("a", lambda: None) and not queue.starts("b", lambda: asked.append("b"))
    few.clock.now += START_SECONDS - 0.05
    assert not queue.starts("b", lambda: asked.append("b"))
    few.submit("a1", FIRST, seconds=0.0)  # its worker then sleeps for 0.05 s
    wait_for(lambda: few.names and queue.stats()["workers"] == 0)
    assert not asked
    few.clock.now += 0.05
    wait_for(lambda: asked == ["b"])
    assert queue.starts("b", lambda: None)


def test_who_has_waited_may_start(few):
    asked = []
    few.submit("a1", FIRST, seconds=0.0)
    few.all_run()
    names = "abcd"
    assert [few.queue.starts(name, lambda name=name: asked.append(name)) for name in names] == [
        True,
        False,
        False,
        False,
    ]
    few.clock.now += START_SECONDS
    assert all(few.queue.starts(name, lambda: None) for name in names)


def test_who_is_held_is_asked_although_all_workers_sleep(few):
    few.submit("a1", FIRST, seconds=0.0)
    few.all_run()
    wait_for(lambda: few.queue.stats()["workers"] == 0)
    asked = []
    assert few.queue.starts("a", lambda: None)
    few.queue._starting["a"].until = few.clock.now + 0.1
    assert not few.queue.starts("b", lambda: asked.append("b"))
    few.queue._starting["b"].until = few.clock.now + 0.2
    few.queue.cancel("nobody")  # has the pause computed anew
    few.clock.now += 0.2
    wait_for(lambda: asked == ["b"])


def test_an_error_of_who_is_asked_ends_no_worker(few, caplog):
    def fails() -> None:
        raise MemoryError("too much")

    few.submit("a1", FIRST, seconds=0.0)
    few.all_run()
    assert few.queue.starts("a", lambda: None) and not few.queue.starts("b", fails)
    with caplog.at_level(logging.ERROR):
        few.queue.cancel("a")
        wait_for(lambda: "too much" in caplog.text)
    few.submit("c1", FIRST)
    few.names.clear()
    assert few.all_run() == ["c1"]


def test_where_a_job_has_all_threads_everybody_may_start(jobs):
    assert all(jobs.queue.starts(name, lambda: None) for name in "abc")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_a_forked_child_has_an_empty_queue_that_works(jobs):
    jobs.submit("a1", FIRST)
    assert jobs.all_run() == ["a1"]
    with jobs.queue._lock:  # what is submitted meanwhile waits
        jobs.queue._jobs.append(RenderJob("b", lambda: None, 10, FIRST))
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
