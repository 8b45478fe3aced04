"""Captured steps, on a CPU: a recorder stands in for CUDA's capture.

Like a graph it replays a fixed list of operations on fixed memory. What reads a Python number or a new tensor at every
step, where it should read a buffer, comes out wrong.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from chatterbox.engine.cuda_graphs import StepGraphs
from chatterbox.engine.decode import decoder_on, generate
from chatterbox.engine.engine import DecodeEngine
from chatterbox.engine.request import Request, allocate_cache, required_capacity
from chatterbox.models.config import T3Config
from chatterbox.models.t3 import T3
from tests.support.small import REQUESTS, SMALL, SMALL_GPT2, build, decode_together, make_request


class Recorder(TorchDispatchMode):
    """Runs and records operations; `replay` runs them again, each result into the memory it had."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            written = args[0]
            self.before.setdefault(id(written), (written, written.clone()))
        out = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, out))
        return out

    def undo(self) -> None:
        """CUDA's capture computes nothing, so neither must this one."""
        for written, value in reversed(self.before.values()):
            written.copy_(value)

    def replay(self) -> None:
        for func, args, kwargs, out in self.calls:
            again = func(*args, **kwargs)
            given = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
            for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.untyped_storage().data_ptr() not in given:
                    old.copy_(new)


def recorded(step):
    with Recorder() as recorder:
        step()
    recorder.undo()

    def replay() -> None:
        replay.count += 1
        recorder.replay()

    replay.count = 0
    REPLAYS.append(replay)
    return replay


REPLAYS: list = []


def run(
    t3: T3, graphs: StepGraphs, seed: int, stop_stride: int = 1, requests: Sequence[Request] = REQUESTS
) -> list[list[int]]:
    """Tokens of all ``requests`` through eight rows, joining in random order."""
    cache = allocate_cache(t3, 8, max(required_capacity(t3, request) for request in requests))
    cache.extent_step = 16  # several shapes in short requests
    engine = DecodeEngine(t3, decoder_on(t3, cache), graphs=graphs, stop_stride=stop_stride)
    order = random.Random(seed).sample(range(len(requests)), len(requests))
    return decode_together(engine, requests, 8, order)[0]


@pytest.mark.parametrize("hp", [SMALL, SMALL_GPT2], ids=["llama", "gpt2"])
@pytest.mark.parametrize("stop_stride", [1, 3])
def test_replayed_steps_decode_the_uncached_tokens(hp: T3Config, stop_stride: int) -> None:
    REPLAYS.clear()
    graphs, t3 = StepGraphs(capture=recorded), build(hp)
    requests = [make_request(seed, hp) for seed in range(24)]
    expected = [generate(t3, request, use_cache=False).tolist() for request in requests]
    assert run(t3, graphs, 0, stop_stride, requests) == expected
    assert graphs.num_captured == len(REPLAYS) > 3
    assert sum(replay.count for replay in REPLAYS) > 2 * len(REPLAYS)


def test_one_request_replays_all_but_a_few_steps(t3: T3) -> None:
    REPLAYS.clear()
    request = max(REQUESTS, key=lambda request: request.max_new_tokens)
    engine = DecodeEngine(t3, decoder_on(t3, allocate_cache(t3, 2, 100)), graphs=StepGraphs(capture=recorded))
    engine.join(request)
    decoded = [engine.step().tokens[0][1] for _ in range(request.max_new_tokens)]
    assert decoded == generate(t3, request, use_cache=False).tolist()
    # One token from the prefill, then for each of at most two shapes one eager step.
    assert sum(replay.count for replay in REPLAYS) >= request.max_new_tokens - 3


def test_a_step_that_cannot_be_captured_runs_eagerly(t3: T3, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(step):
        raise RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors ...")

    graphs = StepGraphs(capture=refuse)
    with caplog.at_level(logging.WARNING, logger="chatterbox.engine.cuda_graphs"):
        decoded = run(t3, graphs, 1)
    assert decoded == [generate(t3, request).tolist() for request in REQUESTS]
    assert graphs.num_captured == 0
    assert [record.getMessage() for record in caplog.records] == [
        "the decode step cannot be captured as a CUDA graph (operation not permitted when stream is capturing); "
        "running it eagerly"
    ]


def test_a_growing_cache_is_never_captured(t3: T3) -> None:
    graphs = StepGraphs(capture=lambda step: pytest.fail("captured"))
    engine = DecodeEngine(t3, decoder_on(t3, allocate_cache(t3, 2, 100, "dynamic")), graphs=graphs)
    engine.join(REQUESTS[0])
    while engine.num_requests:
        engine.step()
    assert graphs.num_captured == 0


def test_a_cpu_runs_eagerly_by_default(t3: T3) -> None:
    assert DecodeEngine(t3, decoder_on(t3, None))._graphs is None


@pytest.mark.gpu
def test_cuda_graphs_decode_the_eager_tokens(t3: T3) -> None:
    torch.manual_seed(0)
    on_gpu = T3(t3.hp).eval().cuda()
    request = max(REQUESTS, key=lambda request: request.max_new_tokens)
    graphs = StepGraphs()
    engine = DecodeEngine(on_gpu, decoder_on(on_gpu, allocate_cache(on_gpu, 2, 100)), graphs=graphs)
    engine.join(request)
    decoded = [engine.step().tokens[0][1] for _ in range(request.max_new_tokens)]
    assert decoded == generate(on_gpu, request, use_cache=False).tolist()
    assert graphs.num_captured >= 1
