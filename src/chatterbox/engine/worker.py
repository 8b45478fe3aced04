"""A thread that works for an object for as long as that lives.

Owns: the thread, its sleep and its end, torch's number of threads in it. Does not know: what is worked on, who waits
for it.

The owner refers to its worker, the worker to its owner weakly, so that an owner that nobody wants any more takes its
thread along. There is no thread before the first `Worker.wake`.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import queue
import threading
import time
import weakref
from collections.abc import Callable
from functools import cache
from typing import Any, Generic, TypeVar

import torch

from chatterbox.runtime import forking
from chatterbox.runtime.openmp import release_idle_threads

logger = logging.getLogger(__name__)

T = TypeVar("T")
CLOSE_SECONDS = 5.0  # that `close`, and the end of the program, wait for a step under way
CHECK_SECONDS = 0.5  # between two looks at torch's number of threads


class Worker(Generic[T]):
    """Calls ``work(owner)`` in a daemon thread, whenever there may be something to do.

    One thread at a time, but not always the same: what belongs to a thread must not outlast a call of ``work``.
    A program that ends, and a fork, wait for the step under way; in a forked child the next `wake` starts a new thread.
    `torch.set_num_threads`, called by any thread at any time, counts in it `CHECK_SECONDS` later.
    """

    def __init__(
        self,
        owner: T,
        work: Callable[[T], float | None],
        name: str,
        *,
        on_error: Callable[[T, BaseException], None] | None = None,
    ) -> None:
        """Args:
        owner: held weakly while the thread sleeps.
        work: one step, as a function of the owner: a bound method would keep it. Returns the seconds to sleep before
            the next, at most (a `wake` ends them; math.inf waits for one); None has more to do at once.
        name: of the thread.
        on_error: gets what ``work`` raises, in the thread, which then goes on. None: it is logged, the thread ends, and
            each `wake` raises from then on. Whoever waits for the owner needs one, or waits for ever.
        """
        self._work, self._on_error, self._name = work, on_error, name
        self._is_closed = False
        self._error: BaseException | None = None
        self._checked = 0.0  # monotonic seconds
        self._owner = weakref.ref(owner)
        forking.register(self, Worker._renew)

    @property
    def is_alive(self) -> bool:
        """Whether there is a thread now."""
        thread = self._thread
        return thread is not None and thread.is_alive()

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    def wake(self) -> bool:
        """Have ``work`` called once more, whether it sleeps or is under way; False if the worker is closed.

        From any thread, also from a destructor; does not wait for the step under way.

        Raises:
            RuntimeError: the thread was ended by an error of ``work``, or cannot be started.
        """
        if self._error is not None:
            raise RuntimeError(f"{self._name} has ended: {self._error!r}; load the model anew") from self._error
        if self._is_closed:
            return False
        self._signal.put(None)
        if self._thread is None:
            self._start(None)
        return True

    def close(self, timeout: float = CLOSE_SECONDS) -> None:
        """End the thread behind the step under way, and wait for that, ``timeout`` seconds at most.

        Closing twice is harmless. From within ``work`` it does not wait.
        """
        self._is_closed = True
        self._signal.put(None)
        deadline = time.monotonic() + timeout
        while (remaining := deadline - time.monotonic()) > 0:
            with self._starting:
                thread = self._thread
            if thread is None or thread is threading.current_thread() or not thread.is_alive():
                return
            thread.join(remaining)

    def _renew(self) -> forking.Lock:
        """Make what belongs to one process; the lock is held during a step."""
        # `put` may be called inside a garbage collection, at any point of any thread: a Condition could not.
        self._signal: queue.SimpleQueue[object] = queue.SimpleQueue()
        owner = self._owner()
        if owner is not None:
            self._owner = weakref.ref(owner, self._signal.put)
        self._starting, self._stepping = threading.RLock(), threading.RLock()
        self._thread: threading.Thread | None = None
        _RUNNING.discard(self)
        return self._stepping

    def _start(self, replaced: threading.Thread | None) -> None:
        with self._starting:
            if self._thread is not replaced or self._is_closed:
                return
            _close_at_exit()
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            try:
                self._thread = thread
                _RUNNING.add(self)
                thread.start()
            except BaseException:
                self._thread = replaced
                raise

    def _run(self) -> None:
        this = threading.current_thread()
        self._checked = time.monotonic()
        while self._thread is this and not self._is_closed and self._error is None:
            if self._has_old_num_threads():
                # Not by torch.set_num_threads: it would write the process-wide number, which may be another by now.
                with contextlib.suppress(RuntimeError):  # no new thread at the end of the program
                    self._start(replaced=this)
                    return
            while not self._signal.empty():
                self._signal.get()
            pause = self._step()
            # `close` may have come before the step, and its signal be taken already.
            if pause is not None and pause > 0 and not self._is_closed:
                with contextlib.suppress(queue.Empty):
                    self._signal.get(timeout=min(pause, threading.TIMEOUT_MAX))
        _RUNNING.discard(self)

    def _step(self) -> float | None:
        owner = self._owner()
        if owner is None:
            self._is_closed = True
            return None
        with forking.step(self._stepping):
            try:
                pause = self._work(owner)
                if pause is not None and pause > 0:
                    release_idle_threads()
                return pause
            except BaseException as error:
                self._fail(owner, error)
        return None

    def _fail(self, owner: T, error: BaseException) -> None:
        if self._on_error is not None:
            try:
                self._on_error(owner, error)
                return
            except BaseException as another:
                error = another
        logger.error("%s ends, for an error that nobody handles", self._name, exc_info=error)
        self._error = error.with_traceback(None)  # its frames would keep what they worked on

    def _has_old_num_threads(self) -> bool:
        now = time.monotonic()
        if now - self._checked < CHECK_SECONDS:
            return False
        self._checked = now
        own = torch.get_num_threads()
        return process_num_threads(default=own) != own


_RUNNING: set[Worker[Any]] = set()


def process_num_threads(default: int) -> int:
    """What `torch.set_num_threads` was called with last, in whichever thread; ``default`` at the end of the program.

    OpenMP has a number for each thread, which takes the process-wide one over at its first use and keeps it: only a new
    thread tells what that is now. A look takes 0.1 to 0.3 ms.
    """
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()), daemon=True)
    try:
        thread.start()
    except RuntimeError:
        return default
    thread.join()
    return found[0]


@cache
def _close_at_exit() -> None:
    """A thread that is inside torch while the interpreter goes down crashes the program."""
    atexit.register(_close_running)


def _close_running() -> None:
    deadline = time.monotonic() + CLOSE_SECONDS
    workers = list(_RUNNING)
    for worker in workers:
        worker.close(timeout=0)
    for worker in workers:
        worker.close(timeout=deadline - time.monotonic())
