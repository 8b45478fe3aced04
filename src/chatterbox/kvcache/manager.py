"""`GlobalKVCacheManager`: one prefix cache for all threads of a process.

Owns: the lock, leases, single-flight fills, the byte budget, counters. Does not know: models; whoever asks says how to
compute what is missing.

A beginning is found, or computed by the first thread that asks for it while the others wait; its lease keeps it in the
tree until it is released. What does not fit into the budget is computed and handed out all the same, and not kept.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from chatterbox.kvcache.base import Segment
from chatterbox.kvcache.prefix import Label, Match, Node, PrefixTree
from chatterbox.kvcache.replacement import replacement
from chatterbox.kvcache.stats import CacheStats

logger = logging.getLogger(__name__)

Fill = Callable[[tuple[Segment, ...]], Segment]


@dataclass(eq=False)
class Lease:
    """Segments of one beginning, in order from position 0, valid for as long as anyone refers to them.

    Until `release`, or the end of a ``with`` block, the manager keeps them. Releasing twice is harmless.
    """

    segments: tuple[Segment, ...]
    num_served: int  # positions that were known
    _manager: GlobalKVCacheManager
    _node: Node | None

    def release(self) -> None:
        self._manager._release(self)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


@dataclass
class _Flight:
    """A fill under way."""

    done: threading.Event = field(default_factory=threading.Event)
    segments: tuple[Segment, ...] = ()
    error: BaseException | None = None


class GlobalKVCacheManager:
    """Thread-safe store of sequence beginnings, bounded in bytes at every moment."""

    def __init__(self, *, budget_bytes: int, replacement_policy: str = "cost") -> None:
        if budget_bytes < 0:
            raise ValueError(f"budget_bytes must be 0 or more, got {budget_bytes}; 0 keeps nothing")
        self.budget_bytes = budget_bytes
        self._value = replacement(replacement_policy)
        self._tree = PrefixTree()
        self._flights: dict[tuple[str, tuple[Label, ...]], _Flight] = {}
        self._pinned: set[str] = set()
        self._lock = threading.Lock()
        self._stats = CacheStats()
        self._warned = False

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        with self._lock:
            return self._tree.nbytes

    def acquire(self, voice: str, labels: Sequence[Label], fill: Fill) -> Lease:
        """Lease the beginning ``labels`` of a voice, computing what is not known of it.

        Args:
            voice: name by content of all that shapes the values (`chatterbox.kvcache.keys`).
            labels: one per position after the conditioning.
            fill: gets the known segments, returns the rest up to the last label as one segment. Called without the
                lock, by one thread at a time for the same beginning; what it raises reaches all that wait for it.
        """
        labels = tuple(labels)
        while True:
            with self._lock:
                known = self._tree.match(voice, labels)
                if known.is_whole:
                    self._stats.hits += 1
                    return self._served(known.segments, known.node, known.fill_ms)
                flight = self._flights.get((voice, labels))
                leads = flight is None
                if leads:
                    flight = self._flights[voice, labels] = _Flight()
                    if known.node is not None:
                        known.node.num_holders += 1  # what is to be continued must not go meanwhile
            if leads:
                return self._fill(flight, voice, labels, known, fill)
            flight.done.wait()
            if flight.error is not None:
                raise flight.error
            with self._lock:
                self._stats.waits += 1
                if not self._tree.match(voice, labels).is_whole:  # it did not fit
                    return self._served(flight.segments, None, 0.0)

    def pin(self, voice: str) -> None:
        """Never drop the voice's own part: conditioning, emotions, empty text. Its texts come and go as others'."""
        with self._lock:
            self._pinned.add(voice)

    def unpin(self, voice: str) -> None:
        with self._lock:
            self._pinned.discard(voice)

    def clear(self) -> None:
        """Drop all that nobody holds, pinned or not."""
        with self._lock:
            self._pinned.clear()
            self._evict(self._tree.nbytes)

    def stats(self) -> dict[str, float]:
        """Counters (`CacheStats`), bytes, entries and budget, all of one moment."""
        with self._lock:
            return {
                **self._stats.as_dict(),
                "bytes": self._tree.nbytes,
                "entries": len(self._tree),
                "voices": len(self._tree.voices()),
                "budget_bytes": self.budget_bytes,
            }

    def reset_stats(self) -> None:
        with self._lock:
            self._stats.reset()

    def summary(self) -> str:
        """One line for a log."""
        with self._lock:
            return f"{self._stats.summary()}, {self._tree.nbytes / 2**20:.1f} of {self.budget_bytes / 2**20:.0f} MiB"

    def check_integrity(self) -> None:
        """Raise RuntimeError if the books do not balance."""
        with self._lock:
            held = sum(node.segment.nbytes for node in self._tree.nodes())
            if held != self._tree.nbytes or held > self.budget_bytes:
                raise RuntimeError(f"{held} bytes held, {self._tree.nbytes} in the books, budget {self.budget_bytes}")

    def _served(self, segments: tuple[Segment, ...], node: Node | None, fill_ms: float) -> Lease:
        num_served = sum(map(len, segments))
        self._stats.lookups += 1
        self._stats.tokens_served += num_served
        self._stats.saved_ms += fill_ms
        return self._leased(segments, num_served, node)

    def _leased(self, segments: tuple[Segment, ...], num_served: int, node: Node | None) -> Lease:
        if node is not None:
            self._tree.touch(node)
            node.num_holders += 1
        return Lease(segments, num_served, self, node)

    def _fill(self, flight: _Flight, voice: str, labels: tuple[Label, ...], known: Match, fill: Fill) -> Lease:
        started = time.perf_counter()
        try:
            rest = fill(known.segments)
            fill_ms = 1000 * (time.perf_counter() - started)
            with self._lock:
                self._stats.lookups += 1
                self._stats.fills += 1
                self._stats.fill_ms += fill_ms
                self._stats.saved_ms += known.fill_ms
                self._stats.tokens_served += len(known)
                self._stats.tokens_computed += len(rest)
                node = self._kept(voice, labels, rest, fill_ms)
                flight.segments = (*known.segments, rest)
                return self._leased(flight.segments, len(known), node)
        except BaseException as error:
            flight.error = error
            with self._lock:
                self._stats.failed_fills += 1
            raise
        finally:
            with self._lock:
                if known.node is not None:
                    known.node.num_holders -= 1
                del self._flights[voice, labels]
            flight.done.set()

    def _kept(self, voice: str, labels: tuple[Label, ...], rest: Segment, fill_ms: float) -> Node | None:
        """The node of what was computed; None if the budget does not allow it."""
        if self._make_room(rest.nbytes):
            return self._tree.insert(voice, labels, rest, fill_ms)
        self._stats.uncached += 1
        if not self._warned:
            self._warned = True
            logger.warning(
                "prefix cache: %.1f MiB do not fit into what is free of %.1f MiB, so they are not kept; "
                "a larger budget_bytes helps",
                rest.nbytes / 2**20,
                self.budget_bytes / 2**20,
            )
        return None

    def _make_room(self, nbytes: int) -> bool:
        missing = self._tree.nbytes + nbytes - self.budget_bytes
        return missing <= 0 or (nbytes <= self.budget_bytes and self._evict(missing))

    def _evict(self, nbytes: int) -> bool:
        """Drop free nodes, least valuable first, until ``nbytes`` are freed; False if there are not enough."""
        freed = 0
        while freed < nbytes:
            pinned = {id(node) for node in self._own_parts()}
            free = [node for node in self._tree.nodes() if node.is_free and id(node) not in pinned]
            if not free:
                return False
            freed += (dropped := self._tree.drop(min(free, key=self._value)))
            self._stats.evictions += 1
            self._stats.evicted_bytes += dropped
        return True

    def _own_parts(self) -> list[Node]:
        """Nodes of pinned voices without a text token in them."""
        return [
            node
            for voice in self._pinned
            for node in self._tree.nodes(voice)
            if not any(isinstance(label, int) for label in node.labels)
        ]

    def _release(self, lease: Lease) -> None:
        with self._lock:
            if lease._node is not None:
                lease._node.num_holders -= 1
                lease._node = None
