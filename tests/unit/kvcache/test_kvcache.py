"""The contract of every exact cache, and the backbone on it; a cache with a bound is exact below it."""

from __future__ import annotations

import pytest
import torch

from chatterbox.kvcache import KVCache, Segment, policy
from chatterbox.kvcache.static import PreallocatedKVCache
from chatterbox.models.config import LlamaConfig
from chatterbox.models.t3.backbone import LlamaBackbone

LAYERS, ROWS, HEADS, HEAD_DIM, CAPACITY = 2, 3, 2, 8, 12


def make(name: str, capacity: int = CAPACITY) -> KVCache:
    cache = policy(name)(LAYERS, ROWS, HEADS, HEAD_DIM, capacity)
    if isinstance(cache, PreallocatedKVCache):  # memory as it may come
        cache._keys.fill_(float("nan"))
        cache._values.fill_(float("nan"))
    return cache


@pytest.fixture(params=["static", "dynamic", "sliding", "evicting"])
def cache(request: pytest.FixtureRequest) -> KVCache:
    return make(request.param)


def fill(cache: KVCache, new_len: int, rows: slice = slice(None)) -> torch.Tensor:
    """Append random keys, and values of opposite sign, to every layer.

    Returns the keys, (layers, rows, heads, new, head_dim).
    """
    cache.reserve(new_len, rows)
    keys = torch.randn(LAYERS, len(range(*rows.indices(ROWS))), HEADS, new_len, HEAD_DIM)
    for layer in range(LAYERS):
        cache.append(layer, keys[layer], -keys[layer])
    return keys


def held(cache: KVCache, row: int) -> torch.Tensor:
    """Keys (layers, heads, length, dim) of a row; its values must be their negatives."""
    segment = cache.segment(row, 0, cache.row_lens[row])
    assert torch.equal(segment.values, -segment.keys)
    return segment.keys


def test_rows_grow_on_their_own(cache: KVCache) -> None:
    first = fill(cache, 3)
    second = fill(cache, 2, slice(1, 3))
    third = fill(cache, 1, slice(0, 2))
    assert cache.row_lens == (4, 6, 5)
    assert cache.length == 6
    assert torch.equal(held(cache, 0), torch.cat([first[:, 0], third[:, 0]], dim=2))
    assert torch.equal(held(cache, 1), torch.cat([first[:, 1], second[:, 0], third[:, 1]], dim=2))
    assert torch.equal(held(cache, 2), torch.cat([first[:, 2], second[:, 1]], dim=2))


def test_append_returns_everything_kept_with_positions(cache: KVCache) -> None:
    fill(cache, 3)
    fill(cache, 2, slice(1, 3))
    positions = cache.reserve(1, slice(0, 2))
    assert positions.tolist() == [[3], [5]]
    new = torch.randn(2, HEADS, 1, HEAD_DIM)
    for layer in range(LAYERS):
        keys, values, kept = cache.append(layer, new, -new)
    for row in range(2):
        reached = kept.expand(2, -1)[row] <= positions[row]
        order = kept.expand(2, -1)[row][reached].argsort()
        assert kept.expand(2, -1)[row][reached][order].tolist() == list(range(cache.row_lens[row]))
        assert torch.equal(keys[row][:, reached][:, order], held(cache, row)[-1])
        assert torch.equal(values[row][:, reached], -keys[row][:, reached])


def test_crop_and_reset(cache: KVCache) -> None:
    fill(cache, 4)
    kept = fill(cache, 2, slice(0, 1))
    assert cache.row_lens == (6, 4, 4)
    cache.crop(5)
    assert cache.row_lens == (5, 4, 4)
    assert torch.equal(held(cache, 0)[:, :, 4:], kept[:, 0, :, :1])
    with pytest.raises(ValueError, match="cannot keep 6 positions of a cache that holds 5"):
        cache.crop(6)
    cache.reset()
    assert cache.row_lens == (0, 0, 0)
    again = fill(cache, 2)
    assert torch.equal(held(cache, 2), again[:, 2])


def test_clone_is_independent(cache: KVCache) -> None:
    fill(cache, 4)
    before = held(cache, 1)
    clone = cache.clone_prefix(3, capacity=5)
    assert (clone.row_lens, clone.capacity) == ((3, 3, 3), 5)
    fill(clone, 1)
    fill(cache, 1)
    assert torch.equal(held(cache, 1)[:, :, :4], before)
    assert torch.equal(held(clone, 1)[:, :, :3], before[:, :, :3])
    with pytest.raises(ValueError, match="cannot keep 9 positions of a cache that holds 5"):
        cache.clone_prefix(9)


def test_segments_travel_between_caches_of_any_policy(cache: KVCache) -> None:
    source = make("static")
    keys = fill(source, 7)
    head, tail = source.segment(0, 0, 4), source.segment(1, 4, 7)
    assert (len(head), head.start, head.end, tail.start) == (4, 0, 4, 4)
    fill(cache, 2)
    cache.load(1, head, tail)
    assert cache.row_lens == (2, 7, 2)
    assert torch.equal(held(cache, 1), torch.cat([keys[:, 0, :, :4], keys[:, 1, :, 4:]], dim=2))
    assert torch.equal(head[1:3].keys, head.keys[:, :, 1:3]) and head[1:3].start == 1
    with pytest.raises(ValueError, match="starts at position 4, expected 0"):
        cache.load(0, tail)
    beyond = Segment(head.keys.repeat(1, 1, 2, 1), head.values.repeat(1, 1, 2, 1), 7)
    with pytest.raises(ValueError, match=r"0 \+ 15 positions, capacity 12"):
        cache.load(0, head, tail, beyond)
    assert cache.row_lens == (2, 7, 2)
    cache.load(1)
    assert cache.row_lens == (2, 0, 2)


def test_a_segment_is_a_copy(cache: KVCache) -> None:
    fill(cache, 3)
    taken = cache.segment(0, 0, 3)
    before = taken.keys.clone()
    cache.reset()
    fill(cache, 3)
    assert torch.equal(taken.keys, before)
    with pytest.raises(ValueError, match="row 0 holds 3 positions, not 1 to 4"):
        cache.segment(0, 1, 4)


def test_move_row(cache: KVCache) -> None:
    fill(cache, 2)
    fill(cache, 3, slice(2, 3))
    moved = held(cache, 2)
    cache.move_row(2, 0)
    assert cache.row_lens == (5, 2, 0)
    assert torch.equal(held(cache, 0), moved)
    new = fill(cache, 1)
    assert torch.equal(held(cache, 2), new[:, 2])


def test_full_cache_names_the_remedy(cache: KVCache) -> None:
    fill(cache, 11)
    with pytest.raises(ValueError, match=r"11 \+ 2 positions, capacity 12; .*max_new_tokens"):
        cache.reserve(2)
    assert cache.row_lens == (11, 11, 11)
    fill(cache, 1)


def test_nbytes() -> None:
    per_position = 2 * 4 * LAYERS * ROWS * HEADS * HEAD_DIM
    assert make("static").nbytes == CAPACITY * per_position
    growing = make("dynamic")
    assert growing.nbytes == 0
    fill(growing, 3)
    assert growing.nbytes == 3 * per_position


def test_integrity(cache: KVCache) -> None:
    fill(cache, 2)
    cache.check_integrity()
    cache.reserve(1)
    broken = torch.full((ROWS, HEADS, 1, HEAD_DIM), float("nan"))
    cache.append(0, broken, broken)
    with pytest.raises(RuntimeError, match="layers of the cache"):
        cache.check_integrity()
    cache.append(1, broken, broken)
    with pytest.raises(RuntimeError, match="not finite"):
        cache.check_integrity()


@pytest.mark.parametrize("name", ["static", "dynamic"])
def test_sizes_are_validated(name: str) -> None:
    with pytest.raises(ValueError, match="capacity=0"):
        make(name, capacity=0)


def test_unknown_policy() -> None:
    with pytest.raises(ValueError, match=r"policy 'paged' does not exist; choose from .*dynamic, .*none, .*static"):
        policy("paged")


@torch.inference_mode()
@pytest.mark.parametrize("name", ["static", "dynamic", "sliding", "evicting"])
@pytest.mark.parametrize("pieces", [[7], [4, 3], [1] * 7, [3, 1, 1, 2]])
def test_backbone_in_pieces_equals_whole(name: str, pieces: list[int]) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(num_layers=LAYERS, hidden_size=16, num_heads=HEADS, head_dim=HEAD_DIM, intermediate_size=32)
    backbone = LlamaBackbone(config).eval()
    embeds = torch.randn(ROWS, 7, 16)
    cache = make(name)
    parts = [backbone(piece, cache) for piece in embeds.split(pieces, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), backbone(embeds), rtol=1e-5, atol=1e-6)
