"""A thread that works for an object: sleeps, wakes, ends with it, and sees torch's number of threads."""

from __future__ import annotations

import gc
import logging
import math
import queue
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable

import pytest
import torch

from chatterbox.engine import worker as worker_module
from chatterbox.engine.worker import Worker

WAIT = 30.0  # seconds until a test that should not wait gives up


class Owner:
    """Counts its steps, and returns or raises what a test wants of them."""

    def __init__(self, step: Callable[[Owner], float | None] = lambda owner: math.inf, **options: object) -> None:
        self.step, self.num_steps, self.threads = step, 0, []
        self.changed = threading.Condition()
        self.worker = Worker(self, Owner._work, "test-worker", **options)

    def _work(self) -> float | None:
        with self.changed:
            self.num_steps += 1
            self.threads.append(threading.current_thread())
            self.changed.notify_all()
        return self.step(self)

    def wait_for(self, num_steps: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.num_steps >= num_steps, WAIT)


@pytest.fixture
def make():
    owners = []

    def made(*arguments: object, **options: object) -> Owner:
        owners.append(Owner(*arguments, **options))
        return owners[-1]

    yield made
    for owner in owners:
        owner.worker.close()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_no_thread_before_the_first_wake(make):
    owner = make()
    assert not owner.worker.is_alive and owner.num_steps == 0
    assert owner.worker.wake()
    owner.wait_for(1)
    assert owner.worker.is_alive
    assert owner.threads[0].name == "test-worker" and owner.threads[0].daemon
    assert owner.threads[0] is not threading.current_thread()


def test_none_is_called_again_at_once_and_inf_sleeps(make):
    owner = make(lambda owner: None if owner.num_steps < 100 else math.inf)
    owner.worker.wake()
    owner.wait_for(100)
    time.sleep(0.05)
    assert owner.num_steps == 100


@pytest.mark.parametrize("pause", [0.0, -1.0, 0.001])
def test_a_pause_ends_by_itself(make, pause):
    owner = make(lambda owner: pause if owner.num_steps < 5 else math.inf)
    owner.worker.wake()
    owner.wait_for(5)


def test_a_wake_during_a_step_is_not_lost(make):
    started, go = threading.Event(), threading.Event()

    def step(owner: Owner) -> float:
        started.set()
        assert go.wait(WAIT)
        return math.inf

    owner = make(step)
    owner.worker.wake()
    assert started.wait(WAIT)
    owner.worker.wake()
    go.set()
    owner.wait_for(2)


def test_every_wake_of_many_threads_is_seen(make):
    """Each puts its item in before it wakes; none may be left behind."""
    items, taken = [], []

    def step(owner: Owner) -> float:
        while items:
            taken.append(items.pop())
        return math.inf

    owner = make(step)

    def put(first: int) -> None:
        for item in range(first, first + 500):
            items.append(item)
            owner.worker.wake()

    threads = [threading.Thread(target=put, args=(1000 * i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    until(lambda: len(taken) == 3000)
    assert len(set(owner.threads)) == 1


def test_the_thread_ends_with_its_owner():
    owner = Owner()
    owner.worker.wake()
    owner.wait_for(1)
    thread, gone = owner.threads[0], weakref.ref(owner)
    del owner
    until(lambda: gone() is None)
    thread.join(WAIT)
    assert not thread.is_alive()


def test_an_owner_that_goes_during_a_step_closes_in_the_thread():
    closed_in = []

    class Closing(Owner):
        def __del__(self) -> None:
            closed_in.append(threading.current_thread().name)
            self.worker.close()

    started, go = threading.Event(), threading.Event()

    def step(owner: Owner) -> float:
        started.set()
        assert go.wait(WAIT)
        return math.inf

    owner = Closing(step)
    owner.worker.wake()
    assert started.wait(WAIT)
    thread = owner.worker._thread
    owner.threads.clear()
    del owner
    go.set()
    thread.join(WAIT)
    assert not thread.is_alive() and closed_in == ["test-worker"]


def test_close_waits_for_the_step_and_is_final(make):
    started, done = threading.Event(), []

    def step(owner: Owner) -> None:
        started.set()
        time.sleep(0.05)
        done.append(owner.num_steps)

    owner = make(step)
    owner.worker.wake()
    assert started.wait(WAIT)
    owner.worker.close()
    assert not owner.worker.is_alive and owner.worker.is_closed and len(done) == owner.num_steps
    num_steps = owner.num_steps
    assert not owner.worker.wake()
    owner.worker.close()
    assert owner.num_steps == num_steps and not owner.worker.is_alive


def test_close_before_any_wake_and_from_within(make):
    never = make()
    never.worker.close()
    assert not never.worker.wake() and not never.worker.is_alive
    within = make(lambda owner: owner.worker.close())
    within.worker.wake()
    until(lambda: within.num_steps == 1 and not within.worker.is_alive)


def test_close_gives_up_on_a_long_step(make):
    started, go = threading.Event(), threading.Event()

    def step(owner: Owner) -> float:
        started.set()
        assert go.wait(WAIT)
        return math.inf

    owner = make(step)
    owner.worker.wake()
    assert started.wait(WAIT)
    owner.worker.close(timeout=0.01)
    assert owner.worker.is_alive
    go.set()


def fail(owner: Owner) -> float:
    if owner.num_steps == 1:
        raise owner.error
    return math.inf


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt(), SystemExit(3)])
def test_an_error_reaches_the_owner_and_the_thread_goes_on(make, error):
    errors = []
    owner = make(fail, on_error=lambda owner, error: (errors.append(error), owner.worker.wake()))
    owner.error = error
    owner.worker.wake()
    owner.wait_for(2)
    assert errors == [error] and owner.worker.is_alive


@pytest.mark.parametrize("error", [ValueError("broken"), SystemExit(3)])
def test_an_error_that_nobody_takes_is_logged_and_ends_the_thread(make, error, caplog):
    owner = make(fail)
    owner.error = error
    with caplog.at_level(logging.ERROR):
        owner.worker.wake()
        until(lambda: owner.num_steps == 1 and not owner.worker.is_alive)
    with pytest.raises(RuntimeError, match=r"test-worker has ended: .*; load the model anew") as raised:
        owner.worker.wake()
    assert raised.value.__cause__ is error
    assert caplog.records[0].exc_info[1] is error


def test_an_error_of_the_handler_ends_the_thread(make):
    def worse(owner: Owner, error: BaseException) -> None:
        raise LookupError("worse")

    owner = make(fail, on_error=worse)
    owner.error = ValueError("broken")
    owner.worker.wake()
    until(lambda: owner.num_steps == 1 and not owner.worker.is_alive)
    with pytest.raises(RuntimeError, match="worse"):
        owner.worker.wake()


def test_an_error_keeps_nothing_that_the_step_worked_on(make, monkeypatch):
    monkeypatch.setattr(worker_module.logger, "disabled", True)  # pytest keeps what is logged

    class Big:
        pass

    kept = []

    def step(owner: Owner) -> float:
        big = Big()
        kept.append(weakref.ref(big))
        raise ValueError(str(big))

    owner = make(step)
    owner.worker.wake()
    until(lambda: bool(kept) and not owner.worker.is_alive)
    gc.collect()
    assert kept[0]() is None


@pytest.fixture
def quick_checks(monkeypatch):
    monkeypatch.setattr(worker_module, "CHECK_SECONDS", 0.02)
    num_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(num_threads)


@pytest.mark.parametrize("is_busy", [True, False])
def test_the_number_of_threads_counts_whenever_it_is_set(make, quick_checks, is_busy):
    """Before, between and during steps, by this thread or another; this thread's own number stays."""
    seen = []
    operand = torch.randn(300, 300)

    def step(owner: Owner) -> float | None:
        operand @ operand
        seen.append(torch.get_num_threads())
        return None if is_busy else math.inf

    def sees(number: int) -> bool:
        owner.worker.wake()
        return seen[-1:] == [number]

    torch.set_num_threads(3)
    owner = make(step)
    owner.worker.wake()
    until(lambda: bool(seen))
    assert seen[0] == 3
    for number in (2, 1, 4):
        torch.set_num_threads(number)
        time.sleep(0.03)
        until(lambda number=number: sees(number))
        assert torch.get_num_threads() == number
    other = threading.Thread(target=torch.set_num_threads, args=(2,))
    other.start()
    other.join()
    time.sleep(0.03)
    until(lambda: sees(2))
    assert torch.get_num_threads() == 4  # as torch has it: the number of one thread


def test_the_thread_stays_while_the_number_does(make, quick_checks):
    owner = make(lambda owner: 0.001)
    owner.worker.wake()
    owner.wait_for(1)
    time.sleep(0.1)
    assert len(set(owner.threads)) == 1


PROGRAM = """
import os, signal, sys, threading, torch
from chatterbox.engine.worker import Worker

started = threading.Event()

class Owner:
    def work(self):
        started.set()
        operand = torch.randn(400, 400)
        for _ in range(10):
            operand = (operand @ operand).tanh()
        return None

owner = Owner()
worker = Worker(owner, Owner.work, "test-worker")
worker.wake()
assert started.wait(30)
{end}
"""
ENDS = {
    "pass": 0,
    "sys.exit(3)": 3,
    "raise SystemExit('said')": 1,
    "raise ValueError('said')": 1,
    "os.kill(os.getpid(), signal.SIGINT); started.clear(); started.wait(30)": -2,
    "threading.Thread(target=lambda: [started.clear() or started.wait(30) for _ in range(5)]).start()": 0,
    "worker.close(0)": 0,
    "del owner": 0,
}


@pytest.mark.parametrize("end", ENDS)
def test_a_program_ends_while_the_thread_is_busy(end):
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(end=end)], capture_output=True, text=True, timeout=WAIT)
    assert done.returncode == ENDS[end], done.stderr
    expected = {"raise SystemExit('said')": "said", "raise ValueError('said')": "ValueError: said"}.get(end, "")
    last = done.stderr.strip().rpartition("\n")[2]
    assert last == ("KeyboardInterrupt" if ENDS[end] == -2 else expected)


def test_close_is_seen_where_its_signal_was_taken_before_a_step(make) -> None:
    owner = make()

    class ClosedMeanwhile(queue.SimpleQueue):
        """The worker is closed just before its thread takes the signals that are there."""

        def empty(self) -> bool:
            if not owner.worker.is_closed:
                owner.worker._is_closed = True
                self.put(None)
            return super().empty()

    owner.worker._signal = ClosedMeanwhile()
    owner.worker.wake()
    owner.wait_for(1)
    until(lambda: not owner.worker.is_alive)
