"""Exact means exact: 200 random requests draw the oracle's tokens on every way through the caches, in float32.

The oracle is ``use_cache=False``: the whole sequence anew at every step. Every test shows that the cache was used.
"""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest

from chatterbox.generation.decode import DecodeEngine, decode, generate, stream
from chatterbox.generation.prefix import PrefixSource
from chatterbox.generation.requests import DecodeRequest, allocate_cache, required_capacity
from chatterbox.kvcache.disk import DiskTier
from chatterbox.kvcache.manager import GlobalKVCacheManager
from chatterbox.models.t3 import T3
from tests.unit.small import SMALL, decode_together, make_request

NUM_CASES, NUM_VOICES = 200, 12
POSITION = 2 * SMALL.backbone.num_layers * SMALL.backbone.num_heads * SMALL.backbone.head_dim * 4  # bytes

VOICES = [make_request(seed).t3_cond for seed in range(NUM_VOICES)]
CASES = [dataclasses.replace(make_request(100 + i), t3_cond=VOICES[i % NUM_VOICES]) for i in range(NUM_CASES)]


@pytest.fixture(scope="module")
def oracle(t3: T3) -> list[list[int]]:
    return [generate(t3, request, use_cache=False).tolist() for request in CASES]


def shuffled(seed: int) -> list[int]:
    return random.Random(seed).sample(range(NUM_CASES), NUM_CASES)


def through(t3: T3, request: DecodeRequest, source: PrefixSource) -> list[int]:
    return list(stream(t3, request, prefixes=source))


@pytest.mark.parametrize("policy", ["static", "dynamic"])
def test_cached(t3: T3, oracle: list[list[int]], policy: str) -> None:
    for request, expected in zip(CASES, oracle, strict=True):
        tokens, cache = decode(t3, request, cache_policy=policy)
        assert tokens.tolist() == expected
        assert cache.length == required_capacity(t3, request) - request.max_new_tokens + len(expected) - 1


def test_batched(t3: T3, oracle: list[list[int]]) -> None:
    """Sixteen rows, kept as full as the next request allows."""
    engine = DecodeEngine(t3, allocate_cache(t3, 16, max(required_capacity(t3, request) for request in CASES)))
    drawn, num_steps = decode_together(engine, CASES, 16)
    assert drawn == oracle
    assert num_steps < sum(map(len, oracle)) / 6  # they did run together


def test_prefix_shared(t3: T3, oracle: list[list[int]]) -> None:
    source = PrefixSource(t3, GlobalKVCacheManager(budget_bytes=2**28))
    for place in shuffled(0):
        assert through(t3, CASES[place], source) == oracle[place]
    computed = source.manager.stats()["tokens_computed"]
    assert source.manager.hit_rate > 0.5  # voices and beginnings of texts
    for place in shuffled(1):
        assert through(t3, CASES[place], source) == oracle[place]
    assert source.manager.stats()["tokens_computed"] == computed  # all was known
    source.manager.check_integrity()


def test_evicted_and_refilled(t3: T3, oracle: list[list[int]]) -> None:
    source = PrefixSource(t3, GlobalKVCacheManager(budget_bytes=150 * POSITION))
    evictions = 0
    for repeat in range(2):
        for place in shuffled(repeat):
            assert through(t3, CASES[place], source) == oracle[place]
        stats = source.manager.stats()
        assert stats["evictions"] - evictions >= NUM_CASES / 2 and stats["hits"] > NUM_CASES / 2
        evictions = stats["evictions"]
    source.manager.check_integrity()


def test_restored_from_host_memory(t3: T3, oracle: list[list[int]]) -> None:
    source = PrefixSource(t3, GlobalKVCacheManager(budget_bytes=60 * POSITION, host_bytes=2**28))
    for place in shuffled(0):
        assert through(t3, CASES[place], source) == oracle[place]
    before = source.manager.stats()
    for place in shuffled(1):
        assert through(t3, CASES[place], source) == oracle[place]
    stats = source.manager.stats()
    assert stats["promotions"] - before["promotions"] >= NUM_CASES
    assert (stats["evictions"], stats["tokens_computed"]) == (0, before["tokens_computed"])
    source.manager.check_integrity()


def test_restored_from_disk(t3: T3, oracle: list[list[int]], tmp_path: Path) -> None:
    disk = DiskTier(tmp_path)
    source = PrefixSource(t3, GlobalKVCacheManager(budget_bytes=2**28, disk=disk))
    for request in CASES:
        source.acquire(request).release()
    for request, expected in zip(CASES, oracle, strict=True):
        restarted = PrefixSource(t3, GlobalKVCacheManager(budget_bytes=2**28, disk=disk))
        assert through(t3, request, restarted) == expected
        stats = restarted.manager.stats()
        assert stats["disk_hits"] >= 1 and stats["tokens_computed"] == 0
