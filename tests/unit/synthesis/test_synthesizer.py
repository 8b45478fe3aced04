"""Many callers of one `Synthesizer` at once: each hears what it hears alone, and leaves nothing behind."""

from __future__ import annotations

import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from pathlib import Path

import pytest
import torch
from torch import Tensor

from chatterbox.config import EngineConfig, KVCacheConfig, StreamingConfig
from chatterbox.engine.engine import DecodeEngine
from chatterbox.engine.scheduler import EngineClosedError
from chatterbox.models import weights
from chatterbox.models.s3gen.stream import prompt_len
from chatterbox.mtl_tts import ChatterboxMultilingualTTS
from chatterbox.runtime.openmp import can_compute_alone
from chatterbox.synthesis.render import SpeechRenderer
from chatterbox.synthesis.render_order import RenderJob
from chatterbox.synthesis.request import SynthesisRequest
from chatterbox.synthesis.speech_stream import MAX_UNREAD
from chatterbox.synthesis.synthesizer import BatchError, Synthesizer, SynthesizerConfig
from chatterbox.tts import ChatterboxTTS
from chatterbox.tts_turbo import ChatterboxTurboTTS
from tests.support.waiting import WAIT, wait_for, wait_until_free
from tests.unit.engine.test_scheduler_faults import SETTINGS

SMALLEST = StreamingConfig(chunk_size=2, first_chunk=1, decode_ahead=4)
MANY = "Hello there. And so on. Then some. " * 6


@pytest.fixture
def make(small_tts: ChatterboxTTS) -> Iterator[Callable[..., Synthesizer]]:
    """A synthesizer of the shared weights with engine settings of its own; closed afterwards."""
    made: list[Synthesizer] = []

    def make(**engine) -> Synthesizer:
        config = SynthesizerConfig(engine=EngineConfig(**engine))
        made.append(Synthesizer(small_tts.t3, small_tts.s3gen, small_tts.tokenizer, small_tts.ve, config))
        return made[-1]

    yield make
    for synthesizer in made:
        synthesizer.close()


@pytest.fixture
def speech(small_tts: ChatterboxTTS) -> Callable[..., SynthesisRequest]:
    """A request of the built-in voice, seeded and without a watermark."""

    def speech(text: str = "Hello there.", **changes) -> SynthesisRequest:
        assert small_tts.conds is not None
        sampling = dataclasses.replace(small_tts.sampling, max_new_tokens=20)
        request = SynthesisRequest(text, small_tts.conds, sampling, seed=3, watermark=False)
        return dataclasses.replace(request, **changes)

    return speech


def test_four_threads_hear_what_each_hears_alone(small_folder: Path, reference_wav: Path) -> None:
    tts = ChatterboxTTS.from_local(small_folder, "cpu")
    voices = [None, str(reference_wav), None, str(reference_wav)]

    def speak(number: int) -> Tensor:
        text = ["Hello there.", "Another text.", "And so on. And on.", "Good."][number]
        return tts.generate(text, audio_prompt_path=voices[number], seed=number, cfg_weight=0.5 * (number % 3))

    alone = [speak(number) for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for audio, expected in zip(pool.map(speak, range(4)), alone, strict=True):
                assert audio.shape == expected.shape
                torch.testing.assert_close(audio, expected, rtol=0, atol=1e-4)
    wait_until_free(tts.synthesizer.scheduler)
    tts.close()


def test_a_batch_in_which_one_fails_keeps_the_others(make: Callable, speech: Callable) -> None:
    synthesizer = make()
    good = [speech("Hello there."), speech("Another one.", seed=5)]
    voice = good[0].conditionals
    nan = dataclasses.replace(voice.t3, speaker_emb=voice.t3.speaker_emb * float("nan"))
    bad = speech(conditionals=dataclasses.replace(voice, t3=nan))
    alone = [synthesizer.speak(request) for request in good]
    with pytest.raises(BatchError, match="1 of 3 texts failed, number 2 with: T3 computed NaN") as caught:
        synthesizer.speak_batch([good[0], bad, good[1]])
    assert list(caught.value.errors) == [1]
    assert caught.value.results[1] is None
    for result, expected in zip(caught.value.results[::2], alone, strict=True):
        assert result is not None
        assert torch.equal(result.speech_tokens, expected.speech_tokens)
        torch.testing.assert_close(result.audio, expected.audio, rtol=0, atol=1e-4)
    wait_until_free(synthesizer.scheduler)


def test_each_policy_of_a_batch_has_its_engine(make: Callable, speech: Callable) -> None:
    synthesizer = make()
    sliding = KVCacheConfig(policy="sliding")
    requests = [speech(), speech(cache_policy=sliding), speech(cache_policy="dynamic"), speech(use_cache=False)]
    results = synthesizer.speak_batch(requests)
    policies = {policy.policy for policy in synthesizer.scheduler._engines}
    assert policies == {"static", "sliding", "dynamic", "none"}
    for result in results[1:]:
        assert torch.equal(result.speech_tokens, results[0].speech_tokens)
    assert synthesizer.prefixes.manager.stats()["tokens_served"] > 0  # the same voices and prefixes for all


@pytest.mark.parametrize("continuity", ["isolated", "history", "append"])
def test_a_stream_closed_at_any_chunk_frees_all(make: Callable, speech: Callable, continuity: str) -> None:
    synthesizer = make(park_seconds=60.0)
    streaming = dataclasses.replace(SMALLEST, continuity=continuity)
    request = speech("Hello there, you there. And so on, and so on. The end.")
    whole = [chunk.audio for chunk in synthesizer.stream(request, streaming)]
    assert len(whole) > 5
    for num_read in range(0, len(whole), 1 if continuity == "isolated" else 6):
        with closing(synthesizer.stream(request, streaming)) as chunks:
            for expected in whole[:num_read]:
                torch.testing.assert_close(next(chunks).audio, expected, rtol=0, atol=1e-4)
        wait_until_free(synthesizer.scheduler)
        assert synthesizer.chunk_renders.stats()["waiting"] == 0
        wait_for(lambda: synthesizer.chunk_renders.is_for_none_but(None))


@pytest.mark.parametrize("continuity", ["isolated", "history", "append"])
def test_a_stream_ends_wherever_its_last_chunk_is_due(make: Callable, speech: Callable, continuity: str) -> None:
    """Also where an utterance's end brings no token that could still be rendered."""
    synthesizer, streaming = make(), dataclasses.replace(SMALLEST, continuity=continuity)
    for most in range(3, 10):
        request = speech()
        request = dataclasses.replace(request, sampling=dataclasses.replace(request.sampling, max_new_tokens=most))
        chunks = list(synthesizer.stream(request, streaming))
        assert sum(chunk.audio.shape[1] for chunk in chunks) == synthesizer.speak(request).audio.shape[1]


def test_a_stream_whose_reader_sleeps_is_bounded_and_goes_on(make: Callable, speech: Callable) -> None:
    synthesizer = make(park_seconds=0.02)
    whole = [chunk.audio for chunk in synthesizer.stream(speech(MANY), SMALLEST)]
    stream = synthesizer._speech(speech(MANY), SMALLEST)
    heard: list[Tensor] = []
    for chunk in stream.chunks():
        heard.append(chunk.audio)
        if len(heard) in (1, 12):
            wait_for(lambda: synthesizer.scheduler.stats()["rows"] == 0)
            assert len(stream._unread) <= MAX_UNREAD + 1
            assert stream._utterances.num_waiting <= 2 * SMALLEST.decode_ahead + SMALLEST.chunk_size + 1
            assert not stream._is_over
    assert len(heard) == len(whole)
    for audio, expected in zip(heard, whole, strict=True):
        torch.testing.assert_close(audio, expected, rtol=0, atol=1e-4)
    wait_until_free(synthesizer.scheduler)


def test_a_stream_decode_what_two_chunks_need_until_both_are_there(make: Callable, speech: Callable) -> None:
    synthesizer, go, plan = make(), threading.Event(), StreamingConfig(chunk_size=4, first_chunk=2, decode_ahead=15)
    renders, lookahead_len = synthesizer.chunk_renders, synthesizer.s3gen.config.flow.encoder.lookahead_len
    for owner in range(len(renders._workers)):
        renders.submit(RenderJob(owner, lambda: go.wait(WAIT) and None, 0, None))
    stream = synthesizer._speech(speech(MANY), plan)
    stream.start()
    wait_for(lambda: stream._utterances.num_waiting == 2 + 4 + lookahead_len)
    time.sleep(0.05)
    assert stream._utterances.num_waiting == 2 + 4 + lookahead_len
    (job,) = (job for job in renders._jobs if job.owner is stream)
    assert job.num_tokens == prompt_len(stream._request.conditionals.gen) + 2 + lookahead_len
    go.set()
    chunks = stream.chunks()
    assert next(chunks) and next(chunks)
    wait_for(lambda: stream._utterances.num_waiting == plan.decode_ahead)  # nobody reads: two chunks wait
    chunks.close()


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs signals")
def test_ctrl_c_while_a_chunk_is_waited_for_frees_all(
    make: Callable, speech: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = DecodeEngine.step

    def slow(engine: DecodeEngine):
        time.sleep(0.1)
        return step(engine)

    synthesizer = make()
    expected = synthesizer.speak(speech(seed=8))
    monkeypatch.setattr(DecodeEngine, "step", slow)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(synthesizer.speak, speech(seed=8))
        chunks = synthesizer.stream(speech(MANY), SMALLEST)
        next(chunks)
        main = threading.main_thread().ident
        assert main is not None
        with pytest.raises(KeyboardInterrupt):
            threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGINT)).start()
            for _ in chunks:
                pass
        assert torch.equal(other.result(WAIT).speech_tokens, expected.speech_tokens)
    wait_until_free(synthesizer.scheduler)


@pytest.mark.parametrize("name", SETTINGS)
def test_what_a_caller_has_set_changes_no_sample(make: Callable, speech: Callable, name: str) -> None:
    synthesizer = make()
    setting: Callable[[], AbstractContextManager] = SETTINGS[name]
    expected = [chunk.audio for chunk in synthesizer.stream(speech(MANY), StreamingConfig(first_chunk=3))]
    whole = synthesizer.speak(speech("Hello there.")).audio
    fresh = make()
    with setting():
        for one in (synthesizer, fresh):
            heard = [chunk.audio for chunk in one.stream(speech(MANY), StreamingConfig(first_chunk=3))]
            assert len(heard) == len(expected)
            assert all(torch.equal(audio, other) for audio, other in zip(heard, expected, strict=True))
            assert torch.equal(one.speak(speech("Hello there.")).audio, whole)


def test_closed_it_speaks_no_more(make: Callable, speech: Callable) -> None:
    synthesizer = make()
    chunks = synthesizer.stream(speech(MANY), SMALLEST)
    next(chunks)
    synthesizer.close()
    with pytest.raises((EngineClosedError, RuntimeError), match="closed"):
        list(chunks)
    with pytest.raises(EngineClosedError, match="it was closed; load the model anew"):
        synthesizer.speak(speech())


@pytest.mark.parametrize(
    ("model", "fixture"),
    [
        (ChatterboxTTS, "small_folder"),
        (ChatterboxMultilingualTTS, "mtl_folder"),
        (ChatterboxTurboTTS, "turbo_folder"),
    ],
)
def test_facades_take_settings_of_the_engine(model, fixture: str, request: pytest.FixtureRequest) -> None:
    folder, engine = request.getfixturevalue(fixture), EngineConfig(max_rows=2, park_seconds=0.5)
    for tts in (
        model.from_local(folder, "cpu", engine=engine),
        model.from_pretrained("cpu", model=folder, engine=engine),
    ):
        assert tts.synthesizer.scheduler.config == engine
    assert model.from_local(folder, "cpu").synthesizer.config.engine == EngineConfig()


@pytest.fixture
def num_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, set[int]]]:
    """Torch's threads, of two, that steps and chunks get from now on."""
    before, seen = torch.get_num_threads(), {"steps": set(), "chunks": set()}
    step, render = DecodeEngine.step, SpeechRenderer.close

    def noted(name: str, call: Callable) -> Callable:
        return lambda one: seen[name].add(torch.get_num_threads()) or call(one)

    monkeypatch.setattr(DecodeEngine, "step", noted("steps", step))
    monkeypatch.setattr(SpeechRenderer, "close", noted("chunks", render))
    torch.set_num_threads(2)
    yield seen
    torch.set_num_threads(before)


@pytest.mark.skipif(not can_compute_alone(), reason="needs a runtime in which a thread can compute alone")
@pytest.mark.parametrize("batch_invariant", [False, True])
def test_a_stream_of_small_networks_has_a_core_for_steps_and_one_for_each_chunk(
    make: Callable, speech: Callable, num_threads: dict[str, set[int]], batch_invariant: bool
) -> None:
    """And whole utterances, of which one is rendered at a time behind its steps, have all of them."""
    synthesizer = make(batch_invariant=batch_invariant)
    synthesizer.speak(speech())
    assert num_threads == {"steps": {2}, "chunks": {2}}
    for seen in num_threads.values():
        seen.clear()
    list(synthesizer.stream(speech()))
    assert num_threads == {"steps": {2} if batch_invariant else {1}, "chunks": {1}}


def test_large_networks_have_all_threads(
    make: Callable, speech: Callable, num_threads: dict[str, set[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "SMALL", 0)
    list(make().stream(speech()))
    assert num_threads == {"steps": {2}, "chunks": {2}}


def test_another_s3gen_is_rendered_with_as_its_size_asks(
    make: Callable, speech: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    synthesizer = make()
    before = synthesizer.chunk_renders
    monkeypatch.setattr(weights, "SMALL", 0)
    synthesizer.replace("s3gen", synthesizer.s3gen)
    assert synthesizer.chunk_renders is synthesizer.whole_renders is not before
    assert list(synthesizer.stream(speech()))
