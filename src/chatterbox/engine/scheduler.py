"""One model's decode steps for requests of all threads, batches and streams.

Owns: the queue, admission, deadlines, cancelling, what a failing step means, the thread. Does not know: sampling, rows
(`policy_engine`), text, audio.

    submit ──▶ waiting, first come first served ──▶ rows of the policy's engine ──▶ tokens to the request's sink
                   ▲                                    │
                   └── nobody reads: parked ◀───────────┘

The thread starts with the first request and ends with the scheduler, to which it refers weakly. All of T3's work is
done in it, so requests join and leave between steps.
"""

from __future__ import annotations

import bisect
import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypedDict, TypeVar

import torch

from chatterbox.config import EngineConfig, KVCacheConfig
from chatterbox.engine.decoder import NoRoomError
from chatterbox.engine.policy_engine import Continuation, Entry, PolicyEngine
from chatterbox.engine.prefill import Prefiller
from chatterbox.engine.request import Between, Request, check_request
from chatterbox.engine.row_pool import MIB, RowBudget
from chatterbox.engine.token_stream import TokenSink, TokenStream
from chatterbox.engine.worker import Worker
from chatterbox.kvcache import check_names
from chatterbox.kvcache.prefix.memory_pressure import SystemProbe
from chatterbox.runtime import forking

logger = logging.getLogger(__name__)

T = TypeVar("T")
DEFAULTS = EngineConfig()
SHARE_OF_FREE = 2  # of the memory that is free at first, rows may take one in so many parts


class QueueFullError(RuntimeError):
    """So many requests wait already that another one is refused."""


class EngineClosedError(RuntimeError):
    """The engine was closed, or an error that stays made it unusable; the message says which."""


class _LeftError(Exception):
    """A request was cancelled while its prefix was computed."""


class SchedulerStats(TypedDict):
    """Requests by where they are; rows in use; bytes held for rows; steps so far."""

    running: int
    on_hold: int
    waiting: int
    parked: int
    rows: int
    cache_bytes: int
    steps: int


class Scheduler:
    """Decode steps of one T3, shared by all who submit. Thread-safe."""

    def __init__(
        self, prefixes: Prefiller, config: EngineConfig = DEFAULTS, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Args:
        prefixes: of the T3 that decodes.
        clock: seconds, of deadlines and waits.
        """
        self.prefixes, self.config, self._clock = prefixes, config, clock
        self._pid = os.getpid()
        self._unusable: str | None = None
        self._worker: Worker[Scheduler] = Worker(self, Scheduler._work, "chatterbox-engine", on_error=Scheduler._broken)
        forking.register(self, Scheduler._renew)

    def _renew(self) -> forking.Lock:
        """All that belongs to one process: requests of the parent's callers stay with the parent."""
        self._lock = threading.RLock()
        self._inbox: deque[Callable[[], None]] = deque()
        self._num_queued = self._num_submitted = 0
        self._calls: deque[Callable[[], None]] = deque()
        self._waiting: list[Entry] = []  # by order
        self._parked: list[Entry] = []  # without rows, until somebody reads
        self._engines: dict[KVCacheConfig, PolicyEngine] = {}
        self._budget: RowBudget | None = None
        self._delayed: Entry | None = None  # the last that had to wait for memory
        self._full_at = math.inf  # rows with which memory was used up; nobody joins before some are free
        self._says_waiting = False
        self._num_steps = 0  # of engines that are gone
        return self._lock

    def submit(
        self,
        request: Request,
        sink: TokenSink,
        *,
        policy: KVCacheConfig,
        continuation: Continuation | None = None,
        timeout: float | None = None,
        is_queued: bool = True,
        is_streamed: bool = False,
    ) -> Callable[[], None]:
        """Have the tokens of a request decoded; returns what cancels it. From any thread; does not wait.

        Args:
            sink: gets the tokens, and what goes wrong from now on.
            policy: of its rows.
            continuation: of `continuation`: the request goes on behind those that had it before. One at a time.
            timeout: seconds in which it must be over; then it fails with TimeoutError.
            is_queued: False is never refused for the queue's length: a part of work that was taken on before.
            is_streamed: its audio is rendered while it is decoded: a small T3 leaves cores for that.

        Raises:
            ValueError: the request cannot be served by this model, see `check_request`; or ``policy`` names what does
                not exist.
            QueueFullError: too many wait.
            EngineClosedError: see there. RuntimeError: in a forked process, on CUDA.
        """
        check_request(self.prefixes.t3, request)
        check_names(policy)
        forking.require_same_process(self.prefixes.t3.device, self._pid)
        self._require_usable()
        with self._lock:
            if is_queued and self._num_queued >= self.config.max_waiting:
                raise QueueFullError(
                    f"{self._num_queued} requests wait already; try again later, or raise engine.max_waiting"
                )
            self._num_queued += 1
            self._num_submitted += 1
            deadline = None if timeout is None else self._clock() + timeout
            entry = Entry(self._num_submitted, request, sink, policy, continuation, deadline, is_streamed)
            self._inbox.append(lambda: bisect.insort(self._waiting, entry, key=lambda one: one.order))
        if not self._worker.wake():
            self._require_usable()
        return lambda: self.post(lambda: self._drop(entry))

    def stream(
        self,
        request: Request,
        *,
        policy: KVCacheConfig,
        continuation: Continuation | None = None,
        timeout: float | None = None,
        limit: int | None = None,
    ) -> TokenStream:
        """`submit`, to be iterated. ``limit``: of `TokenStream`."""
        stream = TokenStream(limit)
        stream.wake = self.wake
        stream.cancel = self.submit(request, stream, policy=policy, continuation=continuation, timeout=timeout)
        return stream

    def continuation(self, policy: KVCacheConfig) -> Continuation:
        """A sequence that requests continue one after another. Raises ValueError: not without a cache."""
        if policy.policy == "none":
            raise ValueError('continuity "append" needs a cache; pass use_cache=True and another policy than "none"')
        return Continuation(policy)

    def forget(self, continuation: Continuation) -> None:
        """Free the rows of a sequence that nobody will continue."""
        self.post(lambda: self._forget(continuation))

    def call(self, work: Callable[[Between], T]) -> T:
        """Do other work of the model in its thread, between two steps, and wait for what it returns or raises.

        ``work`` gets what it may call where it can be interrupted for a step.
        """
        self._require_usable()
        done: Future[T] = Future()

        def run() -> None:
            if done.set_running_or_notify_cancel():
                try:
                    done.set_result(work(lambda: self._between(None)))
                except BaseException as error:
                    done.set_exception(error)

        self._calls.append(run)
        if not self._worker.wake():
            self._require_usable()
        try:
            return done.result()
        except KeyboardInterrupt:
            done.cancel()
            raise

    def wake(self) -> None:
        """A sink has become eager."""
        self._worker.wake()

    def close(self) -> None:
        """End all requests with an error; no other is taken. Twice is harmless."""
        self._unusable = self._unusable or "it was closed"
        self._worker.close()
        self._fail_all(EngineClosedError("the engine was closed while the request was under way"))

    def stats(self) -> SchedulerStats:
        """Requests that run, are on hold, wait, are parked; rows in use; bytes held for rows; steps so far."""
        waiting = self._num_queued  # once more below: a request that moves meanwhile is not overlooked
        engines = list(self._engines.values())
        running = sum(one.engine.num_requests for one in engines)
        return {
            "running": running,
            "on_hold": sum(len(one.entries) for one in engines) - running,
            "waiting": max(waiting, self._num_queued),
            "parked": len(self._parked),
            "rows": sum(one.num_rows for one in engines),
            "cache_bytes": sum(one.engine.decoder.nbytes for one in engines),
            "steps": self._num_steps + sum(one.num_steps for one in engines),
        }

    def _require_usable(self) -> None:
        if self._unusable is not None:
            raise EngineClosedError(f"the engine cannot be used: {self._unusable}; load the model anew")

    def post(self, message: Callable[[], None]) -> None:
        """Have ``message`` called in the scheduler's thread, between two steps. Waits for nothing, from anywhere."""
        self._inbox.append(message)
        if self._num_submitted:  # else there is nothing to cancel or to forget, and no thread for it
            self._worker.wake()

    # What follows runs in the thread.

    @torch.inference_mode()
    def _work(self) -> float | None:
        """One turn; the seconds until there is something to do again."""
        self._receive()
        while self._calls:
            self._calls.popleft()()
        now = self._clock()
        self._expire(now)
        for policy, engine in list(self._engines.items()):
            engine.resume()
            self._parked += engine.park_idle(now)
            self._retire(policy, engine, now)
        self._requeue([entry for entry in self._parked if entry.sink.is_eager])
        self._admit()
        if self._step():
            return None
        return self._pause(now)

    def _receive(self) -> None:
        while self._inbox:
            self._inbox.popleft()()

    def _expire(self, now: float) -> None:
        for entry in [*self._waiting, *self._parked, *(e for engine in self._engines.values() for e in engine.entries)]:
            if entry.deadline is not None and entry.deadline <= now:
                self._drop(entry, TimeoutError("the request was not over when its time had run out"))

    def _admit(self) -> None:
        """Give rows to those that wait, in the order in which they came, as far as there are any."""
        while self._waiting:
            entry = self._waiting[0]
            num_rows = self._num_rows
            if num_rows + entry.request.num_rows > max(self.config.max_rows, entry.request.num_rows):
                break
            if num_rows >= self._full_at:
                break
            self._full_at = math.inf
            monitor = self.prefixes.manager.monitor
            if num_rows and monitor is not None and not monitor.admits(is_new=entry is not self._delayed):
                self._delayed = entry
                break
            self._delayed = None
            del self._waiting[0]
            is_admitted = False
            try:
                is_admitted = self._admitted(entry)
            finally:
                if not is_admitted:  # it waits on, or fails with all others
                    bisect.insort(self._waiting, entry, key=lambda one: one.order)
            if not is_admitted:
                break
            self._count(-1)
        if self._waiting and not self._says_waiting:
            logger.info("%d requests wait for rows: %d are in use", len(self._waiting), num_rows)
        self._says_waiting = bool(self._waiting)

    def _admitted(self, entry: Entry) -> bool:
        """False: there is no room now."""
        engine = self._engine(entry.policy)
        try:
            engine.admit(entry, lambda: self._between(entry))
            if engine.is_dead:
                entry.handle = None
                entry.end(RuntimeError("a decode step failed while the request was taken in; try again"))
            elif entry.is_over:
                engine.drop(entry)
        except NoRoomError as error:
            if self._release_idle():
                return self._admitted(entry)
            if self._num_rows:
                return False
            entry.end(error)
        except _LeftError:
            pass
        except BaseException as error:
            entry.end(error)
        return True

    def _between(self, joining: Entry | None) -> None:
        """Steps of the others, between two pieces of a prefix."""
        self._receive()
        if joining is not None and joining.is_over:
            raise _LeftError
        self._step()

    def _step(self) -> bool:
        """One step of every engine that somebody waits for; whether there was one."""
        stepped = False
        for policy, engine in list(self._engines.items()):
            try:
                while True:
                    try:
                        stepped |= engine.step(self._clock())
                        break
                    except NoRoomError:
                        self._make_room(engine)
                        stepped = True
            except BaseException as error:
                self._failed(policy, error)
        return stepped

    def _make_room(self, engine: PolicyEngine) -> None:
        """Rows cannot grow: give back what is held for nobody, else who came last waits until others have ended.

        A request that is alone comes back to memory that is made for it; that it fits there was seen to.
        """
        if self._release_idle():
            return
        if kept := engine.kept:
            engine.park_kept(kept[0])
            return
        last = max(engine.entries, key=lambda entry: entry.order)
        engine.park(last)
        self._requeue([last])
        self._release_idle()
        self._full_at = self._num_rows or math.inf

    def _release_idle(self) -> bool:
        """Give back what engines hold for nobody; whether there was such."""
        idle = [one for one in self._engines.values() if not one.num_rows and one.engine.decoder.nbytes]
        for one in idle:
            one.engine.decoder.release()
        return bool(idle)

    @property
    def _num_rows(self) -> int:
        return sum(engine.num_rows for engine in self._engines.values())

    def _failed(self, policy: KVCacheConfig, error: BaseException) -> None:
        """A step failed: so do the requests it was for. Others go on if the device still works."""
        logger.error("a decode step failed", exc_info=error)
        engine = self._engines.pop(policy)
        if self._budget is not None:
            self._budget.hold(engine.engine.decoder, 0)
        engine.fail_all(_caused(RuntimeError(f"a decode step failed: {_reason(error)}"), error))
        device = self.prefixes.t3.device
        if device.type == "cuda":
            try:
                torch.cuda.synchronize(device)
            except RuntimeError as lasting:
                self._unusable = f"the device reports an error that stays ({_reason(lasting)})"
                self._fail_all(_caused(EngineClosedError(f"the engine cannot be used: {self._unusable}"), lasting))

    def _broken(self, error: BaseException) -> None:
        """An error of this module: nobody may wait for ever for it."""
        logger.error("the scheduler failed", exc_info=error)
        self._fail_all(_caused(RuntimeError(f"the scheduler failed: {_reason(error)}"), error))

    def _fail_all(self, error: BaseException) -> None:
        self._receive()
        waiting, self._waiting, self._parked = [*self._waiting, *self._parked], [], []
        self._num_queued = 0
        for engine in self._engines.values():
            engine.fail_all(error)
        self._engines.clear()
        self._budget, self._full_at = None, math.inf
        for entry in waiting:
            entry.end(error)

    def _drop(self, entry: Entry, error: BaseException | None = None) -> None:
        """A request leaves before its end; its rows are free."""
        if entry in self._waiting:
            self._waiting.remove(entry)
            self._count(-1)
        if entry in self._parked:
            self._parked.remove(entry)
        if entry.policy in self._engines:
            self._engines[entry.policy].drop(entry, error)
        entry.parked = None
        entry.end(error)

    def _forget(self, continuation: Continuation) -> None:
        if continuation.policy in self._engines:
            self._engines[continuation.policy].forget(continuation)

    def _requeue(self, entries: list[Entry]) -> None:
        """Those whose rows were taken wait again."""
        for entry in entries:
            if entry in self._parked:
                self._parked.remove(entry)
            bisect.insort(self._waiting, entry, key=lambda one: one.order)
            self._count(1)

    def _count(self, change: int) -> None:
        with self._lock:
            self._num_queued += change

    def _pause(self, now: float) -> float:
        times = [entry.deadline for entry in [*self._waiting, *self._parked]]
        for engine in self._engines.values():
            times += [engine.next_park(), *(entry.deadline for entry in engine.entries)]
            if engine.idle_since is not None:
                times.append(engine.idle_since + self.config.idle_seconds)
        return max(0.0, min((one for one in times if one is not None), default=math.inf) - now)

    def _retire(self, policy: KVCacheConfig, engine: PolicyEngine, now: float) -> None:
        """Give back the rows of an engine that nobody has used for long, and the engine."""
        if engine.num_rows:
            engine.idle_since = None
        elif engine.idle_since is None:
            engine.idle_since = now
        if engine.idle_since is not None and engine.idle_since + self.config.idle_seconds <= now:
            engine.engine.decoder.release()
            engine.idle_since = None
            if not engine.is_awaited and all(one.policy != policy for one in [*self._waiting, *self._parked]):
                self._num_steps += engine.num_steps
                del self._engines[policy]

    def _engine(self, policy: KVCacheConfig) -> PolicyEngine:
        if policy not in self._engines:
            if self._budget is None:
                self._budget = RowBudget(self._budget_bytes())
            self._engines[policy] = PolicyEngine(self.prefixes, policy, self.config, self._budget)
        return self._engines[policy]

    def _budget_bytes(self) -> int | None:
        if self.config.cache_mib is not None:
            return self.config.cache_mib * MIB
        reading = SystemProbe(self.prefixes.t3.device).read()
        free = [size for size in (reading.device_free, reading.system_available) if size is not None]
        return free[0] // SHARE_OF_FREE if free else None


def _reason(error: BaseException) -> str:
    """The first line of an error."""
    return str(error).partition("\n")[0] or type(error).__name__


def _caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error
