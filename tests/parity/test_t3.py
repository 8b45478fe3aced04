"""T3 against chatterbox-tts 0.1.7: conditioning, prefill, greedy steps, and the sampling loop."""

from __future__ import annotations

import pytest
import torch

from chatterbox.config import SamplingConfig
from chatterbox.engine.decode import generate
from chatterbox.engine.request import Request, allocate_cache, prefill_embeds
from chatterbox.engine.sampler import SamplingParams, apply_cfg, draw_exponential, process, sample
from chatterbox.models.config import LlamaConfig, T3Config
from chatterbox.models.t3 import T3
from chatterbox.models.t3.modules.cond_enc import T3Cond
from tests.parity.support import check, fill, load_golden, load_json, load_meta, manifest
from tools.synthetic import uniform

CFG_WEIGHT = 0.5
INFERENCE_SAMPLING = SamplingConfig(temperature=0.8, cfg_weight=0.5, repetition_penalty=1.2, min_p=0.05, top_p=1.0)


def build(num_layers: int, vocabulary: int = 704) -> T3:
    config = T3Config(text_tokens_dict_size=vocabulary, backbone=LlamaConfig(num_layers=num_layers))
    return fill(T3(config))


@pytest.fixture(scope="module")
def small() -> T3:
    return build(2)


@pytest.fixture(scope="module")
def full() -> T3:
    return build(30)


def condition(golden: dict[str, torch.Tensor]) -> T3Cond:
    return T3Cond(
        speaker_emb=golden["in.speaker_emb"],
        cond_prompt_speech_tokens=golden["in.cond_prompt_speech_tokens"],
        emotion_adv=golden["in.emotion_adv"],
    )


def request_of(golden: dict[str, torch.Tensor], sampling: SamplingConfig, **options) -> Request:
    return Request(condition(golden), golden["in.text_tokens"], sampling, **options)


def layer_outputs(t3: T3, embeds: torch.Tensor) -> torch.Tensor:
    """Last position's state: the input, every layer's output, the last one after the final norm."""
    states = [embeds[:, -1]]
    run = t3.tfmr.start(torch.arange(embeds.shape[1]))
    x = embeds
    for index, layer in enumerate(t3.tfmr.layers):
        x = layer(x, run, index)
        states.append(x[:, -1])
    states[-1] = t3.tfmr.norm(states[-1])
    return torch.stack(states)


@torch.inference_mode()
def replay_greedy(t3: T3, golden: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Guided logits of every step while the stored greedy tokens are fed, and the prefill's own logits."""
    embeds = prefill_embeds(t3, request_of(golden, INFERENCE_SAMPLING))
    tokens = golden["out.greedy_tokens"].tolist()
    cache = allocate_cache(t3, 2, embeds.shape[1] + len(tokens))
    rows = []
    for step, token in enumerate(tokens):
        rows.append(t3.speech_head(t3.tfmr(embeds, cache)[:, -1]))
        new = t3.speech_emb(torch.tensor([[token]])) + t3.speech_pos_emb.get_fixed_embedding(step + 1)
        embeds = new.expand(2, -1, -1)
    assert cache.length == cache.capacity - 1
    cache.check_integrity()
    return torch.stack([apply_cfg(r[0], r[1], CFG_WEIGHT) for r in rows]), rows[0]


def check_prefix(t3: T3, case: str) -> dict[str, torch.Tensor]:
    golden = load_golden(case)
    cond = condition(golden)
    check(case, "out.cond_emb", t3.prepare_conditioning(cond))
    check(case, "out.perceiver", t3.cond_enc.perceiver(t3.embed_speech(cond.cond_prompt_speech_tokens)))
    check(case, "out.hidden_last", layer_outputs(t3, prefill_embeds(t3, request_of(golden, INFERENCE_SAMPLING))))
    assert cond.cond_prompt_speech_emb is None
    return golden


def check_steps(t3: T3, case: str, golden: dict[str, torch.Tensor]) -> None:
    logits, prefill_logits = replay_greedy(t3, golden)
    check(case, "out.prefill_logits", prefill_logits)
    stored = golden.get("out.step_logits_index")
    check(case, "out.step_logits", logits if stored is None else logits[stored])
    assert torch.equal(logits.argmax(-1), golden["out.greedy_tokens"])
    if "out.step_top64_values" in golden:
        check(case, "out.step_top64_values", logits.gather(1, golden["out.step_top64_indices"]))


@torch.inference_mode()
def test_two_layers(small: T3) -> None:
    case = "t3_en_2layer"
    golden = check_prefix(small, case)
    check_steps(small, case, golden)
    embeds = prefill_embeds(small, request_of(golden, INFERENCE_SAMPLING))
    check(case, "out.input_embeds", embeds[:, :-1])
    check(case, "const.rope_inv_freq", small.tfmr.rope_freqs)


@torch.inference_mode()
def test_two_layers_multilingual() -> None:
    t3 = build(2, vocabulary=2454)
    check_steps(t3, "t3_mtl_2layer", check_prefix(t3, "t3_mtl_2layer"))


@torch.inference_mode()
@pytest.mark.parametrize("case", ["t3_en_full_short", "t3_en_full_long"])
def test_thirty_layers(full: T3, case: str) -> None:
    golden = check_prefix(full, case)
    check_steps(full, case, golden)
    embeds = prefill_embeds(full, request_of(golden, INFERENCE_SAMPLING))[:, :-1]
    if case == "t3_en_full_short":
        check(case, "out.input_embeds", embeds)
    else:
        check(case, "out.input_embeds_cond_row", embeds[:1])
        cond_len = full.hp.cond_len
        check(case, "out.input_embeds_uncond_row_text_head", embeds[1:, cond_len : cond_len + 8])


@torch.inference_mode()
def test_sampling_loop_probabilities(small: T3) -> None:
    """Every step's distribution while the stored tokens (arg-maxes of upstream's loop) are fed."""
    golden = load_golden("t3_en_2layer_inference")
    embeds = prefill_embeds(small, request_of(golden, INFERENCE_SAMPLING))
    tokens = golden["out.tokens"][0].tolist()
    cache = allocate_cache(small, 2, embeds.shape[1] + len(tokens))
    seen = torch.zeros(1, small.hp.speech_tokens_dict_size, dtype=torch.bool)
    seen[0, small.hp.start_speech_token] = True
    probs = []
    for step, token in enumerate(tokens):
        logits = small.speech_head(small.tfmr(embeds, cache)[:, -1])
        probs.append(
            process(apply_cfg(logits[:1], logits[1:], CFG_WEIGHT), seen, SamplingParams.of([INFERENCE_SAMPLING]))[0]
        )
        seen[0, token] = True
        new = small.speech_emb(torch.tensor([[token]])) + small.speech_pos_emb.get_fixed_embedding(step + 1)
        embeds = new.expand(2, -1, -1)
    probs = torch.stack(probs)
    assert torch.equal(probs.argmax(-1), golden["out.tokens"][0])
    assert torch.equal((probs > 0).sum(-1), golden["out.support_size"])
    check("t3_en_2layer_inference", "out.prob_top32_values", probs.gather(1, golden["out.prob_top32_indices"]))


@torch.inference_mode()
def test_sampling_chain() -> None:
    golden = load_golden("sampling_chain")
    for index, call in enumerate(load_meta("sampling_chain")["calls"]):
        sampling = SamplingConfig(
            **{k: call[k] for k in ("cfg_weight", "temperature", "repetition_penalty", "min_p", "top_p")}
        )
        logits = golden[f"in.{index}.logits"]
        seen = torch.zeros(1, logits.shape[-1], dtype=torch.bool)
        seen[0, 6561] = True
        rows = []
        for step, token in enumerate(golden[f"in.{index}.history"].tolist()):
            seen[0, token] = True
            rows.append(
                process(
                    apply_cfg(logits[step, :1], logits[step, 1:], sampling.cfg_weight),
                    seen,
                    SamplingParams.of([sampling]),
                )[0]
            )
        probs = torch.stack(rows)
        assert (probs > 0).sum(-1).tolist() == call["kept"]
        check("sampling_chain", f"out.{index}.probs", probs)


@pytest.mark.parametrize("rows", [1, 2])
def test_guidance_off(small: T3, rows: int) -> None:
    """Upstream raises for one row and decodes the stored arg-maxes for two; here both give them."""
    stored = load_json("t3_cfg_zero")
    # The case stores its integers only; the speaker follows from the goldens' input rule, seed 12.
    speaker = torch.from_numpy(uniform("input:cfg_zero:speaker", 256, 12)).abs()[None]
    cond = T3Cond(
        speaker_emb=speaker / speaker.norm(),
        cond_prompt_speech_tokens=torch.tensor(stored["inputs"]["cond_prompt_speech_tokens"]),
        emotion_adv=torch.full((1, 1, 1), 0.5),
    )
    text = torch.tensor(stored["inputs"]["text_tokens"]).repeat(rows, 1)
    tokens = small.inference(t3_cond=cond, text_tokens=text, max_new_tokens=6, cfg_weight=0.0, do_sample=False)
    assert tokens.tolist() == stored["results"]["two_rows_cfg_0"]["tokens"]


@pytest.mark.parametrize("cfg_weight", [0.0, 0.5])
def test_cached_equals_uncached(small: T3, cfg_weight: float) -> None:
    golden = load_golden("t3_en_2layer")
    sampling = SamplingConfig(temperature=0.8, cfg_weight=cfg_weight)
    request = request_of(golden, sampling, max_new_tokens=24, seed=7)
    cached = generate(small, request)
    assert len(cached) == 24
    assert torch.equal(cached, generate(small, request, use_cache=False))


def test_draw_consumes_the_generator_as_upstream() -> None:
    """One multinomial draw a step over the whole vocabulary: the same seed gives the same token."""
    logits = load_golden("sampling_chain")["in.0.logits"][0, :1]
    seen = torch.zeros_like(logits, dtype=torch.bool)
    torch.manual_seed(3)
    params, noise = SamplingParams.of([INFERENCE_SAMPLING]), torch.ones_like(logits)
    probabilities = process(logits, seen, params)
    for seed in range(100):
        torch.manual_seed(seed)
        expected = torch.multinomial(probabilities, num_samples=1)
        after = torch.get_rng_state()
        torch.manual_seed(seed)
        draw_exponential(noise, [0])
        assert torch.equal(sample(logits, seen, params, noise), expected)
        assert torch.equal(torch.get_rng_state(), after)


def test_state_dict_equals_the_manifest() -> None:
    with torch.device("meta"):
        models = {"t3_cfg": T3(), "t3_mtl": T3(T3Config.multilingual())}
    for layout, model in models.items():
        assert {k: tuple(v.shape) for k, v in model.state_dict().items()} == manifest(layout)


@torch.inference_mode()
def test_norms(small: T3) -> None:
    golden = load_golden("norm_eps")
    prefix = "in.t3_small."
    names = [key.removeprefix(prefix) for key in golden if key.startswith(prefix)]
    assert len(names) == 4
    for name in names:
        check("norm_eps", f"out.t3_small.{name}", small.get_submodule(name)(golden[prefix + name]))
