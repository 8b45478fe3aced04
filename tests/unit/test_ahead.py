"""Working ahead: in order, bounded, and an end on either side ends the other."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from chatterbox.synthesis import prefetch as ahead
from chatterbox.synthesis.prefetch import Ahead

WAIT = 30.0  # seconds until a test that should not wait gives up


class Source:
    """Counts, and lets a test wait until it has; closed when it ends."""

    def __init__(self, num: int = 1000, error: BaseException | None = None) -> None:
        self.num_made, self.threads, self.is_closed = 0, set(), threading.Event()
        self._num, self._error = num, error
        self._changed = threading.Condition()

    def __iter__(self) -> Iterator[int]:
        try:
            for number in range(self._num):
                with self._changed:
                    self.num_made += 1
                    self._changed.notify_all()
                self.threads.add(threading.current_thread().name)
                yield number
            if self._error is not None:
                raise self._error
        finally:
            self.is_closed.set()

    def wait_for(self, num: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.num_made >= num, WAIT)


def test_all_items_in_order_from_another_thread():
    source = Source(100)
    assert list(Ahead(source, 7)) == list(range(100))
    assert source.threads == {"chatterbox-ahead"} and source.is_closed.wait(WAIT)


@pytest.mark.parametrize("limit", [1, 3])
def test_no_more_than_the_limit_is_made_ahead(limit):
    source = Source()
    with Ahead(source, limit) as items:
        for taken in range(5):
            source.wait_for(taken + limit)
            assert next(items) == taken
            assert source.num_made <= taken + 1 + limit
    source = Source()
    with Ahead(source, limit) as items:
        source.wait_for(limit)
        items._thread.join(0.2)  # time to break the rule in
        assert source.num_made == limit


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one(limit):
    with pytest.raises(ValueError, match=f"limit must be at least 1, got {limit}"):
        Ahead([], limit)


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt(), SystemExit(3), GeneratorExit()])
def test_an_error_comes_behind_the_items_before_it(error):
    items, got = Ahead(Source(3, error), 10), []
    with pytest.raises(type(error)) as raised:
        while True:
            got.append(next(items))
    assert got == [0, 1, 2] and raised.value is error
    assert next(items, "end") == "end"  # told once


def test_a_source_that_is_none():
    with pytest.raises(TypeError, match="not iterable"):
        Ahead(5, 1)


@pytest.mark.parametrize("num_taken", [0, 1, 5])
def test_close_closes_the_source_and_ends_the_thread(num_taken):
    source = Source()
    items = Ahead(source, 3)
    for _ in range(num_taken):
        next(items)
    items.close()
    assert source.is_closed.is_set() and not items._thread.is_alive()
    items.close()
    assert next(items, "end") == "end"


def test_an_error_within_the_block_closes():
    source = Source()
    with pytest.raises(KeyboardInterrupt), Ahead(source, 3) as items:
        next(items)
        raise KeyboardInterrupt
    assert source.is_closed.is_set() and not items._thread.is_alive()


class Stalled:
    """Gives one item, then waits for a release."""

    def __init__(self) -> None:
        self.waits, self.release, self.is_closed = threading.Event(), threading.Event(), threading.Event()

    def __iter__(self) -> Iterator[int]:
        try:
            yield 1
            self.waits.set()
            self.release.wait(WAIT)
            yield 2
        finally:
            self.is_closed.set()


def test_a_source_that_waits_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(ahead, "PATIENCE", 0.05)
    source = Stalled()
    items = Ahead(source, 5)
    assert next(items) == 1 and source.waits.wait(WAIT)
    items.close()
    assert not source.is_closed.is_set() and next(items, "end") == "end"  # nothing is waited for any more
    source.release.set()
    items._thread.join(WAIT)
    assert source.is_closed.is_set() and not items._thread.is_alive()


def test_close_lets_go_of_a_reader_in_another_thread(monkeypatch):
    monkeypatch.setattr(ahead, "PATIENCE", 0.05)
    source, got = Stalled(), []
    items = Ahead(source, 5)
    reader = threading.Thread(target=lambda: got.extend(items), daemon=True)
    reader.start()
    assert source.waits.wait(WAIT)
    items.close()
    reader.join(WAIT)
    assert not reader.is_alive() and got == [1]
    source.release.set()
    items._thread.join(WAIT)


def test_nothing_is_made_ahead_before_the_start():
    source = Source(4)
    items = Ahead(source, 10, start=False)
    assert next(items) == 0 and source.num_made == 1
    items.start()
    assert list(items) == [1, 2, 3] and source.threads == {threading.main_thread().name, "chatterbox-ahead"}


def test_close_before_the_start():
    source = Source()
    items = Ahead(source, 10, start=False)
    next(items)
    items.close()
    assert source.is_closed.is_set() and next(items, "end") == "end"
