"""The prefix tree, the manager around it, and T3's prefixes through both."""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import random
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from chatterbox.config import SamplingConfig
from chatterbox.engine.decode import generate
from chatterbox.engine.prefill import Prefiller
from chatterbox.kvcache import Segment
from chatterbox.kvcache.compression import codec
from chatterbox.kvcache.prefix.disk import DiskTier, disk_key
from chatterbox.kvcache.prefix.keys import content_hash, weights_fingerprint
from chatterbox.kvcache.prefix.manager import GlobalKVCacheManager
from chatterbox.kvcache.prefix.stats import prometheus_text
from chatterbox.kvcache.prefix.tree import NO_TEXT, RadixTree
from chatterbox.kvcache.static import StaticKVCache
from chatterbox.models.t3 import T3
from tests.support.decoding import stream
from tests.support.small import REQUESTS, SMALL, build

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


def joined(segments: tuple[Segment, ...], *, exact: bool = True) -> torch.Tensor:
    assert [s.start for s in segments] == [sum(map(len, segments[:i])) for i in range(len(segments))]
    assert not exact or all(torch.equal(s.values, -s.keys) for s in segments)
    return torch.cat([s.keys for s in segments], dim=2)


def fill_of(voice: str, labels: tuple):
    return lambda known: made_of(voice, labels, sum(map(len, known)))


def test_tree_shares_prefixes_and_keeps_its_books() -> None:
    tree, rng = RadixTree(codec("none")), random.Random(3)
    prefixes = {("a", ()), ("b", ())}
    for _ in range(200):
        voice = rng.choice("ab")
        labels = tuple(rng.choice("xyz") for _ in range(rng.randint(0, 7)))
        known = tree.match(voice, labels)
        tree.insert(voice, labels, made_of(voice, labels, rng.randint(0, min(len(known), ROOT + len(labels) - 1))), 1.0)
        prefixes |= {(voice, labels[:end]) for end in range(len(labels) + 1)}
        found = tree.match(voice, labels)
        assert found.is_whole
        assert torch.equal(joined(found.segments), made_of(voice, labels).keys)
    distinct = len({(v, ls) for v, ls in prefixes if ls})
    assert tree.nbytes == (distinct + 2 * ROOT) * WIDTH == sum(node.nbytes for node in tree.nodes())
    longer = tree.match("a", ("x", "never"))
    assert not longer.is_whole and len(longer) == ROOT + 1
    assert tree.match("c", ()).segments == ()


def test_tree_refuses_gaps_and_drops_only_what_nobody_holds() -> None:
    tree = RadixTree(codec("none"))
    with pytest.raises(ValueError, match="from position 3 cannot follow a prefix of 0"):
        tree.insert("a", ("x",), made_of("a", ("x",), 3), 1.0)
    leaf = tree.insert("a", ("x", "y"), made_of("a", ("x", "y")), 1.0)
    tree.ref(leaf)
    other = tree.insert("a", ("x", "z"), made_of("a", ("x", "z")), 1.0)  # splits what is held
    for held in leaf.path():
        with pytest.raises(ValueError, match="in use"):
            tree.drop(held)
    tree.drop(other)
    tree.unref(leaf)
    assert not any(node.ref_count for node in tree.nodes())
    tree.drop(leaf)
    assert tree.nbytes == (ROOT + 1) * WIDTH
    tree.drop(next(tree.nodes()))
    assert (tree.nbytes, len(tree)) == (0, 0)


def test_a_second_lookup_computes_nothing() -> None:
    manager = GlobalKVCacheManager(budget_bytes=2**20)
    with manager.acquire("a", "xyz", fill_of("a", tuple("xyz"))) as first:
        assert first.num_cached_tokens == 0
    with manager.acquire("a", "xyz", pytest.fail) as second:
        assert second.num_cached_tokens == ROOT + 3
        assert torch.equal(joined(second.segments), made_of("a", tuple("xyz")).keys)
    with manager.acquire("a", "xyw", fill_of("a", tuple("xyw"))) as third:
        assert third.num_cached_tokens == ROOT + 2
        assert torch.equal(joined(third.segments), made_of("a", tuple("xyw")).keys)
    stats = manager.stats()
    assert (stats["lookups"], stats["hits"], stats["fills"]) == (3, 1, 2)
    assert (stats["tokens_computed"], stats["tokens_served"]) == (ROOT + 4, ROOT + 3 + ROOT + 2)
    assert stats["hit_rate"] == pytest.approx(11 / 18)
    assert stats["bytes"] == (ROOT + 4) * WIDTH
    assert "11 of" not in manager.summary() and "61% of 18 positions cached" in manager.summary()
    manager.check_integrity()


@pytest.mark.parametrize("policy", ["lru", "lfu", "cost"])
def test_the_budget_holds_at_every_moment_and_leases_stay_valid(policy: str) -> None:
    budget = 40 * WIDTH
    manager, rng = GlobalKVCacheManager(budget_bytes=budget, eviction_policy=policy), random.Random(1)
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
    assert manager.stats()["leases"] == sum(lease._node is not None for lease, *_ in held)
    for lease, *_ in held:
        lease.release()
    stats = manager.stats()
    assert stats["evictions"] > 50 and stats["hits"] > 20 and stats["leases"] == 0
    manager.clear()
    assert manager.nbytes == 0


def test_replacement_policies_differ() -> None:
    def survivor(policy: str) -> str:
        manager = GlobalKVCacheManager(budget_bytes=2 * ROOT * WIDTH, eviction_policy=policy)
        for voice in "aab":  # a: often, b: recently
            manager.acquire(voice, "", fill_of(voice, ())).release()
        manager.acquire("c", "", fill_of("c", ())).release()
        return next(voice for voice in "ab" if manager.tree.match(voice, ()).is_whole)

    assert survivor("lru") == "b"
    assert survivor("lfu") == "a"
    with pytest.raises(ValueError, match="replacement 'fifo' does not exist; choose from cost, lfu, lru"):
        GlobalKVCacheManager(budget_bytes=1, eviction_policy="fifo")


def test_cost_forgets_what_was_wanted_often_once() -> None:
    """Voice a is asked for twenty times, then never; lfu keeps it for good, cost lets it go after a while."""

    def survives(policy: str, later: int) -> bool:
        now = [0.0]

        def fill(voice: str):
            def ten_ms(known: tuple[Segment, ...]) -> Segment:
                now[0] += 0.01
                return made_of(voice, ())

            return ten_ms

        manager = GlobalKVCacheManager(budget_bytes=3 * ROOT * WIDTH, eviction_policy=policy, clock=lambda: now[0])
        for voice in [*"a" * 20, *(f"{i // 3}" for i in range(3 * later))]:  # each later voice three times
            manager.acquire(voice, "", fill(voice)).release()
        assert manager.stats()["fill_ms"] == pytest.approx(10 * manager.stats()["fills"])
        return manager.tree.match("a", ()).is_whole

    assert [survives("lfu", later) for later in (5, 100)] == [True, True]
    assert [survives("cost", later) for later in (5, 100)] == [True, False]


def test_a_fill_and_a_promotion_count_as_one_use() -> None:
    manager = GlobalKVCacheManager(budget_bytes=2 * ROOT * WIDTH, host_bytes=2**20, eviction_policy="lru")
    for voice in "abca":  # a leaves the device, and comes back
        manager.acquire(voice, "", fill_of(voice, ())).release()
    assert manager.stats()["promotions"] == 1
    manager.update_cache("d", stored("d", ()), row=1)
    manager.acquire("a", "x", fill_of("a", ("x",))).release()
    uses = {voice: next(manager.tree.nodes(voice)).num_uses for voice in "abcd"}
    assert uses == {"a": 3, "b": 1, "c": 1, "d": 1}


def test_a_pinned_voice_keeps_its_own_part() -> None:
    manager = GlobalKVCacheManager(budget_bytes=12 * WIDTH, eviction_policy="lru")
    own, text = (("emotion", 0.5), NO_TEXT, NO_TEXT), (("emotion", 0.5), 4, 5)
    manager.pin("a")
    for labels in (own, text):
        manager.acquire("a", labels, fill_of("a", labels)).release()
    for voice in "bcd":
        manager.acquire(voice, (1, 2, 3), fill_of(voice, (1, 2, 3))).release()
    assert manager.acquire("a", own, pytest.fail).num_cached_tokens == ROOT + 3
    assert not manager.tree.match("a", text).is_whole


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


@pytest.mark.parametrize("host_codec", ["none", "int8", "int4"])
def test_what_leaves_the_device_waits_in_host_memory(host_codec: str) -> None:
    """Four voices on a device that holds two, in random order: nothing is computed twice, both budgets hold."""
    rng, texts = random.Random(7), {(v, t) for v in "abcd" for t in ("xy", "xz", "w")}
    manager = GlobalKVCacheManager(budget_bytes=2 * (ROOT + 4) * WIDTH, host_bytes=2**20, host_codec=host_codec)
    for _ in range(10):
        for voice, text in rng.sample(sorted(texts), len(texts)):
            with manager.acquire(voice, text, fill_of(voice, tuple(text))) as lease:
                expected = made_of(voice, tuple(text)).keys
                error = (joined(lease.segments, exact=host_codec == "none") - expected).abs().max()
                # Thrice the codec's own bound: nodes are split, and come and go.
                assert error <= {"none": 0.0, "int8": 3 / 254, "int4": 3 / 15}[host_codec] * expected.abs().max()
            manager.check_integrity()
    stats = manager.stats()
    assert stats["tokens_computed"] == 4 * (ROOT + 4)
    assert stats["demotions"] > 10 and stats["promotions"] > 10 and stats["evictions"] == 0
    manager.clear()
    assert manager.nbytes == 0


def test_host_memory_is_bounded_too() -> None:
    manager = GlobalKVCacheManager(budget_bytes=2 * ROOT * WIDTH, host_bytes=2 * ROOT * WIDTH, eviction_policy="lru")
    for voice in "abcdef":
        manager.acquire(voice, "", fill_of(voice, ())).release()
        manager.check_integrity()
    assert manager.stats()["evictions"] == 2
    assert [voice for voice in "abcdef" if manager.tree.match(voice, ()).is_whole] == list("cdef")


def test_int8_error_is_what_it_says() -> None:
    segment = made_of("a", tuple("abcdefgh"))
    packed = codec("int8").pack(segment)
    assert packed.nbytes < 0.6 * segment.nbytes  # of four channels and eleven positions; scales weigh less in a model
    back = codec("int8").unpack(packed)
    for restored, original, dim in ((back.keys, segment.keys, 2), (back.values, segment.values, 3)):
        allowed = original.abs().amax(dim, keepdim=True) / 254 * 1.001
        assert ((restored - original).abs() <= allowed).all()
    assert codec("none").is_exact and not codec("int8").is_exact
    zero = Segment(torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4), 0)
    assert not codec("int8").unpack(codec("int8").pack(zero)).keys.any()
    with pytest.raises(ValueError, match="codec 'zip' does not exist; choose from int4, int8, none"):
        GlobalKVCacheManager(budget_bytes=1, host_codec="zip")


def on_disk(folder: Path, **options) -> GlobalKVCacheManager:
    return GlobalKVCacheManager(budget_bytes=2**20, disk=DiskTier(folder, **options))


def test_a_restarted_process_finds_its_voices(tmp_path: Path) -> None:
    for text in ("xy", "xz"):
        on_disk(tmp_path).acquire("a", text, fill_of("a", tuple(text))).release()
    manager = on_disk(tmp_path)
    for text in ("xz", "xy"):
        lease = manager.acquire("a", text, pytest.fail)
        assert lease.num_cached_tokens == ROOT + 2
        assert torch.equal(joined(lease.segments), made_of("a", tuple(text)).keys)
    stats = manager.stats()
    assert (stats["disk_hits"], stats["fills"], stats["tokens_computed"], stats["hit_rate"]) == (2, 0, 0, 1.0)
    assert manager.acquire("b", "xz", fill_of("b", tuple("xz"))).num_cached_tokens == 0


def broken_files() -> dict[str, Callable[[Path], None]]:
    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[-3] ^= 4
        path.write_bytes(content)

    def other_key(path: Path) -> None:
        GlobalKVCacheManager(budget_bytes=1, disk=DiskTier(path.parent / "other")).acquire(
            "b", "xy", fill_of("b", "xy")
        )
        shutil.move(next((path.parent / "other").iterdir()), path)

    return {
        "truncated": lambda path: path.write_bytes(path.read_bytes()[:-20]),
        "flipped": flip,
        "empty": lambda path: path.write_bytes(b""),
        "no such format": lambda path: path.write_bytes(b"hello" * 100),
        "of another key": other_key,
    }


@pytest.mark.parametrize("kind", broken_files())
def test_a_broken_file_is_a_miss_and_goes(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    on_disk(tmp_path).acquire("a", "xy", fill_of("a", tuple("xy"))).release()
    (path,) = tmp_path.glob("*.safetensors")
    broken_files()[kind](path)
    manager = on_disk(tmp_path)
    with caplog.at_level(logging.WARNING):
        lease = manager.acquire("a", "xy", fill_of("a", tuple("xy")))
    assert torch.equal(joined(lease.segments), made_of("a", tuple("xy")).keys)
    assert "is broken and is removed" in caplog.text
    assert (manager.stats()["disk_hits"], manager.stats()["fills"]) == (0, 1)
    again = on_disk(tmp_path).acquire("a", "xy", pytest.fail)  # it was written anew
    assert torch.equal(joined(again.segments), joined(lease.segments))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_file_with_nan_in_it_is_a_miss_and_goes(tmp_path, value: float, caplog) -> None:
    spoilt = made_of("a", tuple("xy"))
    spoilt.values[1, 0, -1, 2] = value
    DiskTier(tmp_path).store(disk_key("a", tuple("xy")), spoilt)
    with caplog.at_level(logging.WARNING), on_disk(tmp_path).acquire("a", "xy", fill_of("a", tuple("xy"))) as lease:
        assert lease.num_cached_tokens == 0 and torch.equal(joined(lease.segments), made_of("a", tuple("xy")).keys)
    assert "is broken and is removed (it holds NaN or infinite values)" in caplog.text


def test_a_full_disk_costs_nothing_but_a_warning(tmp_path, monkeypatch, caplog) -> None:
    manager = on_disk(tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with caplog.at_level(logging.WARNING):
        for voice in "ab":
            lease = manager.acquire(voice, "xy", fill_of(voice, tuple("xy")))
            assert torch.equal(joined(lease.segments), made_of(voice, tuple("xy")).keys)
    assert caplog.text.count("cannot write to") == 1 and "No space left" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_an_unreadable_file_is_left_alone(tmp_path, monkeypatch, caplog) -> None:
    on_disk(tmp_path).acquire("a", "xy", fill_of("a", tuple("xy"))).release()

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("os.open", refused)
    with caplog.at_level(logging.WARNING):
        assert DiskTier(tmp_path).load(disk_key("a", ("x", "y"))) is None
    assert "cannot be read (Permission denied)" in caplog.text
    assert len(list(tmp_path.iterdir())) == 1


def test_the_folder_is_bounded_and_holds_nothing_but_its_own(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("stay")
    size = 1_000 + 5 * WIDTH  # a file: header and five positions
    disk = DiskTier(tmp_path, budget_bytes=4 * size)
    for index in range(12):
        assert disk.store(f"../{index}/\0/escape", made_of("a", tuple("xy")))
        assert disk.nbytes <= disk.budget_bytes
        os.utime(disk._path(f"../{index}/\0/escape"), (index, index))
    kept = [index for index in range(12) if disk.load(f"../{index}/\0/escape") is not None]
    assert kept == list(range(12 - len(kept), 12)) and len(kept) >= 3
    assert {path.parent for path in tmp_path.rglob("*")} == {tmp_path}
    assert not disk.store("large", made_of("a", tuple("x" * 300)))
    disk.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def run_together(count: int, work) -> list:
    barrier = threading.Barrier(count)

    def one(index: int):
        barrier.wait()
        return work(index)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


@pytest.mark.parametrize("budget", [2**20, 0])
def test_ten_threads_one_fill(budget: int) -> None:
    """Also where nothing can be kept: who waited gets what was computed."""
    manager, calls = GlobalKVCacheManager(budget_bytes=budget), []

    def fill(known):
        calls.append(known)
        time.sleep(0.3)  # long enough for the others to come and wait
        return made_of("a", tuple("xyz"))

    results = run_together(10, lambda _: joined(manager.acquire("a", "xyz", fill).segments))
    assert all(torch.equal(result, made_of("a", tuple("xyz")).keys) for result in results)
    stats = manager.stats()
    assert len(calls) == stats["fills"] and stats["waits"] > 0
    assert stats["fills"] == 1 or budget == 0
    assert stats["lookups"] == 10
    manager.check_integrity()


def test_fills_that_raise_leave_nothing() -> None:
    manager = GlobalKVCacheManager(budget_bytes=2**20)

    def broken(known):
        raise MemoryError("no room")

    def work(_: int):
        with pytest.raises(MemoryError, match="no room"):
            manager.acquire("a", "xyz", broken)

    run_together(4, work)
    assert (manager.nbytes, manager.stats()["failed_fills"]) == (0, 4)
    assert manager.acquire("a", "xyz", fill_of("a", tuple("xyz"))).num_cached_tokens == 0


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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("size", [1, 7, 8, 2051])
def test_fingerprint_is_of_every_weight_wherever_it_lies(dtype: torch.dtype, size: int) -> None:
    module = torch.nn.Module()

    def fingerprint(values: torch.Tensor) -> str:
        module.register_buffer("weight", values)
        return weights_fingerprint(module)

    values = torch.arange(size).remainder(100).to(dtype)
    before = fingerprint(values)
    for offset in (1, 3):  # within a larger matrix, where its words are not aligned
        assert fingerprint(torch.cat([values.new_zeros(offset), values])[offset:]) == before
    assert fingerprint(values.repeat(2, 1).T[:, 0]) == before
    for place in {0, size // 3, size - 2, size - 1} & set(range(size)):
        other = values.clone()
        other[place] += 1
        assert fingerprint(other) != before


@pytest.fixture
def source(t3: T3) -> Prefiller:
    return Prefiller(t3, GlobalKVCacheManager(budget_bytes=2**20))


def computed(source: Prefiller, request) -> int:
    before = source.manager.stats()["tokens_computed"]
    source.acquire(request).release()
    return int(source.manager.stats()["tokens_computed"] - before)


def test_a_warm_voice_computes_its_text_alone(t3: T3, source: Prefiller) -> None:
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


def test_a_new_voice_takes_one_pass_with_its_text(t3: T3, source: Prefiller, monkeypatch) -> None:
    passes: list[tuple[int, int]] = []
    forward = t3.tfmr.forward

    def counted(embeds, *args, **kwargs):
        passes.append(tuple(embeds.shape[:2]))
        return forward(embeds, *args, **kwargs)

    def passed(request) -> list[tuple[int, int]]:
        passes.clear()
        with source.acquire(request) as prefix:
            assert prefix.length == t3.hp.cond_len + request.text_tokens.shape[-1]
        return list(passes)

    monkeypatch.setattr(t3.tfmr, "forward", counted)
    text, longer = torch.tensor([1, 5, 6, 7, 8, 0]), torch.tensor([1, 5, 6, 7, 9, 9, 9, 0])
    base = dataclasses.replace(REQUESTS[0], sampling=SamplingConfig(), text_tokens=text)
    cond_len = t3.hp.cond_len
    assert passed(base) == [(2, cond_len + 6)]
    assert passed(base) == []
    assert passed(dataclasses.replace(base, text_tokens=longer)) == [(1, 4), (1, 2)]
    livelier = dataclasses.replace(base, t3_cond=dataclasses.replace(base.t3_cond, emotion_adv=0.9))
    assert passed(livelier) == [(2, 1 + 6)]
    unguided = dataclasses.replace(REQUESTS[1], sampling=SamplingConfig(cfg_weight=0.0), text_tokens=text)
    other = dataclasses.replace(unguided.t3_cond, speaker_emb=unguided.t3_cond.speaker_emb + 1.0)
    assert passed(dataclasses.replace(unguided, t3_cond=other)) == [(1, cond_len + 6)]


def test_what_one_pass_computed_is_what_passes_of_its_parts_compute(t3: T3) -> None:
    """Whichever text brought a voice in, its prefixes are the same, and each has its share of the time."""
    short = dataclasses.replace(REQUESTS[0], sampling=SamplingConfig(), text_tokens=torch.tensor([1, 5, 0]))
    request = dataclasses.replace(short, text_tokens=torch.tensor([1, 6, 7, 7, 7, 8, 0]))
    at_once, in_parts = (Prefiller(t3, GlobalKVCacheManager(budget_bytes=2**20)) for _ in range(2))
    in_parts.acquire(short).release()
    with at_once.acquire(request) as one, in_parts.acquire(request) as two:
        for ours, theirs in zip(one.rows, two.rows, strict=True):
            joined, expected = Segment.join(ours), Segment.join(theirs)
            torch.testing.assert_close(joined.keys, expected.keys)
            torch.testing.assert_close(joined.values, expected.values)
    nodes = list(at_once.manager.tree.nodes())
    per_position = {node.labels[:1]: node.prefill_ms / node.num_positions for node in nodes}
    root, emotion = per_position.pop(()), per_position.pop(tuple(at_once._emotion(request.t3_cond)))
    assert sorted(per_position, key=str) == [("no text",), (1,)]
    for cost in per_position.values():
        assert (root, emotion) == pytest.approx((2 * cost, 2 * cost), rel=0.01)  # computed in both rows
    assert at_once.manager.stats()["fill_ms"] == pytest.approx(sum(node.prefill_ms for node in nodes), rel=0.01)


def test_voices_are_told_apart_by_content(t3: T3, source: Prefiller) -> None:
    cond = REQUESTS[0].t3_cond
    same = dataclasses.replace(cond, speaker_emb=cond.speaker_emb.clone(), emotion_adv=0.1)
    other = dataclasses.replace(cond, speaker_emb=cond.speaker_emb + 1e-3)
    assert source.voice_of(cond) == source.voice_of(same) != source.voice_of(other)
    torch.manual_seed(1)
    assert Prefiller(T3(SMALL), source.manager).voice_of(cond) != source.voice_of(cond)


def test_many_threads_and_voices(t3: T3) -> None:
    """16 threads, 4 voices, 200 requests, a budget that forces evictions: every output is the single-threaded one."""
    rng = random.Random(2)
    source = Prefiller(t3, GlobalKVCacheManager(budget_bytes=60_000))
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
    assert not any(node.ref_count for node in source.manager.tree.nodes())


def test_a_stream_closed_half_way_lets_go(t3: T3, source: Prefiller) -> None:
    tokens = stream(t3, dataclasses.replace(REQUESTS[0], max_new_tokens=20), prefixes=source)
    next(tokens)
    assert any(node.ref_count for node in source.manager.tree.nodes())
    tokens.close()
    assert not any(node.ref_count for node in source.manager.tree.nodes())


def test_writing_to_a_leased_copy_changes_nothing_shared(t3: T3, source: Prefiller) -> None:
    """A request decodes into its own rows."""
    expected = generate(t3, REQUESTS[0], use_cache=False).tolist()
    for _ in range(3):
        assert list(stream(t3, REQUESTS[0], prefixes=source)) == expected
        with source.acquire(REQUESTS[0]) as prefix:
            before = [part.keys.clone() for row in prefix.rows for part in row]
            list(stream(t3, REQUESTS[0], prefixes=source))
            assert all(torch.equal(a, b.keys) for a, b in zip(before, (p for r in prefix.rows for p in r), strict=True))


NOT_FINITE = "T3 computed NaN or infinite values for this voice or text; check the weights, their dtype and the voice"


def disk_source(t3: T3, folder: Path) -> Prefiller:
    return Prefiller(t3, GlobalKVCacheManager(budget_bytes=2**20, host_bytes=2**20, disk=DiskTier(folder)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_voice_with_nan_in_it_fails_alone_and_is_kept_nowhere(t3: T3, tmp_path, value: float) -> None:
    source, request = disk_source(t3, tmp_path), REQUESTS[0]
    spoilt = request.t3_cond.speaker_emb.clone()
    spoilt[0, 3] = value
    broken = dataclasses.replace(request, t3_cond=dataclasses.replace(request.t3_cond, speaker_emb=spoilt))
    for _ in range(2):
        with pytest.raises(RuntimeError, match=NOT_FINITE):
            source.acquire(broken)
    assert (source.manager.nbytes, list(tmp_path.iterdir()), source.manager.stats()["failed_fills"]) == (0, [], 2)
    assert list(stream(t3, request, prefixes=source)) == generate(t3, request, use_cache=False).tolist()


@pytest.mark.parametrize("cfg_weight", [0.0, 0.5])
def test_a_text_with_nan_in_it_fails_alone_and_is_kept_nowhere(tmp_path, cfg_weight: float) -> None:
    t3 = build(SMALL)
    with torch.no_grad():
        t3.text_emb.weight[7] = float("nan")
    source = disk_source(t3, tmp_path)
    good = dataclasses.replace(
        REQUESTS[0], sampling=SamplingConfig(cfg_weight=cfg_weight), text_tokens=torch.tensor([1, 5, 6, 0])
    )
    broken = dataclasses.replace(good, text_tokens=torch.tensor([1, 5, 7, 0]))
    with pytest.raises(RuntimeError, match=NOT_FINITE):
        source.acquire(broken)
    assert source.manager.nbytes == 0 and not list(tmp_path.iterdir())
    expected = list(stream(t3, good, prefixes=source))
    kept = source.manager.nbytes, sorted(tmp_path.iterdir())
    with pytest.raises(RuntimeError, match=NOT_FINITE):
        source.acquire(broken)  # of a known voice, by another way
    assert (source.manager.nbytes, sorted(tmp_path.iterdir())) == kept
    assert not any(node.ref_count for node in source.manager.tree.nodes())
    assert list(stream(t3, good, prefixes=source)) == expected


def test_an_unpinned_voice_goes_like_any_other() -> None:
    manager = GlobalKVCacheManager(budget_bytes=(ROOT + 3) * WIDTH, eviction_policy="lru")
    manager.pin("a")
    manager.acquire("a", (1,), fill_of("a", (1,))).release()
    manager.acquire("b", (1,), fill_of("b", (1,))).release()
    assert manager.stats()["voices"] == 1 and manager.stats()["uncached"] == 1  # no room beside a pinned one
    manager.unpin("a")
    manager.acquire("b", (1,), fill_of("b", (1,))).release()
    with manager.acquire("b", (1,), pytest.fail) as lease:
        assert lease.num_cached_tokens == ROOT + 1


def stored(voice: str, labels: tuple) -> StaticKVCache:
    """A cache of two rows; the second holds what a model would have computed."""
    cache = StaticKVCache(2, 2, 2, 4, 20)
    cache.load(1, made_of(voice, labels))
    return cache


def test_the_simple_door_keeps_rows_and_gives_copies() -> None:
    manager = GlobalKVCacheManager(budget_bytes=100 * WIDTH)
    assert manager.get_cache("a", (1, 2)) is None
    assert manager.update_cache("a", stored("a", (1, 2, 3)), (1, 2, 3), row=1)
    assert manager.stats()["tokens_computed"] == ROOT + 3
    for labels, known in (((1, 2, 3), 3), ((1, 2, 9), 2), ((9,), 0), ((), 0)):
        cache = manager.get_cache("a", labels, capacity=30)
        assert (cache.row_lens, cache.capacity) == ((ROOT + known,), 30)
        assert torch.equal(cache.segment(0, 0, cache.length).keys, made_of("a", labels[:known]).keys)
        cache._keys.zero_()  # its own: what is kept does not change
    assert manager.update_cache("a", stored("a", (1, 2, 9, 9)), (1, 2, 9, 9), row=1)
    assert torch.equal(manager.get_cache("a", (1, 2, 9, 9)).segment(0, 0, 7).keys, made_of("a", (1, 2, 9, 9)).keys)
    assert manager.stats()["bytes"] == (ROOT + 5) * WIDTH
    manager.check_integrity()


def test_the_simple_door_refuses_what_does_not_fit() -> None:
    manager = GlobalKVCacheManager(budget_bytes=(ROOT + 2) * WIDTH)
    with pytest.raises(ValueError, match="row 1 holds 4 positions; a voice's own and 4 of text_prefix are needed"):
        manager.update_cache("a", stored("a", (1,)), (1, 2, 3, 4), row=1)
    assert manager.update_cache("a", stored("a", (1,)), (1,), row=1)
    with pytest.raises(ValueError, match="'a' has 3 positions of its own, the row has 4 before the 0 of text_prefix"):
        manager.update_cache("a", stored("a", (1,)), (), row=1)
    spoilt = stored("a", (1, 2))
    spoilt._values[0, 1, 0, 4, 0] = float("nan")
    with pytest.raises(ValueError, match="row 1 holds NaN or infinite values and is not kept"):
        manager.update_cache("a", spoilt, (1, 2), row=1)
    assert not manager.update_cache("a", stored("a", (1, 2, 3)), (1, 2, 3), row=1)  # larger than the budget
    assert manager.get_cache("a", (1, 2, 3)).length == ROOT + 1
    manager.check_integrity()


def test_counters_as_prometheus_text() -> None:
    manager = GlobalKVCacheManager(budget_bytes=100 * WIDTH)
    for _ in range(2):
        manager.acquire("a", (1,), fill_of("a", (1,))).release()
    stats = manager.stats()
    text = prometheus_text({**stats, "fill_ms": 1500.0})
    values = dict(line.split() for line in text.splitlines() if not line.startswith("#"))
    assert manager.hit_rate == stats["hit_rate"] == 0.5 == float(values["chatterbox_prefix_cache_hit_rate"])
    assert values["chatterbox_prefix_cache_tokens_served_total"] == str(ROOT + 1)
    assert values["chatterbox_prefix_cache_fill_seconds_total"] == "1.5"
    assert values["chatterbox_prefix_cache_bytes"] == str((ROOT + 1) * WIDTH)
    assert "# TYPE chatterbox_prefix_cache_tokens_served_total counter" in text
    assert "# TYPE chatterbox_prefix_cache_bytes gauge" in text and len(values) == len(stats)
