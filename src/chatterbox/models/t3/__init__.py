"""T3: text tokens to speech tokens."""

from chatterbox.models.t3.t3 import T3

__all__ = ["T3"]
