"""All requests of one cache policy: the engine that decodes for them, and the sinks that their tokens go to.

Owns: who joins how, who is passed by because nobody reads, who gives rows back and comes back. Does not know: threads,
queues, how much memory there is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from chatterbox.config import EngineConfig, KVCacheConfig
from chatterbox.engine.batch_state import DecodeSequence
from chatterbox.engine.decoder import RowDecoder, UncachedDecoder
from chatterbox.engine.engine import DecodeEngine
from chatterbox.engine.prefill import CachedPrefix, Prefiller
from chatterbox.engine.request import Between, Request, prefix_len, required_capacity
from chatterbox.engine.row_pool import ENDLESS, PooledDecoder, RowBudget
from chatterbox.engine.token_stream import TokenSink
from chatterbox.kvcache import policy
from chatterbox.models.config import GPT2Config
from chatterbox.models.weights import is_small
from chatterbox.runtime.openmp import alone

logger = logging.getLogger(__name__)

# Positions of a continued sequence whose memory grows with them: 80 s of speech and its text.
CONTINUED_LEN = 2048


@dataclass(eq=False)
class Continuation:
    """The sequence that one request leaves for the next: on rows of its own, parked, or none yet."""

    policy: KVCacheConfig
    handle: int | None = None  # while its rows are there and nobody decodes on them
    parked: DecodeSequence | None = None
    idle_since: float | None = None


@dataclass(eq=False)
class Entry:
    """A request on its way. ``order``: of its submission; who came first goes first, also when coming back."""

    order: int
    request: Request
    sink: TokenSink
    policy: KVCacheConfig
    continuation: Continuation | None = None
    deadline: float | None = None
    is_streamed: bool = False  # its audio is rendered while it is decoded
    handle: int | None = None  # in the engine, running or on hold
    parked: DecodeSequence | None = None
    idle_since: float | None = None  # since when nobody wants more tokens
    has_begun: bool = False  # its sink knows
    is_over: bool = False

    def begin(self, num_cached: int, num_computed: int) -> None:
        """Tell the sink, once, that the request has rows."""
        if not self.has_begun:
            self.has_begun = True
            self.tell(self.sink.begin, num_cached, num_computed)

    def tell(self, call: Callable[..., None], *arguments: Any) -> None:
        """Call a method of the sink. What it raises is logged, and the request is over."""
        try:
            call(*arguments)
        except Exception:
            logger.exception("what gets a request's tokens failed; the request is dropped")
            self.is_over = True

    def end(self, error: BaseException | None = None) -> None:
        """Tell the sink, once, that there will be no more tokens."""
        if not self.is_over:
            self.is_over = True
            if error is None:
                self.tell(self.sink.finish)
            else:
                self.tell(self.sink.fail, error)


class PolicyEngine:
    """`DecodeEngine` of one policy with the requests in it."""

    def __init__(self, prefixes: Prefiller, config: KVCacheConfig, engine: EngineConfig, budget: RowBudget) -> None:
        self._prefixes, self._t3, kind = prefixes, prefixes.t3, policy(config.policy)
        self._is_bounded = kind is not None and kind.is_bounded
        invariant = engine.batch_invariant
        decoder: RowDecoder = UncachedDecoder(self._t3, batch_invariant=invariant)
        if kind is not None:
            decoder = PooledDecoder(self._t3, config, budget, batch_invariant=invariant)
        self._is_cached = kind is not None
        stride = engine.stop_stride or (1 if self._t3.device.type == "cpu" else 4)
        prefill_len = engine.prefill_len if self._is_cached else None
        self.engine = DecodeEngine(self._t3, decoder, stop_stride=stride, prefill_len=prefill_len)
        self._park_seconds = engine.park_seconds
        self._is_small = is_small(self._t3) and not invariant
        self._entries: dict[int, Entry] = {}  # running or on hold, by handle
        self._held: set[int] = set()
        self._continuations: set[Continuation] = set()
        self.idle_since: float | None = None  # since when it has no rows
        self.is_dead = False  # a step failed, and all its requests with it
        self.num_steps = 0

    @property
    def entries(self) -> list[Entry]:
        return list(self._entries.values())

    @property
    def num_rows(self) -> int:
        """Rows in use, those on hold and those kept for a next request among them."""
        return self.engine.num_rows

    def admit(self, entry: Entry, between: Between) -> None:
        """Give a request its rows. Raises ValueError, NoRoomError: as `DecodeEngine.join`; what a prefix raises."""
        if entry.parked is not None:
            with self._prefix(entry.parked.turns[0].request, between) as prefix:
                self.engine.rejoin(entry.parked, prefix=prefix, between=between)
            entry.handle, entry.parked = entry.parked.handle, None
            self._held.add(entry.handle)
            self._entries[entry.handle] = entry
            self.resume()
            return
        handle = self._followed(entry, between) if entry.continuation is not None else None
        if handle is None:
            handle = self._joined(entry, between)
        entry.handle = handle
        self._entries[handle] = entry

    def resume(self) -> None:
        """Let those on hold go on for whom somebody reads again."""
        for handle in sorted(self._held):
            entry = self._entries[handle]
            if entry.sink.is_eager:
                entry.idle_since = None
                self._held.discard(handle)
                self.engine.resume(handle)

    def step(self, now: float) -> bool:
        """Draw for all, if anybody wants more; whether that was so. Raises whatever a step raises."""
        running = [self._entries[handle] for handle in self.engine.running]
        eager = [entry for entry in running if entry.sink.is_eager]
        for entry in running:
            entry.idle_since = None if entry.sink.is_eager else entry.idle_since or now
        if not eager:
            return False
        for handle, entry in zip(self.engine.running, running, strict=True):
            if entry not in eager and entry.sink.is_full and self.engine.has_decoded(handle):
                self.engine.hold(handle)
                self._held.add(handle)
        # By what is asked for, not by what is rendered just then: what a seed gives must not depend on the time.
        leaves_cores = self._is_small and any(entry.is_streamed for entry in running)
        with alone() if leaves_cores else nullcontext():
            result = self.engine.step()
        self.num_steps += 1
        decoded: dict[int, list[int]] = {}
        for handle, token in result.tokens:
            decoded.setdefault(handle, []).append(token)
        for handle, tokens in decoded.items():
            self._entries[handle].tell(self._entries[handle].sink.push, tokens)
        for handle, error in result.failed.items():
            self._over(handle, error)
        for handle in result.ended:
            entry = self._over(handle)
            if entry.continuation is not None:
                entry.continuation.handle, entry.continuation.idle_since = handle, now
        for entry in [one for one in self.entries if one.is_over]:  # its sink failed
            self.drop(entry)
        return True

    def drop(self, entry: Entry, error: BaseException | None = None) -> None:
        """Take a request out before its end; its rows are free."""
        if entry.handle is not None and self._entries.get(entry.handle) is entry:
            self.engine.leave(entry.handle)
            self._over(entry.handle, error)
        entry.end(error)

    def park(self, entry: Entry) -> None:
        """Take a request's rows, for `admit` to bring it back."""
        assert entry.handle is not None
        handle, entry.handle = entry.handle, None
        del self._entries[handle]
        if handle in self._held or self.engine.has_decoded(handle):
            self._held.discard(handle)
            entry.parked = self.engine.park(handle)
            return
        before = self.engine.withdraw(handle)
        if entry.continuation is not None:
            self._keep_parked(entry.continuation, before)

    def park_idle(self, now: float) -> list[Entry]:
        """Take the rows of requests for which nobody has read for long; they are returned. Kept sequences likewise."""
        for one in self._continuations:
            if one.handle is not None and one.idle_since is not None and now - one.idle_since >= self._park_seconds:
                self.park_kept(one)
        idle = [e for e in self.entries if e.idle_since is not None and now - e.idle_since >= self._park_seconds]
        for entry in idle:
            self.park(entry)
        return idle

    @property
    def is_awaited(self) -> bool:
        """Whether a request or a sequence will come back to it."""
        return bool(self._entries) or any(one.handle or one.parked for one in self._continuations)

    @property
    def kept(self) -> list[Continuation]:
        """Sequences whose rows wait for a request that continues them."""
        return [one for one in self._continuations if one.handle is not None]

    def park_kept(self, one: Continuation) -> None:
        """Take the rows of a sequence that nobody decodes on."""
        assert one.handle is not None
        handle, one.handle = one.handle, None
        self._keep_parked(one, self.engine.park(handle))

    def _keep_parked(self, one: Continuation, parked: DecodeSequence | None) -> None:
        # What a policy forgot cannot be computed anew: such a sequence begins anew from the voice.
        one.parked = None if self._is_bounded else parked

    def next_park(self) -> float | None:
        """When `park_idle` has something to do again; None: not while nothing happens."""
        since = [entry.idle_since for entry in self.entries]
        since += [one.idle_since for one in self._continuations if one.handle is not None]
        return min((one + self._park_seconds for one in since if one is not None), default=None)

    def forget(self, continuation: Continuation) -> None:
        """Nothing will continue this sequence any more."""
        if continuation.handle is not None and continuation in self._continuations:
            self.engine.leave(continuation.handle)
        self._continuations.discard(continuation)
        continuation.handle = continuation.parked = None

    def fail_all(self, error: BaseException) -> None:
        """End all requests; the engine is not to be used afterwards."""
        self.is_dead = True
        for entry in self.entries:
            entry.handle = None
            entry.end(error)
        self._entries.clear()
        for one in self._continuations:
            one.handle = one.parked = None

    def _over(self, handle: int, error: BaseException | None = None) -> Entry:
        entry = self._entries.pop(handle)
        self._held.discard(handle)
        entry.handle = None
        entry.end(error)
        return entry

    def _prefix(self, request: Request, between: Between) -> AbstractContextManager[CachedPrefix | None]:
        return self._prefixes.acquire(request, between) if self._is_cached else nullcontext()

    def _joined(self, entry: Entry, between: Between) -> int:
        request = entry.request
        self.engine.decoder.require_pinned(range(prefix_len(self._t3, request)))
        with self._prefix(request, between) as prefix:
            handle = self.engine.join(
                request, prefix=prefix, keeps_rows=entry.continuation is not None, between=between
            )
            num_cached = 0 if prefix is None else prefix.num_cached_tokens
        length = request.num_rows * (prefix_len(self._t3, request) + request.num_forced)
        entry.begin(num_cached, length - num_cached)
        if entry.continuation is not None:
            self._continuations.add(entry.continuation)
        return handle

    def _followed(self, entry: Entry, between: Between) -> int | None:
        """The handle of the sequence that the request continues; None: it begins anew."""
        one, request = entry.continuation, entry.request
        assert one is not None
        if one not in self._continuations:  # of an engine that is there no more, or of the process that was forked
            one.handle = one.parked = None
        if one.parked is not None:
            parked, one.parked = one.parked, None
            with self._prefix(parked.turns[0].request, between) as prefix:
                self.engine.rejoin(parked, prefix=prefix, between=between)
            one.handle = parked.handle
        if one.handle is None:
            return None
        kept_len, needed = self.engine.length(one.handle), required_capacity(self._t3, request)
        if kept_len + needed > self._longest(needed):
            self.engine.leave(one.handle)
            one.handle = None
            return None
        handle, one.handle = one.handle, None
        try:
            self.engine.follow(handle, request, between=between)
        except BaseException:
            one.handle = handle if self.engine.keeps(handle) else None
            raise
        num_new = prefix_len(self._t3, request) - self._t3.cond_len_of(request.t3_cond) + request.num_forced
        entry.begin(request.num_rows * kept_len, request.num_rows * num_new)
        return handle

    def _longest(self, needed: int) -> int:
        """Positions that a continued sequence may have."""
        backbone = self._t3.sizes
        most = backbone.max_positions if isinstance(backbone, GPT2Config) else ENDLESS
        return min(most, ENDLESS if self._is_bounded else max(CONTINUED_LEN, 2 * needed))
