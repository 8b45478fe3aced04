"""Who leaves a full cache: each scorer's order, the pruner, and that tokens are those of attention over what stays."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from chatterbox.config import KVCacheConfig, SamplingConfig
from chatterbox.engine.cuda_graphs import StepGraphs
from chatterbox.engine.decode import decode, decoder_on, generate
from chatterbox.engine.engine import DecodeEngine
from chatterbox.engine.request import allocate_cache, prefix_len, required_capacity
from chatterbox.kvcache import EvictingKVCache, SlidingKVCache
from chatterbox.kvcache.eviction import SCORERS, Held, Scorer, scorer
from chatterbox.kvcache.eviction.attention import Attention, received
from chatterbox.kvcache.eviction.scorers import NO_TOKEN, survivors, within
from chatterbox.models.t3 import T3
from tests.support.decoding import generate_batch
from tests.support.full_cache import FullCache
from tests.support.small import SMALL, SMALL_GPT2, build, decode_together
from tests.unit.engine.test_graphs import REPLAYS, recorded
from tests.unit.kvcache.test_sliding import advance, long_requests

SILENT, SPEECH, OTHER = 7, 100, 101
TIGHT = KVCacheConfig(policy="evicting", max_cache_size=42, window_size=6)
SPECS = [*SCORERS, "silence*2+attention+prosody"]


def held_of(tokens: list[int], positions: list[int] | None = None, mass: list[float] | None = None) -> Held:
    at = range(len(tokens)) if positions is None else positions
    mass = [0.0] * len(tokens) if mass is None else mass
    return Held(torch.tensor([*at]), torch.tensor(tokens), torch.tensor(mass))


def leaving(spec: str, held: Held) -> list[int]:
    """Places of ``held``, who leaves first first."""
    scores = scorer(spec, (SILENT,)).score(held)
    assert scores.dtype == torch.float32 and 0.0 <= float(scores.min()) <= float(scores.max())
    num = len(scores)
    unpinned = torch.zeros(num, dtype=torch.bool)
    stays = [set(survivors(scores, unpinned, 0, count).tolist()) for count in range(num + 1)]
    return [next(iter(stays[count + 1] - stays[count])) for count in reversed(range(num))]


def test_recency_and_ties_leave_by_age() -> None:
    assert leaving("recency", held_of([SPEECH] * 4)) == [0, 1, 2, 3]
    assert leaving("silence", held_of([SPEECH] * 4)) == [0, 1, 2, 3]


def test_silence_leaves_before_speech_and_before_what_is_no_token() -> None:
    assert leaving("silence", held_of([SPEECH, SILENT, NO_TOKEN, SILENT, OTHER])) == [1, 3, 0, 2, 4]


def test_attention_keeps_what_was_looked_at() -> None:
    assert leaving("attention", held_of([SPEECH] * 4, mass=[3.0, 0.5, 4.0, 1.0])) == [1, 3, 0, 2]
    assert scorer("attention").score(held_of([SPEECH] * 2)).tolist() == [0.0, 0.0]  # nothing seen yet


def test_prosody_keeps_both_sides_of_a_boundary() -> None:
    tokens = [NO_TOKEN, SPEECH, OTHER, SILENT, SILENT, SILENT, SPEECH, OTHER]
    assert scorer("prosody", (SILENT,)).score(held_of(tokens)).tolist() == [0, 0, 1, 1, 0, 1, 1, 0]
    kept = held_of([OTHER, SILENT, SILENT, SPEECH, SPEECH], positions=[2, 3, 5, 6, 9])
    assert scorer("prosody", (SILENT,)).score(kept).tolist() == [1, 1, 1, 1, 0]  # known again after others left
    apart = held_of([OTHER, SILENT], positions=[2, 4])
    assert scorer("prosody", (SILENT,)).score(apart).tolist() == [0, 0]


def test_sums_weigh_their_parts() -> None:
    held = held_of([SPEECH, SILENT, SPEECH, SPEECH], mass=[0.1, 1.0, 0.5, 0.2])
    assert leaving("silence+attention", held) == [1, 0, 3, 2]
    assert leaving("silence*0.5+attention*3", held) == [0, 3, 2, 1]
    both = scorer("silence + attention*2", (SILENT,))
    assert both.wants_tokens and both.layers(30) == Attention().layers(30)
    assert not scorer("recency").wants_tokens and scorer("recency+prosody").layers(30) == ()


@pytest.mark.parametrize(("num_layers", "layers"), [(1, (0,)), (2, (0, 1)), (3, (0, 1, 2)), (30, (5, 15, 25))])
def test_attention_of_a_few_layers_counts(num_layers: int, layers: tuple[int, ...]) -> None:
    assert Attention().layers(num_layers) == layers


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("age", "eviction 'age' does not exist; choose from attention, prosody, recency, silence"),
        ("silence+", "eviction '' does not exist"),
        ("silence*-1", "the weight of eviction 'silence' must be a number above 0, got '-1'"),
        ("silence*inf", "must be a number above 0, got 'inf'"),
        ("silence*", "must be a number above 0, got ''"),
    ],
)
def test_specs_that_mean_nothing(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        scorer(spec)


def test_the_pruner_keeps_pinned_and_recent_whatever_their_score() -> None:
    scores = torch.tensor([0.9, 0.1, 0.2, 0.8, 0.7, 0.0, 0.0])
    pinned = within(torch.tensor([0, 1, 5, 6, 7, 9, 11]), (range(1, 3), range(5, 6)))
    assert pinned.tolist() == [False, True, True, False, False, False, False]
    assert survivors(scores, pinned, 1, 5).tolist() == [0, 1, 2, 3, 6]
    assert survivors(scores, pinned, 2, 4).tolist() == [1, 2, 5, 6]


def test_received_attention_is_that_of_a_softmax() -> None:
    torch.manual_seed(0)
    query, keys, reached = torch.randn(2, 3, 8), torch.randn(2, 3, 5, 8), torch.ones(2, 5, dtype=torch.bool)
    reached[1, 2] = False
    weights = torch.einsum("rhd,rhkd->rhk", query, keys) / 8**0.5
    weights[1, :, 2] = -torch.inf
    torch.testing.assert_close(received(query, keys, reached), weights.softmax(-1).sum(1))


def test_recency_is_the_sliding_window() -> None:
    sizes, options = (2, 3, 2, 8, 80), {"max_cache_size": 12, "window_size": 4}
    caches = SlidingKVCache(*sizes, **options), EvictingKVCache(*sizes, **options)
    for cache in caches:
        cache.begin(0, range(3))
        advance(cache, 3)
    for _ in range(40):
        for cache in caches:
            advance(cache, 1)
        assert [caches[0].held(row) for row in range(3)] == [caches[1].held(row) for row in range(3)]
    assert not caches[0].wants_tokens and not caches[0].wants_queries


def test_tokens_and_attention_stay_with_their_positions() -> None:
    """Through trims, moves, cuts and copies, by tokens that name their positions."""
    cache = EvictingKVCache(2, 3, 2, 8, 200, max_cache_size=12, window_size=4, scorer=scorer("silence", (SILENT,)))
    cache.begin(0, range(3))
    cache.reserve(3)
    for layer in range(2):
        cache.append(layer, torch.ones(3, 2, 3, 8), torch.ones(3, 2, 3, 8))
    for _ in range(30):
        positions = cache.reserve(1)
        cache.note_tokens(positions.where(positions % 3 != 0, SILENT))
        cache._mass[:, :12].masked_fill_(cache._positions == positions, 1.0)
        for layer in range(2):
            cache.append(layer, torch.ones(3, 2, 1, 8), torch.ones(3, 2, 1, 8))
        cache.check_integrity()
    cache.move_row(0, 2)
    for one in (cache, cache.clone_prefix(33)):
        held = one.held(2)
        assert held[:3] == [0, 1, 2] and one.held(0) == []
        assert one._tokens[2, : len(held)].tolist() == [-1] * 3 + [SILENT if p % 3 == 0 else p for p in held[3:]]
        assert one._mass[2, : len(held)].tolist() == [0.0] * 3 + [1.0] * (len(held) - 3)
        assert not one._mass[2, len(held) :].any()
    silent_kept = [p for p in cache.held(2)[3:-6] if p % 3 == 0]
    assert silent_kept == []  # of what is not recent, speech stayed


@pytest.fixture(scope="module", params=[SMALL, SMALL_GPT2], ids=["llama", "gpt2"])
def model(request: pytest.FixtureRequest) -> T3:
    return build(request.param)


def settings(spec: str) -> KVCacheConfig:
    """Silence is about a third of what a model of random weights decodes."""
    return dataclasses.replace(TIGHT, eviction=spec, silent_tokens=tuple(range(2200)))


@pytest.mark.parametrize("spec", SPECS)
def test_tokens_are_those_of_attention_over_what_is_held(model: T3, spec: str) -> None:
    differ, config = 0, settings(spec)
    for request in long_requests(4, model):
        full = FullCache.beside(model, request.num_rows, required_capacity(model, request), config)
        engine, expected = DecodeEngine(model, decoder_on(model, full)), []
        engine.join(request, keeps_rows=True)
        while engine.num_requests:
            expected += [token for _, token in engine.step().tokens]
        tokens, cache = decode(model, request, cache_policy=config)
        assert tokens.tolist() == expected and full.trims >= 1
        assert [cache.held(row) for row in range(cache.num_rows)] == full._holds()
        prefix = prefix_len(model, request)
        assert cache.held(0)[:prefix] == list(range(prefix)) and len(cache.held(0)) <= config.max_cache_size
        cache.check_integrity()
        _, newest = decode(model, request, cache_policy=dataclasses.replace(config, policy="sliding"))
        differ += newest.held(0) != cache.held(0)
    assert differ == 0 if spec == "recency" else differ > 0  # the scorer was asked


@pytest.mark.parametrize("spec", SPECS)
def test_a_batch_equals_its_requests_alone(model: T3, spec: str) -> None:
    requests = long_requests(6, model)
    config = settings(spec)
    alone = [generate(model, one, cache_policy=config).tolist() for one in requests]
    assert [tokens.tolist() for tokens in generate_batch(model, requests, cache_policy=config)] == alone


@pytest.mark.parametrize("spec", SPECS)
def test_captured_steps_tell_the_scorer(model: T3, spec: str) -> None:
    """What a graph replays notes tokens and sums attention as an eager step does."""
    REPLAYS.clear()
    requests = long_requests(4, model)
    config = settings(spec)
    cache = allocate_cache(model, 4, max(required_capacity(model, one) for one in requests), config)
    engine = DecodeEngine(model, decoder_on(model, cache), graphs=StepGraphs(capture=recorded))
    decoded, num_steps = decode_together(engine, requests, 4)
    assert decoded == [generate(model, one, cache_policy=config).tolist() for one in requests]
    assert sum(replay.count for replay in REPLAYS) > num_steps / 2


@torch.inference_mode()
def test_attention_is_summed_over_steps_heads_and_layers(model: T3) -> None:
    """Against the attention of a whole pass, computed from the keys that an exact cache holds."""
    request = dataclasses.replace(long_requests(1, model)[0], sampling=SamplingConfig(cfg_weight=0.0), max_new_tokens=9)
    roomy = KVCacheConfig(policy="evicting", eviction="attention")
    seen: list[tuple[int, torch.Tensor]] = []

    class Watched(EvictingKVCache):
        def observe(self, layer: int, queries: torch.Tensor) -> None:
            seen.append((layer, queries[0, :, -1].clone()))  # (heads, head_dim)
            super().observe(layer, queries)

    plain = allocate_cache(model, 1, required_capacity(model, request), roomy)
    cache = Watched(*(plain.num_layers, 1, plain.num_heads, plain.head_dim, plain.capacity), **plain._settings())
    engine = DecodeEngine(model, decoder_on(model, cache))
    engine.join(request)
    while engine.num_requests:
        engine.step()
    length = cache.length
    expected, keys = torch.zeros(length), cache.segment(0, 0, length).keys
    for place, (layer, query) in enumerate(seen):
        reach = prefix_len(model, request) + place // model.hp.backbone.num_layers
        weights = (keys[layer, :, :reach] @ query[..., None])[..., 0] / query.shape[-1] ** 0.5
        expected[:reach] += weights.softmax(-1).sum(0)
    assert len(seen) == model.hp.backbone.num_layers * 9
    torch.testing.assert_close(cache._mass[0, :length], expected)


def test_a_new_scorer_is_one_class(model: T3) -> None:
    @dataclasses.dataclass(frozen=True)
    class Oldest(Scorer):
        def score(self, held: Held) -> torch.Tensor:
            return -held.positions.float()

    cache = EvictingKVCache(2, 3, 2, 8, 80, max_cache_size=12, window_size=4, scorer=Oldest())
    for _ in range(13):
        advance(cache, 1)
    assert cache.held(0) == [0, 1, 10, 11, 12]  # half of the window is what came last, whoever scores


def test_the_checkpoint_says_what_is_silent(model: T3) -> None:
    cache = allocate_cache(model, 1, 50, TIGHT)
    assert cache.scorer.silent_tokens == model.hp.silent_speech_tokens == (4299,)
    cache = allocate_cache(model, 1, 50, dataclasses.replace(TIGHT, silent_tokens=(1, 2)))
    assert cache.scorer.silent_tokens == (1, 2)
