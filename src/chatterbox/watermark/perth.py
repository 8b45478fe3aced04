"""The inaudible Perth watermark that every published Chatterbox model puts on its output.

Owns: marking and reading, with the weights that resemble-perth installs. Its own code is not imported: that needs
torchaudio and pkg_resources, which it does not declare, and keeps an autograd graph alive at every call.
Does not know: requests, models.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from chatterbox.audio.recordings import resample_hq
from chatterbox.models.conv import conv1d

WATERMARK_SR = 32_000
_N_FFT, _HOP = 2048, 320
_BAND = 128  # lowest frequency bins, those below 2 kHz
_FLOOR, _HEADROOM_DB = 1e-9, 15.0
_RANGE_DB = _HEADROOM_DB - 20 * np.log10(_FLOOR)
_QUIET = 0.05  # of the loudest frame: quieter ones carry no mark
_WEIGHTS = Path("perth_net", "pretrained", "implicit", "perth_net_250000.pth.tar")


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


class PerthWatermarker:
    """The same under upstream's names: what ``model.watermarker`` is, and what a program may replace."""

    def apply_watermark(self, signal: np.ndarray, sample_rate: int, **_: object) -> np.ndarray:
        """As :func:`apply_watermark`."""
        return apply_watermark(signal, sample_rate)

    def get_watermark(self, wm_signal: np.ndarray, sample_rate: int, round: bool = True, **_: object) -> float:
        """As :func:`read_watermark`; ``round`` makes it 0 or 1."""
        sure = read_watermark(wm_signal, sample_rate)
        return float(sure > 0.5) if round else sure


@cache
@torch.inference_mode(False)
def _window() -> Tensor:
    return torch.hann_window(_N_FFT, dtype=torch.float32)


@cache
@torch.inference_mode(False)
def _weights() -> dict[str, Tensor]:
    package = importlib.util.find_spec("perth")
    folders = list(package.submodule_search_locations or ()) if package else []
    for path in (Path(folder) / _WEIGHTS for folder in folders):
        if path.is_file():
            return torch.load(path, map_location="cpu", weights_only=True)["model"]
    raise RuntimeError(
        "the watermark's weights are not installed: run pip install 'resemble-perth==1.0.1', or pass watermark=False"
    )
