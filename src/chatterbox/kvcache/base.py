"""The contract between the backbone and a key-value cache.

Owns: the `KVCache` interface and the mask that follows from it. Does not know: models, sampling, where a cache's
content came from.

A pass over new positions is ``positions = cache.reserve(new_len)``, then one ``append`` per layer. Keys are stored
after rotary embedding, so a cached key carries its position for good and positions are never renumbered: a length
counts the positions a row has had, not the slots in use. Rows are sequences of their own, each with its own length.
"""

from __future__ import annotations

import abc
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from chatterbox.config import KVCacheConfig

if TYPE_CHECKING:
    from typing_extensions import Self  # typing has it from Python 3.11 on

ALL_ROWS = slice(None)
NOWHERE = 2**62  # position of a slot that a row has not written: no query reaches it


@dataclass(frozen=True)
class Segment:
    """Keys and values of consecutive positions of one row, all layers: each (layers, heads, positions, head_dim).

    Independent of the cache it was taken from, and read-only: whoever gets one never writes to it.
    """

    keys: Tensor
    values: Tensor
    start: int  # position of the first

    def __len__(self) -> int:
        return self.keys.shape[2]

    @property
    def end(self) -> int:
        return self.start + len(self)

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    @property
    def is_finite(self) -> bool:
        """Whether no key or value is NaN or infinite. Waits for the device."""
        if not len(self):
            return True
        extremes = torch.stack([end for part in (self.keys, self.values) for end in part.aminmax()])  # NaN goes through
        return bool(extremes.isfinite().all())

    def clone(self) -> Segment:
        return Segment(self.keys.clone(), self.values.clone(), self.start)

    @classmethod
    def join(cls, segments: Sequence[Segment]) -> Segment:
        """One segment of several that follow one another, as a copy."""
        keys = torch.cat([part.keys for part in segments], dim=2)
        return cls(keys, torch.cat([part.values for part in segments], dim=2), segments[0].start)

    def __getitem__(self, part: slice) -> Segment:
        """The positions ``part``, counted from the segment's first, as a view."""
        start, stop, step = part.indices(len(self))
        if step != 1:
            raise ValueError(f"a segment is sliced position by position, got step {step}")
        return Segment(self.keys[:, :, start:stop], self.values[:, :, start:stop], self.start + start)


class KVCache(abc.ABC):
    """Keys and values of one or more rows, all layers.

    An exact policy keeps every position of a row; one with a bound forgets some. What such a policy needs to know,
    whoever decodes tells it, through methods that do nothing here: `begin` always, `note_tokens` and `observe` where
    `wants_tokens` and `wants_queries` say so.
    """

    is_bounded: bool = False  # whether memory stays as it is however large `capacity`
    wants_tokens: bool = False  # whether `note_tokens` is to be called
    wants_queries: bool = False  # whether `observe` is to be called

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
    ) -> None:
        """An empty cache. ``capacity``: largest logical length a row may reach."""
        if min(num_layers, rows, num_heads, head_dim, capacity) < 1:
            raise ValueError(
                f"every size of a {type(self).__name__} must be at least 1, got "
                f"{num_layers=}, {rows=}, {num_heads=}, {head_dim=}, {capacity=}"
            )
        self.num_layers, self.num_heads, self.head_dim, self.capacity = num_layers, num_heads, head_dim, capacity
        self.dtype, self.device = dtype, device
        self._row_lens = [0] * rows
        self._num_appends = [0] * num_layers
        self._rows = slice(0, rows)  # of the pass under way
        with torch.inference_mode(False):  # memory that may be written to in whatever mode its next user is
            self._allocate()

    @classmethod
    def options(cls, config: KVCacheConfig) -> dict[str, Any]:
        """Arguments of the constructor, beside the sizes, that ``config`` has for this policy."""
        return {}

    @property
    def num_rows(self) -> int:
        return len(self._row_lens)

    @property
    def row_lens(self) -> tuple[int, ...]:
        """Logical length of each row: the position that its next key gets."""
        return tuple(self._row_lens)

    @property
    def length(self) -> int:
        """Logical length of the longest row."""
        return max(self._row_lens)

    @property
    @abc.abstractmethod
    def nbytes(self) -> int:
        """Bytes allocated for keys and values."""

    @property
    def max_nbytes(self) -> int:
        """`nbytes` once a row has reached `capacity`: the same, where memory is fixed at construction."""
        return self.nbytes

    @property
    def step_shape(self) -> Hashable | None:
        """What the shapes of the pass under way depend on, besides its rows and length; constant for many steps.

        None: they change with every step, or memory moves, so that a step cannot be captured in a CUDA graph.
        """
        return None

    def held(self, row: int) -> list[int]:
        """The positions of a row that are kept, ascending: all that it has had, if the policy is exact.

        May wait for the device.
        """
        return list(range(self._row_lens[row]))

    def require_pinned(self, *pinned: range) -> None:  # noqa: B027
        """Raise ValueError if a row could not keep these positions, as in `begin`, and one more for every step."""

    def begin(self, row: int, *pinned: range, is_conditional: bool = True) -> None:  # noqa: B027
        """Say that a request goes on from what ``row`` holds now, before its own prefix is run.

        It holds until the row is loaded or begins again, and moves with the row.

        Args:
            pinned: absolute positions that must stay, those of the prefix to come among them.
            is_conditional: False for the row that guidance adds, which has no text.

        Raises:
            ValueError: there is no room for so much, or a pinned position is gone; nothing has changed then.
        """

    def note_tokens(self, tokens: Tensor) -> None:  # noqa: B027
        """Say which speech tokens (rows, new) the positions of the pass under way stand for, before its appends.

        Called where `wants_tokens`, for passes of decoded tokens; a prefix has none. Like `append`, works on device
        tensors alone, with addresses that do not change.
        """

    def observe(self, layer: int, queries: Tensor) -> None:  # noqa: B027
        """Show the queries (rows, heads, new, head_dim), rotary embedding applied, that attend to what `append` kept.

        Called where `wants_queries`, after each layer's `append`, and as fit for a graph as that.
        """

    @abc.abstractmethod
    def reserve(self, new_len: int, rows: slice = ALL_ROWS) -> Tensor:
        """Announce that every layer will append ``new_len`` positions to ``rows``. Mutates the cache.

        A bounded policy may forget positions of these rows now, to make room.

        Returns:
            The absolute positions they get, (rows, new_len). Valid until the next call.

        Raises:
            ValueError: a row would outgrow `capacity`; nothing has changed then.
        """

    @abc.abstractmethod
    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Store the reserved positions of one layer and return everything that layer may attend to.

        Works on tensors alone, with addresses that do not change, so that it can be captured in a CUDA graph.

        Args:
            layer: index of the layer; every layer is appended to once per `reserve`, in order.
            keys: (rows, heads, new, head_dim), rotary embedding applied.
            values: same shape.

        Returns:
            keys and values of shape (rows, heads, kept, head_dim), and the absolute position of each kept slot,
            (kept,), (rows, kept) or, where heads keep different ones, (rows, heads, kept); slots that a row has not
            written have positions that it has not reached. The same object for every layer of a pass where the layers
            keep the same positions. They may be views of the cache's memory: valid until the next call that mutates it,
            and never to be written to.
        """

    @abc.abstractmethod
    def load(self, row: int, *segments: Segment) -> None:
        """Copy ``segments`` in, one after another from position 0, as the whole content of a row.

        Raises:
            ValueError: they do not follow one another from 0, or do not fit; nothing has changed then.
        """

    @abc.abstractmethod
    def segment(self, row: int, start: int, end: int) -> Segment:
        """A copy of the positions ``start`` to ``end`` of a row. Raises ValueError if the row does not hold them."""

    def take_row(self, row: int, source: KVCache, source_row: int) -> None:
        """Make ``row`` an exact copy of a row of ``source``, which may be this cache: it goes on as that row would.

        Everything comes along: keys, values, length, what `begin` was given and all that the policy keeps of a row.

        Args:
            source: of the same policy, settings, dtype and sizes; rows, capacity and device may differ. Left as it is.

        Raises:
            ValueError: ``source`` is of another kind, or the row is longer than `capacity`; nothing has changed then.
        """
        if self._kind() != source._kind():
            raise ValueError(
                f"a {type(self).__name__} takes rows of caches of its own policy, settings, dtype and sizes, "
                f"got a {type(source).__name__} that differs; make it with empty_like()"
            )
        length = source._row_lens[source_row]
        self._require_room(0, length)
        if source is not self or row != source_row:
            self._copy_row(row, cast("Self", source), source_row, length)

    def move_row(self, source: int, target: int) -> None:
        """Make ``target`` a copy of ``source`` and ``source`` empty."""
        if source != target:
            self.take_row(target, self, source)
            self.clear_row(source)

    def clear_row(self, row: int, *, wipe: bool = False) -> None:
        """Forget all that a row holds and what `begin` was given; its memory stays allocated, for whoever comes next.

        ``wipe``: overwrite what the row has stored with zeros. Needed once a row was given a number that is not finite:
        what a mask hides is multiplied by 0, and must be finite for that.
        """
        self._empty(row)
        if wipe:
            self._wipe(row)

    def reset(self) -> None:
        """Forget everything, a pass that was broken off too; memory stays allocated."""
        self._num_appends = [0] * self.num_layers
        for row in range(self.num_rows):
            self._empty(row)

    def crop(self, length: int) -> None:
        """Forget all positions from ``length`` on.

        Raises:
            ValueError: ``length`` is negative or beyond `length`, or a row that is cut no longer holds the position
                before ``length``; nothing has changed then.
        """
        self._require_cut(length)
        for row, row_len in enumerate(self._row_lens):
            if length < row_len:
                self._cut(row, length)

    def clone_prefix(self, length: int, capacity: int | None = None) -> Self:
        """An independent cache with copies of the first ``length`` positions of every row, as far as they are held.

        Raises:
            ValueError: as `crop`, or ``capacity`` is less than that.
        """
        self._require_cut(length)
        clone = self.empty_like(self.num_rows, capacity)
        clone._require_room(0, length)
        for row, row_len in enumerate(self._row_lens):
            clone._copy_row(row, self, row, min(length, row_len))
        return clone

    def empty_like(self, num_rows: int, capacity: int | None = None) -> Self:
        """An empty cache of the same policy, settings and device, with other rows and, if given, another capacity."""
        return type(self)(
            self.num_layers,
            num_rows,
            self.num_heads,
            self.head_dim,
            self.capacity if capacity is None else capacity,
            dtype=self.dtype,
            device=self.device,
            **self._settings(),
        )

    @abc.abstractmethod
    def check_integrity(self) -> None:
        """Raise RuntimeError if a layer missed an append or a stored value is not finite."""

    @abc.abstractmethod
    def _allocate(self) -> None:
        """Make the storage of a new cache, whose sizes are set."""

    @abc.abstractmethod
    def _copy_row(self, row: int, source: Self, source_row: int, length: int) -> None:
        """Make ``row`` a copy of the first ``length`` positions of another row, which hold the last of these.

        ``source`` fits, as in `take_row`, and ``length``, as in `crop`. Not the row itself.
        """

    @abc.abstractmethod
    def _empty(self, row: int) -> None:
        """Forget all that a row holds, and what `begin` was given."""

    @abc.abstractmethod
    def _wipe(self, row: int) -> None:
        """Overwrite with zeros what an empty row has stored and layers may come to see."""

    @abc.abstractmethod
    def _cut(self, row: int, length: int) -> None:
        """Forget the positions of a row from ``length`` on, of which it has some."""

    def _advance(self, new_len: int, rows: slice) -> list[int]:
        """Count ``new_len`` more positions of ``rows``, the pass under way from now on; returns where each row was."""
        rows = slice(*rows.indices(self.num_rows)[:2])
        starts = self._row_lens[rows]
        self._require_room(max(starts), new_len)
        self._rows = rows
        self._row_lens[rows] = [start + new_len for start in starts]
        return starts

    def _settings(self) -> dict[str, Any]:
        """Arguments that make another cache of this policy behave as this one."""
        return {}

    def _kind(self) -> tuple[object, ...]:
        """What two caches have in common whose rows are alike."""
        return type(self), self.num_layers, self.num_heads, self.head_dim, self.dtype, *self._settings().items()

    def _require_room(self, length: int, new_len: int) -> None:
        if length + new_len > self.capacity:
            raise ValueError(
                f"key-value cache is full: {length} + {new_len} positions, capacity {self.capacity}; "
                "allocate a larger capacity or lower max_new_tokens"
            )

    def _require_cut(self, length: int) -> None:
        """Raise ValueError as `crop`."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot keep {length} positions of a cache that holds {self.length}")
        for row, row_len in enumerate(self._row_lens):
            if 0 < length < row_len and length - 1 not in self.held(row):
                raise ValueError(f"row {row} no longer holds position {length - 1}, it cannot be cut behind it")

    def _require_row(self, row: int, start: int, end: int) -> None:
        if not 0 <= start <= end <= self._row_lens[row]:
            raise ValueError(f"row {row} holds {self._row_lens[row]} positions, not {start} to {end}")


def position_mask(query_positions: Tensor, key_positions: Tensor) -> Tensor:
    """Causal mask from absolute positions, True where a query may look.

    (rows, queries) and (keys,) or (rows, keys) to (rows, 1, queries, keys); the 1 is for the heads. Where heads keep
    positions of their own, (rows, heads, keys), to (rows, heads, queries, keys).
    """
    if key_positions.ndim == 3:
        return key_positions[:, :, None] <= query_positions[..., None, :, None]
    return (key_positions[..., None, :] <= query_positions[..., None])[:, None]


def require_chain(segments: tuple[Segment, ...]) -> int:
    """Length of segments that follow one another from position 0; raises ValueError if they do not."""
    end = 0
    for segment in segments:
        if segment.start != end:
            raise ValueError(f"a segment starts at position {segment.start}, expected {end}: segments must be in order")
        end = segment.end
    return end


def require_equal_appends(num_appends: Sequence[int]) -> None:
    """Raise RuntimeError when a layer missed an append."""
    if len(set(num_appends)) != 1:
        raise RuntimeError(f"layers of the cache were appended to unequally often: {num_appends}")


def require_finite(keys: Tensor, values: Tensor) -> None:
    """Raise RuntimeError when a stored key or value is not finite."""
    for name, part in (("key", keys), ("value", values)):
        if not torch.isfinite(part).all():
            raise RuntimeError(f"the cache holds a {name} that is not finite")
