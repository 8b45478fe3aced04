"""Guards: their decisions, those of chatterbox-tts 0.1.7's analyser among them, and the decode engine under them."""

from __future__ import annotations

import dataclasses
import logging
import random

import pytest
import torch

from chatterbox.config import SamplingConfig
from chatterbox.engine.cuda_graphs import StepGraphs
from chatterbox.engine.decode import decode, decoder_on, generate
from chatterbox.engine.engine import DecodeEngine
from chatterbox.engine.guards import AlignmentGuard, LightGuard, Verdict, check_guard, join_guards, select_guards
from chatterbox.engine.guards.light import MAX_PERIOD, MIN_TOKENS, SLACK, WINDOW
from chatterbox.engine.prefill import Prefiller
from chatterbox.engine.request import Request, allocate_cache, required_capacity
from chatterbox.kvcache.prefix.manager import GlobalKVCacheManager
from chatterbox.models.config import LlamaConfig, T3Config
from chatterbox.models.t3 import T3
from chatterbox.models.t3.attention import HeadReader
from chatterbox.models.t3.modules.cond_enc import T3Cond
from chatterbox.synthesis.request import SynthesisRequest
from tests.parity.support import fill, load_golden, load_json, load_meta
from tests.support.decoding import generate_batch, stream
from tests.support.small import SMALL, SMALL_GPT2, build, decode_together, make_request
from tests.support.speaking import say_instead
from tests.unit.engine.test_graphs import recorded

CASE = "alignment_analyzer"
STATES = load_json(CASE)["states"]
STOP = load_json(CASE)["eos_idx"]
START = 6561


def frames(name: str) -> torch.Tensor:
    """(T, S): attention of the newest query of every call, averaged over the heads."""
    golden = load_golden(CASE)
    rows = torch.cat([golden[f"in.{name}.first_rows"][:, -1:], golden[f"in.{name}.rows"]], dim=1)
    return rows.mean(0)


def last_tokens(name: str) -> torch.Tensor:
    """(T,): what the analyser is told was decoded before."""
    return load_golden(CASE)[f"in.{name}.next_token"]


def look(guard: AlignmentGuard, attention: torch.Tensor, last: torch.Tensor, step: int) -> tuple[torch.Tensor, ...]:
    guard.attention[:, : attention.shape[-1]] = attention
    return guard.look(last.view(-1, 1), torch.full((len(guard.places), 1), step))


@pytest.mark.parametrize("name", STATES)
def test_upstreams_decisions(name):
    """With its slip, two equal tokens for three."""
    golden, attention = load_golden(CASE), frames(name)
    guard = AlignmentGuard.start(0, attention.shape[1], repeats=2)
    for step, state in enumerate(STATES[name][: len(attention)]):  # one text ends with the analyser's failure
        go_on, stop = look(guard, attention[step], last_tokens(name)[step], step)
        assert [bool(go_on), bool(stop)] == [state["suppressed"], state["forced"]], (name, step)
        assert (int(guard.position), bool(guard.complete)) == (state["text_position"], state["complete"])
        logits, expected = golden[f"in.{name}.logits"][step][None], golden[f"out.{name}.logits"][step][None]
        verdict = Verdict(masked=go_on, replaced=None, must_stop=stop)
        verdict.mask(logits := logits.clone(), STOP)
        assert torch.equal(verdict.correct(logits.argmax(-1, keepdim=True), logits, STOP)[0], expected.argmax(-1))
        assert stop or torch.equal(logits, expected)


def test_a_batch_decides_as_each_alone():
    names = [name for name in STATES if len(STATES[name]) >= 14]
    alone = [AlignmentGuard.start(0, frames(name).shape[1]) for name in names]
    together: dict = {}
    for place, name in enumerate(names):
        together = join_guards(together, place, {"alignment": AlignmentGuard.start(0, frames(name).shape[1])})
    assert together["alignment"].places.tolist() == list(range(len(names)))
    for step in range(14):
        rows = [frames(name)[step] for name in names]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        last = torch.stack([last_tokens(name)[step] for name in names])
        batch = look(together["alignment"], padded, last, step)
        single = [look(guard, row, one, step) for guard, row, one in zip(alone, rows, last, strict=True)]
        for decision, singles in zip(batch, zip(*single, strict=True), strict=True):
            assert torch.equal(decision, torch.cat(singles))


def test_two_equal_tokens_are_allowed_and_three_are_not():
    guard = AlignmentGuard.start(0, 12)
    tokens = torch.tensor([START, 5, 5, 6, 6, 6, 7])
    stops = [bool(look(guard, torch.zeros(12), token, step)[1]) for step, token in enumerate(tokens)]
    assert stops == [False, False, False, False, False, True, False]


@pytest.mark.parametrize("text_len", [1, 3, 5])
def test_a_text_of_few_tokens_can_end(text_len):
    """Upstream's analyser fails on these once the text is spoken."""
    guard = AlignmentGuard.start(0, text_len)
    attention = torch.nn.functional.one_hot(torch.tensor(text_len - 1), text_len).float()
    decisions = [look(guard, attention, torch.tensor(token), token) for token in range(12)]
    assert bool(guard.complete) and not any(bool(must_go_on) for must_go_on, _ in decisions)
    assert bool(decisions[-1][1])  # it holds its last token for long


def test_requests_keep_their_state_when_others_leave():
    names = ["light", None, "alignment", "light", "alignment", "light"]
    guards: dict = {}
    for place, name in enumerate(names):
        new = {"light": {"light": LightGuard.start(0, 9)}, "alignment": {"alignment": AlignmentGuard.start(place, 70)}}
        guards = join_guards(guards, place, new.get(name, {}))
    guards["light"].matches[:, 0] = torch.tensor([10, 13, 15])
    kept = select_guards(guards, names, [1, 3, 4])
    assert (kept["light"].places.tolist(), kept["light"].matches[:, 0].tolist()) == ([1], [13])
    assert (kept["alignment"].places.tolist(), kept["alignment"].text_start.tolist()) == ([2], [[4]])
    assert select_guards(guards, names, [1]) == {}


def light_stop(tokens: list[int]) -> int | None:
    """After how many tokens the light guard ends an utterance."""
    guard = LightGuard.start(0, 9)
    for step, token in enumerate([START, *tokens]):
        must_go_on, must_stop = guard.look(torch.tensor([[token]]), torch.tensor([[step]]))
        assert bool(must_go_on) == (step < MIN_TOKENS)
        if must_stop:
            return step
    return None


@pytest.mark.parametrize("period", [1, 2, 7, MAX_PERIOD, MAX_PERIOD + 1])
def test_a_window_that_repeats_itself_ends_the_utterance(period):
    pattern = list(range(100, 100 + period))
    tokens = [*range(40), *(pattern * WINDOW)[:WINDOW]]
    assert light_stop(tokens) == (len(tokens) if period <= MAX_PERIOD else None)
    assert light_stop(tokens[:-1]) is None
    broken = [*tokens[:60], 1, *tokens[60:]]
    assert light_stop(broken) is None


@pytest.mark.parametrize("stopped", [True, False])
@pytest.mark.parametrize("period", [1, 5, MAX_PERIOD])
def test_of_a_repetition_the_first_period_is_heard(period, stopped):
    heard = [*range(40), *range(100, 100 + period)]
    tokens = heard + ([*range(100, 100 + period)] * WINDOW)[: WINDOW - period + 3] + [6562] * stopped
    assert LightGuard.trim(torch.tensor(tokens)).tolist() == heard
    ordinary = torch.tensor([*tokens[: WINDOW + 20], *[6562] * stopped])
    assert torch.equal(LightGuard.trim(ordinary), ordinary)


def test_length_follows_the_text():
    assert LightGuard.max_tokens(T3Config(), 30) == 700
    assert LightGuard.max_tokens(T3Config.turbo(), 30) == 1300
    assert AlignmentGuard.max_tokens(T3Config.multilingual(), 30) is None


@pytest.mark.parametrize("by_head", [False, True])
@pytest.mark.parametrize("num_new", [1, 3])
def test_reader_finds_columns_by_position(num_new, by_head):
    """Two rows of different spans and lengths, slots in any order, against attention written out."""
    torch.manual_seed(0)
    rows, heads, keys, size = 3, 4, 24, 8
    query, key = torch.randn(rows, heads, num_new, size), torch.randn(rows, heads, keys, size)
    positions = torch.tensor([[20], [15], [18]]) + torch.arange(num_new)
    kept = torch.stack([torch.randperm(keys) for _ in range(rows * heads)]).view(rows, heads, keys)
    kept = kept if by_head else kept[:, :1].expand(-1, heads, -1)
    start, length, out = torch.tensor([[2], [9]]), torch.tensor([[7], [4]]), torch.full((2, 8), 7.0)
    reader = HeadReader(((5, 3), (1, 0)), torch.tensor([2, 0]), start, length, out)
    for layer in range(6):
        reader.read(layer, query, key, positions, kept if by_head else kept[:, 0])
    for place, row in enumerate([2, 0]):
        expected = torch.zeros(8)
        for head in (3, 0):
            scores = (query[row, head, -1] @ key[row, head].T) / size**0.5
            weights = scores.masked_fill(kept[row, head] > positions[row, -1], float("-inf")).softmax(-1)
            for column in range(int(length[place])):
                expected[column] += weights[kept[row, head] == start[place] + column][0] / 2
        torch.testing.assert_close(out[place], expected)


# The engine. Speech of this model stops, repeats itself and runs on, each often enough for all guards to act.
TALKER = dataclasses.replace(SMALL, max_speech_tokens=160, alignment_heads=((1, 1), (0, 0), (1, 0)))


@pytest.fixture(scope="module")
def talker() -> T3:
    t3 = build(TALKER)
    with torch.no_grad():
        t3.speech_head.weight *= 2
        t3.speech_head.weight[[5, 6, 7]] *= 4
        t3.speech_head.weight[6562] *= 2.5
    return t3


def request_of(seed: int, guard: str | None) -> Request:
    request = make_request(seed)
    loops = {"temperature": 0.0, "repetition_penalty": 1.0} if seed % 4 == 0 else {}
    sampling = dataclasses.replace(request.sampling, **loops)
    return dataclasses.replace(request, sampling=sampling, guard=guard, max_new_tokens=90 if loops else 40)


MIXED = [request_of(seed, (None, "light", "alignment")[seed % 3]) for seed in range(24)]


@pytest.fixture(scope="module")
def uncached(talker: T3) -> list[list[int]]:
    return [generate(talker, request, use_cache=False).tolist() for request in MIXED]


def test_guards_act_on_these_requests(talker, uncached):
    plain = [generate(talker, dataclasses.replace(request, guard=None)).tolist() for request in MIXED]
    pairs = list(zip(MIXED, uncached, plain, strict=True))
    for guard, least in ((None, 0), ("light", 3), ("alignment", 3)):
        changed = [(given, free) for request, given, free in pairs if request.guard == guard and given != free]
        assert len(changed) >= least and (guard or not changed)
        assert guard is None or any(len(given) > len(free) for given, free in changed)
        assert guard is None or any(len(given) < len(free) for given, free in changed)


@pytest.mark.parametrize("policy", ["static", "dynamic", "sliding"])
def test_a_mixed_batch_equals_its_requests_alone(talker, uncached, policy):
    assert [generate(talker, request, cache_policy=policy).tolist() for request in MIXED] == uncached
    assert [tokens.tolist() for tokens in generate_batch(talker, MIXED, cache_policy=policy)] == uncached


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("stop_stride", [1, 3])
def test_requests_join_and_leave(talker, uncached, graphs, stop_stride):
    """Eight rows, random order; also where steps are replayed on fixed memory."""
    cache = allocate_cache(talker, 8, max(required_capacity(talker, request) for request in MIXED))
    replayed = StepGraphs(capture=recorded) if graphs else None
    engine = DecodeEngine(talker, decoder_on(talker, cache), stop_stride=stop_stride, graphs=replayed)
    order = random.Random(1).sample(range(len(MIXED)), len(MIXED))
    assert decode_together(engine, MIXED, 8, order)[0] == uncached
    assert not graphs or replayed.num_captured > 3


def test_leased_prefixes(talker, uncached):
    source = Prefiller(talker, GlobalKVCacheManager(budget_bytes=2**28))
    for _ in range(2):
        assert [list(stream(talker, request, prefixes=source)) for request in MIXED] == uncached
    assert source.manager.hit_rate > 0.4


@pytest.mark.parametrize("policy", ["static", "dynamic"])
def test_continued_sequences(talker, uncached, policy):
    """From the conditioning alone it is a new utterance; behind others, the text begins at its own offset."""
    for request, expected in zip(MIXED, uncached, strict=True):
        _, cache = decode(talker, dataclasses.replace(request, guard=None), cache_policy=policy)
        kept = cache.length
        engine = DecodeEngine(talker, decoder_on(talker, cache.clone_prefix(kept, kept + 200)))
        engine.join(request, kept_len=kept)
        for guard in engine._state.guards.values():
            assert not isinstance(guard, AlignmentGuard) or int(guard.text_start) == kept
        tokens, _ = decode(talker, request, past=cache, kept_len=talker.hp.cond_len)
        assert tokens.tolist() == expected


@pytest.mark.parametrize("hp", [SMALL, SMALL_GPT2], ids=["llama", "gpt2"])
def test_where_the_light_guard_does_not_act_no_token_changes(hp):
    t3 = build(hp)
    for seed in range(24):
        plain = generate(t3, make_request(seed, hp))
        assert torch.equal(generate(t3, dataclasses.replace(make_request(seed, hp), guard="light")), plain)


def test_a_loop_and_a_long_utterance_are_ended_and_reported(caplog):
    """A model that says one speech token for ever, and one that never stops."""
    t3 = build(dataclasses.replace(SMALL, max_speech_tokens=400))
    text = torch.tensor([1, 5, 0])
    request = dataclasses.replace(make_request(0), text_tokens=text, guard="light", max_new_tokens=400)
    greedy = SamplingConfig(temperature=0.0, cfg_weight=0.0, repetition_penalty=1.0, min_p=0.0)
    with caplog.at_level(logging.WARNING, logger="chatterbox.engine.engine"):
        long = generate(t3, dataclasses.replace(request, sampling=dataclasses.replace(greedy, temperature=1.0)))
        assert len(long) == SLACK + 20 * len(text) and long[-1] != 6562
        with torch.no_grad():
            t3.speech_head.weight.zero_()
            t3.speech_pos_emb.emb.weight.zero_()
        loop = generate(t3, dataclasses.replace(request, sampling=greedy))
    assert loop.tolist() == [0] * WINDOW + [6562]
    first, second = [record.getMessage() for record in caplog.records]
    assert f"guard 'light' ended an utterance at {len(long)} tokens" in first
    assert f"guard 'light' ended an utterance at {WINDOW + 1} tokens" in second


def test_no_text_ends_unsaid(talker):
    """A model that would stop at once says the least there is, and then stops."""
    t3 = build(SMALL)
    with torch.no_grad():
        t3.speech_head.weight.zero_()
        t3.speech_head.weight[6562] = 1.0
        t3.tfmr.norm.weight.copy_(torch.sign(torch.randn(32)))
    greedy = SamplingConfig(temperature=0.0, cfg_weight=0.0, repetition_penalty=1.0)
    for seed in range(8):
        request = dataclasses.replace(make_request(seed), sampling=greedy, max_new_tokens=40)
        tokens = generate(t3, dataclasses.replace(request, guard="light")).tolist()
        assert 6562 not in tokens[:MIN_TOKENS] and (6562 in tokens) == (len(tokens) < 40)


def test_the_published_analysers_run_is_reproduced():
    """Attention, decisions and tokens of chatterbox-tts 0.1.7's loop, on two layers of the published width."""
    case = "t3_mtl_2layer_analyzer"
    golden, meta = load_golden(case), load_meta(case)
    heads = tuple(map(tuple, meta["heads"]))
    t3 = fill(
        T3(dataclasses.replace(T3Config.multilingual(), backbone=LlamaConfig(num_layers=2), alignment_heads=heads))
    )
    cond = T3Cond(
        golden["in.speaker_emb"],
        cond_prompt_speech_tokens=golden["in.cond_prompt_speech_tokens"],
        emotion_adv=golden["in.emotion_adv"],
    )
    params = {name: meta[name] for name in ("cfg_weight", "repetition_penalty", "min_p", "top_p")}
    text, num_tokens = golden["in.text_tokens"], golden["out.tokens"].shape[1]
    sampling = SamplingConfig(temperature=0.0, **params)  # stored are the likeliest tokens
    request = Request(cond, text, sampling, num_tokens, guard="alignment")
    engine = DecodeEngine(t3, decoder_on(t3, allocate_cache(t3, 2, required_capacity(t3, request))))
    handle = engine.join(request)
    judge = AlignmentGuard.start(0, text.shape[1], repeats=2)
    last = START
    for step, (token, decision) in enumerate(
        zip(golden["out.tokens"][0].tolist(), golden["out.decision"].tolist(), strict=True)
    ):
        assert engine.step().tokens == [(handle, token)]
        # Of the first call's two rows, the second decides. Upstream stores what it has masked.
        columns = torch.arange(text.shape[1]) <= step
        if engine.num_requests:
            attention = engine._state.guards["alignment"].attention[0, : text.shape[1]].clone()
            torch.testing.assert_close(attention * columns, golden["out.alignment"][step + 1], atol=2e-6, rtol=1e-4)
            go_on, stop = look(judge, attention, torch.tensor(last), step)
            assert (2 if stop else int(go_on)) == decision
        last = token
    hooks = [module for module in t3.modules() if module._forward_hooks or module._forward_pre_hooks]
    assert not hooks and not engine.num_requests


@pytest.mark.parametrize(("guard", "num_heard"), [("light", 3), ("none", 2 + WINDOW)])
def test_what_an_utterance_repeats_is_not_rendered(small_tts, monkeypatch, guard, num_heard):
    loop = torch.tensor([5, 9, *[7] * WINDOW, 6562])
    say_instead(monkeypatch, lambda *_: loop.tolist())
    request = SynthesisRequest("Hello.", small_tts.conds, seed=1, watermark=False, guard=guard)
    result = small_tts.synthesizer.speak(request)
    assert torch.equal(result.speech_tokens, loop[:num_heard])


def test_speaking_refuses_guards_before_any_work(small_tts):
    for guard, message in (("heavy", "guard must be one of"), ("alignment", "needs a model with alignment heads")):
        with pytest.raises(ValueError, match=message):
            small_tts.generate("Hello.", audio_prompt_path="/no/such/file", guard=guard)
        with pytest.raises(ValueError, match=message):
            small_tts.synthesizer.speak(SynthesisRequest("Hello.", small_tts.conds, guard=guard))


def test_bad_guards(talker):
    with pytest.raises(ValueError, match="guard must be one of light, alignment, none, got 'heavy'"):
        generate(talker, request_of(0, "heavy"))
    with pytest.raises(ValueError, match='guard "alignment" needs a model with alignment heads') as error:
        generate(build(SMALL), request_of(1, "alignment"))
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="alignment_heads names head 15 of layer 12, which the model does not have"):
        check_guard("alignment", dataclasses.replace(SMALL, alignment_heads=((12, 15),)))
    check_guard("alignment", T3Config.multilingual())
    check_guard("none", SMALL)
