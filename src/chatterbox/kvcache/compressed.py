"""Cache of eight or four bits a number, for decoding: old positions packed, the newest in full precision.

Owns: packed buffers, each row's residual, when a group moves from one to the other. Does not know: how numbers become
levels (`compression.quantize`), what its rows mean.

    a row    [group][group][group] ...          [residual, at most residual_size + group_size positions]
             packed, from position 0             full precision, goes on where the groups end

Source: KIVI (Liu et al. 2024). A prefix attends to itself in full precision and is packed as it is stored. All
positions stay; a number that was packed is off by at most half a step of its group. A group that `crop` cuts is
unpacked, and packed again with what follows: another half step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from chatterbox.config import KVCacheConfig
from chatterbox.kvcache.base import (
    ALL_ROWS,
    NOWHERE,
    KVCache,
    Segment,
    require_chain,
    require_equal_appends,
    require_finite,
)
from chatterbox.kvcache.compression.quantize import (
    channel_group,
    pack_keys,
    pack_values,
    packed_width,
    unpack_keys,
    unpack_values,
)

if TYPE_CHECKING:
    from typing_extensions import Self

BITS = {"int4": 4, "int8": 8}
PER_GROUP = ("key_low", "key_high")  # buffers with one entry for a group of positions


def check_codec(name: str) -> None:
    """Raise ValueError if decode rows are not packed by a codec of that name."""
    if name not in BITS:
        raise ValueError(f"decode_codec {name!r} does not exist; choose from {', '.join(sorted(BITS))}")


class _Fold(NamedTuple):
    """What a row of a pass that is longer than the residual does: its residual and the new become groups and a rest."""

    row: int
    packed_len: int  # before the pass
    residual_len: int  # before the pass
    num_packed: int  # positions that the pass packs


class CompressedKVCache(KVCache):
    """Bounded: memory fixed at construction, `packed_width` and the ends of groups per position, and the residual.

    What layers see is made of it anew in every pass, one layer at a time: keys and values of one layer in full
    precision are a passing cost of memory, and of time.
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
        codec: str = "int8",
        group_size: int = 32,
        residual_size: int = 32,
    ) -> None:
        """An empty cache.

        Args:
            codec: "int8" or "int4".
            group_size: positions whose keys share the ends of their levels, and that are packed at once.
            residual_size: newest positions that always stay in full precision.

        Raises:
            ValueError: there is no such codec, or a size below 1.
        """
        check_codec(codec)
        if min(group_size, residual_size) < 1:
            raise ValueError(f"group_size and residual_size must be at least 1, got {group_size} and {residual_size}")
        self.codec, self.group_size, self.residual_size = codec, group_size, residual_size
        self._bits = BITS[codec]
        super().__init__(num_layers, rows, num_heads, head_dim, capacity, dtype=dtype, device=device)

    @classmethod
    def options(cls, config: KVCacheConfig) -> dict[str, Any]:
        sizes = {"group_size": config.group_size, "residual_size": config.residual_size}
        return {"codec": config.decode_codec, **sizes}

    def _settings(self) -> dict[str, Any]:
        return {"codec": self.codec, "group_size": self.group_size, "residual_size": self.residual_size}

    def _allocate(self) -> None:
        group = self.group_size
        on: dict[str, Any] = {"device": self.device}
        step = 256 if torch.device(self.device).type == "cuda" else 64
        self._extent_step = -(-step // group) * group
        num_packed, self._num_residual = self.capacity // group * group, min(self.residual_size + group, self.capacity)
        outer = (self.num_layers, self.num_rows, self.num_heads)
        width, num_ends = packed_width(self.head_dim, self._bits), self.head_dim // channel_group(self.head_dim)
        self._packed = {
            name: torch.empty(*outer, num_packed, width, dtype=torch.uint8, **on) for name in ("keys", "values")
        }
        ends = dict.fromkeys(PER_GROUP, (num_packed // group, self.head_dim))
        ends |= dict.fromkeys(("value_low", "value_high"), (num_packed, num_ends))
        # Zeros: what the mask hides is multiplied by 0, and must be a number.
        self._packed |= {name: torch.zeros(*outer, *size, dtype=self.dtype, **on) for name, size in ends.items()}
        residual = (*outer, self._num_residual, self.head_dim)
        self._keys, self._values = (torch.zeros(residual, dtype=self.dtype, **on) for _ in range(2))
        self._positions = torch.empty(self.num_rows, self._num_residual + num_packed, dtype=torch.long, **on)
        self._offsets = torch.arange(self.capacity, **on)
        self._row_index = torch.arange(self.num_rows, **on)[:, None]
        self._single = torch.zeros(2, self.num_rows, 1, dtype=torch.long, **on)  # slots, positions of a step
        self._folds: list[_Fold] = []
        self.packed_lens = [0] * self.num_rows
        self.reset()

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (*self._packed.values(), self._keys, self._values))

    @property
    def step_shape(self) -> int | None:
        """Slots that layers see."""
        return None if self._folds else self._visible.shape[1]

    def reserve(self, new_len: int, rows: slice = ALL_ROWS) -> Tensor:
        places = range(self.num_rows)[rows]
        self._require_room(max(self._row_lens[row] for row in places), new_len)
        counts = {row: self._residual_len(row) for row in places}
        missing = {
            row: -(-max(0, count + new_len - self._num_residual) // self.group_size) for row, count in counts.items()
        }
        fits = {row: missing[row] <= counts[row] // self.group_size for row in places}
        for row in places:
            self._pack(row, missing[row] if fits[row] else 0)
        starts = self._advance(new_len, rows)
        firsts = [start - self.packed_lens[row] for row, start in zip(places, starts, strict=True)]
        single = self._single[:, : len(starts)]
        single.copy_(torch.tensor([firsts, starts])[..., None])
        self._slots, new = single if new_len == 1 else single + self._offsets[:new_len]
        extent = max(self.packed_lens[row] for row in places)
        self._extent = min(self._packed["keys"].shape[3], -(-extent // self._extent_step) * self._extent_step)
        if all(fits.values()):
            self._folds, self._visible = [], self._positions[self._rows, : self._num_residual + self._extent]
        else:
            self._fold(max(firsts) + new_len, new_len, fits)
        return new

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self._folds:
            new_keys, new_values = self._append_folding(layer, keys, values)
        else:
            index = (self._row_index[: len(self._slots)], slice(None), self._slots)
            new_keys, new_values = self._keys[layer, self._rows], self._values[layer, self._rows]
            new_keys[index], new_values[index] = keys.transpose(1, 2), values.transpose(1, 2)
        self._num_appends[layer] += 1
        if not self._extent:
            return new_keys, new_values, self._visible
        old_keys, old_values = self._unpacked(layer, self._rows, 0, self._extent)
        return torch.cat([new_keys, old_keys], dim=2), torch.cat([new_values, old_values], dim=2), self._visible

    def load(self, row: int, *segments: Segment) -> None:
        length = require_chain(segments)
        self._require_room(0, length)
        num_packed, self._row_lens[row] = self._num_foldable(length), length
        if segments:
            whole = Segment.join(segments)
            self._write(ALL_ROWS, row, 0, whole.keys[:, :, :num_packed], whole.values[:, :, :num_packed])
            self._set_residual(row, whole.keys[:, :, num_packed:], whole.values[:, :, num_packed:])
        self._settle(row, num_packed)

    def segment(self, row: int, start: int, end: int) -> Segment:
        self._require_row(row, start, end)
        middle, packed_len = self.group_size, self.packed_lens[row]
        first, last = start // middle * middle, -(-min(end, packed_len) // middle) * middle
        parts = [(self._keys[:, row], self._values[:, row], packed_len)]
        if first < last:
            parts.insert(0, (*self._unpacked(ALL_ROWS, row, first, last), first))
        cut = [(slice(max(0, start - at), max(0, end - at)), keys, values) for keys, values, at in parts]
        keys = torch.cat([keys[:, :, part] for part, keys, _ in cut], dim=2)
        return Segment(keys, torch.cat([values[:, :, part] for part, _, values in cut], dim=2), start)

    def check_integrity(self) -> None:
        require_equal_appends(self._num_appends)
        for row, packed_len in enumerate(self.packed_lens):
            residual_len = self._residual_len(row)
            if packed_len % self.group_size or not 0 <= residual_len <= self._num_residual:
                raise RuntimeError(f"row {row} of length {self._row_lens[row]} has {packed_len} packed positions")
            require_finite(self._keys[:, row, :, :residual_len], self._values[:, row, :, :residual_len])
            ends = {name: part[:, row, :, : self._count(name, packed_len)] for name, part in self._packed.items()}
            require_finite(ends["key_low"], ends["value_low"])
            require_finite(ends["key_high"], ends["value_high"])
            if (ends["key_low"] > ends["key_high"]).any() or (ends["value_low"] > ends["value_high"]).any():
                raise RuntimeError(f"row {row} has a group whose smallest number is above its largest")

    def _residual_len(self, row: int) -> int:
        return self._row_lens[row] - self.packed_lens[row]

    def _num_foldable(self, length: int) -> int:
        """Of ``length`` positions, the oldest that become groups where the residual keeps its size."""
        return max(0, length - self.residual_size) // self.group_size * self.group_size

    def _count(self, name: str, num_positions: int) -> int:
        """Entries of a packed buffer for the first ``num_positions``."""
        return num_positions // self.group_size if name in PER_GROUP else num_positions

    def _settle(self, row: int, packed_len: int) -> None:
        """Count the row's packed positions, and write down where its slots are: the residual, then the groups."""
        self.packed_lens[row] = packed_len
        self._write_positions(self._positions[row], packed_len, self._num_residual)

    def _write_positions(self, out: Tensor, packed_len: int, num_residual: int) -> None:
        out[:num_residual] = self._offsets[:num_residual] + packed_len
        out[num_residual:] = NOWHERE
        out[num_residual : num_residual + packed_len] = self._offsets[:packed_len]

    def _pack(self, row: int, num_groups: int) -> None:
        """Move the oldest groups of a row's residual to the packed buffers."""
        if not num_groups:
            return
        start, num = self.packed_lens[row], num_groups * self.group_size
        old, rest = slice(0, num), slice(num, self._residual_len(row))
        self._write(ALL_ROWS, row, start, self._keys[:, row, :, old], self._values[:, row, :, old])
        self._set_residual(row, self._keys[:, row, :, rest].clone(), self._values[:, row, :, rest].clone())
        self._settle(row, start + num)

    def _set_residual(self, row: int, keys: Tensor, values: Tensor) -> None:
        self._keys[:, row, :, : keys.shape[2]], self._values[:, row, :, : keys.shape[2]] = keys, values

    def _write(self, layers: int | slice, row: int, start: int, keys: Tensor, values: Tensor) -> None:
        """Pack whole groups, (..., heads, positions, head_dim), to the positions of a row from ``start`` on."""
        if not keys.shape[-2]:
            return
        packed = pack_keys(keys.float(), self._bits, self.group_size) | pack_values(values.float(), self._bits)
        for name, part in packed.items():
            first = self._count(name, start)
            self._packed[name][layers, row, :, first : first + part.shape[-2]] = part

    def _unpacked(self, layers: int | slice, rows: int | slice, start: int, end: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the packed positions ``start`` to ``end``, multiples of the group."""
        packed = {}
        for name, part in self._packed.items():
            kept = part[layers, rows][..., self._count(name, start) : self._count(name, end), :]
            packed[name] = kept if kept.dtype == torch.uint8 else kept.float()
        keys = unpack_keys(packed, self._bits, self.group_size)
        return keys.to(self.dtype), unpack_values(packed, self._bits, self.head_dim).to(self.dtype)

    def _fold(self, num_residual: int, new_len: int, fits: Mapping[int, bool]) -> None:
        """Count what the pass under way will pack; layers see ``num_residual`` positions in full precision.

        ``fits``: whether a row's residual has room for the new positions, which then stay there.
        """
        self._folds = []
        self._visible = self._positions.new_empty(len(self._slots), num_residual + self._extent)
        for positions, row in zip(self._visible, range(self.num_rows)[self._rows], strict=True):
            packed_len, length = self.packed_lens[row], self._residual_len(row)
            self._write_positions(positions, packed_len, num_residual)
            num_packed = 0 if fits[row] else self._num_foldable(length)
            self._folds.append(_Fold(row, packed_len, length - new_len, num_packed))
            self._settle(row, packed_len + self._folds[-1].num_packed)

    def _append_folding(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer of a long pass; returns its residual and new, (rows, heads, longest, head_dim)."""
        joined_keys = self._joined(self._keys[layer], keys)
        joined_values = self._joined(self._values[layer], values)
        for place, fold in enumerate(self._folds):
            old = slice(0, fold.num_packed)
            self._write(layer, fold.row, fold.packed_len, joined_keys[place, :, old], joined_values[place, :, old])
        return joined_keys, joined_values

    def _joined(self, residual: Tensor, new: Tensor) -> Tensor:
        """Residuals of a layer and what follows them; the last positions become the new residuals."""
        longest = max(fold.residual_len for fold in self._folds) + new.shape[2]
        joined = new.new_zeros(*new.shape[:2], longest, new.shape[3])
        for place, fold in enumerate(self._folds):
            end = fold.residual_len + new.shape[2]
            joined[place, :, : fold.residual_len] = residual[fold.row, :, : fold.residual_len]
            joined[place, :, fold.residual_len : end] = new[place]
            residual[fold.row, :, : end - fold.num_packed] = joined[place, :, fold.num_packed : end]
        return joined

    def _copy_row(self, row: int, source: Self, source_row: int, length: int) -> None:
        packed_len, rest = source._split_at(source_row, length)
        for name, part in self._packed.items():
            kept = slice(0, self._count(name, packed_len))
            part[:, row, :, kept] = source._packed[name][:, source_row, :, kept]
        self._set_residual(row, rest.keys, rest.values)
        self._settle(row, packed_len)
        self._row_lens[row] = length

    def _cut(self, row: int, length: int) -> None:
        packed_len, rest = self._split_at(row, length)
        self._set_residual(row, rest.keys, rest.values)
        self._settle(row, packed_len)
        self._row_lens[row] = length

    def _split_at(self, row: int, length: int) -> tuple[int, Segment]:
        """Of a row's first ``length`` positions: how many stay packed, and a copy of the rest in full precision."""
        packed_len = min(self.packed_lens[row], length // self.group_size * self.group_size)
        return packed_len, self.segment(row, packed_len, length)

    def _empty(self, row: int) -> None:
        self._settle(row, 0)
        self._row_lens[row] = 0

    def _wipe(self, row: int) -> None:
        for store in (*self._packed.values(), self._keys, self._values):
            store[:, row] = 0
