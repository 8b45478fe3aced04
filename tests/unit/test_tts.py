"""The façades on a small model with random weights: what they return, what they leave alone, what they refuse."""

from __future__ import annotations

import dataclasses
import gc
import inspect
import logging
import threading
import typing
import warnings
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from chatterbox.config import KVCacheConfig, SamplingConfig, SpeechArguments, SpeechOptions, StreamingConfig
from chatterbox.kvcache import GlobalKVCacheManager
from chatterbox.models.config import T3Config
from chatterbox.models.s3gen import S3GEN_SR
from chatterbox.synthesis.request import SynthesisRequest
from chatterbox.synthesis.token_filter import valid_speech_tokens
from chatterbox.tts import ChatterboxTTS
from chatterbox.vc import ChatterboxVC
from chatterbox.watermark.perth import read_watermark
from tests.support.folders import SMALL, recording
from tests.support.speaking import say_instead, speak

TEXT = "Hello there, World."


def say(tts: ChatterboxTTS, text: str = TEXT, **options) -> torch.Tensor:
    return tts.generate(text, **{"seed": 7, "watermark": False, **options})


def test_signature_is_upstreams():
    parameters = inspect.signature(ChatterboxTTS.generate).parameters
    assert {name: p.default for name, p in parameters.items() if p.default is not p.empty} == {
        "repetition_penalty": 1.2,
        "min_p": 0.05,
        "top_p": 1.0,
        "audio_prompt_path": None,
        "exaggeration": 0.5,
        "cfg_weight": 0.5,
        "temperature": 0.8,
        "max_new_tokens": None,
        "seed": None,
        "use_cache": True,
        "watermark": True,
        "guard": "light",
        "cleaning": "full",
        "normalize": None,
        "paragraph_pause": 0.5,
        "speed": 1.0,
        "loudness": None,
        "sample_rate": None,
    }
    keyword_only = [name for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY]
    assert keyword_only == list(SpeechArguments.__annotations__)


def test_audio(small_tts):
    assert small_tts.sr == S3GEN_SR
    audio = say(small_tts)
    assert audio.shape == (1, SMALL.sampling.max_new_tokens * 960) and audio.dtype == torch.float32
    assert audio.isfinite().all() and audio.abs().max() > 0.01
    assert not audio.is_inference()


def test_seed_repeats_and_leaves_the_global_generator_alone(small_tts):
    before = torch.get_rng_state()
    first = say(small_tts, seed=1)
    assert torch.equal(first, say(small_tts, seed=1))
    assert not torch.equal(first, say(small_tts, seed=2))
    assert torch.equal(before, torch.get_rng_state())


def test_without_seed_the_global_generator_decides(small_tts):
    def decode(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return say(small_tts, seed=None)

    assert torch.equal(decode(3), decode(3))
    assert not torch.equal(decode(3), decode(4))


def test_cache_changes_nothing(small_tts):
    assert torch.equal(say(small_tts, cfg_weight=0.0), say(small_tts, cfg_weight=0.0, use_cache=False))
    assert torch.equal(say(small_tts), say(small_tts, use_cache=False))


def test_a_warm_voice_is_served_from_the_cache(small_folder, reference_wav):
    tts = ChatterboxTTS.from_local(small_folder, "cpu")
    assert tts.get_cache_hit_rate() == 0.0
    first = say(tts)
    cold = tts.cache_stats()
    assert torch.equal(first, say(tts))
    warm = tts.cache_stats()
    assert warm["tokens_computed"] == cold["tokens_computed"] > 0
    assert warm["hits"] == cold["hits"] + 3  # the voice, its text, its empty text
    assert 0.5 <= tts.get_cache_hit_rate() == warm["hit_rate"]
    uncached = say(tts, audio_prompt_path=reference_wav, use_cache=False)
    assert tts.cache_stats() == warm
    assert torch.equal(say(tts, audio_prompt_path=reference_wav), uncached)
    assert tts.cache_stats()["voices"] == 2
    tts.clear_cache()
    assert tts.cache_stats()["bytes"] == 0
    assert torch.equal(first, say(tts))


def test_new_weights_begin_anew(small_folder):
    tts = ChatterboxTTS.from_local(small_folder, "cpu")
    first = say(tts)
    old = {key: value.clone() for key, value in tts.t3.state_dict().items()}
    tts.t3.load_state_dict({key: value * 1.1 for key, value in old.items()})
    assert torch.equal(say(tts), say(tts, use_cache=False)) and not torch.equal(say(tts), first)
    tts.t3.load_state_dict(old)
    computed = tts.cache_stats()["tokens_computed"]
    assert torch.equal(say(tts), first) and tts.cache_stats()["tokens_computed"] == computed


def test_a_voice_warmed_ahead_computes_nothing(small_folder, reference_wav):
    tts = ChatterboxTTS.from_local(small_folder, "cpu", kvcache=KVCacheConfig(prefix_mib=64))
    assert tts.cache_stats()["budget_bytes"] == 64 * 2**20
    tts.warm([TEXT], reference_wav, 0.7, pin=True)
    tts.warm()  # the built-in voice alone
    warm = tts.cache_stats()
    assert warm["voices"] == 2 and warm["hits"] == 0
    say(tts, audio_prompt_path=reference_wav, exaggeration=0.7)
    after = tts.cache_stats()
    assert after["tokens_computed"] == warm["tokens_computed"] and after["hits"] == 3
    with pytest.raises(TypeError, match="text must be a string"):
        tts.warm([5])


@pytest.mark.parametrize(
    "kvcache",
    ["dynamic", "none", "sliding", KVCacheConfig("evicting"), KVCacheConfig(prefix_mib=0), KVCacheConfig(host_mib=8)],
)
def test_no_kvcache_setting_changes_the_sound(small_folder, small_tts, kvcache):
    tts = ChatterboxTTS.from_local(small_folder, "cpu", kvcache=kvcache)
    assert torch.equal(say(tts), say(small_tts))


def test_unknown_policy(small_folder):
    with pytest.raises(ValueError, match="cache policy 'paged' does not exist; choose from "):
        ChatterboxTTS.from_local(small_folder, "cpu", kvcache="paged")


def test_models_may_share_one_cache(small_tts):
    cache = GlobalKVCacheManager(budget_bytes=2**24)
    one, two = (
        ChatterboxTTS(
            small_tts.t3, small_tts.s3gen, small_tts.ve, small_tts.tokenizer, "cpu", small_tts.conds,
            sampling=small_tts.sampling, cache=cache,
        )
        for _ in range(2)
    )  # fmt: skip
    assert torch.equal(say(one), say(two))
    assert cache.stats()["hits"] == 3


@pytest.mark.parametrize(
    "setting",
    [
        {"temperature": 0.1},
        {"cfg_weight": 0.0},
        {"top_p": 0.1},
        {"min_p": 1.0},
        {"repetition_penalty": 0.1},
        {"exaggeration": 2.0},
        {"text": "Goodbye, moon."},
    ],
)
def test_every_setting_reaches_the_model(small_tts, setting):
    # Whether a setting changes one short speech of a random model is chance.
    assert any(not torch.equal(say(small_tts, seed=seed), say(small_tts, seed=seed, **setting)) for seed in range(5))


def test_temperature_zero_is_greedy(small_tts):
    tokens = [speak_greedily(small_tts, seed) for seed in (1, 2)]
    assert torch.equal(*tokens)


def speak_greedily(tts: ChatterboxTTS, seed: int) -> torch.Tensor:
    greedy = SamplingConfig(temperature=0.0, max_new_tokens=6)
    request = SynthesisRequest(TEXT, tts.conds, greedy, seed=seed, watermark=False)
    return speak(tts.t3, tts.s3gen, tts.tokenizer, request).speech_tokens


def test_generate_assigns_nothing(small_tts, reference_wav):
    before, conds = dict(vars(small_tts)), small_tts.conds
    gen = {key: value.clone() for key, value in conds.gen.items() if value is not None}
    emotion = conds.t3.emotion_adv.clone()
    cloned = say(small_tts, audio_prompt_path=str(reference_wav), exaggeration=1.0)
    assert not torch.equal(cloned, say(small_tts, exaggeration=1.0))
    assert vars(small_tts) == before and small_tts.conds is conds
    assert all(torch.equal(conds.gen[key], value) for key, value in gen.items())
    assert torch.equal(conds.t3.emotion_adv, emotion) and conds.t3.cond_prompt_speech_emb is None


def test_prepare_conditionals_sets_the_voice(small_folder, reference_wav):
    tts = ChatterboxTTS.from_local(small_folder, "cpu")
    cloned = say(tts, audio_prompt_path=reference_wav)
    tts.prepare_conditionals(reference_wav, exaggeration=0.9)
    assert float(tts.conds.t3.emotion_adv) == pytest.approx(0.9)
    assert torch.equal(say(tts), cloned)


def test_threads_with_different_voices_do_not_mix(small_tts, reference_wav):
    voices = [None, str(reference_wav)]
    alone = [say(small_tts, audio_prompt_path=voice) for voice in voices]
    together: dict[int, torch.Tensor] = {}

    def work(index: int) -> None:
        for _ in range(3):
            together[index] = say(small_tts, audio_prompt_path=voices[index % 2])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(together) == 4
    assert all(torch.equal(audio, alone[index % 2]) for index, audio in together.items())


def test_checkpoint_sampling_is_the_default_and_arguments_win(small_folder, small_tts):
    assert small_tts.sampling == SMALL.sampling
    greedy = ChatterboxTTS(
        small_tts.t3, small_tts.s3gen, small_tts.ve, small_tts.tokenizer, "cpu", small_tts.conds,
        sampling=SamplingConfig(temperature=0.0, max_new_tokens=8),
    )  # fmt: skip
    assert torch.equal(say(greedy), say(small_tts, temperature=0.0))
    assert torch.equal(say(greedy, temperature=0.8), say(small_tts))


def test_watermark_is_found(small_tts):
    marked, unmarked = small_tts.generate(TEXT, seed=7), say(small_tts)
    assert marked.shape == unmarked.shape and not marked.is_inference()
    assert read_watermark(marked[0].numpy(), small_tts.sr) > 0.9
    assert read_watermark(unmarked[0].numpy(), small_tts.sr) < 0.1


def test_speaking_is_silent(small_tts, capfd, caplog):
    """Upstream shows progress bars, and its backbone warns of attentions that it was asked for at every step."""
    say(small_tts)  # whatever libraries say when they are first imported
    capfd.readouterr()
    caplog.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        say(small_tts)
    assert capfd.readouterr() == ("", "")
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert all("was cut off at max_new_tokens" in message for message in said)  # random weights end nothing


def test_the_empty_text_is_upstreams_sentence(small_tts):
    assert torch.equal(say(small_tts, ""), say(small_tts, "You need to add some text for me to talk."))


def test_text_of_any_length(small_tts):
    """Even a single word is split where the model has no more positions."""
    limit = SMALL.t3.max_text_tokens - 2
    one, two = say(small_tts, "a" * (limit - 1) + "."), say(small_tts, "a" * (limit + 1) + ".")
    assert 0 < one.shape[1] <= SMALL.sampling.max_new_tokens * 960 < two.shape[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (5, "text must be a string or an iterable of strings, got int"),
        (b"Hello.", "text must be a string or an iterable of strings, got bytes"),
        (["Hello. ", 5], "pieces of text must be strings, got int"),
    ],
)
def test_text_that_is_none(small_tts, text, message):
    with pytest.raises(TypeError, match=message):
        say(small_tts, text)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"temperature": -0.1}, "temperature must be a number from 0 to 10, got -0.1"),
        ({"temperature": float("nan")}, "temperature must be a number"),
        ({"temperature": "hot"}, "temperature must be a number"),
        ({"cfg_weight": -1.0}, "cfg_weight must be"),
        ({"top_p": 0.0}, "top_p must be above 0"),
        ({"top_p": 1.5}, "top_p must be"),
        ({"min_p": 2.0}, "min_p must be"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be"),
        ({"exaggeration": -1.0}, "exaggeration must be"),
        ({"exaggeration": float("inf")}, "exaggeration must be"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number from 1, got 0"),
        ({"max_new_tokens": 5.5}, "max_new_tokens must be a whole number from 1, got 5.5"),
        ({"max_new_tokens": True}, "max_new_tokens must be a whole number from 1, got True"),
        ({"seed": "four"}, "seed must be"),
        ({"seed": 1.5}, "seed must be"),
        ({"seed": True}, "seed must be"),
    ],
)
def test_settings_out_of_range(small_tts, setting, message):
    with pytest.raises(ValueError, match=message) as error:
        say(small_tts, **setting)
    assert "\n" not in str(error.value)


def test_no_voice(small_tts):
    voiceless = ChatterboxTTS(small_tts.t3, small_tts.s3gen, small_tts.ve, small_tts.tokenizer, "cpu")
    with pytest.raises(ValueError, match="no voice yet: pass audio_prompt_path"):
        say(voiceless)


@pytest.mark.parametrize("device", ["foo", "cuda:99", "", 7.5, "cpu:x", "meta", "xpu:3"])
def test_device_that_does_not_exist(small_folder, device):
    with pytest.raises(ValueError, match=r"device .* does not exist"):
        ChatterboxTTS.from_local(small_folder, device)


def write_reference(path, wav: np.ndarray, rate: int, **options):
    soundfile.write(path, wav, rate, **options)
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path, "does not exist"),
        (lambda path: path.parent, "is a folder"),
        (lambda path: (path.write_bytes(b""), path)[1], "cannot be read as audio"),
        (lambda path: (path.write_bytes(b"not audio at all"), path)[1], "cannot be read as audio"),
        (lambda path: write_reference(path, np.zeros(0, np.float32), 24_000), "is empty"),
        (lambda path: write_reference(path, np.zeros(48_000, np.float32), 24_000), "is silent"),
        (lambda path: write_reference(path, recording(0.01), 24_000), "lasts 0.010 s"),
        (lambda path: write_reference(path, np.full(48_000, np.nan), 24_000, subtype="FLOAT"), "NaN or infinite"),
    ],
    ids=["missing", "folder", "empty file", "text", "no samples", "silent", "10 ms", "NaN"],
)
def test_unusable_reference(small_tts, tmp_path, make, message):
    reference = make(tmp_path / "voice.wav")
    for use in (lambda: say(small_tts, audio_prompt_path=reference), lambda: small_tts.prepare_conditionals(reference)):
        before = small_tts.conds
        with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
            use()
        assert "\n" not in str(error.value) and small_tts.conds is before


@pytest.mark.parametrize(
    ("rate", "channels", "subtype"),
    [(8_000, 1, "PCM_16"), (96_000, 1, "PCM_24"), (24_000, 2, "PCM_16"), (44_100, 2, "FLOAT"), (16_000, 1, "PCM_U8")],
)
def test_reference_in_any_form(small_tts, tmp_path, rate, channels, subtype):
    wav = np.stack([recording(1.0, rate)] * channels, axis=1)
    path = write_reference(tmp_path / "voice.wav", wav, rate, subtype=subtype)
    audio = say(small_tts, audio_prompt_path=path)
    assert audio.isfinite().all() and audio.shape[1] % 480 == 0


def test_reference_of_ten_minutes(small_tts, tmp_path):
    path = write_reference(tmp_path / "long.wav", np.tile(recording(10.0, 16_000), 60), 16_000)
    assert say(small_tts, audio_prompt_path=path).isfinite().all()


def test_reference_as_samples_is_not_changed(small_tts):
    wav = recording(1.0)
    before = wav.copy()
    assert torch.equal(
        say(small_tts, audio_prompt_path=wav), say(small_tts, audio_prompt_path=torch.from_numpy(wav.copy()))
    )
    assert np.array_equal(wav, before)


def test_stray_start_tokens():
    def speech_tokens(*tokens: int) -> list[int]:
        return valid_speech_tokens(torch.tensor(tokens), T3Config()).tolist()

    assert speech_tokens(1, 2, 6562) == [1, 2]
    assert speech_tokens(1, 7000, 2, 6562) == [1, 2]
    assert speech_tokens(1, 6561, 2, 6562) == [2]
    assert speech_tokens(6561, 1, 6561, 2, 6562) == [1, 2]
    assert speech_tokens(6562) == []


def test_utterance_without_speech(small_tts, monkeypatch):
    say_instead(monkeypatch, lambda *_: [6562])
    with pytest.raises(RuntimeError, match="ended the utterance before it said anything"):
        say(small_tts)


class TestVoiceConversion:
    def test_length_follows_the_recording(self, vc, reference_wav):
        audio = vc.generate(str(reference_wav), seed=1, watermark=False)
        assert audio.shape == (1, 50 * 960)  # 2 s at 25 speech tokens a second
        assert torch.equal(audio, vc.generate(reference_wav, seed=1, watermark=False))

    def test_target_voice(self, vc, reference_wav, tmp_path):
        target = write_reference(tmp_path / "target.wav", recording(1.5, pitch=300.0), 24_000)
        before = vc.ref_dict
        converted = vc.generate(reference_wav, target_voice_path=target, seed=1, watermark=False)
        assert vc.ref_dict is before
        assert not torch.equal(converted, vc.generate(reference_wav, seed=1, watermark=False))

    def test_set_target_voice(self, small_folder, reference_wav):
        vc = ChatterboxVC.from_local(small_folder, "cpu")
        vc.set_target_voice(reference_wav)
        audio = vc.generate(reference_wav, seed=1, watermark=False)
        assert torch.equal(audio, vc.generate(reference_wav, reference_wav, seed=1, watermark=False))

    def test_no_target(self, vc, reference_wav):
        with pytest.raises(ValueError, match="no target voice yet"):
            ChatterboxVC(vc.s3gen, "cpu").generate(reference_wav)

    def test_watermark(self, vc, reference_wav):
        assert read_watermark(vc.generate(reference_wav, seed=1)[0].numpy(), vc.sr) > 0.9


def test_watermark_weights_not_installed(small_tts, monkeypatch):
    from chatterbox.watermark import perth as watermark

    hidden = [SimpleNamespace(find_spec=lambda *_: None)]
    monkeypatch.setattr(watermark, "sys", SimpleNamespace(meta_path=hidden))
    watermark._weights.cache_clear()
    with pytest.raises(RuntimeError, match=r"pip install 'resemble-perth==1\.0\.1', or pass watermark=False"):
        small_tts.generate(TEXT, seed=7)


def test_a_model_that_has_spoken_is_freed_with_its_last_reference(small_folder):
    """Weights and threads do not wait for the garbage collector."""
    tts = ChatterboxTTS.from_local(small_folder, "cpu")
    say(tts)
    list(tts.generate_stream(TEXT, seed=1, print_metrics=False))
    t3, made = weakref.ref(tts.t3), tts.synthesizer
    workers = [made.scheduler._worker, *made.whole_renders._workers, *made.chunk_renders._workers]
    threads = [worker._thread for worker in workers if worker.is_alive]
    assert len(threads) >= 3  # one that decodes, one that renders what is whole, and one for chunks
    del made, workers
    gc.collect()
    gc.disable()
    try:
        del tts
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()
        assert t3() is None
    finally:
        gc.enable()


def test_arguments_by_name_are_shown_and_no_other_is_taken(small_tts):
    shown = inspect.signature(ChatterboxTTS.generate_stream).parameters
    assert shown["history_len"].default == 250 and shown["norm_loudness"].default is True and "options" not in shown
    for method, name in (("generate", "top_k"), ("generate_batch", "chunk_size"), ("generate_stream", "sed")):
        with pytest.raises(TypeError, match=rf"{method} got an unexpected argument '{name}'; it takes .*, seed"):
            getattr(small_tts, method)("Hello.", **{name: 3})
        hints = typing.get_type_hints(getattr(ChatterboxTTS, method))
        assert hints["seed"] == int | None and "options" not in hints
    assert torch.equal(say(small_tts, temperature=None), say(small_tts))
    for name in ("use_cache", "watermark"):
        with pytest.raises(ValueError, match=f"{name} must be true or false, got 'no'"):
            say(small_tts, **{name: "no"})


def test_every_field_of_a_stream_can_be_given():
    for config in (StreamingConfig, SpeechOptions, SamplingConfig):
        fields = {one.name for one in dataclasses.fields(config)}
        assert fields <= inspect.signature(ChatterboxTTS.generate_stream).parameters.keys()
