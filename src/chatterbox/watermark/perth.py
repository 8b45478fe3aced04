"""The inaudible Perth watermark that every published Chatterbox model puts on its output, whole or while it is made.

Owns: marking and reading, with the weights that resemble-perth installs; of a stream, which samples each call sees and
the cross-fade between two calls. Its own code is not imported: that needs torchaudio and pkg_resources, which it does
not declare, and keeps an autograd graph alive at every call. Does not know: requests, models.

Perth's encoder reads 15 frames of 10 ms and half a window of 64 ms on both sides of a frame. Each call of a stream
gets that much of the past again, and what it marks anew begins as whole marking has it; the future it does without.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from chatterbox.audio.recordings import resample_hq
from chatterbox.models.conv import conv1d
from chatterbox.runtime.torch_context import own_context

WATERMARK_SR = 32_000
_N_FFT, _HOP = 2048, 320
_BAND = 128  # lowest frequency bins, those below 2 kHz
_FLOOR, _HEADROOM_DB = 1e-9, 15.0
_RANGE_DB = _HEADROOM_DB - 20 * np.log10(_FLOOR)
_QUIET = 0.05  # of the loudest frame: quieter ones carry no mark
_WEIGHTS = Path("perth_net", "pretrained", "implicit", "perth_net_250000.pth.tar")


@own_context()
@torch.no_grad()
def apply_watermark(wav: np.ndarray, sample_rate: int) -> np.ndarray:
    """Mark ``wav``, float32 (N,) at ``sample_rate`` Hz; at least 32 ms. The result is cut to a multiple of 10 ms.

    Raises:
        RuntimeError: the weights are not installed; the message names the remedy.
    """
    weights = _weights()
    spectrum, level = _spectrum(wav, sample_rate)
    residual = _convolve(weights, "encoder.layers", level[None, :_BAND])[0] * _carries(level)
    level = torch.cat([level[:_BAND] + residual, level[_BAND:]])
    magnitude = 10.0 ** ((level * _RANGE_DB + 20 * np.log10(_FLOOR)) / 20).clamp(max=10)
    marked = torch.istft(torch.polar(magnitude, spectrum.angle()), _N_FFT, _HOP, window=_window())
    return resample_hq(marked.numpy(), WATERMARK_SR, sample_rate)


@own_context()
@torch.no_grad()
def read_watermark(wav: np.ndarray, sample_rate: int) -> float:
    """How sure it is that ``wav``, float32 (N,) at ``sample_rate`` Hz, is marked: 0 to 1. Survives common edits.

    Raises:
        RuntimeError: the weights are not installed; the message names the remedy.
    """
    weights = _weights()
    _, level = _spectrum(wav, sample_rate)
    band, carries = level[None, :_BAND], _carries(level)[None, None]
    means = []
    for branch, stretch in (("slow", 1.25), ("normal", 1.0), ("fast", 0.75)):
        length = int(band.shape[2] * stretch)
        stretched = F.interpolate(band, size=length, mode="linear", align_corners=True)
        mask = F.interpolate(carries, size=length)
        votes = _convolve(weights, f"decoder.{branch}_layers", stretched)  # (1, [trust, mark], length)
        means.append((votes * mask).sum(2) / mask.sum(2).clamp_min(1))
    trust, mark = torch.stack(means, dim=-1)[0]
    return float((trust.softmax(0) * mark).sum().clamp(0, 1))


def _spectrum(wav: np.ndarray, sample_rate: int) -> tuple[Tensor, Tensor]:
    """Complex spectrum at 32 kHz, and its level with 0 at the floor and 1 at the headroom; both (bins, frames)."""
    samples = torch.from_numpy(resample_hq(np.asarray(wav, dtype=np.float32), sample_rate, WATERMARK_SR))
    spectrum = torch.stft(samples, _N_FFT, _HOP, window=_window(), return_complex=True)
    return spectrum, 20 * torch.log10(spectrum.abs().clamp_min(_FLOOR) / _FLOOR) / _RANGE_DB


def _carries(level: Tensor) -> Tensor:
    """1.0 for each frame (frames,) that is loud enough to carry the mark."""
    loudness = level.sum(0)
    return (loudness > _QUIET * loudness.max()).float()


def _convolve(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """One of the network's stacks: seven convolutions over time that keep the length."""
    for index in range(7):
        weight, bias = weights[f"{name}.{index}.conv.weight"], weights[f"{name}.{index}.conv.bias"]
        x = conv1d(x if index == 0 else F.leaky_relu(x), weight, bias, padding=weight.shape[2] // 2)
    return x


class Watermarker(Protocol):
    """`PerthWatermarker`, or what a program puts in its place."""

    def apply_watermark(self, signal: np.ndarray, sample_rate: int) -> np.ndarray:
        """``signal``, float32 (N,), marked; maybe cut to a multiple of 10 ms."""


def mark_with(watermarker: Watermarker, signal: np.ndarray, sample_rate: int) -> np.ndarray:
    """``signal``, float32 (N,), as ``watermarker`` returns it.

    Raises:
        TypeError: it returns what is no audio.
    """
    found: Any = watermarker.apply_watermark(signal, sample_rate=sample_rate)
    try:
        samples = np.asarray(found)
    except (TypeError, ValueError):
        samples = np.empty(0)
    if samples.dtype.kind not in "fiu" or samples.ndim != 1 or not samples.size:
        raise TypeError(
            f"the watermarker, {type(watermarker).__name__}, returned {_described(found)}, which is no audio of one "
            "channel: apply_watermark must return (N,) samples; assign another to watermarker, or pass watermark=False"
        )
    return samples.astype(np.float32, copy=False)


def _described(found: object) -> str:
    if found is None:
        return "None"
    shape = f" of shape {found.shape}" if isinstance(found, (np.ndarray, Tensor)) else ""
    return f"a {type(found).__name__}{shape}"


class PerthWatermarker:
    """The same under upstream's names: what ``model.watermarker`` is, and what a program may replace."""

    def apply_watermark(self, signal: np.ndarray, sample_rate: int, **_: object) -> np.ndarray:
        """As :func:`apply_watermark`."""
        return apply_watermark(signal, sample_rate)

    def get_watermark(self, wm_signal: np.ndarray, sample_rate: int, round: bool = True, **_: object) -> float:
        """As :func:`read_watermark`; ``round`` makes it 0 or 1."""
        sure = read_watermark(wm_signal, sample_rate)
        return float(sure > 0.5) if round else sure


def watermarker_of(facade: ModuleType) -> Watermarker:
    """What a new model marks with: what the program has put in place of Perth's own class, else `PerthWatermarker`.

    It may replace ``perth.PerthImplicitWatermarker``, its ``apply_watermark``, the module ``perth``, or the name
    ``perth`` in ``facade``.
    """
    perth = vars(facade).get("perth", sys.modules.get("perth"))
    made = getattr(perth, "PerthImplicitWatermarker", None)  # None: Perth cannot load its own
    if made is None or _is_perths(getattr(made, "apply_watermark", None)):
        return PerthWatermarker()
    return made()


def _is_perths(function: object) -> bool:
    return str(getattr(function, "__module__", "")).startswith("perth.perth_net.")


@cache
@torch.inference_mode(False)
def _window() -> Tensor:
    return torch.hann_window(_N_FFT, dtype=torch.float32)


@cache
@torch.inference_mode(False)
def _weights() -> dict[str, Tensor]:
    # Installed, whatever a program has put in its place.
    specs = (finder.find_spec("perth", None) for finder in sys.meta_path if hasattr(finder, "find_spec"))
    package = next(filter(None, specs), None)
    folders = list(package.submodule_search_locations or ()) if package else []
    for path in (Path(folder) / _WEIGHTS for folder in folders):
        if path.is_file():
            return torch.load(path, map_location="cpu", weights_only=True)["model"]
    raise RuntimeError(
        "the watermark's weights are not installed: run pip install 'resemble-perth==1.0.1', or pass watermark=False"
    )


_HOP_SECONDS = 0.01  # a watermarker may cut what it returns to a multiple of this
_LEAST_SECONDS = 0.04  # of new samples for a call before the end; Perth's window needs 32 ms


class WatermarkStream:
    """One stream of samples, marked piece by piece: as many come out as went in, in order, in float32.

    Each call of the watermarker sees ``context`` seconds that were handed out before, and what is new. The last
    ``fade`` seconds are kept back and cross-faded with what the next call makes of the same samples: the mark leaves
    phases alone, so that nothing cancels. Pieces may have any size; small ones wait until the fade and 60 ms are there.
    The last samples, however few, are marked with their context and zeros after them: none is handed out unmarked.
    """

    def __init__(
        self, watermarker: Watermarker, sample_rate: int, *, context: float = 0.25, fade: float = 0.02
    ) -> None:
        """``context`` and ``fade`` are in seconds.

        Raises:
            ValueError: a rate, context or fade out of range.
        """
        if not sample_rate >= 1000:
            raise ValueError(f"sample_rate must be at least 1000 Hz, got {sample_rate!r}; give the rate of the samples")
        if not 0 < fade <= 1:
            raise ValueError(f"fade must be above 0 and at most 1 second, got {fade!r}; 0.02 is usual")
        if not fade <= context <= 10:
            raise ValueError(f"context must be from the fade ({fade:g}) to 10 seconds, got {context!r}; 0.25 is usual")
        self._watermarker, self._rate = watermarker, sample_rate
        self._hop, self._fade = round(_HOP_SECONDS * sample_rate), max(1, round(fade * sample_rate))
        self._context = round(context * sample_rate)
        self._least = self._fade + max(self._fade, round(_LEAST_SECONDS * sample_rate)) + 2 * self._hop
        self._rising = (0.5 - 0.5 * np.cos(np.pi * (np.arange(self._fade) + 0.5) / self._fade)).astype(np.float32)
        self._begin()

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Take (N,) more samples and return those (M,) that are ready, maybe none.

        Raises:
            ValueError: ``samples`` are not one channel of floats.
        """
        self._raw.append(_one_channel(samples))
        self._pending += len(samples)
        if self._pending < self._least:
            return np.zeros(0, np.float32)
        return self._mark(self._fade)

    def finish(self) -> np.ndarray:
        """The rest of the stream, (M,) samples. The next `push` begins another stream."""
        rest = self._mark(0) if self._pending else np.zeros(0, np.float32)
        self._begin()
        return rest

    def _begin(self) -> None:
        self._raw: list[np.ndarray] = []  # from the context's first sample on
        self._past = 0  # how many of those were handed out
        self._pending = 0  # how many were not
        self._held: np.ndarray | None = None  # first of the pending ones as the last call marked them

    def _mark(self, keep_len: int) -> np.ndarray:
        """Mark all there is; hand out what is not handed out, but for the last ``keep_len`` samples of what came back.

        With ``keep_len`` 0 everything comes back: zeros make up for what the watermarker cuts.
        """
        raw = np.concatenate(self._raw)
        padding = 0 if keep_len else max(2 * self._hop, round(_LEAST_SECONDS * self._rate) - len(raw))
        signal = np.pad(raw, (0, padding))
        samples = mark_with(self._watermarker, signal, self._rate)
        if len(samples) <= len(signal) - 2 * self._hop:
            raise RuntimeError(
                f"the watermarker made {samples.shape} of {signal.shape} samples; "
                "it may cut less than 20 ms off the end"
            )
        samples = samples[: len(raw)]
        ready = samples[self._past : len(samples) - keep_len].copy()
        if self._held is not None:
            head = ready[: self._fade]
            head[:] = self._held + self._rising * (head - self._held)
        self._held = samples[len(samples) - keep_len :]
        self._move(raw, len(ready))
        return ready

    def _move(self, raw: np.ndarray, num_ready: int) -> None:
        """Forget the samples before the next call's context, which begins on the same grid of 10 ms as the stream."""
        done = self._past + num_ready
        dropped = max(0, done - self._context) // self._hop * self._hop
        self._raw, self._past, self._pending = [raw[dropped:]], done - dropped, len(raw) - done


def _one_channel(samples: np.ndarray) -> np.ndarray:
    samples = np.asarray(samples)
    if samples.ndim != 1:
        raise ValueError(f"samples have the shape {samples.shape}; give one channel, (N,)")
    if samples.dtype.kind != "f":
        raise ValueError(f"samples are {samples.dtype}; give floats on -1..1")
    return samples.astype(np.float32, copy=True)
