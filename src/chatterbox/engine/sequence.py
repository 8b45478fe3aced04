"""What an engine knows of a request that it serves, and what a step gives.

Owns: a request's rows, turns and limit while it is served. Does not know: steps (`engine`), who asks (`scheduler`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from chatterbox.engine.batch_state import SamplerState
from chatterbox.engine.request import Request, Turn


@dataclass(eq=False)
class DecodeSequence:
    """What a handle stands for: a request, and those before it that it continues."""

    handle: int
    turns: list[Turn]
    limit: int = 0  # tokens that the last turn may decode
    keeps_rows: bool = False
    rows: list[int] = field(default_factory=list)  # the conditional one first; none while it is parked
    fresh: Tensor | None = None  # logits (rows, V) behind its prefix, until its first token is decoded
    sampler: SamplerState | None = None  # while it is on hold or parked

    @property
    def request(self) -> Request:
        return self.turns[-1].request

    @property
    def num_decoded(self) -> int:
        return len(self.turns[-1].decoded)


@dataclass
class StepResult:
    """tokens: (handle, token) in the order they were decoded. ended, failed: handles that have left with that."""

    tokens: list[tuple[int, int]] = field(default_factory=list)
    ended: set[int] = field(default_factory=set)
    failed: dict[int, RuntimeError] = field(default_factory=dict)
