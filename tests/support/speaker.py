"""A speaker that costs nothing, in place of the command's model: what it is given to say is a tone of that length."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np

RATE = 24_000
PER_CHARACTER = 240  # samples


def tone(num_samples: int) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * 440 / RATE * np.arange(num_samples))).astype(np.float32)


class ToneSpeaker:
    """What ``speak`` and ``stream`` were given is in ``texts``."""

    def __init__(self, on_text: Callable[[str], object] = lambda text: None) -> None:
        self.texts: list[str] = []
        self._on_text = on_text

    def speak(self, text: str, on_token: Callable[[int], None] | None = None) -> SimpleNamespace:
        self.texts.append(text)
        self._on_text(text)
        audio = tone(PER_CHARACTER * max(1, len(text)))
        duration = len(audio) / RATE
        return SimpleNamespace(
            audio=_audio(audio), sample_rate=RATE, duration=duration, tokens_time=1.0, audio_time=1.0
        )

    def stream(self, text: object) -> object:
        from chatterbox.synthesis.render import StreamingMetrics

        self.texts.append(text if isinstance(text, str) else "".join(text))
        yield SimpleNamespace(
            audio=_audio(tone(PER_CHARACTER * len(self.texts[-1]))), metrics=StreamingMetrics(0.1, 0.5, 0.5, 1.0, 1)
        )

    def close(self) -> None: ...


def _audio(samples: np.ndarray) -> list[SimpleNamespace]:
    return [SimpleNamespace(numpy=lambda: samples)]
