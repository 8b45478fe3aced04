"""Upstream's import path of `T3Config`; the class lives in `chatterbox.models.config`."""

from chatterbox.models.config import T3Config

__all__ = ["T3Config"]
