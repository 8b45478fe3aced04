"""Requests of many threads on one scheduler: the tokens of each are those that it has alone, whatever else goes on."""

from __future__ import annotations

import dataclasses
import gc
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from chatterbox.config import KVCacheConfig, SamplingConfig
from chatterbox.engine.decode import generate
from chatterbox.engine.engine import DecodeEngine
from chatterbox.engine.prefill import Prefiller
from chatterbox.engine.request import ForcedPrefix, Request
from chatterbox.engine.scheduler import QueueFullError, Scheduler
from chatterbox.kvcache import GlobalKVCacheManager, cache_config
from chatterbox.models.t3 import T3
from tests.support.decoding import scheduler_of
from tests.support.small import SMALL, SMALL_GPT2, build, make_request
from tests.support.waiting import WAIT, wait_for, wait_until_free

STATIC = cache_config("static")
NUM_MIXES, NUM_READERS = 100, 5  # of each backbone
ENOUGH = 10_000  # steps, for whatever a test still runs


@pytest.fixture(scope="module", params=[SMALL, SMALL_GPT2], ids=["llama", "gpt2"])
def t3(request: pytest.FixtureRequest) -> T3:
    return build(request.param)


@pytest.fixture
def schedulers() -> Iterator[list[Scheduler]]:
    """What a test makes; closed afterwards."""
    made: list[Scheduler] = []
    yield made
    for scheduler in made:
        scheduler.close()


@pytest.fixture
def row_counts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows in use at each step of any engine."""
    counts, step = [], DecodeEngine.step

    def counted(engine: DecodeEngine):
        counts.append(engine.num_rows)
        return step(engine)

    monkeypatch.setattr(DecodeEngine, "step", counted)
    return counts


@pytest.fixture
def slow_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step takes long enough for a test to do something meanwhile."""
    step = DecodeEngine.step

    def slow(engine: DecodeEngine):
        time.sleep(0.003)
        return step(engine)

    monkeypatch.setattr(DecodeEngine, "step", slow)


@pytest.fixture
def permits(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Semaphore]:
    """Each step takes one of these, which a test gives."""
    step, given = DecodeEngine.step, threading.Semaphore(0)

    def permitted(engine: DecodeEngine):
        assert given.acquire(timeout=WAIT)
        return step(engine)

    monkeypatch.setattr(DecodeEngine, "step", permitted)
    yield given
    given.release(ENOUGH)


def with_prefixes(t3: T3, **settings) -> Scheduler:
    manager = GlobalKVCacheManager(budget_bytes=2**26)
    return scheduler_of(t3, prefixes=Prefiller(t3, manager, prefill_len=settings.get("prefill_len")), **settings)


def long_request(t3: T3, seed: int, **changes) -> Request:
    """One that goes on to its limit of 40 tokens; sampled and, where the model has it, guided."""
    sampling = SamplingConfig(cfg_weight=0.5 if t3.hp.has_guidance else 0.0)
    request = dataclasses.replace(make_request(seed, t3.hp), sampling=sampling, max_new_tokens=40, stop_on_eos=False)
    return dataclasses.replace(request, **changes)


def mixed_request(t3: T3, seed: int) -> Request:
    rng = random.Random(seed)
    request = dataclasses.replace(
        make_request(seed, t3.hp), max_new_tokens=rng.randint(1, 12), guard=rng.choice([None, "light"])
    )
    if rng.random() < 0.3:
        tokens = torch.tensor([rng.randrange(6561) for _ in range(rng.randint(1, 9))])
        request = dataclasses.replace(request, forced=ForcedPrefix(tokens, rng.randrange(1, len(request.text_tokens))))
    return request


def alone(t3: T3, request: Request) -> list[int]:
    return generate(t3, request, use_cache=False).tolist()


def read(scheduler: Scheduler, request: Request, rng: random.Random) -> tuple[list[int], bool]:
    """Tokens, read at some speed, and whether they are all; some readers leave early."""
    stream = scheduler.stream(request, policy=STATIC, limit=rng.choice([None, 2, 5]))
    most = rng.choice([None, None, None, rng.randrange(6)])
    tokens: list[int] = []
    if most != 0:
        for token in stream:
            tokens.append(token)
            if len(tokens) == most:
                break
            if rng.random() < 0.1:
                time.sleep(0.004)
    stream.close()
    return tokens, most is None


def test_tokens_of_random_mixes_are_those_of_each_request_alone(
    t3: T3, schedulers: list[Scheduler], row_counts: list[int]
) -> None:
    requests = [mixed_request(t3, seed) for seed in range(64)]
    expected = [alone(t3, request) for request in requests]
    scheduler = with_prefixes(t3, max_rows=7, park_seconds=0.003, prefill_len=8)
    schedulers.append(scheduler)
    num_whole = 0
    with ThreadPoolExecutor(NUM_READERS) as pool:
        for mix in range(NUM_MIXES):
            rng = random.Random(mix)
            places = [rng.randrange(len(requests)) for _ in range(NUM_READERS)]
            readers = [pool.submit(read, scheduler, requests[place], random.Random(rng.random())) for place in places]
            for place, reader in zip(places, readers, strict=True):
                tokens, is_whole = reader.result(WAIT)
                assert tokens == (expected[place] if is_whole else expected[place][: len(tokens)]), (mix, place)
                num_whole += is_whole
    wait_until_free(scheduler)
    assert num_whole > NUM_MIXES
    assert max(row_counts) <= 7
    assert scheduler.stats()["steps"] < sum(map(len, expected)) * NUM_MIXES * NUM_READERS / len(requests) / 1.3


@pytest.mark.parametrize("cfg_weight", [0.0, 0.5])
def test_a_stream_that_nobody_reads_is_parked_and_goes_on(
    t3: T3, schedulers: list[Scheduler], cfg_weight: float
) -> None:
    sampling = SamplingConfig(cfg_weight=cfg_weight if t3.hp.has_guidance else 0.0)
    scheduler = with_prefixes(t3, park_seconds=0.02)
    schedulers.append(scheduler)
    for seed in range(3):
        request = long_request(t3, seed, sampling=sampling, guard=[None, "light"][seed % 2])
        tokens: list[int] = []
        for token in scheduler.stream(request, policy=STATIC, limit=3):
            tokens.append(token)
            if len(tokens) in (1, 11, 30):
                wait_for(lambda: scheduler.stats()["rows"] == 0)
        assert tokens == alone(t3, request)


def test_a_stream_that_is_read_on_before_it_is_parked_keeps_its_rows(t3: T3, schedulers: list[Scheduler]) -> None:
    scheduler = with_prefixes(t3, park_seconds=60.0)
    schedulers.append(scheduler)
    held, other = long_request(t3, 1), long_request(t3, 2)
    stream = scheduler.stream(held, policy=STATIC, limit=2)
    tokens = iter(stream)
    first = next(tokens)
    assert list(scheduler.stream(other, policy=STATIC)) == alone(t3, other)
    assert scheduler.stats()["on_hold"] == 1
    assert scheduler.stats()["rows"] == held.num_rows
    assert [first, *tokens] == alone(t3, held)


def test_without_room_who_came_last_gives_way(
    t3: T3, schedulers: list[Scheduler], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that need more memory than there is: some wait, all have their tokens in the end."""
    monkeypatch.setattr("chatterbox.engine.row_pool.FIRST_CAPACITY", 32)
    requests = [dataclasses.replace(long_request(t3, seed), max_new_tokens=30 + seed) for seed in range(8)]
    # A mebibyte holds one request at full length, but not three at that.
    position = t3.hp.backbone.num_heads * t3.hp.backbone.head_dim * 2 * 4 * t3.hp.backbone.num_layers
    monkeypatch.setattr("chatterbox.engine.scheduler.MIB", 6 * 128 * position)
    parked, park = [], DecodeEngine.park
    monkeypatch.setattr(DecodeEngine, "park", lambda engine, handle: parked.append(handle) or park(engine, handle))
    scheduler = with_prefixes(t3, cache_mib=1)
    schedulers.append(scheduler)
    streams = [scheduler.stream(request, policy=STATIC) for request in requests]
    assert [list(stream) for stream in streams] == [alone(t3, request) for request in requests]
    assert parked or t3.hp == SMALL_GPT2
    wait_until_free(scheduler)


def test_policies_share_the_memory_for_rows(
    t3: T3, schedulers: list[Scheduler], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one policy's engine holds for nobody is given back where another one needs it; at once or under way."""
    monkeypatch.setattr("chatterbox.engine.row_pool.FIRST_CAPACITY", 32)
    position = t3.hp.backbone.num_heads * t3.hp.backbone.head_dim * 2 * 4 * t3.hp.backbone.num_layers
    monkeypatch.setattr("chatterbox.engine.scheduler.MIB", 4 * 128 * position)
    scheduler = with_prefixes(t3, cache_mib=1)
    schedulers.append(scheduler)
    policies = [STATIC, dataclasses.replace(STATIC, window_size=511), dataclasses.replace(STATIC, window_size=510)]
    requests = [long_request(t3, seed) for seed in range(6)]
    for request, policy in zip(requests, policies * 2, strict=True):
        assert list(scheduler.stream(request, policy=policy, timeout=WAIT)) == alone(t3, request)
    streams = [
        scheduler.stream(request, policy=policy, timeout=WAIT)
        for request, policy in zip(requests, policies * 2, strict=True)
    ]
    assert [list(stream) for stream in streams] == [alone(t3, request) for request in requests]


def test_memory_for_many_rows_is_given_back_where_one_needs_it_for_length(
    t3: T3, schedulers: list[Scheduler], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatterbox.engine.row_pool.FIRST_CAPACITY", 32)
    position = t3.hp.backbone.num_heads * t3.hp.backbone.head_dim * 2 * 4 * t3.hp.backbone.num_layers
    monkeypatch.setattr("chatterbox.engine.scheduler.MIB", 9 * 64 * position)
    scheduler = with_prefixes(t3, cache_mib=1)
    schedulers.append(scheduler)
    short = [long_request(t3, seed, max_new_tokens=5, text_tokens=torch.tensor([1, 5, 0])) for seed in range(8)]
    streams = [scheduler.stream(request, policy=STATIC, timeout=WAIT) for request in short]
    assert [list(stream) for stream in streams] == [alone(t3, request) for request in short]
    long = long_request(t3, 9, max_new_tokens=47)
    assert list(scheduler.stream(long, policy=STATIC, timeout=WAIT)) == alone(t3, long)


def test_a_request_that_never_has_room_is_refused(t3: T3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatterbox.engine.scheduler.MIB", 1000)
    scheduler = with_prefixes(t3, cache_mib=1)
    with pytest.raises(ValueError, match=r"positions may take .* MiB, more than engine.cache_mib allows") as caught:
        list(scheduler.stream(long_request(t3, 0), policy=STATIC))
    assert "\n" not in str(caught.value)
    assert scheduler.stats()["rows"] == 0
    scheduler.close()


def test_rows_are_given_back_when_idle(t3: T3, schedulers: list[Scheduler]) -> None:
    scheduler = with_prefixes(t3, idle_seconds=0.02)
    schedulers.append(scheduler)
    request = long_request(t3, 4)
    stream = scheduler.stream(request, policy=STATIC)
    tokens = iter(stream)
    next(tokens)
    assert scheduler.stats()["cache_bytes"] > 0
    list(tokens)
    wait_for(lambda: scheduler.stats()["cache_bytes"] == 0)
    assert list(scheduler.stream(request, policy=STATIC)) == alone(t3, request)


def test_the_queue_has_a_bound_and_keeps_its_order(
    t3: T3, schedulers: list[Scheduler], permits: threading.Semaphore, row_counts: list[int]
) -> None:
    scheduler = with_prefixes(t3, max_rows=2, max_waiting=3)
    schedulers.append(scheduler)
    ended: list[int] = []

    class Noted:
        is_eager, is_full = True, False

        def __init__(self, number: int) -> None:
            self.number = number

        def begin(self, num_cached: int, num_computed: int) -> None: ...

        def push(self, tokens: list[int]) -> None: ...

        def finish(self) -> None:
            ended.append(self.number)

        def fail(self, error: BaseException) -> None: ...

    rows = 2 // long_request(t3, 0).num_rows
    for number in range(rows):
        scheduler.submit(long_request(t3, number), Noted(number), policy=STATIC)
    permits.release()  # a first step may have begun before the second request was there
    wait_for(lambda: (stats := scheduler.stats())["running"] == rows and stats["waiting"] == 0)
    for number in range(rows, rows + 3):
        scheduler.submit(long_request(t3, number, max_new_tokens=44 - number), Noted(number), policy=STATIC)
    with pytest.raises(QueueFullError, match=r"3 requests wait already; try again later, or raise engine\.max_waiting"):
        scheduler.submit(long_request(t3, 7), Noted(7), policy=STATIC)
    scheduler.submit(long_request(t3, 8, max_new_tokens=44), Noted(8), policy=STATIC, is_queued=False)
    permits.release(ENOUGH)
    wait_until_free(scheduler)
    assert sorted(ended) == [*range(rows + 3), 8]
    assert ended == sorted(ended) or rows == 2  # one after another on two rows; two at once need not end in order
    assert max(row_counts) <= 2


@pytest.mark.parametrize("state", ["waiting", "running", "parked"])
def test_a_request_whose_time_has_run_out_fails(
    t3: T3, schedulers: list[Scheduler], slow_steps: None, state: str
) -> None:
    scheduler = with_prefixes(t3, max_rows=2, park_seconds=0.01)
    schedulers.append(scheduler)
    others = [scheduler.stream(long_request(t3, seed), policy=STATIC) for seed in range(2 if state == "waiting" else 0)]
    timeout = 0.2 if state == "parked" else 0.05
    late = scheduler.stream(long_request(t3, 5), policy=STATIC, timeout=timeout, limit=2 if state == "parked" else None)
    tokens = iter(late)
    if state == "parked":
        next(tokens)
        wait_for(lambda: scheduler.stats()["steps"] and not scheduler.stats()["rows"])
        wait_for(lambda: late._is_done)
    with pytest.raises(TimeoutError, match="not over when its time had run out"):
        list(tokens)
    for seed, other in enumerate(others):
        assert list(other) == alone(t3, long_request(t3, seed))
    wait_until_free(scheduler)


@pytest.mark.parametrize("how", ["close", "forget"])
@pytest.mark.parametrize("state", ["waiting", "running", "on hold", "parked"])
def test_a_stream_that_is_left_frees_all_it_held(
    t3: T3, schedulers: list[Scheduler], slow_steps: None, state: str, how: str
) -> None:
    scheduler = with_prefixes(t3, max_rows=4, park_seconds=0.02 if state == "parked" else 60.0)
    schedulers.append(scheduler)
    request, other = long_request(t3, 1), long_request(t3, 2)
    if state == "waiting":
        others = [scheduler.stream(long_request(t3, seed), policy=STATIC) for seed in range(6)]
    stream = scheduler.stream(request, policy=STATIC, limit=None if state in ("waiting", "running") else 2)
    tokens = iter(stream)
    if state != "waiting":
        next(tokens)
    if state == "on hold":
        assert list(scheduler.stream(other, policy=STATIC)) == alone(t3, other)
        assert scheduler.stats()["on_hold"] == 1
    if state == "parked":
        wait_for(lambda: not scheduler.stats()["rows"])
    if how == "close":
        stream.close()
    else:
        if state == "waiting":
            threading.Timer(0.0, stream.close).start()
        del tokens, stream
        gc.collect()
    if state == "waiting":
        for seed, one in enumerate(others):
            assert list(one) == alone(t3, long_request(t3, seed))
    wait_until_free(scheduler)
    assert list(scheduler.stream(other, policy=STATIC)) == alone(t3, other)


def test_cancelled_while_its_prefix_is_computed(t3: T3, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two pieces of it; others had their steps meanwhile."""
    scheduler = with_prefixes(t3, prefill_len=4)
    other = scheduler.stream(long_request(t3, 0), policy=STATIC)
    others = iter(other)
    first = next(others)
    submitted, request = threading.Event(), long_request(t3, 5)
    between, seen = Scheduler._between, []

    def noted(self: Scheduler, joining) -> None:
        if joining is not None and joining.request is request:
            assert submitted.wait(WAIT)
            seen.append(self.stats()["steps"])
            if len(seen) == 3:
                stream.close()
        between(self, joining)

    monkeypatch.setattr(Scheduler, "_between", noted)
    stream = scheduler.stream(request, policy=STATIC)
    submitted.set()
    assert list(stream) == []
    assert [first, *others] == alone(t3, long_request(t3, 0))
    assert len(seen) == 3
    wait_until_free(scheduler)
    scheduler.close()


def test_continued_behind_parked_rows(t3: T3, schedulers: list[Scheduler]) -> None:
    """The rows of a sequence are taken between two requests; what it goes on with is the same."""
    requests = [long_request(t3, seed, t3_cond=make_request(0, t3.hp).t3_cond, max_new_tokens=9) for seed in range(3)]
    said = {}
    for park_seconds in (60.0, 0.02):
        scheduler = with_prefixes(t3, park_seconds=park_seconds)
        schedulers.append(scheduler)
        one = scheduler.continuation(STATIC)
        said[park_seconds] = []
        for request in requests:
            said[park_seconds].append(list(scheduler.stream(request, policy=STATIC, continuation=one)))
            if park_seconds < 1:
                wait_for(lambda s=scheduler: s.stats()["rows"] == 0)
            else:
                assert scheduler.stats()["rows"] == request.num_rows
        scheduler.forget(one)
        wait_until_free(scheduler)
    assert said[0.02] == said[60.0]
    assert said[60.0][1:] != [alone(t3, request) for request in requests[1:]]


def test_continued_where_a_policy_forgets(schedulers: list[Scheduler]) -> None:
    """What was forgotten cannot be computed anew: after parking, such a sequence begins anew from the voice."""
    t3 = build(SMALL)
    requests = [long_request(t3, seed, t3_cond=make_request(0).t3_cond, max_new_tokens=9) for seed in range(2)]
    sliding = KVCacheConfig(policy="sliding", max_cache_size=96, window_size=48)
    scheduler = with_prefixes(t3, park_seconds=0.02)
    schedulers.append(scheduler)
    one = scheduler.continuation(sliding)
    assert list(scheduler.stream(requests[0], policy=sliding, continuation=one)) == alone(t3, requests[0])
    wait_for(lambda: scheduler.stats()["rows"] == 0)
    assert list(scheduler.stream(requests[1], policy=sliding, continuation=one)) == alone(t3, requests[1])
    scheduler.forget(one)
    wait_until_free(scheduler)


@pytest.mark.parametrize("continues", [False, True])
def test_a_request_that_nobody_reads_from_the_start_is_parked_before_its_first_token(
    t3: T3, schedulers: list[Scheduler], continues: bool
) -> None:
    scheduler = with_prefixes(t3, park_seconds=0.02)
    schedulers.append(scheduler)
    cond = make_request(0, t3.hp).t3_cond
    first, second = (long_request(t3, seed, t3_cond=cond, max_new_tokens=9) for seed in range(2))
    reference = scheduler.continuation(STATIC)
    expected = [list(scheduler.stream(one, policy=STATIC, continuation=reference)) for one in (first, second)]
    scheduler.forget(reference)
    one = scheduler.continuation(STATIC) if continues else None
    if continues:
        assert list(scheduler.stream(first, policy=STATIC, continuation=one)) == expected[0]
    stream = scheduler.stream(second, policy=STATIC, continuation=one, limit=0)
    wait_for(lambda: scheduler.stats()["rows"] == scheduler.stats()["waiting"] == 0 or stream._is_done)
    stream._limit = None
    scheduler.wake()
    assert list(stream) == (expected[1] if continues else alone(t3, second))
    if one is not None:
        scheduler.forget(one)
    wait_until_free(scheduler)


def test_one_on_hold_goes_on_while_another_waits_for_its_first_token(t3: T3, schedulers: list[Scheduler]) -> None:
    scheduler = with_prefixes(t3, park_seconds=60.0)
    schedulers.append(scheduler)
    held, other, unread = (long_request(t3, seed) for seed in range(3))
    stream = scheduler.stream(held, policy=STATIC, limit=2)
    tokens = iter(stream)
    first = next(tokens)
    assert list(scheduler.stream(other, policy=STATIC)) == alone(t3, other)
    assert scheduler.stats()["on_hold"] == 1
    waiting = scheduler.stream(unread, policy=STATIC, limit=0)
    wait_for(lambda: scheduler.stats()["rows"] == held.num_rows + unread.num_rows)
    assert [first, *tokens] == alone(t3, held)
    waiting._limit = None
    scheduler.wake()
    assert list(waiting) == alone(t3, unread)
