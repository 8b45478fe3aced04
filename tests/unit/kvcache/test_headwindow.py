"""Head windows: which head keeps what, and that the memory is not there."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from chatterbox.config import KVCacheConfig
from chatterbox.engine.decode import decode, generate
from chatterbox.kvcache import HeadWindowKVCache, KVCache, StaticKVCache, compress_cache, identify_important_heads
from chatterbox.kvcache.base import NOWHERE, position_mask
from chatterbox.kvcache.dynamic import DynamicKVCache
from tests.support.decoding import generate_batch
from tests.support.small import REQUESTS, SMALL, SMALL_GPT2, build, make_request

LAYERS, ROWS, HEADS, HEAD_DIM, CAPACITY, BASE, WINDOW = 2, 3, 4, 8, 200, 20, 8
PINNED = 5


def make(capacity: int = CAPACITY, **settings) -> HeadWindowKVCache:
    options = {"max_cache_size": BASE, "window_size": WINDOW, "full_heads": 0.4}
    cache = HeadWindowKVCache(LAYERS, ROWS, HEADS, HEAD_DIM, capacity, **options | settings)
    for store in (cache._keys, cache._values, cache._more_keys, cache._more_values):
        store.fill_(float("nan"))  # memory as it may come
    return cache


def append(caches: tuple[KVCache, ...], new_len: int, rows: slice = slice(0, ROWS)) -> list[list[tuple]]:
    """Append the same random numbers to caches; returns what each layer of each saw."""
    shape = (LAYERS, len(range(ROWS)[rows]), HEADS, new_len, HEAD_DIM)
    keys, values = torch.randn(shape), torch.randn(shape)
    seen = []
    for cache in caches:
        cache.reserve(new_len, rows)
        seen.append([cache.append(layer, keys[layer], values[layer]) for layer in range(LAYERS)])
    return seen


def seen_by(keys: Tensor, values: Tensor, positions: Tensor, row: int, head: int, length: int) -> dict[int, Tensor]:
    """Keys and values that a head sees of a row of that length, by position; none may be there twice."""
    own = positions[row, head] if positions.ndim == 3 else positions[row]
    slots = (own < length).nonzero()[:, 0].tolist()
    found = {int(own[slot]): torch.cat([keys[row, head, slot], values[row, head, slot]]) for slot in slots}
    assert len(found) == len(slots)
    return found


def require_content(cache: HeadWindowKVCache, exact: StaticKVCache, seen: list[tuple], rows: slice) -> None:
    """What each head sees is what it was given: a full one of every position, a windowed one of those that are held."""
    for layer, place in itertools.product(range(LAYERS), range(len(range(ROWS)[rows]))):
        row = range(ROWS)[rows][place]
        length = cache.row_lens[row]
        wanted = exact.segment(row, 0, length)
        for head in range(HEADS):
            found = seen_by(*seen[layer], place, head, length)
            full = not cache.is_split[row] or bool(cache.is_full[layer, row, head])
            assert sorted(found) == (list(range(length)) if full else cache.held(row))
            for position, number in found.items():
                both = (wanted.keys[layer, head, position], wanted.values[layer, head, position])
                assert torch.equal(number, torch.cat(both))


def test_important_heads_keep_everything_the_rest_prefix_and_window() -> None:
    torch.manual_seed(0)
    cache, exact = make(), StaticKVCache(LAYERS, ROWS, HEADS, HEAD_DIM, CAPACITY)
    for row in range(ROWS):
        cache.begin(row, range(PINNED))
    for new_len in (PINNED, *[1] * 60, 6, *[1] * 20):
        seen, _ = append((cache, exact), new_len)
        require_content(cache, exact, seen, slice(0, ROWS))
        cache.check_integrity()
        for row, length in enumerate(cache.row_lens):
            held = cache.held(row)
            assert len(held) <= BASE and held[:PINNED] == list(range(PINNED))
            if length > BASE:
                assert held[PINNED:] == list(range(held[PINNED], length)) and len(held) >= PINNED + WINDOW
    assert cache.num_full == 3 and all(cache.is_split)
    assert [int(cache.is_full[:, row].sum()) for row in range(ROWS)] == [3, 3, 3]
    assert seen[0][2].shape == (ROWS, HEADS, seen[0][0].shape[2])


@pytest.mark.parametrize("full_heads", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_any_order_of_operations(seed: int, full_heads: float) -> None:
    torch.manual_seed(seed)
    rng, cache = random.Random(seed), make(full_heads=full_heads)
    exact = StaticKVCache(LAYERS, ROWS, HEADS, HEAD_DIM, CAPACITY)
    done, num_refused = {}, 0
    for _ in range(200):
        name = rng.choice(["append"] * 8 + ["crop", "move_row", "load", "clone", "reset"])
        if name == "append":
            first = rng.randrange(ROWS)
            rows, new_len = slice(first, rng.randint(first + 1, ROWS)), rng.choice([1, 1, 2, 5, 12])
            if max(cache.row_lens[rows]) + new_len > CAPACITY:
                continue
            seen, _ = append((cache, exact), new_len, rows)
            require_content(cache, exact, seen, rows)
        elif name == "crop":
            length, before = rng.randint(max(0, cache.length - 6), cache.length), cache.row_lens
            try:
                cache.crop(length)
                exact.crop(length)
            except ValueError as error:
                assert "it cannot be cut behind it" in str(error) and cache.row_lens == before
                num_refused += 1
        elif name == "move_row":
            source, target = rng.sample(range(ROWS), 2)
            cache.move_row(source, target)
            exact.move_row(source, target)
        elif name == "load":
            row, source = rng.sample(range(ROWS), 2)
            part = exact.segment(source, 0, min(BASE, exact.row_lens[source]))
            cache.load(row, part)
            exact.load(row, part)
            cache.begin(row, range(min(PINNED, len(part))))
        elif name == "clone":
            cache, before = cache.clone_prefix(cache.length, rng.choice([None, CAPACITY])), cache
            before.reset()
        elif rng.random() < 0.2:
            cache.reset()
            exact.reset()
        cache.check_integrity()
        assert cache.row_lens == exact.row_lens
        for row, length in enumerate(cache.row_lens):
            newest = next((n for n in range(length) if length - n - 1 not in cache.held(row)), length)
            got, wanted = (one.segment(row, length - newest, length) for one in (cache, exact))
            assert torch.equal(got.keys, wanted.keys) and torch.equal(got.values, wanted.values)
            if newest < length:
                with pytest.raises(ValueError, match="not every head of row"):
                    cache.segment(row, length - newest - 1, length)
        done[name] = done.get(name, 0) + any(cache.is_split)
    assert len(done) == 6 and sum(done.values()) > 50  # heads were told apart most of the time


def test_memory_is_not_there() -> None:
    cache, exact = make(), StaticKVCache(LAYERS, ROWS, HEADS, HEAD_DIM, CAPACITY)
    slots = LAYERS * HEADS * (BASE + 1) + 3 * (CAPACITY - BASE + 1)
    assert cache.nbytes == 2 * 4 * ROWS * HEAD_DIM * slots
    assert cache.nbytes < 0.45 * exact.nbytes
    stores = (cache._keys, cache._values, cache._more_keys, cache._more_values)
    assert sum(store.untyped_storage().nbytes() for store in stores) == cache.nbytes


def test_exact_until_the_base_is_full() -> None:
    cache, exact = make(), StaticKVCache(LAYERS, ROWS, HEADS, HEAD_DIM, CAPACITY)
    append((cache, exact), 12)
    for _ in range(8):
        (seen, _) = append((cache, exact), 1)
        assert seen[0][2].ndim == 2
    assert not any(cache.is_split)
    (seen, _) = append((cache, exact), 1)
    assert all(cache.is_split) and seen[0][2].ndim == 3


def test_short_capacity_never_tells_heads_apart() -> None:
    cache = make(capacity=15)
    append((cache,), 15)
    assert not any(cache.is_split) and cache._more_keys.numel() == 0
    with pytest.raises(ValueError, match=r"15 \+ 1 positions, capacity 15"):
        cache.reserve(1)


def test_what_cannot_be_kept_is_refused() -> None:
    cache = make()
    with pytest.raises(ValueError, match="20 pinned positions and a step do not fit into max_cache_size 20"):
        cache.require_pinned(range(5), range(3, 20))
    with pytest.raises(ValueError, match="window_size must be from 1 to 19"):
        make(window_size=20)
    with pytest.raises(ValueError, match=r"full_heads must be a number from 0 to 1, got 1\.5"):
        make(full_heads=1.5)
    append((cache,), 10)
    cache.begin(0, range(10))
    before = cache.row_lens
    with pytest.raises(ValueError, match="row 0 has 10 pinned positions and gets 11 at once"):
        cache.reserve(11)
    assert cache.row_lens == before
    for _ in range(20):
        append((cache,), 1)
    with pytest.raises(ValueError, match="row 1 cannot pin position 0, which not every head holds any more"):
        cache.begin(1, range(10))
    with pytest.raises(ValueError, match="row 0 has its heads"):
        cache.assign_heads(0, torch.zeros(LAYERS, HEADS))
    with pytest.raises(ValueError, match="21 positions do not fit into max_cache_size 20"):
        source = StaticKVCache(LAYERS, ROWS, HEADS, HEAD_DIM, CAPACITY)
        append((source,), 21)
        cache.load(0, source.segment(0, 0, 21))


def test_integrity() -> None:
    cache = make()
    append((cache,), 18)
    for _ in range(10):
        append((cache,), 1)
    cache.check_integrity()
    layer, head = cache.is_full[:, 1].nonzero()[0].tolist()
    cache._more_keys[cache._place_of[layer, 1, head], 1, 2] = float("nan")
    with pytest.raises(RuntimeError, match="not finite"):
        cache.check_integrity()


def test_mask_of_heads_with_positions_of_their_own() -> None:
    queries, keys = (
        torch.tensor([[4, 5], [9, 10]]),
        torch.tensor([[[0, 4, 5], [3, NOWHERE, 5]], [[8, 9, 10], [1, 2, 11]]]),
    )
    mask = position_mask(queries, keys)
    assert mask.shape == (2, 2, 2, 3)
    for row, head, query in itertools.product(range(2), repeat=3):
        assert torch.equal(mask[row, head, query], keys[row, head] <= queries[row, query])
    assert torch.equal(position_mask(torch.tensor([4, 5]), keys)[0], mask[0])


@torch.inference_mode()
def test_attention_by_heads_is_what_each_head_alone_would_do() -> None:
    """The backbone on head windows: the same as every head attending to what it kept."""
    torch.manual_seed(0)
    cache = make(capacity=60)
    for row in range(ROWS):
        cache.begin(row, range(PINNED))
    for new_len in (PINNED, *[1] * 30):
        (seen,) = append((cache,), new_len)
    query, at = torch.randn(ROWS, HEADS, 1, HEAD_DIM), torch.full((ROWS, 1), cache.length - 1)
    for keys, values, positions in seen:
        mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=position_mask(at, positions))
        for row, head in itertools.product(range(ROWS), range(HEADS)):
            found = torch.stack(list(seen_by(keys, values, positions, row, head, cache.length).values()))
            k, v = found.split(HEAD_DIM, dim=1)
            alone = F.scaled_dot_product_attention(query[row, head], k, v)
            torch.testing.assert_close(mixed[row, head], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("hp", [SMALL, SMALL_GPT2], ids=["llama", "gpt2"])
def test_decodes_requests(hp) -> None:
    """With room for all: the uncached decoder's tokens; without, it goes on to the end, alone and in a batch."""
    t3, request = build(hp), make_request(3, hp)
    roomy = KVCacheConfig(policy="headwindow")
    assert generate(t3, request, cache_policy=roomy).tolist() == generate(t3, request, use_cache=False).tolist()
    requests = REQUESTS[:3] if hp.has_guidance else [make_request(seed, hp) for seed in range(3)]
    small = KVCacheConfig(policy="headwindow", max_cache_size=48, window_size=4)
    for one in requests:
        tokens, cache = decode(t3, one, cache_policy=small)
        assert isinstance(cache, HeadWindowKVCache) and len(tokens) >= 1
        cache.check_integrity()
    assert len(generate_batch(t3, requests, cache_policy=small)) == 3


def important(num: int = 64) -> tuple[Tensor, Tensor]:
    """Keys and values of 2 layers of 3 heads, of which (0, 1) and (1, 2) look far back."""
    torch.manual_seed(0)
    k, v = 0.1 * torch.randn(2, 3, num, 16), torch.randn(2, 3, num, 16)
    k[..., 0] += 6.0 * torch.linspace(0, 1, num)  # the newest keys stand out: a query like them looks at them
    for layer, head in ((0, 1), (1, 2)):
        k[layer, head] = 0.1 * torch.randn(num, 16)
        k[layer, head, num // 2 :: 4] += 4.0
        k[layer, head, num // 3] += 8.0
    return k, v


def test_scores_tell_far_looking_heads() -> None:
    k, v = important()
    scores = identify_important_heads(k, v)
    assert scores.shape == (2, 3) and scores.dtype == torch.float32
    assert sorted(scores.flatten().topk(2).indices.tolist()) == [1, 5]
    assert not identify_important_heads(k, v, window=64).any()  # nothing would be forgotten
    assert torch.equal(identify_important_heads(k[0], v[0]), scores[0])
    with pytest.raises(ValueError, match="keys and values must be"):
        identify_important_heads(k, v[:, :, 1:])


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("kind", [StaticKVCache, DynamicKVCache])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compress_cache(kind: type[KVCache], ratio: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    cache = kind(4, 2, 4, 16, 200, dtype=dtype)
    new = torch.randn(4, 2, 4, 180, 16, dtype=dtype)
    cache.reserve(180)
    for layer in range(4):
        cache.append(layer, new[layer], -new[layer])
    small = compress_cache(cache, ratio, pinned_len=10)
    small.check_integrity()
    assert small.row_lens == (180, 180)
    assert 0.93 * ratio < small.nbytes / cache.nbytes <= ratio + 0.01
    full = small.is_full.nonzero().tolist()
    assert len(full) == 2 * small.num_full == 2 * int(16 * ratio / 2)
    for layer, row, head in full:  # the important heads have all of it
        keys, values = small._seen(layer, slice(row, row + 1), small._see_extension(180))
        assert torch.equal(keys[0, head, :180], new[layer, row, head])
        assert torch.equal(values[0, head, :180], -new[layer, row, head])
    held = small.held(0)
    assert held[:10] == list(range(10)) and held[-1] == 179 and len(held) <= small.bound
    assert torch.equal(small.segment(1, 175, 180).keys, new[:, 1, :, 175:180])
    if kind is DynamicKVCache:  # had memory for no more than it held
        with pytest.raises(ValueError, match=r"180 \+ 1 positions, capacity 180"):
            small.reserve(1)
        return
    small.reserve(1)
    for layer in range(4):
        small.append(layer, new[layer, :, :, :1], new[layer, :, :, :1])
    small.check_integrity()


def test_compress_cache_refuses() -> None:
    cache = StaticKVCache(LAYERS, ROWS, HEADS, HEAD_DIM, 40)
    append((cache,), 30)
    for ratio in (0.0, 1.0, -1.0):
        with pytest.raises(ValueError, match="compression_ratio must be between 0 and 1, got"):
            compress_cache(cache, ratio)
    with pytest.raises(ValueError, match=r"compression_ratio 0.3 leaves \d+ positions .* too few for 15 pinned"):
        compress_cache(cache, 0.3, pinned_len=15)
    whole = compress_cache(cache, 0.9)
    assert not any(whole.is_split) and torch.equal(whole.segment(0, 0, 30).keys, cache.segment(0, 0, 30).keys)
