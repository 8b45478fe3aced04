"""Reading and validating reference recordings; resampling, trimming and filters."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import types
import warnings

import numpy as np
import pytest
import soundfile
import torch

from chatterbox.audio.recordings import load_reference, mel_filters, resample_hq, resample_sinc, trim_silence
from chatterbox.models.s3gen.mel import mel_spectrogram


def tone(rate: int, seconds: float = 0.5, hz: float = 220.0, channels: int = 1) -> np.ndarray:
    t = np.arange(round(rate * seconds)) / rate
    rows = [0.3 * np.sin(2 * np.pi * hz * (c + 1) * t) for c in range(channels)]
    return np.stack(rows, axis=1).astype(np.float32)


def write(path, samples, rate, subtype=None):
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


# Good input


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 24_000, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_files_read_as_librosa_reads_them(tmp_path, rate, channels):
    import librosa

    path = write(tmp_path / "voice.wav", tone(rate, channels=channels), rate)
    wav = load_reference(path, 24_000)
    assert wav.dtype == np.float32
    np.testing.assert_array_equal(wav, librosa.load(path, sr=24_000)[0])


@pytest.mark.parametrize(
    ("name", "subtype"),
    [
        ("a.wav", "PCM_U8"),
        ("a.wav", "PCM_24"),
        ("a.wav", "FLOAT"),
        ("a.wav", "DOUBLE"),
        ("a.flac", "PCM_16"),
        ("a.ogg", None),
    ],
)
def test_formats(tmp_path, name, subtype):
    path = write(tmp_path / name, tone(24_000), 24_000, subtype)
    np.testing.assert_allclose(load_reference(str(path), 24_000), tone(24_000)[:, 0], atol=0.03)


@pytest.mark.skipif(sys.platform != "linux", reason="names that are no UTF-8")
def test_a_name_that_is_no_utf_8(tmp_path):
    path = write(tmp_path / "a.wav", tone(24_000), 24_000)
    other = path.rename(tmp_path / os.fsdecode(b"b\xff.wav"))
    np.testing.assert_array_equal(load_reference(str(other), 24_000), load_reference(other.read_bytes(), 24_000))
    other.write_bytes(b"no audio")
    with pytest.raises(ValueError, match="cannot be read as audio"):
        load_reference(other, 24_000)


def test_file_objects(tmp_path):
    path = write(tmp_path / "a.wav", tone(24_000), 24_000)
    np.testing.assert_array_equal(load_reference(io.BytesIO(path.read_bytes()), 24_000), load_reference(path, 24_000))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int32, np.float16, np.float64])
def test_arrays_are_scaled(dtype):
    wav = tone(24_000)[:, 0]
    if np.issubdtype(dtype, np.integer):
        scale = 2.0 ** (8 * np.dtype(dtype).itemsize - 1)
        samples = np.round(wav.astype(np.float64) * (scale - 1) + scale * (np.dtype(dtype).kind == "u")).astype(dtype)
    else:
        samples = wav.astype(dtype)
    read = load_reference(samples, 24_000)
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, wav, atol=0.01)


@pytest.mark.parametrize("arrange", [lambda s: s, lambda s: s.T, torch.from_numpy])
def test_stereo_arrays_are_mixed(arrange):
    samples = arrange(tone(24_000, channels=2))
    np.testing.assert_allclose(load_reference(samples, 24_000), tone(24_000, channels=2).mean(axis=1), atol=1e-7)


def test_half_precision_tensors():
    read = load_reference(torch.from_numpy(tone(24_000)[:, 0]).bfloat16(), 24_000)
    np.testing.assert_allclose(read, tone(24_000)[:, 0], atol=2e-3)


def test_array_rate():
    samples = tone(48_000)[:, 0]
    read = load_reference(samples, 16_000, source_rate=48_000)
    np.testing.assert_array_equal(read, resample_hq(samples, 48_000, 16_000))


def test_beginning_of_an_array():
    samples = tone(48_000, seconds=3.0)[:, 0]
    whole = load_reference(samples, 16_000, source_rate=48_000)
    np.testing.assert_array_equal(load_reference(samples, 16_000, source_rate=48_000, max_seconds=1.0), whole[:16_000])


def test_input_is_not_changed():
    samples = tone(24_000)[:, 0]
    before = samples.copy()
    load_reference(samples, 16_000, source_rate=24_000)
    np.testing.assert_array_equal(samples, before)


@pytest.mark.parametrize("rate", [8_000, 44_100])
def test_beginning_only(tmp_path, rate):
    path = write(tmp_path / "long.wav", tone(rate, seconds=5.0, channels=2), rate)
    whole = load_reference(path, 24_000)
    np.testing.assert_array_equal(load_reference(path, 24_000, max_seconds=2.0), whole[:48_000])
    np.testing.assert_array_equal(load_reference(path, 24_000, max_seconds=60.0), whole)


def test_five_minutes_of_ten_make_a_voice(tmp_path, caplog):
    path = write(tmp_path / "long.wav", np.tile(tone(8_000, seconds=6.0), (100, 1)), 8_000)
    assert load_reference(path, 16_000).shape == (300 * 16_000,)
    assert "is longer than 300 s; what follows is not used" in caplog.text
    assert load_reference(path, 16_000, max_seconds=10).shape == (10 * 16_000,)


# Bad input


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nobody\.wav' does not exist; give the path"):
        load_reference(tmp_path / "nobody.wav", 24_000)


def test_folder(tmp_path):
    with pytest.raises(ValueError, match="is a folder; give the path of an audio file"):
        load_reference(tmp_path, 24_000)


@pytest.mark.parametrize("name", ["notes.txt", "voice.wav", "voice.mp3", "voice.raw"])
@pytest.mark.parametrize("content", [b"", b"hello, this is not audio\n" * 40])
def test_not_audio(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=rf"{name}' cannot be read as audio .*convert it to WAV or FLAC") as raised:
            load_reference(path, 24_000)
    assert "\n" not in str(raised.value)


def test_not_audio_file_object():
    with pytest.raises(ValueError, match="reference audio cannot be read as audio"):
        load_reference(io.BytesIO(b"not audio"), 24_000)


def test_empty(tmp_path):
    with pytest.raises(ValueError, match=r"empty\.wav' is empty"):
        load_reference(write(tmp_path / "empty.wav", np.zeros((0, 2), np.float32), 24_000), 24_000)
    for shape in [(0,), (0, 2), (2, 0)]:
        with pytest.raises(ValueError, match="reference audio is empty"):
            load_reference(np.zeros(shape, np.float32), 24_000)


@pytest.mark.parametrize("rate", [8_000, 24_000, 96_000])
def test_too_short(tmp_path, rate):
    path = write(tmp_path / "click.wav", tone(rate, seconds=0.01), rate)
    with pytest.raises(ValueError, match=r"click\.wav' lasts 0\.010 s, shorter than 0\.1 s; give 5 to 10 seconds"):
        load_reference(path, 24_000)


def test_shortest_allowed():
    assert load_reference(tone(24_000, seconds=0.1)[:, 0], 24_000).shape == (2_400,)


@pytest.mark.parametrize("offset", [0.0, 0.5])
@pytest.mark.parametrize("level", [0.0, 5e-5])
def test_silent(offset, level):
    hum = tone(24_000)[:, 0] / 0.3 * level + np.float32(offset)
    with pytest.raises(ValueError, match="is silent"):
        load_reference(hum, 24_000)


def test_quiet_is_not_silent():
    assert len(load_reference(tone(24_000)[:, 0] * 1e-3, 24_000))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite(tmp_path, value):
    samples = tone(24_000)[:, 0]
    samples[100] = value
    with pytest.raises(ValueError, match="has 1 NaN or infinite samples"):
        load_reference(samples, 24_000)
    with pytest.raises(ValueError, match="has 1 NaN or infinite samples"):
        load_reference(write(tmp_path / "broken.wav", samples, 24_000, "FLOAT"), 24_000)


def test_float_samples_on_an_integer_scale():
    with pytest.raises(ValueError, match=r"peak of .*scale floating-point samples to -1\.\.1"):
        load_reference(tone(24_000)[:, 0] * 32_768, 24_000)


@pytest.mark.parametrize("dtype", [bool, np.complex64, object])
def test_not_numbers(dtype):
    with pytest.raises(TypeError, match="must hold real numbers"):
        load_reference(np.ones(24_000, dtype), 24_000)


@pytest.mark.parametrize("audio", [None, 3, ["a.wav"]])
def test_not_a_recording(audio):
    with pytest.raises(TypeError, match="must be a path, a file, bytes of a file, an array of samples"):
        load_reference(audio, 24_000)


@pytest.mark.parametrize("shape", [(), (2, 2, 24_000), (1, 1, 1, 24_000)])
def test_wrong_shape(shape):
    with pytest.raises(ValueError, match="give one recording"):
        load_reference(np.ones(shape, np.float32), 24_000)


@pytest.mark.parametrize("rate", [0, -1, 3_999, 768_001, 16_000.5, float("nan"), True, "fast", [16_000], 10**400])
def test_wrong_rate(rate):
    with pytest.raises(ValueError, match=r"sample_rate must be 4000 to 768000 Hz, got .*; give that of the recording"):
        load_reference(tone(24_000)[:, 0], 24_000, source_rate=rate)


# What soundfile cannot decode


class FakeDecoder:
    samplerate, channels = 16_000, 2

    def __init__(self):
        pcm = np.round(tone(16_000, seconds=3.0, channels=2) * 32_767).astype("<i2").tobytes()
        self.blocks = [pcm[i : i + 4096] for i in range(0, len(pcm), 4096)]
        self.read = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def __iter__(self):
        for block in self.blocks:
            self.read += 1
            yield block


def test_other_formats_go_through_audioread(tmp_path, monkeypatch):
    decoder = FakeDecoder()
    fake = types.SimpleNamespace(audio_open=lambda path: decoder, DecodeError=RuntimeError)
    monkeypatch.setitem(sys.modules, "audioread", fake)
    path = tmp_path / "memo.m4a"
    path.write_bytes(b"\0\0\0 ftypM4A ")
    expected = tone(16_000, seconds=3.0, channels=2).mean(axis=1)
    np.testing.assert_allclose(load_reference(path, 16_000), expected, atol=1e-4)
    decoder.read = 0
    np.testing.assert_allclose(load_reference(path, 16_000, max_seconds=0.5), expected[:8_000], atol=1e-4)
    assert decoder.read < len(decoder.blocks), "reads no more than it needs"


def test_without_audioread(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "audioread", None)
    path = tmp_path / "memo.m4a"
    path.write_bytes(b"\0\0\0 ftypM4A ")
    with pytest.raises(ValueError, match="cannot be read as audio"):
        load_reference(path, 16_000)


# Signal processing


@pytest.mark.parametrize(
    "rates", [(24_000, 16_000), (16_000, 24_000), (44_100, 24_000), (8_000, 16_000), (48_000, 48_000)]
)
@pytest.mark.parametrize("length", [1, 17, 2_401])
def test_resampled_lengths(rates, length):
    source, target = rates
    expected = -(-length * target // source)
    assert resample_hq(np.ones(length, np.float32), source, target).shape == (expected,)
    assert resample_sinc(torch.ones(2, 3, length), source, target).shape == (2, 3, expected)


def test_resamplers_keep_a_tone():
    wav = tone(24_000, seconds=1.0)[:, 0]
    expected = tone(16_000, seconds=1.0)[:, 0]
    middle = slice(500, -500)
    np.testing.assert_allclose(resample_hq(wav, 24_000, 16_000)[middle], expected[middle], atol=1e-3)
    sinc = resample_sinc(torch.from_numpy(wav), 24_000, 16_000)
    np.testing.assert_allclose(sinc[middle], expected[middle], atol=5e-3)


@pytest.mark.parametrize(
    "arguments", [(16_000, 400, 128, 0.0, None), (24_000, 1920, 80, 0.0, 8000.0), (22_050, 1024, 23, 55.0, 7600.0)]
)
def test_mel_filters_are_librosas(arguments):
    import librosa

    sample_rate, n_fft, num_mels, fmin, fmax = arguments
    expected = librosa.filters.mel(sr=sample_rate, n_fft=n_fft, n_mels=num_mels, fmin=fmin, fmax=fmax)
    np.testing.assert_array_equal(mel_filters(*arguments).numpy(), expected)


@pytest.mark.parametrize("edge", [0, 700, 5_000])
def test_trim_is_librosas(edge):
    import librosa

    wav = np.concatenate([np.full(edge, 1e-4, np.float32), tone(16_000)[:, 0], np.full(2 * edge, 1e-4, np.float32)])
    expected, index = librosa.effects.trim(wav, top_db=20)
    trimmed, span = trim_silence(torch.from_numpy(wav), 20)
    assert span == tuple(index)
    np.testing.assert_array_equal(trimmed.numpy(), expected)


def test_trim_keeps_silence_whole():
    assert trim_silence(torch.zeros(3_000), 20)[1] == (0, 3_000)


def test_gradients_flow_after_use_in_inference_mode():
    with torch.inference_mode():
        mel_spectrogram(torch.ones(2_000), num_mels=7)
        resample_sinc(torch.ones(100), 3, 7)
    wav = torch.randn(2_000, generator=torch.Generator().manual_seed(0)).requires_grad_()
    mel_spectrogram(resample_sinc(wav, 3, 7), num_mels=7).sum().backward()
    assert wav.grad.isfinite().all() and wav.grad.abs().sum() > 0


@pytest.mark.parametrize("length", [0, 720])
def test_s3gen_mel_refuses_short_audio(length):
    with pytest.raises(ValueError, match=f"audio has {length} samples, fewer than 721"):
        mel_spectrogram(torch.ones(length))


def test_s3gen_mel_floor():
    assert torch.equal(mel_spectrogram(torch.zeros(4_800)), torch.full((1, 80, 10), 1e-5).log())


@pytest.mark.parametrize("rates", [(24_000, 16_000), (16_000, 24_000)])
def test_a_mel_does_not_depend_on_which_rate_came_first(rates):
    """Upstream keeps one filter bank for all rates and sizes with the same upper edge."""
    wav = torch.from_numpy(np.random.default_rng(0).standard_normal(4_800).astype(np.float32))
    for rate in rates:
        spectrum = torch.stft(
            torch.nn.functional.pad(wav[None, None], (432, 432), mode="reflect")[0],
            1024, 160, window=torch.hann_window(1024), center=False, return_complex=True,
        ).abs()  # fmt: skip
        expected = (mel_filters(rate, 1024, 40, 0.0, 8000.0) @ spectrum).clamp_min(1e-5).log()
        mel = mel_spectrogram(wav, 1024, 40, rate, 160, 1024, fmax=8000)
        torch.testing.assert_close(mel, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("length", [721, 960, 24_001])
def test_s3gen_mel_frames(length):
    assert mel_spectrogram(np.ones(length, np.float64)).shape == (1, 80, length // 480)


def test_import_is_light():
    heavy = "{'librosa', 'soundfile', 'soxr', 'numba', 'scipy', 'torchaudio'}"
    code = f"import sys, chatterbox.audio.recordings; assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
