"""Fundamental frequency from a mel spectrogram.

Owns: the convolutional F0 predictor of the vocoder. Does not know: sample rates or waveforms.
"""

from __future__ import annotations

import itertools

from torch import Tensor, nn

from chatterbox.models.conv import Conv1d
from chatterbox.models.s3gen.weight_norm import weight_norm

NUM_CONVS = 5


class ConvRNNF0Predictor(nn.Module):
    """Five weight-normalised convolutions and a linear read-out (upstream's name; there is no recurrence)."""

    def __init__(self, num_mels: int, channels: int) -> None:
        super().__init__()
        widths = [num_mels] + [channels] * NUM_CONVS
        convs = [weight_norm(Conv1d(i, o, 3, padding=1)) for i, o in itertools.pairwise(widths)]
        self.condnet = nn.Sequential(*itertools.chain.from_iterable((conv, nn.ELU()) for conv in convs))
        self.classifier = nn.Linear(channels, 1)

    def forward(self, mel: Tensor) -> Tensor:
        """Mel (B, num_mels, T) to F0 in Hz (B, T), never negative."""
        hidden = self.condnet(mel).transpose(1, 2)  # (B, T, C)
        return self.classifier(hidden).squeeze(-1).abs()
