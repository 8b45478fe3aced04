"""S3Gen's stream without its vocoder, for what is asked of the flow alone."""

from __future__ import annotations

from torch import Tensor

from chatterbox.models.s3gen.stream import FrameNoise, S3GenStream


class MelStream(S3GenStream):
    """A stream that hands out mel frames (1, num_mels, T) where `S3GenStream` hands out their waveform."""

    def _vocode(self, noise: FrameNoise, spoken_end: int, end: int) -> Tensor:
        new = self._mel[..., self._num_spoken - self._mel_start : spoken_end - self._mel_start]
        self._mel, self._mel_start = self._mel[..., spoken_end - self._mel_start :], spoken_end
        self._num_spoken = spoken_end
        return new
