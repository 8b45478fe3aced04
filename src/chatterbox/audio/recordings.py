"""Reading reference recordings, and the signal processing that several models share.

Owns: decoding and validating what a user gives as a voice sample, both resamplers of the reference path, silence
trimming and Slaney mel filters. soundfile and soxr are called directly, and imported where they are used: librosa, that
wraps the same two libraries, costs seconds to import.
Does not know: the models, nor how much of a recording each of them reads.
"""

from __future__ import annotations

import math
import os
from functools import cache
from typing import BinaryIO

import numpy as np
import torch
import torch.nn.functional as F

MIN_REFERENCE_SECONDS = 0.1
_SILENT_PEAK = 1e-4  # -80 dB below full scale
_LOUDEST_PEAK = 64.0  # beyond this a float signal is on an integer scale
_RESAMPLER_MARGIN = 1.0  # seconds read past a cut, so that resampling sees what follows
_BLOCK_FRAMES = 1 << 18
_MEL_KNEE_HZ, _MEL_KNEE, _MEL_LOG_STEP = 1000.0, 15.0, math.log(6.4) / 27  # linear below the knee, logarithmic above


def load_reference(
    audio: str | os.PathLike[str] | BinaryIO | np.ndarray | torch.Tensor,
    sample_rate: int,
    *,
    source_rate: int | None = None,
    max_seconds: float | None = None,
) -> np.ndarray:
    """Reference recording as mono float32 samples (L,) at ``sample_rate``, equal to ``librosa.load(sr=sample_rate)``.

    ``audio`` is a file, or samples at ``source_rate`` (``sample_rate`` if None): (L,), (C, L) or (L, C), floats on
    -1..1 or integers on their full scale. ``max_seconds`` keeps the beginning only, and reads no more than that.

    Raises:
        FileNotFoundError: no such file.
        TypeError: samples that are neither real numbers nor a file.
        ValueError: not audio, empty, shorter than 0.1 s, silent, or samples that are NaN, infinite or out of scale.
    """
    limit = None if max_seconds is None else max_seconds + _RESAMPLER_MARGIN
    if isinstance(audio, (np.ndarray, torch.Tensor)):
        name = "reference audio"
        rate = sample_rate if source_rate is None else source_rate
        if rate <= 0:
            raise ValueError(f"source_rate must be above 0 Hz, got {rate!r}; give the rate of the recording")
        wav = _mono(_scaled(audio))[: None if limit is None else round(limit * rate)]
    elif isinstance(audio, (str, os.PathLike)) or hasattr(audio, "read"):
        name = "reference audio" + (f" {os.fspath(audio)!r}" if isinstance(audio, (str, os.PathLike)) else "")
        wav, rate = _read_file(audio, name, limit)
    else:
        raise TypeError(f"reference audio must be a path, a file or an array of samples, got {type(audio).__name__}")
    _check_recording(wav, rate, name)
    wav = resample_hq(wav, rate, sample_rate)
    return wav if max_seconds is None else wav[: round(max_seconds * sample_rate)]


def resample_hq(wav: np.ndarray, source_rate: int, target_rate: int) -> np.ndarray:
    """Resample (L,) to (ceil(L * target / source),) with soxr's high quality, as ``librosa.resample`` does."""
    if source_rate == target_rate:
        return wav
    import soxr

    length = math.ceil(len(wav) * (target_rate / source_rate))
    resampled = soxr.resample(wav, source_rate, target_rate, quality="soxr_hq")[:length]
    return np.pad(resampled, (0, length - len(resampled)))


def resample_sinc(wav: torch.Tensor, source_rate: int, target_rate: int) -> torch.Tensor:
    """Resample (..., L) to (..., ceil(L * target / source)) by a Hann-windowed sinc, differentiably.

    The same filter as ``torchaudio.transforms.Resample`` with its defaults: 6 zero crossings, roll-off 0.99.
    """
    if source_rate == target_rate:
        return wav
    divisor = math.gcd(source_rate, target_rate)
    source, target = source_rate // divisor, target_rate // divisor
    kernel, width = _sinc_kernel(source, target)
    padded = F.pad(wav.reshape(-1, 1, wav.shape[-1]), (width, width + source))
    phases = F.conv1d(padded, kernel.to(wav), stride=source)  # (B, target, frames)
    length = math.ceil(target * wav.shape[-1] / source)
    return phases.transpose(1, 2).flatten(1)[:, :length].reshape(*wav.shape[:-1], length)


def trim_silence(wav: torch.Tensor, top_db: float) -> tuple[torch.Tensor, tuple[int, int]]:
    """Cut from both ends of (L,) what is ``top_db`` below the loudest frame, as ``librosa.effects.trim`` does.

    Frames are of 2048 samples, every 512, centred. Returns the part kept and its start and end sample.
    """
    frame, hop = 2048, 512
    centred = F.pad(wav.float().square()[None], (frame // 2, frame // 2))
    power = F.avg_pool1d(centred, frame, hop)[0].clamp_min(1e-10)  # (1 + L // hop,)
    loud = (power > power.max() * 10 ** (-top_db / 10)).nonzero()
    start, end = int(loud[0]) * hop, min(len(wav), (int(loud[-1]) + 1) * hop)
    return wav[start:end], (start, end)


@cache
@torch.inference_mode(False)  # what is cached must serve training too
def mel_filters(
    sample_rate: int, n_fft: int, num_mels: int, fmin: float = 0.0, fmax: float | None = None
) -> torch.Tensor:
    """Slaney mel filters (num_mels, n_fft // 2 + 1), the values of ``librosa.filters.mel``. Shared: do not write."""
    top = sample_rate / 2 if fmax is None else fmax
    edges = _mel_to_hz(np.linspace(_hz_to_mel(fmin), _hz_to_mel(top), num_mels + 2))[:, None]
    bins = np.fft.rfftfreq(n_fft, 1 / sample_rate)[None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    triangles = np.maximum(0, np.minimum(rising, falling)).astype(np.float32)
    return torch.from_numpy((triangles * (2 / (edges[2:] - edges[:-2]))).astype(np.float32))


def _hz_to_mel(hz: float) -> float:
    if hz < _MEL_KNEE_HZ:
        return hz * _MEL_KNEE / _MEL_KNEE_HZ
    return _MEL_KNEE + math.log(hz / _MEL_KNEE_HZ) / _MEL_LOG_STEP


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    above = _MEL_KNEE_HZ * np.exp(_MEL_LOG_STEP * (mel - _MEL_KNEE))
    return np.where(mel < _MEL_KNEE, mel * _MEL_KNEE_HZ / _MEL_KNEE, above)


@cache
@torch.inference_mode(False)
def _sinc_kernel(source: int, target: int) -> tuple[torch.Tensor, int]:
    """Filter bank (target, 1, 2 * width + source) of coprime rates, one filter per output phase, and its half width."""
    zero_crossings = 6
    cutoff = 0.99 * min(source, target)
    width = math.ceil(zero_crossings * source / cutoff)
    taps = torch.arange(-width, width + source, dtype=torch.float64, device="cpu") / source
    phases = torch.arange(target, dtype=torch.float32, device="cpu")[:, None, None] / target  # as in torchaudio
    x = ((taps - phases) * cutoff).clamp(-zero_crossings, zero_crossings)
    window = torch.cos(x * (math.pi / zero_crossings / 2)).square()
    return (torch.sinc(x) * window * (cutoff / source)).float(), width


def _read_file(file: str | os.PathLike[str] | BinaryIO, name: str, seconds: float | None) -> tuple[np.ndarray, int]:
    """Mono samples and rate of a file, its first ``seconds`` only if given; mixed down block by block."""
    import soundfile

    if isinstance(file, (str, os.PathLike)):
        if not os.path.exists(file):
            raise FileNotFoundError(f"{name} does not exist; give the path of an audio file")
        if os.path.isdir(file):
            raise ValueError(f"{name} is a folder; give the path of an audio file")
    try:
        with soundfile.SoundFile(file) as source:
            frames = -1 if seconds is None else min(source.frames, round(seconds * source.samplerate))
            blocks = source.blocks(_BLOCK_FRAMES, frames=frames, dtype="float32", always_2d=True)
            wav = [_mixed(block.T) for block in blocks]
            return np.concatenate(wav or [np.zeros(0, np.float32)]), source.samplerate
    except (soundfile.SoundFileError, TypeError) as error:
        decoded = _decode_other(file, seconds) if isinstance(file, (str, os.PathLike)) else None
        if decoded is None:
            raise ValueError(f"{name} cannot be read as audio ({error}); convert it to WAV or FLAC") from error
        return decoded


def _decode_other(path: str | os.PathLike[str], seconds: float | None) -> tuple[np.ndarray, int] | None:
    """Formats that soundfile lacks (m4a, aac), through whatever audioread finds on the machine; None if nothing can."""
    try:
        import audioread
    except ImportError:
        return None
    try:
        with audioread.audio_open(os.fspath(path)) as source:
            rate, channels, data = source.samplerate, source.channels, bytearray()
            for block in source:
                data += block
                if seconds is not None and len(data) >= 2 * channels * seconds * rate:
                    break
    except (audioread.DecodeError, EOFError, OSError):
        return None
    samples = np.frombuffer(bytes(data[: len(data) // (2 * channels) * 2 * channels]), "<i2")
    return _mixed(_scaled(samples.reshape(-1, channels)).T), rate


def _scaled(samples: np.ndarray | torch.Tensor) -> np.ndarray:
    """Float32 samples on -1..1; integers are divided by their type's full scale."""
    if isinstance(samples, torch.Tensor):
        samples = samples.detach().cpu()
        samples = (samples.float() if samples.is_floating_point() else samples).numpy()
    if samples.dtype.kind == "f":
        return samples.astype(np.float32)
    if samples.dtype.kind not in "iu":
        raise TypeError(f"reference audio must hold real numbers, got {samples.dtype}; use float32 on -1..1 or int16")
    full_scale = 2.0 ** (8 * samples.dtype.itemsize - 1)
    offset = full_scale if samples.dtype.kind == "u" else 0.0
    return ((samples - offset) / full_scale).astype(np.float32)


def _mono(samples: np.ndarray) -> np.ndarray:
    """(L,) of (L,), (C, L) or (L, C); the shorter axis holds the channels."""
    if samples.ndim == 1 or not samples.size:
        return samples.reshape(-1)
    if samples.ndim != 2:
        raise ValueError(f"reference audio must be (L,), (C, L) or (L, C), got {samples.shape}; give one recording")
    return _mixed(samples if samples.shape[0] <= samples.shape[1] else samples.T)


def _mixed(channels: np.ndarray) -> np.ndarray:
    """(L,) of (C, L)."""
    return channels[0] if len(channels) == 1 else channels.mean(axis=0)


def _check_recording(wav: np.ndarray, rate: int, name: str) -> None:
    if not len(wav):
        raise ValueError(f"{name} is empty; give 5 to 10 seconds of clear speech")
    if len(wav) < MIN_REFERENCE_SECONDS * rate:
        raise ValueError(
            f"{name} lasts {len(wav) / rate:.3f} s, shorter than {MIN_REFERENCE_SECONDS:g} s; "
            "give 5 to 10 seconds of clear speech"
        )
    low, high = float(wav.min()), float(wav.max())
    if not math.isfinite(low) or not math.isfinite(high):
        raise ValueError(f"{name} has {int((~np.isfinite(wav)).sum())} NaN or infinite samples; export it again")
    if high - low < 2 * _SILENT_PEAK:
        raise ValueError(f"{name} is silent (peak {max(high, -low):.1e}); give 5 to 10 seconds of clear speech")
    if max(high, -low) > _LOUDEST_PEAK:
        raise ValueError(f"{name} has a peak of {max(high, -low):g}; scale floating-point samples to -1..1")
