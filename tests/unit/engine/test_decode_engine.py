"""The decode engine: a batch gives what its requests give alone, whoever joins or leaves, on every exact policy."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch

from chatterbox.config import SamplingConfig
from chatterbox.engine.decode import decoder_on, generate
from chatterbox.engine.engine import DecodeEngine
from chatterbox.engine.request import Request, allocate_cache, prefill_embeds, required_capacity
from chatterbox.engine.sampler import apply_cfg
from chatterbox.models.t3 import T3
from tests.support.decoding import generate_batch
from tests.support.small import REQUESTS


@pytest.fixture(scope="module")
def uncached(t3: T3) -> list[list[int]]:
    return [generate(t3, request, use_cache=False).tolist() for request in REQUESTS]


@pytest.mark.parametrize("name", ["static", "dynamic"])
@pytest.mark.parametrize("size", [2, 7, 24])
def test_a_batch_equals_its_requests_alone(t3: T3, uncached: list[list[int]], name: str, size: int) -> None:
    for first in range(0, len(REQUESTS), size):
        part = slice(first, first + size)
        assert [tokens.tolist() for tokens in generate_batch(t3, REQUESTS[part], cache_policy=name)] == uncached[part]
    assert generate_batch(t3, []) == []


def make_engine(t3: T3, rows: int, policy: str | None, stop_stride: int = 1) -> DecodeEngine:
    capacity = max(required_capacity(t3, request) for request in REQUESTS)
    cache = allocate_cache(t3, rows, capacity, policy) if policy else None
    return DecodeEngine(t3, decoder_on(t3, cache), stop_stride=stop_stride)


@pytest.mark.parametrize("policy", ["static", "dynamic", None])
@pytest.mark.parametrize("stop_stride", [1, 4])
def test_requests_join_and_leave_between_steps(
    t3: T3, uncached: list[list[int]], policy: str | None, stop_stride: int
) -> None:
    """Eight rows, requests that come when there is room, a few taken out half-way."""
    rng = random.Random(5)
    engine = make_engine(t3, 8, policy, stop_stride)
    waiting, running, most = list(range(len(REQUESTS))), {}, 0
    decoded: dict[int, list[int]] = {place: [] for place in waiting}
    taken_out = set()
    while waiting or engine.num_requests:
        while waiting and engine.num_rows + REQUESTS[waiting[0]].num_rows <= 8 and rng.random() < 0.7:
            place = waiting.pop(0)
            running[engine.join(REQUESTS[place])] = place
        most = max(most, engine.num_requests)
        for handle, token in engine.step().tokens:
            decoded[running[handle]].append(token)
        here = engine.running
        if here and rng.random() < 0.1:
            engine.leave(handle := rng.choice(here))
            taken_out.add(running[handle])
    assert most >= 4 and taken_out
    for place, expected in enumerate(uncached):
        assert decoded[place] == (expected[: len(decoded[place])] if place in taken_out else expected)


def test_a_full_engine_refuses_and_goes_on(t3: T3, uncached: list[list[int]]) -> None:
    guided = next(i for i, request in enumerate(REQUESTS) if request.num_rows == 2)
    engine = make_engine(t3, 3, "static")
    handle = engine.join(REQUESTS[guided])
    with pytest.raises(ValueError, match="3 rows, 2 in use, and the request needs 2; allocate more rows"):
        engine.join(REQUESTS[guided])
    long = dataclasses.replace(REQUESTS[0], sampling=SamplingConfig(cfg_weight=0.0), max_new_tokens=48)
    with pytest.raises(ValueError, match=r"may take 0 \+ \d+ positions, the cache has \d+; .*max_new_tokens"):
        engine.join(long)
    decoded = []
    while engine.num_requests:
        decoded += engine.step().tokens
    assert decoded == [(handle, token) for token in uncached[guided]]
    assert engine.step().tokens == []
    with pytest.raises(KeyError, match=f"request {handle} is not in the engine"):
        engine.leave(handle)


def test_stop_stride_is_checked(t3: T3) -> None:
    with pytest.raises(ValueError, match="stop_stride must be at least 1, got 0"):
        make_engine(t3, 2, "static", stop_stride=0)


def inference(t3: T3, request: Request, **options) -> torch.Tensor:
    params = {f.name: getattr(request.sampling, f.name) for f in dataclasses.fields(SamplingConfig)}
    params = {k: v for k, v in params.items() if k not in ("top_k", "max_new_tokens")}
    return t3.inference(
        t3_cond=request.t3_cond,
        text_tokens=request.text_tokens,
        max_new_tokens=request.max_new_tokens,
        seed=request.seed,
        **params,
        **options,
    )


PLAIN = [dataclasses.replace(r, sampling=dataclasses.replace(r.sampling, top_k=0)) for r in REQUESTS]


@torch.inference_mode()
def recomputed(t3: T3, requests: list[Request], heard: torch.Tensor) -> torch.Tensor:
    """Logits (rows, V) after two requests in a row and the speech tokens ``heard`` of the second; no cache anywhere."""
    first, second = (prefill_embeds(t3, request) for request in requests)
    spoken = generate(t3, requests[0])[:-1]
    parts = [first, embedded(t3, spoken, len(first)), second[:, t3.hp.cond_len :], embedded(t3, heard, len(first))]
    return t3.speech_head(t3.tfmr(torch.cat(parts, dim=1))[:, -1])


def embedded(t3: T3, tokens: torch.Tensor, rows: int) -> torch.Tensor:
    positions = torch.arange(1, len(tokens) + 1)
    return (t3.speech_emb(tokens) + t3.speech_pos_emb.emb(positions))[None].expand(rows, -1, -1)


@pytest.mark.parametrize("cfg_weight", [0.0, 0.5])
def test_a_cache_passed_in_and_out_continues_the_sequence(t3: T3, cfg_weight: float) -> None:
    greedy = SamplingConfig(temperature=0.0, cfg_weight=cfg_weight, repetition_penalty=1.0)
    requests = [dataclasses.replace(r, sampling=greedy, t3_cond=REQUESTS[0].t3_cond) for r in REQUESTS[:2]]
    first, cache = inference(t3, requests[0], return_cache=True)
    assert torch.equal(first[0], generate(t3, requests[0]))
    assert cache.length == t3.hp.cond_len + len(requests[0].text_tokens) + 2 + first.shape[1] - 1
    tokens, continued = inference(t3, requests[1], past_key_values=cache, return_cache=True)
    heard = torch.zeros(0, dtype=torch.long)
    for token in tokens[0]:
        logits = recomputed(t3, requests, heard)
        guided = logits[:1] if cfg_weight == 0.0 else apply_cfg(logits[:1], logits[1:], cfg_weight)
        assert int(guided.argmax()) == int(token)
        heard = torch.cat([heard, token[None]])
    added = len(requests[1].text_tokens) + 2 + tokens.shape[1] - 1
    assert continued.length == cache.length + added
    assert continued is not cache  # it was too small, so a copy went on


def test_cache_offset_keeps_the_conditioning(t3: T3) -> None:
    """Another text after the conditioning prefix alone is that text spoken anew, without the conditioning's work."""
    first, second = (dataclasses.replace(r, t3_cond=PLAIN[0].t3_cond, sampling=PLAIN[0].sampling) for r in PLAIN[:2])
    _, cache = inference(t3, first, return_cache=True)
    cache = cache.clone_prefix(cache.length, capacity=100)
    again, same = inference(t3, second, past_key_values=cache, cache_offset=t3.hp.cond_len, return_cache=True)
    assert same is cache
    assert torch.equal(again, inference(t3, second))
    assert cache.length == t3.hp.cond_len + len(second.text_tokens) + 2 + again.shape[1] - 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache_offset": 5}, "cache_offset 5 needs past_key_values"),
        ({"use_cache": False, "return_cache": True}, "return_cache needs use_cache=True"),
        ({"use_cache": False, "past": True}, "past_key_values needs use_cache=True"),
        ({"past": True, "cache_offset": 2}, r"cache_offset must be from 5 .* to \d+ .*, got 2"),
        ({"past": True, "cache_offset": 4000}, r"cache_offset must be from 5 .* to \d+ .*, got 4000"),
        ({"past": True, "cfg_weight": 0.0}, "past_key_values has 2 rows, the request needs 1; guidance"),
    ],
)
def test_caches_that_do_not_fit(t3: T3, options: dict, message: str) -> None:
    request = dataclasses.replace(REQUESTS[0], sampling=SamplingConfig())
    _, cache = inference(t3, request, return_cache=True)
    options = dict(options)
    if options.pop("past", False):
        options["past_key_values"] = cache
    if "cfg_weight" in options:
        request = dataclasses.replace(request, sampling=SamplingConfig(cfg_weight=options.pop("cfg_weight")))
    with pytest.raises(ValueError, match=message):
        inference(t3, request, **options)
