"""Conversion of a recording: whole up to 30 s, in windows beyond, silence to silence; whose rate counts."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from chatterbox.audio.recordings import load_reference
from chatterbox.models.s3gen.stream import waveform_len
from chatterbox.models.s3tokenizer import S3_SR
from chatterbox.models.s3tokenizer.stream import SpeechTokenStream, num_tokens
from chatterbox.synthesis.synthesizer import render_speech_tokens
from chatterbox.vc import ChatterboxVC
from chatterbox.watermark.perth import read_watermark
from tests.support.folders import recording


def whole(vc: ChatterboxVC, wav: np.ndarray, *, seed: int = 1, watermark: bool = False) -> torch.Tensor:
    """``wav`` at 16 kHz, heard and rendered at once."""
    with torch.inference_mode():
        speech_tokens, _ = vc.s3gen.tokenizer([wav])
    watermarker = vc.watermarker if watermark else None
    return render_speech_tokens(vc.s3gen, speech_tokens, vc.ref_dict, seed=seed, watermarker=watermarker)


def length_of(vc: ChatterboxVC, num_samples: int) -> int:
    surplus = vc.ref_dict["prompt_feat"].shape[1] - 2 * vc.ref_dict["prompt_token"].shape[1]
    return 960 * -(-(num_samples // 160) // 4) - 480 * surplus


# Windows


@pytest.mark.parametrize("num_samples", [30 * S3_SR, 29 * S3_SR + 17])
@pytest.mark.parametrize("watermark", [True, False])
def test_up_to_thirty_seconds_are_converted_at_once(vc, num_samples, watermark):
    wav = recording(30.0, S3_SR)[:num_samples]
    converted = vc.generate((S3_SR, wav), seed=1, watermark=watermark)
    assert torch.equal(converted, whole(vc, wav, watermark=watermark))


@pytest.mark.parametrize("num_samples", [30 * S3_SR + 1, 57 * S3_SR + 601])
def test_more_is_converted_in_windows_of_the_same_length(vc, num_samples):
    wav = recording(58.0, S3_SR)[:num_samples]
    converted = vc.generate((S3_SR, wav), seed=1, watermark=False)
    assert converted.shape == (1, length_of(vc, num_samples)) == whole(vc, wav).shape


def test_no_network_sees_more_of_two_minutes_than_of_thirty_seconds(vc, monkeypatch):
    seen: dict[str, list[int]] = {"heard": [], "rendered": []}
    digits, flow = vc.s3gen.tokenizer.digits, vc.s3gen.flow.forward

    def heard(mel, mel_len):
        seen["heard"].append(mel.shape[-1])
        return digits(mel, mel_len)

    def rendered(token, *arguments, **options):
        seen["rendered"].append(token.shape[-1])
        return flow(token, *arguments, **options)

    monkeypatch.setattr(vc.s3gen.tokenizer, "digits", heard)
    monkeypatch.setattr(vc.s3gen.flow, "forward", rendered)
    wav = np.tile(recording(30.0, S3_SR), 4)
    assert vc.generate((S3_SR, wav), seed=1, watermark=False).shape == (1, length_of(vc, len(wav)))
    assert len(seen["heard"]) == 5 and max(seen["heard"]) == 3_000
    assert len(seen["rendered"]) == 12 and max(seen["rendered"]) <= 350


def test_a_long_conversion_is_marked_and_without_a_seed_follows_torchs(vc):
    wav = recording(40.0, S3_SR)
    torch.manual_seed(5)
    first = vc.generate((S3_SR, wav))
    torch.manual_seed(5)
    assert torch.equal(first, vc.generate((S3_SR, wav)))
    assert read_watermark(first[0].numpy(), vc.sr) > 0.9
    assert not torch.equal(first, vc.generate((S3_SR, wav), seed=1))


def test_a_replaced_inference_renders_a_long_recording_too(small_folder):
    own, given = ChatterboxVC.from_local(small_folder, "cpu"), []

    def inference(speech_tokens, **options):
        given.append(speech_tokens.shape[-1])
        return torch.ones(1, 960 * given[-1]), None

    own.s3gen.inference = inference
    converted = own.generate((S3_SR, recording(40.0, S3_SR)), seed=1, watermark=False)
    assert given == [1_000] and bool((converted == 1).all())


@pytest.mark.parametrize("num_samples", [160 * 4, 160 * 3000, 160 * 3001, 160 * 3002 + 1, 160 * 5600 + 80, 160 * 8000])
def test_speech_tokens_of_windows_are_those_of_the_whole(vc, num_samples):
    wav = np.tile(recording(20.0, S3_SR), 4)[:num_samples]
    stream = SpeechTokenStream(vc.s3gen.tokenizer)
    tokens = [token for start in range(0, len(wav), 7_777) for token in stream.push(wav[start : start + 7_777])]
    tokens += stream.finish()
    expected = vc.s3gen.tokenizer([wav])[0][0]
    assert len(tokens) == len(expected) == num_tokens(num_samples)
    assert float((torch.tensor(tokens) == expected).float().mean()) > 0.995  # rounded, of sums in another order


MEMORY = """
import resource, sys
import numpy as np
import torch
from chatterbox.vc import ChatterboxVC

torch.set_num_threads(1)
vc = ChatterboxVC.from_pretrained("cpu", model="tiny")
noise = np.random.default_rng(0).normal(0, 0.05, 16_000 * 30).astype(np.float32)
vc.generate((16_000, noise[: 16_000 * 4]), seed=1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
wav = np.tile(noise, int(sys.argv[1]) // 30)
converted = vc.generate((16_000, wav), seed=1)
assert converted.shape[1] >= len(wav) * 3 // 2 - 480
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
def test_memory_is_flat_from_thirty_seconds_on():
    def growth(seconds: int) -> float:
        command = [sys.executable, "-c", MEMORY, str(seconds)]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    audio = 240 * (24_000 + 16_000) * 4 / 2**20  # what was asked for, and the recording itself
    assert growth(240) < growth(30) + audio  # MiB


# Silence


@pytest.mark.parametrize("seconds", [0.5, 2.017, 40.0])
@pytest.mark.parametrize("level", [0.0, 2e-5, 0.5])
def test_silence_becomes_silence_of_that_length(vc, seconds, level):
    wav = np.full(round(seconds * S3_SR), level, np.float32)
    converted = vc.generate((S3_SR, wav), seed=1)
    assert converted.shape == (1, length_of(vc, len(wav))) and not converted.any()
    assert converted.dtype == torch.float32


def test_length_of_a_waveform(vc):
    with_surplus = {**vc.ref_dict, "prompt_feat": torch.cat([vc.ref_dict["prompt_feat"]] * 2, 1)[:, : 2 * 25 + 1]}
    with_surplus["prompt_token"] = with_surplus["prompt_token"][:, :25]
    with_surplus["prompt_token_len"] = None
    assert waveform_len(vc.s3gen, with_surplus, 10) == 9_600 - 480


# What is wrong with a recording


def test_messages_speak_of_the_recording_to_convert(vc, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"recording to convert '.*nobody\.wav' does not exist"):
        vc.generate(tmp_path / "nobody.wav")
    with pytest.raises(ValueError, match=r"recording to convert lasts 0\.010 s, .*; give the speech"):
        vc.generate(recording(0.01))
    wav = recording(40.0)
    wav[-1] = np.nan
    with pytest.raises(ValueError, match=r"recording to convert has 1 NaN or infinite samples"):
        vc.generate(wav)
    with pytest.raises(FileNotFoundError, match=r"reference audio '.*nobody"):
        vc.generate(recording(1.0), tmp_path / "nobody.wav")


# Whose rate counts


def test_samples_are_at_24_khz_unless_the_call_says_otherwise(vc):
    wav = recording(2.0, S3_SR)
    assert torch.equal(vc.generate((S3_SR, wav), seed=1), vc.generate(wav, seed=1, sample_rate=S3_SR))
    assert vc.generate(wav, seed=1).shape[1] == length_of(vc, len(wav) * 2 // 3 + 1)
    spoken = torch.from_numpy(recording(2.0))[None]  # as `generate` gives it
    assert vc.generate(spoken, seed=1).shape[1] == length_of(vc, 2 * S3_SR)


def test_the_rate_of_a_call_is_of_both_recordings_that_lack_one(vc, reference_wav):
    target, wav = recording(1.5, S3_SR, pitch=300.0), recording(1.0, S3_SR)
    explicit = vc.generate((S3_SR, wav), (S3_SR, target), seed=1)
    assert torch.equal(vc.generate(wav, target, seed=1, sample_rate=S3_SR), explicit)
    assert torch.equal(vc.generate((wav, S3_SR), target, seed=1, sample_rate=S3_SR), explicit)
    own = ChatterboxVC(vc.s3gen, "cpu")
    own.set_target_voice(target, sample_rate=S3_SR)
    assert torch.equal(own.generate(wav, "", seed=1, sample_rate=S3_SR), explicit)
    with pytest.raises(ValueError, match=r"voice\.wav' is at 24000 Hz, not sample_rate=16000; leave that out"):
        vc.generate(reference_wav, sample_rate=S3_SR)


def test_a_loaded_recording_is_what_the_file_is(vc, reference_wav):
    assert torch.equal(vc.generate(reference_wav, seed=1), vc.generate(reference_wav.read_bytes(), seed=1))
    samples = load_reference(reference_wav, 24_000)
    assert torch.equal(vc.generate(reference_wav, seed=1), vc.generate(samples, seed=1))
