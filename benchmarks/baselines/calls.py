"""Calls for speech in threads at once, or one after another: what came when, and what went wrong.

Owns: the threads, and the times of the chunks of each call. Does not know: packages, and what is asked of them. Imports
nothing but torch and the standard library.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

RATE = 24_000  # Hz
HELD = 1.0  # seconds of audio that a player has before it takes no more


class Call:
    """One call and its chunks. Its thread runs it, others may wait for its chunks."""

    def __init__(self) -> None:
        self.began = self.ended = 0.0
        self.arrived: list[float] = []
        self.chunks: list[torch.Tensor] = []
        self.error = ""
        self._is_over = False
        self._news = threading.Condition()

    def run(self, started: float, audio: Callable[[], Iterator[torch.Tensor]]) -> None:
        """Take all chunks (1, N) of ``audio()``. ``started``: on the clock, what times count from."""
        self.began = time.perf_counter() - started
        try:
            for chunk in audio():
                with self._news:
                    self.arrived.append(time.perf_counter() - started)
                    self.chunks.append(chunk.reshape(-1))
                    self._news.notify_all()
        except Exception as error:
            self.error = f"{type(error).__name__}: {error}".splitlines()[0]
        finally:
            with self._news:
                self.ended, self._is_over = time.perf_counter() - started, True
                self._news.notify_all()

    def wait(self, num_chunks: int) -> None:
        """Until it has so many chunks, or has ended."""
        with self._news:
            self._news.wait_for(lambda: self._is_over or len(self.chunks) >= num_chunks)

    def audio(self) -> torch.Tensor:
        """All samples, (N,)."""
        return torch.cat([torch.zeros(0), *self.chunks])

    def as_json(self) -> dict[str, object]:
        samples = [len(chunk) for chunk in self.chunks]
        times = {"began": self.began, "arrived": self.arrived, "ended": self.ended}
        return {**times, "samples": samples, "error": self.error}


def in_real_time(chunks: Iterator[torch.Tensor], rate: int = RATE) -> Iterator[torch.Tensor]:
    """``chunks`` as a player takes them: the next when `HELD` seconds are left to play."""
    played_until = 0.0
    for chunk in chunks:
        yield chunk
        played_until = max(time.perf_counter(), played_until) + chunk.shape[-1] / rate
        time.sleep(max(0.0, played_until - HELD - time.perf_counter()))


def run_calls(
    audio: Callable[[int], Iterator[torch.Tensor]], count: int, *, concurrently: bool, late_after: int | None = None
) -> tuple[float, list[Call]]:
    """``audio(index)`` of ``count`` calls: the seconds that they took together, and the calls.

    ``late_after``: at once, the last call begins when all others have had this many chunks, or have ended.
    """
    calls = [Call() for _ in range(count)]
    started = time.perf_counter()

    def run(index: int) -> None:
        if late_after is not None and index == count - 1:
            for other in calls[:index]:
                other.wait(late_after)
        calls[index].run(started, lambda: audio(index))

    with ThreadPoolExecutor(count if concurrently else 1) as threads:
        list(threads.map(run, range(count)))
    return time.perf_counter() - started, calls
