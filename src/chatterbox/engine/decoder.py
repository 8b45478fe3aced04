"""The contract between the engine and what remembers the past of its rows, and rows in a key-value cache.

Owns: the interface `RowDecoder`; the calls of a cache that a pass is made of, in their order. Does not know: sampling,
requests, which rows are whose, who allocated the cache.

A row is one sequence. Rows are numbered from 0; those that take part in a decode step are the first ones, which the
engine sees to. A decoder remembers a row in a key-value cache (`CachedDecoder`), in rows of a pool (`row_pool`), or not
at all, and then computes everything anew at every step (`uncached`).
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from chatterbox.kvcache import KVCache, Segment
from chatterbox.models.t3.attention import HeadReader
from chatterbox.models.t3.t3 import T3

# Readers of the requests at some places; their conditional rows in the pass, None where these are the rows themselves.
MakeReaders = Callable[[slice, Tensor | None], Sequence[HeadReader]]


class NoRoomError(RuntimeError):
    """Memory for rows is used up for now: another request has to end, or to give its rows back, first."""


@dataclass(frozen=True)
class RowStart:
    """How a row begins: behind what segments, and which absolute positions must stay where a policy forgets some."""

    segments: Sequence[Segment] = ()
    pinned: tuple[range, ...] = ()
    is_conditional: bool = True


class RowDecoder(abc.ABC):
    """Rows of sequences that T3's backbone continues. Not for several threads at once."""

    batch_invariant: bool = False  # whether a row's bits are those that it has alone

    @property
    @abc.abstractmethod
    def num_rows(self) -> int:
        """Rows there can be at once."""

    @property
    def step_shape(self) -> Hashable | None:
        """What the shapes of the step under way depend on beside its rows; None: it cannot be captured in a graph."""
        return None

    @property
    def memory_id(self) -> Hashable:
        """Another one once rows have moved to other memory: graphs of before are worthless."""
        return None

    @property
    def nbytes(self) -> int:
        """Bytes held for rows, used or not."""
        return 0

    def release(self) -> None:  # noqa: B027
        """Give memory back that nobody uses; there must be nobody in the rows."""

    @abc.abstractmethod
    def require(self, num_rows: int, num_new: int, kept_len: int, prompt_len: int, limit: int) -> None:
        """See to room for a request that joins.

        Args:
            num_rows: in use by others.
            num_new: rows of the request.
            kept_len: positions of its rows that are there and stay.
            prompt_len: positions that come before its first decoded token.
            limit: tokens that it may decode.

        Raises:
            ValueError: there never can be; the message says what to change.
            NoRoomError: there is none at present.
        """

    def require_pinned(self, *pinned: range) -> None:  # noqa: B027
        """Raise ValueError if a row never could keep these positions and take a step."""

    def require_step(self, num_rows: int, num_steps: int) -> None:  # noqa: B027
        """See to room for steps of the first ``num_rows`` rows. Raises NoRoomError; nothing has changed then."""

    @abc.abstractmethod
    def begin(self, row: int, start: RowStart, kept_len: int | None = None) -> None:
        """Make ``row`` hold what a request starts from; with ``kept_len`` it goes on behind so many of its own.

        Raises:
            ValueError: what is pinned does not fit.
        """

    @abc.abstractmethod
    def length(self, row: int) -> int:
        """Positions that a row has had."""

    @abc.abstractmethod
    def extend(
        self, embeds: Tensor, rows: Sequence[int], readers: Sequence[HeadReader] = (), tokens: Tensor | None = None
    ) -> Tensor:
        """Run ``embeds`` (rows, T, hidden) behind what ``rows``, neighbours, hold; hidden state (rows, hidden) of the
        last. ``tokens``: (T,) speech tokens that they stand for, if they are such."""

    def reserve(self, num_rows: int) -> None:  # noqa: B027
        """What the host has to do for the next `decode` of the first ``num_rows`` rows."""

    @abc.abstractmethod
    def decode(
        self, embeds: Tensor, tokens: Tensor, spans: Sequence[Sequence[int]], make_readers: MakeReaders
    ) -> Tensor:
        """One position more for the first rows, by device tensors alone where there is a `step_shape`.

        Args:
            embeds: (rows, 1, hidden), behind `reserve`.
            tokens: (rows, 1), the speech tokens that they stand for.
            spans: rows of each request.
            make_readers: for requests by place, and their conditional rows in the pass.

        Returns:
            (rows, hidden), the hidden states.
        """

    @abc.abstractmethod
    def move_row(self, source: int, target: int) -> None:
        """Make ``target`` what ``source`` is, and ``source`` empty."""

    @abc.abstractmethod
    def clear_row(self, row: int, *, wipe: bool = False) -> None:
        """Forget a row. ``wipe``: what it held was not finite, and must not stay in memory either."""


def row_order(rows: Sequence[int]) -> list[int]:
    """Places in ``rows`` by ascending row; the rows must be neighbours."""
    order = sorted(range(len(rows)), key=rows.__getitem__)
    assert [rows[i] for i in order] == list(range(min(rows), min(rows) + len(rows))), (
        "rows of a pass must be neighbours"
    )
    return order


def in_order(x: Tensor, order: Sequence[int]) -> Tensor:
    """Rows of ``x`` in ``order``; ``x`` itself where that is how they are."""
    return x if list(order) == list(range(len(order))) else x[torch.tensor(order, device=x.device)]


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


class UncachedDecoder(RowDecoder):
    """`RowDecoder` that remembers nothing but what went in."""

    def __init__(self, t3: T3, num_rows: int = 1024, *, batch_invariant: bool = False) -> None:
        self._t3, self._num_rows, self.batch_invariant = t3, num_rows, batch_invariant
        self._inputs: dict[int, Tensor] = {}  # (1, T, hidden) by row

    @property
    def num_rows(self) -> int:
        return self._num_rows

    @property
    def nbytes(self) -> int:
        return sum(inputs.nbytes for inputs in list(self._inputs.values()))  # others ask

    def require(self, num_rows: int, num_new: int, kept_len: int, prompt_len: int, limit: int) -> None:
        if num_rows + num_new > self._num_rows:
            raise ValueError(f"{self._num_rows} rows, {num_rows} in use, and the request needs {num_new}")

    def begin(self, row: int, start: RowStart, kept_len: int | None = None) -> None:
        assert not start.segments and kept_len is None, "without a cache a row begins with nothing"
        self._inputs.pop(row, None)

    def length(self, row: int) -> int:
        return self._inputs[row].shape[1] if row in self._inputs else 0

    def extend(
        self, embeds: Tensor, rows: Sequence[int], readers: Sequence[HeadReader] = (), tokens: Tensor | None = None
    ) -> Tensor:
        for row, new in zip(rows, embeds, strict=True):
            past = self._inputs.get(row, new[None, :0])
            self._inputs[row] = torch.cat([past, new[None]], dim=1)
        inputs = torch.cat([self._inputs[row] for row in rows])
        hidden: Tensor = self._t3.tfmr(inputs, readers=readers, batch_invariant=self.batch_invariant)
        return hidden[:, -1]

    def decode(
        self, embeds: Tensor, tokens: Tensor, spans: Sequence[Sequence[int]], make_readers: MakeReaders
    ) -> Tensor:
        hidden: dict[int, Tensor] = {}
        for place, rows in enumerate(spans):
            readers = make_readers(
                slice(place, place + 1), torch.zeros(len(spans), dtype=torch.long, device=embeds.device)
            )
            hidden |= zip(rows, self.extend(embeds[list(rows)], rows, readers), strict=True)
        return torch.stack([hidden[row] for row in range(len(hidden))])

    def move_row(self, source: int, target: int) -> None:
        self._inputs[target] = self._inputs.pop(source)

    def clear_row(self, row: int, *, wipe: bool = False) -> None:
        self._inputs.pop(row, None)
