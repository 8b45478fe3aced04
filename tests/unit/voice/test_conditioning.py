"""`Conditionals`: both file forms, and that a voice is never changed in place."""

from __future__ import annotations

import io

import pytest
import torch

from chatterbox.models.t3.modules.cond_enc import T3Cond
from chatterbox.voice.conditionals import Conditionals, Hearing, prepare_conditionals
from tests.support.folders import recording


def flat(conds: Conditionals) -> dict:
    t3 = {f"t3.{key}": value for key, value in vars(conds.t3).items()}
    return {**t3, **{f"gen.{key}": value for key, value in conds.gen.items()}}


def same(a: Conditionals, b: Conditionals) -> bool:
    a, b = flat(a), flat(b)
    if a.keys() != b.keys():
        return False
    tensors = {key for key, value in a.items() if isinstance(value, torch.Tensor)}
    assert all(torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in tensors)
    return all(a[key] == b[key] for key in a.keys() - tensors)


@pytest.mark.parametrize("name", ["conds.pt", "conds.safetensors"])
def test_round_trip(small_tts, tmp_path, name):
    small_tts.conds.save(tmp_path / name)
    loaded = Conditionals.load(tmp_path / name)
    assert same(loaded, small_tts.conds) and same(loaded.to("cpu"), loaded)
    assert Conditionals.load(str(tmp_path / name), map_location="meta").t3.speaker_emb.device.type == "meta"


def test_pickle_is_upstreams(small_tts, tmp_path):
    small_tts.conds.save(tmp_path / "conds.pt")
    stored = torch.load(tmp_path / "conds.pt", weights_only=True)
    assert stored.keys() == {"t3", "gen"}
    assert stored["t3"].keys() == {
        "speaker_emb", "clap_emb", "cond_prompt_speech_tokens", "cond_prompt_speech_emb", "emotion_adv",
    }  # fmt: skip
    assert stored["gen"].keys() == {"prompt_token", "prompt_token_len", "prompt_feat", "prompt_feat_len", "embedding"}


def test_numbers_for_emotion_survive(small_tts, tmp_path):
    conds = Conditionals(T3Cond(torch.ones(1, 16), emotion_adv=0.75), small_tts.conds.gen)
    for name in ("conds.pt", "conds.safetensors"):
        conds.save(tmp_path / name)
        assert float(torch.as_tensor(Conditionals.load(tmp_path / name).t3.emotion_adv)) == 0.75


@pytest.mark.parametrize("name", ["conds.pt", "conds.safetensors"])
def test_half_precision_becomes_float32(small_tts, tmp_path, name):
    conds = small_tts.conds
    gen = {k: v.half() if v is not None and v.is_floating_point() else v for k, v in conds.gen.items()}
    Conditionals(conds.t3.to(dtype=torch.float16), gen).save(tmp_path / name)
    loaded = Conditionals.load(tmp_path / name)
    assert loaded.gen["embedding"].dtype == loaded.t3.speaker_emb.dtype == torch.float32
    assert loaded.gen["prompt_token"].dtype == torch.int64


@pytest.mark.parametrize("name", ["conds.pt", "conds.safetensors"])
def test_file_must_hold_a_voice(tmp_path, name):
    with pytest.raises(FileNotFoundError, match="do not exist"):
        Conditionals.load(tmp_path / name)
    (tmp_path / name).write_bytes(b"rubbish")
    with pytest.raises(ValueError, match="holds no conditionals of a voice"):
        Conditionals.load(tmp_path / name)


@pytest.mark.parametrize("stored", [{"t3": {}}, {"t3": {"speaker_emb": torch.ones(1)}, "gen": {}}, {"other": 1}, [1]])
def test_pickle_of_something_else(tmp_path, stored):
    torch.save(stored, tmp_path / "conds.pt")
    with pytest.raises(ValueError, match="holds no conditionals of a voice"):
        Conditionals.load(tmp_path / "conds.pt")


def test_exaggeration_makes_a_new_voice(small_tts):
    conds = small_tts.conds
    louder = conds.with_exaggeration(1.5)
    assert float(louder.t3.emotion_adv) == 1.5 and louder.t3.emotion_adv.shape == (1, 1, 1)
    assert float(conds.t3.emotion_adv) == 0.5 and louder.gen is conds.gen
    assert torch.equal(louder.t3.speaker_emb, conds.t3.speaker_emb)


def test_each_model_reads_its_part(small_tts):
    """S3Gen the first 10 s, T3's prompt the first speech tokens of 6 s, the voice encoder everything."""

    def prepare(wav):
        return prepare_conditionals(small_tts.s3gen, small_tts.ve, wav, hp=small_tts.t3.hp)

    wav = recording(12.0)
    changed = wav.copy()
    changed[11 * 24_000 :] = recording(1.0, pitch=400.0)
    a, b = prepare(wav), prepare(changed)
    assert torch.equal(a.gen["prompt_feat"], b.gen["prompt_feat"]) and a.gen["prompt_feat"].shape[1] == 500
    assert torch.equal(a.t3.cond_prompt_speech_tokens, b.t3.cond_prompt_speech_tokens)
    assert a.t3.cond_prompt_speech_tokens.shape == (1, small_tts.t3.hp.speech_cond_prompt_len)
    assert not torch.equal(a.t3.speaker_emb, b.t3.speaker_emb)
    assert a.t3.emotion_adv.shape == (1, 1, 1)


def test_recordings_rate(small_tts):
    """Samples at another rate are resampled, not taken for 24 kHz."""
    options = {"hp": small_tts.t3.hp}
    at_16 = prepare_conditionals(
        small_tts.s3gen, small_tts.ve, recording(2.0, 16_000), hearing=Hearing(16_000), **options
    )
    assert at_16.gen["prompt_feat"].shape[1] == 100


def test_a_small_file_of_a_voice_does_not_become_a_large_one(small_tts, tmp_path):
    gen = {**small_tts.conds.gen, "embedding": torch.zeros(1).expand(1, 10**9)}
    Conditionals(small_tts.conds.t3, gen).save(tmp_path / "conds.pt")
    with pytest.raises(ValueError, match=r"holds no conditionals of a voice \(ValueError: a tensor of shape \(1, 1"):
        Conditionals.load(tmp_path / "conds.pt")


def test_a_voice_goes_through_a_file_object(small_tts):
    buffer = io.BytesIO()
    small_tts.conds.save(buffer)
    buffer.seek(0)
    assert same(Conditionals.load(buffer), small_tts.conds)
