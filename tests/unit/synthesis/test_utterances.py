"""Utterances that follow one another: tokens that are given, and caches that are continued."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch

from chatterbox.config import KVCacheConfig, SamplingConfig
from chatterbox.engine import policy_engine
from chatterbox.engine.decode import decode, decoder_on, generate
from chatterbox.engine.engine import DecodeEngine
from chatterbox.engine.prefill import Prefiller
from chatterbox.engine.request import ForcedPrefix, Request, allocate_cache, required_capacity
from chatterbox.engine.token_stream import TokenStream
from chatterbox.kvcache import GlobalKVCacheManager, KVCache, cache_config
from chatterbox.models.t3 import T3
from tests.support.decoding import scheduler_of, stream
from tests.support.small import SMALL, SMALL_GPT2, build, make_request

GREEDY = SamplingConfig(temperature=0.0, repetition_penalty=1.2)


@pytest.fixture(scope="module", params=[SMALL, SMALL_GPT2], ids=["llama", "gpt2"])
def t3(request: pytest.FixtureRequest) -> T3:
    return build(request.param)


def greedy(t3: T3, seed: int, cfg_weight: float = 0.0, **changes) -> Request:
    """A request whose next token follows from those before it alone, and that goes on to its limit."""
    sampling = dataclasses.replace(GREEDY, cfg_weight=cfg_weight if t3.hp.has_guidance else 0.0)
    request = dataclasses.replace(make_request(seed, t3.hp), sampling=sampling, max_new_tokens=20, stop_on_eos=False)
    return dataclasses.replace(request, **changes)


def going_on(request: Request, tokens: list[int], text_len: int = 1) -> Request:
    given = ForcedPrefix(torch.tensor(tokens), text_len)
    return dataclasses.replace(request, forced=given, max_new_tokens=request.max_new_tokens - len(tokens))


@pytest.mark.parametrize("cfg_weight", [0.0, 0.5])
@pytest.mark.parametrize("use_cache", [True, False])
def test_behind_its_own_tokens_a_request_decode_the_rest(t3: T3, use_cache: bool, cfg_weight: float) -> None:
    for seed in range(6):
        request = greedy(t3, seed, cfg_weight)
        whole = generate(t3, request, use_cache=use_cache).tolist()
        assert len(whole) == 20
        for num_given in (1, 7, 19):
            rest = generate(t3, going_on(request, whole[:num_given]), use_cache=use_cache).tolist()
            assert rest == whole[num_given:]


def test_given_tokens_through_every_door(t3: T3) -> None:
    """Sampled, guarded and not, with shared prefixes, in a batch with others: as the uncached decoder samples them."""
    source = Prefiller(t3, GlobalKVCacheManager(budget_bytes=2**26))
    rng = random.Random(5)
    requests = []
    for seed in range(20):
        request = make_request(seed, t3.hp)
        tokens = [rng.randrange(6561) for _ in range(rng.randrange(1, 12))]
        text_len = rng.randrange(1, len(request.text_tokens))
        requests.append(
            dataclasses.replace(request, forced=ForcedPrefix(torch.tensor(tokens), text_len), guard="light")
        )
    expected = [generate(t3, request, use_cache=False).tolist() for request in requests]
    assert [list(stream(t3, request, prefixes=source)) for request in requests] == expected
    assert [generate(t3, request).tolist() for request in requests] == expected
    assert source.manager.stats()["tokens_computed"] > 0
    rows, capacity = sum(r.num_rows for r in requests), max(required_capacity(t3, r) for r in requests)
    engine = DecodeEngine(t3, decoder_on(t3, allocate_cache(t3, rows, capacity)))
    decoded: dict[int, list[int]] = {engine.join(request): [] for request in requests}
    while engine.num_requests:
        for handle, token in engine.step().tokens:
            decoded[handle].append(token)
    assert list(decoded.values()) == expected


def test_given_tokens_and_limits(t3: T3) -> None:
    request = going_on(greedy(t3, 3), [5] * 10)
    full = dataclasses.replace(request, forced=ForcedPrefix(torch.full((45,), 5), 1), max_new_tokens=4)
    with pytest.raises(ValueError, match="from 1 to the model's 3 behind 45 that are given, got 4"):
        generate(t3, full)
    assert len(generate(t3, dataclasses.replace(full, max_new_tokens=3))) == 3


def test_policies_with_a_ceiling_may_forget_what_was_given(t3: T3) -> None:
    """What is given is speech, not prefix: it does not count against what must stay."""
    request = going_on(greedy(t3, 2), [5] * 10)
    needed = required_capacity(t3, request)
    settings = KVCacheConfig(policy="evicting", eviction="silence", max_cache_size=needed - 8, window_size=6)
    cache = allocate_cache(t3, request.num_rows, needed, settings)
    engine = DecodeEngine(t3, decoder_on(t3, cache))
    engine.join(request, keeps_rows=True)
    while engine.num_requests:
        engine.step()
        cache.check_integrity()
    assert len(cache.held(0)) < cache.length == needed - 1
    assert generate(t3, request, cache_policy=settings).shape == (10,)


class Continued:
    """Requests that follow one another in one sequence."""

    def __init__(self, t3: T3, policy: str | KVCacheConfig = "static", prefixes: Prefiller | None = None) -> None:
        self.policy = cache_config(policy)
        self.scheduler = scheduler_of(t3, prefixes=prefixes)
        self.continuation = self.scheduler.continuation(self.policy)
        self.streams: list[TokenStream] = []

    def decode(self, request: Request) -> list[int]:
        self.streams.append(self.scheduler.stream(request, policy=self.policy, continuation=self.continuation))
        return list(self.streams[-1])

    @property
    def num_cached(self) -> int:
        return sum(one.num_cached for one in self.streams)

    @property
    def num_computed(self) -> int:
        return sum(one.num_computed for one in self.streams)

    @property
    def cache(self) -> KVCache:
        return self.scheduler._engines[self.policy].engine.decoder.cache


class TestContinued:
    SAMPLING = dataclasses.replace(GREEDY, cfg_weight=0.0)

    def texts(self, t3: T3, num: int = 4) -> list[Request]:
        voice = make_request(0, t3.hp).t3_cond
        return [dataclasses.replace(make_request(seed, t3.hp), t3_cond=voice, max_new_tokens=6) for seed in range(num)]

    @pytest.mark.parametrize("policy", ["static", "dynamic", "sliding"])
    def test_each_follows_those_before_on_one_cache(self, t3: T3, policy: str) -> None:
        requests = [dataclasses.replace(one, sampling=self.SAMPLING) for one in self.texts(t3)]
        speaker = Continued(t3, policy)
        cache = None
        for index, request in enumerate(requests[: 4 if t3.hp.has_guidance else 3]):
            expected, cache = decode(t3, request, past=cache, cache_policy=policy)
            assert speaker.decode(request) == expected.tolist(), index
        assert speaker.num_cached > 0

    def test_beginnings_come_from_the_prefix_cache(self, t3: T3) -> None:
        source = Prefiller(t3, GlobalKVCacheManager(budget_bytes=2**26))
        requests = [dataclasses.replace(one, sampling=self.SAMPLING) for one in self.texts(t3, 2)]
        plain = Continued(t3)
        expected = [plain.decode(one) for one in requests]
        for served in (False, True):
            speaker = Continued(t3, prefixes=source)
            assert [speaker.decode(one) for one in requests] == expected
            assert (speaker.num_computed < plain.num_computed) == served
            assert speaker.num_cached + speaker.num_computed == plain.num_cached + plain.num_computed

    def test_without_a_budget_nothing_is_cached(self, t3: T3) -> None:
        scheduler = scheduler_of(t3)
        for request in self.texts(t3, 2):
            one = scheduler.stream(request, policy=KVCacheConfig())
            assert list(one)
            assert one.num_cached == 0 < one.num_computed

    def test_a_full_sequence_begins_anew(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(policy_engine, "CONTINUED_LEN", 100)
        t3 = build(SMALL)
        requests = [dataclasses.replace(one, sampling=self.SAMPLING) for one in self.texts(t3)] * 6
        speaker = Continued(t3)
        num_begun = 0
        for request in requests:
            decoded = speaker.decode(request)
            assert 0 < max(speaker.cache.row_lens) <= max(100, 2 * required_capacity(t3, requests[0]))
            if speaker.streams[-1].num_cached == 0:
                num_begun += 1
                assert decoded == generate(t3, request).tolist()
        assert 1 < num_begun < len(requests)

    def test_a_window_never_ends(self) -> None:
        t3 = build(SMALL)
        settings = KVCacheConfig(policy="sliding", max_cache_size=64, window_size=16)
        speaker = Continued(t3, settings)
        requests = [dataclasses.replace(one, max_new_tokens=20, stop_on_eos=False) for one in self.texts(t3)]
        sampling = dataclasses.replace(requests[0].sampling, cfg_weight=0.5)
        requests = [dataclasses.replace(one, sampling=sampling) for one in requests]
        nbytes = set()
        for _ in range(8):
            for request in requests:
                assert len(speaker.decode(request)) == 20
                speaker.cache.check_integrity()
                nbytes.add(speaker.cache.nbytes)
        assert max(speaker.cache.row_lens) > 8 * 4 * 20 and len(nbytes) == 1

    def test_without_a_cache_nothing_is_continued(self, t3: T3) -> None:
        with pytest.raises(ValueError, match='continuity "append" needs a cache; pass use_cache=True'):
            Continued(t3, "none")


def test_nan_is_an_error_that_names_the_stage(t3: T3) -> None:
    broken = build(t3.hp)
    with torch.no_grad():
        broken.speech_head.weight[7] = torch.nan
    with pytest.raises(RuntimeError, match="T3 computed NaN or infinite logits at speech token 1; check the weights"):
        generate(broken, make_request(1, t3.hp))
