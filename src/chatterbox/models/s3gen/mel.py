"""The 24 kHz log-mel spectrogram that S3Gen's flow speaks.

Owns: that one transform. Does not know: the models on either side of it.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from chatterbox.audio.recordings import mel_filters


def mel_spectrogram(
    y: torch.Tensor | np.ndarray,
    n_fft: int = 1920,
    num_mels: int = 80,
    sampling_rate: int = 24_000,
    hop_size: int = 480,
    win_size: int = 1920,
    fmin: float = 0,
    fmax: float | None = 8000,
    center: bool = False,
) -> torch.Tensor:
    """Natural-log mel (B, num_mels, L // hop_size) of audio (B, L) or (L,), on its device. Differentiable.

    Raises ValueError below ``(n_fft - hop_size) / 2 + 1`` samples (31 ms), which the reflected edges need.
    """
    wav = torch.atleast_2d(torch.as_tensor(y)).float()
    edge = (n_fft - hop_size) // 2
    if wav.shape[-1] <= edge:
        raise ValueError(f"audio has {wav.shape[-1]} samples, fewer than {edge + 1}; give a longer recording")
    padded = F.pad(wav[:, None], (edge, edge), mode="reflect")[:, 0]
    window = torch.hann_window(win_size, dtype=torch.float32, device=wav.device)
    spectrum = torch.stft(padded, n_fft, hop_size, win_size, window, center=center, return_complex=True)
    magnitude = (torch.view_as_real(spectrum).square().sum(dim=-1) + 1e-9).sqrt()
    filters = mel_filters(sampling_rate, n_fft, num_mels, float(fmin), None if fmax is None else float(fmax))
    return (filters.to(wav.device) @ magnitude).clamp_min(1e-5).log()
