"""What bounded caches share: rows that hold some of their positions, and are trimmed when they are full.

Owns: which positions a row holds, which of them are pinned, when a pass needs a row trimmed. Does not know: who leaves,
which is a policy's `_trim`; what a row is.

Slots of a row are filled in order and hold ascending positions. A trim makes room for many steps, so it is rare.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from chatterbox.kvcache.base import ALL_ROWS, NOWHERE
from chatterbox.kvcache.static import PreallocatedKVCache

if TYPE_CHECKING:
    from typing_extensions import Self


class BoundedKVCache(PreallocatedKVCache):
    """At most ``max_cache_size`` positions a row, and ``window_size`` beside the pinned ones after a trim."""

    max_cache_size: int
    window_size: int
    GONE: ClassVar[str] = "it no longer holds"  # how a position that was forgotten is told of

    @property
    def bound(self) -> int:
        """Positions that a row can hold."""
        return min(self.max_cache_size, self.capacity)

    @property
    def num_slots(self) -> int:
        return self.bound

    def _allocate(self) -> None:
        super()._allocate()
        rows, device = self.num_rows, self.device
        self._positions = torch.full((rows, self._num_visible()), NOWHERE, device=device)
        self._single = torch.zeros(2, rows, 1, dtype=torch.long, device=device)  # slots, positions of a step
        self._num_held, self._windows = [0] * rows, [self.window_size] * rows
        self._pinned: list[tuple[range, ...]] = [()] * rows

    def held(self, row: int) -> list[int]:
        return self._positions[row, : self._num_held[row]].tolist()

    def require_pinned(self, *pinned: range) -> None:
        pinned_len = sum(map(len, merged(pinned)))
        if pinned_len >= self.max_cache_size:
            raise ValueError(
                f"{pinned_len} pinned positions and a step do not fit into max_cache_size {self.max_cache_size}; "
                "raise it or split the text"
            )

    def begin(self, row: int, *pinned: range, is_conditional: bool = True) -> None:
        self.require_pinned(*pinned)
        spans = merged(pinned)
        if missing := self._missing(row, spans):
            raise ValueError(f"row {row} cannot pin position {missing[0]}, which {self.GONE}")
        self._pinned[row] = spans

    def reserve(self, new_len: int, rows: slice = ALL_ROWS) -> Tensor:
        places = range(self.num_rows)[rows]
        self._require_room(max(self._row_lens[row] for row in places), new_len)
        full = [row for row in places if self._num_held[row] + new_len > self.bound]
        for row in full:
            self._require_slots(row, new_len)
        for row in full:
            self._trim(row, new_len)
        starts, firsts = self._advance(new_len, rows), [self._num_held[row] for row in places]
        single = self._single[:, : len(starts)]
        single.copy_(torch.tensor([firsts, starts])[..., None])
        self._slots, self._new = single if new_len == 1 else single + self._offsets[:new_len]
        self._positions[self._rows].scatter_(1, self._slots, self._new)
        for row in places:
            self._num_held[row] += new_len
        extent = self._reveal(places, max(firsts) + new_len, max(starts) + new_len)
        self._visible = self._positions[self._rows, :extent]
        return self._new

    @abc.abstractmethod
    def _trim(self, row: int, new_len: int) -> None:
        """Keep the pinned positions of a full row and `_window` others, so that ``new_len`` more find room."""

    def _copy_row(self, row: int, source: Self, source_row: int, length: int) -> None:
        is_cut = length < source._row_lens[source_row]
        count = source._num_below(source_row, length) if is_cut else source._num_held[source_row]
        self._empty(row)
        self._positions[row, :count] = source._positions[source_row, :count]
        self._row_lens[row], self._num_held[row] = length, count
        pinned = source._pinned[source_row]
        self._pinned[row] = cut_spans(pinned, length) if is_cut else pinned
        self._windows[row] = source._windows[source_row]

    def _empty(self, row: int) -> None:
        self._clear(row, 0)
        self._row_lens[row], self._pinned[row], self._windows[row] = 0, (), self.window_size

    def _cut(self, row: int, length: int) -> None:
        self._clear(row, self._num_below(row, length))
        self._row_lens[row], self._pinned[row] = length, cut_spans(self._pinned[row], length)

    def _clear(self, row: int, count: int) -> None:
        """Forget what slots from ``count`` on hold; keys and values stay as they are, out of reach."""
        self._positions[row, count:] = NOWHERE
        self._num_held[row] = count

    def _num_below(self, row: int, length: int) -> int:
        """Positions below ``length`` that a row holds."""
        return sum(position < length for position in self.held(row))

    def _reveal(self, places: Sequence[int], num_held: int, length: int) -> int:
        """Make slots visible for a pass of the rows ``places``; returns how many.

        ``num_held``, ``length``: of the fullest row and of the longest, with the pass.
        """
        return self._expose(num_held)

    def _num_visible(self) -> int:
        """Most slots that a layer can come to see."""
        return self.num_slots

    def _missing(self, row: int, spans: Iterable[range]) -> list[int]:
        """What a row has had of ``spans`` and does not hold, ascending."""
        held = set(self.held(row))
        return [p for span in spans for p in span if p < self._row_lens[row] and p not in held]

    def _num_pinned(self, row: int) -> int:
        """Pinned positions that the row has had."""
        return sum(len(range(span.start, min(span.stop, self._row_lens[row]))) for span in self._pinned[row])

    def _window(self, row: int, new_len: int) -> int:
        """Positions beside the pinned ones that stay when ``new_len`` more must find room."""
        room = self.bound - self._num_pinned(row) - new_len
        window = self._windows[row]
        return window if window <= room else room // 2  # half, so that trimming stays rare

    def _require_slots(self, row: int, new_len: int) -> None:
        if (num_pinned := self._num_pinned(row)) + new_len > self.bound:
            raise ValueError(
                f"row {row} has {num_pinned} pinned positions and gets {new_len} at once, more than max_cache_size "
                f"{self.max_cache_size}; raise it or split the text"
            )


def merged(spans: Iterable[range]) -> tuple[range, ...]:
    """The same positions as ascending spans that do not touch."""
    found: list[range] = []
    for span in sorted((span for span in spans if len(span)), key=lambda span: span.start):
        if found and span.start <= found[-1].stop:
            span = range(found[-1].start, max(found.pop().stop, span.stop))
        found.append(span)
    return tuple(found)


def cut_spans(spans: Iterable[range], length: int) -> tuple[range, ...]:
    """What of ``spans`` is below ``length``."""
    return merged(range(span.start, min(span.stop, length)) for span in spans)
