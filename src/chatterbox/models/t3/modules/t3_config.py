"""Upstream's import path of `T3Config`; the class lives in `chatterbox.config`."""

from chatterbox.config import T3Config

__all__ = ["T3Config"]
