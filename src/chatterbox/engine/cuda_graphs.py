"""A decode step as a CUDA graph: one launch where eager execution makes some hundreds.

Owns: when a step is captured, replayed or run eagerly, and the buffers that keep its addresses. Does not know: what a
step computes; it must work in place on the state it was given, by device tensors alone.

A graph replays the same operations on the same memory. So the state of a batch lives in buffers that stay, one set per
shape of it, and a graph is made per such shape and per length that the cache lets its layers see.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable
from typing import Any

import torch

from chatterbox.engine.batch_state import BatchState

logger = logging.getLogger(__name__)

Step = Callable[[], None]
Capture = Callable[[Step], Step]


class CudaCapture:
    """Makes CUDA graphs, which share one pool of memory: no two of them run at once."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, step: Step) -> Step:
        """``step`` as a CUDA graph. Nothing is computed yet. Raises RuntimeError where it cannot be captured."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on launching work.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            step()
        return graph.replay


class StepGraphs:
    """Graphs of one engine. The first step of a kind runs eagerly, which warms libraries up; the second is captured."""

    def __init__(self, capture: Capture | None = None) -> None:
        """``capture``: None is CUDA's."""
        self._capture = CudaCapture() if capture is None else capture
        self._memory_id: Hashable = None
        self._states: dict[Hashable, BatchState] = {}
        self._graphs: dict[Hashable, Step | None] = {}  # None: has run once
        self._works = True

    @property
    def num_captured(self) -> int:
        return sum(graph is not None for graph in self._graphs.values())

    def adopt(self, state: BatchState) -> BatchState:
        """``state`` in memory that graphs of its shape know: the caller goes on with what is returned."""
        kept = self._states.setdefault(state.shape, state)
        if kept is not state:
            given = state.named_tensors()
            for name, tensor in kept.named_tensors().items():
                tensor.copy_(given[name])
        return kept

    def run(self, state: BatchState, cache_shape: Hashable, step: Step, *, memory_id: Hashable = None) -> None:
        """Run ``step`` on ``state``, which `adopt` returned.

        ``cache_shape``: what its shapes depend on besides. ``memory_id``: of the cache's memory; where it is another
        one, all graphs are forgotten.
        """
        if memory_id != self._memory_id:
            self._graphs.clear()
            self._memory_id = memory_id
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
