"""Rows without any cache: the whole sequence anew at every step. Slow, and what all else is checked against.

Owns: the inputs of each row so far. Does not know: keys and values.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from chatterbox.engine.decoder import MakeReaders, RowDecoder, RowStart
from chatterbox.models.t3.attention import HeadReader
from chatterbox.models.t3.t3 import T3


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
