"""Memory runs short: who gives way, in which order, and that nothing fails."""

from __future__ import annotations

import dataclasses
import logging
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from chatterbox.config import KVCacheConfig, PressureConfig
from chatterbox.engine.batch_state import StepResult
from chatterbox.engine.decode import generate
from chatterbox.engine.engine import DecodeEngine
from chatterbox.engine.prefill import Prefiller
from chatterbox.engine.request import Request
from chatterbox.engine.scheduler import Scheduler
from chatterbox.kvcache import GlobalKVCacheManager, MemoryMonitor, Segment, make_manager
from chatterbox.kvcache.compression import codec
from chatterbox.kvcache.prefix.memory_pressure import Level, MemoryReading, SystemProbe
from chatterbox.kvcache.prefix.stats import CacheStats, prometheus_text
from chatterbox.kvcache.prefix.tiers import Tiers, lru
from chatterbox.kvcache.prefix.tree import RadixTree
from chatterbox.models.t3 import T3
from tests.support.decoding import stream
from tests.support.small import REQUESTS

MIB = 2**20
CONFIG = PressureConfig(soft_mib=100, hard_mib=50, process_mib=1000, interval_ms=100)
SIZE = 2 * MIB  # of `segment`
PLENTY = MemoryReading(None, 0, 10_000 * MIB)


class Machine:
    """A probe and a clock that the test sets."""

    def __init__(self, reading: MemoryReading = PLENTY) -> None:
        self.reading, self.now, self.num_reads = reading, 0.0, 0

    def read(self) -> MemoryReading:
        self.num_reads += 1
        return self.reading

    def has(self, available_mib: int, *, device_mib: int | None = None) -> None:
        """From now on, a look later."""
        device = None if device_mib is None else device_mib * MIB
        self.reading, self.now = MemoryReading(device, 0, available_mib * MIB), self.now + 1

    def monitor(self) -> MemoryMonitor:
        return MemoryMonitor(CONFIG, self, clock=lambda: self.now)


def segment(known: tuple[Segment, ...] = ()) -> Segment:
    keys = torch.ones(1, 1, 8, MIB // 32)
    return Segment(keys, keys.clone(), 0)


def filled(machine: Machine, voices: str, **options) -> GlobalKVCacheManager:
    manager = GlobalKVCacheManager(budget_bytes=100 * MIB, eviction_policy="lru", monitor=machine.monitor(), **options)
    for voice in voices:
        manager.acquire(voice, "", segment).release()
    assert manager.stats()["entries"] == len(voices)
    return manager


def known(manager: GlobalKVCacheManager) -> str:
    return "".join(sorted(manager.tree.voices()))


@pytest.mark.parametrize(
    ("reading", "level", "device_short", "host_short"),
    [
        (MemoryReading(), Level.NONE, 0, 0),
        (MemoryReading(100 * MIB, 900 * MIB, 100 * MIB), Level.NONE, 0, 0),
        (MemoryReading(99 * MIB, 0, 200 * MIB), Level.SOFT, MIB, 0),
        (MemoryReading(None, 901 * MIB, 200 * MIB), Level.SOFT, 0, MIB),
        (MemoryReading(60 * MIB, 0, 49 * MIB), Level.HARD, 40 * MIB, 51 * MIB),
        (MemoryReading(0, 2000 * MIB, None), Level.HARD, 100 * MIB, 1100 * MIB),
    ],
)
def test_level_and_shortage_follow_from_a_reading(reading, level, device_short, host_short) -> None:
    pressure = Machine(reading).monitor().poll()
    assert (pressure.level, pressure.device_short, pressure.host_short) == (level, device_short, host_short)


def test_memory_is_looked_at_no_more_often_than_the_interval() -> None:
    machine = Machine()
    manager = filled(machine, "abcdefgh")
    assert machine.num_reads == 1
    machine.now = 0.099
    manager.acquire("a", "", pytest.fail).release()
    assert machine.num_reads == 1
    machine.now = 0.101
    manager.acquire("a", "", pytest.fail).release()
    assert machine.num_reads == 2


def test_what_gives_way_in_order(caplog: pytest.LogCaptureFixture) -> None:
    """First a smaller copy in host memory, then nothing there, then nothing new kept, then requests wait."""
    machine = Machine()
    manager = filled(machine, "abcdefgh", host_bytes=100 * MIB, host_codec="int8")
    with caplog.at_level(logging.INFO, logger="chatterbox.kvcache.prefix.memory_pressure"):
        machine.has(97)  # 3 MiB short: two prefixes, a quarter of their size once packed, free 3
        manager.acquire("h", "", pytest.fail).release()
        stats = manager.stats()
        assert (stats["pressure_demotions"], stats["pressure_evictions"], stats["pressure"]) == (3, 0, Level.SOFT)
        assert (known(manager), stats["host_entries"]) == ("abcdefgh", 3)
        machine.has(51)  # more than there is to give, and not yet beyond the hard watermark
        assert manager.acquire("h", "", segment).num_cached_tokens == 0
        assert known(manager) == "h"
        assert (manager.stats()["pressure_evictions"], manager.stats()["pressure_unshared"]) == (8, 0)
        manager.acquire("i", "", segment).release()
        assert "i" in known(manager)  # soft pressure goes on sharing

        machine.has(49)
        assert manager.monitor.admits()
        for count in (1, 2):
            assert manager.acquire("j", "", segment).num_cached_tokens == 0
            assert manager.stats()["pressure_unshared"] == count
        assert "j" not in known(manager)
        machine.has(49)
        assert not manager.monitor.admits() and not manager.monitor.admits()
        assert manager.stats()["pressure_delays"] == 2

        machine.has(110)  # enough, and not so much that the next shortage would be another episode
        assert manager.monitor.admits()
        machine.has(99)
        manager.acquire("k", "", segment).release()
        assert "k" in known(manager)
        assert manager.stats()["pressure_episodes"] == 1
        machine.has(126)
        manager.acquire("k", "", segment).release()
    messages = [record.getMessage() for record in caplog.records]
    actions = ["move to host memory", "are forgotten", "is not kept", "requests wait"]
    assert [sum(action in message for message in messages) for action in actions] == [1, 1, 1, 1]
    assert messages[0].startswith("memory runs short (3 MiB of host memory below the soft watermark)")
    assert messages[-1] == "memory suffices again"
    machine.has(99)
    manager.acquire("k", "", segment).release()
    assert manager.stats()["pressure_episodes"] == 2
    text = prometheus_text(manager.stats())
    assert "chatterbox_prefix_cache_pressure_episodes_total 2\n" in text
    assert "# TYPE chatterbox_prefix_cache_pressure gauge" in text
    manager.check_integrity()


def test_only_as_much_leaves_as_is_short_and_nothing_in_use_or_pinned() -> None:
    machine = Machine()
    manager = filled(machine, "abcdefgh")
    manager.pin("a")
    with manager.acquire("b", "", pytest.fail) as lease:
        machine.has(97)
        manager.acquire("h", "", pytest.fail).release()
        assert known(manager) == "abefgh"  # two of 2 MiB, the least recent that may go
        assert manager.stats()["bytes"] == 6 * SIZE
        machine.has(0)
        manager.acquire("z", "", segment).release()
        assert known(manager) == "ab"
        assert torch.equal(lease.segments[0].keys, segment().keys)
    machine.has(1000)
    with manager.acquire("z", "", segment) as back:
        assert back.num_cached_tokens == 0 and known(manager) == "abz"


def test_a_short_device_moves_to_host_memory_unless_that_is_short_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatterbox.kvcache.prefix.tiers._is_in_host", lambda node: False)

    def tiers() -> tuple[Tiers, CacheStats, RadixTree]:
        tree, stats = RadixTree(codec("none")), CacheStats()
        made = Tiers(tree, stats, 100 * MIB, 100 * MIB, lru)
        for voice in "abcd":
            tree.use(made.keep(voice, (), segment(), 1.0))
        return made, stats, tree

    made, stats, tree = tiers()
    made.relieve(3 * MIB, 0)
    assert (stats.demotions, stats.evictions, tree.packed_nbytes) == (2, 0, 2 * SIZE)
    made.relieve(0, 3 * MIB)  # host memory alone: what is packed there goes, the device keeps its own
    assert (stats.demotions, stats.evictions, tree.nbytes, tree.packed_nbytes) == (2, 2, 2 * SIZE, 0)
    made, stats, tree = tiers()
    made.relieve(3 * MIB, MIB)
    assert (stats.demotions, stats.evictions, made.nbytes) == (0, 2, 2 * SIZE)
    made.check_integrity()


def test_nothing_comes_back_to_the_device_under_pressure() -> None:
    machine = Machine()
    manager = filled(machine, "ab", host_bytes=100 * MIB, host_codec="int8")
    machine.has(99)
    manager.acquire("b", "", pytest.fail).release()
    assert manager.stats()["host_entries"] == 1
    with manager.acquire("a", "", pytest.fail) as lease:
        assert lease.num_cached_tokens == 8
    assert (manager.stats()["promotions"], manager.stats()["host_entries"]) == (0, 1)
    machine.has(1000)
    manager.acquire("a", "", pytest.fail).release()
    assert (manager.stats()["promotions"], manager.stats()["host_entries"]) == (1, 0)


@pytest.mark.parametrize("available_mib", [0, 75, 10_000])
def test_requests_run_whatever_is_short(t3: T3, available_mib: int) -> None:
    """The tokens are those of the uncached decoder, and without memory nothing is kept."""
    machine = Machine(MemoryReading(None, None, available_mib * MIB))
    source = Prefiller(t3, GlobalKVCacheManager(budget_bytes=2**24, monitor=machine.monitor()))
    for request in REQUESTS[:6]:
        with source.acquire(request) as prefix:
            assert prefix.length == len(request.text_tokens) + t3.hp.cond_len
        expected = generate(t3, request, use_cache=False).tolist()
        assert list(stream(t3, request, prefixes=source)) == expected
        machine.now += 1
    stats = source.manager.stats()
    assert (stats["bytes"] == 0) == (available_mib == 0)
    assert (stats["pressure_unshared"] > 0) == (available_mib < 50)
    assert (stats["pressure_evictions"] > 0) == (available_mib == 75)


def test_many_threads_while_memory_comes_and_goes() -> None:
    """Every look finds another amount free; whoever asks gets what was computed for it."""
    rng = random.Random(4)
    readings = [MemoryReading(None, None, rng.choice((0, 60, 97, 110, 1000)) * MIB) for _ in range(500)]

    class Unsteady:
        def read(self) -> MemoryReading:
            return readings.pop() if readings else PLENTY

    config = dataclasses.replace(CONFIG, interval_ms=0)
    manager = GlobalKVCacheManager(
        budget_bytes=8 * SIZE, host_bytes=8 * SIZE, host_codec="int8", monitor=MemoryMonitor(config, Unsteady())
    )

    def ask(voice: int) -> bool:
        def fill(known: tuple[Segment, ...]) -> Segment:
            return Segment(segment().keys * voice, segment().keys, 0)

        with manager.acquire(f"voice {voice}", "", fill) as lease:
            return bool((lease.segments[0].keys == voice).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, [rng.randrange(1, 12) for _ in range(300)]))
    stats = manager.stats()
    assert stats["hits"] > 0 and stats["pressure_evictions"] > 0 and stats["pressure_unshared"] > 0
    assert stats["pressure_episodes"] > 1
    manager.check_integrity()


def in_waves(t3: T3, requests: list[Request], monitor: MemoryMonitor) -> tuple[list[list[int]], int]:
    """Tokens of requests that are submitted at once, and the most rows that were in use."""
    prefixes = Prefiller(t3, GlobalKVCacheManager(budget_bytes=0, monitor=monitor))
    scheduler, rows, step = Scheduler(prefixes), [0], DecodeEngine.step

    def counted(engine: DecodeEngine) -> StepResult:
        rows.append(engine.num_rows)
        return step(engine)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DecodeEngine, "step", counted)
        wake, scheduler._worker.wake = scheduler._worker.wake, lambda: True  # not before all are there
        streams = [scheduler.stream(request, policy=KVCacheConfig()) for request in requests]
        scheduler._worker.wake = wake
        scheduler.wake()
        tokens = [list(one) for one in streams]
    scheduler.close()
    return tokens, max(rows)


def test_requests_wait_while_memory_is_short_and_say_the_same(t3: T3) -> None:
    requests = REQUESTS[:5]
    expected = [generate(t3, request).tolist() for request in requests]
    machine = Machine()
    machine.has(10)
    monitor = machine.monitor()
    monitor.poll()
    machine.now += 1
    tokens, most = in_waves(t3, requests, monitor)
    assert tokens == expected and most == max(request.num_rows for request in requests)
    assert monitor.num_delays == 4  # each but the first
    tokens, most = in_waves(t3, requests, Machine().monitor())
    assert tokens == expected and most == sum(request.num_rows for request in requests)


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


GROUPS = {
    "no group": ({}, "0::/\n", 4000 * 1024),
    "v2, no limit": ({"memory.max": "max\n", "memory.current": "5\n"}, "0::/\n", 4000 * 1024),
    "v2": (
        {"memory.max": "1000\n", "memory.current": "900\n", "memory.stat": "anon 3\ninactive_file 50\n"},
        "0::/",
        150,
    ),
    "v2, a limit above": (
        {"memory.max": "700\n", "memory.current": "600\n", "a/b/memory.max": "max\n", "a/b/memory.current": "1\n"},
        "0::/a/b\n",
        100,
    ),
    "v1": (
        {
            "memory/memory.limit_in_bytes": "1000\n",
            "memory/memory.usage_in_bytes": "1200\n",
            "memory/memory.stat": "total_inactive_file 30\n",
        },
        "4:memory:/elsewhere\n2:cpu:/\n",
        30,
    ),
    "broken": ({"memory.max": "?\n", "memory.current": ""}, "0::/\n", 4000 * 1024),
}


@pytest.mark.parametrize("name", GROUPS)
def test_memory_of_a_container_is_its_limit(tmp_path: Path, name: str) -> None:
    files, own, expected = GROUPS[name]
    proc = write(tmp_path / "proc", {"meminfo": "MemTotal: 9 kB\nMemAvailable:  4000 kB\n", "self/cgroup": own})
    probe = SystemProbe("cpu", proc=proc, cgroups=write(tmp_path / "cgroup", files))
    assert probe.read() == MemoryReading(None, None, expected)


def test_a_system_that_tells_nothing_has_no_pressure(tmp_path: Path) -> None:
    probe = SystemProbe(proc=tmp_path, cgroups=tmp_path)
    assert probe.read() == MemoryReading()
    assert MemoryMonitor(PressureConfig(), probe).poll().level == Level.NONE


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="there is no /proc")
def test_the_real_probe_sees_this_process_grow() -> None:
    before = SystemProbe().read()
    block = torch.ones(32 * MIB // 4)
    grown = SystemProbe().read().process - before.process
    assert 24 * MIB < grown < 200 * MIB and len(block)
    assert before.device_free is None and before.system_available > MIB


def test_settings() -> None:
    manager = make_manager(KVCacheConfig(host_mib=3, total_mib=4), 2 * MIB, "cpu")
    assert manager.monitor.config == PressureConfig()
    assert manager.stats()["total_budget_bytes"] == 4 * MIB
    assert make_manager(KVCacheConfig(pressure=PressureConfig(soft_mib=0)), 1).monitor is None
    for values, message in [
        ({"soft_mib": -1}, "soft_mib must be a whole number from 0, got -1"),
        ({"interval_ms": 1.5}, "interval_ms must be a whole number from 0, got 1.5"),
        ({"soft_mib": 10}, "hard_mib must be at most soft_mib, 10, got 256"),
        ({"process_mib": 0}, "process_mib must be a whole number from 1, got 0; null sets no limit"),
    ]:
        with pytest.raises(ValueError, match=message):
            PressureConfig(**values)
    with pytest.raises(dataclasses.FrozenInstanceError):
        PressureConfig().soft_mib = 3
