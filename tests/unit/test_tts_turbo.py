"""The façade of Turbo and Nano on a small model with random weights, in a folder of the published layout."""

from __future__ import annotations

import dataclasses
import inspect
import json
import logging
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from chatterbox import tts_turbo
from chatterbox.audio.loudness import integrated_loudness
from chatterbox.checkpoints import NANO, TURBO, CheckpointError, hub
from chatterbox.cli import main
from chatterbox.config import SamplingConfig
from chatterbox.engine.decode import generate
from chatterbox.models.config import T3Config
from chatterbox.models.s3gen.const import S3GEN_SIL
from chatterbox.models.tokenizers import TurboTokenizer
from chatterbox.synthesis.request import SynthesisRequest, decode_request, text_tokens_of
from chatterbox.synthesis.token_filter import valid_speech_tokens
from chatterbox.tts_turbo import ChatterboxTurboTTS, punc_norm
from chatterbox.vc import ChatterboxVC
from chatterbox.voice.conditionals import Hearing
from tests.support.folders import SMALL_TURBO, recording, write_folder
from tests.support.speaking import say_instead, speak

TEXT = "Hello there [laugh], this is one sentence."
MARKS = {"[laugh]": 257, "[cough]": 258, "[clear throat]": 259}


@pytest.fixture(scope="session")
def long_wav(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six seconds of a quiet voice unlike the built-in one."""
    path = tmp_path_factory.mktemp("reference") / "voice.wav"
    soundfile.write(path, 0.1 * recording(6.0, pitch=230.0), 24_000, subtype="FLOAT")
    return path


def say(tts: ChatterboxTurboTTS, **options) -> torch.Tensor:
    return tts.generate(TEXT, **{"seed": 7, "watermark": False, **options})


@pytest.fixture(scope="module")
def laughing(tmp_path_factory: pytest.TempPathFactory) -> ChatterboxTurboTTS:
    """A Turbo with marks of its own, as the published one has them."""
    t3 = dataclasses.replace(SMALL_TURBO.t3, text_tokens_dict_size=257 + len(MARKS))
    config = dataclasses.replace(SMALL_TURBO, t3=t3)
    folder = write_folder(tmp_path_factory.mktemp("laughing"), config, layout=TURBO)
    (folder / "added_tokens.json").write_text(json.dumps(MARKS))
    return ChatterboxTurboTTS.from_local(folder, "cpu")


def test_signatures_are_upstreams():
    parameters = inspect.signature(ChatterboxTurboTTS.generate).parameters
    assert list(parameters)[:11] == [
        *("self", "text", "repetition_penalty", "min_p", "top_p", "audio_prompt_path", "exaggeration", "cfg_weight"),
        *("temperature", "top_k", "norm_loudness"),
    ]
    defaults = [p.default for p in parameters.values() if p.default is not p.empty]
    assert defaults[:9] == [1.2, 0.0, 0.95, None, 0.0, 0.0, 0.8, 1000, True]
    assert list(inspect.signature(ChatterboxTurboTTS.from_local).parameters)[:3] == ["ckpt_dir", "device", "nano"]
    assert list(inspect.signature(ChatterboxTurboTTS.from_pretrained).parameters)[:2] == ["device", "nano"]
    assert ChatterboxTurboTTS.ENC_COND_LEN == 15 * 16_000 and ChatterboxTurboTTS.DEC_COND_LEN == 10 * 24_000
    assert punc_norm("one - two; three") == "One - two; three."


def test_speaks(turbo, long_wav):
    wav = say(turbo)
    assert wav.shape[0] == 1 and wav.shape[1] % 960 == 0 and wav.abs().max() > 0.01
    assert torch.equal(say(turbo), wav) and not torch.equal(say(turbo, seed=8), wav)
    assert torch.equal(say(turbo, use_cache=False), wav)
    assert not torch.equal(say(turbo, audio_prompt_path=long_wav), wav)
    assert torch.equal(say(turbo), wav)  # the voice of one call is forgotten


def test_a_known_voice_and_text_are_not_computed_again(turbo_folder):
    tts = ChatterboxTurboTTS.from_local(turbo_folder, "cpu")
    first = say(tts)
    computed = tts.cache_stats()["tokens_computed"]
    assert computed >= 1 + SMALL_TURBO.t3.speech_cond_prompt_len + len(TEXT)  # one token a letter
    assert torch.equal(say(tts), first)
    assert tts.cache_stats()["tokens_computed"] == computed and tts.get_cache_hit_rate() >= 0.5


def test_three_tokens_of_silence_follow(turbo):
    result = speak(turbo.t3, turbo.s3gen, turbo.tokenizer, SynthesisRequest(TEXT, turbo.conds, turbo.sampling, seed=1))
    assert result.speech_tokens[-3:].tolist() == [S3GEN_SIL] * 3 and len(result.speech_tokens) > 3
    assert result.audio.shape[1] == 960 * len(result.speech_tokens)


def test_start_tokens_are_dropped_one_by_one():
    assert valid_speech_tokens(torch.tensor([1, 6561, 2, 6562]), T3Config.turbo()).tolist() == [1, 2]


@pytest.mark.parametrize("name", ["min_p", "exaggeration", "cfg_weight"])
def test_ignored_settings_warn_once(turbo, caplog, name):
    tts_turbo._warn_once.cache_clear()
    plain = say(turbo)
    with caplog.at_level(logging.WARNING, logger="chatterbox.tts_turbo"):
        assert torch.equal(say(turbo, **{name: 0.3}), plain) and torch.equal(say(turbo, **{name: 0.4}), plain)
    said = [record.getMessage() for record in caplog.records if record.name == "chatterbox.tts_turbo"]
    assert said == [f"Turbo and Nano ignore {name}: they have neither emotion nor guidance"]


def test_loudness_of_the_reference(turbo, long_wav):
    """As loud as wanted, with numpy 2 too, where upstream raises; both voices of one recording are kept apart."""
    wav, _ = soundfile.read(long_wav, dtype="float32")
    gain = np.float32(10 ** ((-27 - integrated_loudness(wav, 24_000)) / 20))
    assert gain > 1.5
    loud, plain = (
        turbo.synthesizer.conditionals(long_wav, Hearing(norm_loudness=normalize)) for normalize in (True, False)
    )
    by_hand = turbo.synthesizer.conditionals(wav * gain, Hearing(norm_loudness=False))
    torch.testing.assert_close(loud.gen["prompt_feat"], by_hand.gen["prompt_feat"], rtol=1e-4, atol=1e-4)
    assert (loud.gen["prompt_feat"] - plain.gen["prompt_feat"]).abs().max() > 0.1
    assert torch.equal(turbo.synthesizer.conditionals(long_wav).gen["prompt_feat"], loud.gen["prompt_feat"])


def test_the_prompt_is_fifteen_seconds(turbo, turbo_folder):
    """Of the published size: 375 speech tokens; a shorter recording has a shorter prompt, and no more positions."""
    hp = dataclasses.replace(turbo.t3.hp, speech_cond_prompt_len=375)
    from chatterbox.voice.conditionals import prepare_conditionals

    for seconds, speech_tokens in ((6.0, 150), (15.0, 375), (16.0, 375)):
        voice = prepare_conditionals(turbo.s3gen, turbo.ve, recording(seconds), hp=hp)
        assert voice.t3.cond_prompt_speech_tokens.shape == (1, speech_tokens)
        assert turbo.t3.cond_len_of(voice.t3) == 1 + speech_tokens


def test_the_emotion_that_a_voice_was_given_is_kept_and_changes_nothing(turbo, long_wav, monkeypatch):
    monkeypatch.setattr(turbo, "_conds", turbo.conds)
    turbo.prepare_conditionals(long_wav)
    assert turbo.conds.t3.emotion_adv.item() == 0.5
    spoken = say(turbo)
    turbo.prepare_conditionals(long_wav, exaggeration=0.9)
    assert turbo.conds.t3.emotion_adv.item() == pytest.approx(0.9) and torch.equal(say(turbo), spoken)


def test_a_short_reference_is_refused(turbo, reference_wav):
    with pytest.raises(ValueError, match=r"reference audio is 2.0 s long; this model needs more than 5 s of speech"):
        say(turbo, audio_prompt_path=reference_wav)


def test_text_longer_than_the_positions(turbo):
    sampling = dataclasses.replace(turbo.sampling, max_new_tokens=60)
    request = SynthesisRequest("a" * 179 + ".", turbo.conds, sampling, seed=1)
    with pytest.raises(ValueError, match=r"180 of text and \d+ of speech are more than the model's 200; split"):
        tokens_of = partial(text_tokens_of, turbo.tokenizer, request)
        generate(turbo.t3, decode_request(turbo.t3, turbo.conds, request, tokens_of))
    assert speak(turbo.t3, turbo.s3gen, turbo.tokenizer, request).duration > 0  # in several utterances


def test_guidance_is_refused_before_any_work(turbo):
    sampling = SamplingConfig(cfg_weight=0.5)
    with pytest.raises(ValueError, match=r"cfg_weight must be 0 for this model, got 0.5; it has no guidance"):
        speak(turbo.t3, turbo.s3gen, turbo.tokenizer, SynthesisRequest(TEXT, turbo.conds, sampling))


def test_tokenizer(turbo):
    tokenizer = turbo.tokenizer
    assert isinstance(tokenizer, TurboTokenizer) and tokenizer.largest_id == 256
    assert tokenizer.decode(tokenizer.text_to_tokens(TEXT)[0]) == TEXT
    assert tokenizer.decode(tokenizer.text_to_tokens("a<|endoftext|>b", exact=False)[0]) == "a<|endoftext|>b"
    assert tokenizer.text_to_tokens("a" * 3000).shape == (1, 3000)  # upstream cuts at the tokenizer's 1,024
    assert tokenizer(TEXT, return_tensors="pt", padding=True, truncation=True).input_ids.shape == (1, len(TEXT))


@pytest.mark.parametrize(
    ("text", "marks"),
    [
        ("Hi there. [laugh]", [257]),
        ("Hi [clear throat] there[cough].", [259, 258]),
        ("**[laugh]** Hi *[cough]*", [257, 258]),
        ("Hi. [laugh]\n\n[pause:1s][cough] You.", [257, 258]),
        ("[laugh]", [257]),
        ("[Laugh] <|endoftext|> [STOP] hi", []),
    ],
)
def test_marks_of_the_model_act(laughing, text, marks, monkeypatch):
    """They reach T3 as one token each, from a whole text, in a stream, a batch and from pieces; all else is spelt."""
    asked = say_instead(monkeypatch, lambda index, request: [5, 6, 7])

    def heard() -> list[int]:
        found = [one for request in asked for one in request.text_tokens.tolist() if one > 255]
        asked.clear()
        return found

    options = {"seed": 1, "watermark": False}
    laughing.generate(text, **options)
    assert heard() == marks
    laughing.generate_batch([text], **options)
    assert heard() == marks
    for given in (text, list(text)):
        for _ in laughing.generate_stream(given, print_metrics=False, **options):
            pass
        assert heard() == marks


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vocab.json", "has no vocab.json; it needs ve.safetensors, t3_turbo_v1.safetensors, s3gen_meanflow"),
        ("s3gen_meanflow.safetensors", "has no s3gen_meanflow.safetensors"),
        ("tokenizer_config.json", "holds no readable tokenizer"),
    ],
)
def test_missing_files(turbo_folder, tmp_path, name, message):
    folder = Path(shutil.copytree(turbo_folder, tmp_path / "checkpoint"))
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=message) as raised:
        ChatterboxTurboTTS.from_local(folder, "cpu")
    assert "\n" not in str(raised.value)


def test_nano(turbo_folder, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(turbo_folder, tmp_path / "checkpoint"))
    (folder / TURBO.t3).rename(folder / NANO.t3)
    nano = ChatterboxTurboTTS.from_local(folder, "cpu", nano=True)
    assert nano.model_label == "Nano" and say(nano).abs().max() > 0.01
    assert ChatterboxTurboTTS.from_local(turbo_folder, "cpu").model_label == "Turbo"
    asked = []

    def fetch(repo, files, local_files_only):
        asked.append((repo, {TURBO.t3, NANO.t3} & set(files)))
        return folder

    monkeypatch.setattr(hub, "_download", fetch)
    assert ChatterboxTurboTTS.from_pretrained("cpu", nano=True).model_label == "Nano"
    assert ChatterboxTurboTTS.from_pretrained("cpu", model="nano").model_label == "Nano"
    assert ChatterboxTurboTTS.from_pretrained("cpu").model_label == "Nano"  # what the folder holds counts
    with pytest.raises(CheckpointError, match=r"has no t3_nano_v1.safetensors, which t3_model names"):
        ChatterboxTurboTTS.from_local(turbo_folder, "cpu", nano=True)
    assert asked == [("ResembleAI/chatterbox-nano", {NANO.t3})] * 2 + [("ResembleAI/chatterbox-turbo", {TURBO.t3})]


def test_command_line(turbo_folder, long_wav, tmp_path, capsys):
    output = tmp_path / "out.wav"
    arguments = ["say", TEXT, "-o", str(output), "--model", str(turbo_folder), "--seed", "7"]
    assert main([*arguments, "--voice", str(long_wav)]) == 0
    assert "audio in" in capsys.readouterr().out and soundfile.info(output).samplerate == 24_000
    assert main([*arguments, "--language", "fr"]) == 2
    assert "speaks English alone" in capsys.readouterr().err


def test_voice_conversion(turbo_folder, reference_wav):
    """By the mean-flow S3Gen, two steps and no guidance."""
    vc = ChatterboxVC.from_local(turbo_folder, "cpu")
    assert vc.s3gen.meanflow
    wav = vc.generate(reference_wav, seed=1, watermark=False)
    assert wav.shape == (1, 2 * 24_000) and wav.abs().max() > 0.01
