"""The sliding window: what stays, where it stays, and that tokens are those of attention over just that."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch

from chatterbox.config import KVCacheConfig, SamplingConfig
from chatterbox.engine.cuda_graphs import StepGraphs
from chatterbox.engine.decode import decode, decoder_on, generate
from chatterbox.engine.engine import DecodeEngine
from chatterbox.engine.prefill import Prefiller
from chatterbox.engine.request import Request, allocate_cache, prefix_len, required_capacity
from chatterbox.kvcache import DynamicKVCache, KVCache, SlidingKVCache, StaticKVCache
from chatterbox.models.config import NUM_SPEECH_TOKENS
from chatterbox.models.t3 import T3
from tests.support.decoding import generate_batch, scheduler_of, stream
from tests.support.full_cache import FullCache
from tests.support.small import SMALL, SMALL_GPT2, build, decode_together, make_request
from tests.unit.engine.test_graphs import REPLAYS, recorded

LAYERS, ROWS, HEADS, HEAD_DIM, CAPACITY, SLOTS, WINDOW, PINNED = 2, 3, 2, 8, 200, 12, 4, 3
TIGHT = KVCacheConfig(policy="sliding", max_cache_size=40, window_size=5)


def long_requests(count: int, t3: T3) -> list[Request]:
    """Requests of 40 tokens: each has more positions than `TIGHT` has."""
    requests = [make_request(seed, t3.hp) for seed in range(count)]
    return [dataclasses.replace(one, max_new_tokens=40, stop_on_eos=False) for one in requests]


def expected(length: int, pinned: int = PINNED, slots: int = SLOTS, window: int = WINDOW) -> list[int]:
    """Positions that a row holds, of one whose prefix came at once and the rest one by one."""
    held = list(range(pinned))
    for position in range(pinned, length):
        if len(held) == slots:
            held = held[:pinned] + held[-window:]
        held.append(position)
    return held


def make(**settings: int | None) -> SlidingKVCache:
    settings = {"max_cache_size": SLOTS, "window_size": WINDOW, **settings}
    cache = SlidingKVCache(LAYERS, ROWS, HEADS, HEAD_DIM, CAPACITY, **settings)
    for store in (cache._keys, cache._values):  # memory as it may come
        store.fill_(float("nan"))
    return cache


def key_of(row: int, position: int) -> float:
    return 1000.0 * (row + 1) + position


def advance(cache: KVCache, new_len: int, rows: slice = slice(None)) -> None:
    """Append keys that name their row and position, values of opposite sign; check what layers see of them."""
    positions = cache.reserve(new_len, rows)
    names = 1000.0 * (torch.arange(ROWS)[rows, None] + 1) + positions
    keys = names[:, None, :, None].expand(-1, HEADS, -1, HEAD_DIM).contiguous()
    for layer in range(LAYERS):
        kept_keys, kept_values, at = cache.append(layer, keys, -keys)
        for place, row in enumerate(range(ROWS)[rows]):
            seen = at.expand(len(keys), -1)[place] <= positions[place, -1]
            assert at.expand(len(keys), -1)[place][seen].tolist() == cache.held(row)
            stored = torch.tensor([key_of(row, p) for p in cache.held(row)])
            assert torch.equal(kept_keys[place, 0, seen, 0], stored)
            assert torch.equal(kept_values[place, 1, seen, 3], -stored)
            assert torch.isfinite(kept_keys[place]).all()  # what the mask hides is a number
    cache.check_integrity()


def begun(**settings: int | None) -> SlidingKVCache:
    """Every row with its pinned prefix."""
    cache = make(**settings)
    for row in range(ROWS):
        cache.begin(row, range(PINNED))
    advance(cache, PINNED)
    return cache


def test_prefix_and_newest_stay_and_positions_keep_their_numbers() -> None:
    cache = begun()
    for length in range(PINNED + 1, 60):
        advance(cache, 1)
        assert cache.row_lens == (length,) * ROWS
        assert [cache.held(row) for row in range(ROWS)] == [expected(length)] * ROWS
    assert len(cache.held(0)) < 59


def test_rows_are_trimmed_each_at_its_own_time_in_place() -> None:
    cache, rng = begun(), random.Random(0)
    places = [part.data_ptr() for part in (cache._keys, cache._values, cache._positions, cache._single)]
    nbytes = cache.nbytes
    while cache.length < CAPACITY:
        first = rng.randrange(ROWS)
        advance(cache, 1, slice(first, rng.randint(first + 1, ROWS)))
        assert [cache.held(row) for row in range(ROWS)] == [expected(length) for length in cache.row_lens]
    assert len(set(cache.row_lens)) == ROWS
    assert [part.data_ptr() for part in (cache._keys, cache._values, cache._positions, cache._single)] == places
    assert cache.nbytes == nbytes == 2 * 4 * LAYERS * ROWS * HEADS * SLOTS * HEAD_DIM
    with pytest.raises(ValueError, match=r"200 \+ 1 positions, capacity 200"):
        cache.reserve(1)


def test_trimming_is_rare() -> None:
    cache, trims = begun(), 0
    for _ in range(100):
        before = len(cache.held(0))
        advance(cache, 1)
        trims += len(cache.held(0)) <= before
    assert trims == 1 + (100 - (SLOTS - PINNED) - 1) // (SLOTS - PINNED - WINDOW)


def test_rows_move_with_what_they_pinned() -> None:
    cache = begun(uncond_window=2)
    cache.load(1)
    cache.begin(1, range(5), is_conditional=False)
    advance(cache, 5, slice(1, 2))
    for _ in range(30):
        advance(cache, 1)
    held = cache.held(1)
    assert held == expected(35, pinned=5, window=2)
    keys = cache.segment(1, 0, 5).keys
    cache.move_row(1, 0)
    assert cache.held(0) == held and cache.row_lens[0] == 35 and torch.equal(cache.segment(0, 0, 5).keys, keys)
    assert (cache.held(1), cache.row_lens[1]) == ([], 0)
    for length in range(36, 50):
        cache.reserve(1, slice(0, 1))
        for layer in range(LAYERS):
            cache.append(layer, torch.ones(1, HEADS, 1, HEAD_DIM), torch.ones(1, HEADS, 1, HEAD_DIM))
        assert cache.held(0) == expected(length, pinned=5, window=2)
    cache.check_integrity()


def test_a_window_that_the_prefix_leaves_no_room_for_shrinks() -> None:
    cache = make(window_size=SLOTS - 1)
    cache.begin(0, range(6))
    advance(cache, 6, slice(0, 1))
    for length in range(7, 40):
        advance(cache, 1, slice(0, 1))
        assert cache.held(0)[:6] == list(range(6)) and cache.held(0)[-1] == length - 1
        assert len(cache.held(0)) > 6 + (SLOTS - 7) // 2 or length < 9  # half of what there is room for


def test_what_is_no_longer_held_is_refused_and_nothing_changes() -> None:
    cache = begun()
    for _ in range(18):
        advance(cache, 1)
    held = cache.held(0)
    assert held == expected(21) == [0, 1, 2, *range(13, 21)]
    assert cache.segment(0, 13, 21).start == 13 and len(cache.segment(0, 0, 3)) == 3
    assert cache.segment(2, 15, 17).keys[0, 0, :, 0].tolist() == [key_of(2, 15), key_of(2, 16)]
    for start, end in ((0, 21), (2, 4), (12, 15)):
        with pytest.raises(ValueError, match=f"row 0 no longer holds all positions from {start} to {end}"):
            cache.segment(0, start, end)
    for refused in (cache.crop, cache.clone_prefix):
        with pytest.raises(ValueError, match="row 0 no longer holds position 9, it cannot be cut behind it"):
            refused(10)
        with pytest.raises(ValueError, match="cannot keep 22 positions of a cache that holds 21"):
            refused(22)
    with pytest.raises(ValueError, match="row 0 cannot pin position 3, which it no longer holds"):
        cache.begin(0, range(4))
    assert [cache.held(row) for row in range(ROWS)] == [held] * ROWS and cache.row_lens == (21,) * ROWS
    advance(cache, 1)


def test_crop_clone_and_reset() -> None:
    cache = begun()
    for _ in range(18):
        advance(cache, 1)
    clone = cache.clone_prefix(20, capacity=60)
    assert clone.held(1) == [0, 1, 2, *range(13, 20)]
    assert (clone.row_lens, clone.capacity, clone.max_cache_size) == ((20,) * ROWS, 60, SLOTS)
    for _ in range(20):
        advance(clone, 1)
    assert cache.held(1) == [0, 1, 2, *range(13, 21)]
    cache.crop(16)
    advance(cache, 1)
    assert cache.held(1) == [0, 1, 2, 13, 14, 15, 16]
    cache.crop(PINNED)
    assert cache.row_lens == (PINNED,) * ROWS
    for length in range(PINNED + 1, 40):
        advance(cache, 1)
        assert cache.held(2) == expected(length)
    cache.reset()
    assert cache.row_lens == (0,) * ROWS and cache.held(0) == []
    for length in range(1, 30):  # nothing is pinned any more
        advance(cache, 1)
        assert cache.held(0) == expected(length, pinned=0)


@pytest.mark.parametrize("source", [StaticKVCache, DynamicKVCache, SlidingKVCache])
def test_update_takes_over_another_cache(source: type[KVCache]) -> None:
    other = source(LAYERS, ROWS, HEADS, HEAD_DIM, CAPACITY, **({"window_size": 30} if source is SlidingKVCache else {}))
    advance(other, 9)
    advance(other, 2, slice(0, 1))
    advance(other, 20, slice(1, 2))
    cache = begun()
    cache.update(other)
    assert cache.row_lens == other.row_lens == (11, 29, 9)
    assert [cache.held(row) for row in range(ROWS)] == [[*range(11)], [0, 1, 2, *range(25, 29)], [*range(9)]]
    for _ in range(20):
        advance(cache, 1)
    assert cache.held(1)[:3] == [0, 1, 2] and other.row_lens == (11, 29, 9)


def test_update_of_a_trimmed_cache_keeps_its_gaps() -> None:
    trimmed = begun()
    for _ in range(20):
        advance(trimmed, 1)
    cache = make(max_cache_size=30, window_size=20)
    cache.begin(0, range(PINNED))
    cache.update(trimmed)
    assert cache.held(0) == trimmed.held(0)
    advance(cache, 1)
    cache.load(0)
    cache.begin(0, range(5))
    with pytest.raises(ValueError, match="row 0 has pinned position 3, which the new cache does not hold"):
        cache.update(trimmed)
    with pytest.raises(ValueError, match=r"of \(layers, rows, heads, head_dim\) \(2, 3, 2, 8\) cannot take one of"):
        cache.update(StaticKVCache(LAYERS, ROWS + 1, HEADS, HEAD_DIM, 5))
    assert cache.row_lens == (0, 24, 24)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_cache_size": 4}, "window_size must be from 1 to 3, one step less than max_cache_size 4, got 4"),
        ({"window_size": 0}, "window_size must be from 1 to 11, .* got 0"),
        ({"uncond_window": 12}, "uncond_window must be from 1 to 11, .* max_cache_size 12, got 12"),
        ({"window_size": 2.5}, "max_cache_size and window_size must be whole numbers, got 12 and 2.5"),
    ],
)
def test_sizes_that_cannot_work(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_a_prefix_that_leaves_no_room_is_refused_with_both_numbers() -> None:
    cache = make()
    cache.begin(0, range(SLOTS - 1))
    with pytest.raises(ValueError, match="12 pinned positions and a step do not fit into max_cache_size 12; raise it"):
        cache.begin(0, range(5), range(4, SLOTS))
    source = StaticKVCache(LAYERS, 1, HEADS, HEAD_DIM, 20)
    source.reserve(13)
    with pytest.raises(ValueError, match="13 positions do not fit into max_cache_size 12"):
        cache.load(0, source.segment(0, 0, 13))
    with pytest.raises(ValueError, match="has 0 pinned positions and gets 13 at once, more than max_cache_size 12"):
        cache.reserve(13)
    assert cache.row_lens == (0,) * ROWS


@pytest.fixture(scope="module", params=[SMALL, SMALL_GPT2], ids=["llama", "gpt2"])
def model(request: pytest.FixtureRequest) -> T3:
    return build(request.param)


def test_tokens_are_those_of_attention_over_what_is_held(model: T3) -> None:
    for request in long_requests(8, model):
        full = FullCache.beside(model, request.num_rows, required_capacity(model, request), TIGHT)
        engine, exact = DecodeEngine(model, decoder_on(model, full)), []
        engine.join(request)
        while engine.num_requests:
            exact += [token for _, token in engine.step().tokens]
        tokens, cache = decode(model, request, cache_policy=TIGHT)
        assert tokens.tolist() == exact and full.trims >= 1
        row = expected(cache.length, prefix_len(model, request), TIGHT.max_cache_size, TIGHT.window_size)
        assert [cache.held(i) for i in range(cache.num_rows)] == [row] * cache.num_rows
        cache.check_integrity()


def test_a_window_matters(model: T3) -> None:
    requests = long_requests(8, model)
    exact = [generate(model, one).tolist() for one in requests]
    assert [generate(model, one, cache_policy="sliding").tolist() for one in requests] == exact  # never exceeded
    assert [generate(model, one, cache_policy=TIGHT).tolist() for one in requests] != exact


def test_a_batch_equals_its_requests_alone(model: T3) -> None:
    requests = long_requests(12, model)
    alone = [generate(model, one, cache_policy=TIGHT).tolist() for one in requests]
    assert [tokens.tolist() for tokens in generate_batch(model, requests, cache_policy=TIGHT)] == alone
    capacity = max(required_capacity(model, one) for one in requests)
    requests = [dataclasses.replace(one, max_new_tokens=20 + 3 * (i % 7)) for i, one in enumerate(requests)]
    engine = DecodeEngine(model, decoder_on(model, allocate_cache(model, 5, capacity, TIGHT)))
    decoded, _ = decode_together(engine, requests, 5)  # they join and leave, so rows move
    assert decoded == [tokens[: one.max_new_tokens] for tokens, one in zip(alone, requests, strict=True)]


@pytest.mark.parametrize("stop_stride", [1, 3])
def test_captured_steps_go_on_over_trims(model: T3, stop_stride: int) -> None:
    REPLAYS.clear()
    requests = long_requests(8, model)
    cache = allocate_cache(model, 4, max(required_capacity(model, one) for one in requests), TIGHT)
    cache.extent_step = 16
    graphs = StepGraphs(capture=recorded)
    decoded, num_steps = decode_together(
        DecodeEngine(model, decoder_on(model, cache), graphs=graphs, stop_stride=stop_stride), requests, 4
    )
    assert decoded == [generate(model, one, cache_policy=TIGHT).tolist() for one in requests]
    assert graphs.num_captured == len(REPLAYS) >= 2
    assert sum(replay.count for replay in REPLAYS) > num_steps * stop_stride / 2


def test_a_warm_prefix_is_pinned(model: T3) -> None:
    source = Prefiller(model)
    for request in long_requests(3, model) * 2:
        decoded = list(stream(model, request, cache_policy=TIGHT, prefixes=source))
        assert decoded == generate(model, request, cache_policy=TIGHT).tolist()
    assert source.manager.stats()["hits"] > 0


def test_a_text_that_does_not_fit_is_refused_before_any_work(model: T3) -> None:
    request = long_requests(1, model)[0]
    small = dataclasses.replace(TIGHT, max_cache_size=prefix_len(model, request))
    source = Prefiller(model)
    message = f"{small.max_cache_size} pinned positions and a step do not fit into max_cache_size"
    with pytest.raises(ValueError, match=message):
        generate(model, request, cache_policy=small)
    with pytest.raises(ValueError, match=message):
        list(scheduler_of(model, prefixes=source).stream(request, policy=small))
    assert source.manager.stats()["lookups"] == 0
    enough = dataclasses.replace(TIGHT, max_cache_size=prefix_len(model, request) + 1)
    assert len(generate(model, request, cache_policy=enough)) == request.max_new_tokens


def test_a_continued_sequence_keeps_the_voice_and_the_new_text() -> None:
    """Text after text on one cache: what was said before goes, so the rows stay as small as they are."""
    t3 = build(SMALL)
    requests = [dataclasses.replace(one, sampling=SamplingConfig()) for one in long_requests(6, t3)]
    config = dataclasses.replace(TIGHT, max_cache_size=48)
    cache = None
    for request in requests:
        start = 0 if cache is None else cache.length
        same_voice = dataclasses.replace(request, t3_cond=requests[0].t3_cond)
        tokens, cache = decode(t3, same_voice, cache_policy=config, past=cache)
        assert len(tokens) == 40 and int(tokens.max()) <= NUM_SPEECH_TOKENS + 3
        added = prefix_len(t3, request) - (t3.hp.cond_len if start else 0)
        pinned = {*range(t3.hp.cond_len), *range(start, start + added)}
        assert pinned <= set(cache.held(0)) and len(cache.held(0)) <= 48
        cache.check_integrity()
    assert cache.length > 6 * 40 and cache.held(0) == cache.held(1)


def test_the_unconditional_row_has_a_window_of_its_own() -> None:
    t3 = build(SMALL)
    request = dataclasses.replace(long_requests(1, t3)[0], sampling=SamplingConfig())
    _, cache = decode(t3, request, cache_policy=dataclasses.replace(TIGHT, uncond_window=2))
    lens = prefix_len(t3, request), TIGHT.max_cache_size
    assert cache.held(0) == expected(cache.length, *lens, TIGHT.window_size)
    assert cache.held(1) == expected(cache.length, *lens, 2) != cache.held(0)
