"""Wherever a call takes a voice, it takes every form of a recording, and the rate of samples that have none."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from chatterbox.mtl_tts import ChatterboxMultilingualTTS
from chatterbox.tts import ChatterboxTTS
from chatterbox.tts_turbo import ChatterboxTurboTTS
from chatterbox.voice.conditionals import Hearing
from tests.support.folders import recording
from tests.unit.voice.test_conditioning import same

RATE = 16_000
VOICE = recording(9.0, RATE, pitch=230.0)
OPTIONS = {"seed": 3, "watermark": False, "max_new_tokens": 8}


def stream(tts, *arguments, **options) -> torch.Tensor:
    chunks = tts.generate_stream(*arguments, print_metrics=False, **options)
    return torch.cat([audio for audio, _ in chunks], dim=1)


@pytest.fixture(params=["english", "multilingual", "turbo"])
def speak(request, small_folder, mtl_folder, turbo_folder):
    """A model and the arguments of its `generate` before those by name."""
    if request.param == "english":
        return ChatterboxTTS.from_local(small_folder, "cpu"), ("Hello.",)
    if request.param == "multilingual":
        return ChatterboxMultilingualTTS.from_local(mtl_folder, "cpu"), ("Hello.", "en")
    return ChatterboxTurboTTS.from_local(turbo_folder, "cpu"), ("Hello.",)


def test_every_entry_takes_a_rate(speak):
    tts, arguments = speak
    expected = tts.generate(*arguments, audio_prompt_path=(RATE, VOICE), **OPTIONS)
    assert not torch.equal(expected, tts.generate(*arguments, audio_prompt_path=VOICE, **OPTIONS))  # as if at 24 kHz
    given = {"audio_prompt_path": VOICE, "sample_rate": RATE}
    assert torch.equal(tts.generate(*arguments, **given, **OPTIONS), expected)
    streamed = stream(tts, *arguments, audio_prompt_path=(RATE, VOICE), **OPTIONS)
    assert torch.equal(stream(tts, *arguments, **given, **OPTIONS), streamed)
    batch = [["Hello."] * 3, *arguments[1:], [VOICE, (RATE, VOICE), None]]
    one, two, own = tts.generate_batch(*batch, sample_rate=RATE, **OPTIONS)
    expected_batch = tts.generate_batch(*batch[:-1], [(VOICE, RATE), {"audio": VOICE, "sr": RATE}, None], **OPTIONS)
    assert all(torch.equal(a, b) for a, b in zip((one, two, own), expected_batch, strict=True))
    tts.prepare_conditionals(VOICE, sample_rate=RATE)
    assert torch.equal(tts.generate(*arguments, **OPTIONS), expected)
    hits = tts.synthesizer.voices.hits
    tts.warm(["Hello."], VOICE, sample_rate=RATE, **({"language_id": "en"} if arguments[1:] else {}))
    assert tts.synthesizer.voices.hits == hits + 1


def test_a_rate_without_a_recording_is_an_error(speak):
    tts, arguments = speak
    message = r"sample_rate=48000 is of a recording, and none is given; speech is made at 24000 Hz"
    for call in (tts.generate, lambda *a, **o: stream(tts, *a, **o)):
        for voice in (None, "", tts.conds):
            with pytest.raises(ValueError, match=message):
                call(*arguments, audio_prompt_path=voice, sample_rate=48_000)
    with pytest.raises(ValueError, match=message):
        tts.generate_batch(["Hello."], *arguments[1:], [None], sample_rate=48_000)
    with pytest.raises(ValueError, match=message):
        tts.generate_batch(["Hello."], *arguments[1:], sample_rate=48_000)


def test_an_empty_path_is_the_models_own_voice(speak):
    tts, arguments = speak
    expected = tts.generate(*arguments, **OPTIONS)
    assert torch.equal(tts.generate(*arguments, audio_prompt_path="", **OPTIONS), expected)
    assert torch.equal(stream(tts, *arguments, audio_prompt_path="", **OPTIONS), stream(tts, *arguments, **OPTIONS))
    batch = tts.generate_batch(["Hello."], *arguments[1:], [""], **OPTIONS)
    assert torch.equal(batch[0], tts.generate_batch(["Hello."], *arguments[1:], **OPTIONS)[0])


def test_one_recording_in_several_forms_is_prepared_once_each(small_folder):
    tts = ChatterboxTTS.from_local(small_folder, "cpu")
    voices = tts.synthesizer.voices
    first = tts.synthesizer.conditionals((RATE, VOICE))
    for form in ((VOICE, RATE), {"array": VOICE, "sampling_rate": RATE}, (np.int32(RATE), torch.from_numpy(VOICE))):
        assert same(tts.synthesizer.conditionals(form), first)
    assert same(tts.synthesizer.conditionals(VOICE, Hearing(RATE)), first)
    assert (voices.misses, voices.hits) == (1, 4)


def test_an_open_file_may_be_given_twice(small_folder, reference_wav):
    tts = ChatterboxTTS.from_local(small_folder, "cpu")
    file = io.BytesIO(reference_wav.read_bytes())
    expected = tts.synthesizer.conditionals(reference_wav)
    for _ in range(2):
        assert same(tts.synthesizer.conditionals(file), expected)
    tts.clear_cache()
    assert same(tts.synthesizer.conditionals(file), expected)


def test_a_replaced_prepare_conditionals_is_told_the_rate(small_folder):
    tts, told = ChatterboxTTS.from_local(small_folder, "cpu"), []
    tts.prepare_conditionals = lambda wav_fpath, exaggeration=0.5, **options: told.append(options)
    tts.generate("Hello.", audio_prompt_path=VOICE, sample_rate=RATE, **OPTIONS)
    tts.generate("Hello.", audio_prompt_path=VOICE, **OPTIONS)
    assert told == [{"sample_rate": RATE}, {}]
