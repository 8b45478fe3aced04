"""A process forked from one with a loaded model: it speaks, waits for nobody who is not there, and computes."""

from __future__ import annotations

import gc
import math
import os
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch

from chatterbox.engine.worker import Worker
from chatterbox.runtime import forking
from chatterbox.runtime.single_flight import SingleFlight
from tests.support.programs import run

WAIT = 60.0  # seconds until a test that should not wait gives up

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning"),
]


def child_passes(check: Callable[[], object], seconds: float = WAIT) -> bool:
    """Whether ``check`` passes in a forked child, in time."""
    child = os.fork()
    if not child:
        try:
            check()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status == 0
        time.sleep(0.005)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return False


class Locked:
    """Two numbers that are the same but for the time that the lock is held."""

    def __init__(self) -> None:
        self.num_renewals = -1
        self.first = self.second = 0
        forking.register(self, Locked.renew)

    def renew(self) -> forking.Lock:
        self.num_renewals += 1
        self.lock = threading.RLock()
        return self.lock

    def check(self) -> None:
        assert self.num_renewals == 1
        assert self.lock.acquire(timeout=1)
        assert self.first == self.second


@pytest.fixture
def busy() -> Iterator[Locked]:
    """Changed by another thread all the time."""
    locked, stop = Locked(), threading.Event()

    def change() -> None:
        while not stop.wait(0.001):
            with locked.lock:
                locked.first += 1
                time.sleep(0.01)
                locked.second += 1

    thread = threading.Thread(target=change)
    thread.start()
    yield locked
    stop.set()
    thread.join()


def test_a_child_gets_whole_structures_and_a_free_lock(busy):
    for _ in range(5):
        assert child_passes(busy.check)
    assert busy.num_renewals == 0
    first = busy.first
    deadline = time.monotonic() + WAIT
    while busy.first == first:  # the parent goes on
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_locks_that_are_taken_in_either_order():
    """One thread holds the first of two and waits for the second; a fork that kept either would never end."""
    outer, inner = Locked(), Locked()
    stop = threading.Event()

    def change(one: Locked, other: Locked) -> None:
        while not stop.is_set():
            with one.lock:
                time.sleep(0.002)
                with other.lock:
                    time.sleep(0.002)
            time.sleep(0.001)

    thread = threading.Thread(target=change, args=(outer, inner))
    thread.start()
    try:
        started = time.monotonic()
        assert all(child_passes(lambda: (outer.check(), inner.check())) for _ in range(5))
        assert time.monotonic() - started < forking.PATIENCE
    finally:
        stop.set()
        thread.join()


def test_a_fork_by_the_holder_of_a_lock():
    locked = Locked()
    with locked.lock:
        locked.first += 1
        child = os.fork()
        locked.second += 1
    if not child:
        try:
            locked.check()
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert locked.lock.acquire(blocking=False) and locked.num_renewals == 0


def test_a_fork_does_not_wait_for_ever(monkeypatch, caplog):
    monkeypatch.setattr(forking, "PATIENCE", 0.05)
    locked, held, go = Locked(), threading.Event(), threading.Event()

    def hold() -> None:
        with locked.lock:
            held.set()
            assert go.wait(WAIT)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(WAIT)
    assert child_passes(locked.check)
    go.set()
    thread.join()
    assert "a thread did not come to rest in 0.05 s" in caplog.text


def test_forks_of_several_threads_at_once(busy):
    passed = []
    threads = [threading.Thread(target=lambda: passed.append(child_passes(busy.check))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert passed == [True] * 4


def test_a_child_of_a_child():
    locked = Locked()

    def check_grandchild() -> None:
        assert locked.num_renewals == 2 and locked.lock.acquire(timeout=1)

    def check_child() -> None:
        assert child_passes(check_grandchild)

    assert child_passes(check_child)


def test_what_is_registered_is_held_weakly():
    gone = weakref.ref(Locked())
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(("device", "is_refused"), [("cuda", True), ("cuda:1", True), ("cpu", False), ("mps", False)])
def test_cuda_in_a_forked_process(device, is_refused):
    parent = os.getpid()
    forking.require_same_process(torch.device(device), parent)

    def check() -> None:
        if not is_refused:
            forking.require_same_process(torch.device(device), parent)
            return
        with pytest.raises(RuntimeError, match=f"is on {device}, and CUDA cannot be used in a forked process; .*spawn"):
            forking.require_same_process(torch.device(device), parent)

    assert child_passes(check)


class Owner:
    """Counts the steps that begin and those that end."""

    def __init__(self, step: Callable[[Owner], float | None]) -> None:
        self.step, self.num_started, self.num_ended = step, 0, 0
        self.was_called = threading.Event()
        self.worker = Worker(self, Owner._work, "test-worker")

    def _work(self) -> float | None:
        self.num_started += 1
        pause = self.step(self)
        self.num_ended += 1
        self.was_called.set()
        return pause


def test_a_worker_is_between_two_steps_in_the_child_and_works_there():
    owner = Owner(lambda owner: time.sleep(0.02))
    owner.worker.wake()
    assert owner.was_called.wait(WAIT)

    def check() -> None:
        assert owner.num_started == owner.num_ended and not owner.worker.is_alive
        owner.was_called.clear()
        assert owner.worker.wake() and owner.was_called.wait(WAIT) and owner.worker.is_alive
        owner.worker.close()
        assert not owner.worker.is_alive

    for _ in range(5):
        assert child_passes(check)
    assert owner.worker.is_alive
    owner.worker.close()


def test_a_step_that_registers_objects_does_not_wait_for_a_fork():
    made = []
    owner = Owner(lambda owner: (time.sleep(0.02), made.append(Locked()))[0])
    owner.worker.wake()
    assert owner.was_called.wait(WAIT)
    started = time.monotonic()
    assert all(child_passes(lambda: made[-1].check()) for _ in range(3))
    assert time.monotonic() - started < forking.PATIENCE
    owner.worker.close()


def test_a_fork_from_within_a_step():
    passed = []

    def check(owner: Owner) -> None:
        owner.step = lambda owner: math.inf
        owner.was_called.clear()
        assert owner.worker.wake() and owner.was_called.wait(WAIT)

    owner = Owner(lambda owner: passed.append(child_passes(lambda: check(owner))) or math.inf)
    owner.worker.wake()
    assert owner.was_called.wait(WAIT) and passed == [True]
    owner.worker.close()


def test_a_closed_worker_is_closed_in_the_child():
    owner = Owner(lambda owner: math.inf)
    owner.worker.close()

    def check() -> None:
        assert owner.worker.is_closed and not owner.worker.wake() and not owner.worker.is_alive

    assert child_passes(check)


def test_a_child_does_not_wait_for_the_fill_of_another_thread():
    flights: SingleFlight[int] = SingleFlight()
    started, go = threading.Event(), threading.Event()

    def fill() -> int:
        started.set()
        assert go.wait(WAIT)
        return 1

    thread = threading.Thread(target=flights.run, args=("key", fill))
    thread.start()
    assert started.wait(WAIT)

    def check() -> None:
        assert flights.run("key", lambda: 2) == (2, False)

    assert child_passes(check, seconds=10)
    go.set()
    thread.join()


def test_a_stream_is_not_read_on_in_the_child(small_tts):
    text = "Hello there. And so on. " * 20
    chunks = small_tts.generate_stream(text, seed=1, print_metrics=False, chunk_size=1, first_chunk=1)
    next(chunks)

    def check() -> None:
        with pytest.raises(RuntimeError, match="cannot be read on in a forked process; start one there"):
            next(chunks)

    assert child_passes(check)
    assert list(chunks)


MANY_FORKS = """
import os, sys, threading
from chatterbox.runtime import forking

class Locked:
    def __init__(self):
        forking.register(self, Locked.renew)

    def renew(self):
        self.lock = threading.RLock()
        return self.lock

def fork_often():
    for _ in range(100):
        child = os.fork()
        if not child:
            os._exit(0)
        os.waitpid(child, 0)

def take_all():
    with forking.step(threading.RLock()):
        print([one.lock.acquire(timeout=5) for one in owners], flush=True)

sys.setswitchinterval(1e-6)
owners = [Locked() for _ in range(3)]
threads = [threading.Thread(target=fork_often) for _ in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
thread = threading.Thread(target=take_all, daemon=True)
thread.start()
thread.join(20)
"""


def test_forks_of_several_threads_leave_no_lock_behind():
    assert run(MANY_FORKS).strip() == "[True, True, True]"


def test_a_program_without_a_model_is_left_alone():
    program = """
import os, torch
import chatterbox.engine.worker
torch.set_num_threads(2)
child = os.fork()
if not child:
    os._exit(torch.get_num_threads())
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert run(program) == "2\n"


SPEAKS = """
import multiprocessing, os, signal, threading, torch
from chatterbox.tts import ChatterboxTTS

model = ChatterboxTTS.from_pretrained("cpu", model="tiny")

def speak(seed):
    return model.generate("Hi.", seed=seed)

def child_speaks():
    child = os.fork()
    if not child:
        signal.alarm(60)
        os._exit(0 if torch.get_num_threads() == 1 and torch.allclose(speak(3), expected, atol=1e-4) else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

expected = speak(3)
assert torch.get_num_threads() == 2
print("child", child_speaks())
print("parent", torch.equal(speak(3), expected), torch.get_num_threads())

with multiprocessing.get_context("fork").Pool(2) as pool:
    spoken = pool.map_async(speak, [3, 3, 3]).get(60)
print("pool", all(torch.allclose(audio, expected, atol=1e-4) for audio in spoken))

is_over = threading.Event()

def go_on():
    while not is_over.is_set():
        speak(5)

other = threading.Thread(target=go_on)
other.start()
print("busy", [child_speaks() for _ in range(2)])
is_over.set()
other.join()
print("parent", torch.equal(speak(3), expected), torch.get_num_threads())
"""


def test_a_child_speaks():
    """After a generation on two threads; in a pool; and while another thread generates. The parent goes on."""
    assert run(SPEAKS, OMP_NUM_THREADS="2", OMP_WAIT_POLICY="passive").splitlines() == [
        "child 0",
        "parent True 2",
        "pool True",
        "busy [0, 0]",
        "parent True 2",
    ]
