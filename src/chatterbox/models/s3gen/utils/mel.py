"""Upstream's import path of the 24 kHz mel spectrogram."""

from chatterbox.models.s3gen.mel import mel_spectrogram

__all__ = ["mel_spectrogram"]
