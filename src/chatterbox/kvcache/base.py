"""The contract between the backbone and a key-value cache.

Owns: the `KVCache` interface. Does not know: models, sampling, where a cache's content came from.

Keys are stored after rotary embedding, so a cached key carries its position for good and positions are never
renumbered: `length` counts the positions the sequence has had, not the slots in use.
"""

from __future__ import annotations

import abc

from torch import Tensor


class KVCache(abc.ABC):
    """Keys and values of one or more rows, all layers. Shapes are (rows, heads, positions, head_dim)."""

    @property
    @abc.abstractmethod
    def length(self) -> int:
        """Logical length: the position that the next appended key gets."""

    @property
    @abc.abstractmethod
    def capacity(self) -> int:
        """Largest logical length this cache accepts."""

    @property
    @abc.abstractmethod
    def nbytes(self) -> int:
        """Bytes allocated for keys and values."""

    @abc.abstractmethod
    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Store new keys and values of one layer and return everything that layer may attend to. Mutates the cache.

        Args:
            layer: index of the layer; every layer is appended to once per step, in order.
            keys: (rows, heads, new, head_dim), rotary embedding applied.
            values: same shape.

        Returns:
            keys and values of shape (rows, heads, kept, head_dim), and the absolute position of each kept slot,
            (kept,). They may be views of the cache's memory: valid until the next call that mutates it, and never to
            be written to.

        Raises:
            ValueError: the sequence would outgrow `capacity`.
        """

    @abc.abstractmethod
    def reset(self) -> None:
        """Forget everything; memory stays allocated."""

    @abc.abstractmethod
    def crop(self, length: int) -> None:
        """Forget all positions from ``length`` on. Raises ValueError if ``length`` is negative or beyond `length`."""

    @abc.abstractmethod
    def clone_prefix(self, length: int, capacity: int | None = None) -> KVCache:
        """An independent cache that holds copies of the first ``length`` positions."""

    @abc.abstractmethod
    def check_integrity(self) -> None:
        """Raise RuntimeError if the layers disagree on their length or a stored value is not finite."""


def position_mask(query_positions: Tensor, key_positions: Tensor) -> Tensor:
    """Causal mask from absolute positions: (queries, keys), True where a query may look."""
    return key_positions[None, :] <= query_positions[:, None]


def require_room(length: int, new_len: int, capacity: int) -> None:
    """Raise ValueError when ``new_len`` more positions do not fit."""
    if length + new_len > capacity:
        raise ValueError(
            f"key-value cache is full: {length} + {new_len} positions, capacity {capacity}; "
            "allocate a larger capacity or lower max_new_tokens"
        )
