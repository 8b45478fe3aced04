"""This package as a `System` by its public calls alone; run by `client.py`, also on the package of another checkout.

In place of a folder it may be given the name of a model.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from benchmarks.baselines.system import System, serve
from chatterbox.tts import ChatterboxTTS


class Public(System):
    def __init__(self, model: str) -> None:
        super().__init__(ChatterboxTTS.from_pretrained("cpu", model=model), streams=True)
        self.tts.warm()

    def bound(self, max_new_tokens: int) -> None:
        self.tts.sampling = dataclasses.replace(self.tts.sampling, max_new_tokens=max_new_tokens)

    def seeded(self, seed: int) -> dict[str, Any]:
        return {"seed": seed}

    def batch(self, texts: list[str]) -> dict[str, Any]:
        """All texts in one `generate_batch`: ``seconds``, and the ``samples`` of each."""
        started = time.perf_counter()
        wavs = self.tts.generate_batch(texts, seed=0)
        return {"seconds": time.perf_counter() - started, "samples": [wav.shape[-1] for wav in wavs]}


if __name__ == "__main__":
    serve(Public)
