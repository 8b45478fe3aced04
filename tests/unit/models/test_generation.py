"""Sampling against transformers' processors, and the decode loop on a small random T3."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from chatterbox.config import SamplingConfig
from chatterbox.engine.decode import generate
from chatterbox.engine.request import Request
from chatterbox.engine.sampler import (
    SamplingParams,
    apply_min_p,
    apply_repetition_penalty,
    apply_top_k,
    apply_top_p,
    hashed_exponential,
    process,
    sample,
)
from chatterbox.models.t3 import T3
from chatterbox.models.t3.modules.cond_enc import T3Cond
from tests.support.small import SMALL, SMALL_GPT2, build, make_request


@pytest.fixture
def request_(t3: T3) -> Request:
    cond = T3Cond(speaker_emb=torch.ones(1, 8), cond_prompt_speech_tokens=torch.arange(10)[None], emotion_adv=0.5)
    text = torch.tensor([1, 5, 9, 7, 0])
    return Request(cond, text, SamplingConfig(), max_new_tokens=12, seed=1)


@pytest.mark.parametrize("cfg_weight", [0.0, 0.5])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_cached_equals_uncached(t3: T3, request_: Request, cfg_weight: float, temperature: float) -> None:
    request_ = dataclasses.replace(request_, sampling=SamplingConfig(temperature=temperature, cfg_weight=cfg_weight))
    cached = generate(t3, request_)
    assert len(cached) == 12
    assert torch.equal(cached, generate(t3, request_, use_cache=False))


def test_seed_leaves_the_global_generator_alone(t3: T3, request_: Request) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = generate(t3, request_)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, generate(t3, request_))
    assert not torch.equal(first, generate(t3, dataclasses.replace(request_, seed=2)))


def test_without_a_seed_the_global_generator_decides(t3: T3, request_: Request) -> None:
    request_ = dataclasses.replace(request_, seed=None)
    torch.manual_seed(5)
    first = generate(t3, request_)
    second = generate(t3, request_)
    torch.manual_seed(5)
    assert torch.equal(first, generate(t3, request_))
    assert not torch.equal(first, second)


def test_stops_at_the_stop_token(request_: Request) -> None:
    torch.manual_seed(0)
    eager = T3(SMALL).eval()
    with torch.no_grad():
        eager.speech_head.weight.zero_()
        eager.speech_head.weight[6562] = 1.0
        eager.tfmr.norm.weight.copy_(torch.sign(torch.randn(32)))
    greedy = SamplingConfig(temperature=0.0, cfg_weight=0.0, repetition_penalty=1.0)
    tokens = generate(eager, dataclasses.replace(request_, sampling=greedy, max_new_tokens=40))
    positions = (tokens == 6562).nonzero()
    assert len(positions) == 1 and int(positions) == len(tokens) - 1
    going_on = dataclasses.replace(request_, sampling=greedy, max_new_tokens=40, stop_on_eos=False)
    assert len(generate(eager, going_on)) == 40


def test_turbos_limit_is_the_limit_and_its_first_token_may_be_the_last() -> None:
    """Upstream decodes one token more, and goes on after a stop token that comes first."""
    turbo, request = build(SMALL_GPT2), make_request(0, SMALL_GPT2)
    options = {"t3_cond": request.t3_cond, "text_tokens": request.text_tokens, "max_gen_len": 5, "seed": 1}
    assert turbo.inference_turbo(**options).shape == (1, 5)
    with torch.no_grad():
        turbo.speech_head.bias[6562] = 1e4
    assert turbo.inference_turbo(**options).shape == (1, 0)


def test_inference_is_the_same_loop(t3: T3, request_: Request) -> None:
    tokens = t3.inference(
        t3_cond=request_.t3_cond, text_tokens=request_.text_tokens, max_new_tokens=12, seed=1, top_p=1.0, min_p=0.05
    )
    assert torch.equal(tokens, generate(t3, request_)[None])


def test_the_callers_conditioning_is_not_changed(t3: T3, request_: Request) -> None:
    generate(t3, request_)
    assert request_.t3_cond.cond_prompt_speech_emb is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_tokens": torch.tensor([5, 9, 0])}, "lack the start token 1"),
        ({"text_tokens": torch.tensor([1, 5, 9])}, "lack the stop token 0"),
        ({"text_tokens": torch.tensor([1, 32, 0])}, "text token 32 is outside of the vocabulary of 32"),
        ({"text_tokens": torch.tensor([1, *[5] * 50, 0])}, "text of 52 tokens is longer than the model's 42 positions"),
        ({"max_new_tokens": 49}, "max_new_tokens must be from 1 to the model's 48, got 49"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number from 1, got 0"),
    ],
)
def test_bad_requests(t3: T3, request_: Request, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(t3, dataclasses.replace(request_, **change))


def test_unused_upstream_arguments_are_refused(t3: T3, request_: Request) -> None:
    with pytest.raises(ValueError, match="num_return_sequences must be 1, got 2"):
        t3.inference(t3_cond=request_.t3_cond, text_tokens=request_.text_tokens, num_return_sequences=2)


def test_teacher_forced_forward_matches_decoding(t3: T3, request_: Request) -> None:
    """`forward` sees [start, tokens]; without the second start token only shapes and masks can be compared."""
    text, speech = request_.text_tokens[None], torch.tensor([[6561, 3, 4, 5]])
    out = t3(
        t3_cond=request_.t3_cond,
        text_tokens=text,
        text_token_lens=torch.tensor([5]),
        speech_tokens=speech,
        speech_token_lens=torch.tensor([3]),
    )
    assert out.text_logits.shape == (1, 5, 32)
    assert out.speech_logits.shape == (1, 4, 6564)
    assert not out.speech_latents[:, 3].any()
    loss_text, loss_speech = t3.loss(
        t3_cond=request_.t3_cond,
        text_tokens=text,
        text_token_lens=torch.tensor([5]),
        speech_tokens=speech,
        speech_token_lens=torch.tensor([4]),
    )
    expected = torch.nn.functional.cross_entropy(out.speech_logits[0, :3], speech[0, 1:])
    torch.testing.assert_close(loss_speech, expected)
    assert torch.isfinite(loss_text)


@pytest.fixture(scope="module")
def logits() -> torch.Tensor:
    return 4 * torch.randn(3, 200, generator=torch.Generator().manual_seed(2))


def test_penalty_equals_transformers(logits: torch.Tensor) -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    ids = torch.tensor([[1, 5, 5], [7, 8, 9], [0, 0, 0]])
    seen = torch.zeros(3, 200, dtype=torch.bool).scatter(1, ids, True)
    expected = RepetitionPenaltyLogitsProcessor(1.3)(ids, logits.clone())
    assert torch.equal(apply_repetition_penalty(logits, seen, 1.3), expected)


@pytest.mark.parametrize("value", [0.01, 0.1, 0.5, 1.0])
def test_min_p_equals_transformers(logits: torch.Tensor, value: float) -> None:
    from transformers import MinPLogitsWarper

    assert torch.equal(apply_min_p(logits, value), MinPLogitsWarper(value)(None, logits.clone()))


@pytest.mark.parametrize("value", [0.1, 0.5, 0.9, 0.99])
def test_top_p_equals_transformers(logits: torch.Tensor, value: float) -> None:
    from transformers import TopPLogitsWarper

    assert torch.equal(apply_top_p(logits, value), TopPLogitsWarper(value)(None, logits.clone()))


@pytest.mark.parametrize("value", [1, 5, 199, 200, 500])
def test_top_k_equals_transformers(logits: torch.Tensor, value: int) -> None:
    from transformers import TopKLogitsWarper

    assert torch.equal(apply_top_k(logits, value), TopKLogitsWarper(value)(None, logits.clone()))


def test_switched_off_settings_change_nothing(logits: torch.Tensor) -> None:
    seen = torch.ones(3, 200, dtype=torch.bool)
    off = SamplingConfig(temperature=1.0, repetition_penalty=1.0, min_p=0.0, top_p=1.0)
    assert torch.equal(process(logits, seen, SamplingParams.of([off] * 3)), logits.softmax(-1))
    assert torch.equal(apply_top_k(logits, 0), logits)


def test_each_row_has_its_own_settings(logits: torch.Tensor) -> None:
    """A batch of different settings gives each row, bit by bit, what it gets alone."""
    settings = [
        SamplingConfig(temperature=0.7, repetition_penalty=1.3, min_p=0.1, top_p=0.9, top_k=20),
        SamplingConfig(temperature=1.0, repetition_penalty=1.0, min_p=0.0, top_p=1.0),
        SamplingConfig(temperature=0.0, repetition_penalty=1.2),
    ]
    seen = torch.rand(3, 200, generator=torch.Generator().manual_seed(3)) < 0.1
    together = process(logits, seen, SamplingParams.of(settings))
    for row, one in enumerate(settings):
        part = slice(row, row + 1)
        assert torch.equal(together[part], process(logits[part], seen[part], SamplingParams.of([one])))
    assert (together[0] > 0).sum() <= 20


def test_greedy_needs_no_noise(logits: torch.Tensor) -> None:
    before = torch.get_rng_state()
    seen = torch.zeros(3, 200, dtype=torch.bool)
    tokens = sample(
        logits, seen, SamplingParams.of([SamplingConfig(temperature=0.0, repetition_penalty=1.0)] * 3), None
    )
    assert torch.equal(tokens, logits.argmax(-1, keepdim=True))
    assert torch.equal(torch.get_rng_state(), before)


class TestHashedNoise:
    def test_is_a_function_of_seed_and_step_whoever_else_samples(self) -> None:
        seeds, steps = torch.tensor([[3], [7], [2**63 - 1]]), torch.tensor([[0], [5], [999]])
        together = hashed_exponential(seeds, steps, 8194)
        assert together.shape == (3, 8194) and together.dtype == torch.float32
        for row in range(3):
            part = slice(row, row + 1)
            assert torch.equal(hashed_exponential(seeds[part], steps[part], 8194), together[part])
        assert torch.equal(hashed_exponential(seeds, steps, 77), together[:, :77])

    def test_seeds_and_steps_give_other_numbers(self) -> None:
        numbers = torch.arange(40)[:, None]
        by_seed = hashed_exponential(numbers, torch.zeros_like(numbers), 1000)
        by_step = hashed_exponential(torch.zeros_like(numbers), numbers, 1000)
        for noise in (by_seed, by_step):
            correlations = torch.corrcoef(noise) - torch.eye(40)
            assert correlations.abs().max() < 0.15 and len({tuple(row[:4].tolist()) for row in noise}) == 40

    def test_is_exponential(self) -> None:
        steps = torch.arange(500)[:, None]
        noise = hashed_exponential(torch.full_like(steps, 11), steps, 8194).flatten().double()
        assert noise.isfinite().all() and (noise > 0).all()
        assert abs(noise.mean() - 1) < 2e-3 and abs(noise.var() - 1) < 5e-3
        for low, high in [(0, 1e-4), (0, 1e-3), (0, 0.01), (0.1, 0.2), (1, 2), (5, 6), (10, 100)]:
            expected = np.exp(-low) - np.exp(-high)
            share = ((noise >= low) & (noise < high)).double().mean()
            assert abs(share - expected) < 6 * (expected / len(noise)) ** 0.5 + 1e-7

    def test_samples_follow_the_probabilities(self, logits: torch.Tensor) -> None:
        """As many of each token as its probability says."""
        one = logits[:1, :20]
        params = SamplingParams.of([SamplingConfig(temperature=1.0, repetition_penalty=1.0, min_p=0.0)])
        seen, num = torch.zeros(1, 20, dtype=torch.bool), 20_000
        noise = hashed_exponential(torch.full((num, 1), 5), torch.arange(num)[:, None], 20)
        sampled = sample(one.expand(num, -1), seen, params, noise)[:, 0]
        probabilities = process(one, seen, params)[0]
        shares = torch.bincount(sampled, minlength=20) / num
        assert ((shares - probabilities).abs() < 5 * (probabilities / num).sqrt() + 1e-3).all()
