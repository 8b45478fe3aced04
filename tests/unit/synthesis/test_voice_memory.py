"""What S3Gen remembers of voices, among T3's prefixes: computed once, bounded, of the weights as they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from chatterbox import ChatterboxTTS
from chatterbox.config import KVCacheConfig, S3GenOptions
from chatterbox.kvcache import GlobalKVCacheManager
from chatterbox.kvcache.prefix.disk import DiskTier
from chatterbox.models.s3gen.cfm import Steps
from chatterbox.models.s3gen.memory import FlowMemory, from_segment, to_segment
from chatterbox.models.s3gen.stream import remember_prompt
from chatterbox.synthesis.voice_memory import VoiceMemories, memory_nbytes, steps_of
from tests.unit.models.test_s3gen import build, make_ref

TEXT = "The tea is in the kitchen."
KINDS = pytest.mark.parametrize("meanflow", [False, True])


def parts_of(memory: FlowMemory) -> list[Tensor]:
    return [part for step in memory.steps for part in (*step.keys, *step.values, *step.tails)]


@KINDS
@pytest.mark.parametrize("steps", [Steps(), Steps(1), Steps(3), Steps(3, 1), Steps(3, 3), Steps(2, 9)], ids=str)
def test_a_segment_holds_all_of_a_memory(meanflow: bool, steps: Steps) -> None:
    model = build(meanflow)
    memory, shape = remember_prompt(model, make_ref(), steps), model.flow.decoder.memory_shape(steps)
    segment = to_segment(memory, shape)
    again = from_segment(segment, shape)
    assert len(segment) == memory.num_frames + shape.num_tail_positions and again.num_frames == memory.num_frames
    assert len(parts_of(again)) == len(parts_of(memory)) > 0
    assert all(map(torch.equal, parts_of(again), parts_of(memory)))
    assert segment.nbytes == memory_nbytes(model, steps, memory.num_frames / 50)


def manager(budget: int = 2**26, **options: object) -> GlobalKVCacheManager:
    return GlobalKVCacheManager(budget_bytes=budget, **options)


@KINDS
def test_a_voice_is_computed_once(meanflow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, kept, calls = build(meanflow), manager(), []
    remember = model.flow.remember
    monkeypatch.setattr(model.flow, "remember", lambda *places, **given: calls.append(1) or remember(*places, **given))
    memories = VoiceMemories(model, kept, S3GenOptions("prompt"))
    for ref in (make_ref(), make_ref(), make_ref(seed=9)):
        for _ in range(2):
            with memories.of(ref)() as memory:
                assert all(map(torch.equal, parts_of(memory), parts_of(remember_prompt(model, ref))))
    assert len(calls) == 2 + 6  # for two voices, and for the comparisons
    stats = kept.snapshot()
    assert (stats.lookups, stats.hits, stats.prefills) == (6, 4, 2) and stats.saved_ms > 0
    assert stats.cached_tokens == stats.tokens_computed == 0  # the hit rate is T3's


def test_steps_weights_and_guidance_have_memories_of_their_own() -> None:
    model, kept = build(), manager()
    names = set()

    def name(*steps: int | None) -> None:
        memory = VoiceMemories(model, kept, S3GenOptions("past", *steps)).of(make_ref())
        memory.warm()
        names.add(memory._name)

    for steps in ((None,), (3,), (4,), (4, 1)):
        name(*steps)
    model.flow.decoder.inference_cfg_rate = 0.4
    name()
    with torch.no_grad():
        model.flow.encoder_proj.weight.mul_(1.5)
    name()
    assert len(names) == len(kept.tree.voices()) == 6


@KINDS
def test_a_model_of_few_steps_takes_no_more(meanflow: bool) -> None:
    """Turbo and Nano were distilled to two, tiny's learnt one: what makes others fast does not slow them."""
    own = 2 if meanflow else 10
    for steps, taken in ((None, own), (1, 1), (5, min(5, own)), (20, own)):
        num = steps_of(S3GenOptions(steps=steps), model := build(meanflow)).num
        assert model.flow.decoder.num_steps(num) == taken
    tiny = ChatterboxTTS.from_pretrained("cpu", model="tiny", s3gen_options=S3GenOptions("past", 4, 1))
    assert tiny.synthesizer.memories.steps.num == 1


def test_what_does_not_fit_is_lent_all_the_same() -> None:
    model, kept = build(), manager(1000)
    with VoiceMemories(model, kept, S3GenOptions("prompt")).of(make_ref())() as memory:
        assert memory.num_frames == 10
    assert kept.nbytes == 0 and kept.snapshot().uncached == 1


@pytest.mark.parametrize("codec", ["none", "int8"])
def test_host_memory_and_disk_bring_it_back(codec: str, tmp_path: Path) -> None:
    """Packed, it is nearly what it was; a file of another model's shape is a miss."""
    model = build()
    size = to_segment(remember_prompt(model, make_ref()), model.flow.decoder.memory_shape()).nbytes
    kept = manager(size, host_bytes=4 * size, host_codec=codec, disk=DiskTier(tmp_path))
    memories = VoiceMemories(model, kept, S3GenOptions("prompt"))
    for seed in (1, 2, 1):
        with memories.of(make_ref(seed=seed))() as memory:
            exact = parts_of(remember_prompt(model, make_ref(seed=seed)))
    assert kept.snapshot().promotions == 1 and kept.snapshot().prefills == 2
    for ours, theirs in zip(parts_of(memory), exact, strict=True):
        torch.testing.assert_close(
            ours, theirs, rtol=0, atol=0 if codec == "none" else 0.02 * float(theirs.abs().max())
        )
    fresh = manager(size, disk=DiskTier(tmp_path))
    with VoiceMemories(model, fresh, S3GenOptions("prompt")).of(make_ref(seed=2))() as memory:
        assert all(map(torch.equal, parts_of(memory), parts_of(remember_prompt(model, make_ref(seed=2)))))
    assert fresh.snapshot().disk_hits == 1 and fresh.snapshot().prefills == 0
    fresh.check_integrity()


def test_nan_is_not_kept() -> None:
    model, kept = build(), manager()
    with torch.no_grad():
        model.flow.encoder_proj.weight.fill_(float("nan"))
    with pytest.raises(RuntimeError, match="NaN"), VoiceMemories(model, kept, S3GenOptions("prompt")).of(make_ref())():
        pass
    assert kept.nbytes == 0


@pytest.fixture(scope="module", params=["prompt", "past"])
def remembering(request: pytest.FixtureRequest) -> Iterator[ChatterboxTTS]:
    tts = ChatterboxTTS.from_pretrained("cpu", model="tiny", s3gen_options=S3GenOptions(request.param))
    yield tts
    tts.close()


def test_whole_speech_and_streams_use_what_is_remembered(remembering: ChatterboxTTS) -> None:
    tts = remembering
    tts.clear_cache()
    before = tts.cache_stats()["prefills"]
    torch.manual_seed(3)
    whole = tts.generate(TEXT)  # without a seed, too
    num_voices = len(tts.synthesizer.prefixes.manager.tree.voices())
    assert num_voices == 2  # T3's and S3Gen's
    prefills = tts.cache_stats()["prefills"]
    assert prefills > before
    chunks = [audio for audio, _ in tts.generate_stream(TEXT, seed=3)]
    assert len(chunks) > 1 and len(tts.synthesizer.prefixes.manager.tree.voices()) == 2
    assert whole.isfinite().all() and all(chunk.isfinite().all() for chunk in chunks)
    again = torch.cat([audio for audio, _ in tts.generate_stream(TEXT, seed=3)], dim=1)
    assert torch.equal(again, torch.cat(chunks, dim=1))


def test_warm_remembers_and_pins_a_voice(remembering: ChatterboxTTS) -> None:
    tts = remembering
    tts.clear_cache()
    tts.warm(pin=True)
    kept = tts.synthesizer.prefixes.manager
    assert len(kept.tree.voices()) == 2 == len(kept._tiers.pinned)
    prefills = kept.snapshot().prefills
    tts.generate(TEXT, seed=1)
    assert kept.snapshot().prefills - prefills <= 1  # the text, and no voice
    kept.clear()


def test_nothing_is_remembered_unless_asked() -> None:
    tts = ChatterboxTTS.from_pretrained("cpu", model="tiny")
    tts.generate(TEXT, seed=1)
    assert len(tts.synthesizer.prefixes.manager.tree.voices()) == 1
    few = ChatterboxTTS.from_pretrained("cpu", model="tiny", kvcache=KVCacheConfig(prefix_mib=None))
    assert few.synthesizer.prefixes.manager.budget_bytes == tts.synthesizer.prefixes.manager.budget_bytes
    more = ChatterboxTTS.from_pretrained("cpu", model="tiny", s3gen_options=S3GenOptions("prompt"))
    spare = more.synthesizer.prefixes.manager.budget_bytes - tts.synthesizer.prefixes.manager.budget_bytes
    assert spare == 2 * memory_nbytes(tts.s3gen, Steps(), 10)


def test_settings_without_effect_are_named(caplog: pytest.LogCaptureFixture) -> None:
    options = S3GenOptions("prompt", unguided_steps=1)
    tts = ChatterboxTTS.from_pretrained("cpu", model="tiny", s3gen_options=options)
    tts.s3gen.flow.decoder.estimator.register_forward_hook(lambda *_: None)
    for _ in range(2):
        tts.generate(TEXT, seed=1)
    assert [r.getMessage() for r in caplog.records if "s3gen." in r.getMessage()] == [
        "s3gen.memory=prompt s3gen.unguided_steps=1 has no effect: a replaced function of s3gen's flow makes the mels"
    ]


@pytest.mark.parametrize("memory", ["none", "prompt"])
def test_a_shorter_prompt_is_integrated_and_remembered(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = S3GenOptions(memory, prompt_seconds=1)
    tts = ChatterboxTTS.from_pretrained("cpu", model="tiny", s3gen_options=options)
    sequence, seen = tts.s3gen.flow._sequence, []

    def noted(token: Tensor, token_len: Tensor | None, prompt_token: Tensor, *rest: object) -> object:
        seen.append(prompt_token.shape[1])
        return sequence(token, token_len, prompt_token, *rest)

    monkeypatch.setattr(tts.s3gen.flow, "_sequence", noted)
    wav = tts.generate(TEXT, seed=1)
    assert wav.isfinite().all() and wav.shape[1] > 24_000
    assert seen and max(seen) == 25
    whole = tts.conds.gen
    assert whole["prompt_token"].shape[1] > 25  # nothing of the caller's was cut


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"memory": "all"}, "memory must be one of none, prompt, past, got 'all'"),
        ({"steps": 0}, "steps must be"),
        ({"steps": 2.5}, "steps must be"),
        ({"unguided_steps": -1}, "unguided_steps must be"),
        ({"steps": 5, "unguided_steps": 6}, "unguided_steps must be at most steps, 5, got 6"),
        ({"prompt_seconds": 0}, "prompt_seconds must be a number from 0.5 to 60, got 0"),
        ({"prompt_seconds": "short"}, "prompt_seconds must be"),
    ],
)
def test_wrong_options_are_named(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        S3GenOptions(**values)
