"""A small T3 and requests for it, each of which follows from one number."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable, Sequence

import torch

from chatterbox.config import SamplingConfig
from chatterbox.engine.engine import DecodeEngine
from chatterbox.engine.request import Request
from chatterbox.models.config import GPT2Config, LlamaConfig, T3Config
from chatterbox.models.t3 import T3
from chatterbox.models.t3.modules.cond_enc import T3Cond

SMALL = T3Config(
    text_tokens_dict_size=32,
    start_text_token=1,
    max_text_tokens=40,
    speech_tokens_dict_size=6564,
    max_speech_tokens=48,
    speaker_embed_size=8,
    perceiver_queries=3,
    perceiver_heads=2,
    backbone=LlamaConfig(num_layers=2, hidden_size=32, num_heads=2, head_dim=16, intermediate_size=48),
)


SMALL_GPT2 = dataclasses.replace(
    T3Config.turbo(),
    text_tokens_dict_size=32,
    speech_tokens_dict_size=6563,
    max_speech_tokens=48,
    speech_cond_prompt_len=12,
    speaker_embed_size=8,
    backbone=GPT2Config(
        num_layers=2, hidden_size=32, num_heads=2, head_dim=16, intermediate_size=48, max_positions=100
    ),
)


def build(hp: T3Config) -> T3:
    """A model of random weights, the same every time."""
    torch.manual_seed(0)
    return T3(hp).eval()


def make_request(seed: int, hp: T3Config = SMALL) -> Request:
    """A request whose text, voice, settings, limit and seed all follow from one number."""
    rng = random.Random(seed)
    speaker = torch.randn(1, 8, generator=torch.Generator().manual_seed(seed))
    cond = T3Cond(speaker, cond_prompt_speech_tokens=torch.arange(10)[None] + seed, emotion_adv=rng.random())
    text = torch.tensor([1, *(rng.randrange(2, 32) for _ in range(rng.randint(1, 20))), 0])
    sampling = SamplingConfig(
        temperature=rng.choice([0.0, 0.5, 0.8, 1.5]),
        cfg_weight=rng.choice([0.0, 0.5, 1.0]) if hp.has_guidance else 0.0,
        repetition_penalty=rng.choice([1.0, 1.2]),
        min_p=rng.choice([0.0, 0.05]),
        top_p=rng.choice([1.0, 0.9]),
        top_k=rng.choice([0, 0, 50]),
    )
    return Request(cond, text, sampling, max_new_tokens=rng.randint(1, 20), seed=seed)


def decode_together(
    engine: DecodeEngine, requests: Sequence[Request], num_rows: int, order: Iterable[int] | None = None
) -> tuple[list[list[int]], int]:
    """Tokens of all requests by place, and steps taken; each joins, in ``order``, as soon as ``num_rows`` allow it."""
    waiting = list(range(len(requests)) if order is None else order)
    places: dict[int, int] = {}
    decoded: list[list[int]] = [[] for _ in requests]
    num_steps = 0
    while waiting or engine.num_requests:
        while waiting and engine.num_rows + requests[waiting[0]].num_rows <= num_rows:
            place = waiting.pop(0)
            places[engine.join(requests[place])] = place
        for handle, token in engine.step().tokens:
            decoded[places[handle]].append(token)
        num_steps += 1
    return decoded, num_steps


REQUESTS = [make_request(seed) for seed in range(24)]
