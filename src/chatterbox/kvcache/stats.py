"""What the prefix cache did: counters, and the one line that says what it saves.

Owns: names and units. Does not know: who counts.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass
class CacheStats:
    """Counts since the start. A token is a position of one row; times in milliseconds."""

    lookups: int = 0
    hits: int = 0  # lookups that found all they asked for
    tokens_served: int = 0  # positions that were found
    tokens_computed: int = 0  # positions that had to be computed
    demotions: int = 0  # moved to host memory
    promotions: int = 0  # moved back
    evictions: int = 0  # forgotten
    disk_hits: int = 0  # lookups that the disk completed
    disk_ms: float = 0.0  # reading and writing files
    fills: int = 0
    failed_fills: int = 0
    waits: int = 0  # lookups that waited for another thread's fill
    uncached: int = 0  # fills that did not fit into the budget
    fill_ms: float = 0.0
    saved_ms: float = 0.0  # what the positions served once took to compute

    @property
    def hit_rate(self) -> float:
        """Share of the positions asked for that were found, 0 to 1; 0 before the first lookup."""
        asked = self.tokens_served + self.tokens_computed
        return self.tokens_served / asked if asked else 0.0

    def as_dict(self) -> dict[str, float]:
        """Counters and `hit_rate`, by name."""
        return {**dataclasses.asdict(self), "hit_rate": self.hit_rate}

    def summary(self) -> str:
        """One line for a log."""
        return (
            f"prefix cache: {self.hit_rate:.0%} of {self.tokens_served + self.tokens_computed} positions served, "
            f"{self.fill_ms:.0f} ms computing, {self.saved_ms:.0f} ms saved, {self.evictions} evictions"
        )
