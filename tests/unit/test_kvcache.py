"""The static cache's contract, and the backbone on it."""

from __future__ import annotations

import pytest
import torch

from chatterbox.config import LlamaConfig
from chatterbox.kvcache import StaticKVCache
from chatterbox.models.t3.backbone import LlamaBackbone

LAYERS, ROWS, HEADS, HEAD_DIM, CAPACITY = 2, 2, 2, 8, 12


def make(capacity: int = CAPACITY) -> StaticKVCache:
    return StaticKVCache(LAYERS, ROWS, HEADS, HEAD_DIM, capacity)


def fill(cache: StaticKVCache, new_len: int) -> torch.Tensor:
    """Append random keys to every layer; returns those of the last."""
    for layer in range(LAYERS):
        keys = torch.randn(ROWS, HEADS, new_len, HEAD_DIM)
        cache.append(layer, keys, -keys)
    return keys


def test_append_returns_everything_kept_with_positions() -> None:
    cache = make()
    first, second = fill(cache, 3), fill(cache, 2)
    assert cache.length == 5
    third = torch.randn(ROWS, HEADS, 1, HEAD_DIM)
    cache.append(0, third, third)
    keys, values, positions = cache.append(1, third, -third)
    assert torch.equal(keys, torch.cat([first, second, third], dim=2))
    assert torch.equal(values, -keys)
    assert positions.tolist() == [0, 1, 2, 3, 4, 5]


def test_nbytes_counts_keys_and_values() -> None:
    assert make().nbytes == 2 * 4 * LAYERS * ROWS * HEADS * CAPACITY * HEAD_DIM


def test_crop_and_reset() -> None:
    cache = make()
    fill(cache, 6)
    cache.crop(2)
    assert cache.length == 2
    with pytest.raises(ValueError, match="crop a cache of 2 positions to 3"):
        cache.crop(3)
    cache.reset()
    assert cache.length == 0
    assert cache.nbytes == make().nbytes


def test_clone_is_independent() -> None:
    cache = make()
    original = fill(cache, 4)
    clone = cache.clone_prefix(3, capacity=5)
    fill(clone, 1)
    token = torch.randn(ROWS, HEADS, 1, HEAD_DIM)
    cache.append(0, token, token)
    keys, _, _ = cache.append(1, token, token)
    assert torch.equal(keys[:, :, :4], original)
    assert (clone.length, clone.capacity) == (4, 5)


def test_full_cache_names_the_remedy() -> None:
    cache = make(capacity=4)
    fill(cache, 3)
    with pytest.raises(ValueError, match=r"3 \+ 2 positions, capacity 4; .*max_new_tokens"):
        cache.append(0, torch.zeros(ROWS, HEADS, 2, HEAD_DIM), torch.zeros(ROWS, HEADS, 2, HEAD_DIM))


def test_integrity() -> None:
    cache = make()
    fill(cache, 2)
    cache.check_integrity()
    broken = torch.full((ROWS, HEADS, 1, HEAD_DIM), float("nan"))
    cache.append(0, broken, broken)
    with pytest.raises(RuntimeError, match="disagree on their length"):
        cache.check_integrity()
    cache.append(1, broken, broken)
    with pytest.raises(RuntimeError, match="not finite"):
        cache.check_integrity()


def test_sizes_are_validated() -> None:
    with pytest.raises(ValueError, match="capacity=0"):
        make(capacity=0)


@torch.inference_mode()
@pytest.mark.parametrize("pieces", [[7], [4, 3], [1] * 7, [3, 1, 1, 2]])
def test_backbone_in_pieces_equals_whole(pieces: list[int]) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(num_layers=LAYERS, hidden_size=16, num_heads=HEADS, head_dim=HEAD_DIM, intermediate_size=32)
    backbone = LlamaBackbone(config).eval()
    embeds = torch.randn(ROWS, 7, 16)
    cache = make()
    # Whatever lies beyond the written part must never be read.
    cache._keys.fill_(float("nan"))
    cache._values.fill_(float("nan"))
    parts = [backbone(piece, cache) for piece in embeds.split(pieces, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), backbone(embeds), rtol=1e-5, atol=1e-6)
