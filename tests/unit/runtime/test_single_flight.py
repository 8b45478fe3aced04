"""One thread makes what several want; who fails, or is interrupted anywhere, fails alone and leaves nobody waiting."""

from __future__ import annotations

import itertools
import linecache
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from chatterbox.kvcache import GlobalKVCacheManager
from chatterbox.runtime.single_flight import SingleFlight
from chatterbox.voice.cache import VoiceCache
from tests.support.folders import recording
from tests.unit.kvcache.prefix.test_prefix_cache import made_of
from tests.unit.voice.test_voice_cache import make_voice

LABELS = tuple("xyz")
FILES = {"single_flight.py", "manager.py", "cache.py"}
Work = Callable[[], object]
Ask = Callable[[Work], torch.Tensor]


def ask_a_manager(budget_bytes: int = 2**20) -> Ask:
    manager, expected = GlobalKVCacheManager(budget_bytes=budget_bytes), made_of("a", LABELS)

    def ask(work: Work) -> torch.Tensor:
        with manager.acquire("a", LABELS, lambda known: (work(), expected)[1]) as lease:
            return torch.cat([segment.keys for segment in lease.segments], dim=2)

    return ask


def ask_a_voice_cache() -> Ask:
    cache, audio, expected = VoiceCache(), recording(0.1), make_voice()
    return lambda work: cache.get(audio, lambda _: (work(), expected)[1]).t3.speaker_emb


def ask_a_flight() -> Ask:
    flights: SingleFlight[torch.Tensor] = SingleFlight()
    expected = torch.rand(3)
    return lambda work: flights.run("a", lambda: (work(), expected)[1])[0]


KINDS = {
    "manager": ask_a_manager,
    "manager without room": lambda: ask_a_manager(0),
    "voices": ask_a_voice_cache,
    "flight": ask_a_flight,
}
KEEPING = ("manager", "voices")


def run_threads(works: list[Work]) -> list[object]:
    """What each returned or raised."""
    outcomes: list[object] = [None] * len(works)

    def one(index: int) -> None:
        try:
            outcomes[index] = works[index]()
        except BaseException as error:
            outcomes[index] = error

    threads = [threading.Thread(target=one, args=(index,), daemon=True) for index in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive(), "a thread waits for nobody"
    return outcomes


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("kind", KINDS)
def test_who_fails_fails_alone_and_the_next_tries(kind: str, error: type[BaseException]) -> None:
    ask, arrived, leading = KINDS[kind](), threading.Semaphore(0), threading.Event()
    active: list[int] = []

    def fail() -> None:
        leading.set()
        for _ in range(3):
            assert arrived.acquire(timeout=10)
        time.sleep(0.2)  # long enough for those who arrived to wait
        raise error("the first")

    def work() -> None:
        active.append(1)
        assert len(active) == 1  # the others wait
        time.sleep(0.05)
        active.pop()
        made.append(1)

    def wait() -> torch.Tensor:
        assert leading.wait(10)
        arrived.release()
        return ask(work)

    made: list[int] = []
    first, *others = run_threads([lambda: ask(fail), wait, wait, wait])
    assert type(first) is error and str(first) == "the first"
    assert all(isinstance(one, torch.Tensor) for one in others), others
    assert all(torch.equal(one, others[0]) for one in others)
    assert len(made) == 1 or kind not in KEEPING
    assert torch.equal(ask(work), others[0])
    assert len(made) == 1 or kind not in KEEPING


def test_each_gets_its_own_error() -> None:
    ask, barrier = ask_a_manager(), threading.Barrier(4)

    def one(index: int) -> object:
        def fail() -> None:
            raise ValueError(str(index))

        barrier.wait()
        return ask(fail)

    errors = run_threads([lambda index=index: one(index) for index in range(4)])
    assert [str(error) for error in errors] == ["0", "1", "2", "3"]


def test_results_are_not_kept() -> None:
    flights: SingleFlight[int] = SingleFlight()
    assert [flights.run("a", lambda value=value: value) for value in (1, 2)] == [(1, False), (2, False)]
    assert len(flights._flights) == 0


class InterruptAt:
    """A trace function that raises KeyboardInterrupt before the ``line``-th line of the files above.

    Not before a ``with`` line: the interpreter looks for signals after calls and at jumps back, hence never between a
    lock's acquisition and its block, nor between the block and the release.
    """

    def __init__(self, line: int) -> None:
        self.left, self.raised = line, False

    def __call__(self, frame, event: str, _: object):
        path = frame.f_code.co_filename
        if Path(path).name not in FILES:
            return None
        if event == "line" and not linecache.getline(path, frame.f_lineno).lstrip().startswith("with "):
            self.left -= 1
            if self.left == 0:
                self.raised = True
                raise KeyboardInterrupt
        return self


def await_turn(threads: set[int]) -> None:
    """Until all of ``threads`` wait for another's flight."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        frames = sys._current_frames()
        if all(ident in frames and frames[ident].f_code is SingleFlight.run.__code__ for ident in threads):
            return
        time.sleep(0.001)
    pytest.fail("they never came")


def interrupted_at(ask: Ask, line: int) -> bool:
    """Whether a first thread came to its ``line``-th line, where it is interrupted while two wait for it."""
    trace, begun, waiting = InterruptAt(line), threading.Event(), set[int]()

    def lead() -> None:
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            ask(work)
        finally:
            sys.settrace(before)
            begun.set()

    def work() -> None:
        begun.set()
        while len(waiting) < 2:
            time.sleep(0.001)
        await_turn(waiting)

    def wait() -> torch.Tensor:
        assert begun.wait(10)
        waiting.add(threading.get_ident())
        return ask(lambda: None)

    first, *others = run_threads([lead, wait, wait])
    assert isinstance(first, KeyboardInterrupt) or not trace.raised
    assert all(isinstance(one, torch.Tensor) for one in others), others
    assert torch.equal(ask(lambda: None), others[0]) and torch.equal(*others)
    return trace.raised


@pytest.mark.parametrize("kind", KEEPING)
def test_an_interrupt_at_any_line_leaves_nobody_waiting(kind: str) -> None:
    num_lines = next(line for line in itertools.count(1) if not interrupted_at(KINDS[kind](), line))
    assert num_lines > 20
