"""Speaker embedding that conditions T3."""

from chatterbox.models.config import VoiceEncoderConfig
from chatterbox.models.voice_encoder.voice_encoder import VoiceEncoder

VoiceEncConfig = VoiceEncoderConfig  # upstream's name

__all__ = ["VoiceEncConfig", "VoiceEncoder", "VoiceEncoderConfig"]
