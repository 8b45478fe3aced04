"""Bounded cache: a row that is full forgets what a scorer values least, in place.

Owns: who leaves, what is kept of each position for that, taking over other caches. Does not know: what makes a position
worth keeping (`eviction`), when a row is full (`bounded`), what tokens mean, where a prefix ends; `begin` says that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from chatterbox.config import KVCacheConfig, window_of
from chatterbox.kvcache.base import NOWHERE, KVCache, Segment, require_chain, require_equal_appends, require_finite
from chatterbox.kvcache.bounded import BoundedKVCache, merged
from chatterbox.kvcache.eviction import Recency, Scorer, scorer
from chatterbox.kvcache.eviction.attention import received
from chatterbox.kvcache.eviction.scorers import NO_TOKEN, Held, survivors, within
from chatterbox.values import whole

if TYPE_CHECKING:
    from typing_extensions import Self

# Half of what stays is what came last, whatever its score, as in H2O (Zhang et al. 2023).
RECENT_SHARE = 0.5


class EvictingKVCache(BoundedKVCache):
    """Lossy cache with at most ``max_cache_size`` positions a row; exact until a row has had more."""

    is_bounded = True

    def __init__(
        self,
        num_layers: int,
        rows: int,
        num_heads: int,
        head_dim: int,
        capacity: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        max_cache_size: int = 1024,
        window_size: int = 512,
        uncond_window: int | None = None,
        scorer: Scorer | None = None,
    ) -> None:
        """An empty cache.

        Args:
            capacity: largest logical length a row may reach; memory is for ``max_cache_size`` at most.
            max_cache_size: positions a row holds at most. One that would pass it is trimmed.
            window_size: positions that a trimmed row keeps beside its pinned ones; fewer where these leave no room.
            uncond_window: the same for rows that `begin` calls unconditional; None is ``window_size``. It shortens what
                such a row looks at; memory stays, as rows of a batch are alike.
            scorer: what a position is worth; None is by recency.

        Raises:
            ValueError: a size below 1, or a window that leaves no room for a step.
        """
        window_of("window_size", window_size, max_cache_size)
        self.uncond_window = window_of("uncond_window", uncond_window, max_cache_size)
        self.window_size = whole("window_size", window_size, 1)
        self.max_cache_size = whole("max_cache_size", max_cache_size, 1)
        self.scorer = Recency() if scorer is None else scorer
        self._watched = self.scorer.layers(num_layers)
        self.wants_tokens, self.wants_queries = self.scorer.wants_tokens, bool(self._watched)
        super().__init__(num_layers, rows, num_heads, head_dim, capacity, dtype=dtype, device=device)

    @classmethod
    def options(cls, config: KVCacheConfig) -> dict[str, Any]:
        return {**windows(config), "scorer": scorer(config.eviction, config.silent_tokens or ())}

    def _settings(self) -> dict[str, Any]:
        return {**windows(self), "scorer": self.scorer}

    def _allocate(self) -> None:
        super()._allocate()
        shape, device = (self.num_rows, self.num_slots), self.device
        self._tokens = torch.full(shape, NO_TOKEN, device=device)
        self._mass = torch.zeros(shape, dtype=torch.float32, device=device)

    def begin(self, row: int, *pinned: range, is_conditional: bool = True) -> None:
        super().begin(row, *pinned)
        uncond_window = self.window_size if self.uncond_window is None else self.uncond_window
        self._windows[row] = self.window_size if is_conditional else uncond_window

    def note_tokens(self, tokens: Tensor) -> None:
        self._tokens[self._rows].scatter_(1, self._slots, tokens)

    def observe(self, layer: int, queries: Tensor) -> None:
        """The newest query of each row counts, every other one of a prefix does not."""
        if layer in self._watched:
            extent = self.extent
            keys, reached = self._keys[layer, self._rows, :, :extent], self._visible <= self._new[:, -1:]
            self._mass[self._rows, :extent].add_(received(queries[:, :, -1], keys, reached))

    def load(self, row: int, *segments: Segment) -> None:
        length = require_chain(segments)
        self._require_room(0, length)
        if length > self.num_slots:
            raise ValueError(f"{length} positions do not fit into max_cache_size {self.max_cache_size}; raise it")
        self._replace(row, length, segments)
        self._pinned[row], self._windows[row] = (), self.window_size

    def update(self, new_cache: KVCache) -> None:
        """Take over what another cache of the same sizes and of any policy holds: a copy, row by row.

        What rows have pinned stays pinned. Of what does not fit, the newest positions are taken.

        Raises:
            ValueError: other sizes, longer rows than `capacity`, or a pinned position that is not there; nothing has
                changed then.
        """
        sizes = [(c.num_layers, c.num_rows, c.num_heads, c.head_dim) for c in (self, new_cache)]
        if sizes[0] != sizes[1]:
            raise ValueError(f"a cache of (layers, rows, heads, head_dim) {sizes[0]} cannot take one of {sizes[1]}")
        self._require_room(0, new_cache.length)
        taken = [self._selected(row, new_cache) for row in range(self.num_rows)]
        for row, positions in enumerate(taken):
            segments = [new_cache.segment(row, run.start, run.stop) for run in _runs(positions)]
            self._replace(row, new_cache.row_lens[row], segments)

    def segment(self, row: int, start: int, end: int) -> Segment:
        self._require_row(row, start, end)
        held = self.held(row)
        first = held.index(start) if start in held else 0
        if held[first : first + end - start] != list(range(start, end)):
            raise ValueError(f"row {row} no longer holds all positions from {start} to {end}")
        return self._taken(row, slice(first, first + end - start), start)

    def check_integrity(self) -> None:
        require_equal_appends(self._num_appends)
        for row, count in enumerate(self._num_held):
            held, length = self.held(row), self._row_lens[row]
            if held != sorted(set(held)) or (held and not 0 <= held[0] <= held[-1] < length) or count > self.num_slots:
                raise RuntimeError(f"row {row} of length {length} holds the positions {held}")
            if not bool((self._positions[row, count:] == NOWHERE).all()):
                raise RuntimeError(f"row {row} holds {count} positions, and has others in the slots behind them")
            if missing := self._missing(row, self._pinned[row]):
                raise RuntimeError(f"row {row} lost the pinned positions {missing}")
            require_finite(self._keys[:, row, :, :count], self._values[:, row, :, :count])

    @property
    def _per_slot(self) -> tuple[Tensor, ...]:
        return self._positions, self._tokens, self._mass

    def _trim(self, row: int, new_len: int) -> None:
        """Keep the pinned positions and those worth most, at the front."""
        count, window = self._num_held[row], self._window(row, new_len)
        held = Held(*(store[row, :count] for store in self._per_slot))
        num_kept, num_recent = self._num_pinned(row) + window, int(window * RECENT_SHARE)
        stay = survivors(self.scorer.score(held), within(held.positions, self._pinned[row]), num_recent, num_kept)
        for store in (self._keys, self._values):
            for layer in range(self.num_layers):
                store[layer, row, :, :num_kept] = store[layer, row].index_select(1, stay)
        for store in self._per_slot:
            store[row, :num_kept] = store[row].index_select(0, stay)
        self._clear(row, num_kept)

    def _clear(self, row: int, count: int) -> None:
        super()._clear(row, count)
        self._tokens[row, count:], self._mass[row, count:] = NO_TOKEN, 0.0

    def _copy_row(self, row: int, source: Self, source_row: int, length: int) -> None:
        super()._copy_row(row, source, source_row, length)
        kept = slice(0, self._num_held[row])
        self._copy_slots(row, source, source_row, kept.stop)
        for mine, theirs in zip(self._per_slot, source._per_slot, strict=True):
            mine[row, kept] = theirs[source_row, kept]

    def _replace(self, row: int, length: int, segments: Sequence[Segment]) -> None:
        """Make ascending segments, with gaps or without, the content of a row of that logical length."""
        self._clear(row, 0)
        self._expose(sum(map(len, segments)))
        for part in segments:
            first = self._num_held[row]
            self._put(row, first, part)
            self._positions[row, first : first + len(part)] = torch.arange(part.start, part.end)
            self._num_held[row] += len(part)
        self._row_lens[row] = length

    def _selected(self, row: int, new_cache: KVCache) -> list[int]:
        """Which of the positions that another cache holds fit into a row."""
        held, length = new_cache.held(row), new_cache.row_lens[row]
        pinned = {p for span in self._pinned[row] for p in span if p < length}
        if missing := pinned - set(held):
            raise ValueError(f"row {row} has pinned position {min(missing)}, which the new cache does not hold")
        if len(held) <= self.num_slots:
            return held
        others = [position for position in held if position not in pinned]
        room = self.num_slots - len(pinned) - 1
        return sorted([*pinned, *others[len(others) - min(self._windows[row], room) :]])


def windows(source: KVCacheConfig | EvictingKVCache) -> dict[str, int | None]:
    """The sizes of a bounded policy, by name."""
    return {name: getattr(source, name) for name in ("max_cache_size", "window_size", "uncond_window")}


def _runs(positions: list[int]) -> tuple[range, ...]:
    return merged(range(position, position + 1) for position in positions)
