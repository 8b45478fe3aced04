"""Every form that a recording may have, whose rate counts, and what is made of damaged and malicious files."""

from __future__ import annotations

import asyncio
import io
import os
import struct
import subprocess
import sys
import threading

import numpy as np
import pytest
import soundfile
import torch

from chatterbox.audio.recordings import (
    CONVERSION,
    LIBRARY,
    VOICE,
    Recording,
    checked_rate,
    load_reference,
    rates_of,
    resample_hq,
)

RATE = 16_000
SAMPLES = (0.3 * np.sin(2 * np.pi * 220 * np.arange(RATE) / RATE)).astype(np.float32)
AT_24 = resample_hq(SAMPLES, RATE, 24_000)


def encoded(samples: np.ndarray = SAMPLES, rate: int = RATE, **options) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, **{"format": "WAV", "subtype": "FLOAT", **options})
    return file.getvalue()


# Forms


STEREO = np.stack([SAMPLES, SAMPLES])
FORMS = {
    "rate first": (RATE, SAMPLES),
    "rate last": (SAMPLES, RATE),
    "a list": [RATE, SAMPLES],
    "a tensor and its rate": (torch.from_numpy(SAMPLES)[None], RATE),
    "a numpy rate": (np.int64(RATE), SAMPLES),
    "a tensor's rate": (torch.tensor(RATE), SAMPLES),
    "a rate from a form": ("16000", SAMPLES),
    "ComfyUI's dict": {"waveform": torch.from_numpy(STEREO)[None], "sample_rate": RATE},
    "a row of datasets": {"path": "nobody.wav", "array": SAMPLES.astype(np.float64), "sampling_rate": RATE},
    "transformers' dict": {"audio": SAMPLES[None], "sampling_rate": RATE},
    "a dict of a list": {"array": SAMPLES.tolist(), "sampling_rate": RATE},
    "an undecoded row": {"bytes": encoded(), "path": None},
    "bytes": encoded(),
    "a bytearray": bytearray(encoded()),
    "memory": memoryview(encoded()),
    "a file object": io.BytesIO(encoded()),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_form_that_knows_its_rate_is_read_at_it(form):
    np.testing.assert_allclose(load_reference(form, 24_000), AT_24, atol=1e-6)
    np.testing.assert_allclose(load_reference(form, 24_000, source_rate=RATE), AT_24, atol=1e-6)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_rate_that_contradicts_the_recording_is_refused(form):
    with pytest.raises(ValueError, match=r"reference audio is at 16000 Hz, not sample_rate=8000; leave that out"):
        load_reference(form, 24_000, source_rate=8_000)


@pytest.mark.parametrize("shape", [(-1,), (1, -1), (-1, 1), (1, 1, -1), (1, -1, 1)])
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy, lambda samples: {"samples": samples}])
def test_samples_alone_are_at_24_khz_or_at_the_given_rate(shape, kind):
    samples = kind(SAMPLES.reshape(shape))
    for purpose in (VOICE, LIBRARY, CONVERSION):
        np.testing.assert_array_equal(load_reference(samples, 24_000, purpose=purpose), SAMPLES)
        np.testing.assert_array_equal(load_reference(samples, 24_000, source_rate=RATE, purpose=purpose), AT_24)


def test_the_rate_of_a_call_is_of_the_recordings_that_lack_one():
    bare, own = SAMPLES, (RATE, SAMPLES)
    assert rates_of([bare, own, None], 8_000) == [8_000, None, None]
    assert rates_of([bare, own, None], None) == [None, None, None]
    assert rates_of([own, "a.wav"], "8000") == [8_000, 8_000]  # which the recordings then check
    with pytest.raises(ValueError, match=r"sample_rate=8000 is of a recording, and none is given; speech is made"):
        rates_of([None], 8_000.0)


@pytest.mark.parametrize("rate", [RATE, "16000", 16_000.0, np.float32(RATE), torch.tensor(RATE)])
def test_a_rate_is_any_number_that_is_whole(rate):
    assert checked_rate(rate) == RATE and type(checked_rate(rate)) is int


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (
            {"speaker": "Ada"},
            r"is a dict of speaker; it needs samples \(waveform, array, samples, audio, raw\)",
        ),
        ({}, "is a dict of nothing; it needs samples"),
        ((SAMPLES, SAMPLES), "must be a path, a file, bytes of a file, an array of samples, .* got tuple"),
        (("a.wav", RATE), "must be a path, .* got tuple"),
        ({"sample_rate": RATE, "audio": 5}, "must be a path, .* got tuple"),
        (io.StringIO("hello"), "is a file open as text; open it in binary mode"),
    ],
)
def test_what_is_no_recording_is_named(audio, message):
    with pytest.raises(TypeError, match=f"recording of the new voice {message}"):
        load_reference(audio, 24_000, purpose=LIBRARY)


def test_a_file_that_reads_asynchronously_is_named():
    class Upload:
        async def read(self):
            return encoded()

    async def ask():
        with pytest.raises(TypeError, match=r"is a file that reads coroutine, not bytes; open it in binary mode"):
            Recording(Upload())

    asyncio.run(ask())


# Files that stand anywhere


def test_a_file_is_read_from_its_beginning_wherever_it_stands(tmp_path):
    (tmp_path / "a.wav").write_bytes(encoded())
    with open(tmp_path / "a.wav", "rb") as file:
        for place in (0, 100, None):
            file.seek(0, os.SEEK_END) if place is None else file.seek(place)
            np.testing.assert_array_equal(load_reference(file, RATE), SAMPLES)


def test_what_can_be_read_only_once_is_read_once(tmp_path):
    class Response:
        def __init__(self):
            self.content = encoded()

        def read(self):
            content, self.content = self.content, b""
            return content

    recording = Recording(Response())
    for _ in range(2):
        np.testing.assert_array_equal(recording.load(RATE), SAMPLES)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_named_pipe_is_read_to_its_end(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(encoded(),))
    writer.start()
    np.testing.assert_array_equal(load_reference(tmp_path / "pipe", RATE), SAMPLES)
    writer.join()


# Channels


@pytest.mark.parametrize("arrange", [lambda s: (RATE, s.T), lambda s: (RATE, s), encoded])
def test_channels_that_cancel_each_other_are_one_channel(arrange):
    stereo = np.stack([0.5 * SAMPLES, -0.5001 * SAMPLES], axis=1) + np.float32(0.01)
    recording = Recording(arrange(stereo), purpose=CONVERSION)
    np.testing.assert_allclose(recording.load(RATE), stereo[:, 1], atol=1e-7)
    survey = recording.survey()
    assert survey.channel == 1 and not survey.is_silent
    np.testing.assert_allclose(np.concatenate(list(recording.resampled(survey, RATE))), stereo[:, 1], atol=1e-7)


def test_channels_that_do_not_cancel_are_mixed():
    other = np.roll(SAMPLES, 10) * np.float32(-0.8)
    np.testing.assert_array_equal(load_reference((np.stack([SAMPLES, other]), RATE), RATE), (SAMPLES + other) / 2)


def test_a_quiet_antiphase_recording_is_silent_still():
    with pytest.raises(ValueError, match=r"is silent \(peak 3\.0e-06\)"):
        load_reference((RATE, 1e-5 * np.stack([SAMPLES, -SAMPLES])), RATE)


# Damaged files


@pytest.mark.parametrize("name", ["MP3", "FLAC"])
def test_of_a_file_that_was_cut_off_what_is_whole_is_used(name, caplog):
    subtype = {"MP3": "MPEG_LAYER_III", "FLAC": "PCM_16"}[name]
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, 24_000 * 4).astype(np.float32)
    try:
        whole = encoded(noise, 24_000, format=name, subtype=subtype)
    except (ValueError, soundfile.SoundFileError):
        pytest.skip(f"this libsndfile writes no {name}")
    cut = load_reference(whole[: len(whole) // 2], 24_000)
    assert 1.6 < len(cut) / 24_000 <= 2.1
    used = len(cut) - 4_096  # the last block may be half a frame
    np.testing.assert_array_equal(cut[:used], load_reference(whole, 24_000)[:used])
    assert "reference audio was cut off or is damaged: its first " in caplog.text


def test_a_header_of_length_zero_is_named(tmp_path):
    wav = bytearray(encoded(subtype="PCM_16"))
    place = wav.index(b"data") + 4
    wav[place : place + 4] = struct.pack("<I", 0)
    (tmp_path / "a.wav").write_bytes(wav)
    for form in (tmp_path / "a.wav", bytes(wav)):
        with pytest.raises(ValueError, match=rf"has {len(wav)} bytes, but its header says length 0 or it was cut off"):
            load_reference(form, 24_000)


def test_a_header_of_unknown_length_is_read_to_its_end():
    wav = bytearray(encoded(subtype="PCM_16"))
    place = wav.index(b"data") + 4
    wav[4:8] = wav[place : place + 4] = b"\xff" * 4  # as programs write that do not know yet
    assert len(load_reference(bytes(wav), RATE)) == RATE


# Limits


@pytest.mark.parametrize("rate", [1, 3_999, 768_001])
def test_a_rate_that_no_recording_has_is_refused(rate):
    wav = bytearray(encoded(subtype="PCM_16")[:2_048])
    wav[24:28] = struct.pack("<I", rate)
    with pytest.raises(ValueError, match=rf"says that it is at {rate} Hz, outside 4000 to 768000 Hz: its header"):
        load_reference(bytes(wav), 24_000)


@pytest.mark.parametrize(("rate", "seconds"), [(8_000, 300.0), (96_000, 301 / 2)])
def test_a_voice_is_made_of_the_first_minutes(rate, seconds, caplog):
    samples = np.tile(SAMPLES, int(310 * rate / len(SAMPLES)))
    assert len(load_reference((rate, samples), 8_000)) == round(seconds * 8_000)
    assert "is longer than" in caplog.text


def test_more_than_four_hours_are_not_converted():
    class Long(Recording):
        """Five hours of a block that is made once."""

        def _array_blocks(self, samples):
            yield from [samples[None]] * 5 * 3600

    with pytest.raises(ValueError, match=r"recording to convert lasts more than 4 hours; .* in parts"):
        Long((SAMPLES, RATE), purpose=CONVERSION).survey()


def test_an_hour_of_silence_in_flac_takes_little_memory(tmp_path):
    """115 MB of samples at 8 kHz, three times that at 24 kHz."""
    path = tmp_path / "silent.flac"
    with soundfile.SoundFile(path, "w", 8_000, 1, format="FLAC", subtype="PCM_16") as file:
        for _ in range(360):
            file.write(np.zeros((80_000, 1), np.int16))
    assert path.stat().st_size < 1_000_000
    code = """
import resource, sys
from chatterbox.audio.recordings import load_reference
import soundfile, soxr
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    load_reference(sys.argv[1], 24_000)
except ValueError as error:
    assert "is silent" in str(error), error
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 80 * 1024  # KiB: what is used, 301 s, is 9 MiB


# What a message calls the recording


@pytest.mark.parametrize(
    ("purpose", "message"),
    [
        (VOICE, r"reference audio is empty; give 5 to 10 seconds of clear speech"),
        (LIBRARY, r"recording of the new voice is empty; give 5 to 10 seconds of clear speech"),
        (CONVERSION, r"recording to convert is empty; give the speech that another voice shall say"),
    ],
)
def test_messages_speak_of_the_purpose(purpose, message):
    with pytest.raises(ValueError, match=message):
        load_reference(np.zeros(0, np.float32), 24_000, purpose=purpose)


# Block by block


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_blocks_are_what_is_loaded_at_once(rate):
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, (rate * 5, 2)).astype(np.float32)
    for form in ((rate, noise), encoded(noise, rate)):
        recording = Recording(form, purpose=CONVERSION)
        survey = recording.survey()
        blocks = list(recording.resampled(survey, RATE))
        assert max(map(len, blocks)) < 2 * RATE * 5
        assert sum(map(len, blocks)) == survey.num_samples_at(RATE) == 5 * RATE
        np.testing.assert_allclose(np.concatenate(blocks), recording.load(RATE), atol=1e-6)


# Arrays and tensors as they may be stored


LAYOUTS = {
    "big endian": SAMPLES.astype(">f4"),
    "long double": SAMPLES.astype(np.longdouble),
    "backwards in memory": SAMPLES[::-1].copy()[::-1],
    "a matrix": SAMPLES.view(np.matrix),
    "a masked array": np.ma.masked_array(SAMPLES),
    "a mirrored tensor": torch.from_numpy(-SAMPLES)._neg_view(),
    "with a gradient": torch.from_numpy(SAMPLES).requires_grad_(),
}


@pytest.mark.parametrize("samples", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.filterwarnings("error")
def test_samples_are_read_however_they_are_stored(samples):
    recording = Recording((RATE, samples))
    np.testing.assert_array_equal(recording.load(RATE), SAMPLES)
    assert sum(map(len, recording.content())) > SAMPLES.nbytes


def test_samples_that_may_only_be_read_need_no_warning(recwarn):
    samples = SAMPLES.copy()
    samples.setflags(write=False)
    assert b"".join(Recording((RATE, samples)).content()) == b"".join(Recording((RATE, SAMPLES)).content())
    assert not recwarn.list


@pytest.mark.parametrize(
    ("kind", "make"),
    [("meta", lambda: torch.empty(RATE, device="meta")), ("sparse_coo", lambda: torch.ones(RATE).to_sparse())],
)
def test_a_tensor_without_plain_values_is_named(kind, make):
    with pytest.raises(TypeError, match=f"recording to convert is a {kind} tensor; give a dense one, with values"):
        load_reference((RATE, make()), RATE, purpose=CONVERSION)


def test_channels_of_several_lengths_are_named():
    with pytest.raises(ValueError, match="reference audio has channels of several lengths; give as many samples"):
        load_reference({"array": [[0.1, 0.2], [0.1]], "sampling_rate": RATE}, RATE)
    pair = {"array": (SAMPLES.tolist(), SAMPLES.tolist()), "sampling_rate": RATE}
    np.testing.assert_array_equal(load_reference(pair, RATE), SAMPLES)


def test_of_samples_no_more_is_read_than_is_used():
    """Ten hours that take four bytes."""
    samples = np.broadcast_to(np.float32(0.5), 36_000 * RATE)
    assert sum(map(len, Recording((RATE, samples)).content())) < 302 * RATE * 4


# Files that are no files, or in a state to be told of


@pytest.mark.skipif(os.name != "posix", reason="devices and names of POSIX")
def test_devices_are_read_to_their_end():
    with pytest.raises(ValueError, match="reference audio cannot be read as audio"):
        load_reference(os.devnull, RATE)


def test_a_closed_file_and_one_for_writing_are_named(tmp_path):
    with open(tmp_path / "a.wav", "wb") as file, pytest.raises(TypeError, match="is a file open for writing alone; op"):
        Recording(file)
    with pytest.raises(ValueError, match=r"reference audio is a file that was closed; open it again"):
        Recording(file)


def test_a_file_that_does_not_tell_whether_it_can_be_rewound_is():
    """As SpooledTemporaryFile, what web servers give, before Python 3.11."""

    class Spooled:
        def __init__(self):
            self._file = io.BytesIO(encoded())
            self.read, self.seek = self._file.read, self._file.seek

    file = Spooled()
    file.read()
    np.testing.assert_array_equal(load_reference(file, RATE), SAMPLES)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have names in Unicode alone")
def test_a_name_that_is_no_unicode(tmp_path):
    path = tmp_path / "a\udcff.wav"
    path.write_bytes(encoded())
    np.testing.assert_array_equal(load_reference(path, RATE), SAMPLES)


@pytest.mark.parametrize("form", ["WAV", "AIFF", "AU", "RF64", "OGG"])
def test_what_lacks_its_end_is_told_of(form, caplog):
    """Of these libsndfile counts what is there, whatever the header promises."""
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, RATE * 4).astype(np.float32)
    whole = encoded(noise, format=form, subtype="VORBIS" if form == "OGG" else "PCM_16")
    load_reference(whole, RATE)
    assert not caplog.records
    assert 0.5 * RATE < len(load_reference(whole[: len(whole) // 2], RATE)) < 2.1 * RATE
    assert "reference audio was cut off or is damaged: its first " in caplog.text


@pytest.mark.parametrize("length", [0x7FFFF000, 0x7FFFFFFF, 0xFFFFFFFF])
def test_what_was_written_to_a_pipe_does_not_lack_its_end(length, caplog):
    wav = bytearray(encoded(subtype="PCM_16"))
    place = wav.index(b"data") + 4
    wav[place : place + 4] = struct.pack("<I", length)
    assert len(load_reference(bytes(wav), RATE)) == RATE and not caplog.records


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("wrong", [1e300, np.inf, np.nan])
def test_what_is_no_sample_is_one_error_and_no_warning(wrong):
    samples = np.stack([SAMPLES, SAMPLES]).astype(np.float64)
    samples[1, 5] = wrong
    for purpose in (VOICE, CONVERSION):
        with pytest.raises(ValueError, match="has 1 NaN or infinite samples; export it again"):
            load_reference((RATE, samples), RATE, purpose=purpose)
