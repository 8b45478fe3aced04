"""Unmodified transformers models on this package's caches, beside the same models on transformers' own.

``make test-transformers`` runs this file a second time, with transformers 5.2, whose contract is another one.
"""

from __future__ import annotations

import os

import pytest
import torch
import transformers
from torch import Tensor
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from chatterbox.config import KVCacheConfig

if tuple(int(part) for part in transformers.__version__.split(".")[:2]) < (5, 2):
    pytest.skip(
        "transformers is older than the cache supports, which test_old_transformers tests", allow_module_level=True
    )

from chatterbox.integrations.transformers_cache import CROP_COUNTS_REMOVED, TransformersCache

CONFIGS = {
    "llama": (
        LlamaForCausalLM,
        LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=48,
            max_position_embeddings=256,
            bos_token_id=1,
            eos_token_id=None,
            pad_token_id=0,
        ),
    ),
    "gpt2": (
        GPT2LMHeadModel,
        GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=256, bos_token_id=1, eos_token_id=None),
    ),
}
CAPACITY = 96
PACKED = KVCacheConfig("compressed", group_size=8, residual_size=4)
EXACT = {
    "static": KVCacheConfig("static"),
    "dynamic": KVCacheConfig("dynamic"),
    "sliding": KVCacheConfig("sliding"),
    "evicting": KVCacheConfig("evicting", eviction="recency"),
    "headwindow": KVCacheConfig("headwindow"),
    "compressed": KVCacheConfig("compressed", residual_size=CAPACITY),
}


@pytest.fixture(scope="module", params=[(name, how) for name in CONFIGS for how in ("eager", "sdpa")], ids="-".join)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    name, attention = request.param
    kind, config = CONFIGS[name]
    torch.manual_seed(0)
    made = kind(config).eval()
    made.set_attn_implementation(attention)
    for one in made.parameters():
        if one.ndim == 2:
            torch.nn.init.normal_(one, std=0.2)  # as made, attention would be all but uniform
    return made


def wrapped(model: PreTrainedModel, policy: str | KVCacheConfig, rows: int = 2, **options) -> TransformersCache:
    return TransformersCache.for_model(model.config, rows, CAPACITY, policy=policy, **options)


def tokens(rows: int, num: int) -> Tensor:
    return torch.randint(2, 64, (rows, num), generator=torch.Generator().manual_seed(rows + num))


@torch.inference_mode()
def logits_of(model: PreTrainedModel, cache, ids: Tensor, pieces: list[int], mask: Tensor | None = None) -> Tensor:
    """Logits (rows, T, V) of ids given to the model piece by piece."""
    parts, end = [], 0
    for piece in ids.split(pieces, dim=1):
        end += piece.shape[1]
        attention_mask = None if mask is None else mask[:, :end]
        out = model(input_ids=piece, attention_mask=attention_mask, past_key_values=cache, use_cache=True)
        assert out.past_key_values is cache and cache.get_seq_length() == end
        parts.append(out.logits)
    return torch.cat(parts, dim=1)


def test_runs_with_the_version_that_is_meant() -> None:
    meant = os.environ.get("CHATTERBOX_TEST_TRANSFORMERS")
    version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    assert transformers.__version__.startswith(meant) if meant else version >= (5, 4)
    assert CROP_COUNTS_REMOVED or version < (5, 23)


@pytest.mark.parametrize("policy", EXACT)
@pytest.mark.parametrize("pieces", [[40], [30, *[1] * 10], [7, 20, 1, 12]], ids=str)
def test_exact_policies_give_transformers_own_logits(model: PreTrainedModel, policy: str, pieces: list[int]) -> None:
    ids, cache = tokens(2, 40), wrapped(model, EXACT[policy])
    own = logits_of(model, DynamicCache(config=model.config), ids, pieces)
    ours = logits_of(model, cache, ids, pieces)
    torch.testing.assert_close(ours, own, rtol=1e-4, atol=1e-4)
    assert cache.kvcache.row_lens == (40, 40) and own.std() > 0.1
    cache.kvcache.check_integrity()
    held = cache.kvcache.segment(1, 0, 40)
    assert held.keys.abs().amax((1, 2, 3)).min() > 0  # every layer stored its keys


@pytest.mark.parametrize("policy", ["static", "dynamic", "compressed"])
def test_padded_batch(model: PreTrainedModel, policy: str) -> None:
    ids, mask = tokens(3, 30), torch.ones(3, 30, dtype=torch.long)
    mask[0, :9], mask[2, :4] = 0, 0
    pieces = [20, *[1] * 10]
    own = logits_of(model, DynamicCache(config=model.config), ids, pieces, mask)
    ours = logits_of(model, wrapped(model, EXACT[policy], rows=3), ids, pieces, mask)
    real = mask.bool()
    torch.testing.assert_close(ours[real], own[real], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("policy", EXACT)
def test_generate_greedy(model: PreTrainedModel, policy: str) -> None:
    ids, cache = tokens(2, 12), wrapped(model, EXACT[policy])
    options = {"max_new_tokens": 20, "do_sample": False, "attention_mask": torch.ones_like(ids), "pad_token_id": 0}
    own = model.generate(ids, **options)
    assert torch.equal(model.generate(ids, past_key_values=cache, **options), own)
    assert own.shape == (2, 32) and cache.get_seq_length() == 31


def test_generate_with_beams(model: PreTrainedModel) -> None:
    ids, cache = tokens(1, 12), wrapped(model, "static", rows=3)
    options = {"max_new_tokens": 15, "do_sample": False, "num_beams": 3, "pad_token_id": 0}
    options |= {"attention_mask": torch.ones_like(ids)}
    assert torch.equal(model.generate(ids, past_key_values=cache, **options), model.generate(ids, **options))
    assert cache.get_seq_length() == 26


def test_beams_go_on_where_positions_are_forgotten(model: PreTrainedModel) -> None:
    config = KVCacheConfig("sliding", max_cache_size=16, window_size=8)
    cache, ids = wrapped(model, config, rows=3), tokens(3, 30)
    logits_of(model, cache, ids, [10, *[1] * 20])
    helds = [cache.kvcache.segment(row, held[0], 30).keys for row, held in enumerate(map(cache.kvcache.held, range(3)))]
    assert helds[0].shape[2] < 30
    cache.reorder_cache(torch.tensor([1, 0, 1]))
    for row, source in enumerate([1, 0, 1]):
        assert torch.equal(cache.kvcache.segment(row, cache.kvcache.held(row)[0], 30).keys, helds[source])
    cache.kvcache.check_integrity()


@pytest.mark.parametrize(("codec", "bound"), [("int8", 0.01), ("int4", 0.2)])
def test_compressed_is_close(model: PreTrainedModel, codec: str, bound: float) -> None:
    ids, pieces = tokens(2, 60), [20, *[1] * 40]
    cache = wrapped(model, KVCacheConfig("compressed", decode_codec=codec, group_size=8, residual_size=4))
    own = logits_of(model, DynamicCache(config=model.config), ids, pieces)
    error = (logits_of(model, cache, ids, pieces) - own) / own.std()
    assert 1e-5 < error.square().mean().sqrt() < bound
    assert min(cache.kvcache.packed_lens) >= 48


def windowed_logits(model: PreTrainedModel, ids: Tensor, helds: list[list[int]]) -> Tensor:
    """Logits (rows, steps, V) of the last tokens, each with a mask over all of the past that shows what was held."""
    cache, num_steps = DynamicCache(config=model.config), len(helds)
    first = ids.shape[1] - num_steps
    logits_of(model, cache, ids[:, :first], [first])
    parts = []
    for step, held in enumerate(helds):
        mask = torch.full((len(ids), 1, 1, first + step + 1), torch.finfo(torch.float32).min)
        mask[..., held] = 0.0
        with torch.inference_mode():
            one = ids[:, first + step, None]
            at = torch.full_like(one, first + step)
            parts.append(model(input_ids=one, attention_mask=mask, position_ids=at, past_key_values=cache).logits)
    return torch.cat(parts, dim=1)


def test_a_policy_that_forgets_shows_what_it_holds(model: PreTrainedModel) -> None:
    ids, settings = tokens(2, 60), KVCacheConfig("sliding", max_cache_size=20, window_size=8)
    cache = wrapped(model, settings, pinned_len=6)
    logits_of(model, cache, ids[:, :15], [15])
    parts, helds = [], []
    for end in range(16, 61):
        with torch.inference_mode():
            parts.append(model(input_ids=ids[:, end - 1 : end], past_key_values=cache, use_cache=True).logits)
        helds.append(cache.kvcache.held(0))
        assert cache.get_seq_length() == end
    assert helds[-1][:6] == list(range(6)) and len(helds[-1]) <= 20 and helds[-1][-1] == 59
    torch.testing.assert_close(torch.cat(parts, dim=1), windowed_logits(model, ids, helds), rtol=1e-4, atol=1e-4)
    before = cache.get_seq_length()
    with torch.inference_mode():  # several at once, behind a gap: causal among themselves
        several = model(input_ids=ids[:, :3], past_key_values=cache, use_cache=True).logits
    cache.crop(-3 if CROP_COUNTS_REMOVED else before)
    with torch.inference_mode():
        singly = [model(input_ids=ids[:, i : i + 1], past_key_values=cache, use_cache=True).logits for i in range(3)]
    torch.testing.assert_close(several, torch.cat(singly, dim=1), rtol=1e-4, atol=1e-4)
    assert not cache.layers[0].is_croppable


def test_crop_and_reset(model: PreTrainedModel) -> None:
    ids, cache = tokens(2, 40), wrapped(model, "static")
    first = logits_of(model, cache, ids, [40])
    cache.crop(-10)
    assert cache.get_seq_length() == 30 and cache.layers[0].is_croppable
    with torch.inference_mode():
        again = model(input_ids=ids[:, 30:], past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(again, first[:, 30:], rtol=1e-4, atol=1e-4)
    cache.crop(0) if CROP_COUNTS_REMOVED else cache.crop(40)
    assert cache.get_seq_length() == 40
    if CROP_COUNTS_REMOVED:
        with pytest.raises(ValueError, match="crop takes minus the number of tokens to remove in this version, got 3"):
            cache.crop(3)
    cache.reset()
    assert cache.get_seq_length() == 0
    torch.testing.assert_close(logits_of(model, cache, ids, [40]), first, rtol=1e-4, atol=1e-4)


def test_a_mask_without_its_pass_leaves_no_trace() -> None:
    kind, config = CONFIGS["llama"]
    model, ids = kind(config).eval(), tokens(2, 12)
    cache = wrapped(model, "static")
    own = logits_of(model, DynamicCache(config=config), ids, [8, 4])
    first = logits_of(model, cache, ids[:, :8], [8])
    for num_new in (5, 3, 4):
        size = num_new if CROP_COUNTS_REMOVED else torch.arange(8, 8 + num_new)
        assert cache.get_mask_sizes(size, 0) == (8 + num_new, 0)
        assert cache.get_seq_length() == 8
    with torch.inference_mode():
        second = model(input_ids=ids[:, 8:], past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(torch.cat([first, second], dim=1), own, rtol=1e-4, atol=1e-4)
    assert cache.kvcache.row_lens == (12, 12)
    cache.kvcache.check_integrity()


def test_what_cannot_be_done_is_refused() -> None:
    kind, config = CONFIGS["llama"]
    model = kind(config).eval()
    with pytest.raises(ValueError, match="policy 'none' is no cache"):
        wrapped(model, "none")
    with pytest.raises(ValueError, match="EvictingKVCache is to score tokens or attention"):
        wrapped(model, KVCacheConfig("evicting", eviction="attention"))
    with pytest.raises(ValueError, match="20 pinned positions and a step do not fit into max_cache_size 20"):
        wrapped(model, KVCacheConfig("sliding", max_cache_size=20, window_size=4), pinned_len=20)
    cache = wrapped(model, "static")
    with pytest.raises(ValueError, match="the cache has 2 rows, the batch 3; allocate as many rows as sequences"):
        logits_of(model, cache, tokens(3, 5), [5])
    for refused in (lambda: cache.batch_repeat_interleave(2), lambda: cache.batch_select_indices(torch.tensor([0]))):
        with pytest.raises(ValueError, match="rows are allocated once"):
            refused()
    heads = wrapped(model, KVCacheConfig("headwindow", max_cache_size=20, window_size=8))
    logits_of(model, heads, tokens(2, 20), [15, *[1] * 5])
    with pytest.raises(ValueError, match="heads keep positions of their own"):
        logits_of(model, heads, tokens(2, 1), [1])
    full = wrapped(model, "static")
    with pytest.raises(ValueError, match=r"0 \+ 97 positions, capacity 96"):
        logits_of(model, full, tokens(2, 97), [97])
    assert full.get_seq_length() == 0
