"""The voice of a recording is prepared once, whatever the recording is called, and never shared for writing."""

from __future__ import annotations

import io
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
import torch

from chatterbox.models.t3.modules.cond_enc import T3Cond
from chatterbox.tts import ChatterboxTTS
from chatterbox.voice.cache import VoiceCache
from chatterbox.voice.conditionals import Conditionals
from tests.support.folders import recording
from tests.unit.voice.test_conditioning import same


def make_voice(_: object = None, size: int = 100) -> Conditionals:
    cond = T3Cond(torch.rand(1, size), cond_prompt_speech_tokens=torch.arange(5)[None], emotion_adv=0.5)
    return Conditionals(cond, {"prompt_token": torch.arange(3)[None], "prompt_feat_len": None})


def differ(a: Conditionals, b: Conditionals) -> bool:
    return not torch.equal(a.t3.speaker_emb, b.t3.speaker_emb)


@pytest.fixture
def refuse():
    def fail(reference: object) -> Conditionals:
        pytest.fail("the recording was prepared again")

    return fail


def test_recordings_are_told_apart_by_content(tmp_path, refuse) -> None:
    cache, audio = VoiceCache(), recording(1.0)
    soundfile.write(tmp_path / "a.wav", audio, 24_000)
    voice = cache.get(tmp_path / "a.wav", make_voice)
    shutil.copy(tmp_path / "a.wav", tmp_path / "b.wav")
    assert same(cache.get(str(tmp_path / "b.wav"), refuse), voice)
    assert same(cache.get(io.BytesIO((tmp_path / "a.wav").read_bytes()), refuse), voice)
    soundfile.write(tmp_path / "a.wav", audio[:-1], 24_000)
    assert differ(cache.get(tmp_path / "a.wav", make_voice), voice)
    samples = cache.get(audio, make_voice)
    assert same(cache.get(audio.copy(), refuse), samples)
    for other in (audio[::-1], audio.astype(np.float64), torch.from_numpy(audio) * 0.5):
        assert differ(cache.get(other, make_voice), samples)
    assert differ(cache.get(audio, make_voice, source_rate=16_000), samples)
    assert (cache.hits, cache.misses) == (3, 7)


def test_an_open_file_is_still_read(tmp_path) -> None:
    seen = []
    VoiceCache().get(io.BytesIO(b"some bytes"), lambda file: (seen.append(file.read()), make_voice())[1])
    assert seen == [b"some bytes"]


def test_what_comes_out_is_the_callers_own(refuse) -> None:
    cache, audio = VoiceCache(), recording(1.0)
    first = cache.get(audio, make_voice)
    before = first.clone()
    first.t3.speaker_emb.zero_()
    first.gen["prompt_token"] += 1
    second = cache.get(audio, refuse)
    assert same(second, before)
    second.t3.speaker_emb.zero_()
    assert same(cache.get(audio, refuse), before)


def test_the_budget_holds_and_the_oldest_leaves(refuse) -> None:
    size = make_voice().nbytes
    cache, audio = VoiceCache(budget_bytes=3 * size), recording(1.0)
    for shift in (0, 1, 2, 0, 3):  # 1 is the least recently used when 3 comes
        cache.get(np.roll(audio, shift), make_voice)
        assert cache.nbytes <= cache.budget_bytes
    for shift in (0, 2, 3):
        cache.get(np.roll(audio, shift), refuse)
    assert cache.misses == 4
    cache.get(np.roll(audio, 1), make_voice)
    assert cache.misses == 5
    cache.get(np.roll(audio, 9), lambda _: make_voice(size=10_000))
    assert cache.nbytes <= cache.budget_bytes
    cache.clear()
    assert cache.nbytes == 0
    with pytest.raises(ValueError, match="budget_bytes must be 0 or more, got -2"):
        VoiceCache(budget_bytes=-2)


def test_ten_threads_prepare_once() -> None:
    cache, calls, arrived = VoiceCache(), [], threading.Semaphore(0)

    def slow(reference: object) -> Conditionals:
        calls.append(reference)
        for _ in range(10):
            assert arrived.acquire(timeout=10)
        return make_voice()

    def work(_: int) -> Conditionals:
        arrived.release()
        return cache.get(recording(1.0), slow)

    with ThreadPoolExecutor(10) as pool:
        voices = list(pool.map(work, range(10)))
    assert len(calls) == 1 and all(same(voice, voices[0]) for voice in voices)


def test_a_failure_is_not_kept(refuse) -> None:
    def broken(reference: object) -> Conditionals:
        raise ValueError("not a voice")

    cache = VoiceCache()
    for _ in range(2):
        with pytest.raises(ValueError, match="not a voice"):
            cache.get(recording(1.0), broken)
    assert same(cache.get(recording(1.0), make_voice), cache.get(recording(1.0), refuse))


def test_a_voice_with_nan_in_it_is_not_kept(refuse) -> None:
    def spoilt(reference: object) -> Conditionals:
        voice = make_voice(reference)
        voice.t3.speaker_emb[0, 3] = float("nan")
        return voice

    cache = VoiceCache()
    assert not cache.get(recording(1.0), spoilt).is_finite
    assert cache.nbytes == 0
    assert same(cache.get(recording(1.0), make_voice), cache.get(recording(1.0), refuse))


def test_generate_prepares_a_voice_once(small_folder, reference_wav) -> None:
    tts = ChatterboxTTS.from_local(small_folder, "cpu")
    voices = tts.synthesizer.voices
    options = {"seed": 7, "watermark": False, "audio_prompt_path": reference_wav}
    first = tts.generate("Hello.", **options)
    assert torch.equal(first, tts.generate("Hello.", **options))
    tts.prepare_conditionals(reference_wav, exaggeration=0.9)
    assert float(tts.conds.t3.emotion_adv) == pytest.approx(0.9)
    assert (voices.misses, voices.hits) == (1, 2)
    tts.clear_cache()
    assert torch.equal(first, tts.generate("Hello.", **options))
    assert voices.misses == 2


def test_a_file_too_large_to_be_told_by_its_content_is_prepared_each_time(tmp_path) -> None:
    """A terabyte that is not there: reading it would take an hour."""
    with open(tmp_path / "a.wav", "wb") as file:
        file.truncate(2**40)
    cache, num_made = VoiceCache(), []
    for _ in range(2):
        cache.get(tmp_path / "a.wav", lambda path: (num_made.append(path), make_voice())[1])
    assert num_made == [tmp_path / "a.wav"] * 2 and cache.nbytes == 0
