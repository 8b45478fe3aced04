"""With `engine.batch_invariant` a request has the same bits whatever rows, capacity and pieces it is computed with."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from chatterbox.config import EngineConfig, KVCacheConfig
from chatterbox.engine.prefill import Prefiller
from chatterbox.engine.request import Request, allocate_cache
from chatterbox.engine.sampler import SamplingParams, hashed_exponential, process, sample
from chatterbox.engine.scheduler import Scheduler
from chatterbox.kvcache import GlobalKVCacheManager, KVCache
from chatterbox.models.config import T3Config
from chatterbox.models.t3 import T3
from chatterbox.models.t3.batch_invariant import (
    attend_in_blocks,
    gelu_tanh,
    hidden_blocks,
    in_blocks,
    look_in_blocks,
    silu,
)
from tests.support.small import SMALL, SMALL_GPT2, build, make_request

ROW_COUNTS = [*range(1, 33), 33, 64, 130]
LENGTH = 90  # positions of the sequences here: more than one block of keys


@pytest.fixture(params=[SMALL, SMALL_GPT2], ids=lambda hp: hp.backbone.kind)
def t3(request: pytest.FixtureRequest) -> T3:
    return build(request.param)


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cache_of(t3: T3, rows: int, capacity: int = 128) -> KVCache:
    cache = allocate_cache(t3, rows, capacity)
    assert cache is not None
    return cache


@torch.inference_mode()
def hidden_of(t3: T3, embeds: Tensor, lengths: list[int], capacity: int = 128) -> Tensor:
    """Hidden states (B, T, hidden) of sequences that are run in pieces of these lengths."""
    cache = cache_of(t3, len(embeds), capacity)
    return torch.cat([t3.tfmr(part, cache, batch_invariant=True) for part in embeds.split(lengths, dim=1)], dim=1)


@torch.inference_mode()
def test_rows_of_a_pass(t3: T3) -> None:
    """Prefill and steps of every number of rows, and the row at every place."""
    embeds = randn(130, 8, 32)
    alone = torch.cat([hidden_of(t3, embeds[row : row + 1], [5, 1, 1, 1]) for row in range(40)])
    logits = torch.cat([t3.predict_speech(one, batch_invariant=True) for one in alone[:, -1:].unbind()])
    for rows in ROW_COUNTS:
        hidden = hidden_of(t3, embeds[:rows], [5, 1, 1, 1])
        assert torch.equal(hidden[:40], alone[:rows])
        assert torch.equal(t3.predict_speech(hidden[:, -1], batch_invariant=True)[:40], logits[:rows])
    for place in range(32):
        assert torch.equal(hidden_of(t3, embeds[:32].roll(place, 0), [5, 1, 1, 1])[place], alone[0])


def test_pieces_of_a_prefill_and_steps(t3: T3) -> None:
    embeds, rng = randn(2, LENGTH, 32), random.Random(0)
    whole = hidden_of(t3, embeds, [LENGTH])
    assert torch.equal(hidden_of(t3, embeds, [1] * LENGTH), whole)
    assert torch.equal(hidden_of(t3, embeds[1:], [1] * LENGTH)[0], whole[1])
    for _ in range(12):
        ends = sorted(rng.sample(range(1, LENGTH), rng.randint(1, 8)))
        lengths = [end - start for start, end in zip([0, *ends], [*ends, LENGTH], strict=True)]
        assert torch.equal(hidden_of(t3, embeds, lengths), whole)


@torch.inference_mode()
def test_without_a_cache(t3: T3) -> None:
    embeds = randn(3, LENGTH, 32)
    whole = t3.tfmr(embeds, batch_invariant=True)
    assert torch.equal(whole, hidden_of(t3, embeds, [LENGTH]))
    assert torch.equal(t3.tfmr(embeds[2:, :70], batch_invariant=True)[0], whole[2, :70])
    torch.testing.assert_close(whole, t3.tfmr(embeds), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("capacity", [LENGTH, 100, 128, 256, 1000])
def test_capacity_and_what_layers_see(t3: T3, capacity: int) -> None:
    embeds, pieces = randn(2, LENGTH, 32), [40, *[1] * 50]
    wanted = hidden_of(t3, embeds, pieces)
    assert torch.equal(hidden_of(t3, embeds, pieces, capacity), wanted)


@torch.inference_mode()
def test_a_longer_row_beside(t3: T3) -> None:
    """It widens what layers see of the shorter one."""
    embeds = randn(2, LENGTH, 32)
    cache, short = cache_of(t3, 2), hidden_of(t3, embeds[1:, :6], [5, 1])
    t3.tfmr(embeds[:1, :80], cache, positions=cache.reserve(80, slice(0, 1)), batch_invariant=True)
    t3.tfmr(embeds[1:, :5], cache, positions=cache.reserve(5, slice(1, 2)), batch_invariant=True)
    step = torch.stack([embeds[0, 80], embeds[1, 5]])[:, None]
    found = t3.tfmr(step, cache, batch_invariant=True)
    assert torch.equal(found[1, 0], short[0, 5])
    assert torch.equal(found[0, 0], hidden_of(t3, embeds[:1, :81], [81])[0, 80])


@pytest.mark.parametrize("shape", [(1024, 4096), (4096, 1024), (1024, 6563), (192, 576), (48, 33), (17, 1)])
@torch.inference_mode()
def test_products(shape: tuple[int, int], threads: int) -> None:
    """Also sizes of published weights; the last rows of 33 are alone in their block."""
    num_in, num_out = shape
    for weight in (randn(num_out, num_in), randn(num_in, num_out).T):
        layer = torch.nn.Linear(num_in, num_out)
        layer.weight, x = torch.nn.Parameter(weight), randn(33, num_in, seed=1)
        together = in_blocks(layer, x)
        torch.testing.assert_close(together, layer(x), rtol=1e-4, atol=1e-3)
        for row in range(33):
            assert torch.equal(in_blocks(layer, x[row : row + 1])[0], together[row])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@torch.inference_mode()
def test_attention(dtype: torch.dtype, threads: int) -> None:
    """Random rows, heads and lengths, in wider memory: alone, and what each query sees of the keys and no more."""
    rng = random.Random(0)
    for trial in range(12):
        rows, num_heads, size = rng.choice([1, 2, 5, 16]), rng.choice([1, 3, 16]), rng.choice([8, 16, 64])
        length = rng.randint(1, 300)
        num_new = min(length, rng.choice([1, 2, 5, 40]))
        keys, values = randn(2, rows, num_heads, 400, size, seed=trial).to(dtype)
        query = randn(rows, num_heads, num_new, size, seed=99).to(dtype)
        mask = torch.arange(400) <= torch.arange(length - num_new, length)[:, None]
        whole = attend_in_blocks(query, keys, values, hidden_blocks(mask[None, None]))
        wanted = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
        torch.testing.assert_close(whole, wanted, **({} if dtype != torch.bfloat16 else {"rtol": 0.02, "atol": 0.02}))
        looks = look_in_blocks(query, keys, mask[None, None])
        assert torch.equal(looks > 0, mask.expand_as(looks))
        row, place = rng.randrange(rows), rng.randrange(num_new)
        end = length - num_new + place + 1
        one, seen = (slice(row, row + 1), slice(None), slice(place, place + 1)), slice(0, end)
        alone = query[one], keys[one[0], :, seen], values[one[0], :, seen]
        everything = torch.ones(1, 1, 1, end, dtype=torch.bool)
        assert torch.equal(attend_in_blocks(*alone, hidden_blocks(everything)), whole[one])
        assert torch.equal(look_in_blocks(*alone[:2], everything), looks[one][..., seen])


@torch.inference_mode()
def test_activations_and_norms_at_every_place(threads: int) -> None:
    x = 3 * randn(2048)
    for mine, theirs in ((silu, F.silu), (gelu_tanh, lambda x: F.gelu(x, approximate="tanh"))):
        torch.testing.assert_close(mine(x), theirs(x))
        wanted = mine(x.repeat(21)[: 2048 * 20 + 7])  # enough for several threads
        assert torch.equal(wanted, mine(x).repeat(21)[: len(wanted)])
        assert all(torch.equal(mine(x[start : start + 50]), mine(x)[start : start + 50]) for start in range(50))
    rows = randn(130, 96)
    for norm in (torch.nn.RMSNorm(96, eps=1e-5), torch.nn.LayerNorm(96)):
        assert all(torch.equal(norm(rows[row : row + 1])[0], norm(rows)[row]) for row in range(130))


@torch.inference_mode()
def test_sampling_treats_rows_apart(threads: int) -> None:
    settings = [make_request(seed).sampling for seed in range(12)]
    logits, seen = 4 * randn(12, 6563), randn(12, 6563, seed=1) > 1
    seeds, steps = torch.arange(12)[:, None], torch.arange(5, 17)[:, None]
    noise, params = hashed_exponential(seeds, steps, 6563), SamplingParams.of(settings)
    probabilities, tokens = process(logits, seen, params), sample(logits, seen, params, noise)
    for row in range(12):
        one, own = slice(row, row + 1), SamplingParams.of(settings[row : row + 1])
        assert torch.equal(hashed_exponential(seeds[one], steps[one], 6563)[0], noise[row])
        assert torch.equal(process(logits[one], seen[one], own)[0], probabilities[row])
        assert sample(logits[one], seen[one], own, noise[one]).item() == tokens[row].item()


GUARDED = dataclasses.replace(SMALL, alignment_heads=((0, 1), (1, 0)))
TIGHT = {"max_cache_size": 56, "window_size": 8}
POLICIES = {
    "static": KVCacheConfig("static"),
    "dynamic": KVCacheConfig("dynamic"),
    "none": KVCacheConfig("none"),
    "sliding": KVCacheConfig("sliding", **TIGHT),
    "silence": KVCacheConfig("evicting", **TIGHT, eviction="silence+recency", silent_tokens=(0, 1)),
    "int8": KVCacheConfig("compressed", group_size=8, residual_size=8),
    "int4": KVCacheConfig("compressed", group_size=8, residual_size=8, decode_codec="int4"),
    "headwindow": KVCacheConfig("headwindow", **TIGHT),
}
ANY_LEN = (3, 16, 256)  # positions of a prefix that are run at once
Drawn = tuple[list[int], set[bytes]]  # tokens, and the bits of all logits


def scheduler_of(t3: T3, budget_bytes: int = 0, **settings: int) -> Scheduler:
    manager = GlobalKVCacheManager(budget_bytes=budget_bytes)
    return Scheduler(Prefiller(t3, manager, batch_invariant=True), EngineConfig(batch_invariant=True, **settings))


def run(scheduler: Scheduler, requests: list[Request], policy: KVCacheConfig) -> tuple[list[list[int]], set[bytes]]:
    """Tokens of requests that are submitted at once, and the bits of every row of logits."""
    t3, seen = scheduler.prefixes.t3, set()
    predict = t3.predict_speech

    def noted(hidden: Tensor, *, batch_invariant: bool) -> Tensor:
        assert batch_invariant
        logits = predict(hidden, batch_invariant=True)
        seen.update(row.numpy().tobytes() for row in logits)
        return logits

    t3.predict_speech = noted
    try:
        streams = [scheduler.stream(request, policy=policy) for request in requests]
        return [list(stream) for stream in streams], seen
    finally:
        scheduler.close()
        del t3.predict_speech


def request_of(seed: int, hp: T3Config) -> Request:
    guard = random.Random(seed).choice([None, "light", *(["alignment"] if hp.alignment_heads else [])])
    return dataclasses.replace(make_request(seed, hp), guard=guard)


@pytest.fixture(scope="module")
def alone() -> Callable[[T3Config, str, int], Drawn]:
    """What a request draws that has the model for itself."""
    known: dict[tuple[str, str, int], Drawn] = {}

    def of(hp: T3Config, name: str, seed: int) -> Drawn:
        key = hp.backbone.kind, name, seed
        if key not in known:
            [tokens], logits = run(scheduler_of(build(hp)), [request_of(seed, hp)], POLICIES[name])
            known[key] = tokens, logits
        return known[key]

    return of


def mix(
    hp: T3Config, name: str, number: int, alone: Callable[[T3Config, str, int], Drawn], prefill_lens: Sequence[int]
) -> None:
    """Requests at random, submitted at once, and what each draws alone."""
    rng = random.Random(number)
    seeds = [rng.randrange(24) for _ in range(rng.randint(2, 20))]
    settings = {"max_rows": rng.choice([2, 5, 16, 32]), "prefill_len": rng.choice(prefill_lens)}
    scheduler = scheduler_of(build(hp), rng.choice([0, 2**14, 2**22]), **settings)
    tokens, logits = run(scheduler, [request_of(seed, hp) for seed in seeds], POLICIES[name])
    wanted = [alone(hp, name, seed) for seed in seeds]
    assert tokens == [one for one, _ in wanted]
    assert logits == set().union(*(bits for _, bits in wanted))


@pytest.mark.parametrize("hp", [GUARDED, SMALL_GPT2], ids=lambda hp: hp.backbone.kind)
@pytest.mark.parametrize("number", range(20))
def test_mixes_of_requests(hp: T3Config, number: int, alone: Callable[[T3Config, str, int], Drawn]) -> None:
    """Every row of logits has the bits that it has alone, at any number of rows, place, piece and prefix hit."""
    mix(hp, "static", number, alone, ANY_LEN)


@pytest.mark.parametrize("number", range(2))
@pytest.mark.parametrize("name", list(POLICIES)[1:])
def test_policies_whose_rows_keep_what_they_keep_alone(
    name: str, number: int, alone: Callable[[T3Config, str, int], Drawn]
) -> None:
    """What int8 and int4 round depends on the pieces of a prefill, which are the same here."""
    mix(GUARDED, name, number, alone, ANY_LEN if name not in ("int8", "int4") else ANY_LEN[-1:])


@pytest.mark.parametrize("name", ["dynamic", "none"])
def test_exact_policies_agree(name: str, alone: Callable[[T3Config, str, int], Drawn]) -> None:
    for seed in range(6):
        assert alone(GUARDED, name, seed) == alone(GUARDED, "static", seed)


def test_prefixes_of_both_kinds_are_told_apart() -> None:
    """They differ in last bits, and models may share a manager."""
    t3, manager = build(SMALL), GlobalKVCacheManager(budget_bytes=2**22)
    plain, invariant = (Prefiller(t3, manager, batch_invariant=kind) for kind in (False, True))
    request = make_request(0)
    plain.acquire(request).release()
    with invariant.acquire(request) as prefix:
        assert prefix.num_cached_tokens == 0
    with invariant.acquire(request) as prefix:
        assert prefix.num_cached_tokens > 0


def test_the_setting_is_a_truth_value() -> None:
    with pytest.raises(ValueError, match="batch_invariant must be true or false, got 1"):
        EngineConfig(batch_invariant=1)
