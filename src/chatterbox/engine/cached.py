"""Rows on a key-value cache of any policy.

Owns: the calls of a cache that a pass is made of, in their order. Does not know: who allocated the cache, requests.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from torch import Tensor

from chatterbox.engine.decoder import MakeReaders, RowDecoder, RowStart, in_order, row_order
from chatterbox.kvcache import KVCache
from chatterbox.models.t3.attention import HeadReader
from chatterbox.models.t3.t3 import T3


class CachedDecoder(RowDecoder):
    """`RowDecoder` on the rows of one cache, which stays as large as it is."""

    def __init__(self, t3: T3, cache: KVCache, *, batch_invariant: bool = False) -> None:
        self._t3, self.cache, self.batch_invariant = t3, cache, batch_invariant

    @property
    def num_rows(self) -> int:
        return self.cache.num_rows

    @property
    def step_shape(self) -> Hashable | None:
        return self.cache.step_shape

    @property
    def nbytes(self) -> int:
        return self.cache.nbytes

    def require(self, num_rows: int, num_new: int, kept_len: int, prompt_len: int, limit: int) -> None:
        if num_rows + num_new > self.num_rows:
            raise ValueError(
                f"the cache has {self.num_rows} rows, {num_rows} in use, and the request needs {num_new}; "
                "allocate more rows or wait for a request to end"
            )
        if kept_len + prompt_len + limit > self.cache.capacity:
            raise ValueError(
                f"the request may take {kept_len} + {prompt_len + limit} positions, the cache has "
                f"{self.cache.capacity}; allocate a larger capacity or lower max_new_tokens"
            )

    def require_pinned(self, *pinned: range) -> None:
        self.cache.require_pinned(*pinned)

    def begin(self, row: int, start: RowStart, kept_len: int | None = None) -> None:
        self.cache.require_pinned(*start.pinned)
        if kept_len is None:
            self.cache.load(row, *start.segments)
        elif kept_len < self.length(row):
            self.cache.crop(kept_len)
        self.cache.begin(row, *start.pinned, is_conditional=start.is_conditional)

    def length(self, row: int) -> int:
        return self.cache.row_lens[row]

    def extend(
        self, embeds: Tensor, rows: Sequence[int], readers: Sequence[HeadReader] = (), tokens: Tensor | None = None
    ) -> Tensor:
        order = row_order(rows)
        first = rows[order[0]]
        positions = self.cache.reserve(embeds.shape[1], slice(first, first + len(rows)))
        if tokens is not None and self.cache.wants_tokens:
            self.cache.note_tokens(tokens.expand(len(rows), -1))
        hidden = self._run(in_order(embeds, order), positions, readers)
        return in_order(hidden, [order.index(place) for place in range(len(order))])

    def reserve(self, num_rows: int) -> None:
        self._positions = self.cache.reserve(1, slice(0, num_rows))

    def decode(
        self, embeds: Tensor, tokens: Tensor, spans: Sequence[Sequence[int]], make_readers: MakeReaders
    ) -> Tensor:
        if self.cache.wants_tokens:
            self.cache.note_tokens(tokens)
        return self._run(embeds, self._positions, make_readers(slice(0, len(spans)), None))

    def move_row(self, source: int, target: int) -> None:
        self.cache.move_row(source, target)

    def clear_row(self, row: int, *, wipe: bool = False) -> None:
        self.cache.clear_row(row, wipe=wipe)

    def _run(self, embeds: Tensor, positions: Tensor, readers: Sequence[HeadReader]) -> Tensor:
        """Hidden state (rows, hidden) of the last position."""
        hidden: Tensor = self._t3.tfmr(
            embeds, self.cache, positions=positions, readers=readers, batch_invariant=self.batch_invariant
        )
        return hidden[:, -1]
