"""The mel spectrogram that the voice encoder was trained on: power, without a logarithm.

Owns: that one transform. Does not know: windows of an utterance, or the network.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from chatterbox.audio.recordings import mel_filters
from chatterbox.models.config import VoiceEncoderConfig


def melspectrogram(wav: torch.Tensor, config: VoiceEncoderConfig = VoiceEncoderConfig()) -> torch.Tensor:
    """Mel power (num_mels, 1 + L // hop_len) of a wav (L,) at ``config.sample_rate``, on the wav's device."""
    wav = F.pad(wav.float(), (0, max(0, config.n_fft // 2 + 1 - len(wav))))  # reflection needs this many samples
    window = torch.hann_window(config.n_fft, dtype=torch.float32, device=wav.device)
    spectrum = torch.stft(wav, config.n_fft, config.hop_len, window=window, return_complex=True)
    filters = mel_filters(config.sample_rate, config.n_fft, config.num_mels).to(wav.device)
    return filters @ spectrum.abs().square()
