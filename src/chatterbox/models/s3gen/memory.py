"""What the flow's estimator knows of frames that it has integrated: for later frames it need not integrate them again.

Owns: what is kept of each Euler step, and the passes that use it and add to it. Does not know: which frames are worth
keeping, where memories live, layers.

At each Euler step a frame needs of those before it the keys and values of every attention layer and, of every causal
convolution, the last input frames. A pass meets its layers in an order that does not change, so both are lists in that
order. Rows are the solver's: at a step with guidance two, with the conditions and without.

It is an approximation, as attention looks everywhere: frames that are remembered no longer see those that come later.
Beside that 16 bits a number change nothing, so float32 is remembered in as many. What is remembered of a voice's prompt
serves every stream, so nothing here is written to.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter

import torch
import torch.nn.functional as F
from torch import Tensor

from chatterbox.kvcache.base import Segment
from chatterbox.models.s3gen.attention import Place

NUM_TAIL_FRAMES = 2  # of every convolution: they see two frames back
LARGEST = torch.finfo(torch.float16).max


def remembered_dtype(dtype: torch.dtype) -> torch.dtype:
    """What an estimator of ``dtype`` remembers in."""
    return torch.float16 if dtype == torch.float32 else dtype


def _remembered(x: Tensor) -> Tensor:
    """A copy: queries, keys and values of all new frames lie in one piece."""
    dtype = remembered_dtype(x.dtype)
    return x.clone() if dtype == x.dtype else x.clamp(-LARGEST, LARGEST).to(dtype)


@dataclass(frozen=True)
class StepMemory:
    """Of one Euler step, one entry for each layer."""

    keys: tuple[Tensor, ...]  # (R, H, F, d)
    values: tuple[Tensor, ...]  # (R, H, F, d)
    tails: tuple[Tensor, ...]  # (R, C, NUM_TAIL_FRAMES), inputs of the convolutions at the last frames

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
class MemoryShape:
    """Of memories of one estimator, whatever they are of: what a `Segment` of one is made of."""

    num_rows: tuple[int, ...]  # at each step
    num_layers: int  # of attention
    num_heads: int
    head_dim: int
    tail_widths: tuple[int, ...]  # channels of each convolution, times the frames of its tail

    @property
    def num_tail_positions(self) -> int:
        """Positions behind the frames that hold the tails."""
        numbers = sum(self.num_rows) * sum(self.tail_widths)
        return -(-numbers // (self.num_stored_layers * self.num_heads * self.head_dim))

    @property
    def num_stored_layers(self) -> int:
        """Of a segment, which has no steps and rows."""
        return self.num_layers * sum(self.num_rows)


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


def to_segment(memory: FlowMemory, shape: MemoryShape) -> Segment:
    """A memory in the form of T3's prefixes, as a copy: steps, layers and rows are layers, frames are positions.

    The tails stand in the values of the last positions: a codec scales those one by one.
    """
    keys, values = (
        torch.cat([layer for step in memory.steps for layer in side(step)])  # (layers and rows of all steps, H, F, d)
        for side in (attrgetter("keys"), attrgetter("values"))
    )
    flat = torch.cat([tail.flatten() for step in memory.steps for tail in step.tails])
    behind = keys.new_zeros(*keys.shape[:2], shape.num_tail_positions, keys.shape[3])
    tails = F.pad(flat, (0, behind.numel() - flat.numel())).view_as(behind)
    return Segment(torch.cat([keys, behind], dim=2), torch.cat([values, tails], dim=2), 0)


def from_segment(segment: Segment, shape: MemoryShape) -> FlowMemory:
    """What `to_segment` was given; keys and values are views of ``segment``."""
    num_frames = len(segment) - shape.num_tail_positions
    layers = [num_rows for num_rows in shape.num_rows for _ in range(shape.num_layers)]
    keys, values = (iter(part[:, :, :num_frames].split(layers)) for part in (segment.keys, segment.values))
    sizes = [(num_rows, width) for num_rows in shape.num_rows for width in shape.tail_widths]
    flat = segment.values[:, :, num_frames:].flatten()[: sum(map(math.prod, sizes))]
    parts = zip(flat.split([*map(math.prod, sizes)]), sizes, strict=True)
    tails = (part.view(num_rows, -1, NUM_TAIL_FRAMES) for part, (num_rows, _) in parts)

    def following(parts: Iterator[Tensor], count: int) -> tuple[Tensor, ...]:
        return tuple(itertools.islice(parts, count))

    num_layers, num_tails = shape.num_layers, len(shape.tail_widths)
    return FlowMemory(
        tuple(
            StepMemory(following(keys, num_layers), following(values, num_layers), following(tails, num_tails))
            for _ in shape.num_rows
        )
    )


class StepPass:
    """The estimator's way over new frames at one Euler step; its layers ask it for what was before them."""

    def __init__(self, past: Sequence[StepMemory], keep: int) -> None:
        """``past``: memories in the order of their frames. ``keep``: of the new frames, how many are remembered."""
        self._keep = keep
        self._past_keys = zip(*(step.keys for step in past), strict=True)
        self._past_values = zip(*(step.values for step in past), strict=True)
        self._past_tails: Iterator[Tensor] | None = iter(past[-1].tails) if past else None
        self._kept: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])

    def places(self, k: Tensor, v: Tensor) -> list[Place]:
        """Where keys and values of all frames are, for those (R, H, T, d) of the new ones."""
        keys, values, _ = self._kept
        if self._keep:
            keys.append(_remembered(k[:, :, : self._keep]))
            values.append(_remembered(v[:, :, : self._keep]))
        past = zip(next(self._past_keys, ()), next(self._past_values, ()), strict=True)
        return [*((its_k.to(k.dtype), its_v.to(v.dtype)) for its_k, its_v in past), (k, v)]

    def continued(self, x: Tensor) -> Tensor:
        """``x`` (R, C, T) behind the `NUM_TAIL_FRAMES` that a causal convolution of it needs."""
        if self._past_tails is None:
            whole = F.pad(x, (NUM_TAIL_FRAMES, 0))
        else:
            before = next(self._past_tails).to(x.dtype)
            whole = torch.cat([before.expand(x.shape[0], -1, -1), x], dim=2)
        if self._keep:
            self._kept[2].append(_remembered(whole[..., self._keep : self._keep + NUM_TAIL_FRAMES]))
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
