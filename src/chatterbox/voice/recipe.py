"""Whether voices are still made as they were: by the networks that hear a recording, or by what took their place.

Owns: which networks those are, and their name as they are now. Does not know: recordings, voices.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from chatterbox.models.s3gen import S3Gen
from chatterbox.models.voice_encoder import VoiceEncoder
from chatterbox.models.weights_watch import WeightsWatch
from chatterbox.runtime.replaceable import has_functions_of_others


class VoiceRecipe:
    """What is remembered of a model's networks. Threads may ask at once."""

    def __init__(self) -> None:
        self._watches = (WeightsWatch(), WeightsWatch(), WeightsWatch())

    def name(self, s3gen: S3Gen, voice_encoder: VoiceEncoder) -> str | None:
        """The same while the same recording gives the same voice; None where functions of others are to be called."""
        networks: tuple[Any, ...] = (s3gen.tokenizer, s3gen.speaker_encoder, voice_encoder)
        if not all(isinstance(one, nn.Module) for one in networks) or has_functions_of_others(s3gen):
            return None
        if any(has_functions_of_others(one) for network in networks for one in network.modules()):
            return None
        return " ".join(watch.fingerprint(one) for watch, one in zip(self._watches, networks, strict=True))

    def forget(self) -> None:
        """Weights have changed in a way that is not noticed."""
        for watch in self._watches:
            watch.taint()
