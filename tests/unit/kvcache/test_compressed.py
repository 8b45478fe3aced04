"""The packed decode cache: what it holds is within its bound of what it was given, and it does take less memory."""

from __future__ import annotations

import gc
import itertools
import random

import pytest
import torch
from torch import Tensor

from chatterbox.config import KVCacheConfig
from chatterbox.engine.decode import decode
from chatterbox.engine.request import prefill_embeds
from chatterbox.kvcache import KVCache, StaticKVCache
from chatterbox.kvcache.compressed import CompressedKVCache
from chatterbox.models.config import T3Config
from chatterbox.models.t3 import T3
from tests.support.small import SMALL, SMALL_GPT2, build, make_request

LAYERS, ROWS, HEADS, HEAD_DIM, CAPACITY = 2, 3, 2, 8, 200
STEPS = {"int8": 255, "int4": 15}
CODECS = list(STEPS)


def make(codec: str, capacity: int = CAPACITY, rows: int = ROWS, **settings) -> CompressedKVCache:
    return CompressedKVCache(
        LAYERS, rows, HEADS, HEAD_DIM, capacity, codec=codec, **{"group_size": 8, "residual_size": 5} | settings
    )


def append(caches: tuple[KVCache, ...], new_len: int, rows: slice) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Append the same numbers from -1 to 1 to caches; returns what the last layer gave each to look at."""
    shape = (LAYERS, len(range(ROWS)[rows]), HEADS, new_len, HEAD_DIM)
    keys, values = 2 * torch.rand(shape) - 1, 2 * torch.rand(shape) - 1
    seen = []
    for cache in caches:
        cache.reserve(new_len, rows)
        seen.append([cache.append(layer, keys[layer], values[layer]) for layer in range(LAYERS)][-1])
    return seen


def require_same(cache: CompressedKVCache, exact: StaticKVCache) -> float:
    """Compare all content with the exact cache's, within half a step of numbers from -1 to 1; returns the error."""
    cache.check_integrity()
    assert cache.row_lens == exact.row_lens
    largest = 0.0
    for row, length in enumerate(cache.row_lens):
        got, wanted = cache.segment(row, 0, length), exact.segment(row, 0, length)
        for ours, theirs in ((got.keys, wanted.keys), (got.values, wanted.values)):
            error = (ours - theirs).abs().amax().item() if length else 0.0
            assert error <= 1.0 / STEPS[cache.codec] + 1e-6
            largest = max(largest, error)
        middle = length // 3
        part = cache.segment(row, middle, length - middle // 2)
        assert torch.equal(part.keys, got.keys[:, :, middle : length - middle // 2]) and part.start == middle
    return largest


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("seed", range(4))
def test_any_order_of_operations(codec: str, seed: int) -> None:
    torch.manual_seed(seed)
    rng = random.Random(seed)
    cache, exact = make(codec), StaticKVCache(LAYERS, ROWS, HEADS, HEAD_DIM, CAPACITY)
    largest, done = 0.0, set()
    for _ in range(120):
        name = rng.choice(["append"] * 6 + ["crop", "move_row", "load", "clone", "reset"])
        if name == "append":
            first = rng.randrange(ROWS)
            rows = slice(first, rng.randint(first + 1, ROWS))
            new_len = rng.choice([1, 1, 1, 2, 9, 13, 40])
            if max(cache.row_lens[rows]) + new_len <= CAPACITY:
                append((cache, exact), new_len, rows)
        elif name == "crop":
            length = rng.randint(cache.length // 2, cache.length)
            cache.crop(length)
            exact.crop(length)
            require_same(cache, exact)
            for row, kept in enumerate(
                cache.row_lens
            ):  # a group that was cut is packed again, from what was left of it
                exact.load(row, cache.segment(row, 0, kept))
        elif name == "move_row":
            source, target = rng.sample(range(ROWS), 2)
            cache.move_row(source, target)
            exact.move_row(source, target)
        elif name == "load":
            row, source = rng.sample(range(ROWS), 2)
            middle = exact.row_lens[source] // 2
            parts = [exact.segment(source, 0, middle), exact.segment(source, middle, exact.row_lens[source])]
            cache.load(row, *parts)
            exact.load(row, *parts)
        elif name == "clone":
            length = rng.randint(cache.length // 2, cache.length)
            capacity = rng.choice([None, max(1, length), CAPACITY + 50])
            clone, twin = cache.clone_prefix(length, capacity), exact.clone_prefix(length, capacity)
            require_same(clone, twin)
            clone.reset()
        elif rng.random() < 0.2:
            cache.reset()
            exact.reset()
        largest = max(largest, require_same(cache, exact))
        done.add(name)
    assert len(done) == 6 and largest > 0.2 / STEPS[codec]  # it did pack


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("pieces", [[120], [1] * 60, [50, 1, 1, 40, 20], [3, 3, 3, 90]], ids=str)
def test_layers_see_every_position_once(codec: str, pieces: list[int]) -> None:
    cache, exact = make(codec), StaticKVCache(LAYERS, ROWS, HEADS, HEAD_DIM, CAPACITY)
    append((cache, exact), 7, slice(1, 3))  # rows of different lengths
    for new_len in pieces:
        (keys, values, positions), _ = append((cache, exact), new_len, slice(0, 3))
        for row, length in enumerate(cache.row_lens):
            slots = (positions[row] < length).nonzero()[:, 0]
            slots = slots[positions[row, slots].argsort()]
            assert positions[row, slots].tolist() == list(range(length))
            wanted = exact.segment(row, 0, length)
            newest = min(length, cache.residual_size)
            for got, all_of in ((keys, wanted.keys), (values, wanted.values)):
                error = (got[row][:, slots] - all_of[-1]).abs().amax((0, 2))
                assert error.max() <= 1.0 / STEPS[codec] + 1e-6
                assert not error[length - max(newest, new_len) :].any()  # what is new is exact
    assert cache.packed_lens[2] >= sum(pieces) - 2 * cache.group_size


@pytest.mark.parametrize("codec", CODECS)
def test_exact_until_the_first_group_is_packed(codec: str) -> None:
    cache, exact = make(codec), StaticKVCache(LAYERS, ROWS, HEADS, HEAD_DIM, CAPACITY)
    append((cache, exact), 5, slice(0, 3))
    for _ in range(8):
        append((cache, exact), 1, slice(0, 3))
    assert require_same(cache, exact) == 0.0 and cache.packed_lens == [0, 0, 0]
    append((cache, exact), 1, slice(0, 3))
    assert require_same(cache, exact) > 0.0 and cache.packed_lens == [8, 8, 8]


def live_tensors() -> list[Tensor]:
    """All of this process."""
    gc.collect()
    return [x for x in gc.get_objects() if issubclass(type(x), Tensor)]


def new_bytes(before: list[Tensor]) -> int:
    """Of the storages that came after ``before``, which keeps its own alive: no address is given out twice."""
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in live_tensors()}
    return sum(storages[at] for at in storages.keys() - {x.untyped_storage().data_ptr() for x in before})


@pytest.mark.parametrize(
    ("codec", "dtype", "share"),
    [
        ("int8", torch.float32, 0.376),
        ("int4", torch.float32, 0.251),
        ("int8", torch.bfloat16, 0.626),
        ("int4", torch.bfloat16, 0.376),
    ],
    ids=str,
)
def test_memory(codec: str, dtype: torch.dtype, share: float) -> None:
    """Filled to 1,000 positions: what stays allocated is what `nbytes` says, and a step leaves nothing behind."""
    sizes, new = (2, 1, 4, 64, 1024), torch.randn(1, 4, 1000, 64, dtype=dtype)

    def filled(cache: KVCache) -> KVCache:
        for piece in (new[:, :, :900], *new[:, :, 900:].split(1, dim=2)):
            cache.reserve(piece.shape[2])
            for layer in range(2):
                cache.append(layer, piece, piece)
        return cache

    before = live_tensors()
    exact = filled(StaticKVCache(*sizes, dtype=dtype))
    taken = new_bytes(before)
    before = live_tensors()
    cache = filled(CompressedKVCache(*sizes, dtype=dtype, codec=codec))
    ours = new_bytes(before)
    bookkeeping = 64 * 1024  # positions of slots
    assert exact.nbytes <= taken <= exact.nbytes + bookkeeping
    assert cache.nbytes <= ours <= cache.nbytes + bookkeeping
    assert cache.nbytes <= share * exact.nbytes


def forced_logits(t3: T3, cache: KVCache, embeds: Tensor, steps: int) -> Tensor:
    """Logits (rows, steps, V) of a prefix and of ``steps`` given tokens after it, one by one."""
    tokens = torch.randint(0, 6500, (steps,), generator=torch.Generator().manual_seed(1))
    logits = [t3.predict_speech(t3.tfmr(embeds, cache)[:, -1:])]
    for at, token in enumerate(tokens):
        one = t3.embed_speech(token.expand(len(embeds), 1), torch.full((len(embeds), 1), at))
        logits.append(t3.predict_speech(t3.tfmr(one, cache)))
    return torch.cat(logits, dim=1)


@torch.inference_mode()
@pytest.mark.parametrize("hp", [SMALL, SMALL_GPT2], ids=["llama", "gpt2"])
@pytest.mark.parametrize(("codec", "bound"), [("int8", 0.004), ("int4", 0.07)])
def test_logit_error(hp: T3Config, codec: str, bound: float) -> None:
    """Random weights: the error of a logit, in standard deviations of the logits, that docs/kvcache.md states."""
    t3 = build(hp)
    embeds = prefill_embeds(t3, make_request(4, hp))
    sizes = (2, len(embeds), 2, 16, embeds.shape[1] + 40)
    exact = forced_logits(t3, StaticKVCache(*sizes), embeds, 40)
    cache = CompressedKVCache(*sizes, codec=codec, group_size=8, residual_size=4)
    error = (forced_logits(t3, cache, embeds, 40) - exact).abs() / exact.std()
    assert min(cache.packed_lens) >= embeds.shape[1] + 40 - 12
    assert error[:, 0].max() < 1e-5 < error.max() < bound


@pytest.mark.parametrize("codec", CODECS)
def test_decodes_a_request(codec: str) -> None:
    """All through the engine: tokens come, of a cache that packed them."""
    t3, request = build(SMALL), make_request(3)
    config = KVCacheConfig(policy="compressed", decode_codec=codec, group_size=4, residual_size=2)
    tokens, cache = decode(t3, request, cache_policy=config)
    assert isinstance(cache, CompressedKVCache) and (cache.codec, cache.group_size) == (codec, 4)
    assert len(tokens) >= 1 and min(cache.packed_lens) > 0
    cache.check_integrity()


def test_integrity() -> None:
    cache = make("int4")
    append((cache,), 60, slice(0, 3))
    cache.check_integrity()
    cache._packed["key_low"][0, 1, 0, 0, 0] = 5.0
    with pytest.raises(RuntimeError, match="row 1 has a group whose smallest number is above its largest"):
        cache.check_integrity()
    cache._packed["key_low"][0, 1, 0, 0, 0] = float("nan")
    with pytest.raises(RuntimeError, match="not finite"):
        cache.check_integrity()


def test_settings_are_validated() -> None:
    with pytest.raises(ValueError, match="decode_codec 'int2' does not exist; choose from int4, int8"):
        make("int2")
    for name, value in itertools.product(("group_size", "residual_size"), (0, -1)):
        with pytest.raises(ValueError, match=f"must be at least 1, got .*{value}"):
            make("int8", **{name: value})
    full = make("int8", capacity=20)
    append((full,), 20, slice(0, 3))
    with pytest.raises(ValueError, match=r"20 \+ 1 positions, capacity 20"):
        full.reserve(1)
    assert full.row_lens == (20, 20, 20)
