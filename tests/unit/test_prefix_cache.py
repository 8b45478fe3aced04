"""The prefix tree, the manager around it, and T3's beginnings through both."""

from __future__ import annotations

import dataclasses
import logging
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from chatterbox.config import SamplingConfig
from chatterbox.generation.decode import generate, stream
from chatterbox.generation.prefix import PrefixSource
from chatterbox.kvcache import Segment
from chatterbox.kvcache.keys import content_hash, weights_fingerprint
from chatterbox.kvcache.manager import GlobalKVCacheManager
from chatterbox.kvcache.prefix import NO_TEXT, PrefixTree
from chatterbox.models.t3 import T3
from tests.unit.test_decode_engine import REQUESTS
from tests.unit.test_generation import SMALL

ROOT = 3  # positions of a voice's conditioning
WIDTH = 2 * 4 * 2 * 2 * 4  # bytes of a position: keys and values, float32, 2 layers, 2 heads, 4 wide


def made_of(voice: str, labels: tuple, start: int = 0) -> Segment:
    """The segment that a model would compute: each position's values follow from the voice and all labels up to it."""
    columns = []
    for end in range(start, ROOT + len(labels)):
        seed = int(content_hash(voice, repr((end, labels[: max(0, end - ROOT + 1)]))), 16) % 2**31
        columns.append(torch.randn(2, 2, 1, 4, generator=torch.Generator().manual_seed(seed)))
    keys = torch.cat(columns, dim=2)
    return Segment(keys, -keys, start)


def joined(segments: tuple[Segment, ...]) -> torch.Tensor:
    assert [s.start for s in segments] == [sum(map(len, segments[:i])) for i in range(len(segments))]
    assert all(torch.equal(s.values, -s.keys) for s in segments)
    return torch.cat([s.keys for s in segments], dim=2)


def fill_of(voice: str, labels: tuple):
    return lambda known: made_of(voice, labels, sum(map(len, known)))


def test_tree_shares_beginnings_and_keeps_its_books() -> None:
    tree, rng = PrefixTree(), random.Random(3)
    beginnings = {("a", ()), ("b", ())}
    for _ in range(200):
        voice = rng.choice("ab")
        labels = tuple(rng.choice("xyz") for _ in range(rng.randint(0, 7)))
        known = tree.match(voice, labels)
        tree.insert(voice, labels, made_of(voice, labels, rng.randint(0, min(len(known), ROOT + len(labels) - 1))), 1.0)
        beginnings |= {(voice, labels[:end]) for end in range(len(labels) + 1)}
        found = tree.match(voice, labels)
        assert found.is_whole
        assert torch.equal(joined(found.segments), made_of(voice, labels).keys)
    distinct = len({(v, ls) for v, ls in beginnings if ls})
    assert tree.nbytes == (distinct + 2 * ROOT) * WIDTH == sum(node.segment.nbytes for node in tree.nodes())
    longer = tree.match("a", ("x", "never"))
    assert not longer.is_whole and len(longer) == ROOT + 1
    assert tree.match("c", ()).segments == ()


def test_tree_refuses_gaps_and_drops_only_what_is_free() -> None:
    tree = PrefixTree()
    with pytest.raises(ValueError, match="from position 3 cannot follow a beginning of 0"):
        tree.insert("a", ("x",), made_of("a", ("x",), 3), 1.0)
    leaf = tree.insert("a", ("x", "y"), made_of("a", ("x", "y")), 1.0)
    with pytest.raises(ValueError, match="in use"):
        tree.drop(leaf.parent)
    leaf.num_holders = 1
    with pytest.raises(ValueError, match="in use"):
        tree.drop(leaf)
    leaf.num_holders = 0
    assert tree.drop(leaf) == 2 * WIDTH
    assert tree.drop(leaf.parent) == ROOT * WIDTH
    assert (tree.nbytes, len(tree)) == (0, 0)


def test_a_second_lookup_computes_nothing() -> None:
    manager = GlobalKVCacheManager(budget_bytes=2**20)
    with manager.acquire("a", "xyz", fill_of("a", tuple("xyz"))) as first:
        assert first.num_served == 0
    with manager.acquire("a", "xyz", pytest.fail) as second:
        assert second.num_served == ROOT + 3
        assert torch.equal(joined(second.segments), made_of("a", tuple("xyz")).keys)
    with manager.acquire("a", "xyw", fill_of("a", tuple("xyw"))) as third:
        assert third.num_served == ROOT + 2
        assert torch.equal(joined(third.segments), made_of("a", tuple("xyw")).keys)
    stats = manager.stats()
    assert (stats["lookups"], stats["hits"], stats["fills"]) == (3, 1, 2)
    assert (stats["tokens_computed"], stats["tokens_served"]) == (ROOT + 4, ROOT + 3 + ROOT + 2)
    assert stats["hit_rate"] == pytest.approx(11 / 18)
    assert stats["bytes"] == (ROOT + 4) * WIDTH
    assert "11 of" not in manager.summary() and "61% of 18 positions served" in manager.summary()
    manager.check_integrity()


@pytest.mark.parametrize("policy", ["lru", "lfu", "cost"])
def test_the_budget_holds_at_every_moment_and_leases_stay_valid(policy: str) -> None:
    budget = 40 * WIDTH
    manager, rng = GlobalKVCacheManager(budget_bytes=budget, replacement_policy=policy), random.Random(1)
    held: list = []
    for _ in range(400):
        voice, labels = rng.choice("abcdef"), tuple(rng.choice("xy") for _ in range(rng.randint(1, 8)))
        lease = manager.acquire(voice, labels, fill_of(voice, labels))
        assert torch.equal(joined(lease.segments), made_of(voice, labels).keys)
        held.append((lease, voice, labels))
        manager.check_integrity()
        if len(held) > 2:
            lease, voice, labels = held.pop(0)
            assert torch.equal(joined(lease.segments), made_of(voice, labels).keys)
            lease.release()
            lease.release()
    for lease, *_ in held:
        lease.release()
    stats = manager.stats()
    assert stats["evictions"] > 50 and stats["hits"] > 20
    manager.clear()
    assert manager.nbytes == 0


def test_replacement_policies_differ() -> None:
    def survivor(policy: str) -> str:
        manager = GlobalKVCacheManager(budget_bytes=2 * ROOT * WIDTH, replacement_policy=policy)
        for voice in "aab":  # a: often, b: recently
            manager.acquire(voice, "", fill_of(voice, ())).release()
        manager.acquire("c", "", fill_of("c", ())).release()
        return next(voice for voice in "ab" if manager._tree.match(voice, ()).is_whole)

    assert survivor("lru") == "b"
    assert survivor("lfu") == "a"
    with pytest.raises(ValueError, match="replacement 'fifo' does not exist; choose from cost, lfu, lru"):
        GlobalKVCacheManager(budget_bytes=1, replacement_policy="fifo")


def test_a_pinned_voice_keeps_its_own_part() -> None:
    manager = GlobalKVCacheManager(budget_bytes=12 * WIDTH, replacement_policy="lru")
    own, text = (("emotion", 0.5), NO_TEXT, NO_TEXT), (("emotion", 0.5), 4, 5)
    manager.pin("a")
    for labels in (own, text):
        manager.acquire("a", labels, fill_of("a", labels)).release()
    for voice in "bcd":
        manager.acquire(voice, (1, 2, 3), fill_of(voice, (1, 2, 3))).release()
    assert manager.acquire("a", own, pytest.fail).num_served == ROOT + 3
    assert not manager._tree.match("a", text).is_whole


def test_a_budget_smaller_than_an_entry_runs_uncached_and_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    manager = GlobalKVCacheManager(budget_bytes=WIDTH)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            lease = manager.acquire("a", "xy", fill_of("a", tuple("xy")))
            assert torch.equal(joined(lease.segments), made_of("a", tuple("xy")).keys)
    assert sum("do not fit" in record.message for record in caplog.records) == 1
    assert (manager.nbytes, manager.stats()["uncached"]) == (0, 3)
    with pytest.raises(ValueError, match="budget_bytes must be 0 or more, got -1"):
        GlobalKVCacheManager(budget_bytes=-1)


def run_together(count: int, work) -> list:
    barrier = threading.Barrier(count)

    def one(index: int):
        barrier.wait()
        return work(index)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


@pytest.mark.parametrize("budget", [2**20, 0])
def test_ten_threads_one_fill(budget: int) -> None:
    manager, started, calls = GlobalKVCacheManager(budget_bytes=budget), threading.Event(), []

    def fill(known):
        calls.append(known)
        started.wait(5)
        return made_of("a", tuple("xyz"))

    def work(index: int):
        if index == 0:
            while manager.stats()["lookups"] or not calls:
                pass
            threading.Timer(0.1, started.set).start()
        return joined(manager.acquire("a", "xyz", fill).segments)

    results = run_together(10, work)
    assert len(calls) == 1 or budget == 0
    assert all(torch.equal(result, results[0]) for result in results)
    manager.check_integrity()


def test_a_fill_that_raises_wakes_its_waiters_with_the_error_and_leaves_nothing() -> None:
    manager, waiting = GlobalKVCacheManager(budget_bytes=2**20), threading.Semaphore(0)

    def broken(known):
        for _ in range(3):
            waiting.acquire(timeout=5)
        raise MemoryError("no room")

    def work(index: int):
        waiting.release()
        with pytest.raises(MemoryError, match="no room"):
            manager.acquire("a", "xyz", broken)

    run_together(4, work)
    assert (manager.nbytes, manager._flights) == (0, {})
    assert manager.stats()["failed_fills"] >= 1
    assert manager.acquire("a", "xyz", fill_of("a", tuple("xyz"))).num_served == 0


def test_hashes_follow_the_content() -> None:
    a = torch.arange(6.0)
    assert content_hash(a, "x") == content_hash(a.clone(), "x")
    others = [(a + 1, "x"), (a.view(2, 3), "x"), (a.double(), "x"), (a, "y"), ("x", a), (a, None)]
    assert len({content_hash(a, "x"), *(content_hash(*parts) for parts in others)}) == 7
    torch.manual_seed(0)
    one, two = torch.nn.Linear(64, 64), torch.nn.Linear(64, 64)
    before = weights_fingerprint(one)
    assert before != weights_fingerprint(two)
    assert before != weights_fingerprint(torch.nn.Linear(64, 64).bfloat16())
    with torch.no_grad():
        one.weight[7, 9] += 1e-6
    assert weights_fingerprint(one) != before


@pytest.fixture(scope="module")
def t3() -> T3:
    torch.manual_seed(0)
    return T3(SMALL).eval()


@pytest.fixture
def source(t3: T3) -> PrefixSource:
    return PrefixSource(t3, GlobalKVCacheManager(budget_bytes=2**20))


def test_shared_beginnings_change_no_token(t3: T3, source: PrefixSource) -> None:
    """Cold, warm, warm with another text, another emotion: always the oracle's tokens."""
    expected = [generate(t3, request, use_cache=False).tolist() for request in REQUESTS]
    for _ in range(2):
        for request, tokens in zip(REQUESTS, expected, strict=True):
            assert list(stream(t3, request, prefixes=source)) == tokens
    stats = source.manager.stats()
    lookups = sum(1 + request.num_rows for request in REQUESTS)
    assert stats["lookups"] == 2 * lookups and stats["hits"] >= lookups
    assert stats["tokens_computed"] < stats["tokens_served"]
    source.manager.check_integrity()


def computed(source: PrefixSource, request) -> int:
    before = source.manager.stats()["tokens_computed"]
    source.acquire(request).release()
    return int(source.manager.stats()["tokens_computed"] - before)


def test_a_warm_voice_computes_its_text_alone(t3: T3, source: PrefixSource) -> None:
    base = dataclasses.replace(REQUESTS[0], sampling=SamplingConfig(), text_tokens=torch.tensor([1, 5, 6, 7, 8, 0]))
    cond_len = t3.hp.cond_len
    assert computed(source, base) == cond_len + 6 + 6
    assert computed(source, base) == 0
    assert (
        computed(source, dataclasses.replace(base, text_tokens=torch.tensor([1, 9, 9, 0]))) == 3
    )  # all after the start
    assert computed(source, dataclasses.replace(base, text_tokens=torch.tensor([1, 5, 6, 7, 9, 9, 9, 0]))) == 4 + 2
    livelier = dataclasses.replace(base, t3_cond=dataclasses.replace(base.t3_cond, emotion_adv=0.9))
    assert computed(source, livelier) == 1 + 6 + 6
    unguided = dataclasses.replace(base, sampling=SamplingConfig(cfg_weight=0.0))
    assert computed(source, unguided) == 0


def test_voices_are_told_apart_by_content(t3: T3, source: PrefixSource) -> None:
    cond = REQUESTS[0].t3_cond
    same = dataclasses.replace(cond, speaker_emb=cond.speaker_emb.clone(), emotion_adv=0.1)
    other = dataclasses.replace(cond, speaker_emb=cond.speaker_emb + 1e-3)
    assert source.voice_of(cond) == source.voice_of(same) != source.voice_of(other)
    torch.manual_seed(1)
    assert PrefixSource(T3(SMALL), source.manager).voice_of(cond) != source.voice_of(cond)


def test_many_threads_and_voices(t3: T3) -> None:
    """16 threads, 4 voices, 200 requests, a budget that forces evictions: every output is the single-threaded one."""
    rng = random.Random(2)
    source = PrefixSource(t3, GlobalKVCacheManager(budget_bytes=60_000))
    requests = [
        dataclasses.replace(rng.choice(REQUESTS), t3_cond=REQUESTS[rng.randrange(4)].t3_cond, max_new_tokens=4)
        for _ in range(200)
    ]
    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(lambda request: list(stream(t3, request, prefixes=source)), requests))
    for request, tokens in zip(requests, results, strict=True):
        assert tokens == generate(t3, request, use_cache=False).tolist()
    stats = source.manager.stats()
    assert stats["hits"] > 0 and stats["evictions"] > 0
    source.manager.check_integrity()
    assert not any(node.num_holders for node in source.manager._tree.nodes())


def test_a_stream_closed_half_way_lets_go(t3: T3, source: PrefixSource) -> None:
    tokens = stream(t3, dataclasses.replace(REQUESTS[0], max_new_tokens=20), prefixes=source)
    next(tokens)
    assert any(node.num_holders for node in source.manager._tree.nodes())
    tokens.close()
    assert not any(node.num_holders for node in source.manager._tree.nodes())


def test_writing_to_a_leased_copy_changes_nothing_shared(t3: T3, source: PrefixSource) -> None:
    """A request decodes into its own rows."""
    expected = generate(t3, REQUESTS[0], use_cache=False).tolist()
    for _ in range(3):
        assert list(stream(t3, REQUESTS[0], prefixes=source)) == expected
        with source.acquire(REQUESTS[0]) as prefix:
            before = [part.keys.clone() for row in prefix.rows for part in row]
            list(stream(t3, REQUESTS[0], prefixes=source))
            assert all(torch.equal(a, b.keys) for a, b in zip(before, (p for r in prefix.rows for p in r), strict=True))
