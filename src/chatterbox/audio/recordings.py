"""Where a recording enters: any form that it may have, and the signal processing that several models share.

Owns: what a user may give as a recording, whose rate counts, limits and their messages, one channel of several, both
resamplers of the reference path, silence trimming and Slaney mel filters. soxr is imported where it is used.
Does not know: the models, nor how much of a recording each of them reads; how files are decoded (`audio.decoding`).
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, BinaryIO

import numpy as np
import torch
import torch.nn.functional as F

from chatterbox.audio.decoding import AudioFile, can_be_rewound, decoder, read_once, why_empty
from chatterbox.values import shown, whole_of

logger = logging.getLogger(__name__)

AudioInput = (
    str
    | os.PathLike[str]
    | BinaryIO
    | bytes
    | np.ndarray
    | torch.Tensor
    | Mapping[str, Any]
    | tuple[int, np.ndarray | torch.Tensor]
    | tuple[np.ndarray | torch.Tensor, int]
)

DEFAULT_RATE = 24_000  # of samples that nobody named the rate of: that of all speech from here
MIN_RATE, MAX_RATE = 4_000, 768_000
MIN_REFERENCE_SECONDS = 0.1
_MAX_SAMPLES = 301 * 48_000  # that are decoded of a voice, at its own rate
_SILENT_PEAK = 1e-4  # -80 dB below full scale
_LOUDEST_PEAK = 64.0  # beyond this a float signal is on an integer scale
_CANCELLED = 1e-3  # of the channels' power is left in their mean
_RESAMPLER_MARGIN = 1.0  # seconds read past a cut, so that resampling sees what follows
_BLOCK_FRAMES = 1 << 16
_CONTENT_BYTES, _MAX_CONTENT_BYTES = 1 << 20, 1 << 30  # of a file that are read at once, and at most
_SAMPLES_KEYS = ("waveform", "array", "samples", "audio", "raw")
_RATE_KEYS = ("sample_rate", "sampling_rate", "rate", "sr")
_FILE_KEYS = ("bytes", "path")
_FORMS = "a path, a file, bytes of a file, an array of samples, (rate, samples) or a dict of both"
_MEL_KNEE_HZ, _MEL_KNEE, _MEL_LOG_STEP = 1000.0, 15.0, math.log(6.4) / 27  # linear below the knee, logarithmic above


@dataclass(frozen=True)
class Purpose:
    """What a recording is for: what messages call it and advise, how much of it is used, whether longer is refused."""

    name: str
    advice: str
    max_seconds: float
    may_be_cut: bool = True


VOICE = Purpose("reference audio", "give 5 to 10 seconds of clear speech", 300)
LIBRARY = Purpose("recording of the new voice", VOICE.advice, 300)
CONVERSION = Purpose("recording to convert", "give the speech that another voice shall say", 4 * 3600, may_be_cut=False)


def load_reference(
    audio: AudioInput,
    sample_rate: int,
    *,
    source_rate: int | None = None,
    max_seconds: float | None = None,
    purpose: Purpose = VOICE,
) -> np.ndarray:
    """Recording as mono float32 samples (L,) at ``sample_rate``, equal to ``librosa.load(sr=sample_rate)``.

    ``audio`` and ``source_rate`` are `Recording`'s. ``max_seconds`` keeps the beginning only, and decodes no more than
    that; None is what ``purpose`` allows.

    Raises:
        FileNotFoundError: no such file.
        TypeError: nothing that a recording may be.
        ValueError: not audio, empty, shorter than 0.1 s, silent, at a rate that no recording has, or samples that are
            NaN, infinite or out of scale.
    """
    return Recording(audio, source_rate, purpose).load(sample_rate, max_seconds)


class Recording:
    """A recording in any accepted form: its samples in one channel, at one rate, as often as wanted.

    A file or bytes of one have a rate, as have (rate, samples), (samples, rate) and a dict with both. Samples alone are
    at ``sample_rate``, 24 kHz if that is None. Samples are (L,), (C, L), (L, C), (1, C, L) or (1, L, C), floats on
    -1..1 or integers on their full scale. Channels are mixed; where they cancel each other the loudest one counts.
    """

    def __init__(self, audio: AudioInput, sample_rate: Any = None, purpose: Purpose = VOICE) -> None:
        """Raises:
        TypeError, ValueError: nothing that a recording may be, or ``sample_rate`` contradicts it.
        """
        self.purpose, self.name = purpose, purpose.name
        self._given_rate = None if sample_rate is None else checked_rate(sample_rate)
        self.audio, rate = unwrapped(audio, self._given_rate, purpose)
        self._rate = DEFAULT_RATE if rate is None else rate  # of samples
        if isinstance(self.audio, (str, os.PathLike)):
            self.name += f" {os.fspath(self.audio)!r}"
        self._was_cut = False

    def load(self, sample_rate: int, max_seconds: float | None = None) -> np.ndarray:
        """As `load_reference`."""
        most = self.purpose.max_seconds if max_seconds is None else max_seconds
        mix = _Mix()
        parts, rate = self._mixed(mix, most)
        if mix.loudest is not None:
            mix = _Mix(mix.loudest)
            parts, rate = self._mixed(mix, most)
        wav = np.concatenate(parts or [np.zeros(0, np.float32)])
        self._check(mix, rate)
        if mix.is_silent:
            raise ValueError(f"{self.name} is silent (peak {mix.peak:.1e}); {self.purpose.advice}")
        if max_seconds is None and (mix.num_samples > most * rate or mix.num_samples == _MAX_SAMPLES):
            most = min(most, mix.num_samples / rate)
            logger.warning("%s is longer than %.0f s; what follows is not used", self.purpose.name, most)
        return resample_hq(wav, rate, sample_rate)[: round(most * sample_rate)]

    def content(self) -> Iterator[bytes]:
        """What the result of `load` depends on: of samples those that are used, of a file all that is in it.

        Raises:
            OSError, ValueError: it cannot be read, or is a file of more than 1 GiB.
        """
        if isinstance(self.audio, (np.ndarray, torch.Tensor)):
            kind = str(self.audio.dtype).removeprefix("torch.")
            yield f"{tuple(self.audio.shape)} {kind} {self._rate};".encode()
            with self._opened(self.purpose.max_seconds, _MAX_SAMPLES) as (_, blocks):
                yield from (block.tobytes() for block in blocks)
            return
        with contextlib.ExitStack() as held:
            file = self.audio
            if isinstance(file, (str, os.PathLike)):
                file = held.enter_context(open(file, "rb"))
            if file.seek(0, os.SEEK_END) > _MAX_CONTENT_BYTES:
                raise ValueError(f"{self.name} has more than {_MAX_CONTENT_BYTES} bytes; give a part of it")
            file.seek(0)
            yield f"file {self._given_rate};".encode()
            yield from iter(partial(file.read, _CONTENT_BYTES), b"")

    def again(self) -> AudioInput:
        """What can be given in its place, as often as wanted: an open file from its beginning, samples with a rate."""
        if isinstance(self.audio, (np.ndarray, torch.Tensor)):
            return self._rate, self.audio
        if not isinstance(self.audio, (str, os.PathLike)):
            self.audio.seek(0)
        return self.audio

    def survey(self) -> Survey:
        """What all of it is like; raises as `load`, but for silence, and where ``purpose`` refuses so much."""
        mix, most = _Mix(), self.purpose.max_seconds
        with self._opened(most) as (rate, blocks):
            for block in blocks:
                mix.take(block)
        self._check(mix, rate)
        if mix.num_samples > most * rate:
            raise ValueError(f"{self.name} lasts more than {most / 3600:g} hours; {self.purpose.advice} in parts")
        return Survey(rate, mix.num_samples, mix.is_silent, mix.loudest)

    def resampled(self, survey: Survey, sample_rate: int) -> Iterator[np.ndarray]:
        """All of it as `load` has it, (n,) by (n,)."""
        import soxr

        stream = soxr.ResampleStream(survey.rate, sample_rate, 1, dtype="float32", quality="HQ")
        lacking = survey.num_samples_at(sample_rate)
        with self._opened(self.purpose.max_seconds) as (_, blocks):
            mix = _Mix(survey.channel)
            for block in blocks:
                ready = stream.resample_chunk(mix.take(block), last=False)[:lacking]
                lacking -= len(ready)
                yield ready
        rest = stream.resample_chunk(np.zeros(0, np.float32), last=True)[:lacking]
        yield np.pad(rest, (0, lacking - len(rest)))

    def _mixed(self, mix: _Mix, seconds: float) -> tuple[list[np.ndarray], int]:
        """Its first ``seconds`` in one channel, and their rate."""
        with self._opened(seconds, _MAX_SAMPLES if self.purpose.may_be_cut else None) as (rate, blocks):
            return [mix.take(block) for block in blocks], rate

    @contextmanager
    def _opened(self, seconds: float, most: int | None = None) -> Iterator[tuple[int, Iterator[np.ndarray]]]:
        """The rate, and the samples, float32 (C, n) each: the first ``seconds`` and a bit more, ``most`` at most."""
        if isinstance(self.audio, (np.ndarray, torch.Tensor)):
            yield self._rate, _limited(self._rate, self._array_blocks(self.audio), seconds, most)
            return
        with decoder(self.audio, self.name, self._on_cut) as (rate, blocks):
            if not MIN_RATE <= rate <= MAX_RATE:
                raise ValueError(
                    f"{self.name} says that it is at {rate} Hz, outside {MIN_RATE} to {MAX_RATE} Hz: its header is "
                    "damaged; save it again"
                )
            if self._given_rate not in (None, rate):
                raise ValueError(f"{self.name} is at {rate} Hz, not sample_rate={self._given_rate}; leave that out")
            yield rate, _limited(rate, (block.T for block in blocks), seconds, most)

    def _array_blocks(self, samples: np.ndarray | torch.Tensor) -> Iterator[np.ndarray]:
        shape = tuple(samples.shape)
        if len(shape) == 3 and shape[0] == 1:
            samples = samples[0]
        if samples.ndim not in (1, 2):
            raise ValueError(f"{self.name} must be (L,), (C, L) or (L, C), got {shape}; give one recording")
        if not all(shape):
            return
        if samples.ndim == 1:
            samples = samples[None]
        elif samples.shape[0] > samples.shape[1]:
            samples = samples.T
        for start in range(0, samples.shape[1], _BLOCK_FRAMES):
            yield _scaled(samples[:, start : start + _BLOCK_FRAMES])

    def _on_cut(self, seconds: float) -> None:
        if not self._was_cut:
            self._was_cut = True
            logger.warning("%s was cut off or is damaged: its first %.1f s are used", self.purpose.name, seconds)

    def _check(self, mix: _Mix, rate: int) -> None:
        advice = self.purpose.advice
        if not mix.num_samples:
            why = "" if isinstance(self.audio, (np.ndarray, torch.Tensor)) else why_empty(self.audio)
            raise ValueError(f"{self.name} {why}; save it again" if why else f"{self.name} is empty; {advice}")
        if mix.num_samples < MIN_REFERENCE_SECONDS * rate:
            lasts = f"lasts {mix.num_samples / rate:.3f} s, shorter than {MIN_REFERENCE_SECONDS:g} s"
            raise ValueError(f"{self.name} {lasts}; {advice}")
        if mix.num_bad:
            raise ValueError(f"{self.name} has {mix.num_bad} NaN or infinite samples; export it again")
        if mix.peak > _LOUDEST_PEAK:
            raise ValueError(f"{self.name} has a peak of {mix.peak:g}; scale floating-point samples to -1..1")


@dataclass(frozen=True)
class Survey:
    """What a recording is like: its rate in Hz, its samples at that rate, the one channel to hear (None: all)."""

    rate: int
    num_samples: int
    is_silent: bool
    channel: int | None

    def num_samples_at(self, sample_rate: int) -> int:
        return math.ceil(self.num_samples * (sample_rate / self.rate))


class _Mix:
    """One channel of several, block by block, and what it is like."""

    def __init__(self, channel: int | None = None) -> None:
        """``channel``: this one alone; None is the mean of all."""
        self._channel = channel
        self.num_samples = self.num_bad = 0
        # Of the mean and of each channel, or of the only one.
        self._low, self._high = np.array([math.inf]), np.array([-math.inf])
        self._sum = self._squares = np.zeros(1)

    def take(self, block: np.ndarray) -> np.ndarray:
        """(n,) of (C, n)."""
        if len(block) == 1 or self._channel is not None:
            rows = block[self._channel or 0][None]
        else:
            rows = np.concatenate([block.mean(axis=0)[None], block])
        self._low, self._high = np.minimum(self._low, rows.min(1)), np.maximum(self._high, rows.max(1))
        if len(rows) > 1:
            self._sum = self._sum + rows.sum(1, dtype=np.float64)
            self._squares = self._squares + np.square(rows, dtype=np.float64).sum(1)
        self.num_samples += rows.shape[1]
        self.num_bad += int((~np.isfinite(rows[0])).sum())
        return rows[0].copy()  # a view would keep all channels

    @property
    @np.errstate(invalid="ignore")  # infinite samples are told of
    def loudest(self) -> int | None:
        """The channel that stands for all where they cancel each other, None where they do not."""
        if len(self._sum) == 1:
            return None
        power = self._squares / self.num_samples - (self._sum / self.num_samples) ** 2
        loudest = int(power[1:].argmax())
        return loudest if power[0] < _CANCELLED * power[1 + loudest] else None

    @property
    def peak(self) -> float:
        return float(max(self._high[self._heard], -self._low[self._heard]))

    @property
    def is_silent(self) -> bool:
        return bool(self._high[self._heard] - self._low[self._heard] < 2 * _SILENT_PEAK)

    @property
    def _heard(self) -> int:
        return 0 if self.loudest is None else 1 + self.loudest


def unwrapped(
    audio: AudioInput, sample_rate: Any = None, purpose: Purpose = VOICE
) -> tuple[AudioFile | np.ndarray | torch.Tensor, int | None]:
    """A file that can be read again, or samples, and their rate if one is known; files know theirs.

    Raises:
        TypeError, ValueError: as `Recording`.
    """
    sample_rate = None if sample_rate is None else checked_rate(sample_rate)
    if isinstance(audio, Mapping):
        audio = _of_dict(audio, purpose)
    rate = None
    if (pair := _pair(audio)) is not None:
        rate, audio = checked_rate(pair[0]), pair[1]
        if sample_rate not in (None, rate):
            raise ValueError(f"{purpose.name} is at {rate} Hz, not sample_rate={sample_rate}; leave that out")
    if isinstance(audio, (np.ndarray, torch.Tensor)):
        return _plain(audio, purpose), sample_rate if rate is None else rate
    if isinstance(audio, (bytes, bytearray, memoryview)):
        return io.BytesIO(audio), None
    if hasattr(audio, "read"):
        return can_be_rewound(audio, purpose.name), None
    if isinstance(audio, (str, os.PathLike)):
        if os.path.exists(audio) and not os.path.isfile(audio) and not os.path.isdir(audio):  # a pipe or a device
            with open(audio, "rb") as once:
                return read_once(once, purpose.name), None
        return audio, None
    raise TypeError(f"{purpose.name} must be {_FORMS}, got {type(audio).__name__}")


def rates_of(recordings: Sequence[AudioInput | None], sample_rate: Any) -> list[int | None]:
    """The ``sample_rate`` of a call for each of its recordings: it is of those that are samples without a rate.

    None stands for no recording.

    Raises:
        ValueError: no rate that a recording has, or the call has no recording.
    """
    if sample_rate is None:
        return [None] * len(recordings)
    rate = checked_rate(sample_rate)
    if all(one is None for one in recordings):
        raise ValueError(f"sample_rate={rate} is of a recording, and none is given; speech is made at 24000 Hz")
    lacking = [isinstance(one, (np.ndarray, torch.Tensor)) for one in recordings]
    return [rate if lacks or not any(lacking) else None for lacks in lacking]


def checked_rate(rate: Any) -> int:
    """A rate in Hz, whatever kind of number it is. Raises ValueError for one that no recording has."""
    value = whole_of(rate)
    if value is None or not MIN_RATE <= value <= MAX_RATE:
        wanted = f"{MIN_RATE} to {MAX_RATE} Hz"
        raise ValueError(f"sample_rate must be {wanted}, got {shown(rate)}; give that of the recording")
    return value


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


def _limited(rate: int, blocks: Iterator[np.ndarray], seconds: float, most: int | None) -> Iterator[np.ndarray]:
    """``blocks`` (C, n) as far as they are used: ``seconds`` and what resampling sees behind them."""
    left = round((seconds + _RESAMPLER_MARGIN) * rate)
    left = left if most is None else min(left, most)
    for block in blocks:
        if block.shape[1]:
            yield block[:, :left]
        left -= block.shape[1]
        if left <= 0:
            return


def _pair(audio: Any) -> tuple[Any, np.ndarray | torch.Tensor] | None:
    """Rate and samples of a tuple of both, in either order."""
    if isinstance(audio, (tuple, list)) and len(audio) == 2:
        for rate, samples in (audio, audio[::-1]):
            if isinstance(samples, (np.ndarray, torch.Tensor)) and samples.ndim and np.ndim(rate) == 0:
                return rate, samples
    return None


def _of_dict(audio: Mapping[str, Any], purpose: Purpose) -> Any:
    """(samples, rate) or the file of a dict; samples alone where it has no rate."""
    samples = next((audio[key] for key in _SAMPLES_KEYS if audio.get(key) is not None), None)
    rate = next((audio[key] for key in _RATE_KEYS if audio.get(key) is not None), None)
    if samples is not None:
        if isinstance(samples, (list, tuple)):
            try:
                samples = np.asarray(samples)
            except ValueError:
                raise ValueError(
                    f"{purpose.name} has channels of several lengths; give as many samples of each"
                ) from None
        return samples if rate is None else (samples, rate)
    file = next((audio[key] for key in _FILE_KEYS if audio.get(key) is not None), None)
    if file is None:
        raise TypeError(
            f"{purpose.name} is a dict of {', '.join(map(str, audio)) or 'nothing'}; it needs samples "
            f"({', '.join(_SAMPLES_KEYS)}) and their rate ({', '.join(_RATE_KEYS)})"
        )
    return file


def _plain(samples: np.ndarray | torch.Tensor, purpose: Purpose) -> np.ndarray | torch.Tensor:
    """``samples`` as an array or a dense tensor of real numbers. Raises TypeError where they are none."""
    if isinstance(samples, np.ndarray):
        is_real, samples = samples.dtype.kind in "fiu", np.asarray(samples)  # a matrix has two dimensions always
    else:
        is_real = not samples.is_complex() and samples.dtype != torch.bool
        samples = samples.detach()
        if samples.is_quantized:
            samples = samples.dequantize()
        if samples.is_meta or samples.is_nested or samples.layout != torch.strided:
            kind = "nested" if samples.is_nested else "meta" if samples.is_meta else str(samples.layout)
            raise TypeError(f"{purpose.name} is a {kind.removeprefix('torch.')} tensor; give a dense one, with values")
    if not is_real:
        raise TypeError(f"{purpose.name} must hold real numbers, got {samples.dtype}; use float32 on -1..1 or int16")
    return samples


@np.errstate(over="ignore")  # it becomes infinite, which is told of
def _scaled(samples: np.ndarray | torch.Tensor) -> np.ndarray:
    """Float32 samples on -1..1; integers are divided by their type's full scale."""
    if isinstance(samples, torch.Tensor):
        samples = samples.cpu().resolve_neg()
        samples = (samples.float() if samples.is_floating_point() else samples).numpy()
    if samples.dtype.kind == "f":
        return samples.astype(np.float32)
    full_scale = 2.0 ** (8 * samples.dtype.itemsize - 1)
    offset = full_scale if samples.dtype.kind == "u" else 0.0
    return ((samples - offset) / full_scale).astype(np.float32)
