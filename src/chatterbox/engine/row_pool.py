"""Rows that live as long as a model: one cache for each policy, grown by need, given back when nobody needs it.

Owns: buckets of rows and of capacity, the byte budget that all policies of a model share; which rows belong to whom, so
that those of a step are the first ones. Does not know: what a row holds, who waits for one.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Protocol

from chatterbox.config import KVCacheConfig
from chatterbox.engine.decoder import CachedDecoder, NoRoomError, RowDecoder, RowStart
from chatterbox.engine.request import allocate_cache
from chatterbox.kvcache import KVCache, planned_nbytes, policy
from chatterbox.models.t3.t3 import T3

MIB = 2**20
FIRST_CAPACITY = 256  # positions; buckets double from there
ENDLESS = 2**40  # capacity where memory does not depend on it


class RowBudget:
    """Bytes that the caches of several policies may take together."""

    def __init__(self, nbytes: int | None) -> None:
        """``nbytes``: None sets no limit."""
        self.limit = nbytes
        self._held: dict[int, int] = {}

    @property
    def nbytes(self) -> int:
        """Held now."""
        return sum(self._held.values())

    def fits(self, nbytes: int) -> bool:
        """Whether so many bytes fit where there is nothing else."""
        return self.limit is None or nbytes <= self.limit

    def require(self, owner: object, nbytes: int) -> None:
        """Raise NoRoomError if ``owner`` cannot come to hold so many bytes beside what the others hold."""
        others = sum(held for key, held in self._held.items() if key != id(owner))
        if not self.fits(others + nbytes):
            raise NoRoomError(f"{nbytes / MIB:.0f} MiB more for rows do not fit into engine.cache_mib now")

    def hold(self, owner: object, nbytes: int) -> None:
        """``owner`` holds so many bytes from now on."""
        self._held.pop(id(owner), None)
        if nbytes:
            self._held[id(owner)] = nbytes


class PooledDecoder(CachedDecoder):
    """`RowDecoder` of one policy whose cache grows with what its rows need, within a budget."""

    def __init__(self, t3: T3, config: KVCacheConfig, budget: RowBudget, *, batch_invariant: bool = False) -> None:
        """``config``: of any policy but "none". Nothing is allocated yet."""
        kind = policy(config.policy)
        assert kind is not None, "a pool is of a policy that keeps something"
        self._is_bounded = kind.is_bounded
        self._t3, self._config, self._budget = t3, config, budget
        self._num_moves = 0
        super().__init__(t3, self._allocated(1, 1), batch_invariant=batch_invariant)

    @property
    def memory_id(self) -> Hashable:
        return self._num_moves, self._t3.watch.version

    @property
    def nbytes(self) -> int:
        return self.cache.nbytes if self._is_allocated else 0

    def require(self, num_rows: int, num_new: int, kept_len: int, prompt_len: int, limit: int) -> None:
        longest = kept_len + prompt_len + limit
        alone = self._planned(_row_bucket(num_new or 1), self._len_bucket(longest))
        if not self._budget.fits(alone):
            raise ValueError(
                f"a request of {longest} positions may take {alone / MIB:.0f} MiB, more than engine.cache_mib allows "
                f"({(self._budget.limit or 0) / MIB:.0f}); raise it, or lower max_new_tokens"
            )
        self._grow(num_rows + num_new, kept_len + prompt_len + 1)

    def require_step(self, num_rows: int, num_steps: int) -> None:
        self._grow(self.num_rows - 1, max(self.cache.row_lens[:num_rows]) + num_steps)

    def begin(self, row: int, start: RowStart, kept_len: int | None = None) -> None:
        assert kept_len in (None, self.length(row)), "rows of a pool are continued whole"
        super().begin(row, start, kept_len)

    def release(self) -> None:
        """Give all memory back; there must be nobody in the rows."""
        self._replace(self._allocated(1, 1))
        self._budget.hold(self, 0)

    @property
    def _is_allocated(self) -> bool:
        return self.cache.num_rows > 1

    def _grow(self, num_rows: int, length: int) -> None:
        """Have ``num_rows`` rows, one more beside them to move others by, and ``length`` positions in each."""
        rows, capacity = max(self.num_rows, _row_bucket(num_rows)), max(self.cache.capacity, self._len_bucket(length))
        fits_weights = (self.cache.dtype, self.cache.device) == (self._t3.dtype, self._t3.device)
        if (rows, capacity) == (self.num_rows, self.cache.capacity) and fits_weights:
            return
        planned = self._planned(rows, capacity)
        self._budget.require(self, planned)
        bigger = self._allocated(rows, capacity)
        for row, length in enumerate(self.cache.row_lens):
            if length:
                bigger.take_row(row, self.cache, row)
        self._replace(bigger)
        self._budget.hold(self, planned)

    def _replace(self, cache: KVCache) -> None:
        self.cache = cache
        self._num_moves += 1

    def _allocated(self, rows: int, capacity: int) -> KVCache:
        cache = allocate_cache(self._t3, rows, capacity, self._config)
        assert cache is not None
        return cache

    def _planned(self, rows: int, capacity: int) -> int:
        backbone = self._t3.sizes
        sizes = backbone.num_layers, rows, backbone.num_heads, backbone.head_dim
        return planned_nbytes(self._config, *sizes, capacity, dtype=self._t3.dtype)

    def _len_bucket(self, length: int) -> int:
        if self._is_bounded:
            return ENDLESS
        capacity = FIRST_CAPACITY
        while capacity < length:
            capacity *= 2
        return capacity


def _row_bucket(num_rows: int) -> int:
    """A power of two, and one row more, by which others are moved."""
    size = 2
    while size < num_rows:
        size *= 2
    return size + 1


class RowOwner(Protocol):
    rows: list[int]


class RowTable:
    """Rows of running requests in front, packed; those of others behind; the rest free.

    Moving a row needs a free one beside it, unless its place is free already: a decoder has one row more than is used,
    or nobody who is not running.
    """

    def __init__(self, decoder: RowDecoder) -> None:
        self._decoder = decoder
        self._owners: dict[int, RowOwner] = {}

    @property
    def num_used(self) -> int:
        return len(self._owners)

    def take(self, owner: RowOwner, num: int, first: int) -> None:
        """Give ``owner`` the rows from ``first`` on; whoever is there makes way."""
        for row in range(first, first + num):
            self._vacate(row, behind=first + num)
            self._owners[row] = owner
            owner.rows.append(row)

    def free(self, owner: RowOwner, *, wipe: bool = False) -> None:
        """Forget the rows of ``owner``; ``wipe`` as `RowDecoder.clear_row`."""
        for row in owner.rows:
            self._decoder.clear_row(row, wipe=wipe)
            del self._owners[row]
        owner.rows.clear()

    def pack(self, *groups: Sequence[RowOwner]) -> None:
        """Bring the rows of the groups' owners to the front, one group behind the other, with few moves."""
        first, end = 0, sum(len(owner.rows) for group in groups for owner in group)
        for group in groups:
            wanted = range(first, first + sum(len(owner.rows) for owner in group))
            held = {row for owner in group for row in owner.rows}
            holes = (row for row in wanted if row not in held)
            for row, hole in zip(sorted(held.difference(wanted)), holes, strict=True):
                self._vacate(hole, behind=end)
                self._move(row, hole)
            first = wanted.stop

    def _vacate(self, row: int, behind: int) -> None:
        if row in self._owners:
            rows: Iterable[int] = (*range(behind, self._decoder.num_rows), *range(behind))
            self._move(row, next(free for free in rows if free not in self._owners))

    def _move(self, source: int, target: int) -> None:
        self._decoder.move_row(source, target)
        owner = self._owners[target] = self._owners.pop(source)
        owner.rows[owner.rows.index(source)] = target
