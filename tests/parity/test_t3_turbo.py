"""Turbo's T3 against chatterbox-tts 0.1.7: conditioning, prefill, greedy steps, and its sampling loop."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from chatterbox.config import SamplingConfig
from chatterbox.engine.request import Request, allocate_cache, prefill_embeds
from chatterbox.engine.sampler import SamplingParams, process
from chatterbox.kvcache.base import KVCache
from chatterbox.models.config import GPT2Config, T3Config
from chatterbox.models.t3 import T3
from chatterbox.models.t3.attention import Pass
from chatterbox.models.t3.modules.cond_enc import T3Cond
from tests.parity.support import check, fill, load_golden, load_meta, manifest

CASE = "t3_turbo_2layer"
SAMPLING = SamplingConfig(temperature=0.8, cfg_weight=0.0, repetition_penalty=1.2, min_p=0.0, top_p=0.95, top_k=1000)


@pytest.fixture(scope="module")
def t3() -> T3:
    return fill(T3(dataclasses.replace(T3Config.turbo(), backbone=GPT2Config(num_layers=2))))


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_golden(CASE)


def condition(golden: dict[str, torch.Tensor]) -> T3Cond:
    return T3Cond(golden["in.speaker_emb"], cond_prompt_speech_tokens=golden["in.cond_prompt_speech_tokens"])


def prefilled(t3: T3, golden: dict[str, torch.Tensor], num_tokens: int) -> tuple[torch.Tensor, KVCache]:
    """Logits (1, V) after the prefill, and the cache with room for ``num_tokens``."""
    embeds = prefill_embeds(t3, Request(condition(golden), golden["in.text_tokens"], SAMPLING))
    cache = allocate_cache(t3, 1, embeds.shape[1] + num_tokens)
    return t3.predict_speech(t3.tfmr(embeds, cache)[:, -1]), cache


@torch.inference_mode()
def test_prefix(t3: T3, golden: dict[str, torch.Tensor]) -> None:
    cond = condition(golden)
    assert t3.cond_len_of(cond) == t3.prepare_conditioning(cond).shape[1] == golden["out.cond_len"].item() == 376
    embeds = prefill_embeds(t3, Request(cond, golden["in.text_tokens"], SAMPLING))
    check(CASE, "out.input_embeds_rows", embeds[:, golden["out.input_embeds_rows_index"]])
    run = Pass(torch.arange(embeds.shape[1]))
    x = embeds + t3.tfmr.wpe(run.positions)
    states = [x[:, -1]]
    for index, layer in enumerate(t3.tfmr.h):
        x = layer(x, run, index)
        states.append(x[:, -1])
    states[-1] = t3.tfmr.ln_f(states[-1])
    check(CASE, "out.hidden_last", torch.stack(states))


@torch.inference_mode()
def test_greedy_steps(t3: T3, golden: dict[str, torch.Tensor]) -> None:
    """Logits of every step while the stored tokens are fed."""
    tokens = golden["out.greedy_tokens"]
    logits, cache = prefilled(t3, golden, len(tokens))
    rows = [logits]
    for token in tokens[:-1]:
        rows.append(t3.predict_speech(t3.tfmr(t3.embed_speech(token.view(1, 1)), cache)[:, -1]))
    cache.check_integrity()
    steps = torch.cat(rows)
    check(CASE, "out.step_logits", steps)
    assert torch.equal(steps.argmax(-1), tokens)


@torch.inference_mode()
def test_sampling_loop_probabilities(t3: T3, golden: dict[str, torch.Tensor]) -> None:
    """Every step's distribution while the stored tokens (arg-maxes of upstream's loop) are fed."""
    tokens = golden["out.inference_turbo_tokens"][0]
    logits, cache = prefilled(t3, golden, len(tokens))
    seen = torch.zeros(1, t3.hp.speech_tokens_dict_size, dtype=torch.bool)
    seen[0, t3.hp.start_speech_token] = True
    rows = []
    for token in tokens:
        rows.append(process(logits, seen, SamplingParams.of([SAMPLING]), penalty_last=True))
        seen[0, t3.hp.start_speech_token] &= len(rows) > 1
        seen[0, token] = True
        logits = t3.predict_speech(t3.tfmr(t3.embed_speech(token.view(1, 1)), cache)[:, -1])
    probs = torch.cat(rows)
    assert torch.equal(probs.argmax(-1), tokens)
    stored = golden["out.inference_turbo_prob_top32_indices"]
    check(CASE, "out.inference_turbo_prob_top32_values", probs.gather(1, stored))


@torch.inference_mode()
def test_sampling_chain() -> None:
    golden = load_golden("sampling_chain_turbo")
    for index, call in enumerate(load_meta("sampling_chain_turbo")["calls"]):
        settings = {name: call[name] for name in ("temperature", "top_k", "top_p", "repetition_penalty")}
        sampling = SamplingConfig(cfg_weight=0.0, min_p=0.0, **settings)
        logits, decoded = golden[f"in.{index}.logits"], golden[f"in.{index}.tokens_drawn"]
        seen = torch.zeros_like(logits, dtype=torch.bool)
        seen[0, 6561] = True
        for step in range(1, len(logits)):
            seen[step, decoded[:step]] = True
        probs = process(logits, seen, SamplingParams.of([sampling] * len(logits)), penalty_last=True)
        assert (probs > 0).sum(-1).tolist() == call["kept"]
        check("sampling_chain_turbo", f"out.{index}.probs", probs)


def test_state_dict_equals_the_manifest() -> None:
    """But for GPT-2's own embedding, which upstream deletes after loading."""
    with torch.device("meta"):
        model = T3(T3Config.turbo())
    found = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert {**found, "tfmr.wte.weight": (50276, 1024)} == manifest("t3_turbo")


def test_nano_is_turbo_with_a_smaller_backbone() -> None:
    with torch.device("meta"):
        model = T3(T3Config.nano())
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    turbo = manifest("t3_turbo")
    assert shapes.keys() == {key for key in turbo if not key.startswith("tfmr.h.") or int(key.split(".")[2]) < 12} - {
        "tfmr.wte.weight"
    }
    assert shapes["tfmr.h.0.attn.c_attn.weight"] == (768, 2304) and shapes["tfmr.wpe.weight"] == (8196, 768)


@torch.inference_mode()
def test_norms(t3: T3) -> None:
    golden = load_golden("norm_eps")
    prefix = "in.t3_turbo."
    names = [key.removeprefix(prefix) for key in golden if key.startswith(prefix)]
    assert len(names) == 3
    for name in names:
        check("norm_eps", f"out.t3_turbo.{name}", t3.get_submodule(name)(golden[prefix + name]))
