"""`GlobalKVCacheManager`: one prefix cache for all threads of a process.

Owns: the lock, leases, one prefill at a time for one prefix, when the disk is asked. Does not know: models, for whoever
asks says how to compute what is missing; which prefix leaves which tier (`tiers`).

A prefix is found, or computed by the first thread that asks for it while the others wait; its lease keeps it in the
tree until it is released. Where the first fails, one of the others computes it. What does not fit into the budget is
computed and handed out all the same, and not kept.

    on the device  --demote-->  packed in host memory  --evict-->  forgotten, or on disk, where every prefill was
    written
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from chatterbox.kvcache.base import KVCache, Segment
from chatterbox.kvcache.compression import codec as codec_called
from chatterbox.kvcache.prefix.disk import Archive, DiskTier, Form
from chatterbox.kvcache.prefix.memory_pressure import Level, MemoryMonitor
from chatterbox.kvcache.prefix.stats import CacheStats, PrefixStats
from chatterbox.kvcache.prefix.tiers import Tiers, prefix_eviction
from chatterbox.kvcache.prefix.tree import Label, Match, Node, RadixTree
from chatterbox.kvcache.static import StaticKVCache
from chatterbox.runtime import forking
from chatterbox.runtime.single_flight import SingleFlight

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PrefillResult:
    """A segment of a pass that computed others too, and its share of the pass's time in milliseconds."""

    segment: Segment
    ms: float


Prefill = Callable[[tuple[Segment, ...]], Segment | PrefillResult]


@dataclass(eq=False)
class Lease:
    """Segments of one prefix, in order from position 0, valid for as long as anyone refers to them.

    Until `release`, or the end of a ``with`` block, the manager keeps them. Releasing twice is harmless.
    """

    segments: tuple[Segment, ...]
    num_cached_tokens: int  # positions that were known
    _manager: GlobalKVCacheManager
    _node: Node | None

    def release(self) -> None:
        self._manager._release(self)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class GlobalKVCacheManager:
    """Thread-safe store of sequence prefixes, bounded in bytes at every moment."""

    def __init__(
        self,
        *,
        budget_bytes: int,
        host_bytes: int = 0,
        host_codec: str = "none",
        total_bytes: int | None = None,
        disk: DiskTier | None = None,
        eviction_policy: str = "cost",
        monitor: MemoryMonitor | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Args:
        budget_bytes: on the device.
        host_bytes: for what leaves the device; 0 forgets it.
        host_codec: how it is packed there: "none" (exact), "int8" (a quarter of float32; an error of up to 1/254) or
            "int4" (a fifth; an error of up to 1/30 of a group's range).
        total_bytes: on the device and in host memory together; None is the sum of the two.
        disk: also write what is computed, and look there before computing; None does neither.
        eviction_policy: who leaves first: "cost", "lfu" or "lru".
        monitor: says when memory is short, so that what is kept gives way; None keeps to the budgets alone.
        clock: seconds, for what a prefill costs; a simulation has its own.
        """
        self.disk, self._clock = disk, clock
        self._archive = None if disk is None else Archive(disk)
        self._flights: SingleFlight[Lease] = SingleFlight()
        forking.register(self, GlobalKVCacheManager._renew)
        self._stats = CacheStats()
        self.tree = RadixTree(codec_called(host_codec))
        value = prefix_eviction(eviction_policy)
        self._tiers = Tiers(
            self.tree, self._stats, budget_bytes, host_bytes, value, total_bytes=total_bytes, monitor=monitor
        )
        self._warned = False

    @property
    def budget_bytes(self) -> int:
        """On the device."""
        return self._tiers.device_bytes

    @property
    def host_bytes(self) -> int:
        """Budget in host memory."""
        return self._tiers.host_bytes

    @property
    def monitor(self) -> MemoryMonitor | None:
        """Whether memory is short; whoever admits requests asks it too."""
        return self._tiers.monitor

    @property
    def nbytes(self) -> int:
        """Bytes held now, on the device and in host memory."""
        with self._lock:
            return self._tiers.nbytes

    def acquire(
        self,
        voice: str,
        labels: Sequence[Label],
        prefill: Prefill,
        *,
        device: torch.device | str = "cpu",
        form: Form | None = None,
        counts: bool = True,
    ) -> Lease:
        """Lease the prefix ``labels`` of a voice, computing what is not known of it.

        Args:
            voice: name by content of all that shapes the values (`chatterbox.kvcache.prefix.tree`).
            labels: one per position after the conditioning.
            prefill: gets the known segments, returns the rest up to the last label as one segment, `PrefillResult`
                where the time of the call is not what it cost. Called without the lock, by one thread at a time for the
                same prefix; what it raises reaches its caller alone, and one of those that wait for it tries next.
            device: where segments from disk go.
            form: of the model's segments: what the disk has of another form is a miss; None takes what is there.
            counts: whether its positions count in the hit rate, which is of T3's; times always do.
        """
        labels = tuple(labels)
        with self._lock:
            known = self._known(voice, labels)
            if known.is_whole:
                return self._hit(known, counts)
        compute = partial(self._prefill, voice, labels, prefill, device, form, counts)
        lease, waited = self._flights.run((voice, labels), compute)
        if waited:
            with self._lock:
                self._stats.waits += 1
                known = self._known(voice, labels)
                return self._hit(known, counts) if known.is_whole else self._served(lease.segments, None, 0.0, counts)
        if lease.num_cached_tokens < lease.segments[-1].end:
            try:
                self._store(voice, labels, lease.segments)
            except BaseException:
                lease.release()
                raise
        return lease

    def get_cache(
        self, speaker_id: str, text_prefix: Sequence[Label] = (), capacity: int | None = None
    ) -> KVCache | None:
        """One row with the longest known prefix of ``text_prefix``; None for a new voice.

        The cache is the caller's own: nothing written to it reaches what is kept. Its `length` says how much was known.

        Args:
            speaker_id: the voice, under the name that `update_cache` was given.
            text_prefix: labels, such as token ids, of the positions after the conditioning.
            capacity: positions that the cache has room for; None is just what is known.
        """
        labels = tuple(text_prefix)
        with self._lock:
            known = self._known(speaker_id, labels)
            self._stats.hits += known.is_whole
            lease = self._served(known.segments, known.node, known.prefill_ms)
        with lease:
            if not lease.segments:
                return None
            keys = lease.segments[0].keys
            layers, heads, _, head_dim = keys.shape
            cache = StaticKVCache(
                layers, 1, heads, head_dim, capacity or lease.num_cached_tokens, dtype=keys.dtype, device=keys.device
            )
            cache.load(0, *lease.segments)
        return cache

    def update_cache(
        self,
        speaker_id: str,
        cache: KVCache,
        text_prefix: Sequence[Label] = (),
        *,
        row: int = 0,
        prefill_ms: float = 0.0,
    ) -> bool:
        """Keep a copy of a cache's row as the prefix ``text_prefix`` of a voice; False if full.

        Args:
            speaker_id: names what the values depend on. A name that a user gave may stand for another recording
                tomorrow: `Prefiller.voice_of` makes one of content.
            cache: the row ends with the last label of ``text_prefix``; what is before its first is the voice's own.
            prefill_ms: what it cost to compute, for eviction by cost.

        Raises:
            ValueError: the row is not longer than ``text_prefix``, holds NaN or infinite values, or has another length
                before ``text_prefix`` than known.
        """
        labels, end = tuple(text_prefix), cache.row_lens[row]
        if end <= len(labels):
            raise ValueError(
                f"row {row} holds {end} positions; a voice's own and {len(labels)} of text_prefix are needed"
            )
        segment = cache.segment(row, 0, end)
        if not segment.is_finite:
            raise ValueError(f"row {row} holds NaN or infinite values and is not kept; check what computed it")
        with self._lock:
            known = self._known(speaker_id, labels)
            if known.segments and len(known.segments[0]) != end - len(labels):
                raise ValueError(
                    f"voice {speaker_id!r} has {len(known.segments[0])} positions of its own, the row has "
                    f"{end - len(labels)} before the {len(labels)} of text_prefix"
                )
            rest = segment[len(known) :]
            self._stats.tokens_computed += len(rest)
            self._stats.prefill_ms += prefill_ms
            if known.node is not None:
                self.tree.ref(known.node)
            kept = self._kept(speaker_id, labels, rest, prefill_ms)
            if known.node is not None:
                self.tree.unref(known.node)
            if kept is not None:
                self.tree.use(kept)
            return kept is not None

    def pin(self, voice: str) -> None:
        """Keep the voice's own part on the device: conditioning, emotions, empty text. Its texts come and go."""
        with self._lock:
            self._tiers.pinned.add(voice)

    def unpin(self, voice: str) -> None:
        with self._lock:
            self._tiers.pinned.discard(voice)

    def clear(self) -> None:
        """Forget all that nobody holds, pinned or not. Files on disk stay: `DiskTier.clear` removes them."""
        with self._lock:
            self._tiers.pinned.clear()
            while free := [node for node in self.tree.nodes() if not node.ref_count]:
                self.tree.drop(free[0])

    @property
    def hit_rate(self) -> float:
        """Share of the positions asked for that were known, 0 to 1."""
        with self._lock:
            return self._stats.hit_rate

    def stats(self) -> dict[str, float]:
        """`snapshot` by name."""
        return self.snapshot().as_dict()

    def snapshot(self) -> PrefixStats:
        """Counters, bytes, entries and budgets, all of one moment but the disk's."""
        disk_bytes = 0 if self.disk is None else self.disk.nbytes
        with self._lock:
            num_resident = sum(node.is_resident for node in self.tree.nodes())
            if self.monitor is not None:
                self._stats.pressure_episodes = self.monitor.num_episodes
                self._stats.pressure_delays = self.monitor.num_delays
            return PrefixStats(
                **vars(self._stats),
                bytes=self.tree.nbytes,
                host_bytes=self.tree.packed_nbytes,
                disk_bytes=disk_bytes,
                entries=num_resident,
                host_entries=len(self.tree) - num_resident,
                voices=len(self.tree.voices()),
                leases=self.tree.num_refs,
                budget_bytes=self.budget_bytes,
                total_budget_bytes=self._tiers.total_bytes,
                pressure=int(self._tiers.level),
            )

    def summary(self) -> str:
        """One line for a log."""
        with self._lock:
            return f"{self._stats.summary()}, {self.tree.nbytes / 2**20:.1f} of {self.budget_bytes / 2**20:.0f} MiB"

    def check_integrity(self) -> None:
        """Raise RuntimeError if bytes, reference counts or budgets do not add up."""
        with self._lock:
            self._tiers.check_integrity()

    def _renew(self) -> forking.Lock:
        """The lock of one process. What other threads hold in the parent stays held in a forked child."""
        self._lock = threading.RLock()
        return self._lock

    def _known(self, voice: str, labels: tuple[Label, ...]) -> Match:
        """What the tree knows, brought back to the device as far as there is room. Gives way first, if need be."""
        if self._tiers.look() == Level.NONE:
            self._tiers.promote(self.tree.find(voice, labels))
        return self.tree.match(voice, labels)

    def _hit(self, known: Match, counts: bool) -> Lease:
        self._stats.hits += 1
        return self._served(known.segments, known.node, known.prefill_ms, counts)

    def _served(
        self, segments: tuple[Segment, ...], node: Node | None, prefill_ms: float, counts: bool = True
    ) -> Lease:
        num_cached_tokens = sum(map(len, segments))
        self._stats.lookups += 1
        self._stats.cached_tokens += num_cached_tokens * counts
        self._stats.saved_ms += prefill_ms
        return self._leased(segments, num_cached_tokens, node)

    def _leased(self, segments: tuple[Segment, ...], num_cached_tokens: int, node: Node | None) -> Lease:
        if node is not None:
            self.tree.ref(node)
            self.tree.use(node)
        return Lease(segments, num_cached_tokens, self, node)

    def _prefill(
        self,
        voice: str,
        labels: tuple[Label, ...],
        prefill: Prefill,
        device: torch.device | str,
        form: Form | None,
        counts: bool,
    ) -> Lease:
        """Load or compute what is missing, and keep it. Nobody else does so for the same prefix meanwhile."""
        with self._lock:
            known = self._known(voice, labels)
            if known.is_whole:  # since the caller looked
                return self._hit(known, counts)
            if known.node is not None:
                self.tree.ref(known.node)  # what is to be continued must not go meanwhile
        try:
            return self._continued(voice, labels, known, prefill, device, form, counts)
        except BaseException:
            with self._lock:
                self._stats.failed_prefills += 1
            raise
        finally:
            with self._lock:
                if known.node is not None:
                    self.tree.unref(known.node)

    def _continued(
        self,
        voice: str,
        labels: tuple[Label, ...],
        known: Match,
        prefill: Prefill,
        device: torch.device | str,
        form: Form | None,
        counts: bool,
    ) -> Lease:
        started = self._clock()
        loaded = None if self._archive is None else self._archive.load(voice, labels, known, device, form)
        load_ms = 1000 * (self._clock() - started)
        parts = () if loaded is None else (loaded,)
        is_whole = loaded is not None and loaded.end == known.end_of(labels, default=loaded.end)
        prefill_ms = 0.0
        if not is_whole:
            result = prefill((*known.segments, *parts))
            prefill_ms = 1000 * (self._clock() - started) - load_ms
            if isinstance(result, PrefillResult):
                prefill_ms, result = result.ms, result.segment
            parts = (*parts, result)
        rest = parts[0] if len(parts) == 1 else Segment.join(parts)
        num_cached_tokens = len(known) + (0 if loaded is None else len(loaded))
        with self._lock:
            self._stats.lookups += 1
            self._stats.saved_ms += known.prefill_ms
            self._stats.disk_hits += is_whole
            self._stats.load_ms += load_ms * (self.disk is not None)
            if not is_whole:
                self._stats.prefills += 1
                self._stats.prefill_ms += prefill_ms
            self._stats.cached_tokens += num_cached_tokens * counts
            self._stats.tokens_computed += (rest.end - num_cached_tokens) * counts
            node = self._kept(voice, labels, rest, load_ms + prefill_ms)
            return self._leased((*known.segments, rest), num_cached_tokens, node)

    def _store(self, voice: str, labels: tuple[Label, ...], segments: tuple[Segment, ...]) -> None:
        if self._archive is None:
            return
        started = time.perf_counter()
        self._archive.store(voice, labels, segments)
        with self._lock:
            self._stats.store_ms += 1000 * (time.perf_counter() - started)

    def _kept(self, voice: str, labels: tuple[Label, ...], rest: Segment, prefill_ms: float) -> Node | None:
        """The node of what was computed; None if the budget does not allow it."""
        level = self._tiers.look()
        node = self._tiers.keep(voice, labels, rest, prefill_ms)
        if node is not None or level == Level.HARD:
            return node
        self._stats.uncached += 1
        if not self._warned and self.budget_bytes:
            self._warned = True
            logger.warning(
                "prefix cache: %.1f MiB do not fit into what is free of %.1f MiB, so they are not kept; "
                "a larger kvcache.prefix_mib or total_mib (budget_bytes) helps",
                rest.nbytes / 2**20,
                self.budget_bytes / 2**20,
            )
        return None

    def _release(self, lease: Lease) -> None:
        with self._lock:
            if lease._node is not None:
                self.tree.unref(lease._node)
                lease._node = None
