"""Head windows: some heads keep every position, the rest the pinned and the newest (DuoAttention, Xiao et al. 2024).

Owns: which head of a row is of which kind, two stores of memory, trimming. Does not know: what makes a head important,
which is `compression.heads`'.

    base        max_cache_size slots of every head. Full: the windowed heads of a row are trimmed in place.
    extension   the positions from max_cache_size on, of as many heads as may keep everything.

A row's heads are told apart when its base is full for the first time, by what they hold then; until then all is exact.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from chatterbox.config import KVCacheConfig, window_of
from chatterbox.kvcache.base import NOWHERE, Segment, require_chain, require_equal_appends, require_finite
from chatterbox.kvcache.bounded import BoundedKVCache
from chatterbox.kvcache.compression.heads import identify_important_heads
from chatterbox.values import number, whole

if TYPE_CHECKING:
    from typing_extensions import Self


class HeadWindowKVCache(BoundedKVCache):
    """Lossy, exact up to ``max_cache_size`` positions. Memory fixed at construction, and never moved.

    A row holds what all of its heads hold: the positions of the windowed ones. Once heads differ, layers see both
    stores side by side, in a tensor that is made for each of them in turn.
    """

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
        full_heads: float = 0.5,
    ) -> None:
        """An empty cache.

        Args:
            max_cache_size: positions that a windowed head holds at most.
            window_size: positions that it keeps beside the pinned ones when it is trimmed, fewer where room is short.
            full_heads: share of all heads, over all layers, that keep every position.

        Raises:
            ValueError: a window that leaves no room for a step, or a share that is not from 0 to 1.
        """
        window_of("window_size", window_size, max_cache_size)
        self.window_size = whole("window_size", window_size, 1)
        self.max_cache_size = whole("max_cache_size", max_cache_size, 1)
        self.full_heads = number("full_heads", full_heads, 0.0, 1.0, "1 keeps every position of every head")
        super().__init__(num_layers, rows, num_heads, head_dim, capacity, dtype=dtype, device=device)

    GONE = "not every head holds any more"

    @classmethod
    def options(cls, config: KVCacheConfig) -> dict[str, Any]:
        return {name: getattr(config, name) for name in ("max_cache_size", "window_size", "full_heads")}

    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("max_cache_size", "window_size", "full_heads")}

    @property
    def num_slots(self) -> int:
        """Of the base, the last being where what no head keeps is written."""
        return self.bound + 1

    def _allocate(self) -> None:
        super()._allocate()
        rows, device, heads = self.num_rows, self.device, self.num_layers * self.num_heads
        self.num_full = round(self.full_heads * heads)
        self._num_extra = self.capacity - self.bound if self.num_full else 0
        shape = (self.num_full if self._num_extra else 0, rows, self._num_extra + 1, self.head_dim)
        self._more_keys = torch.empty(shape, dtype=self.dtype, device=device)
        self._more_values = torch.empty(shape, dtype=self.dtype, device=device)
        self._num_more_clean = 0
        self.is_full = torch.zeros(self.num_layers, rows, self.num_heads, dtype=torch.bool, device=device)
        self._place_of = torch.zeros(self.is_full.shape, dtype=torch.long, device=device)  # in the extension
        self._all = torch.arange(self.capacity, device=device)
        self._head_index = torch.arange(self.num_heads, device=device)[:, None]
        self.is_split = [False] * rows

    def _num_visible(self) -> int:
        return self.capacity

    @property
    def nbytes(self) -> int:
        return super().nbytes + self._more_keys.nbytes + self._more_values.nbytes

    @property
    def step_shape(self) -> Hashable:
        """Slots that layers see, and whether their heads differ."""
        return self._extent, self._differ

    def assign_heads(self, row: int, scores: Tensor) -> None:
        """Say which heads of a row keep everything from now on: those of the highest ``scores`` (layers, heads).

        Raises:
            ValueError: the row's heads are told apart already.
        """
        if self.is_split[row]:
            raise ValueError(f"row {row} has its heads; load or reset it before they are assigned anew")
        best = scores.flatten().topk(self.num_full).indices
        layers, heads = best // self.num_heads, best % self.num_heads
        self.is_full[:, row] = False
        self.is_full[layers, row, heads] = True
        self._place_of[layers, row, heads] = torch.arange(self.num_full, device=best.device)
        self.is_split[row] = True

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows, is_full = self._rows, self.is_full[layer, self._rows, :, None]  # (rows, heads, 1)
        slots = self._slots[:, None].expand(-1, self.num_heads, -1)  # (rows, heads, new)
        if self._differ:
            own = self._new[:, None]
            slots = torch.where(is_full, own.clamp_max(self.bound), slots)
            if self._num_extra:
                place = self._place_of[layer, rows, :, None]
                more = torch.where(is_full & (own >= self.bound), own - self.bound, self._num_extra)
                index = (place, self._row_index[rows, :, None], more)
                self._more_keys[index], self._more_values[index] = keys, values
        index = (self._row_index[: len(slots), :, None], self._head_index, slots)
        self._keys[layer, rows][index], self._values[layer, rows][index] = keys, values
        self._num_appends[layer] += 1
        seen_keys, seen_values = self._seen(layer, rows, self._extent)
        if not self._differ:
            return seen_keys, seen_values, self._visible
        return seen_keys, seen_values, torch.where(is_full, self._all[: self._extent], self._visible[:, None])

    def load(self, row: int, *segments: Segment) -> None:
        length = require_chain(segments)
        self._require_room(0, length)
        if length > self.bound:
            raise ValueError(f"{length} positions do not fit into max_cache_size {self.max_cache_size}; raise it")
        self._empty(row)
        self._expose(length)
        for part in segments:
            self._put(row, part.start, part)
        self._positions[row, :length] = self._all[:length]
        self._row_lens[row] = self._num_held[row] = length

    def segment(self, row: int, start: int, end: int) -> Segment:
        self._require_row(row, start, end)
        held = self.held(row)
        first = held.index(start) if start in held else 0
        if held[first : first + end - start] != list(range(start, end)):
            raise ValueError(f"not every head of row {row} still holds all positions from {start} to {end}")
        if not self.is_split[row]:
            return self._taken(row, slice(start, end), start)
        keys: list[Tensor] = []
        values: list[Tensor] = []
        only = slice(row, row + 1)
        for layer in range(self.num_layers):
            slots = torch.where(
                self.is_full[layer, row, :, None], self._all[start:end], self._all[first:][: end - start]
            )
            for parts, store in zip((keys, values), self._seen(layer, only, self._see_extension(end)), strict=True):
                parts.append(torch.take_along_dim(store[0], slots[..., None], dim=1))
        return Segment(torch.stack(keys), torch.stack(values), start)

    def check_integrity(self) -> None:
        require_equal_appends(self._num_appends)
        for row, length in enumerate(self._row_lens):
            held = self.held(row)
            if held != sorted(set(held)) or (held and not 0 <= held[0] <= held[-1] < length):
                raise RuntimeError(f"the windowed heads of row {row}, of length {length}, hold the positions {held}")
            if missing := self._missing(row, self._pinned[row]):
                raise RuntimeError(f"row {row} lost the pinned positions {missing}")
            if self.is_split[row] and int(self.is_full[:, row].sum()) != self.num_full:
                raise RuntimeError(f"row {row} does not have {self.num_full} heads that keep everything")
            for layer in range(self.num_layers):
                full = self.is_full[layer, row]
                for heads, num in ((full, min(length, self.bound)), (~full, len(held))):
                    require_finite(self._keys[layer, row, heads, :num], self._values[layer, row, heads, :num])
                places, num = self._place_of[layer, row, full], max(0, length - self.bound)
                if self._num_extra:
                    require_finite(self._more_keys[places, row, :num], self._more_values[places, row, :num])

    def _seen(self, layer: int, rows: slice, extent: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, (rows, heads, extent, head_dim): the base, and behind it the extension."""
        base, num = min(extent, self.bound), extent - self.bound
        keys, values = self._keys[layer, rows, :, :base], self._values[layer, rows, :, :base]
        if num <= 0:
            return keys, values
        index = (self._place_of[layer, rows], self._row_index[rows], slice(0, num))
        return torch.cat([keys, self._more_keys[index]], dim=2), torch.cat([values, self._more_values[index]], dim=2)

    def _see_extension(self, num_used: int) -> int:
        """Make the base visible, and the extension up to position ``num_used``, rounded up; returns the extent."""
        self._expose(self.bound)
        extent = min(self._num_extra, -(-max(0, num_used - self.bound) // self.extent_step) * self.extent_step)
        if extent > self._num_more_clean:
            self._more_keys[:, :, self._num_more_clean : extent] = 0.0
            self._more_values[:, :, self._num_more_clean : extent] = 0.0
            self._num_more_clean = extent
        return self.bound + extent

    def _reveal(self, places: Sequence[int], num_held: int, length: int) -> int:
        self._differ = any(self.is_split[row] for row in places)
        self._extent = self._see_extension(length) if self._differ else min(self.bound, self._expose(length))
        return self._extent

    def _trim(self, row: int, new_len: int) -> None:
        """Let the windowed heads keep what is pinned and the newest."""
        held, window, pinned = self.held(row), self._window(row, new_len), _positions(self._pinned[row])
        if not self.is_split[row]:
            self.assign_heads(row, self._scores(row, window))
        others = [slot for slot, position in enumerate(held) if position not in pinned]
        stay = sorted(
            others[len(others) - window :] + [slot for slot, position in enumerate(held) if position in pinned]
        )
        for layer in range(self.num_layers):
            heads = (~self.is_full[layer, row]).nonzero()
            for store in (self._keys, self._values):
                store[layer, row, heads, self._all[: len(stay)]] = store[
                    layer, row, heads, torch.tensor(stay, device=heads.device)
                ]
        self._positions[row] = NOWHERE
        self._positions[row, : len(stay)] = torch.tensor([held[slot] for slot in stay])
        self._num_held[row] = len(stay)

    def _scores(self, row: int, window: int) -> Tensor:
        """What the row's heads are worth, (layers, heads), layer by layer."""
        num, pinned = self._num_held[row], _positions(self._pinned[row])
        prefix_len = next(position for position in range(num + 1) if position not in pinned)
        parts = [
            (self._keys[layer, row, :, :num], self._values[layer, row, :, :num]) for layer in range(self.num_layers)
        ]
        return torch.stack([identify_important_heads(k, v, prefix_len=prefix_len, window=window) for k, v in parts])

    def _copy_row(self, row: int, source: Self, source_row: int, length: int) -> None:
        """The other cache has as many heads that keep everything; its bound differs only where it never forgot."""
        super()._copy_row(row, source, source_row, length)
        self._copy_slots(row, source, source_row, min(length, source.bound))
        if (num := length - source.bound) > 0 and source._num_extra:
            self._see_extension(length)
            self._more_keys[:, row, :num] = source._more_keys[:, source_row, :num]
            self._more_values[:, row, :num] = source._more_values[:, source_row, :num]
        self.is_full[:, row], self._place_of[:, row] = source.is_full[:, source_row], source._place_of[:, source_row]
        self.is_split[row] = source.is_split[source_row]

    def _empty(self, row: int) -> None:
        super()._empty(row)
        self.is_split[row], self.is_full[:, row] = False, False

    def _wipe(self, row: int) -> None:
        super()._wipe(row)
        self._more_keys[:, row, : self._num_more_clean] = 0.0
        self._more_values[:, row, : self._num_more_clean] = 0.0


def _positions(spans: tuple[range, ...]) -> set[int]:
    return {position for span in spans for position in span}
