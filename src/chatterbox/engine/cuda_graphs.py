"""A decode step as a CUDA graph: one launch where eager execution makes some hundreds.

Owns: when a step is captured, replayed or run eagerly, and the buffers that keep its addresses. Does not know: what a
step computes; it must work in place on the state it was given, by device tensors alone.

A graph replays the same operations on the same memory. So the state of a batch lives in buffers that stay, one set per
shape of it, and a graph is made per such shape and per length that the cache lets its layers see.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from chatterbox.engine.guards import Guard
from chatterbox.engine.sampler import Knobs

logger = logging.getLogger(__name__)

Step = Callable[[], None]
Capture = Callable[[Step], Step]


@dataclass
class StepState:
    """What a step of N requests on R rows reads and writes on the device."""

    tokens: Tensor  # (N, 1), the last drawn
    num_drawn: Tensor  # (N, 1), the speech position of `tokens`: how many were drawn, or given before
    num_given: Tensor  # (N, 1), how many of them were given
    seen: Tensor  # (N, V) bool
    noise: Tensor  # (N, V), fresh Exp(1) before every step
    owners: Tensor  # (R,), the request of each row
    conditional: Tensor  # (N,), its first row
    unconditional: Tensor  # (N,), its last: the same one without guidance
    forced: Tensor  # (N, 1), 1 where a guard made the last drawn the stop token
    broken: Tensor  # (N, 1), 1 once the logits were not finite
    knobs: Knobs
    guards: dict[str, Guard] = field(default_factory=dict)  # by name, of those requests that asked for it

    def named_tensors(self) -> dict[str, Tensor]:
        named = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("knobs", "guards")}
        named |= {f"knobs.{f.name}": getattr(self.knobs, f.name) for f in dataclasses.fields(self.knobs)}
        for guard in self.guards:
            named |= {f"{guard}.{name}": tensor for name, tensor in self.guards[guard].tensors().items()}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    @property
    def shape(self) -> Hashable:
        """All that decides which operations a step is made of, but for the cache."""
        return tuple((name, tuple(tensor.shape), tensor.dtype) for name, tensor in self.named_tensors().items())


def cuda_capture(step: Step) -> Step:
    """``step`` as a CUDA graph. Nothing is computed yet. Raises RuntimeError where it cannot be captured."""
    graph = torch.cuda.CUDAGraph()
    # Other threads may go on launching work.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        step()
    return graph.replay


class StepGraphs:
    """Graphs of one engine. The first step of a kind runs eagerly, which warms libraries up; the second is captured."""

    def __init__(self, capture: Capture = cuda_capture) -> None:
        self._capture = capture
        self._states: dict[Hashable, StepState] = {}
        self._graphs: dict[Hashable, Step | None] = {}  # None: has run once
        self._works = True

    @property
    def num_captured(self) -> int:
        return sum(graph is not None for graph in self._graphs.values())

    def adopt(self, state: StepState) -> StepState:
        """``state`` in memory that graphs of its shape know: the caller goes on with what is returned."""
        kept = self._states.setdefault(state.shape, state)
        if kept is not state:
            given = state.named_tensors()
            for name, tensor in kept.named_tensors().items():
                tensor.copy_(given[name])
        return kept

    def run(self, state: StepState, cache_shape: Hashable, step: Step) -> None:
        """Run ``step`` on ``state``, which `adopt` returned. ``cache_shape``: what its shapes depend on besides."""
        key = (state.shape, cache_shape)
        if not self._works or key not in self._graphs:
            self._graphs[key] = None
            step()
            return
        graph = self._graphs[key]
        if graph is None:
            started = time.perf_counter()
            try:
                graph = self._graphs[key] = self._capture(step)
            except RuntimeError as error:
                self._works = False
                reason = str(error).partition("\n")[0]
                logger.warning("the decode step cannot be captured as a CUDA graph (%s); running it eagerly", reason)
                step()
                return
            logger.info(
                "decode step captured as a CUDA graph: %d rows, %s positions, %.0f ms",
                len(state.owners),
                cache_shape,
                1000 * (time.perf_counter() - started),
            )
        graph()
