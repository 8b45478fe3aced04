"""Exact means exact: 200 random requests decode the uncached decoder's tokens on every way through the caches, in
float32.

The uncached decoder is ``use_cache=False``: the whole sequence anew at every step. Every test shows that the cache was
used.
"""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import NamedTuple

import pytest

from chatterbox.engine.decode import decode, decoder_on, generate
from chatterbox.engine.engine import DecodeEngine
from chatterbox.engine.prefill import Prefiller
from chatterbox.engine.request import Request, allocate_cache, required_capacity
from chatterbox.kvcache.prefix.disk import DiskTier
from chatterbox.kvcache.prefix.manager import GlobalKVCacheManager
from chatterbox.models.t3 import T3
from tests.support.decoding import stream
from tests.support.small import SMALL, SMALL_GPT2, build, decode_together, make_request

NUM_CASES, NUM_VOICES = 200, 12
POSITION = 2 * SMALL.backbone.num_layers * SMALL.backbone.num_heads * SMALL.backbone.head_dim * 4  # bytes, of both


class Known(NamedTuple):
    """A model, requests, and what the uncached decoder gives for them."""

    t3: T3
    cases: list[Request]
    uncached: list[list[int]]


@pytest.fixture(scope="module", params=[SMALL, SMALL_GPT2], ids=["llama", "gpt2"])
def known(request: pytest.FixtureRequest) -> Known:
    t3 = build(request.param)
    voices = [make_request(seed).t3_cond for seed in range(NUM_VOICES)]
    requests = [make_request(100 + i, t3.hp) for i in range(NUM_CASES)]
    cases = [dataclasses.replace(one, t3_cond=voices[i % NUM_VOICES]) for i, one in enumerate(requests)]
    return Known(t3, cases, [generate(t3, one, use_cache=False).tolist() for one in cases])


def shuffled(seed: int) -> list[int]:
    return random.Random(seed).sample(range(NUM_CASES), NUM_CASES)


def through(t3: T3, request: Request, source: Prefiller) -> list[int]:
    return list(stream(t3, request, prefixes=source))


@pytest.mark.parametrize("policy", ["static", "dynamic"])
def test_cached(known: Known, policy: str) -> None:
    for request, expected in zip(known.cases, known.uncached, strict=True):
        tokens, cache = decode(known.t3, request, cache_policy=policy)
        assert tokens.tolist() == expected
        assert cache.length == required_capacity(known.t3, request) - request.max_new_tokens + len(expected) - 1


def test_batched(known: Known) -> None:
    """Sixteen rows, kept as full as the next request allows."""
    capacity = max(required_capacity(known.t3, request) for request in known.cases)
    engine = DecodeEngine(known.t3, decoder_on(known.t3, allocate_cache(known.t3, 16, capacity)))
    decoded, num_steps = decode_together(engine, known.cases, 16)
    assert decoded == known.uncached
    assert num_steps < sum(map(len, known.uncached)) / 6  # they did run together


def test_prefix_shared(known: Known) -> None:
    source = Prefiller(known.t3, GlobalKVCacheManager(budget_bytes=2**28))
    for place in shuffled(0):
        assert through(known.t3, known.cases[place], source) == known.uncached[place]
    computed = source.manager.stats()["tokens_computed"]
    assert source.manager.hit_rate > 0.5  # voices and prefixes of texts
    for place in shuffled(1):
        assert through(known.t3, known.cases[place], source) == known.uncached[place]
    assert source.manager.stats()["tokens_computed"] == computed  # all was known
    source.manager.check_integrity()


def test_evicted_and_refilled(known: Known) -> None:
    source = Prefiller(known.t3, GlobalKVCacheManager(budget_bytes=150 * POSITION))
    evictions = 0
    for repeat in range(2):
        for place in shuffled(repeat):
            assert through(known.t3, known.cases[place], source) == known.uncached[place]
        stats = source.manager.stats()
        assert stats["evictions"] - evictions >= NUM_CASES / 2 and stats["hits"] > NUM_CASES / 2
        evictions = stats["evictions"]
    source.manager.check_integrity()


def test_restored_from_host_memory(known: Known) -> None:
    source = Prefiller(known.t3, GlobalKVCacheManager(budget_bytes=60 * POSITION, host_bytes=2**28))
    for place in shuffled(0):
        assert through(known.t3, known.cases[place], source) == known.uncached[place]
    before = source.manager.stats()
    for place in shuffled(1):
        assert through(known.t3, known.cases[place], source) == known.uncached[place]
    stats = source.manager.stats()
    assert stats["promotions"] - before["promotions"] >= NUM_CASES
    assert (stats["evictions"], stats["tokens_computed"]) == (0, before["tokens_computed"])
    source.manager.check_integrity()


def test_restored_from_disk(known: Known, tmp_path: Path) -> None:
    disk = DiskTier(tmp_path)
    source = Prefiller(known.t3, GlobalKVCacheManager(budget_bytes=2**28, disk=disk))
    for request in known.cases:
        source.acquire(request).release()
    for request, expected in zip(known.cases, known.uncached, strict=True):
        restarted = Prefiller(known.t3, GlobalKVCacheManager(budget_bytes=2**28, disk=disk))
        assert through(known.t3, request, restarted) == expected
        stats = restarted.manager.stats()
        assert stats["disk_hits"] >= 1 and stats["tokens_computed"] == 0
