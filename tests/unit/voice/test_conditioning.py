"""`Conditionals`: both file forms, and that a voice is never changed in place."""

from __future__ import annotations

import dataclasses
import io
import re

import pytest
import torch
from safetensors.torch import save_file

from chatterbox.models.t3.modules.cond_enc import T3Cond
from chatterbox.synthesis.synthesizer import BatchError
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


def cut(frames: int):
    return lambda voice: {"gen.prompt_feat": voice["gen.prompt_feat"][:, :frames]}


FLAWS = {
    "gen.prompt_feat is (1, 0, ": cut(0),
    "gen.prompt_feat has 4 frames for 25 tokens, not 2 for each": cut(4),
    "gen.prompt_feat is (50, ": lambda voice: {"gen.prompt_feat": voice["gen.prompt_feat"][0]},
    "gen.prompt_feat has NaN": lambda voice: {"gen.prompt_feat": voice["gen.prompt_feat"] * float("nan")},
    "gen.prompt_token has what is no speech token": lambda voice: {"gen.prompt_token": -voice["gen.prompt_token"] - 1},
    "gen.prompt_token_len is [-10] for 25 tokens": lambda voice: {"gen.prompt_token_len": torch.tensor([-10])},
    "gen.prompt_token_len is [10000": lambda voice: {"gen.prompt_token_len": torch.tensor([10**12])},
    "gen.embedding is int64": lambda voice: {"gen.embedding": voice["gen.embedding"].long()},
    "t3.speaker_emb is (2, ": lambda voice: {"t3.speaker_emb": voice["t3.speaker_emb"].repeat(2, 1)},
    "t3.speaker_emb is ()": lambda voice: {"t3.speaker_emb": torch.tensor(1.0)},
    "t3.cond_prompt_speech_tokens has what": lambda voice: {"t3.cond_prompt_speech_tokens": torch.full((1, 5), 0.5)},
}


@pytest.mark.parametrize("name", ["conds.pt", "conds.safetensors"])
@pytest.mark.parametrize(("flaw", "change"), FLAWS.items(), ids=FLAWS)
def test_a_voice_that_is_none_is_told_of_when_it_is_read(small_tts, tmp_path, name, flaw, change):
    """One whose mel is short would speak the rest of its recording; the others end in errors of torch."""
    voice = prepare_conditionals(small_tts.s3gen, small_tts.ve, recording(1.0), hp=small_tts.t3.hp).as_tensors()
    voice.update(change(voice))
    path = tmp_path / name
    if path.suffix == ".pt":
        parts = {
            part: {k[len(part) + 1 :]: v for k, v in voice.items() if k.startswith(part)} for part in ("t3", "gen")
        }
        torch.save(parts, path)
    else:
        save_file({key: value.contiguous() for key, value in voice.items()}, str(path))
    with pytest.raises(ValueError, match="holds no conditionals of a voice: " + re.escape(flaw)) as raised:
        Conditionals.load(path)
    assert str(raised.value).endswith("; save it again")


def test_older_files_hold_ids_as_floats(small_tts, tmp_path):
    conds = small_tts.conds
    gen = {**conds.gen, "prompt_token": conds.gen["prompt_token"].float()}
    prompt = conds.t3.cond_prompt_speech_tokens.float()
    older = Conditionals(dataclasses.replace(conds.t3, cond_prompt_speech_tokens=prompt), gen)
    older.save(tmp_path / "conds.pt")
    expected, (audio,) = (
        small_tts.generate_batch(["Hi."], voices=[voice], seed=1)
        for voice in (conds, Conditionals.load(tmp_path / "conds.pt"))
    )
    assert torch.equal(audio, expected[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"speaker_emb": torch.ones(1, 8)},
            r"speaker embedding is \(1, 8\), that of this model 16 wide; make the voice",
        ),
        (
            {"cond_prompt_speech_tokens": torch.full((1, 4), 10**6)},
            r"has speech token 1000000, outside the \d+ of this",
        ),
        ({"cond_prompt_speech_tokens": torch.zeros(1, 10**4, dtype=torch.int64)}, r"has 10000 speech tokens, and this"),
        (
            {"embedding": torch.ones(1, 8)},
            r"ref_dict's embedding is \(1, 8\), that of this model \d+ wide; make it with",
        ),
        ({"prompt_feat": torch.ones(1, 50, 8)}, r"ref_dict's prompt_feat is \(1, 50, 8\), that of this model \d+ wide"),
    ],
)
def test_a_voice_of_another_model_is_told_of(small_tts, change, message):
    conds = small_tts.conds
    gen = {**conds.gen, **{key: value for key, value in change.items() if key in conds.gen}}
    t3 = dataclasses.replace(conds.t3, **{key: value for key, value in change.items() if key not in conds.gen})
    with pytest.raises((ValueError, BatchError), match=message):
        small_tts.generate_batch(["Hello."], voices=[Conditionals(t3, gen)])


def test_a_pickle_of_code_is_told_of_without_torchs_advice(tmp_path):
    torch.save({"t3": {}, "gen": {"embedding": io.BytesIO}}, tmp_path / "conds.pt")
    with pytest.raises(ValueError, match=r"\(it is no pickle of tensors and plain values alone\)$"):
        Conditionals.load(tmp_path / "conds.pt")
