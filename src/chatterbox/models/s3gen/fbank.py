"""Kaldi log-mel filter bank features, as torchaudio.compliance.kaldi computes them by default.

Owns: framing, pre-emphasis, the Povey window and Kaldi's mel bank at 16 kHz. Does not know: the network they feed.
"""

from __future__ import annotations

import math
from functools import cache

import torch
import torch.nn.functional as F

_SAMPLE_RATE = 16_000
_FRAME, _HOP, _N_FFT = 400, 160, 512  # 25 ms, 10 ms
_PREEMPHASIS = 0.97
_LOWEST_HZ = 20.0
_SMALLEST_POWER = 1.1920928955078125e-07  # float32 epsilon


def kaldi_fbank(wav: torch.Tensor, num_mels: int = 80) -> torch.Tensor:
    """Log-mel energies (..., 1 + (L - 400) // 160, num_mels) of 16 kHz audio (..., L) on -1..1. Differentiable.

    No dither; frames lie wholly inside the recording. Raises ValueError below one frame.
    """
    if wav.shape[-1] < _FRAME:
        raise ValueError(f"audio has {wav.shape[-1]} samples, fewer than {_FRAME} (25 ms); give a longer recording")
    frames = wav.float().unfold(-1, _FRAME, _HOP)  # (..., T, 400)
    frames = frames - frames.mean(dim=-1, keepdim=True)
    previous = torch.cat((frames[..., :1], frames[..., :-1]), dim=-1)
    window = torch.hann_window(_FRAME, periodic=False, dtype=torch.float32, device=wav.device).pow(0.85)
    power = torch.fft.rfft((frames - _PREEMPHASIS * previous) * window, n=_N_FFT).abs().square()
    return (power @ kaldi_mel_filters(num_mels).to(wav.device).T).clamp_min(_SMALLEST_POWER).log()


@cache
@torch.inference_mode(False)  # what is cached must serve training too
def kaldi_mel_filters(num_mels: int) -> torch.Tensor:
    """Triangles on Kaldi's mel scale (num_mels, 257), not normalised; the Nyquist bin is left out. Do not write."""
    low, high = (1127.0 * math.log(1.0 + hz / 700.0) for hz in (_LOWEST_HZ, _SAMPLE_RATE / 2))
    steps, bins = (torch.arange(num, dtype=torch.float32, device="cpu") for num in (num_mels + 2, _N_FFT // 2))
    edges = low + steps[:, None] * ((high - low) / (num_mels + 1))
    bins = 1127.0 * (1.0 + bins * (_SAMPLE_RATE / _N_FFT) / 700.0).log()
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return F.pad(torch.minimum(rising, falling).clamp_min(0.0), (0, 1))
