"""What a guard is: for each request and step, whether its utterance must not end yet, and whether it must.

Owns: the contract. Does not know: any rule, requests that asked for another guard.
"""

from __future__ import annotations

import abc
import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from chatterbox.models.config import T3Config
from chatterbox.models.t3.attention import HeadReader

if TYPE_CHECKING:
    from typing_extensions import Self  # typing has it from Python 3.11 on

ALL = slice(None)


@dataclass
class Guard(abc.ABC):
    """State of the N requests of a batch that asked for this guard: every field is a tensor with a row for each.

    A new guard is a subclass and a line in `chatterbox.engine.guards.GUARDS`. Its state changes in place and by
    tensors alone, so that a step can be captured in a CUDA graph.
    """

    # True: a stop token that must not be is taken out of the logits, before the sampling filters, which changes what
    # else may be decoded. False: it is replaced only if it is decoded, and nothing else changes.
    masks_logits: ClassVar[bool] = False

    places: Tensor  # (N,), ascending: which of all requests of the batch these are

    @classmethod
    def check(cls, hp: T3Config) -> None:
        """Raise ValueError if a model has not got what this guard looks at."""
        return

    @classmethod
    def max_tokens(cls, hp: T3Config, text_len: int) -> int | None:
        """Most speech tokens for a text of ``text_len`` tokens; None is no bound."""
        return None

    @classmethod
    def trim(cls, tokens: Tensor) -> Tensor:
        """What of an utterance's tokens (T,) is worth hearing."""
        return tokens

    @classmethod
    @abc.abstractmethod
    def start(cls, text_start: int, text_len: int, device: torch.device | str = "cpu") -> Self:
        """State of one request before its first token; its text, marks included, begins at position ``text_start``."""

    def reader(self, heads: tuple[tuple[int, int], ...], rows: Tensor, part: slice = ALL) -> HeadReader | None:
        """What brings the requests ``part`` of these the attention that they look at, if they do.

        ``heads``: (layer, head) of the model's alignment heads. ``rows``: of all requests of the batch, each one's row
        in the pass.
        """
        return None

    @abc.abstractmethod
    def look(self, last: Tensor, num_decoded: Tensor) -> tuple[Tensor, Tensor]:
        """Take a step in; changes the state.

        Args:
            last: (N, 1), the token decoded before, the start token at first.
            num_decoded: (N, 1), tokens decoded so far.

        Returns:
            For each request (N, 1), whether it must not end now, and whether it must.
        """

    def tensors(self) -> dict[str, Tensor]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def join(self, other: Self) -> Self:
        """Both states' requests, as a copy. Where rows differ in length, the shorter are padded with zeros."""

        def joined(one: Tensor, two: Tensor) -> Tensor:
            if one.ndim == 2:
                width = max(one.shape[1], two.shape[1])
                one, two = (F.pad(part, (0, width - part.shape[1])) for part in (one, two))
            return torch.cat([one, two])

        theirs = other.tensors()
        return type(self)(**{name: joined(tensor, theirs[name]) for name, tensor in self.tensors().items()})

    def select(self, keep: list[int]) -> Self:
        """A copy of the state of some requests."""
        return type(self)(**{name: tensor[keep] for name, tensor in self.tensors().items()})
