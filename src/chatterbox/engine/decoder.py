"""The contract between the engine and what remembers the past of its rows.

Owns: the interface `RowDecoder`. Does not know: sampling, requests, which rows are whose.

A row is one sequence. Rows are numbered from 0; those that take part in a decode step are the first ones, which the
engine sees to. A decoder remembers a row in a key-value cache (`cached`), in rows of a pool (`row_pool`), or not at
all, and then computes everything anew at every step (`uncached`).
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from chatterbox.kvcache import Segment
from chatterbox.models.t3.attention import HeadReader

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
