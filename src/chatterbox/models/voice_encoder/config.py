"""Upstream's import path of the voice encoder's configuration; the class lives in `chatterbox.models.config`."""

from chatterbox.models.config import VoiceEncoderConfig as VoiceEncConfig

__all__ = ["VoiceEncConfig"]
