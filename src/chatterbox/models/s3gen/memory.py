"""What the flow's estimator knows of frames that it has integrated: for later frames it need not integrate them again.

Owns: what is kept of each Euler step, and the passes that use it and add to it. Does not know: which frames are worth
keeping, where memories live, layers.

At each Euler step a frame needs of those before it the keys and values of every attention layer and, of every causal
convolution, the last input frames. A pass meets its layers in an order that does not change, so both are lists in that
order. Rows are the solver's: with guidance two, with the conditions and without.

It is an approximation, as attention looks everywhere: frames that are remembered no longer see those that come later.
What is remembered of a voice's prompt serves every stream, so nothing here is written to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class StepMemory:
    """Of one Euler step, one entry for each layer."""

    keys: tuple[Tensor, ...]  # (R, H, F, d)
    values: tuple[Tensor, ...]  # (R, H, F, d)
    tails: tuple[Tensor, ...]  # (R, C, kernel - 1), inputs of the convolutions at the last frames

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (*self.keys, *self.values, *self.tails))

    def last(self, num_frames: int) -> StepMemory:
        """Of so many frames at the end."""
        keys, values = (tuple(part[:, :, -num_frames:] for part in parts) for parts in (self.keys, self.values))
        return StepMemory(keys, values, self.tails)

    def followed_by(self, later: StepMemory) -> StepMemory:
        """Of these frames and ``later`` ones."""
        keys, values = (
            tuple(torch.cat(pair, dim=2) for pair in zip(*pairs, strict=True))
            for pairs in ((self.keys, later.keys), (self.values, later.values))
        )
        return StepMemory(keys, values, later.tails)


@dataclass(frozen=True)
class FlowMemory:
    """Of some frames in a row, one entry for each Euler step."""

    steps: tuple[StepMemory, ...]

    @property
    def num_frames(self) -> int:
        return self.steps[0].keys[0].shape[2]

    @property
    def nbytes(self) -> int:
        return sum(step.nbytes for step in self.steps)

    def last(self, num_frames: int) -> FlowMemory:
        """Of so many frames at the end."""
        return FlowMemory(tuple(step.last(num_frames) for step in self.steps))

    def followed_by(self, later: FlowMemory) -> FlowMemory:
        """Of these frames and ``later`` ones."""
        pairs = zip(self.steps, later.steps, strict=True)
        return FlowMemory(tuple(one.followed_by(other) for one, other in pairs))


class StepPass:
    """The estimator's way over new frames at one Euler step; its layers ask it for what was before them."""

    def __init__(self, past: Sequence[StepMemory], keep: int) -> None:
        """``past``: memories in the order of their frames. ``keep``: of the new frames, how many are remembered."""
        self._keep = keep
        self._past_keys = zip(*(step.keys for step in past), strict=True)
        self._past_values = zip(*(step.values for step in past), strict=True)
        self._past_tails: Iterator[Tensor] | None = iter(past[-1].tails) if past else None
        self._kept: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])

    def extended(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (R, H, F + T, d) of all frames, for those (R, H, T, d) of the new ones."""
        keys, values, _ = self._kept
        keys.append(k[:, :, : self._keep])
        values.append(v[:, :, : self._keep])
        before = next(self._past_keys, ()), next(self._past_values, ())
        whole = (torch.cat([*parts, new], dim=2) for parts, new in zip(before, (k, v), strict=True))
        return next(whole), next(whole)

    def continued(self, x: Tensor, kernel: int) -> Tensor:
        """``x`` (R, C, T) behind the ``kernel`` - 1 frames that a causal convolution of it needs."""
        num_before = kernel - 1
        if self._past_tails is None:
            whole = F.pad(x, (num_before, 0))
        else:
            whole = torch.cat([next(self._past_tails).expand(x.shape[0], -1, -1), x], dim=2)
        self._kept[2].append(whole[..., self._keep : self._keep + num_before].clone())
        return whole

    @property
    def kept(self) -> StepMemory:
        keys, values, tails = self._kept
        return StepMemory(tuple(keys), tuple(values), tuple(tails))


class FlowPass:
    """The solver's way over new frames: a pass for each Euler step."""

    def __init__(self, past: Sequence[FlowMemory] = (), *, keep: int) -> None:
        self._past, self._keep = past, keep
        self._passes: list[StepPass] = []

    def next_step(self) -> StepPass:
        number = len(self._passes)
        self._passes.append(StepPass([memory.steps[number] for memory in self._past], self._keep))
        return self._passes[-1]

    @property
    def kept(self) -> FlowMemory:
        """Of the ``keep`` first new frames, once the solver is through."""
        return FlowMemory(tuple(one.kept for one in self._passes))
