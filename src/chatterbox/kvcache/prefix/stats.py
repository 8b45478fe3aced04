"""What the prefix cache did: counters, the one line that says what it saves, and Prometheus' text form.

Owns: names and units. Does not know: who counts, how metrics are collected.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

ALIASES = {
    "tokens_served": "cached_tokens",
    "fills": "prefills",
    "failed_fills": "failed_prefills",
    "fill_ms": "prefill_ms",
}


@dataclass
class CacheStats:
    """Counts since the start. A token is a position of one row; times in milliseconds."""

    lookups: int = 0
    hits: int = 0  # lookups that found all they asked for
    cached_tokens: int = 0  # positions that were found
    tokens_computed: int = 0  # positions that had to be computed
    demotions: int = 0  # moved to host memory
    promotions: int = 0  # moved back
    evictions: int = 0  # forgotten
    disk_hits: int = 0  # lookups that the disk completed
    load_ms: float = 0.0  # bringing back from host memory and disk
    store_ms: float = 0.0  # packing for host memory, writing to disk
    prefills: int = 0
    failed_prefills: int = 0
    waits: int = 0  # lookups that waited for another thread's prefill
    uncached: int = 0  # prefills that did not fit into the budget
    prefill_ms: float = 0.0
    saved_ms: float = 0.0  # what the positions found once took to compute
    pressure_episodes: int = 0  # times that memory ran short, as these all
    pressure_demotions: int = 0  # of the demotions
    pressure_evictions: int = 0  # of the evictions
    pressure_unshared: int = 0  # prefills that were not kept
    pressure_delays: int = 0  # refusals of another request

    @property
    def hit_rate(self) -> float:
        """Share of the positions asked for that were found, 0 to 1; 0 before the first lookup."""
        asked = self.cached_tokens + self.tokens_computed
        return self.cached_tokens / asked if asked else 0.0

    def as_dict(self) -> dict[str, float]:
        """All of it and `hit_rate`, by name; some by an older name too."""
        named = {**dataclasses.asdict(self), "hit_rate": self.hit_rate}
        return named | {old: named[name] for old, name in ALIASES.items()}

    @contextlib.contextmanager
    def timing(self, name: str) -> Iterator[None]:
        """Add the milliseconds of the block to the counter ``name``."""
        started = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, name, getattr(self, name) + 1000 * (time.perf_counter() - started))

    def summary(self) -> str:
        """One line for a log."""
        return (
            f"prefix cache: {self.hit_rate:.0%} of {self.cached_tokens + self.tokens_computed} positions cached, "
            f"{self.prefill_ms:.0f} ms computing, {self.saved_ms:.0f} ms saved, {self.evictions} evictions"
        )


@dataclass
class PrefixStats(CacheStats):
    """The counters, and what is held now, of one moment but the disk's."""

    bytes: int = 0  # on the device
    host_bytes: int = 0
    disk_bytes: int = 0
    entries: int = 0  # segments on the device
    host_entries: int = 0
    voices: int = 0
    leases: int = 0  # that keep a prefix in the tree, until they are released
    budget_bytes: int = 0
    total_budget_bytes: int = 0
    pressure: int = 0  # `chatterbox.kvcache.prefix.memory_pressure.Level`


def prometheus_text(stats: Mapping[str, float], prefix: str = "chatterbox_prefix_cache") -> str:
    """``stats`` of `GlobalKVCacheManager.stats` in the text format that Prometheus scrapes; times in seconds.

    What only grows is a counter, ``chatterbox_prefix_cache_cached_tokens_total``; the rest are gauges.
    """
    counters = {one.name for one in dataclasses.fields(CacheStats)} | ALIASES.keys()
    lines = []
    for name, value in stats.items():
        kind = "counter" if name in counters else "gauge"
        if name.endswith("_ms"):
            name, value = f"{name.removesuffix('_ms')}_seconds", value / 1000
        metric = f"{prefix}_{name}" + "_total" * (kind == "counter")
        lines += [f"# TYPE {metric} {kind}", f"{metric} {value}"]
    return "\n".join(lines) + "\n"
