"""The manager under any order of operations, and with 500 voices: books, budgets and values hold at every moment."""

from __future__ import annotations

import random
from itertools import accumulate

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from chatterbox.config import PressureConfig
from chatterbox.kvcache import GlobalKVCacheManager, MemoryMonitor
from chatterbox.kvcache.base import Segment
from chatterbox.kvcache.prefix.memory_pressure import MemoryReading
from chatterbox.kvcache.prefix.tiers import PREFIX_EVICTION
from tests.unit.kvcache.prefix.test_prefix_cache import ROOT, WIDTH, fill_of, joined, made_of, stored

MIB = 2**20
VOICES = st.sampled_from("abcd")
LABELS = st.lists(st.sampled_from((1, 2, "no text")), max_size=5).map(tuple)
SIZES = st.sampled_from([0, *range(4, 41)]).map(lambda positions: positions * WIDTH)
SOFT = 100 * MIB
FREE = st.sampled_from([0, SOFT // 2, *(SOFT - few * WIDTH for few in range(1, 12)), 110 * MIB, *[1000 * MIB] * 12])


class Machine:
    """A probe and a clock, set by the rules."""

    def __init__(self) -> None:
        self.reading, self.now = MemoryReading(None, None, 1000 * MIB), 0.0

    def read(self) -> MemoryReading:
        return self.reading


class ManagerMachine(RuleBasedStateMachine):
    """lease, release, demote, promote, evict, pin, clear, pressure, in any order."""

    seen: set[str] = set()  # noqa: RUF012  what happened in any run

    @initialize(
        device=SIZES,
        host=SIZES,
        total=SIZES,
        host_codec=st.sampled_from(["none", "int8"]),
        policy=st.sampled_from(sorted(PREFIX_EVICTION)),
    )
    def start(self, device: int, host: int, total: int, host_codec: str, policy: str) -> None:
        self.system, self.is_exact, self.total = Machine(), host_codec == "none", total
        monitor = MemoryMonitor(PressureConfig(soft_mib=100, hard_mib=50), self.system, clock=lambda: self.system.now)
        self.manager = GlobalKVCacheManager(
            budget_bytes=device,
            host_bytes=host,
            total_bytes=total,
            host_codec=host_codec,
            eviction_policy=policy,
            monitor=monitor,
        )
        self.leases: list[tuple] = []

    @rule(voice=VOICES, labels=LABELS)
    def lease(self, voice: str, labels: tuple) -> None:
        self.leases.append((self.manager.acquire(voice, labels, fill_of(voice, labels)), voice, labels))

    @rule(voice=VOICES, labels=LABELS)
    def use(self, voice: str, labels: tuple) -> None:
        with self.manager.acquire(voice, labels, fill_of(voice, labels)) as lease:
            self.require_values(lease.segments, voice, labels)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        lease, *_ = self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1)))
        lease.release()

    @rule(voice=VOICES, labels=LABELS)
    def fail(self, voice: str, labels: tuple) -> None:
        def broken(known: tuple[Segment, ...]) -> Segment:
            raise MemoryError("no room")

        try:
            self.manager.acquire(voice, labels, broken).release()
        except MemoryError:
            self.seen.add("failure")

    @rule(voice=VOICES, labels=LABELS)
    def put(self, voice: str, labels: tuple) -> None:
        if self.manager.update_cache(voice, stored(voice, labels), labels, row=1, prefill_ms=3.0):
            self.seen.add("put")

    @rule(voice=VOICES, labels=LABELS)
    def get(self, voice: str, labels: tuple) -> None:
        cache = self.manager.get_cache(voice, labels, capacity=20)
        if cache is not None:
            self.require_values((cache.segment(0, 0, cache.length),), voice, labels[: cache.length - ROOT])

    @rule(voice=VOICES, on=st.booleans())
    def pin(self, voice: str, on: bool) -> None:
        (self.manager.pin if on else self.manager.unpin)(voice)

    @rule()
    def clear(self) -> None:
        self.manager.clear()
        assert self.leases or self.manager.nbytes == 0

    @rule(device=SIZES, host=SIZES)
    def give_way(self, device: int, host: int) -> None:
        before = self.manager.nbytes
        self.manager._tiers.relieve(device, host)
        assert self.manager.nbytes <= before

    @rule(free=FREE)
    def pressure(self, free: int) -> None:
        self.system.reading, self.system.now = MemoryReading(None, None, free), self.system.now + 1

    @invariant()
    def books_budgets_and_values(self) -> None:
        self.manager.check_integrity()
        assert self.manager.nbytes <= self.total
        held = sum(len(list(lease._node.path())) for lease, *_ in self.leases if lease._node is not None)
        assert sum(node.ref_count for node in self.manager.tree.nodes()) == held
        for lease, voice, labels in self.leases:
            self.require_values(lease.segments, voice, labels)

    def teardown(self) -> None:
        for lease, *_ in self.leases:
            lease.release()
        self.manager.clear()
        assert self.manager.nbytes == 0
        self.seen.update(name for name, value in self.manager.stats().items() if value)

    def require_values(self, segments: tuple[Segment, ...], voice: str, labels: tuple) -> None:
        expected = made_of(voice, labels).keys
        error = (joined(segments, exact=self.is_exact) - expected).abs().max()
        assert error == 0 if self.is_exact else error < 8 * expected.abs().max() / 254


def test_any_order_of_operations() -> None:
    ManagerMachine.seen.clear()
    ManagerMachine.TestCase.settings = settings(
        max_examples=200, stateful_step_count=40, deadline=None, derandomize=True, database=None
    )
    ManagerMachine.TestCase("runTest").runTest()
    happened = {"failure", "put", "hits", "demotions", "promotions", "evictions", "uncached"}
    happened |= {"pressure_episodes", "pressure_demotions", "pressure_evictions", "pressure_unshared"}
    assert happened <= ManagerMachine.seen


@pytest.mark.parametrize("host_codec", ["none", "int8"])
@pytest.mark.parametrize("policy", sorted(PREFIX_EVICTION))
def test_five_hundred_voices_within_one_budget(policy: str, host_codec: str) -> None:
    """Device and host memory together, at every moment: inside fills and under leases. Hot voices stay warm."""
    total = 256 * WIDTH
    manager = GlobalKVCacheManager(
        budget_bytes=200 * WIDTH,
        host_bytes=200 * WIDTH,
        total_bytes=total,
        host_codec=host_codec,
        eviction_policy=policy,
    )
    rng, weights, peak = random.Random(5), list(accumulate(1 / rank**1.1 for rank in range(1, 501))), 0

    def fill(known: tuple[Segment, ...]) -> Segment:
        require_budget()
        keys = torch.ones(2, 2, ROOT + len(labels) - sum(map(len, known)), 4)
        return Segment(keys, -keys, sum(map(len, known)))

    def require_budget() -> None:
        nonlocal peak
        peak = max(peak, manager.nbytes)
        assert manager.nbytes <= total
        manager.check_integrity()

    warm = []
    for index in range(1500):
        voice, labels = rng.choices(range(500), cum_weights=weights)[0], (rng.randint(0, 3), 1, 2)
        with manager.acquire(f"voice {voice}", labels, fill) as lease:
            require_budget()
            if voice < 5 and index > 200:
                warm.append(lease.num_cached_tokens >= ROOT)
    stats = manager.stats()
    assert peak > 0.95 * total and stats["evictions"] > 100 and stats["demotions"] > 100
    assert sum(warm) > 0.9 * len(warm)


def test_a_total_budget_takes_what_is_packed_first() -> None:
    manager = GlobalKVCacheManager(
        budget_bytes=2 * ROOT * WIDTH,
        host_bytes=9 * ROOT * WIDTH,
        total_bytes=3 * ROOT * WIDTH,
        eviction_policy="lru",
    )
    for voice in "abcd":
        manager.acquire(voice, "", fill_of(voice, ())).release()
        manager.check_integrity()
    assert sorted(manager.tree.voices()) == ["b", "c", "d"]
    assert manager.stats()["total_budget_bytes"] == 3 * ROOT * WIDTH
    with pytest.raises(ValueError, match="total_bytes must be 0 or more, got -1"):
        GlobalKVCacheManager(budget_bytes=1, total_bytes=-1)


def test_a_prefix_that_stays_packed_is_not_continued() -> None:
    """Its node would be split in host memory, where the halves need more than the whole."""
    manager = GlobalKVCacheManager(budget_bytes=7 * WIDTH, host_bytes=9 * WIDTH, host_codec="int8")
    manager.acquire("a", (1, 2, 3), fill_of("a", (1, 2, 3))).release()
    with manager.acquire("b", (1, 2), fill_of("b", (1, 2))):  # a is packed
        assert manager.stats()["host_entries"] == 2  # its own part and its text
        with manager.acquire("a", (1, 9), fill_of("a", (1, 9))) as lease:  # and has no room to come back
            assert lease.num_cached_tokens == ROOT + 1
        assert manager.stats()["uncached"] == 1
        manager.check_integrity()
    manager.acquire("a", (1, 9), fill_of("a", (1, 9))).release()
    assert manager.stats()["uncached"] == 1
    manager.check_integrity()


def test_what_grows_when_packed_does_not_pass_the_total() -> None:
    """One position in bfloat16: the scales of int8 outweigh what they scale."""
    keys = torch.ones(2, 2, 1, 4, dtype=torch.bfloat16)
    one = 2 * keys.nbytes
    manager = GlobalKVCacheManager(budget_bytes=2 * one, host_bytes=9 * one, total_bytes=2 * one, host_codec="int8")
    for voice in "ab":
        manager.acquire(voice, "", lambda known: Segment(keys, keys.clone(), 0)).release()
    manager._tiers.relieve(0, 1)
    manager.check_integrity()
    assert (manager.stats()["evictions"], manager.stats()["demotions"], manager.nbytes) == (1, 0, one)
